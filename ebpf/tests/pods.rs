//! Pod traffic by BPF_PROG_TEST_RUN: source check, fail closed, same node, overlay, direct, policy, answers.
#![cfg(test)]

mod support;
use support::*;
use tombolo_ebpf::*;

#[test]
fn same_node_goes_straight_to_the_peer() {
    let mut node = Node::new();
    for f in FAMILIES {
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (POD_B[f], 80), "S"));
        assert_eq!(ran.action, REDIRECT);
        let seen = ran.seen();
        assert_eq!(seen.source, (ip(POD_A[f]), 4000));
        assert_eq!(seen.destination, (ip(POD_B[f]), 80));
        assert_eq!(seen.hops, 63, "a hop is counted");
        assert_eq!(ran.macs(), (MAC_B, HOST_MAC));
        let event = node.traced().flow;
        assert_eq!((event.source.identity, event.destination.identity), (ID_A, ID_B));
        assert_eq!((event.source.endpoint_id, event.destination.endpoint_id), (1, 2));
        assert_eq!((event.trace_point, event.new, event.reply), (0, true, false));
        assert_eq!(event.tcp_flags, 2);

        let ran = node.run("from_endpoint", node.b, &tcp((POD_B[f], 80), (POD_A[f], 4000), "SA"));
        assert_eq!(ran.action, REDIRECT);
        let event = node.traced().flow;
        assert!(event.reply && !event.new);
        assert!(
            node.datapath.conntrack().unwrap().iter().all(|c| !c.established || c.source.0 != ip(POD_A[f]))
        );
        node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (POD_B[f], 80), "A"));
        let flows = node.datapath.conntrack().unwrap();
        let established = flows.iter().filter(|c| c.established && c.source.0 == ip(POD_A[f])).count();
        assert_eq!(established, 2, "egress of A and ingress of B: {flows:#?}");
    }
}

#[test]
fn echo_is_tracked_by_its_identifier() {
    let mut node = Node::new();
    for f in FAMILIES {
        assert_eq!(node.run("from_endpoint", node.a, &ping(POD_A[f], POD_B[f], 77, true)).action, REDIRECT);
        node.events();
        let ran = node.run("from_endpoint", node.b, &ping(POD_B[f], POD_A[f], 77, false));
        assert_eq!(ran.action, REDIRECT);
        ran.seen();
        assert!(node.traced().flow.reply);
    }
}

#[test]
fn foreign_source_is_dropped() {
    let mut node = Node::new();
    for f in FAMILIES {
        let ran = node.run("from_endpoint", node.a, &udp((POD_B[f], 1), (REMOTE[f], 2), 10));
        assert_eq!(ran.action, SHOT);
        let event = node.dropped().flow;
        assert_eq!((event.drop_reason, event.source.identity), (132, ID_A));
        assert_eq!(site(event.site).unwrap().reason, "TB_DROP_INVALID_SOURCE");
    }
    let counted = node.datapath.metrics().unwrap();
    let metric = counted.iter().find(|m| m.reason == 132).unwrap();
    assert_eq!((metric.packets, metric.direction), (2, Direction::Egress));
}

#[test]
fn hooks_fail_closed() {
    let mut node = Node::new();
    let packet = udp((POD_A[0], 1), (POD_B[0], 2), 10);
    node.datapath.delete_interface(node.b).unwrap();
    assert_eq!(node.run("from_endpoint", node.a, &packet).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 203, "receiver has no row");
    let mut row = pod(POD_A, ID_A, 1, MAC_A);
    row.ready = false;
    node.datapath.upsert_interface(node.a, &row).unwrap();
    assert_eq!(node.run("from_endpoint", node.a, &packet).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 203, "sender is not ready");
    let to_a = udp((GATEWAY[0], 1), (POD_A[0], 2), 10);
    assert_eq!(node.run("to_endpoint", node.a, &to_a).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 203);
    node.datapath.upsert_interface(node.a, &pod(POD_A, ID_A, 1, MAC_A)).unwrap();
    node.datapath.set_config(&NodeConfig { ready: false, ..node.config() }).unwrap();
    assert_eq!(node.run("from_endpoint", node.a, &packet).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 202);
}

