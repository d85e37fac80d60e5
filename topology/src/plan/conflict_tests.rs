//! Overlapping pod CIDRs, node addresses and pods' addresses of several clusters: who has them, what is told, and that nothing of
//! what is refused is planned.

use super::tests::{World, config, node, pod};
use super::*;
use crate::conflict::MAX_CONFLICTS;
use crate::reserved::Purpose;
use crate::rows::{AddressKind, NodeAddress, WireguardKey};
use tombolo_base::table::{Changes, Table};

pub(super) struct Rig {
    pub(super) world: World,
    pub(super) planner: Planner,
    nodes: Changes<NodeRow>,
    prefixes: Changes<PrefixRow>,
}

impl Rig {
    pub(super) fn new(path: PathKind) -> Self {
        let world = World::new();
        let planner = Planner::new(config(path, true), NodeIndexes::default());
        let (nodes, prefixes) = (world.nodes.0.changes(), world.prefixes.0.changes());
        let mut rig = Self { world, planner, nodes, prefixes };
        rig.put(node(1, 0, true));
        rig.look();
        rig
    }

    pub(super) fn put(&self, row: NodeRow) {
        self.world.nodes.1.upsert(row);
    }

    pub(super) fn take(&self, row: &NodeRow) {
        self.world.nodes.1.remove(&row.key());
    }

    pub(super) fn look(&mut self) {
        self.planner.step(self.nodes.drain(), self.prefixes.drain(), None, &self.world.out);
    }

    fn conflicts(&self) -> Vec<String> {
        self.world.out.conflicts.table().snapshot().iter().map(ToString::to_string).collect()
    }

    /// The node that serves a prefix.
    fn at(&self, prefix: &str) -> Option<String> {
        let entry = self.world.entry(&self.world.out, prefix)?;
        let paths = self.world.out.paths.table().snapshot();
        paths.get(&entry.node).map(|path| format!("{}/{}", path.cluster, path.node))
    }

    fn routed(&self, prefix: &str) -> bool {
        self.world.out.routes.table().snapshot().get(&prefix.parse().unwrap()).is_some()
    }

    fn peers(&self) -> Vec<Prefix> {
        let peers = self.world.out.peers.table().snapshot();
        peers.iter().flat_map(|peer| peer.allowed_ips.iter().copied()).collect()
    }
}

/// A node of `cluster` with these pod CIDRs.
pub(super) fn with(cluster: u8, n: u8, cidrs: &[&str]) -> NodeRow {
    let mut row = node(cluster, n, true);
    row.pod_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    row.addresses.retain(|address| address.kind == AddressKind::Internal);
    row
}

pub(super) fn source(cluster: u8) -> Source {
    Source::Cluster(ClusterName::new(&format!("c{cluster}")).unwrap())
}

#[test]
fn a_pod_cidr_that_another_cluster_has_is_refused_before_anything_is_made_of_it() {
    for (held, late) in
        [("10.9.0.0/24", "10.9.0.0/16"), ("fd00:9::/48", "fd00:9:0:1::/64"), ("10.9.0.0/24", "10.9.0.0/24")]
    {
        let mut rig = Rig::new(PathKind::Overlay);
        // The one that comes later sorts first, by name and by id.
        rig.put(with(3, 1, &[held]));
        rig.look();
        rig.put(with(2, 1, &[late, "10.2.1.0/24"]));
        rig.look();
        assert_eq!(rig.at(held).as_deref(), Some("c3/n1"));
        assert_eq!(rig.at("10.2.1.0/24").as_deref(), Some("c2/n1"), "its other prefix is used");
        if held != late {
            assert_eq!((rig.at(late), rig.routed(late)), (None, false), "{late}");
        }
        let late_prefix: Prefix = late.parse().unwrap();
        let allowed = rig.peers().into_iter().filter(|prefix| prefix.overlaps(&late_prefix)).count();
        assert_eq!(allowed, 1, "of the holder only");
        let told = rig.conflicts();
        let [row] = told.as_slice() else { panic!("{told:?}") };
        let text = format!("pod-cidr {late}: used: c3/n1 {held}; refused: c2/n1 {late}; ");
        assert!(row.starts_with(&text) && row.contains("other pod CIDRs"), "{row}");
        // It ends with the overlap.
        rig.take(&with(3, 1, &[held]));
        rig.look();
        assert_eq!((rig.at(late).as_deref(), rig.routed(late)), (Some("c2/n1"), true));
        assert!(rig.conflicts().is_empty());
    }
}

