//! A running lab gets a plan, the same or a new one: only the nodes that differ from it, or do not run, are touched.

use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::deploy::{Fabric, Failure, RunningNode, Steps, tell_notes};
use super::plan::{NodeSpec, Plan};
use super::power;
use super::protocol::{Event, InitRequest};
use super::supervisor::Lab;
use crate::enter;
use crate::process::Exit;

/// What is to be done to the nodes of a running lab.
#[derive(Default)]
struct Work {
    /// Nodes that run and differ from the plan.
    changed: Vec<String>,
    /// Nodes that run as planned, but whose command does not.
    idle: Vec<String>,
    /// Nodes that are off.
    off: Vec<String>,
}

/// Makes the running lab follow `plan`.
///
/// # Errors
/// The first node that could not follow; the others have.
pub(super) async fn apply(
    fabric: &Fabric,
    lab: &mut Lab,
    plan: Plan,
    events: &mpsc::Sender<Event>,
) -> Result<Event, Failure> {
    let Some(old) = &lab.plan else { return Err(Failure::new("the lab", "nothing is deployed")) };
    if let Some(why) = needs_rebuild(old, &plan).or_else(|| died(lab, &plan)) {
        return Ok(Event::Rebuild(why));
    }
    let work = work(fabric, lab, old, &plan).await;
    if work.changed.is_empty() && work.idle.is_empty() && work.off.is_empty() {
        return Ok(Event::Done("nothing has changed".to_owned()));
    }
    let steps = Steps::new(work.changed.len() + work.idle.len() + work.off.len(), events);
    let nodes = &lab.nodes;
    let outcomes = join_all(work.changed.iter().chain(&work.idle).map(|name| {
        let steps = &steps;
        let found = (nodes.get(name), old.nodes.get(name), plan.nodes.get(name));
        async move {
            let (Some(node), Some(before), Some(after)) = found else { return Ok(()) };
            let notes = follow(fabric, node, before, after).await?;
            tell_notes(events, name, notes).await;
            steps.did(format!("node {name} follows its file")).await;
            Ok::<(), Failure>(())
        }
    }))
    .await;
    let mut failed = outcomes.into_iter().find_map(Result::err);
    for name in &work.off {
        let Some(node) = lab.nodes.get_mut(name) else { continue };
        match power::on(fabric, &plan, node).await {
            Ok(_) => steps.did(format!("node {name} on")).await,
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    // What did follow follows the new plan also after a failure, and a second `up` must try the rest again.
    match failed {
        Some(failure) => Err(failure),
        None => {
            lab.plan = Some(plan);
            Ok(Event::Done(work.to_string()))
        }
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("changed", &self.changed), ("started again", &self.idle), ("switched on", &self.off)];
        let told = parts.iter().filter(|(_, nodes)| !nodes.is_empty());
        let told: Vec<String> = told.map(|(what, nodes)| format!("{what}: {}", nodes.join(", "))).collect();
        f.write_str(&told.join("; "))
    }
}

/// Looks at every node: whether it is on, as planned, and its command running.
async fn work(fabric: &Fabric, lab: &Lab, old: &Plan, new: &Plan) -> Work {
    let mut work = Work::default();
    for (before, after) in old.nodes.values().zip(new.nodes.values()) {
        let name = after.name.clone();
        match lab.nodes.get(&name).filter(|node| node.is_on()) {
            // It takes the new specification when it is switched on.
            None => work.off.push(name),
            Some(_) if before != after => work.changed.push(name),
            Some(node) if !command_is_well(fabric, node, after).await => work.idle.push(name),
            Some(_) => {}
        }
    }
    work
}

/// Whether the command runs, or has ended as it may.
async fn command_is_well(fabric: &Fabric, node: &RunningNode, spec: &NodeSpec) -> bool {
    // An init that does not answer is asked again, and its reason told, when the node is to follow.
    let Ok(state) = node.state(fabric).await else { return false };
    let command = state.command;
    spec.argv.is_empty()
        || command.state == "running"
        || (command.state == "ended" && command.last_exit.is_some_and(Exit::success))
}

/// A node whose init died by itself, taking the links with it: its neighbours have lost their ends too.
fn died(lab: &Lab, plan: &Plan) -> Option<String> {
    let gone = lab.nodes.values().find(|node| {
        let linked = plan.nodes.get(&node.name).is_some_and(|spec| !spec.interfaces.is_empty());
        !node.is_on() && node.parked.is_empty() && linked
    })?;
    Some(format!("node {} has died, and its links with it", gone.name))
}

/// What a running lab cannot follow.
fn needs_rebuild(old: &Plan, new: &Plan) -> Option<String> {
    if !old.nodes.keys().eq(new.nodes.keys()) {
        return Some("the nodes are others".to_owned());
    }
    if old.links != new.links {
        return Some("the links are others".to_owned());
    }
    if old.clusters != new.clusters {
        return Some("the clusters are others".to_owned());
    }
    let fixed = |spec: &NodeSpec| {
        (spec.hostname.clone(), spec.private.clone(), spec.interfaces.clone(), spec.kubelet)
    };
    old.nodes.values().zip(new.nodes.values()).find(|(before, after)| fixed(before) != fixed(after)).map(
        |(before, _)| format!("node {} has another host name, other interfaces or directories", before.name),
    )
}

/// Changes the binds of one node, then tells its init.
async fn follow(
    fabric: &Fabric,
    node: &RunningNode,
    before: &NodeSpec,
    after: &NodeSpec,
) -> Result<Vec<String>, Failure> {
    let Some(pid) = node.pid() else { return Ok(Vec::new()) };
    let (old, new) = (before.binds.clone(), after.binds.clone());
    let bound = tokio::task::spawn_blocking(move || {
        // Children first on the way out, parents first on the way in (the plan sorts them by path).
        for bind in old.iter().rev().filter(|bind| !new.contains(bind)) {
            if let Err(error) = enter::unbind_across(pid, &bind.node) {
                tracing::warn!(place = %bind.node.display(), %error, "an old bind cannot be taken away");
            }
        }
        new.iter().filter(|bind| !old.contains(bind)).try_for_each(|bind| enter::bind_across(pid, bind))
    });
    let failed =
        |error: String| Failure::new(&format!("node {}", after.name), &format!("change its binds: {error}"));
    match bound.await {
        Ok(done) => done.map_err(|error| failed(error.to_string()))?,
        Err(error) => return Err(failed(error.to_string())),
    }
    fabric.tell(&after.name, &InitRequest::Reconfigure(Box::new(after.clone()))).await
}
