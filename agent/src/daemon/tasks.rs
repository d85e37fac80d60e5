//! The daemon's tasks by name. One that ends before the stop was asked for is a bug or a lost room: `tombolo status` shows
//! it, and the daemon goes on with what works.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long a task lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    /// Until the stop.
    Daemon,
    /// Until its work is done.
    Work,
}

#[derive(Debug, Default)]
struct State {
    running: HashMap<Id, (&'static str, Span)>,
    ended: Vec<String>,
}

/// Who runs, and who should and does not; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roll(Arc<Mutex<State>>);

impl Roll {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of the tasks that run, in order.
    pub(crate) fn running(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.state().running.values().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names
    }

    /// The tasks that ended too early, each with the reason.
    pub(crate) fn ended(&self) -> Vec<String> {
        self.state().ended.clone()
    }

    /// Strikes a task off. One that panicked, or should have lived on, is remembered.
    fn left(&self, id: Id, result: Result<(), JoinError>, stopping: bool) {
        let mut state = self.state();
        let Some((name, span)) = state.running.remove(&id) else { return };
        let text = match result {
            Ok(()) if stopping || span == Span::Work => return,
            Ok(()) => format!("{name} ended"),
            Err(error) if error.is_cancelled() => return,
            Err(error) => format!("{name} broke off: {error}"),
        };
        tracing::error!(task = name, "{text}; restart the agent");
        state.ended.push(text);
    }
}

/// The tasks of the daemon.
pub(crate) struct Tasks {
    set: JoinSet<()>,
    roll: Roll,
}

impl Tasks {
    /// None yet; they are entered in `roll`.
    pub(crate) fn new(roll: Roll) -> Self {
        Self { set: JoinSet::new(), roll }
    }

    /// Starts a task that lives until the stop.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.enter(name, Span::Daemon, task);
    }

    /// Starts a task that ends when its work is done.
    pub(crate) fn spawn_work(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.enter(name, Span::Work, task);
    }

    fn enter(&mut self, name: &'static str, span: Span, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.roll.state().running.insert(id, (name, span));
    }

    /// Waits until all have ended, and keeps the roll.
    pub(crate) async fn ended(mut self, cancel: &CancellationToken) {
        while let Some(ended) = self.set.join_next_with_id().await {
            let (id, result) = match ended {
                Ok((id, ())) => (id, Ok(())),
                Err(error) => (error.id(), Err(error)),
            };
            self.roll.left(id, result, cancel.is_cancelled());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_too_early_or_panics_is_remembered_and_the_rest_goes_on() {
        let (roll, cancel) = (Roll::default(), CancellationToken::new());
        let mut tasks = Tasks::new(roll.clone());
        let lives = cancel.clone();
        tasks.spawn("lives", async move { lives.cancelled().await });
        tasks.spawn("mesh", async {});
        tasks.spawn("flows", async { panic!("out of luck") });
        tasks.spawn_work("once", async {});
        let watch = {
            let cancel = cancel.clone();
            tokio::spawn(async move { tasks.ended(&cancel).await })
        };
        while roll.running() != ["lives"] {
            tokio::task::yield_now().await;
        }
        let mut ended = roll.ended();
        ended.sort();
        assert_eq!(ended.len(), 2, "{ended:?}");
        assert!(ended[0].starts_with("flows broke off") && ended[0].contains("out of luck"), "{ended:?}");
        assert_eq!(ended[1], "mesh ended");
        cancel.cancel();
        watch.await.unwrap();
        assert_eq!((roll.running().len(), roll.ended().len()), (0, 2), "a stop is no early end");
    }
}
