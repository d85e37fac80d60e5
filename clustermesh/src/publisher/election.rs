//! Which agent writes what belongs to the whole cluster: the holder of one key on a short lease.

use super::lease::{give_back, short_lease};
use super::watching::until_event;
use crate::error::MeshError;
use crate::etcd::{broken, request, request_error};
use etcd_client::{Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, TxnOpResponse};
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
    loop {
        let lease = short_lease(client, i64::try_from(seat.ttl.as_secs()).unwrap_or(15).max(1)).await?;
        let attempt = seat.take(client, lease).await?;
        if let Attempt::Won(won) = attempt {
            return Ok(won);
        }
        // Nobody keeps it alive meanwhile, and waiting may take days.
        give_back(client, lease).await?;
        if let Attempt::Held(revision) = attempt {
            until_event(client, seat.key, revision, |event| event == EventType::Delete).await?;
        }
    }
}

/// What came of standing once.
enum Attempt {
    Won(Won),
    /// Somebody else is elected, as of that revision.
    Held(i64),
    /// The holder changed meanwhile.
    Changed,
}

impl Seat {
    async fn take(&self, client: &Client, lease: i64) -> Result<Attempt, MeshError> {
        let key = self.key;
        let put = || {
            let options = PutOptions::new().with_lease(lease);
            TxnOp::put(key, self.candidate.as_bytes(), Some(options))
        };
        let won = || Attempt::Won(Won { lease, key, ttl: self.ttl });
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([put()])
            .or_else([TxnOp::get(key, None)]);
        let answer = request(|| format!("standing for {key}"), client.kv_client().txn(txn)).await?;
        if answer.succeeded() {
            return Ok(won());
        }
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let holder = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            _ => None,
        });
        // A key of our own name is from our last life: one agent runs per node, so it is ours to take.
        let Some(holder) = holder.filter(|holder| holder.value() == self.candidate.as_bytes()) else {
            return Ok(Attempt::Held(revision));
        };
        let same = Compare::mod_revision(key, CompareOp::Equal, holder.mod_revision());
        let txn = Txn::new().when([same]).and_then([put()]);
        let taken = request(|| format!("taking over {key}"), client.kv_client().txn(txn)).await?;
        Ok(if taken.succeeded() { won() } else { Attempt::Changed })
    }
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
                    let why = "no answer in time; another one may be elected, so this one stops writing for the cluster";
                    return broken("keeping the election".to_owned(), why.to_owned());
                }
            }
        }
    }
}
