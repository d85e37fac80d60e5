//! The incremental pass: what a batch of changes touches, and the rows that follow.

use super::claims::{Changed, Claims, Lengths, OWN, Standing};
use super::conflicts::{Conflicts, claim_conflict};
use super::hops::RestoredHops;
use super::nodes::node_view;
use super::prefixes::Holder;
use super::{Known, NodeIndexes, NodeView, PlanConfig, prefix_entry, route_entry};
use crate::conflict::{ConflictCounts, ConflictKind, ConflictRow};
use crate::rows::{
    LearnedNextHop, LearnedRoute, NodeIndex, NodePath, NodeRow, PathKind, PrefixEntry, PrefixRow, RouteEntry,
    WireguardPeer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
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
    /// What several clusters claim.
    pub conflicts: Writer<ConflictRow>,
}

/// Plans paths, prefixes, routes and WireGuard peers.
pub struct Planner {
    config: PlanConfig,
    indexes: NodeIndexes,
    inputs: Inputs,
    hops: RestoredHops,
    claims: Claims,
    conflicts: Conflicts,
    /// Clusters that were known when this life began and have not told their first list.
    founding: Option<BTreeSet<Source>>,
    /// At which node each prefix was in the datapath when this life began.
    restored: BTreeMap<Prefix, IpAddr>,
    /// Lengths of prefix rows that are no single addresses.
    masked: Lengths,
}

/// Keys that a set of changes touches.
#[derive(Debug, Default, PartialEq)]
struct Affected {
    nodes: BTreeSet<(ClusterName, Arc<str>)>,
    prefixes: BTreeSet<Prefix>,
    routes: BTreeSet<Prefix>,
    /// Claims of nodes that may have become a conflict, or none any more.
    claims: BTreeSet<Prefix>,
}

impl Planner {
    /// A planner whose node numbers continue from what the datapath holds.
    #[must_use]
    pub fn new(config: PlanConfig, indexes: NodeIndexes) -> Self {
        Self {
            config,
            indexes,
            inputs: Inputs::default(),
            hops: RestoredHops::default(),
            claims: Claims::default(),
            conflicts: Conflicts::default(),
            founding: None,
            restored: BTreeMap::new(),
            masked: Lengths::default(),
        }
    }

    /// Takes over which node (by its tunnel endpoint) the datapath had each pod prefix at: of clusters that claim one, the earlier life's
    /// choice stays.
    pub fn restore_claims(&mut self, held: impl IntoIterator<Item = (Prefix, IpAddr)>) {
        self.restored.extend(held);
    }

    /// Tells the time (seconds since 1970) that new conflicts are given.
    pub const fn set_time(&mut self, unix_secs: u64) {
        self.conflicts.now = unix_secs;
    }

