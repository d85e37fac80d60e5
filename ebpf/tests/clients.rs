//! What a service makes of who asks, by BPF_PROG_TEST_RUN: source ranges.
#![cfg(test)]

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
