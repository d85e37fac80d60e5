//! Events 1 to 8 and 13: starting, stopping, and the rest after an error.

use std::time::{Duration, Instant};

use super::connection::Stage;
use super::{ATTEMPT_MAX, Action, DownCause, Fsm, FsmEvent};
use crate::wire::Notification;

/// Doublings beyond this are longer than any bound.
const DOUBLINGS_MAX: u32 = 20;

impl Fsm {
    /// Event 1, or 4 of a passive peer: start.
    pub(crate) fn start(&mut self, now: Instant) {
        let event = if self.config.passive { FsmEvent::ManualStartPassive } else { FsmEvent::ManualStart };
        self.start_by(now, event);
    }

    fn start_by(&mut self, now: Instant, event: FsmEvent) {
        if self.running || self.config.awaits_neighbour() {
            return;
        }
        self.step(event, |fsm| {
            fsm.running = true;
            fsm.errors = 0;
            fsm.misses = 0;
            fsm.blocked_until = None;
            fsm.seek(now);
        });
    }

    /// Event 2: stop, telling the peer why.
    pub(crate) fn stop(&mut self, notification: &Notification) {
        self.stop_by(FsmEvent::ManualStop, notification);
    }

    fn stop_by(&mut self, event: FsmEvent, notification: &Notification) {
        self.step(event, |fsm| {
            fsm.running = false;
            fsm.attempt_over();
            fsm.retry_at = None;
            fsm.blocked_until = None;
            for connection in std::mem::take(&mut fsm.connections) {
                let last = connection.last_words(notification);
                fsm.send_last(connection.id, &last);
                if connection.stage == Stage::Established {
                    fsm.went_down(DownCause::Sent(last), None);
                }
            }
        });
    }

    /// Event 8 and 3 (5 of a passive peer): ends the session with a Cease and starts again at once, for a changed configuration.
    pub(crate) fn reset(&mut self, now: Instant, notification: &Notification) {
        self.stop_by(FsmEvent::AutomaticStop, notification);
        let passive = self.config.passive;
        self.start_by(now, if passive { FsmEvent::AutomaticStartPassive } else { FsmEvent::AutomaticStart });
    }

    /// Event 8: ends the established session for an error found above the machine, such as too many prefixes.
    pub(crate) fn fail_session(&mut self, now: Instant, notification: &Notification) {
        let established = self.connections.iter().find(|connection| connection.stage == Stage::Established);
        if let Some(id) = established.map(|connection| connection.id) {
            self.step(FsmEvent::AutomaticStop, |fsm| fsm.fail(now, id, notification.clone()));
        }
    }

    /// The rest that has begun takes this long, however often it came to that.
    pub(crate) fn rest_for(&mut self, now: Instant, hold: Duration) {
        if self.blocked_until.is_some() {
            self.blocked_until = Some(now + hold);
        }
    }

    /// Connects, or waits if passive.
    pub(super) fn seek(&mut self, now: Instant) {
        if self.config.passive {
            self.retry_at = None;
            return;
        }
        self.attempt += 1;
        self.attempting = true;
        let longest = self.config.timers.connect_retry.min(ATTEMPT_MAX).max(Duration::from_secs(1));
        self.retry_at = Some(now + longest);
        self.actions.push_back(Action::Connect { attempt: self.attempt });
    }

    pub(super) fn attempt_over(&mut self) {
        if std::mem::take(&mut self.attempting) {
            self.actions.push_back(Action::Abandon);
        }
    }

    /// The next attempt comes after 1, 2, 4 ... seconds, at most the connect retry time: a ToR that reboots is found quickly.
    pub(super) fn retry_later(&mut self, now: Instant) {
        let backoff = Duration::from_secs(1 << self.misses.min(DOUBLINGS_MAX));
        self.misses = self.misses.saturating_add(1);
        let wait = self.jitter.shorten(backoff.min(self.config.timers.connect_retry));
        self.retry_at = (!self.config.passive).then(|| now + wait);
    }

    /// After an error the peer rests in Idle, longer each time (RFC 4271 section 8.1.1, DampPeerOscillations and IdleHoldTime).
    pub(super) fn rest(&mut self, now: Instant) {
        self.errors = self.errors.saturating_add(1);
        self.rest_again(now);
    }

    /// The same for what is no error to be counted: event 24.
    pub(super) fn rest_again(&mut self, now: Instant) {
        let damping = self.config.damping;
        let doublings = if damping.enabled { self.errors.saturating_sub(1).min(DOUBLINGS_MAX) } else { 0 };
        let hold = damping.first.saturating_mul(1 << doublings).min(damping.longest);
        self.attempt_over();
        self.retry_at = None;
        self.blocked_until = Some(now + self.jitter.shorten(hold));
    }

    /// Event 13, which leads to events 3, 5, 6 or 7: the rest is over.
    pub(super) fn rested(&mut self, now: Instant) {
        let event = match (self.config.passive, self.errors > 1 && self.config.damping.enabled) {
            (false, false) => FsmEvent::AutomaticStart,
            (true, false) => FsmEvent::AutomaticStartPassive,
            (false, true) => FsmEvent::AutomaticStartDamp,
            (true, true) => FsmEvent::AutomaticStartDampPassive,
        };
        self.step(event, |fsm| {
            fsm.blocked_until = None;
            fsm.seek(now);
        });
    }
}
