//! The lock under which a label set gets its number.

use super::super::lease::{give_back, short_lease};
use super::super::watching::until_event;
use crate::error::MeshError;
use crate::etcd::request;
use crate::operations::{Operation, operate};
use crate::wire::key;
use etcd_client::{Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp};
use std::time::Duration;
use tombolo_base::labels::Labels;

/// How long a lock outlives its holder's death, in seconds.
const LOCK_TTL_SECS: i64 = 25;
/// How long another's lock is waited for: a little less than our own lease lives. Whoever held it is dead or done by then.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

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
            let what = || format!("locking {key}");
            let answer = operate(Operation::CreateOnly, &key, what, client.kv_client().txn(txn)).await?;
            if answer.succeeded() {
                return Ok(Self { key, lease });
            }
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            let released = until_event(client, &key, revision, |event| event == EventType::Delete);
            tokio::time::timeout(LONGEST_WAIT, released).await.unwrap_or(Ok(()))?;
            // Waiting may have taken long; a lock on a lease that is about to end protects nothing.
            let mut leases = client.lease_client();
            request(|| format!("keeping the lock lease of {key}"), async { leases.keep_alive(lease).await })
                .await?;
        }
    }

    pub(super) async fn release(self, client: &Client) -> Result<(), MeshError> {
        give_back(client, self.lease).await
    }
}
