//! Going on where the last connection stopped, without listing everything again.
//!
//! A watch may be resumed only if the etcd that answers now has the history that was followed before. Its cluster id does
//! not show that: an etcd with the same flags has the same id after a wipe, and so has one restored from a backup, whose
//! revisions may have overtaken ours since. The heartbeat does: its value is a time, written once a minute, so the key
//! has the same value and the same revision at that revision in the same history only. Where the heartbeat agrees,
//! everything before it does; each watch therefore starts behind it or behind its own position, whichever is
//! earlier. What was learned *after* that heartbeat may still come from a history that is lost (a backup younger than the
//! heartbeat). It is listed again some minutes later, spread so that a thousand readers do not list at once.

use super::core::{Follower, Link};
use super::event::{Failure, FailureKind, Header, KeyEvent, Output, Scope};
use super::store::Phase;
use crate::wire::Kind;
use std::collections::BTreeMap;
use std::time::Duration;
use tombolo_base::clock::Moment;

/// Largest heartbeat that is kept as a witness, in bytes; a time has some 30.
const MAX_WITNESS: usize = 256;

/// How far a scope was followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Everything up to this revision was told.
    pub(crate) seen: i64,
    /// Nothing that was told is of a later revision than this.
    pub(crate) known: i64,
    /// Some of it may come from a history that is lost; a list settles that.
    pub(crate) doubtful: bool,
}

impl Position {
    /// Everything was listed at that revision.
    pub(super) const fn listed(revision: i64) -> Self {
        Self { seen: revision, known: revision, doubtful: false }
    }

    /// Whether the watch tells again what is known.
    const fn repeats(&self) -> bool {
        self.seen < self.known
    }
}

/// Keys of a repetition that are held back at most; when there are more, the list is made at once.
const MAX_REPEATED: usize = 16_384;

/// What a resumed watch tells again, held back until it says something new: a key that was deleted and written again
/// since the last heartbeat would go and come back. Only the last word on each key is kept.
#[derive(Clone, Debug)]
pub(crate) struct Repetition {
    /// Where the watch began.
    from: i64,
    events: BTreeMap<Vec<u8>, KeyEvent>,
}

/// A heartbeat that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Witness {
    etcd: u64,
    revision: i64,
    value: Vec<u8>,
}

/// What a later connection needs to go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bookmarks {
    positions: BTreeMap<Kind, Position>,
    witness: Option<Witness>,
}

impl Bookmarks {
    /// What is known does not belong to that history any more.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// The kind is being listed: what is known of it is a mixture until the list is complete.
    pub(super) fn forget_kind(&mut self, kind: Kind) {
        self.positions.remove(&kind);
    }

    /// The connection is lost and `kind` was followed up to there.
    pub(super) fn keep(&mut self, kind: Kind, position: Position) {
        self.positions.insert(kind, position);
    }

    /// A heartbeat was written at `revision` in the history that is followed.
    pub(super) fn saw_heartbeat(&mut self, etcd: Option<u64>, revision: i64, value: &[u8]) {
        if let Some(etcd) = etcd.filter(|_| revision > 0 && value.len() <= MAX_WITNESS) {
            self.witness = Some(Witness { etcd, revision, value: value.to_vec() });
        }
    }
}

impl Follower {
    /// Starts reading: from the bookmarks if the etcd can prove that they are its own, else from the beginning.
    pub(super) fn read_on(&mut self, out: &mut Vec<Output>) {
        match &self.bookmarks.witness {
            Some(witness) if !self.bookmarks.positions.is_empty() => {
                self.link = Link::Proving;
                out.push(Output::Prove(witness.revision));
            }
            _ => self.read_anew(out),
        }
    }

    fn read_anew(&mut self, out: &mut Vec<Output>) {
        self.bookmarks.forget();
        self.link = Link::Running;
        self.start_reading(out);
    }

