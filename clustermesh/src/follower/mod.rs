//! Follows other clusters: one task per remote cluster, each with a sans-IO core and an etcd connection of its own,
//! so that one bad cluster costs nobody else.

mod admission;
mod confirmed;
mod conflict;
mod connections;
mod core;
mod driver;
mod dump;
mod entries;
mod event;
mod folder;
#[cfg(test)]
mod folder_tests;
mod forms;
#[cfg(test)]
mod hostile_tests;
mod ids;
mod lag;
mod limits;
mod link;
mod reading;
mod requests;
mod resume;
#[cfg(test)]
pub(crate) mod sim;
pub(crate) mod snapshot;
mod snapshots;
mod stale;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod times;
mod upstream;
#[cfg(test)]
mod upstream_tests;
mod watches;

pub use self::conflict::{ClusterConflict, ClusterConflictKind};
pub use self::core::{Follower, FollowerConfig};
pub use driver::MeshSink;
pub use dump::{Dump, DumpStatus, DumpedCluster, DumpedIp};
pub use event::{
    Applied, Change, Failure, FailureKind, Header, Input, KeyEvent, News, Output, Scope, Ticket, Timers,
};
pub(crate) use folder::scan;
pub use ids::IdBook;
pub use lag::LagStatus;
pub use limits::Limits;
pub(crate) use requests::open;
pub use status::{
    ClusterStatus, ConfigStatus, FailureStatus, KindUsage, MAX_REFUSED, Refused, UpstreamStatus,
};
pub use times::{Histogram, Quantiles};

use crate::etcd::EtcdConfig;
use crate::wire::ServicePreference;
use connections::Connections;
use driver::{Command, Driver};
use folder::{Folder, Reading, Scan};
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
    /// Its number, which no other cluster may have; `None` for a reader that is of no cluster.
    pub cluster_id: Option<ClusterId>,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// The folder with `<remote>.yaml` files; empty for no remote clusters.
    pub folder: PathBuf,
    /// Where snapshots are kept (`<name>.json`); `None` keeps none.
    pub snapshots: Option<PathBuf>,
    /// Accept `http://` endpoints.
    pub allow_plaintext: bool,
    /// The own cluster's etcd, to follow the cluster's other nodes; `None` follows remote clusters only.
    pub own: Option<EtcdConfig>,
    /// Durations.
    pub timers: Timers,
    /// What each cluster may cost.
    pub limits: Limits,
    /// Whether exports of the Multi-Cluster Services API are read.
    pub exports: bool,
    /// Which form of backends is read where a cluster publishes both.
    pub preference: ServicePreference,
    /// Read everything the clusters publish, as it stands, to write it elsewhere.
    pub mirror: bool,
    /// The etcd that a relay mirrors the clusters in: all are read from there, and the files only name them. With `mirror`:
    /// the one that must not be read.
    pub relay: Option<EtcdConfig>,
}

struct Running {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    digest: [u8; 32],
}

enum Ask {
    Status(oneshot::Sender<Vec<ClusterStatus>>),
    Dump(oneshot::Sender<Dump>),
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

    /// What was accepted from the remote clusters, and what was refused.
    pub async fn dump(&self) -> Dump {
        let (reply, answer) = oneshot::channel();
        if self.asks.send(Ask::Dump(reply)).await.is_err() {
            return Dump::default();
        }
        answer.await.unwrap_or_default()
    }
}

struct Mesh {
    config: MeshConfig,
    sink: Arc<dyn MeshSink>,
    ids: IdBook,
    origin: Instant,
    connections: Connections,
    running: BTreeMap<ClusterName, Running>,
    broken: BTreeMap<String, String>,
    /// Clusters whose file was broken from the start: not followed, and not pruned before their file is mended or gone.
    spared: BTreeSet<ClusterName>,
    /// Why the folder cannot be listed now.
    unlisted: Option<String>,
    /// Whether it was listed before: what is not in it is known to be removed since then.
    listed: bool,
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
    let (asks, asked) = mpsc::channel(16);
    let mut mesh = Mesh {
        config,
        sink,
        ids: IdBook::default(),
        origin: Instant::now(),
        connections: Connections::default(),
        running: BTreeMap::new(),
        broken: BTreeMap::new(),
        spared: BTreeSet::new(),
        unlisted: None,
        listed: false,
        cancel,
    };
    let own = mesh.config.cluster;
    if let Some(etcd) = mesh.config.own.clone() {
        mesh.follow(own, Some(etcd), [0; 32]);
    }
    // One reading at a time: while it is carried out the folder's task waits, and looks again afterwards.
    let (readings, mut inbox) = mpsc::channel(1);
    let watching = (!mesh.config.folder.as_os_str().is_empty()).then(|| {
        let folder = Folder::new(mesh.config.folder.clone(), own, mesh.config.allow_plaintext);
        tokio::spawn(folder.run(readings, mesh.cancel.clone()))
    });
    if watching.is_some()
        && let Some(first) = inbox.recv().await
    {
        mesh.take(first).await;
        mesh.spare();
    }
    (MeshHandle { asks }, tokio::spawn(mesh.run(inbox, watching, asked)))
}

