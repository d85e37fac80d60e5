//! Relays over real etcds with mutual TLS: cluster a is mirrored into cluster b's etcd, by one relay after the other.
#![cfg(test)]

mod rig;

use etcd_client::GetOptions;
use rig::reader::{Reader, reading};
use rig::relay::{
    CONFIG, Relay, World, a_file, assert_exact, below, count, ip, mirror_of, put, whole_mirror,
};
use rig::{Etcd, until};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tombolo_clustermesh::follower::MeshConfig;
use tombolo_clustermesh::publisher::Desired;
use tombolo_clustermesh::wire::{EndpointSlice, Kind};

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
    let direct = Reader::start(reading(&world.remotes())).await;
    let through = Reader::start(reading(&world.through("agent"))).await;
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
    let (world, one) = World::mirrored().await;
    let at_b = world.at_b().await;
    let two = world.relay("r2").await;
    until("the second relay to have read", async || two.of("a").await.remote.ready).await;
    let through = Reader::start(reading(&world.through("agent"))).await;
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
    let (world, relay) = World::mirrored().await;
    let at_b = world.at_b().await;
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
async fn agents_go_from_direct_to_relay_and_back_without_a_gap() {
    let (world, relay) = World::mirrored().await;
    let folder = world.subfolder("agent");
    a_file(&world.a, &world.pki, &folder);
    let agent = Reader::start(reading(&folder)).await;
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
    let set = Reader::start(MeshConfig { relay: Some(own), ..reading(&world.remotes()) }).await;
    set.ready("a").await;
    assert!(set.status("a").await.config.kvstoremesh);
    relay.stop().await;
}

/// A relay may read what another one wrote, and says what that one cannot confirm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_a_mirror_is_the_same() {
    let (mut world, first) = World::mirrored().await;
    let third = Etcd::start(&world.pki, "b").await;
    let second = Relay::start(&third, &world.pki, "r1", &world.through("second")).await;
    second.complete("a").await;
    let at_third = third.client(&world.pki, "root").await;
    assert_exact(&at_third, &world.entries).await;
    assert_eq!(below(&at_third, "cilium/cache/").await, below(&world.at_b().await, "cilium/cache/").await);
    world.a.stop();
    until("the second relay to be told", async || !second.of("a").await.remote.ready).await;
    until("its readers to be told", async || {
        let reports = below(&at_third, "tombolo/relay/a/status").await;
        let told = |report: &String| {
            report.contains("\"ready\":false") && report.contains("the relay r1 does not confirm it")
        };
        reports.values().any(told)
    })
    .await;
    assert_exact(&at_third, &world.entries).await;
    tokio::join!(first.stop(), second.stop());
}

/// The relay reads the new form long before its readers look whether there is one: until then they have the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_changes_its_form_loses_no_backend_at_readers_of_its_mirror() {
    let world = World::new().await;
    let (at_a, at_b) = (world.at_a().await, world.at_b().await);
    // Both followers look at the configuration each 30 times their retry.
    let relay = Relay::start_with(&world.b, &world.pki, "r1", &world.remotes(), |config| {
        config.timers.config_retry = Duration::from_millis(20);
        config.removal_grace = Duration::from_secs(9);
    })
    .await;
    relay.complete("a").await;
    let through = Reader::start(reading(&world.through("agent"))).await;
    through.ready("a").await;
    let slice = Desired::slice(&EndpointSlice::new("a", 1, "shop", "web-1", true)).unwrap();
    at_a.kv_client().put(slice.key, slice.value, None).await.unwrap();
    let config = CONFIG.replace("services-and-endpointslices", "endpointslices-only");
    put(&at_a, [("cilium/cluster-config/a".to_owned(), config)]).await;
    until("the relay to pass it on", async || {
        let passed_on = below(&at_b, "cilium/cluster-config/a").await;
        passed_on.values().all(|text| text.contains("only")) && relay.of("a").await.mirror.complete
    })
    .await;
    let forms = || {
        let view = through.seen.view("a");
        (view.count(Kind::Services), view.count(Kind::EndpointSlices))
    };
    assert_eq!(forms(), (1, 0), "its reader has not looked yet");
    until("the reader to have the new form", async || {
        let held = forms();
        assert!(held == (1, 0) || held == (0, 1), "{held:?}");
        held == (0, 1)
    })
    .await;
    assert_eq!(below(&at_b, "cilium/cache/services/").await.len(), 2, "others may not have looked yet");
    until("the old form to go", async || below(&at_b, "cilium/cache/services/").await.is_empty()).await;
    assert!(relay.of("a").await.mirror.complete);
    relay.stop().await;
}
