//! Carries a desired table to a target: idempotent updates and deletes, retried with backoff, and a prune of what an
//! earlier life left behind, per source.
//!
//! Sans-IO: the driver feeds [`Reconciler::observe`], asks [`Reconciler::next`] for one action at a time (a batch of rows, as
//! many as the target takes, or a prune), carries it out, and reports with [`Reconciler::finish`]. Seeds and time are the
//! driver's.

use crate::clock::Moment;
use crate::rows::Rows;
use crate::source::{Source, SourceState};
use crate::table::{Batch, Row, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

/// First and last wait between two tries.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What becomes of a row at the target.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<R: Row> {
    /// Make the target hold this row. Idempotent.
    Update(R),
    /// Remove what this row put there. Idempotent.
    Delete(R),
}

impl<R: Row> Change<R> {
    /// The row that is to be there, or to go.
    pub const fn row(&self) -> &R {
        match self {
            Self::Update(row) | Self::Delete(row) => row,
        }
    }
}

/// What the driver is to do at the target.
#[derive(Debug, Clone, PartialEq)]
pub enum Action<R: Row> {
    /// Carry these rows over, each for itself; never empty, no key twice.
    Rows(Vec<Change<R>>),
    /// Remove everything of ours that is not in `keep`, except what may belong to a source in `held`.
    Prune {
        /// The rows that are wanted.
        keep: Rows<R>,
        /// Sources that have not confirmed their rows in this life: what may be theirs stays.
        held: BTreeSet<Source>,
    },
}

impl<R: Row> Action<R> {
    /// Has the target carry it out. One outcome for each row of [`Self::Rows`], in their order, and one for a prune.
    pub async fn carry_out(&self, target: &mut impl Target<R>) -> Vec<Result<(), String>> {
        match self {
            Self::Rows(changes) => target.carry(changes).await,
            Self::Prune { keep, held } => vec![target.prune(keep, held).await],
        }
    }
}

/// A target of desired rows: the kernel, eBPF maps, etcd, the BGP speaker.
pub trait Target<R: Row>: Send {
    /// How many rows [`Self::carry`] gets at most. More than one only where a batch costs the target less than its rows one by one:
    /// what changes meanwhile waits for the whole batch.
    const BATCH_MAX: usize = 1;

    /// Makes the target hold `row`; doing it twice changes nothing.
    fn update(&mut self, row: &R) -> impl Future<Output = Result<(), String>> + Send;
    /// Removes what `row` put there; removing what is not there is fine.
    fn delete(&mut self, row: &R) -> impl Future<Output = Result<(), String>> + Send;
    /// Carries several rows over, each for itself: one that fails fails alone. One outcome a change, in their order.
    fn carry(&mut self, changes: &[Change<R>]) -> impl Future<Output = Vec<Result<(), String>>> + Send {
        async move {
            let mut outcomes = Vec::with_capacity(changes.len());
            for change in changes {
                outcomes.push(match change {
                    Change::Update(row) => self.update(row).await,
                    Change::Delete(row) => self.delete(row).await,
                });
            }
            outcomes
        }
    }
    /// Removes what is ours and not in `keep`, except what may belong to a source in `held`.
    fn prune(
        &mut self,
        keep: &Rows<R>,
        held: &BTreeSet<Source>,
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// Of the rows that are wanted, those that the target does not hold as they are, for [`Reconciler::recheck`];
    /// `None` if it cannot tell: then all are written again ([`Reconciler::resync`]).
    fn audit(
        &mut self,
        _wanted: &Rows<R>,
    ) -> impl Future<Output = Result<Option<BTreeSet<R::Key>>, String>> + Send {
        std::future::ready(Ok(None))
    }
}

/// A row that could not be carried over yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the target said.
    pub error: String,
    /// Tries so far.
    pub attempts: u32,
    /// When the next try is due.
    pub retry_at: Moment,
}

/// Summary for `tombolo status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows not carried over yet, failures included.
    pub pending: usize,
    /// Rows whose last try failed.
    pub failed: usize,
    /// One failure's text.
    pub example: Option<String>,
    /// Whether the leftovers of every source have been pruned.
    pub pruned: bool,
}

/// The state machine between a desired table and a target.
#[derive(Debug)]
pub struct Reconciler<R: Row> {
    desired: Snapshot<R>,
    applied: Rows<R>,
    /// Keys whose last update or delete failed (part of it may have arrived), or that the target may have lost:
    /// `applied` does not tell what the target holds.
    unsure: BTreeSet<R::Key>,
    /// Sources that were initialised at some time in this life: whatever the target holds of theirs is wanted, was
    /// written by this life, or is a leftover. Should they fall silent later, nothing of theirs needs to be held.
    confirmed: BTreeSet<Source>,
    ready: BTreeSet<R::Key>,
    delayed: BTreeSet<(Moment, R::Key)>,
    failures: BTreeMap<R::Key, Failure>,
    prune_due: Option<Moment>,
    prune_failures: u32,
    prune_error: Option<String>,
    /// Sources whose leftovers the last prune spared; `None` before the first prune.
    held_at_last_prune: Option<BTreeSet<Source>>,
    in_flight: Option<InFlight<R>>,
    /// The target was disturbed while the action in flight was carried out: before or after it, nobody knows.
    disturbed_in_flight: bool,
    seed: u64,
}

