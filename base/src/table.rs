//! Tables: ordered, persistent maps with a revision, secondary indexes, per-source initialisation and change streams.
//!
//! A snapshot is a cheap clone of persistent trees. Each reader of changes keeps the *set* of keys that changed since
//! it last looked, so a slow reader never blocks the writer, and costs at most two keys for each one that changed meanwhile
//! (4096 are kept in any case). That includes rows that came and went: a reader must look from time to time where
//! keys are ever new ones. What a key became is read from the snapshot delivered with the batch.

use crate::rows::Rows;
use crate::source::{Source, SourceState};
use crate::tree::Tree;
use event_listener::{Event, EventListener};
use futures_core::Stream;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

/// A row of a table: a value with a key, a source, and a way to print itself.
pub trait Row: Clone + PartialEq + Debug + Serialize + Send + Sync + 'static {
    /// Orders the table. Intent rows put their [`Source`] into it, so that two sources can say different things.
    type Key: Ord + Clone + Debug + Send + Sync + 'static;
    /// The secondary indexes, as one enum; [`NoIndex`] for none.
    type Index: Ord + Clone + Debug + Send + Sync + 'static;
    /// The name that `tombolo show` knows.
    const TABLE: &'static str;

    /// The key of this row.
    fn key(&self) -> Self::Key;
    /// How its key compares with another. Worth writing where making a key costs something.
    fn cmp_key(&self, key: &Self::Key) -> Ordering {
        self.key().cmp(key)
    }
    /// Who said it.
    fn source(&self) -> &Source;
    /// Under which secondary keys it is found.
    fn indexes(&self) -> Vec<Self::Index> {
        Vec::new()
    }
    /// Column headings for people.
    fn columns() -> &'static [&'static str];
    /// One cell per column.
    fn cells(&self) -> Vec<String>;
}

/// The index type of tables without secondary indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoIndex {}

/// The content of a table at one revision.
#[derive(Debug)]
pub struct Snapshot<R: Row> {
    rows: Rows<R>,
    index: Tree<(R::Index, R::Key)>,
    /// Keys by source, but those of clusters: theirs may be millions, and are never asked for one source at a time but
    /// to forget it.
    by_source: Tree<(Source, R::Key)>,
    sources: Arc<BTreeMap<Source, SourceState>>,
    revision: u64,
}

impl<R: Row> Clone for Snapshot<R> {
    fn clone(&self) -> Self {
        Self {
            rows: self.rows.clone(),
            index: self.index.clone(),
            by_source: self.by_source.clone(),
            sources: self.sources.clone(),
            revision: self.revision,
        }
    }
}

impl<R: Row> Default for Snapshot<R> {
    fn default() -> Self {
        Self {
            rows: Rows::default(),
            index: Tree::default(),
            by_source: Tree::default(),
            sources: Arc::default(),
            revision: 0,
        }
    }
}

const fn is_listed(source: &Source) -> bool {
    !matches!(source, Source::Cluster(_))
}

impl<R: Row> Snapshot<R> {
    /// The row of `key`.
    #[must_use]
    pub fn get(&self, key: &R::Key) -> Option<&R> {
        self.rows.get(key)
    }

    /// All rows by key; cheap to clone.
    #[must_use]
    pub const fn rows(&self) -> &Rows<R> {
        &self.rows
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    /// The rows found under a secondary key.
    pub fn by_index<'a>(&'a self, index: &R::Index) -> impl Iterator<Item = &'a R> + use<'a, R> {
        let index = index.clone();
        let from = self.index.iter_from(|(other, _)| other.cmp(&index).then(Ordering::Greater));
        let found = from.take_while(move |(other, _)| *other == index);
        found.filter_map(|(_, key)| self.rows.get(key))
    }

    /// The rows of one source. Those of a cluster are found by looking at all rows.
    pub fn by_source(&self, source: &Source) -> impl Iterator<Item = &R> {
        let listed = is_listed(source);
        let from = self.by_source.iter_from(|(other, _)| other.cmp(source).then(Ordering::Greater));
        let found = from.take_while(move |(other, _)| listed && other == source);
        let walk = (!listed).then(|| self.rows.values().filter(move |row| row.source() == source));
        found.filter_map(|(_, key)| self.rows.get(key)).chain(walk.into_iter().flatten())
    }

