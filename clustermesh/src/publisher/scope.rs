//! Carries a set of desired keys to etcd: list, diff, batched transactions.

use super::contest;
use super::desired::{Actual, Desired, DesiredSet, Plan, digest, plan};
use super::lease::LeasePool;
use super::pace::Pace;
use super::watching::next_answer;
use super::writes::Writes;
use crate::error::MeshError;
use crate::etcd::{MAX_RESPONSE_BYTES, PAGE, broken, request};
use crate::follower::FailureKind;
use crate::operations::{Operation, operate};
use crate::wire::key;
use etcd_client::{
    Client, Compare, CompareOp, Event, EventType, GetOptions, KeyValue, PutOptions, Txn, TxnOp, WatchOptions,
    WatchStream,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// Most bytes of a transaction; etcd refuses 1.5 MiB.
const BATCH_BYTES: usize = 1_000_000;
/// Most keys that are deleted in one transaction, each with a condition, beside the fence.
const MAX_DELETES: usize = 100;

/// Shortest time between two repairs of keys that somebody else changed: two writers of one key would otherwise fight as
/// fast as etcd lets them.
const MEND_INTERVAL: Duration = Duration::from_secs(1);

/// Where a writer's keys lie and which of those found there it may delete.
#[derive(Clone, Debug)]
pub(crate) enum Area {
    /// One key.
    Key(String),
    /// A prefix shared with other writers: the keys on our leases are ours, and the others are not even listed. With
    /// thousands of agents each would else read what all have written.
    Leased(String),
    /// A prefix of ours alone.
    Whole(String),
}

/// The writer of one set of keys.
pub(crate) struct ScopeWriter {
    client: Client,
    pub(crate) pool: LeasePool,
    areas: Vec<Area>,
    actual: BTreeMap<String, Actual>,
    /// The revision `actual` was read at.
    revision: i64,
    /// What must hold for every write: the election's key on our lease.
    fence: Option<(String, i64)>,
    pace: Pace,
    /// How many transactions may be under way at once, where many writers share an etcd.
    turns: Option<Arc<Semaphore>>,
    /// Keys of ours that somebody else changed or deleted, not told yet.
    contested: Vec<String>,
    /// What begins so is not deleted for now.
    spared: Vec<String>,
    writes: Arc<Writes>,
}

impl ScopeWriter {
    pub(crate) fn new(
        client: Client,
        pool: LeasePool,
        areas: Vec<Area>,
        fence: Option<(String, i64)>,
    ) -> Self {
        let (actual, contested, spared) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self {
            client,
            pool,
            areas,
            actual,
            revision: 0,
            fence,
            pace: Pace::default(),
            turns: None,
            contested,
            spared,
            writes: Arc::default(),
        }
    }

    /// Takes turns with other writers to the same etcd.
    pub(crate) fn taking_turns(mut self, turns: Arc<Semaphore>) -> Self {
        self.turns = Some(turns);
        self
    }

    /// Shows how far it is to others.
    pub(crate) fn counted(mut self, writes: Arc<Writes>) -> Self {
        self.writes = writes;
        self
    }

    /// Says what [`Self::reconcile`] does not delete from now on, though it is not desired.
    pub(crate) fn spare(&mut self, prefixes: Vec<String>) {
        self.spared = prefixes;
    }

    /// Whether anything is.
    pub(crate) const fn is_sparing(&self) -> bool {
        !self.spared.is_empty()
    }

    /// Number of keys known to stand in etcd.
    pub(crate) fn written(&self) -> usize {
        self.actual.len()
    }

    /// Reads what stands in etcd now.
    pub(crate) async fn resync(&mut self) -> Result<(), MeshError> {
        let mut actual = BTreeMap::new();
        let mut first = i64::MAX;
        for area in &self.areas {
            let (entries, revision) = match area {
                Area::Key(name) => {
                    let (entry, revision) = get_at(&self.client, name).await?;
                    (entry.into_iter().collect(), revision)
                }
                Area::Whole(prefix) => list_at(&self.client, prefix).await?,
                // Not watched, hence of no account to `first`.
                Area::Leased(prefix) => (self.pool.keys(prefix).await?, i64::MAX),
            };
            first = first.min(revision);
            for kv in entries {
                let found =
                    Actual { digest: digest(kv.value()), lease: kv.lease(), revision: kv.mod_revision() };
                actual.insert(String::from_utf8_lossy(kv.key()).into_owned(), found);
            }
        }
        self.pool.recount(actual.values().map(|found| found.lease));
        self.contest(&actual);
        self.actual = actual;
        self.revision = first;
        Ok(())
    }

    /// Compares what this writer left on its leases with what stands there.
    fn contest(&mut self, now: &BTreeMap<String, Actual>) {
        let changed = |(name, left): &(&String, &Actual)| {
            let kept = left.lease == 0 || self.pool.contains(left.lease);
            kept && now.get(*name).is_none_or(|found| found.revision != left.revision)
        };
        let room = contest::MOST.saturating_sub(self.contested.len());
        let names = self.actual.iter().filter(changed).map(|(name, _)| name.clone()).take(room);
        self.contested.extend(names.collect::<Vec<_>>());
    }

    /// The keys that somebody else changed or deleted since the last call.
    pub(crate) fn take_contested(&mut self) -> Vec<String> {
        std::mem::take(&mut self.contested)
    }

    /// Follows the areas that nobody else writes, from the last [`Self::resync`] on.
    pub(crate) async fn watch(&self) -> Result<AreaWatch, MeshError> {
        let mut stream: Option<WatchStream> = None;
        for area in &self.areas {
            let (name, end) = match area {
                Area::Key(name) => (name, None),
                Area::Whole(prefix) => (prefix, Some(key::range_end(prefix))),
                // Others change theirs all the time; ours are looked at in the audit.
                Area::Leased(_) => continue,
            };
            let options = WatchOptions::new().with_start_revision(self.revision.saturating_add(1));
            let options = Some(end.into_iter().fold(options, |options, end| options.with_range(end)));
            let what = || format!("watching {name}");
            match &mut stream {
                None => {
                    let mut client = self.client.watch_client();
                    stream = Some(request(what, client.watch(name.as_str(), options)).await?);
                }
                Some(stream) => request(what, stream.watch(name.as_str(), options)).await?,
            }
        }
        let stream = stream.ok_or_else(|| {
            let why = "this writer has none; this is a bug, please report it";
            broken("watching own keys".to_owned(), why.to_owned())
        })?;
        Ok(AreaWatch { stream, pending: false, not_before: Instant::now() })
    }

    /// Whether a change is not one of ours: newer than what we know of its key.
    fn is_foreign(&self, event: &Event) -> bool {
        let Some(kv) = event.kv() else { return false };
        match self.actual.get(String::from_utf8_lossy(kv.key()).as_ref()) {
            Some(known) => kv.mod_revision() > known.revision,
            None => event.event_type() == EventType::Put && kv.mod_revision() > self.revision,
        }
    }

    /// Writes what differs from `desired`, and with `prune` deletes what it lacks. True if anything was written.
    pub(crate) async fn reconcile(&mut self, desired: &DesiredSet, prune: bool) -> Result<bool, MeshError> {
        let Plan { puts, mut deletes } = plan(desired, &self.actual, |lease| self.pool.contains(lease));
        deletes.retain(|(name, _)| !self.spared.iter().any(|prefix| name.starts_with(prefix)));
        let changed = !puts.is_empty() || !deletes.is_empty();
        self.writes.planned(puts.len() + if prune { deletes.len() } else { 0 });
        let puts: Vec<Desired> = puts.iter().filter_map(|name| desired.get(name)).cloned().collect();
        self.put_all(puts).await?;
        if prune {
            self.delete_all(deletes).await?;
        }
        Ok(changed)
    }

    /// Writes these keys.
    pub(crate) async fn put_all(&mut self, wanted: Vec<Desired>) -> Result<(), MeshError> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for Desired { key, value, leased } in wanted {
            if batch.len() >= self.pace.ops() || (bytes > 0 && bytes + value.len() > BATCH_BYTES) {
                self.put(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
            bytes += value.len() + key.len();
            let lease = if leased { Some(self.lease_of(&key).await?) } else { None };
            batch.push((key, value, lease));
        }
        if batch.is_empty() { Ok(()) } else { self.put(batch).await }
    }

    /// Deletes these keys, each if it still has that revision: what somebody wrote meanwhile is theirs.
    pub(crate) async fn delete_all(&mut self, names: Vec<(String, i64)>) -> Result<(), MeshError> {
        for some in names.chunks(MAX_DELETES) {
            if !self.delete(some).await? {
                // One of them was written meanwhile; the others go all the same.
                for one in some {
                    self.delete(std::slice::from_ref(one)).await?;
                }
            }
        }
        Ok(())
    }

    /// What is known to stand in etcd.
    pub(crate) const fn actual(&self) -> &BTreeMap<String, Actual> {
        &self.actual
    }

    /// The lease a key hangs on already, if it is ours, else one with room.
    async fn lease_of(&mut self, name: &str) -> Result<i64, MeshError> {
        match self.actual.get(name) {
            Some(found) if self.pool.contains(found.lease) => Ok(found.lease),
            _ => self.pool.assign().await,
        }
    }

    fn fences(&self) -> Vec<Compare> {
        let fence = |(name, lease): &(String, i64)| Compare::lease(name.as_str(), CompareOp::Equal, *lease);
        self.fence.iter().map(fence).collect()
    }

    async fn put(&mut self, batch: Vec<(String, Vec<u8>, Option<i64>)>) -> Result<(), MeshError> {
        let op = |(name, value, lease): &(String, Vec<u8>, Option<i64>)| {
            TxnOp::put(name.as_str(), value.clone(), lease.map(|id| PutOptions::new().with_lease(id)))
        };
        let txn = Txn::new().when(self.fences()).and_then(batch.iter().map(op).collect::<Vec<_>>());
        let first = batch.first().map(|(name, ..)| name.clone()).unwrap_or_default();
        let what = || format!("writing {} keys from {first} on", batch.len());
        sleep_until(self.pace.not_before).await;
        let turn = self.turn().await;
        let sent = Instant::now();
        let response = operate(Operation::Update, &first, what, self.client.kv_client().txn(txn)).await;
        let response = response.inspect_err(|_| self.writes.failed())?;
        self.pace.answered(sent, Instant::now());
        drop(turn);
        if !response.succeeded() {
            return Err(lost_election());
        }
        self.writes.done(batch.len());
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        for (name, value, lease) in batch {
            let lease = lease.unwrap_or(0);
            self.actual.insert(name, Actual { digest: digest(&value), lease, revision });
        }
        Ok(())
    }

    /// Deletes keys if all of them still have their revisions. True if they were, or if it was one: what is not ours any
    /// more is not looked at again.
    async fn delete(&mut self, names: &[(String, i64)]) -> Result<bool, MeshError> {
        let mut conditions = self.fences();
        let same = |(name, revision): &(String, i64)| {
            Compare::mod_revision(name.as_str(), CompareOp::Equal, *revision)
        };
        conditions.extend(names.iter().map(same));
        let deletes = names.iter().map(|(name, _)| TxnOp::delete(name.as_str(), None));
        let txn = Txn::new().when(conditions).and_then(deletes.collect::<Vec<_>>());
        let first = names.first().map_or("", |(name, _)| name.as_str());
        let what = || format!("deleting {} keys from {first} on", names.len());
        sleep_until(self.pace.not_before).await;
        let turn = self.turn().await;
        let sent = Instant::now();
        let answer = operate(Operation::Delete, first, what, self.client.kv_client().txn(txn)).await;
        let answer = answer.inspect_err(|_| self.writes.failed())?;
        self.pace.answered(sent, Instant::now());
        drop(turn);
        // A late event of a write of our own to that key must not look like somebody else's.
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        self.revision = self.revision.max(revision);
        if !answer.succeeded() && names.len() > 1 {
            return Ok(false);
        }
        self.writes.done(names.len());
        for (name, _) in names {
            if let Some(gone) = self.actual.remove(name) {
                self.pool.free(gone.lease);
            }
        }
        Ok(true)
    }

    /// Waits until this writer may send.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.turns.clone()?.acquire_owned().await.ok()
    }

    /// Whether a key stands on one of our leases.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.actual.get(name).is_some_and(|found| self.pool.contains(found.lease))
    }

    /// Takes note of a key that was written in a transaction elsewhere.
    pub(crate) fn note(&mut self, name: String, value: &[u8], lease: i64, revision: i64) {
        self.actual.insert(name, Actual { digest: digest(value), lease, revision });
    }
}

