//! What passes on the sessions, as it passes: messages whole, and changes of state, for the message log.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::Core;
use crate::config::PeerConfig;
use crate::fsm::State;
use crate::rib::PeerId;
use crate::wire::{Frame, HEADER_LEN, MessageType};

/// Bytes of messages kept until they are taken; what is over is lost, and counted. They are taken after every step.
const TAP_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whose message or state it is.
#[derive(Clone, Debug)]
pub(crate) struct TapPeer {
    pub(crate) config: Arc<PeerConfig>,
    pub(crate) local_asn: u32,
    /// 0 until it is known.
    pub(crate) peer_asn: u32,
    pub(crate) local_address: Option<IpAddr>,
    /// Paths have two octets for each AS (RFC 6793).
    pub(crate) two_octet: bool,
    /// Routes come with path identifiers in some family (RFC 7911).
    pub(crate) add_path: bool,
}

/// What passed.
#[derive(Clone, Debug)]
pub(crate) enum Passed {
    /// Messages with their headers, one or more; `sent` by us.
    Messages { sent: bool, bytes: Bytes },
    /// A change of state.
    State { from: State, to: State },
}

/// The tap. Off unless somebody takes from it.
#[derive(Debug, Default)]
pub(super) struct Tap {
    on: bool,
    queue: VecDeque<(TapPeer, Passed)>,
    bytes: usize,
    lost: u64,
}

impl Core {
    /// Opens the tap: whoever does so takes what comes out.
    pub(crate) fn open_tap(&mut self) {
        self.tap.on = true;
    }

    /// What has passed since the last call, and how much more was lost for want of room.
    pub(crate) fn take_tapped(&mut self) -> (VecDeque<(TapPeer, Passed)>, u64) {
        self.tap.bytes = 0;
        (std::mem::take(&mut self.tap.queue), std::mem::take(&mut self.tap.lost))
    }

    fn tap(&mut self, id: PeerId, passed: Passed) {
        let Some(peer) = self.peers.get(&id) else { return };
        let len = match &passed {
            Passed::Messages { bytes, .. } => bytes.len(),
            Passed::State { .. } => 0,
        };
        if self.tap.bytes + len > TAP_BYTES_MAX {
            self.tap.lost += 1;
            return;
        }
        self.tap.bytes += len;
        let session = peer.session.as_ref().map(|(_, session)| session);
        let whose = TapPeer {
            config: Arc::clone(&peer.config),
            local_asn: self.identity.asn,
            peer_asn: session.map_or(peer.config.peer_asn, |session| session.peer_asn),
            local_address: session.map(|session| session.local_address).or(peer.config.local_address),
            two_octet: session.is_some_and(|session| !session.context.four_octet_as),
            add_path: session.is_some_and(|session| !session.context.add_path.is_empty()),
        };
        self.tap.queue.push_back((whose, passed));
    }

    /// A message came.
    pub(super) fn heard(&mut self, id: PeerId, frame: &Frame) {
        let open = frame.kind == MessageType::Open;
        if !self.tap.on && !open {
            return;
        }
        let len = u16::try_from(HEADER_LEN + frame.body.len()).unwrap_or(u16::MAX);
        let mut bytes = BytesMut::with_capacity(usize::from(len));
        bytes.put_bytes(0xff, 16);
        bytes.put_u16(len);
        bytes.put_u8(frame.kind.code());
        bytes.put_slice(&frame.body);
        let bytes = bytes.freeze();
        if let Some(peer) = self.peers.get_mut(&id).filter(|_| open) {
            peer.opens.1 = Some(bytes.clone());
        }
        if self.tap.on {
            self.tap(id, Passed::Messages { sent: false, bytes });
        }
    }

    /// Messages go out to a peer.
    pub(super) fn said(&mut self, id: PeerId, bytes: &Bytes) {
        if let Some(peer) = self.peers.get_mut(&id) {
            for kind in kinds(bytes) {
                peer.counters.messages_sent += 1;
                peer.counters.updates_sent += u64::from(kind == UPDATE);
            }
            // An OPEN goes out alone.
            if bytes.get(18) == Some(&MessageType::Open.code()) {
                peer.opens.0 = Some(bytes.clone());
            }
        }
        if self.tap.on {
            self.tap(id, Passed::Messages { sent: true, bytes: bytes.clone() });
        }
    }

    /// Notes a change of state, if there was one since the last call.
    pub(super) fn note_state(&mut self, now: std::time::Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let to = peer.fsm.state();
        let from = std::mem::replace(&mut peer.last_state, to);
        if from == to {
            return;
        }
        peer.state_since = Some(now);
        if self.tap.on {
            self.tap(id, Passed::State { from, to });
        }
    }
}

/// The type code of UPDATE.
const UPDATE: u8 = 2;

/// Each message of a run of them, whole.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = rest.get(16..18).and_then(|len| <[u8; 2]>::try_from(len).ok()).map(u16::from_be_bytes)?;
        let (message, after) = rest.split_at_checked(usize::from(len).max(HEADER_LEN))?;
        rest = after;
        Some(message)
    })
}

/// The type codes of a run of messages.
fn kinds(bytes: &[u8]) -> impl Iterator<Item = u8> {
    messages(bytes).filter_map(|message| message.get(18).copied())
}
