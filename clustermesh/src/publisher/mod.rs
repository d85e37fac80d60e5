//! Publishes this cluster in its own etcd: each agent its node and its pods' addresses, the elected agent what belongs
//! to the whole cluster; and allocates identities there.
//!
//! A lost connection removes nothing: leases live 15 minutes, a restart resumes them. A wiped etcd is filled again by
//! everybody, and its canaries come only when all known nodes have published, so that readers never see a half.

mod beat;
mod contest;
pub(crate) mod desired;
pub(crate) mod election;
mod gate;
mod identity;
mod kv;
mod leader;
pub(crate) mod lease;
mod node;
mod pace;
pub(crate) mod scope;
mod sweep;
pub(crate) mod watching;
mod writes;

pub use contest::{Contest, Contested};
pub use desired::{Desired, DesiredSet};
pub use identity::IdentityAllocator;
pub use kv::KeyValues;
pub use writes::WriteCounts;

use crate::certificate::{Expiry, unix_now};
use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use crate::follower::{Failure, FailureKind};
use crate::own::{self, ConnectionTimers, Opened, OwnEtcd, Work};
use crate::wire::{ExportMode, ProducerForms, key};
use etcd_client::Client;
use identity::{Allocation, Shared};
use kv::ClientSlot;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use writes::Writes;

/// What the publisher needs to know.
#[derive(Clone, Debug)]
pub struct PublisherConfig {
    /// This cluster.
    pub cluster: ClusterName,
    /// Its number.
    pub cluster_id: ClusterId,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// How the backends of global services are written; each form is written by the caller, with
    /// [`PublisherHandle::set_cluster`].
    pub backends: ExportMode,
    /// Whether exports of the Multi-Cluster Services API are announced; they too are written by the caller.
    pub exports: bool,
    /// This node.
    pub node: Arc<str>,
    /// The own etcd.
    pub etcd: EtcdConfig,
    /// Durations of its connection.
    pub connection: ConnectionTimers,
    /// Where leases and identities are kept over restarts.
    pub state_dir: PathBuf,
    /// Life of a lease without its agent.
    pub lease_ttl: Duration,
    /// Life of an election without its holder.
    pub election_ttl: Duration,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Interval of the beats that readers measure their lag by.
    pub beat: Duration,
    /// Longest wait for all nodes' markers before canaries are written.
    pub canary_wait: Duration,
    /// Interval of comparing everything with etcd.
    pub audit: Duration,
    /// Interval of looking for identities that nobody uses: one goes at the second look in a row that finds it so.
    pub identity_gc: Duration,
    /// How long entries stay in a form that is not published any more, once all that takes their place stands: readers look at
    /// configurations once a minute.
    pub form_grace: Duration,
}

impl PublisherConfig {
    /// A configuration with Cilium's durations.
    #[must_use]
    pub fn new(
        cluster: ClusterName,
        cluster_id: ClusterId,
        node: Arc<str>,
        etcd: EtcdConfig,
        state_dir: PathBuf,
    ) -> Self {
        Self {
            cluster,
            cluster_id,
            max: MaxClusters::default(),
            backends: ExportMode::default(),
            exports: false,
            node,
            etcd,
            connection: ConnectionTimers::default(),
            state_dir,
            lease_ttl: Duration::from_secs(15 * 60),
            election_ttl: Duration::from_secs(15),
            heartbeat: Duration::from_secs(60),
            beat: Duration::from_secs(5),
            canary_wait: Duration::from_secs(60),
            audit: Duration::from_secs(300),
            identity_gc: Duration::from_secs(15 * 60),
            form_grace: Duration::from_secs(180),
        }
    }

    /// What is announced and which canaries are written.
    fn forms(&self) -> ProducerForms {
        let service_exports = self.exports.then_some(true);
        ProducerForms { backends: self.backends, service_exports, ..ProducerForms::default() }
    }

