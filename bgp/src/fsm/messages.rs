//! Events 19 to 28: messages, and the collision detection of RFC 4271 section 6.8.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{ConnectionId, Stage, negotiate};
use super::{Action, DownCause, Fsm, FsmEvent};
use crate::wire::{self, Frame, Message, Notification, Open, UpdateContext, cease, code};

/// "Unsupported version number" of OPEN message errors.
const VERSION_ERROR: u8 = 1;

impl Fsm {
    /// Event 21: the bytes on a connection could not be framed (RFC 4271 section 6.1).
    pub(crate) fn unframed(&mut self, now: Instant, id: ConnectionId, notification: Notification) {
        self.step(FsmEvent::BgpHeaderErr, |fsm| fsm.fail(now, id, notification));
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
            Err(notification) => return self.undecoded(now, id, stage, notification),
        };
        match (stage, message) {
            (_, Message::Notification(notification)) => {
                let event = notification_event(&notification);
                self.step(event, |fsm| fsm.notified(now, id, notification));
            }
            (Stage::DelayOpen, Message::Open(open)) => {
                self.step(FsmEvent::BgpOpenWithDelayOpenTimerRunning, |fsm| {
                    fsm.send_open(now, id);
                    fsm.opened(now, id, open);
                });
            }
            (Stage::OpenSent, Message::Open(open)) => {
                self.step(FsmEvent::BgpOpen, |fsm| fsm.opened(now, id, open));
            }
            (Stage::OpenConfirm, Message::Keepalive) => {
                self.step(FsmEvent::KeepAliveMsg, |fsm| fsm.establish(now, id));
            }
            (Stage::Established, Message::Keepalive) => connection.heard(now),
            (Stage::Established, Message::Update(update)) => {
                connection.heard(now);
                self.actions.push_back(Action::Update { update });
            }
            (Stage::Established, Message::RouteRefresh(refresh)) => {
                connection.heard(now);
                self.actions.push_back(Action::Refresh { refresh });
            }
            (stage, Message::Open(_)) => self.out_of_turn(now, id, stage, FsmEvent::BgpOpen),
            (stage, Message::Keepalive) => self.out_of_turn(now, id, stage, FsmEvent::KeepAliveMsg),
            (stage, _) => self.out_of_turn(now, id, stage, FsmEvent::UpdateMsg),
        }
    }

    /// Events 21, 22 and 28: a message that cannot be decoded. What would be out of turn anyway is an error of the state machine.
    fn undecoded(&mut self, now: Instant, id: ConnectionId, stage: Stage, notification: Notification) {
        let event = match notification.code {
            code::HEADER => FsmEvent::BgpHeaderErr,
            code::OPEN => FsmEvent::BgpOpenMsgErr,
            _ => FsmEvent::UpdateMsgErr,
        };
        let in_turn = match event {
            FsmEvent::BgpOpenMsgErr => stage != Stage::Established,
            FsmEvent::UpdateMsgErr => stage == Stage::Established,
            _ => true,
        };
        if in_turn {
            self.step(event, |fsm| fsm.fail(now, id, notification));
        } else {
            self.out_of_turn(now, id, stage, event);
        }
    }

    /// A message that the state does not expect. RFC 6608 gives the subcodes; before our OPEN there is none, and no NOTIFICATION.
    fn out_of_turn(&mut self, now: Instant, id: ConnectionId, stage: Stage, event: FsmEvent) {
        let subcode = match stage {
            Stage::DelayOpen => return self.step(event, |fsm| fsm.give_up(now, id)),
            Stage::OpenSent => 1,
            Stage::OpenConfirm => 2,
            Stage::Established => 3,
        };
        let notification = Notification::new(code::STATE_MACHINE, subcode);
        self.step(event, |fsm| fsm.fail(now, id, notification));
    }

    /// Ends a connection without a word.
    fn give_up(&mut self, now: Instant, id: ConnectionId) {
        self.drop_connection(id);
        self.actions.push_back(Action::Close { connection: id });
        self.last_error = Some("the peer sent something else before its OPEN; is that BGP?".to_owned());
        if self.connections.is_empty() {
            self.rest(now);
        }
    }

    /// Events 19 and 20: a valid OPEN.
    fn opened(&mut self, now: Instant, id: ConnectionId, open: Open) {
        let Some(connection) = self.connections.iter().find(|connection| connection.id == id) else { return };
        let outgoing = connection.outgoing;
        let (remote_id, remote_asn) = (open.router_id, open.asn);
        let session = match negotiate(&self.config, self.identity, connection.local.ip(), open) {
            Ok(session) => session,
            Err(notification) => {
                return self.step(FsmEvent::BgpOpenMsgErr, |fsm| fsm.fail(now, id, notification));
            }
        };
        // RFC 4271 section 6.8, RFC 6286 for equal identifiers.
        let keep_outgoing = (self.identity.router_id, self.identity.asn) > (remote_id, remote_asn);
        if !self.wins_collision(now, id, outgoing, keep_outgoing) {
            return self.step(FsmEvent::OpenCollisionDump, |fsm| fsm.lose_collision(id));
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

    /// Event 23.
    fn lose_collision(&mut self, id: ConnectionId) {
        self.drop_connection(id);
        self.send_last(id, &Notification::new(code::CEASE, cease::COLLISION));
    }

    /// Event 26 in OpenConfirm.
    fn establish(&mut self, now: Instant, id: ConnectionId) {
        let rivals = self.ids(|connection| connection.id != id);
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

    /// Events 24 and 25: a NOTIFICATION. It is never answered with another.
    fn notified(&mut self, now: Instant, id: ConnectionId, notification: Notification) {
        let Some(connection) = self.drop_connection(id) else { return };
        self.actions.push_back(Action::Close { connection: id });
        let collision = notification.code == code::CEASE && notification.subcode == cease::COLLISION;
        let version = notification_event(&notification) == FsmEvent::NotifMsgVerErr;
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
        } else if version && connection.stage != Stage::Established {
            self.rest_again(now);
        } else {
            self.rest(now);
        }
    }

    /// Ends a connection with a NOTIFICATION of ours.
    pub(super) fn fail(&mut self, now: Instant, id: ConnectionId, notification: Notification) {
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

    pub(super) fn send_last(&mut self, id: ConnectionId, notification: &Notification) {
        self.actions.push_back(Action::Send { connection: id, bytes: wire::notification(notification) });
        self.actions.push_back(Action::Close { connection: id });
    }
}

const fn notification_event(notification: &Notification) -> FsmEvent {
    match (notification.code, notification.subcode) {
        (code::OPEN, VERSION_ERROR) => FsmEvent::NotifMsgVerErr,
        _ => FsmEvent::NotifMsg,
    }
}
