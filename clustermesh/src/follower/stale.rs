//! What is not confirmed for too long is not used any more, and used again as soon as it is confirmed.

use super::core::{Follower, Link};
use super::event::{Change, Output};
use crate::wire::Kind;
use std::collections::BTreeSet;
use std::time::Duration;
use tombolo_base::clock::Moment;

/// How long what an earlier life left is used in any case: as long as others wait for a cluster's first list.
const GRACE: Duration = Duration::from_secs(60);

impl Follower {
    /// The kinds that are confirmed now.
    pub(crate) fn confirmed_now(&self) -> BTreeSet<Kind> {
        self.synced.iter().filter(|(_, synced)| **synced).map(|(kind, _)| *kind).collect()
    }

    /// When the entries of `kind` stop being used; `None` while they are confirmed, or if they have no limit.
    fn unused_from(&self, kind: Kind) -> Option<Moment> {
        let limit = self.config.limits.stale_after(kind)?;
        let unused = self.withheld.contains(&kind) || self.is_held_back(kind);
        if self.synced.get(&kind) == Some(&true) || unused {
            return None;
        }
        self.stores.get(&kind).filter(|store| store.len() > 0)?;
        let used = self
            .restored_ages
            .get(&kind)
            .map_or(limit, |age| limit.saturating_sub(*age).max(GRACE.min(limit)));
        self.confirmed_kinds.get(&kind).map(|confirmed| confirmed.after(used))
    }

    /// The next moment at which something stops being used.
    pub(super) fn next_withholding(&self) -> Option<Moment> {
        self.stores.keys().filter_map(|kind| self.unused_from(*kind)).min()
    }

    /// Takes away what was not confirmed for too long. It stays known, and in the snapshot.
    pub(super) fn withhold(&mut self, now: Moment, out: &mut Vec<Output>) {
        let due = |kind: &Kind| self.unused_from(*kind).is_some_and(|at| now >= at);
        let kinds: Vec<Kind> = self.stores.keys().copied().filter(due).collect();
        for kind in kinds {
            let Some(store) = self.stores.get(&kind) else { continue };
            let changes: Vec<Change> =
                store.iter().map(|(_, record)| Change::Delete(record.into_owned())).collect();
            tracing::warn!(cluster = %self.config.cluster, %kind, entries = changes.len(), "not confirmed for too long: not used until the cluster is read again");
            self.emit(changes, out);
            self.withheld.insert(kind);
        }
    }

    /// The kind was confirmed: what was withheld is used again.
    pub(super) fn release(&mut self, kind: Kind, out: &mut Vec<Output>) {
        if self.withheld.remove(&kind)
            && let Some(store) = self.stores.get(&kind)
        {
            let changes = store.iter().map(|(_, record)| Change::Upsert(record.into_owned())).collect();
            self.emit(changes, out);
        }
    }

    /// What to tell the operator about entries that are known and not used.
    pub(super) fn withheld_text(&self) -> Option<String> {
        let count = |kind: &Kind| self.stores.get(kind).map_or(0, super::store::Store::len);
        let names: Vec<String> = self.withheld.iter().map(|kind| format!("{} {kind}", count(kind))).collect();
        (!names.is_empty() && self.link != Link::Gone).then(|| {
            format!(
                "{} of this cluster are not used, because they were not confirmed for too long (clustermesh.services_stale_secs); they come back with the connection",
                names.join(", ")
            )
        })
    }
}