    /// Rows from `key` on.
    pub fn from_key<'a>(&'a self, key: &R::Key) -> impl Iterator<Item = &'a R> + use<'a, R> {
        self.rows.values_from(key)
    }

    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Grows by one with each commit that changed something.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// State of one source; `None` if it was never announced.
    #[must_use]
    pub fn source_state(&self, source: &Source) -> Option<SourceState> {
        self.sources.get(source).copied()
    }

    /// The announced sources and their states.
    pub fn sources(&self) -> impl Iterator<Item = (&Source, SourceState)> {
        self.sources.iter().map(|(source, state)| (source, *state))
    }

    /// Announced sources that have not said all they have: their first list is missing, or from an earlier life's
    /// snapshot, which lags behind what that life had carried out.
    #[must_use]
    pub fn unconfirmed_sources(&self) -> BTreeSet<Source> {
        let open =
            |(source, state): (&Source, SourceState)| (state != SourceState::Initialized).then_some(*source);
        self.sources().filter_map(open).collect()
    }

    /// Whether at least one source was announced and none is pending: all rows are usable, stale ones included.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.sources.is_empty() && self.sources.values().all(|state| *state != SourceState::Pending)
    }

    fn insert(&mut self, row: R, key: &R::Key) -> bool {
        match self.rows.get(key) {
            Some(old) if *old == row => return false,
            Some(old) if (old.source(), old.indexes()) == (row.source(), row.indexes()) => {}
            old => {
                if let Some(old) = old.cloned() {
                    self.detach(&old, key);
                }
                for index in row.indexes() {
                    attach(&mut self.index, index, key);
                }
                if is_listed(row.source()) {
                    attach(&mut self.by_source, *row.source(), key);
                }
            }
        }
        self.rows.insert(row);
        true
    }

    fn take(&mut self, key: &R::Key) -> Option<R> {
        let row = self.rows.remove(key)?;
        self.detach(&row, key);
        Some(row)
    }

    fn detach(&mut self, row: &R, key: &R::Key) {
        for index in row.indexes() {
            self.index.remove(|entry| entry.0.cmp(&index).then_with(|| entry.1.cmp(key)));
        }
        self.by_source.remove(|entry| entry.0.cmp(row.source()).then_with(|| entry.1.cmp(key)));
    }
}

fn attach<I: Ord + Clone, K: Ord + Clone>(tree: &mut Tree<(I, K)>, index: I, key: &K) {
    let entry = (index.clone(), key.clone());
    tree.insert(entry, |other| other.0.cmp(&index).then_with(|| other.1.cmp(key)));
}

/// What a reader has not seen yet.
#[derive(Debug)]
struct Dirty<K> {
    /// In the order of the changes; the first of them are sorted and unique.
    keys: Vec<K>,
    unique: usize,
    sources: bool,
}

/// Keys that may be noted before repeated ones are dropped.
const NOTED_MIN: usize = 4096;

impl<K: Ord + Clone> Dirty<K> {
    /// Notes keys; a reader that does not look costs at most twice the different ones, each put in order a few times.
    fn note(&mut self, keys: &[K]) {
        self.keys.extend_from_slice(keys);
        if self.keys.len() > NOTED_MIN.max(2 * self.unique) {
            self.tidy();
        }
    }

    fn tidy(&mut self) {
        // Sorting where it stands needs no room: there may be a million.
        if self.unique < self.keys.len() {
            self.keys.sort_unstable();
        }
        self.keys.dedup();
        self.unique = self.keys.len();
    }

    /// Sorted, each once; none are left.
    fn take(&mut self) -> Vec<K> {
        self.tidy();
        self.unique = 0;
        std::mem::take(&mut self.keys)
    }
}

#[derive(Debug)]
struct Subscriber<K> {
    dirty: Mutex<Dirty<K>>,
    event: Event,
}

#[derive(Debug)]
struct Shared<R: Row> {
    snapshot: Mutex<Snapshot<R>>,
    subscribers: Mutex<Vec<Weak<Subscriber<R::Key>>>>,
}

/// A poisoned lock only means that a reader panicked between two plain assignments; the content is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reading side of a table; cheap to clone.
#[derive(Debug)]
pub struct Table<R: Row>(Arc<Shared<R>>);

