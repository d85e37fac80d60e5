//! Adj-RIB-Out of one peer: what it still has to be told.
//!
//! Learned routes: peers that are told the same form a group, whose messages are encoded once and kept in the group's log; a peer has a place
//! in it. What a peer was told before follows from the table and needs no memory. Two lists stand beside the log: prefixes to look at one by
//! one (`pending`), and a walk through the whole table for a new session or a refresh. Both are judged when they are sent, and only when
//! the peer has reached the end of the log: so nothing older can follow.
//!
//! Originated routes are few: what was said is kept, and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::PeerId;
use crate::family::{Family, NextHop};
use crate::wire::Attributes;

/// What a peer hears about a prefix that this speaker originates.
pub(crate) type Said = (NextHop, Arc<Attributes>);

/// A path that a peer which takes several was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) path_id: u32,
    /// Whose path it was.
    pub(crate) peer: PeerId,
    /// What it said ([`super::PathSet::serial`]); 0: the peer is to hear it again.
    pub(crate) serial: u64,
}

/// Paths of each prefix that a peer was told of.
pub(crate) type ToldPaths = BTreeMap<IpNet, SmallVec<[Told; 1]>>;

/// A walk through the table.
#[derive(Debug)]
pub(crate) struct Walk {
    /// Prefixes that share attributes stand side by side.
    prefixes: Arc<[IpNet]>,
    at: usize,
    /// Only prefixes of these are looked at.
    families: Vec<Family>,
    /// The peer may hold what it should not any more: withdraw that.
    pub(crate) told: bool,
}

impl Walk {
    pub(crate) const fn new(prefixes: Arc<[IpNet]>, families: Vec<Family>, told: bool) -> Self {
        Self { prefixes, at: 0, families, told }
    }

    /// The next prefixes; none: the walk is over.
    pub(crate) fn next(&mut self, count: usize) -> Vec<IpNet> {
        let rest = self.prefixes.get(self.at..).unwrap_or_default();
        let step = rest.len().min(count);
        self.at += step;
        let family = |prefix: &&IpNet| self.families.contains(&Family::of(prefix));
        rest.iter().take(step).filter(family).copied().collect()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.at >= self.prefixes.len()
    }
}

/// Adj-RIB-Out of one established session.
#[derive(Debug, Default)]
pub(crate) struct AdjRibOut {
    /// Place in the group's log: the number of the entry to send next. `None`: learned routes are not told.
    pub(crate) place: Option<u64>,
    /// With a peer that takes several paths: what it holds of learned routes. It has no place in a log.
    pub(crate) paths: Option<ToldPaths>,
    /// Prefixes to look at, and whether the peer may have been told something about each.
    pending: BTreeMap<IpNet, bool>,
    /// The peer may have been told of any of them since.
    all_told: bool,
    walk: Option<Walk>,
    sent: BTreeMap<IpNet, Said>,
    /// End-of-RIB is owed for these, once nothing else is.
    end_of_rib: BTreeSet<Family>,
    /// End-of-RIB was sent for these.
    ended: BTreeSet<Family>,
    pub(crate) refresh: Refreshes,
}

/// Families that are being sent again.
#[derive(Debug, Default)]
pub(crate) struct Refreshes(BTreeSet<Family>);

impl Refreshes {
    pub(crate) fn begin(&mut self, family: Family) {
        self.0.insert(family);
    }

    /// Families whose end is to be told, now that everything was sent.
    pub(crate) fn take_ends(&mut self) -> BTreeSet<Family> {
        std::mem::take(&mut self.0)
    }
}

impl AdjRibOut {
    /// Originated prefixes the peer was told.
    pub(crate) fn sent(&self) -> impl Iterator<Item = (&IpNet, &Said)> {
        self.sent.iter()
    }

    /// What the peer was told about an originated prefix.
    pub(crate) fn said(&self, prefix: &IpNet) -> Option<&Said> {
        self.sent.get(prefix)
    }

    pub(crate) fn remember(&mut self, prefix: IpNet, said: Said) {
        self.sent.insert(prefix, said);
    }

    /// Whether the prefix was told as an originated one.
    pub(crate) fn forget(&mut self, prefix: &IpNet) -> bool {
        self.sent.remove(prefix).is_some()
    }

