//! Which agent writes what belongs to the whole cluster: the holder of one key on a short lease.

use super::lease::short_lease;
use crate::error::MeshError;
use crate::etcd::{request, request_error};
use crate::follower::FailureKind;
use etcd_client::{
    Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is stood for, and by whom.
pub(crate) struct Seat {
    /// The key whose holder is elected.
    pub(crate) key: &'static str,
    /// Who stands; one of that name at a time.
    pub(crate) candidate: Arc<str>,
    /// Life of the election without its holder.
    pub(crate) ttl: Duration,
}

/// An election that was won: the lease that holds the key.
pub(crate) struct Won {
    pub(crate) lease: i64,
    key: &'static str,
    ttl: Duration,
}

/// Waits until this agent is elected.
pub(crate) async fn campaign(seat: &Seat, client: &Client) -> Result<Won, MeshError> {
    let Seat { key, candidate, ttl } = seat;
    let (key, ttl) = (*key, *ttl);
    loop {
        let lease = short_lease(client, i64::try_from(ttl.as_secs()).unwrap_or(15).max(1)).await?;
        let put = || {
            let options = PutOptions::new().with_lease(lease);
            TxnOp::put(key, candidate.as_bytes(), Some(options))
        };
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put()])
            .or_else([TxnOp::get(key, None)]);
        let answer = request(|| format!("standing for {key}"), client.kv_client().txn(txn)).await?;
        if answer.succeeded() {
            return Ok(Won { lease, key, ttl });
        }
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let holder = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            _ => None,
        });
        // A key of our own name is from our last life: one agent runs per node, so it is ours to take.
        if let Some(holder) = holder.filter(|holder| holder.value() == candidate.as_bytes()) {
            let same = Compare::mod_revision(key, CompareOp::Equal, holder.mod_revision());
            let txn = Txn::new().when([same]).and_then([put()]);
            let mut kv = client.kv_client();
            if request(|| format!("taking over {key}"), kv.txn(txn)).await?.succeeded() {
                return Ok(Won { lease, key, ttl });
            }
        } else {
            wait_until_free(key, client, revision).await?;
        }
        let mut leases = client.lease_client();
        request(|| "giving a lease back".to_owned(), leases.revoke(lease)).await?;
    }
}

async fn wait_until_free(key: &str, client: &Client, revision: i64) -> Result<(), MeshError> {
    let what = || format!("watching {key}");
    let options = WatchOptions::new().with_start_revision(revision.saturating_add(1));
    let mut stream = request(what, client.watch_client().watch(key, Some(options))).await?;
    loop {
        let answer = stream.message().await.map_err(|error| request_error(what(), &error))?;
        match answer {
            Some(answer) if !answer.canceled() => {
                if answer.events().iter().any(|event| event.event_type() == EventType::Delete) {
                    return Ok(());
                }
            }
            _ => return Err(ended(what())),
        }
    }
}

pub(crate) fn ended(what: String) -> MeshError {
    MeshError::Request { what, why: "etcd ended the watch".to_owned(), kind: FailureKind::Transport }
}

impl Won {
    /// What must hold for every write: the key stands on our lease.
    pub(crate) fn fence(&self) -> (String, i64) {
        (self.key.to_owned(), self.lease)
    }

    /// Holds the key; returns when it is lost or can no longer be proved.
    pub(crate) async fn hold(&self, client: &Client) -> MeshError {
        let mut proved = Instant::now();
        loop {
            tokio::time::sleep(self.ttl / 3).await;
            let mut leases = client.lease_client();
            let left = (self.ttl * 2 / 3).saturating_sub(proved.elapsed());
            match tokio::time::timeout(left, leases.keep_alive(self.lease)).await {
                Ok(Ok(_)) => proved = Instant::now(),
                Ok(Err(error)) => return request_error("keeping the election".to_owned(), &error),
                Err(_) => {
                    return MeshError::Request {
                        what: "keeping the election".to_owned(),
                        why: "no answer in time; another agent may be elected, so this one stops writing for the cluster"
                            .to_owned(),
                        kind: FailureKind::Transport,
                    };
                }
            }
        }
    }
}
