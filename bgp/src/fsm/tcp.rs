//! Events 9 to 12 (timers) and 14 to 18 (TCP).

use std::net::SocketAddr;
use std::time::Instant;

use super::connection::{Connection, ConnectionId, Stage, offered};
use super::{Action, DownCause, Fsm, FsmEvent};
use crate::wire::{self, Notification, Open, code};

impl Fsm {
    /// Events 9 to 13: whatever is due.
    pub(crate) fn timers(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for id in self.ids(|connection| due(connection.hold_at)) {
            let expired = Notification::new(code::HOLD_TIMER, 0);
            self.step(FsmEvent::HoldTimerExpires, |fsm| fsm.fail(now, id, expired));
        }
        for id in self.ids(|connection| due(connection.delay_at)) {
            self.step(FsmEvent::DelayOpenTimerExpires, |fsm| fsm.send_open(now, id));
        }
        for connection in &mut self.connections {
            // Event 11.
            if let (true, Some(session)) = (due(connection.keepalive_at), &connection.session) {
                connection.keepalive_at = Some(now + self.jitter.shorten(session.keepalive));
                self.actions.push_back(Action::Send { connection: connection.id, bytes: wire::keepalive() });
            }
        }
        if due(self.blocked_until) {
            self.rested(now);
        } else if due(self.retry_at) {
            self.retry_at = None;
            self.step(FsmEvent::ConnectRetryTimerExpires, |fsm| fsm.retry(now));
        }
    }

    /// Event 9: what is under way is given up; what is not is begun.
    fn retry(&mut self, now: Instant) {
        if self.attempting {
            self.attempt_over();
            let keys = if self.config.transport.md5.is_some() || self.config.transport.ao.is_some() {
                ", or the TCP keys of both sides differ"
            } else {
                ""
            };
            self.last_error = Some(format!(
                "no answer from {} port {}{keys}; check the route to the peer and that it listens there",
                self.config.address, self.config.port
            ));
            self.misses = self.misses.saturating_add(1);
        }
        if self.connections.is_empty() && self.running {
            self.seek(now);
        }
    }

    /// Whether an incoming connection would be taken now.
    pub(crate) const fn wants_incoming(&self) -> bool {
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
        self.step(FsmEvent::TcpCrAcked, |fsm| {
            fsm.attempting = false;
            fsm.retry_at = None;
            fsm.open(now, id, true, local);
        });
        true
    }

    /// Event 17: the peer connected. False, as event 15, if it is not wanted.
    pub(crate) fn accepted(&mut self, now: Instant, id: ConnectionId, local: SocketAddr) -> bool {
        if !self.wants_incoming() {
            return false;
        }
        self.step(FsmEvent::TcpConnectionConfirmed, |fsm| {
            // A second incoming connection means that the peer gave up the first.
            for older in fsm.ids(|connection| !connection.outgoing && connection.stage != Stage::Established)
            {
                fsm.drop_connection(older);
                fsm.actions.push_back(Action::Close { connection: older });
            }
            fsm.open(now, id, false, local);
        });
        true
    }

    fn open(&mut self, now: Instant, id: ConnectionId, outgoing: bool, local: SocketAddr) {
        let mut connection = Connection::new(id, outgoing, local);
        connection.delay_at = self.config.delay_open.map(|delay| now + delay);
        let delayed = connection.delay_at.is_some();
        self.connections.push(connection);
        if !delayed {
            self.send_open(now, id);
        }
    }

    /// Sends OPEN and enters OpenSent.
    pub(super) fn send_open(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == id) else {
            return;
        };
        connection.delay_at = None;
        connection.stage = Stage::OpenSent;
        connection.hold_at = Some(now + self.open_wait);
        let open = Open {
            asn: self.identity.asn,
            hold_time_secs: self.config.timers.hold_secs(),
            router_id: self.identity.router_id,
            capabilities: offered(&self.config, self.identity, self.restarted, self.forwarding_preserved),
        };
        self.actions.push_back(Action::Send { connection: id, bytes: wire::open(&open) });
    }

    /// Event 18: our attempt failed. The machine goes to Active, where RFC 4271 has Idle: there it would refuse the peer's own attempts.
    pub(crate) fn connect_failed(&mut self, now: Instant, attempt: u64, reason: &str) {
        if !self.attempting || attempt != self.attempt {
            return;
        }
        self.step(FsmEvent::TcpConnectionFails, |fsm| {
            fsm.attempting = false;
            fsm.last_error = Some(format!(
                "cannot connect to {} port {}: {reason}; check that the peer runs, listens there and allows this address",
                fsm.config.address, fsm.config.port
            ));
            if fsm.connections.is_empty() {
                fsm.retry_later(now);
            } else {
                fsm.retry_at = None;
            }
        });
    }

    /// Event 18 on an existing connection: TCP ended.
    pub(crate) fn lost(&mut self, now: Instant, id: ConnectionId, reason: &str) {
        self.step(FsmEvent::TcpConnectionFails, |fsm| fsm.connection_lost(now, id, reason));
    }

    fn connection_lost(&mut self, now: Instant, id: ConnectionId, reason: &str) {
        let Some(connection) = self.drop_connection(id) else { return };
        let mut flaps = false;
        if connection.stage == Stage::Established {
            flaps = !self.was_stable(now);
            self.went_down(DownCause::Lost(reason.to_owned()), Some(now));
        } else {
            self.last_error = Some(format!(
                "the peer closed the connection before the session was up: {reason}; does it know this speaker's address and AS {}?",
                self.identity.asn
            ));
        }
        if !self.connections.is_empty() || self.attempting || self.blocked_until.is_some() || !self.running {
            return;
        }
        match connection.stage {
            Stage::OpenConfirm => self.rest(now),
            // The first loss may be a restart (RFC 4724): the peer is welcome at once. More of them are oscillation.
            Stage::Established if flaps && self.errors > 0 => self.rest(now),
            Stage::Established => {
                self.errors = self.errors.saturating_add(u32::from(flaps));
                self.retry_later(now);
            }
            Stage::DelayOpen | Stage::OpenSent => self.retry_later(now),
        }
    }
}
