//! The state machine of one peer (RFC 4271 section 8), without I/O: inputs and the time go in, [`Action`]s come out.
//!
//! ```text
//!  Idle ──1,3──► Connect ──16,17──► OpenSent ──19──► OpenConfirm ──26──► Established     numbers: events of RFC 4271 section 8.1
//!   ▲ └───4,5──┐   │ ▲    └─20 (DelayOpen)──────────────▲                     │
//!   13         ▼18 ▼ │ 9                                                      │
//!   └─ rest ── Active ◄──── 18: connection lost ──────────────────────────────┘   any error: NOTIFICATION, then rest in Idle
//! ```
//! RFC 4271 has one machine for each connection. Here a peer has Idle, Connect and Active, and each of its (at most two) connections
//! has the later states, which makes collision detection (section 6.8) a choice between two entries of one list. docs/rfc.md lists
//! every state with every event, and where this machine differs on purpose.

mod connection;
mod event;
mod jitter;
mod messages;
mod outlook;
mod restart;
#[cfg(test)]
mod simulation;
mod start;
#[cfg(test)]
mod table_tests;
mod tcp;
#[cfg(test)]
mod tests;

pub(crate) use connection::{ConnectionId, Identity, Session};
pub use event::{FsmEvent, Transition};
pub(crate) use jitter::Jitter;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connection::{Connection, OPEN_WAIT, Stage};
use event::History;

use crate::config::PeerConfig;
use crate::wire::{Notification, RouteRefresh, Update};

/// Longest a single attempt to connect may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DownCause {
    /// The peer said so.
    Received(Notification),
    /// We said so.
    Sent(Notification),
    /// TCP ended without a word: the peer may be restarting.
    Lost(String),
    /// The peer opened anew while we still thought it up: it has restarted (RFC 4724 section 5).
    Replaced,
}

impl std::fmt::Display for DownCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Received(notification) => write!(f, "the peer ended the session: {notification}")?,
            Self::Sent(notification) => write!(f, "session ended here: {notification}")?,
            Self::Lost(reason) => write!(f, "connection lost: {reason}; is the peer alive and reachable?")?,
            Self::Replaced => write!(f, "the peer restarted and opened a new connection")?,
        }
        // A shutdown of our own is nothing that the other operator could mend.
        if let Self::Received(notification) | Self::Sent(notification) = self
            && !(matches!(self, Self::Sent(_)) && notification.shutdown_text().is_some())
            && !notification.remedy().is_empty()
        {
            write!(f, "; {}", notification.remedy())?;
        }
        Ok(())
    }
}

/// What the machine wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Open a TCP connection; answer with the attempt's number.
    Connect { attempt: u64 },
    /// Give up the attempt under way.
    Abandon,
    /// Send bytes.
    Send { connection: ConnectionId, bytes: Vec<u8> },
    /// Close after what was sent has gone out.
    Close { connection: ConnectionId },
    /// The session is established.
    Up { connection: ConnectionId, session: Arc<Session> },
    /// The established session is gone.
    Down { cause: DownCause },
    /// Routes from the peer.
    Update { update: Box<Update> },
    /// The peer wants a family again, or says where such a repetition begins or ends.
    Refresh { refresh: RouteRefresh },
}

/// The states as RFC 4271 names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not trying: stopped, or waiting after an error.
    Idle,
    /// Connecting.
    Connect,
    /// Waiting for the peer to connect, or for the next attempt.
    Active,
    /// Our OPEN is sent.
    OpenSent,
    /// Both OPENs are exchanged.
    OpenConfirm,
    /// Routes flow.
    Established,
}

impl State {
    /// The name as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connect => "connect",
            Self::Active => "active",
            Self::OpenSent => "opensent",
            Self::OpenConfirm => "openconfirm",
            Self::Established => "established",
        }
    }
}

