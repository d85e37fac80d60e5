//! A seeded model of an etcd with every fault, driving the core: when all is quiet, what is known equals the truth.

use super::*;
use crate::wire::{Kind, Record, key};
use std::collections::BTreeMap;
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::ids::IdentityId;
use tombolo_base::source::SourceState;

const CONFIG: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255}}"#;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Keys with values, every change kept until it is compacted.
struct Model {
    id: u64,
    revision: i64,
    compacted: i64,
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    log: Vec<(i64, KeyEvent)>,
    /// Contents by revision, for pages pinned to one.
    past: BTreeMap<i64, BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Model {
    fn new(id: u64) -> Self {
        let mut model = Self {
            id,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: Vec::new(),
            past: BTreeMap::new(),
        };
        model.past.insert(1, BTreeMap::new());
        model
    }

    fn header(&self) -> Header {
        Header { etcd: self.id, revision: self.revision }
    }

    fn put(&mut self, name: &str, value: &str) {
        self.revision += 1;
        let (name, value) = (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        self.keys.insert(name.clone(), value.clone());
        self.log.push((self.revision, KeyEvent::Put(name, value)));
        self.past.insert(self.revision, self.keys.clone());
    }

    fn delete(&mut self, name: &[u8]) {
        self.revision += 1;
        self.keys.remove(name);
        self.log.push((self.revision, KeyEvent::Delete(name.to_vec())));
        self.past.insert(self.revision, self.keys.clone());
    }

    fn compact(&mut self) {
        self.compacted = self.revision;
        let compacted = self.compacted;
        self.log.retain(|(revision, _)| *revision > compacted);
        self.past.retain(|revision, _| *revision >= compacted);
    }

    fn canaries(&mut self) {
        for kind in crate::wire::KINDS {
            self.put(&kind.canary(crate::wire::Layout::State, "c1"), "now");
        }
    }
}

fn ip_value(octet: u64, identity: u64) -> (String, String) {
    let name = format!("cilium/state/ip/v1/default/10.1.0.{octet}");
    (name, format!(r#"{{"IP":"10.1.0.{octet}","Mask":null,"HostIP":"192.0.2.1","ID":{identity},"Key":0}}"#))
}

fn identity_value(number: u64, app: u64) -> (String, String) {
    let name = format!("cilium/state/identities/v1/id/{}", 65_792 + number);
    (name, format!("k8s:app=a{app};k8s:io.cilium.k8s.policy.cluster=c1;"))
}

struct Watching {
    ticket: Ticket,
    prefix: String,
    next: i64,
    created: bool,
}

/// The driver's part, with delays and losses.
struct World {
    random: Random,
    now: Moment,
    etcd: Model,
    up: bool,
    core: Follower,
    waiting: Vec<Input>,
    lists: Vec<(Ticket, Scope, Vec<u8>, String, i64)>,
    watches: BTreeMap<Scope, Watching>,
    connected: bool,
    known: BTreeMap<String, Record>,
    state: SourceState,
    deleted_while_incomplete: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let name = |text| ClusterName::new(text).unwrap();
        let config = FollowerConfig {
            cluster: name("c1"),
            own_name: name("own"),
            own_id: Some(ClusterId::new(9, MaxClusters::C255).unwrap()),
            max: MaxClusters::C255,
            ids: IdBook::default(),
            seed,
            timers: Timers::default(),
        };
        Self {
            random: Random(seed | 1),
            now: Moment::ZERO,
            etcd: Model::new(100),
            up: true,
            core: Follower::new(config, Moment::ZERO),
            waiting: Vec::new(),
            lists: Vec::new(),
            watches: BTreeMap::new(),
            connected: false,
            known: BTreeMap::new(),
            state: SourceState::Pending,
            deleted_while_incomplete: 0,
        }
    }

    fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.handle(self.now, input, &mut out);
        for output in out {
            match output {
                Output::Connect => {
                    let text = "refused".to_owned();
                    let failed = Input::Disconnected(Failure { kind: FailureKind::Transport, text });
                    self.connected = self.up;
                    self.waiting.push(if self.up { Input::Connected } else { failed });
                }
                Output::Disconnect => self.lose(),
                Output::GetConfig(name) => {
                    let value = self.etcd.keys.get(name.as_bytes()).cloned();
                    self.waiting.push(Input::Config(self.etcd.header(), value));
                }
                Output::List { ticket, scope, from, prefix, revision } => {
                    self.lists.push((ticket, scope, from, prefix, revision));
                }
                Output::Watch { ticket, scope, prefix, revision } => {
                    let watching = Watching { ticket, prefix, next: revision, created: false };
                    self.watches.insert(scope, watching);
                }
                Output::Change(Change::Upsert(record)) => {
                    self.known.insert(name(&record), record);
                }
                Output::Change(Change::Delete(record)) => {
                    self.known.remove(&name(&record));
                }
                Output::State(state) => self.state = state,
                Output::Gone => self.connected = false,
            }
        }
    }

    /// Answers of the connection do not arrive any more.
    fn lose(&mut self) {
        self.connected = false;
        self.waiting.clear();
        self.lists.clear();
        self.watches.clear();
    }

    fn broken(&mut self) {
        if self.connected {
            let text = "broken".to_owned();
            self.lose();
            self.feed(Input::Disconnected(Failure { kind: FailureKind::Transport, text }));
        }
    }

    /// One step of the world: something changes, something is delivered, or something breaks.
    fn step(&mut self, faults: bool) {
        self.now = self.now.after(Duration::from_millis(self.random.below(400)));
        match self.random.below(12) {
            0..=3 if faults => self.change(),
            4 if faults && self.random.once_in(6) => self.fault(),
            5..=6 => self.answer_list(),
            7..=8 => self.deliver_events(),
            _ if !self.waiting.is_empty() => {
                let input = self.waiting.remove(0);
                self.feed(input);
            }
            _ => {}
        }
        if self.now >= self.core.next_deadline() {
            self.feed(Input::Tick);
        }
    }

    fn change(&mut self) {
        let octet = 1 + self.random.below(40);
        let (number, app) = (self.random.below(20), self.random.below(5));
        let (ip, ip_text) = ip_value(octet, 65_792 + number);
        let (identity, labels) = identity_value(number, app);
        match self.random.below(6) {
            0 | 1 => self.etcd.put(&ip, &ip_text),
            2 => self.etcd.put(&identity, &labels),
            3 => self.etcd.delete(ip.as_bytes()),
            4 => self.etcd.delete(identity.as_bytes()),
            _ => self.etcd.put(key::HEARTBEAT, "now"),
        }
    }

    fn fault(&mut self) {
        match self.random.below(6) {
            0 => self.broken(),
            1 => self.etcd.compact(),
            2 => {
                self.up = false;
                self.broken();
            }
            3 => self.up = true,
            4 => self.wipe(),
            // A load balancer switches to another etcd with the same content but other revisions.
            _ => {
                let mut other = Model::new(self.etcd.id + 1);
                other.revision = 1 + i64::try_from(self.random.below(5_000)).unwrap();
                other.past.insert(other.revision, BTreeMap::new());
                for (name, value) in self.etcd.keys.clone() {
                    other.put(std::str::from_utf8(&name).unwrap(), std::str::from_utf8(&value).unwrap());
                }
                other.compact();
                self.etcd = other;
                self.watches.clear();
                self.broken();
            }
        }
    }

    /// Emptied and filled again, canaries last; the id stays, as it does for an etcd with the same flags.
    fn wipe(&mut self) {
        let content = std::mem::take(&mut self.etcd.keys);
        self.etcd = Model::new(self.etcd.id);
        self.broken();
        let before = self.known.len();
        for (name, value) in content.iter().filter(|(name, _)| !name.starts_with(b"cilium/synced/")) {
            self.etcd.put(std::str::from_utf8(name).unwrap(), std::str::from_utf8(value).unwrap());
            if self.random.once_in(4) {
                self.quiet_step();
            }
        }
        for _ in 0..self.random.below(30) {
            self.quiet_step();
        }
        self.deleted_while_incomplete += before.saturating_sub(self.known.len());
        self.etcd.canaries();
    }

    fn quiet_step(&mut self) {
        self.step(false);
    }

    fn answer_list(&mut self) {
        if self.lists.is_empty() || !self.up {
            return;
        }
        let at = usize::try_from(self.random.below(u64::try_from(self.lists.len()).unwrap())).unwrap();
        let (ticket, scope, from, prefix, revision) = self.lists.remove(at);
        let content = if revision == 0 { Some(&self.etcd.keys) } else { self.etcd.past.get(&revision) };
        let Some(content) = content else {
            let kind =
                if revision > self.etcd.revision { FailureKind::Other } else { FailureKind::Compacted };
            self.feed(Input::ListFailed(ticket, scope, Failure { kind, text: "gone".to_owned() }));
            return;
        };
        let inside = |name: &&Vec<u8>| name.starts_with(prefix.as_bytes());
        let mut found = content.range(from..).filter(|(name, _)| inside(name));
        // Pages of three, so that every list has several.
        let entries: Vec<_> = found.by_ref().take(3).map(|(n, v)| (n.clone(), v.clone())).collect();
        let more = found.next().is_some();
        let header = self.etcd.header();
        self.waiting.push(Input::Page { ticket, scope, header, entries, more });
    }

    fn deliver_events(&mut self) {
        let scopes: Vec<Scope> = self.watches.keys().copied().collect();
        if scopes.is_empty() || !self.up {
            return;
        }
        let at = usize::try_from(self.random.below(u64::try_from(scopes.len()).unwrap())).unwrap();
        let scope = scopes[at];
        let Some(watching) = self.watches.get_mut(&scope) else { return };
        let ticket = watching.ticket;
        let header = self.etcd.header();
        if watching.next <= self.etcd.compacted {
            self.watches.remove(&scope);
            let failure = Failure { kind: FailureKind::Compacted, text: "compacted".to_owned() };
            self.waiting.push(Input::WatchEnded(ticket, scope, failure));
            return;
        }
        let due = |(revision, event): &&(i64, KeyEvent)| {
            let (KeyEvent::Put(name, _) | KeyEvent::Delete(name)) = event;
            *revision >= watching.next && name.starts_with(watching.prefix.as_bytes())
        };
        let events: Vec<KeyEvent> =
            self.etcd.log.iter().filter(due).map(|(_, event)| event.clone()).collect();
        if events.is_empty() && watching.created {
            return;
        }
        watching.created = true;
        watching.next = watching.next.max(header.revision + 1);
        self.waiting.push(Input::Events(ticket, scope, header, events));
    }

    fn truth(&self) -> BTreeMap<String, Record> {
        let remote = crate::wire::Remote {
            name: ClusterName::new("c1").unwrap(),
            id: ClusterId::new(1, MaxClusters::C255).unwrap(),
            max: MaxClusters::C255,
            own: false,
        };
        let mut truth = BTreeMap::new();
        for (key, value) in &self.etcd.keys {
            for kind in crate::wire::KINDS {
                let prefix = kind.prefix(crate::wire::Layout::State, "c1");
                let Some(rest) = key.strip_prefix(prefix.as_bytes()) else { continue };
                let found = Record::decode(&remote, kind, std::str::from_utf8(rest).unwrap(), value);
                let record = found.unwrap().unwrap();
                truth.insert(name(&record), record);
            }
        }
        truth
    }
}

fn name(record: &Record) -> String {
    match record {
        Record::Ip(entry) => entry.key_name(),
        Record::Identity(IdentityId(number), _) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// Steps until ready and current, with heartbeats and no faults.
fn settle(world: &mut World) {
    world.up = true;
    for round in 0..200_000 {
        if round % 100 == 0 {
            world.etcd.put(key::HEARTBEAT, "now");
        }
        world.quiet_step();
        let idle = world.waiting.is_empty() && world.lists.is_empty();
        if idle && world.state == SourceState::Initialized && world.known == world.truth() {
            return;
        }
    }
    panic!("not settled: {:?}", world.core.status(world.now));
}

#[test]
fn after_any_faults_what_is_known_is_the_truth() {
    for seed in 1..=60 {
        let mut world = World::new(seed * 7919);
        world.etcd.put(&key::cluster_config("c1"), CONFIG);
        for number in 0..10 {
            let (name, value) = identity_value(number, number);
            world.etcd.put(&name, &value);
        }
        world.etcd.canaries();
        for _ in 0..6 {
            for _ in 0..400 {
                world.step(true);
            }
            settle(&mut world);
        }
        assert_eq!(world.known, world.truth(), "seed {seed}");
        assert_eq!(world.deleted_while_incomplete, 0, "seed {seed}: deleted before the canaries");
    }
}

fn ready() -> World {
    let mut world = World::new(42);
    world.etcd.put(&key::cluster_config("c1"), CONFIG);
    let (name, value) = ip_value(1, 65_792);
    world.etcd.put(&name, &value);
    world.etcd.canaries();
    settle(&mut world);
    world
}

#[test]
fn a_denied_range_is_not_asked_for_in_a_loop() {
    let mut world = ready();
    let scope = Scope::Entries(Kind::Ips);
    let ticket = world.watches[&scope].ticket;
    let failure = Failure { kind: FailureKind::Denied, text: "permission denied; give it a role".to_owned() };
    world.feed(Input::WatchEnded(ticket, scope, failure));
    assert!(world.lists.is_empty(), "no new list at once");
    assert!(world.core.status(world.now).status.contains("role"));
    assert_eq!(world.known.len(), 1);
}

#[test]
fn a_silent_heartbeat_ends_the_connection_and_keeps_everything() {
    let mut world = ready();
    let before = world.core.status(world.now).reconnections;
    let start = world.now;
    while world.core.status(world.now).reconnections == before {
        world.now = world.core.next_deadline();
        world.feed(Input::Tick);
    }
    let waited = world.now.since(start).as_secs();
    assert!((120..180).contains(&waited), "two minutes and three checks, not {waited} s");
    let status = world.core.status(world.now);
    assert!(status.reconnections > before && !status.ready, "{status:?}");
    assert!(status.last_failure.is_some_and(|failure| failure.text.contains("heartbeat")));
    assert_eq!((world.known.len(), world.state), (1, SourceState::Stale));
}

#[test]
fn a_resync_counts_what_changed_meanwhile_and_no_more() {
    let mut world = ready();
    let applied = |world: &World| world.core.status(world.now).applied[&Kind::Ips];
    assert_eq!(applied(&world), Applied { upserts: 1, deletes: 0 });
    world.broken();
    world.now = world.now.after(Duration::from_secs(7));
    assert!(world.core.status(world.now).stale_secs.is_some_and(|secs| secs >= 7));
    settle(&mut world);
    assert_eq!(
        (applied(&world), world.state),
        (Applied { upserts: 1, deletes: 0 }, SourceState::Initialized)
    );
    assert_eq!(world.core.status(world.now).stale_secs, None);
    world.broken();
    let (gone, _) = ip_value(1, 65_792);
    let (name, value) = ip_value(2, 65_793);
    world.etcd.delete(gone.as_bytes());
    world.etcd.put(&name, &value);
    settle(&mut world);
    assert_eq!(applied(&world), Applied { upserts: 2, deletes: 1 });
}

#[test]
fn a_late_page_of_an_earlier_list_counts_no_more() {
    let mut world = ready();
    let scope = Scope::Entries(Kind::Ips);
    let old = world.watches[&scope].ticket;
    let failure = Failure { kind: FailureKind::Compacted, text: "compacted".to_owned() };
    world.feed(Input::WatchEnded(old, scope, failure));
    let header = world.etcd.header();
    world.feed(Input::Page { ticket: old, scope, header, entries: Vec::new(), more: false });
    assert_eq!(world.known.len(), 1, "an empty late page would have deleted everything");
    settle(&mut world);
}

#[test]
fn a_new_id_drains_and_a_taken_id_is_refused() {
    let mut world = ready();
    world.etcd.put(&key::cluster_config("c1"), &CONFIG.replace("\"id\":1", "\"id\":2"));
    world.broken();
    for _ in 0..2_000 {
        world.quiet_step();
    }
    assert!(
        world.known.is_empty(),
        "what was known under the old id is gone; the entries do not fit the new one"
    );
    let status = world.core.status(world.now);
    assert_eq!(status.config.cluster_id, Some(2));
    assert!(status.rejected.of(crate::wire::Reason::IdentityRange) > 0, "{status:?}");
    let book = IdBook::default();
    let name = |text| ClusterName::new(text).unwrap();
    let id = ClusterId::new(3, MaxClusters::C255).unwrap();
    book.reserve(&name("x"), id).unwrap();
    assert_eq!(book.reserve(&name("y"), id), Err(name("x")));
    book.release(&name("x"));
    assert_eq!(book.reserve(&name("y"), id), Ok(()));
}

#[test]
fn removal_drains_everything_and_restored_entries_are_stale() {
    let mut world = ready();
    let mut out = Vec::new();
    world.core.drain(&mut out);
    let deletes = out.iter().filter(|output| matches!(output, Output::Change(Change::Delete(_)))).count();
    assert_eq!((deletes, out.last()), (1, Some(&Output::Gone)));
    let mut again = World::new(7);
    let (name, value) = ip_value(9, 65_800);
    let entry = (Kind::Ips, name.rsplit('/').next().unwrap(), value.as_bytes());
    let mut out = Vec::new();
    again.core.restore(ClusterId::new(1, MaxClusters::C255).unwrap(), [entry], &mut out);
    assert!(
        matches!(&out[..], [Output::Change(Change::Upsert(_)), Output::State(SourceState::Stale)]),
        "{out:?}"
    );
}
