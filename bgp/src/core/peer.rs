//! What the core keeps for one peer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::bfd::SessionStatus;
use crate::config::PeerConfig;
use crate::event::Counters;
use crate::family::Family;
use crate::fsm::{ConnectionId, Fsm, Session, State};
use crate::rib::out::AdjRibOut;

use super::export::View;
use super::import::Import;
use super::limits::Limits;

/// Longest wait for a restarted peer's End-of-RIB before its stale routes go (RFC 4724 section 4.2).
pub(super) const END_OF_RIB_WAIT: Duration = Duration::from_secs(360);

pub(super) struct Peer {
    pub(super) config: Arc<PeerConfig>,
    pub(super) fsm: Fsm,
    /// The established session and its connection.
    pub(super) session: Option<(ConnectionId, Arc<Session>)>,
    /// What it hears; with a session.
    pub(super) view: Option<Arc<View>>,
    pub(super) out: AdjRibOut,
    /// What is done with its routes.
    pub(super) import: Import,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    /// Stale routes are held until then.
    pub(super) stale_until: Option<Instant>,
    pub(super) end_of_rib: BTreeSet<Family>,
    /// The BFD session with the peer as last heard.
    pub(super) bfd: Option<SessionStatus>,
    /// The listen range a dynamic neighbour came from.
    pub(super) dynamic: Option<String>,
    /// Shut down by the operator, with the text for the other one.
    pub(super) shut: Option<String>,
    /// The last OPENs, ours and theirs.
    pub(super) opens: (Option<Bytes>, Option<Bytes>),
    /// The state last noted, and since when it is so.
    pub(super) last_state: State,
    pub(super) state_since: Option<Instant>,
}

impl Peer {
    pub(super) fn new(config: Arc<PeerConfig>, fsm: Fsm) -> Self {
        let import = Import::new(Arc::clone(&config));
        Self {
            config,
            fsm,
            session: None,
            view: None,
            out: AdjRibOut::default(),
            import,
            limits: Limits::default(),
            counters: Counters::default(),
            stale_until: None,
            end_of_rib: BTreeSet::new(),
            bfd: None,
            dynamic: None,
            shut: None,
            opens: (None, None),
            last_state: State::Idle,
            state_since: None,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.fsm.next_deadline().into_iter().chain(self.stale_until).min()
    }

    /// Families of the session if the peer wants End-of-RIB, which is the sense of its graceful restart capability.
    pub(super) fn end_of_rib_families(&self) -> Vec<Family> {
        match &self.session {
            Some((_, session)) if session.peer_restart.is_some() => session.families.clone(),
            _ => Vec::new(),
        }
    }
}
