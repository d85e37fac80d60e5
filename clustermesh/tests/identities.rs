//! Identities in a real etcd over their whole life: lost, restored from a backup, fought over, unused, removed.
#![cfg(test)]

mod rig;

use rig::agent::{Agent, labels, raw};
use rig::{Etcd, Pki, until};
use std::collections::BTreeMap;
use std::time::Duration;
use tombolo_base::ids::IdentityId;
use tombolo_clustermesh::publisher;

const MASTERS: &str = "cilium/state/identities/v1/id/";
const REFERENCES: &str = "cilium/state/identities/v1/value/";

/// Numbers and label texts in etcd.
async fn masters(etcd: &Etcd, pki: &Pki) -> BTreeMap<u32, String> {
    let options = etcd_client::GetOptions::new().with_prefix();
    let found = etcd.client(pki, "root").await.get(MASTERS, Some(options)).await.unwrap();
    let of = |kv: &etcd_client::KeyValue| {
        let number = kv.key_str().unwrap().strip_prefix(MASTERS).unwrap().parse().unwrap();
        (number, kv.value_str().unwrap().to_owned())
    };
    found.kvs().iter().map(of).collect()
}

async fn connected(agent: &Agent) {
    agent.handle.status().wait_for(|status| status.connected).await.unwrap();
}

