//! The speaker's side of the BFD unit: a task follows the unit; this hands it the wanted sessions and takes what it hears.

use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::bfd::SessionStatus;
use crate::bfd::client::{Wanted, follow};
use crate::config::BfdUnit;

/// Changes that may wait; more wait in the unit.
const HEARD_QUEUE: usize = 256;
/// Longest wait for the unit to let go of the sessions of a speaker that stops.
const RELEASE_MAX: Duration = Duration::from_secs(1);

pub(super) struct Bfd {
    unit: BfdUnit,
    wanted: watch::Sender<Wanted>,
    heard: mpsc::Receiver<SessionStatus>,
}

impl Bfd {
    pub(super) fn start(unit: BfdUnit) -> Self {
        let (wanted, list) = watch::channel(Wanted::default());
        let (outlet, heard) = mpsc::channel(HEARD_QUEUE);
        // Ends with either channel; the unit and its sessions stay for the next speaker.
        tokio::spawn(follow(unit.unit.clone(), unit.owner.clone(), list, outlet));
        Self { unit, wanted, heard }
    }

    pub(super) fn want(&self, sessions: Wanted) {
        self.wanted.send_if_modified(|list| {
            let changed = *list != sessions;
            *list = sessions;
            changed
        });
    }

    /// Ends the sessions: the speaker stops in order, and its peers shall not take that for a failure.
    pub(super) async fn release(self) {
        let Self { unit, wanted, heard } = self;
        let any = !wanted.borrow().sessions.is_empty();
        drop((wanted, heard));
        if !any {
            return;
        }
        match tokio::time::timeout(RELEASE_MAX, unit.unit.client().set(&unit.owner, &[])).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "The BFD sessions could not be ended."),
            Err(_) => tracing::warn!("The BFD unit did not end the sessions in time."),
        }
    }
}

/// The next thing heard; never, without a unit or when its follower has ended.
pub(super) async fn heard(bfd: &mut Option<Bfd>) -> Option<SessionStatus> {
    match bfd {
        Some(bfd) => bfd.heard.recv().await,
        None => std::future::pending().await,
    }
}