#[test]
fn the_own_cluster_has_what_it_claims_and_its_node_addresses_are_in_nobodys_pods() {
    let mut rig = Rig::new(PathKind::Overlay);
    rig.put(with(2, 1, &["10.1.0.0/16", "172.20.1.0/24"]));
    rig.look();
    assert!(!rig.routed("10.1.0.0/16") && !rig.routed("172.20.1.0/24"), "n0 has 10.1.0.0/24 and 172.20.1.0");
    assert_eq!(rig.conflicts().len(), 2);
    // The own cluster's node that comes later takes its own away from others.
    let mut rig = Rig::new(PathKind::Overlay);
    rig.put(with(2, 1, &["10.1.7.0/24"]));
    rig.look();
    assert_eq!(rig.at("10.1.7.0/24").as_deref(), Some("c2/n1"));
    rig.put(node(1, 7, true));
    rig.look();
    assert_eq!(rig.at("10.1.7.0/24").as_deref(), Some("c1/n7"));
    assert!(rig.conflicts()[0].contains("used: c1/n7 10.1.7.0/24; refused: c2/n1"), "{:?}", rig.conflicts());
}

#[test]
fn a_node_address_that_another_cluster_has_is_not_reached_and_told() {
    let mut rig = Rig::new(PathKind::Overlay);
    let mut twin = with(2, 1, &["10.2.1.0/24"]);
    twin.addresses = vec![NodeAddress { kind: AddressKind::Internal, ip: "172.20.1.0".parse().unwrap() }];
    rig.put(twin.clone());
    rig.world.prefixes.1.upsert(pod(source(2), "10.2.1.7", "172.20.1.0", 131_400));
    rig.look();
    assert_eq!(rig.world.entry(&rig.world.out, "172.20.1.0").unwrap().node, NodeIndex::LOCAL);
    assert_eq!((rig.at("10.2.1.7"), rig.routed("10.2.1.0/24")), (None, false), "there is no way to it");
    assert!(rig.conflicts()[0].starts_with("node-address 172.20.1.0: used: c1/n0"), "{:?}", rig.conflicts());
    twin.addresses[0].ip = "172.20.2.1".parse().unwrap();
    rig.put(twin);
    rig.world.prefixes.1.upsert(pod(source(2), "10.2.1.7", "172.20.2.1", 131_400));
    rig.look();
    assert_eq!(rig.at("10.2.1.7").as_deref(), Some("c2/n1"));
    assert!(rig.conflicts().is_empty() && rig.routed("10.2.1.0/24"));
}

/// A node whose pod CIDR is refused says the address of another one's node as an address inside that CIDR: it takes nothing with it.
#[test]
fn a_refused_pod_cidr_takes_no_address_of_another_cluster_with_it() {
    let address = |kind, ip: &str| NodeAddress { kind, ip: ip.parse().unwrap() };
    let mut rig = Rig::new(PathKind::Overlay);
    rig.put(node(3, 1, true));
    rig.look();
    // It comes later, and its cluster sorts first.
    let mut hostile = with(2, 1, &["172.20.3.0/24", "fd00:10:3:1::/64"]);
    hostile.addresses.extend([
        address(AddressKind::Internal, "172.20.3.1"),
        address(AddressKind::CiliumInternal, "fd00:10:3:1::1"),
    ]);
    rig.put(hostile.clone());
    rig.look();
    for own in ["172.20.3.1", "fd00:10:3:1::1"] {
        assert_eq!(rig.at(own).as_deref(), Some("c3/n1"), "{own}");
    }
    assert!(
        rig.world.entry(&rig.world.out, "172.20.3.1").unwrap().node_address,
        "what goes there is encrypted"
    );
    assert!(!rig.routed("172.20.3.0/24"));
    rig.take(&hostile);
    rig.look();
    assert_eq!(rig.at("172.20.3.1").as_deref(), Some("c3/n1"));
    // Without malice: two clusters made from one template.
    let twin = |cluster: u8| {
        let mut row = with(cluster, 1, &["10.66.0.0/24"]);
        row.addresses.push(address(AddressKind::CiliumInternal, "10.66.0.1"));
        row
    };
    rig.put(twin(3));
    rig.look();
    rig.put(twin(2));
    rig.look();
    assert_eq!(rig.at("10.66.0.1").as_deref(), Some("c3/n1"));
    let entry = rig.world.entry(&rig.world.out, "10.66.0.1").unwrap();
    assert_eq!(entry.identity, tombolo_base::ids::IdentityId::REMOTE_NODE);
}

