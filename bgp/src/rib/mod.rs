//! The routing information base: what each peer sent (Adj-RIB-In), what of it is used (Loc-RIB), what this speaker originates, and
//! what each peer was told (Adj-RIB-Out, in [`out`]).
//!
//! Adj-RIB-In and Loc-RIB are views of one table: a prefix has the routes of all peers, and a list of those in use.

mod best;
mod intern;
pub(crate) mod out;

pub(crate) use best::DEFAULT_LOCAL_PREF;
pub(crate) use intern::Interner;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::config::{Announcement, Scope};
use crate::family::{Family, NextHop};
use crate::wire::Attributes;

/// Names a peer for as long as the speaker runs.
pub(crate) type PeerId = u32;

/// Why a received route is not considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// Not in the peer's import list.
    Policy,
    /// Our own AS is in its path.
    AsLoop,
    /// We originated or reflected it (RFC 4456).
    OwnRouterId,
    /// The next hop is this speaker itself.
    OwnNextHop,
}

/// A route as received from one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) peer: PeerId,
    pub(crate) peer_router_id: Ipv4Addr,
    pub(crate) peer_address: IpAddr,
    pub(crate) ebgp: bool,
    pub(crate) next_hop: NextHop,
    pub(crate) attributes: Arc<Attributes>,
    pub(crate) refused: Option<Refusal>,
    pub(crate) stale: bool,
}

/// All routes of one prefix, by peer, and the peers whose routes are in use, best first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Destination {
    pub(crate) routes: Vec<Route>,
    pub(crate) selected: Vec<PeerId>,
}

impl Destination {
    pub(crate) fn route(&self, peer: PeerId) -> Option<&Route> {
        self.routes.iter().find(|route| route.peer == peer)
    }

