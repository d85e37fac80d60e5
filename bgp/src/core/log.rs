//! The logs of messages for groups of peers that hear the same: each message is encoded once, and kept until the slowest has it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use ipnet::IpNet;

use super::export::{Held, News, Parcel, View, pack};
use crate::rib::{Batch, PeerId, Rib};
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

    /// Forgets what everybody has.
    pub(super) fn forget_until(&mut self, place: u64) {
        while self.first < place {
            let Some(parcel) = self.parcels.pop_front() else { return };
            self.bytes -= parcel.len();
            self.first += 1;
        }
    }
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
    let mut buffer = BytesMut::from(&parcel.bytes()[..]);
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
