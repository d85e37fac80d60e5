//! What the core keeps for one peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

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
use super::restart::Retention;

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
    /// Families whose routes are kept since a session ended, until their End-of-RIB.
    pub(super) kept: Retention,
    /// Families the peer is sending again, and how long that may take.
    pub(super) refreshing: BTreeMap<Family, Instant>,
    pub(super) end_of_rib: BTreeSet<Family>,
    /// The BFD session with the peer as last heard.
    pub(super) bfd: Option<SessionStatus>,
    /// The listen range a dynamic neighbour came from.
    pub(super) dynamic: Option<String>,
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
            kept: Retention::default(),
            refreshing: BTreeMap::new(),
            end_of_rib: BTreeSet::new(),
            bfd: None,
            dynamic: None,
            opens: (None, None),
            last_state: State::Idle,
            state_since: None,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let refreshing = self.refreshing.values().copied();
        self.fsm.next_deadline().into_iter().chain(self.kept.next_deadline()).chain(refreshing).min()
    }

    /// Whether the peer wants End-of-RIB of a family, which is the sense of its graceful restart capability.
    pub(super) fn wants_end_of_rib(&self, family: Family) -> bool {
        let session = self.session.as_ref().map(|(_, session)| session);
        session.is_some_and(|session| session.peer_restart.is_some() && session.families.contains(&family))
    }
}
