//! The agent of every node of a cluster is killed: forwarding goes on, no key leaves etcd, the peers notice nothing.

use std::time::{Duration, Instant};

use super::super::keys::KeyWatch;
use super::super::scene::Scene;
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;
use crate::checks::poll;
use crate::checks::ready;

/// How long a killed agent may take until it is ready again.
const PATIENCE: Duration = Duration::from_secs(90);

pub(super) async fn killed(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let keys = KeyWatch::start(context, scene.victim).await?;
    let loads = scene.loads().await?;
    let killed_at = Instant::now();
    for node in scene.victim.nodes.keys() {
        context.access.verb("kill-agent", node).await?;
    }
    let (_, took) = poll::until(PATIENCE, || async {
        for node in scene.victim.nodes.keys() {
            let status = ready::agent(&context.access, node).await?;
            if status.uptime_secs > killed_at.elapsed().as_secs() {
                let look = context.access.shown(&Place::node(node), &["tombolo", "status"]);
                return Err(Failure::new("a restarted agent", "the agent from before", look));
            }
        }
        Ok(())
    })
    .await?;
    let sum = scene.unharmed(loads, &format!("while the agents of {cluster} are killed")).await?;
    let writes = keys.judge(context).await?;
    Ok(vec![
        format!("ready again after {:.1} s", took.as_secs_f64()),
        format!("no key left etcd ({writes} writes), {} entries as before at the peers", scene.known.count()),
        sum,
    ])
}
