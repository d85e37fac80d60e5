//! Plans over two clusters; the incremental pass equals the full one.

use super::*;
use crate::plan::PathMtus;
use crate::rows::{AddressKind, LearnedNextHop, NodeAddress, RouteOrigin, WireguardKey};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::{ClusterId, IdentityId, MaxClusters};
use tombolo_base::residence::Residence;
use tombolo_base::table::Table;

pub(super) fn config(path: PathKind, encrypt: bool) -> PlanConfig {
    PlanConfig {
        cluster: ClusterName::new("c1").unwrap(),
        node: "n0".into(),
        path,
        encrypt,
        wireguard_port: 51871,
        overlay_device: "tombolo_vxlan".into(),
        mtu: PathMtus { ipv4: Some(1450), ipv6: Some(1430) },
        connected: vec!["172.20.11.0/24".parse().unwrap()],
    }
}

pub(super) fn node(cluster: u8, n: u8, key: bool) -> NodeRow {
    let name = ClusterName::new(&format!("c{cluster}")).unwrap();
    let source = if cluster == 1 { Source::Manifests } else { Source::Cluster(name) };
    let address = |kind, ip: String| NodeAddress { kind, ip: ip.parse().unwrap() };
    NodeRow {
        source,
        cluster: name,
        cluster_id: ClusterId::new(u32::from(cluster), MaxClusters::C255).unwrap(),
        name: format!("n{n}").into(),
        addresses: vec![
            address(AddressKind::Internal, format!("172.20.{cluster}.{n}")),
            address(AddressKind::Internal, format!("fd00:{cluster}::{n}")),
            address(AddressKind::CiliumInternal, format!("10.{cluster}.{n}.1")),
            address(AddressKind::CiliumInternal, format!("fd00:10:{cluster}:{n}::1")),
        ],
        pod_cidrs: vec![
            format!("10.{cluster}.{n}.0/24").parse().unwrap(),
            format!("fd00:10:{cluster}:{n}::/64").parse().unwrap(),
        ],
        wireguard_key: key.then_some(WireguardKey([cluster * 16 + n; 32])),
        encryption_key: 0,
        labels: BTreeMap::new().into(),
        ready: None,
        health: Default::default(),
    }
}

pub(in crate::plan) fn pod(source: Source, ip: &str, host: &str, id: u32) -> PrefixRow {
    PrefixRow {
        source,
        prefix: ip.parse().unwrap(),
        identity: IdentityId(id),
        residence: Residence::of(Some(host.parse().unwrap()), 0, ""),
        pod: None,
    }
}

pub(super) struct World {
    pub(super) nodes: (Table<NodeRow>, Writer<NodeRow>),
    pub(super) prefixes: (Table<PrefixRow>, Writer<PrefixRow>),
    pub(super) learned: (Table<LearnedRoute>, Writer<LearnedRoute>),
    pub(super) out: Outputs,
}

impl World {
    pub(super) fn new() -> Self {
        let out = Outputs {
            paths: Table::new().1,
            entries: Table::new().1,
            routes: Table::new().1,
            peers: Table::new().1,
            conflicts: Table::new().1,
        };
        Self { nodes: Table::new(), prefixes: Table::new(), learned: Table::new(), out }
    }

    fn full(&self, config: PlanConfig) -> Outputs {
        let fresh = Self::new();
        let mut planner = Planner::new(config, NodeIndexes::default());
        planner.step(
            self.nodes.0.changes().drain(),
            self.prefixes.0.changes().drain(),
            self.learned.0.changes().drain(),
            &fresh.out,
        );
        fresh.out
    }

    pub(super) fn entry(&self, out: &Outputs, ip: &str) -> Option<PrefixEntry> {
        out.entries.table().snapshot().get(&ip.parse().unwrap()).cloned()
    }
}