    /// The routes in use, best first.
    pub(crate) fn used(&self) -> impl Iterator<Item = &Route> {
        self.selected.iter().filter_map(|peer| self.route(*peer))
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct Rib {
    destinations: BTreeMap<IpNet, Destination>,
    local: BTreeMap<IpNet, BTreeMap<Scope, Announcement>>,
    counts: BTreeMap<(PeerId, Family), usize>,
    max_paths: usize,
    /// Prefixes whose routes in use changed since the last [`Rib::take_changes`].
    changed: BTreeSet<IpNet>,
}

impl Rib {
    pub(crate) const fn new(max_paths: usize) -> Self {
        Self {
            destinations: BTreeMap::new(),
            local: BTreeMap::new(),
            counts: BTreeMap::new(),
            max_paths,
            changed: BTreeSet::new(),
        }
    }

    pub(crate) fn destinations(&self) -> impl Iterator<Item = (&IpNet, &Destination)> {
        self.destinations.iter()
    }

    pub(crate) fn destination(&self, prefix: &IpNet) -> Option<&Destination> {
        self.destinations.get(prefix)
    }

    /// Routes held from a peer.
    pub(crate) fn count(&self, peer: PeerId, family: Family) -> usize {
        self.counts.get(&(peer, family)).copied().unwrap_or_default()
    }

    /// Prefixes whose routes in use, or whose own announcement, changed.
    pub(crate) fn take_changes(&mut self) -> BTreeSet<IpNet> {
        std::mem::take(&mut self.changed)
    }

    /// Stores a route in place of the peer's former one.
    pub(crate) fn insert(&mut self, prefix: IpNet, route: Route) {
        let peer = route.peer;
        let destination = self.destinations.entry(prefix).or_default();
        match destination.routes.binary_search_by_key(&peer, |known| known.peer) {
            Ok(at) => {
                let Some(known) = destination.routes.get_mut(at) else { return };
                let same = Route { stale: route.stale, ..known.clone() } == route;
                *known = route;
                if same {
                    return;
                }
            }
            Err(at) => {
                destination.routes.insert(at, route);
                *self.counts.entry((peer, Family::of(&prefix))).or_default() += 1;
            }
        }
        self.decide(prefix, peer);
    }

    /// Removes the peer's route, if there is one.
    pub(crate) fn remove(&mut self, prefix: IpNet, peer: PeerId) {
        let Some(destination) = self.destinations.get_mut(&prefix) else { return };
        let Ok(at) = destination.routes.binary_search_by_key(&peer, |known| known.peer) else { return };
        destination.routes.remove(at);
        if let Some(count) = self.counts.get_mut(&(peer, Family::of(&prefix))) {
            *count = count.saturating_sub(1);
        }
        self.decide(prefix, peer);
    }

    /// Removes those of a peer's routes that `which` names.
    pub(crate) fn remove_where(&mut self, peer: PeerId, which: impl Fn(&IpNet, &Route) -> bool) {
        let gone: Vec<IpNet> = self
            .destinations
            .iter()
            .filter(|(prefix, destination)| destination.route(peer).is_some_and(|route| which(prefix, route)))
            .map(|(prefix, _)| *prefix)
            .collect();
        gone.into_iter().for_each(|prefix| self.remove(prefix, peer));
    }

    /// Marks a peer's routes of these families stale (RFC 4724 section 4.2); what was stale already goes, as do other families.
    pub(crate) fn mark_stale(&mut self, peer: PeerId, families: &[Family]) {
        self.remove_where(peer, |prefix, route| route.stale || !families.contains(&Family::of(prefix)));
        for destination in self.destinations.values_mut() {
            if let Some(route) = destination.routes.iter_mut().find(|route| route.peer == peer) {
                route.stale = true;
            }
        }
    }

    /// Judges a peer's routes anew, after its import list changed.
    pub(crate) fn rejudge(&mut self, peer: PeerId, judge: impl Fn(&IpNet, &Route) -> Option<Refusal>) {
        let mut touched = Vec::new();
        for (prefix, destination) in &mut self.destinations {
            if let Some(route) = destination.routes.iter_mut().find(|route| route.peer == peer) {
                let verdict = judge(prefix, route);
                if verdict != route.refused {
                    route.refused = verdict;
                    touched.push(*prefix);
                }
            }
        }
        touched.into_iter().for_each(|prefix| self.decide(prefix, peer));
    }

    /// Runs the decision process for a prefix after the route of `touched` changed.
    fn decide(&mut self, prefix: IpNet, touched: PeerId) {
        let Some(destination) = self.destinations.get_mut(&prefix) else { return };
        let selected: Vec<PeerId> = best::select(&destination.routes, self.max_paths)
            .into_iter()
            .filter_map(|at| destination.routes.get(at).map(|route| route.peer))
            .collect();
        let involved = selected.contains(&touched) || destination.selected.contains(&touched);
        if selected != destination.selected || involved {
            self.changed.insert(prefix);
        }
        destination.selected = selected;
        if destination.routes.is_empty() {
            self.destinations.remove(&prefix);
        }
    }

    /// Originates a prefix.
    pub(crate) fn announce(&mut self, scope: Scope, prefix: IpNet, announcement: Announcement) {
        let scopes = self.local.entry(prefix).or_default();
        if scopes.get(&scope) != Some(&announcement) {
            scopes.insert(scope, announcement);
            self.changed.insert(prefix);
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
            self.changed.insert(*prefix);
        }
    }

    /// Ends all announcements.
    pub(crate) fn withdraw_all(&mut self) {
        for prefix in std::mem::take(&mut self.local).into_keys() {
            self.changed.insert(prefix);
        }
    }

    /// Whether this speaker originates a prefix to anybody: then learned routes for it are not used.
    pub(crate) fn is_local(&self, prefix: &IpNet) -> bool {
        self.local.contains_key(prefix)
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

    /// All prefixes that might be exported to a peer.
    pub(crate) fn exportable(&self, learned: bool) -> BTreeSet<IpNet> {
        let mut prefixes: BTreeSet<IpNet> = self.local.keys().copied().collect();
        if learned {
            prefixes.extend(self.destinations.keys());
        }
        prefixes
    }
}
