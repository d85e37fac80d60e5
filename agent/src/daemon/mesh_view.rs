//! What `tombolo mesh conflicts` and `tombolo mesh nodes` show, out of the tables and the followers' states. Pure.

use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Snapshot;
use tombolo_clustermesh::follower::{ClusterConflictKind, ClusterStatus};
use tombolo_clustermesh::wire::Kind;
use tombolo_topology::{AddressKind, ConflictKind, ConflictRow, NodePath, NodeRow, PathKind, WireguardPeer};

/// A conflict, whoever found it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Conflict {
    /// What kind of thing is claimed.
    pub(crate) kind: &'static str,
    /// What is claimed: a prefix, an address, a number or a name.
    pub(crate) key: String,
    /// Who claims it.
    pub(crate) claimants: Vec<String>,
    /// Who has it here.
    pub(crate) chosen: Option<String>,
    /// Seconds since it was noticed.
    pub(crate) since_secs: u64,
    /// What was found.
    pub(crate) detail: String,
    /// What to do.
    pub(crate) remedy: String,
    /// How many conflicts this is: 1, or as many as there was no room for.
    pub(crate) count: u64,
}

impl Conflict {
    /// One line for `tombolo status`.
    pub(crate) fn line(&self) -> String {
        format!("conflict {} {}: {}; {}", self.kind, self.key, self.detail, self.remedy)
    }
}

/// All that stand `now` (seconds since 1970): between clusters as a whole first, and last how many are `hidden` for want of room.
pub(crate) fn conflicts(
    rows: &Snapshot<ConflictRow>,
    hidden: impl Fn(ConflictKind) -> u64,
    clusters: &[ClusterStatus],
    now: u64,
) -> Vec<Conflict> {
    let of_clusters = clusters.iter().flat_map(|cluster| {
        cluster.conflicts.iter().map(|conflict| Conflict {
            kind: conflict.kind.word(),
            key: conflict.key.clone(),
            claimants: conflict.with.iter().chain([&cluster.name]).cloned().collect(),
            chosen: conflict.chosen.clone(),
            since_secs: conflict.since_secs,
            detail: format!("cluster {}: {}", cluster.name, conflict.detail),
            remedy: conflict.remedy.to_owned(),
            count: 1,
        })
    });
    let of_rows = rows.iter().map(|row| Conflict {
        kind: row.kind.word(),
        key: row.key.to_string(),
        claimants: row.claimants.iter().map(ToString::to_string).collect(),
        chosen: row.chosen.as_ref().map(ToString::to_string),
        since_secs: now.saturating_sub(row.since_unix_secs),
        detail: row.found(),
        remedy: row.remedy.to_owned(),
        count: 1,
    });
    let hidden = ConflictKind::ALL.into_iter().filter_map(|kind| {
        let count = hidden(kind);
        (count > 0).then(|| Conflict {
            kind: kind.word(),
            key: "-".to_owned(),
            claimants: Vec::new(),
            chosen: None,
            since_secs: 0,
            detail: format!("{count} more, shown as those above end"),
            remedy: kind.remedy().to_owned(),
            count,
        })
    });
    of_clusters.chain(of_rows).chain(hidden).collect()
}

/// How many there are of each kind, also of those with none.
pub(crate) fn counted(conflicts: &[Conflict]) -> BTreeMap<&'static str, u64> {
    let of_clusters = ClusterConflictKind::ALL.iter().map(|kind| kind.word());
    let kinds = ConflictKind::ALL.iter().map(|kind| kind.word()).chain(of_clusters);
    let mut all: BTreeMap<_, _> = kinds.map(|kind| (kind, 0)).collect();
    conflicts.iter().for_each(|conflict| *all.entry(conflict.kind).or_default() += conflict.count);
    all
}

/// The tables that nodes are shown from.
pub(crate) struct NodeTables {
    /// What all sources say.
    pub(crate) nodes: Snapshot<NodeRow>,
    /// How each is reached.
    pub(crate) paths: Snapshot<NodePath>,
    /// Keys in use.
    pub(crate) peers: Snapshot<WireguardPeer>,
    /// What is refused of them.
    pub(crate) conflicts: Snapshot<ConflictRow>,
    /// Whether packets between nodes must be encrypted.
    pub(crate) encrypt: bool,
}

