//! Prefixes: who is behind an address and on which node, decided among all sources.

use super::{NodeIndexes, NodeView, PlanConfig, node_view};
use crate::rows::{NodeIndex, NodeLookup, NodeRow, PrefixEntry, PrefixRow};
use std::net::IpAddr;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;

/// Precedence among sources, lowest first: this node, manifests, this cluster's etcd, other clusters by name. The
/// same on every node and over time, so that two clusters claiming one address do not flap.
fn rank<'a>(source: &'a Source, config: &PlanConfig) -> (u8, &'a str) {
    match source {
        Source::Local => (0, ""),
        Source::Manifests => (1, ""),
        Source::Cluster(name) if *name == config.cluster => (2, ""),
        Source::Cluster(name) => (3, name.as_str()),
        _ => (4, ""),
    }
}

/// The desired entry of one prefix, or `None` if nobody (reachable) claims it.
#[must_use]
pub fn prefix_entry(
    prefix: Prefix,
    prefixes: &Snapshot<PrefixRow>,
    nodes: &Snapshot<NodeRow>,
    indexes: &NodeIndexes,
    config: &PlanConfig,
) -> Option<PrefixEntry> {
    let mut rows: Vec<_> =
        prefixes.from_key(&(prefix, Source::Manifests)).take_while(|row| row.prefix == prefix).collect();
    rows.sort_by_key(|row| rank(&row.source, config));
    rows.into_iter()
        .find_map(|row| claimed(row, nodes, indexes, config))
        .or_else(|| node_owned(prefix, nodes, indexes, config))
}

fn index_of(view: &NodeView, indexes: &NodeIndexes, config: &PlanConfig) -> Option<NodeIndex> {
    if view.is_local(config) { Some(NodeIndex::LOCAL) } else { indexes.get(&view.cluster, &view.name) }
}

fn owner(address: IpAddr, nodes: &Snapshot<NodeRow>) -> Option<NodeView> {
    let row = nodes.by_index(&NodeLookup::Address(address)).next()?;
    node_view(nodes, &row.cluster, &row.name)
}

/// A source's own claim. A row whose node is unknown yet waits: the node's pod prefix serves it meanwhile.
fn claimed(
    row: &PrefixRow,
    nodes: &Snapshot<NodeRow>,
    indexes: &NodeIndexes,
    config: &PlanConfig,
) -> Option<PrefixEntry> {
    let local = row.source == Source::Local;
    let (node, remote_cluster) = if local {
        (NodeIndex::LOCAL, false)
    } else {
        let view = owner(row.host_ip?, nodes)?;
        // What another source says of this node's own pods is an echo, or a mistake.
        let node = index_of(&view, indexes, config).filter(|index| *index != NodeIndex::LOCAL)?;
        (node, view.cluster != config.cluster)
    };
    let identity =
        if row.identity == IdentityId::HOST && !local { IdentityId::REMOTE_NODE } else { row.identity };
    Some(PrefixEntry {
        source: row.source.clone(),
        prefix: row.prefix,
        identity,
        node,
        node_address: false,
        remote_cluster,
    })
}

/// A node's own address, or its pod prefix for pods that nobody has named yet.
fn node_owned(
    prefix: Prefix,
    nodes: &Snapshot<NodeRow>,
    indexes: &NodeIndexes,
    config: &PlanConfig,
) -> Option<PrefixEntry> {
    let by_cidr = nodes.by_index(&NodeLookup::PodCidr(prefix)).next();
    let view = match by_cidr {
        Some(row) => node_view(nodes, &row.cluster, &row.name)?,
        None if prefix.is_host() => owner(prefix.address(), nodes)?,
        None => return None,
    };
    let local = view.is_local(config);
    if by_cidr.is_some() && local {
        return None;
    }
    let identity = match (by_cidr.is_some(), local) {
        (true, _) => IdentityId::WORLD,
        (false, true) => IdentityId::HOST,
        (false, false) => IdentityId::REMOTE_NODE,
    };
    Some(PrefixEntry {
        source: view.source.clone(),
        prefix,
        identity,
        node: index_of(&view, indexes, config)?,
        node_address: view.underlay.iter().any(|ip| Prefix::host(*ip) == prefix),
        remote_cluster: view.cluster != config.cluster,
    })
}
