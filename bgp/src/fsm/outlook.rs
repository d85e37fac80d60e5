//! What the machine will do next, in words.

use std::time::Instant;

use super::connection::Stage;
use super::{Fsm, State};
use crate::operate::{Outlook, RunningTimer};

impl Fsm {
    /// Where the machine stands and what it waits for.
    pub(crate) fn outlook(&self, now: Instant) -> Outlook {
        Outlook { next: self.next_step(), timers: self.running_timers(now) }
    }

    fn next_step(&self) -> String {
        let address = self.config.address;
        match self.state() {
            State::Idle if !self.running => {
                "stopped by the operator; nothing happens until it is started".to_owned()
            }
            State::Idle => "rests after an error; starts again when IdleHoldTimer expires".to_owned(),
            State::Connect => format!(
                "waits for {address} port {} to answer; tries again when ConnectRetryTimer expires",
                self.config.port
            ),
            State::Active if self.config.passive => format!("passive: waits for {address} to connect"),
            State::Active => {
                format!("waits for {address} to connect, or connects when ConnectRetryTimer expires")
            }
            State::OpenSent => "has sent OPEN; waits for the peer's until HoldTimer expires".to_owned(),
            State::OpenConfirm => {
                "both OPENs are exchanged; waits for the peer's KEEPALIVE until HoldTimer expires".to_owned()
            }
            State::Established => {
                "keeps the session; ends it if nothing is heard until HoldTimer expires".to_owned()
            }
        }
    }

    fn running_timers(&self, now: Instant) -> Vec<RunningTimer> {
        let mut timers: Vec<(&'static str, Instant)> = Vec::new();
        timers.extend(self.retry_at.map(|at| ("ConnectRetryTimer", at)));
        timers.extend(self.blocked_until.map(|at| ("IdleHoldTimer", at)));
        // Of two connections that collide, the one that is further decides.
        if let Some(connection) = self.connections.iter().max_by_key(|connection| connection.stage) {
            let hold = connection.hold_at.filter(|_| connection.stage > Stage::DelayOpen);
            timers.extend(hold.map(|at| ("HoldTimer", at)));
            timers.extend(connection.keepalive_at.map(|at| ("KeepaliveTimer", at)));
            timers.extend(connection.delay_at.map(|at| ("DelayOpenTimer", at)));
        }
        timers.sort_by_key(|(name, at)| (*at, *name));
        let left = |at: Instant| u64::try_from(at.saturating_duration_since(now).as_millis());
        timers
            .into_iter()
            .map(|(name, at)| RunningTimer { name, left_ms: left(at).unwrap_or(u64::MAX) })
            .collect()
    }

    /// The capabilities our OPEN carries.
    pub(crate) fn offers(&self) -> Vec<crate::wire::Capability> {
        super::connection::offered(&self.config, self.identity, self.restarted, self.forwarding_preserved)
    }
}
