//! Policies of a scenario in the folder of a cluster's manifests, and what its agents show of them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Scenario;
use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::check::Failure;
use crate::checks::context::Context;
use crate::checks::{inventory, poll, ready};

/// How long policies may take from the manifest to the datapath.
const PATIENCE: Duration = Duration::from_secs(20);
/// Parts of an agent that carry policies.
const PARTS: [&str; 2] = ["reconcile/interfaces", "reconcile/policies"];
/// What such a part says when nothing is left to do.
const IN_STEP: &str = "in step";
/// The file in the folder of manifests.
const FILE: &str = "zz-scenario.yaml";

/// Policies that lie in the folder; taken away when dropped.
pub(super) struct InForce {
    file: PathBuf,
    names: BTreeSet<String>,
}

impl Drop for InForce {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}

/// A row of `tombolo show rules`.
#[derive(Deserialize)]
struct RuleShown {
    name: String,
}

/// A row of `tombolo show policies`.
#[derive(Deserialize)]
struct PolicyShown {
    id: u32,
    origins: Vec<String>,
}

/// The node itself, which policies know as endpoint 0.
const THE_HOST: &str = "the host";

/// A row of `tombolo show endpoints`.
#[derive(Deserialize)]
struct EndpointShown {
    id: u16,
    namespace: String,
    pod: String,
}

/// A row of `tombolo show interfaces`: what the datapath is to have of a pod.
#[derive(Deserialize)]
struct InterfaceShown {
    endpoint: u16,
    policy: u32,
}

/// A row of `tombolo show endpoint-policies`.
#[derive(Deserialize)]
struct HeldShown {
    endpoint: u16,
    policy: u32,
}

impl InForce {
    /// Puts the policies there and waits until every agent shows that its pods have them.
    pub(super) async fn put(context: &Context, scenario: &Scenario) -> Result<Self, Failure> {
        let folder = &context.cluster(&scenario.cluster)?.manifests;
        let failed = |why: String| Failure::tool("adding a manifest", why, folder.display().to_string());
        let documents = inventory::documents(scenario.plan.manifest).map_err(failed)?;
        let name = |document: &serde_json::Value| {
            document.pointer("/metadata/name").and_then(serde_json::Value::as_str).map(str::to_owned)
        };
        let policies = documents.iter().filter(|document| {
            document
                .get("kind")
                .and_then(serde_json::Value::as_str)
                .is_some_and(|kind| kind.ends_with("Policy"))
        });
        let file = folder.join(FILE);
        let policies = Self { names: policies.filter_map(name).collect(), file };
        let hidden = folder.join(format!(".{FILE}.new"));
        std::fs::write(&hidden, scenario.plan.manifest)
            .and_then(|()| std::fs::rename(&hidden, &policies.file))
            .map_err(|error| failed(error.to_string()))?;
        poll::until(PATIENCE, || policies.shown(context, scenario)).await?;
        Ok(policies)
    }

    /// Takes them away and waits until no agent shows them.
    pub(super) async fn take_away(self, context: &Context, scenario: &Scenario) -> Result<(), Failure> {
        std::fs::remove_file(&self.file)
            .map_err(|error| Failure::tool("removing a manifest", error, self.file.display().to_string()))?;
        poll::until(PATIENCE, || self.gone(context, scenario)).await?;
        Ok(())
    }

    async fn shown(&self, context: &Context, scenario: &Scenario) -> Result<(), Failure> {
        for node in context.cluster(&scenario.cluster)?.nodes.keys() {
            let rules: Vec<RuleShown> = show(context, node, "rules").await?;
            let read: BTreeSet<_> = rules.into_iter().map(|row| row.name).collect();
            if let Some(missing) = self.names.iter().find(|name| !read.contains(*name)) {
                let look = context.access.shown(&Place::node(node), &["tombolo", "status"]);
                return Err(Failure::new(
                    format!("{node} has read policy {missing}"),
                    format!("{read:?}"),
                    look,
                ));
            }
            let held = held(context, node).await?;
            for subject in scenario.plan.subjects {
                let host_of = subject.strip_prefix(super::HOST_OF);
                let pod = context.pod(&scenario.cluster, &super::key(host_of.unwrap_or(subject)))?;
                let holder = if host_of.is_some() { THE_HOST.to_owned() } else { pod.key() };
                let of_pod = held.iter().find(|(key, _)| *key == holder).map(|(_, origins)| origins);
                let from_here = |origins: &Vec<String>| origins.iter().any(|origin| self.is_of_this(origin));
                if pod.node == *node && !of_pod.is_some_and(from_here) {
                    let look = context.access.shown(&Place::node(node), &["tombolo", "show", "policies"]);
                    let what = format!("{holder} is under one of {:?} on {node}", self.names);
                    return Err(Failure::new(what, format!("{of_pod:?}"), look));
                }
            }
            in_step(context, node).await?;
        }
        Ok(())
    }

