//! Too big, encryption, hooks and pins.
#![cfg(test)]

mod support;
use support::*;
use tombolo_ebpf::*;

#[test]
fn too_big_is_answered_in_the_name_of_the_gateway() {
    let mut node = Node::new();
    for f in FAMILIES {
        let headers = if f == 0 { 28 } else { 48 };
        let fits = udp((POD_A[f], 4000), (REMOTE[f], 9), 1400 - headers);
        assert_eq!(node.run("from_endpoint", node.a, &fits).action, REDIRECT);
        assert_eq!(node.traced().flow.trace_point, 4);
        let packet = udp((POD_A[f], 4000), (REMOTE[f], 9), 1401 - headers);
        let ran = node.run("from_endpoint", node.a, &packet);
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.macs(), (MAC_A, HOST_MAC));
        let seen = ran.seen();
        assert_eq!((seen.source.0, seen.destination.0), (ip(GATEWAY[f]), ip(POD_A[f])));
        assert_eq!(ran.quoted(), ((ip(POD_A[f]), 4000), (ip(REMOTE[f]), 9)));
        let (kind, mtu) = if f == 0 {
            (ran.packet[34], u32::from(u16::from_be_bytes([ran.packet[40], ran.packet[41]])))
        } else {
            (ran.packet[54], u32::from_be_bytes(ran.packet[58..62].try_into().unwrap()))
        };
        assert_eq!((kind, mtu), (if f == 0 { 3 } else { 2 }, 1400));
        assert_eq!(node.dropped().flow.drop_reason, 136);
    }
}

#[test]
fn too_big_quotes_the_packet_as_its_sender_knows_it() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, REMOTE[f], 8080)]);
        let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (CLUSTER_IP[f], 80), 1480));
        assert_eq!(ran.action, REDIRECT);
        ran.seen();
        assert_eq!(ran.quoted().1, (ip(CLUSTER_IP[f]), 80));
        // A client of a load balancer, whose backend is behind the smaller path.
        node.service(VIP[f], 80, Scope::External, 20, &[(2, REMOTE[f], 8080)]);
        let ran = node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 80), 1440));
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.seen().destination.0, ip(CLIENT[f]));
        assert_eq!(ran.macs(), (MAC_A, HOST_MAC), "back to where it came from");
        assert_eq!(ran.quoted(), ((ip(CLIENT[f]), 5000), (ip(VIP[f]), 80)));
        node.events();
    }
}

#[test]
fn segmented_and_fragmentable_packets_are_not_too_big() {
    let mut node = Node::new();
    let aggregate = udp((POD_A[0], 4000), (REMOTE[0], 9), 1480);
    let ran = node.run_with("from_endpoint", node.a, &aggregate, 0, 1300);
    assert_eq!((ran.action, node.traced().flow.trace_point), (REDIRECT, 4), "segments of 1300 fit");
    let mut may_fragment = udp((POD_A[0], 4001), (REMOTE[0], 9), 1480);
    may_fragment[20] = 0;
    let ran = node.run("from_endpoint", node.a, &may_fragment);
    assert_eq!((ran.action, node.traced().flow.trace_point), (REDIRECT, 4));
}

#[test]
fn what_is_for_pods_that_nobody_has_named_never_leaves_in_clear() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, true);
    let on = NodeConfig { encrypt: true, wireguard_ifindex: node.overlay, ..node.config() };
    node.datapath.set_config(&on).unwrap();
    for (f, pods) in [(0, "10.0.0.0/8"), (1, "fd00:10::/32")] {
        let lost = tcp((POD_A[f], 1), (REMOTE[f], 2), "S");
        assert_eq!(node.run("to_uplink", node.uplink, &lost).action, REDIRECT);
        let row = node.datapath.prefix(ip(REMOTE[f]).into()).unwrap().unwrap();
        node.datapath.delete_prefix(ip(REMOTE[f]).into()).unwrap();
        assert_eq!(
            node.run("to_uplink", node.uplink, &lost).action,
            OK,
            "without strict encryption it leaks"
        );
        let strict = PrefixEntry { identity: 2, strict: true, ..PrefixEntry::default() };
        node.datapath.upsert_prefix(pods.parse().unwrap(), &strict).unwrap();
        node.drops("to_uplink", node.uplink, &lost, 195);
        let own = udp((NODE[f], 1), (REMOTE[f], 2), 10);
        assert_eq!(node.run("to_uplink", node.uplink, &own).action, OK, "the node's own is no pod's");
        let world = tcp((POD_A[f], 1), (CLIENT[f], 2), "S");
        assert_eq!(node.run("to_uplink", node.uplink, &world).action, OK);
        node.datapath.upsert_prefix(ip(REMOTE[f]).into(), &row).unwrap();
        assert_eq!(node.run("to_uplink", node.uplink, &lost).action, REDIRECT);
    }
}

