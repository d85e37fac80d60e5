//! Identity allocation in the kvstore form: `id/<n>` holds the labels, created if absent and without a lease;
//! `value/<labels>/<node>` holds the number, on the node's lease.

mod collect;
mod known;
mod lock;
mod masters;

pub(super) use collect::Collector;

use super::Context;
use super::lease::LeasePool;
use super::scope::{Area, ScopeWriter};
use crate::error::MeshError;
use crate::wire::key;
use etcd_client::Client;
use known::Known;
use masters::Masters;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::{CLUSTER_KEY, Labels};

/// How often what is known is saved while it changes: with many identities the file has megabytes.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

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
        self.shared.known().release(labels);
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
        self.shared.known().number(labels)
    }

    /// Every known identity of this cluster.
    #[must_use]
    pub fn all(&self) -> Vec<(IdentityId, Labels)> {
        self.shared.known().all().map(|(id, labels)| (id, labels.clone())).collect()
    }

    /// Changes when a set in use got another number (its old one was given away while etcd had lost it): look all up anew.
    #[must_use]
    pub fn renumbered(&self) -> watch::Receiver<u64> {
        self.shared.renumbered.subscribe()
    }

    fn count_use(&self, labels: &Labels) {
        self.shared.known().count_use(labels);
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

impl Allocation {
    pub(super) fn new(context: &Context, shared: Arc<Shared>, requests: mpsc::Receiver<Request>) -> Self {
        Self { requests, masters: Masters::new(context, shared) }
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
        let areas = vec![Area::Leased(key::IDENTITY_VALUES.to_owned())];
        let mut writer = ScopeWriter::new(client.clone(), pool, areas, None);
        writer.resync().await?;
        let mut stream = masters.read(client).await?;
        let mut keep_alive = interval(context.config.keep_alive());
        let mut audit = interval(context.config.audit);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut save = interval(SAVE_INTERVAL);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        audit.tick().await;
        let shared = masters.shared();
        loop {
            context.contested(&writer.take_contested());
            masters.write_lost(context, client, &mut writer).await?;
            // References of the last life stay until their leases end: which sets are in use is learnt pod by pod.
            let prune = context.initialized() && shared.all_counted.load(Ordering::Acquire);
            writer.reconcile(&masters.references(context), prune).await?;
            context.identities_stand.send_if_modified(|stand| !std::mem::replace(stand, true));
            masters.count(context);
            tokio::select! {
                Some(request) = requests.recv() => {
                    match masters.allocate(context, client, &mut writer, &request.labels).await {
                        Err(error @ MeshError::Request { .. }) => {
                            let (labels, why) = (request.labels.to_string(), error.to_string());
                            request.reply.send(Err(MeshError::Unknown { labels, why })).ok();
                            return Err(error);
                        }
                        answer => drop(request.reply.send(answer)),
                    }
                }
                () = shared.used_changed.notified() => {}
                _ = keep_alive.tick() => {
                    if writer.pool.keep_alive().await? {
                        writer.resync().await?;
                    }
                }
                _ = audit.tick() => {
                    writer.resync().await?;
                    // Everybody has been connected long enough to write again what they use.
                    shared.known().drop_absent();
                }
                _ = save.tick() => masters.save(context).await,
                learnt = masters.follow(&mut stream) => learnt?,
            }
        }
    }
}
