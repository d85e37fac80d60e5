//! The incremental pass: what a batch of changes touches, and the rows that follow.

use super::claims::{Changed, Claims, Lengths, OWN, Party, Standing};
use super::conflicts::{Conflicts, claim_conflict, key_conflict};
use super::hops::RestoredHops;
use super::hosts::Hosts;
use super::keys::Node;
use super::nodes::node_view;
use super::prefixes::{Holder, Views};
use super::reserved::Reserved;
use super::{Known, NodeIndexes, NodeView, PlanConfig, prefix_entry, route_entry};
use crate::cidr::CidrIdentity;
use crate::conflict::{Claimed, ConflictCounts, ConflictKind, ConflictRow};
use crate::reserved::ReservedRow;
use crate::rows::{
    LearnedNextHop, LearnedRoute, NodeIndex, NodePath, NodeRow, PathKind, PrefixEntry, PrefixRow, RouteEntry,
    WireguardKey, WireguardPeer,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::aggregate::least;
use tombolo_base::clock::Moment;
use tombolo_base::ids::{ClusterName, IdentityId};
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
    /// Identities of addresses outside the mesh.
    pub cidrs: Snapshot<CidrIdentity>,
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

/// How long clusters that were known at the start are founders: as long as what they published outlives them, the life of its leases.
const FOUNDING: Duration = Duration::from_secs(15 * 60);

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
    /// When it began, and now.
    began: Moment,
    now: Moment,
    /// At which node each prefix of other clusters was in the datapath when this life began.
    restored: BTreeMap<Prefix, IpAddr>,
    /// Where each WireGuard peer was when this life began.
    restored_keys: BTreeMap<WireguardKey, IpAddr>,
    /// Lengths of prefix rows that are no single addresses.
    masked: Lengths,
    /// Which rows a change of a node touches.
    hosts: Hosts,
    /// Where the API server answers.
    apiservers: BTreeSet<IpAddr>,
    /// What the next step looks at besides what changed in its tables.
    touched: Affected,
    /// Whether the next step must carry sources.
    sources_touched: bool,
}

/// Keys that a set of changes touches.
#[derive(Debug, Default, PartialEq)]
struct Affected {
    nodes: BTreeSet<(ClusterName, Arc<str>)>,
    prefixes: BTreeSet<Prefix>,
    routes: BTreeSet<Prefix>,
    /// Claims of nodes that may have become a conflict, or none any more.
    claims: BTreeSet<Prefix>,
    /// Likewise keys.
    keys: BTreeSet<WireguardKey>,
}

