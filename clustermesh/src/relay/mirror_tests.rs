//! The core against a model of etcd: seeded changes, lost writers, foreign hands; at every moment canaries are true, and
//! after quiet the mirror is exact.

use super::mirror::{Mirror, ORDER, Standing, Step};
use crate::follower::{Change, News};
use crate::publisher::desired::{Actual, digest};
use crate::wire::{Kind, Layout, Raw, Record, key, relay};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

const PLAIN: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true}}"#;
const ALL: &str = r#"{"id":1,"capabilities":{"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}"#;
const SLICES: &str = r#"{"id":1,"capabilities":{"endpointSlicesExportMode":"endpointslices-only"}}"#;

type Truth = BTreeMap<(Kind, String), String>;

/// A mirror, what its follower knows, and the etcd it is written to.
struct World {
    random: u64,
    mirror: Mirror,
    truth: Truth,
    config: &'static str,
    number: u32,
    /// Kinds whose lists were complete since the number changed.
    complete: BTreeSet<Kind>,
    etcd: BTreeMap<String, (String, i64, i64)>,
    actual: BTreeMap<String, Actual>,
    revision: i64,
    lease: i64,
}

fn raw(kind: Kind, name: &str, value: &str) -> Record {
    Record::Raw(Raw { kind, name: name.into(), value: value.as_bytes().into() })
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: seed,
            mirror: Mirror::new(ClusterName::new("c1").unwrap()),
            truth: Truth::new(),
            config: PLAIN,
            number: 1,
            complete: BTreeSet::new(),
            etcd: BTreeMap::new(),
            actual: BTreeMap::new(),
            revision: 1,
            lease: 1,
        }
    }

    fn below(&mut self, range: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % range
    }

    fn is_published(&self, kind: Kind) -> bool {
        relay::mirrored(self.config.as_bytes()).unwrap().config.capabilities.publishes(kind)
    }

    fn put(&mut self, key: String, value: &str) {
        self.revision += 1;
        self.etcd.insert(key, (value.to_owned(), self.lease, self.revision));
    }

    /// A writer begins, also one of another relay.
    fn begin(&mut self) {
        let known = |(value, lease, revision): &(String, i64, i64)| Actual {
            digest: digest(value.as_bytes()),
            lease: *lease,
            revision: *revision,
        };
        self.actual = self.etcd.iter().map(|(key, found)| (key.clone(), known(found))).collect();
        self.mirror.begin();
    }

    fn change(&mut self) {
        let kinds: Vec<Kind> = ORDER.into_iter().filter(|kind| self.is_published(*kind)).collect();
        let kind = kinds[usize::try_from(self.below(kinds.len() as u64)).unwrap()];
        let name = format!("n{}", self.below(12));
        let change = if self.below(3) == 0 {
            match self.truth.remove(&(kind, name.clone())) {
                Some(value) => Change::Delete(raw(kind, &name, &value)),
                None => return,
            }
        } else {
            let value = format!("v{}", self.below(5));
            self.truth.insert((kind, name.clone()), value.clone());
            Change::Upsert(raw(kind, &name, &value))
        };
        self.mirror.take(vec![change]);
    }

    /// The cluster's configuration, as the follower tells it: what is not published any more is deleted before.
    fn reconfigure(&mut self, config: &'static str, number: u32) {
        let before: Vec<Kind> = ORDER.into_iter().filter(|kind| self.is_published(*kind)).collect();
        self.config = config;
        let gone = |kind: &Kind| number != self.number || !before.contains(kind);
        let dropped: Vec<_> = self
            .truth
            .iter()
            .filter(|((kind, _), _)| number != self.number || !self.is_published(*kind))
            .map(|((kind, name), value)| Change::Delete(raw(*kind, name, value)))
            .collect();
        for change in &dropped {
            let Change::Delete(Record::Raw(raw)) = change else { continue };
            self.truth.remove(&(raw.kind, raw.name.to_string()));
        }
        self.mirror.take(dropped);
        self.complete.retain(|kind| !gone(kind));
        self.number = number;
        let id = ClusterId::new(number, MaxClusters::C255).unwrap();
        self.mirror.news(News::Config(id, config.as_bytes().into()));
    }

    /// The cluster has one entry in the form of this configuration.
    fn publishes(&mut self, config: &'static str, kind: Kind) {
        self.reconfigure(config, 1);
        self.truth.insert((kind, "web".to_owned()), "v".to_owned());
        self.mirror.take(vec![Change::Upsert(raw(kind, "web", "v"))]);
    }

    /// The lists are complete, and all is written.
    fn read(&mut self) {
        for kind in ORDER.into_iter().filter(|kind| self.is_published(*kind)).collect::<Vec<_>>() {
            self.complete.insert(kind);
            self.mirror.news(News::Complete(kind));
        }
        while self.step() {}
    }

    fn complete(&mut self) {
        for kind in ORDER.into_iter().filter(|kind| self.is_published(*kind)).collect::<Vec<_>>() {
            if self.below(2) == 0 {
                self.complete.insert(kind);
                self.mirror.news(News::Complete(kind));
            }
        }
    }

    fn step(&mut self) -> bool {
        if !self.mirror.has_work() {
            return false;
        }
        let lease = self.lease;
        let owns = |found: i64| found == lease;
        let step = self.mirror.step(&Standing { actual: &self.actual, owns: &owns, now: "now" });
        self.check(&step);
        // A writer may be lost in the middle: then another one begins.
        let whole = self.below(50) != 0;
        let most = if whole { usize::MAX } else { usize::try_from(self.below(4)).unwrap() };
        for put in step.puts.into_iter().take(most) {
            self.revision += 1;
            let value = String::from_utf8(put.value).unwrap();
            let known = Actual { digest: digest(value.as_bytes()), lease, revision: self.revision };
            self.actual.insert(put.key.clone(), known);
            self.etcd.insert(put.key, (value, lease, self.revision));
        }
        for (key, revision) in step.deletes.into_iter().take(most) {
            if self.etcd.get(&key).is_some_and(|found| found.2 == revision) {
                self.etcd.remove(&key);
            }
            self.actual.remove(&key);
        }
        if whole {
            self.mirror.written();
        } else {
            self.mirror.end();
            self.lease += i64::try_from(self.below(2)).unwrap();
            self.begin();
        }
        true
    }

    /// Nothing is deleted that the cluster may have, and a canary is written when all stands, and nothing else.
    fn check(&self, step: &Step) {
        for kind in ORDER {
            let prefix = kind.prefix(Layout::Cache, "c1");
            let complete = self.complete.contains(&kind) || !self.is_published(kind);
            for (key, _) in &step.deletes {
                if let Some(name) = key.strip_prefix(&prefix) {
                    assert!(!self.truth.contains_key(&(kind, name.to_owned())), "{key} is deleted");
                }
            }
            let canary = kind.canary(Layout::Cache, "c1");
            if step.puts.iter().any(|put| put.key == canary) {
                assert!(complete, "the canary of {kind} comes before its list is complete");
            }
        }
    }

    /// Where a canary was just written, whatever the last completed round had to carry stands.
    fn exact(&self) {
        let mut wanted: BTreeMap<String, String> = self
            .truth
            .iter()
            .map(|((kind, name), value)| (kind.key(Layout::Cache, "c1", name), value.clone()))
            .collect();
        let text = relay::mirrored(self.config.as_bytes()).unwrap().text;
        wanted.insert(key::cluster_config("c1"), String::from_utf8(text).unwrap());
        for kind in ORDER.into_iter().filter(|kind| self.is_published(*kind) || *kind == Kind::Services) {
            wanted.insert(kind.canary(Layout::Cache, "c1"), "now".to_owned());
        }
        let found: BTreeMap<String, String> =
            self.etcd.iter().map(|(key, (value, ..))| (key.clone(), value.clone())).collect();
        assert_eq!(found, wanted);
        assert!(self.etcd.values().all(|(_, lease, _)| *lease == self.lease), "keys hang on a lost lease");
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    let kind = ORDER[usize::try_from(world.below(6)).unwrap()];
    world.put(kind.key(Layout::Cache, "c1", "left"), "over");
    world.put(Kind::EndpointSlices.canary(Layout::Cache, "c1"), "now");
    world.put("cilium/synced/c1/other".to_owned(), "now");
    world.begin();
    for _ in 0..400 {
        match world.below(24) {
            0 => world.complete(),
            1 => {
                let config = [PLAIN, ALL, SLICES][usize::try_from(world.below(3)).unwrap()];
                let number = world.number + u32::from(world.below(6) == 0);
                world.reconfigure(config, number);
            }
            2 => {
                // Somebody wipes a part; the writer notices.
                let chance = world.below(3) + 1;
                world.etcd.retain(|key, _| key.len() as u64 % 4 >= chance);
                world.begin();
            }
            3 => world.begin(),
            4 => world.mirror.drop_outlasting(),
            5..12 => world.change(),
            _ => drop(world.step()),
        }
    }
    let (config, number) = (world.config, world.number);
    world.reconfigure(config, number);
    for kind in ORDER.into_iter().filter(|kind| world.is_published(*kind)).collect::<Vec<_>>() {
        world.complete.insert(kind);
        world.mirror.news(News::Complete(kind));
    }
    let mut steps = 0;
    for _ in 0..2 {
        while world.step() {
            steps += 1;
            assert!(steps < 1000, "it never comes to rest");
        }
        world.mirror.drop_outlasting();
    }
    world.exact();
    let progress = world.mirror.progress();
    assert_eq!((progress.entries, progress.queued, progress.announced), (world.truth.len(), 0, true));
}