#[test]
fn other_node_goes_into_the_tunnel() {
    let mut node = Node::new();
    for f in FAMILIES {
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (REMOTE[f], 80), "S"));
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.mark & 0x1f00, 0x0f00, "to_overlay must see that the key is set");
        assert_eq!(ran.seen().hops, 63);
        let event = node.traced().flow;
        assert_eq!((event.trace_point, event.destination.identity), (4, ID_REMOTE));
        assert!(!event.encrypted);
        assert_eq!(node.run_with("to_overlay", node.overlay, &ran.packet, ran.mark, 0).action, OK);
    }
    node.datapath.set_config(&NodeConfig { overlay_ifindex: 0, ..node.config() }).unwrap();
    assert_eq!(node.run("from_endpoint", node.a, &udp((POD_A[0], 1), (REMOTE[0], 2), 10)).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 206);
}

#[test]
fn the_nodes_own_packets_get_their_key_on_the_tunnel_device() {
    let mut node = Node::new();
    for f in FAMILIES {
        let ran = node.run("to_overlay", node.overlay, &udp((GATEWAY[f], 1), (REMOTE[f], 2), 10));
        assert_eq!(ran.action, OK);
        let stray = node.run("to_overlay", node.overlay, &udp((GATEWAY[f], 1), (CLIENT[f], 2), 10));
        assert_eq!(stray.action, SHOT);
        assert_eq!(node.dropped().flow.drop_reason, 160);
    }
    let ran = node.run("from_overlay", node.overlay, &udp((REMOTE[0], 1), (POD_A[0], 2), 10));
    assert_eq!((ran.action, node.dropped().flow.drop_reason), (SHOT, 147), "no tunnel key");
}

#[test]
fn direct_path_follows_the_routing_table() {
    let mut node = Node::new();
    node.remote(NodePath::Direct, false);
    for f in FAMILIES {
        let ran = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (REMOTE[f], 80), "S"));
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.seen().hops, 63);
        assert_eq!(node.traced().flow.trace_point, 11);
        let world = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4001), (CLIENT[f], 80), "S"));
        assert_eq!(world.action, REDIRECT);
        assert_eq!(node.traced().flow.destination.identity, 2);
        let host = node.run("from_endpoint", node.a, &tcp((POD_A[f], 4002), (NODE[f], 80), "S"));
        assert_eq!(host.action, OK);
        let event = node.traced().flow;
        assert_eq!((event.trace_point, event.destination.identity), (2, 1));
    }
}

#[test]
fn packets_from_outside_reach_pods_under_their_policy() {
    let mut node = Node::new();
    for f in FAMILIES {
        let ran = node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 4000), (POD_A[f], 80), "S"));
        assert_eq!(ran.action, REDIRECT);
        assert_eq!(ran.macs(), (MAC_A, HOST_MAC));
        let event = node.traced().flow;
        assert_eq!((event.source.identity, event.destination.endpoint_id), (2, 1));
        let ran = node.run("from_uplink", node.uplink, &tcp((REMOTE[f], 4000), (POD_A[f], 80), "S"));
        assert_eq!((ran.action, node.traced().flow.source.identity), (REDIRECT, ID_REMOTE));
        assert_eq!(node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 1), (NODE[f], 22), "S")).action, OK);
        assert_eq!(
            node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 1), (REMOTE[f], 22), "S")).action,
            OK
        );
    }
}

fn allow(identity: u32, port: u16) -> RuleEntry {
    let port = Some(port.into());
    RuleEntry { identity: Some(identity), protocol: Some(6), port, cookie: 9, ..RuleEntry::default() }
}

fn policed(node: &Node, ingress: Option<Vec<RuleEntry>>, egress: Option<Vec<RuleEntry>>) {
    let side = |entries: Option<Vec<RuleEntry>>| entries.map(PolicySide::only).unwrap_or_default();
    let set = PolicySet { ingress: side(ingress), egress: side(egress), audit: false };
    node.datapath.set_policy(5, &set).unwrap();
}

