//! Publish in cluster a, follow from cluster b, over real etcds with mutual TLS and roles; and every fault between.
#![cfg(test)]

mod rig;

use rig::agent::{Agent, id, labels, name, raw};
use rig::reader::{Reader, remembering};
use rig::{Etcd, Pki, until};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::ids::IdentityId;
use tombolo_base::source::SourceState;
use tombolo_clustermesh::MeshError;
use tombolo_clustermesh::etcd::EtcdConfig;
use tombolo_clustermesh::follower::MeshConfig;
use tombolo_clustermesh::publisher::PublisherConfig;
use tombolo_clustermesh::wire::Kind;

/// An agent of cluster a itself.
fn sibling(folder: &Path, own: EtcdConfig) -> MeshConfig {
    MeshConfig { cluster: name("a"), cluster_id: Some(id(1)), own: Some(own), ..remembering(folder) }
}

fn remotes(folder: &Path) -> std::path::PathBuf {
    let remotes = folder.join("remotes");
    std::fs::create_dir_all(&remotes).unwrap();
    remotes
}

/// Two agents that have published, and a reader that has seen it.
async fn two_agents(pki: &Pki, etcd: &Etcd, folder: &Path) -> (Agent, Agent, Reader) {
    let one = Agent::start(etcd, pki, 1, folder, |_| {});
    let two = Agent::start(etcd, pki, 2, folder, |_| {});
    let identities = tokio::join!(one.publish(&["n1", "n2"]), two.publish(&["n1", "n2"]));
    assert_eq!(identities.0, identities.1, "equal labels, one number");
    etcd.write_file(pki, "remote", &remotes(folder).join("a.yaml"));
    let reader = Reader::start(remembering(folder)).await;
    reader.ready("a").await;
    (one, two, reader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_followed_and_removal_drains() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = two_agents(&pki, &etcd, folder.path()).await;
    let view = reader.seen.view("a");
    assert_eq!(view.names(Kind::Nodes), ["n1", "n2"]);
    assert_eq!(view.count(Kind::Ips), 4);
    assert_eq!((view.count(Kind::Identities), view.names(Kind::Services)), (1, vec!["shop/web"]));
    assert_eq!(view.deletes, 0);
    let status = reader.status("a").await;
    assert_eq!(status.config.cluster_id, Some(1));
    assert!(status.config.sync_canaries && status.rejected.total() == 0, "{status:?}");
    // What publisher, allocator and follower asked of etcd was timed.
    let timed = rig::operations();
    for labels in [
        "scope=\"ip/v1\",kind=\"set\",action=\"Update\",outcome=\"success\"",
        "scope=\"identities/v1\",kind=\"set\",action=\"CreateOnly\",outcome=\"success\"",
        "scope=\"ip/v1\",kind=\"read\",action=\"ListPrefix\",outcome=\"success\"",
    ] {
        assert!(
            timed.contains(&format!("_operations_duration_seconds_count{{{labels}}} ")),
            "{labels}: {timed}"
        );
    }
    assert!(status.certificate_expires_unix_secs.is_some());
    // One pod goes; one bad entry costs only itself.
    two.handle.set_node([]);
    let mut client = etcd.client(&pki, "admin-a").await;
    client.put("cilium/state/ip/v1/default/10.9.9.9", r#"{"IP":"10.9.9.8","ID":65800}"#, None).await.unwrap();
    until("the removal", async || {
        let view = reader.seen.view("a");
        view.count(Kind::Ips) == 2 && view.names(Kind::Nodes) == ["n1"]
    })
    .await;
    until("the refusal", async || reader.status("a").await.rejected.total() == 1).await;
    let dump = serde_json::to_value(reader.mesh.dump().await).unwrap();
    assert_eq!(dump["nodes"]["a/n1"]["Name"], "n1");
    assert_eq!(dump["services"]["a/shop/web"]["cluster"], "a");
    let labels = dump["identities"].as_object().unwrap().values().next().unwrap().as_str().unwrap();
    assert!(labels.starts_with("k8s:app=web;"), "{labels}");
    assert_eq!(dump["ips"]["10.1.1.2"]["host"], "192.0.2.1");
    assert_eq!(dump["ips"]["fd00:10:1:1::2"]["key"], 0);
    assert_eq!(
        dump["status"]["clusters"][0],
        serde_json::json!({"name": "a", "ready": true, "reason": "ready"})
    );
    assert_eq!(dump["rejected"]["key-mismatch"][0], "cilium/state/ip/v1/default/10.9.9.9");
    // The file goes: everything goes.
    std::fs::remove_file(folder.path().join("remotes/a.yaml")).unwrap();
    until("the drain", async || reader.seen.view("a").gone).await;
    assert!(reader.seen.view("a").records.is_empty());
    tokio::join!(one.stop(), two.stop(), reader.stop());
}

/// Exports are announced, published with their canary, followed, dumped, kept on disk; and of a cluster that announces none
/// nothing is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_are_followed_where_they_are_announced() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |config| config.exports = true);
    one.publish(&["n1"]).await;
    etcd.write_file(&pki, "remote", &remotes(folder.path()).join("a.yaml"));
    let own = etcd.config(&pki, "admin-a");
    // Another cluster's agent, and another node of the same cluster.
    let reader = Reader::start(remembering(folder.path())).await;
    let sibling = Reader::start(sibling(&folder.path().join("own"), own)).await;
    for reader in [&reader, &sibling] {
        reader.ready("a").await;
        until("the export", async || reader.seen.view("a").names(Kind::ServiceExports) == ["shop/web"]).await;
    }
    let key = "cilium/state/serviceexports/v1/a/shop/web";
    assert_eq!(raw(&etcd, &pki, key).await.len(), 1);
    assert_eq!(raw(&etcd, &pki, "cilium/synced/a/cilium/state/serviceexports/v1").await.len(), 1);
    let dump = serde_json::to_value(reader.mesh.dump().await).unwrap();
    assert_eq!(dump["exports"]["a/shop/web"]["exportCreationTimestamp"], "2023-11-14T22:13:20Z");
    reader.stop().await;
    // A restart while the cluster is away: what was exported is still known.
    let snapshot = std::fs::read_to_string(folder.path().join("snapshots/a.json")).unwrap();
    assert!(
        snapshot.contains("serviceexports") && snapshot.contains("exportCreationTimestamp"),
        "{snapshot}"
    );
    let reader = Reader::start(remembering(folder.path())).await;
    until("the snapshot", async || reader.seen.view("a").count(Kind::ServiceExports) == 1).await;
    // It stops announcing them: what was known goes, and nobody waits for a canary.
    one.stop().await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    until("the exports to go", async || {
        reader.seen.view("a").count(Kind::ServiceExports) == 0 && reader.status("a").await.ready
    })
    .await;
    assert!(raw(&etcd, &pki, key).await.is_empty());
    tokio::join!(one.stop(), reader.stop(), sibling.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_shown_before_all_nodes_have_published() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1", "n2"]).await;
    etcd.write_file(&pki, "remote", &remotes(folder.path()).join("a.yaml"));
    let reader = Reader::start(remembering(folder.path())).await;
    let mut published = one.handle.status();
    published.wait_for(|status| status.published && status.leader).await.unwrap();
    until("the configuration", async || reader.status("a").await.config.retrieved).await;
    assert!(raw(&etcd, &pki, "cilium/synced/a/").await.is_empty(), "no canary before the second node");
    assert_eq!((reader.seen.view("a").records.len(), reader.status("a").await.ready), (0, false));
    let two = Agent::start(&etcd, &pki, 2, folder.path(), |_| {});
    two.publish(&["n1", "n2"]).await;
    reader.ready("a").await;
    assert_eq!(reader.seen.view("a").names(Kind::Nodes), ["n1", "n2"]);
    tokio::join!(one.stop(), two.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_of_an_earlier_life_stay_until_its_endpoints_are_counted() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let references = async || raw(&etcd, &pki, "cilium/state/identities/v1/value/").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    until("the reference", async || references().await.len() == 1).await;
    let before = references().await;
    one.stop().await;

    // The next life knows what it publishes before it has looked at every endpoint.
    let next = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    next.handle.set_node([]);
    let identities = next.handle.identities();
    for app in ["first", "second"] {
        // Whoever is asked for the second has compared etcd with what is in use after the first.
        until("an identity", async || identities.allocate(&labels(app)).await.is_ok()).await;
    }
    until("the new references", async || references().await.len() == 3).await;
    assert!(references().await.contains(&before[0]), "neither deleted nor written again");

    identities.allocate(&labels("web")).await.unwrap();
    identities.all_counted();
    ["first", "second"].iter().for_each(|app| identities.release(&labels(app)));
    until("what nobody uses to go", async || references().await == before).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_come_after_the_wait_when_a_node_is_dead() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one =
        Agent::start(&etcd, &pki, 1, folder.path(), |config| config.canary_wait = Duration::from_secs(3));
    one.publish(&["n1", "never"]).await;
    one.handle.status().wait_for(|status| status.canaries).await.unwrap();
    assert_eq!(raw(&etcd, &pki, "cilium/synced/a/").await.len(), 4);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_etcd_deletes_nothing_and_ends_as_a_diff() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = two_agents(&pki, &etcd, folder.path()).await;
    let before = reader.seen.view("a");
    etcd.stop();
    until("the loss to be seen", async || !reader.status("a").await.connected).await;
    let status = reader.status("a").await;
    assert!(status.stale_secs.is_some() && status.last_failure.is_some(), "{status:?}");
    assert_eq!(reader.seen.view("a").state, Some(SourceState::Stale));
    // Known label sets resolve while etcd is down; unknown ones fail with the reason.
    let web = one.handle.identities().allocate(&labels("web")).await.unwrap();
    assert_eq!(Some(web), one.handle.identities().lookup(&labels("web")));
    let error = one.handle.identities().allocate(&labels("new")).await.unwrap_err();
    assert!(matches!(&error, MeshError::Unknown { .. }), "{error}");
    two.handle.set_node([]);
    etcd.restart(&pki).await;
    until("the diff", async || reader.seen.view("a").deletes >= 3).await;
    let after = reader.seen.view("a");
    assert_eq!(after.names(Kind::Nodes), ["n1"]);
    assert_eq!((after.upserts, after.deletes), (before.upserts, 3), "only the node and its two addresses go");
    until("etcd to be asked again", async || one.handle.identities().allocate(&labels("new")).await.is_ok())
        .await;
    tokio::join!(one.stop(), two.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_etcd_deletes_nothing_and_is_filled_again() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = two_agents(&pki, &etcd, folder.path()).await;
    let before = reader.seen.view("a");
    etcd.wipe(&pki).await;
    until("the canaries", async || raw(&etcd, &pki, "cilium/synced/a/").await.len() == 4).await;
    until("the loss to be seen", async || reader.status("a").await.reconnections > 0).await;
    reader.ready("a").await;
    let after = reader.seen.view("a");
    assert_eq!((after.upserts, after.deletes), (before.upserts, 0), "nothing changed for readers");
    assert_eq!(after.records, before.records);
    assert_eq!(raw(&etcd, &pki, "cilium/state/identities/v1/id/").await.len(), 1);
    assert_eq!(raw(&etcd, &pki, "tombolo/lb/").await.len(), 1);
    tokio::join!(one.stop(), two.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_while_following_loses_nothing() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = two_agents(&pki, &etcd, folder.path()).await;
    let mut client = etcd.client(&pki, "root").await;
    for round in 0..40 {
        client.put("tombolo/noise", format!("{round}"), None).await.unwrap();
    }
    let revision = client.get("tombolo/noise", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    two.handle.set_node([]);
    until("the change", async || reader.seen.view("a").names(Kind::Nodes) == ["n1"]).await;
    etcd.restart(&pki).await;
    two.publish(&["n1", "n2"]).await;
    until("the other change", async || reader.seen.view("a").names(Kind::Nodes) == ["n1", "n2"]).await;
    tokio::join!(one.stop(), two.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_resumes_its_leases_and_rewrites_nothing() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    let identity = one.publish(&["n1"]).await;
    one.handle.status().wait_for(|status| status.canaries).await.unwrap();
    let before = raw(&etcd, &pki, "cilium/state/").await;
    one.stop().await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    assert_eq!(one.publish(&["n1"]).await, identity);
    one.handle.status().wait_for(|status| status.published && status.canaries).await.unwrap();
    assert_eq!(raw(&etcd, &pki, "cilium/state/").await, before, "same leases, same revisions");
    // The pod's removal while the agent was away is found by its lease.
    let leftover = raw(&etcd, &pki, "cilium/state/ip/v1/default/10.1.1.2").await;
    assert_eq!(leftover.len(), 1);
    one.handle.set_node([]);
    until("the prune", async || raw(&etcd, &pki, "cilium/state/ip/").await.is_empty()).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leftovers_of_dead_agents_are_swept_before_the_canaries() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let mut client = etcd.client(&pki, "admin-a").await;
    let dead = "cilium/state/ip/v1/default/10.1.7.7";
    let lease = client.lease_grant(900, None).await.unwrap().id();
    let leased = etcd_client::PutOptions::new().with_lease(lease);
    client.put(dead, r#"{"IP":"10.1.7.7","ID":65800}"#, Some(leased)).await.unwrap();
    client.put("cilium/state/nodes/v1/a/dead", "{}", None).await.unwrap();
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    one.handle.status().wait_for(|status| status.canaries).await.unwrap();
    assert!(raw(&etcd, &pki, dead).await.is_empty());
    let nodes = raw(&etcd, &pki, "cilium/state/nodes/").await;
    assert_eq!(
        nodes.iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>(),
        ["cilium/state/nodes/v1/a/n1"]
    );
    assert_eq!(one.handle.status().borrow().swept, 2);
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_allocators_race_without_duplicates() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let agents: Vec<Agent> = (1..=8).map(|n| Agent::start(&etcd, &pki, n, folder.path(), |_| {})).collect();
    for agent in &agents {
        agent.handle.status().wait_for(|status| status.connected).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for agent in &agents {
        for set in 0..12 {
            let (identities, number) = (agent.handle.identities().clone(), agent.number);
            tasks.spawn(async move {
                // Every agent asks for all shared sets, in another order, and for some of its own.
                let shared = (set + u32::from(number)) % 12;
                let app = format!("shared-{shared}");
                let own = format!("own-{number}-{set}");
                let one = identities.allocate(&labels(&app)).await.unwrap();
                let two = identities.allocate(&labels(&own)).await.unwrap();
                [(app, one), (own, two)]
            });
        }
    }
    let mut numbers = std::collections::BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        for (app, id) in done.unwrap() {
            let before = numbers.insert(app.clone(), id);
            assert!(before.is_none_or(|before| before == id), "{app} has two numbers");
        }
    }
    assert_eq!(numbers.len(), 12 + 8 * 12);
    let distinct: BTreeSet<IdentityId> = numbers.values().copied().collect();
    assert_eq!(distinct.len(), numbers.len(), "one number for two sets");
    assert!(distinct.iter().all(|id| (65536 + 256..131072).contains(&id.0)));
    assert_eq!(raw(&etcd, &pki, "cilium/state/identities/v1/id/").await.len(), numbers.len());
    assert!(raw(&etcd, &pki, "cilium/state/identities/v1/locks/").await.is_empty(), "no lock left");
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_agent_is_elected_when_the_leader_goes() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let short = |config: &mut PublisherConfig| config.election_ttl = Duration::from_secs(3);
    let one = Agent::start(&etcd, &pki, 1, folder.path(), short);
    one.handle.leader().wait_for(|leads| *leads).await.unwrap();
    let two = Agent::start(&etcd, &pki, 2, folder.path(), short);
    tokio::join!(one.publish(&["n1", "n2"]), two.publish(&["n1", "n2"]));
    one.handle.status().wait_for(|status| status.canaries).await.unwrap();
    assert!(!two.handle.status().borrow().leader);
    let config = raw(&etcd, &pki, "cilium/cluster-config/a").await;
    one.stop().await;
    two.handle.status().wait_for(|status| status.canaries).await.unwrap();
    let taken = raw(&etcd, &pki, "cilium/cluster-config/a").await;
    assert_ne!(config[0].1, taken[0].1, "the configuration hangs on the new leader's lease");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_nodes_of_the_own_cluster_are_followed_too() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1", "never"]).await;
    let own = etcd.config(&pki, "admin-a");
    let reader = Reader::start(sibling(folder.path(), own)).await;
    // Before the canaries: what is there is used at once, only nothing is deleted.
    until("the node", async || reader.seen.view("a").names(Kind::Nodes) == ["n1"]).await;
    until("the assignment", async || reader.seen.view("a").names(Kind::Assignments) == ["shop/web"]).await;
    assert!(!reader.seen.is_initialized("a"));
    one.handle.set_nodes([Arc::from("n1")]);
    reader.ready("a").await;
    // Everything was listed once more then: each kind gives one watch up and asks for another one on the same stream.
    assert_eq!(reader.status("a").await.reconnections, 0);
    assert_eq!(reader.seen.view("a").count(Kind::Services), 0, "own services come from the manifests");
    tokio::join!(one.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_reader_starts_with_what_it_knew_and_broken_files_cost_only_themselves() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let (one, two, reader) = two_agents(&pki, &etcd, folder.path()).await;
    let before = reader.seen.view("a");
    reader.stop().await;
    etcd.stop();
    std::fs::write(folder.path().join("remotes/c.yaml"), "endpoints: [http://192.0.2.1:1]\n").unwrap();
    let reader = Reader::start(remembering(folder.path())).await;
    // Whoever prunes from here on knows of whom to spare, the one with the broken file included.
    assert!(
        reader.seen.view("a").state.is_some() && reader.seen.view("c").state == Some(SourceState::Pending)
    );
    until("the snapshot", async || reader.seen.view("a").records == before.records).await;
    assert_eq!(reader.seen.view("a").state, Some(SourceState::Stale));
    assert!(reader.status("c").await.status.contains("plaintext"));
    etcd.restart(&pki).await;
    reader.ready("a").await;
    assert_eq!(reader.seen.view("a").deletes, 0);
    std::fs::remove_file(folder.path().join("remotes/c.yaml")).unwrap();
    until("the broken file's cluster to be given up", async || reader.seen.view("c").gone).await;
    tokio::join!(one.stop(), two.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_and_a_stranger_are_told_what_to_do() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    etcd.write_file(&pki, "nobody", &remotes(folder.path()).join("a.yaml"));
    let reader = Reader::start(remembering(folder.path())).await;
    until("the refusal", async || reader.status("a").await.last_failure.is_some()).await;
    let text = reader.status("a").await.last_failure.unwrap().text;
    assert!(text.contains("denied") && text.contains("role"), "{text}");
    let other = Pki::new();
    etcd.write_file(&other, "remote", &folder.path().join("remotes/a.yaml"));
    // The server's certificate is signed by another CA than the one named.
    let ca = other.path("ca.crt").display().to_string();
    failure_of(&reader, &ca, "no CA in this file signed").await;
    // Ours is: the server is trusted, but does not trust us.
    let mixed = etcd
        .file_text(&pki, "remote")
        .replace(&pki.path("remote.").display().to_string(), &other.path("remote.").display().to_string());
    std::fs::write(folder.path().join("remotes/a.yaml"), mixed).unwrap();
    failure_of(&reader, &other.path("remote.crt").display().to_string(), "refuses this client certificate")
        .await;
    reader.stop().await;
}

/// Waits for a failure that begins with the file at fault and says what is wrong, on one line.
async fn failure_of(reader: &Reader, file: &str, reason: &str) {
    let mut last = None;
    until(reason, async || {
        last = reader.status("a").await.last_failure;
        last.as_ref().is_some_and(|failure| failure.text.starts_with(file) && failure.text.contains(reason))
    })
    .await;
    let text = last.unwrap().text;
    assert!(!text.contains('\n') && text.contains("; "), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_certificate_names_its_file_and_one_that_ends_soon_is_told() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    let file = remotes(folder.path()).join("a.yaml");
    let (cert, key) = (pki.path("remote.crt"), pki.path("remote.key"));
    let (good_cert, good_key) = (std::fs::read(&cert).unwrap(), std::fs::read(&key).unwrap());
    std::fs::write(&cert, "garbage").unwrap();
    etcd.write_file(&pki, "remote", &file);
    let reader = Reader::start(remembering(folder.path())).await;
    failure_of(&reader, &cert.display().to_string(), "holds no certificate").await;
    std::fs::write(&cert, &good_cert).unwrap();
    std::fs::copy(pki.path("nobody.key"), &key).unwrap();
    failure_of(&reader, &key.display().to_string(), "is not the key of").await;
    pki.issue_with("remote", &[], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    failure_of(&reader, &cert.display().to_string(), "expired at 2020-01-01").await;
    // Soon to end: it works, and is told.
    pki.issue_with("remote", &[], |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = std::time::SystemTime::now()
            .checked_add(Duration::from_secs(3 * 86_400 + 43_200))
            .unwrap()
            .into();
    });
    reader.ready("a").await;
    let status = reader.status("a").await;
    assert!(status.warnings[0].contains("remote.crt expires in 3 days"), "{:?}", status.warnings);
    assert_eq!(status.certificate_left.as_deref(), Some("3d"));
    std::fs::write(&cert, good_cert).unwrap();
    std::fs::write(&key, good_key).unwrap();
    tokio::join!(one.stop(), reader.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_somebody_else_changes_or_deletes_are_written_again_at_once() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    one.handle.status().wait_for(|status| status.published && status.canaries).await.unwrap();
    let mut client = etcd.client(&pki, "admin-a").await;
    let values = async |client: &mut etcd_client::Client| {
        let options = etcd_client::GetOptions::new().with_prefix();
        let mut all = client.get("cilium/", Some(options.clone())).await.unwrap().take_kvs();
        all.extend(client.get("tombolo/lb/", Some(options)).await.unwrap().take_kvs());
        let heartbeat = |kv: &etcd_client::KeyValue| kv.key().starts_with(b"cilium/.heartbeat");
        let of = |kv: etcd_client::KeyValue| (kv.key_str().unwrap().to_owned(), kv.value().to_vec());
        all.into_iter().filter(|kv| !heartbeat(kv)).map(of).collect::<Vec<_>>()
    };
    let before = values(&mut client).await;
    for key in [
        "cilium/cluster-config/a",
        "cilium/state/services/v1/a/shop/web",
        "cilium/synced/a/cilium/state/ip/v1",
        "cilium/state/nodes/v1/a/n1",
        "tombolo/lb/shop/web",
    ] {
        client.delete(key, None).await.unwrap();
        until(key, async || values(&mut client).await == before).await;
        client.put(key, "garbage", None).await.unwrap();
        until(key, async || values(&mut client).await == before).await;
    }
    client.put("cilium/state/services/v1/a/shop/intruder", "{}", None).await.unwrap();
    until("the intruder to go", async || values(&mut client).await == before).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_is_measured_by_the_beats_of_the_elected_agent_with_a_readers_rights() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |config| config.beat = Duration::from_millis(100));
    one.publish(&["n1"]).await;
    etcd.write_file(&pki, "remote", &remotes(folder.path()).join("a.yaml"));
    let reader = Reader::start(remembering(folder.path())).await;
    reader.ready("a").await;
    until("twenty beats", async || reader.status("a").await.lag.is_some_and(|lag| lag.lag.count >= 20)).await;
    let status = reader.status("a").await;
    let lag = status.lag.unwrap();
    assert!(lag.base_us > 0 && lag.base_us <= lag.lag.p50_us, "{lag:?}");
    assert!(lag.lag.p50_us <= lag.lag.p99_us && lag.lag.p99_us <= lag.lag.max_us, "{lag:?}");
    println!("{lag:?}, rows written after {:?}", status.commit);
    assert!(status.commit.count >= 20);
    // A beat is the heartbeat's neighbour and goes with its writer.
    let beats = raw(&etcd, &pki, "cilium/.heartbeat").await;
    assert!(beats.iter().all(|(_, lease, _)| *lease != 0) && beats.len() == 2, "{beats:?}");
    tokio::join!(one.stop(), reader.stop());
}
