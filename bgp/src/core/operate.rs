//! What an operator asks for: resets, refreshes, shutdowns.

use std::time::Instant;

use super::Core;
use crate::error::Error;
use crate::operate::PeerAction;
use crate::rib::PeerId;
use crate::wire::{Notification, cease};

impl Core {
    /// Does something to a peer.
    pub(crate) fn operate(&mut self, now: Instant, name: &str, action: &PeerAction) -> Result<(), Error> {
        let id = self.by_name(name)?;
        match action {
            PeerAction::Clear { text } => self.clear(now, id, name, text)?,
            PeerAction::SoftIn => self.ask_again(name)?,
            PeerAction::SoftOut => self.tell_again(id, name)?,
            PeerAction::SoftBoth => {
                self.ask_again(name)?;
                self.tell_again(id, name)?;
            }
            PeerAction::Shutdown { text } => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.shut = Some(text.clone());
                    peer.fsm.stop(&Notification::cease(cease::ADMIN_SHUTDOWN, text));
                    tracing::info!(peer = name, text, "BGP peer shut down by the operator.");
                }
            }
            PeerAction::Start => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.shut = None;
                    peer.fsm.start(now);
                }
            }
        }
        self.bfd_changed = true;
        self.settle(now, id);
        Ok(())
    }

    fn clear(&mut self, now: Instant, id: PeerId, name: &str, text: &str) -> Result<(), Error> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        if peer.shut.is_some() {
            return Err(refused(name, "it is shut down", "start it first"));
        }
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