#[test]
fn ingress_policy_allows_and_denies() {
    let mut node = Node::new();
    policed(&node, Some(vec![allow(ID_A, 80)]), None);
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    for f in FAMILIES {
        assert_eq!(
            node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (POD_B[f], 80), "S")).action,
            REDIRECT
        );
        let verdicts: Vec<_> = node.events().into_iter().filter(|e| e.kind == EventKind::Verdict).collect();
        assert_eq!((verdicts.len(), verdicts[0].cookie), (1, 9));
        assert_eq!(
            node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (POD_B[f], 81), "S")).action,
            SHOT
        );
        let event = node.dropped().flow;
        assert_eq!((event.drop_reason, event.destination.identity), (133, ID_B));
        assert_eq!(
            node.run("from_uplink", node.uplink, &tcp((CLIENT[f], 1), (POD_B[f], 80), "S")).action,
            SHOT
        );
        assert_eq!(node.dropped().flow.drop_reason, 133);
        let host = node.run("to_endpoint", node.b, &tcp((GATEWAY[f], 1), (POD_B[f], 99), "S"));
        assert_eq!(host.action, OK, "the node always reaches its pods");
        node.events();
    }
}

#[test]
fn answers_pass_whatever_the_policy() {
    let mut node = Node::new();
    policed(&node, Some(vec![]), None);
    node.datapath
        .upsert_interface(node.a, &Interface { policy_id: 5, ..pod(POD_A, ID_A, 1, MAC_A) })
        .unwrap();
    for f in FAMILIES {
        node.run("from_endpoint", node.a, &tcp((POD_A[f], 4000), (POD_B[f], 80), "S"));
        let answer = node.run("from_endpoint", node.b, &tcp((POD_B[f], 80), (POD_A[f], 4000), "SA"));
        assert_eq!(answer.action, REDIRECT);
        let opened = node.run("from_endpoint", node.b, &tcp((POD_B[f], 80), (POD_A[f], 4001), "S"));
        assert_eq!(opened.action, SHOT);
        assert_eq!(node.dropped().flow.drop_reason, 133);
    }
}

#[test]
fn egress_policy_and_deny_rules() {
    let mut node = Node::new();
    let any = RuleEntry::default();
    let deny_remote =
        RuleEntry { identity: Some(ID_REMOTE), action: RuleAction::Deny, cookie: 2, ..RuleEntry::default() };
    policed(&node, None, Some(vec![any, deny_remote]));
    node.datapath
        .upsert_interface(node.a, &Interface { policy_id: 5, ..pod(POD_A, ID_A, 1, MAC_A) })
        .unwrap();
    for f in FAMILIES {
        assert_eq!(node.run("from_endpoint", node.a, &udp((POD_A[f], 1), (POD_B[f], 2), 9)).action, REDIRECT);
        node.events();
        assert_eq!(node.run("from_endpoint", node.a, &udp((POD_A[f], 1), (REMOTE[f], 2), 9)).action, SHOT);
        let event = node.dropped();
        assert_eq!((event.flow.drop_reason, event.cookie), (181, 2));
    }
}

#[test]
fn audit_mode_drops_nothing_and_tells_what_it_would_have() {
    let mut node = Node::new();
    let deny = RuleEntry { action: RuleAction::Deny, ..allow(ID_A, 80) };
    let side = || PolicySide::only(vec![deny, allow(ID_A, 81)]);
    let set = |audit| PolicySet { ingress: side(), egress: PolicySide::default(), audit };
    node.datapath.set_policy(5, &set(true)).unwrap();
    assert!(node.datapath.policies().unwrap()[&5].audit);
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    for f in FAMILIES {
        node.datapath.set_policy(5, &set(true)).unwrap();
        for (port, verdict, reason) in [
            (80, tombolo_base::flow::Verdict::Audit, 181),
            (81, tombolo_base::flow::Verdict::Forwarded, 0),
            (82, tombolo_base::flow::Verdict::Audit, 133),
        ] {
            node.events();
            let syn = tcp((POD_A[f], 4000), (POD_B[f], port), "S");
            assert_eq!(node.run("from_endpoint", node.a, &syn).action, REDIRECT, "{port}");
            let seen: Vec<_> =
                node.events().into_iter().map(|event| (event.flow.verdict, event.flow.drop_reason)).collect();
            assert!(
                !seen.is_empty() && seen.iter().all(|seen| *seen == (verdict, reason)),
                "{port}: {seen:?}"
            );
        }
        // A flow that was let pass by audit alone ends with it.
        node.datapath.set_policy(5, &set(false)).unwrap();
        let more = tcp((POD_A[f], 4000), (POD_B[f], 80), "A");
        node.drops("from_endpoint", node.a, &more, 181);
    }
}

