//! Two machines and a network that delays, resets, refuses and reorders between connections: whatever it does, once it stops the session
//! comes up and stays. Each run follows from its seed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;

use super::*;
use crate::wire::Frame;

const SEEDS: u64 = 1500;
/// How long the network misbehaves.
const STORM: Duration = Duration::from_secs(600);
/// How long the machines then have: the wait for an OPEN, the longest rest, and the attempts between.
const CALM: Duration = Duration::from_secs(900);
/// How long the session must then stand.
const PEACE: Duration = Duration::from_secs(300);
/// More steps than this would be a loop without progress.
const STEPS_MAX: usize = 200_000;

/// What the network brings.
enum Arrival {
    /// A connection reaches the far side, or our side hears that it has.
    Accept {
        wire: usize,
        side: usize,
    },
    Acked {
        wire: usize,
        side: usize,
        attempt: u64,
    },
    Failed {
        side: usize,
        attempt: u64,
    },
    Data {
        wire: usize,
        side: usize,
        bytes: Vec<u8>,
    },
    Lost {
        wire: usize,
        side: usize,
    },
}

/// One end of a connection.
#[derive(Default)]
struct End {
    open: bool,
    closed: bool,
    /// What came before the connection was taken.
    waiting: Vec<Arrival>,
    /// Nothing arrives here before this: bytes of a stream keep their order.
    last: Option<Instant>,
}

struct Network {
    now: Instant,
    calm_at: Instant,
    random: Jitter,
    machines: [Fsm; 2],
    wires: Vec<[End; 2]>,
    arrivals: BTreeMap<(Instant, u64), Arrival>,
    serial: u64,
    up: [bool; 2],
    ups: u64,
}

fn side_config(side: usize, random: &mut Jitter) -> PeerConfig {
    let address = Ipv4Addr::new(10, 0, 0, u8::try_from(2 - side).unwrap());
    let mut config = PeerConfig::new("other", address.into(), 0);
    config.timers.connect_retry = Duration::from_secs(5 + random.next() % 60);
    config.timers.hold = Duration::from_secs([0, 3, 9, 90][usize::try_from(random.next() % 4).unwrap()]);
    config.timers.keepalive = Duration::from_secs(1 + random.next() % 30);
    config.graceful_restart.enabled = random.next().is_multiple_of(2);
    config.delay_open = random.next().is_multiple_of(3).then(|| Duration::from_secs(random.next() % 10));
    config
}

impl Network {
    fn new(seed: u64) -> Self {
        let mut random = Jitter::new(seed);
        let now = Instant::now();
        let mut configs = [0, 1].map(|side| side_config(side, &mut random));
        if random.next().is_multiple_of(4) {
            configs[usize::try_from(random.next() % 2).unwrap()].passive = true;
        }
        let internal = random.next().is_multiple_of(3);
        let ids = if random.next().is_multiple_of(2) { [1, 2] } else { [2, 1] };
        let mut side = 0;
        let machines = configs.map(|config| {
            let identity = Identity {
                asn: if internal { 65001 } else { 65001 + u32::try_from(side).unwrap() },
                router_id: Ipv4Addr::new(1, 1, 1, ids[side]),
            };
            side += 1;
            Fsm::new(Arc::new(config), identity, false, Jitter::new(random.next()))
        });
        let calm_at = now + STORM;
        let (arrivals, wires) = (BTreeMap::new(), Vec::new());
        Self { now, calm_at, random, machines, wires, arrivals, serial: 0, up: [false; 2], ups: 0 }
    }

    fn stormy(&self) -> bool {
        self.now < self.calm_at
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.next() % 100 < percent
    }

    /// Loss shows as delay: TCP sends again.
    fn delay(&mut self) -> Duration {
        let millis = match self.stormy() {
            true if self.chance(10) => 200 + self.random.next() % 30_000,
            true => self.random.next() % 200,
            false => self.random.next() % 20,
        };
        Duration::from_millis(millis)
    }

    fn later(&mut self, at: Instant, arrival: Arrival) {
        self.serial += 1;
        self.arrivals.insert((at, self.serial), arrival);
    }

    /// Sends to one end of a wire, in order.
    fn send(&mut self, wire: usize, side: usize, arrival: Arrival) {
        let at = self.now + self.delay();
        let end = &mut self.wires[wire][side];
        let at = end.last.map_or(at, |last| last.max(at));
        end.last = Some(at);
        self.later(at, arrival);
    }

    fn id(wire: usize) -> ConnectionId {
        u64::try_from(wire).unwrap()
    }

    fn carry_out(&mut self, side: usize) {
        while let Some(action) = self.machines[side].next_action() {
            match action {
                Action::Connect { attempt } => self.connect(side, attempt),
                Action::Abandon | Action::Update { .. } | Action::Refresh { .. } => {}
                Action::Send { connection, bytes } => {
                    let wire = usize::try_from(connection).unwrap();
                    assert!(!self.wires[wire][side].closed, "sends on a closed connection");
                    self.send(wire, 1 - side, Arrival::Data { wire, side: 1 - side, bytes });
                }
                Action::Close { connection } => {
                    let wire = usize::try_from(connection).unwrap();
                    assert!(!std::mem::replace(&mut self.wires[wire][side].closed, true), "closes twice");
                    self.send(wire, 1 - side, Arrival::Lost { wire, side: 1 - side });
                }
                Action::Up { .. } => {
                    assert!(!std::mem::replace(&mut self.up[side], true), "up twice");
                    self.ups += 1;
                }
                Action::Down { .. } => {
                    assert!(std::mem::replace(&mut self.up[side], false), "down without up");
                }
            }
        }
        assert!(self.machines[side].connections.len() <= 2, "more connections than ways to get one");
    }

