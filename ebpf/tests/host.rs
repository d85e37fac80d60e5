//! The node's own traffic under a host policy, by BPF_PROG_TEST_RUN: from and to the network, pods here, and the tunnel.
#![cfg(test)]

mod support;
use support::*;
use tombolo_ebpf::*;

const HOST_POLICY: u32 = 40;
/// Behind this node as a router.
const ELSEWHERE: [&str; 2] = ["198.51.100.1", "2001:db8:99::1"];
/// The world as rules know it, by family.
const WORLD: [u32; 2] = [9, 10];

fn allow(identity: u32, port: u16) -> RuleEntry {
    let port = Some(port.into());
    RuleEntry { identity: Some(identity), protocol: Some(6), port, cookie: 9, ..RuleEntry::default() }
}

/// Ssh from the world, https to it; a pod may ask the node at 9000, and the node pod B at 80.
fn rules(f: usize) -> PolicySet {
    PolicySet {
        ingress: PolicySide::only(vec![allow(WORLD[f], 22), allow(ID_A, 9000)]),
        egress: PolicySide::only(vec![allow(WORLD[f], 443), allow(ID_B, 80)]),
        audit: false,
    }
}

fn guarded(f: usize) -> Node {
    let node = Node::new();
    enforce(&node, &rules(f));
    node
}

fn enforce(node: &Node, set: &PolicySet) {
    node.datapath.set_policy(HOST_POLICY, set).unwrap();
    let wireguard_port = Some(51_871);
    let config = NodeConfig { host_policy_id: HOST_POLICY, wireguard_port, ..node.config() };
    node.datapath.set_config(&config).unwrap();
}

fn passes(node: &Node, program: &'static str, ifindex: u32, packet: &[u8]) {
    assert_eq!(node.run(program, ifindex, packet).action, OK, "{program}");
}

/// Whoever names a policy and whoever deletes one look at the same lock: whichever is first, the node is never left under a
/// policy that is not there, which would drop all it sends and receives.
#[test]
fn the_policy_of_the_node_is_one_that_is_there() {
    let node = Node::new();
    let d = &node.datapath;
    let named = || d.config().unwrap().host_policy_id;
    assert!(d.set_host_policy(5).unwrap_err().to_string().contains("not there"));
    assert_eq!(named(), 0);
    d.set_policy(5, &PolicySet::default()).unwrap();
    d.set_policy(6, &PolicySet::default()).unwrap();
    d.set_host_policy(5).unwrap();
    assert!(!d.delete_policy_of_others(5).unwrap() && d.policies().unwrap().contains_key(&5));
    assert!(d.delete_policy_of_others(6).unwrap() && !d.policies().unwrap().contains_key(&6));
    for _ in 0..200 {
        d.set_policy(7, &PolicySet::default()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(d.set_host_policy(7)));
            scope.spawn(|| d.delete_policy_of_others(7).unwrap());
        });
        assert!(d.policies().unwrap().contains_key(&named()), "{}", named());
        d.set_host_policy(5).unwrap();
    }
}

