//! An etcd whose disk is slow: each time it waits for its data to be on disk, it waits half a second more.

use super::super::follow::Follow;
use super::super::scene::{Etcd, RESYNC_PATIENCE, SETTLE, Scene};
use super::kept;
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;

/// Delays the system calls by which the etcd of this node waits for its disk, until its own input ends. Attaching is told on its
/// error output, which is turned to the other.
const SLOW: &str = "strace -f -e trace=fdatasync,fsync -e inject=fdatasync,fsync:delay_enter=500000 -p $(pidof etcd) 2>&1 & \
                    tracer=$!; cat >/dev/null; kill -INT $tracer; wait $tracer";

pub(super) async fn disk(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let place = Place::node(&scene.victim.etcd);
    let tracer = Follow::start(context, &place, &["sh", "-c", SLOW], "the slow disk")?;
    tracer.wait_for(SETTLE, |lines| lines.iter().any(|line| line.contains("attached"))).await?;
    let changed = scene.change()?;
    scene.applied(1).await?;
    scene.hold().await?;
    changed.restore()?;
    scene.applied(2).await?;
    let delayed = |line: &&String| line.contains("fdatasync(") && line.contains("DELAYED");
    let waits = tracer.said().lines.iter().filter(delayed).count();
    if waits == 0 {
        return Err(Failure::new("the etcd waits for its slow disk", "it never waited", tracer.look()));
    }
    drop(tracer);
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    let sum = scene.unharmed(loads, &format!("while the disk of the etcd of {cluster} is slow")).await?;
    Ok(vec![
        format!(
            "{waits} waits of half a second more; in sync {:.1} s after it was fast again",
            took.as_secs_f64()
        ),
        kept(&scene),
        sum,
    ])
}
