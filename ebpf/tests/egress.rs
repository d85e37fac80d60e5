//! How pods leave the mesh, by BPF_PROG_TEST_RUN: SNAT ports to the last one, masquerading, egress gateways.
#![cfg(test)]

mod support;
use std::collections::BTreeSet;
use std::net::IpAddr;
use support::*;
use tombolo_ebpf::*;

const OUTSIDE: [&str; 2] = ["198.51.100.9", "2001:db8:f::9"];
const OTHER: [&str; 2] = ["198.51.100.77", "2001:db8:f::77"];
const EGRESS: [&str; 2] = ["172.20.11.9", "fd00:20:11::9"];
const ALL: [&str; 2] = ["0.0.0.0/0", "::/0"];
const SOME: [&str; 2] = ["198.51.100.0/26", "2001:db8:f::/122"];

fn way(node: &Node, f: usize, destination: &str, way: EgressWay) {
    node.datapath.upsert_egress(ip(POD_A[f]), destination.parse().unwrap(), way).unwrap();
}

fn here(node: &Node, f: usize) -> EgressWay {
    EgressWay::Here { address: Some(ip(EGRESS[f])), ifindex: node.uplink }
}

fn masquerading() -> Node {
    let node = Node::new();
    node.datapath.set_config(&NodeConfig { masquerade4: true, masquerade6: true, ..node.config() }).unwrap();
    node
}

#[test]
fn every_port_is_given_out_and_the_last_one_is_found() {
    for f in FAMILIES {
        let mut node =
            Node::with_sizes(MapSizes { nat_half: 262_144, conntrack_half: 262_144, ..small_sizes() });
        node.remote(NodePath::Direct, false);
        node.service(VIP[f], 80, Scope::External, 20, &[(1, REMOTE[f], 8080)]);
        let clients = (0..5_u16).flat_map(|host| (10_000..14_000).map(move |port| (host, port)));
        let wanted = SNAT_PORTS.count();
        let mut given = BTreeSet::new();
        let ask = |node: &Node, (host, port): (u16, u16)| {
            let client =
                if f == 0 { format!("172.20.200.{}", 10 + host) } else { format!("fd00:20:200::{host:x}") };
            let ran = node.run("from_uplink", node.uplink, &udp((&client, port), (VIP[f], 80), 1));
            (ran.action == REDIRECT).then(|| ran.seen().source.1)
        };
        let clients: Vec<_> = clients.collect();
        for client in &clients[..wanted] {
            let port =
                ask(&node, *client).unwrap_or_else(|| panic!("no port for the {}th flow", given.len() + 1));
            assert!(SNAT_PORTS.contains(&port) && given.insert(port), "{port} twice, or not one of them");
        }
        assert_eq!(given.len(), wanted, "all of them");
        node.events();
        assert_eq!(ask(&node, clients[wanted]), None);
        assert_eq!(node.dropped().flow.drop_reason, 167);
        // One flow is forgotten: its port is the only free one.
        let free = ask(&node, clients[7]).unwrap();
        let gone = FlowFilter { port: Some(free), ..FlowFilter::default() };
        assert!(node.datapath.flush(&gone).unwrap() > 0);
        assert_eq!(ask(&node, clients[wanted + 1]), Some(free));
    }
}

