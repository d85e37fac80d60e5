//! One operation at a time for each key; operations on different keys run side by side.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// Queues by key. The queues hold no data: what they order is the work on interfaces and datapath.
#[derive(Debug)]
pub(crate) struct Turns<K>(Arc<Mutex<BTreeMap<K, Arc<Queue<()>>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// The right to work on a key; dropping it lets the next one in.
pub(crate) struct Turn<K: Ord> {
    queues: Arc<Mutex<BTreeMap<K, Arc<Queue<()>>>>>,
    key: K,
    held: Option<OwnedMutexGuard<()>>,
}

impl<K: Ord + Clone> Turns<K> {
    /// Waits for the turn, in the order of arrival.
    pub(crate) async fn enter(&self, key: K) -> Turn<K> {
        let queue =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().clone();
        // Made before waiting: a waiter that is cancelled tidies up as well.
        let mut turn = Turn { queues: self.0.clone(), key, held: None };
        turn.held = Some(queue.lock_owned().await);
        turn
    }
}

impl<K: Ord> Drop for Turn<K> {
    fn drop(&mut self) {
        self.held = None;
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        // Only the map knows the queue: nobody holds it or waits.
        if queues.get(&self.key).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn one_key_waits_and_another_does_not_and_nothing_is_left() {
        let turns = Turns::<u8>::default();
        let first = turns.enter(1).await;
        let _other = turns.enter(2).await;
        let waiting = tokio::time::timeout(Duration::from_millis(20), turns.enter(1)).await;
        assert!(waiting.is_err(), "the key is held");
        drop(first);
        drop(turns.enter(1).await);
        drop(_other);
        assert!(turns.0.lock().unwrap().is_empty());
    }
}
