//! A mirror whose relay does not confirm it: what is kept, for how long it counts, and when it goes.

use super::*;
use crate::wire::{Kind, Layout, key};
use std::collections::BTreeMap;
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

/// A follower of `c1` and the etcd that holds its mirror; every request is answered at once.
struct Rig {
    core: Follower,
    now: Moment,
    etcd: BTreeMap<String, (String, i64)>,
    revision: i64,
    watches: BTreeMap<Scope, (Ticket, String, i64)>,
    known: BTreeMap<(Kind, String), ()>,
    state: SourceState,
    listed: usize,
}

const READY: &str = r#"{"relay":"r1","connected":true,"ready":true,"status":"ready"}"#;

fn lost(stale_secs: u64) -> String {
    format!(
        r#"{{"relay":"r1","connected":false,"ready":false,"stale-secs":{stale_secs},"status":"refused"}}"#
    )
}

fn node(n: u8) -> (String, String) {
    let key = Kind::Nodes.key(Layout::Cache, "c1", &format!("n{n}"));
    (key, format!(r#"{{"Name":"n{n}","Cluster":"c1","ClusterID":1}}"#))
}

fn service() -> (String, String) {
    let text = r#"{"cluster":"c1","namespace":"shop","name":"web","shared":true,"clusterID":1}"#;
    (Kind::Services.key(Layout::Cache, "c1", "shop/web"), text.to_owned())
}

impl Rig {
    fn new() -> Self {
        let cluster = |text| ClusterName::new(text).unwrap();
        let now = Moment::from_origin(Duration::from_secs(5000));
        let mut rig = Self {
            core: Follower::new(FollowerConfig::new(cluster("c1"), cluster("own")), now),
            now,
            etcd: BTreeMap::new(),
            revision: 1,
            watches: BTreeMap::new(),
            known: BTreeMap::new(),
            state: SourceState::Pending,
            listed: 0,
        };
        let caps = r#"{"id":1,"capabilities":{"cached":true,"syncedCanaries":true}}"#;
        rig.put(key::cluster_config("c1"), caps);
        rig.put(key::HEARTBEAT.to_owned(), "1");
        for kind in crate::wire::KINDS {
            rig.put(kind.canary(Layout::Cache, "c1"), "now");
        }
        rig.put(key::relay_leases("c1"), "[1]");
        rig
    }

    fn header(&self) -> Header {
        Header { etcd: 7, revision: self.revision, term: 1 }
    }

    /// Written, and told to whoever watches.
    fn put(&mut self, key: String, value: &str) {
        self.revision += 1;
        self.etcd.insert(key.clone(), (value.to_owned(), self.revision));
        self.tell(&key, KeyEvent::Put(key.clone().into_bytes(), value.as_bytes().to_vec()));
    }

    fn remove(&mut self, key: &str) {
        self.revision += 1;
        self.etcd.remove(key);
        self.tell(key, KeyEvent::Delete(key.as_bytes().to_vec()));
    }

    fn tell(&mut self, key: &str, event: KeyEvent) {
        let watched = self.watches.iter().find(|(_, (_, prefix, _))| key.starts_with(prefix.as_str()));
        let Some((scope, (ticket, ..))) = watched.map(|(scope, watch)| (*scope, watch.clone())) else {
            return;
        };
        let (header, seen) = (self.header(), self.revision);
        self.feed(Input::Events { ticket, scope, header, seen, events: vec![event] });
    }

    fn feed(&mut self, input: Input) {
        let mut out = Vec::new();
        self.core.handle(self.now, input, &mut out);
        for output in out {
            self.answer(output);
        }
    }

    fn answer(&mut self, output: Output) {
        match output {
            Output::Connect => self.feed(Input::Connected),
            Output::Disconnect => self.watches.clear(),
            Output::GetConfig(key) => {
                let value = self.etcd.get(&key).map(|(value, _)| value.clone().into_bytes());
                self.feed(Input::Config(self.header(), value));
            }
            Output::Prove(_) => {
                let found =
                    self.etcd.get(key::HEARTBEAT).map(|(value, at)| (*at, value.clone().into_bytes()));
                self.feed(Input::Proof(self.header(), found));
            }
            Output::List { ticket, scope, prefix, .. } => {
                self.listed += usize::from(matches!(scope, Scope::Entries(_)));
                let below = self.etcd.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
                let bytes = |text: &String| text.clone().into_bytes();
                let entries = below.map(|(key, (value, _))| (bytes(key), bytes(value))).collect();
                self.feed(Input::Page { ticket, scope, header: self.header(), entries, more: false });
            }
            Output::Watch { ticket, scope, prefix, revision } => {
                self.watches.insert(scope, (ticket, prefix, revision));
                let header = self.header();
                self.feed(Input::Events { ticket, scope, header, seen: 0, events: Vec::new() });
            }
            Output::Change(Change::Upsert(record)) => {
                self.known.insert((record.kind(), record.key_name()), ());
            }
            Output::Change(Change::Delete(record)) => {
                self.known.remove(&(record.kind(), record.key_name())).unwrap();
            }
            Output::State(state) => self.state = state,
            Output::News(_) | Output::Gone => panic!("{output:?}"),
        }
    }

    /// The connection breaks; what is told meanwhile is told by the next one.
    fn cut(&mut self) {
        let text = "broken".to_owned();
        self.feed(Input::Disconnected(Failure { kind: FailureKind::Transport, text }));
    }

    fn reconnect(&mut self) {
        self.now = self.core.next_deadline();
        self.feed(Input::Tick);
    }

    fn status(&self) -> ClusterStatus {
        self.core.status(self.now)
    }

    fn has(&self, kind: Kind) -> bool {
        self.known.keys().any(|(known, _)| *known == kind)
    }
}

#[test]
fn a_mirror_that_nobody_confirms_takes_nothing_away_until_somebody_does() {
    let mut rig = Rig::new();
    let (n1, text) = node(1);
    rig.put(n1.clone(), &text);
    rig.put(key::relay_status("c1"), READY);
    rig.feed(Input::Tick);
    assert!(rig.status().ready && rig.state == SourceState::Initialized && rig.has(Kind::Nodes));
    assert_eq!(rig.status().status, "ready, through a relay");
    // The relay loses the cluster while this agent is away, and an older mirror lacks the node.
    rig.cut();
    rig.remove(&n1);
    rig.put(key::relay_status("c1"), &lost(10));
    rig.etcd.get_mut(key::HEARTBEAT).unwrap().0 = "another history".to_owned();
    rig.reconnect();
    let told = rig.status();
    assert!(told.connected && !told.ready && rig.has(Kind::Nodes), "{told:?}");
    assert!(told.status.contains("r1 does not confirm it: refused"), "{}", told.status);
    assert_eq!((rig.state, told.stale_secs), (SourceState::Stale, Some(10)));
    // The connection breaks again and is taken up with a proof: what was kept is not taken for listed.
    rig.put(key::HEARTBEAT.to_owned(), "2");
    rig.cut();
    rig.reconnect();
    assert!(rig.has(Kind::Nodes) && !rig.status().ready);
    rig.put(key::relay_status("c1"), READY);
    assert!(rig.status().ready && !rig.has(Kind::Nodes), "now it is known to be gone");
}

#[test]
fn what_was_only_watched_meanwhile_is_not_listed_again() {
    let mut rig = Rig::new();
    rig.put(key::relay_status("c1"), READY);
    rig.feed(Input::Tick);
    let listed = rig.listed;
    rig.put(key::relay_status("c1"), &lost(0));
    let (n1, text) = node(1);
    rig.put(n1, &text);
    assert!(!rig.status().ready && rig.has(Kind::Nodes), "what is told is taken");
    rig.put(key::relay_status("c1"), READY);
    assert!(rig.status().ready && rig.listed == listed);
    // Without a relay the mirror is not kept up; without a trace of one it is another program's.
    rig.remove(&key::relay_status("c1"));
    assert!(rig.status().status.contains("no relay is elected") && !rig.status().ready);
    rig.remove(&key::relay_leases("c1"));
    assert!(rig.status().ready && rig.status().relay.is_none());
    let (ticket, ..) = rig.watches[&Scope::Relay].clone();
    let text = "permission denied".to_owned();
    rig.feed(Input::WatchEnded(ticket, Scope::Relay, Failure { kind: FailureKind::Denied, text }));
    assert!(rig.status().ready, "who may not hear the relay reads all the same");
    assert!(rig.status().relay.unwrap().status.contains("may not read"));
}

#[test]
fn a_cluster_that_its_relay_removes_is_told_so_and_is_never_ready() {
    let mut rig = Rig::new();
    let (n1, text) = node(1);
    rig.put(n1.clone(), &text);
    rig.put(key::relay_status("c1"), READY);
    rig.feed(Input::Tick);
    assert!(rig.status().ready);
    let config = rig.etcd[&key::cluster_config("c1")].0.clone();
    // In a relay's order: configuration and report at once, after some time the rest, its leases' key last.
    rig.remove(&key::cluster_config("c1"));
    rig.remove(&key::relay_status("c1"));
    let told = rig.status();
    assert!(told.status.starts_with("its configuration is gone") && !told.ready, "{}", told.status);
    assert!(told.relay.unwrap().status.contains("not mirror it any more"));
    assert!(rig.has(Kind::Nodes) && rig.state == SourceState::Stale && !told.config.retrieved);
    rig.remove(&n1);
    assert!(!rig.has(Kind::Nodes), "what the watches tell counts");
    rig.remove(&key::relay_leases("c1"));
    let told = rig.status();
    assert!(told.status.starts_with("its configuration is gone") && !told.ready, "{}", told.status);
    // Back: nothing is read anew, for nothing was missed.
    let (listed, failed) = (rig.listed, rig.status().reconnections);
    rig.put(key::cluster_config("c1"), &config);
    rig.put(key::relay_leases("c1"), "[1]");
    rig.put(key::relay_status("c1"), READY);
    let end = rig.now.after(Duration::from_secs(61));
    while !rig.status().ready {
        rig.reconnect();
        rig.put(key::HEARTBEAT.to_owned(), "beat");
        assert!(rig.now <= end, "{:?}", rig.status());
    }
    assert_eq!((rig.listed, rig.status().reconnections), (listed, failed));
}

#[test]
fn services_count_from_when_the_relay_confirmed_them() {
    let mut rig = Rig::new();
    let (web, text) = service();
    rig.put(web, &text);
    rig.put(key::relay_status("c1"), READY);
    rig.feed(Input::Tick);
    rig.put(key::relay_status("c1"), &lost(800));
    let start = rig.now;
    while rig.has(Kind::Services) {
        rig.now = rig.core.next_deadline();
        assert!(rig.now.since(start) <= Duration::from_secs(101), "the relay's 800 s count");
        rig.put(key::HEARTBEAT.to_owned(), "beat");
        rig.feed(Input::Tick);
    }
    assert!(rig.now.since(start) >= Duration::from_secs(99), "{:?}", rig.now.since(start));
    rig.put(key::relay_status("c1"), READY);
    assert!(rig.has(Kind::Services));
}