    /// Forgets what was said about originated prefixes of a family, so that it is said again.
    pub(crate) fn say_again(&mut self, family: Family) {
        let again: Vec<IpNet> =
            self.sent.keys().filter(|prefix| Family::of(prefix) == family).copied().collect();
        for prefix in again {
            self.sent.remove(&prefix);
            self.mark(prefix, true);
        }
    }

    /// Notes which paths of a prefix the peer holds from now on; gives those it held.
    pub(crate) fn replace_paths(&mut self, prefix: IpNet, now: SmallVec<[Told; 1]>) -> SmallVec<[Told; 1]> {
        let Some(paths) = &mut self.paths else { return SmallVec::new() };
        let before = if now.is_empty() { paths.remove(&prefix) } else { paths.insert(prefix, now) };
        before.unwrap_or_default()
    }

    /// Learned routes the peer was told path by path, of a family.
    pub(crate) fn told_paths(&self, family: Family) -> usize {
        let of = self.paths.iter().flatten().filter(|(prefix, _)| Family::of(prefix) == family);
        of.map(|(_, told)| told.len()).sum()
    }

    /// Whatever the peer holds of these families path by path is looked at again, and said again.
    pub(crate) fn doubt_paths(&mut self, families: &[Family]) {
        let mut doubted = Vec::new();
        for (prefix, told) in self.paths.iter_mut().flatten() {
            if families.contains(&Family::of(prefix)) {
                told.iter_mut().for_each(|told| told.serial = 0);
                doubted.push(*prefix);
            }
        }
        doubted.into_iter().for_each(|prefix| self.mark(prefix, true));
    }

    /// The prefix has to be looked at; `told`: the peer may hold a route from us. What was known before about that stays.
    pub(crate) fn mark(&mut self, prefix: IpNet, told: bool) {
        let known = self.pending.entry(prefix).or_insert(told);
        *known |= told;
    }

    /// An entry of the log goes out: it may tell the peer of what is marked.
    pub(crate) fn passed_log(&mut self) {
        self.place = self.place.map(|place| place + 1);
        self.all_told = !self.pending.is_empty();
    }

    pub(crate) fn has_marks(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next marked prefixes.
    pub(crate) fn take_marks(&mut self, count: usize) -> Vec<(IpNet, bool)> {
        let all_told = self.all_told;
        let marks = std::iter::from_fn(|| self.pending.pop_first()).take(count);
        let marks = marks.map(|(prefix, told)| (prefix, told || all_told)).collect();
        self.all_told &= !self.pending.is_empty();
        marks
    }

    /// Starts a walk. One under way becomes part of it.
    pub(crate) fn walk(&mut self, mut walk: Walk) {
        if let Some(old) = self.walk.take().filter(|old| !old.is_over()) {
            walk.told |= old.told;
            walk.families.extend(old.families);
        }
        self.walk = Some(walk);
    }

    /// The walk under way; it ends by itself when it is over.
    pub(crate) fn walking(&mut self) -> Option<&mut Walk> {
        if self.walk.as_ref().is_some_and(Walk::is_over) {
            self.walk = None;
        }
        self.walk.as_mut()
    }

    /// End-of-RIB is to follow what is pending now.
    pub(crate) fn owe_end_of_rib(&mut self, families: &[Family]) {
        self.end_of_rib.extend(families);
    }

    pub(crate) fn take_end_of_rib(&mut self) -> BTreeSet<Family> {
        let owed = std::mem::take(&mut self.end_of_rib);
        self.ended.extend(&owed);
        owed
    }

    /// Whether the start of a refresh may be told: not before End-of-RIB, if the peer gets one.
    pub(crate) fn may_begin_refresh(&self, family: Family, gets_end_of_rib: bool) -> bool {
        !gets_end_of_rib || self.ended.contains(&family)
    }

    /// Whether there is nothing more to say, the log apart.
    pub(crate) fn is_idle(&self) -> bool {
        let told = self.end_of_rib.is_empty() && self.refresh.0.is_empty();
        told && self.pending.is_empty() && self.walk.as_ref().is_none_or(Walk::is_over)
    }
}