#[test]
fn after_quiet_the_mirror_is_exact_and_before_nothing_is_lost() {
    for seed in 0..300 {
        let ended = std::panic::catch_unwind(|| run(seed));
        assert!(ended.is_ok(), "seed {seed}");
    }
}

/// A canary is the last word also while entries change all the time.
#[test]
fn churn_does_not_keep_canaries_back() {
    let mut world = World::new(1);
    world.reconfigure(PLAIN, 1);
    world.begin();
    for kind in ORDER {
        world.mirror.news(News::Complete(kind));
        world.complete.insert(kind);
    }
    for _ in 0..200 {
        for _ in 0..5 {
            world.change();
        }
        world.step();
        if world.mirror.progress().announced {
            return;
        }
    }
    panic!("no canaries");
}

#[test]
fn what_an_earlier_relay_wrote_stays_until_the_cluster_was_read() {
    let mut world = World::new(3);
    let kept = Kind::Nodes.key(Layout::Cache, "c1", "old");
    for key in [kept.clone(), key::cluster_config("c1"), Kind::Nodes.canary(Layout::Cache, "c1")] {
        world.put(key, "old");
    }
    world.begin();
    while world.step() {}
    assert_eq!(world.etcd.len(), 3, "nothing is known, so nothing is judged");
    world.reconfigure(PLAIN, 1);
    world.mirror.news(News::Complete(Kind::Ips));
    world.complete.insert(Kind::Ips);
    while world.step() {}
    assert!(world.etcd.contains_key(&kept) && !world.mirror.progress().announced);
    for kind in ORDER {
        world.mirror.news(News::Complete(kind));
        world.complete.insert(kind);
    }
    let canary = Kind::Nodes.canary(Layout::Cache, "c1");
    while world.step() {
        assert!(world.etcd.contains_key(&canary), "a canary that stands does not flap");
    }
    assert!(!world.etcd.contains_key(&kept) && world.mirror.progress().announced);
}

