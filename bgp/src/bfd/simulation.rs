//! Two machines over a link that loses, delays and reorders, driven by one seeded loop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::auth::Auth;
use super::machine::{Action, Machine, Settings};
use super::packet::{Packet, State};
use crate::fsm::Jitter;

pub(super) const MS: u32 = 1000;

pub(super) fn settings(interval_ms: u32, detect_mult: u8) -> Settings {
    Settings {
        min_tx_us: interval_ms * MS,
        min_rx_us: interval_ms * MS,
        min_echo_rx_us: 0,
        detect_mult,
        passive: false,
        admin_down: false,
        auth: None,
    }
}

pub(super) fn sha1() -> Option<Auth> {
    Some(Auth::MeticulousKeyedSha1 { key_id: 1, secret: "sandbar".into() })
}

/// What the link does to a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) loss_permille: u64,
    pub(super) delay_ms: u64,
    /// Added at random: packets overtake each other when it exceeds the interval.
    pub(super) jitter_ms: u64,
    pub(super) cut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) side: usize,
    pub(super) previous: State,
    pub(super) now: State,
}

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) machines: [Machine; 2],
    pub(super) link: Link,
    random: Jitter,
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    count: u64,
    pub(super) seen: Vec<Seen>,
    /// Every packet sent: when, by whom, what.
    pub(super) sent: Vec<(Instant, usize, Packet)>,
}

impl Pair {
    pub(super) fn new(seed: u64, link: Link, settings: [Settings; 2]) -> Self {
        let now = Instant::now();
        let mut random = Jitter::new(seed);
        let [a, b] = settings;
        let machines = [
            Machine::new(now, 11, a, Jitter::new(random.next())),
            Machine::new(now, 22, b, Jitter::new(random.next())),
        ];
        let mut pair = Self {
            now,
            machines,
            link,
            random,
            flying: BTreeMap::new(),
            count: 0,
            seen: Vec::new(),
            sent: Vec::new(),
        };
        pair.collect();
        pair
    }

    fn collect(&mut self) {
        for side in 0..2 {
            while let Some(action) = self.machines[side].next_action() {
                match action {
                    Action::Changed { previous } => self.seen.push(Seen {
                        at: self.now,
                        side,
                        previous,
                        now: self.machines[side].state(),
                    }),
                    Action::Send(frame) => {
                        let (packet, _) = Packet::decode(frame.as_bytes()).expect("we write what we read");
                        self.sent.push((self.now, side, packet));
                        let lost = self.link.cut || self.random.next() % 1000 < self.link.loss_permille;
                        if !lost {
                            let more = self.random.next() % (self.link.jitter_ms + 1);
                            let at = self.now + Duration::from_millis(self.link.delay_ms + more);
                            self.count += 1;
                            self.flying.insert((at, self.count), (1 - side, frame.as_bytes().to_vec()));
                        }
                    }
                }
            }
        }
    }

    pub(super) fn update(&mut self, side: usize, settings: Settings) {
        self.machines[side].update(self.now, settings);
        self.collect();
    }

    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let flying = self.flying.first_key_value().map(|((at, _), _)| *at);
            let timers = self.machines.iter().filter_map(Machine::next_deadline);
            let Some(next) = timers.chain(flying).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            if flying == Some(next) {
                let ((_, _), (to, bytes)) = self.flying.pop_first().expect("it is the first");
                let (packet, received) = Packet::decode(&bytes).expect("we write what we read");
                // As the engine does: a discriminator of an older life is nobody's.
                let own = [11, 22][to];
                if packet.your_discriminator == 0 || packet.your_discriminator == own {
                    self.machines[to].receive(self.now, &packet, received);
                }
            } else {
                for machine in &mut self.machines {
                    machine.tick(self.now);
                }
            }
            self.collect();
        }
        self.now = end;
    }

    pub(super) fn states(&self) -> [State; 2] {
        [self.machines[0].state(), self.machines[1].state()]
    }

    pub(super) fn downs(&self) -> usize {
        self.seen.iter().filter(|seen| seen.previous == State::Up).count()
    }
}
