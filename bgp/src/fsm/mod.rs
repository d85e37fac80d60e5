//! The state machine of one peer (RFC 4271 section 8), without I/O: inputs and the time go in, [`Action`]s come out.
//!
//! ```text
//!  Idle ──start──► Connect ──connected──► OpenSent ──OPEN──► OpenConfirm ──KEEPALIVE──► Established
//!   ▲                │ ▲ failed / retry timer                                              │
//!   │                ▼ │                                                                   │
//!   └── error hold ── Active ◄─────────────────── connection lost ◄────────────────────────┘
//! ```
//! RFC 4271 has one machine for each connection. Here a peer has Idle, Connect and Active, and each of its (at most two) connections
//! has the later states, which makes collision detection (section 6.8) a choice between two entries of one list.

mod connection;
mod jitter;
mod restart;
#[cfg(test)]
mod tests;

pub(crate) use connection::{ConnectionId, Identity, Session};
pub(crate) use jitter::Jitter;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connection::{Connection, Stage, negotiate, offered};

use crate::config::PeerConfig;
use crate::wire::{
    self, Frame, Message, Notification, Open, RouteRefresh, Update, UpdateContext, cease, code,
};

/// The longest hold after repeated errors.
const ERROR_HOLD_MAX: Duration = Duration::from_secs(120);
/// Longest a single attempt to connect may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// A session that lasted this long clears the count of errors.
const STABLE_AFTER: Duration = Duration::from_secs(60);

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
        if let Self::Received(notification) | Self::Sent(notification) = self
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
            None if !self.running || self.blocked_until.is_some() => State::Idle,
            None if self.attempting => State::Connect,
            None => State::Active,
        }
    }

    /// When [`Fsm::timers`] must be called again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let connections = self
            .connections
            .iter()
            .flat_map(|connection| connection.hold_at.into_iter().chain(connection.keepalive_at));
        connections.chain(self.retry_at).chain(self.blocked_until).min()
    }

    /// New settings that need no new session.
    pub(crate) fn set_config(&mut self, config: Arc<PeerConfig>) {
        self.config = config;
    }

    /// Events 1 to 7: start.
    pub(crate) fn start(&mut self, now: Instant) {
        if !self.running {
            self.running = true;
            self.errors = 0;
            self.misses = 0;
            self.blocked_until = None;
            self.seek(now);
        }
    }

    /// Event 2: stop, telling the peer why.
    pub(crate) fn stop(&mut self, notification: &Notification) {
        self.running = false;
        self.attempt_over();
        self.retry_at = None;
        self.blocked_until = None;
        for connection in std::mem::take(&mut self.connections) {
            let last = connection.last_words(notification);
            self.send_last(connection.id, &last);
            if connection.stage == Stage::Established {
                self.went_down(DownCause::Sent(last), None);
            }
        }
    }

    /// Ends the session with a Cease and starts again at once: for a changed configuration.
    pub(crate) fn reset(&mut self, now: Instant, notification: &Notification) {
        self.stop(notification);
        self.start(now);
    }

    /// Ends the established session for an error found above the machine, such as too many prefixes.
    pub(crate) fn fail_session(&mut self, now: Instant, notification: &Notification) {
        let established = self.connections.iter().find(|connection| connection.stage == Stage::Established);
        if let Some(id) = established.map(|connection| connection.id) {
            self.fail(now, id, notification.clone());
        }
    }

    /// Connects, or waits if passive.
    fn seek(&mut self, now: Instant) {
        if self.config.passive {
            self.retry_at = None;
            return;
        }
        self.attempt += 1;
        self.attempting = true;
        let longest = self.config.timers.connect_retry.min(ATTEMPT_MAX);
        self.retry_at = Some(now + longest.max(Duration::from_secs(1)));
        self.actions.push_back(Action::Connect { attempt: self.attempt });
    }

    fn attempt_over(&mut self) {
        if std::mem::take(&mut self.attempting) {
            self.actions.push_back(Action::Abandon);
        }
    }

    /// The next attempt comes after 1, 2, 4 ... seconds, at most the connect retry time: a ToR that reboots is found quickly.
    fn retry_later(&mut self, now: Instant) {
        let backoff = Duration::from_secs(1 << self.misses.min(12));
        self.misses = self.misses.saturating_add(1);
        let wait = self.jitter.shorten(backoff.min(self.config.timers.connect_retry));
        self.retry_at = (!self.config.passive).then(|| now + wait);
    }

    /// After an error the peer rests in Idle, longer each time (RFC 4271 section 8.1.1, DampPeerOscillations).
    fn rest(&mut self, now: Instant) {
        let hold = Duration::from_secs(1 << self.errors.min(12)).min(ERROR_HOLD_MAX);
        self.errors = self.errors.saturating_add(1);
        self.attempt_over();
        self.retry_at = None;
        self.blocked_until = Some(now + self.jitter.shorten(hold));
    }

    /// Events 9 to 11: timers.
    pub(crate) fn timers(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let expired: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|connection| due(connection.hold_at))
            .map(|connection| connection.id)
            .collect();
        for id in expired {
            self.fail(now, id, Notification::new(code::HOLD_TIMER, 0));
        }
        for connection in &mut self.connections {
            if let (true, Some(session)) = (due(connection.keepalive_at), &connection.session) {
                connection.keepalive_at = Some(now + self.jitter.shorten(session.keepalive));
                self.actions.push_back(Action::Send { connection: connection.id, bytes: wire::keepalive() });
            }
        }
        if due(self.blocked_until) {
            self.blocked_until = None;
            self.seek(now);
        } else if due(self.retry_at) {
            self.retry_at = None;
            if self.attempting {
                self.attempt_over();
                self.last_error = Some(format!(
                    "no answer from {} port {}; check the route to the peer and that it listens there",
                    self.config.address, self.config.port
                ));
                self.retry_later(now);
            } else if self.connections.is_empty() && self.running {
                self.seek(now);
            }
        }
    }

    /// Whether an incoming connection would be taken now.
    pub(crate) fn wants_incoming(&self) -> bool {
        self.running && self.blocked_until.is_none()
    }

    /// Event 16: our attempt succeeded. False if it is no longer wanted.
    pub(crate) fn connected(
        &mut self,
        now: Instant,
        attempt: u64,
        id: ConnectionId,
        local: SocketAddr,
    ) -> bool {
        if !self.attempting || attempt != self.attempt {
            return false;
        }
        self.attempting = false;
        self.retry_at = None;
        self.open(now, id, true, local);
        true
    }

    /// Event 17: the peer connected. False if it is not wanted.
    pub(crate) fn accepted(&mut self, now: Instant, id: ConnectionId, local: SocketAddr) -> bool {
        if !self.wants_incoming() {
            return false;
        }
        // A second incoming connection means that the peer gave up the first.
        let older = self
            .connections
            .iter()
            .find(|connection| !connection.outgoing && connection.stage != Stage::Established)
            .map(|connection| connection.id);
        if let Some(older) = older {
            self.drop_connection(older);
            self.actions.push_back(Action::Close { connection: older });
        }
        self.open(now, id, false, local);
        true
    }

    fn open(&mut self, now: Instant, id: ConnectionId, outgoing: bool, local: SocketAddr) {
        let open = Open {
            asn: self.identity.asn,
            hold_time_secs: self.config.timers.hold_secs(),
            router_id: self.identity.router_id,
            capabilities: offered(&self.config, self.identity, self.restarted, self.forwarding_preserved),
        };
        self.connections.push(Connection::new(now, id, outgoing, local));
        self.actions.push_back(Action::Send { connection: id, bytes: wire::open(&open) });
    }

    /// Event 18: our attempt failed.
    pub(crate) fn connect_failed(&mut self, now: Instant, attempt: u64, reason: &str) {
        if self.attempting && attempt == self.attempt {
            self.attempting = false;
            self.last_error = Some(format!(
                "cannot connect to {} port {}: {reason}; check that the peer runs, listens there and allows this address",
                self.config.address, self.config.port
            ));
            if self.connections.is_empty() {
                self.retry_later(now);
            } else {
                self.retry_at = None;
            }
        }
    }

    /// Event 18 on an existing connection: TCP ended.
    pub(crate) fn lost(&mut self, now: Instant, id: ConnectionId, reason: &str) {
        let Some(connection) = self.drop_connection(id) else { return };
        if connection.stage == Stage::Established {
            self.went_down(DownCause::Lost(reason.to_owned()), Some(now));
        } else {
            self.last_error = Some(format!(
                "the peer closed the connection before the session was up: {reason}; does it know this speaker's address and AS {}?",
                self.identity.asn
            ));
        }
        if self.connections.is_empty() && !self.attempting && self.blocked_until.is_none() && self.running {
            self.retry_later(now);
        }
    }

    /// The bytes on a connection could not be framed (RFC 4271 section 6.1).
    pub(crate) fn unframed(&mut self, now: Instant, id: ConnectionId, notification: Notification) {
        self.fail(now, id, notification);
    }

    /// Events 19 to 28: a message.
    pub(crate) fn frame(&mut self, now: Instant, id: ConnectionId, frame: &Frame) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
            return;
        };
        let stage = connection.stage;
        let early = UpdateContext::default();
        let context = connection.session.as_ref().map_or(&early, |session| &session.context);
        let message = match Message::decode(frame, context) {
            Ok(message) => message,
            Err(notification) => return self.fail(now, id, notification),
        };
        match (stage, message) {
            (_, Message::Notification(notification)) => self.notified(now, id, notification),
            (Stage::OpenSent, Message::Open(open)) => self.opened(now, id, open),
            (Stage::OpenConfirm, Message::Keepalive) => self.establish(now, id),
            (Stage::Established, Message::Keepalive) => connection.heard(now),
            (Stage::Established, Message::Update(update)) => {
                connection.heard(now);
                self.actions.push_back(Action::Update { update });
            }
            (Stage::Established, Message::RouteRefresh(refresh)) => {
                connection.heard(now);
                self.actions.push_back(Action::Refresh { refresh });
            }
            (stage, _) => {
                // RFC 6608 gives the subcodes.
                let subcode = match stage {
                    Stage::OpenSent => 1,
                    Stage::OpenConfirm => 2,
                    Stage::Established => 3,
                };
                self.fail(now, id, Notification::new(code::STATE_MACHINE, subcode));
            }
        }
    }

    /// Event 19: a valid OPEN.
    fn opened(&mut self, now: Instant, id: ConnectionId, open: Open) {
        let Some(connection) = self.connections.iter().find(|connection| connection.id == id) else { return };
        let outgoing = connection.outgoing;
        let (remote_id, remote_asn) = (open.router_id, open.asn);
        let session = match negotiate(&self.config, self.identity, connection.local.ip(), open) {
            Ok(session) => session,
            Err(notification) => return self.fail(now, id, notification),
        };
        // RFC 4271 section 6.8, RFC 6286 for equal identifiers.
        let keep_outgoing = (self.identity.router_id, self.identity.asn) > (remote_id, remote_asn);
        if !self.wins_collision(now, id, outgoing, keep_outgoing) {
            return self.lose_collision(id);
        }
        let keepalive_at =
            (!session.keepalive.is_zero()).then(|| now + self.jitter.shorten(session.keepalive));
        if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) {
            connection.session = Some(session);
            connection.stage = Stage::OpenConfirm;
            connection.keepalive_at = keepalive_at;
            connection.heard(now);
            self.actions.push_back(Action::Send { connection: id, bytes: wire::keepalive() });
        }
    }

    /// Compares a connection whose OPEN has just come with the peer's others.
    fn wins_collision(
        &mut self,
        now: Instant,
        id: ConnectionId,
        outgoing: bool,
        keep_outgoing: bool,
    ) -> bool {
        let others: Vec<(ConnectionId, Stage, bool, bool)> = self
            .connections
            .iter()
            .filter(|other| other.id != id && other.stage > Stage::OpenSent)
            .map(|other| {
                let restart = other.session.as_ref().is_some_and(|session| session.peer_restart.is_some());
                (other.id, other.stage, other.outgoing, restart)
            })
            .collect();
        for (other, stage, other_outgoing, restart) in others {
            if stage == Stage::Established {
                if !restart {
                    return false;
                }
                // RFC 4724 section 5: the peer has restarted; no NOTIFICATION on the dead connection.
                self.drop_connection(other);
                self.actions.push_back(Action::Close { connection: other });
                self.went_down(DownCause::Replaced, Some(now));
            } else if other_outgoing == outgoing || outgoing == keep_outgoing {
                self.lose_collision(other);
            } else {
                return false;
            }
        }
        true
    }

    fn lose_collision(&mut self, id: ConnectionId) {
        self.drop_connection(id);
        self.send_last(id, &Notification::new(code::CEASE, cease::COLLISION));
    }

    /// Event 26 in OpenConfirm.
    fn establish(&mut self, now: Instant, id: ConnectionId) {
        let rivals: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|connection| connection.id != id)
            .map(|connection| connection.id)
            .collect();
        rivals.into_iter().for_each(|rival| self.lose_collision(rival));
        self.attempt_over();
        self.retry_at = None;
        self.misses = 0;
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
            return;
        };
        connection.stage = Stage::Established;
        connection.heard(now);
        let Some(session) = connection.session.clone() else { return };
        self.up_since = Some(now);
        self.actions.push_back(Action::Up { connection: id, session: Arc::new(session) });
    }

    /// Event 24 and 25: a NOTIFICATION.
    fn notified(&mut self, now: Instant, id: ConnectionId, notification: Notification) {
        let Some(connection) = self.drop_connection(id) else { return };
        self.actions.push_back(Action::Close { connection: id });
        let collision = notification.code == code::CEASE && notification.subcode == cease::COLLISION;
        if connection.stage == Stage::Established {
            self.went_down(DownCause::Received(notification), Some(now));
        } else if !collision {
            self.last_error = Some(DownCause::Received(notification).to_string());
        }
        if !self.connections.is_empty() {
            return;
        }
        if collision {
            if !self.attempting {
                self.retry_later(now);
            }
        } else {
            self.rest(now);
        }
    }

    /// Ends a connection with a NOTIFICATION of ours.
    fn fail(&mut self, now: Instant, id: ConnectionId, notification: Notification) {
        let Some(connection) = self.drop_connection(id) else { return };
        let last = connection.last_words(&notification);
        self.send_last(id, &last);
        let cause = DownCause::Sent(last);
        if connection.stage == Stage::Established {
            self.went_down(cause, Some(now));
        } else {
            self.last_error = Some(cause.to_string());
        }
        if self.connections.is_empty() {
            self.rest(now);
        }
    }

    fn send_last(&mut self, id: ConnectionId, notification: &Notification) {
        self.actions.push_back(Action::Send { connection: id, bytes: wire::notification(notification) });
        self.actions.push_back(Action::Close { connection: id });
    }

    fn drop_connection(&mut self, id: ConnectionId) -> Option<Connection> {
        let at = self.connections.iter().position(|connection| connection.id == id)?;
        Some(self.connections.remove(at))
    }

    fn went_down(&mut self, cause: DownCause, now: Option<Instant>) {
        let since = self.up_since.take();
        if let (Some(since), Some(now)) = (since, now)
            && now.duration_since(since) >= STABLE_AFTER
        {
            self.errors = 0;
        }
        // The routes we announced were forwarded all the while, restart or not.
        self.forwarding_preserved = true;
        self.restarted = false;
        self.last_error = Some(cause.to_string());
        self.actions.push_back(Action::Down { cause });
    }
}
