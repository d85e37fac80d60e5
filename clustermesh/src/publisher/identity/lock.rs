//! The lock under which a label set gets its number.

use super::super::election::ended;
use super::super::lease::short_lease;
use crate::error::MeshError;
use crate::etcd::{request, request_error};
use crate::wire::key;
use etcd_client::{Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, WatchOptions};
use tombolo_base::labels::Labels;

/// How long a lock outlives its holder's death, in seconds.
const LOCK_TTL_SECS: i64 = 25;

/// The lock of one label set: a key on a short lease, created only if absent.
pub(super) struct Lock {
    pub(super) key: String,
    pub(super) lease: i64,
}

impl Lock {
    pub(super) async fn take(client: &Client, labels: &Labels) -> Result<Self, MeshError> {
        let key = format!("{}{labels}", key::IDENTITY_LOCKS);
        let lease = short_lease(client, LOCK_TTL_SECS).await?;
        loop {
            let options = PutOptions::new().with_lease(lease);
            let txn = Txn::new()
                .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key.as_str(), "", Some(options))]);
            let answer = request(|| format!("locking {key}"), client.kv_client().txn(txn)).await?;
            if answer.succeeded() {
                return Ok(Self { key, lease });
            }
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            wait_for_release(client, &key, revision).await?;
            // Waiting may have taken long; a lock on a lease that is about to end protects nothing.
            let mut leases = client.lease_client();
            request(|| format!("keeping the lock lease of {key}"), async { leases.keep_alive(lease).await })
                .await?;
        }
    }

    pub(super) async fn release(self, client: &Client) -> Result<(), MeshError> {
        let mut leases = client.lease_client();
        request(|| format!("unlocking {}", self.key), leases.revoke(self.lease)).await.map(drop)
    }
}

async fn wait_for_release(client: &Client, name: &str, revision: i64) -> Result<(), MeshError> {
    let what = || format!("waiting for {name}");
    let options = WatchOptions::new().with_start_revision(revision.saturating_add(1));
    let mut watch = client.watch_client();
    let mut stream = request(what, watch.watch(name, Some(options))).await?;
    let released = async {
        loop {
            let answer = stream.message().await.map_err(|error| request_error(what(), &error))?;
            let Some(answer) = answer.filter(|answer| !answer.canceled()) else { return Err(ended(what())) };
            if answer.events().iter().any(|event| event.event_type() == EventType::Delete) {
                return Ok(());
            }
        }
    };
    // A little less than our own lease; whoever held it is dead or done by then, so try again.
    let bound = std::time::Duration::from_secs(15);
    tokio::time::timeout(bound, released).await.unwrap_or(Ok(()))
}
