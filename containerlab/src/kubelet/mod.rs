//! The kubelet's part of a node's init: runs the pods that the manifests place on the node.

mod logs;

pub use logs::LogFolder;

use std::collections::BTreeMap;

use crate::process::Reaper;
use crate::runner::protocol::PodState;

/// Runs the pods of one node.
#[derive(Debug)]
pub struct Kubelet {
    node: String,
    reaper: Reaper,
    logs: LogFolder,
}

impl Kubelet {
    /// A kubelet that does nothing before [`Kubelet::start`].
    #[must_use]
    pub fn new(node: String, reaper: Reaper, logs: LogFolder) -> Self {
        Self { node, reaper, logs }
    }

    /// Starts to run pods.
    pub fn start(&self, _env: &BTreeMap<String, String>) {
        tracing::info!(node = %self.node, reaper = ?self.reaper, logs = ?self.logs, "kubelet");
    }

    /// The pods.
    #[must_use]
    pub fn state(&self) -> Vec<PodState> {
        Vec::new()
    }
}