impl Mesh {
    async fn run(
        mut self,
        mut readings: mpsc::Receiver<Reading>,
        watching: Option<JoinHandle<()>>,
        mut asks: mpsc::Receiver<Ask>,
    ) {
        let cancel = self.cancel.clone();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(reading) = readings.recv() => self.take(reading).await,
                Some(ask) = asks.recv() => match ask {
                    Ask::Status(reply) => drop(reply.send(self.status().await)),
                    Ask::Dump(reply) => drop(reply.send(self.dump().await)),
                },
            }
        }
        for task in
            std::mem::take(&mut self.running).into_values().map(|running| running.task).chain(watching)
        {
            // A panic was reported by the runtime already.
            drop(task.await);
        }
    }

    fn follow(&mut self, cluster: ClusterName, etcd: Option<EtcdConfig>, digest: [u8; 32]) {
        let (commands, inbox) = mpsc::channel(16);
        let core = Follower::new(
            FollowerConfig {
                cluster,
                own_name: self.config.cluster,
                own_id: self.config.cluster_id,
                max: self.config.max,
                ids: self.ids.clone(),
                seed: rand::random(),
                timers: self.config.timers,
                limits: self.config.limits,
                exports: self.config.exports,
                preference: self.config.preference,
                mirror: self.config.mirror,
            },
            tombolo_base::clock::Moment::from_origin(self.origin.elapsed()),
        );
        let snapshot = self.snapshot(&cluster);
        let sink = self.sink.clone();
        sink.state(&cluster, tombolo_base::source::SourceState::Pending);
        let driver =
            Driver::new(cluster, core, etcd, sink, snapshot, (self.origin, self.connections.clone()));
        let task = tokio::spawn(driver.run(inbox, self.cancel.clone()));
        self.running.insert(cluster, Running { commands, task, digest });
    }

    fn snapshot(&self, cluster: &ClusterName) -> Option<PathBuf> {
        self.config.snapshots.as_ref().map(|folder| folder.join(format!("{cluster}.json")))
    }

    async fn take(&mut self, reading: Reading) {
        match reading {
            Reading::Listed(scan) => {
                self.unlisted = None;
                self.apply(scan).await;
            }
            Reading::Failed(text) => {
                if self.unlisted.as_ref() != Some(&text) {
                    tracing::error!(reason = %text, "remote clusters: what is known stays in use");
                }
                if self.unlisted.is_none() && !self.listed {
                    for name in snapshots::names(self.config.snapshots.as_deref()).await {
                        self.follow_blindly(name);
                    }
                }
                self.unlisted = Some(text);
            }
        }
    }

    /// New files are followed, changed ones reconnect. Only a cluster whose file is missing from the folder is drained; a
    /// file that became unusable keeps what is known.
    async fn apply(&mut self, mut scan: Scan) {
        let listed = scan.names.clone();
        self.redirect(&mut scan);
        let gone = |name: &&ClusterName| !scan.names.contains(name.as_str()) && **name != self.config.cluster;
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
        for (name, (etcd, digest)) in std::mem::take(&mut scan.remotes) {
            scan.names.remove(name.as_str());
            match self.running.get_mut(&name) {
                None => self.follow(name, Some(etcd), digest),
                Some(running) if running.digest != digest => {
                    running.digest = digest;
                    // A follower that has ended is reported by its task.
                    drop(running.commands.send(Command::Reconfigure(etcd)).await);
                }
                Some(_) => {}
            }
        }
        // What is left of the names has no usable file. Without `endpoints:` a file without extension means nothing,
        // unless its cluster is known: then it was cut off.
        for name in scan.names.iter().filter(|name| self.knows(name)) {
            let file = self.config.folder.join(name).display().to_string();
            let text =
                "has no `endpoints:` any more; write an etcd client file, or remove it to forget the cluster";
            scan.broken.entry(name.clone()).or_insert_with(|| format!("{file} {text}"));
        }
        for (name, text) in &scan.broken {
            if self.broken.get(name) != Some(text) {
                tracing::error!(cluster = %name, reason = %text, "cluster file not used");
            }
            if let Ok(name) = ClusterName::new(name) {
                self.follow_blindly(name);
            }
        }
        self.broken = scan.broken;
        self.sink.listed(&listed);
        if !std::mem::replace(&mut self.listed, true) {
            let followed: Vec<_> = self.running.keys().chain([&self.config.cluster]).cloned().collect();
            snapshots::remove_others(self.config.snapshots.as_deref(), &followed).await;
        }
    }

    /// Files only name clusters that a relay mirrors. A relay itself must not read what it writes: the mirror would
    /// confirm itself for ever.
    fn redirect(&self, scan: &mut Scan) {
        let Some(relay) = &self.config.relay else { return };
        let mut selves = BTreeSet::new();
        for (name, (etcd, digest)) in &mut scan.remotes {
            if !self.config.mirror {
                *etcd = relay.clone();
                *digest = [0; 32];
            } else if etcd.endpoints.iter().any(|endpoint| relay.endpoints.contains(endpoint)) {
                selves.insert(*name);
            }
        }
        for name in selves {
            let file = self.config.folder.join(name.as_str()).display().to_string();
            let text =
                format!("{file} names the etcd that the relay writes to; name the cluster's own etcd there");
            scan.remotes.remove(&name);
            scan.broken.insert(name.to_string(), text);
        }
    }

    /// Announces clusters whose file is broken from the start and of which no snapshot is left: the datapath of an earlier life may still
    /// hold entries of theirs.
    fn spare(&mut self) {
        let unusable = self.broken.keys().filter_map(|name| ClusterName::new(name).ok());
        let spared = unusable.filter(|name| *name != self.config.cluster && !self.running.contains_key(name));
        self.spared = spared.collect();
        for name in &self.spared {
            self.sink.state(name, tombolo_base::source::SourceState::Pending);
        }
    }

    /// Whether a cluster is followed, or was in an earlier life.
    fn knows(&self, name: &str) -> bool {
        ClusterName::new(name).is_ok_and(|name| {
            name != self.config.cluster && (self.running.contains_key(&name) || self.remembers(&name))
        })
    }

    fn remembers(&self, name: &ClusterName) -> bool {
        self.snapshot(name).is_some_and(|file| file.exists())
    }

    /// A cluster that an earlier life knew and whose file is not usable: what was known is used as stale.
    fn follow_blindly(&mut self, name: ClusterName) {
        if self.remembers(&name) && name != self.config.cluster && !self.running.contains_key(&name) {
            self.follow(name, None, [0; 32]);
        }
    }

    async fn drain(&mut self, name: &ClusterName) {
        let Some(running) = self.running.remove(name) else { return };
        let (reply, done) = oneshot::channel();
        if running.commands.send(Command::Drain(reply)).await.is_ok() {
            drop(done.await);
        }
        drop(running.task.await);
    }

    /// The remote clusters' entries; not those of the own one.
    async fn dump(&self) -> Dump {
        let own = self.config.cluster.as_str();
        let mut dump = Dump::default();
        for (_, running) in self.running.iter().filter(|(name, _)| name.as_str() != own) {
            let (reply, answer) = oneshot::channel();
            if running.commands.send(Command::Dump(reply)).await.is_ok()
                && let Ok(found) = answer.await
            {
                dump.merge(found);
            }
        }
        let status = self.status().await;
        dump.status.clusters = status.iter().filter(|one| one.name != own).map(Into::into).collect();
        dump
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
            let reason = self.broken.get(name.as_str()).or(self.unlisted.as_ref());
            if let Some(text) = reason.filter(|_| *name != self.config.cluster) {
                status.status = if status.endpoints.is_empty() {
                    format!("not connected, its file is not usable; what was known is used: {text}")
                } else {
                    format!("{} (its file is not usable now: {text})", status.status)
                };
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
        if let Some(text) = &self.unlisted {
            all.push(ClusterStatus {
                name: self.config.folder.display().to_string(),
                status: text.clone(),
                ..ClusterStatus::default()
            });
        }
        all.sort_by(|left, right| left.name.cmp(&right.name));
        all
    }
}
