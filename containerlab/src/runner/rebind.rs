//! A running lab gets a new plan: only the nodes that differ are touched.

use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::deploy::{Fabric, Failure, RunningNode, Steps};
use super::plan::{NodeSpec, Plan};
use super::protocol::{Event, InitRequest};
use super::supervisor::Lab;
use crate::enter;

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
    if let Some(why) = needs_rebuild(old, &plan) {
        return Ok(Event::Rebuild(why));
    }
    let changed: Vec<(&NodeSpec, &NodeSpec)> =
        old.nodes.values().zip(plan.nodes.values()).filter(|(before, after)| before != after).collect();
    if changed.is_empty() {
        return Ok(Event::Done("nothing has changed".to_owned()));
    }
    let names: Vec<String> = changed.iter().map(|(_, after)| after.name.clone()).collect();
    let steps = Steps::new(changed.len(), events);
    let nodes = &lab.nodes;
    let outcomes = join_all(changed.into_iter().map(|(before, after)| {
        let steps = &steps;
        async move {
            let Some(node) = nodes.get(&after.name).filter(|node| node.is_on()) else {
                // It takes the new specification when it is switched on.
                return Ok(());
            };
            for note in follow(fabric, node, before, after).await? {
                events.send(Event::Warning(format!("node {}: {note}", after.name))).await.ok();
            }
            steps.did(format!("node {} changed", after.name)).await;
            Ok::<(), Failure>(())
        }
    }))
    .await;
    // Also after a failure: what did follow, follows the new plan, and a second `up` must try the rest again.
    let failed = outcomes.into_iter().find_map(Result::err);
    if failed.is_none() {
        lab.plan = Some(plan);
    }
    match failed {
        Some(failure) => Err(failure),
        None => Ok(Event::Done(format!("changed: {}", names.join(", ")))),
    }
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