    fn keep_alive(&self) -> Duration {
        (self.lease_ttl / 3).min(Duration::from_secs(60))
    }
}

/// The publisher's state for `tombolo status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PublisherStatus {
    /// Whether a connection stands.
    pub connected: bool,
    /// One sentence: what it does or what is wrong, and what to try.
    pub status: String,
    /// Whether this node's keys were all written on this connection.
    pub published: bool,
    /// Whether this agent is the elected one.
    pub leader: bool,
    /// Whether the canaries stand; known to the elected agent.
    pub canaries: bool,
    /// Number of this node's keys.
    pub node_keys: usize,
    /// Number of the cluster's keys; known to the elected agent.
    pub cluster_keys: usize,
    /// Leases of this node's keys.
    pub leases: usize,
    /// Leftovers removed.
    pub swept: usize,
    /// Identities of this cluster.
    pub identities: usize,
    /// How many it can have; 0 before the first connection.
    pub identity_limit: usize,
    /// Identities that nobody used, removed by this agent while elected.
    pub collected: usize,
    /// Keys of ours that somebody else changed or deleted.
    pub contested: Contested,
    /// Whether another agent of this node's name was elected in place of this one, which lives.
    pub namesake: bool,
    /// Connections lost.
    pub reconnections: u64,
    /// Those that were lost because etcd had no leader.
    pub no_leader: u64,
    /// The last failure.
    pub last_failure: Option<String>,
    /// The certificate that ends first.
    pub certificate: Option<Expiry>,
    /// Why renewed certificate files are not used.
    pub renewal: Option<String>,
    /// Whether etcd is reached without TLS.
    pub plaintext: bool,
}

/// From this part of the identities in use on it is told, in percent.
const IDENTITY_WARNING_PERCENT: usize = 80;

impl PublisherStatus {
    fn identity_warning(&self) -> Option<String> {
        let (taken, limit) = (self.identities, self.identity_limit);
        let near = limit > 0 && taken.saturating_mul(100) >= limit.saturating_mul(IDENTITY_WARNING_PERCENT);
        near.then(|| {
            format!(
                "{taken} of {limit} identities are in use, and pods with new label sets cannot start without one; exclude labels that differ from pod to pod (identities.labels in agent.yaml)"
            )
        })
    }

    /// What works `now` (seconds since 1970) and will not for long, or not after a restart.
    #[must_use]
    pub fn warnings(&self, now: i64) -> Vec<String> {
        let expiry = self.certificate.as_ref().and_then(|expiry| expiry.warning(now));
        let namesake = self.namesake.then(|| {
            "another agent of this node's name runs and was elected in place of this one; give one of them another node.name (agent.yaml)".to_owned()
        });
        let found =
            [expiry, self.renewal.clone(), self.identity_warning(), self.contested.warning(now), namesake];
        found.into_iter().flatten().collect()
    }
}

type Keys = watch::Sender<Option<Arc<DesiredSet>>>;
type Nodes = watch::Sender<Option<Arc<BTreeSet<Arc<str>>>>>;

/// What all parts of the publisher share.
pub(crate) struct Context {
    pub(crate) config: PublisherConfig,
    candidate: election::Candidate,
    node_keys: Keys,
    /// Whether the identities of this node's pods stand, on the present connection.
    identities_stand: watch::Sender<bool>,
    cluster_keys: Keys,
    node_writes: Arc<Writes>,
    cluster_writes: Arc<Writes>,
    nodes: Nodes,
    leader: watch::Sender<bool>,
    status: watch::Sender<PublisherStatus>,
    client: watch::Sender<Option<ClientSlot>>,
}

