//! Ports of the node's own addresses that lead to services, by BPF_PROG_TEST_RUN: from outside, from pods here and elsewhere.
#![cfg(test)]

mod support;
use support::*;
use tombolo_ebpf::*;

const PORT: u16 = 30_080;

/// The node with one node port in both scopes, for the backends at port 8080.
fn node_port(f: usize, backends: &[(u32, &str, u16)]) -> Node {
    let node = Node::new();
    node.remote(NodePath::Direct, false);
    for (number, address) in [(20, NODE[f]), (21, GATEWAY[f])] {
        for scope in [Scope::External, Scope::Internal] {
            node.service(address, PORT, scope, number, backends);
        }
    }
    node
}

/// Clients outside and pods of another node, at both addresses of this one. What comes by the tunnel instead needs a real
/// one: tests/traffic.rs.
fn ways(node: &Node, f: usize) -> [(&'static str, u32, &'static str, &'static str); 4] {
    [
        ("from_uplink", node.uplink, CLIENT[f], NODE[f]),
        ("from_uplink", node.uplink, CLIENT[f], GATEWAY[f]),
        ("from_uplink", node.uplink, REMOTE[f], NODE[f]),
        ("from_uplink", node.uplink, REMOTE[f], GATEWAY[f]),
    ]
}

#[test]
fn a_local_backend_sees_the_client_and_answers_as_the_node() {
    for f in FAMILIES {
        let mut node = node_port(f, &[(1, POD_A[f], 8080)]);
        for (program, ifindex, client, address) in ways(&node, f) {
            let ran = node.run(program, ifindex, &tcp((client, 5000), (address, PORT), "S"));
            assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A), "{client} {address}");
            assert_eq!(ran.seen().source, (ip(client), 5000));
            assert_eq!(ran.seen().destination, (ip(POD_A[f]), 8080));
            assert_eq!(node.traced().flow.original_destination, Some((ip(address), PORT)));
            let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 8080), (client, 5000), "SA"));
            assert_eq!((ran.action, ran.seen().source), (REDIRECT, (ip(address), PORT)));
            node.datapath.forget_flows(&[ip(client)]).unwrap();
            node.events();
        }
    }
}

#[test]
fn a_backend_of_another_node_sees_this_node() {
    for f in FAMILIES {
        let mut node = node_port(f, &[(1, REMOTE[f], 8080)]);
        for (port, (program, ifindex, client, address)) in (5000..).zip(ways(&node, f)) {
            let ran = node.run(program, ifindex, &tcp((client, port), (address, PORT), "S"));
            assert_eq!(ran.action, REDIRECT, "{client} {address}: {:#?}", node.events());
            let seen = ran.seen();
            assert_eq!((seen.source.0, seen.destination), (ip(GATEWAY[f]), (ip(REMOTE[f]), 8080)));
            let answer = tcp((REMOTE[f], 8080), (GATEWAY[f], seen.source.1), "SA");
            let ran = node.run("from_uplink", node.uplink, &answer);
            assert_eq!((ran.action, ran.seen().source), (REDIRECT, (ip(address), PORT)));
            assert_eq!(ran.seen().destination, (ip(client), port));
            node.events();
        }
    }
}

#[test]
fn a_pod_reaches_the_ports_of_its_own_node_and_leaves_those_of_others_to_them() {
    for f in FAMILIES {
        let mut node = node_port(f, &[(1, POD_B[f], 8080)]);
        for address in [NODE[f], GATEWAY[f]] {
            let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (address, PORT), "S"));
            assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_B), "{address}");
            assert_eq!(ran.seen().destination, (ip(POD_B[f]), 8080));
            let ran = node.run("from_endpoint", node.b, &tcp((POD_B[f], 8080), (POD_A[f], 4000), "SA"));
            assert_eq!((ran.action, ran.seen().source), (REDIRECT, (ip(address), PORT)));
            node.datapath.forget_flows(&[ip(POD_A[f])]).unwrap();
        }
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (REMOTE_NODE[f], PORT), "S"));
        assert_eq!((ran.action, ran.seen().destination), (REDIRECT, (ip(REMOTE_NODE[f]), PORT)));
        // The other node answers from its own address, or translated from elsewhere: the pod knows only that address.
        let ran = node.run("from_uplink", node.uplink, &tcp((REMOTE_NODE[f], PORT), (POD_A[f], 4000), "SA"));
        assert_eq!((ran.action, ran.seen().source), (REDIRECT, (ip(REMOTE_NODE[f]), PORT)));
        node.events();
    }
}

#[test]
fn other_ports_of_the_node_stay_the_hosts() {
    for f in FAMILIES {
        let mut node = node_port(f, &[(1, POD_A[f], 8080)]);
        for (program, ifindex, client, address) in ways(&node, f) {
            assert_eq!(node.run(program, ifindex, &tcp((client, 5000), (address, 22), "S")).action, OK);
            assert_eq!(node.run(program, ifindex, &ping(client, address, 3, true)).action, OK);
        }
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (NODE[f], 22), "S"));
        assert_eq!((ran.action, ran.seen().destination), (OK, (ip(NODE[f]), 22)));
        node.events();
    }
}

#[test]
fn with_the_policy_local_a_node_without_backend_says_why_it_drops() {
    let mut node = Node::new();
    for f in FAMILIES {
        let frontend = Frontend { ip: ip(NODE[f]), port: PORT, protocol: 6, scope: Scope::External };
        let entry = ServiceEntry { rev_nat: 20, local_only: true, ..ServiceEntry::default() };
        node.datapath.set_service(&frontend, &entry).unwrap();
        let packet = tcp((CLIENT[f], 5000), (NODE[f], PORT), "S");
        let site = node.drops("from_uplink", node.uplink, &packet, 158);
        assert!(site.why.contains("Local") && site.remedy.contains("Cluster"));
    }
}