    pub(super) fn take_proof(
        &mut self,
        now: Moment,
        header: Header,
        found: Option<(i64, Vec<u8>)>,
        out: &mut Vec<Output>,
    ) {
        if self.link != Link::Proving || !self.guard(now, header, out) {
            return;
        }
        let Some(witness) = self.bookmarks.witness.take() else { return self.read_anew(out) };
        let same = witness.etcd == header.etcd
            && found.is_some_and(|(revision, value)| {
                (revision, value) == (witness.revision, witness.value.clone())
            });
        if !same {
            tracing::info!(cluster = %self.config.cluster, "its etcd was emptied, restored or replaced: everything is read anew");
            return self.read_anew(out);
        }
        self.link = Link::Running;
        self.start_reading(out);
        let positions = std::mem::take(&mut self.bookmarks.positions);
        for (kind, position) in positions {
            self.resume(now, kind, position, witness.revision, out);
        }
        self.bookmarks.witness = Some(witness);
    }

    pub(super) fn proof_failed(&mut self, now: Moment, failure: &Failure, out: &mut Vec<Output>) {
        if self.link != Link::Proving {
            return;
        }
        match failure.kind {
            FailureKind::Transport | FailureKind::NoLeader => self.disconnect(now, &failure.text, out),
            // Compacted, or a revision that this etcd has not reached: there is nothing to go on from.
            FailureKind::Compacted | FailureKind::Denied | FailureKind::TooLarge | FailureKind::Other => {
                self.read_anew(out);
            }
        }
    }

    fn resume(&mut self, now: Moment, kind: Kind, position: Position, proved: i64, out: &mut Vec<Output>) {
        let scope = Scope::Entries(kind);
        let seen = position.seen.min(proved);
        let doubtful = position.doubtful || position.known > proved;
        let ticket = self.new_ticket(scope);
        self.phases.insert(scope, Phase::Watching(Position { seen, known: position.known, doubtful }));
        out.push(Output::Watch {
            ticket,
            scope,
            prefix: self.prefix(scope),
            revision: seen.saturating_add(1),
        });
        if doubtful {
            let at = now.after(self.audit_wait());
            self.retries.insert(scope, at);
        }
    }

    /// Holds back what a resumed watch repeats. Gives what is to be taken in now; `None` if a list is to be made instead.
    pub(super) fn repeated(
        &mut self,
        scope: Scope,
        before: Position,
        seen: i64,
        events: Vec<KeyEvent>,
    ) -> Option<Vec<KeyEvent>> {
        if !before.repeats() {
            return Some(events);
        }
        let held = Repetition { from: before.seen, events: BTreeMap::new() };
        let repetition = self.repetitions.entry(scope).or_insert(held);
        for event in events {
            let (KeyEvent::Put(key, _) | KeyEvent::Delete(key)) = &event;
            repetition.events.insert(key.clone(), event);
        }
        if repetition.events.len() > MAX_REPEATED {
            return None;
        }
        if seen < before.known {
            return Some(Vec::new());
        }
        let whole = self.repetitions.remove(&scope)?;
        Some(whole.events.into_values().collect())
    }

    /// Where a watch can be taken up: what was held back was not taken in.
    pub(super) fn bookmark(&mut self, kind: Kind, mut position: Position) {
        if let Some(repetition) = self.repetitions.remove(&Scope::Entries(kind)) {
            position.seen = repetition.from;
        }
        self.bookmarks.keep(kind, position);
    }

    /// When what cannot be vouched for is listed again.
    pub(super) fn audit_wait(&mut self) -> Duration {
        let longest = self.config.timers.audit;
        longest / 4 + self.jitter(longest.saturating_sub(longest / 4))
    }

    /// Whether this kind goes on from a bookmark on this connection.
    pub(super) fn is_bookmarked(&self, kind: Kind) -> bool {
        self.bookmarks.positions.contains_key(&kind)
    }
}