impl Context {
    fn update(&self, change: impl FnOnce(&mut PublisherStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    /// Takes note of keys of ours that somebody else wrote.
    fn contested(&self, keys: &[String]) {
        if !keys.is_empty() {
            let now = unix_now();
            self.update(|status| status.contested.note(keys, now));
        }
    }

    fn set_leader(&self, leader: bool) {
        self.leader.send_if_modified(|held| std::mem::replace(held, leader) != leader);
        if !leader {
            // What was planned in one term must not be written in a later one: others wrote meanwhile.
            self.cluster_keys.send_if_modified(|held| held.take().is_some());
            self.cluster_writes.planned(0);
        }
        self.update(|status| {
            status.leader = leader;
            if !leader {
                status.canaries = false;
                status.cluster_keys = 0;
            }
        });
    }

    /// Whether this node's endpoints are all known.
    fn initialized(&self) -> bool {
        self.node_keys.borrow().is_some()
    }
}

/// Tells the publisher what should stand in etcd.
#[derive(Clone)]
pub struct PublisherHandle {
    context: Arc<Context>,
    identities: IdentityAllocator,
}

impl std::fmt::Debug for PublisherHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublisherHandle").field("status", &*self.context.status.borrow()).finish()
    }
}

fn replace(keys: &Keys, writes: &Writes, wanted: impl IntoIterator<Item = Desired>) {
    let set: DesiredSet = wanted.into_iter().map(|wanted| (wanted.key.clone(), wanted)).collect();
    keys.send_if_modified(|held| {
        let changed = held.as_deref() != Some(&set);
        if changed {
            let before = held.as_deref();
            let same =
                |(key, wanted): &(&String, &Desired)| before.and_then(|set| set.get(*key)) == Some(*wanted);
            let kept = set.iter().filter(same).count();
            let gone = before.map_or(0, |before| before.keys().filter(|key| !set.contains_key(*key)).count());
            writes.wanted(set.len() - kept + gone);
            *held = Some(Arc::new(set));
        }
        changed
    });
}

impl PublisherHandle {
    /// This node's whole set: its node entry and its pods' addresses. Call it first when all endpoints of the last life
    /// are known: from then on what is missing in it is removed from etcd.
    pub fn set_node(&self, wanted: impl IntoIterator<Item = Desired>) {
        replace(&self.context.node_keys, &self.context.node_writes, wanted);
    }

    /// The cluster's whole set: global services and assignments. Taken only while this agent is elected (see
    /// [`Self::leader`]) and forgotten when it is not any more. Call it first in each term when services and assignments
    /// are completely known; nothing of the cluster's is removed, and no canary written, before. False if not elected.
    pub fn set_cluster(&self, wanted: impl IntoIterator<Item = Desired>) -> bool {
        let leader = self.context.leader.borrow();
        if *leader {
            replace(&self.context.cluster_keys, &self.context.cluster_writes, wanted);
        }
        *leader
    }

    /// The nodes that must have published before canaries are written.
    pub fn set_nodes(&self, nodes: impl IntoIterator<Item = Arc<str>>) {
        let nodes: BTreeSet<Arc<str>> = nodes.into_iter().collect();
        self.context.nodes.send_if_modified(|held| {
            let changed = held.as_deref() != Some(&nodes);
            if changed {
                *held = Some(Arc::new(nodes));
            }
            changed
        });
    }

    /// Whether this agent is the elected one; changes are seen by waiting on it.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<bool> {
        self.context.leader.subscribe()
    }

    /// Identity allocation.
    #[must_use]
    pub const fn identities(&self) -> &IdentityAllocator {
        &self.identities
    }

    /// Values below `tombolo/`.
    #[must_use]
    pub fn key_values(&self) -> KeyValues {
        KeyValues { client: self.context.client.subscribe() }
    }

    /// How far the writing of this node's keys is, and of the cluster's.
    #[must_use]
    pub fn writes(&self) -> [(&'static str, WriteCounts); 2] {
        [("node", self.context.node_writes.counts()), ("cluster", self.context.cluster_writes.counts())]
    }

    /// The present state; changes are seen by waiting on it.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<PublisherStatus> {
        self.context.status.subscribe()
    }
}