    fn connect(&mut self, side: usize, attempt: u64) {
        let at = self.now + self.delay();
        if self.stormy() && self.chance(20) {
            // Refused, or nothing at all.
            if self.chance(50) {
                self.later(at, Arrival::Failed { side, attempt });
            }
            return;
        }
        let wire = self.wires.len();
        self.wires.push([End::default(), End::default()]);
        self.later(at, Arrival::Accept { wire, side: 1 - side });
        let at = self.now + self.delay();
        self.later(at, Arrival::Acked { wire, side, attempt });
    }

    fn arrive(&mut self, arrival: Arrival) {
        let now = self.now;
        let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 179);
        match arrival {
            Arrival::Failed { side, attempt } => self.machines[side].connect_failed(now, attempt, "refused"),
            Arrival::Accept { wire, side } => {
                let taken = self.machines[side].accepted(now, Self::id(wire), local);
                self.opened(wire, side, taken);
            }
            Arrival::Acked { wire, side, attempt } => {
                let taken = self.machines[side].connected(now, attempt, Self::id(wire), local);
                self.opened(wire, side, taken);
            }
            Arrival::Data { wire, side, .. } | Arrival::Lost { wire, side }
                if !self.wires[wire][side].open && !self.wires[wire][side].closed =>
            {
                self.wires[wire][side].waiting.push(arrival);
            }
            Arrival::Data { wire, side, .. } if self.wires[wire][side].closed => {}
            Arrival::Data { wire, side, bytes } => {
                let frame = Frame::next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
                self.machines[side].frame(now, Self::id(wire), &frame);
            }
            Arrival::Lost { wire, side } => {
                self.wires[wire][side].closed = true;
                self.machines[side].lost(now, Self::id(wire), "reset");
            }
        }
        [0, 1].into_iter().for_each(|side| self.carry_out(side));
        if self.stormy() && self.chance(3) {
            self.reset_something();
        }
    }

    fn opened(&mut self, wire: usize, side: usize, taken: bool) {
        let waiting = std::mem::take(&mut self.wires[wire][side].waiting);
        if taken {
            self.wires[wire][side].open = true;
            self.carry_out(side);
            waiting.into_iter().for_each(|arrival| self.arrive(arrival));
        } else {
            self.wires[wire][side].closed = true;
            self.send(wire, 1 - side, Arrival::Lost { wire, side: 1 - side });
        }
    }

    /// Breaks a connection; each end hears of it in its own time.
    fn reset_something(&mut self) {
        let alive = |ends: &[End; 2]| ends.iter().all(|end| end.open && !end.closed);
        let alive: Vec<usize> = (0..self.wires.len()).filter(|wire| alive(&self.wires[*wire])).collect();
        if alive.is_empty() {
            return;
        }
        let wire = alive[usize::try_from(self.random.next()).unwrap_or_default() % alive.len()];
        for side in [0, 1] {
            let at = self.now + self.delay();
            self.later(at, Arrival::Lost { wire, side });
        }
    }

    fn run_until(&mut self, end: Instant) {
        for _ in 0..STEPS_MAX {
            let timers = self.machines.iter().filter_map(Fsm::next_deadline).min();
            let arrival = self.arrivals.first_key_value().map(|(key, _)| key.0);
            let Some(at) = timers.into_iter().chain(arrival).min().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(at);
            match self.arrivals.first_entry() {
                Some(first) if first.key().0 <= at => {
                    let arrival = first.remove();
                    self.arrive(arrival);
                }
                _ => {
                    for side in [0, 1] {
                        self.machines[side].timers(self.now);
                        self.carry_out(side);
                    }
                }
            }
        }
        panic!("no end of steps at {:?}", self.now);
    }

    fn run(seed: u64) -> Self {
        let mut network = Self::new(seed);
        for side in [0, 1] {
            let now = network.now;
            network.machines[side].start(now);
            network.carry_out(side);
        }
        let calm = network.calm_at;
        network.run_until(calm + CALM);
        network
    }

    fn stands(&self) -> bool {
        let one = |fsm: &Fsm| match fsm.connections.as_slice() {
            [one] if fsm.state() == State::Established => Some(one.id),
            _ => None,
        };
        let [a, b] = &self.machines;
        one(a).is_some() && one(a) == one(b)
    }

    fn told(&self) -> String {
        let side = |fsm: &Fsm| {
            let history: Vec<_> = fsm.transitions().map(|t| (t.event, t.from, t.to)).collect();
            format!("{:?} {:?} {:?} {history:?}", fsm.state(), fsm.connections, fsm.last_error())
        };
        self.machines.iter().map(side).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn whatever_the_network_does_the_session_comes_up_and_stays() {
    let mut ups = 0;
    for seed in 0..SEEDS {
        let mut network = Network::run(seed);
        assert!(network.stands(), "seed {seed} does not converge:\n{}", network.told());
        ups += network.ups;
        let before: Vec<u64> = network.machines.iter().map(Fsm::transition_count).collect();
        let end = network.now + PEACE;
        network.run_until(end);
        let after: Vec<u64> = network.machines.iter().map(Fsm::transition_count).collect();
        assert!(network.stands() && before == after, "seed {seed} does not stay:\n{}", network.told());
    }
    assert!(ups > SEEDS * 4, "the storm must have broken sessions: {ups} came up");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let told = |seed| {
        let network = Network::run(seed);
        let states =
            network.machines.iter().map(|fsm| format!("{:?}", fsm.transitions().collect::<Vec<_>>()));
        (network.ups, network.wires.len(), states.collect::<String>())
    };
    for seed in [3, 77, 1234] {
        assert_eq!(told(seed), told(seed));
    }
}
