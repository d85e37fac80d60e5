//! In which form a cluster's backends are read. One that changes its form loses none of them meanwhile: what is known in the
//! old form is used, as stale, until the new one is read whole.

use super::core::Follower;
use super::event::{Change, Output};
use super::store::Store;
use crate::wire::{Capabilities, Kind};
use tombolo_base::clock::Moment;

/// A change of the form that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FormChange {
    /// Is not read any more, and in use.
    from: Kind,
    /// Is being read.
    to: Kind,
}

impl Follower {
    /// Backends are published as services or as endpoint slices, and exports not by all. Only what this cluster has is
    /// read, for of the rest no canary may come; what was known of it goes.
    pub(super) fn choose_kinds(&mut self, said: &Capabilities, out: &mut Vec<Output>) {
        let forms = said.reader(self.config.preference);
        let (mirror, exports) = (self.config.mirror, self.config.exports);
        let reads = |kind| match kind {
            // A mirror has readers of all tastes.
            _ if mirror => said.publishes(kind),
            Kind::ServiceExports => exports && forms.reads(kind),
            _ => forms.reads(kind),
        };
        let before = self.form_change;
        if let Some(change) = before.filter(|change| !reads(change.to)) {
            // Another form again before that one was read: nothing of it was used.
            self.forget_kind(change.to, out);
        }
        self.form_change = before.filter(|change| reads(change.to) && !reads(change.from));
        for kind in [Kind::Services, Kind::EndpointSlices, Kind::ServiceExports] {
            let known = self.stores.contains_key(&kind);
            if reads(kind) == known || self.is_left(kind) {
                continue;
            }
            if !known {
                self.stores.insert(kind, Store::new(kind, mirror));
            } else if let Some(to) = other_form(kind).filter(|to| reads(*to) && self.outlasts(kind, *to)) {
                self.form_change = Some(FormChange { from: kind, to });
            } else {
                self.forget_kind(kind, out);
            }
            // What is to be read now was not followed before.
            self.bookmarks.forget();
        }
    }

    /// Whether entries of one form are in use, and none of the other that is read from now on.
    fn outlasts(&self, from: Kind, to: Kind) -> bool {
        let known = |kind: &Kind| self.stores.get(kind).map_or(0, Store::len);
        known(&from) > 0 && !self.withheld.contains(&from) && (known(&to) == 0 || self.config.mirror)
    }

    /// Whether the kind is known and not read any more.
    pub(super) fn is_left(&self, kind: Kind) -> bool {
        self.form_change.is_some_and(|change| change.from == kind)
    }

    /// Whether the kind is read and not used yet: both forms make the same rows, and the one that is read in part would
    /// take backends away. In a mirror they are different keys.
    pub(super) fn is_held_back(&self, kind: Kind) -> bool {
        !self.config.mirror && self.form_change.is_some_and(|change| change.to == kind)
    }

    /// The kinds that are read.
    pub(super) fn read_kinds(&self) -> Vec<Kind> {
        self.stores.keys().copied().filter(|kind| !self.is_left(*kind)).collect()
    }

    /// The new form is read whole: it takes the place of the old one, in one go.
    pub(super) fn end_form_change(&mut self, now: Moment, kind: Kind, out: &mut Vec<Output>) {
        let held = self.is_held_back(kind);
        let Some(change) = self.form_change.take_if(|change| change.to == kind) else { return };
        if let Some(store) = self.stores.get(&kind).filter(|_| held) {
            let changes = store.iter().map(|(_, record)| Change::Upsert(record.into_owned())).collect();
            self.emit(changes, out);
        }
        self.forget_kind(change.from, out);
        self.ask_again(now);
    }

    fn forget_kind(&mut self, kind: Kind, out: &mut Vec<Output>) {
        self.drain_kind(kind, out);
        self.stores.remove(&kind);
        self.withheld.remove(&kind);
    }
}

/// The other form of backends.
const fn other_form(kind: Kind) -> Option<Kind> {
    match kind {
        Kind::Services => Some(Kind::EndpointSlices),
        Kind::EndpointSlices => Some(Kind::Services),
        _ => None,
    }
}
