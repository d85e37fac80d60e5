//! The controllers of the lab's clusters, one task a cluster, inside the supervisor.

use std::collections::BTreeSet;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plan::ClusterSpec;

/// The running controllers; they stop when this is dropped.
#[derive(Debug)]
pub(super) struct Controllers {
    dead: watch::Sender<BTreeSet<String>>,
    _stop: DropGuard,
}

impl Controllers {
    /// Starts the controllers of every cluster.
    #[must_use]
    pub(super) fn start(clusters: &[ClusterSpec]) -> Self {
        let (dead, _) = watch::channel(BTreeSet::new());
        let stop = CancellationToken::new();
        for cluster in clusters {
            let (folder, name) = (cluster.manifests.clone(), cluster.name.clone());
            let (nodes, stopped) = (dead.subscribe(), stop.clone());
            tokio::spawn(async move {
                if let Err(error) = crate::controllers::run(&folder, nodes, stopped).await {
                    tracing::error!(cluster = %name, %error, "the cluster's controllers stopped");
                }
            });
        }
        Self { dead, _stop: stop.drop_guard() }
    }

    /// Tells whether a node lives.
    pub(super) fn node_alive(&self, node: &str, alive: bool) {
        self.dead
            .send_if_modified(|dead| if alive { dead.remove(node) } else { dead.insert(node.to_owned()) });
    }
}
