//! What an operator asks for: resets, refreshes, shutdowns.

use std::time::Instant;

use super::Core;
use crate::error::Error;
use crate::operate::PeerAction;
use crate::rib::PeerId;
use crate::wire::{Notification, cease};

/// Most sessions that may be shut down; a further one is refused.
const HELD_DOWN_MAX: usize = 4096;

impl Core {
    /// Does something to a peer.
    pub(crate) fn operate(&mut self, now: Instant, name: &str, action: &PeerAction) -> Result<(), Error> {
        let id = match self.by_name(name) {
            Ok(id) => id,
            // It is not there, and will come up when it is.
            Err(_) if *action == PeerAction::Start && self.held_down.remove(name).is_some() => return Ok(()),
            Err(error) => return Err(error),
        };
        match action {
            PeerAction::Clear { text } => self.clear(now, id, name, text)?,
            PeerAction::SoftIn => self.ask_again(name)?,
            PeerAction::SoftOut => self.tell_again(id, name)?,
            PeerAction::SoftBoth => {
                self.ask_again(name)?;
                self.tell_again(id, name)?;
            }
            PeerAction::Shutdown { text } => {
                if self.held_down.len() >= HELD_DOWN_MAX && !self.held_down.contains_key(name) {
                    let remedy = "start some of them, or take the peer out of the configuration";
                    return Err(refused(name, "as many sessions are shut down as may be", remedy));
                }
                self.held_down.insert(name.to_owned(), text.clone());
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.fsm.stop(&Notification::cease(cease::ADMIN_SHUTDOWN, text));
                    tracing::info!(peer = name, text, "BGP peer shut down by the operator.");
                }
            }
            PeerAction::Start => {
                self.held_down.remove(name);
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.fsm.start(now);
                }
            }
        }
        self.bfd_changed = true;
        self.settle(now, id);
        Ok(())
    }

    fn clear(&mut self, now: Instant, id: PeerId, name: &str, text: &str) -> Result<(), Error> {
        if self.held_down.contains_key(name) {
            return Err(refused(name, "it is shut down", "start it first"));
        }
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        peer.fsm.reset(now, &Notification::cease(cease::ADMIN_RESET, text));
        Ok(())
    }

    fn ask_again(&mut self, name: &str) -> Result<(), Error> {
        if self.refresh(name)? {
            return Ok(());
        }
        Err(refused(
            name,
            "there is no session, or the peer does not offer route refresh",
            "clear it without --soft",
        ))
    }

    fn tell_again(&mut self, id: PeerId, name: &str) -> Result<(), Error> {
        let session = self.peers.get(&id).and_then(|peer| peer.session.clone());
        let Some((_, session)) = session else {
            return Err(refused(name, "there is no session", "see why: tombolo bgp peer NAME"));
        };
        session.families.iter().for_each(|family| self.say_again(id, *family));
        Ok(())
    }
}

fn refused(name: &str, what: &'static str, remedy: &'static str) -> Error {
    Error::Refused { peer: name.to_owned(), what, remedy }
}