    async fn gone(&self, context: &Context, scenario: &Scenario) -> Result<(), Failure> {
        for node in context.cluster(&scenario.cluster)?.nodes.keys() {
            let held = held(context, node).await?;
            if let Some((pod, _)) =
                held.iter().find(|(_, of)| of.iter().any(|origin| self.is_of_this(origin)))
            {
                let look = context.access.shown(&Place::node(node), &["tombolo", "show", "policies"]);
                let what = format!("no pod of {node} is under {:?}", self.names);
                return Err(Failure::new(what, format!("{pod} is"), look));
            }
            in_step(context, node).await?;
        }
        Ok(())
    }

    /// Whether the origin of a compiled policy is one of these; it is told as `Kind namespace/name` or in part.
    fn is_of_this(&self, origin: &str) -> bool {
        let name = origin.rsplit(['/', ' ']).next().unwrap_or(origin);
        self.names.contains(name)
    }
}

async fn show<T: serde::de::DeserializeOwned>(
    context: &Context,
    node: &str,
    table: &str,
) -> Result<Vec<T>, Failure> {
    context.access.json(&Place::node(node), &["tombolo", "show", table, "-o", "json"], COMMAND_TIMEOUT).await
}

/// Pods of a node, and the node itself, with the policies that theirs was made of.
async fn held(context: &Context, node: &str) -> Result<Vec<(String, Vec<String>)>, Failure> {
    let (policies, held, endpoints, interfaces) = tokio::join!(
        show::<PolicyShown>(context, node, "policies"),
        show::<HeldShown>(context, node, "endpoint-policies"),
        show::<EndpointShown>(context, node, "endpoints"),
        show::<InterfaceShown>(context, node, "interfaces"),
    );
    let (policies, held, endpoints, interfaces) = (policies?, held?, endpoints?, interfaces?);
    // What was planned may not have reached the row of the interface yet, whose reconciler is in step all the same.
    for row in held.iter().filter(|row| row.endpoint != 0) {
        let written = interfaces.iter().find(|interface| interface.endpoint == row.endpoint);
        if let Some(behind) = written.filter(|interface| interface.policy != row.policy) {
            let look = context.access.shown(&Place::node(node), &["tombolo", "show", "interfaces"]);
            let what =
                format!("the interface of endpoint {} of {node} under policy {}", row.endpoint, row.policy);
            return Err(Failure::new(what, format!("{}", behind.policy), look));
        }
    }
    let origins = |endpoint: u16| {
        let policy = held.iter().find(|row| row.endpoint == endpoint)?.policy;
        policies.iter().find(|row| row.id == policy).map(|row| row.origins.clone())
    };
    let of = |endpoint: &EndpointShown| {
        (format!("{}/{}", endpoint.namespace, endpoint.pod), origins(endpoint.id).unwrap_or_default())
    };
    let host = (THE_HOST.to_owned(), origins(0).unwrap_or_default());
    Ok(endpoints.iter().map(of).chain([host]).collect())
}

/// The datapath holds what was planned.
async fn in_step(context: &Context, node: &str) -> Result<(), Failure> {
    let status = ready::status(&context.access, node).await?;
    let carriers: Vec<_> = status.parts.iter().filter(|part| PARTS.contains(&part.name.as_str())).collect();
    let look = context.access.shown(&Place::node(node), &["tombolo", "status"]);
    if carriers.len() != PARTS.len() {
        let names: Vec<_> = status.parts.iter().map(|part| part.name.as_str()).collect();
        return Err(Failure::new(format!("{node} tells of its parts {PARTS:?}"), format!("{names:?}"), look));
    }
    match carriers.into_iter().find(|part| part.detail != IN_STEP) {
        None => Ok(()),
        Some(part) => {
            Err(Failure::new(format!("{} of {node} in step", part.name), part.detail.clone(), look))
        }
    }
}
