//! One screen that says what is ready, what is not, why, and what to try.

use serde::{Deserialize, Serialize};

/// One part of the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Its name, as `datapath` or `mesh/west`.
    pub(crate) name: String,
    /// Whether it does its work.
    pub(crate) ready: bool,
    /// What it is doing.
    pub(crate) detail: String,
    /// What to try if it is not ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) remedy: String,
}

impl Part {
    /// A part that works.
    pub(crate) fn ready(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), ready: true, detail: detail.into(), remedy: String::new() }
    }

    /// A part that does not.
    pub(crate) fn failing(
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), ready: false, detail: detail.into(), remedy: remedy.into() }
    }
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The program's version.
    pub(crate) version: String,
    /// This cluster.
    pub(crate) cluster: String,
    /// This node.
    pub(crate) node: String,
    /// `overlay` or `direct`.
    pub(crate) path: String,
    /// `none` or `wireguard`.
    pub(crate) encryption: String,
    /// Largest packet (bytes) between pods of different nodes.
    pub(crate) mtu: u16,
    /// Seconds since the agent started.
    pub(crate) uptime_secs: u64,
    /// Whether every part is ready.
    pub(crate) ready: bool,
    /// The parts.
    pub(crate) parts: Vec<Part>,
    /// What is wrong in manifests and configuration, without stopping anything.
    pub(crate) problems: Vec<String>,
}