#[test]
fn what_must_be_encrypted_leaves_through_wireguard_or_not_at_all() {
    let mut node = Node::new();
    let wireguard = node.overlay; // any device serves as the target
    node.remote(NodePath::Direct, true);
    for f in FAMILIES {
        let inner = tcp((POD_A[f], 1), (REMOTE[f], 2), "S");
        assert_eq!(node.run("to_uplink", node.uplink, &inner).action, OK, "encryption is off");
        node.datapath.set_config(&NodeConfig { encrypt: true, ..node.config() }).unwrap();
        assert_eq!(node.run("to_uplink", node.uplink, &inner).action, SHOT);
        assert_eq!(node.dropped().flow.drop_reason, 195, "no device: nothing leaks");
        let on = NodeConfig { encrypt: true, wireguard_ifindex: wireguard, ..node.config() };
        node.datapath.set_config(&on).unwrap();
        assert_eq!(node.run("to_uplink", node.uplink, &inner).action, REDIRECT);
        let tunnel = udp((NODE[f], 44444), (REMOTE_NODE[f], 8472), 80);
        assert_eq!(
            node.run("to_uplink", node.uplink, &tunnel).action,
            REDIRECT,
            "VXLAN to an encrypting node"
        );
        let plain = udp((NODE[f], 51871), (REMOTE_NODE[f], 51871), 80);
        assert_eq!(node.run("to_uplink", node.uplink, &plain).action, OK, "node to node stays as it is");
        let ciphertext = node.run_with("to_uplink", node.uplink, &tunnel, 0x1e00, 0);
        assert_eq!(ciphertext.action, OK, "marked as ciphertext");
        assert_eq!(node.run("to_uplink", node.uplink, &udp((POD_A[f], 1), (CLIENT[f], 2), 9)).action, OK);
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 1), (REMOTE[f], 2), "S"));
        assert!(ran.action == REDIRECT && node.traced().flow.encrypted);
        node.datapath.set_config(&node.config()).unwrap();
    }
}

fn ping_through(node: &mut Node) {
    assert_eq!(node.run("from_endpoint", node.a, &ping(POD_A[0], POD_B[0], 5, true)).action, REDIRECT);
    assert_eq!(node.run("from_endpoint", node.b, &ping(POD_B[0], POD_A[0], 5, false)).action, REDIRECT);
    assert!(node.traced().flow.reply);
}

/// Programs that run at an interface, by tcx or as clsact filters.
fn programs_on(interface: &str) -> usize {
    use aya::programs::{SchedClassifier, TcAttachType};
    let tcx = |side| SchedClassifier::query_tcx(interface, side).map_or(0, |(_, programs)| programs.len());
    let filters = |side: &str| {
        let out = std::process::Command::new("tc")
            .args(["filter", "show", "dev", interface, side])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).matches("_endpoint direct-action").count()
    };
    tcx(TcAttachType::Ingress) + tcx(TcAttachType::Egress) + filters("ingress") + filters("egress")
}

/// Hooks, hooks again, opens anew as a restarted agent would, unhooks.
fn life_of_hooks(attach: Attach) {
    let mut node = Node::with(attach);
    ping_through(&mut node);
    for _ in 0..2 {
        node.datapath.attach_endpoint(node.a).unwrap();
        assert_eq!(programs_on("poda"), 2);
    }
    node.datapath.attach_uplink(node.uplink).unwrap();
    node.datapath.attach_overlay(node.overlay).unwrap();
    let before = node.datapath.conntrack().unwrap();
    let second = node.reopen(attach, small_sizes());
    assert_eq!(second.conntrack().unwrap(), before, "flows survive the agent");
    assert_eq!(second.interfaces().unwrap().len(), 2);
    second.attach_endpoint(node.a).unwrap();
    assert_eq!(programs_on("poda"), 2, "replaced, not added");
    drop(second);
    assert_eq!(programs_on("poda"), 2, "nothing is unhooked when the agent goes");
    node.datapath.detach(node.a).unwrap();
    node.datapath.detach(node.a).unwrap();
    // The kernel frees a link some time after its last pin is gone.
    let hooked = |_: &u32| programs_on("poda") != 0;
    (0..300).take_while(hooked).for_each(|_| std::thread::sleep(std::time::Duration::from_millis(10)));
    assert_eq!(programs_on("poda"), 0);
    assert!(node.datapath.attach_endpoint(4_000_000).unwrap_err().to_string().contains("4000000"));
}

