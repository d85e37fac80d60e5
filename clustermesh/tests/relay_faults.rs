//! What may befall a relay and the etcds on its sides: none of it takes anything from who reads the mirrors.
#![cfg(test)]

mod rig;

use rig::reader::{Reader, reading};
use rig::relay::{Relay, World, assert_exact, below, ip, publish, put};
use rig::{Etcd, until};
use std::time::Duration;
use tombolo_clustermesh::follower::{Limits, MeshConfig};
use tombolo_clustermesh::wire::Kind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_etcds_on_either_side_take_nothing_from_agents() {
    let (mut world, relay) = World::mirrored().await;
    let through = Reader::start(reading(&world.through("agent"))).await;
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
    let limits = Limits { services_stale: Some(Duration::from_secs(4)), ..Limits::default() };
    let through = Reader::start(MeshConfig { limits, ..reading(&world.through("agent")) }).await;
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

/// An own etcd that takes less than the cluster's: what is too large costs itself, and is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_own_etcd_refuses_costs_itself_only() {
    let mut world = World::new().await;
    let small = Etcd::start_with(&world.pki, "b", &["--max-request-bytes", "20000"]).await;
    let large = format!(
        r#"{{"Name":"n9","Cluster":"a","ClusterID":1,"Annotations":{{"x":"{}"}}}}"#,
        "y".repeat(30_000)
    );
    put(&world.at_a().await, [("cilium/state/nodes/v1/a/n9".to_owned(), large.clone())]).await;
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
    // What is mended there, or goes, is told no more.
    let (node, key) = (r#"{"Name":"n9","Cluster":"a","ClusterID":1}"#, "cilium/state/nodes/v1/a/n9");
    put(&world.at_a().await, [(key.to_owned(), node.to_owned())]).await;
    world.entries.insert(key.to_owned(), node.to_owned());
    until("the entry", async || !below(&at_small, "cilium/cache/nodes/v1/a/n9").await.is_empty()).await;
    until("the warning to go", async || relay.of("a").await.mirror.warnings.is_empty()).await;
    assert_exact(&at_small, &world.entries).await;
    put(&world.at_a().await, [(key.to_owned(), large)]).await;
    until("the warning", async || relay.of("a").await.mirror.warnings.len() == 1).await;
    world.at_a().await.kv_client().delete(key, None).await.unwrap();
    until("the warning to go", async || relay.of("a").await.mirror.warnings.is_empty()).await;
    relay.stop().await;
}

/// As cloned machines have: both take their host's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_relays_of_one_name_take_the_election_from_each_other_once_and_say_so() {
    let (world, one) = World::mirrored().await;
    let two = world.relay("r1").await;
    two.complete("a").await;
    let told = "another relay named r1 runs";
    until("the first one to tell", async || {
        let status = one.handle.status().await;
        status.connected
            && status.warnings.iter().any(|text| text.contains(told) && text.contains("relay.name"))
    })
    .await;
    let before = one.handle.status().await.reconnections;
    // Many times as long as either would take to come back.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (first, second) = (one.handle.status().await, two.handle.status().await);
    assert_eq!((first.leader, first.reconnections), (false, before), "{first:?}");
    assert_eq!((second.leader, second.reconnections), (true, 0), "{second:?}");
    assert_eq!(second.warnings, Vec::<String>::new());
    // It goes on when the other one ends.
    two.kill().await;
    until("the first one to be elected, and to tell nothing any more", async || {
        let status = one.handle.status().await;
        status.leader && status.warnings.is_empty()
    })
    .await;
    one.complete("a").await;
    assert_exact(&world.at_b().await, &world.entries).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_stops_at_once_while_its_etcd_is_a_black_hole() {
    let mut world = World::new().await;
    world.b.stop();
    // Connections come about, and nothing answers on them.
    let hole = tokio::net::TcpListener::bind(("127.0.0.1", world.b.port)).await.unwrap();
    let relay = world.relay("r1").await;
    let _held = hole.accept().await.unwrap();
    let start = std::time::Instant::now();
    relay.stop().await;
    assert!(start.elapsed() < Duration::from_secs(2), "stopped after {:?}", start.elapsed());
}
