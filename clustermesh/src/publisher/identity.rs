//! Identity allocation in the kvstore form: `id/<n>` holds the labels, created if absent and without a lease;
//! `value/<labels>/<node>` holds the number, on the node's lease.

use super::Context;
use super::desired::{Desired, DesiredSet};
use super::election::ended;
use super::lease::{LeasePool, short_lease};
use super::scope::{Area, ScopeWriter, get, list, list_at};
use crate::error::MeshError;
use crate::etcd::{request, request_error};
use crate::follower::snapshot::write_json;
use crate::wire::{Kind, Layout, Remote, decode_identity, key};
use etcd_client::{
    Client, Compare, CompareOp, EventType, KeyValue, PutOptions, Txn, TxnOp, WatchOptions, WatchStream,
};
use rand::Rng;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::{CLUSTER_KEY, Labels};

/// How long a lock outlives its holder's death, in seconds.
const LOCK_TTL_SECS: i64 = 25;
/// Tries with random numbers before the range is searched from its start.
const RANDOM_TRIES: usize = 64;

/// What is known about this cluster's identities.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_labels: BTreeMap<Labels, IdentityId>,
    by_id: BTreeMap<IdentityId, Labels>,
    /// Label sets with endpoints on this node, and how many.
    used: BTreeMap<Labels, usize>,
}

impl Known {
    fn learn(&mut self, id: IdentityId, labels: &Labels) {
        self.by_id.insert(id, labels.clone());
        // Two numbers for one set (a lost race of another implementation): the lower one is used by all.
        let number = self.by_labels.entry(labels.clone()).or_insert(id);
        *number = (*number).min(id);
    }

    fn forget(&mut self, id: IdentityId) {
        let Some(labels) = self.by_id.remove(&id) else { return };
        // In use here: the number stays taken and the master is written again at the next audit.
        if self.used.contains_key(&labels) {
            self.by_id.insert(id, labels);
        } else if self.by_labels.get(&labels) == Some(&id) {
            self.by_labels.remove(&labels);
        }
    }
}

pub(super) struct Request {
    labels: Labels,
    reply: oneshot::Sender<Result<IdentityId, MeshError>>,
}

