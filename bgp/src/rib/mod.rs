//! The routing information base: what each peer sent (Adj-RIB-In), what of it is used (Loc-RIB), what this speaker originates, and
//! what each peer still has to be told (Adj-RIB-Out, in [`out`]).
//!
//! Adj-RIB-In and Loc-RIB are views of one table: a prefix has the paths of all peers, ranked. What peers were told of learned
//! routes is a view as well: it follows from the best paths before and after a change ([`Change`]), so a peer costs no memory per prefix.

mod best;
mod ids;
mod journal;
mod marks;
mod next_hops;
pub(crate) mod out;
mod set;
mod table;

pub(crate) use best::DEFAULT_LOCAL_PREF;
use best::Selection;
use journal::Journal;
pub(crate) use journal::{LOC_RIB, PathKey};
pub(crate) use marks::Marks;
pub(crate) use set::{PathSet, PathSets};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use smallvec::SmallVec;

use crate::config::{Announcement, PeerConfig, Scope, SpeakerConfig};
use crate::family::Family;
use ids::PathIds;
use next_hops::NextHops;
use table::Tables;

/// Names a peer for as long as the speaker runs.
pub(crate) type PeerId = u32;

/// Why a received route is not considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Import policy refuses it, or there is none.
    Policy,
    /// Our own AS is in its path.
    AsLoop,
    /// We originated or reflected it (RFC 4456).
    OwnRouterId,
    /// The next hop is this speaker itself.
    OwnNextHop,
    /// It was meant for customers only and came from elsewhere (RFC 9234).
    RouteLeak,
    /// There is no way to the next hop (RFC 4271 section 9.1.2.1).
    NextHopUnreachable,
}

/// What the decision process and policies ask about the peer of a path.
#[derive(Clone, Debug)]
pub(crate) struct PeerFacts {
    pub(crate) router_id: Ipv4Addr,
    pub(crate) address: IpAddr,
    /// Its settings; of these only what needs a new session to change is of interest here.
    pub(crate) config: Arc<PeerConfig>,
}

/// A path as received from one peer.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) set: Arc<PathSet>,
    pub(crate) peer: PeerId,
    pub(crate) refused: Option<Refusal>,
    pub(crate) marks: Marks,
    /// From a peer of another AS.
    pub(crate) ebgp: bool,
    /// Place among the paths in use: 1 is the best, 0 not in use.
    rank: u8,
}

impl Route {
    pub(crate) const fn new(peer: PeerId, ebgp: bool, set: Arc<PathSet>, refused: Option<Refusal>) -> Self {
        Self { set, peer, refused, marks: Marks::NONE, ebgp, rank: 0 }
    }

    /// The same with marks.
    pub(crate) fn marked(self, marks: Marks) -> Self {
        Self { marks, ..self }
    }

    /// Whether the session it came in has ended.
    pub(crate) const fn is_stale(&self) -> bool {
        self.marks.has(Marks::STALE)
    }

    /// Whose it is, and which of theirs.
    fn key(&self) -> (PeerId, u32) {
        (self.peer, self.set.path_id())
    }

    /// Whether it is in use: the best or equal to it.
    pub(crate) const fn used(&self) -> bool {
        self.rank > 0
    }

    /// Whether it is the best.
    pub(crate) const fn best(&self) -> bool {
        self.rank == 1
    }
}

/// All paths of one prefix, by peer and path identifier. Mostly there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Destination {
    pub(crate) routes: SmallVec<[Route; 1]>,
    /// The batch of changes that this prefix was last put into.
    batch: u32,
}

impl Destination {
    /// The paths from one peer.
    fn of_peer(&self, peer: PeerId) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(move |route| route.peer == peer)
    }

    /// The best path.
    pub(crate) fn best(&self) -> Option<&Route> {
        self.routes.iter().find(|route| route.best())
    }

    /// The paths in use, best first.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Route> {
        let mut used: SmallVec<[&Route; 4]> = self.routes.iter().filter(|route| route.used()).collect();
        used.sort_unstable_by_key(|route| route.rank);
        used.into_iter()
    }
}

/// A best path, and the peer it is from.
#[derive(Clone, Debug)]
pub(crate) struct Best {
    pub(crate) set: Arc<PathSet>,
    pub(crate) peer: PeerId,
    /// The peer is in another AS.
    pub(crate) ebgp: bool,
    /// Least preferred for being long-lived stale, here or where it came from (RFC 9494).
    pub(crate) least: bool,
}

