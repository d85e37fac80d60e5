//! What the followers told, by cluster: shared between them and the writers of the mirrors.

use super::mirror::{Mirror, Progress};
use crate::follower::{Change, MeshSink, News};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use tombolo_base::ids::ClusterName;
use tombolo_base::source::SourceState;

/// One cluster.
pub(super) struct Slot {
    pub(super) cluster: ClusterName,
    mirror: Mutex<Mirror>,
    /// Something is to be written.
    pub(super) work: Notify,
    /// Whether the cluster has a file: its mirror is removed otherwise.
    pub(super) wanted: watch::Sender<bool>,
    notes: Mutex<Notes>,
}

/// What people should know of a mirror.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    /// Why it cannot be written now; the others are.
    pub(super) problem: Option<String>,
    /// Capabilities that are not passed on.
    pub(super) left_out: Vec<String>,
}

impl Notes {
    /// What is not mirrored, in sentences; `unwritable` are keys that etcd does not take.
    pub(super) fn warnings(&self, unwritable: &BTreeSet<String>) -> Vec<String> {
        let left_out = (!self.left_out.is_empty()).then(|| {
            let names = self.left_out.join(", ");
            format!("its capabilities {names} are not announced in the mirror: what they stand for is not mirrored; a newer tombolo may know them")
        });
        let number = unwritable.len();
        let unwritable = unwritable.first().map(|first| {
            format!("{number} entries are not mirrored, because the own etcd refuses them as too large; raise its --max-request-bytes; the first is {}", first.escape_debug())
        });
        left_out.into_iter().chain(unwritable).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    fn new(cluster: ClusterName, wanted: bool) -> Self {
        Self {
            mirror: Mutex::new(Mirror::new(cluster)),
            cluster,
            work: Notify::new(),
            wanted: watch::Sender::new(wanted),
            notes: Mutex::new(Notes::default()),
        }
    }

    pub(super) fn mirror(&self) -> MutexGuard<'_, Mirror> {
        lock(&self.mirror)
    }

    pub(super) fn progress(&self) -> Progress {
        self.mirror().progress()
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.notes)
    }

    fn changed(&self, change: impl FnOnce(&mut Mirror)) {
        change(&mut self.mirror());
        self.work.notify_one();
    }
}

/// All clusters that are mirrored, or whose mirrors are to be removed.
#[derive(Default)]
pub(super) struct Book {
    slots: Mutex<BTreeMap<ClusterName, Arc<Slot>>>,
    /// A cluster came.
    pub(super) grown: Notify,
    /// A follower's state changed.
    pub(super) states: Notify,
    /// The names in the folder, once it could be listed.
    pub(super) listed: watch::Sender<Option<BTreeSet<String>>>,
}

impl Book {
    pub(super) fn slots(&self) -> Vec<Arc<Slot>> {
        lock(&self.slots).values().cloned().collect()
    }

    pub(super) fn get(&self, cluster: &ClusterName) -> Option<Arc<Slot>> {
        lock(&self.slots).get(cluster).cloned()
    }

    fn slot(&self, cluster: &ClusterName, wanted: bool) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(cluster) {
            return slot.clone();
        }
        let slot = Arc::new(Slot::new(*cluster, wanted));
        slots.insert(*cluster, slot.clone());
        drop(slots);
        self.grown.notify_one();
        slot
    }

    /// Something of that cluster was found in etcd and it has no file.
    pub(super) fn leftover(&self, cluster: &ClusterName) {
        self.slot(cluster, false);
    }

    /// The mirror is removed: nothing is known of the cluster any more, unless its file came back.
    pub(super) fn forget(&self, slot: &Slot) -> bool {
        let mut slots = lock(&self.slots);
        let removed = !*slot.wanted.borrow();
        if removed {
            slots.remove(&slot.cluster);
        }
        removed
    }
}

impl MeshSink for Book {
    fn apply(&self, cluster: &ClusterName, changes: Vec<Change>) {
        self.slot(cluster, true).changed(|mirror| mirror.take(changes));
    }

    fn state(&self, cluster: &ClusterName, state: SourceState) {
        let slot = self.slot(cluster, true);
        if state == SourceState::Pending && !slot.wanted.send_replace(true) {
            // Its file came back while its mirror was being removed: what an earlier follower said is of the past.
            slot.changed(|mirror| *mirror = Mirror::new(*cluster));
        }
        self.states.notify_one();
    }

    fn gone(&self, cluster: &ClusterName) {
        if let Some(slot) = self.get(cluster) {
            slot.wanted.send_replace(false);
        }
        self.states.notify_one();
    }

    fn news(&self, cluster: &ClusterName, news: News) {
        let slot = self.slot(cluster, true);
        let is_config = matches!(news, News::Config(..));
        let left_out = slot.mirror().news(news);
        if is_config {
            if !left_out.is_empty() {
                let names = left_out.join(", ");
                tracing::warn!(%cluster, %names, "capabilities that the mirror does not announce: what they stand for is not known here");
            }
            slot.notes().left_out = left_out;
        }
        slot.work.notify_one();
    }

    fn listed(&self, names: &BTreeSet<String>) {
        self.listed.send_if_modified(|held| {
            let changed = held.as_ref() != Some(names);
            if changed {
                *held = Some(names.clone());
            }
            changed
        });
    }
}