#[test]
fn a_wireguard_key_that_another_cluster_has_is_refused_and_free_when_that_one_goes() {
    let mut rig = Rig::new(PathKind::Overlay);
    let thief = |name: u8, of: &NodeRow| NodeRow {
        wireguard_key: of.wireguard_key,
        ..with(2, name, &[&format!("10.2.{name}.0/24")])
    };
    let (own, remote) = (node(1, 3, true), node(3, 1, true));
    let holder = |rig: &Rig, key: &NodeRow| {
        let peers = rig.world.out.peers.table().snapshot();
        peers.get(&key.wireguard_key.unwrap()).map(|peer| format!("{}/{}", peer.cluster, peer.node))
    };
    rig.put(remote.clone());
    rig.put(thief(1, &own));
    rig.look();
    assert_eq!(holder(&rig, &own).as_deref(), Some("c2/n1"), "nobody else has it yet");
    for row in [own.clone(), thief(2, &remote)] {
        rig.put(row);
    }
    rig.look();
    let own_peer = holder(&rig, &own);
    assert_eq!((own_peer.as_deref(), holder(&rig, &remote).as_deref()), (Some("c1/n3"), Some("c3/n1")));
    let told = rig.conflicts();
    let key = remote.wireguard_key.unwrap();
    let text = format!("wireguard-key {key}: used: c3/n1; refused: c2/n2; ");
    assert!(told.iter().any(|row| row.starts_with(&text)), "{told:?}");
    assert_eq!(rig.planner.conflict_counts().found(ConflictKind::WireguardKey), 2);
    // The thief goes: the one it was taken from stays.
    rig.take(&thief(2, &remote));
    rig.look();
    assert_eq!(holder(&rig, &remote).as_deref(), Some("c3/n1"));
    // The holder goes: who waits has it, and its peer is planned although nothing of that node changed.
    rig.put(thief(2, &remote));
    rig.look();
    rig.take(&remote);
    rig.take(&own);
    rig.look();
    assert_eq!(
        (holder(&rig, &remote).as_deref(), holder(&rig, &own).as_deref()),
        (Some("c2/n2"), Some("c2/n1"))
    );
    assert!(rig.conflicts().is_empty(), "{:?}", rig.conflicts());
}

