//! Services by BPF_PROG_TEST_RUN: ClusterIP, LoadBalancer with local and remote backends, answers, hairpin, ICMP errors.
#![cfg(test)]
#![allow(clippy::cast_possible_truncation)]

mod support;
use support::*;
use tombolo_ebpf::*;
use tombolo_model::flow_hash;

#[test]
fn cluster_ip_to_a_backend_of_another_node_and_back() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10 + f as u32, &[(1 + f as u32, REMOTE[f], 8080)]);
        for (out, back) in [
            (tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "S"), tcp((REMOTE[f], 8080), (POD_A[f], 4000), "SA")),
            (udp((POD_A[f], 4000), (CLUSTER_IP[f], 80), 31), udp((REMOTE[f], 8080), (POD_A[f], 4000), 33)),
        ] {
            let ran = node.run("from_endpoint", node.a, &out);
            assert_eq!(ran.action, REDIRECT);
            assert_eq!(ran.seen().destination, (ip(REMOTE[f]), 8080));
            let event = node.traced().flow;
            assert_eq!(event.original_destination, Some((ip(CLUSTER_IP[f]), 80)));
            assert_eq!((event.destination.ip, event.destination.identity), (ip(REMOTE[f]), ID_REMOTE));
            // The answer as it comes off the underlay on the direct path; the tunnel's is the same from here on.
            let ran = node.run("from_uplink", node.uplink, &back);
            assert_eq!(ran.action, REDIRECT);
            assert_eq!(ran.seen().source, (ip(CLUSTER_IP[f]), 80));
            assert_eq!(ran.seen().destination, (ip(POD_A[f]), 4000));
            let event = node.traced();
            assert!(event.flow.reply && event.rev_nat == 10 + f as u32);
            assert_eq!(event.flow.source.ip, ip(REMOTE[f]), "events name the backend");
            // The opener speaks again: only now it is known to be where it says.
            node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "A"));
            node.run("from_endpoint", node.a, &out);
            node.events();
        }
    }
    let kept = node.datapath.conntrack().unwrap();
    let services = kept.iter().filter(|c| c.kind == ConntrackKind::Service);
    assert!(services.clone().count() == 4 && services.into_iter().all(|c| c.established), "{kept:#?}");
}

#[test]
fn cluster_ip_to_a_neighbour_pod_and_back() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, POD_B[f], 8080)]);
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "S"));
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_B));
        assert_eq!(ran.seen().destination, (ip(POD_B[f]), 8080));
        let ran = node.run("from_endpoint", node.b, &tcp((POD_B[f], 8080), (POD_A[f], 4000), "SA"));
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        assert_eq!(ran.seen().source, (ip(CLUSTER_IP[f]), 80));
        node.events();
    }
}

#[test]
fn a_flow_keeps_its_backend_and_new_ones_spread_as_maglev_says() {
    let node = Node::new();
    node.service(CLUSTER_IP[0], 80, Scope::Internal, 10, &[(1, REMOTE[0], 1001), (2, REMOTE[0], 1002)]);
    let to = |port: u16| {
        let ran = node.run("from_endpoint", node.a, &udp((POD_A[0], port), (CLUSTER_IP[0], 80), 9));
        ran.seen().destination.1
    };
    let before: Vec<u16> = (2000..2064).map(to).collect();
    let first = before.iter().filter(|port| **port == 1001).count();
    assert!((16..=48).contains(&first), "{first} of 64");
    for (port, chosen) in (2000..2064).zip(&before) {
        let hash = flow_hash((ip(POD_A[0]), port), (ip(CLUSTER_IP[0]), 80), 17);
        assert_eq!(*chosen, 1001 + u16::from(hash % 2 == 1), "user space computes the same slot");
    }
    node.service(CLUSTER_IP[0], 80, Scope::Internal, 10, &[(2, REMOTE[0], 1002)]);
    let after: Vec<u16> = (2000..2064).map(to).collect();
    assert_eq!(after, before, "live flows stay");
    node.datapath.delete_backend(1).unwrap();
    assert!((2000..2064).map(to).all(|port| port == 1002), "the backend is gone");
}

