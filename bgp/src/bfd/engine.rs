//! All sessions of a unit without I/O: who wants which, which packet is whose (RFC 5880 section 6.3), whose timer is due.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::machine::{Action, Machine};
use super::packet::{Frame, Packet, State};
use super::session::{SessionConfig, SessionError, SessionKey, SessionStatus, canonical};
use crate::fsm::Jitter;

/// A session nobody wants any more says AdminDown for so long: three packets at the slow rate (RFC 5880 section 6.8.16).
const FAREWELL: Duration = Duration::from_secs(3);
/// Sessions one unit keeps at most.
const SESSIONS_MAX: usize = 4096;
/// The time-to-live that shows a packet crossed no router (RFC 5881 section 5).
const SINGLE_HOP_TTL: u8 = 255;

/// A datagram as the sockets give it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival<'a> {
    pub(super) remote: IpAddr,
    pub(super) local: IpAddr,
    /// Index of the interface it came in on.
    pub(super) interface: u32,
    pub(super) ttl: u8,
    /// Came to the port of multihop sessions.
    pub(super) multihop: bool,
    pub(super) bytes: &'a [u8],
}

/// What the sockets' owner is to do.
#[derive(Debug)]
pub(super) enum Output {
    Send {
        discriminator: u32,
        frame: Frame,
    },
    /// The session's socket may be closed.
    Gone {
        discriminator: u32,
    },
    Changed {
        previous: State,
        status: Box<SessionStatus>,
    },
}

/// Datagrams that were no session's, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Discards {
    /// Not a control packet.
    pub malformed: u64,
    /// From nobody a session is kept with.
    pub no_session: u64,
    /// A time-to-live below 255 where one hop is demanded: from beyond a router, or forged.
    pub ttl: u64,
}

