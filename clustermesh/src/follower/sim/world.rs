//! Several clusters at once, and what can happen to them.

use super::etcd::{Etcd, text_of};
use super::random::Random;
use super::site::{ALL, Site};
use crate::follower::{FailureKind, IdBook, Limits, Scope};
use crate::wire::{ExportMode, Kind, Layout, key};
use std::collections::BTreeMap;
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

/// What can happen to a cluster's etcd or on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The connection breaks.
    Cut,
    /// Everything before now is compacted.
    Compaction,
    /// etcd is not reachable, until another such fault.
    Outage,
    /// etcd restarts with its data.
    Restart,
    /// etcd restarts empty; its id stays, as it does with the same flags.
    Wipe,
    /// etcd restarts with the data of an earlier time.
    Restore,
    /// A backup is taken.
    Backup,
    /// The lease of some entries ends.
    LeaseLoss,
    /// Another etcd with the same entries answers at the address; the connection may not notice.
    Swap,
    /// A range may not be read any more, or may be again.
    Permission,
    /// The members have no leader, until another such fault.
    LeaderLoss,
    /// Nobody publishes for a while, no heartbeat either.
    Silence,
    /// The cluster gets another number.
    NewId,
    /// The cluster publishes its backends in another form.
    NewForm,
    /// Time passes without anything happening.
    Pause,
    /// Certificates were renewed: a second connection takes the place of the first.
    Renewal,
}

const FAULTS: [Fault; 16] = [
    Fault::Cut,
    Fault::Compaction,
    Fault::Outage,
    Fault::Restart,
    Fault::Wipe,
    Fault::Restore,
    Fault::Backup,
    Fault::LeaseLoss,
    Fault::Swap,
    Fault::Permission,
    Fault::LeaderLoss,
    Fault::Silence,
    Fault::NewId,
    Fault::NewForm,
    Fault::Pause,
    Fault::Renewal,
];

/// How often a heartbeat is written.
const HEARTBEAT: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: Moment,
    pub(crate) sites: Vec<Site>,
    next_heartbeat: Moment,
    next_etcd: u64,
    next_id: u32,
    pub(crate) faults: BTreeMap<Fault, u64>,
}

impl World {
    /// Clusters named `c1`, `c2`, … with these numbers.
    pub(crate) fn new(seed: u64, clusters: u32, limits: Limits) -> Self {
        let ids = IdBook::default();
        let site = |id: u32| Site::new(&format!("c{id}"), id, seed.wrapping_add(id.into()), &ids, limits);
        Self {
            random: Random::new(seed),
            now: Moment::ZERO,
            sites: (1..=clusters).map(site).collect(),
            next_heartbeat: Moment::ZERO,
            next_etcd: 1,
            next_id: 20,
            faults: BTreeMap::new(),
        }
    }

    /// One step: something is published, asked, told, or breaks.
    pub(crate) fn step(&mut self, faults: bool) {
        let time = Duration::from_millis(self.random.below(150));
        self.pass(time);
        let at = self.random.index(self.sites.len());
        let site = &mut self.sites[at];
        match self.random.below(20) {
            0 | 1 if faults => self.change(at),
            2 if faults && self.random.once_in(10) => self.fault(at),
            0..=5 => site.publish(),
            6..=11 => site.tell(&mut self.random),
            _ => site.work(self.now, &mut self.random),
        }
    }

