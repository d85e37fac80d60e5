//! The incremental pass: what a batch of changes touches, and the rows that follow.

use super::hops::RestoredHops;
use super::prefixes::Claims;
use super::{NodeIndexes, NodeView, PlanConfig, node_view, route_entry};
use crate::rows::{
    LearnedNextHop, LearnedRoute, NodeIndex, NodePath, NodeRow, PathKind, PrefixEntry, PrefixRow, RouteEntry,
    WireguardPeer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::aggregate::least;
use tombolo_base::ids::ClusterName;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Row, Snapshot, Writer};

/// The tables the plan reads, as they were when it last ran.
#[derive(Clone, Default)]
pub struct Inputs {
    /// Nodes.
    pub nodes: Snapshot<NodeRow>,
    /// Prefixes.
    pub prefixes: Snapshot<PrefixRow>,
    /// Routes learned over BGP.
    pub learned: Snapshot<LearnedRoute>,
}

/// The tables the plan writes.
pub struct Outputs {
    /// Paths by node.
    pub paths: Writer<NodePath>,
    /// What the datapath knows of prefixes.
    pub entries: Writer<PrefixEntry>,
    /// Kernel routes.
    pub routes: Writer<RouteEntry>,
    /// WireGuard peers.
    pub peers: Writer<WireguardPeer>,
}

/// Plans paths, prefixes, routes and WireGuard peers.
pub struct Planner {
    config: PlanConfig,
    indexes: NodeIndexes,
    inputs: Inputs,
    hops: RestoredHops,
}

/// Keys that a set of changes touches.
#[derive(Debug, Default, PartialEq)]
struct Affected {
    nodes: BTreeSet<(ClusterName, Arc<str>)>,
    prefixes: BTreeSet<Prefix>,
    routes: BTreeSet<Prefix>,
}

impl Planner {
    /// A planner whose node numbers continue from what the datapath holds.
    #[must_use]
    pub fn new(config: PlanConfig, indexes: NodeIndexes) -> Self {
        Self { config, indexes, inputs: Inputs::default(), hops: RestoredHops::default() }
    }

    /// Takes over the next hops of the kernel's BGP routes. Each stays until a session has named it, or until every
    /// source of learned routes is initialised (which a silent session delays by 60 s at most).
    pub fn restore_hops(&mut self, hops: impl IntoIterator<Item = (Prefix, BTreeSet<LearnedNextHop>)>) {
        self.hops.restore(hops);
    }

    /// What it plans for.
    #[must_use]
    pub const fn config(&self) -> &PlanConfig {
        &self.config
    }

    /// Takes in what changed and writes the rows that follow. The cost follows the change.
    pub fn step(
        &mut self,
        nodes: Option<Batch<NodeRow>>,
        prefixes: Option<Batch<PrefixRow>>,
        learned: Option<Batch<LearnedRoute>>,
        out: &Outputs,
    ) {
        let mut affected = Affected::default();
        if let Some(batch) = nodes {
            for key in &batch.keys {
                self.node_changed(self.inputs.nodes.get(key), &mut affected);
                self.node_changed(batch.snapshot.get(key), &mut affected);
            }
            self.inputs.nodes = batch.snapshot;
        }
        if let Some(batch) = prefixes {
            affected.prefixes.extend(batch.keys.iter().map(|(prefix, _)| *prefix));
            self.inputs.prefixes = batch.snapshot;
        }
        if let Some(batch) = learned {
            affected.routes.extend(batch.keys.iter().map(|(prefix, _)| *prefix));
            batch.keys.iter().filter_map(|key| batch.snapshot.get(key)).for_each(|row| self.hops.heard(row));
            if batch.snapshot.unconfirmed_sources().is_empty() {
                affected.routes.extend(self.hops.release());
            }
            self.inputs.learned = batch.snapshot;
        }
        self.write(&affected, out);
        self.carry_sources(out);
    }

    /// A desired table knows the sources of the tables it is made of: the reconciler prunes by them. Rows come first: a
    /// source that counts as ready before its rows are there would have them pruned, and written again.
    fn carry_sources(&self, out: &Outputs) {
        let Inputs { nodes, prefixes, learned, .. } = &self.inputs;
        let of_nodes = least(nodes.sources());
        let of_entries = least(nodes.sources().chain(prefixes.sources()));
        let of_routes = least(nodes.sources().chain(learned.sources()));
        carry(&of_nodes, &out.paths);
        carry(&of_nodes, &out.peers);
        carry(&of_entries, &out.entries);
        carry(&of_routes, &out.routes);
    }