/// The form of backends changes. Readers that have not looked at the configuration since have nothing but the old one, also when
/// another relay takes over meanwhile.
#[test]
fn what_is_not_published_any_more_stays_until_readers_know() {
    let mut world = World::new(7);
    world.begin();
    world.publishes(PLAIN, Kind::Services);
    world.read();
    world.exact();
    for (config, kind, before) in
        [(SLICES, Kind::EndpointSlices, Kind::Services), (PLAIN, Kind::Services, Kind::EndpointSlices)]
    {
        world.publishes(config, kind);
        assert!(!world.mirror.holds_outlasting(), "what takes its place is not complete");
        world.read();
        let old = [before.key(Layout::Cache, "c1", "web"), before.canary(Layout::Cache, "c1")];
        let stands = |world: &World| old.iter().all(|key| world.etcd.contains_key(key));
        assert!(stands(&world) && world.mirror.progress().announced);
        // The next relay knows only what the cluster says now.
        world.mirror = Mirror::new(ClusterName::new("c1").unwrap());
        world.begin();
        world.publishes(config, kind);
        world.read();
        assert!(stands(&world) && world.mirror.holds_outlasting());
        world.mirror.drop_outlasting();
        while world.step() {}
        world.exact();
    }
    // What had another number nobody can use.
    world.reconfigure(SLICES, 2);
    world.read();
    world.exact();
}

/// Rounds of several steps: when a canary comes, all entries of before stand and no leftover does.
#[test]
fn a_canary_is_the_last_word() {
    let mut world = World::new(5);
    let prefix = Kind::Ips.prefix(Layout::Cache, "c1");
    for n in 0..1500 {
        world.put(format!("{prefix}left{n}"), "x");
    }
    world.reconfigure(PLAIN, 1);
    world.begin();
    for n in 0..1500 {
        world.truth.insert((Kind::Ips, format!("n{n}")), "v".to_owned());
        world.mirror.take(vec![Change::Upsert(raw(Kind::Ips, &format!("n{n}"), "v"))]);
    }
    for kind in ORDER {
        world.mirror.news(News::Complete(kind));
        world.complete.insert(kind);
    }
    let canary = Kind::Ips.canary(Layout::Cache, "c1");
    let mut steps = 0;
    while world.step() {
        steps += 1;
        if world.etcd.contains_key(&canary) {
            let found = world.etcd.keys().filter_map(|key| key.strip_prefix(&prefix));
            let left: Vec<&str> = found.clone().filter(|name| name.starts_with("left")).collect();
            assert_eq!((left.len(), found.count()), (0, 1500));
        }
    }
    assert!(steps > 6 && world.etcd.contains_key(&canary), "{steps} steps");
    world.exact();
}
