//! Runs a reconciler: one task per desired table, one action at a time, awake only when there is something to do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tombolo_base::clock::Moment;
use tombolo_base::reconcile::{Action, Change, Progress, Reconciler, Target};
use tombolo_base::rows::Rows;
use tombolo_base::table::{Row, Table};

/// Turns the machine's monotonic clock into moments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// The moment it is.
    pub(crate) fn now(self) -> Moment {
        Moment::from_origin(self.0.elapsed())
    }

    /// Sleeps until `moment`; for ever if there is none.
    pub(crate) async fn sleep_until(self, moment: Option<Moment>) {
        match moment {
            Some(moment) => tokio::time::sleep_until((self.0 + moment.since_origin()).into()).await,
            None => std::future::pending().await,
        }
    }
}

/// What every reconciler last said of itself, and who waits for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    progress: Arc<Mutex<BTreeMap<&'static str, Progress>>>,
    changed: Arc<Notify>,
}

impl Board {
    fn set(&self, name: &'static str, progress: Progress) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).insert(name, progress);
        self.changed.notify_waiters();
    }

    /// The state of all reconcilers by table name.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `check` holds for the state of all reconcilers.
    pub(crate) async fn wait(&self, check: impl Fn(&BTreeMap<&'static str, Progress>) -> bool) {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if check(&self.all()) {
                return;
            }
            notified.await;
        }
    }
}

/// What a target holds, for those who must not go on before it does.
#[derive(Debug)]
pub(crate) struct Applied<R: Row> {
    rows: Arc<Mutex<Rows<R>>>,
    changed: Arc<Notify>,
}

impl<R: Row> Clone for Applied<R> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), changed: self.changed.clone() }
    }
}

impl<R: Row> Default for Applied<R> {
    fn default() -> Self {
        Self { rows: Arc::default(), changed: Arc::default() }
    }
}

impl<R: Row> Applied<R> {
    fn record<'a>(&self, changes: impl Iterator<Item = &'a Change<R>>) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Update(row) => drop(rows.insert(row.clone())),
                Change::Delete(row) => drop(rows.remove(&row.key())),
            }
        }
        drop(rows);
        self.changed.notify_waiters();
    }

    /// Takes over what the reconciler knows when both are equal, so that there is one copy.
    fn share(&self, rows: &Rows<R>) {
        let mut own = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        *own = rows.clone();
    }

    /// What the target holds under `key`.
    pub(crate) fn get(&self, key: &R::Key) -> Option<R> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Whether the target holds a row under `key`.
    pub(crate) fn contains(&self, key: &R::Key) -> bool {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Whether the target holds a row for which `check` is true.
    pub(crate) fn any(&self, check: impl Fn(&R) -> bool) -> bool {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).values().any(check)
    }

    /// Waits until `check` holds for what the target holds under `key`.
    pub(crate) async fn wait(&self, key: &R::Key, check: impl Fn(Option<&R>) -> bool) {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if check(self.get(key).as_ref()) {
                return;
            }
            notified.await;
        }
    }

    /// Wakes up after the next change, as seen from when this is called.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

/// Notes what the target holds now; the keys of the rows that failed.
fn settle<R: Row>(action: &Action<R>, outcomes: &[Result<(), String>], applied: &Applied<R>) -> Vec<R::Key> {
    let Action::Rows(changes) = action else { return Vec::new() };
    let (done, failed): (Vec<_>, Vec<_>) =
        changes.iter().zip(outcomes).partition(|(_, outcome)| outcome.is_ok());
    applied.record(done.into_iter().map(|(change, _)| change));
    failed.into_iter().map(|(change, _)| change.row().key()).collect()
}

/// Tries after which a failing row is worth a line in the log: rows often wait a moment for one another.
const PATIENCE: u32 = 4;

fn report<R: Row>(reconciler: &Reconciler<R>, failed: &[R::Key]) {
    for key in failed {
        if let Some(failure) = reconciler.failures().get(key)
            && failure.attempts == PATIENCE
        {
            let error = &failure.error;
            tracing::warn!(table = R::TABLE, ?key, error, "not applied yet, will be tried again");
        }
    }
}

/// Asks reconcilers to look at their targets again. What is asked while one is at work is not lost, and asked several
/// times is done once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resync(watch::Sender<BTreeMap<&'static str, u64>>);

