//! What a service makes of who asks, by BPF_PROG_TEST_RUN: source ranges, session affinity.
#![cfg(test)]
#![allow(clippy::cast_possible_truncation)]

mod support;
use std::collections::BTreeSet;
use support::*;
use tombolo_ebpf::*;

/// A client outside of all that the tests admit.
const STRANGER: [&str; 2] = ["198.51.100.9", "2001:db8:bad::9"];

fn frontend(f: usize, scope: Scope) -> Frontend {
    Frontend { ip: ip(VIP[f]), port: 80, protocol: 6, scope }
}

fn only(ranges: &[&str]) -> ServiceEntry {
    let ranges: BTreeSet<ipnet::IpNet> = ranges.iter().map(|text| text.parse().unwrap()).collect();
    ServiceEntry { rev_nat: 20, maglev: vec![1], source_ranges: Some(ranges), ..ServiceEntry::default() }
}

fn serving(f: usize) -> Node {
    let node = Node::new();
    let backend = Backend { ip: ip(POD_A[f]), port: 8080, protocol: 6 };
    node.datapath.upsert_backend(1, &backend).unwrap();
    node
}

fn ask(node: &Node, f: usize, client: &str) -> u32 {
    node.run("from_uplink", node.uplink, &tcp((client, 5000), (VIP[f], 80), "S")).action
}

#[test]
fn clients_outside_the_ranges_are_dropped() {
    for f in FAMILIES {
        let mut node = serving(f);
        let external = frontend(f, Scope::External);
        let inside = [["172.20.200.0/24", "192.0.2.0/24"], ["fd00:20:200::/64", "2001:db8:1::/48"]][f];
        node.datapath.set_service(&external, &only(&inside)).unwrap();
        assert_eq!(ask(&node, f, CLIENT[f]), REDIRECT);
        let packet = tcp((STRANGER[f], 5000), (VIP[f], 80), "S");
        let site = node.drops("from_uplink", node.uplink, &packet, 177);
        assert!(site.remedy.contains("loadBalancerSourceRanges"));
        // Another frontend's ranges say nothing here.
        let other = Frontend { port: 81, ..external };
        let entry = ServiceEntry { rev_nat: 21, ..only(&[["198.51.100.0/24", "2001:db8:bad::/48"][f]]) };
        node.datapath.set_service(&other, &entry).unwrap();
        node.drops("from_uplink", node.uplink, &packet, 177);
        // A single address, and everybody.
        for all in [format!("{}/{}", STRANGER[f], [32, 128][f]), ["0.0.0.0/0", "::/0"][f].to_owned()] {
            node.datapath.set_service(&external, &only(&[&all])).unwrap();
            assert_eq!(ask(&node, f, STRANGER[f]), REDIRECT, "{all}");
        }
    }
}

#[test]
fn a_flow_ends_with_the_range_that_let_it_in() {
    for f in FAMILIES {
        let mut node = serving(f);
        let external = frontend(f, Scope::External);
        let (wide, narrow) = (["172.20.0.0/16", "fd00::/16"][f], ["192.0.2.0/24", "2001:db8:1::/48"][f]);
        let (before, after) = (only(&[wide]), only(&[narrow]));
        node.datapath.set_service(&external, &before).unwrap();
        assert_eq!(ask(&node, f, CLIENT[f]), REDIRECT);
        node.datapath.change_service(&external, &before, &after).unwrap();
        let more = tcp((CLIENT[f], 5000), (VIP[f], 80), "A");
        node.drops("from_uplink", node.uplink, &more, 177);
        // Nobody is admitted by an empty list, everybody without one.
        node.datapath.set_service(&external, &only(&[])).unwrap();
        node.drops("from_uplink", node.uplink, &more, 177);
        node.datapath.set_service(&external, &ServiceEntry { source_ranges: None, ..only(&[]) }).unwrap();
        assert_eq!(node.run("from_uplink", node.uplink, &more).action, REDIRECT);
    }
}

#[test]
fn pods_of_the_node_are_not_narrowed() {
    for f in FAMILIES {
        let mut node = serving(f);
        node.datapath.set_service(&frontend(f, Scope::External), &only(&[])).unwrap();
        let inside = ServiceEntry { source_ranges: None, ..only(&[]) };
        node.datapath.set_service(&frontend(f, Scope::Internal), &inside).unwrap();
        let ran = node.run("from_endpoint", node.b, &tcp((POD_B[f], 4000), (VIP[f], 80), "S"));
        assert_eq!((ran.action, ran.macs().0), (REDIRECT, MAC_A));
        node.drops("from_uplink", node.uplink, &tcp((CLIENT[f], 5000), (VIP[f], 80), "S"), 177);
    }
}