#[test]
fn without_a_policy_nothing_of_the_node_is_tracked_or_dropped() {
    for f in FAMILIES {
        let mut node = Node::new();
        passes(&node, "from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (NODE[f], 23), "S"));
        passes(&node, "to_uplink", node.uplink, &tcp((NODE[f], 5000), (CLIENT[f], 23), "S"));
        assert!(node.datapath.conntrack().unwrap().is_empty());
        assert!(node.events().iter().all(|event| event.kind != EventKind::Verdict));
    }
}

#[test]
fn the_network_reaches_what_the_policy_names_and_is_answered() {
    for f in FAMILIES {
        let mut node = guarded(f);
        let (client, ssh) = ((CLIENT[f], 5000), (NODE[f], 22));
        passes(&node, "from_uplink", node.uplink, &tcp(client, ssh, "S"));
        let verdicts: Vec<_> = node.events().into_iter().filter(|e| e.kind == EventKind::Verdict).collect();
        assert_eq!((verdicts.len(), verdicts[0].cookie), (1, 9));
        assert_eq!(verdicts[0].flow.destination.identity, 1);
        // Egress is enforced and names no such port: it is the answer that passes.
        passes(&node, "to_uplink", node.uplink, &tcp(ssh, client, "SA"));
        passes(&node, "from_uplink", node.uplink, &tcp(client, ssh, "A"));
        node.drops("from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (NODE[f], 23), "S"), 133);
        node.drops("from_uplink", node.uplink, &tcp((REMOTE_NODE[f], 5000), (NODE[f], 22), "S"), 133);
        node.drops("to_uplink", node.uplink, &tcp(ssh, (CLIENT[f], 5001), "SA"), 133);
        // A flow ends with its allow, both ways.
        enforce(&node, &PolicySet { ingress: PolicySide::only(vec![]), ..rules(f) });
        node.drops("from_uplink", node.uplink, &tcp(client, ssh, "A"), 133);
        node.drops("to_uplink", node.uplink, &tcp(ssh, client, "A"), 133);
    }
}

#[test]
fn the_node_reaches_what_the_policy_names_and_hears_the_answers() {
    for f in FAMILIES {
        let mut node = guarded(f);
        let (own, api) = ((NODE[f], 6000), (CLIENT[f], 443));
        passes(&node, "to_uplink", node.uplink, &tcp(own, api, "S"));
        passes(&node, "from_uplink", node.uplink, &tcp(api, own, "SA"));
        node.drops("to_uplink", node.uplink, &tcp(own, (CLIENT[f], 80), "S"), 133);
        node.drops("from_uplink", node.uplink, &tcp((CLIENT[f], 80), own, "SA"), 133);
        let kinds: Vec<_> = node.datapath.conntrack().unwrap().iter().map(|flow| flow.kind).collect();
        assert_eq!(kinds, [ConntrackKind::HostOut]);
    }
}

#[test]
fn pods_and_their_node_are_judged_at_both_ends() {
    for f in FAMILIES {
        let mut node = guarded(f);
        for address in [GATEWAY[f], NODE[f]] {
            let (pod, own) = ((POD_A[f], 4000), (address, 9000));
            passes(&node, "from_endpoint", node.a, &tcp(pod, own, "S"));
            passes(&node, "to_endpoint", node.a, &tcp(own, pod, "SA"));
            node.drops("from_endpoint", node.a, &tcp(pod, (address, 9001), "S"), 133);
            node.drops("from_endpoint", node.b, &tcp((POD_B[f], 4000), own, "S"), 133);
        }
        let (own, pod) = ((GATEWAY[f], 7000), (POD_B[f], 80));
        passes(&node, "to_endpoint", node.b, &tcp(own, pod, "S"));
        passes(&node, "from_endpoint", node.b, &tcp(pod, own, "SA"));
        node.drops("to_endpoint", node.b, &tcp(own, (POD_B[f], 81), "S"), 133);
        node.drops("to_endpoint", node.a, &tcp(own, (POD_A[f], 80), "S"), 133);
        node.drops("to_overlay", node.overlay, &tcp(own, (REMOTE[f], 80), "S"), 133);
    }
}

#[test]
fn what_carries_the_mesh_is_left_alone_between_nodes() {
    for f in FAMILIES {
        let mut node = guarded(f);
        for port in [8472, 51_871] {
            let here = (NODE[f], port);
            passes(&node, "from_uplink", node.uplink, &udp((REMOTE_NODE[f], 40_000), here, 50));
            passes(&node, "to_uplink", node.uplink, &udp((NODE[f], 40_000), (REMOTE_NODE[f], port), 50));
            node.drops("from_uplink", node.uplink, &udp((CLIENT[f], 40_000), here, 50), 133);
            node.drops("to_uplink", node.uplink, &udp((NODE[f], 40_000), (CLIENT[f], port), 50), 133);
        }
        node.drops("from_uplink", node.uplink, &udp((REMOTE_NODE[f], 40_000), (NODE[f], 8473), 50), 133);
    }
}

#[test]
fn others_packets_errors_and_discovery_are_not_the_nodes() {
    for f in FAMILIES {
        let mut node = guarded(f);
        // Under the node's address, but a client's of a service or a pod's: marked by the program that let it pass.
        let translated = tcp((GATEWAY[f], 20_000), (REMOTE[f], 8080), "S");
        assert_eq!(node.run_with("to_uplink", node.uplink, &translated, 0x300, 0).action, OK);
        node.drops("to_uplink", node.uplink, &translated, 133);
        // What the node forwards.
        passes(&node, "to_uplink", node.uplink, &tcp((POD_A[f], 1), (CLIENT[f], 80), "S"));
        passes(&node, "from_uplink", node.uplink, &tcp((CLIENT[f], 1), (ELSEWHERE[f], 80), "S"));
        // The node's sockets know what they asked for.
        let asked = tcp((NODE[f], 6000), (CLIENT[f], 443), "S");
        let error = unreachable(CLIENT[f], NODE[f], &asked);
        passes(&node, "from_uplink", node.uplink, &error);
    }
    let node = guarded(1);
    passes(&node, "from_uplink", node.uplink, &icmp6("fe80::1", "ff02::1:ff00:2", (135, 0), 255));
}

#[test]
fn protocols_without_ports_are_judged_by_their_number() {
    for f in FAMILIES {
        let mut node = guarded(f);
        let mut ospf = tcp((REMOTE_NODE[f], 0), (NODE[f], 0), "S");
        let protocol_at = [14 + 9, 14 + 6][f];
        ospf[protocol_at] = 89;
        node.drops("from_uplink", node.uplink, &ospf, 133);
        let neighbour = RuleEntry { identity: Some(6), protocol: Some(89), ..RuleEntry::default() };
        enforce(&node, &PolicySet { ingress: PolicySide::only(vec![neighbour]), ..rules(f) });
        passes(&node, "from_uplink", node.uplink, &ospf);
        // Messages of ICMP that are no flow, by their type: timestamp requests and node information queries.
        let kind = [13, 139][f];
        let mut asks = ping(REMOTE_NODE[f], NODE[f], 7, true);
        asks[[14 + 20, 14 + 40][f]] = kind;
        node.drops("from_uplink", node.uplink, &asks, 133);
        let of_type = |kind: u16| RuleEntry {
            identity: Some(6),
            protocol: Some([1, 58][f]),
            port: Some(PortPrefix { first: kind << 8, bits: 8 }),
            ..RuleEntry::default()
        };
        let echo = of_type([8, 128][f]);
        enforce(&node, &PolicySet { ingress: PolicySide::only(vec![echo]), ..rules(f) });
        node.drops("from_uplink", node.uplink, &asks, 133);
        enforce(&node, &PolicySet { ingress: PolicySide::only(vec![of_type(kind.into())]), ..rules(f) });
        passes(&node, "from_uplink", node.uplink, &asks);
    }
}