/// A node of any cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct NodeShown {
    /// Its cluster.
    pub(crate) cluster: String,
    /// Its name.
    pub(crate) name: String,
    /// Its addresses with their kinds.
    pub(crate) addresses: Vec<String>,
    /// Its pod prefixes.
    pub(crate) pod_cidrs: Vec<String>,
    /// `local`, `overlay` or `direct`; none when it is not reached.
    pub(crate) path: Option<PathKind>,
    /// Where its tunnel ends.
    pub(crate) tunnel: Option<String>,
    /// Largest packet to its pods, in bytes.
    pub(crate) mtu: Option<u16>,
    /// `off`, `wireguard`, `no key`, or `local`.
    pub(crate) encryption: &'static str,
    /// Its WireGuard key, hexadecimal.
    pub(crate) wireguard_key: Option<String>,
    /// Who said it.
    pub(crate) source: String,
    /// `initialized`, `stale` or `pending`.
    pub(crate) source_state: Option<SourceState>,
    /// Seconds since its source confirmed what it says.
    pub(crate) age_secs: Option<u64>,
    /// Why it, or a part of it, is not used.
    pub(crate) problems: Vec<String>,
}

/// Every node; of one that several sources name what the first says, manifests before etcd.
pub(crate) fn nodes(tables: &NodeTables, clusters: &[ClusterStatus]) -> Vec<NodeShown> {
    let paths: BTreeMap<(&str, &str), &NodePath> =
        tables.paths.iter().map(|path| ((path.cluster.as_str(), path.node.as_ref()), path)).collect();
    let mut refused: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for row in tables.conflicts.iter() {
        let holder = row.claimants.iter().find(|claimant| claimant.used);
        let holder = holder.map_or_else(|| "nobody".to_owned(), ToString::to_string);
        for claimant in row.claimants.iter().filter(|claimant| !claimant.used) {
            if let Some(node) = &claimant.node {
                let texts = refused.entry((claimant.cluster.as_str(), node.as_ref())).or_default();
                texts.push(format!("{} {} is refused: {holder} has it", row.kind, claimant.claimed));
            }
        }
    }
    let mut shown: BTreeMap<(&str, &str), NodeShown> = BTreeMap::new();
    // Sources are in order: manifests come first.
    for row in tables.nodes.iter() {
        let key = (row.cluster.as_str(), row.name.as_ref());
        let path = paths.get(&key).copied();
        let problems = refused.get(&key).cloned().unwrap_or_default();
        let node = shown.entry(key).or_insert_with(|| node(tables, row, path, problems, clusters));
        // The key comes from whichever source knows it.
        node.wireguard_key =
            node.wireguard_key.take().or_else(|| row.wireguard_key.map(|key| key.to_string()));
    }
    shown.into_values().map(|node| with_key(node, tables.encrypt)).collect()
}

fn node(
    tables: &NodeTables,
    row: &NodeRow,
    path: Option<&NodePath>,
    mut problems: Vec<String>,
    clusters: &[ClusterStatus],
) -> NodeShown {
    if path.is_none() && problems.is_empty() {
        problems.push("it has no address of a family that this node has: it is not reached".to_owned());
    }
    let age = match &row.source {
        Source::Cluster(name) => {
            let cluster = clusters.iter().find(|cluster| cluster.name == name.as_str());
            cluster.and_then(|cluster| cluster.stale_secs.or(cluster.heartbeat_age_secs))
        }
        _ => None,
    };
    let kind = |kind| match kind {
        AddressKind::Internal => "InternalIP",
        AddressKind::External => "ExternalIP",
        AddressKind::CiliumInternal => "CiliumInternalIP",
    };
    let peer = tables.peers.by_index(&(row.cluster, row.name.clone())).next();
    NodeShown {
        cluster: row.cluster.to_string(),
        name: row.name.to_string(),
        addresses: row.addresses.iter().map(|a| format!("{} {}", kind(a.kind), a.ip)).collect(),
        pod_cidrs: row.pod_cidrs.iter().map(ToString::to_string).collect(),
        path: path.map(|path| path.path),
        tunnel: path.and_then(|path| path.underlay).map(|ip| ip.to_string()),
        mtu: path.map(|path| path.mtu),
        encryption: match (path.map(|path| path.path), peer.is_some()) {
            (Some(PathKind::Local), _) => "local",
            (_, true) => "wireguard",
            (_, false) => "off",
        },
        wireguard_key: row.wireguard_key.map(|key| key.to_string()),
        source: row.source.to_string(),
        source_state: tables.nodes.source_state(&row.source),
        age_secs: age,
        problems,
    }
}