#[derive(Debug)]
struct Entry {
    key: SessionKey,
    /// Index of `key.interface`, if there is such an interface now.
    interface: Option<u32>,
    machine: Machine,
    /// Who wants it; nobody: it takes its leave until `leaves_at`.
    owners: BTreeSet<String>,
    leaves_at: Option<Instant>,
    /// As entered in `deadlines`.
    deadline: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Engine {
    sessions: BTreeMap<u32, Entry>,
    by_key: BTreeMap<SessionKey, u32>,
    deadlines: BTreeSet<(Instant, u32)>,
    outputs: VecDeque<Output>,
    random: Jitter,
    pub(super) discards: Discards,
}

impl Engine {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            sessions: BTreeMap::new(),
            by_key: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            outputs: VecDeque::new(),
            random: Jitter::new(seed),
            discards: Discards::default(),
        }
    }

    pub(super) fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The key of a session, for its socket.
    pub(super) fn key(&self, discriminator: u32) -> Option<&SessionKey> {
        self.sessions.get(&discriminator).map(|entry| &entry.key)
    }

    /// Whether echo packets of this address are returned: single hop, and the settings allow it.
    pub(super) fn returns_echo(&self, remote: IpAddr) -> bool {
        self.sessions.values().any(|entry| {
            !entry.key.multihop
                && canonical(entry.key.peer) == canonical(remote)
                && entry.machine.settings().min_echo_rx_us > 0
        })
    }

    /// Tells which interface a session's name stands for now.
    pub(super) fn set_interface(&mut self, discriminator: u32, index: Option<u32>) {
        if let Some(entry) = self.sessions.get_mut(&discriminator) {
            entry.interface = index;
        }
    }

    /// The list of sessions `owner` wants: new ones begin, changed ones poll, those left out take their leave unless the list is partial.
    pub(super) fn set(
        &mut self,
        now: Instant,
        owner: &str,
        wanted: Vec<SessionConfig>,
        partial: bool,
    ) -> Result<(), SessionError> {
        wanted.iter().try_for_each(SessionConfig::check)?;
        let mut kept = BTreeSet::new();
        for config in wanted {
            if let Some(id) = self.want(now, owner, config) {
                kept.insert(id);
            }
        }
        if partial {
            return Ok(());
        }
        let left: Vec<u32> = self
            .sessions
            .iter()
            .filter(|(id, entry)| !kept.contains(*id) && entry.owners.contains(owner))
            .map(|(id, _)| *id)
            .collect();
        left.into_iter().for_each(|id| self.unwant(now, id, owner));
        Ok(())
    }

    /// Forgets every owner that is not in the list: of an agent's earlier configuration.
    pub(super) fn keep_owners(&mut self, now: Instant, keep: &BTreeSet<String>) {
        let gone: Vec<(u32, String)> = self
            .sessions
            .iter()
            .flat_map(|(id, entry)| entry.owners.difference(keep).map(move |owner| (*id, owner.clone())))
            .collect();
        gone.into_iter().for_each(|(id, owner)| self.unwant(now, id, &owner));
    }

    fn want(&mut self, now: Instant, owner: &str, config: SessionConfig) -> Option<u32> {
        let settings = config.settings.for_machine();
        if let Some(id) = self.by_key.get(&config.key).copied() {
            let entry = self.sessions.get_mut(&id)?;
            entry.owners.insert(owner.to_owned());
            entry.leaves_at = None;
            entry.machine.update(now, settings);
            self.settle(id);
            return Some(id);
        }
        if self.sessions.len() >= SESSIONS_MAX {
            tracing::error!(peer = %config.key.peer, "No room for another BFD session; {SESSIONS_MAX} are kept.");
            return None;
        }
        let id = self.free_discriminator();
        let jitter = Jitter::new(self.random.next());
        let entry = Entry {
            key: config.key.clone(),
            interface: None,
            machine: Machine::new(now, id, settings, jitter),
            owners: BTreeSet::from([owner.to_owned()]),
            leaves_at: None,
            deadline: None,
        };
        self.by_key.insert(config.key, id);
        self.sessions.insert(id, entry);
        self.settle(id);
        Some(id)
    }

    fn unwant(&mut self, now: Instant, id: u32, owner: &str) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        entry.owners.remove(owner);
        if entry.owners.is_empty() && entry.leaves_at.is_none() {
            entry.leaves_at = Some(now + FAREWELL);
            let settings = super::machine::Settings { admin_down: true, ..entry.machine.settings().clone() };
            entry.machine.update(now, settings);
        }
        self.settle(id);
    }

    /// Random (section 10: hard to guess), not 0, not in use.
    fn free_discriminator(&mut self) -> u32 {
        loop {
            let id = u32::try_from(self.random.next() >> 32).unwrap_or_default();
            if id != 0 && !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }

    /// A datagram came in.
    pub(super) fn receive(&mut self, now: Instant, arrival: &Arrival<'_>) {
        let Ok((packet, received)) = Packet::decode(arrival.bytes) else {
            self.discards.malformed += 1;
            return;
        };
        if !arrival.multihop && arrival.ttl != SINGLE_HOP_TTL {
            self.discards.ttl += 1;
            return;
        }
        let Some(id) = self.session_of(arrival, packet.your_discriminator) else {
            self.discards.no_session += 1;
            return;
        };
        if let Some(entry) = self.sessions.get_mut(&id) {
            entry.machine.receive(now, &packet, received);
        }
        self.settle(id);
    }

    /// By our discriminator if the packet has it, else by the addresses (section 6.3, RFC 5881 section 3).
    fn session_of(&self, arrival: &Arrival<'_>, discriminator: u32) -> Option<u32> {
        let matches = |entry: &Entry| {
            entry.key.multihop == arrival.multihop
                && canonical(entry.key.peer) == canonical(arrival.remote)
                && entry.key.local.is_none_or(|local| canonical(local) == canonical(arrival.local))
                && (entry.key.interface.is_none() || entry.interface == Some(arrival.interface))
        };
        if discriminator != 0 {
            return self.sessions.get(&discriminator).filter(|entry| matches(entry)).map(|_| discriminator);
        }
        let first = SessionKey { peer: arrival.remote, local: None, interface: None, multihop: false };
        self.by_key
            .range(first..)
            .take_while(|(key, _)| key.peer == arrival.remote)
            .map(|(_, id)| *id)
            .find(|id| self.sessions.get(id).is_some_and(matches))
    }

    /// Runs every timer that is due.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                return;
            }
            self.deadlines.remove(&(at, id));
            let Some(entry) = self.sessions.get_mut(&id) else { continue };
            entry.deadline = None;
            if entry.leaves_at.is_some_and(|at| at <= now) {
                self.remove(id);
                continue;
            }
            entry.machine.tick(now);
            self.settle(id);
        }
    }

    fn remove(&mut self, id: u32) {
        if let Some(entry) = self.sessions.remove(&id) {
            self.by_key.remove(&entry.key);
            self.outputs.push_back(Output::Gone { discriminator: id });
        }
    }

    /// Every session says AdminDown once more, for a unit that ends in order.
    pub(super) fn farewell(&mut self, now: Instant) {
        let ids: Vec<u32> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(entry) = self.sessions.get_mut(&id) else { continue };
            let settings = super::machine::Settings { admin_down: true, ..entry.machine.settings().clone() };
            entry.machine.update(now, settings);
            self.settle(id);
        }
    }

    /// Hands on what a machine wants done and enters its next deadline.
    fn settle(&mut self, id: u32) {
        let Some(entry) = self.sessions.get_mut(&id) else { return };
        while let Some(action) = entry.machine.next_action() {
            self.outputs.push_back(match action {
                Action::Send(frame) => Output::Send { discriminator: id, frame },
                Action::Changed { previous } => {
                    let status = Box::new(status(entry, id, entry.machine.changed_at()));
                    Output::Changed { previous, status }
                }
            });
        }
        let deadline = entry.machine.next_deadline().into_iter().chain(entry.leaves_at).min();
        if deadline != entry.deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, id));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, id));
            }
            entry.deadline = deadline;
        }
    }

    /// Every session, those that take their leave left out.
    pub(super) fn statuses(&self, now: Instant) -> Vec<SessionStatus> {
        let kept = self.by_key.values().filter_map(|id| Some((*id, self.sessions.get(id)?)));
        kept.filter(|(_, entry)| entry.leaves_at.is_none())
            .map(|(id, entry)| status(entry, id, now))
            .collect()
    }
}

fn status(entry: &Entry, id: u32, now: Instant) -> SessionStatus {
    let machine = &entry.machine;
    let (remote, counts) = (machine.remote(), machine.counts());
    let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let since = now.saturating_duration_since(machine.changed_at());
    SessionStatus {
        key: entry.key.clone(),
        state: machine.state(),
        diagnostic: machine.diagnostic(),
        reason: machine.diagnostic().text().to_owned(),
        remote_state: remote.state,
        remote_diagnostic: remote.diagnostic,
        discriminator: id,
        remote_discriminator: remote.discriminator,
        remote_control_plane_independent: remote.control_plane_independent,
        tx_interval_us: machine.transmit_interval().map_or(0, us),
        detection_time_us: us(machine.detection_time()),
        changed_ms: us(since) / 1000,
        ups: counts.ups,
        downs: counts.downs,
        received: counts.received,
        sent: counts.sent,
        unauthenticated: counts.unauthenticated,
    }
}
