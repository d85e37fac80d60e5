//! Every combination of what changes the programs' way: each is loaded, verified, and meets a packet of each family in every
//! program; model and programs agree on it.

#![cfg(test)]

mod support;

use std::collections::BTreeSet;
use support::*;
use tombolo_base::flow::Capture;
use tombolo_ebpf::*;

/// The policy of the node, and of pod A; it allows port 80 alone.
const NARROW: u32 = 5;
/// The same, in audit mode.
const AUDITED: u32 = 6;

#[derive(Clone, Copy, Debug)]
struct Variant {
    ready: bool,
    encrypt: bool,
    wireguard: bool,
    overlay: bool,
    direct: bool,
    policy: u32,
    families: [bool; 2],
}

/// A family's number in the numbers of services and backends.
fn number(family: usize) -> u32 {
    u32::try_from(family).unwrap()
}

fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for bits in 0..32_u32 {
        let on = |bit: u32| bits >> bit & 1 != 0;
        for policy in [0, NARROW, AUDITED] {
            for families in [[true, true], [true, false], [false, true]] {
                let (ready, encrypt) = (!on(0), on(1));
                all.push(Variant {
                    ready,
                    encrypt,
                    wireguard: on(2),
                    overlay: !on(3),
                    direct: on(4),
                    policy,
                    families,
                });
            }
        }
    }
    all
}

fn apply(node: &Node, variant: &Variant) {
    let [v4, v6] = variant.families;
    let config = NodeConfig {
        ready: variant.ready,
        encrypt: variant.encrypt,
        wireguard_ifindex: if variant.wireguard { node.overlay } else { 0 },
        overlay_ifindex: if variant.overlay { node.overlay } else { 0 },
        host_policy_id: variant.policy,
        internal4: GATEWAY[0].parse().ok().filter(|_| v4),
        internal6: GATEWAY[1].parse().ok().filter(|_| v6),
        ..node.config()
    };
    node.datapath.set_config(&config).unwrap();
    node.remote(if variant.direct { NodePath::Direct } else { NodePath::Overlay }, variant.encrypt);
    let row = Interface { policy_id: variant.policy, ..pod(POD_A, ID_A, 1, MAC_A) };
    node.datapath.upsert_interface(node.a, &row).unwrap();
}

/// Packets of a family to allowed and other ports, and to a service, at each hook.
fn packets(node: &Node, f: usize) -> Vec<Capture> {
    let syn = |from: &str, to: &str, port| tcp((from, 4000), (to, port), "S");
    let tunnelled = Capture {
        tunnel: Some((ip(REMOTE_NODE[f]), ID_REMOTE)),
        ..capture_of("from_overlay", node.overlay, &syn(REMOTE[f], POD_A[f], 80))
    };
    let of = |program, ifindex, packet: Vec<u8>| capture_of(program, ifindex, &packet);
    vec![
        of("from_endpoint", node.a, syn(POD_A[f], REMOTE[f], 80)),
        of("from_endpoint", node.a, syn(POD_A[f], CLUSTER_IP[f], 80)),
        of("from_endpoint", node.b, syn(POD_B[f], POD_A[f], 81)),
        of("to_endpoint", node.a, syn(GATEWAY[f], POD_A[f], 81)),
        of("from_uplink", node.uplink, syn(CLIENT[f], VIP[f], 80)),
        of("from_uplink", node.uplink, syn(CLIENT[f], NODE[f], 22)),
        of("to_uplink", node.uplink, syn(NODE[f], REMOTE_NODE[f], 22)),
        of("to_uplink", node.uplink, syn(POD_B[f], REMOTE[f], 80)),
        of("to_overlay", node.overlay, syn(GATEWAY[f], REMOTE[f], 80)),
        tunnelled,
    ]
}

#[test]
fn each_variant_is_loaded_and_does_what_the_model_says() {
    let node = Node::new();
    assert!(
        node.datapath.verified_instructions().unwrap().iter().all(|(_, count)| *count > 0),
        "all are loaded"
    );
    let allow = RuleEntry { protocol: Some(6), port: Some(80.into()), ..RuleEntry::default() };
    for (number, audit) in [(NARROW, false), (AUDITED, true)] {
        let side = || PolicySide::only(vec![allow]);
        node.datapath.set_policy(number, &PolicySet { ingress: side(), egress: side(), audit }).unwrap();
    }
    for f in FAMILIES {
        let n = number(f) * 10;
        node.service(CLUSTER_IP[f], 80, Scope::Internal, 1 + n, &[(1 + n, REMOTE[f], 8080)]);
        node.service(VIP[f], 80, Scope::External, 2 + n, &[(2 + n, REMOTE[f], 8080)]);
    }
    let mut replayer = node.datapath.replayer().unwrap();
    let mut met = BTreeSet::new();
    for variant in variants() {
        apply(&node, &variant);
        for f in FAMILIES {
            for capture in packets(&node, f) {
                let explained = node.datapath.explain(&mut replayer, &capture).unwrap();
                assert_eq!(explained.difference, None, "{variant:?}: {explained:#?}");
                met.insert((explained.program, explained.programs.map_err(|(reason, _)| reason)));
            }
        }
    }
    let dropped: BTreeSet<u8> = met.iter().filter_map(|(_, outcome)| outcome.err()).collect();
    for reason in [133, 167, 195, 202, 206] {
        assert!(dropped.contains(&reason), "no variant drops for {reason}: {met:?}");
    }
    assert!(met.len() > 15, "{met:?}");
}