#[test]
fn a_flow_is_told_by_its_most_specific_entry() {
    let mut node = Node::new();
    let port = |first, bits, cookie| RuleEntry {
        identity: None,
        port: Some(PortPrefix { first, bits }),
        cookie,
        ..allow(0, 80)
    };
    let all = RuleEntry { cookie: 1, ..RuleEntry::default() };
    let entries = vec![all, port(64, 10, 2), port(80, 15, 3), RuleEntry { cookie: 4, ..allow(ID_A, 80) }];
    policed(&node, Some(entries), None);
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    for f in FAMILIES {
        for (port, cookie) in [(80, 4), (81, 3), (82, 2), (127, 2), (128, 1)] {
            node.events();
            let syn = tcp((POD_A[f], 4000), (POD_B[f], port), "S");
            assert_eq!(node.run("from_endpoint", node.a, &syn).action, REDIRECT);
            let verdicts: Vec<_> =
                node.events().into_iter().filter(|e| e.kind == EventKind::Verdict).collect();
            assert_eq!((verdicts.len(), verdicts[0].cookie), (1, cookie), "{port}");
        }
    }
}

#[test]
fn an_allow_of_an_earlier_policy_of_the_same_number_does_not_hold() {
    let mut node = Node::new();
    policed(&node, Some(vec![allow(ID_A, 80)]), None);
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    let data = tcp((POD_A[0], 4000), (POD_B[0], 80), "A");
    assert_eq!(node.run("from_endpoint", node.a, &data).action, REDIRECT);
    node.datapath.delete_policy(5).unwrap();
    policed(&node, Some(vec![allow(ID_REMOTE, 80)]), None);
    node.events();
    assert_eq!(node.run("from_endpoint", node.a, &data).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 133);
}

#[test]
fn an_allow_that_goes_away_stops_established_flows() {
    let mut node = Node::new();
    policed(&node, Some(vec![allow(ID_A, 80), allow(ID_REMOTE, 80)]), None);
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    let syn = tcp((POD_A[0], 4000), (POD_B[0], 80), "S");
    let data = tcp((POD_A[0], 4000), (POD_B[0], 80), "A");
    assert_eq!(node.run("from_endpoint", node.a, &syn).action, REDIRECT);
    node.run("from_endpoint", node.b, &tcp((POD_B[0], 80), (POD_A[0], 4000), "SA"));
    policed(&node, Some(vec![allow(ID_A, 80)]), None);
    assert_eq!(node.run("from_endpoint", node.a, &data).action, REDIRECT, "another's allow went");
    policed(&node, Some(vec![allow(ID_REMOTE, 80)]), None);
    node.events();
    assert_eq!(node.run("from_endpoint", node.a, &data).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 133);
    policed(&node, Some(vec![allow(ID_A, 80)]), None);
    assert_eq!(node.run("from_endpoint", node.a, &data).action, REDIRECT, "allowed again");
    let read_back = &node.datapath.policies().unwrap()[&5];
    assert_eq!(read_back.ingress, PolicySide::only(vec![allow(ID_A, 80)]));
}