#[test]
fn hooks_with_tcx() {
    life_of_hooks(Attach::Tcx);
}

#[test]
fn hooks_with_clsact() {
    life_of_hooks(Attach::Clsact);
}

#[test]
fn other_map_sizes_keep_flows_and_rows() {
    let mut node = Node::new();
    ping_through(&mut node);
    let before = node.datapath.conntrack().unwrap().len();
    let backends = [(1, REMOTE[0], 8080), (2, REMOTE[0], 8081)];
    node.service(CLUSTER_IP[0], 80, Scope::Internal, 10, &backends);
    let open = PolicySet { ingress: PolicySide::only(vec![RuleEntry::default()]), ..PolicySet::default() };
    node.datapath.set_policy(5, &open).unwrap();
    let kept = |datapath: &Datapath| {
        let mut nodes = datapath.nodes().unwrap();
        nodes.sort_by_key(|(index, _)| *index);
        let mut local = datapath.local_addresses().unwrap();
        local.sort_by_key(|(ip, _)| *ip);
        let mut hosts = datapath.prefixes().unwrap();
        hosts.sort_by_key(|(prefix, _)| *prefix);
        let mut interfaces = datapath.interfaces().unwrap();
        interfaces.sort_by_key(|(ifindex, _)| *ifindex);
        format!(
            "{nodes:?} {local:?} {hosts:?} {interfaces:?} {:?} {:?} {:?}",
            datapath.services().unwrap(),
            datapath.backends().unwrap(),
            datapath.policies().unwrap()
        )
    };
    let rows = kept(&node.datapath);
    let small = small_sizes();
    let other = MapSizes {
        conntrack: 2048,
        conntrack_half: 512,
        nat: 2048,
        nat_half: 512,
        rules: 64,
        maglev_slots: small.maglev_slots * 2,
        endpoints: 4096,
        nodes: 65_536,
        policies: 4096,
        services: 8192,
        backends: 16_384,
        hosts: 2048,
        ..small
    };
    let second = node.reopen(Attach::Auto, other);
    assert_eq!(kept(&second), rows, "packets find them before the agent has written all anew");
    assert_eq!(second.conntrack().unwrap().len(), before);
    let capacity = |map: &str| second.usage().into_iter().find(|u| u.map == map).unwrap().capacity;
    assert_eq!((capacity("tb_ct"), capacity("tb_rules")), (2048, 64));
    let entry =
        NodeEntry { tunnel: Some(ip(REMOTE_NODE[0])), path: NodePath::Overlay, encrypt: false, mtu: 1400 };
    for index in 1..=2000 {
        second.upsert_node(index, &entry).unwrap();
    }
    let full = (1025..).find_map(|index| node.datapath.upsert_node(index, &entry).err()).unwrap().to_string();
    assert!(full.contains("tb_nodes") && full.contains("raise datapath.maps.nodes"), "{full}");
}

#[test]
fn collection_deletes_what_expired_and_nothing_else() {
    let mut node = Node::new();
    // A question and its answer are no dialogue yet, and stay where floods pass through.
    ping_through(&mut node);
    assert_eq!(node.datapath.gc().unwrap().seen, 0);
    node.run("from_endpoint", node.a, &ping(POD_A[0], POD_B[0], 5, true));
    node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (POD_B[0], 80), "S"));
    node.run("from_endpoint", node.b, &tcp((POD_B[0], 80), (POD_A[0], 4000), "SA"));
    node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (POD_B[0], 80), "A"));
    let stats = node.datapath.gc().unwrap();
    assert_eq!((stats.seen, stats.deleted, stats.alive), (4, 0, 4));
    // Two minutes on only TCP is left, two hours later (8000 s) nothing.
    let later = |secs: u64| node.datapath.gc_at(monotonic_ns() + secs * 1_000_000_000).unwrap().deleted;
    assert_eq!((later(120), later(120), later(8001)), (2, 0, 2));
    assert!(node.datapath.conntrack().unwrap().is_empty());
}

#[test]
fn flows_of_an_address_are_forgotten() {
    let mut node = Node::new();
    ping_through(&mut node);
    node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (POD_B[0], 80), "S"));
    node.run("from_endpoint", node.b, &tcp((POD_B[0], 80), (POD_A[0], 4000), "SA"));
    node.run("from_endpoint", node.a, &tcp((POD_A[1], 4000), (POD_B[1], 80), "S"));
    assert_eq!(node.datapath.forget_flows(&[ip(POD_B[0])]).unwrap(), 4);
    let left = node.datapath.conntrack().unwrap();
    assert!(!left.is_empty() && left.iter().all(|flow| flow.source.0 == ip(POD_A[1])), "{left:?}");
}

