//! One session (RFC 5880 section 6.8) without I/O: packets and the time go in, frames and changes of state come out.
//!
//! ```text
//!             ┌────────── Down received, or no packet for the detection time ──────────┐
//!             ▼                                                                        │
//!  Down ──Down received──► Init ──Init or Up received──► Up ───────────────────────────┘
//!    └──────────────────────Init received──────────────►
//! ```
//! Not here: demand mode of our own (the remote system's is understood), and echo packets of our own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::auth::{Auth, Sequence, is_stale, seal, verify};
use super::packet::{Diagnostic, Frame, Packet, Received, State};
use crate::fsm::Jitter;

/// Slowest rate's interval: what Desired Min TX is at least while the session is not Up (section 6.8.3).
pub(super) const SLOW_TX_US: u32 = 1_000_000;

/// What the operator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) min_tx_us: u32,
    pub(super) min_rx_us: u32,
    pub(super) min_echo_rx_us: u32,
    pub(super) detect_mult: u8,
    /// Wait for the remote system to speak first (section 6.1).
    pub(super) passive: bool,
    pub(super) admin_down: bool,
    pub(super) auth: Option<Auth>,
}

/// A poll sequence (section 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    Idle,
    Running,
    /// Something changed again meanwhile: the Final to come may answer the older values, so another follows.
    RunningThenAgain,
}

/// What the remote system last said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) state: State,
    pub(super) diagnostic: Diagnostic,
    pub(super) discriminator: u32,
    pub(super) detect_mult: u8,
    pub(super) desired_min_tx_us: u32,
    pub(super) required_min_rx_us: u32,
    pub(super) required_min_echo_rx_us: u32,
    pub(super) demand: bool,
    pub(super) control_plane_independent: bool,
}

/// Section 6.8.1: bfd.RemoteMinRxInterval starts at 1.
const UNHEARD: Remote = Remote {
    state: State::Down,
    diagnostic: Diagnostic::NONE,
    discriminator: 0,
    detect_mult: 0,
    desired_min_tx_us: 0,
    required_min_rx_us: 1,
    required_min_echo_rx_us: 0,
    demand: false,
    control_plane_independent: false,
};

/// Counters since the session was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) unauthenticated: u64,
    pub(super) ups: u64,
    pub(super) downs: u64,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Send(Frame),
    /// The state was `previous`.
    Changed {
        previous: State,
    },
}

/// The machine of one session.
#[derive(Debug)]
pub(super) struct Machine {
    settings: Settings,
    state: State,
    diagnostic: Diagnostic,
    discriminator: u32,
    remote: Remote,
    /// bfd.DesiredMinTxInterval and bfd.RequiredMinRxInterval, as told to the remote system.
    desired_tx_us: u32,
    required_rx_us: u32,
    /// The values in force: an increase of the first and a decrease of the second wait for the end of the poll sequence (6.8.3).
    tx_in_force_us: u32,
    rx_in_force_us: u32,
    poll: Poll,
    sent_at: Option<Instant>,
    received_at: Option<Instant>,
    transmit_at: Option<Instant>,
    /// The interval `transmit_at` was computed with.
    planned_us: u32,
    detect_at: Option<Instant>,
    changed_at: Instant,
    /// What is told differs from what was told last: it goes out at once (section 6.8.7).
    tell: bool,
    sequence: Sequence,
    /// The last frame, sent again as it is while nothing changes.
    prebuilt: Option<(Packet, Frame)>,
    jitter: Jitter,
    counts: Counts,
    actions: VecDeque<Action>,
}