/// Gives label sets their numbers; cheap to clone.
#[derive(Clone, Debug)]
pub struct IdentityAllocator {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    cluster: String,
    known: Mutex<Known>,
    requests: mpsc::Sender<Request>,
    used_changed: Notify,
    /// Every use of an earlier life is counted again, or is gone.
    all_counted: AtomicBool,
    renumbered: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(cluster: &str, requests: mpsc::Sender<Request>) -> Arc<Self> {
        Arc::new(Self {
            cluster: cluster.to_owned(),
            known: Mutex::default(),
            requests,
            used_changed: Notify::new(),
            all_counted: AtomicBool::new(false),
            renumbered: watch::Sender::new(0),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdentityAllocator {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The number of a label set, allocated if it has none. Known sets are answered at once, also while etcd is down.
    /// Counts one use of the set on this node; give it back with [`Self::release`].
    ///
    /// # Errors
    /// [`MeshError::Labels`] for labels of another cluster, [`MeshError::Unknown`] when the set is new and etcd cannot
    /// be asked, [`MeshError::Exhausted`] when no number is left.
    pub async fn allocate(&self, labels: &Labels) -> Result<IdentityId, MeshError> {
        self.check(labels)?;
        if let Some(id) = self.lookup(labels) {
            self.count_use(labels);
            return Ok(id);
        }
        let (reply, answer) = oneshot::channel();
        let request = Request { labels: labels.clone(), reply };
        self.shared.requests.send(request).await.map_err(|_| MeshError::Stopped)?;
        let lost = || MeshError::Unknown {
            labels: labels.to_string(),
            why: "the connection to etcd was lost meanwhile".to_owned(),
        };
        let id = answer.await.map_err(|_| lost())??;
        self.count_use(labels);
        Ok(id)
    }

    /// An endpoint with these labels is gone; after the last one the node's reference is removed.
    pub fn release(&self, labels: &Labels) {
        let mut known = self.shared.known();
        if let Some(count) = known.used.get_mut(labels) {
            *count -= 1;
            if *count == 0 {
                known.used.remove(labels);
            }
        }
        drop(known);
        self.shared.used_changed.notify_one();
    }

    /// Every endpoint of an earlier life has been counted by [`Self::allocate`]: references that nobody counts any more may go.
    pub fn all_counted(&self) {
        self.shared.all_counted.store(true, Ordering::Release);
        self.shared.used_changed.notify_one();
    }

    /// The number of a known label set.
    #[must_use]
    pub fn lookup(&self, labels: &Labels) -> Option<IdentityId> {
        self.shared.known().by_labels.get(labels).copied()
    }

    /// Every known identity of this cluster.
    #[must_use]
    pub fn all(&self) -> Vec<(IdentityId, Labels)> {
        self.shared.known().by_id.iter().map(|(id, labels)| (*id, labels.clone())).collect()
    }

    /// Changes when a set in use got another number (its old one was given away while etcd had lost it): look all up anew.
    #[must_use]
    pub fn renumbered(&self) -> watch::Receiver<u64> {
        self.shared.renumbered.subscribe()
    }

    fn count_use(&self, labels: &Labels) {
        *self.shared.known().used.entry(labels.clone()).or_insert(0) += 1;
        self.shared.used_changed.notify_one();
    }

    fn check(&self, labels: &Labels) -> Result<(), MeshError> {
        let own = labels.label(CLUSTER_KEY).is_some_and(|label| {
            label.source.as_ref() == "k8s" && label.value.as_ref() == self.shared.cluster
        });
        let bad = |reason: String| MeshError::Labels { labels: labels.to_string(), reason };
        if !own {
            return Err(bad(format!("the label k8s:{CLUSTER_KEY}={} is missing", self.shared.cluster)));
        }
        if Labels::parse(&labels.to_string()).as_ref() != Ok(labels) {
            return Err(bad(
                "a key or value contains ';', ':' or '=' and would be read as something else".to_owned()
            ));
        }
        Ok(())
    }
}

/// The etcd side of allocation; lives over connections.
pub(super) struct Allocation {
    requests: mpsc::Receiver<Request>,
    masters: Masters,
}

/// The masters in etcd and what is known of them here.
struct Masters {
    shared: Arc<Shared>,
    remote: Remote,
    saved: usize,
}

impl Allocation {
    pub(super) fn new(context: &Context, shared: Arc<Shared>, requests: mpsc::Receiver<Request>) -> Self {
        let config = &context.config;
        let remote =
            Remote { name: config.cluster.clone(), id: config.cluster_id, max: config.max, own: true };
        Self { requests, masters: Masters { shared, remote, saved: 0 } }
    }

    /// Takes over what the last life knew.
    pub(super) async fn restore(&mut self, context: &Context) {
        self.masters.restore(context).await;
    }

    /// Answers whoever asks while there is no connection.
    pub(super) async fn refuse(&mut self, why: &str) {
        while let Some(request) = self.requests.recv().await {
            let error = MeshError::Unknown { labels: request.labels.to_string(), why: why.to_owned() };
            request.reply.send(Err(error)).ok();
        }
        std::future::pending().await
    }

    /// Runs until the connection is lost.
    pub(super) async fn serve(&mut self, context: &Context, client: &Client) -> MeshError {
        match self.try_serve(context, client).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_serve(&mut self, context: &Context, client: &Client) -> Result<Infallible, MeshError> {
        let Self { requests, masters } = self;
        let pool = LeasePool::open(context, client, "identity").await?;
        let areas = vec![Area::Shared(key::IDENTITY_VALUES.to_owned())];
        let mut writer = ScopeWriter::new(client.clone(), pool, areas, None);
        writer.resync().await?;
        let mut stream = masters.read(client).await?;
        let mut keep_alive = interval(context.config.keep_alive());
        let mut audit = interval(context.config.audit);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shared = masters.shared.clone();
        loop {
            masters.write_lost(context, client, &mut writer).await?;
            // References of the last life stay until their leases end: which sets are in use is learnt pod by pod.
            let prune = context.initialized() && shared.all_counted.load(Ordering::Acquire);
            writer.reconcile(&masters.references(context), prune).await?;
            if masters.shared.known().by_id.len() != masters.saved {
                masters.save(context).await;
            }
            tokio::select! {
                Some(request) = requests.recv() => {
                    let answer = masters.allocate(context, client, &mut writer, &request.labels).await;
                    let lost = matches!(&answer, Err(MeshError::Request { .. }));
                    let answer = answer.map_err(|error| match error {
                        MeshError::Request { .. } => MeshError::Unknown {
                            labels: request.labels.to_string(),
                            why: error.to_string(),
                        },
                        other => other,
                    });
                    request.reply.send(answer).ok();
                    if lost {
                        return Err(ended("allocating an identity".to_owned()));
                    }
                    masters.save(context).await;
                }
                () = shared.used_changed.notified() => {}
                _ = keep_alive.tick() => {
                    if writer.pool.keep_alive().await? {
                        writer.resync().await?;
                    }
                }
                _ = audit.tick() => writer.resync().await?,
                learnt = masters.follow(&mut stream) => learnt?,
            }
        }
    }
}

impl Masters {
    fn file(context: &Context) -> std::path::PathBuf {
        context.config.state_dir.join("identities.json")
    }

    /// Takes over what the last life knew.
    async fn restore(&mut self, context: &Context) {
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

    async fn save(&mut self, context: &Context) {
        let (content, count) = {
            let known = self.shared.known();
            let entry = |(id, labels): (&IdentityId, &Labels)| (id.0.to_string(), labels.to_string());
            (known.by_id.iter().map(entry).collect::<BTreeMap<_, _>>(), known.by_id.len())
        };
        self.saved = count;
        if let Err(error) = write_json(&Self::file(context), "identity file", content).await {
            tracing::warn!(%error, "identities not saved; a restart without etcd will not know them");
        }
    }

    fn references(&self, context: &Context) -> DesiredSet {
        let known = self.shared.known();
        let reference = |labels: &Labels| {
            let id = known.by_labels.get(labels)?;
            let name = format!("{}{labels}/{}", key::IDENTITY_VALUES, context.config.node);
            Some((name.clone(), Desired::text(name, &id.0.to_string())))
        };
        known.used.keys().filter_map(reference).collect()
    }

    /// Lists all masters and watches them from there on.
    async fn read(&self, client: &Client) -> Result<WatchStream, MeshError> {
        let prefix = Kind::Identities.prefix(Layout::State, "");
        let (entries, revision) = list_at(client, &prefix).await?;
        for kv in &entries {
            self.learn(kv);
        }
        let options = WatchOptions::new().with_prefix().with_start_revision(revision.saturating_add(1));
        let mut watch = client.watch_client();
        request(|| format!("watching {prefix}"), watch.watch(prefix.as_str(), Some(options))).await
    }

    fn learn(&self, kv: &KeyValue) {
        let prefix = Kind::Identities.prefix(Layout::State, "");
        let Some(name) = kv.key().strip_prefix(prefix.as_bytes()) else { return };
        match decode_identity(&self.remote, &String::from_utf8_lossy(name), kv.value()) {
            Ok((id, labels)) => self.shared.known().learn(id, &labels),
            Err(reject) => {
                let (key, remedy) = (String::from_utf8_lossy(kv.key()), reject.reason.remedy());
                tracing::warn!(key = %key.escape_debug(), %reject, remedy, "identity in the own etcd not used");
            }
        }
    }

    async fn follow(&self, stream: &mut WatchStream) -> Result<(), MeshError> {
        let what = || "watching identities".to_owned();
        let answer = stream.message().await.map_err(|error| request_error(what(), &error))?;
        let Some(answer) = answer.filter(|answer| !answer.canceled()) else { return Err(ended(what())) };
        let prefix = Kind::Identities.prefix(Layout::State, "");
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => self.learn(kv),
                EventType::Delete => {
                    let name = kv.key().strip_prefix(prefix.as_bytes()).unwrap_or_default();
                    if let Ok(number) = String::from_utf8_lossy(name).parse() {
                        self.shared.known().forget(IdentityId(number));
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the masters of sets in use that etcd has lost. A number that was given away meanwhile is not fought for:
    /// the set gets a new one.
    async fn write_lost(
        &self,
        context: &Context,
        client: &Client,
        writer: &mut ScopeWriter,
    ) -> Result<(), MeshError> {
        let used: Vec<(Labels, IdentityId)> = {
            let known = self.shared.known();
            let of = |labels: &Labels| Some((labels.clone(), *known.by_labels.get(labels)?));
            known.used.keys().filter_map(of).collect()
        };
        for (labels, id) in used {
            let reference = format!("{}{labels}/{}", key::IDENTITY_VALUES, context.config.node);
            // A standing reference was written together with, or after, its master.
            if writer.has(&reference) {
                continue;
            }
            let master = master_key(id);
            let txn = Txn::new()
                .when([Compare::create_revision(master.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(master.as_str(), labels.to_string(), None)])
                .or_else([TxnOp::get(master.as_str(), None)]);
            let answer = request(|| format!("writing {master}"), client.kv_client().txn(txn)).await?;
            if answer.succeeded()
                || get(client, &master).await?.is_some_and(|kv| kv.value() == labels.to_string().as_bytes())
            {
                continue;
            }
            tracing::error!(%id, %labels, "the number was given to other labels while etcd had lost it; taking a new one");
            {
                let mut known = self.shared.known();
                known.by_labels.remove(&labels);
            }
            self.allocate(context, client, writer, &labels).await?;
            self.shared.renumbered.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Finds or makes the number of a label set.
    async fn allocate(
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

    /// Looks the set up by value: only keys whose text before the last slash is the whole set count.
    async fn find(&self, client: &Client, labels: &Labels) -> Result<Option<IdentityId>, MeshError> {
        let prefix = format!("{}{labels}/", key::IDENTITY_VALUES);
        for kv in list(client, &prefix).await? {
            let node = kv.key().strip_prefix(prefix.as_bytes()).unwrap_or_default();
            let number = String::from_utf8_lossy(kv.value()).parse::<u32>().ok();
            if let Some(number) = number.filter(|_| !node.contains(&b'/') && !node.is_empty()) {
                let master = get(client, &master_key(IdentityId(number))).await?;
                if let Some(kv) = master.filter(|kv| kv.value() == labels.to_string().as_bytes()) {
                    self.learn(&kv);
                    return Ok(self.shared.known().by_labels.get(labels).copied());
                }
            }
        }
        // A master without references: its last user went, the number is still good.
        let remembered = self.shared.known().by_labels.get(labels).copied();
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
        let (first, last) = self.remote.id.identity_range(self.remote.max);
        let first = first.0.saturating_add(IdentityId::FIRST_ALLOCATABLE);
        let mut start = None;
        for attempt in 0.. {
            let wanted =
                if attempt < RANDOM_TRIES { rand::rng().random_range(first..=last.0) } else { first };
            let from = start.unwrap_or(wanted).max(wanted);
            let free = {
                let known = self.shared.known();
                (from..=last.0).chain(first..from).find(|id| !known.by_id.contains_key(&IdentityId(*id)))
            };
            let Some(id) = free.map(IdentityId) else {
                return Err(MeshError::Exhausted { first, last: last.0 });
            };
            if let Some(found) = self.claim(context, client, writer, labels, lock, id).await? {
                return Ok(found);
            }
            // Taken by somebody we do not know of yet: learn whose it is, then try another.
            if let Some(kv) = get(client, &master_key(id)).await? {
                self.learn(&kv);
                start = Some(id.0);
            } else {
                return Err(ended(format!("locking the labels {labels}")));
            }
        }
        Err(MeshError::Exhausted { first, last: last.0 })
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
        let reference = format!("{}{labels}/{}", key::IDENTITY_VALUES, context.config.node);
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
        let answer = request(|| format!("creating {master}"), client.kv_client().txn(txn)).await?;
        if !answer.succeeded() {
            writer.pool.free(lease);
            return Ok(None);
        }
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        writer.note(reference, number.as_bytes(), lease, revision);
        self.shared.known().learn(id, labels);
        Ok(Some(id))
    }
}

fn master_key(id: IdentityId) -> String {
    format!("{}{}", Kind::Identities.prefix(Layout::State, ""), id.0)
}

/// The lock of one label set: a key on a short lease, created only if absent.
struct Lock {
    key: String,
    lease: i64,
}

impl Lock {
    async fn take(client: &Client, labels: &Labels) -> Result<Self, MeshError> {
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

    async fn release(self, client: &Client) -> Result<(), MeshError> {
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