#[test]
fn flows_are_found_and_forgotten_by_what_they_are() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    node.service(VIP[0], 80, Scope::External, 20, &[(1, REMOTE[0], 8080)]);
    node.run("from_endpoint", node.a, &tcp((POD_A[0], 4000), (POD_B[0], 80), "S"));
    node.run("from_endpoint", node.a, &udp((POD_A[0], 4000), (POD_B[0], 53), 8));
    node.run("from_uplink", node.uplink, &tcp((CLIENT[0], 5000), (VIP[0], 80), "S"));
    node.events();
    let all = FlowFilter::default();
    let of_port = |port| FlowFilter { port: Some(port), ..FlowFilter::default() };
    assert_eq!(
        node.datapath.flows(&all).unwrap().len(),
        5,
        "two ends of each pod's flow, and the service's entry"
    );
    let dns = node.datapath.flows(&of_port(53)).unwrap();
    assert!(dns.len() == 2 && dns.iter().all(|flow| flow.protocol == 17), "{dns:?}");
    // The client is found behind the translation, and the backend in the service's entry.
    for address in [CLIENT[0], REMOTE[0]] {
        let of = FlowFilter { ip: Some(ip(address)), protocol: Some(6), ..FlowFilter::default() };
        assert_eq!(node.datapath.flows(&of).unwrap().len(), 1, "{address}");
        let found = node.datapath.translations(&of).unwrap();
        assert_eq!(found.len(), 1, "{address}");
        assert_eq!((found[0].client, found[0].backend), ((ip(CLIENT[0]), 5000), (ip(REMOTE[0]), 8080)));
        assert!(found[0].node.0 == ip(GATEWAY[0]) && !found[0].answered);
    }
    assert_eq!(node.datapath.frontend_of(20).unwrap(), Some((ip(VIP[0]), 80)));

    let entries = |node: &Node| {
        node.datapath.gc().unwrap();
        let used = |map| node.datapath.usage().into_iter().find(|usage| usage.map == map).unwrap().entries;
        (used("tb_ct_half"), used("tb_nat_half"))
    };
    assert_eq!(entries(&node), (5, 2));
    assert_eq!(node.datapath.flush(&of_port(53)).unwrap(), 2);
    assert_eq!(entries(&node), (3, 2));
    let client = FlowFilter { ip: Some(ip(CLIENT[0])), ..FlowFilter::default() };
    assert_eq!(node.datapath.flush(&client).unwrap(), 3, "with both entries of its translation");
    assert_eq!(entries(&node), (2, 0));
    assert_eq!(node.datapath.flush(&all).unwrap(), 2);
    assert_eq!(entries(&node), (0, 0));
}

#[test]
fn what_is_written_is_counted_without_a_walk() {
    let node = Node::new();
    let used = |map| node.datapath.usage().into_iter().find(|usage| usage.map == map).unwrap().entries;
    let (hosts, prefixes) = (used("tb_hosts"), used("tb_prefixes"));
    let entry = PrefixEntry { identity: ID_REMOTE, node: 1, ..PrefixEntry::default() };
    for _ in 0..2 {
        for prefix in ["10.9.0.0/16", "10.9.9.0/24", "10.9.9.9/32"] {
            node.datapath.upsert_prefix(prefix.parse().unwrap(), &entry).unwrap();
        }
        assert_eq!((used("tb_hosts") - hosts, used("tb_prefixes") - prefixes), (1, 2));
    }
    let again = node.reopen(Attach::Auto, small_sizes());
    let of_again = |map| again.usage().into_iter().find(|usage| usage.map == map).unwrap().entries;
    assert_eq!((of_again("tb_hosts"), of_again("tb_prefixes")), (used("tb_hosts"), used("tb_prefixes")));
    for _ in 0..2 {
        node.datapath.delete_prefix("10.9.9.0/24".parse().unwrap()).unwrap();
        node.datapath.delete_prefix("10.9.9.9/32".parse().unwrap()).unwrap();
        assert_eq!((used("tb_hosts"), used("tb_prefixes") - prefixes), (hosts, 1));
    }
}