/// A node whose service has two clusters' backends, one there and four here, and its table for weights, as the agent
/// writes it: what is looked up for a packet is one slot, as without weights.
fn weighted(f: usize) -> (Node, Frontend, impl Fn(&[u32]) -> ServiceEntry) {
    let node = Node::new();
    for id in 1..=5 {
        let backend = Backend { ip: ip(REMOTE[f]), port: 1000 + id as u16, protocol: 17 };
        node.datapath.upsert_backend(id, &backend).unwrap();
    }
    let table = move |weights: &[u32]| {
        let identities: Vec<_> = (1001..=1005).map(|port| (ip(REMOTE[f]), port, 17)).collect();
        let slots = tombolo_service::maglev::table(&identities, weights);
        let maglev = slots.iter().map(|slot| u32::from(*slot) + 1).collect();
        ServiceEntry { rev_nat: 10, maglev, ..ServiceEntry::default() }
    };
    (node, Frontend { ip: ip(CLUSTER_IP[f]), port: 80, protocol: 17, scope: Scope::Internal }, table)
}

/// The backend port that a flow from a client's port meets.
fn met(node: &Node, f: usize, port: u16) -> u16 {
    let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], port), (CLUSTER_IP[f], 80), 9));
    ran.seen().destination.1
}

#[test]
fn new_flows_spread_as_the_weights_say() {
    for f in FAMILIES {
        let (node, frontend, table) = weighted(f);
        let weights = [80, 5, 5, 5, 5];
        node.datapath.set_service(&frontend, &table(&weights)).unwrap();
        // Hash and table are fixed, so this is the same in every run; the tolerance is for whoever changes them.
        let chosen: Vec<u16> = (2000..6000).map(|port| met(&node, f, port)).collect();
        for (port, weight) in (1001..).zip(weights) {
            let share = chosen.iter().filter(|chosen| **chosen == port).count() as f64 * 100.0 / 4000.0;
            let wanted = f64::from(weight);
            assert!((share - wanted).abs() < 1.0 + wanted * 0.05, "{port}: {share} % of {wanted}");
        }
    }
}

#[test]
fn other_weights_leave_flows_where_they_are() {
    for f in FAMILIES {
        let (node, frontend, table) = weighted(f);
        let (before, after) = (table(&[80, 5, 5, 5, 5]), table(&[1, 5, 5, 5, 5]));
        node.datapath.set_service(&frontend, &before).unwrap();
        let chosen: Vec<u16> = (2000..2064).map(|port| met(&node, f, port)).collect();
        node.datapath.change_service(&frontend, &before, &after).unwrap();
        assert_eq!(node.datapath.services().unwrap()[&frontend], after);
        assert_eq!((2000..2064).map(|port| met(&node, f, port)).collect::<Vec<_>>(), chosen);
        let drained = (6000..6400).map(|port| met(&node, f, port)).filter(|port| *port == 1001).count();
        assert!(drained < 40, "{drained} of 400 new flows go to the one of weight 1 in 21");
    }
}

#[test]
fn a_port_used_again_gets_a_backend_that_the_service_has_now() {
    let node = Node::new();
    for f in FAMILIES {
        let send = |flags: &str| {
            let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), flags));
            ran.seen().destination.1
        };
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, REMOTE[f], 1001), (2, REMOTE[f], 1001)]);
        assert_eq!((send("S"), send("A"), send("FA")), (1001, 1001, 1001));
        // Backend 1 still exists, for another service.
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(3, REMOTE[f], 1003)]);
        assert_eq!(send("A"), 1001, "what is left of the flow stays with its backend");
        assert_eq!(send("S"), 1003, "a new flow has the service's backends");
    }
}

