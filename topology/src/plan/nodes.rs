//! Nodes: what all sources say of one, its stable number, its path and its WireGuard peer.

use super::PlanConfig;
use super::claims::{Claims, OWN, Party};
use super::reserved::Reserved;
use crate::rows::{
    AddressKind, NodeAddress, NodeIndex, NodeLookup, NodePath, NodeRow, PathKind, WireguardKey, WireguardPeer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tombolo_base::ids::ClusterName;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;

/// What all sources together say of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// The source of the row that decides addresses and prefixes.
    pub source: Source,
    /// Whose claims it makes.
    pub(super) party: Party,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub name: Arc<str>,
    /// Its own addresses in the underlay.
    pub underlay: Vec<IpAddr>,
    /// Its addresses inside its pod prefixes.
    pub internal: Vec<IpAddr>,
    /// Its pod prefixes.
    pub pod_cidrs: Vec<Prefix>,
    /// Its WireGuard key, from whichever source knows it.
    pub wireguard_key: Option<WireguardKey>,
    /// Pod prefixes that it claims and another cluster has, or the own one reserves: nothing is made of them.
    pub refused: Vec<Prefix>,
}

/// Nodes, as far as other clusters' claims let them be.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub(super) nodes: &'a Snapshot<NodeRow>,
    pub(super) claims: &'a Claims,
    pub(super) config: &'a PlanConfig,
}

impl<'a> Known<'a> {
    /// A node without what is refused of it.
    pub(super) fn node(&self, cluster: &ClusterName, name: &Arc<str>) -> Option<NodeView> {
        let mut view = node_view(self.nodes, &self.claims.reserved, self.config, cluster, name)?;
        if self.claims.any_refused() {
            view.drop_refused(self.claims);
        }
        Some(view)
    }

    /// This node.
    pub(super) fn local(&self) -> Option<NodeView> {
        self.node(&self.config.cluster, &self.config.node)
    }

    /// The node that has an address, of one cluster or of any.
    pub(super) fn at(&self, address: IpAddr, cluster: Option<&ClusterName>) -> Option<NodeView> {
        let rows = self.nodes.by_index(&NodeLookup::Address(address));
        self.first(rows, Prefix::host(address), cluster)
    }

    /// The node whose pod prefix it is.
    pub(super) fn of_cidr(&self, prefix: Prefix) -> Option<NodeView> {
        self.first(self.nodes.by_index(&NodeLookup::PodCidr(prefix)), prefix, None)
    }

    /// A node that makes a claim for its party.
    pub(super) fn holder(&self, prefix: Prefix, whose: Party) -> Option<NodeView> {
        let row = self.claimants(prefix).find(|row| party(row, self.config) == whose)?;
        self.node(&row.cluster, &row.name)
    }

    /// The rows of nodes that claim exactly that, as a pod prefix or as an address.
    pub(super) fn claimants(&self, prefix: Prefix) -> impl Iterator<Item = &'a NodeRow> + use<'a> {
        let of_cidr = self.nodes.by_index(&NodeLookup::PodCidr(prefix));
        let address = prefix.is_host().then(|| self.nodes.by_index(&NodeLookup::Address(prefix.address())));
        of_cidr.chain(address.into_iter().flatten())
    }

    /// The desired WireGuard peer of a node: everything that lives on the node may come from it. A key that is another node's is
    /// none: packets end at the WireGuard device.
    pub(super) fn peer(&self, view: &NodeView, local: Option<&NodeView>) -> Option<WireguardPeer> {
        if !self.config.encrypt || view.is_local(self.config) {
            return None;
        }
        let key = view.wireguard_key?;
        let (cluster, name) = self.claims.keys.holder(key)?;
        let hosts = view.underlay.iter().map(|ip| Prefix::host(*ip));
        let allowed_ips: BTreeSet<_> = hosts.chain(view.pod_cidrs.iter().copied()).collect();
        (view.cluster == *cluster && view.name == *name).then_some(WireguardPeer {
            source: view.source,
            key,
            cluster: view.cluster,
            node: view.name.clone(),
            endpoint: SocketAddr::new(view.tunnel_endpoint(local)?, self.config.wireguard_port),
            allowed_ips,
        })
    }