impl Best {
    pub(crate) fn of(destination: &Destination) -> Option<Self> {
        destination.best().map(Self::path)
    }

    /// Any path, in the same form.
    fn path(route: &Route) -> Self {
        let least = route.marks.has(Marks::LEAST);
        Self { set: Arc::clone(&route.set), peer: route.peer, ebgp: route.ebgp, least }
    }

    fn is(&self, other: &Self) -> bool {
        self.peer == other.peer && Arc::ptr_eq(&self.set, &other.set)
    }
}

/// A prefix whose paths in use changed; or any of its paths, if somebody hears of all.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) prefix: IpNet,
    /// Paths in use changed.
    pub(crate) used: bool,
    /// The best path before.
    pub(crate) old: Option<Best>,
    /// The best path now.
    pub(crate) new: Option<Best>,
}

impl Change {
    /// Whether the best path is another: else only those equal to it changed, of which peers hear nothing.
    pub(crate) fn of_best(&self) -> bool {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => !old.is(new),
            (None, None) => false,
            _ => true,
        }
    }
}

/// Changes among which a prefix appears at most twice, and then first with its withdrawal: so withdrawals may be sent first, and announcements
/// in any order.
pub(crate) type Batch = Vec<Change>;

/// Paths of one prefix that are kept of one peer (RFC 7911): ranking them must stay cheap.
const PATHS_MAX: usize = 64;

/// No peer's number: they start at 1.
const NOBODY: PeerId = 0;
/// Changes in one batch at most.
const BATCH_MAX: usize = 4096;

/// The table.
#[derive(Debug)]
pub(crate) struct Rib {
    tables: Tables,
    peers: BTreeMap<PeerId, PeerFacts>,
    local: BTreeMap<IpNet, BTreeMap<Scope, Announcement>>,
    counts: BTreeMap<(PeerId, Family), usize>,
    selection: Selection,
    batches: Vec<Batch>,
    /// Number of the batch that is being filled; 0 is none's.
    batch: u32,
    /// Prefixes whose own announcement changed, and whether there was one before.
    local_changes: BTreeMap<IpNet, bool>,
    /// Somebody hears of paths that are not in use: their changes are told as well.
    all_paths: bool,
    ids: PathIds,
    pub(crate) journal: Journal,
    /// The list of [`Rib::by_set`] while nothing changes: peers that come up together share it.
    listed: Option<Arc<[IpNet]>>,
    pub(crate) next_hops: NextHops,
    /// Families without route selection yet (RFC 4724 section 4.1).
    deferred: BTreeSet<Family>,
}

impl Rib {
    pub(crate) fn new(config: &SpeakerConfig) -> Self {
        Self {
            tables: Tables::new(config.jitter_seed),
            peers: BTreeMap::new(),
            local: BTreeMap::new(),
            counts: BTreeMap::new(),
            selection: Selection::new(config),
            batches: Vec::new(),
            batch: 1,
            local_changes: BTreeMap::new(),
            all_paths: false,
            ids: PathIds::default(),
            journal: Journal::default(),
            listed: None,
            next_hops: NextHops::new(config.track_next_hops, config.jitter_seed),
            deferred: BTreeSet::new(),
        }
    }

    /// Whether changes of paths that are not in use are to be told.
    pub(crate) fn tell_all_paths(&mut self, all: bool) {
        self.all_paths = all;
    }

    /// All paths of a prefix that are not refused, best first, with the identifiers under which they are sent (RFC 7911).
    pub(crate) fn paths(&self, prefix: &IpNet) -> impl Iterator<Item = (u32, Best)> {
        let routes =
            self.destination(prefix).map(|destination| destination.routes.as_slice()).unwrap_or_default();
        let routes = if self.is_deferred(Family::of(prefix)) { &[] } else { routes };
        let ordered = best::order(routes, &self.peers, &self.selection, &self.next_hops);
        ordered.into_iter().filter_map(|at| {
            let route = routes.get(at)?;
            Some((self.ids.of(route.peer, route.set.path_id()), Best::path(route)))
        })
    }

    /// Says whose paths will come; before the first of a session.
    pub(crate) fn set_peer(&mut self, peer: PeerId, facts: PeerFacts) {
        self.peers.insert(peer, facts);
    }

