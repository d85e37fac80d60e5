//! The masters of identities in etcd: read, followed, found, made, and written again when etcd lost them.

use super::super::Context;
use super::super::desired::{Desired, DesiredSet};
use super::super::scope::{ScopeWriter, get, list, list_at};
use super::super::watching::next_answer;
use super::Shared;
use super::known::Known;
use super::lock::Lock;
use crate::error::MeshError;
use crate::etcd::{broken, request};
use crate::follower::snapshot::write_json;
use crate::operations::{Operation, operate};
use crate::wire::{Kind, Layout, Remote, decode_identity, key};
use etcd_client::{
    Client, Compare, CompareOp, EventType, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
    WatchStream,
};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;

/// Tries with random numbers before the range is searched from its start.
const RANDOM_TRIES: u32 = 64;

/// The masters in etcd and what is known of them here.
pub(super) struct Masters {
    shared: Arc<Shared>,
    remote: Remote,
    /// The generation of what is known that was saved last.
    saved: u64,
}

impl Masters {
    pub(super) fn new(context: &Context, shared: Arc<Shared>) -> Self {
        let config = &context.config;
        let remote = Remote { name: config.cluster, id: config.cluster_id, max: config.max, own: true };
        Self { shared, remote, saved: 0 }
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.shared.known()
    }

    /// The first and the last number that may be allocated.
    fn range(&self) -> (u32, u32) {
        let (first, last) = self.remote.id.identity_range(self.remote.max);
        (first.0.saturating_add(IdentityId::FIRST_ALLOCATABLE), last.0)
    }

    /// Tells the status how many numbers are taken.
    pub(super) fn count(&self, context: &Context) {
        let (first, last) = self.range();
        let taken = self.known().len();
        context.update(|status| {
            status.identities = taken;
            status.identity_limit =
                usize::try_from(last.saturating_sub(first)).unwrap_or(0).saturating_add(1);
        });
    }

    fn file(context: &Context) -> std::path::PathBuf {
        context.config.state_dir.join("identities.json")
    }

    /// Takes over what the last life knew.
    pub(super) async fn restore(&mut self, context: &Context) {
        let text = tokio::fs::read(Self::file(context)).await.unwrap_or_default();
        let saved: BTreeMap<String, String> = serde_json::from_slice(&text).unwrap_or_default();
        let mut known = self.shared.known();
        for (number, labels) in &saved {
            // Checked like an entry from etcd: the file may be older than a change of the cluster's number.
            if let Ok((id, labels)) = decode_identity(&self.remote, number, labels.as_bytes()) {
                known.learn(id, &labels);
            }
        }
    }

    /// Saves what is known, if it changed since the last time.
    pub(super) async fn save(&mut self, context: &Context) {
        let (content, generation) = {
            let known = self.shared.known();
            if known.generation() == self.saved {
                return;
            }
            let entry = |(id, labels): (IdentityId, &Labels)| (id.0.to_string(), labels.to_string());
            (known.all().map(entry).collect::<BTreeMap<_, _>>(), known.generation())
        };
        match write_json(&Self::file(context), "identity file", content).await {
            Ok(()) => self.saved = generation,
            Err(error) => {
                tracing::warn!(%error, "identities not saved; a restart without etcd will not know them");
            }
        }
    }

    pub(super) fn references(&self, context: &Context) -> DesiredSet {
        let reference = |(labels, id): (&Labels, IdentityId)| {
            let name = reference_key(labels, context);
            (name.clone(), Desired::text(name, &id.0.to_string()))
        };
        self.known().used().map(reference).collect()
    }

    /// Lists all masters and watches them from there on.
    pub(super) async fn read(&self, client: &Client) -> Result<WatchStream, MeshError> {
        let prefix = Kind::Identities.prefix(Layout::State, "");
        let (entries, revision) = list_at(client, &prefix).await?;
        self.known().reading();
        let standing: BTreeSet<IdentityId> = entries.iter().filter_map(|kv| self.learn(kv)).collect();
        self.known().only_standing(&standing);
        let options = WatchOptions::new().with_prefix().with_start_revision(revision.saturating_add(1));
        let mut watch = client.watch_client();
        request(|| format!("watching {prefix}"), watch.watch(prefix.as_str(), Some(options))).await
    }