impl<R: Row> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The writing side of a table. Not `Clone`: one owner; sources that share a table share it in an [`Arc`].
#[derive(Debug)]
pub struct Writer<R: Row>(Table<R>);

impl<R: Row> Table<R> {
    /// An empty table without sources.
    #[must_use]
    pub fn new() -> (Self, Writer<R>) {
        let shared =
            Shared { snapshot: Mutex::new(Snapshot::default()), subscribers: Mutex::new(Vec::new()) };
        let table = Self(Arc::new(shared));
        (table.clone(), Writer(table))
    }

    /// The content now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot<R> {
        lock(&self.0.snapshot).clone()
    }

    /// A stream of changes that starts with all present rows.
    #[must_use]
    pub fn changes(&self) -> Changes<R> {
        self.reader(|snapshot| {
            let keys: Vec<_> = snapshot.rows.keys().collect();
            Dirty { unique: keys.len(), keys, sources: !snapshot.sources.is_empty() }
        })
    }

    /// A stream of the changes from now on.
    #[must_use]
    pub fn later_changes(&self) -> Changes<R> {
        self.reader(|_| Dirty { unique: 0, keys: Vec::new(), sources: false })
    }

    fn reader(&self, unseen: impl FnOnce(&Snapshot<R>) -> Dirty<R::Key>) -> Changes<R> {
        let snapshot = lock(&self.0.snapshot);
        let dirty = unseen(&snapshot);
        let subscriber = Arc::new(Subscriber { dirty: Mutex::new(dirty), event: Event::new() });
        let mut subscribers = lock(&self.0.subscribers);
        subscribers.retain(|weak| weak.strong_count() > 0);
        subscribers.push(Arc::downgrade(&subscriber));
        drop(subscribers);
        drop(snapshot);
        Changes { table: self.clone(), subscriber, listener: None }
    }

    fn commit<T>(&self, change: impl FnOnce(&mut Transaction<'_, R>) -> T) -> T {
        let mut snapshot = lock(&self.0.snapshot);
        let mut txn = Transaction { snapshot: &mut snapshot, changed: Vec::new(), sources: false };
        let out = change(&mut txn);
        let (changed, sources) = (txn.changed, txn.sources);
        if !changed.is_empty() || sources {
            snapshot.revision += 1;
            // Still under the snapshot's lock: a reader never sees a revision before its keys are marked.
            for subscriber in lock(&self.0.subscribers).iter().filter_map(Weak::upgrade) {
                let mut dirty = lock(&subscriber.dirty);
                dirty.note(&changed);
                dirty.sources |= sources;
                drop(dirty);
                subscriber.event.notify(usize::MAX);
            }
        }
        out
    }
}

/// Several changes that become visible as one revision.
pub struct Transaction<'a, R: Row> {
    snapshot: &'a mut Snapshot<R>,
    changed: Vec<R::Key>,
    sources: bool,
}

impl<R: Row> Transaction<'_, R> {
    /// Writes a row; an equal one changes nothing. True if it changed.
    pub fn upsert(&mut self, row: R) -> bool {
        let key = row.key();
        let changed = self.snapshot.insert(row, &key);
        if changed {
            self.changed.push(key);
        }
        changed
    }

    /// Removes a row and hands it back.
    pub fn remove(&mut self, key: &R::Key) -> Option<R> {
        let old = self.snapshot.take(key)?;
        self.changed.push(key.clone());
        Some(old)
    }

    /// The content so far, with this transaction's changes.
    #[must_use]
    pub fn current(&self) -> &Snapshot<R> {
        self.snapshot
    }

    /// Sets how far a source's first list has come.
    pub fn set_source(&mut self, source: &Source, state: SourceState) {
        if self.snapshot.sources.get(source) != Some(&state) {
            Arc::make_mut(&mut self.snapshot.sources).insert(*source, state);
            self.sources = true;
        }
    }

    /// Forgets a source and all its rows.
    pub fn drain_source(&mut self, source: &Source) {
        self.retain_source(source, &BTreeSet::new());
        if self.snapshot.sources.contains_key(source) {
            Arc::make_mut(&mut self.snapshot.sources).remove(source);
            self.sources = true;
        }
    }

    /// Forgets how far a source has come; its rows stay.
    pub fn forget_source(&mut self, source: &Source) {
        if self.snapshot.sources.contains_key(source) {
            Arc::make_mut(&mut self.snapshot.sources).remove(source);
            self.sources = true;
        }
    }

    /// Makes `rows` the whole content of `source`: others of that source go, equal ones stay untouched.
    pub fn replace_source(&mut self, source: &Source, rows: impl IntoIterator<Item = R>) {
        let mut keep = BTreeSet::new();
        for row in rows {
            keep.insert(row.key());
            self.upsert(row);
        }
        self.retain_source(source, &keep);
    }

    fn retain_source(&mut self, source: &Source, keep: &BTreeSet<R::Key>) {
        let keys: Vec<_> =
            self.snapshot.by_source(source).map(Row::key).filter(|key| !keep.contains(key)).collect();
        for key in keys {
            self.remove(&key);
        }
    }
}