/// What failed is an election, not a key: somebody else writes now.
pub(crate) fn lost_election() -> MeshError {
    MeshError::Request {
        what: "writing the cluster's keys".to_owned(),
        why: "another agent was elected meanwhile; it writes them now".to_owned(),
        kind: FailureKind::Transport,
    }
}

/// A watch over a writer's areas that tells when somebody else changed them.
pub(crate) struct AreaWatch {
    stream: WatchStream,
    /// Somebody did, and it was not told yet.
    pending: bool,
    not_before: Instant,
}

impl AreaWatch {
    /// Waits until somebody else has changed or removed a key of `writer`. May be dropped and called again.
    pub(crate) async fn foreign(&mut self, writer: &ScopeWriter) -> Result<(), MeshError> {
        while !self.pending {
            let answer = next_answer(&mut self.stream, || "watching own keys".to_owned()).await?;
            let foreign = answer.events().iter().find(|event| writer.is_foreign(event));
            if let Some(kv) = foreign.and_then(Event::kv) {
                let key = String::from_utf8_lossy(kv.key());
                tracing::warn!(key = %key.escape_debug(), "changed by somebody else; writing it again");
                self.pending = true;
            }
        }
        sleep_until(self.not_before).await;
        self.pending = false;
        self.not_before = Instant::now() + MEND_INTERVAL;
        Ok(())
    }
}

