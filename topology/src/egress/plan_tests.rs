use super::plan::{Link, Machine, Planner, Pod};
use super::*;
use crate::rows::{NodePath, NodeRow, PathKind};
use std::collections::BTreeMap;
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::labels::Labels;

fn cluster() -> ClusterName {
    ClusterName::new("east").unwrap()
}

fn node(name: &str, ready: bool) -> NodeRow {
    NodeRow {
        source: Source::Manifests,
        cluster: cluster(),
        cluster_id: ClusterId::new(1, MaxClusters::C255).unwrap(),
        name: name.into(),
        addresses: vec![],
        pod_cidrs: vec![],
        wireguard_key: None,
        encryption_key: 0,
        labels: BTreeMap::from([
            (Arc::from("name"), Arc::from(name)),
            (Arc::from("egress"), Arc::from("yes")),
        ])
        .into(),
        ready: Some(ready),
        health: Default::default(),
    }
}

fn path(index: u32, name: &str) -> NodePath {
    NodePath {
        source: Source::Manifests,
        index: NodeIndex(index),
        cluster: cluster(),
        node: name.into(),
        path: PathKind::Overlay,
        underlay: "172.20.11.2".parse().ok(),
        encrypt: false,
        mtu: 1450,
    }
}

fn selector(pairs: &[(&str, &str)]) -> LabelSelector {
    let labels = pairs.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect();
    LabelSelector { labels, ..LabelSelector::default() }
}

fn gateway(pairs: &[(&str, &str)]) -> GatewayIntent {
    GatewayIntent { nodes: selector(pairs), interface: None, address: None }
}

fn policy(name: &str, app: &str, gateways: Vec<GatewayIntent>) -> EgressPolicyRow {
    let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    EgressPolicyRow {
        source: Source::Manifests,
        name: name.into(),
        selectors: vec![EgressSelector { pods: selector(&[("k8s:app", app)]), nodes: None }],
        destinations: prefixes(&["0.0.0.0/0", "::/0"]),
        excluded: prefixes(&["10.0.0.0/8"]),
        gateways,
    }
}

fn machine() -> Machine {
    let link = Link {
        index: 7,
        addresses: vec![
            "fe80::1".parse().unwrap(),
            "192.0.2.1".parse().unwrap(),
            "2001:db8::1".parse().unwrap(),
        ],
    };
    let name: Arc<str> = "eth1".into();
    Machine { links: BTreeMap::from([(name.clone(), link)]), default_link: [Some(name.clone()), Some(name)] }
}

struct World {
    nodes: Vec<NodeRow>,
    paths: Vec<NodePath>,
    policies: Vec<EgressPolicyRow>,
}

impl World {
    fn new(policies: Vec<EgressPolicyRow>) -> Self {
        let names = ["n1", "n2", "n3"];
        let paths = (0..).zip(names).map(|(index, name)| path(index, name)).collect();
        Self { nodes: names.iter().map(|name| node(name, true)).collect(), paths, policies }
    }

    /// As the node of this name sees it.
    fn at(&self, name: &str) -> (Planner, Vec<EgressGatewayRow>) {
        let mut planner = Planner::new(cluster(), name.into());
        let rows = planner.resolve(self.policies.iter(), &self.nodes, &self.paths, &machine());
        (planner, rows)
    }
}

fn row(planner: &Planner, address: &str, app: &str, local: bool) -> Option<EgressRow> {
    let labels = Labels::k8s([("app", app)]);
    let (address, identity) = (address.parse().unwrap(), IdentityId(66_000));
    planner.row(&Pod { address, identity, labels: &labels, node: None, local })
}

fn way(planner: &Planner, address: &str, local: bool) -> Option<EgressWay> {
    let all = if address.contains(':') { "::/0" } else { "0.0.0.0/0" };
    row(planner, address, "web", local)?.ways.get(&all.parse().unwrap()).copied()
}

