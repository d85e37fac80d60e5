//! Follows other clusters: one task per remote cluster, each with a sans-IO core and an etcd connection of its own,
//! so that one bad cluster costs nobody else.

mod admission;
mod core;
mod driver;
mod event;
mod folder;
mod ids;
mod requests;
pub(crate) mod snapshot;
mod status;
mod store;
#[cfg(test)]
mod tests;

pub use self::core::{Follower, FollowerConfig};
pub use driver::MeshSink;
pub use event::{
    Applied, Change, Failure, FailureKind, Header, Input, KeyEvent, Output, Scope, Ticket, Timers,
};
pub use ids::IdBook;
pub use status::{ClusterStatus, ConfigStatus, FailureStatus};

use crate::etcd::EtcdConfig;
use driver::{Command, Driver};
use folder::{Folder, Scan};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

/// What the mesh needs to know.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// This agent's cluster.
    pub cluster: ClusterName,
    /// Its number.
    pub cluster_id: ClusterId,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// The folder with `<remote>.yaml` files.
    pub folder: PathBuf,
    /// Where snapshots are kept (`<name>.json`); `None` keeps none.
    pub snapshots: Option<PathBuf>,
    /// Accept `http://` endpoints.
    pub allow_plaintext: bool,
    /// The own cluster's etcd, to follow the cluster's other nodes; `None` follows remote clusters only.
    pub own: Option<EtcdConfig>,
    /// Durations.
    pub timers: Timers,
}

struct Running {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    digest: [u8; 32],
}

enum Ask {
    Status(oneshot::Sender<Vec<ClusterStatus>>),
}

/// The running mesh: asks for status; ends when its cancellation token is cancelled.
#[derive(Clone, Debug)]
pub struct MeshHandle {
    asks: mpsc::Sender<Ask>,
}

impl MeshHandle {
    /// The state of every cluster, by name; broken files are listed as clusters that are not ready.
    pub async fn status(&self) -> Vec<ClusterStatus> {
        let (reply, answer) = oneshot::channel();
        if self.asks.send(Ask::Status(reply)).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }
}

struct Mesh {
    config: MeshConfig,
    sink: Arc<dyn MeshSink>,
    ids: IdBook,
    origin: Instant,
    running: BTreeMap<ClusterName, Running>,
    broken: BTreeMap<String, String>,
    /// Clusters whose file was broken from the start: not followed, and not pruned before their file is mended or gone.
    spared: BTreeSet<ClusterName>,
    cancel: CancellationToken,
}

/// Starts following; the handle answers until `cancel` is cancelled. What is known stays with the sink then.
///
/// Every cluster of the folder is announced to the sink when this returns: whoever prunes afterwards knows of whom to
/// spare. That goes for one whose file is broken, too, since an earlier life may have followed it.
pub async fn start(
    config: MeshConfig,
    sink: Arc<dyn MeshSink>,
    cancel: CancellationToken,
) -> (MeshHandle, JoinHandle<()>) {
    let (asks, inbox) = mpsc::channel(16);
    let mut folder = Folder::new(config.folder.clone(), config.cluster.clone(), config.allow_plaintext);
    let mut mesh = Mesh {
        config,
        sink,
        ids: IdBook::default(),
        origin: Instant::now(),
        running: BTreeMap::new(),
        broken: BTreeMap::new(),
        spared: BTreeSet::new(),
        cancel,
    };
    let own = mesh.config.cluster.clone();
    if let Some(etcd) = mesh.config.own.clone() {
        mesh.follow(own.clone(), etcd, [0; 32]);
    }
    let first = folder.scan().await;
    mesh.spared = first.broken.keys().filter_map(|name| ClusterName::new(name).ok()).collect();
    mesh.spared.retain(|name| *name != own);
    for name in &mesh.spared {
        mesh.sink.state(name, tombolo_base::source::SourceState::Pending);
    }
    mesh.apply(first).await;
    (MeshHandle { asks }, tokio::spawn(mesh.run(folder, inbox)))
}