#[test]
fn broken_packets_are_named() {
    let mut node = Node::new();
    let whole = tcp((POD_A[0], 4000), (POD_B[0], 80), "S");
    let mut cut = whole.clone();
    cut.truncate(14 + 20 + 6);
    assert_eq!(node.run("from_endpoint", node.a, &cut).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 135);
    let mut tunnelled = whole.clone();
    tunnelled[23] = 47;
    assert_eq!(node.run("from_endpoint", node.a, &tunnelled).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 142);
    let mut later = whole.clone();
    later[20] = 0x20;
    later[21] = 0x10;
    assert_eq!(node.run("from_endpoint", node.a, &later).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 175);
    let mut chain = tcp((POD_A[1], 4000), (POD_B[1], 80), "S");
    chain[14 + 6] = 60;
    for _ in 0..7 {
        chain.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0]);
    }
    assert_eq!(node.run("from_endpoint", node.a, &chain).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 156);
    let tunnel = udp((POD_A[0], 4000), (NODE[0], 8472), 30);
    assert_eq!(node.run("from_endpoint", node.a, &tunnel).action, SHOT);
    assert_eq!(node.dropped().flow.drop_reason, 170);
}

#[test]
fn later_fragments_follow_the_first() {
    let mut node = Node::new();
    let mut first = udp((POD_A[0], 4000), (POD_B[0], 53), 64);
    first[18..20].copy_from_slice(&[0x12, 0x34]);
    first[20..22].copy_from_slice(&[0x20, 0]);
    let mut later = first.clone();
    later[20..22].copy_from_slice(&[0, 9]);
    assert_eq!(node.run("from_endpoint", node.a, &first).action, REDIRECT);
    assert_eq!(node.run("from_endpoint", node.a, &later).action, REDIRECT);
    assert!(node.events().iter().all(|e| e.kind != EventKind::Drop));
    assert_eq!(node.datapath.conntrack().unwrap().len(), 2);
}

#[test]
fn nobody_outside_speaks_as_a_local_address() {
    let mut node = Node::new();
    policed(&node, Some(vec![]), None);
    node.datapath
        .upsert_interface(node.a, &Interface { policy_id: 5, ..pod(POD_A, ID_A, 1, MAC_A) })
        .unwrap();
    let second = ["172.20.11.9", "fd00:20:11::9"];
    for f in FAMILIES {
        // An address of the node that only its Node object tells of.
        let own = PrefixEntry { identity: 1, ..PrefixEntry::default() };
        node.datapath.upsert_prefix(ip(second[f]).into(), &own).unwrap();
        for source in [NODE[f], GATEWAY[f], POD_B[f], second[f]] {
            for target in [POD_A[f], POD_B[f], GATEWAY[f]] {
                node.drops("from_uplink", node.uplink, &udp((source, 1), (target, 53), 9), 132);
            }
        }
        node.drops("from_uplink", node.uplink, &udp((CLIENT[f], 1), (POD_A[f], 53), 9), 133);
        // The node's own packet to a service that a router sends back: anybody's, as the address proves nothing.
        node.service(VIP[f], 80, Scope::External, 20, &[(1, POD_B[f], 8080)]);
        let back = node.run("from_uplink", node.uplink, &tcp((NODE[f], 4000), (VIP[f], 80), "S"));
        assert_eq!((back.action, node.traced().flow.source.identity), (REDIRECT, 2));
        node.drops("from_uplink", node.uplink, &tcp((POD_A[f], 4000), (VIP[f], 80), "S"), 132);
    }
}

const LINK_LOCAL: &str = "fe80::1";

