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

#[test]
fn a_backend_in_the_hosts_network_is_served_from_outside_and_answers_as_the_service() {
    for f in FAMILIES {
        let mut node = node_port(f, &[(1, NODE[f], 6443)]);
        node.service(VIP[f], 443, Scope::External, 30, &[(1, NODE[f], 6443)]);
        for (address, port) in [(VIP[f], 443), (NODE[f], PORT), (GATEWAY[f], PORT)] {
            for (hook, ifindex) in [("to_uplink", node.uplink), ("to_overlay", node.overlay)] {
                let client = if hook == "to_uplink" { CLIENT[f] } else { REMOTE[f] };
                let ran = node.run("from_uplink", node.uplink, &tcp((client, 5000), (address, port), "S"));
                assert_eq!((ran.action, ran.seen().destination), (OK, (ip(NODE[f]), 6443)), "{address}");
                assert_eq!(ran.seen().source, (ip(client), 5000), "the client's address is kept");
                let ran = node.run(hook, ifindex, &tcp((NODE[f], 6443), (client, 5000), "SA"));
                assert_eq!((ran.action, ran.seen().source), (OK, (ip(address), port)), "{hook}");
                node.run("from_uplink", node.uplink, &tcp((client, 5000), (address, port), "A"));
                // What the node says of it by ICMP is the service's word, too.
                let quoted = tcp((client, 5000), (NODE[f], 6443), "A");
                let ran = node.run(hook, ifindex, &unreachable(NODE[f], client, &quoted));
                assert_eq!(ran.quoted(), ((ip(client), 5000), (ip(address), port)), "{hook}");
                node.datapath.forget_flows(&[ip(client)]).unwrap();
            }
        }
        // Others of the node's flows are not touched, nor tracked.
        let before = node.datapath.conntrack().unwrap().len();
        let other = tcp((NODE[f], 6443), (CLIENT[f], 5001), "SA");
        assert_eq!(node.run("to_uplink", node.uplink, &other).packet, other);
        assert_eq!(node.datapath.conntrack().unwrap().len(), before);
        node.events();
    }
}

#[test]
fn what_the_stack_led_to_a_pod_goes_back_through_it() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    for f in FAMILIES {
        // As after a translation by the kernel, and from another pod as well.
        for client in [CLIENT[f], POD_B[f]] {
            let ran = node.run("to_endpoint", node.a, &tcp((client, 5000), (POD_A[f], 80), "S"));
            assert_eq!(ran.action, OK);
            let answer = tcp((POD_A[f], 80), (client, 5000), "SA");
            let ran = node.run("from_endpoint", node.a, &answer);
            assert_eq!((ran.action, ran.packet), (OK, answer), "{client}");
        }
        // What came by the uplink does not.
        node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 5001), (POD_A[f], 80), "S"));
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 80), (CLIENT[f], 5001), "SA"));
        assert_eq!(ran.action, REDIRECT);
        node.events();
    }
}
