//! Relays over real etcds with mutual TLS: cluster a is mirrored into cluster b's etcd, through every fault between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod rig;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use rig::agent::{id, name};
use rig::recorder::{Recorder, View};
use rig::{Etcd, Pki, connection, until};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::MaxClusters;
use tombolo_clustermesh::follower::{self, ClusterStatus, Limits, MeshConfig, MeshHandle, Timers};
use tombolo_clustermesh::relay::{self, RelayConfig, RelayHandle, RelayedCluster};
use tombolo_clustermesh::wire::Kind;

const GRACE: Duration = Duration::from_secs(2);

fn timers() -> Timers {
    Timers {
        backoff_min: Duration::from_millis(200),
        backoff_max: Duration::from_secs(1),
        spread: Duration::from_millis(100),
        config_retry: Duration::from_millis(200),
        ..Timers::default()
    }
}

/// A relay of cluster b.
struct Relay {
    handle: RelayHandle,
    task: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Relay {
    async fn start(own: &Etcd, pki: &Pki, name_of_relay: &str, folder: &Path) -> Self {
        let mut config =
            RelayConfig::new(name("b"), name_of_relay.into(), folder.into(), own.config(pki, "admin-b"));
        config.cluster_id = Some(id(2));
        config.election_ttl = Duration::from_secs(2);
        config.connection = connection();
        config.removal_grace = GRACE;
        config.heartbeat = Some(Duration::from_secs(1));
        config.timers = timers();
        let cancel = CancellationToken::new();
        let (handle, task) = relay::start(config, cancel.clone()).await;
        Self { handle, task, cancel }
    }

    async fn of(&self, cluster: &str) -> RelayedCluster {
        let clusters = self.handle.status().await.clusters;
        clusters.into_iter().find(|one| one.remote.name == cluster).unwrap_or_default()
    }

    async fn complete(&self, cluster: &str) {
        until("the mirror", async || {
            let found = self.of(cluster).await;
            found.remote.ready && found.mirror.complete && found.mirror.queued == 0
        })
        .await;
    }

    /// As SIGKILL: nothing is given up.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.cancel.cancel();
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// An agent of cluster b as a reader.
struct Reader {
    seen: Recorder,
    mesh: MeshHandle,
    cancel: CancellationToken,
}

impl Reader {
    async fn start(folder: PathBuf, change: impl FnOnce(&mut MeshConfig)) -> Self {
        let mut config = MeshConfig {
            cluster: name("b"),
            cluster_id: Some(id(2)),
            max: MaxClusters::C255,
            folder,
            snapshots: None,
            allow_plaintext: false,
            own: None,
            timers: timers(),
            limits: Limits::default(),
            exports: true,
            mirror: false,
            relay: None,
        };
        change(&mut config);
        let (seen, cancel) = (Recorder::default(), CancellationToken::new());
        let (mesh, _task) = follower::start(config, Arc::new(seen.clone()), cancel.clone()).await;
        Self { seen, mesh, cancel }
    }

    async fn status(&self, cluster: &str) -> ClusterStatus {
        self.mesh.status().await.into_iter().find(|status| status.name == cluster).unwrap_or_default()
    }

    async fn ready(&self, cluster: &str) -> View {
        until("the reader to be ready", async || self.status(cluster).await.ready).await;
        self.seen.view(cluster)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

const CONFIG: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}"#;

fn ip(at: &str, pod: &str) -> (String, String) {
    let key = format!("cilium/state/ip/v1/default/{at}");
    // Spaces and an unknown field: a mirror writes what it read.
    (
        key,
        format!(
            r#"{{ "IP":"{at}","Mask":null,"HostIP":"192.0.2.11","ID":66001,"K8sPodName":"{pod}","Later":[1]}}"#
        ),
    )
}

/// The entries of cluster a, in its own layout: every kind, two address families, one service that is not shared.
fn entries() -> BTreeMap<String, String> {
    let identity = "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=a;k8s:io.kubernetes.pod.namespace=shop;";
    let node = |n: u8| {
        let text = format!(
            r#"{{"Name":"n{n}","Cluster":"a","IPAddresses":[{{"Type":"InternalIP","IP":"192.0.2.{n}"}}],"ClusterID":1}}"#
        );
        (format!("cilium/state/nodes/v1/a/n{n}"), text)
    };
    let service = |name: &str, shared: bool| {
        let text = format!(
            r#"{{"cluster":"a","namespace":"shop","name":"{name}","backends":{{"10.1.0.7":{{"http":{{"Protocol":"TCP","Port":8080}}}}}},"shared":{shared},"clusterID":1}}"#
        );
        (format!("cilium/state/services/v1/a/shop/{name}"), text)
    };
    let export = r#"{"cluster":"a","name":"web","namespace":"shop","exportCreationTimestamp":"2026-01-02T03:04:05Z","ports":[{"name":"http","protocol":"TCP","port":80}],"type":"ClusterSetIP","sessionAffinity":"None"}"#;
    let mut entries = BTreeMap::from([
        ("cilium/state/identities/v1/id/66001".to_owned(), identity.to_owned()),
        node(1),
        node(2),
        ip("10.1.0.7", "web-0"),
        ip("fd00:10:1::7", "web-0"),
        service("web", true),
        service("private", false),
        ("cilium/state/serviceexports/v1/a/shop/web".to_owned(), export.to_owned()),
    ]);
    for pod in 0..400 {
        entries.extend([ip(&format!("10.1.{}.{}", 1 + pod / 200, 1 + pod % 200), &format!("pod-{pod}"))]);
    }
    entries
}

/// What the mirror of these entries is: key by key, value by value, byte for byte.
fn mirror_of(entries: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let key = |key: &String| {
        key.replace("cilium/state/identities/v1/", "cilium/cache/identities/v1/a/")
            .replace("cilium/state/ip/v1/default/", "cilium/cache/ip/v1/a/")
            .replace("cilium/state/", "cilium/cache/")
    };
    entries.iter().map(|(name, value)| (key(name), value.clone())).collect()
}

async fn put(client: &Client, entries: impl IntoIterator<Item = (String, String)>) {
    for (key, value) in entries {
        client.kv_client().put(key, value, None).await.unwrap();
    }
}

/// Cluster a publishes.
async fn publish(client: &Client, entries: &BTreeMap<String, String>) {
    let head = [("cilium/cluster-config/a", CONFIG), ("cilium/.heartbeat", "now")];
    put(client, head.map(|(key, value)| (key.to_owned(), value.to_owned()))).await;
    put(client, entries.clone()).await;
    let kinds = ["nodes", "identities", "ip", "services", "serviceexports", "endpointslices"];
    put(client, kinds.map(|kind| (format!("cilium/synced/a/cilium/state/{kind}/v1"), "now".to_owned())))
        .await;
}

async fn below(client: &Client, prefix: &str) -> BTreeMap<String, String> {
    let found = client.kv_client().get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    found.kvs().iter().map(|kv| (text(kv.key()), text(kv.value()))).collect()
}

/// Everything that belongs to a mirror of cluster a.
async fn whole_mirror(client: &Client) -> BTreeMap<String, String> {
    let mut all = below(client, "cilium/cache/").await;
    all.extend(below(client, "cilium/synced/").await);
    all.extend(below(client, "cilium/cluster-config/").await);
    all
}

/// Two etcds, a folder with the file of a, and what a publishes.
struct World {
    pki: Pki,
    a: Etcd,
    b: Etcd,
    folder: tempfile::TempDir,
    entries: BTreeMap<String, String>,
}

impl World {
    async fn new() -> Self {
        let pki = Pki::new();
        let (a, b) = tokio::join!(Etcd::start(&pki, "a"), Etcd::start(&pki, "b"));
        let world = Self { pki, a, b, folder: tempfile::tempdir().unwrap(), entries: entries() };
        a_file(&world.a, &world.pki, &world.remotes());
        publish(&world.at_a().await, &world.entries).await;
        world
    }

    /// The relay's folder.
    fn remotes(&self) -> PathBuf {
        self.subfolder("remotes")
    }

    fn subfolder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A folder of an agent whose file of a names the own etcd.
    fn through(&self, name: &str) -> PathBuf {
        let folder = self.subfolder(name);
        self.b.write_file(&self.pki, "admin-b", &folder.join("a.yaml"));
        folder
    }

    async fn at_a(&self) -> Client {
        self.a.client(&self.pki, "admin-a").await
    }

    async fn at_b(&self) -> Client {
        self.b.client(&self.pki, "root").await
    }

    async fn relay(&self, name: &str) -> Relay {
        Relay::start(&self.b, &self.pki, name, &self.remotes()).await
    }
}

fn a_file(etcd: &Etcd, pki: &Pki, folder: &Path) {
    etcd.write_file(pki, "remote", &folder.join("a.yaml"));
}

/// The mirror holds these entries, the configuration and the canaries, and nothing else.
async fn assert_exact(client: &Client, entries: &BTreeMap<String, String>) {
    let mut expected = mirror_of(entries);
    let config = r#"{"capabilities":{"cached":true,"endpointSlicesExportMode":"services-and-endpointslices","maxConnectedClusters":255,"serviceExportsEnabled":true,"syncedCanaries":true},"id":1}"#;
    expected.insert("cilium/cluster-config/a".to_owned(), config.to_owned());
    let found = whole_mirror(client).await;
    let (canaries, found): (BTreeMap<_, _>, BTreeMap<_, _>) =
        found.into_iter().partition(|(key, _)| key.starts_with("cilium/synced/"));
    let kinds = ["endpointslices", "identities", "ip", "nodes", "serviceexports", "services"];
    let wanted = kinds.map(|kind| format!("cilium/synced/a/cilium/cache/{kind}/v1"));
    assert_eq!(canaries.into_keys().collect::<Vec<_>>(), wanted);
    for (key, value) in &expected {
        assert_eq!(found.get(key), Some(value), "{key}");
    }
    assert_eq!(found.len(), expected.len());
}

/// Counts what is put and deleted below `cilium/` in an etcd, heartbeats aside.
fn count(client: &Client) -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (puts, deletes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (to_puts, to_deletes, client) = (puts.clone(), deletes.clone(), client.clone());
    tokio::spawn(async move {
        let options = WatchOptions::new().with_prefix();
        let mut stream = client.watch_client().watch("cilium/", Some(options)).await.unwrap();
        while let Ok(Some(answer)) = stream.message().await {
            let events = answer
                .events()
                .iter()
                .filter(|event| event.kv().is_some_and(|kv| !kv.key().starts_with(b"cilium/.heartbeat")));
            for event in events {
                let counter = if event.event_type() == EventType::Put { &to_puts } else { &to_deletes };
                counter.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (puts, deletes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_is_exact_and_reads_like_the_cluster_itself() {
    let mut world = World::new().await;
    let (at_a, at_b) = (world.at_a().await, world.at_b().await);
    // Left by something that died long ago.
    put(
        &at_b,
        ["cilium/cache/nodes/v1/a/ghost", "cilium/synced/a/cilium/cache/other/v1"]
            .map(|key| (key.to_owned(), "x".to_owned())),
    )
    .await;
    let relay = world.relay("r1").await;
    relay.complete("a").await;
    assert_exact(&at_b, &world.entries).await;
    let leases: BTreeSet<i64> = {
        let options = GetOptions::new().with_prefix();
        let found = at_b.kv_client().get("cilium/cache/", Some(options)).await.unwrap();
        found.kvs().iter().map(etcd_client::KeyValue::lease).collect()
    };
    assert!(!leases.contains(&0), "everything in a mirror goes with a lease");
    // Hostile keys and values cost themselves only.
    let hostile = [
        (
            "cilium/state/nodes/v1/a/../../../../cluster-config/intruder",
            r#"{"Name":"../../../../cluster-config/intruder","Cluster":"a","ClusterID":1}"#,
        ),
        ("cilium/state/nodes/v1/a/..", r#"{"Name":"..","Cluster":"a","ClusterID":1}"#),
        ("cilium/state/identities/v1/id/66001/../../../../../tombolo/x", "k8s:a=b;"),
        ("cilium/state/identities/v1/id/131073", "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=a;"),
        ("cilium/state/services/v1/a/shop//web", "{}"),
        ("cilium/state/ip/v1/default/10.1.9.9", r#"{"IP":"10.1.9.8","HostIP":"192.0.2.1","ID":66001}"#),
    ];
    put(&at_a, hostile.map(|(key, value)| (key.to_owned(), value.to_owned()))).await;
    // Changes follow.
    world.entries.extend([ip("10.1.8.8", "late")]);
    put(&at_a, [ip("10.1.8.8", "late")]).await;
    world.entries.remove("cilium/state/ip/v1/default/10.1.1.1");
    at_a.kv_client().delete("cilium/state/ip/v1/default/10.1.1.1", None).await.unwrap();
    until("the refusals", async || relay.of("a").await.remote.refused_now == hostile.len()).await;
    until("the change", async || {
        let found = below(&at_b, "cilium/cache/ip/").await;
        found.contains_key("cilium/cache/ip/v1/a/10.1.8.8")
            && !found.contains_key("cilium/cache/ip/v1/a/10.1.1.1")
    })
    .await;
    assert_exact(&at_b, &world.entries).await;
    assert!(below(&at_b, "tombolo/x").await.is_empty());
    // An agent that reads the mirror knows what one knows that reads the cluster.
    let direct = Reader::start(world.remotes(), |_| {}).await;
    let through = Reader::start(world.through("agent"), |_| {}).await;
    let (left, right) = (direct.ready("a").await, through.ready("a").await);
    assert_eq!(left.records, right.records);
    assert_eq!((left.names(Kind::Services), left.count(Kind::Ips)), (vec!["shop/web"], 402));
    let status = through.status("a").await;
    assert!(
        status.config.kvstoremesh && status.relay.as_ref().is_some_and(|relay| relay.ready),
        "{status:?}"
    );
    // What somebody else changes or takes away comes back.
    at_b.kv_client().delete("cilium/cache/nodes/v1/a/n1", None).await.unwrap();
    put(
        &at_b,
        [
            ("cilium/cache/nodes/v1/a/n2".to_owned(), "{}".to_owned()),
            ("cilium/cache/nodes/v1/a/n3".to_owned(), "{}".to_owned()),
        ],
    )
    .await;
    let nodes = mirror_of(&world.entries);
    until("what was changed to be written again", async || {
        let found = below(&at_b, "cilium/cache/nodes/").await;
        found.len() == 2 && found.iter().all(|(key, value)| nodes.get(key) == Some(value))
    })
    .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_relay_is_followed_by_another_without_a_write() {
    let world = World::new().await;
    let at_b = world.at_b().await;
    let one = world.relay("r1").await;
    one.complete("a").await;
    let two = world.relay("r2").await;
    until("the second relay to have read", async || two.of("a").await.remote.ready).await;
    let through = Reader::start(world.through("agent"), |_| {}).await;
    let before = through.ready("a").await;
    let (puts, deletes) = count(&at_b);
    assert!(!two.handle.status().await.leader);
    one.kill().await;
    until("the second one to lead", async || two.handle.status().await.leader).await;
    two.complete("a").await;
    put(&world.at_a().await, [ip("10.1.8.8", "late")]).await;
    until("a change", async || through.seen.view("a").count(Kind::Ips) == before.count(Kind::Ips) + 1).await;
    assert_eq!(
        (puts.load(Ordering::SeqCst), deletes.load(Ordering::SeqCst)),
        (1, 0),
        "only the change was written"
    );
    let after = through.seen.view("a");
    assert_eq!((after.deletes, after.upserts), (0, before.upserts + 1));
    assert_eq!(through.status("a").await.reconnections, 0);
    // One that is stopped gives the election up, and a third has everything as well.
    let three = world.relay("r3").await;
    until("the third relay to have read", async || three.of("a").await.remote.ready).await;
    two.stop().await;
    three.complete("a").await;
    assert_eq!((puts.load(Ordering::SeqCst), deletes.load(Ordering::SeqCst)), (1, 0));
    assert!(through.status("a").await.ready, "the reports of the last relay stand until those of the next");
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_clusters_leave_nothing_also_when_no_relay_ran() {
    let world = World::new().await;
    let (at_b, relay) = (world.at_b().await, world.relay("r1").await);
    relay.complete("a").await;
    put(&at_b, [("cilium/cluster-config/other".to_owned(), "{}".to_owned())]).await;
    std::fs::remove_file(world.remotes().join("a.yaml")).unwrap();
    until("the configuration to go", async || below(&at_b, "cilium/cluster-config/a").await.is_empty()).await;
    assert_eq!(below(&at_b, "cilium/cache/").await.len(), world.entries.len(), "agents let go first");
    until("everything to go", async || below(&at_b, "tombolo/relay/").await.is_empty()).await;
    assert_eq!(whole_mirror(&at_b).await.into_keys().collect::<Vec<_>>(), ["cilium/cluster-config/other"]);
    // Its file comes back, also within the time of grace.
    a_file(&world.a, &world.pki, &world.remotes());
    relay.complete("a").await;
    std::fs::remove_file(world.remotes().join("a.yaml")).unwrap();
    until("the configuration to go", async || below(&at_b, "cilium/cluster-config/a").await.is_empty()).await;
    a_file(&world.a, &world.pki, &world.remotes());
    relay.complete("a").await;
    at_b.kv_client().delete("cilium/cluster-config/other", None).await.unwrap();
    assert_exact(&at_b, &world.entries).await;
    // It goes while no relay runs.
    relay.stop().await;
    std::fs::remove_file(world.remotes().join("a.yaml")).unwrap();
    let relay = world.relay("r2").await;
    until("the leftovers to go", async || below(&at_b, "tombolo/relay/").await.is_empty()).await;
    assert!(whole_mirror(&at_b).await.is_empty());
    let leases = at_b.lease_client().leases().await.unwrap();
    // The election's and that of the reports.
    assert!(leases.leases().len() <= 3, "leases are left: {}", leases.leases().len());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_etcds_on_either_side_take_nothing_from_agents() {
    let mut world = World::new().await;
    let relay = world.relay("r1").await;
    relay.complete("a").await;
    let through = Reader::start(world.through("agent"), |_| {}).await;
    let before = through.ready("a").await;
    // The own etcd is wiped: the mirror is written anew, canaries last.
    world.b.wipe(&world.pki).await;
    let at_b = world.at_b().await;
    until("the mirror to be there again", async || below(&at_b, "cilium/synced/a/").await.len() == 6).await;
    assert_exact(&at_b, &world.entries).await;
    through.ready("a").await;
    relay.complete("a").await;
    // The cluster's etcd is wiped: until its canaries stand again, all stays.
    world.a.wipe(&world.pki).await;
    until("the agent to be told", async || {
        let status = through.status("a").await;
        !status.ready && status.relay.is_some_and(|relay| !relay.ready)
    })
    .await;
    assert_exact(&at_b, &world.entries).await;
    assert_eq!(through.seen.view("a").deletes, 0);
    world.entries.remove("cilium/state/nodes/v1/a/n2");
    publish(&world.at_a().await, &world.entries).await;
    until("the agent to be ready again", async || through.status("a").await.ready).await;
    until("what is gone to go", async || through.seen.view("a").count(Kind::Nodes) == 1).await;
    let after = through.seen.view("a");
    assert_eq!((after.deletes, after.upserts), (1, before.upserts));
    assert_exact(&at_b, &world.entries).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_cluster_is_seen_through_the_relay_and_does_not_hold_up_others() {
    let mut world = World::new().await;
    // Nothing answers there, and the file of another is none.
    let text = world.a.file_text(&world.pki, "remote").replace(&world.a.port.to_string(), "1");
    std::fs::write(world.remotes().join("dead.yaml"), text).unwrap();
    std::fs::write(world.remotes().join("broken.yaml"), "endpoints: [").unwrap();
    // One that names the etcd that the relay writes to would confirm itself for ever.
    world.b.write_file(&world.pki, "admin-b", &world.remotes().join("self.yaml"));
    let relay = world.relay("r1").await;
    relay.complete("a").await;
    let refused = relay.of("self").await.remote.status;
    assert!(refused.contains("that the relay writes to"), "{refused}");
    let report = async |cluster: &str| {
        let found = below(&world.at_b().await, &format!("tombolo/relay/{cluster}/status")).await;
        let text = found.into_values().next().unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default()
    };
    until("a report on the dead one", async || report("dead").await["ready"] == false).await;
    let dead = report("dead").await;
    assert!(dead["status"].as_str().unwrap().contains("refused"), "{dead}");
    assert_eq!(report("a").await["ready"], true);
    // An agent with a short limit.
    let limit = |config: &mut MeshConfig| config.limits.services_stale = Some(Duration::from_secs(4));
    let through = Reader::start(world.through("agent"), limit).await;
    let before = through.ready("a").await;
    world.a.stop();
    until("the agent to be told", async || through.status("a").await.stale_secs.is_some()).await;
    let status = through.status("a").await;
    assert!(status.connected && !status.ready, "{status:?}");
    assert!(status.status.contains("the relay r1 does not confirm it"), "{}", status.status);
    until("its services to be withheld", async || through.seen.view("a").count(Kind::Services) == 0).await;
    let view = through.seen.view("a");
    assert_eq!((view.deletes, view.count(Kind::Ips)), (1, before.count(Kind::Ips)));
    assert_eq!(through.status("a").await.withheld.values().sum::<usize>(), 1);
    world.a.restart(&world.pki).await;
    let view = through.ready("a").await;
    assert_eq!(view.records, before.records);
    // No relay at all is told, too, and takes nothing away.
    relay.stop().await;
    until("the agent to miss the relay", async || {
        through.status("a").await.status.contains("no relay is elected")
    })
    .await;
    assert_eq!(through.seen.view("a").count(Kind::Ips), before.count(Kind::Ips));
    assert_exact(&world.at_b().await, &world.entries).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_go_from_direct_to_relay_and_back_without_a_gap() {
    let world = World::new().await;
    let relay = world.relay("r1").await;
    relay.complete("a").await;
    let folder = world.subfolder("agent");
    a_file(&world.a, &world.pki, &folder);
    let agent = Reader::start(folder.clone(), |_| {}).await;
    let before = agent.ready("a").await;
    assert!(!agent.status("a").await.config.kvstoremesh);
    for round in 0..3 {
        world.b.write_file(&world.pki, "admin-b", &folder.join("a.yaml"));
        until("the agent to read the mirror", async || {
            let status = agent.status("a").await;
            status.ready && status.config.kvstoremesh && status.relay.is_some()
        })
        .await;
        a_file(&world.a, &world.pki, &folder);
        until("the agent to read the cluster", async || {
            let status = agent.status("a").await;
            status.ready && !status.config.kvstoremesh && status.relay.is_none()
        })
        .await;
        let view = agent.seen.view("a");
        assert_eq!((view.deletes, view.upserts), (0, before.upserts), "round {round}");
    }
    // To a mirror that nobody keeps up: what it lacks stays.
    relay.stop().await;
    put(&world.at_a().await, [ip("10.1.8.8", "late")]).await;
    until("a change", async || agent.seen.view("a").count(Kind::Ips) == before.count(Kind::Ips) + 1).await;
    let at_b = world.at_b().await;
    until("the last report to go", async || below(&at_b, "tombolo/relay/a/status").await.is_empty()).await;
    world.b.write_file(&world.pki, "admin-b", &folder.join("a.yaml"));
    until("the agent to be told", async || agent.status("a").await.status.contains("no relay is elected"))
        .await;
    until("the lists", async || {
        agent.status("a").await.heartbeat_age_secs.is_some() && agent.status("a").await.connected
    })
    .await;
    let relay = world.relay("r2").await;
    until("the agent to be ready", async || agent.status("a").await.ready).await;
    let view = agent.seen.view("a");
    assert_eq!((view.deletes, view.count(Kind::Ips)), (0, before.count(Kind::Ips) + 1));
    // The same by the agent's setting: its files name the clusters, and all are read from the own etcd.
    let own = world.b.config(&world.pki, "admin-b");
    let set = Reader::start(world.remotes(), |config| config.relay = Some(own)).await;
    set.ready("a").await;
    assert!(set.status("a").await.config.kvstoremesh);
    relay.stop().await;
}

/// A relay may read what another one wrote, and says what that one cannot confirm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_a_mirror_is_the_same() {
    let mut world = World::new().await;
    let first = world.relay("r1").await;
    first.complete("a").await;
    let third = Etcd::start(&world.pki, "b").await;
    let second = Relay::start(&third, &world.pki, "r1", &world.through("second")).await;
    second.complete("a").await;
    let at_third = third.client(&world.pki, "root").await;
    assert_exact(&at_third, &world.entries).await;
    assert_eq!(below(&at_third, "cilium/cache/").await, below(&world.at_b().await, "cilium/cache/").await);
    world.a.stop();
    until("the second relay to be told", async || !second.of("a").await.remote.ready).await;
    until("its readers to be told", async || {
        let report = below(&at_third, "tombolo/relay/a/status").await.into_values().next().unwrap();
        report.contains("\"ready\":false") && report.contains("the relay r1 does not confirm it")
    })
    .await;
    assert_exact(&at_third, &world.entries).await;
    tokio::join!(first.stop(), second.stop());
}

/// An own etcd that takes less than the cluster's: what is too large costs itself, and is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_own_etcd_refuses_costs_itself_only() {
    let mut world = World::new().await;
    let small = Etcd::start_with(&world.pki, "b", &["--max-request-bytes", "20000"]).await;
    let large = format!(
        r#"{{"Name":"n9","Cluster":"a","ClusterID":1,"Annotations":{{"x":"{}"}}}}"#,
        "y".repeat(30_000)
    );
    put(&world.at_a().await, [("cilium/state/nodes/v1/a/n9".to_owned(), large)]).await;
    let relay = Relay::start(&small, &world.pki, "r1", &world.remotes()).await;
    relay.complete("a").await;
    let at_small = small.client(&world.pki, "root").await;
    assert_exact(&at_small, &world.entries).await;
    let warnings = relay.of("a").await.mirror.warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("cilium/cache/nodes/v1/a/n9"), "{warnings:?}");
    // Others go on.
    world.entries.extend([ip("10.1.8.8", "late")]);
    put(&world.at_a().await, [ip("10.1.8.8", "late")]).await;
    until("a change", async || {
        below(&at_small, "cilium/cache/ip/").await.contains_key("cilium/cache/ip/v1/a/10.1.8.8")
    })
    .await;
    assert_exact(&at_small, &world.entries).await;
    relay.stop().await;
}