#[test]
fn a_flood_of_openings_stays_out_of_the_established_table() {
    let mut node = Node::new();
    for f in FAMILIES {
        for port in 5000..5100 {
            node.run("from_uplink", node.uplink, &tcp((CLIENT[f], port), (POD_A[f], 80), "S"));
            let answer = tcp((POD_A[f], 80), (CLIENT[f], port), if port % 2 == 0 { "SA" } else { "RA" });
            assert_eq!(node.run("from_endpoint", node.a, &answer).action, REDIRECT);
        }
        let limit = monotonic_ns() + 60 * 1_000_000_000;
        let flows = node.datapath.conntrack().unwrap();
        assert!(flows.iter().all(|flow| !flow.established && flow.expires_ns <= limit), "{flows:#?}");
        let repeated = tcp((CLIENT[f], 5000), (POD_A[f], 80), "S");
        node.run("from_uplink", node.uplink, &repeated);
        assert!(node.datapath.conntrack().unwrap().iter().all(|flow| !flow.established), "once more");
        node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (POD_A[f], 80), "A"));
        let flows = node.datapath.conntrack().unwrap();
        let found: Vec<_> = flows.iter().filter(|flow| flow.established).collect();
        assert!(found.len() == 1 && found[0].source.1 == 5000 && found[0].expires_ns > limit, "{found:#?}");
        assert_eq!(node.datapath.forget_flows(&[ip(CLIENT[f])]).unwrap(), 100);
        node.events();
    }
}

#[test]
fn rows_read_back_as_written() {
    let node = Node::new();
    assert_eq!(node.datapath.config().unwrap(), node.config());
    let mut prefixes = node.datapath.prefixes().unwrap();
    let wide = PrefixEntry {
        identity: 9,
        node: 0,
        encrypt: true,
        remote_cluster: true,
        skip_tunnel: false,
        strict: true,
    };
    for text in ["10.2.0.0/16", "fd00:10:2::/48", "0.0.0.0/0"] {
        node.datapath.upsert_prefix(text.parse().unwrap(), &wide).unwrap();
        prefixes.push((text.parse().unwrap(), wide));
    }
    let mut read = node.datapath.prefixes().unwrap();
    read.sort_by_key(|(prefix, _)| *prefix);
    prefixes.sort_by_key(|(prefix, _)| *prefix);
    assert_eq!(read, prefixes);
    for (prefix, _) in &read {
        node.datapath.delete_prefix(*prefix).unwrap();
        node.datapath.delete_prefix(*prefix).unwrap();
    }
    assert!(node.datapath.prefixes().unwrap().is_empty());
    assert_eq!(node.datapath.local_addresses().unwrap().len(), 8);
    assert_eq!(node.datapath.nodes().unwrap()[0].1.mtu, 1400);
}

/// `ebpf/budget.txt` has the instructions that the verifier walked through for each program, and on which kernel: another
/// counts otherwise. More than a tenth above is written down there on purpose, or not done.
#[test]
fn programs_stay_within_the_verifiers_budget() {
    let found = Node::new().datapath.verified_instructions().unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel: String = release.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/budget.txt");
    let lines = found.iter().map(|(program, instructions)| format!("{program} {instructions}\n"));
    if std::env::var_os("TOMBOLO_BLESS").is_some() {
        let head = "# TOMBOLO_BLESS=1 make programs writes this: program, instructions verified; the first line is the kernel.\n";
        std::fs::write(file, format!("{head}linux {kernel}\n{}", lines.collect::<String>())).unwrap();
    }
    let text = std::fs::read_to_string(file).unwrap();
    let budget: std::collections::BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name != "#").collect();
    for (program, instructions) in found {
        assert!((1..200_000).contains(&instructions), "{program}: {instructions}");
        let budgeted: u32 =
            budget.get(program).unwrap_or_else(|| panic!("{program} has no budget")).parse().unwrap();
        let limit = budgeted + budgeted / 10;
        assert!(
            budget["linux"] != kernel || instructions <= limit,
            "{program} has {instructions} verified instructions, budgeted are {budgeted}: TOMBOLO_BLESS=1 make programs, if it must be"
        );
    }
}

#[test]
fn an_interface_that_is_flooded_leaves_the_ring_to_the_others() {
    let mut node = Node::new();
    let config = NodeConfig { events_per_sec: 5, ..node.config() };
    node.datapath.set_config(&config).unwrap();
    node.events();
    let denied = tcp((POD_B[0], 1), (POD_A[0], 80), "S");
    for _ in 0..40 {
        assert_eq!(node.run("from_endpoint", node.a, &denied).action, SHOT, "not its source");
    }
    // A second may end in between.
    let told = node.events().len();
    assert!((5..=10).contains(&told), "{told}");
    let lost = node.datapath.lost_events().unwrap();
    assert_eq!((lost.full, usize::try_from(lost.limited).unwrap()), (0, 40 - told));
    node.run("from_endpoint", node.b, &tcp((POD_B[0], 1), (POD_A[0], 80), "S"));
    assert!(!node.events().is_empty());
}