    /// Who a peer with paths is.
    pub(crate) fn facts(&self, peer: PeerId) -> Option<&PeerFacts> {
        self.peers.get(&peer)
    }

    /// Forgets a peer without paths.
    pub(crate) fn remove_peer(&mut self, peer: PeerId) {
        self.peers.remove(&peer);
        self.counts.retain(|(of, _), _| *of != peer);
    }

    /// Every prefix, in no order.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = (IpNet, &Destination)> {
        self.tables.iter()
    }

    pub(crate) fn destination(&self, prefix: &IpNet) -> Option<&Destination> {
        self.tables.get(prefix)
    }

    /// Every learned prefix that has a best path, those that share a set side by side: the order in which a whole table packs
    /// best into messages.
    pub(crate) fn by_set(&mut self) -> Arc<[IpNet]> {
        if let Some(listed) = &self.listed {
            return Arc::clone(listed);
        }
        let mut all: Vec<(u64, IpNet)> = self
            .destinations()
            .filter_map(|(prefix, destination)| Some((destination.best()?.set.serial(), prefix)))
            .collect();
        all.sort_unstable();
        let listed: Arc<[IpNet]> = all.into_iter().map(|(_, prefix)| prefix).collect();
        self.listed = Some(Arc::clone(&listed));
        listed
    }

    /// Whether a path is held from a peer.
    pub(crate) fn holds(&self, prefix: &IpNet, peer: PeerId, path_id: u32) -> bool {
        let routes = self.destination(prefix).map(|destination| &destination.routes);
        routes.is_some_and(|routes| routes.binary_search_by_key(&(peer, path_id), Route::key).is_ok())
    }

    /// Paths held from a peer.
    pub(crate) fn count(&self, peer: PeerId, family: Family) -> usize {
        self.counts.get(&(peer, family)).copied().unwrap_or_default()
    }

    /// Prefixes whose paths in use changed since the last call.
    pub(crate) fn take_batches(&mut self) -> Vec<Batch> {
        self.batch = self.batch.wrapping_add(1).max(1);
        std::mem::take(&mut self.batches)
    }

    /// Prefixes whose own announcement changed since the last call, and whether there was one before.
    pub(crate) fn take_local_changes(&mut self) -> BTreeMap<IpNet, bool> {
        std::mem::take(&mut self.local_changes)
    }

    /// Stores a path in place of the peer's former one (of the same path identifier). False: the peer has too many for the prefix.
    pub(crate) fn insert(&mut self, prefix: IpNet, mut route: Route) -> bool {
        let (peer, path_id) = route.key();
        if self.next_hops.is_tracked() && self.next_hops.seen(route.set.next_hop()) {
            let routes = self.tables.iter().flat_map(|(_, destination)| &destination.routes);
            let new = std::iter::once(route.set.next_hop());
            self.next_hops.sweep(routes.map(|route| route.set.next_hop()).chain(new));
        }
        let destination = self.tables.entry(prefix);
        let old = Best::of(destination);
        match destination.routes.binary_search_by_key(&(peer, path_id), Route::key) {
            Ok(at) => {
                let Some(known) = destination.routes.get_mut(at) else { return true };
                let same = Arc::ptr_eq(&known.set, &route.set) && known.refused == route.refused;
                route.rank = known.rank;
                *known = route;
                if same {
                    return true;
                }
            }
            Err(at) => {
                if path_id != 0 {
                    if destination.of_peer(peer).count() >= PATHS_MAX {
                        return false;
                    }
                    self.ids.hold(peer, path_id);
                }
                destination.routes.insert(at, route);
                *self.counts.entry((peer, Family::of(&prefix))).or_default() += 1;
            }
        }
        self.journal.note(peer, prefix, path_id);
        self.decide(prefix, peer, old, None);
        true
    }

    /// Removes the peer's path, if there is one.
    pub(crate) fn remove(&mut self, prefix: IpNet, peer: PeerId, path_id: u32) {
        let Some(destination) = self.tables.get_mut(&prefix) else { return };
        let key = (peer, path_id);
        let Ok(at) = destination.routes.binary_search_by_key(&key, Route::key) else { return };
        let old = Best::of(destination);
        let gone = destination.routes.remove(at);
        self.journal.note(peer, prefix, path_id);
        let emptied = destination.routes.is_empty();
        if destination.routes.spilled() && destination.routes.len() <= destination.routes.capacity() / 4 {
            destination.routes.shrink_to_fit();
        }
        // A path that is not in use may have kept others from it by its MED.
        let counted = gone.used() || best::compared_by_med(&gone, old.as_ref());
        if path_id != 0 {
            self.ids.release(peer, path_id);
        }
        if let Some(count) = self.counts.get_mut(&(peer, Family::of(&prefix))) {
            *count = count.saturating_sub(1);
        }
        if counted || self.all_paths {
            self.decide(prefix, peer, old, Some(&gone));
        }
        if emptied {
            self.tables.remove(&prefix);
        }
    }

    /// Removes those of a peer's paths that `which` names.
    pub(crate) fn remove_where(&mut self, peer: PeerId, which: impl Fn(&IpNet, &Route) -> bool) {
        // Most peers of a big table only listen: nothing is looked for.
        if self.counts.iter().all(|((of, _), count)| *of != peer || *count == 0) {
            return;
        }
        let mut gone: Vec<(IpNet, u32)> = Vec::new();
        for (prefix, destination) in self.destinations() {
            let routes = destination.of_peer(peer).filter(|route| which(&prefix, route));
            gone.extend(routes.map(|route| (prefix, route.set.path_id())));
        }
        gone.sort_unstable();
        gone.into_iter().for_each(|(prefix, path_id)| self.remove(prefix, peer, path_id));
    }

    /// Changes the marks of a peer's paths of a family; no mark that counts in route selection.
    pub(crate) fn mark_where(&mut self, peer: PeerId, family: Family, change: impl Fn(Marks) -> Marks) {
        self.tables.for_each_mut(|prefix, destination| {
            if Family::of(&prefix) == family {
                let of_peer = destination.routes.iter_mut().filter(|route| route.peer == peer);
                of_peer.for_each(|route| route.marks = change(route.marks));
            }
        });
    }

    /// A peer's paths that `which` names, in order.
    pub(crate) fn routes_where(
        &self,
        peer: PeerId,
        which: impl Fn(&IpNet, &Route) -> bool,
    ) -> Vec<(IpNet, Route)> {
        let mut found: Vec<(IpNet, Route)> = Vec::new();
        for (prefix, destination) in self.destinations() {
            let routes = destination.of_peer(peer).filter(|route| which(&prefix, route));
            found.extend(routes.map(|route| (prefix, route.clone())));
        }
        found.sort_unstable_by_key(|(prefix, _)| *prefix);
        found
    }

    /// What is known of a next hop changed: the paths through it are judged anew.
    pub(crate) fn next_hop_resolved(&mut self, address: IpAddr, metric: Option<u32>) {
        if !self.next_hops.resolved(address, metric) {
            return;
        }
        let through = |destination: &Destination| {
            destination.routes.iter().any(|route| route.set.next_hop().address == address)
        };
        let mut touched: Vec<(IpNet, Option<Best>)> = self
            .destinations()
            .filter(|(_, destination)| through(destination))
            .map(|(prefix, destination)| (prefix, Best::of(destination)))
            .collect();
        touched.sort_unstable_by_key(|(prefix, _)| *prefix);
        touched.into_iter().for_each(|(prefix, old)| self.decide(prefix, NOBODY, old, None));
    }

    /// Whether a family has no route selection yet.
    pub(crate) fn is_deferred(&self, family: Family) -> bool {
        self.deferred.contains(&family)
    }

    /// Starts without route selection for a family: paths are stored and none is used.
    pub(crate) fn defer(&mut self, family: Family) {
        self.deferred.insert(family);
    }

    /// Route selection of a family, for all that has come until now and from now on.
    pub(crate) fn select(&mut self, family: Family) {
        if !self.deferred.remove(&family) {
            return;
        }
        let of_family =
            |(prefix, _): (IpNet, &Destination)| (Family::of(&prefix) == family).then_some(prefix);
        let mut prefixes: Vec<IpNet> = self.destinations().filter_map(of_family).collect();
        prefixes.sort_unstable();
        prefixes.into_iter().for_each(|prefix| self.decide(prefix, NOBODY, None, None));
    }

    /// Judges a peer's paths anew, after its import policy changed: what becomes of each as it was received.
    pub(crate) fn rejudge(
        &mut self,
        peer: PeerId,
        mut judge: impl FnMut(&IpNet, &Arc<PathSet>) -> (Arc<PathSet>, Option<Refusal>),
    ) {
        let mut touched = Vec::new();
        self.tables.for_each_mut(|prefix, destination| {
            let old = Best::of(destination);
            let mut changed = false;
            for route in destination.routes.iter_mut().filter(|route| route.peer == peer) {
                let (set, refused) = judge(&prefix, PathSet::received(&route.set));
                if !Arc::ptr_eq(&set, &route.set) || refused != route.refused {
                    self.next_hops.seen(set.next_hop());
                    (route.set, route.refused, changed) = (set, refused, true);
                    self.journal.note(peer, prefix, route.set.path_id());
                }
            }
            if changed {
                touched.push((prefix, old));
            }
        });
        touched.sort_unstable_by_key(|(prefix, _)| *prefix);
        touched.into_iter().for_each(|(prefix, old)| self.decide(prefix, peer, old, None));
    }

    /// Runs the decision process for a prefix after the path of `touched` changed; `old` was the best before, `gone` a path
    /// that was taken away.
    fn decide(&mut self, prefix: IpNet, touched: PeerId, old: Option<Best>, gone: Option<&Route>) {
        if !self.deferred.is_empty() && self.deferred.contains(&Family::of(&prefix)) {
            return;
        }
        let Some(destination) = self.tables.get_mut(&prefix) else { return };
        let in_use = |routes: &[Route]| routes.iter().any(|route| route.peer == touched && route.used());
        let before = gone.is_some_and(Route::used) || in_use(&destination.routes);
        let closed = gone.is_some_and(|gone| best::close_gap(&mut destination.routes, gone, &self.next_hops));
        let moved =
            closed || best::rank(&mut destination.routes, &self.peers, &self.selection, &self.next_hops);
        let used = before || moved || in_use(&destination.routes);
        if !(used || self.all_paths) {
            return;
        }
        let new = Best::of(destination);
        self.journal.note(LOC_RIB, prefix, 0);
        let again = destination.batch == self.batch;
        self.listed = None;
        let full = self.batches.last().is_none_or(|batch| batch.len() >= BATCH_MAX);
        if again || full {
            self.batch = self.batch.wrapping_add(1).max(1);
            self.batches.push(Batch::new());
        }
        destination.batch = self.batch;
        if let Some(batch) = self.batches.last_mut() {
            batch.push(Change { prefix, used, old, new });
        }
    }

    /// Originates a prefix.
    pub(crate) fn announce(&mut self, scope: Scope, prefix: IpNet, announcement: Announcement) {
        let before = self.is_local(&prefix);
        let scopes = self.local.entry(prefix).or_default();
        if scopes.get(&scope) != Some(&announcement) {
            scopes.insert(scope, announcement);
            self.local_changes.entry(prefix).or_insert(before);
        }
    }

    /// Ends an announcement.
    pub(crate) fn withdraw(&mut self, scope: &Scope, prefix: &IpNet) {
        if let Some(scopes) = self.local.get_mut(prefix)
            && scopes.remove(scope).is_some()
        {
            if scopes.is_empty() {
                self.local.remove(prefix);
            }
            self.local_changes.entry(*prefix).or_insert(true);
        }
    }

    /// Ends all announcements.
    pub(crate) fn withdraw_all(&mut self) {
        for prefix in std::mem::take(&mut self.local).into_keys() {
            self.local_changes.entry(prefix).or_insert(true);
        }
    }

    /// Whether this speaker originates a prefix to anybody: then learned paths for it are not used.
    pub(crate) fn is_local(&self, prefix: &IpNet) -> bool {
        !self.local.is_empty() && self.local.contains_key(prefix)
    }

    /// What is announced to one peer about a prefix.
    pub(crate) fn announcement(&self, prefix: &IpNet, peer: &str) -> Option<&Announcement> {
        let scopes = self.local.get(prefix)?;
        scopes
            .iter()
            .find(|(scope, _)| matches!(scope, Scope::Peer(name) if name == peer))
            .or_else(|| scopes.get_key_value(&Scope::All))
            .map(|(_, announcement)| announcement)
    }

    /// All prefixes this speaker originates.
    pub(crate) fn originated(&self) -> BTreeSet<IpNet> {
        self.local.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests;