#[test]
fn a_backend_number_given_to_another_address_takes_no_flow_along() {
    let node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, REMOTE[f], 1001)]);
        let packet = udp((POD_A[f], 4000), (CLUSTER_IP[f], 80), 9);
        assert_eq!(node.run("from_endpoint", node.a, &packet).seen().destination.1, 1001);
        node.datapath.delete_backend(1).unwrap();
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(2, REMOTE[f], 1002)]);
        node.service(VIP[f], 80, Scope::External, 11, &[(1, POD_B[f], 1009)]);
        let now = node.run("from_endpoint", node.a, &packet).seen().destination;
        assert_eq!(now, (ip(REMOTE[f]), 1002), "number 1 means a pod of another service now");
    }
}

#[test]
fn load_balancer_with_a_local_backend_keeps_the_client() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20, &[(1, POD_A[f], 8080)]);
        let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (VIP[f], 80), "S"));
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        assert_eq!(ran.seen().source, (ip(CLIENT[f]), 5000));
        assert_eq!(ran.seen().destination, (ip(POD_A[f]), 8080));
        let event = node.traced().flow;
        assert_eq!(event.original_destination, Some((ip(VIP[f]), 80)));
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 8080), (CLIENT[f], 5000), "SA"));
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.seen().source, (ip(VIP[f]), 80));
        let event = node.traced().flow;
        assert!(event.reply && event.trace_point == 11);
    }
}

#[test]
fn load_balancer_with_a_remote_backend_is_answered_through_the_node() {
    for path in [NodePath::Overlay, NodePath::Direct] {
        let mut node = Node::new();
        node.remote(path, false);
        for f in FAMILIES {
            node.service(VIP[f], 80, Scope::External, 20 + f as u32, &[(1 + f as u32, REMOTE[f], 8080)]);
            let request = tcp((CLIENT[f], 5000), (VIP[f], 80), "S");
            let ran = node.run("from_uplink", node.uplink, &request);
            assert_eq!(ran.action, REDIRECT);
            let seen = ran.seen();
            assert_eq!(seen.source.0, ip(GATEWAY[f]), "SNAT to the internal address");
            assert!((10240..=32767).contains(&seen.source.1), "{seen:?}");
            assert_eq!(seen.destination, (ip(REMOTE[f]), 8080));
            let event = node.traced().flow;
            assert_eq!(event.source.ip, ip(CLIENT[f]), "events name the client");
            let again = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (VIP[f], 80), "A"));
            assert_eq!(again.seen().source, seen.source, "one port a flow");
            let other = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5001), (VIP[f], 80), "S"));
            assert_ne!(other.seen().source, seen.source);
            node.events();
            let answer = tcp((REMOTE[f], 8080), (GATEWAY[f], seen.source.1), "SA");
            let ran = node.run("from_uplink", node.uplink, &answer);
            assert_eq!(ran.action, REDIRECT);
            assert_eq!(ran.seen().source, (ip(VIP[f]), 80));
            assert_eq!(ran.seen().destination, (ip(CLIENT[f]), 5000));
            let event = node.traced().flow;
            assert!(event.reply, "the answer is told where it leaves for the client");
            assert_eq!((event.source.ip, event.destination.ip), (ip(REMOTE[f]), ip(CLIENT[f])));
            assert_eq!(event.original_destination, Some((ip(VIP[f]), 80)), "so that the service is named");
            node.run("from_uplink", node.uplink, &tcp((REMOTE[f], 8080), (GATEWAY[f], seen.source.1), "A"));
            assert!(node.events().is_empty(), "told once");
        }
        let to_node = node.run("from_uplink", node.uplink, &tcp((REMOTE[0], 1), (GATEWAY[0], 2), "S"));
        assert_eq!(to_node.action, OK, "other packets to the internal address are the node's");
    }
}

