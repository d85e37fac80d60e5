//! An agent of cluster b that reads other clusters.

use super::agent::{id, name};
use super::recorder::{Recorder, View};
use super::until;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::MaxClusters;
use tombolo_clustermesh::follower::{self, ClusterStatus, Limits, MeshConfig, MeshHandle, Timers};

/// What is waited for comes soon.
pub(crate) fn timers() -> Timers {
    Timers {
        backoff_min: Duration::from_millis(200),
        backoff_max: Duration::from_secs(1),
        spread: Duration::from_millis(100),
        config_retry: Duration::from_millis(200),
        ..Timers::default()
    }
}

/// One that reads the clusters whose files are in `files`, and remembers nothing.
pub(crate) fn reading(files: &Path) -> MeshConfig {
    MeshConfig {
        cluster: name("b"),
        cluster_id: Some(id(2)),
        max: MaxClusters::C255,
        folder: files.to_owned(),
        snapshots: None,
        allow_plaintext: false,
        own: None,
        timers: timers(),
        limits: Limits::default(),
        exports: true,
        preference: Default::default(),
        mirror: false,
        relay: None,
    }
}

/// One that reads the clusters whose files are in `remotes` of a folder, and remembers them beside.
pub(crate) fn remembering(folder: &Path) -> MeshConfig {
    MeshConfig { snapshots: Some(folder.join("snapshots")), ..reading(&folder.join("remotes")) }
}

pub(crate) struct Reader {
    pub(crate) seen: Recorder,
    pub(crate) mesh: MeshHandle,
    pub(crate) cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Reader {
    pub(crate) async fn start(config: MeshConfig) -> Self {
        std::fs::create_dir_all(&config.folder).unwrap();
        let (seen, cancel) = (Recorder::default(), CancellationToken::new());
        let (mesh, task) = follower::start(config, Arc::new(seen.clone()), cancel.clone()).await;
        Self { seen, mesh, cancel, task }
    }

    pub(crate) async fn status(&self, cluster: &str) -> ClusterStatus {
        self.mesh.status().await.into_iter().find(|status| status.name == cluster).unwrap_or_default()
    }

    pub(crate) async fn ready(&self, cluster: &str) -> View {
        until("the reader to be ready", async || self.status(cluster).await.ready).await;
        self.seen.view(cluster)
    }

    pub(crate) async fn stop(mut self) {
        self.cancel.cancel();
        (&mut self.task).await.unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