#[test]
fn ranges_are_read_back_and_go_with_their_service() {
    let node = Node::new();
    let used = |datapath: &Datapath| {
        datapath.usage().unwrap().into_iter().find(|usage| usage.map == "tb_ranges").unwrap().entries
    };
    let entry = only(&["10.0.0.0/8", "192.0.2.1/32"]);
    let external = frontend(0, Scope::External);
    node.datapath.set_service(&external, &ServiceEntry { maglev: vec![], ..entry.clone() }).unwrap();
    // The same number in the other scope takes none away.
    let inside = ServiceEntry { rev_nat: 20, ..ServiceEntry::default() };
    node.datapath.set_service(&frontend(0, Scope::Internal), &inside).unwrap();
    assert_eq!(used(&node.datapath), 2);
    let second = node.reopen(Attach::Auto, small_sizes());
    assert_eq!(second.services().unwrap()[&external].source_ranges, entry.source_ranges);
    second.delete_service(&frontend(0, Scope::Internal)).unwrap();
    assert_eq!(used(&second), 2);
    // Another number, and none.
    let renumbered = ServiceEntry { rev_nat: 30, maglev: vec![], ..entry };
    second.set_service(&external, &renumbered).unwrap();
    assert_eq!((used(&second), second.services().unwrap()[&external].clone()), (2, renumbered));
    second.delete_service(&external).unwrap();
    assert_eq!(used(&second), 0);
}

#[test]
fn errors_about_a_flow_are_the_clients_affair() {
    for f in FAMILIES {
        let node = serving(f);
        let inside = ["172.20.200.0/24", "fd00:20:200::/64"][f];
        node.datapath.set_service(&frontend(f, Scope::External), &only(&[inside])).unwrap();
        assert_eq!(ask(&node, f, CLIENT[f]), REDIRECT);
        // A router outside the ranges says that the client's answer was too big, or its port is gone.
        let quoted = tcp((VIP[f], 80), (CLIENT[f], 5000), "SA");
        let ran = node.run("from_uplink", node.uplink, &unreachable(STRANGER[f], VIP[f], &quoted));
        assert_eq!(ran.action, REDIRECT);
    }
}

/// A node whose service has `ids` as backends, in a scope, and remembers clients for `secs`.
fn sticky(node: &Node, f: usize, scope: Scope, ids: &[u32], secs: u32) {
    for id in 1..=8 {
        let row = Backend { ip: ip(REMOTE[f]), port: 1000 + id as u16, protocol: 6 };
        node.datapath.upsert_backend(id, &row).unwrap();
    }
    let maglev = (0..64).map(|slot| ids[slot % ids.len()]).collect();
    let entry = ServiceEntry { rev_nat: 20, maglev, affinity_secs: secs, ..ServiceEntry::default() };
    node.datapath.set_service(&frontend(f, scope), &entry).unwrap();
}

/// Which backends flows of a client meet: outside ones at the uplink, the pod at its hook.
fn met(node: &Node, f: usize, client: &str, ports: std::ops::Range<u16>) -> BTreeSet<u16> {
    let (program, ifindex) =
        if client == POD_A[f] { ("from_endpoint", node.a) } else { ("from_uplink", node.uplink) };
    let ask = |port| {
        let ran = node.run(program, ifindex, &tcp((client, port), (VIP[f], 80), "S"));
        assert_eq!(ran.action, REDIRECT);
        ran.seen().destination.1
    };
    ports.map(ask).collect()
}

/// Puts the time at which clients opened their last flow into the past.
fn later(node: &Node, secs: u64) {
    let path = node.bpffs.path().join("tombolo");
    let schema = std::fs::read_dir(path).unwrap().next().unwrap().unwrap().path();
    let map = aya::maps::MapData::from_pin(schema.join("tb_affinity")).unwrap();
    let map = aya::maps::Map::LruHashMap(map);
    let mut map = aya::maps::HashMap::<_, [u8; 24], [u8; 32]>::try_from(map).unwrap();
    // struct tb_affinity: last_ns at 0.
    for (key, mut value) in map.iter().map(Result::unwrap).collect::<Vec<_>>() {
        let last = u64::from_ne_bytes(value[..8].try_into().unwrap());
        value[..8].copy_from_slice(&last.saturating_sub(secs * 1_000_000_000).to_ne_bytes());
        map.insert(key, value, 0).unwrap();
    }
}