#[test]
fn remote_pods_and_node_addresses() {
    let world = World::new();
    let mut further = node(2, 1, true);
    further.addresses.push(NodeAddress { kind: AddressKind::External, ip: "203.0.113.7".parse().unwrap() });
    world.nodes.1.commit(|txn| [node(1, 0, true), node(1, 1, true), further].map(|row| txn.upsert(row)));
    let west = Source::Cluster(ClusterName::new("c2").unwrap());
    world.prefixes.1.upsert(pod(west, "10.2.1.7", "172.20.2.1", 131_400));
    let out = world.full(config(PathKind::Overlay, true));
    let entry = world.entry(&out, "10.2.1.7").unwrap();
    assert_eq!((entry.identity.0, entry.remote_cluster, entry.node_address), (131_400, true, false));
    let path = out.paths.table().snapshot().get(&entry.node).cloned().unwrap();
    assert_eq!((path.underlay, path.encrypt, path.mtu), (Some("172.20.2.1".parse().unwrap()), true, 1450));
    assert_eq!(world.entry(&out, "172.20.1.0").unwrap().identity, IdentityId::HOST);
    assert!(world.entry(&out, "fd00:2::1").unwrap().node_address);
    assert!(
        world.entry(&out, "203.0.113.7").unwrap().node_address,
        "all but the pods' gateway are the machine's"
    );
    assert!(!world.entry(&out, "fd00:10:2:1::1").unwrap().node_address);
    assert_eq!(world.entry(&out, "10.2.1.0/24").unwrap().identity, IdentityId::UNMANAGED);
    assert!(world.entry(&out, "10.1.0.0/24").is_none(), "this node's own prefix is no remote entry");
    let peers = out.peers.table().snapshot();
    assert_eq!(peers.len(), 2);
    assert!(peers.iter().all(|peer| peer.endpoint.port() == 51871));
    let allowed: BTreeSet<usize> = peers.iter().map(|peer| peer.allowed_ips.len()).collect();
    assert_eq!(allowed, BTreeSet::from([4, 5]));
}

#[test]
fn overlay_wins_over_bgp_and_direct_takes_bgp() {
    let world = World::new();
    world.nodes.1.commit(|txn| [node(1, 0, false), node(2, 1, false)].map(|row| txn.upsert(row)));
    let hop = LearnedNextHop::new("172.20.11.1".parse().unwrap(), None);
    for prefix in ["10.2.1.0/24", "172.20.11.0/24", "172.20.21.0/24", "10.1.0.0/24"] {
        world.learned.1.upsert(LearnedRoute {
            source: Source::Peer("tor".into()),
            prefix: prefix.parse().unwrap(),
            next_hops: [hop.clone()].into(),
            stale: false,
        });
    }
    let origin = |out: &Outputs, prefix: &str| {
        out.routes
            .table()
            .snapshot()
            .get(&prefix.parse().unwrap())
            .map(|route| (route.origin, route.source_address))
    };
    let inner = Some("10.1.0.1".parse().unwrap());
    let overlay = world.full(config(PathKind::Overlay, false));
    assert_eq!(origin(&overlay, "10.2.1.0/24"), Some((RouteOrigin::Overlay, inner)));
    let direct = world.full(config(PathKind::Direct, false));
    assert_eq!(origin(&direct, "10.2.1.0/24"), Some((RouteOrigin::Bgp, inner)));
    assert_eq!(origin(&direct, "172.20.21.0/24"), Some((RouteOrigin::Bgp, None)));
    assert_eq!(origin(&direct, "172.20.11.0/24"), None, "connected");
    assert_eq!(
        origin(&direct, "10.1.0.0/24"),
        Some((RouteOrigin::Own, None)),
        "our own pods: whatever BGP says"
    );
    assert_eq!(origin(&overlay, "10.1.0.0/24"), Some((RouteOrigin::Own, None)));
}

#[test]
fn node_numbers_survive_a_restart_and_a_claim_without_node_waits() {
    let world = World::new();
    let west = Source::Cluster(ClusterName::new("c2").unwrap());
    world.nodes.1.upsert(node(1, 0, false));
    world.prefixes.1.upsert(pod(west, "10.2.1.7", "172.20.2.1", 131_400));
    let mut indexes = NodeIndexes::default();
    indexes.restore([("172.20.2.1".parse().unwrap(), NodeIndex(9))]);
    let mut planner = Planner::new(config(PathKind::Overlay, false), indexes);
    let (mut nodes, mut prefixes) = (world.nodes.0.changes(), world.prefixes.0.changes());
    planner.step(nodes.drain(), prefixes.drain(), None, &world.out);
    assert!(world.entry(&world.out, "10.2.1.7").is_none());
    world.nodes.1.upsert(node(2, 1, false));
    planner.step(nodes.drain(), None, None, &world.out);
    assert_eq!(world.entry(&world.out, "10.2.1.7").unwrap().node, NodeIndex(9));
}