/// What is claimed now and was not, and the other way round.
#[derive(Default)]
struct Claiming {
    gone: Vec<(Prefix, Party)>,
    new: Vec<(Standing, Party, Prefix)>,
    gone_keys: Vec<(WireguardKey, Party, Node)>,
    new_keys: Vec<(Standing, Party, Node, WireguardKey)>,
    /// Pod prefixes that are no claims, because they lie in what is reserved.
    kept_out: BTreeSet<Prefix>,
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
            began: Moment::ZERO,
            now: Moment::ZERO,
            restored: BTreeMap::new(),
            restored_keys: BTreeMap::new(),
            masked: Lengths::default(),
            hosts: Hosts::default(),
            apiservers: BTreeSet::new(),
            touched: Affected::default(),
            sources_touched: false,
        }
    }

    /// Takes over which node (by its tunnel endpoint) the datapath had each prefix of other clusters at: of clusters that claim one, the
    /// earlier life's choice stays. Let go when the founders have spoken.
    pub fn restore_claims(&mut self, held: impl IntoIterator<Item = (Prefix, IpAddr)>) {
        self.restored.extend(held);
    }

    /// Takes over at which address the device had each WireGuard peer: likewise.
    pub fn restore_keys(&mut self, held: impl IntoIterator<Item = (WireguardKey, IpAddr)>) {
        self.restored_keys.extend(held);
    }

    /// Tells the time: for the founders' while, and (seconds since 1970) for new conflicts.
    pub const fn set_time(&mut self, now: Moment, unix_secs: u64) {
        self.now = now;
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
        let mut affected = std::mem::take(&mut self.touched);
        // There may be hundreds, and most batches only bring rows.
        let sources_changed = nodes.as_ref().is_some_and(|batch| batch.sources_changed)
            || prefixes.as_ref().is_some_and(|batch| batch.sources_changed)
            || learned.as_ref().is_some_and(|batch| batch.sources_changed)
            || std::mem::take(&mut self.sources_touched);
        if self.founding.is_none() {
            let of_nodes = nodes.iter().flat_map(|batch| batch.snapshot.sources());
            let of_prefixes = prefixes.iter().flat_map(|batch| batch.snapshot.sources());
            let known = of_nodes.chain(of_prefixes).map(|(source, _)| *source);
            self.founding = Some(known.filter(|source| matches!(source, Source::Cluster(_))).collect());
            self.began = self.now;
        }
        if let Some(batch) = prefixes {
            affected.prefixes.extend(batch.keys.iter().map(|(prefix, _)| *prefix));
            let masked = batch.keys.iter().filter(|(prefix, _)| !prefix.is_host());
            masked.for_each(|(prefix, _)| self.cidrs_at(*prefix, &mut affected));
            self.note_rows(&batch);
            self.inputs.prefixes = batch.snapshot;
        }
        if let Some(batch) = nodes {
            for key in &batch.keys {
                self.node_changed(self.inputs.nodes.get(key), &mut affected);
                self.node_changed(batch.snapshot.get(key), &mut affected);
            }
            let claiming = self.claims_of(&batch);
            let changed = self.claim(claiming, &mut affected);
            self.inputs.nodes = batch.snapshot;
            self.claims_changed(&changed, &mut affected);
        }
        if let Some(batch) = learned {
            affected.routes.extend(batch.keys.iter().map(|(prefix, _)| *prefix));
            batch.keys.iter().filter_map(|key| batch.snapshot.get(key)).for_each(|row| self.hops.heard(row));
            if batch.sources_changed && batch.snapshot.unconfirmed_sources().is_empty() {
                affected.routes.extend(self.hops.release());
            }
            self.inputs.learned = batch.snapshot;
        }
        self.write(&affected, out);
        if sources_changed {
            self.carry_sources(out);
            self.found();
        }
        self.end_founding();
    }

    /// Sources whose first list is complete are no founders any more: what they say from now on comes later than what is there.
    fn found(&mut self) {
        let Some(founding) = self.founding.as_mut().filter(|founding| !founding.is_empty()) else { return };
        let Inputs { nodes, prefixes, .. } = &self.inputs;
        let told = least(nodes.sources().chain(prefixes.sources()));
        founding.retain(|source| told.get(source).is_some_and(|state| *state != SourceState::Initialized));
    }

    /// Nor are those that have not been read for long: what an earlier life left is not remembered for ever.
    fn end_founding(&mut self) {
        let over = self.now.since(self.began) > FOUNDING;
        let Some(founding) = self.founding.as_mut().filter(|founding| over || founding.is_empty()) else {
            return;
        };
        founding.clear();
        self.restored_keys.clear();
        self.restored.clear();
    }

    /// Keeps up what finds rows by their lengths and nodes.
    fn note_rows(&mut self, batch: &Batch<PrefixRow>) {
        for key in &batch.keys {
            let (old, new) = (self.inputs.prefixes.get(key), batch.snapshot.get(key));
            self.hosts.change(old, new);
            match (old, new) {
                _ if key.0.is_host() => {}
                (None, Some(_)) => self.masked.add(key.0),
                (Some(_), None) => self.masked.remove(key.0),
                _ => {}
            }
        }
    }

    /// Takes over what this cluster has besides pods and nodes: other clusters' pods are refused there. The next step writes what
    /// follows.
    pub fn reserve(&mut self, rows: &Snapshot<ReservedRow>) {
        let reserved = Reserved::of(rows.iter().map(|row| row.prefix));
        let changed = reserved.difference(&self.claims.reserved);
        let concerned = |row: &&NodeRow| {
            row.pod_cidrs.iter().any(|cidr| changed.iter().any(|prefix| prefix.overlaps(cidr)))
        };
        let nodes = self.inputs.nodes.clone();
        let rows: Vec<&NodeRow> = nodes.iter().filter(concerned).collect();
        let mut affected = std::mem::take(&mut self.touched);
        let names: BTreeSet<Node> = rows.iter().map(|row| (row.cluster, row.name.clone())).collect();
        let views = |reserved: &Reserved| -> Vec<_> {
            names
                .iter()
                .map(|(cluster, name)| node_view(&nodes, reserved, &self.config, cluster, name))
                .collect()
        };
        let (before, after) = (views(&self.claims.reserved), views(&reserved));
        let mut claiming = Claiming::default();
        for (before, after) in before.iter().zip(&after) {
            self.compare(before.as_ref(), after.as_ref(), &mut claiming);
        }
        self.claims.reserved = reserved;
        rows.iter().for_each(|row| self.node_changed(Some(row), &mut affected));
        let claims = self.claim(claiming, &mut affected);
        self.claims_changed(&claims, &mut affected);
        changed.iter().for_each(|prefix| self.rows_at(*prefix, &mut affected));
        self.touched = affected;
    }

    /// Takes over which addresses outside the mesh policies know, and by which identity. The next step writes what follows.
    pub fn know_cidrs(&mut self, batch: Batch<CidrIdentity>) {
        self.touched.prefixes.extend(batch.keys);
        self.sources_touched |= batch.sources_changed;
        self.inputs.cidrs = batch.snapshot;
    }

    /// Takes over where the API server answers: another node at such an address has its identity. The next step writes
    /// what follows.
    pub fn know_apiservers(&mut self, addresses: BTreeSet<IpAddr>) {
        let changed = self.apiservers.symmetric_difference(&addresses).copied();
        self.touched.prefixes.extend(changed.map(Prefix::host));
        self.apiservers = addresses;
    }

    /// The identities of prefixes inside that one depend on what is around them.
    fn cidrs_at(&self, prefix: Prefix, affected: &mut Affected) {
        let inside = self.inputs.cidrs.from_key(&prefix).take_while(|row| row.prefix <= prefix.last());
        affected.prefixes.extend(inside.map(|row| row.prefix));
    }

    /// What the nodes of a batch claim now and did not before, and the other way round.
    fn claims_of(&self, batch: &Batch<NodeRow>) -> Claiming {
        let mut all = Claiming::default();
        let names: BTreeSet<_> = batch.keys.iter().map(|(_, cluster, name)| (cluster, name)).collect();
        for (cluster, name) in names {
            let view = |nodes| node_view(nodes, &self.claims.reserved, &self.config, cluster, name);
            self.compare(view(&self.inputs.nodes).as_ref(), view(&batch.snapshot).as_ref(), &mut all);
        }
        all
    }

    fn compare(&self, before: Option<&NodeView>, after: Option<&NodeView>, all: &mut Claiming) {
        let claims = |view: Option<&NodeView>| -> BTreeSet<_> {
            let of =
                |view: &NodeView| view.claimed().into_iter().map(|prefix| (prefix, view.party)).collect();
            view.map(of).unwrap_or_default()
        };
        all.kept_out.extend(before.iter().chain(&after).flat_map(|view| view.refused.iter().copied()));
        let (old, now) = (claims(before), claims(after));
        all.gone.extend(old.difference(&now).copied());
        let key =
            |view: &NodeView| Some((view.wireguard_key?, view.party, (view.cluster, view.name.clone())));
        let (old_key, key) = (before.and_then(key), after.and_then(key));
        if let Some(view) = after {
            let made = now.difference(&old);
            let standing = |prefix| self.standing(self.restored.get(prefix), view);
            all.new.extend(made.map(|(prefix, party)| (standing(prefix), *party, *prefix)));
            let fresh = key.clone().filter(|_| key != old_key);
            let standing = |key: &WireguardKey| self.standing(self.restored_keys.get(key), view);
            all.new_keys.extend(fresh.map(|(key, party, node)| (standing(&key), party, node, key)));
        }
        all.gone_keys.extend(old_key.filter(|old| Some(old) != key.as_ref()));
    }

    /// Takes in claims that are made and given up. Gives what became of claims.
    fn claim(&mut self, mut claiming: Claiming, affected: &mut Affected) -> Changed {
        let mut changed = Changed::new();
        affected.claims.extend(claiming.kept_out);
        // In an order that does not depend on how the changes came.
        claiming.new.sort_unstable();
        claiming.new_keys.sort_unstable();
        self.claim_keys(claiming.gone_keys, claiming.new_keys, affected);
        // First what is claimed: what moves from one node of a cluster to another stays the cluster's, whoever waits for it.
        for (standing, party, prefix) in claiming.new {
            affected.claims.insert(prefix);
            self.claims.add(prefix, party, standing, &mut changed);
        }
        for (prefix, party) in claiming.gone {
            affected.claims.insert(prefix);
            self.claims.remove(prefix, party, &mut changed);
        }
        // Rows that name one of the nodes which make a claim.
        let made: Vec<Prefix> = affected.claims.iter().copied().collect();
        for prefix in made {
            affected.claims.extend(self.claims.refused_at(prefix).into_iter().map(|(refused, _)| refused));
            affected.prefixes.extend(self.conflicts.within(ConflictKind::Address, prefix));
        }
        changed
    }

    /// Takes in which nodes publish which keys. Who loses one, and who gets it, is planned again.
    fn claim_keys(
        &mut self,
        gone: Vec<(WireguardKey, Party, Node)>,
        new: Vec<(Standing, Party, Node, WireguardKey)>,
        affected: &mut Affected,
    ) {
        let keys: BTreeSet<_> =
            gone.iter().map(|(key, ..)| *key).chain(new.iter().map(|(.., key)| *key)).collect();
        let holders = |claims: &Claims| -> Vec<Node> {
            keys.iter().filter_map(|key| claims.keys.holder(*key).cloned()).collect()
        };
        affected.nodes.extend(holders(&self.claims));
        for (standing, party, node, key) in new {
            self.claims.keys.add(key, party, node, standing);
        }
        for (key, party, node) in gone {
            self.claims.keys.remove(key, party, node);
        }
        affected.nodes.extend(holders(&self.claims));
        affected.keys.extend(keys);
    }

    /// How well a claim of a node is founded; `restored` is where the earlier life had it.
    fn standing(&self, restored: Option<&IpAddr>, view: &NodeView) -> Standing {
        if view.party == OWN {
            return Standing::Own;
        }
        if restored.is_some_and(|ip| view.underlay.contains(ip)) {
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
            self.cidrs_at(*prefix, affected);
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
            self.rows_at(*prefix, affected);
        }
    }

    /// The prefix rows that overlap a prefix.
    fn rows_at(&self, prefix: Prefix, affected: &mut Affected) {
        let inside = self.inputs.prefixes.from_key(&(prefix, Source::Manifests));
        let inside = inside.take_while(|row| row.prefix <= prefix.last());
        affected.prefixes.extend(inside.map(|row| row.prefix));
        let masked = self.masked.above(prefix).filter(|above| {
            let row = self.inputs.prefixes.from_key(&(*above, Source::Manifests)).next();
            row.is_some_and(|row| row.prefix == *above)
        });
        affected.prefixes.extend(masked);
    }

    /// A desired table knows the sources of the tables it is made of: the reconciler prunes by them. Rows come first: a
    /// source that counts as ready before its rows are there would have them pruned, and written again.
    fn carry_sources(&self, out: &Outputs) {
        let Inputs { nodes, prefixes, learned, cidrs } = &self.inputs;
        let of_nodes = least(nodes.sources());
        let of_entries = least(nodes.sources().chain(prefixes.sources()).chain(cidrs.sources()));
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
            affected.prefixes.extend(self.hosts.at(address.ip, &self.inputs.prefixes));
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
        let founding = &*self.founding.get_or_insert_default();
        let (mut contests, mut views) = (Vec::new(), Views::new(known));
        out.entries.commit(|txn| {
            for prefix in &affected.prefixes {
                let present = txn.current().get(prefix).map(|entry| entry.source);
                let restored = self.restored.get(prefix).copied();
                let holder = Holder { source: present.as_ref(), restored, founding };
                let decided = prefix_entry(*prefix, &self.inputs.prefixes, &mut views, &self.indexes, holder);
                if !decided.contest.is_empty()
                    || self.conflicts.has(ConflictKind::Address, Claimed::Prefix(*prefix))
                {
                    contests.push((*prefix, decided.contest));
                }
                let outside = || cidr_entry(*prefix, &self.inputs, &self.claims, &self.masked);
                let entry = decided.entry.map(|entry| placed(entry, &self.inputs.cidrs, &self.apiservers));
                match entry.or_else(outside) {
                    Some(entry) => drop(txn.upsert(entry)),
                    None => drop(txn.remove(prefix)),
                }
            }
        });
        if contests.is_empty() && affected.claims.is_empty() && affected.keys.is_empty() {
            return;
        }
        out.conflicts.commit(|txn| {
            for (prefix, contest) in contests {
                self.conflicts.tell(txn, ConflictKind::Address, Claimed::Prefix(prefix), contest);
            }
            for prefix in &affected.claims {
                let found = claim_conflict(*prefix, known);
                for kind in [ConflictKind::PodCidr, ConflictKind::NodeAddress] {
                    let claimants = found.as_ref().filter(|(of, _)| *of == kind).map(|(_, all)| all.clone());
                    self.conflicts.tell(txn, kind, Claimed::Prefix(*prefix), claimants.unwrap_or_default());
                }
            }
            for key in &affected.keys {
                let claimants = key_conflict(*key, known);
                self.conflicts.tell(txn, ConflictKind::WireguardKey, Claimed::Key(*key), claimants);
            }
            let entries = out.entries.table().snapshot();
            self.conflicts.refill(txn, |kind, key| match (kind, key) {
                (_, Claimed::Key(key)) => key_conflict(key, known),
                (ConflictKind::Address, Claimed::Prefix(prefix)) => {
                    let source = entries.get(&prefix).map(|entry| &entry.source);
                    let holder = Holder { source, restored: self.restored.get(&prefix).copied(), founding };
                    prefix_entry(prefix, &self.inputs.prefixes, &mut Views::new(known), &self.indexes, holder)
                        .contest
                }
                (_, Claimed::Prefix(prefix)) => {
                    claim_conflict(prefix, known).map_or_else(Vec::new, |(_, all)| all)
                }
            });
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
                let wanted = view.as_ref().and_then(|view| known.peer(view, local));
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

/// Another node's address by the number that policies have for it, or by that of the API server if that is there.
fn placed(entry: PrefixEntry, cidrs: &Snapshot<CidrIdentity>, apiservers: &BTreeSet<IpAddr>) -> PrefixEntry {
    if entry.identity != IdentityId::REMOTE_NODE || !entry.prefix.is_host() {
        return entry;
    }
    let own = cidrs.get(&entry.prefix).map(|row| row.identity).filter(|id| id.is_node());
    let apiserver = apiservers.contains(&entry.prefix.address());
    let identity = own.unwrap_or(if apiserver { IdentityId::KUBE_APISERVER } else { entry.identity });
    PrefixEntry { identity, ..entry }
}

/// The entry of a prefix outside the mesh. What is inside the prefixes of nodes is theirs alone: policies know pods and nodes
/// by their labels, and a pod that nobody has named yet must not be what such a prefix would make of it.
fn cidr_entry(prefix: Prefix, inputs: &Inputs, claims: &Claims, masked: &Lengths) -> Option<PrefixEntry> {
    let row = inputs.cidrs.get(&prefix)?;
    let said = |above: Prefix| {
        let row = inputs.prefixes.from_key(&(above, Source::Manifests)).next();
        row.is_some_and(|row| row.prefix == above)
    };
    if claims.within(prefix) || masked.above(prefix).any(said) {
        return None;
    }
    Some(PrefixEntry {
        source: row.source,
        prefix,
        identity: row.identity,
        node: NodeIndex::LOCAL,
        node_address: false,
        remote_cluster: false,
    })
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
#[path = "cidr_tests.rs"]
mod cidr_tests;
#[cfg(test)]
#[path = "conflict_property_tests.rs"]
mod conflict_property_tests;
#[cfg(test)]
#[path = "conflict_tests.rs"]
mod conflict_tests;
#[cfg(test)]
#[path = "planner_tests.rs"]
pub(super) mod tests;