impl Machine {
    pub(super) fn new(now: Instant, discriminator: u32, settings: Settings, mut jitter: Jitter) -> Self {
        let start = u32::try_from(jitter.next() >> 32).unwrap_or_default();
        let mut machine = Self {
            state: if settings.admin_down { State::AdminDown } else { State::Down },
            diagnostic: if settings.admin_down {
                Diagnostic::ADMINISTRATIVELY_DOWN
            } else {
                Diagnostic::NONE
            },
            discriminator,
            remote: UNHEARD,
            desired_tx_us: settings.min_tx_us.max(SLOW_TX_US),
            required_rx_us: settings.min_rx_us,
            tx_in_force_us: settings.min_tx_us.max(SLOW_TX_US),
            rx_in_force_us: settings.min_rx_us,
            poll: Poll::Idle,
            sent_at: None,
            received_at: None,
            transmit_at: None,
            planned_us: 0,
            detect_at: None,
            changed_at: now,
            tell: true,
            sequence: Sequence::new(start),
            prebuilt: None,
            jitter,
            counts: Counts::default(),
            actions: VecDeque::new(),
            settings,
        };
        machine.settle(now);
        machine
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.transmit_at.into_iter().chain(self.detect_at).min()
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    pub(super) const fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    pub(super) const fn remote(&self) -> &Remote {
        &self.remote
    }

    pub(super) const fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) const fn changed_at(&self) -> Instant {
        self.changed_at
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The agreed interval of our packets before jitter (section 6.8.2); none: the remote system wants no periodic packets.
    pub(super) fn transmit_interval(&self) -> Option<Duration> {
        let wanted = self.remote.required_min_rx_us != 0;
        wanted.then(|| micros(self.tx_in_force_us.max(self.remote.required_min_rx_us)))
    }

    /// Without a packet for this long the session is down (section 6.8.4, asynchronous mode).
    pub(super) fn detection_time(&self) -> Duration {
        let interval = self.rx_in_force_us.max(self.remote.desired_min_tx_us);
        micros(interval) * u32::from(self.remote.detect_mult)
    }

    /// New settings; timers change by a poll sequence, nothing else is disturbed (section 6.8.3).
    pub(super) fn update(&mut self, now: Instant, settings: Settings) {
        let old = std::mem::replace(&mut self.settings, settings);
        if old == self.settings {
            return;
        }
        self.tell = true;
        if old.auth != self.settings.auth {
            self.sequence.forget();
        }
        if old.admin_down != self.settings.admin_down {
            let (state, diagnostic) = if self.settings.admin_down {
                (State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN)
            } else {
                (State::Down, Diagnostic::NONE)
            };
            self.enter(now, state, diagnostic);
        }
        self.renegotiate();
        self.settle(now);
    }

    /// A packet for this session, already decoded. False if it is not authentic.
    pub(super) fn receive(&mut self, now: Instant, packet: &Packet, received: Received<'_>) -> bool {
        if is_stale(self.received_at, now, self.detection_time()) {
            self.sequence.forget();
        }
        let auth = self.settings.auth.as_ref();
        if !verify(received, auth, &mut self.sequence, packet.detect_mult) {
            self.counts.unauthenticated += 1;
            return false;
        }
        self.counts.received += 1;
        self.received_at = Some(now);
        self.remote = Remote {
            state: packet.state,
            diagnostic: packet.diagnostic,
            discriminator: packet.my_discriminator,
            detect_mult: packet.detect_mult,
            desired_min_tx_us: packet.desired_min_tx_us,
            required_min_rx_us: packet.required_min_rx_us,
            required_min_echo_rx_us: packet.required_min_echo_rx_us,
            demand: packet.demand,
            control_plane_independent: packet.control_plane_independent,
        };
        if packet.is_final {
            self.poll_answered();
        }
        self.transition(now, packet.state);
        self.detect_at = Some(now + self.detection_time());
        // Section 6.8.6: in AdminDown the packet is discarded before the poll is looked at.
        if packet.poll && self.state != State::AdminDown {
            // Section 6.8.7: as soon as practicable, whatever the transmit timer says.
            self.send(now, true);
        }
        self.settle(now);
        true
    }

    /// The state machine proper (section 6.8.6).
    fn transition(&mut self, now: Instant, heard: State) {
        match (self.state, heard) {
            (State::AdminDown, _) => {}
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(now, State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN);
            }
            (State::Down, State::Down) => self.enter(now, State::Init, Diagnostic::NONE),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(now, State::Up, Diagnostic::NONE);
            }
            _ => {}
        }
    }

    /// Runs the timers that are due.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.detect_at.is_some_and(|at| at <= now) {
            self.detect_at = None;
            // Section 6.8.1: the remote system's discriminator is forgotten with it; its answer to ours would be of an older life.
            self.remote = UNHEARD;
            self.sequence.forget();
            if matches!(self.state, State::Init | State::Up) {
                self.enter(now, State::Down, Diagnostic::DETECTION_TIME_EXPIRED);
            }
        }
        if self.transmit_at.is_some_and(|at| at <= now) {
            self.transmit_at = None;
            self.send(now, false);
        }
        self.settle(now);
    }

    fn enter(&mut self, now: Instant, state: State, diagnostic: Diagnostic) {
        let previous = std::mem::replace(&mut self.state, state);
        self.diagnostic = diagnostic;
        self.tell = true;
        self.changed_at = now;
        match (previous, state) {
            (_, State::Up) => self.counts.ups += 1,
            (State::Up, _) => self.counts.downs += 1,
            _ => {}
        }
        self.renegotiate();
        self.actions.push_back(Action::Changed { previous });
    }

    /// Brings the told intervals to what settings and state ask for (section 6.8.3).
    fn renegotiate(&mut self) {
        let up = self.state == State::Up;
        let floor = if up { 0 } else { SLOW_TX_US };
        let desired = self.settings.min_tx_us.max(floor);
        let required = self.settings.min_rx_us;
        let changed = (desired, required) != (self.desired_tx_us, self.required_rx_us);
        self.desired_tx_us = desired;
        self.required_rx_us = required;
        if !up {
            // What goes out next carries the new values, and nothing is detected faster than the remote system sends.
            self.poll = Poll::Idle;
        } else if changed {
            self.tell = true;
            self.poll = match self.poll {
                Poll::Idle => Poll::Running,
                Poll::Running | Poll::RunningThenAgain => Poll::RunningThenAgain,
            };
        }
        if self.poll == Poll::Idle {
            self.tx_in_force_us = desired;
            self.rx_in_force_us = required;
        } else {
            self.tx_in_force_us = self.tx_in_force_us.min(desired);
            self.rx_in_force_us = self.rx_in_force_us.max(required);
        }
    }

    /// The remote system's Final: it knows the values told (section 6.5).
    fn poll_answered(&mut self) {
        match self.poll {
            Poll::Idle => {}
            Poll::Running => {
                self.poll = Poll::Idle;
                self.tx_in_force_us = self.desired_tx_us;
                self.rx_in_force_us = self.required_rx_us;
            }
            Poll::RunningThenAgain => {
                self.poll = Poll::Running;
                self.tell = true;
            }
        }
    }

    /// Section 6.8.7: when nothing is sent by the timer.
    fn may_transmit(&self) -> bool {
        let waits = self.settings.passive && self.remote.discriminator == 0;
        let demanded = self.remote.demand
            && self.state == State::Up
            && self.remote.state == State::Up
            && self.poll == Poll::Idle;
        !waits && !demanded && self.remote.required_min_rx_us != 0
    }

    /// Sends what is to be told at once, and plans the next packet.
    fn settle(&mut self, now: Instant) {
        if !self.may_transmit() {
            self.transmit_at = None;
            return;
        }
        if std::mem::take(&mut self.tell) {
            self.send(now, false);
            self.transmit_at = None;
        }
        let Some(interval) = self.transmit_interval() else { return };
        let interval_us = u32::try_from(interval.as_micros()).unwrap_or(u32::MAX);
        if self.transmit_at.is_none() || interval_us != self.planned_us {
            self.planned_us = interval_us;
            let wait = self.jittered(interval);
            self.transmit_at = Some(self.sent_at.map_or(now, |sent| sent + wait));
        }
    }

    /// 75 to 100 % of the interval, with a detection multiplier of 1 up to 90 % (section 6.8.7).
    fn jittered(&mut self, interval: Duration) -> Duration {
        let spread = if self.settings.detect_mult == 1 { 151 } else { 251 };
        let permille = u32::try_from(750 + self.jitter.next() % spread).unwrap_or(750);
        interval * permille / 1000
    }

    fn send(&mut self, now: Instant, is_final: bool) {
        let packet = Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: !is_final && self.poll != Poll::Idle,
            is_final,
            // The unit outlives the agent, and with it the BGP speaker (RFC 5882 section 4.3.2).
            control_plane_independent: true,
            demand: false,
            detect_mult: self.settings.detect_mult,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx_us: self.desired_tx_us,
            required_min_rx_us: self.required_rx_us,
            required_min_echo_rx_us: self.settings.min_echo_rx_us,
        };
        let frame = match &self.prebuilt {
            Some((same, frame)) if *same == packet && self.settings.auth.is_none() => *frame,
            _ => seal(&packet, self.settings.auth.as_ref(), &mut self.sequence),
        };
        self.prebuilt = Some((packet, frame));
        self.counts.sent += 1;
        if !is_final {
            self.sent_at = Some(now);
        }
        self.actions.push_back(Action::Send(frame));
    }
}

fn micros(us: u32) -> Duration {
    Duration::from_micros(u64::from(us))
}