#[test]
fn two_clusters_with_one_address_do_not_flap() {
    let world = World::new();
    world
        .nodes
        .1
        .commit(|txn| [node(1, 0, false), node(2, 1, false), node(3, 1, false)].map(|row| txn.upsert(row)));
    for (cluster, id) in [(3, 200_000), (2, 131_400)] {
        let source = Source::Cluster(ClusterName::new(&format!("c{cluster}")).unwrap());
        world.prefixes.1.upsert(pod(source, "10.9.9.9", &format!("172.20.{cluster}.1"), id));
        let winner = world.entry(&world.full(config(PathKind::Direct, false)), "10.9.9.9").unwrap();
        assert_eq!(winner.identity.0, if cluster == 3 { 200_000 } else { 131_400 });
    }
}

fn learned(prefix: &str, via: &[&str]) -> LearnedRoute {
    let hop = |via: &&str| LearnedNextHop::new(via.parse().unwrap(), None);
    LearnedRoute {
        source: Source::Peer("tor".into()),
        prefix: prefix.parse().unwrap(),
        next_hops: via.iter().map(hop).collect(),
        stale: false,
    }
}

#[test]
fn an_ecmp_set_does_not_shrink_before_all_sessions_have_spoken() {
    let world = World::new();
    let (prefix, source) = ("10.2.1.0/24", Source::Peer("tor".into()));
    world.nodes.1.upsert(node(1, 0, false));
    world.learned.1.set_source(&source, SourceState::Pending);
    let mut planner = Planner::new(config(PathKind::Direct, false), NodeIndexes::default());
    let (a, b) = ("172.20.11.1", "172.20.11.2");
    planner.restore_hops([(prefix.parse().unwrap(), learned(prefix, &[a, b]).next_hops)]);
    let (mut nodes, mut changes) = (world.nodes.0.changes(), world.learned.0.changes());
    let hops = |out: &Outputs| {
        let routes = out.routes.table().snapshot();
        let route = routes.get(&prefix.parse().unwrap()).cloned();
        route.map(|r| r.next_hops.iter().map(|hop| hop.via.to_string()).collect::<Vec<_>>())
    };
    planner.step(nodes.drain(), None, changes.drain(), &world.out);
    assert_eq!(hops(&world.out), None, "what nobody has taught is the kernel's own, held by the prune");
    world.learned.1.upsert(learned(prefix, &[a]));
    planner.step(None, None, changes.drain(), &world.out);
    assert_eq!(hops(&world.out), Some(vec![a.into(), b.into()]));
    world.learned.1.remove(&learned(prefix, &[a]).key());
    planner.step(None, None, changes.drain(), &world.out);
    assert_eq!(hops(&world.out), Some(vec![b.into()]), "withdrawn by the one, the other has not spoken");
    world.learned.1.upsert(learned(prefix, &[a]));
    planner.step(None, None, changes.drain(), &world.out);
    assert_eq!(hops(&world.out), Some(vec![a.into(), b.into()]));
    world.learned.1.set_source(&source, SourceState::Initialized);
    planner.step(None, None, changes.drain(), &world.out);
    assert_eq!(hops(&world.out), Some(vec![a.into()]), "all have spoken");
}

#[test]
fn a_source_is_ready_when_all_its_tables_are_and_forgotten_when_it_is_gone() {
    let world = World::new();
    let west = Source::Cluster(ClusterName::new("c2").unwrap());
    let mut planner = Planner::new(config(PathKind::Overlay, false), NodeIndexes::default());
    let (mut nodes, mut prefixes) = (world.nodes.0.changes(), world.prefixes.0.changes());
    world.nodes.1.set_source(&west, SourceState::Initialized);
    world.prefixes.1.set_source(&west, SourceState::Pending);
    planner.step(nodes.drain(), prefixes.drain(), None, &world.out);
    let state = |source| world.out.entries.table().snapshot().source_state(source);
    assert_eq!(state(&west), Some(SourceState::Pending), "its nodes are known, its addresses are not");
    world.prefixes.1.set_source(&west, SourceState::Initialized);
    planner.step(None, prefixes.drain(), None, &world.out);
    assert_eq!(state(&west), Some(SourceState::Initialized));
    world.nodes.1.drain_source(&west);
    world.prefixes.1.drain_source(&west);
    planner.step(nodes.drain(), prefixes.drain(), None, &world.out);
    assert_eq!(state(&west), None, "a removed cluster holds nothing");
}

