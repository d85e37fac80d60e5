//! Which backends of other clusters this node probes, when, and what follows: sans-IO. The driver carries probes out.
//!
//! A backend is taken out after three failures in a row and comes back after two answers. All nodes probe for themselves,
//! since what is reachable from one need not be from another; so the time between two probes grows with the backends that
//! this node probes and with the nodes that probe one backend. Verdicts are not kept over a restart: each backend is probed
//! once as soon as that goes.

use crate::plan::BackendKey;
use crate::rows::{BackendState, Protocol, RemoteService, ServiceName, ServiceRow};
use crate::spread::Probe;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// Most probes under way at once.
const IN_FLIGHT_MAX: usize = 64;
/// Most backends that are probed; more are taken as they say.
const TARGETS_MAX: usize = 65_536;
/// Probes a second that a node sends, and that a backend gets from all nodes of this cluster, repeated ones among them.
const NODE_RATE: u64 = 50;
const BACKEND_RATE: u64 = 10;
/// Failures in a row that take a backend out, and answers that bring it back.
const FAILURES: u32 = 3;
const ANSWERS: u32 = 2;
/// The least wait between failures until one counts, so that an outage is noticed before the next period.
const RETRY: Duration = Duration::from_secs(1);

/// Intent: a backend that does not answer this node's probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedProbe {
    /// Always [`Source::Local`]: each node probes for itself.
    pub source: Source,
    /// The service that asks for it.
    pub service: ServiceName,
    /// The backend.
    pub backend: BackendKey,
    /// What went wrong when it was taken out.
    pub failure: Arc<str>,
}

impl Row for FailedProbe {
    type Key = Target;
    type Index = NoIndex;
    const TABLE: &'static str = "failed-probes";
    fn key(&self) -> Self::Key {
        (self.service.clone(), self.backend)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "ADDRESS", "PORT", "PROTOCOL", "FAILURE"]
    }
    fn cells(&self) -> Vec<String> {
        let (address, port, protocol) = self.backend;
        vec![
            self.service.namespace.to_string(),
            self.service.name.to_string(),
            address.to_string(),
            port.to_string(),
            protocol.to_string(),
            self.failure.to_string(),
        ]
    }
}

/// A backend that one service has probed.
pub type Target = (ServiceName, BackendKey);

/// The backends that a service has probed: those in other clusters that may take new flows, by TCP.
#[must_use]
pub fn targets<'a>(
    service: &ServiceRow,
    remote: impl IntoIterator<Item = &'a RemoteService>,
) -> BTreeSet<BackendKey> {
    let mut all = BTreeSet::new();
    if !service.global || service.spread.probe.is_none() {
        return all;
    }
    let wanted = |name: &Arc<str>| {
        service.ports.iter().any(|port| port.name == *name && port.protocol == Protocol::Tcp)
    };
    for row in remote {
        for (ip, backend) in row.backends.iter().filter(|(_, b)| b.state != BackendState::NotReady) {
            let ports = backend.ports.iter().filter(|p| p.protocol == Protocol::Tcp && wanted(&p.name));
            all.extend(ports.map(|port| (*ip, port.port, Protocol::Tcp)));
        }
    }
    all
}

/// How one backend is doing.
#[derive(Clone, Debug)]
struct Watched {
    due: Moment,
    in_flight: bool,
    failing: bool,
    /// Results in a row that speak against the present verdict.
    against: u32,
}

/// What is to be probed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whom, and for which service.
    pub target: Target,
    /// How.
    pub probe: Probe,
}

/// A verdict that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// New flows go elsewhere.
    Out(Target, Arc<str>),
    /// They may come again, or nobody asks any more.
    In(Target),
}

/// The schedule of a node's probes.
#[derive(Debug)]
pub struct Prober {
    services: BTreeMap<ServiceName, (Probe, BTreeSet<BackendKey>)>,
    watched: BTreeMap<Target, Watched>,
    /// Those that wait for their time.
    queue: BTreeSet<(Moment, Target)>,
    /// Those that there was no room to watch.
    waiting: BTreeSet<Target>,
    in_flight: usize,
    /// When the node may send the next one.
    paced: Moment,
    nodes: u64,
    random: u64,
}

