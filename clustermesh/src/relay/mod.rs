//! The relay: mirrors other clusters into the own etcd, in the cache layout, so that the agents of a cluster read one etcd
//! instead of each reading all others. The role of Cilium's KVStoreMesh.
//!
//! ```text
//!  etcd of clusters ─► followers (checked, byte for byte) ─► one mirror each ─► one writer each ─► own etcd
//! ```
//! Several relays may run: all follow, the elected one writes, each write on the condition that it still is. Leases are
//! handed on from one to the next, so a change of relays writes nothing and removes nothing.

mod book;
mod carry;
mod mirror;
#[cfg(test)]
mod mirror_tests;
mod removal;
mod report;
mod status;

pub use status::{MirrorStatus, RelayStatus, RelayedCluster};

use crate::certificate::Expiry;
use crate::error::MeshError;
use crate::etcd::{EtcdConfig, broken};
use crate::follower::{self, FailureKind, Limits, MeshConfig, MeshHandle, Timers};
use crate::own::{self, ConnectionTimers, Opened, OwnEtcd, Work};
use crate::publisher::election::{Candidate, Seat, Won, campaign};
use crate::publisher::lease::give_back;
use crate::wire::key;
use book::{Book, Slot};
use etcd_client::Client;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

/// Transactions that are under way at a time, over all mirrors: one busy cluster leaves room for the others.
const TURNS: usize = 8;

/// What a relay needs to know.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The own cluster.
    pub cluster: ClusterName,
    /// Its number, which no other cluster may have; `None` for a relay that serves no cluster in particular.
    pub cluster_id: Option<ClusterId>,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// This relay's name, its own among the relays of the cluster.
    pub name: Arc<str>,
    /// The folder with an etcd client file for each cluster.
    pub folder: PathBuf,
    /// Accept `http://` endpoints in these files.
    pub allow_plaintext: bool,
    /// The own etcd.
    pub etcd: EtcdConfig,
    /// Durations of its connection.
    pub connection: ConnectionTimers,
    /// Life of the mirrors when no relay runs.
    pub lease_ttl: Duration,
    /// Life of an election without its holder.
    pub election_ttl: Duration,
    /// How long a removed cluster's entries stay after its configuration went, for agents to let go of it first.
    pub removal_grace: Duration,
    /// Interval of heartbeats, where nobody else writes any.
    pub heartbeat: Option<Duration>,
    /// What each cluster may cost.
    pub limits: Limits,
    /// Durations of the followers.
    pub timers: Timers,
}

impl RelayConfig {
    /// A configuration with defaults.
    #[must_use]
    pub fn new(cluster: ClusterName, name: Arc<str>, folder: PathBuf, etcd: EtcdConfig) -> Self {
        Self {
            cluster,
            cluster_id: None,
            max: MaxClusters::default(),
            name,
            folder,
            allow_plaintext: false,
            etcd,
            connection: ConnectionTimers::default(),
            lease_ttl: Duration::from_secs(24 * 3600),
            election_ttl: Duration::from_secs(15),
            removal_grace: Duration::from_secs(180),
            heartbeat: None,
            limits: Limits::default(),
            timers: Timers::default(),
        }
    }

    fn keep_alive(&self) -> Duration {
        (self.lease_ttl / 4).min(Duration::from_secs(600))
    }
}

/// What the relay's own connection is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Own {
    connected: bool,
    leader: bool,
    status: String,
    reconnections: u64,
    last_failure: Option<String>,
    certificate: Option<Expiry>,
    renewal: Option<String>,
    /// Mirrors that were removed.
    removed: u64,
    /// Another relay of this one's name was elected in its place, while it lived.
    namesake: bool,
}

/// What all parts of the relay share.
struct Context {
    config: RelayConfig,
    candidate: Candidate,
    book: Arc<Book>,
    mesh: MeshHandle,
    own: watch::Sender<Own>,
}

/// The running relay: asks for status; ends when its cancellation token is cancelled.
#[derive(Clone)]
pub struct RelayHandle {
    context: Arc<Context>,
}

impl std::fmt::Debug for RelayHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayHandle").field("own", &*self.context.own.borrow()).finish()
    }
}

/// Starts relaying, until `cancel` is cancelled. The mirrors stay until their leases end or another relay has them.
pub async fn start(config: RelayConfig, cancel: CancellationToken) -> (RelayHandle, JoinHandle<()>) {
    let book = Arc::new(Book::default());
    let mesh = MeshConfig {
        cluster: config.cluster,
        cluster_id: config.cluster_id,
        max: config.max,
        folder: config.folder.clone(),
        // What is known stands in the own etcd.
        snapshots: None,
        allow_plaintext: config.allow_plaintext,
        own: None,
        timers: config.timers,
        // Agents judge by the relay's reports how long they use what is not confirmed.
        limits: Limits { services_stale: None, ..config.limits },
        exports: false,
        preference: crate::wire::ServicePreference::default(),
        mirror: true,
        relay: Some(config.etcd.clone()),
    };
    let (mesh, following) = follower::start(mesh, book.clone(), cancel.clone()).await;
    let candidate = Candidate::new(config.name.clone());
    let own = watch::Sender::new(Own::default());
    let context = Arc::new(Context { config, candidate, book, mesh, own });
    let handle = RelayHandle { context: context.clone() };
    let task = tokio::spawn(async move {
        let renewal = |renewal| context.update(|own| own.renewal = renewal);
        let (etcd, timers) = (&context.config.etcd, context.config.connection);
        let own = OwnEtcd { etcd, timers, cancel: &cancel, renewal: &renewal };
        own::keep(&own, &mut Relaying { context: context.clone(), cancel: cancel.clone() }).await;
        // A panic was reported by the runtime already.
        drop(following.await);
    });
    (handle, task)
}