#[test]
fn snat_ports_of_flows_that_are_over_are_given_again() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    node.datapath.set_config(&NodeConfig { snat_ports: 20_000..=20_003, ..node.config() }).unwrap();
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + f as u32, &[(1 + f as u32, REMOTE[f], 8080)]);
        let send = |node: &mut Node, port: u16, flags: &str| {
            let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], port), (VIP[f], 80), flags));
            let reason = node.events().last().map(|event| event.flow.drop_reason);
            if ran.action == REDIRECT { Ok(ran.seen().source.1) } else { Err(reason) }
        };
        let ports: Vec<u16> = (5000..5004).map(|port| send(&mut node, port, "S").unwrap()).collect();
        let distinct: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(distinct.len(), 4, "every free port is found: {ports:?}");
        assert_eq!(send(&mut node, 5004, "S"), Err(Some(167)), "all are in use");
        for (client, port) in (5000..5004).zip(&ports) {
            node.run("from_uplink", node.uplink, &tcp((REMOTE[f], 8080), (GATEWAY[f], *port), "SA"));
            send(&mut node, client, "A").unwrap();
        }
        send(&mut node, 5001, "R").unwrap();
        expire(&node, REMOTE[f], ports[1]);
        // A destination without a port left is searched again after a tenth of a second.
        let later = std::time::Duration::from_millis(200);
        let config = NodeConfig { snat_ports: 20_000..=20_003, test_clock_offset: later, ..node.config() };
        node.datapath.set_config(&config).unwrap();
        assert_eq!(
            send(&mut node, 5004, "S"),
            Ok(ports[1]),
            "the reset flow's port, without waiting for a collection"
        );
        let collected = node.datapath.gc().unwrap();
        assert!(collected.deleted >= 1, "the way out of the flow that lost its port: {collected:?}");
        assert_eq!(send(&mut node, 5000, "A"), Ok(ports[0]), "others keep theirs");
    }
}

/// Looks at the mapping behind `port`, and writes back what became of it.
fn mapping(node: &Node, backend: &str, port: u16, change: impl FnOnce(&mut [u8; 48])) {
    use aya::maps::{HashMap, Map, MapData};
    let path = node.bpffs.path().join("tombolo");
    let schema = std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
    let pinned = |name: &str| MapData::from_pin(schema.join(name)).unwrap();
    let address = match ip(backend) {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    for map in [Map::HashMap(pinned("tb_nat")), Map::LruHashMap(pinned("tb_nat_half"))] {
        let mut map = HashMap::<_, [u8; 40], [u8; 48]>::try_from(map).unwrap();
        // struct tb_tuple: source, destination, ports, protocol, kind (4: NAT_IN); struct tb_nat: expires_ns at 32.
        let mut rows = map.iter().map(Result::unwrap);
        let found =
            rows.find(|(key, _)| key[..16] == address && key[34..36] == port.to_be_bytes() && key[37] == 4);
        if let Some((key, mut value)) = found {
            change(&mut value);
            map.insert(key, value, 0).unwrap();
            return;
        }
    }
    panic!("no mapping of {backend} behind {port}");
}

/// Puts its end into the past, as time would.
fn expire(node: &Node, backend: &str, port: u16) {
    mapping(node, backend, port, |value| value[32..40].copy_from_slice(&1_u64.to_ne_bytes()));
}

/// Seconds that the mapping behind `port` has still to live.
fn lives(node: &Node, backend: &str, port: u16) -> u64 {
    let mut left = 0;
    mapping(node, backend, port, |value| {
        let ends = u64::from_ne_bytes(value[32..40].try_into().unwrap());
        left = ends.saturating_sub(monotonic_ns()) / 1_000_000_000;
    });
    left
}

#[test]
fn a_flood_of_openings_does_not_hold_snat_ports() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + f as u32, &[(1 + f as u32, REMOTE[f], 8080)]);
        let open = |node: &Node, port: u16| {
            let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], port), (VIP[f], 80), "S"));
            ran.seen().source.1
        };
        let ports: Vec<u16> = (5000..5100).map(|port| open(&node, port)).collect();
        for port in &ports {
            node.run("from_uplink", node.uplink, &tcp((REMOTE[f], 8080), (GATEWAY[f], *port), "SA"));
        }
        assert!(ports.iter().all(|port| lives(&node, REMOTE[f], *port) <= 60), "answered is not confirmed");
        let flows = node.datapath.conntrack().unwrap();
        assert!(flows.iter().all(|flow| !flow.established), "{flows:#?}");
        node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5007), (VIP[f], 80), "A"));
        assert!(lives(&node, REMOTE[f], ports[7]) > 7900, "the client answered");
        let service = |flow: &&ConntrackEntry| flow.kind == ConntrackKind::Service && flow.established;
        let flows = node.datapath.conntrack().unwrap();
        assert_eq!(flows.iter().filter(service).map(|flow| flow.source.1).collect::<Vec<_>>(), [5007]);
        node.datapath.forget_flows(&[ip(CLIENT[f])]).unwrap();
        node.events();
    }
}