#[test]
fn discovery_is_believed_only_where_it_may_come_from() {
    let mut node = Node::new();
    let (pod, other, gateway) = (POD_A[1], POD_B[1], GATEWAY[1]);
    for (from, to, kind, hops, reason) in [
        (other, CLIENT[1], (136, 0), 64, 132),
        (pod, CLIENT[1], (136, 0), 64, 176),
        (pod, REMOTE[1], (135, 0), 255, 176),
        (pod, other, (136, 0), 255, 176),
        (pod, LINK_LOCAL, (135, 1), 255, 176),
        (pod, LINK_LOCAL, (135, 0), 254, 176),
        (pod, "ff05::2", (133, 0), 255, 176),
        (other, gateway, (135, 0), 255, 132),
        (pod, "ff02::1", (134, 0), 255, 176),
        (LINK_LOCAL, "ff02::1", (134, 0), 255, 176),
        (pod, LINK_LOCAL, (137, 0), 255, 176),
    ] {
        node.drops("from_endpoint", node.a, &icmp6(from, to, kind, hops), reason);
    }
    for (from, to, kind) in [
        (pod, "ff02::1:ff00:1", 135),
        ("::", "ff02::1:ff00:2", 135),
        (pod, gateway, 135),
        (pod, LINK_LOCAL, 136),
        (pod, "ff02::1", 136),
        ("fe80::a", "ff02::2", 133),
    ] {
        let ran = node.run("from_endpoint", node.a, &icmp6(from, to, (kind, 0), 255));
        assert_eq!(ran.action, OK, "{from} {to} {kind}: {:#?}", node.events());
    }
    // What the stack forwards has lost a hop; what it says itself has not.
    node.drops("to_endpoint", node.a, &icmp6(other, pod, (136, 0), 254), 176);
    assert_eq!(node.run("to_endpoint", node.a, &icmp6(LINK_LOCAL, pod, (135, 0), 255)).action, OK);
    node.drops("from_uplink", node.uplink, &icmp6(CLIENT[1], pod, (136, 0), 60), 176);
    for hops in [255, 64] {
        let to_node = icmp6(CLIENT[1], NODE[1], (135, 0), hops);
        assert_eq!(node.run("from_uplink", node.uplink, &to_node).action, OK, "the stack judges its own");
    }
}

#[test]
fn answers_end_with_the_allow_of_their_flow() {
    for f in FAMILIES {
        let mut node = Node::new();
        let udp_to = |identity, port| RuleEntry { protocol: Some(17), ..allow(identity, port) };
        policed(&node, Some(vec![udp_to(ID_A, 53), allow(ID_A, 80)]), None);
        node.datapath
            .set_policy(
                6,
                &PolicySet { egress: PolicySide::only(vec![udp_to(ID_B, 53)]), ..PolicySet::default() },
            )
            .unwrap();
        for (ifindex, row, policy_id) in
            [(node.a, pod(POD_A, ID_A, 1, MAC_A), 6), (node.b, pod(POD_B, ID_B, 2, MAC_B), 5)]
        {
            node.datapath.upsert_interface(ifindex, &Interface { policy_id, ..row }).unwrap();
        }
        let question = udp((POD_A[f], 4000), (POD_B[f], 53), 9);
        let answer = udp((POD_B[f], 53), (POD_A[f], 4000), 9);
        assert_eq!(node.run("from_endpoint", node.a, &question).action, REDIRECT);
        assert_eq!(node.run("from_endpoint", node.b, &answer).action, REDIRECT);
        policed(&node, Some(vec![udp_to(ID_A, 53)]), None);
        assert_eq!(node.run("from_endpoint", node.b, &answer).action, REDIRECT, "another allow went");
        policed(&node, Some(vec![allow(ID_A, 80)]), None);
        node.drops("from_endpoint", node.b, &answer, 133);
        policed(&node, Some(vec![udp_to(ID_A, 53)]), None);
        assert_eq!(node.run("from_endpoint", node.b, &answer).action, REDIRECT, "allowed again");
        // The asking pod's own egress.
        node.datapath
            .set_policy(6, &PolicySet { egress: PolicySide::only(vec![]), ..PolicySet::default() })
            .unwrap();
        node.drops("from_endpoint", node.b, &answer, 133);
        node.datapath
            .set_policy(
                6,
                &PolicySet { egress: PolicySide::only(vec![udp_to(ID_B, 53)]), ..PolicySet::default() },
            )
            .unwrap();
        assert_eq!(node.run("from_endpoint", node.b, &answer).action, REDIRECT);
        // A flow of the node itself is nobody's to judge.
        let asked = udp((GATEWAY[f], 4000), (POD_B[f], 99), 9);
        assert_eq!(node.run("to_endpoint", node.b, &asked).action, OK);
        policed(&node, Some(vec![]), None);
        assert_eq!(node.run("from_endpoint", node.b, &udp((POD_B[f], 99), (GATEWAY[f], 4000), 9)).action, OK);
    }
}

