//! Relays between two real etcds with mutual TLS: cluster a is mirrored into cluster b's.

use super::agent::{id, name};
use super::reader::timers;
use super::{Etcd, Pki, connection, until};
use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_clustermesh::relay::{self, RelayConfig, RelayHandle, RelayedCluster};

pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// A relay of cluster b.
pub(crate) struct Relay {
    pub(crate) handle: RelayHandle,
    pub(crate) task: JoinHandle<()>,
    pub(crate) cancel: CancellationToken,
}

impl Relay {
    pub(crate) async fn start(own: &Etcd, pki: &Pki, name_of_relay: &str, folder: &Path) -> Self {
        Self::start_with(own, pki, name_of_relay, folder, |_| {}).await
    }

    pub(crate) async fn start_with(
        own: &Etcd,
        pki: &Pki,
        name_of_relay: &str,
        folder: &Path,
        change: impl FnOnce(&mut RelayConfig),
    ) -> Self {
        let mut config =
            RelayConfig::new(name("b"), name_of_relay.into(), folder.into(), own.config(pki, "admin-b"));
        config.cluster_id = Some(id(2));
        config.election_ttl = Duration::from_secs(2);
        config.connection = connection();
        config.removal_grace = GRACE;
        config.heartbeat = Some(Duration::from_secs(1));
        config.timers = timers();
        change(&mut config);
        let cancel = CancellationToken::new();
        let (handle, task) = relay::start(config, cancel.clone()).await;
        Self { handle, task, cancel }
    }

    pub(crate) async fn of(&self, cluster: &str) -> RelayedCluster {
        let clusters = self.handle.status().await.clusters;
        clusters.into_iter().find(|one| one.remote.name == cluster).unwrap_or_default()
    }

    pub(crate) async fn complete(&self, cluster: &str) {
        until("the mirror", async || {
            let found = self.of(cluster).await;
            found.remote.ready && found.mirror.complete && found.mirror.queued == 0
        })
        .await;
    }

    /// As SIGKILL: nothing is given up.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        self.cancel.cancel();
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

pub(crate) const CONFIG: &str = r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}"#;

pub(crate) fn ip(at: &str, pod: &str) -> (String, String) {
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
pub(crate) fn entries() -> BTreeMap<String, String> {
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
pub(crate) fn mirror_of(entries: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let key = |key: &String| {
        key.replace("cilium/state/identities/v1/", "cilium/cache/identities/v1/a/")
            .replace("cilium/state/ip/v1/default/", "cilium/cache/ip/v1/a/")
            .replace("cilium/state/", "cilium/cache/")
    };
    entries.iter().map(|(name, value)| (key(name), value.clone())).collect()
}

pub(crate) async fn put(client: &Client, entries: impl IntoIterator<Item = (String, String)>) {
    for (key, value) in entries {
        client.kv_client().put(key, value, None).await.unwrap();
    }
}

/// Cluster a publishes.
pub(crate) async fn publish(client: &Client, entries: &BTreeMap<String, String>) {
    let head = [("cilium/cluster-config/a", CONFIG), ("cilium/.heartbeat", "now")];
    put(client, head.map(|(key, value)| (key.to_owned(), value.to_owned()))).await;
    put(client, entries.clone()).await;
    let kinds = ["nodes", "identities", "ip", "services", "serviceexports", "endpointslices"];
    put(client, kinds.map(|kind| (format!("cilium/synced/a/cilium/state/{kind}/v1"), "now".to_owned())))
        .await;
}

pub(crate) async fn below(client: &Client, prefix: &str) -> BTreeMap<String, String> {
    let found = client.kv_client().get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    found.kvs().iter().map(|kv| (text(kv.key()), text(kv.value()))).collect()
}

/// Everything that belongs to a mirror of cluster a.
pub(crate) async fn whole_mirror(client: &Client) -> BTreeMap<String, String> {
    let mut all = below(client, "cilium/cache/").await;
    all.extend(below(client, "cilium/synced/").await);
    all.extend(below(client, "cilium/cluster-config/").await);
    all
}

/// Two etcds, a folder with the file of a, and what a publishes.
pub(crate) struct World {
    pub(crate) pki: Pki,
    pub(crate) a: Etcd,
    pub(crate) b: Etcd,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) entries: BTreeMap<String, String>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let pki = Pki::new();
        let (a, b) = tokio::join!(Etcd::start(&pki, "a"), Etcd::start(&pki, "b"));
        let world = Self { pki, a, b, folder: tempfile::tempdir().unwrap(), entries: entries() };
        a_file(&world.a, &world.pki, &world.remotes());
        publish(&world.at_a().await, &world.entries).await;
        world
    }

    /// The same, and a relay that has mirrored all of a.
    pub(crate) async fn mirrored() -> (Self, Relay) {
        let world = Self::new().await;
        let relay = world.relay("r1").await;
        relay.complete("a").await;
        (world, relay)
    }

    /// The relay's folder.
    pub(crate) fn remotes(&self) -> PathBuf {
        self.subfolder("remotes")
    }

    pub(crate) fn subfolder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A folder of an agent whose file of a names the own etcd.
    pub(crate) fn through(&self, name: &str) -> PathBuf {
        let folder = self.subfolder(name);
        self.b.write_file(&self.pki, "admin-b", &folder.join("a.yaml"));
        folder
    }

    pub(crate) async fn at_a(&self) -> Client {
        self.a.client(&self.pki, "admin-a").await
    }

    pub(crate) async fn at_b(&self) -> Client {
        self.b.client(&self.pki, "root").await
    }

    pub(crate) async fn relay(&self, name: &str) -> Relay {
        Relay::start(&self.b, &self.pki, name, &self.remotes()).await
    }
}

pub(crate) fn a_file(etcd: &Etcd, pki: &Pki, folder: &Path) {
    etcd.write_file(pki, "remote", &folder.join("a.yaml"));
}

/// The mirror holds these entries, the configuration and the canaries, and nothing else.
pub(crate) async fn assert_exact(client: &Client, entries: &BTreeMap<String, String>) {
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
pub(crate) fn count(client: &Client) -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
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
