//! Prefixes: who is behind an address and on which node, decided among all sources.

use super::{NodeIndexes, NodeView, PlanConfig, node_view};
use crate::rows::{NodeIndex, NodeLookup, NodeRow, PrefixEntry, PrefixRow};
use std::collections::BTreeMap;
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

/// What the entries of prefixes are made of, for one pass: whose a host address is, is found out once.
pub(super) struct Claims<'a> {
    prefixes: &'a Snapshot<PrefixRow>,
    nodes: &'a Snapshot<NodeRow>,
    indexes: &'a NodeIndexes,
    config: &'a PlanConfig,
    hosts: BTreeMap<IpAddr, Option<(NodeIndex, bool)>>,
}

impl<'a> Claims<'a> {
    pub(super) const fn new(
        prefixes: &'a Snapshot<PrefixRow>,
        nodes: &'a Snapshot<NodeRow>,
        indexes: &'a NodeIndexes,
        config: &'a PlanConfig,
    ) -> Self {
        Self { prefixes, nodes, indexes, config, hosts: BTreeMap::new() }
    }

    /// The desired entry of one prefix, or `None` if nobody (reachable) claims it.
    pub(super) fn entry(&mut self, prefix: Prefix) -> Option<PrefixEntry> {
        let from = self.prefixes.from_key(&(prefix, Source::Manifests));
        let mut rows = from.take_while(|row| row.prefix == prefix);
        let (first, second) = (rows.next(), rows.next());
        let claimed = if let (Some(first), Some(second)) = (first, second) {
            let mut all: Vec<_> = [first, second].into_iter().chain(rows).collect();
            all.sort_by_key(|row| rank(&row.source, self.config));
            all.into_iter().find_map(|row| self.claimed(row))
        } else {
            first.and_then(|row| self.claimed(row))
        };
        claimed.or_else(|| node_owned(prefix, self.nodes, self.indexes, self.config))
    }

    /// A source's own claim. A row whose node is unknown yet waits: the node's pod prefix serves it meanwhile.
    fn claimed(&mut self, row: &PrefixRow) -> Option<PrefixEntry> {
        let local = row.source == Source::Local;
        let (node, remote_cluster) = if local {
            (NodeIndex::LOCAL, false)
        } else {
            // What another source says of this node's own pods is an echo, or a mistake.
            self.host(row.host_ip?).filter(|(index, _)| *index != NodeIndex::LOCAL)?
        };
        let identity =
            if row.identity == IdentityId::HOST && !local { IdentityId::REMOTE_NODE } else { row.identity };
        Some(PrefixEntry {
            source: row.source,
            prefix: row.prefix,
            identity,
            node,
            node_address: false,
            remote_cluster,
        })
    }

    /// The number of the node that has an address, and whether it is of another cluster.
    fn host(&mut self, address: IpAddr) -> Option<(NodeIndex, bool)> {
        let (nodes, indexes, config) = (self.nodes, self.indexes, self.config);
        *self.hosts.entry(address).or_insert_with(|| {
            let view = owner(address, nodes)?;
            Some((index_of(&view, indexes, config)?, view.cluster != config.cluster))
        })
    }
}

fn index_of(view: &NodeView, indexes: &NodeIndexes, config: &PlanConfig) -> Option<NodeIndex> {
    if view.is_local(config) { Some(NodeIndex::LOCAL) } else { indexes.get(&view.cluster, &view.name) }
}

fn owner(address: IpAddr, nodes: &Snapshot<NodeRow>) -> Option<NodeView> {
    let row = nodes.by_index(&NodeLookup::Address(address)).next()?;
    node_view(nodes, &row.cluster, &row.name)
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