/// The service's entry of a flow from the client's port.
fn memory(node: &Node, port: u16) -> ConntrackEntry {
    let flows = node.datapath.conntrack().unwrap();
    let found = flows.iter().find(|flow| flow.kind == ConntrackKind::Service && flow.source.1 == port);
    found.unwrap_or_else(|| panic!("{flows:#?}")).clone()
}

#[test]
fn a_server_that_closes_ends_the_memory_of_the_choice() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    let left = |flow: &ConntrackEntry| flow.expires_ns.saturating_sub(monotonic_ns()) / 1_000_000_000;
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20, &[(1, POD_A[f], 8080)]);
        node.service(VIP[f], 81, Scope::External, 21, &[(2, REMOTE[f], 8080)]);
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 22, &[(3, REMOTE[f], 8080)]);
        for (n, (flags, life)) in [("RA", 10), ("FA", 120)].into_iter().enumerate() {
            let port = 5000 + 2 * n as u16 + f as u16;
            for (client, hook, ifindex, to, backend) in [
                (CLIENT[f], "from_uplink", node.uplink, (VIP[f], 80), POD_A[f]),
                (CLIENT[f], "from_uplink", node.uplink, (VIP[f], 81), REMOTE[f]),
                (POD_B[f], "from_endpoint", node.b, (CLUSTER_IP[f], 80), REMOTE[f]),
            ] {
                let seen = node.run(hook, ifindex, &tcp((client, port), to, "S")).seen();
                let answer = |flags: &str| {
                    let (hook, ifindex) = if backend == POD_A[f] {
                        ("from_endpoint", node.a)
                    } else {
                        ("from_uplink", node.uplink)
                    };
                    let packet = tcp((backend, 8080), (&seen.source.0.to_string(), seen.source.1), flags);
                    assert_eq!(node.run(hook, ifindex, &packet).action, REDIRECT);
                };
                answer("SA");
                node.run(hook, ifindex, &tcp((client, port), to, "A"));
                answer("A");
                let open = memory(&node, port);
                assert!(open.established && !open.closing && left(&open) > 7900, "{open:#?}");
                answer(flags);
                let closed = memory(&node, port);
                assert!(closed.closing && left(&closed) <= life, "{flags} {closed:#?}");
                node.datapath.forget_flows(&[ip(client)]).unwrap();
                node.events();
            }
        }
    }
}

#[test]
fn a_service_leads_nobody_into_the_tunnel() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, REMOTE_NODE[f], 8472)]);
        node.service(VIP[f], 80, Scope::External, 11, &[(1, REMOTE_NODE[f], 8472)]);
        node.drops("from_endpoint", node.a, &udp((POD_A[f], 4000), (CLUSTER_IP[f], 80), 50), 170);
        node.drops("from_uplink", node.uplink, &udp((CLIENT[f], 4000), (VIP[f], 80), 50), 170);
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "S"));
        assert_eq!(ran.action, REDIRECT, "the tunnel is UDP");
        node.events();
    }
}

