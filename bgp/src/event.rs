//! What the speaker tells its owner, and the snapshots it gives when asked.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::family::{Family, NextHop};
use crate::fsm::{State, Transition};
use crate::operate::Outlook;
use crate::policy::Policy;
use crate::rib::Refusal;
use crate::wire::{Attributes, Capability};

/// Session events kept for a reader that does not read; the oldest go first, routes are never lost.
const SESSION_EVENTS_MAX: usize = 4096;

/// One usable path of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Path {
    /// The peer it came from.
    pub peer: String,
    /// Where packets go.
    pub next_hop: NextHop,
    /// The interface the peer is configured on; needed for a link-local next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its attributes.
    pub attributes: Arc<Attributes>,
    /// Kept while the peer restarts (RFC 4724).
    pub stale: bool,
    /// Packets are to be discarded: the peer asked for it (RFC 7999) and may.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub blackhole: bool,
    /// Share of the packets, against the weights of the other paths: 1 to 256. All are 1 unless every path came with a link bandwidth
    /// (draft-ietf-idr-link-bandwidth).
    pub weight: u16,
}

/// A change. Only the newest state of a prefix is kept for a slow reader; End-of-RIB always follows the routes before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The paths in use for a prefix, best first; none means that it is gone.
    Route {
        /// The prefix.
        prefix: IpNet,
        /// Equal paths (ECMP), best first.
        paths: Vec<Path>,
    },
    /// A session is established.
    PeerUp {
        /// Name of the peer.
        peer: String,
    },
    /// A session is gone.
    PeerDown {
        /// Name of the peer.
        peer: String,
        /// Why, with a remedy where one is known.
        reason: String,
        /// Its routes are kept as stale until it is back or its restart time is over.
        routes_kept: bool,
    },
    /// The peer has sent everything of a family.
    EndOfRib {
        /// Name of the peer.
        peer: String,
        /// The family.
        family: Family,
    },
}

pub(crate) enum Pending {
    Route(IpNet),
    Session(Event),
}

/// Events not yet read: each prefix at most once, in order of its first change.
pub(crate) struct EventQueue {
    /// Whether anybody wants to hear of routes.
    routes: bool,
    queue: VecDeque<Pending>,
    prefixes: BTreeSet<IpNet>,
    session_events: usize,
}

impl EventQueue {
    pub(crate) const fn new(routes: bool) -> Self {
        Self { routes, queue: VecDeque::new(), prefixes: BTreeSet::new(), session_events: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn route(&mut self, prefix: IpNet) {
        if self.routes && self.prefixes.insert(prefix) {
            self.queue.push_back(Pending::Route(prefix));
        }
    }

    pub(crate) fn session(&mut self, event: Event) {
        if self.session_events >= SESSION_EVENTS_MAX {
            let oldest = self.queue.iter().position(|pending| matches!(pending, Pending::Session(_)));
            oldest.and_then(|at| self.queue.remove(at));
            self.session_events -= 1;
        }
        self.session_events += 1;
        self.queue.push_back(Pending::Session(event));
    }

    pub(crate) fn pop(&mut self) -> Option<Pending> {
        let pending = self.queue.pop_front()?;
        match &pending {
            Pending::Route(prefix) => {
                self.prefixes.remove(prefix);
            }
            Pending::Session(_) => self.session_events = self.session_events.saturating_sub(1),
        }
        Some(pending)
    }
}

/// One family of a peer's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FamilyState {
    /// The family.
    pub family: Family,
    /// Both sides offered it.
    pub negotiated: bool,
    /// Routes held from the peer.
    pub received: usize,
    /// Of those, accepted by import policy.
    pub accepted: usize,
    /// Of those, kept as stale.
    pub stale: usize,
    /// Routes the peer holds from us.
    pub advertised: usize,
    /// The peer has sent End-of-RIB in this session.
    pub end_of_rib: bool,
    /// The most routes taken, if there is a limit for the family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Routes not taken since the peer was added, for being beyond the limit.
    pub discarded: u64,
}

/// Counters of a peer since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Messages received of any type.
    pub messages_received: u64,
    /// UPDATEs received.
    pub updates_received: u64,
    /// Messages sent of any type.
    pub messages_sent: u64,
    /// UPDATEs sent.
    pub updates_sent: u64,
    /// Sessions that reached Established.
    pub sessions: u64,
    /// UPDATEs whose routes were treated as withdrawn (RFC 7606).
    pub treated_as_withdraw: u64,
    /// Attributes discarded (RFC 7606).
    pub attributes_discarded: u64,
    /// Prefixes or families ignored.
    pub ignored: u64,
}

/// The state of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerState {
    /// Name.
    pub name: String,
    /// Address.
    pub address: IpAddr,
    /// TCP port it listens on.
    pub port: u16,
    /// Interface it is configured on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Our AS.
    pub local_asn: u32,
    /// Its AS: as opened with, else as configured (0 for any).
    pub peer_asn: u32,
    /// Our address on the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<IpAddr>,
    /// Its BGP identifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_id: Option<Ipv4Addr>,
    /// State of the machine.
    pub state: State,
    /// Seconds since the session was established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub established_secs: Option<u64>,
    /// Negotiated hold time in seconds; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_time_secs: Option<u64>,
    /// Time between KEEPALIVEs in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_secs: Option<u64>,
    /// Its families.
    pub families: Vec<FamilyState>,
    /// What the peer offered.
    pub capabilities: Vec<Capability>,
    /// Counters.
    pub counters: Counters,
    /// What is done with its routes, an allow-list as the policy it stands for.
    pub import: Arc<Policy>,
    /// What is done with what it is told.
    pub export: Arc<Policy>,
    /// What our OPEN offers.
    pub offered: Vec<Capability>,
    /// Seconds in the state it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_secs: Option<u64>,
    /// Shut down by the operator, with the text for the other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<String>,
    /// Bytes handed to the connection that the peer has not taken.
    pub unsent_bytes: usize,
    /// What the machine waits for and its timers.
    pub outlook: Outlook,
    /// What went wrong last, with what to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The last changes of state, oldest first, at most 16, with the event of RFC 4271 section 8.1 that caused each.
    pub transitions: Vec<Transition>,
    /// How many changes of state there were since the peer was added.
    pub transition_count: u64,
    /// The listen range a dynamic neighbour came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<String>,
}

/// Which routes to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteView {
    /// Everything received, refused routes included.
    Received,
    /// The paths in use.
    Best,
    /// What peers were told.
    Advertised,
}

/// One row of a route listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// The prefix.
    pub prefix: IpNet,
    /// The path's identifier between the two (RFC 7911); 0 where there is none.
    #[serde(skip_serializing_if = "is_zero")]
    pub path_id: u32,
    /// The peer it came from or went to.
    pub peer: String,
    /// The next hop.
    pub next_hop: NextHop,
    /// The attributes.
    pub attributes: Arc<Attributes>,
    /// Best of its prefix.
    pub best: bool,
    /// In use: the best or equal to it.
    pub used: bool,
    /// Kept while the peer restarts.
    pub stale: bool,
    /// Why it is not considered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}
