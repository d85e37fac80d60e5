//! What the core keeps for one peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use crate::bfd::SessionStatus;
use crate::config::PeerConfig;
use crate::event::Counters;
use crate::family::Family;
use crate::fsm::{ConnectionId, Fsm, Identity, Session};
use crate::rib::out::AdjRibOut;
use crate::rib::{PathSet, Refusal};

use super::export::View;
use super::restart::Retention;

pub(super) struct Peer {
    pub(super) config: Arc<PeerConfig>,
    pub(super) fsm: Fsm,
    /// The established session and its connection.
    pub(super) session: Option<(ConnectionId, Arc<Session>)>,
    /// What it hears; with a session.
    pub(super) view: Option<Arc<View>>,
    pub(super) out: AdjRibOut,
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
}

impl Peer {
    pub(super) fn new(config: Arc<PeerConfig>, fsm: Fsm) -> Self {
        Self {
            config,
            fsm,
            session: None,
            view: None,
            out: AdjRibOut::default(),
            counters: Counters::default(),
            kept: Retention::default(),
            refreshing: BTreeMap::new(),
            end_of_rib: BTreeSet::new(),
            bfd: None,
            dynamic: None,
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

/// Import: why no route of a set is to be considered, if so.
pub(super) fn refusal(
    config: &PeerConfig,
    identity: Identity,
    own_address: Option<IpAddr>,
    set: &PathSet,
) -> Option<Refusal> {
    let attributes = set.attributes();
    let own_id = attributes.originator_id == Some(identity.router_id)
        || attributes.cluster_list.contains(&identity.router_id);
    if attributes.as_path.contains(identity.asn) {
        Some(Refusal::AsLoop)
    } else if own_id {
        Some(Refusal::OwnRouterId)
    } else if own_address == Some(set.next_hop().address) {
        Some(Refusal::OwnNextHop)
    } else if config.import.is_empty() {
        Some(Refusal::Policy)
    } else {
        None
    }
}

/// Import: why a prefix is not to be considered, if so.
pub(super) fn not_allowed(config: &PeerConfig, prefix: &IpNet) -> Option<Refusal> {
    (!config.import.iter().any(|entry| entry.allows(prefix))).then_some(Refusal::Policy)
}
