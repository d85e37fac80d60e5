//! What one connected collector is still to be told, within bounds.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::message::{self, PeerHead};
use crate::rib::{PathKey, PeerId};

/// Paths that may be marked; there are more only if a collector takes nothing while routes come and go.
const MARKS_MAX: usize = 4_000_000;
/// Messages about sessions that may wait.
const CONTROL_MAX: usize = 4096;
/// Prefixes of the table that are marked at once.
const STEP: usize = 1024;

/// A message about a session, its time apart.
#[derive(Debug)]
struct Control {
    kind: u8,
    head: Option<PeerHead>,
    body: Vec<u8>,
}

/// A connection to a collector.
#[derive(Debug, Default)]
pub(crate) struct StationLink {
    /// Bytes handed to the connection and not taken yet.
    pub(crate) outstanding: usize,
    /// Peers it knows to be up.
    pub(crate) up: BTreeSet<PeerId>,
    /// Those among them whose End-of-RIB follows the table.
    end_of_rib: BTreeSet<PeerId>,
    control: VecDeque<Control>,
    marks: BTreeSet<PathKey>,
    /// The same of what peers are sent.
    sent: BTreeSet<PathKey>,
    /// The table at the time of the connection, and how much of it is marked.
    walk: Option<(Arc<[IpNet]>, usize)>,
    overrun: bool,
}

impl StationLink {
    /// A connection that is told of the whole table.
    pub(crate) fn new(table: Arc<[IpNet]>) -> Self {
        Self { walk: Some((table, 0)), ..Self::default() }
    }

    /// Whether it fell too far behind: it must begin anew.
    pub(crate) const fn is_overrun(&self) -> bool {
        self.overrun
    }

    /// A message about a session, or about none.
    pub(crate) fn control(&mut self, kind: u8, head: Option<PeerHead>, body: Vec<u8>) {
        self.overrun |= self.control.len() >= CONTROL_MAX;
        if !self.overrun {
            self.control.push_back(Control { kind, head, body });
        }
    }

    /// A peer is up; `first`: its routes are part of the table that is told at the beginning.
    pub(crate) fn peer_up(&mut self, peer: PeerId, first: bool) {
        self.up.insert(peer);
        if first {
            self.end_of_rib.insert(peer);
        }
    }

    /// A peer is down: the collector forgets its routes by itself.
    pub(crate) fn peer_down(&mut self, peer: PeerId) -> bool {
        self.end_of_rib.remove(&peer);
        self.marks.retain(|(of, ..)| *of != peer);
        self.sent.retain(|(of, ..)| *of != peer);
        self.up.remove(&peer)
    }

    /// A path changed.
    pub(crate) fn mark(&mut self, key: PathKey) {
        if self.up.contains(&key.0) {
            self.overrun |= self.marks.len() >= MARKS_MAX;
            if !self.overrun {
                self.marks.insert(key);
            }
        }
    }

    /// What a peer is sent changed.
    pub(crate) fn mark_sent(&mut self, key: PathKey) {
        if self.up.contains(&key.0) {
            self.overrun |= self.sent.len() >= MARKS_MAX;
            if !self.overrun {
                self.sent.insert(key);
            }
        }
    }

    /// What waits about sessions.
    pub(crate) fn take_control(&mut self, at: Duration) -> Vec<u8> {
        let mut out = Vec::new();
        for Control { kind, head, body } in self.control.drain(..) {
            message::message(kind, head.as_ref().map(|head| (head, at)), &body, &mut out);
        }
        out
    }

    /// Paths to tell of next.
    pub(crate) fn take_marks(&mut self) -> Vec<PathKey> {
        std::iter::from_fn(|| self.marks.pop_first()).take(STEP).collect()
    }

    /// Paths that peers are sent to tell of next.
    pub(crate) fn take_sent(&mut self) -> Vec<PathKey> {
        std::iter::from_fn(|| self.sent.pop_first()).take(STEP).collect()
    }

    /// The next prefixes of the table, to be marked; none when it is told.
    pub(crate) fn walk(&mut self) -> Option<Vec<IpNet>> {
        let (table, done) = self.walk.as_mut()?;
        let next: Vec<IpNet> = table.iter().skip(*done).take(STEP).copied().collect();
        *done += next.len();
        if next.is_empty() {
            self.walk = None;
            return None;
        }
        Some(next)
    }

    /// The peers whose table is told now.
    pub(crate) fn take_end_of_rib(&mut self) -> BTreeSet<PeerId> {
        std::mem::take(&mut self.end_of_rib)
    }
}