    /// The first node that has `prefix` after all refusals: a row that merely says so, though a claim around it is refused, hides no other.
    fn first(
        &self,
        mut rows: impl Iterator<Item = &'a NodeRow>,
        prefix: Prefix,
        cluster: Option<&ClusterName>,
    ) -> Option<NodeView> {
        rows.find_map(|row| {
            let asked = cluster.is_none_or(|cluster| row.cluster == *cluster);
            let may = asked && !self.claims.is_refused(prefix, party(row, self.config));
            let view = may.then(|| self.node(&row.cluster, &row.name)).flatten()?;
            view.holds(prefix).then_some(view)
        })
    }
}

/// Whose claims a row makes.
pub(super) fn party(row: &NodeRow, config: &PlanConfig) -> Party {
    if row.cluster == config.cluster { OWN } else { row.cluster_id.get() }
}

/// Merges the rows of one node. Manifests decide over the cluster's etcd, which adds the WireGuard key. Pod prefixes of another
/// cluster in what is reserved are no claims: they stand in nobody's way.
#[must_use]
pub(super) fn node_view(
    nodes: &Snapshot<NodeRow>,
    reserved: &Reserved,
    config: &PlanConfig,
    cluster: &ClusterName,
    name: &Arc<str>,
) -> Option<NodeView> {
    let mut rows: Vec<_> = nodes.by_index(&NodeLookup::Name(*cluster, name.clone())).collect();
    rows.sort_by_key(|row| match row.source {
        Source::Local => 0,
        Source::Manifests => 1,
        _ => 2,
    });
    let first = rows.first()?;
    let party = party(first, config);
    let kept = |cidr: &&Prefix| party == OWN || reserved.at(**cidr).is_none();
    let (pod_cidrs, refused): (Vec<Prefix>, Vec<Prefix>) = first.pod_cidrs.iter().partition(kept);
    let of = |kind: fn(AddressKind) -> bool| {
        let free = |a: &&NodeAddress| kind(a.kind) && !refused.iter().any(|cidr| cidr.contains(a.ip));
        first.addresses.iter().filter(free).map(|a| a.ip).collect::<Vec<_>>()
    };
    Some(NodeView {
        source: first.source,
        party,
        cluster: *cluster,
        name: name.clone(),
        underlay: of(|kind| kind != AddressKind::CiliumInternal),
        internal: of(|kind| kind == AddressKind::CiliumInternal),
        pod_cidrs,
        wireguard_key: rows.iter().find_map(|row| row.wireguard_key),
        refused,
    })
}

impl NodeView {
    /// What the node claims for its cluster. Its addresses inside its pod prefixes share their fate.
    pub(super) fn claimed(&self) -> BTreeSet<Prefix> {
        let outside = |ip: &&IpAddr| !self.pod_cidrs.iter().any(|cidr| cidr.contains(**ip));
        let addresses =
            self.underlay.iter().chain(&self.internal).filter(outside).map(|ip| Prefix::host(*ip));
        addresses.chain(self.pod_cidrs.iter().copied()).collect()
    }

    /// Whether that is one of its pod prefixes or its own addresses.
    pub(super) fn holds(&self, prefix: Prefix) -> bool {
        let address = |ip: &IpAddr| Prefix::host(*ip) == prefix;
        self.pod_cidrs.contains(&prefix) || self.underlay.iter().chain(&self.internal).any(address)
    }

    fn drop_refused(&mut self, claims: &Claims) {
        let party = self.party;
        let (refused, kept): (Vec<_>, Vec<_>) =
            self.pod_cidrs.iter().partition(|cidr| claims.is_refused(**cidr, party));
        self.refused.extend(refused);
        self.pod_cidrs = kept;
        let lost = |ip: &IpAddr| {
            claims.is_refused(Prefix::host(*ip), party) || self.refused.iter().any(|cidr| cidr.contains(*ip))
        };
        let kept = |ips: &[IpAddr]| ips.iter().copied().filter(|ip| !lost(ip)).collect();
        let (underlay, internal) = (kept(&self.underlay), kept(&self.internal));
        (self.underlay, self.internal) = (underlay, internal);
    }

