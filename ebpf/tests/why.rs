//! A packet once more: model and programs say the same of it, of every way on, and of drops that no test run of the living
//! programs reaches. What `drops()` of the other tests asks is explained there.

#![cfg(test)]

mod support;

use std::net::IpAddr;
use support::*;
use tombolo_base::flow::Capture;
use tombolo_ebpf::*;
use tombolo_model::{Reason, Step, To};

/// A family's number in the numbers of services and backends.
fn number(family: usize) -> u32 {
    u32::try_from(family).unwrap()
}

fn says(capture: &Capture, node: &mut Node, wanted: Result<To, u8>) -> Explained {
    let explained = node.explain(capture);
    assert_eq!(explained.difference, None, "{explained:#?}");
    let model = explained.model.as_ref().map(|(to, _)| *to).map_err(|reason| reason.number());
    let programs = explained.programs.map_err(|(reason, _)| reason);
    assert_eq!((model, programs), (wanted, wanted), "{explained:#?}");
    explained
}

/// Out of the tunnel, from `outer`, with a key.
fn tunnelled(node: &Node, packet: &[u8], outer: &str, key: u32) -> Capture {
    Capture { tunnel: Some((ip(outer), key)), ..capture_of("from_overlay", node.overlay, packet) }
}

fn allow(identity: u32, port: u16) -> RuleEntry {
    RuleEntry {
        identity: Some(identity),
        protocol: Some(6),
        port: Some(port.into()),
        cookie: 77,
        ..RuleEntry::default()
    }
}

#[test]
fn every_way_on_is_told() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 1 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
        node.service(VIP[f], 80, Scope::External, 5 + number(f), &[(3 + number(f), REMOTE[f], 8080)]);
        let (a, b, uplink, overlay) = (node.a, node.b, node.uplink, node.overlay);
        let syn = |from: &str, to: &str, port| tcp((from, 4000), (to, port), "S");
        for (program, ifindex, packet, to) in [
            ("from_endpoint", a, syn(POD_A[f], POD_B[f], 80), To::Pod(b)),
            ("from_endpoint", a, syn(POD_A[f], REMOTE[f], 80), To::Overlay),
            ("from_endpoint", a, syn(POD_A[f], CLUSTER_IP[f], 80), To::Overlay),
            ("from_endpoint", a, syn(POD_A[f], CLIENT[f], 80), To::Network),
            ("from_endpoint", a, syn(POD_A[f], NODE[f], 22), To::Kernel),
            ("to_endpoint", a, syn(GATEWAY[f], POD_A[f], 80), To::Kernel),
            ("from_uplink", uplink, syn(CLIENT[f], POD_A[f], 80), To::Pod(a)),
            ("from_uplink", uplink, syn(CLIENT[f], VIP[f], 80), To::Overlay),
            ("from_uplink", uplink, syn(CLIENT[f], NODE[f], 22), To::Kernel),
            ("to_uplink", uplink, syn(NODE[f], CLIENT[f], 22), To::Kernel),
            ("to_overlay", overlay, syn(GATEWAY[f], REMOTE[f], 80), To::Kernel),
        ] {
            says(&capture_of(program, ifindex, &packet), &mut node, Ok(to));
        }
        let packet = syn(REMOTE[f], POD_A[f], 80);
        says(&tunnelled(&node, &packet, REMOTE_NODE[0], ID_REMOTE), &mut node, Ok(To::Pod(a)));
    }
    let mut arp = udp((POD_A[0], 1), (POD_B[0], 2), 9);
    arp[12..14].copy_from_slice(&[8, 6]);
    says(&capture_of("from_endpoint", node.a, &arp), &mut node, Ok(To::Kernel));
}