#[test]
fn a_masquerading_node_lends_its_address_and_takes_it_back() {
    let mut node = masquerading();
    for f in FAMILIES {
        for (request, answer) in [
            (
                udp((POD_A[f], 4000), (OUTSIDE[f], 53), 9),
                Box::new(|port| udp((OUTSIDE[f], 53), (NODE[f], port), 9)) as Box<dyn Fn(u16) -> Vec<u8>>,
            ),
            (
                tcp((POD_A[f], 4000), (OUTSIDE[f], 443), "S"),
                Box::new(|port| tcp((OUTSIDE[f], 443), (NODE[f], port), "SA")),
            ),
        ] {
            let ran = node.run("from_endpoint", node.a, &request);
            assert_eq!(ran.action, REDIRECT);
            let seen = ran.seen();
            assert_eq!(seen.source.0, ip(NODE[f]));
            assert!(SNAT_PORTS.contains(&seen.source.1));
            assert_eq!(ran.mark & 0x1f00, 0x0300, "not the node's own packet");
            let back = node.run("from_uplink", node.uplink, &answer(seen.source.1));
            assert_eq!((back.action, back.macs().0), (REDIRECT, MAC_A));
            assert_eq!(back.seen().destination, (ip(POD_A[f]), 4000));
            // An error about it, from a router on the way.
            let error = node.run("from_uplink", node.uplink, &unreachable(OTHER[f], NODE[f], &ran.packet));
            assert_eq!((error.action, error.seen().destination.0), (REDIRECT, ip(POD_A[f])));
            assert_eq!(error.quoted().0, (ip(POD_A[f]), 4000));
        }
        let ran = node.run("from_endpoint", node.a, &ping(POD_A[f], OUTSIDE[f], 77, true));
        assert_eq!(ran.seen().source.0, ip(NODE[f]));
        let at = if f == 0 { 38 } else { 58 };
        let id = u16::from_be_bytes([ran.packet[at], ran.packet[at + 1]]);
        let back = node.run("from_uplink", node.uplink, &ping(OUTSIDE[f], NODE[f], id, false));
        assert_eq!((back.action, back.seen().destination.0), (REDIRECT, ip(POD_A[f])));
        assert_eq!(u16::from_be_bytes([back.packet[at], back.packet[at + 1]]), 77);
        // What nobody asked for is the node's.
        let stray = node.run("from_uplink", node.uplink, &udp((OUTSIDE[f], 53), (NODE[f], 12_345), 9));
        assert_eq!((stray.action, stray.seen().destination), (OK, (ip(NODE[f]), 12_345)));
    }
    node.events();
}

#[test]
fn the_mesh_and_what_is_excepted_see_the_pods_own_address() {
    let node = masquerading();
    node.remote(NodePath::Direct, false);
    node.datapath.set_unmasked(&SOME.iter().map(|net| net.parse().unwrap()).collect()).unwrap();
    for f in FAMILIES {
        for to in [REMOTE[f], REMOTE_NODE[f], POD_B[f], OUTSIDE[f]] {
            let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (to, 53), 9));
            assert_eq!((ran.action, ran.seen().source.0), (REDIRECT, ip(POD_A[f])), "{to}");
        }
        let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (OTHER[f], 53), 9));
        assert_eq!(ran.seen().source.0, ip(NODE[f]), "beside the exception");
        // A client outside that asked a service is answered by the service.
        node.service(VIP[f], 80, Scope::External, 20, &[(1, POD_A[f], 8080)]);
        node.run("from_uplink", node.uplink, &tcp((OTHER[f], 5000), (VIP[f], 80), "S"));
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 8080), (OTHER[f], 5000), "SA"));
        assert_eq!(ran.seen().source, (ip(VIP[f]), 80));
    }
    node.datapath.set_unmasked(&BTreeSet::new()).unwrap();
    let ran = node.run("from_endpoint", node.a, &udp((POD_A[0], 4000), (OUTSIDE[0], 53), 9));
    assert_eq!(ran.seen().source.0, ip(NODE[0]), "no exception any more");
}

#[test]
fn a_service_outside_the_mesh_answers_as_the_service_through_the_node() {
    let node = masquerading();
    for f in FAMILIES {
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 10, &[(1, OUTSIDE[f], 8080)]);
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (CLUSTER_IP[f], 80), "S"));
        let seen = ran.seen();
        assert_eq!((seen.source.0, seen.destination), (ip(NODE[f]), (ip(OUTSIDE[f]), 8080)));
        let answer = tcp((OUTSIDE[f], 8080), (NODE[f], seen.source.1), "SA");
        let back = node.run("from_uplink", node.uplink, &answer).seen();
        assert_eq!((back.source, back.destination), ((ip(CLUSTER_IP[f]), 80), (ip(POD_A[f]), 4000)));
    }
}