impl Mesh {
    async fn run(mut self, mut folder: Folder, mut asks: mpsc::Receiver<Ask>) {
        let cancel = self.cancel.clone();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                scan = folder.changed() => self.apply(scan).await,
                Some(Ask::Status(reply)) = asks.recv() => drop(reply.send(self.status().await)),
            }
        }
        for running in std::mem::take(&mut self.running).into_values() {
            // A panic was reported by the runtime already.
            drop(running.task.await);
        }
    }

    fn follow(&mut self, cluster: ClusterName, etcd: EtcdConfig, digest: [u8; 32]) {
        let (commands, inbox) = mpsc::channel(16);
        let core = Follower::new(
            FollowerConfig {
                cluster: cluster.clone(),
                own_name: self.config.cluster.clone(),
                own_id: self.config.cluster_id,
                max: self.config.max,
                ids: self.ids.clone(),
                seed: rand::random(),
                timers: self.config.timers,
            },
            tombolo_base::clock::Moment::from_origin(self.origin.elapsed()),
        );
        let snapshot = self.config.snapshots.as_ref().map(|folder| folder.join(format!("{cluster}.json")));
        let sink = self.sink.clone();
        sink.state(&cluster, tombolo_base::source::SourceState::Pending);
        let driver = Driver::new(cluster.clone(), core, etcd, sink, snapshot, self.origin);
        let task = tokio::spawn(driver.run(inbox, self.cancel.clone()));
        self.running.insert(cluster, Running { commands, task, digest });
    }

    /// New files are followed, changed ones reconnect, removed ones drain; a file that became unusable keeps what runs.
    async fn apply(&mut self, scan: Scan) {
        let own = &self.config.cluster;
        let gone = |name: &&ClusterName| {
            !scan.remotes.contains_key(*name) && !scan.broken.contains_key(name.as_str()) && *name != own
        };
        let gone: Vec<ClusterName> = self.running.keys().filter(gone).cloned().collect();
        for name in gone {
            tracing::info!(cluster = %name, "its file was removed: its entries are taken away");
            self.drain(&name).await;
        }
        let (there, gone): (Vec<ClusterName>, Vec<ClusterName>) = std::mem::take(&mut self.spared)
            .into_iter()
            .partition(|name| scan.broken.contains_key(name.as_str()) || scan.remotes.contains_key(name));
        self.spared = there.into_iter().filter(|name| !scan.remotes.contains_key(name)).collect();
        gone.iter().for_each(|name| self.sink.gone(name));
        for (name, (etcd, digest)) in scan.remotes {
            match self.running.get_mut(&name) {
                None => self.follow(name, etcd, digest),
                Some(running) if running.digest != digest => {
                    running.digest = digest;
                    // A follower that has ended is reported by its task.
                    drop(running.commands.send(Command::Reconfigure(etcd)).await);
                }
                Some(_) => {}
            }
        }
        for (name, text) in &scan.broken {
            if self.broken.get(name) != Some(text) {
                tracing::error!(cluster = %name, reason = %text, "cluster file not used");
            }
        }
        self.broken = scan.broken;
    }

    async fn drain(&mut self, name: &ClusterName) {
        let Some(running) = self.running.remove(name) else { return };
        let (reply, done) = oneshot::channel();
        if running.commands.send(Command::Drain(reply)).await.is_ok() {
            drop(done.await);
        }
        drop(running.task.await);
    }

    async fn status(&self) -> Vec<ClusterStatus> {
        let mut all = Vec::new();
        for (name, running) in &self.running {
            let (reply, answer) = oneshot::channel();
            let asked = running.commands.send(Command::Status(reply)).await.is_ok();
            let ended = || ClusterStatus {
                name: name.to_string(),
                status: "its task has ended; see the log, restart the agent".to_owned(),
                ..ClusterStatus::default()
            };
            let mut status = if asked { answer.await.unwrap_or_else(|_| ended()) } else { ended() };
            if let Some(text) = self.broken.get(name.as_str()) {
                status.status = format!("{} (its changed file is not used: {text})", status.status);
            }
            all.push(status);
        }
        for (name, text) in &self.broken {
            if !self.running.keys().any(|running| running.as_str() == name) {
                all.push(ClusterStatus {
                    name: name.clone(),
                    status: text.clone(),
                    ..ClusterStatus::default()
                });
            }
        }
        all.sort_by(|left, right| left.name.cmp(&right.name));
        all
    }
}
