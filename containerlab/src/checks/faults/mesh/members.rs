//! An etcd of several members loses one, and then its majority.

use super::super::mend::Mend;
use super::super::scene::{Etcd, RESYNC_PATIENCE, Scene};
use super::kept;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;

pub(super) async fn lost(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let [first, second, ..] = scene.victim.members.as_slice() else {
        return Err(Failure::new(format!("several members of the etcd of {cluster}"), "one", "lab.yaml"));
    };
    let loads = scene.loads().await?;
    // One of three is away: what changes is still written, and reaches the peers.
    let one = Mend::by(context, "start-cmd", first);
    context.access.verb("stop-cmd", first).await?;
    let changed = scene.change()?;
    scene.applied(1).await?;
    let moved = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    // Two of three: nothing can be written or read for sure.
    let two = Mend::by(context, "start-cmd", second);
    context.access.verb("stop-cmd", second).await?;
    changed.restore()?;
    scene.hold().await?;
    two.now().await?;
    scene.applied(2).await?;
    one.now().await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    let sum = scene
        .unharmed(loads, &format!("while the etcd of {cluster} loses one member, and its majority"))
        .await?;
    Ok(vec![
        format!(
            "one member lost: in sync {:.1} s after the change; majority lost and back: in sync after {:.1} s",
            moved.as_secs_f64(),
            took.as_secs_f64()
        ),
        kept(&scene),
        sum,
    ])
}