/// The name under which all tables are asked.
const ALL: &str = "";

impl Resync {
    /// Asks the reconcilers of some tables.
    pub(crate) fn ask(&self, tables: &[&'static str]) {
        self.0.send_modify(|asked| tables.iter().for_each(|table| *asked.entry(table).or_default() += 1));
    }

    /// Asks all of them.
    pub(crate) fn ask_all(&self) {
        self.ask(&[ALL]);
    }

    fn of(&self, table: &'static str) -> Asked {
        Asked { table, asked: self.0.subscribe(), done: Self::count(&self.0.borrow(), table) }
    }

    fn count(asked: &BTreeMap<&'static str, u64>, table: &'static str) -> u64 {
        [ALL, table].iter().filter_map(|name| asked.get(name)).sum()
    }
}

/// What one reconciler was asked.
struct Asked {
    table: &'static str,
    asked: watch::Receiver<BTreeMap<&'static str, u64>>,
    done: u64,
}

impl Asked {
    /// Waits until it is asked. Safe to cancel.
    async fn next(&mut self) {
        loop {
            let asked = Resync::count(&self.asked.borrow_and_update(), self.table);
            if asked != self.done {
                self.done = asked;
                return;
            }
            if self.asked.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Everything a driver needs besides table and target.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    /// The clock of this life.
    pub(crate) clock: Clock,
    /// Where progress is shown.
    pub(crate) board: Board,
    /// Ends all drivers.
    pub(crate) cancel: CancellationToken,
    /// Spreads the retries of several nodes.
    pub(crate) seed: u64,
    /// Asks reconcilers to look again (the target was, or may have been, disturbed).
    pub(crate) resync: Resync,
}

impl Driver {
    /// Carries `table` to `target` until cancelled. What the target holds is recorded in `applied`.
    pub(crate) async fn run<R: Row, T: Target<R>>(self, table: Table<R>, mut target: T, applied: Applied<R>) {
        let mut changes = table.changes();
        let mut reconciler = Reconciler::<R>::new(self.seed);
        let mut asked = self.resync.of(R::TABLE);
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                batch = changes.next() => reconciler.observe(batch, self.clock.now()),
                () = asked.next() => self.audit(&mut reconciler, &mut target).await,
                () = self.clock.sleep_until(reconciler.next_deadline()) => {}
            }
            while let Some(action) = reconciler.next(self.clock.now(), T::BATCH_MAX) {
                let outcomes = action.carry_out(&mut target).await;
                let failed = settle(&action, &outcomes, &applied);
                reconciler.finish(outcomes, self.clock.now());
                if reconciler.is_settled() {
                    applied.share(reconciler.applied());
                }
                report(&reconciler, &failed);
                if let Some(batch) = changes.drain() {
                    reconciler.observe(batch, self.clock.now());
                }
                if self.cancel.is_cancelled() {
                    return;
                }
            }
            self.board.set(R::TABLE, reconciler.progress());
        }
    }

    /// Has the target's differences written again: all rows if it cannot tell which.
    async fn audit<R: Row, T: Target<R>>(&self, reconciler: &mut Reconciler<R>, target: &mut T) {
        match target.audit(reconciler.wanted()).await {
            Ok(Some(missing)) => {
                if !missing.is_empty() {
                    tracing::info!(
                        table = R::TABLE,
                        rows = missing.len(),
                        "rows were lost at the target and are written again"
                    );
                }
                reconciler.recheck(missing);
            }
            Ok(None) => reconciler.resync(self.clock.now()),
            Err(error) => {
                tracing::warn!(
                    table = R::TABLE,
                    error,
                    "the target cannot be compared; all rows are written again"
                );
                reconciler.resync(self.clock.now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_asked_is_done_once_and_never_lost() {
        let resync = Resync::default();
        let (mut routes, mut peers) = (resync.of("routes"), resync.of("peers"));
        resync.ask(&["routes"]);
        resync.ask(&["routes"]);
        routes.next().await;
        let idle = tokio::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(idle, routes.next()).await.is_err(), "asked twice, done once");
        assert!(tokio::time::timeout(idle, peers.next()).await.is_err(), "nobody asked the other");
        resync.ask_all();
        routes.next().await;
        peers.next().await;
    }
}