#[derive(Debug)]
enum InFlight<R: Row> {
    Rows(Vec<Change<R>>),
    Prune(BTreeSet<Source>),
}

impl<R: Row> Reconciler<R> {
    /// A reconciler for a target whose content is not known; `seed` spreads the retries of several nodes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            desired: Snapshot::default(),
            applied: Rows::new(),
            unsure: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            failures: BTreeMap::new(),
            prune_due: None,
            prune_failures: 0,
            prune_error: None,
            held_at_last_prune: None,
            in_flight: None,
            disturbed_in_flight: false,
            seed,
        }
    }

    /// Takes in what changed in the desired table.
    pub fn observe(&mut self, batch: Batch<R>, now: Moment) {
        let Batch { keys, sources_changed, snapshot } = batch;
        self.desired = snapshot;
        for key in keys {
            self.enqueue(key);
        }
        // There may be hundreds, and whose leftovers may go follows from nothing else.
        if sources_changed {
            self.sources_changed(now);
        }
    }

    fn sources_changed(&mut self, now: Moment) {
        let (confirmed, desired) = (&mut self.confirmed, &self.desired);
        confirmed.retain(|source| desired.source_state(source).is_some());
        let initialized = desired.sources().filter(|(_, state)| *state == SourceState::Initialized);
        confirmed.extend(initialized.map(|(source, _)| *source));
        if self.is_announced() && self.prune_due.is_none() && self.has_leftovers_to_prune() {
            self.prune_due = Some(now);
        }
    }

    /// Before anybody has said that he will speak, silence means nothing.
    fn is_announced(&self) -> bool {
        self.desired.sources().next().is_some()
    }

    /// Announced sources whose leftovers must stay.
    fn held(&self) -> BTreeSet<Source> {
        let mut held = self.desired.unconfirmed_sources();
        held.retain(|source| !self.confirmed.contains(source));
        held
    }

    /// Whether a source that the last prune spared has confirmed its rows or is gone. One that is announced later has
    /// no leftovers: the prunes before took nobody's name into account for them.
    fn has_leftovers_to_prune(&self) -> bool {
        self.held_at_last_prune.as_ref().is_none_or(|spared| !spared.is_subset(&self.held()))
    }

    /// What is wanted now, for [`Target::audit`].
    #[must_use]
    pub const fn wanted(&self) -> &Rows<R> {
        self.desired.rows()
    }

    /// Asks for a full pass: every desired row is written again and leftovers are pruned (the target was disturbed).
    pub fn resync(&mut self, now: Moment) {
        self.recheck(self.desired.iter().map(Row::key).collect::<Vec<_>>());
        if self.is_announced() {
            self.prune_due = Some(now);
        } else {
            // Nobody can be asked yet whose the leftovers are: the prune comes with the first source.
            self.held_at_last_prune = None;
        }
    }

    /// Asks for some rows to be written again, or to be deleted again if they are not wanted: the target may have lost
    /// them. Rows that this life never wrote and that nobody wants are the prune's.
    pub fn recheck(&mut self, keys: impl IntoIterator<Item = R::Key>) {
        for key in keys {
            self.unsure.insert(key.clone());
            self.enqueue(key);
        }
        self.disturbed_in_flight = self.in_flight.is_some();
    }

    fn enqueue(&mut self, key: R::Key) {
        if let Some(failure) = self.failures.remove(&key) {
            self.delayed.remove(&(failure.retry_at, key.clone()));
        }
        self.ready.insert(key);
    }

    /// The next thing to do, of at most `rows_max` rows, or `None` until [`Self::next_deadline`] or the next batch. One
    /// action at a time: the next is handed out after [`Self::finish`].
    pub fn next(&mut self, now: Moment, rows_max: usize) -> Option<Action<R>> {
        if self.in_flight.is_some() {
            return None;
        }
        while let Some((at, _)) = self.delayed.first()
            && *at <= now
            && let Some((_, key)) = self.delayed.pop_first()
        {
            self.ready.insert(key);
        }
        let mut changes = Vec::new();
        while changes.len() < rows_max.max(1)
            && let Some(key) = self.ready.pop_first()
        {
            changes.extend(self.change_for(&key));
        }
        if !changes.is_empty() {
            self.in_flight = Some(InFlight::Rows(changes.clone()));
            return Some(Action::Rows(changes));
        }
        // Updates first: a prune never makes a gap that an update was about to fill.
        if self.prune_due.is_some_and(|due| due <= now) {
            self.prune_due = None;
            let held = self.held();
            let keep = self.desired.rows().clone();
            self.in_flight = Some(InFlight::Prune(held.clone()));
            return Some(Action::Prune { keep, held });
        }
        None
    }

    fn change_for(&mut self, key: &R::Key) -> Option<Change<R>> {
        match (self.desired.get(key), self.applied.get(key)) {
            (Some(wanted), applied) if applied != Some(wanted) || self.unsure.contains(key) => {
                Some(Change::Update(wanted.clone()))
            }
            (None, Some(applied)) => Some(Change::Delete(applied.clone())),
            _ => {
                self.failures.remove(key);
                self.unsure.remove(key);
                None
            }
        }
    }

    /// Reports how the action handed out last went: the outcomes of its rows in their order, or of the prune. A row
    /// without an outcome has failed.
    pub fn finish(&mut self, outcomes: impl IntoIterator<Item = Result<(), String>>, now: Moment) {
        let disturbed = std::mem::take(&mut self.disturbed_in_flight);
        let silent = || Err("the target did not say how it went".to_owned());
        let mut outcomes = outcomes.into_iter();
        match self.in_flight.take() {
            None => {}
            Some(InFlight::Rows(changes)) => {
                for change in changes {
                    self.finish_row(change, outcomes.next().unwrap_or_else(silent), disturbed, now);
                }
            }
            Some(InFlight::Prune(held)) => {
                self.finish_prune(held, outcomes.next().unwrap_or_else(silent), now);
            }
        }
        if self.is_settled() && self.unsure.is_empty() {
            // Both are equal now: one copy is enough.
            self.applied = self.desired.rows().clone();
        }
    }

    /// What the target holds, as far as is known.
    #[must_use]
    pub const fn applied(&self) -> &Rows<R> {
        &self.applied
    }

    fn finish_row(&mut self, change: Change<R>, outcome: Result<(), String>, disturbed: bool, now: Moment) {
        let key = change.row().key();
        match (change, outcome) {
            (Change::Update(row), Ok(())) => {
                self.done(&key, disturbed);
                self.applied.insert(row);
            }
            (Change::Delete(_), Ok(())) => {
                self.done(&key, disturbed);
                self.applied.remove(&key);
            }
            (Change::Update(row), Err(error)) => {
                // Whatever half of it arrived: the row counts as possibly present, so that a delete will remove it.
                self.unsure.insert(key.clone());
                if !self.applied.contains_key(&key) {
                    self.applied.insert(row);
                }
                self.fail(key, error, now);
            }
            (Change::Delete(_), Err(error)) => {
                // It may be gone: should the same row be wanted again, it must be written.
                self.unsure.insert(key.clone());
                self.fail(key, error, now);
            }
        }
    }

    fn finish_prune(&mut self, held: BTreeSet<Source>, outcome: Result<(), String>, now: Moment) {
        if let Err(error) = outcome {
            self.prune_failures = self.prune_failures.saturating_add(1);
            self.prune_error = Some(error);
            self.prune_due = Some(now.after(self.backoff(self.prune_failures)));
            return;
        }
        self.prune_failures = 0;
        self.prune_error = None;
        self.held_at_last_prune = Some(held);
        // A source that became ready meanwhile still has its leftovers.
        if self.has_leftovers_to_prune() {
            self.prune_due = Some(now);
        }
    }

    fn done(&mut self, key: &R::Key, disturbed: bool) {
        self.failures.remove(key);
        if !disturbed {
            self.unsure.remove(key);
        }
    }

    fn fail(&mut self, key: R::Key, error: String, now: Moment) {
        let attempts = self.failures.get(&key).map_or(0, |failure| failure.attempts).saturating_add(1);
        let retry_at = now.after(self.backoff(attempts));
        if !self.ready.contains(&key) {
            self.delayed.insert((retry_at, key.clone()));
        }
        self.failures.insert(key, Failure { error, attempts, retry_at });
    }

    /// Doubles from 50 ms to 30 s, with up to a quarter of jitter.
    fn backoff(&mut self, attempts: u32) -> Duration {
        let doubled = BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(BACKOFF_MAX);
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        doubled + doubled.mul_f64(f64::from(u8::try_from(self.seed >> 56).unwrap_or(0)) / 1024.0)
    }

    /// When [`Self::next`] will have something to do without further input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let retry = self.delayed.first().map(|(at, _)| *at);
        [retry, self.prune_due].into_iter().flatten().min()
    }

    /// How far the target is behind.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let in_flight = match &self.in_flight {
            None => 0,
            Some(InFlight::Rows(changes)) => changes.len(),
            Some(InFlight::Prune(_)) => 1,
        };
        let example = self.failures.iter().next().map(|(key, failure)| format!("{key:?}: {}", failure.error));
        Progress {
            pending: self.ready.len() + self.delayed.len() + in_flight,
            failed: self.failures.len() + usize::from(self.prune_error.is_some()),
            example: example.or_else(|| self.prune_error.clone()),
            pruned: self.held_at_last_prune.as_ref().is_some_and(BTreeSet::is_empty),
        }
    }

    /// Whether the target holds exactly what is desired, as far as is known.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.ready.is_empty()
            && self.delayed.is_empty()
            && self.in_flight.is_none()
            && self.failures.is_empty()
    }

    /// The failures, by key.
    #[must_use]
    pub const fn failures(&self) -> &BTreeMap<R::Key, Failure> {
        &self.failures
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
