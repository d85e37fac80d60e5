//! Who writes what belongs to a whole cluster, over a real etcd: standbys, and processes that share a name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod rig;

use rig::agent::Agent;
use rig::{Etcd, Pki};
use std::time::Duration;
use tombolo_clustermesh::publisher::PublisherConfig;

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
