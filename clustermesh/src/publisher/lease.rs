//! Leases: kept on disk so that a restart resumes them, at most 1000 keys each.

use super::Context;
use super::scope::{get, lost_election};
use crate::error::MeshError;
use crate::etcd::{MAX_RESPONSE_BYTES, request, request_error};
use crate::follower::snapshot::write_json;
use crate::operations::{Operation, operate};
use crate::wire::key;
use etcd_client::{
    Client, Compare, CompareOp, Error, KeyValue, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Most keys on one lease; etcd slows down with more.
pub(crate) const KEYS_PER_LEASE: usize = 1000;
/// Most leases that are resumed: those of two million keys.
const MAX_LEASES: usize = 2048;
/// Keys read in one transaction; etcd's default limit.
const READ_OPS: usize = 128;

/// The leases of one writer and how many keys hang on each.
pub(crate) struct LeasePool {
    client: Client,
    /// For logs.
    name: String,
    ttl_secs: i64,
    /// Where they are kept for the next life; a pool that is handed on keeps them in etcd alone.
    file: Option<PathBuf>,
    /// The key that names them.
    announced: String,
    /// What must hold for that key to be written by whoever has the pool now.
    fence: Option<(String, i64)>,
    leases: BTreeMap<i64, usize>,
}

impl LeasePool {
    /// Resumes the leases of the last life that still live, or takes a new one.
    pub(crate) async fn open(
        context: &Context,
        client: &Client,
        name: &'static str,
    ) -> Result<Self, MeshError> {
        let file = context.config.state_dir.join(format!("leases-{name}.json"));
        // A file that is missing or broken costs one lease time of leftovers, no more.
        let saved = ids(&tokio::fs::read(&file).await.unwrap_or_default());
        let mut pool = Self {
            client: client.clone(),
            name: name.to_owned(),
            ttl_secs: i64::try_from(context.config.lease_ttl.as_secs()).unwrap_or(900),
            file: Some(file),
            announced: format!("{}{}/{name}", key::LEASES, context.config.node),
            fence: None,
            leases: BTreeMap::new(),
        };
        pool.resume(saved).await?;
        Ok(pool)
    }

    /// A pool of whoever is elected: takes over the leases that `announced` names, as far as they live.
    pub(crate) async fn take_over(
        client: &Client,
        ttl: Duration,
        announced: String,
        fence: (String, i64),
    ) -> Result<Self, MeshError> {
        // What cannot be read costs one writing of the keys on other leases.
        let saved = self::announced(client, &announced).await?;
        let mut pool = Self {
            client: client.clone(),
            name: announced.clone(),
            ttl_secs: i64::try_from(ttl.as_secs()).unwrap_or(900),
            file: None,
            announced,
            fence: Some(fence),
            leases: BTreeMap::new(),
        };
        pool.resume(saved).await?;
        Ok(pool)
    }

    /// Goes on with those of these leases that still live, or takes a new one.
    async fn resume(&mut self, saved: Vec<i64>) -> Result<(), MeshError> {
        for id in saved {
            let call = request(|| format!("asking for lease {id:x}"), async {
                self.client.lease_client().time_to_live(id, None).await
            });
            if call.await?.ttl() > 0 {
                self.leases.insert(id, 0);
            }
        }
        if self.leases.is_empty() {
            return self.grant().await.map(drop);
        }
        tracing::info!(pool = self.name, leases = self.leases.len(), "leases of the last life resumed");
        self.keep_alive().await?;
        self.announce().await
    }

    pub(crate) fn contains(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    /// The keys below `prefix` that hang on our leases.
    pub(crate) async fn keys(&self, prefix: &str) -> Result<Vec<KeyValue>, MeshError> {
        let mut names = Vec::new();
        for id in self.leases.keys() {
            let options = LeaseTimeToLiveOptions::new().with_keys();
            let call = async { self.client.lease_client().time_to_live(*id, Some(options)).await };
            let answer = request(|| format!("asking for the keys on lease {id:x}"), call).await?;
            names.extend(answer.keys().iter().filter(|name| name.starts_with(prefix.as_bytes())).cloned());
        }
        let mut found = Vec::with_capacity(names.len());
        for some in names.chunks(READ_OPS) {
            let gets: Vec<TxnOp> = some.iter().map(|name| TxnOp::get(name.as_slice(), None)).collect();
            let mut kv = self.client.kv_client().max_decoding_message_size(MAX_RESPONSE_BYTES);
            let call = kv.txn(Txn::new().and_then(gets));
            let what = || format!("reading {} keys of ours below {prefix}", some.len());
            let answer = operate(Operation::Get, prefix, what, call).await?;
            for op in answer.op_responses() {
                let TxnOpResponse::Get(mut get) = op else { continue };
                // Written over by somebody else meanwhile: not ours any more.
                found.extend(get.take_kvs().into_iter().filter(|kv| self.contains(kv.lease())));
            }
        }
        Ok(found)
    }

    /// Counts the keys found on each lease.
    pub(crate) fn recount(&mut self, leases: impl Iterator<Item = i64>) {
        self.leases.values_mut().for_each(|count| *count = 0);
        for lease in leases {
            self.leases.entry(lease).and_modify(|count| *count += 1);
        }
    }

    /// A key went.
    pub(crate) fn free(&mut self, lease: i64) {
        self.leases.entry(lease).and_modify(|count| *count = count.saturating_sub(1));
    }

    /// A lease with room for one more key.
    pub(crate) async fn assign(&mut self) -> Result<i64, MeshError> {
        let roomy = self.leases.iter().find(|(_, count)| **count < KEYS_PER_LEASE).map(|(id, _)| *id);
        let id = match roomy {
            Some(id) => id,
            None => self.grant().await?,
        };
        self.leases.entry(id).and_modify(|count| *count += 1);
        Ok(id)
    }

    async fn grant(&mut self) -> Result<i64, MeshError> {
        let ttl = self.ttl_secs;
        let call = async { self.client.lease_client().grant(ttl, None).await };
        let id = request(|| format!("taking a lease of {ttl} s"), call).await?.id();
        self.leases.insert(id, 0);
        let ids: Vec<i64> = self.leases.keys().copied().collect();
        if let Some(file) = &self.file {
            write_json(file, "lease file", ids).await?;
        }
        self.announce().await?;
        Ok(id)
    }

    /// Says which leases are ours, before any key hangs on them: the sweeper spares keys on announced leases.
    async fn announce(&mut self) -> Result<(), MeshError> {
        let ids: Vec<i64> = self.leases.keys().copied().collect();
        let Some(first) = ids.first().copied() else { return Ok(()) };
        let name = self.announced.as_str();
        let value =
            serde_json::to_vec(&ids).map_err(|source| MeshError::Encode { what: name.to_owned(), source })?;
        // One that is handed on outlives its leases: it also says that whatever lies there is a pool's.
        let options = self.file.as_ref().map(|_| PutOptions::new().with_lease(first));
        let fence = self.fence.iter();
        let fence = fence.map(|(key, lease)| Compare::lease(key.as_str(), CompareOp::Equal, *lease));
        let txn = Txn::new().when(fence.collect::<Vec<_>>()).and_then([TxnOp::put(name, value, options)]);
        let what = || format!("writing {name}");
        let answer = operate(Operation::Update, name, what, self.client.kv_client().txn(txn)).await?;
        if answer.succeeded() { Ok(()) } else { Err(lost_election()) }
    }

    /// Keeps all leases alive. True if one was lost: its keys must be written again.
    pub(crate) async fn keep_alive(&mut self) -> Result<bool, MeshError> {
        let mut lost = Vec::new();
        for id in self.leases.keys().copied().collect::<Vec<_>>() {
            let what = || format!("keeping lease {id:x} alive");
            let mut client = self.client.lease_client();
            let call = async {
                match client.keep_alive(id).await {
                    Ok(_) => Ok(true),
                    Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            };
            match request(what, call).await {
                Ok(true) => {}
                Ok(false) => lost.push(id),
                Err(error) => return Err(error),
            }
        }
        for id in &lost {
            tracing::warn!(
                pool = %self.name,
                lease = format!("{id:x}"),
                "lease lost; its keys are written again"
            );
            self.leases.remove(id);
        }
        if self.leases.is_empty() {
            self.grant().await?;
        } else if !lost.is_empty() {
            self.announce().await?;
        }
        Ok(!lost.is_empty())
    }
}

/// The leases that a key names.
pub(crate) async fn announced(client: &Client, name: &str) -> Result<Vec<i64>, MeshError> {
    Ok(get(client, name).await?.map_or_else(Vec::new, |kv| ids(kv.value())))
}

/// Lease ids out of JSON, as far as it is some.
fn ids(text: &[u8]) -> Vec<i64> {
    let ids: Vec<i64> = serde_json::from_slice(text).unwrap_or_default();
    ids.into_iter().take(MAX_LEASES).collect()
}

/// Whether a failure says that the lease of a write is gone.
pub(crate) fn is_lease_lost(error: &MeshError) -> bool {
    error.to_string().contains("requested lease not found")
}

/// Gives a lease back; one that has expired is as good as given back.
pub(crate) async fn give_back(client: &Client, lease: i64) -> Result<(), MeshError> {
    let mut leases = client.lease_client();
    match request(|| format!("giving back lease {lease:x}"), leases.revoke(lease)).await {
        Err(error) if !is_lease_lost(&error) => Err(error),
        _ => Ok(()),
    }
}

/// A lease of its own, for locks and elections.
pub(crate) async fn short_lease(client: &Client, ttl_secs: i64) -> Result<i64, MeshError> {
    let answer = client.lease_client().grant(ttl_secs, None).await;
    answer.map(|lease| lease.id()).map_err(|error| request_error("taking a short lease".to_owned(), &error))
}
