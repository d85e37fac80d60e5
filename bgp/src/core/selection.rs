//! A restarting speaker selects no routes before its peers have sent theirs: else it would replace good forwarding state by what the first
//! peer happened to say, and tell the others of it (RFC 4724 section 4.1).

use std::time::{Duration, Instant};

use super::Core;
use super::peer::Peer;
use crate::config::SpeakerConfig;
use crate::family::Family;

/// The Selection_Deferral_Timer.
pub(super) struct Selection {
    /// None: nothing is deferred (any more).
    wait: Option<Duration>,
    until: Option<Instant>,
}

impl Selection {
    pub(super) fn new(config: &SpeakerConfig) -> Self {
        Self { wait: config.restarting.then_some(config.selection_deferral), until: None }
    }

    /// The first peer is there: the timer starts.
    pub(super) fn started(&mut self, now: Instant) {
        self.until = self.until.or_else(|| self.wait.map(|wait| now + wait));
    }

    pub(super) const fn next_deadline(&self) -> Option<Instant> {
        self.until
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }
}

/// Whether route selection of a family waits for a peer no longer: it has sent End-of-RIB, or will not because it has restarted itself, or does
/// not speak of graceful restart.
fn has_spoken(peer: &Peer, family: Family) -> bool {
    if !peer.config.graceful_restart.enabled || !peer.config.families.contains(&family) {
        return true;
    }
    peer.session.as_ref().is_some_and(|(_, session)| {
        session.peer_restart.as_ref().is_none_or(|restart| restart.restarted)
            || !session.families.contains(&family)
            || peer.end_of_rib.contains(&family)
    })
}

impl Core {
    /// Ends the deferral of families that every peer has spoken of. Only once everything is exported are all peers known.
    pub(super) fn select_if_complete(&mut self) {
        if self.selection.wait.is_none() || !self.export_complete {
            return;
        }
        for family in Family::ALL {
            let silent = |peer: &Peer| self.held_down.contains_key(&peer.config.name);
            if self.peers.values().all(|peer| silent(peer) || has_spoken(peer, family)) {
                self.select(family);
            }
        }
        if !Family::ALL.into_iter().any(|family| self.rib.is_deferred(family)) {
            self.selection = Selection { wait: None, until: None };
        }
    }

    /// Ends the deferral, whoever is still missing.
    pub(super) fn select_all(&mut self) {
        tracing::warn!("Not every peer sent its routes after the restart; selecting among those that came.");
        Family::ALL.into_iter().for_each(|family| self.select(family));
        self.selection = Selection { wait: None, until: None };
    }

    fn select(&mut self, family: Family) {
        if self.rib.is_deferred(family) {
            self.rib.select(family);
            if self.export_complete {
                self.owe_end_of_rib(family);
            }
        }
    }

    /// End-of-RIB of a family is to follow what is told now, to every peer that wants it.
    pub(super) fn owe_end_of_rib(&mut self, family: Family) {
        for peer in self.peers.values_mut().filter(|peer| peer.wants_end_of_rib(family)) {
            peer.out.owe_end_of_rib(&[family]);
        }
    }
}
