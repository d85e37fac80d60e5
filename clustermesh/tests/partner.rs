//! A partner is let in by a certificate that reads what it should and nothing else, and put out again; real etcd with TLS.
#![cfg(test)]

mod rig;

use rig::agent::{Agent, id, name};
use rig::recorder::Recorder;
use rig::{Etcd, Pki, until};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::MaxClusters;
use tombolo_clustermesh::etcd::EtcdConfig;
use tombolo_clustermesh::follower::{self, Limits, MeshConfig, Timers};
use tombolo_clustermesh::partner::{Invitation, Reads, invite, uninvite};
use tombolo_clustermesh::relay::{self, RelayConfig};
use tombolo_clustermesh::wire::{Kind, ServicePreference};

fn invitation(etcd: &Etcd, pki: &Pki, out: &Path) -> Invitation {
    let root = etcd.config(pki, "root");
    Invitation {
        cluster: name("a"),
        partner: name("west"),
        reads: Reads::Published,
        endpoints: root.endpoints.clone(),
        etcd: root,
        ca_key: pki.path("ca.key"),
        days: 30,
        out: out.to_owned(),
        folder_there: None,
    }
}

/// What the partner's agents would use.
fn theirs(file: &Path) -> EtcdConfig {
    EtcdConfig::parse(file, &std::fs::read_to_string(file).unwrap(), false).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partner_reads_the_state_layout_and_nothing_else_until_it_is_put_out() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let agent = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    agent.publish(&["n1"]).await;
    agent.handle.status().wait_for(|status| status.canaries).await.unwrap();
    let out = folder.path().join("new/for-west");
    let invited = invite(&invitation(&etcd, &pki, &out)).await.unwrap();
    assert_eq!(invited.user, "remote-west");
    let file = out.join("a");
    assert_eq!(invited.files[0], file);
    let mode = std::fs::metadata(out.join("a.etcd-client.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let config = theirs(&file);
    let life = config.certificates().await.unwrap().unwrap().expiry;
    assert_eq!(life.not_after_unix_secs, invited.not_after_unix_secs);

    let (client, _) = config.client().await.unwrap();
    let mut kv = client.kv_client();
    let prefix = || Some(etcd_client::GetOptions::new().with_prefix());
    for good in ["cilium/state/", "cilium/synced/a/", "cilium/.heartbeat"] {
        assert!(!kv.get(good, prefix()).await.unwrap().kvs().is_empty(), "{good}");
    }
    for bad in ["cilium/", "cilium/cache/", "cilium/cluster-config/", "cilium/synced/", "tombolo/", "x"] {
        let error = kv.get(bad, prefix()).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{bad}: {error}");
    }
    for key in ["cilium/state/nodes/v1/a/n1", "cilium/cluster-config/a", "cilium/.heartbeat", "tombolo/x"] {
        let (put, delete) = (kv.put(key, "", None).await, kv.delete(key, None).await);
        for error in [put.unwrap_err().to_string(), delete.unwrap_err().to_string()] {
            assert!(error.contains("permission denied"), "{key}: {error}");
        }
    }

    // Again: a new certificate, and nothing else is different.
    let before = std::fs::read(out.join("a.etcd-client.crt")).unwrap();
    invite(&invitation(&etcd, &pki, &out)).await.unwrap();
    assert_ne!(std::fs::read(out.join("a.etcd-client.crt")).unwrap(), before);
    let root = etcd.config(&pki, "root");
    assert!(uninvite(&root, Reads::Published, &name("west")).await.unwrap());
    assert!(!uninvite(&root, Reads::Published, &name("west")).await.unwrap(), "it is gone already");
    let refused = kv.get("cilium/state/", prefix()).await.unwrap_err().to_string();
    assert!(refused.contains("permission denied") || refused.contains("user name not found"), "{refused}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_or_an_etcd_without_authentication_gives_nothing_away() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let out = folder.path().join("for-west");
    let stranger = Pki::new();
    let mut wrong = invitation(&etcd, &pki, &out);
    wrong.ca_key = stranger.path("ca.key");
    let told = invite(&wrong).await.unwrap_err().to_string();
    assert!(told.contains("ca.key") && told.contains("is not the key of any"), "{told}");
    wrong.ca_key = PathBuf::from("/nowhere/ca.key");
    let told = invite(&wrong).await.unwrap_err().to_string();
    assert!(told.contains("/nowhere/ca.key"), "{told}");
    let mut plain = invitation(&etcd, &pki, &out);
    plain.endpoints = vec!["http://192.0.2.1:2379".to_owned()];
    let told = invite(&plain).await.unwrap_err().to_string();
    assert!(told.contains("endpoints[0]") && told.contains("plaintext"), "{told}");
    // With the rights of an agent no user can be made.
    let mut agent = invitation(&etcd, &pki, &out);
    agent.etcd = etcd.config(&pki, "nobody");
    let told = invite(&agent).await.unwrap_err().to_string();
    assert!(told.contains("adding role remote"), "{told}");
    etcd.client(&pki, "root").await.auth_disable().await.unwrap();
    let told = invite(&invitation(&etcd, &pki, &out)).await.unwrap_err().to_string();
    assert!(told.contains("can be read") && told.contains("etcdctl auth enable"), "{told}");
    assert!(!out.exists(), "nothing was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_those_of_the_partner() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let mut invitation = invitation(&etcd, &pki, &folder.path().join("for-west"));
    invitation.folder_there = Some(PathBuf::from("/var/lib/cilium/clustermesh"));
    invitation.endpoints = vec!["https://a.mesh.cilium.io:2379".to_owned()];
    let invited = invite(&invitation).await.unwrap();
    let config = theirs(&invited.files[0]);
    assert_eq!(config.endpoints, ["https://a.mesh.cilium.io:2379"]);
    let key = config.key_file.unwrap();
    assert_eq!(key, Path::new("/var/lib/cilium/clustermesh/a.etcd-client.key"));
}

/// An agent behind a relay needs no more than this: it reads every mirror and what the relay says, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_mirrors_reads_through_them_and_can_do_nothing_else() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let (a, b) = tokio::join!(Etcd::start(&pki, "a"), Etcd::start(&pki, "b"));
    let agent = Agent::start(&a, &pki, 1, folder.path(), |_| {});
    agent.publish(&["n1"]).await;
    let (remotes, through) = (folder.path().join("remotes"), folder.path().join("through"));
    [&remotes, &through].iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
    a.write_file(&pki, "remote", &remotes.join("a"));
    let mut config = RelayConfig::new(name("b"), "r1".into(), remotes, b.config(&pki, "admin-b"));
    config.cluster_id = Some(id(2));
    config.heartbeat = Some(Duration::from_secs(1));
    let cancel = CancellationToken::new();
    let (_relay, task) = relay::start(config, cancel.clone()).await;

    let invitation = Invitation {
        cluster: name("b"),
        partner: name("b"),
        reads: Reads::Mirrors,
        ..invitation(&b, &pki, &folder.path().join("for-b"))
    };
    let invited = invite(&invitation).await.unwrap();
    assert_eq!(invited.user, "local-b");
    // The certificates as they are, the client file under the name of the cluster that is mirrored.
    for file in &invited.files {
        let name = file.file_name().unwrap().to_str().unwrap();
        std::fs::copy(file, through.join(if name == "b" { "a" } else { name })).unwrap();
    }
    let config = MeshConfig {
        cluster: name("b"),
        cluster_id: Some(id(2)),
        max: MaxClusters::C255,
        folder: through,
        snapshots: None,
        allow_plaintext: false,
        own: None,
        timers: Timers { config_retry: Duration::from_millis(200), ..Timers::default() },
        limits: Limits::default(),
        exports: true,
        preference: ServicePreference::default(),
        mirror: false,
        relay: None,
    };
    let (mesh, followers) = follower::start(config, Arc::new(Recorder::default()), cancel.clone()).await;
    let status = async || mesh.status().await.remove(0);
    until("the mirror to be read", async || status().await.ready).await;
    let read = status().await;
    assert_eq!((read.name.as_str(), read.counts[&Kind::Nodes]), ("a", 1));
    assert!(read.relay.is_some_and(|relay| relay.ready), "the relay's word is read, too");

    let (client, _) = theirs(&invited.files[0]).client().await.unwrap();
    let mut kv = client.kv_client();
    let prefix = || Some(etcd_client::GetOptions::new().with_prefix());
    for bad in ["cilium/", "cilium/state/", "tombolo/", "tombolo/published/", "x"] {
        let error = kv.get(bad, prefix()).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{bad}: {error}");
    }
    let own =
        ["cilium/cache/nodes/v1/a/n1", "cilium/cluster-config/a", "cilium/.heartbeat", "tombolo/relay/x"];
    for key in own.into_iter().chain(["cilium/state/x", "cilium/synced/a/x", "tombolo/x"]) {
        let (put, delete) = (kv.put(key, "", None).await, kv.delete(key, None).await);
        for error in [put.unwrap_err().to_string(), delete.unwrap_err().to_string()] {
            assert!(error.contains("permission denied"), "{key}: {error}");
        }
    }
    let root = b.config(&pki, "root");
    assert!(!uninvite(&root, Reads::Published, &name("b")).await.unwrap(), "that user was never made");
    assert!(uninvite(&root, Reads::Mirrors, &name("b")).await.unwrap());
    cancel.cancel();
    followers.await.unwrap();
    task.await.unwrap();
    agent.stop().await;
}

/// While a CA is replaced, both stand in every CA file: partners get certificates of the one whose key is named, and trust both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_ca_is_replaced_either_key_lets_in() {
    let (pki, next) = (Pki::new(), Pki::new());
    let folder = tempfile::tempdir().unwrap();
    let pem = |of: &Pki| std::fs::read_to_string(of.path("ca.crt")).unwrap();
    let (old, new) = (pem(&pki), pem(&next));
    for (number, bundle) in [[&*old, &*new].concat(), [&*new, &*old].concat()].into_iter().enumerate() {
        std::fs::write(pki.path("ca.crt"), &bundle).unwrap();
        let etcd = Etcd::start(&pki, "a").await;
        for (whose, of) in [("old", &pki), ("new", &next)] {
            let out = folder.path().join(format!("{number}-{whose}"));
            let invitation = Invitation { ca_key: of.path("ca.key"), ..invitation(&etcd, &pki, &out) };
            let invited = invite(&invitation).await.unwrap_or_else(|error| panic!("{whose} key: {error}"));
            // It was proved with the certificate; what the partner trusts servers by is the whole.
            let config = theirs(&invited.files[0]);
            let theirs = std::fs::read_to_string(config.trusted_ca_file.as_ref().unwrap()).unwrap();
            assert_eq!(theirs, bundle);
        }
    }
}