    /// Time passes; heartbeats are written, deadlines kept.
    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        if self.now >= self.next_heartbeat {
            self.next_heartbeat = self.now.after(HEARTBEAT);
            for site in self.sites.iter_mut().filter(|site| site.up && site.leader && site.publishing) {
                site.etcd.put(key::HEARTBEAT, &format!("time {}", self.now.since_origin().as_millis()));
            }
        }
        for site in &mut self.sites {
            if self.now >= site.core.next_deadline() {
                site.feed(self.now, crate::follower::Input::Tick);
            }
        }
    }

    /// Somebody in the cluster changes what it wants published.
    pub(crate) fn change(&mut self, at: usize) {
        let random = &mut self.random;
        let site = &mut self.sites[at];
        let (key, value) = match random.below(10) {
            0..=3 => ip(site.id, random.below(40), random.below(20)),
            4 | 5 => identity(&site.name, site.id, random.below(20), random.below(5)),
            6 => node(&site.name, site.id, random.below(4), random.below(3)),
            7 => service(&site.name, site.id, random.below(5), random.below(9)),
            8 => slice(&site.name, site.id, random.below(5), random.below(9)),
            _ => export(&site.name, random.below(5), random.below(9)),
        };
        if random.once_in(3) {
            site.want.remove(&key);
        } else {
            site.want.insert(key, value);
        }
    }

    fn fault(&mut self, at: usize) {
        let fault = FAULTS[self.random.index(FAULTS.len())];
        // What changes everything is rarer, or nothing else would have time to happen.
        let rare = matches!(fault, Fault::NewId | Fault::Pause | Fault::Wipe | Fault::Restore | Fault::Swap);
        if !rare || self.random.once_in(3) {
            self.cause(at, fault);
        }
    }

    /// That happens now.
    pub(crate) fn cause(&mut self, at: usize, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
        let now = self.now;
        let site = &mut self.sites[at];
        let revision = site.etcd.revision;
        site.note(|| format!("{fault:?} at revision {revision}"));
        match fault {
            Fault::Cut => site.broken(now),
            Fault::Compaction => site.etcd.compact(),
            Fault::Outage => {
                site.up = !site.up;
                if !site.up {
                    site.broken(now);
                }
            }
            Fault::Restart => {
                let mut etcd = site.etcd.clone();
                etcd.term += 1;
                site.live_again(etcd);
            }
            Fault::Wipe => {
                let etcd = Etcd::new(site.etcd.id);
                site.live_again(etcd);
            }
            Fault::Backup => site.backup = Some(site.etcd.clone()),
            Fault::Restore => {
                if let Some(mut etcd) = site.backup.clone() {
                    etcd.term = 2;
                    site.live_again(etcd);
                    site.excuse_missing();
                    // The configuration of that time may carry the number of that time.
                    if !site.is_configured() {
                        site.excuse_all();
                    }
                }
            }
            Fault::LeaseLoss => self.lose_lease(at),
            Fault::Swap => self.swap(at),
            Fault::Permission => self.permission(at),
            Fault::LeaderLoss => {
                site.leader = !site.leader;
                if !site.leader {
                    site.end_watches(FailureKind::NoLeader, |_| true);
                }
            }
            Fault::Silence => site.publishing = !site.publishing,
            Fault::NewId => self.new_id(at),
            Fault::NewForm => {
                let modes = [ExportMode::Services, ExportMode::ServicesAndSlices, ExportMode::SlicesOnly];
                site.mode = modes[self.random.index(modes.len())];
            }
            Fault::Renewal => site.renewed(now),
            Fault::Pause => {
                let minutes = 1 + self.random.below(25);
                self.pause(Duration::from_secs(60 * minutes));
            }
        }
    }

    /// Time passes in the steps that deadlines ask for.
    fn pause(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            let next = self.sites.iter().map(|site| site.core.next_deadline()).min();
            let next = next.unwrap_or(end).min(self.next_heartbeat).min(end);
            self.pass(next.since(self.now).max(Duration::from_millis(1)));
            for site in &mut self.sites {
                site.work(self.now, &mut self.random);
            }
        }
    }

    fn lose_lease(&mut self, at: usize) {
        let (random, site) = (&mut self.random, &mut self.sites[at]);
        if !site.up || !site.leader {
            return;
        }
        let some = 1 + random.below(4);
        let canaries = random.once_in(2);
        let leased = |key: &str| !key.contains("/identities/") && (canaries || !key.contains("/synced/"));
        let keys: Vec<String> = site.etcd.content().map(|(key, _)| key.to_owned()).collect();
        let keys: Vec<String> = keys.into_iter().filter(|key| leased(key) && random.once_in(some)).collect();
        site.etcd.delete(&keys);
        site.excuse();
    }

    /// A load balancer turns to another etcd: same entries, other revisions, other id.
    fn swap(&mut self, at: usize) {
        let (random, site) = (&mut self.random, &mut self.sites[at]);
        self.next_etcd += 1;
        let mut other = Etcd::new(u64::from(site.id) * 1000 + self.next_etcd);
        other.revision += i64::try_from(random.below(3_000)).unwrap();
        let content: Vec<(String, String)> =
            site.etcd.content().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let (canaries, entries): (Vec<_>, Vec<_>) =
            content.into_iter().partition(|(key, _)| key.contains("/synced/"));
        for (key, value) in entries.iter().chain(&canaries) {
            other.put(key, value);
        }
        site.backup = None;
        site.etcd = other;
        site.excuse_missing();
        if random.once_in(2) {
            site.broken(self.now);
        }
    }

    fn permission(&mut self, at: usize) {
        let (random, site) = (&mut self.random, &mut self.sites[at]);
        let scope = Scope::Entries(ALL[random.index(ALL.len())]);
        if !site.denied.remove(&scope) {
            site.denied.insert(scope);
            site.end_watches(FailureKind::Denied, |other| other == scope);
        }
    }

    fn new_id(&mut self, at: usize) {
        let site = &mut self.sites[at];
        self.next_id = if self.next_id >= 250 { 20 } else { self.next_id + 1 };
        site.id = self.next_id;
        site.want.clear();
        site.excuse_all();
        for _ in 0..10 {
            self.change(at);
        }
    }

    /// Faults end; steps until every table is the truth, and it stays so.
    pub(crate) fn settle(&mut self) -> u64 {
        for site in &mut self.sites {
            (site.up, site.leader, site.publishing) = (true, true, true);
            site.denied.clear();
        }
        for steps in 0..200_000 {
            self.step(false);
            let idle = self.sites.iter().all(|site| !site.is_busy() && site.is_published());
            if idle && self.is_true() {
                self.sites.iter_mut().for_each(Site::excuse_none);
                return steps;
            }
            if idle && self.sites.iter().all(Site::is_caught_up) {
                let next = self.sites.iter().map(|site| site.core.next_deadline()).min();
                let next = next.unwrap_or(self.now).min(self.next_heartbeat);
                self.pass(next.since(self.now));
            }
        }
        panic!("not settled: {}", self.differences());
    }

    fn is_true(&self) -> bool {
        self.sites.iter().all(|site| {
            site.state == SourceState::Initialized && site.is_caught_up() && site.known == site.truth()
        })
    }

    fn differences(&self) -> String {
        let mut text = String::new();
        for site in &self.sites {
            let truth = site.truth();
            let missing: Vec<_> = truth.keys().filter(|row| !site.known.contains_key(row)).collect();
            let ghosts: Vec<_> = site.known.keys().filter(|row| !truth.contains_key(row)).collect();
            let old: Vec<_> = truth
                .iter()
                .filter(|(row, record)| site.known.get(row).is_some_and(|k| k != *record))
                .collect();
            text += &format!(
                "\n{}: {:?} missing {missing:?} ghosts {ghosts:?} old {old:?} status {:?}",
                site.name,
                site.state,
                site.core.status(self.now)
            );
        }
        text
    }
}