    /// Takes note of a master; its number if it is sound.
    fn learn(&self, kv: &KeyValue) -> Option<IdentityId> {
        let prefix = Kind::Identities.prefix(Layout::State, "");
        let name = kv.key().strip_prefix(prefix.as_bytes())?;
        match decode_identity(&self.remote, &String::from_utf8_lossy(name), kv.value()) {
            Ok((id, labels)) => {
                self.known().learn(id, &labels);
                Some(id)
            }
            Err(reject) => {
                let (key, remedy) = (String::from_utf8_lossy(kv.key()), reject.reason.remedy());
                tracing::warn!(key = %key.escape_debug(), %reject, remedy, "identity in the own etcd not used");
                let (first, last) = self.range();
                if let Some(id) = number_of(kv.key()).filter(|id| (first..=last).contains(&id.0)) {
                    self.known().unsound(id);
                }
                None
            }
        }
    }

    pub(super) async fn follow(&self, stream: &mut WatchStream) -> Result<(), MeshError> {
        for event in next_answer(stream, || "watching identities".to_owned()).await?.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                // What is not sound was told.
                EventType::Put => drop(self.learn(kv)),
                EventType::Delete => {
                    if let Some(id) = number_of(kv.key()) {
                        self.known().deleted(id);
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the masters of sets in use that etcd has lost. A number that was given away meanwhile is not fought for:
    /// the set gets a new one.
    pub(super) async fn write_lost(
        &self,
        context: &Context,
        client: &Client,
        writer: &mut ScopeWriter,
    ) -> Result<(), MeshError> {
        let unsure: Vec<(Labels, IdentityId)> = {
            let known = self.known();
            // A reference on our lease was written together with, or after, its master.
            let unsure = |(labels, id): &(&Labels, IdentityId)| {
                known.is_lost(*id) || !writer.has(&reference_key(labels, context))
            };
            known.used().filter(unsure).map(|(labels, id)| (labels.clone(), id)).collect()
        };
        for (labels, id) in unsure {
            if self.stands(client, id, &labels).await? {
                self.known().learn(id, &labels);
            } else {
                self.known().give_up(&labels, id);
            }
        }
        let numberless = self.known().numberless();
        for labels in numberless {
            tracing::error!(%labels, "the number was given to other labels while etcd had lost it; taking a new one");
            self.allocate(context, client, writer, &labels).await?;
            self.shared.renumbered.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Writes a master if its number is free. False if the number belongs to other labels.
    async fn stands(&self, client: &Client, id: IdentityId, labels: &Labels) -> Result<bool, MeshError> {
        let master = master_key(id);
        let txn = Txn::new()
            .when([Compare::create_revision(master.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(master.as_str(), labels.to_string(), None)])
            .or_else([TxnOp::get(master.as_str(), None)]);
        let what = || format!("writing {master}");
        let answer = operate(Operation::CreateOnly, &master, what, client.kv_client().txn(txn)).await?;
        let value = answer.op_responses().into_iter().find_map(|op| match op {
            TxnOpResponse::Get(mut get) => get.take_kvs().into_iter().next(),
            _ => None,
        });
        Ok(answer.succeeded() || value.is_some_and(|kv| kv.value() == labels.to_string().as_bytes()))
    }

    /// Finds or makes the number of a label set.
    pub(super) async fn allocate(
        &self,
        context: &Context,
        client: &Client,
        writer: &mut ScopeWriter,
        labels: &Labels,
    ) -> Result<IdentityId, MeshError> {
        if let Some(id) = self.find(client, labels).await? {
            return Ok(id);
        }
        let lock = Lock::take(client, labels).await?;
        let made = match self.find(client, labels).await {
            Ok(Some(id)) => Ok(id),
            Ok(None) => self.create(context, client, writer, labels, &lock).await,
            Err(error) => Err(error),
        };
        lock.release(client).await?;
        made
    }

    /// The number of a set whose master stands.
    async fn find(&self, client: &Client, labels: &Labels) -> Result<Option<IdentityId>, MeshError> {
        for id in referenced(client, labels).await? {
            let master = get(client, &master_key(id)).await?;
            if let Some(kv) = master.filter(|kv| kv.value() == labels.to_string().as_bytes()) {
                self.learn(&kv);
                return Ok(self.known().number(labels));
            }
        }
        // A master without references: its last user went, the number is still good.
        let remembered = self.known().number(labels);
        let Some(id) = remembered else { return Ok(None) };
        let standing = get(client, &master_key(id)).await?;
        Ok(standing.filter(|kv| kv.value() == labels.to_string().as_bytes()).map(|_| id))
    }

    async fn create(
        &self,
        context: &Context,
        client: &Client,
        writer: &mut ScopeWriter,
        labels: &Labels,
        lock: &Lock,
    ) -> Result<IdentityId, MeshError> {
        let (first, last) = self.range();
        // Its old number, should etcd have lost the master: as remembered here, or as a reference that stands says.
        let remembered = self.known().number(labels);
        let remembered = match remembered {
            Some(id) => Some(id),
            None => referenced(client, labels).await?.into_iter().find(|id| (first..=last).contains(&id.0)),
        };
        if let Some(id) = remembered
            && let Some(found) = self.claim(context, client, writer, labels, lock, id).await?
        {
            return Ok(found);
        }
        // Each number that turns out to be taken is one less to try.
        for attempt in 0..=last.saturating_sub(first) {
            let from = if attempt < RANDOM_TRIES { rand::rng().random_range(first..=last) } else { first };
            let free = self.known().free(from, first, last);
            let Some(id) = free else { break };
            if let Some(found) = self.claim(context, client, writer, labels, lock, id).await? {
                return Ok(found);
            }
            // Taken by somebody we do not know of yet: learn whose it is, then try another.
            if let Some(kv) = get(client, &master_key(id)).await? {
                self.learn(&kv);
            } else {
                let why = "the lock was lost before the number was taken: its lease ended, or somebody deleted it; the next try takes it anew, if that goes on look at etcd's load";
                return Err(broken(format!("locking the labels {labels}"), why.to_owned()));
            }
        }
        Err(MeshError::Exhausted { first, last })
    }

    /// Creates master and reference in one transaction, if the number is free and the lock is still ours.
    async fn claim(
        &self,
        context: &Context,
        client: &Client,
        writer: &mut ScopeWriter,
        labels: &Labels,
        lock: &Lock,
        id: IdentityId,
    ) -> Result<Option<IdentityId>, MeshError> {
        let master = master_key(id);
        let reference = reference_key(labels, context);
        let lease = writer.pool.assign().await?;
        let number = id.0.to_string();
        let options = PutOptions::new().with_lease(lease);
        let txn = Txn::new()
            .when([
                Compare::create_revision(master.as_str(), CompareOp::Equal, 0),
                Compare::lease(lock.key.as_str(), CompareOp::Equal, lock.lease),
            ])
            .and_then([
                TxnOp::put(master.as_str(), labels.to_string(), None),
                TxnOp::put(reference.as_str(), number.as_str(), Some(options)),
            ]);
        let what = || format!("creating {master}");
        let answer = operate(Operation::CreateOnly, &master, what, client.kv_client().txn(txn)).await?;
        if !answer.succeeded() {
            writer.pool.free(lease);
            return Ok(None);
        }
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        writer.note(reference, number.as_bytes(), lease, revision);
        self.known().learn(id, labels);
        Ok(Some(id))
    }
}

/// The numbers that nodes' references to a set name, whether their masters stand or not. Only keys whose text before the last
/// slash is the whole set count.
async fn referenced(client: &Client, labels: &Labels) -> Result<Vec<IdentityId>, MeshError> {
    let prefix = format!("{}{labels}/", key::IDENTITY_VALUES);
    let number = |kv: &KeyValue| {
        let node = kv.key().strip_prefix(prefix.as_bytes())?;
        let whole = !node.is_empty() && !node.contains(&b'/');
        kv.value_str().ok().filter(|_| whole)?.parse().ok().map(IdentityId)
    };
    Ok(list(client, &prefix).await?.iter().filter_map(number).collect())
}

/// The number in a master's key.
pub(super) fn number_of(key: &[u8]) -> Option<IdentityId> {
    let name = key.strip_prefix(Kind::Identities.prefix(Layout::State, "").as_bytes())?;
    std::str::from_utf8(name).ok()?.parse().ok().map(IdentityId)
}

fn reference_key(labels: &Labels, context: &Context) -> String {
    format!("{}{labels}/{}", key::IDENTITY_VALUES, context.config.node)
}

pub(super) fn master_key(id: IdentityId) -> String {
    format!("{}{}", Kind::Identities.prefix(Layout::State, ""), id.0)
}