#[test]
fn a_pod_with_an_egress_policy_leaves_by_its_gateway_or_not_at_all() {
    for path in [NodePath::Overlay, NodePath::Direct] {
        let mut node = masquerading();
        node.remote(path, false);
        for f in FAMILIES {
            let packet = udp((POD_A[f], 4000), (OUTSIDE[f], 53), 9);
            way(&node, f, ALL[f], EgressWay::Nowhere);
            node.drops("from_endpoint", node.a, &packet, 194);
            way(&node, f, ALL[f], EgressWay::Node(77));
            node.drops("from_endpoint", node.a, &packet, 194);
            way(&node, f, ALL[f], EgressWay::Here { address: None, ifindex: node.uplink });
            node.drops("from_endpoint", node.a, &packet, 204);
            // The gateway is another node: as it is, through the tunnel, also where pods are routed.
            way(&node, f, ALL[f], EgressWay::Node(1));
            let ran = node.run("from_endpoint", node.a, &packet);
            assert_eq!((ran.action, ran.mark & 0x1f00), (REDIRECT, 0x0f00), "{path:?}");
            assert_eq!(ran.seen().source, (ip(POD_A[f]), 4000));
            // Others are not meant, nor is the mesh.
            let ran = node.run("from_endpoint", node.b, &udp((POD_B[f], 4000), (OUTSIDE[f], 53), 9));
            assert_eq!(ran.seen().source.0, ip(NODE[f]));
            let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (POD_B[f], 53), 9));
            assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_B));
            let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (REMOTE[f], 53), 9));
            assert_eq!((ran.action, ran.mark & 0x1f00 == 0x0f00), (REDIRECT, path == NodePath::Overlay));
            // What is excluded goes the node's way.
            way(&node, f, SOME[f], EgressWay::Excluded);
            let ran = node.run("from_endpoint", node.a, &packet);
            assert_eq!((ran.action, ran.seen().source.0), (REDIRECT, ip(NODE[f])));
            node.events();
        }
    }
}

#[test]
fn a_gateway_that_is_too_far_for_the_packet_says_so() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    way(&node, 0, ALL[0], EgressWay::Node(1));
    let of = |payload| udp((POD_A[0], 4000), (OUTSIDE[0], 53), payload);
    // The path takes 1400, of which the tunnel needs 50.
    assert_eq!(node.run("from_endpoint", node.a, &of(1350 - 28)).mark & 0x1f00, 0x0f00);
    node.events();
    assert_eq!(node.run("from_endpoint", node.a, &of(1351 - 28)).action, REDIRECT, "the answer");
    assert_eq!(node.dropped().flow.drop_reason, 136);
}

#[test]
fn the_gateways_own_pod_leaves_under_the_egress_address() {
    let mut node = Node::new();
    for f in FAMILIES {
        way(&node, f, ALL[f], here(&node, f));
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (OUTSIDE[f], 443), "S"));
        assert_eq!(ran.action, REDIRECT);
        let seen = ran.seen();
        assert_eq!(seen.source.0, ip(EGRESS[f]));
        let answer = tcp((OUTSIDE[f], 443), (EGRESS[f], seen.source.1), "SA");
        let back = node.run("from_uplink", node.uplink, &answer);
        assert_eq!((back.action, back.macs().0), (REDIRECT, MAC_A));
        assert_eq!(back.seen().destination, (ip(POD_A[f]), 4000));
        let event = node.traced().flow;
        assert!(event.reply, "{event:?}");
        // The egress address changes: the flow gets the new one.
        let new = EgressWay::Here { address: Some(ip(NODE[f])), ifindex: node.uplink };
        way(&node, f, ALL[f], new);
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (OUTSIDE[f], 443), "A"));
        assert_eq!(ran.seen().source.0, ip(NODE[f]));
        node.events();
    }
}