fn key_of(kind: Kind, cluster: &str, name: &str) -> String {
    format!("{}{name}", kind.prefix(Layout::State, cluster))
}

/// An address in every second case of the other family.
pub(crate) fn ip(id: u32, host: u64, identity: u64) -> (String, String) {
    let address =
        if host.is_multiple_of(2) { format!("10.{id}.0.{host}") } else { format!("fd00:{id:x}::{host:x}") };
    let number = (u64::from(id) << 16) + 256 + identity;
    let value = format!(r#"{{"IP":"{address}","Mask":null,"HostIP":"192.0.2.1","ID":{number},"Key":0}}"#);
    (key_of(Kind::Ips, "", &address), value)
}

pub(crate) fn identity(cluster: &str, id: u32, number: u64, app: u64) -> (String, String) {
    let number = (u64::from(id) << 16) + 256 + number;
    let value = format!("k8s:app=a{app};k8s:io.cilium.k8s.policy.cluster={cluster};");
    (key_of(Kind::Identities, cluster, &number.to_string()), value)
}

fn node(cluster: &str, id: u32, number: u64, label: u64) -> (String, String) {
    let mut node = crate::wire::Node::new(cluster, id, &format!("n{number}"));
    node.labels = [("rack".into(), format!("r{label}").into())].into_iter().collect();
    let value = String::from_utf8(node.encode().unwrap()).unwrap();
    (key_of(Kind::Nodes, cluster, &format!("n{number}")), value)
}

pub(crate) fn service(cluster: &str, id: u32, number: u64, backend: u64) -> (String, String) {
    let name = format!("s{number}");
    let mut service = crate::wire::Service::new(cluster, id, "shop", &name);
    service.backends.insert(format!("10.{id}.0.{backend}").parse().unwrap(), BTreeMap::new());
    (service.include_external, service.shared) = (true, true);
    let value = String::from_utf8(service.encode().unwrap()).unwrap();
    (key_of(Kind::Services, cluster, &format!("shop/{name}")), value)
}

/// A slice of the service of the same number.
fn slice(cluster: &str, id: u32, number: u64, backend: u64) -> (String, String) {
    let name = format!("s{number}-a");
    let mut slice = crate::wire::EndpointSlice::new(cluster, id, "shop", &name, true);
    slice.labels.insert(crate::wire::slice::SERVICE_LABEL.into(), format!("s{number}").into());
    slice.endpoints.push(crate::wire::slice::Endpoint {
        addresses: vec![format!("10.{id}.0.{backend}").parse().unwrap()],
        ..Default::default()
    });
    (key_of(Kind::EndpointSlices, cluster, &format!("shop/{name}")), text_of(&slice.encode()))
}

fn export(cluster: &str, number: u64, age: u64) -> (String, String) {
    let name = format!("s{number}");
    let created = 1_700_000_000 + i64::try_from(age).unwrap();
    let export = crate::wire::ServiceExport::new(cluster, "shop", &name, created);
    let value = String::from_utf8(export.encode().unwrap()).unwrap();
    (key_of(Kind::ServiceExports, cluster, &format!("shop/{name}")), value)
}