#[test]
fn what_comes_out_of_the_tunnel_is_explained_with_its_key() {
    let mut node = Node::new();
    let set = PolicySet { ingress: PolicySide::only(vec![allow(ID_REMOTE, 80)]), ..PolicySet::default() };
    node.datapath.set_policy(7, &set).unwrap();
    node.datapath
        .upsert_interface(node.a, &Interface { policy_id: 7, ..pod(POD_A, ID_A, 1, MAC_A) })
        .unwrap();
    for f in FAMILIES {
        let to = |address: &str, port| tcp((REMOTE[f], 4000), (address, port), "S");
        let (a, known) = (node.a, REMOTE_NODE[f]);
        says(&tunnelled(&node, &to(POD_A[f], 80), known, ID_REMOTE), &mut node, Ok(To::Pod(a)));
        says(&tunnelled(&node, &to(POD_A[f], 80), known, ID_B), &mut node, Err(133));
        says(&tunnelled(&node, &to(POD_A[f], 81), known, ID_REMOTE), &mut node, Err(133));
        says(&tunnelled(&node, &to(POD_A[f], 80), CLIENT[f], ID_REMOTE), &mut node, Err(172));
        says(&tunnelled(&node, &to(CLIENT[f], 80), known, ID_REMOTE), &mut node, Err(151));
        let own = tcp((POD_B[f], 4000), (POD_A[f], 80), "S");
        says(&tunnelled(&node, &own, known, 0), &mut node, Err(132));
    }
    let discovery = icmp6(REMOTE[1], POD_A[1], (135, 0), 255);
    says(&tunnelled(&node, &discovery, REMOTE_NODE[1], ID_REMOTE), &mut node, Err(176));
}

#[test]
fn decisions_are_told_in_their_order_with_the_entry_that_decided() {
    let mut node = Node::new();
    let set = PolicySet { egress: PolicySide::only(vec![allow(ID_REMOTE, 8080)]), ..PolicySet::default() };
    node.datapath.set_policy(7, &set).unwrap();
    node.datapath
        .upsert_interface(node.a, &Interface { policy_id: 7, ..pod(POD_A, ID_A, 1, MAC_A) })
        .unwrap();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 1 + number(f), &[(1 + number(f), REMOTE[f], 8080)]);
        let asked = tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "S");
        let told = says(&capture_of("from_endpoint", node.a, &asked), &mut node, Ok(To::Overlay));
        let (read, backend): (IpAddr, (IpAddr, u16)) = (ip(POD_A[f]), (ip(REMOTE[f]), 8080));
        let steps: Vec<&Step> = told.steps.iter().map(|(step, _)| step).collect();
        let [
            Step::Read { flow, .. },
            Step::Sender { believed: true, .. },
            Step::Flow { answer: true, known: None, .. },
            Step::Flow { .. },
            Step::Service { backend: chosen, remembered: false, .. },
            Step::Place { identity: ID_REMOTE, .. },
            Step::Flow { known: None, .. },
            Step::Policy { policy: 7, verdict: Ok(()), rule: Some(_), .. },
        ] = steps.as_slice()
        else {
            panic!("{steps:#?}")
        };
        assert_eq!((flow.source.0, *chosen), (read, Some(backend)));
        assert_eq!(told.steps.last().unwrap().1, 77, "the entry's number");
        // The same again, of a flow that is known now.
        node.run("from_endpoint", node.a, &asked);
        node.events();
        let told = says(&capture_of("from_endpoint", node.a, &asked), &mut node, Ok(To::Overlay));
        assert!(told.steps.iter().any(|(step, _)| matches!(step, Step::Service { remembered: true, .. })));
    }
}

/// What agrees today may not tomorrow: a replay whose rows are others than the model's is told apart.
#[test]
fn a_difference_is_found() {
    let mut node = Node::new();
    let packet = tcp((POD_A[0], 4000), (POD_B[0], 80), "S");
    let capture = capture_of("from_endpoint", node.a, &packet);
    let b = node.b;
    says(&capture, &mut node, Ok(To::Pod(b)));
    // Rules without the row that says in which shapes to look: the programs do not find them.
    let set = PolicySet {
        ingress: PolicySide {
            enforced: false,
            entries: vec![RuleEntry { action: RuleAction::Deny, ..allow(ID_A, 80) }],
        },
        ..PolicySet::default()
    };
    node.datapath.set_policy(7, &set).unwrap();
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 7, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    says(&capture, &mut node, Err(181));
    node.blind(7);
    let explained = node.explain(&capture);
    assert_eq!(explained.model.as_ref().unwrap_err(), &Reason::PolicyDeny);
    assert_eq!(explained.programs, Ok(To::Pod(b)));
    assert!(explained.difference.unwrap().contains("the model says drop 181"));
}