#[test]
fn each_family_has_a_world_of_its_own() {
    let mut node = Node::new();
    for (f, identity) in [(0, 9), (1, 10)] {
        let world = Some(vec![RuleEntry { identity: Some(identity), ..RuleEntry::default() }]);
        policed(&node, world.clone(), world);
        node.datapath
            .upsert_interface(node.a, &Interface { policy_id: 5, ..pod(POD_A, ID_A, 1, MAC_A) })
            .unwrap();
        let (own, other) = (f, 1 - f);
        let out = |f: usize| udp((POD_A[f], [4000, 4001][f]), (CLIENT[f], 53), 9);
        let back = |f: usize| udp((CLIENT[f], [5000, 5001][f]), (POD_A[f], 53), 9);
        assert_eq!(node.run("from_endpoint", node.a, &out(own)).action, REDIRECT);
        assert_eq!(node.run("from_uplink", node.uplink, &back(own)).action, REDIRECT);
        node.drops("from_endpoint", node.a, &out(other), 133);
        node.drops("from_uplink", node.uplink, &back(other), 133);
        node.drops("from_endpoint", node.a, &udp((POD_A[own], 1), (POD_B[own], 2), 9), 133);
    }
}

#[test]
fn a_full_map_holds_up_no_revocation() {
    let mut node = Node::new();
    // For everybody, since a part of the map is kept for such entries.
    let open = |port: u16| RuleEntry { identity: None, ..allow(0, port) };
    policed(&node, Some(vec![open(80)]), None);
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    let syn = |f: usize, port: u16| tcp((POD_A[f], 4000), (POD_B[f], port), "S");
    let others: Vec<_> = (0..1023).map(|n| open(1000 + n)).collect();
    node.datapath
        .set_policy(7, &PolicySet { ingress: PolicySide::only(others), ..PolicySet::default() })
        .unwrap();
    let set = |node: &Node, rules: &[RuleEntry]| {
        node.datapath
            .set_policy(5, &PolicySet { ingress: PolicySide::only(rules.to_vec()), ..PolicySet::default() })
    };
    let rules = |node: &Node| node.datapath.policies().unwrap()[&5].ingress.entries.clone();
    for f in FAMILIES {
        set(&node, &[open(80)]).unwrap();
        assert_eq!(node.run("from_endpoint", node.a, &syn(f, 80)).action, REDIRECT);
        let full = set(&node, &[open(81), open(82)]).unwrap_err().to_string();
        assert!(full.contains("raise datapath.maps.policy "), "{full}");
        node.drops("from_endpoint", node.a, &syn(f, 80), 133);
        assert_eq!(rules(&node), [open(81)], "what there is room for");
        // A deny comes in before all, and if it must, for an allow.
        let any = RuleEntry::default();
        let deny = RuleEntry { identity: Some(ID_A), action: RuleAction::Deny, cookie: 3, ..any };
        set(&node, &[any]).unwrap();
        assert_eq!(node.run("from_endpoint", node.a, &syn(f, 80)).action, REDIRECT);
        set(&node, &[any, deny]).unwrap_err();
        node.drops("from_endpoint", node.a, &syn(f, 80), 181);
        set(&node, &[deny]).unwrap();
    }
    node.datapath.delete_policy(7).unwrap();
    set(&node, &[allow(ID_A, 80), allow(ID_A, 81)]).unwrap();
    assert_eq!(rules(&node).len(), 2);
    // The same again is compared with what the map holds.
    node.reopen(Attach::Auto, small_sizes()).delete_policy(5).unwrap();
    set(&node, &[allow(ID_A, 80), allow(ID_A, 81)]).unwrap();
    assert_eq!(rules(&node).len(), 2);
}