#[test]
fn the_nodes_own_address_serves_what_is_served_there() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    for f in FAMILIES {
        node.service(NODE[f], 80, Scope::External, 20, &[(1, POD_A[f], 8080)]);
        node.service(NODE[f], 81, Scope::External, 21, &[(2, REMOTE[f], 8080)]);
        node.service(NODE[f], 8472, Scope::External, 22, &[(3, POD_A[f], 8080)]);
        let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 4000), (NODE[f], 80), "S"));
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        assert_eq!(ran.seen().destination, (ip(POD_A[f]), 8080));
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 8080), (CLIENT[f], 4000), "SA"));
        assert_eq!((ran.action, ran.seen().source), (REDIRECT, (ip(NODE[f]), 80)));
        let ran = node.run("from_uplink", node.uplink, &udp((CLIENT[f], 4000), (NODE[f], 81), 9));
        assert_eq!((ran.action, ran.seen().source.0), (REDIRECT, ip(GATEWAY[f])));
        assert_eq!(ran.seen().destination, (ip(REMOTE[f]), 8080));
        node.events();
        for (packet, why) in [
            (tcp((CLIENT[f], 4000), (NODE[f], 22), "S"), "other ports are the host's"),
            (udp((CLIENT[f], 4000), (NODE[f], 8472), 50), "and so is the tunnel's"),
            (ping(CLIENT[f], NODE[f], 3, true), "and echo"),
        ] {
            assert_eq!(node.run("from_uplink", node.uplink, &packet).action, OK, "{why}");
        }
    }
}

#[test]
fn reverse_translations_go_when_nobody_needs_them() {
    let mut node = Node::new();
    let frontend = |port: u16| Frontend { ip: ip(VIP[0]), port, protocol: 17, scope: Scope::External };
    let entry = |rev_nat: u32| ServiceEntry { rev_nat, maglev: vec![], ..ServiceEntry::default() };
    let rows = |datapath: &Datapath| {
        datapath.usage().into_iter().find(|usage| usage.map == "tb_rev_nat").unwrap().entries
    };
    // More in a row than the node may have services at a time.
    for number in 1..=5000 {
        node.datapath.set_service(&frontend(1), &entry(number)).unwrap();
        node.datapath.delete_service(&frontend(1)).unwrap();
    }
    node.datapath.gc().unwrap();
    assert_eq!(rows(&node.datapath), 0);
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + f as u32, &[(1 + f as u32, POD_A[f], 8080)]);
        node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 80), 9));
        for protocol in [6, 17] {
            let frontend = Frontend { ip: ip(VIP[f]), port: 80, protocol, scope: Scope::External };
            node.datapath.delete_service(&frontend).unwrap();
        }
    }
    node.datapath.gc().unwrap();
    assert_eq!(rows(&node.datapath), 2, "of flows that live on");
    let second = node.reopen(Attach::Auto, small_sizes());
    second.gc().unwrap();
    assert_eq!(rows(&second), 2);
    second.forget_flows(&[ip(CLIENT[0]), ip(CLIENT[1])]).unwrap();
    second.gc().unwrap();
    assert_eq!(rows(&second), 0, "also of an earlier life");
    node.events();
}

#[test]
fn service_addresses_without_such_a_port_are_dropped() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20, &[]);
        let all = Frontend { ip: ip(VIP[f]), port: 0, protocol: 0, scope: Scope::External };
        node.datapath.set_service(&all, &ServiceEntry::default()).unwrap();
        for packet in [tcp((CLIENT[f], 1), (VIP[f], 81), "S"), ping(CLIENT[f], VIP[f], 3, true)] {
            assert_eq!(node.run("from_uplink", node.uplink, &packet).action, SHOT);
            assert_eq!(node.dropped().flow.drop_reason, 158);
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut node = Node::new();
    let nobody =
        PolicySet { ingress: PolicySide::only(vec![]), egress: PolicySide::only(vec![]), audit: false };
    node.datapath.set_policy(5, &nobody).unwrap();
    node.datapath
        .upsert_interface(node.a, &Interface { policy_id: 5, ..pod(POD_A, ID_A, 1, MAC_A) })
        .unwrap();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, POD_A[f], 8080)]);
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "S"));
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        let seen = ran.seen();
        assert_eq!((seen.source.0, seen.destination), (ip(GATEWAY[f]), (ip(POD_A[f]), 8080)));
        let answer = tcp((POD_A[f], 8080), (GATEWAY[f], seen.source.1), "SA");
        let ran = node.run("from_endpoint", node.a, &answer);
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        let seen = ran.seen();
        assert_eq!(seen.source, (ip(CLUSTER_IP[f]), 80));
        assert_eq!(seen.destination, (ip(POD_A[f]), 4000));
        node.events();
    }
}