#[test]
fn rows_are_read_back_and_families_are_not_mixed() {
    let node = Node::new();
    let pods: [IpAddr; 2] = [ip(POD_A[0]), ip(POD_A[1])];
    let rows = [
        ((pods[0], ALL[0].parse().unwrap()), EgressWay::Nowhere),
        ((pods[0], SOME[0].parse().unwrap()), EgressWay::Excluded),
        ((pods[1], ALL[1].parse().unwrap()), EgressWay::Node(3)),
        ((pods[1], SOME[1].parse().unwrap()), here(&node, 1)),
    ];
    for ((pod, net), way) in rows {
        node.datapath.upsert_egress(pod, net, way).unwrap();
    }
    let found: BTreeSet<_> = node.datapath.egress().unwrap().into_iter().collect();
    assert_eq!(found, BTreeSet::from(rows));
    let reopened = node.reopen(Attach::Auto, small_sizes());
    assert_eq!(reopened.egress().unwrap().len(), 4, "they outlive the agent");
    node.datapath.upsert_egress(pods[0], ALL[1].parse().unwrap(), EgressWay::Nowhere).unwrap_err();
    for ((pod, net), _) in rows {
        node.datapath.delete_egress(pod, net).unwrap();
    }
    assert_eq!(node.datapath.egress().unwrap(), []);
}

/// The same IPv4 packet as one that routers may cut.
fn without_df(mut packet: Vec<u8>) -> Vec<u8> {
    packet[20] &= !0x40;
    packet[24..26].fill(0);
    let words = packet[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[24..26].copy_from_slice(&(!u16::try_from(folded).unwrap()).to_be_bytes());
    packet
}

#[test]
fn nothing_reaches_the_stack_under_the_nodes_address() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    sh("ip route add 10.1.2.0/24 via 172.20.11.1 dev upl mtu lock 1200");
    node.service(VIP[0], 80, Scope::External, 20, &[(1, REMOTE[0], 8080)]);
    // To a backend of another node under this one's address, and too big for its route.
    let large = without_df(udp((CLIENT[0], 5000), (VIP[0], 80), 1300));
    let ran = node.run("from_uplink", node.uplink, &large);
    assert_eq!((ran.action, node.dropped().flow.drop_reason), (REDIRECT, 136), "dropped and answered");
    assert_eq!(ran.seen().destination.0, ip(CLIENT[0]));
    // As the pod's own the stack may cut it.
    let own = without_df(udp((POD_A[0], 4000), (REMOTE[0], 53), 1300));
    assert_eq!(node.run("from_endpoint", node.a, &own).action, OK);
    node.events();
    // Where there is no way out the stack gets nothing, either.
    way(&node, 0, ALL[0], EgressWay::Here { address: Some(ip(EGRESS[0])), ifindex: node.b });
    node.drops("from_endpoint", node.a, &udp((POD_A[0], 4000), (OUTSIDE[0], 53), 9), 169);
}

#[test]
fn an_address_of_the_node_that_is_in_no_row_is_reached_without_masquerading() {
    let node = masquerading();
    // Routes, as the kernel puts in those of an IPv6 address some time after it.
    sh("ip route add local 192.0.2.77 dev lo; ip -6 route add local 2001:db8:7::77 dev lo");
    for (f, local) in [(0, "192.0.2.77"), (1, "2001:db8:7::77")] {
        let ran = node.run("from_endpoint", node.a, &udp((POD_A[f], 4000), (local, 53), 9));
        assert_eq!((ran.action, ran.seen().source), (OK, (ip(POD_A[f]), 4000)));
    }
}

#[test]
fn a_running_flow_keeps_its_way_and_ends_with_its_gateway() {
    let mut node = masquerading();
    for f in FAMILIES {
        let send = |node: &Node, flags| {
            node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (OUTSIDE[f], 443), flags))
        };
        let source = send(&node, "S").seen().source;
        node.run("from_uplink", node.uplink, &tcp((OUTSIDE[f], 443), (NODE[f], source.1), "SA"));
        // The second of them belongs to an established flow, for which nothing else is asked.
        for _ in 0..3 {
            assert_eq!(send(&node, "A").seen().source, source);
        }
        assert_eq!(source.0, ip(NODE[f]));
        way(&node, f, ALL[f], EgressWay::Nowhere);
        node.drops("from_endpoint", node.a, &tcp((POD_A[f], 4000), (OUTSIDE[f], 443), "A"), 194);
    }
}
