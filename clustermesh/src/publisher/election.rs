//! Which agent writes what belongs to the whole cluster: the holder of one key on a short lease.

use super::Context;
use super::lease::short_lease;
use crate::error::MeshError;
use crate::etcd::{request, request_error};
use crate::follower::FailureKind;
use crate::wire::key;
use etcd_client::{
    Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use std::time::{Duration, Instant};

/// An election that was won: the lease that holds the key.
pub(super) struct Won {
    pub(super) lease: i64,
    ttl: Duration,
}

/// Waits until this agent is elected.
pub(super) async fn campaign(context: &Context, client: &Client) -> Result<Won, MeshError> {
    let ttl = context.config.election_ttl;
    loop {
        let lease = short_lease(client, i64::try_from(ttl.as_secs()).unwrap_or(15).max(1)).await?;
        let put = || {
            let options = PutOptions::new().with_lease(lease);
            TxnOp::put(key::ELECTION, context.config.node.as_bytes(), Some(options))
        };
        let txn = Txn::new()
            .when([Compare::create_revision(key::ELECTION, CompareOp::Equal, 0)])
            .and_then([put()])
            .or_else([TxnOp::get(key::ELECTION, None)]);
        let answer =
            request(|| format!("standing for {}", key::ELECTION), client.kv_client().txn(txn)).await?;
        if answer.succeeded() {
            return Ok(Won { lease, ttl });
        }
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let holder = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            _ => None,
        });
        // A key of our own name is from our last life: one agent runs per node, so it is ours to take.
        if let Some(holder) = holder.filter(|holder| holder.value() == context.config.node.as_bytes()) {
            let same = Compare::mod_revision(key::ELECTION, CompareOp::Equal, holder.mod_revision());
            let txn = Txn::new().when([same]).and_then([put()]);
            let mut kv = client.kv_client();
            if request(|| format!("taking over {}", key::ELECTION), kv.txn(txn)).await?.succeeded() {
                return Ok(Won { lease, ttl });
            }
        } else {
            wait_until_free(context, client, revision).await?;
        }
        let mut leases = client.lease_client();
        request(|| "giving a lease back".to_owned(), leases.revoke(lease)).await?;
    }
}

async fn wait_until_free(context: &Context, client: &Client, revision: i64) -> Result<(), MeshError> {
    let what = || format!("watching {}", key::ELECTION);
    let options = WatchOptions::new().with_start_revision(revision.saturating_add(1));
    let mut stream = request(what, client.watch_client().watch(key::ELECTION, Some(options))).await?;
    context.set_leader(false);
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

pub(super) fn ended(what: String) -> MeshError {
    MeshError::Request { what, why: "etcd ended the watch".to_owned(), kind: FailureKind::Transport }
}

impl Won {
    /// Holds the key; returns when it is lost or can no longer be proved.
    pub(super) async fn hold(&self, client: &Client) -> MeshError {
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