/// One key.
pub(crate) async fn get(client: &Client, name: &str) -> Result<Option<KeyValue>, MeshError> {
    get_at(client, name).await.map(|(entry, _)| entry)
}

/// One key, and the revision it was read at.
async fn get_at(client: &Client, name: &str) -> Result<(Option<KeyValue>, i64), MeshError> {
    let mut kv = client.kv_client().max_decoding_message_size(MAX_RESPONSE_BYTES);
    let what = || format!("reading {name}");
    let mut response = operate(Operation::Get, name, what, kv.get(name, None)).await?;
    let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((response.take_kvs().into_iter().next(), revision))
}

/// All keys of a prefix at one revision.
pub(crate) async fn list(client: &Client, prefix: &str) -> Result<Vec<KeyValue>, MeshError> {
    list_at(client, prefix).await.map(|(entries, _)| entries)
}

/// All keys of a prefix, and the revision they were read at.
pub(crate) async fn list_at(client: &Client, prefix: &str) -> Result<(Vec<KeyValue>, i64), MeshError> {
    let mut entries = Vec::new();
    let revision = pages(client, prefix, |kv| entries.push(kv)).await?;
    Ok((entries, revision))
}

/// Gives every key of a prefix to `take`, page by page at one revision, which is returned.
pub(crate) async fn pages(
    client: &Client,
    prefix: &str,
    mut take: impl FnMut(KeyValue),
) -> Result<i64, MeshError> {
    let mut kv = client.kv_client().max_decoding_message_size(MAX_RESPONSE_BYTES);
    let (mut revision, mut from) = (0, prefix.as_bytes().to_vec());
    loop {
        let options =
            GetOptions::new().with_range(key::range_end(prefix)).with_limit(PAGE).with_revision(revision);
        let call = kv.get(from.clone(), Some(options));
        let what = || format!("listing {prefix}");
        let mut response = operate(Operation::ListPrefix, prefix, what, call).await?;
        if revision == 0 {
            revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        }
        let more = response.more();
        let page = response.take_kvs();
        let last = page.last().map(|kv| kv.key().to_vec());
        page.into_iter().for_each(&mut take);
        match last {
            Some(last) if more => {
                from = last;
                from.push(0);
            }
            _ => return Ok(revision),
        }
    }
}