/// A policy that denies a few and lets all others pass has no allow to give way.
#[test]
fn a_deny_that_finds_no_room_closes_its_direction() {
    let mut node = Node::new();
    let others: Vec<_> = (0..1024).map(|n| RuleEntry { identity: None, ..allow(0, 1000 + n) }).collect();
    node.datapath
        .set_policy(7, &PolicySet { ingress: PolicySide::only(others), ..PolicySet::default() })
        .unwrap();
    node.datapath
        .upsert_interface(node.b, &Interface { policy_id: 5, ..pod(POD_B, ID_B, 2, MAC_B) })
        .unwrap();
    let deny = RuleEntry { action: RuleAction::Deny, ..allow(ID_A, 80) };
    let set =
        PolicySet { ingress: PolicySide { enforced: false, entries: vec![deny] }, ..PolicySet::default() };
    for f in FAMILIES {
        let syn = |port| tcp((POD_A[f], 4000), (POD_B[f], port), "S");
        assert!(
            node.datapath.set_policy(5, &set).unwrap_err().to_string().contains("raise datapath.maps.policy")
        );
        node.drops("from_endpoint", node.a, &syn(80), 133);
        node.datapath.delete_policy(7).unwrap();
        node.datapath.set_policy(5, &set).unwrap();
        node.drops("from_endpoint", node.a, &syn(80), 181);
        assert_eq!(node.run("from_endpoint", node.a, &syn(81)).action, REDIRECT, "open but for that");
        node.datapath.delete_policy(5).unwrap();
        let others: Vec<_> = (0..1024).map(|n| RuleEntry { identity: None, ..allow(0, 1000 + n) }).collect();
        node.datapath
            .set_policy(7, &PolicySet { ingress: PolicySide::only(others), ..PolicySet::default() })
            .unwrap();
    }
}

#[test]
fn every_drop_has_a_reason() {
    let mut node = Node::new();
    let multicast = ["224.0.0.251", "ff02::fb"];
    for f in FAMILIES {
        node.drops("from_endpoint", node.a, &udp((POD_A[f], 5353), (multicast[f], 5353), 9), 150);
        node.drops("to_endpoint", node.a, &udp((GATEWAY[f], 5353), (multicast[f], 5353), 9), 150);
        node.drops("to_overlay", node.overlay, &udp((GATEWAY[f], 5353), (multicast[f], 5353), 9), 150);
    }
    node.drops("from_endpoint", node.a, &icmp6(POD_A[1], "ff02::16", (143, 0), 1), 176);
    node.drops("to_overlay", node.overlay, &icmp6("fe80::1", "ff02::2", (133, 0), 255), 176);
    let mut arp = udp((POD_A[0], 1), (POD_B[0], 2), 9);
    arp[12..14].copy_from_slice(&[8, 6]);
    node.drops("from_overlay", node.overlay, &arp, 139);
    node.drops("to_overlay", node.overlay, &arp, 139);
    // Too big, and nobody in whose name to answer.
    let config = NodeConfig { internal4: None, internal6: None, ..node.config() };
    node.datapath.set_config(&config).unwrap();
    for f in FAMILIES {
        node.events();
        let large = udp((POD_A[f], 4000), (REMOTE[f], 9), 1480);
        assert_eq!(node.run("from_endpoint", node.a, &large).action, SHOT);
        let drop = node.dropped().flow;
        assert_eq!(drop.drop_reason, 136);
        assert!(site(drop.site).unwrap().why.contains("cannot be told"), "{drop:?}");
    }
}

#[test]
fn a_full_map_has_room_for_the_host_and_the_api_server() {
    let node = Node::with_sizes(MapSizes { rules: 100, ..small_sizes() });
    let rule = |identity, action| RuleEntry { action, ..allow(identity, 80) };
    let peers = (1000..1200).map(|identity| rule(identity, RuleAction::Allow)).collect();
    let full =
        node.datapath.set_policy(1, &PolicySet { ingress: PolicySide::only(peers), ..PolicySet::default() });
    assert!(full.unwrap_err().to_string().contains("raise datapath.maps.policy"));
    let used = || node.datapath.usage().into_iter().find(|usage| usage.map == "tb_rules").unwrap().entries;
    assert_eq!(used(), 90, "a tenth is kept");
    let vital = [1, 6, 7].map(|identity| rule(identity, RuleAction::Allow));
    let denied = rule(1200, RuleAction::Deny);
    let set = PolicySet {
        ingress: PolicySide::only(vital.into_iter().chain([denied]).collect()),
        ..PolicySet::default()
    };
    node.datapath.set_policy(2, &set).unwrap();
    assert_eq!(used(), 94);
    let more =
        PolicySet { ingress: PolicySide::only(vec![rule(1300, RuleAction::Allow)]), ..PolicySet::default() };
    assert!(node.datapath.set_policy(3, &more).is_err());
}