#[test]
fn flows_are_captured_when_asked() {
    let mut node = Node::new();
    let packet = tcp((POD_A[0], 4000), (POD_B[0], 80), "S");
    for (capture, wanted) in [(CaptureOf::Drops, false), (CaptureOf::All, true), (CaptureOf::Nothing, false)]
    {
        node.datapath.set_config(&NodeConfig { capture, ..node.config() }).unwrap();
        node.datapath.flush(&FlowFilter::default()).unwrap();
        node.events();
        node.run("from_endpoint", node.a, &packet);
        assert_eq!(node.traced().flow.capture.is_some(), wanted, "{capture:?}");
        node.run("from_endpoint", node.b, &packet);
        assert_eq!(node.dropped().flow.capture.is_some(), capture != CaptureOf::Nothing, "{capture:?}");
    }
}

#[test]
fn levels_and_flags_decide_what_is_told() {
    let mut node = Node::new();
    let packet = |flags: &str| tcp((POD_A[0], 4000), (POD_B[0], 80), flags);
    let points = |node: &mut Node, flags: &[&str]| -> Vec<(u8, bool)> {
        node.datapath.flush(&FlowFilter::default()).unwrap();
        node.events();
        flags.iter().for_each(|flags| drop(node.run("from_endpoint", node.a, &packet(flags))));
        node.events().iter().map(|event| (event.flow.trace_point, event.flow.egress)).collect()
    };
    let with = |node: &Node, aggregation, report_flags| {
        let config = NodeConfig { aggregation, report_flags, verdict_events: false, ..node.config() };
        node.datapath.set_config(&config).unwrap();
    };
    let all = ["S", "A", "A", "FA"];
    with(&node, Aggregation::Flows, 0x07);
    assert_eq!(points(&mut node, &all).len(), 2, "SYN and FIN");
    with(&node, Aggregation::Flows, 0x17);
    assert_eq!(points(&mut node, &all).len(), 3, "and the first ACK");
    with(&node, Aggregation::Flows, 0);
    assert_eq!(points(&mut node, &all).len(), 1, "the flow is new");
    with(&node, Aggregation::Sent, 0);
    assert_eq!(points(&mut node, &all), [(0, false); 4]);
    with(&node, Aggregation::None, 0);
    assert_eq!(points(&mut node, &all), [(5, false), (0, false)].repeat(4));
}

#[test]
fn an_event_says_what_the_entry_has_that_decided_and_places_are_counted() {
    let mut node = Node::new();
    let deny = |identity, protocol, port: Option<u16>| RuleEntry {
        identity,
        protocol,
        port: port.map(Into::into),
        action: RuleAction::Deny,
        ..RuleEntry::default()
    };
    let cases = [
        (deny(Some(ID_A), None, None), 1),
        (deny(Some(ID_A), Some(6), Some(80)), 2),
        (deny(None, Some(6), Some(80)), 3),
        (deny(None, None, None), 4),
        (deny(Some(ID_A), Some(6), None), 5),
        (deny(None, Some(6), None), 6),
    ];
    let packet = tcp((POD_A[0], 4000), (POD_B[0], 80), "S");
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 7, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    let mut place = 0;
    for (entry, wanted) in cases {
        let set = PolicySet { ingress: PolicySide::only(vec![entry]), ..PolicySet::default() };
        node.datapath.set_policy(7, &set).unwrap();
        node.events();
        node.run("from_endpoint", node.a, &packet);
        let drop = node.dropped().flow;
        assert_eq!((drop.drop_reason, drop.matched), (181, wanted));
        place = drop.site;
    }
    node.datapath
        .set_policy(7, &PolicySet { ingress: PolicySide::only(Vec::new()), ..PolicySet::default() })
        .unwrap();
    node.run("from_endpoint", node.a, &packet);
    assert_eq!(node.dropped().flow.matched, 0, "no entry decided");
    let counted = node.datapath.site_metrics().unwrap();
    let of_place: Vec<_> = counted.iter().filter(|metric| metric.site == place).collect();
    assert!(
        matches!(of_place.as_slice(), [SiteMetric { packets: 6, direction: Direction::Egress, .. }]),
        "{counted:?}"
    );
}