/// Scopes with a client of each.
fn askers(f: usize) -> [(Scope, &'static str); 2] {
    [(Scope::External, CLIENT[f]), (Scope::Internal, POD_A[f])]
}

#[test]
fn a_client_meets_the_same_backend_as_long_as_it_comes_back_in_time() {
    for f in FAMILIES {
        for (scope, client) in askers(f) {
            let node = Node::new();
            sticky(&node, f, scope, &[1, 2, 3, 4], 0);
            assert_eq!(met(&node, f, client, 1000..1064).len(), 4, "without affinity all are met");
            sticky(&node, f, scope, &[1, 2, 3, 4], 100);
            let first = met(&node, f, client, 2000..2016);
            assert_eq!(first.len(), 1, "{first:?}");
            // Another table would send it elsewhere.
            let backend = u32::from(*first.first().unwrap()) - 1000;
            let others: Vec<u32> = (1..=8).filter(|id| *id != backend).collect();
            let one_slot: Vec<u32> = others.iter().copied().chain([backend]).collect();
            sticky(&node, f, scope, &one_slot, 100);
            assert_eq!(met(&node, f, client, 3000..3016), first);
            later(&node, 99);
            assert_eq!(met(&node, f, client, 4000..4001), first, "in time, and again from here on");
            later(&node, 99);
            assert_eq!(met(&node, f, client, 5000..5001), first);
            later(&node, 101);
            let anew = met(&node, f, client, 6000..6016);
            assert_eq!(anew.len(), 1);
            let hash = flow_hash((ip(client), 0), (ip(VIP[f]), 80), 6) as usize % 64;
            let expected = 1000 + one_slot[hash % one_slot.len()] as u16;
            assert_eq!(anew.first(), Some(&expected), "chosen anew, by the client alone");
        }
    }
}

#[test]
fn a_backend_that_takes_nothing_new_is_left() {
    for f in FAMILIES {
        for (scope, client) in askers(f) {
            let node = Node::new();
            sticky(&node, f, scope, &[1, 2], 100);
            let first = *met(&node, f, client, 2000..2001).first().unwrap();
            let other = if first == 1001 { 2 } else { 1 };
            // Its row stays for the flows that it has.
            sticky(&node, f, scope, &[other], 100);
            let now = 1000 + other as u16;
            assert_eq!(met(&node, f, client, 3000..3016), [now].into());
            assert_eq!(met(&node, f, client, 2000..2001), [first].into(), "its flow goes on");
            // The other scope of the same number has it still.
            let opposite = if scope == Scope::External { Scope::Internal } else { Scope::External };
            sticky(&node, f, opposite, &[1, 2], 100);
            assert_eq!(met(&node, f, client, 4000..4016), [now].into());
        }
    }
}

#[test]
fn clients_of_one_service_do_not_share_their_choice() {
    let node = Node::new();
    sticky(&node, 0, Scope::External, &[1, 2, 3, 4], 100);
    let clients = (1..=64).map(|n| format!("198.51.100.{n}"));
    let met: BTreeSet<u16> = clients.flat_map(|client| met(&node, 0, &client, 2000..2001)).collect();
    assert_eq!(met.len(), 4);
}

#[test]
fn members_go_with_their_service() {
    let node = Node::new();
    let used = |datapath: &Datapath| {
        datapath.usage().unwrap().into_iter().find(|usage| usage.map == "tb_members").unwrap().entries
    };
    sticky(&node, 0, Scope::External, &[1, 2], 100);
    sticky(&node, 0, Scope::Internal, &[1, 2, 3], 100);
    assert_eq!(used(&node.datapath), 5);
    let second = node.reopen(Attach::Auto, small_sizes());
    let read = &second.services().unwrap()[&frontend(0, Scope::Internal)];
    assert_eq!(read.affinity_secs, 100);
    second
        .set_service(&frontend(0, Scope::Internal), &ServiceEntry { affinity_secs: 0, ..read.clone() })
        .unwrap();
    assert_eq!(used(&second), 2);
    second.delete_service(&frontend(0, Scope::External)).unwrap();
    assert_eq!(used(&second), 0);
}
