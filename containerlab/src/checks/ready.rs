//! Whether the lab is ready to be judged: agents, pods, and what the routers hold.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::access::{Access, COMMAND_TIMEOUT, Place};
use super::check::{Failure, Family, Variant};
use super::context::Context;
use super::inventory::Inventory;
use super::poll;
use super::routers;

/// How long agents and pods may take to become ready.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long the routers may take after that.
const ROUTERS_PATIENCE: Duration = Duration::from_secs(60);
/// The command that says whether an agent is ready.
const STATUS: [&str; 4] = ["tombolo", "status", "-o", "json"];

/// What `tombolo status -o json` says, as far as the checks use it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct AgentStatus {
    /// Whether every part is ready.
    pub ready: bool,
    /// `overlay` or `direct`.
    pub path: String,
    /// `none` or `wireguard`.
    pub encryption: String,
    /// Seconds since the agent started.
    pub uptime_secs: u64,
    /// The parts.
    pub parts: Vec<Part>,
}

/// A part of an agent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    /// Name.
    pub name: String,
    /// Whether it does its work.
    pub ready: bool,
    /// What it is doing.
    pub detail: String,
    /// What to try.
    pub remedy: String,
}

impl AgentStatus {
    /// What is not ready, in words.
    fn missing(&self) -> String {
        let parts = self.parts.iter().filter(|part| !part.ready);
        let words: Vec<String> =
            parts.map(|part| format!("{}: {} (try: {})", part.name, part.detail, part.remedy)).collect();
        words.join("; ")
    }
}

/// The status of one agent.
///
/// # Errors
/// When it does not answer.
pub(super) async fn status(access: &Access, node: &str) -> Result<AgentStatus, Failure> {
    access.json(&Place::node(node), &STATUS, COMMAND_TIMEOUT).await
}

/// One agent that must be ready.
///
/// # Errors
/// When it is not.
pub(super) async fn agent(access: &Access, node: &str) -> Result<AgentStatus, Failure> {
    let status = status(access, node).await?;
    if status.ready {
        return Ok(status);
    }
    let look = access.shown(&Place::node(node), &["tombolo", "status"]);
    Err(Failure::new(format!("the agent of {node} is ready"), status.missing(), look))
}

async fn look(access: &Access, topology: &Path) -> Result<(Inventory, Variant), Failure> {
    let inventory = Inventory::read(topology)
        .map_err(|why| Failure::tool("reading the lab's files", why, topology.display().to_string()))?;
    let mut variant = None;
    for node in inventory.clusters.values().flat_map(|cluster| cluster.nodes.keys()) {
        let status = agent(access, node).await?;
        let running = Variant::from_config(&status.path, &status.encryption);
        let shown = access.shown(&Place::node(node), &["tombolo", "status"]);
        let Some(running) = running else {
            let got = format!("path {:?} and encryption {:?}", status.path, status.encryption);
            return Err(Failure::new(format!("a known path variant on {node}"), got, shown));
        };
        if variant.is_some_and(|others| others != running) {
            return Err(Failure::new("the same variant on all nodes", format!("{running} on {node}"), shown));
        }
        variant = Some(running);
    }
    for pod in inventory.clusters.values().flat_map(|cluster| cluster.pods.values()) {
        if !pod.ready || Family::BOTH.iter().any(|family| pod.address(*family).is_none()) {
            let got = format!("ready {}, addresses {:?}", pod.ready, pod.addresses);
            let look = format!("{}; `tombolo lab logs {} --init`", pod.file.display(), pod.node);
            return Err(Failure::new(format!("pod {} is ready with both addresses", pod.key()), got, look));
        }
    }
    match variant {
        Some(variant) => Ok((inventory, variant)),
        None => Err(Failure::new("nodes with agents", "the lab has none", topology.display().to_string())),
    }
}

/// Waits until all agents (in one variant) and all pods are ready, and reads what the lab holds then.
///
/// # Errors
/// What was not ready in the end.
pub(super) async fn wait(
    access: &Access,
    topology: &Path,
    wanted: Option<Variant>,
) -> Result<(Inventory, Variant), Failure> {
    let ready = poll::until(READY_PATIENCE, || async {
        let (inventory, running) = look(access, topology).await?;
        if wanted.is_some_and(|wanted| wanted != running) {
            let wanted = wanted.map(Variant::name).unwrap_or_default();
            let look = format!("`TOMBOLO_VARIANT={wanted} tombolo lab up -t {}`", topology.display());
            return Err(Failure::new(format!("agents in variant {wanted}"), running.name(), look));
        }
        Ok((inventory, running))
    });
    Ok(ready.await?.0)
}

/// Waits until every router holds exactly what it must; returns how long that took.
///
/// # Errors
/// The last difference.
pub(super) async fn routers(context: &Context) -> Result<Duration, Failure> {
    let settled = poll::until(ROUTERS_PATIENCE, || async {
        for name in context.inventory.routers.keys() {
            for family in Family::BOTH {
                let expected = routers::expected(context, name, family).await?;
                routers::compare(context, name, family, &expected).await?;
            }
        }
        Ok(())
    });
    Ok(settled.await?.1)
}