impl Context {
    fn update(&self, change: impl FnOnce(&mut Own)) {
        self.own.send_modify(change);
    }
}

/// Everything that is done in the own etcd.
struct Relaying {
    context: Arc<Context>,
    cancel: CancellationToken,
}

impl Work for Relaying {
    fn connected(&mut self, opened: &Opened) {
        self.context.update(|own| {
            own.connected = true;
            "connected; another relay is elected, this one is ready to take over".clone_into(&mut own.status);
            own.certificate.clone_from(&opened.expiry);
            own.renewal = None;
        });
    }

    async fn session(&mut self, client: &Client) -> MeshError {
        session(&self.context, client, &self.cancel).await
    }

    fn ended(&mut self) {
        self.context.book.slots().iter().for_each(|slot| slot.mirror().end());
        self.context.update(|own| own.leader = false);
    }

    fn lost(&mut self, _error: &MeshError, why: &str) {
        tracing::warn!(reason = %why, "own etcd: connection given up; the mirrors stay as they are");
        self.context.update(|own| {
            own.connected = false;
            own.reconnections = own.reconnections.saturating_add(1);
            why.clone_into(&mut own.status);
            own.last_failure = Some(why.to_owned());
        });
    }

    async fn idle(&mut self, _why: &str) {
        std::future::pending().await
    }
}

/// Stands for election and, once elected, writes the mirrors, until a part fails or the program stops.
async fn session(context: &Arc<Context>, client: &Client, cancel: &CancellationToken) -> MeshError {
    let seat = Seat {
        key: key::RELAY_ELECTION,
        candidate: &context.candidate,
        ttl: context.config.election_ttl,
        namesake: &|namesake| context.update(|own| own.namesake = namesake),
    };
    let won = tokio::select! {
        () = cancel.cancelled() => return MeshError::Stopped,
        won = campaign(&seat, client) => match won {
            Ok(won) => won,
            Err(error) => return error,
        }
    };
    tracing::info!("elected: this relay writes the mirrors");
    context.update(|own| {
        own.leader = true;
        "elected: writes the mirrors".clone_into(&mut own.status);
    });
    tokio::select! {
        error = won.hold(client) => error,
        error = lead(context, client, &won) => error,
        () = cancel.cancelled() => {
            // The next one need not wait until the election has expired.
            if let Err(error) = give_back(client, won.lease).await {
                tracing::info!(%error, "another relay takes over when the election expires");
            }
            MeshError::Stopped
        }
    }
}

/// Runs until the election or the connection is lost.
async fn lead(context: &Arc<Context>, client: &Client, won: &Won) -> MeshError {
    tokio::select! {
        error = tend_all(context, client, won) => error,
        error = report::report(context, client, won) => error,
        error = removal::find_leftovers(context, client) => error,
    }
}

/// A task for each cluster.
async fn tend_all(context: &Arc<Context>, client: &Client, won: &Won) -> MeshError {
    let turns = Arc::new(Semaphore::new(TURNS));
    let mut tasks: JoinSet<Result<ClusterName, MeshError>> = JoinSet::new();
    let mut tended = BTreeSet::new();
    loop {
        for slot in context.book.slots() {
            if tended.insert(slot.cluster) {
                let hand = carry::Hand {
                    context: context.clone(),
                    client: client.clone(),
                    fence: won.fence(),
                    turns: turns.clone(),
                };
                tasks.spawn(tend(hand, slot));
            }
        }
        tokio::select! {
            () = context.book.grown.notified() => {}
            Some(ended_task) = tasks.join_next() => match ended_task {
                Ok(Ok(gone)) => drop(tended.remove(&gone)),
                Ok(Err(error)) => return error,
                Err(error) => {
                    let why = format!("its task broke off: {error}; this is a bug, please report the log");
                    return broken("writing a mirror".to_owned(), why);
                }
            }
        }
    }
}

/// Keeps one cluster's mirror, or removes it, as its file comes and goes; ends when it is removed. Errors are those of the
/// connection: what concerns this mirror only is told in the status and tried again.
async fn tend(hand: carry::Hand, slot: Arc<Slot>) -> Result<ClusterName, MeshError> {
    let mut wanted = slot.wanted.subscribe();
    let mut wait = Duration::from_secs(1);
    loop {
        let keep = *wanted.borrow_and_update();
        let error = tokio::select! {
            _ = wanted.changed() => {
                slot.mirror().end();
                continue;
            }
            error = hand.carry(&slot), if keep => error,
            removed = hand.remove(&slot), if !keep => match removed {
                Ok(()) if hand.context.book.forget(&slot) => return Ok(slot.cluster),
                Ok(()) => continue,
                Err(error) => error,
            }
        };
        slot.mirror().end();
        if matches!(&error, MeshError::Request { kind: FailureKind::Transport | FailureKind::NoLeader, .. }) {
            return Err(error);
        }
        tracing::warn!(cluster = %slot.cluster, %error, "its mirror cannot be written; tried again, the others go on");
        slot.notes().problem = Some(error.to_string());
        hand.context.book.states.notify_one();
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}
