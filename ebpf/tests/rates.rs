//! What a pod may send and receive in a second: packet by packet by BPF_PROG_TEST_RUN, and real TCP in namespaces.
#![cfg(test)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod support;
use std::net::SocketAddr;
use support::space::*;
use support::*;
use tombolo_ebpf::*;

/// Writes the first pod's limits.
fn limit(node: &Node, limits: Limits) {
    node.datapath.upsert_interface(node.a, &Interface { limits, ..pod(POD_A, ID_A, 1, MAC_A) }).unwrap();
}

/// What the sending pod's program makes of a packet: action, priority, time.
fn send(node: &Node, packet: &[u8], (gso_size, gso_segs): (u32, u32)) -> (u32, u32, u64) {
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&node.a.to_ne_bytes());
    context[164..168].copy_from_slice(&gso_segs.to_ne_bytes());
    context[176..180].copy_from_slice(&gso_size.to_ne_bytes());
    let (action, _, after) = node.datapath.test_run("from_endpoint", packet, &context).unwrap();
    let word = |at: usize| u32::from_ne_bytes(after[at..at + 4].try_into().unwrap());
    (action, word(32), u64::from_ne_bytes(after[152..160].try_into().unwrap()))
}

fn dropped(node: &Node, reason: u8) -> u64 {
    let metrics = node.datapath.metrics().unwrap();
    metrics.iter().filter(|metric| metric.reason == reason).map(|metric| metric.packets).sum()
}

/// A quarter of a second's worth passes at once, and then as much as the rate.
#[test]
fn more_than_the_rate_is_dropped_and_counted() {
    for f in FAMILIES {
        let mut node = Node::new();
        limit(&node, Limits { egress: Some(1_000_000), ..Limits::default() });
        let mut packet = udp((POD_A[f], 4000), (POD_B[f], 80), 9);
        packet.resize(1000, 0);
        // The IP and UDP lengths do not matter to the programs, but for events.
        let began = monotonic_ns();
        let passed = (0..1000).filter(|_| send(&node, &packet, (0, 0)).0 == REDIRECT).count() as u64;
        let most = 252 + (monotonic_ns() - began) / 1_000_000;
        assert!((250..=most).contains(&passed), "{passed} of 1000, {most} at most");
        assert_eq!(dropped(&node, 198), 1000 - passed);
        assert!(node.events().iter().any(|event| event.flow.drop_reason == 198));
        // What is cut later has headers for each piece: 99 of them are four times what this packet has.
        limit(&node, Limits { egress: Some(8000), ..Limits::default() });
        assert_eq!(send(&node, &packet, (10, 100)).0, REDIRECT);
        assert_eq!(send(&node, &packet, (0, 0)).0, SHOT, "2000 bytes are all it may be ahead");
        // Without a limit all pass.
        limit(&node, Limits::default());
        assert!((0..1000).all(|_| send(&node, &packet, (0, 0)).0 == REDIRECT));
        node.events();
    }
}

#[test]
fn limits_are_read_back_and_go_with_the_pod() {
    let node = Node::new();
    let limits = Limits { egress: Some(1_000_000), ingress: Some(2_000_000), priority: Some(6) };
    limit(&node, limits);
    let rows = node.datapath.interfaces().unwrap();
    assert_eq!(rows.iter().find(|(index, _)| *index == node.a).unwrap().1.limits, limits);
    let rates = || node.datapath.usage().into_iter().find(|usage| usage.map == "tb_rates").unwrap().entries;
    assert_eq!(rates(), 3);
    node.datapath.delete_interface(node.a).unwrap();
    assert_eq!(rates(), 0);
}

/// Where the uplink sends packets at their time, what leaves the node gets one, and what stays here is limited as elsewhere.
#[test]
fn packets_get_the_time_at_which_their_rate_lets_them_leave() {
    let node = Node::new();
    node.datapath.set_config(&NodeConfig { paced: true, ..node.config() }).unwrap();
    limit(&node, Limits { egress: Some(1_000_000), priority: Some(6), ..Limits::default() });
    for f in FAMILIES {
        limit(&node, Limits { egress: None, ..Limits::default() });
        limit(&node, Limits { egress: Some(1_000_000), priority: Some(6), ..Limits::default() });
        let mut packet = udp((POD_A[f], 4000), (REMOTE[f], 80), 9);
        packet.resize(1000, 0);
        let mut times = Vec::new();
        let began = monotonic_ns();
        let outcome = loop {
            let (action, priority, time) = send(&node, &packet, (0, 0));
            if action != REDIRECT {
                break action;
            }
            assert_eq!(priority, 6);
            times.push(time);
            assert!(times.len() < 10_000);
        };
        assert!(times[0] >= began);
        // A millisecond each; later ones no sooner, where the test itself was slower than that.
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 1_000_000), "{times:?}");
        assert!(times.last() > Some(&(began + 1_990_000_000)));
        assert!((2000..2100 + (monotonic_ns() - began) / 1_000_000).contains(&(times.len() as u64)));
        assert_eq!((outcome, dropped(&node, 162)), (SHOT, f as u64 + 1), "two seconds ahead is too much");
        let near = udp((POD_A[f], 4000), (POD_B[f], 80), 9);
        assert_eq!(send(&node, &near, (0, 0)), (REDIRECT, 6, 0));
    }
}

const RATE: f64 = 20e6;

/// The pod's row with other limits.
fn limited(datapath: &Datapath, pod: &Pod, limits: Limits) {
    let rows = datapath.interfaces().unwrap();
    let row = rows.into_iter().find(|(index, _)| *index == pod.ifindex).unwrap().1;
    datapath.upsert_interface(pod.ifindex, &Interface { limits, ..row }).unwrap();
}

#[test]
fn tcp_gets_what_the_limit_says_both_ways() {
    let bpffs = isolate();
    let datapath = open(Attach::Auto, bpffs.path());
    prepare_node(&datapath, 1);
    datapath.set_config(&host_config()).unwrap();
    let a = add_pod(&datapath, 1, 2, ID_A, 1500);
    let b = add_pod(&datapath, 1, 3, ID_B, 1500);
    let here = Space::here();
    let rate = Some((RATE / 8.0) as u64);
    let (out, into) =
        (Limits { egress: rate, ..Limits::default() }, Limits { ingress: rate, ..Limits::default() });
    let none = Limits::default();
    let free = goodput(&a.space, &b.space, SocketAddr::from((ip(POD_B[0]), 5000)));
    assert!(free > 3.0 * RATE, "without a limit: {free}");
    for f in FAMILIES {
        let to = SocketAddr::from((ip(POD_B[f]), 5001 + f as u16));
        for (what, client, of_a, of_b) in [
            ("egress", &a.space, out, none),
            ("ingress", &a.space, none, into),
            ("ingress from the node", &here, none, into),
        ] {
            limited(&datapath, &a, of_a);
            limited(&datapath, &b, of_b);
            let got = goodput(client, &b.space, to);
            println!("{what} {to}: {:.1} % of the limit", got * 100.0 / RATE);
            assert!((0.80 * RATE..=1.05 * RATE).contains(&got), "{what} {to}: {got}");
        }
    }
    let reasons: Vec<u8> = drops(&datapath).iter().map(|(reason, _)| *reason).collect();
    assert_eq!(reasons, [198, 198], "both directions, and nothing else");
    nix::mount::umount2(bpffs.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}