#[test]
fn icmp_errors_are_translated_with_what_they_quote() {
    let mut node = Node::new();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 53, Scope::Internal, 10, &[(1, REMOTE[f], 5353)]);
        node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (CLUSTER_IP[f], 53), 40));
        node.events();
        // The backend says: port unreachable.
        let quoted = udp((POD_A[f], 4000), (REMOTE[f], 5353), 40);
        let ran = node.run("from_uplink", node.uplink, &unreachable(REMOTE[f], POD_A[f], &quoted));
        assert_eq!(ran.action, REDIRECT, "{:#?}", node.events());
        assert_eq!(ran.seen().source.0, ip(CLUSTER_IP[f]));
        assert_eq!(ran.quoted(), ((ip(POD_A[f]), 4000), (ip(CLUSTER_IP[f]), 53)));
        // A router in between says it: its own address stays.
        let ran = node.run("from_uplink", node.uplink, &unreachable(REMOTE_NODE[f], POD_A[f], &quoted));
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.seen().source.0, ip(REMOTE_NODE[f]));
        assert_eq!(ran.quoted().1, (ip(CLUSTER_IP[f]), 53));
        // An error about a flow that nobody knows.
        let stray = udp((POD_A[f], 4999), (REMOTE[f], 5353), 40);
        let ran = node.run("from_uplink", node.uplink, &unreachable(REMOTE[f], POD_A[f], &stray));
        assert_eq!((ran.action, node.dropped().flow.drop_reason), (SHOT, 163));
        // A pod that speaks about somebody else's packet.
        let forged = udp((REMOTE[f], 1), (POD_B[f], 2), 40);
        let ran = node.run("from_endpoint", node.a, &unreachable(POD_A[f], REMOTE[f], &forged));
        assert_eq!((ran.action, node.dropped().flow.drop_reason), (SHOT, 132));
    }
}

#[test]
fn icmp_errors_find_the_client_behind_snat() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    for f in FAMILIES {
        node.service(VIP[f], 53, Scope::External, 20, &[(1, REMOTE[f], 5353)]);
        let ran = node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 53), 40));
        let port = ran.seen().source.1;
        let quoted = udp((GATEWAY[f], port), (REMOTE[f], 5353), 40);
        let ran = node.run("from_uplink", node.uplink, &unreachable(REMOTE[f], GATEWAY[f], &quoted));
        assert_eq!(ran.action, REDIRECT, "{:#?}", node.events());
        assert_eq!((ran.seen().source.0, ran.seen().destination.0), (ip(VIP[f]), ip(CLIENT[f])));
        assert_eq!(ran.quoted(), ((ip(CLIENT[f]), 5000), (ip(VIP[f]), 53)));
        // A local backend's error goes out under the service's address.
        node.service(VIP[f], 54, Scope::External, 21, &[(2, POD_A[f], 5454)]);
        node.run("from_uplink", node.uplink, &udp((CLIENT[f], 5000), (VIP[f], 54), 40));
        let quoted = udp((CLIENT[f], 5000), (POD_A[f], 5454), 40);
        let ran = node.run("from_endpoint", node.a, &unreachable(POD_A[f], CLIENT[f], &quoted));
        assert_eq!(ran.action, REDIRECT, "{:#?}", node.events());
        assert_eq!(ran.seen().source.0, ip(VIP[f]));
        assert_eq!(ran.quoted(), ((ip(CLIENT[f]), 5000), (ip(VIP[f]), 54)));
    }
}

#[test]
fn zero_udp_checksum_stays_zero() {
    let node = Node::new();
    node.service(CLUSTER_IP[0], 80, Scope::Internal, 10, &[(1, REMOTE[0], 8080)]);
    let mut packet = udp((POD_A[0], 4000), (CLUSTER_IP[0], 80), 31);
    packet[40..42].copy_from_slice(&[0, 0]);
    let ran = node.run("from_endpoint", node.a, &packet);
    assert_eq!((ran.action, &ran.packet[40..42]), (REDIRECT, &[0, 0][..]));
}

