//! The own etcd, really: who is elected there, and how often an agent comes back that cannot work.
#![cfg(test)]

mod rig;

use etcd_client::{AlarmAction, AlarmType};
use rig::agent::{Agent, raw};
use rig::{Etcd, Pki, until};
use std::collections::BTreeMap;
use std::time::Duration;
use tombolo_base::ids::IdentityId;
use tombolo_clustermesh::publisher::{Desired, PublisherConfig};
use tombolo_clustermesh::wire::IpEntry;

const TTL: Duration = Duration::from_secs(2);

fn short(config: &mut PublisherConfig) {
    config.election_ttl = TTL;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_waited_long_takes_over_without_losing_its_connection() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), short);
    one.handle.leader().wait_for(|leads| *leads).await.unwrap();
    let two = Agent::start(&etcd, &pki, 2, folder.path(), short);
    two.handle.status().wait_for(|status| status.connected).await.unwrap();
    // Longer than a lease that nobody keeps alive lives; etcd rounds up and looks twice a second.
    tokio::time::sleep(TTL * 3).await;
    one.stop().await;
    two.handle.leader().wait_for(|leads| *leads).await.unwrap();
    let status = two.handle.status().borrow().clone();
    assert_eq!((status.reconnections, status.last_failure), (0, None));
    two.stop().await;
}

/// Reads are answered, whatever is written is refused: the waits grow all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_is_not_asked_again_and_again() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let mut client = etcd.client(&pki, "root").await;
    client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    let mut status = one.handle.status();
    status.wait_for(|status| status.reconnections > 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let found = status.borrow().clone();
    assert!(found.last_failure.as_ref().is_some_and(|text| text.contains("out of quota")), "{found:?}");
    // 0.25 s, doubled each time, of which at least half is waited.
    assert!((2..=6).contains(&found.reconnections), "{} reconnections in 4 s", found.reconnections);
    // The alarm is the only key of etcd that may be written then.
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.unwrap();
    one.handle.set_node([]);
    until("the agent to have published", async || one.handle.status().borrow().published).await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_of_one_name_take_the_election_from_each_other_once() {
    let (pki, folders) = (Pki::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folders[0].path(), short);
    one.handle.leader().wait_for(|leads| *leads).await.unwrap();
    let two = Agent::start(&etcd, &pki, 1, folders[1].path(), short);
    two.handle.leader().wait_for(|leads| *leads).await.unwrap();
    let mut told = one.handle.status();
    let before = told.wait_for(|status| status.namesake && status.connected).await.unwrap().reconnections;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (first, second) = (one.handle.status().borrow().clone(), two.handle.status().borrow().clone());
    assert_eq!((first.leader, first.reconnections), (false, before), "{first:?}");
    assert_eq!((second.leader, second.reconnections, second.namesake), (true, 0, false), "{second:?}");
    assert!(first.warnings(0).iter().any(|text| text.contains("another agent of this node's name")));
    two.stop().await;
    one.handle.status().wait_for(|status| status.leader && !status.namesake).await.unwrap();
    one.stop().await;
}

/// etcd slows down with more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_holds_a_thousand_keys_at_most() {
    const PODS: u16 = 2500;
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let etcd = Etcd::start(&pki, "a").await;
    let one = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    let pod = |n: u16| {
        let [high, low] = n.to_be_bytes();
        let entry =
            IpEntry::pod([10, 1, high, low].into(), IdentityId(66_001), [192, 0, 2, 1].into(), "shop", "web");
        Desired::ip(&entry).unwrap()
    };
    one.handle.set_node((0..PODS).map(pod));
    one.handle.status().wait_for(|status| status.node_keys == usize::from(PODS)).await.unwrap();
    let mut by_lease = BTreeMap::<i64, usize>::new();
    for (_, lease, _) in raw(&etcd, &pki, "cilium/state/ip/v1/default/").await {
        *by_lease.entry(lease).or_default() += 1;
    }
    assert_eq!(by_lease.values().sum::<usize>(), usize::from(PODS));
    assert!(by_lease.len() == 3 && by_lease.values().all(|keys| *keys <= 1000), "{by_lease:?}");
    one.stop().await;
}
