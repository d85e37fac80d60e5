//! The logs of messages for groups of peers that hear the same: each message is encoded once, and kept until the slowest has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use ipnet::IpNet;

use super::export::{Held, News, Parcel, View, pack};
use crate::family::Family;
use crate::rib::{Batch, Best, PeerId, Rib};
use crate::wire::{Frame, MessageType, Update};

/// Bytes a log may hold. A peer that is further behind than that gets the newest state of each prefix instead of every step to it.
const LOG_MAX: usize = 32 * 1024 * 1024;

/// What one group still has to be told.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Peers of the group.
    members: BTreeSet<PeerId>,
    /// Number of the first parcel.
    first: u64,
    parcels: VecDeque<Parcel>,
    /// Where the group chooses: what it hears of, once it has all of the log, for prefixes whose best path may not go to it; none: of nothing. Those
    /// that did not change since the group began are not here.
    alternatives: BTreeMap<IpNet, Option<(PeerId, u64)>>,
    bytes: usize,
}

impl Log {
    /// The number the next parcel will get: the place of a peer that has everything.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::try_from(self.parcels.len()).unwrap_or(u64::MAX)
    }

    /// The parcel of a number; none: there is none yet.
    pub(super) fn parcel(&self, number: u64) -> Option<&Parcel> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.parcels.get(at)
    }

    /// Everything from a place on.
    pub(super) fn since(&self, place: u64) -> impl Iterator<Item = &Parcel> {
        let skip = usize::try_from(place.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.parcels.iter().skip(skip)
    }

    pub(super) const fn is_too_long(&self) -> bool {
        self.bytes > LOG_MAX
    }

    fn push(&mut self, parcel: Parcel) {
        if !parcel.is_empty() {
            self.bytes += parcel.len();
            self.parcels.push_back(parcel);
        }
    }

    /// What the group hears of after changes, where it hears of another path if the best may not go to it (RFC 7947 section 2.3.2.1). Paths beside the
    /// best are looked at only then.
    fn choose<'a>(&mut self, view: &View, batch: &'a Batch, rib: &Rib) -> Vec<Chosen<'a>> {
        let mut all = Vec::new();
        let heard = |prefix: &IpNet| view.speaks_of(Family::of(prefix)) && !rib.is_local(prefix);
        for change in batch.iter().filter(|change| heard(&change.prefix)) {
            let prefix = change.prefix;
            let known = self.alternatives.remove(&prefix);
            let goes =
                |best: Option<&Best>| best.is_some_and(|best| view.passes(rib, &prefix, best).is_some());
            let old = match known {
                Some(alternative) => Held::Anything(alternative.is_some()),
                None if goes(change.old.as_ref()) => Held::Of(change.old.as_ref()),
                // They may have heard of another when they came.
                None => Held::Anything(change.old.is_some()),
            };
            if goes(change.new.as_ref()) {
                if change.of_best() || known.is_some() {
                    all.push(Chosen { prefix, old, new: change.new.clone() });
                }
                continue;
            }
            let other = change.new.as_ref().and_then(|_| view.alternative(rib, &prefix));
            let key = other.as_ref().map(|(path, _)| (path.peer, path.set.serial()));
            if change.new.is_some() {
                self.alternatives.insert(prefix, key);
            }
            if known != Some(key) {
                all.push(Chosen { prefix, old, new: other.map(|(path, _)| path) });
            }
        }
        all
    }

    /// Forgets what everybody has.
    pub(super) fn forget_until(&mut self, place: u64) {
        while self.first < place {
            let Some(parcel) = self.parcels.pop_front() else { return };
            self.bytes -= parcel.len();
            self.first += 1;
        }
    }
}

/// What a group that chooses hears of a prefix.
struct Chosen<'a> {
    prefix: IpNet,
    old: Held<'a>,
    new: Option<Best>,
}

/// The logs of all groups.
#[derive(Debug, Default)]
pub(super) struct Logs {
    logs: BTreeMap<View, Log>,
}

impl Logs {
    /// Puts a peer into its group and returns its place: it hears of changes from now on.
    pub(super) fn join(&mut self, view: &View, peer: PeerId) -> u64 {
        let log = self.logs.entry(view.clone()).or_default();
        log.members.insert(peer);
        log.end()
    }

    /// Takes a peer out of its group; a group without peers ends.
    pub(super) fn leave(&mut self, view: &View, peer: PeerId) {
        if let Some(log) = self.logs.get_mut(view) {
            log.members.remove(&peer);
            if log.members.is_empty() {
                self.logs.remove(view);
            }
        }
    }

    pub(super) fn get(&self, view: &View) -> Option<&Log> {
        self.logs.get(view)
    }

    pub(super) fn get_mut(&mut self, view: &View) -> Option<&mut Log> {
        self.logs.get_mut(view)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&View, &Log)> {
        self.logs.iter()
    }

    /// Peers of a group.
    pub(super) fn members(&self, view: &View) -> Vec<PeerId> {
        self.logs.get(view).map(|log| log.members.iter().copied().collect()).unwrap_or_default()
    }

    /// Encodes a batch of changes for every group. Prefixes of our own are another list's.
    pub(super) fn append(&mut self, batch: &Batch, rib: &Rib) {
        for (view, log) in &mut self.logs {
            let members: Vec<PeerId> = log.members.iter().copied().collect();
            if view.chooses() {
                let chosen = log.choose(view, batch, rib);
                let news = chosen.iter().map(|chosen| News {
                    prefix: chosen.prefix,
                    old: chosen.old,
                    new: chosen.new.as_ref(),
                });
                log.push(pack(view, rib, news, &members));
                continue;
            }
            let news = batch.iter().filter(|change| change.of_best() && !rib.is_local(&change.prefix)).map(
                |change| News {
                    prefix: change.prefix,
                    old: Held::Of(change.old.as_ref()),
                    new: change.new.as_ref(),
                },
            );
            log.push(pack(view, rib, news, &members));
        }
    }
}

/// The prefixes that a parcel speaks of.
pub(super) fn prefixes_of(view: &View, parcel: &Parcel) -> Vec<IpNet> {
    prefixes_in(view, parcel.bytes())
}

/// The prefixes that messages for a group speak of.
pub(super) fn prefixes_in(view: &View, bytes: &[u8]) -> Vec<IpNet> {
    let mut buffer = BytesMut::from(bytes);
    let mut prefixes = Vec::new();
    // Our own messages: each is whole and can be read.
    while let Ok(Some(frame)) = Frame::next(&mut buffer) {
        if frame.kind == MessageType::Update
            && let Ok(update) = Update::decode(&frame.body, &view.update_context())
        {
            prefixes.extend(update.withdrawn);
            prefixes.extend(update.reach.into_iter().flat_map(|reach| reach.prefixes));
        }
    }
    prefixes
}
