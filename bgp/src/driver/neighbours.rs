//! The tasks that find unnumbered peers, one for each interface.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::unnumbered::{Neighbour, follow};

/// Routers heard that may wait; the tasks then wait too.
const HEARD_QUEUE: usize = 64;

pub(super) struct Neighbours {
    seed: u64,
    outlet: mpsc::Sender<Neighbour>,
    inbox: mpsc::Receiver<Neighbour>,
    tasks: BTreeMap<String, AbortHandle>,
}

impl Neighbours {
    pub(super) fn new(seed: u64) -> Self {
        let (outlet, inbox) = mpsc::channel(HEARD_QUEUE);
        Self { seed, outlet, inbox, tasks: BTreeMap::new() }
    }

    /// Follows these interfaces and no others.
    pub(super) fn want(&mut self, interfaces: &BTreeSet<String>) {
        self.tasks.retain(|interface, task| {
            let wanted = interfaces.contains(interface);
            if !wanted {
                task.abort();
            }
            wanted
        });
        for interface in interfaces {
            if !self.tasks.contains_key(interface) {
                let task = tokio::spawn(follow(interface.clone(), self.seed, self.outlet.clone()));
                self.tasks.insert(interface.clone(), task.abort_handle());
            }
        }
    }

    /// The next router heard.
    pub(super) async fn heard(&mut self) -> Option<Neighbour> {
        self.inbox.recv().await
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}