#[test]
fn pods_are_led_to_the_gateway_which_waits_for_them() {
    let world = World::new(vec![policy("p", "web", vec![gateway(&[("name", "n2")])])]);
    let (source, _) = world.at("n1");
    assert_eq!(way(&source, "10.1.1.5", true), Some(EgressWay::Node(NodeIndex(1))));
    assert_eq!(way(&source, "fd00::5", true), Some(EgressWay::Node(NodeIndex(1))));
    let excluded = row(&source, "10.1.1.5", "web", true).unwrap().ways;
    assert_eq!(excluded.get(&"10.0.0.0/8".parse().unwrap()), Some(&EgressWay::Excluded));
    assert_eq!(
        row(&source, "10.1.1.6", "db", true).unwrap().ways,
        BTreeMap::new(),
        "a row all the same: nothing is said"
    );
    assert_eq!(row(&source, "10.1.2.5", "web", false), None, "it is no gateway");
    let (here, rows) = world.at("n2");
    let expected = |address: &str| Some(EgressWay::Here { address: address.parse().ok(), ifindex: 7 });
    for local in [true, false] {
        assert_eq!(way(&here, "10.1.1.5", local), expected("192.0.2.1"));
        assert_eq!(way(&here, "fd00::5", local), expected("2001:db8::1"), "not the link-local one");
    }
    assert_eq!((rows[0].node.as_deref(), rows[0].interface.as_deref()), (Some("n2"), Some("eth1")));
}

#[test]
fn without_a_ready_gateway_nothing_leaves() {
    let mut world = World::new(vec![policy("p", "web", vec![gateway(&[("egress", "yes")])])]);
    assert_eq!(
        way(&world.at("n3").0, "10.1.1.5", true),
        Some(EgressWay::Node(NodeIndex(0))),
        "the first by name"
    );
    world.nodes[0].ready = Some(false);
    assert_eq!(
        way(&world.at("n3").0, "10.1.1.5", true),
        Some(EgressWay::Node(NodeIndex(1))),
        "the next takes over"
    );
    world.paths.remove(1);
    assert_eq!(way(&world.at("n3").0, "10.1.1.5", true), Some(EgressWay::Nowhere), "nobody knows the way");
    world.nodes.iter_mut().for_each(|node| node.ready = Some(false));
    let (planner, rows) = world.at("n3");
    assert_eq!(way(&planner, "10.1.1.5", true), Some(EgressWay::Nowhere));
    assert!(rows[0].problem.contains("no ready node"), "{rows:?}");
}

#[test]
fn several_gateways_share_pods_and_one_that_fails_moves_only_its_own() {
    let gateways = ["n1", "n2", "n3"].map(|name| gateway(&[("name", name)])).to_vec();
    let mut world = World::new(vec![policy("p", "web", gateways)]);
    world.nodes.push(node("n4", true));
    let pods: Vec<String> = (0..250).map(|n| format!("10.1.1.{n}")).collect();
    let choose = |world: &World| -> Vec<EgressWay> {
        let (planner, _) = world.at("n4");
        pods.iter().map(|pod| way(&planner, pod, true).unwrap()).collect()
    };
    let all = choose(&world);
    for index in 0..3 {
        let share = all.iter().filter(|way| **way == EgressWay::Node(NodeIndex(index))).count();
        assert!((60..110).contains(&share), "node {index} has {share} of 250");
    }
    world.nodes[1].ready = Some(false);
    for (before, after) in all.iter().zip(choose(&world)) {
        let failed = EgressWay::Node(NodeIndex(1));
        assert!(if *before == failed { after != failed } else { after == *before });
    }
}

#[test]
fn an_egress_address_is_of_one_family_and_of_an_interface() {
    let named = |address: &str| GatewayIntent { address: address.parse().ok(), ..gateway(&[("name", "n1")]) };
    let world = World::new(vec![policy("p", "web", vec![named("192.0.2.1")])]);
    let (planner, _) = world.at("n1");
    let address = "192.0.2.1".parse().ok();
    assert_eq!(way(&planner, "10.1.1.5", true), Some(EgressWay::Here { address, ifindex: 7 }));
    assert_eq!(way(&planner, "fd00::5", true), Some(EgressWay::Here { address: None, ifindex: 0 }));
    let world = World::new(vec![policy("p", "web", vec![named("192.0.2.77")])]);
    let (planner, rows) = world.at("n1");
    assert_eq!(way(&planner, "10.1.1.5", true), Some(EgressWay::Here { address: None, ifindex: 0 }));
    assert!(rows[0].problem.contains("192.0.2.77"), "{rows:?}");
}

#[test]
fn of_two_policies_the_first_by_name_counts_and_nodes_can_be_selected() {
    let first = policy("a", "web", vec![gateway(&[("name", "n2")])]);
    let second = policy("b", "web", vec![gateway(&[("name", "n3")])]);
    let mut world = World::new(vec![first, second]);
    assert_eq!(way(&world.at("n1").0, "10.1.1.5", true), Some(EgressWay::Node(NodeIndex(1))));
    world.policies[0].selectors[0].nodes = Some(selector(&[("name", "n9")]));
    assert_eq!(
        way(&world.at("n1").0, "10.1.1.5", true),
        Some(EgressWay::Node(NodeIndex(2))),
        "of nodes named n9 alone"
    );
}