/// Starts publishing, until `cancel` is cancelled. Keys then stay until their leases end or the next life resumes them.
#[must_use]
pub fn start(config: PublisherConfig, cancel: CancellationToken) -> (PublisherHandle, JoinHandle<()>) {
    let (requests, inbox) = mpsc::channel(256);
    let shared = Shared::new(config.cluster.as_str(), requests);
    let context = Arc::new(Context {
        candidate: election::Candidate::new(config.node.clone()),
        config,
        node_keys: watch::Sender::new(None),
        identities_stand: watch::Sender::new(false),
        cluster_keys: watch::Sender::new(None),
        node_writes: Arc::default(),
        cluster_writes: Arc::default(),
        nodes: watch::Sender::new(None),
        leader: watch::Sender::new(false),
        status: watch::Sender::new(PublisherStatus::default()),
        client: watch::Sender::new(None),
    });
    let mut allocation = Allocation::new(&context, shared.clone(), inbox);
    let handle = PublisherHandle { context: context.clone(), identities: IdentityAllocator::new(shared) };
    let task = tokio::spawn(async move {
        let renewal = |renewal| context.update(|status| status.renewal = renewal);
        let (etcd, timers) = (&context.config.etcd, context.config.connection);
        let own = OwnEtcd { etcd, timers, cancel: &cancel, renewal: &renewal };
        let publishing = async {
            allocation.restore(&context).await;
            own::keep(&own, &mut Publishing { context: context.clone(), allocation }).await;
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = publishing => {}
        }
    });
    (handle, task)
}

/// Everything that is done in the own etcd.
struct Publishing {
    context: Arc<Context>,
    allocation: Allocation,
}

impl Work for Publishing {
    fn connected(&mut self, opened: &Opened) {
        let context = &self.context;
        context.client.send_replace(Some(ClientSlot(opened.client.clone())));
        context.update(|status| {
            status.connected = true;
            "connected".clone_into(&mut status.status);
            status.certificate.clone_from(&opened.expiry);
            status.renewal = None;
            status.plaintext = context.config.etcd.is_plaintext();
        });
    }

    /// Runs all parts on one connection; the first that fails ends it.
    async fn session(&mut self, client: &Client) -> MeshError {
        let Self { context, allocation } = self;
        context.identities_stand.send_replace(false);
        tokio::select! {
            error = allocation.serve(context, client) => error,
            error = node::publish(context, client) => error,
            error = stand(context, client) => error,
        }
    }

    fn ended(&mut self) {
        self.context.set_leader(false);
        self.context.update(|status| status.published = false);
    }

    fn lost(&mut self, error: &MeshError, why: &str) {
        tracing::warn!(reason = %why, "own etcd: connection given up; published keys stay until their leases end");
        let no_leader = u64::from(Failure::from(error).kind == FailureKind::NoLeader);
        self.context.client.send_replace(None);
        self.context.update(|status| {
            status.connected = false;
            status.reconnections = status.reconnections.saturating_add(1);
            status.no_leader = status.no_leader.saturating_add(no_leader);
            why.clone_into(&mut status.status);
            status.last_failure = Some(why.to_owned());
        });
    }

    /// Requests for identities wait while a connection is made, which is bounded, and are refused between two tries.
    async fn idle(&mut self, why: &str) {
        self.allocation.refuse(why).await;
    }
}

/// Stands for election and, once elected, writes what belongs to the cluster.
async fn stand(context: &Context, client: &Client) -> MeshError {
    let seat = election::Seat {
        key: key::ELECTION,
        candidate: &context.candidate,
        ttl: context.config.election_ttl,
        namesake: &|namesake| context.update(|status| status.namesake = namesake),
    };
    let won = match election::campaign(&seat, client).await {
        Ok(won) => won,
        Err(error) => return error,
    };
    tracing::info!("elected: this agent writes what belongs to the whole cluster");
    tokio::select! {
        error = won.hold(client) => error,
        error = leader::lead(context, client, &won) => error,
    }
}

/// That moment; without one it never comes.
pub(crate) async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