impl<R: Row> Writer<R> {
    /// Runs several changes as one revision.
    pub fn commit<T>(&self, change: impl FnOnce(&mut Transaction<'_, R>) -> T) -> T {
        self.0.commit(change)
    }

    /// Writes one row. True if it changed.
    pub fn upsert(&self, row: R) -> bool {
        self.commit(|txn| txn.upsert(row))
    }

    /// Removes one row and hands it back.
    pub fn remove(&self, key: &R::Key) -> Option<R> {
        self.commit(|txn| txn.remove(key))
    }

    /// Sets how far a source's first list has come.
    pub fn set_source(&self, source: &Source, state: SourceState) {
        self.commit(|txn| txn.set_source(source, state));
    }

    /// Makes `rows` the whole content of `source` and marks it initialised.
    pub fn replace_source(&self, source: &Source, rows: impl IntoIterator<Item = R>) {
        self.commit(|txn| {
            txn.replace_source(source, rows);
            txn.set_source(source, SourceState::Initialized);
        });
    }

    /// Forgets a source and all its rows.
    pub fn drain_source(&self, source: &Source) {
        self.commit(|txn| txn.drain_source(source));
    }

    /// The reading side.
    #[must_use]
    pub const fn table(&self) -> &Table<R> {
        &self.0
    }
}

/// What changed since the last batch, with the content to read it from.
#[derive(Debug, Clone)]
pub struct Batch<R: Row> {
    /// Keys that were written or removed: sorted, each once.
    pub keys: Vec<R::Key>,
    /// Whether a source appeared, went, or changed its state.
    pub sources_changed: bool,
    /// The content after all these changes.
    pub snapshot: Snapshot<R>,
}

/// A reader's stream of changes; see [`Table::changes`].
#[derive(Debug)]
pub struct Changes<R: Row> {
    table: Table<R>,
    subscriber: Arc<Subscriber<R::Key>>,
    listener: Option<Pin<Box<EventListener>>>,
}

impl<R: Row> Changes<R> {
    /// What changed since the last call; `None` if nothing did.
    pub fn drain(&mut self) -> Option<Batch<R>> {
        // The snapshot's lock comes first, as in `commit`.
        let snapshot = lock(&self.table.0.snapshot);
        let mut dirty = lock(&self.subscriber.dirty);
        if dirty.keys.is_empty() && !dirty.sources {
            return None;
        }
        let keys = dirty.take();
        let sources_changed = std::mem::take(&mut dirty.sources);
        Some(Batch { keys, sources_changed, snapshot: snapshot.clone() })
    }

    /// Waits for the next batch. Cancel-safe: nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Batch<R> {
        std::future::poll_fn(|cx| self.poll_batch(cx)).await
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Batch<R>> {
        loop {
            if let Some(batch) = self.drain() {
                self.listener = None;
                return Poll::Ready(batch);
            }
            match &mut self.listener {
                // Listen first, then look once more: a change between the two is not missed.
                None => self.listener = Some(Box::pin(self.subscriber.event.listen())),
                Some(listener) => match listener.as_mut().poll(cx) {
                    Poll::Ready(()) => self.listener = None,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

impl<R: Row> Stream for Changes<R> {
    type Item = Batch<R>;
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Batch<R>>> {
        self.get_mut().poll_batch(cx).map(Some)
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
pub(crate) mod tests;