/// The machine of one peer.
#[derive(Debug)]
pub(crate) struct Fsm {
    config: Arc<PeerConfig>,
    identity: Identity,
    /// This process took over from one that died (R bit).
    restarted: bool,
    /// Forwarding outlived the last session (F bit): after a restart, and after any session of this process.
    forwarding_preserved: bool,
    running: bool,
    attempt: u64,
    attempting: bool,
    connections: Vec<Connection>,
    retry_at: Option<Instant>,
    blocked_until: Option<Instant>,
    up_since: Option<Instant>,
    errors: u32,
    misses: u32,
    jitter: Jitter,
    last_error: Option<String>,
    /// How long the peer's OPEN is waited for after ours.
    open_wait: Duration,
    history: History,
    actions: VecDeque<Action>,
}

impl Fsm {
    pub(crate) fn new(config: Arc<PeerConfig>, identity: Identity, restarted: bool, jitter: Jitter) -> Self {
        Self {
            config,
            identity,
            restarted,
            forwarding_preserved: restarted,
            running: false,
            attempt: 0,
            attempting: false,
            connections: Vec::new(),
            retry_at: None,
            blocked_until: None,
            up_since: None,
            errors: 0,
            misses: 0,
            jitter,
            last_error: None,
            open_wait: OPEN_WAIT,
            history: History::default(),
            actions: VecDeque::new(),
        }
    }

    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Since when the session is established.
    pub(crate) const fn up_since(&self) -> Option<Instant> {
        self.up_since
    }

    pub(crate) fn state(&self) -> State {
        match self.connections.iter().map(|connection| connection.stage).max() {
            Some(Stage::Established) => State::Established,
            Some(Stage::OpenConfirm) => State::OpenConfirm,
            Some(Stage::OpenSent) => State::OpenSent,
            // The state the connection came up in.
            Some(Stage::DelayOpen) if self.connections.iter().any(|connection| connection.outgoing) => {
                State::Connect
            }
            Some(Stage::DelayOpen) => State::Active,
            None if !self.running || self.blocked_until.is_some() => State::Idle,
            None if self.attempting => State::Connect,
            None => State::Active,
        }
    }

    /// When [`Fsm::timers`] must be called again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let connections = self.connections.iter().flat_map(|connection| {
            [connection.hold_at, connection.keepalive_at, connection.delay_at].into_iter().flatten()
        });
        connections.chain(self.retry_at).chain(self.blocked_until).min()
    }

    /// No connection, and no rest after an error: a passive machine that would only wait for the peer to come.
    pub(crate) fn is_waiting_for_nothing(&self) -> bool {
        self.connections.is_empty() && self.blocked_until.is_none()
    }

    /// New settings that need no new session.
    pub(crate) fn set_config(&mut self, config: Arc<PeerConfig>) {
        self.config = config;
    }

    /// Waits less for the peer's OPEN than usual: for peers that anybody in a range of addresses can be.
    pub(crate) const fn set_open_wait(&mut self, wait: Duration) {
        self.open_wait = wait;
    }

    /// The last changes of state, oldest first.
    pub(crate) fn transitions(&self) -> impl Iterator<Item = &Transition> {
        self.history.transitions()
    }

    /// How many changes of state there were.
    pub(crate) const fn transition_count(&self) -> u64 {
        self.history.count
    }

    /// Handles an event and records the change of state it made.
    fn step(&mut self, event: FsmEvent, handle: impl FnOnce(&mut Self)) {
        let from = self.state();
        handle(self);
        self.history.note(event, from, self.state());
    }

    fn ids(&self, wanted: impl Fn(&Connection) -> bool) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|connection| wanted(connection))
            .map(|connection| connection.id)
            .collect()
    }

    fn drop_connection(&mut self, id: ConnectionId) -> Option<Connection> {
        let at = self.connections.iter().position(|connection| connection.id == id)?;
        Some(self.connections.remove(at))
    }

    /// Whether the session has lasted long enough to clear what was counted against the peer.
    fn was_stable(&self, now: Instant) -> bool {
        self.up_since.is_some_and(|since| now.duration_since(since) >= self.config.damping.stable_after)
    }

    fn went_down(&mut self, cause: DownCause, now: Option<Instant>) {
        if now.is_some_and(|now| self.was_stable(now)) {
            self.errors = 0;
        }
        self.up_since = None;
        // The routes we announced were forwarded all the while, restart or not.
        self.forwarding_preserved = true;
        self.restarted = false;
        self.last_error = Some(cause.to_string());
        self.actions.push_back(Action::Down { cause });
    }
}
