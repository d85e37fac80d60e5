//! A cluster's etcd is away, or comes back empty: traffic goes on and nothing known is taken away.

use std::time::Duration;

use super::mend::Mend;
use super::scene::{Etcd, RESYNC_PATIENCE, Scene};
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;

/// How long peers may take to be in sync after a wipe: they wait for everything to be published again.
pub(super) const REPUBLISH_PATIENCE: Duration = Duration::from_secs(180);

pub(super) async fn stopped(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let mend = Mend::by(context, "start-cmd", &scene.victim.etcd);
    context.access.verb("stop-cmd", &scene.victim.etcd).await?;
    let changed = scene.change()?;
    let stale_after = scene.while_away().await?;
    mend.now().await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    scene.applied(1).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let sum = scene.unharmed(loads, &format!("while the etcd of {cluster} is stopped")).await?;
    scene.applied(2).await?;
    Ok(vec![
        format!("shown as stale by every peer after {:.1} s", stale_after.as_secs_f64()),
        format!(
            "in sync {:.1} s after its return: of {} entries at the peers the one that had changed was applied, none deleted",
            took.as_secs_f64(),
            scene.known.count()
        ),
        sum,
    ])
}

pub(super) async fn wiped(context: &Context, cluster: &str) -> CheckResult {
    wiped_then(context, cluster, async || Ok(())).await
}

/// The same, with what else its operator has to do for an etcd without data.
pub(super) async fn wiped_then(
    context: &Context,
    cluster: &str,
    restore: impl AsyncFn() -> Result<(), Failure>,
) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let mend = Mend::by(context, "start-cmd", &scene.victim.etcd);
    context.access.verb("stop-cmd", &scene.victim.etcd).await?;
    context.access.verb("wipe", &scene.victim.etcd).await?;
    mend.now().await?;
    restore().await?;
    let took = scene.resync(REPUBLISH_PATIENCE, Etcd::Another).await?;
    let sum = scene.unharmed(loads, &format!("while the etcd of {cluster} is wiped and republished")).await?;
    Ok(vec![
        format!(
            "published and in sync again after {:.1} s, all {} entries as before and none deleted at the peers",
            took.as_secs_f64(),
            scene.known.count()
        ),
        sum,
    ])
}