    /// How many conflicts were found so far.
    #[must_use]
    pub fn conflict_counts(&self) -> Arc<ConflictCounts> {
        self.conflicts.counts.clone()
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
        if self.founding.is_none() {
            let of_nodes = nodes.iter().flat_map(|batch| batch.snapshot.sources());
            let of_prefixes = prefixes.iter().flat_map(|batch| batch.snapshot.sources());
            let known = of_nodes.chain(of_prefixes).map(|(source, _)| *source);
            self.founding = Some(known.filter(|source| matches!(source, Source::Cluster(_))).collect());
        }
        if let Some(batch) = prefixes {
            affected.prefixes.extend(batch.keys.iter().map(|(prefix, _)| *prefix));
            self.count_lengths(&batch);
            self.inputs.prefixes = batch.snapshot;
        }
        if let Some(batch) = nodes {
            for key in &batch.keys {
                self.node_changed(self.inputs.nodes.get(key), &mut affected);
                self.node_changed(batch.snapshot.get(key), &mut affected);
            }
            let changed = self.claim(&batch, &mut affected);
            self.inputs.nodes = batch.snapshot;
            self.claims_changed(&changed, &mut affected);
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
        self.found();
    }

    /// Sources whose first list is complete are no founders any more: what they say from now on comes later than what is there.
    fn found(&mut self) {
        let Some(founding) = self.founding.as_mut().filter(|founding| !founding.is_empty()) else {
            return self.restored.clear();
        };
        let Inputs { nodes, prefixes, .. } = &self.inputs;
        let told = least(nodes.sources().chain(prefixes.sources()));
        founding.retain(|source| told.get(source).is_some_and(|state| *state != SourceState::Initialized));
        if founding.is_empty() {
            self.restored.clear();
        }
    }

    fn count_lengths(&mut self, batch: &Batch<PrefixRow>) {
        for key in batch.keys.iter().filter(|(prefix, _)| !prefix.is_host()) {
            match (self.inputs.prefixes.get(key).is_some(), batch.snapshot.get(key).is_some()) {
                (false, true) => self.masked.add(key.0),
                (true, false) => self.masked.remove(key.0),
                _ => {}
            }
        }
    }

    /// Takes in what the nodes of a batch claim now, and no more. Gives what became of claims.
    fn claim(&mut self, batch: &Batch<NodeRow>, affected: &mut Affected) -> Changed {
        let mut changed = Changed::new();
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        let names: BTreeSet<_> = batch.keys.iter().map(|(_, cluster, name)| (cluster, name)).collect();
        for (cluster, name) in names {
            let view = |nodes| node_view(nodes, &self.config, cluster, name);
            let (before, after) = (view(&self.inputs.nodes), view(&batch.snapshot));
            let claims = |view: &Option<NodeView>| {
                let of = |view: &NodeView| {
                    view.claimed().into_iter().map(|prefix| (prefix, view.party)).collect::<BTreeSet<_>>()
                };
                view.as_ref().map(of).unwrap_or_default()
            };
            let (old, now) = (claims(&before), claims(&after));
            gone.extend(old.difference(&now).copied());
            if let Some(view) = &after {
                let made = now.difference(&old).copied();
                new.extend(made.map(|(prefix, party)| (self.standing(prefix, view), party, prefix)));
            }
        }
        for (prefix, party) in gone {
            affected.claims.insert(prefix);
            self.claims.remove(prefix, party, &mut changed);
        }
        // In an order that does not depend on how the changes came.
        new.sort_unstable();
        for (standing, party, prefix) in new {
            affected.claims.insert(prefix);
            self.claims.add(prefix, party, standing, &mut changed);
        }
        // Rows that name one of the nodes which make a claim.
        let made: Vec<Prefix> = affected.claims.iter().copied().collect();
        for prefix in made {
            affected.claims.extend(self.claims.refused_at(prefix).into_iter().map(|(refused, _)| refused));
            affected.prefixes.extend(self.conflicts.within(ConflictKind::Address, prefix));
        }
        changed
    }

    fn standing(&self, prefix: Prefix, view: &NodeView) -> Standing {
        if view.party == OWN {
            return Standing::Own;
        }
        if self.restored.get(&prefix).is_some_and(|ip| view.underlay.contains(ip)) {
            return Standing::Restored;
        }
        let founding = self.founding.as_ref().is_some_and(|founding| founding.contains(&view.source));
        if founding { Standing::Founder } else { Standing::Later }
    }

    /// What a claim that was accepted, refused or given up touches: the nodes that make it, and every address inside.
    fn claims_changed(&self, changed: &Changed, affected: &mut Affected) {
        for ((prefix, party), concerns_others) in changed {
            affected.claims.insert(*prefix);
            affected.prefixes.insert(*prefix);
            affected.routes.insert(*prefix);
            let known = Known { nodes: &self.inputs.nodes, claims: &self.claims, config: &self.config };
            for row in known.claimants(*prefix) {
                if super::nodes::party(row, &self.config) == *party {
                    self.node_changed(Some(row), affected);
                }
            }
            if !concerns_others {
                continue;
            }
            affected.claims.extend(self.claims.refused_at(*prefix).into_iter().map(|(refused, _)| refused));
            let inside = self.inputs.prefixes.from_key(&(*prefix, Source::Manifests));
            let inside = inside.take_while(|row| row.prefix <= prefix.last());
            affected.prefixes.extend(inside.map(|row| row.prefix));
            let masked = self.masked.above(*prefix).filter(|above| {
                let row = self.inputs.prefixes.from_key(&(*above, Source::Manifests)).next();
                row.is_some_and(|row| row.prefix == *above)
            });
            affected.prefixes.extend(masked);
        }
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
        affected.nodes.insert((row.cluster, row.name.clone()));
        for address in &row.addresses {
            affected.prefixes.insert(Prefix::host(address.ip));
            affected.prefixes.extend(self.inputs.prefixes.by_index(&address.ip).map(|row| row.prefix));
        }
        affected.prefixes.extend(row.pod_cidrs.iter().copied());
        affected.routes.extend(row.pod_cidrs.iter().copied());
        if row.cluster == self.config.cluster && row.name == self.config.node {
            // This node's own addresses decide source addresses and underlay families everywhere.
            affected.nodes.extend(self.inputs.nodes.iter().map(|row| (row.cluster, row.name.clone())));
            affected.routes.extend(self.inputs.nodes.iter().flat_map(|row| row.pod_cidrs.iter().copied()));
            affected.routes.extend(self.inputs.learned.iter().map(|row| row.prefix));
        }
    }

    fn write(&mut self, affected: &Affected, out: &Outputs) {
        let known = Known { nodes: &self.inputs.nodes, claims: &self.claims, config: &self.config };
        let local = known.local();
        // Prefix entries name node rows: rows come first, and go last.
        let gone = self.plan_nodes(&affected.nodes, local.as_ref(), out);
        self.write_entries(affected, out);
        for (cluster, name) in gone {
            let here = *cluster == self.config.cluster && *name == self.config.node;
            let index = if here { Some(NodeIndex::LOCAL) } else { self.indexes.release(cluster, name) };
            if let Some(index) = index {
                out.paths.remove(&index);
            }
        }
        let known = Known { nodes: &self.inputs.nodes, claims: &self.claims, config: &self.config };
        out.routes.commit(|txn| {
            for prefix in &affected.routes {
                let wanted = route_entry(*prefix, known, &self.inputs.learned);
                match self.hops.join(*prefix, wanted, txn.current().get(prefix)) {
                    Some(route) => drop(txn.upsert(route)),
                    None => drop(txn.remove(prefix)),
                }
            }
        });
    }

    /// The datapath's entries of prefixes, and the conflicts about them and about nodes' claims.
    fn write_entries(&mut self, affected: &Affected, out: &Outputs) {
        let known = Known { nodes: &self.inputs.nodes, claims: &self.claims, config: &self.config };
        let founding = self.founding.get_or_insert_default();
        let mut contests = Vec::new();
        out.entries.commit(|txn| {
            for prefix in &affected.prefixes {
                let present = txn.current().get(prefix).map(|entry| entry.source);
                let holder = Holder { source: present.as_ref(), founding };
                let decided = prefix_entry(*prefix, &self.inputs.prefixes, known, &self.indexes, holder);
                if !decided.contest.is_empty() || self.conflicts.has(ConflictKind::Address, *prefix) {
                    contests.push((*prefix, decided.contest));
                }
                match decided.entry {
                    Some(entry) => drop(txn.upsert(entry)),
                    None => drop(txn.remove(prefix)),
                }
            }
        });
        if contests.is_empty() && affected.claims.is_empty() {
            return;
        }
        out.conflicts.commit(|txn| {
            for (prefix, contest) in contests {
                self.conflicts.tell(txn, ConflictKind::Address, prefix, contest);
            }
            for prefix in &affected.claims {
                let found = claim_conflict(*prefix, known);
                for kind in [ConflictKind::PodCidr, ConflictKind::NodeAddress] {
                    let claimants = found.as_ref().filter(|(of, _)| *of == kind).map(|(_, all)| all.clone());
                    self.conflicts.tell(txn, kind, *prefix, claimants.unwrap_or_default());
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
        let known = Known { nodes: &self.inputs.nodes, claims: &self.claims, config: &self.config };
        let views: Vec<_> = nodes.iter().map(|key| (key, known.node(&key.0, &key.1))).collect();
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
        let known: Vec<Source> = txn.current().sources().map(|(source, _)| *source).collect();
        known
            .iter()
            .filter(|source| !sources.contains_key(source))
            .for_each(|source| txn.forget_source(source));
        sources.iter().for_each(|(source, state)| txn.set_source(source, *state));
    });
}

#[cfg(test)]
#[path = "conflict_tests.rs"]
mod conflict_tests;
#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