/// A reader on another thread never sees a source ready before the rows it brought are there.
#[test]
fn rows_come_before_their_source() {
    let world = World::new();
    world.nodes.1.upsert(node(1, 0, false));
    world.nodes.1.set_source(&Source::Manifests, SourceState::Initialized);
    world.prefixes.1.set_source(&Source::Local, SourceState::Pending);
    let table = world.out.entries.table().clone();
    let mut planner = Planner::new(config(PathKind::Overlay, false), NodeIndexes::default());
    let (mut nodes, mut prefixes) = (world.nodes.0.changes(), world.prefixes.0.changes());
    planner.step(nodes.drain(), prefixes.drain(), None, &world.out);
    let (ready, seen) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        ready.send(()).unwrap();
        loop {
            let snapshot = table.snapshot();
            if snapshot.source_state(&Source::Local) == Some(SourceState::Initialized) {
                return snapshot.by_source(&Source::Local).count();
            }
        }
    });
    seen.recv().unwrap();
    let rows = (0..250u32).map(|n| pod(Source::Local, &format!("10.1.0.{n}"), "172.20.1.0", 70_000 + n));
    world.prefixes.1.replace_source(&Source::Local, rows);
    planner.step(None, prefixes.drain(), None, &world.out);
    assert_eq!(reader.join().unwrap(), 250);
}

#[derive(Debug, Clone)]
enum Step {
    Node(u8, u8, bool),
    DropNode(u8, u8),
    Pod(u8, u8, u8),
    DropPod(u8, u8),
    Learn(u8, u8),
    Look,
}

proptest! {
    #[test]
    fn incremental_equals_full(
        steps in prop::collection::vec(prop_oneof![
            (1u8..4, 0u8..3, any::<bool>()).prop_map(|(c, n, k)| Step::Node(c, n, k)),
            (1u8..4, 0u8..3).prop_map(|(c, n)| Step::DropNode(c, n)),
            (1u8..4, 0u8..3, 2u8..5).prop_map(|(c, n, p)| Step::Pod(c, n, p)),
            (1u8..4, 2u8..5).prop_map(|(c, p)| Step::DropPod(c, p)),
            (1u8..4, 0u8..3).prop_map(|(c, n)| Step::Learn(c, n)),
            Just(Step::Look),
        ], 1..60),
        overlay in any::<bool>(),
    ) {
        let config = config(if overlay { PathKind::Overlay } else { PathKind::Direct }, true);
        let world = World::new();
        let mut planner = Planner::new(config.clone(), NodeIndexes::default());
        let (mut nodes, mut prefixes, mut learned) = (world.nodes.0.changes(), world.prefixes.0.changes(), world.learned.0.changes());
        for step in steps.into_iter().chain([Step::Look]) {
            match step {
                Step::Node(c, n, key) => { world.nodes.1.upsert(node(c, n, key)); }
                Step::DropNode(c, n) => { world.nodes.1.remove(&node(c, n, false).key()); }
                Step::Pod(c, n, p) => { world.prefixes.1.upsert(pod(node(c, n, false).source, &format!("10.{c}.0.{p}"), &format!("172.20.{c}.{n}"), 300)); }
                Step::DropPod(c, p) => { world.prefixes.1.remove(&(format!("10.{c}.0.{p}").parse().unwrap(), node(c, 0, false).source)); }
                Step::Learn(c, n) => { world.learned.1.upsert(LearnedRoute { source: Source::Peer("tor".into()), prefix: format!("10.{c}.{n}.0/24").parse().unwrap(), next_hops: [LearnedNextHop::new("172.20.11.1".parse().unwrap(), None)].into(), stale: false }); }
                Step::Look => planner.step(nodes.drain(), prefixes.drain(), learned.drain(), &world.out),
            }
        }
        let full = world.full(config);
        // Node numbers are handed out in the order of arrival: compare by node.
        let named = |out: &Outputs| {
            let paths = out.paths.table().snapshot();
            let name = |index: NodeIndex| paths.get(&index).map(|p| (p.cluster, p.node.clone()));
            let entries: Vec<_> = out.entries.table().snapshot().iter().map(|e| (e.prefix, e.identity, name(e.node), e.node_address, e.source)).collect();
            let mut nodes: Vec<_> = paths.iter().map(|p| (p.cluster, p.node.clone(), p.underlay, p.encrypt)).collect();
            nodes.sort();
            let routes: Vec<_> = out.routes.table().snapshot().iter().cloned().collect();
            let peers: Vec<_> = out.peers.table().snapshot().iter().cloned().collect();
            (entries, nodes, routes, peers)
        };
        prop_assert_eq!(named(&world.out), named(&full));
        // No entry names a node row that does not exist.
        let paths = world.out.paths.table().snapshot();
        for entry in world.out.entries.table().snapshot().iter() {
            prop_assert!(entry.node == NodeIndex::LOCAL || paths.get(&entry.node).is_some());
        }
    }
}
