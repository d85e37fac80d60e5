//! The controllers of the lab's clusters, one task a cluster, inside the supervisor.

use std::collections::BTreeSet;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plan::ClusterSpec;

/// The running controllers; they stop when this is dropped.
#[derive(Debug)]
pub(super) struct Controllers {
    _stop: DropGuard,
}

impl Controllers {
    /// Starts the controllers of every cluster; `dead` holds the nodes that do not live.
    #[must_use]
    pub(super) fn start(clusters: &[ClusterSpec], dead: &watch::Sender<BTreeSet<String>>) -> Self {
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
        Self { _stop: stop.drop_guard() }
    }
}