async fn allocate(agent: &Agent, app: &str) -> IdentityId {
    let mut found = None;
    until("an identity", async || {
        found = agent.handle.identities().allocate(&labels(app)).await.ok();
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_uses_is_removed_by_the_elected_agent_and_what_is_used_stays() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let quick = |config: &mut publisher::PublisherConfig| config.identity_gc = Duration::from_millis(300);
    let one = Agent::start(&etcd, &pki, 1, folder.path(), quick);
    let two = Agent::start(&etcd, &pki, 2, folder.path(), quick);
    let mut numbers = BTreeMap::new();
    for (agent, app) in [(&one, "both"), (&two, "both"), (&two, "two"), (&one, "gone"), (&two, "gone")] {
        numbers.insert(app, allocate(agent, app).await);
    }
    for agent in [&one, &two] {
        agent.handle.set_node([]);
        agent.handle.identities().all_counted();
        agent.handle.identities().release(&labels("gone"));
    }
    one.handle.identities().release(&labels("both"));
    until("the unused one to go", async || masters(&etcd, &pki).await.len() == 2).await;
    let left = masters(&etcd, &pki).await;
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), {
        let mut kept = [numbers["both"].0, numbers["two"].0];
        kept.sort_unstable();
        kept
    });
    let collected = one.handle.status().borrow().collected + two.handle.status().borrow().collected;
    assert_eq!(collected, 1);
    // Both have seen it go; who needs it again gets a number that stands.
    for agent in [&one, &two] {
        until("the news", async || agent.handle.identities().lookup(&labels("gone")).is_none()).await;
    }
    let again = allocate(&one, "gone").await;
    assert!(masters(&etcd, &pki).await.contains_key(&again.0));
    tokio::join!(one.stop(), two.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_somebody_deletes_is_written_again_while_it_is_used() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    let id = allocate(&one, "web").await;
    until("the reference", async || raw(&etcd, &pki, REFERENCES).await.len() == 1).await;
    let before = masters(&etcd, &pki).await;
    let mut client = etcd.client(&pki, "root").await;
    client.delete(format!("{MASTERS}{}", id.0), None).await.unwrap();
    until("the master", async || masters(&etcd, &pki).await == before).await;
    // Deleted while the agent is away.
    one.stop().await;
    client.delete(format!("{MASTERS}{}", id.0), None).await.unwrap();
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    assert_eq!(allocate(&one, "web").await, id);
    until("the master", async || masters(&etcd, &pki).await == before).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_from_an_older_backup_everybody_has_a_number_of_its_own() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    let two = Agent::start(&etcd, &pki, 2, folder.path(), |_| {});
    let old = allocate(&one, "old").await;
    let backup = etcd.snapshot(&pki);
    let (young, younger) = (allocate(&one, "young").await, allocate(&two, "younger").await);
    until("the references", async || raw(&etcd, &pki, REFERENCES).await.len() == 3).await;
    let mut renumbered = [one.handle.identities().renumbered(), two.handle.identities().renumbered()];
    // In the backup's time a number that is in use now was given to others (an allocator that is no more).
    etcd.restore(&pki, &backup).await;
    let mut client = etcd.client(&pki, "root").await;
    let stolen = client.put(format!("{MASTERS}{}", younger.0), labels("thief").to_string(), None);
    let stolen = tokio::time::timeout(Duration::from_secs(10), stolen).await.unwrap();
    stolen.unwrap();
    for (agent, app) in [(&one, "old"), (&one, "young"), (&two, "younger")] {
        until("a master of its own", async || {
            let Some(id) = agent.handle.identities().lookup(&labels(app)) else { return false };
            masters(&etcd, &pki).await.get(&id.0) == Some(&labels(app).to_string())
        })
        .await;
    }
    let lookup = |agent: &Agent, app: &str| agent.handle.identities().lookup(&labels(app));
    assert_eq!((lookup(&one, "old"), lookup(&one, "young")), (Some(old), Some(young)), "kept their numbers");
    assert_ne!(lookup(&two, "younger"), Some(younger), "no fight for a number");
    renumbered[1].wait_for(|count| *count > 0).await.unwrap();
    assert!(!renumbered[0].has_changed().unwrap(), "who kept its numbers is told nothing");
    until("all references", async || raw(&etcd, &pki, REFERENCES).await.len() == 3).await;
    assert_eq!(masters(&etcd, &pki).await.len(), 4);
    tokio::join!(one.stop(), two.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_of_one_name_are_told_of_each_other() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    one.publish(&["n1"]).await;
    // With the canaries the sweep is over, which would take away what hangs on nobody's lease.
    one.handle.status().wait_for(|status| status.published && status.canaries).await.unwrap();
    let mut client = etcd.client(&pki, "root").await;
    let key = "cilium/state/nodes/v1/a/n1";
    let before = client.get(key, None).await.unwrap().kvs()[0].value().to_vec();
    for times in 1..=3_u64 {
        client.put(key, "the other's", None).await.unwrap();
        let mut status = one.handle.status();
        let seen = |status: &publisher::PublisherStatus| {
            status.contested.iter().any(|(name, contest)| name == key && contest.times == times)
        };
        status.wait_for(seen).await.unwrap();
        // What is written before it is mended is not seen.
        let mended = async || {
            let mut client = etcd.client(&pki, "root").await;
            client.get(key, None).await.unwrap().kvs().first().is_some_and(|kv| kv.value() == before)
        };
        until("our value", mended).await;
    }
    let now = tombolo_clustermesh::certificate::unix_now();
    let warnings = one.handle.status().borrow().warnings(now);
    assert!(
        warnings.iter().any(|warning| warning.contains(key) && warning.contains("node name")),
        "{warnings:?}"
    );
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_reads_its_own_references_and_not_those_of_a_thousand_others() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |config| config.audit = Duration::from_millis(200));
    connected(&one).await;
    let id = allocate(&one, "web").await;
    until("the reference", async || raw(&etcd, &pki, REFERENCES).await.len() == 1).await;
    // Others' references stay, whatever is in them; one of ours that goes is written again at the next audit.
    let mut client = etcd.client(&pki, "root").await;
    let others = format!("{REFERENCES}{}/", labels("web"));
    for number in 0..1000 {
        client.put(format!("{others}other-{number}"), id.0.to_string(), None).await.unwrap();
    }
    let own = format!("{others}n1");
    client.delete(own.as_str(), None).await.unwrap();
    until("the reference", async || !raw(&etcd, &pki, &own).await.is_empty()).await;
    assert_eq!(raw(&etcd, &pki, REFERENCES).await.len(), 1001);
    let ours =
        one.handle.status().borrow().contested.iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    assert_eq!(ours, [own]);
    one.stop().await;
}

/// Readers follow identities and addresses on watches of their own: an address whose identity they do not know would be nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_stands_before_an_address_names_it() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    let id = one.publish(&["n1"]).await;
    one.handle.status().wait_for(|status| status.published && status.node_keys == 3).await.unwrap();
    // Also when etcd has lost all: the canaries follow the addresses.
    for wiped in [false, true] {
        if wiped {
            etcd.wipe(&pki).await;
        }
        let addresses = async || raw(&etcd, &pki, "cilium/state/ip/v1/default/").await;
        until("the addresses", async || addresses().await.len() == 2).await;
        let master = raw(&etcd, &pki, &format!("cilium/state/identities/v1/id/{}", id.0)).await;
        let [(_, _, made)] = master.as_slice() else { panic!("{master:?}") };
        let addresses = addresses().await;
        assert!(addresses.iter().all(|(_, _, named)| made < named), "{made}: {addresses:?}");
    }
    one.stop().await;
}