/// A node comes back under another name before the lease of its old entry has ended.
#[test]
fn two_nodes_of_one_cluster_with_one_key_have_one_peer_until_the_first_goes() {
    let mut rig = Rig::new(PathKind::Overlay);
    let renamed = NodeRow { name: "renamed".into(), ..node(3, 1, true) };
    rig.put(node(3, 1, true));
    rig.put(renamed);
    rig.look();
    let named = |rig: &Rig| {
        rig.world.out.peers.table().snapshot().iter().map(|peer| peer.node.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(named(&rig), ["n1"]);
    rig.take(&node(3, 1, true));
    rig.look();
    assert_eq!(named(&rig), ["renamed"]);
}

pub(super) fn reserved(prefixes: &[&str]) -> tombolo_base::table::Snapshot<ReservedRow> {
    let (table, writer) = Table::new();
    let rows = prefixes.iter().map(|prefix| ReservedRow {
        source: Source::Local,
        prefix: prefix.parse().unwrap(),
        purpose: Purpose::Etcd,
    });
    writer.replace_source(&Source::Local, rows);
    table.snapshot()
}

/// This cluster's etcd, its link and its pools: another cluster's node may be there, its pods may not, whoever comes first.
#[test]
fn another_clusters_pods_are_kept_out_of_what_is_reserved() {
    let kept = reserved(&["172.20.19.2", "172.20.0.0/16", "198.51.100.0/24"]);
    for first in [true, false] {
        let mut rig = Rig::new(PathKind::Overlay);
        if first {
            rig.planner.reserve(&kept);
        }
        // Around the etcd, exactly it, and beside all that.
        rig.put(with(2, 1, &["172.20.19.0/24", "172.20.19.2/32", "10.2.1.0/24"]));
        rig.put(node(3, 1, true));
        for (ip, host) in
            [("198.51.100.7", "172.20.2.1"), ("198.51.0.0/16", "172.20.2.1"), ("172.20.3.1", "172.20.3.1")]
        {
            let cluster = host.as_bytes()[7] - b'0';
            rig.world.prefixes.1.upsert(pod(source(cluster), ip, host, 131_400));
        }
        rig.look();
        if !first {
            assert!(rig.routed("172.20.19.0/24") && rig.at("198.51.100.7").is_some());
            rig.planner.reserve(&kept);
            rig.look();
        }
        for taken in ["172.20.19.0/24", "172.20.19.2/32", "198.51.100.7", "198.51.0.0/16"] {
            assert_eq!((rig.at(taken), rig.routed(taken)), (None, false), "{taken}");
        }
        assert_eq!(
            rig.peers().iter().filter(|prefix| prefix.overlaps(&"172.20.19.2".parse().unwrap())).count(),
            0
        );
        assert_eq!(rig.at("10.2.1.0/24").as_deref(), Some("c2/n1"));
        // A node on the same link, also where its cluster says its address like a pod's.
        assert_eq!(
            (rig.at("172.20.2.1").as_deref(), rig.at("172.20.3.1").as_deref()),
            (Some("c2/n1"), Some("c3/n1"))
        );
        let told = rig.conflicts();
        assert_eq!(told.len(), 4, "{told:?}");
        let text = "pod-cidr 172.20.19.0/24: used: c1/- 172.20.0.0/16; refused: c2/n1 172.20.19.0/24; ";
        assert!(told.iter().any(|row| row.starts_with(text)), "{told:?}");
        assert!(
            told.iter().any(
                |row| row.starts_with("address 198.51.100.7: used: c1/- 198.51.100.0/24; refused: c2/n1")
            ),
            "{told:?}"
        );
        // What is refused there stands in nobody's way, and is used when it is free.
        rig.planner.reserve(&reserved(&[]));
        rig.look();
        assert_eq!(
            (rig.at("172.20.19.0/24").as_deref(), rig.routed("172.20.19.0/24")),
            (Some("c2/n1"), true)
        );
        assert!(rig.at("198.51.100.7").is_some() && rig.conflicts().is_empty(), "{:?}", rig.conflicts());
    }
}

#[test]
fn a_cluster_cannot_claim_addresses_in_another_ones_pod_prefix() {
    let mut rig = Rig::new(PathKind::Overlay);
    rig.put(node(2, 1, false));
    rig.put(node(3, 1, false));
    // c2 sorts first, and c3 has not named its pod yet.
    for (ip, host) in
        [("10.3.1.7", "172.20.2.1"), ("10.3.0.0/16", "172.20.2.1"), ("172.20.1.0", "172.20.2.1")]
    {
        rig.world.prefixes.1.upsert(pod(source(2), ip, host, 131_400));
    }
    rig.look();
    assert_eq!((rig.at("10.3.1.7"), rig.at("10.3.0.0/16")), (None, None));
    assert_eq!(
        rig.world.entry(&rig.world.out, "172.20.1.0").unwrap().identity.0,
        1,
        "this node's own address"
    );
    let told = rig.conflicts();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told.iter()
            .any(|row| row.starts_with("address 10.3.1.7: used: c3/n1 10.3.1.0/24; refused: c2/n1 10.3.1.7")),
        "{told:?}"
    );
    rig.world.prefixes.1.upsert(pod(source(3), "10.3.1.7", "172.20.3.1", 200_000));
    rig.look();
    assert_eq!(rig.at("10.3.1.7").as_deref(), Some("c3/n1"));
    // A claim stands as soon as nobody has the pod prefix any more.
    rig.world.prefixes.1.remove(&("10.3.1.7".parse().unwrap(), source(3)));
    rig.take(&node(3, 1, false));
    rig.look();
    assert_eq!(
        (rig.at("10.3.1.7").as_deref(), rig.at("10.3.0.0/16").as_deref()),
        (Some("c2/n1"), Some("c2/n1"))
    );
    assert_eq!(rig.conflicts().len(), 1, "{:?}", rig.conflicts());
}

#[test]
fn of_an_address_outside_all_pod_prefixes_who_had_it_keeps_it() {
    let mut rig = Rig::new(PathKind::Direct);
    rig.put(node(2, 1, false));
    rig.put(node(3, 1, false));
    rig.world.prefixes.1.upsert(pod(source(3), "10.99.0.1", "172.20.3.1", 200_000));
    rig.look();
    rig.planner.set_time(Moment::ZERO, 77);
    rig.world.prefixes.1.upsert(pod(source(2), "10.99.0.1", "172.20.2.1", 131_400));
    rig.look();
    assert_eq!(rig.at("10.99.0.1").as_deref(), Some("c3/n1"));
    let row = rig.world.out.conflicts.table().snapshot().iter().next().cloned().unwrap();
    assert_eq!((row.kind, row.since_unix_secs, row.claimants.len()), (ConflictKind::Address, 77, 2));
    assert_eq!(row.chosen.as_ref().map(ClusterName::as_str), Some("c3"));
    assert_eq!(rig.planner.conflict_counts().found(ConflictKind::Address), 1);
    rig.world.prefixes.1.remove(&("10.99.0.1".parse().unwrap(), source(3)));
    rig.look();
    assert_eq!((rig.at("10.99.0.1").as_deref(), rig.conflicts().len()), (Some("c2/n1"), 0));
}

/// A node goes, and its successor takes pod CIDR, address and key in the same batch.
#[test]
fn what_moves_to_another_node_of_the_holder_does_not_fall_to_who_waits() {
    let mut rig = Rig::new(PathKind::Overlay);
    let holder = |name: &str| NodeRow { name: name.into(), ..node(3, 1, true) };
    let waiting = NodeRow {
        name: "n9".into(),
        ..NodeRow {
            source: source(2),
            cluster: node(2, 1, true).cluster,
            cluster_id: node(2, 1, true).cluster_id,
            ..node(3, 1, true)
        }
    };
    rig.put(holder("z1"));
    rig.look();
    rig.put(waiting);
    rig.look();
    rig.take(&holder("z1"));
    rig.put(holder("z2"));
    rig.look();
    for prefix in ["10.3.1.0/24", "172.20.3.1", "fd00:10:3:1::1"] {
        assert_eq!(rig.at(prefix).as_deref(), Some("c3/z2"), "{prefix}");
    }
    let peers = rig.world.out.peers.table().snapshot();
    assert_eq!(peers.iter().map(|peer| peer.node.as_ref()).collect::<Vec<_>>(), ["z2"]);
}

/// Clusters 2 and 3 claim the same pod CIDR, node address, address and key from the start.
struct Founders {
    world: World,
    planner: Planner,
    nodes: Changes<NodeRow>,
    prefixes: Changes<PrefixRow>,
}

impl Founders {
    const ADDRESS: &str = "10.77.0.1";
    const CLAIMS: [&str; 3] = ["10.9.0.0/24", "203.0.113.9", Self::ADDRESS];
    const KEY: WireguardKey = WireguardKey([9; 32]);

    /// With what an earlier life had at the node with the address `restored`.
    fn new(restored: Option<&str>) -> Self {
        let world = World::new();
        let mut planner = Planner::new(config(PathKind::Overlay, true), NodeIndexes::default());
        let at = restored.map(|ip| ip.parse().unwrap());
        planner
            .restore_claims(at.iter().flat_map(|ip| Self::CLAIMS.map(|claim| (claim.parse().unwrap(), *ip))));
        planner.restore_keys(at.map(|ip| (Self::KEY, ip)));
        let (nodes, prefixes) = (world.nodes.0.changes(), world.prefixes.0.changes());
        let mut founders = Self { world, planner, nodes, prefixes };
        for cluster in [2, 3] {
            founders.state(cluster, SourceState::Pending);
        }
        founders.world.nodes.1.upsert(node(1, 0, false));
        founders.look();
        founders
    }

    fn state(&self, cluster: u8, state: SourceState) {
        self.world.nodes.1.set_source(&source(cluster), state);
        self.world.prefixes.1.set_source(&source(cluster), state);
    }

    fn look(&mut self) {
        self.planner.step(self.nodes.drain(), self.prefixes.drain(), None, &self.world.out);
    }

    fn speak(&mut self, cluster: u8) {
        let mut row = NodeRow { wireguard_key: Some(Self::KEY), ..with(cluster, 1, &["10.9.0.0/24"]) };
        row.addresses.push(NodeAddress { kind: AddressKind::External, ip: "203.0.113.9".parse().unwrap() });
        self.world.nodes.1.upsert(row);
        self.world.prefixes.1.upsert(pod(
            source(cluster),
            Self::ADDRESS,
            &format!("172.20.{cluster}.1"),
            131_400,
        ));
        self.look();
        self.state(cluster, SourceState::Initialized);
        self.look();
    }

    /// Which clusters have it all.
    fn have(&self) -> BTreeSet<Source> {
        let entries = self.world.out.entries.table().snapshot();
        let peers = self.world.out.peers.table().snapshot();
        let claims = Self::CLAIMS.iter().map(|claim| entries.get(&claim.parse().unwrap()).unwrap().source);
        claims.chain([peers.get(&Self::KEY).unwrap().source]).collect()
    }
}

#[test]
fn at_the_start_neither_the_order_of_lists_nor_the_name_decides_but_the_earlier_life_and_then_the_id() {
    for restored in [None, Some("172.20.3.1"), Some("172.20.2.1")] {
        for first in [2, 3] {
            let mut founders = Founders::new(restored);
            founders.speak(first);
            founders.speak(5 - first);
            let had = if restored == Some("172.20.3.1") { 3 } else { 2 };
            assert_eq!(founders.have(), [source(had)].into(), "{restored:?} {first}");
            assert!(founders.planner.restored.is_empty() && founders.planner.restored_keys.is_empty());
            // Who comes from now on comes later, whatever its id.
            founders.world.nodes.1.upsert(with(2, 9, &["10.9.0.0/25"]));
            founders.look();
            assert_eq!(founders.have(), [source(had)].into());
        }
    }
}

/// A cluster that is dead for long does not keep the memory of the earlier life alive, and takes nothing when it comes back.
#[test]
fn founders_that_are_not_read_in_time_come_later() {
    for late in [false, true] {
        let mut founders = Founders::new(None);
        founders.planner.restore_claims([("10.200.0.1".parse().unwrap(), "172.20.4.1".parse().unwrap())]);
        founders.speak(3);
        let after = if late { FOUNDING + Duration::from_secs(1) } else { FOUNDING };
        founders.planner.set_time(Moment::ZERO.after(after), 0);
        founders.world.nodes.1.upsert(node(1, 5, false));
        founders.look();
        assert_eq!(founders.planner.restored.is_empty(), late);
        founders.speak(2);
        assert_eq!(founders.have(), [source(if late { 3 } else { 2 })].into());
    }
}

#[test]
fn two_nodes_of_one_cluster_with_one_pod_cidr_are_told_and_a_node_said_twice_is_not() {
    let mut rig = Rig::new(PathKind::Overlay);
    let mut echo = node(1, 0, true);
    echo.source = source(1);
    rig.put(echo);
    rig.put(with(2, 1, &["10.2.1.0/24"]));
    rig.look();
    assert!(rig.conflicts().is_empty(), "{:?}", rig.conflicts());
    rig.put(with(2, 2, &["10.2.1.0/24"]));
    rig.look();
    assert_eq!(rig.at("10.2.1.0/24").as_deref(), Some("c2/n1"));
    assert!(rig.conflicts()[0].starts_with("pod-cidr 10.2.1.0/24: used: c2/n1"), "{:?}", rig.conflicts());
    rig.take(&with(2, 2, &[]));
    rig.look();
    assert!(rig.conflicts().is_empty());
}

#[test]
fn thousands_of_conflicts_cost_a_bounded_table_and_are_shown_as_there_is_room() {
    let mut rig = Rig::new(PathKind::Overlay);
    rig.put(node(2, 1, false));
    rig.put(with(3, 1, &["10.3.0.0/16"]));
    let address = |host: u32| format!("10.3.{}.{}", host / 250, host % 250);
    rig.planner.set_time(Moment::ZERO, 77);
    rig.world.prefixes.1.commit(|txn| {
        for host in 0..3_000_u32 {
            txn.upsert(pod(source(2), &address(host), "172.20.2.1", 131_400));
        }
    });
    rig.look();
    let counts = rig.planner.conflict_counts();
    let counted = || (counts.found(ConflictKind::Address), counts.hidden(ConflictKind::Address));
    assert_eq!((rig.conflicts().len(), counted()), (MAX_CONFLICTS, (3_000, 3_000 - MAX_CONFLICTS as u64)));
    assert!(rig.at("10.3.11.7").is_none());
    // Planned again they are the same ones.
    rig.planner.set_time(Moment::ZERO, 99);
    rig.put(NodeRow { encryption_key: 7, ..node(2, 1, false) });
    rig.look();
    assert_eq!(counted().0, 3_000);
    // What is shown goes: others take its room.
    rig.world.prefixes.1.commit(|txn| {
        for host in 0..2_500_u32 {
            txn.remove(&(address(host).parse().unwrap(), source(2)));
        }
    });
    rig.look();
    assert_eq!((rig.conflicts().len(), counted()), (500, (3_000, 0)));
    let rows = rig.world.out.conflicts.table().snapshot();
    assert!(rows.iter().all(|row| row.since_unix_secs == 77 && row.claimants.len() == 2), "{rows:?}");
    rig.world.prefixes.1.drain_source(&source(2));
    rig.look();
    assert!(rig.conflicts().is_empty());
}