#[test]
fn services_are_written_as_differences_and_read_back() {
    let node = Node::new();
    let frontend = Frontend { ip: ip(VIP[0]), port: 80, protocol: 6, scope: Scope::External };
    let backend = Backend { ip: ip(POD_A[0]), port: 8080, protocol: 6 };
    for id in 1..=3 {
        node.datapath.upsert_backend(id, &backend).unwrap();
    }
    let entry = |slots: &[u32]| ServiceEntry {
        rev_nat: 7,
        maglev: slots.to_vec(),
        local_only: true,
        ..ServiceEntry::default()
    };
    for slots in [vec![1; 251], vec![2; 251], vec![3; 509], vec![]] {
        node.datapath.set_service(&frontend, &entry(&slots)).unwrap();
        assert_eq!(node.datapath.services().unwrap()[&frontend], entry(&slots));
    }
    // Against what is known only differences are written, without a look at the map; against nothing the map is read.
    let (old, mut new) = (entry(&vec![1; 251]), entry(&vec![1; 251]));
    node.datapath.set_service(&frontend, &old).unwrap();
    assert_eq!(node.datapath.change_service(&frontend, &old, &old).unwrap(), 0);
    (new.maglev[7], new.maglev[250]) = (2, 3);
    assert_eq!(node.datapath.change_service(&frontend, &old, &new).unwrap(), 2);
    assert_eq!(node.datapath.services().unwrap()[&frontend], new);
    assert_eq!(node.datapath.change_service(&frontend, &old, &entry(&vec![2; 509])).unwrap(), 509);
    node.datapath.set_service(&frontend, &entry(&[])).unwrap();
    let slots_used =
        |node: &Node| node.datapath.usage().into_iter().find(|u| u.map == "tb_maglev").unwrap().entries;
    assert_eq!(slots_used(&node), 0, "stretches are freed");
    let huge = entry(&vec![1; 5000]);
    assert!(node.datapath.set_service(&frontend, &huge).unwrap_err().to_string().contains("maglev_slots"));
    node.datapath.delete_service(&frontend).unwrap();
    node.datapath.delete_service(&frontend).unwrap();
    assert!(node.datapath.services().unwrap().is_empty());
}

#[test]
fn a_flood_of_openings_takes_no_answered_flow_its_port() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    for f in FAMILIES {
        node.service(VIP[f], 80, Scope::External, 20 + f as u32, &[(1 + f as u32, REMOTE[f], 8080)]);
        let tcp_send = |node: &Node, port: u16, flags: &str| {
            node.run("from_uplink", node.uplink, &tcp((CLIENT[f], port), (VIP[f], 80), flags)).seen().source.1
        };
        let live = tcp_send(&node, 4000, "S");
        let answer = |flags: &str| tcp((REMOTE[f], 8080), (GATEWAY[f], live), flags);
        assert_eq!(node.run("from_uplink", node.uplink, &answer("SA")).action, REDIRECT);
        assert_eq!(tcp_send(&node, 4000, "A"), live);
        let question = udp((CLIENT[f], 4000), (VIP[f], 80), 8);
        let asked = node.run("from_uplink", node.uplink, &question).seen().source.1;
        let reply = udp((REMOTE[f], 8080), (GATEWAY[f], asked), 8);
        assert_eq!(node.run("from_uplink", node.uplink, &reply).action, REDIRECT);
        assert_eq!(node.run("from_uplink", node.uplink, &question).seen().source.1, asked);

        // Many times the size of the maps: an LRU spares what was just used for some rounds.
        for port in 10_000..40_000 {
            node.run("from_uplink", node.uplink, &tcp((CLIENT[f], port), (VIP[f], 80), "S"));
        }
        let back = node.run("from_uplink", node.uplink, &answer("A"));
        assert_eq!(back.action, REDIRECT, "the answer still finds its client");
        assert_eq!(back.seen().destination, (ip(CLIENT[f]), 4000));
        assert_eq!(tcp_send(&node, 4000, "A"), live, "and the client its port");
        assert_eq!(node.run("from_uplink", node.uplink, &reply).action, REDIRECT, "UDP as well");
        node.events();
    }
}