fn with_key(mut node: NodeShown, encrypt: bool) -> NodeShown {
    if encrypt && node.encryption == "off" {
        node.encryption = "no key";
        if node.wireguard_key.is_none() {
            node.problems.push("it publishes no WireGuard key: packets to it are dropped (195)".to_owned());
        }
    } else if !encrypt && node.wireguard_key.is_some() && node.path != Some(PathKind::Local) {
        node.problems.push("it encrypts and this cluster does not: it drops what comes in clear".to_owned());
    }
    node
}

/// How long a cluster's changes take.
pub(crate) fn lag(status: &ClusterStatus) -> Value {
    json!({
        "name": status.name,
        "lag": status.lag,
        "commit": status.commit,
        "last-event-age-secs": status.last_event_age_secs,
        "heartbeat-age-secs": status.heartbeat_age_secs,
        "stale-secs": status.stale_secs,
    })
}

/// A cluster's state under Cilium's names, ours beside them.
pub(crate) fn cluster(status: &ClusterStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or(Value::Null);
    let count = |kind| status.counts.get(&kind).copied().unwrap_or(0);
    let synced = |kind| status.synced.get(&kind).copied().unwrap_or(false);
    let mut set = |path: &str, key: &str, content: Value| {
        if let Some(map) = value.pointer_mut(path).and_then(Value::as_object_mut) {
            map.insert(key.to_owned(), content);
        }
    };
    for (key, kind) in [
        ("num-nodes", Kind::Nodes),
        ("num-endpoints", Kind::Ips),
        ("num-identities", Kind::Identities),
        ("num-shared-services", Kind::Services),
        ("num-service-exports", Kind::ServiceExports),
        ("num-endpoint-slices", Kind::EndpointSlices),
    ] {
        set("", key, json!(count(kind)));
    }
    set("", "num-failures", json!(status.reconnections));
    for (key, kind) in [
        ("nodes", Kind::Nodes),
        ("endpoints", Kind::Ips),
        ("identities", Kind::Identities),
        ("services", Kind::Services),
        ("service-exports", Kind::ServiceExports),
        ("endpoint-slices", Kind::EndpointSlices),
    ] {
        set("/synced", key, json!(synced(kind)));
    }
    let exports = match status.config.service_exports {
        "enabled" => json!(true),
        "disabled" => json!(false),
        _ => Value::Null,
    };
    set("/config", "required", json!(true));
    set("/config", "service-exports-enabled", exports);
    set("/config", "endpoint-slices-export-mode", json!(status.config.endpoint_slice_export_mode));
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
    use tombolo_base::table::{Table, Writer};
    use tombolo_clustermesh::follower::ClusterConflict;
    use tombolo_topology::{Claimant, Claimed, NodeAddress, NodeIndex, WireguardKey};

    fn name(text: &str) -> ClusterName {
        ClusterName::new(text).unwrap()
    }

    fn row(cluster: &str, node: &str, source: Source, key: bool) -> NodeRow {
        NodeRow {
            source,
            cluster: name(cluster),
            cluster_id: ClusterId::new(2, MaxClusters::C255).unwrap(),
            name: node.into(),
            addresses: vec![NodeAddress { kind: AddressKind::Internal, ip: "192.0.2.1".parse().unwrap() }],
            pod_cidrs: vec!["10.2.0.0/24".parse().unwrap()],
            wireguard_key: key.then_some(WireguardKey([7; 32])),
            encryption_key: 0,
            labels: BTreeMap::new().into(),
            ready: None,
            health: Default::default(),
        }
    }

    fn conflict(cluster: &str, node: &str) -> ConflictRow {
        let cidr = Claimed::Prefix("10.2.0.0/24".parse().unwrap());
        let claimant = |cluster, node: &str, used| Claimant {
            cluster: name(cluster),
            node: Some(node.into()),
            claimed: cidr,
            used,
        };
        ConflictRow {
            kind: ConflictKind::PodCidr,
            key: cidr,
            claimants: vec![claimant("south", "s1", true), claimant(cluster, node, false)],
            chosen: Some(name("south")),
            since_unix_secs: 70,
            remedy: ConflictKind::PodCidr.remedy(),
        }
    }

    fn status() -> ClusterStatus {
        let kind = ClusterConflictKind::ClusterId;
        ClusterStatus {
            name: "west".to_owned(),
            stale_secs: Some(9),
            conflicts: vec![ClusterConflict {
                kind,
                key: "2".to_owned(),
                with: Some("south".to_owned()),
                chosen: Some("south".to_owned()),
                detail: "taken".to_owned(),
                since_secs: 5,
                remedy: kind.remedy(),
            }],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn conflicts_of_clusters_and_of_addresses_stand_in_one_list() {
        let (table, writer) = Table::new();
        writer.upsert(conflict("west", "w1"));
        let hidden = |kind| if kind == ConflictKind::Address { 1976 } else { 0 };
        let all = conflicts(&table.snapshot(), hidden, &[status()], 100);
        let told: Vec<_> = all.iter().map(|one| (one.kind, one.key.as_str(), one.since_secs)).collect();
        assert_eq!(told, [("cluster-id", "2", 5), ("pod-cidr", "10.2.0.0/24", 30), ("address", "-", 0)]);
        assert!(all[2].line().contains("1976 more"), "{}", all[2].line());
        assert_eq!(all[0].claimants, ["south", "west"]);
        assert_eq!(all[1].claimants, ["south/s1 10.2.0.0/24", "west/w1 10.2.0.0/24"]);
        assert!(all[..2].iter().all(|one| one.chosen.as_deref() == Some("south") && !one.remedy.is_empty()));
        let counted = counted(&all);
        assert_eq!((counted["cluster-id"], counted["address"], counted.len()), (1, 1976, 8));
    }

    #[test]
    fn a_node_says_why_it_is_not_used() {
        let (nodes_table, rows): (_, Writer<NodeRow>) = Table::new();
        let (paths, path_rows) = Table::new();
        let (conflicts, conflict_rows) = Table::new();
        let west = Source::Cluster(name("west"));
        rows.upsert(row("east", "e1", Source::Manifests, false));
        rows.upsert(row("east", "e1", Source::Cluster(name("east")), true));
        rows.upsert(row("west", "w1", west, false));
        rows.set_source(&west, SourceState::Stale);
        path_rows.upsert(NodePath {
            source: Source::Manifests,
            index: NodeIndex(1),
            cluster: name("east"),
            node: "e1".into(),
            path: PathKind::Overlay,
            underlay: Some("192.0.2.1".parse().unwrap()),
            encrypt: true,
            mtu: 1400,
        });
        conflict_rows.upsert(conflict("west", "w1"));
        let tables = NodeTables {
            nodes: nodes_table.snapshot(),
            paths: paths.snapshot(),
            peers: Snapshot::default(),
            conflicts: conflicts.snapshot(),
            encrypt: true,
        };
        let all = nodes(&tables, &[status()]);
        let [east, west] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(
            (east.source.as_str(), east.tunnel.as_deref(), east.mtu),
            ("manifests", Some("192.0.2.1"), Some(1400))
        );
        assert!(east.wireguard_key.is_some() && east.problems.is_empty(), "{east:?}");
        assert_eq!((west.path, west.age_secs, west.source_state), (None, Some(9), Some(SourceState::Stale)));
        assert_eq!(west.problems[0], "pod-cidr 10.2.0.0/24 is refused: south/s1 10.2.0.0/24 has it");
        assert!(west.problems[1].contains("no WireGuard key"), "{west:?}");
    }

    #[test]
    fn a_clusters_state_has_ciliums_names() {
        let value = cluster(&ClusterStatus { reconnections: 3, ..status() });
        for key in [
            "name",
            "ready",
            "connected",
            "status",
            "num-nodes",
            "num-endpoints",
            "num-identities",
            "num-shared-services",
            "num-service-exports",
            "num-endpoint-slices",
            "num-failures",
            "last-failure",
        ] {
            assert!(value.get(key).is_some(), "{key}: {value}");
        }
        for key in [
            "required",
            "retrieved",
            "cluster-id",
            "kvstoremesh",
            "sync-canaries",
            "service-exports-enabled",
            "endpoint-slices-export-mode",
        ] {
            assert!(value["config"].get(key).is_some(), "{key}: {value}");
        }
        for key in ["nodes", "endpoints", "identities", "services", "service-exports", "endpoint-slices"] {
            assert_eq!(value["synced"][key], false, "{key}");
        }
        assert_eq!(value["num-failures"], 3);
    }
}