impl Prober {
    /// Probes nothing yet; `seed` spreads nodes apart.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            services: BTreeMap::new(),
            watched: BTreeMap::new(),
            queue: BTreeSet::new(),
            waiting: BTreeSet::new(),
            in_flight: 0,
            paced: Moment::ZERO,
            nodes: 1,
            random: seed,
        }
    }

    /// How many nodes of this cluster probe like this one.
    pub fn set_nodes(&mut self, nodes: usize) {
        self.nodes = u64::try_from(nodes).unwrap_or(u64::MAX).max(1);
    }

    /// What a service wants now; `None` or nobody: nothing. What it does not want any more is forgotten.
    pub fn set_service(
        &mut self,
        name: &ServiceName,
        wanted: Option<(Probe, BTreeSet<BackendKey>)>,
        now: Moment,
    ) -> Vec<Verdict> {
        let wanted = wanted.filter(|(_, backends)| !backends.is_empty());
        let old = self.services.remove(name).map(|(_, backends)| backends).unwrap_or_default();
        let new = wanted.as_ref().map(|(_, backends)| backends.clone()).unwrap_or_default();
        let mut verdicts = Vec::new();
        for backend in old.difference(&new) {
            let target = (name.clone(), *backend);
            self.waiting.remove(&target);
            let Some(watched) = self.watched.remove(&target) else { continue };
            self.queue.remove(&(watched.due, target.clone()));
            if watched.failing {
                verdicts.push(Verdict::In(target));
            }
        }
        self.waiting.extend(new.difference(&old).map(|backend| (name.clone(), *backend)));
        self.services.extend(wanted.map(|wanted| (name.clone(), wanted)));
        self.watch(now);
        verdicts
    }

    /// Takes in those that wait, as far as there is room. What is new is probed once as soon as the rates allow.
    fn watch(&mut self, now: Moment) {
        let room = TARGETS_MAX.saturating_sub(self.watched.len()).min(self.waiting.len());
        let spread = self.all_once(room).max(self.all_nodes());
        for _ in 0..room {
            let Some(target) = self.waiting.pop_first() else { return };
            let due = now.after(self.part_of(spread));
            self.queue.insert((due, target.clone()));
            self.watched.insert(target, Watched { due, in_flight: false, failing: false, against: 0 });
        }
    }

    /// How long this node takes to probe all its backends and `more`.
    fn all_once(&self, more: usize) -> Duration {
        let all = u64::try_from(self.watched.len() + more).unwrap_or(u64::MAX);
        Duration::from_millis(all.saturating_mul(1000) / NODE_RATE)
    }

    /// How long all nodes take to probe one backend.
    const fn all_nodes(&self) -> Duration {
        Duration::from_millis(self.nodes.saturating_mul(1000) / BACKEND_RATE)
    }

    /// Uniform in `0..whole` (splitmix64).
    fn part_of(&mut self, whole: Duration) -> Duration {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = mixed ^ (mixed >> 31);
        let millis = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(mixed % millis)
    }

    /// The next probe that is due, if there is room for one more.
    pub fn next(&mut self, now: Moment) -> Option<Ask> {
        loop {
            if self.next_deadline().is_none_or(|due| due > now) {
                return None;
            }
            let (_, target) = self.queue.pop_first()?;
            let probe = self.services.get(&target.0).map(|(probe, _)| probe.clone());
            let (Some(watched), Some(probe)) = (self.watched.get_mut(&target), probe) else { continue };
            watched.in_flight = true;
            self.in_flight += 1;
            self.paced =
                self.paced.max(now).after(Duration::from_secs(1) / u32::try_from(NODE_RATE).unwrap_or(1));
            return Some(Ask { target, probe });
        }
    }

    /// When [`Self::next`] has something again, as far as time decides it.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let due = self.queue.first().map(|(due, _)| (*due).max(self.paced));
        due.filter(|_| self.in_flight < IN_FLIGHT_MAX)
    }

    /// Takes a probe's outcome: each ask is answered once.
    pub fn finish(&mut self, target: &Target, outcome: Result<(), String>, now: Moment) -> Option<Verdict> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let probe = self.services.get(&target.0).map(|(probe, _)| probe.clone())?;
        let period = probe.period.max(self.all_once(0)).max(self.all_nodes());
        // A tenth earlier or later, so that targets that fell together part again.
        let usual = period * 9 / 10 + self.part_of(period / 5);
        let soon = RETRY.max(self.all_nodes());
        let soon = soon + self.part_of(soon / 2);
        let watched = self.watched.get_mut(target).filter(|watched| watched.in_flight)?;
        watched.in_flight = false;
        let agrees = outcome.is_err() == watched.failing;
        watched.against = if agrees { 0 } else { watched.against + 1 };
        watched.due = now.after(if agrees { usual } else { usual.min(soon) });
        let needed = if watched.failing { ANSWERS } else { FAILURES };
        let verdict = (watched.against >= needed).then(|| {
            watched.against = 0;
            watched.failing = !watched.failing;
            watched.due = now.after(usual);
            match outcome {
                Err(failure) => Verdict::Out(target.clone(), failure.into()),
                Ok(()) => Verdict::In(target.clone()),
            }
        });
        self.queue.insert((watched.due, target.clone()));
        verdict
    }

    /// Backends that are probed, and those that fail.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.watched.len(), self.watched.values().filter(|watched| watched.failing).count())
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