    /// Whether it is the node the plan is for.
    #[must_use]
    pub fn is_local(&self, config: &PlanConfig) -> bool {
        self.cluster == config.cluster && self.name == config.node
    }

    /// The address that tunnels end at: of the first family that both nodes have, IPv4 before IPv6.
    #[must_use]
    pub fn tunnel_endpoint(&self, local: Option<&Self>) -> Option<IpAddr> {
        let common = |ipv4: bool| {
            let ours = local.is_none_or(|node| node.underlay.iter().any(|ip| ip.is_ipv4() == ipv4));
            self.underlay.iter().copied().find(|ip| ours && ip.is_ipv4() == ipv4)
        };
        common(true).or_else(|| common(false))
    }

    /// The desired path row.
    #[must_use]
    pub fn path(&self, local: Option<&Self>, index: NodeIndex, config: &PlanConfig) -> NodePath {
        let underlay = self.tunnel_endpoint(local);
        let here = self.is_local(config);
        NodePath {
            source: self.source,
            index,
            cluster: self.cluster,
            node: self.name.clone(),
            path: if here { PathKind::Local } else { config.path },
            underlay,
            // Without the peer's key packets end at the WireGuard device; they are never sent in clear.
            encrypt: config.encrypt && !here,
            mtu: underlay.map_or_else(|| config.mtu.smallest(), |ip| config.mtu.towards(ip)),
        }
    }
}

/// Gives every node a number that stays: the datapath's prefix entries name it, also while the agent is restarting.
#[derive(Clone, Debug, Default)]
pub struct NodeIndexes {
    by_node: BTreeMap<(ClusterName, Arc<str>), NodeIndex>,
    /// Each number once.
    restored: BTreeMap<IpAddr, NodeIndex>,
    used: BTreeSet<u32>,
    /// Every number from 1 up to this one is used.
    full_to: u32,
}

impl NodeIndexes {
    /// Numbers found in the datapath at start, by the underlay address in their row.
    pub fn restore(&mut self, rows: impl IntoIterator<Item = (IpAddr, NodeIndex)>) {
        for (underlay, index) in rows.into_iter().filter(|(_, index)| *index != NodeIndex::LOCAL) {
            if self.used.insert(index.0) {
                self.restored.insert(underlay, index);
            }
        }
    }

    /// The number of a node, allocated at first sight.
    pub fn of(&mut self, view: &NodeView, config: &PlanConfig) -> NodeIndex {
        if view.is_local(config) {
            return NodeIndex::LOCAL;
        }
        let key = (view.cluster, view.name.clone());
        if let Some(index) = self.by_node.get(&key) {
            return *index;
        }
        let restored = view.underlay.iter().find_map(|ip| self.restored.remove(ip));
        let index = restored.unwrap_or_else(|| self.free());
        self.used.insert(index.0);
        self.by_node.insert(key, index);
        index
    }

    /// The lowest number that is not used.
    fn free(&mut self) -> NodeIndex {
        // Only numbers that were never looked at before are, so that many nodes do not cost their square.
        let after = self.full_to.saturating_add(1)..u32::MAX;
        let free = after.into_iter().find(|number| !self.used.contains(number)).unwrap_or(u32::MAX);
        self.full_to = free;
        NodeIndex(free)
    }

    /// The number of a node that has one.
    #[must_use]
    pub fn get(&self, cluster: &ClusterName, name: &Arc<str>) -> Option<NodeIndex> {
        self.by_node.get(&(*cluster, name.clone())).copied()
    }

    /// Gives a number back.
    pub fn release(&mut self, cluster: &ClusterName, name: &Arc<str>) -> Option<NodeIndex> {
        let index = self.by_node.remove(&(*cluster, name.clone()))?;
        self.used.remove(&index.0);
        self.full_to = self.full_to.min(index.0.saturating_sub(1));
        Some(index)
    }
}