    fn node_changed(&self, row: Option<&NodeRow>, affected: &mut Affected) {
        let Some(row) = row else { return };
        affected.nodes.insert((row.cluster.clone(), row.name.clone()));
        for address in &row.addresses {
            affected.prefixes.insert(Prefix::host(address.ip));
            affected.prefixes.extend(self.inputs.prefixes.by_index(&address.ip).map(|row| row.prefix));
        }
        affected.prefixes.extend(row.pod_cidrs.iter().copied());
        affected.routes.extend(row.pod_cidrs.iter().copied());
        if row.cluster == self.config.cluster && row.name == self.config.node {
            // This node's own addresses decide source addresses and underlay families everywhere.
            affected
                .nodes
                .extend(self.inputs.nodes.iter().map(|row| (row.cluster.clone(), row.name.clone())));
            affected.routes.extend(self.inputs.nodes.iter().flat_map(|row| row.pod_cidrs.iter().copied()));
            affected.routes.extend(self.inputs.learned.iter().map(|row| row.prefix));
        }
    }

    fn write(&mut self, affected: &Affected, out: &Outputs) {
        let local = node_view(&self.inputs.nodes, &self.config.cluster, &self.config.node);
        // Prefix entries name node rows: rows come first, and go last.
        let gone = self.plan_nodes(&affected.nodes, local.as_ref(), out);
        let Inputs { prefixes, nodes, .. } = &self.inputs;
        let mut claims = Claims::new(prefixes, nodes, &self.indexes, &self.config);
        out.entries.commit(|txn| {
            for prefix in &affected.prefixes {
                match claims.entry(*prefix) {
                    Some(entry) => drop(txn.upsert(entry)),
                    None => drop(txn.remove(prefix)),
                }
            }
        });
        for (cluster, name) in gone {
            let here = *cluster == self.config.cluster && *name == self.config.node;
            let index = if here { Some(NodeIndex::LOCAL) } else { self.indexes.release(cluster, name) };
            if let Some(index) = index {
                out.paths.remove(&index);
            }
        }
        out.routes.commit(|txn| {
            for prefix in &affected.routes {
                let wanted = route_entry(*prefix, &self.inputs.nodes, &self.inputs.learned, &self.config);
                match self.hops.join(*prefix, wanted, txn.current().get(prefix)) {
                    Some(route) => drop(txn.upsert(route)),
                    None => drop(txn.remove(prefix)),
                }
            }
        });
    }

    /// Plans nodes; those that are gone.
    fn plan_nodes<'a>(
        &mut self,
        nodes: &'a BTreeSet<(ClusterName, Arc<str>)>,
        local: Option<&NodeView>,
        out: &Outputs,
    ) -> Vec<&'a (ClusterName, Arc<str>)> {
        let views: Vec<_> =
            nodes.iter().map(|key| (key, node_view(&self.inputs.nodes, &key.0, &key.1))).collect();
        out.peers.commit(|txn| {
            for (node, view) in &views {
                let wanted = view.as_ref().and_then(|view| view.wireguard_peer(local, &self.config));
                let old: Vec<_> = txn.current().by_index(node).map(Row::key).collect();
                for key in old.iter().filter(|key| wanted.as_ref().is_none_or(|peer| peer.key != **key)) {
                    txn.remove(key);
                }
                if let Some(peer) = wanted {
                    txn.upsert(peer);
                }
            }
        });
        out.paths.commit(|txn| {
            for view in views.iter().filter_map(|(_, view)| view.as_ref()) {
                let path = view.path(local, self.indexes.of(view, &self.config), &self.config);
                if path.path == PathKind::Local || path.underlay.is_some() {
                    txn.upsert(path);
                } else {
                    txn.remove(&path.index);
                }
            }
        });
        views.into_iter().filter(|(_, view)| view.is_none()).map(|(key, _)| key).collect()
    }
}

/// Makes the sources of a desired table those of its inputs; one that is gone holds nothing any more.
fn carry<O: Row>(sources: &BTreeMap<Source, SourceState>, output: &Writer<O>) {
    output.commit(|txn| {
        let known: Vec<Source> = txn.current().sources().map(|(source, _)| source.clone()).collect();
        known
            .iter()
            .filter(|source| !sources.contains_key(source))
            .for_each(|source| txn.forget_source(source));
        sources.iter().for_each(|(source, state)| txn.set_source(source, *state));
    });
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
