//! The clock of a node jumps: nothing of the mesh may hang on what time two machines think it is.

use std::path::PathBuf;

use super::super::scene::{Etcd, RESYNC_PATIENCE, SETTLE, Scene};
use super::{kept, node};
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;
use crate::checks::poll;

/// What is added to the time of the agent: read by the library that the topology file puts before it.
const CLOCK: &str = "/run/clock";

/// A clock that was set; right again when dropped.
struct Clock<'a> {
    context: &'a Context,
    place: Place,
    due: bool,
}

impl Clock<'_> {
    async fn set(&mut self, add: &str) -> Result<(), Failure> {
        self.due = add != "+0";
        let script = format!("echo '{add}' > {CLOCK}.new && mv {CLOCK}.new {CLOCK}");
        self.context.access.text(&self.place, &["sh", "-ec", &script]).await?;
        Ok(())
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        if self.due {
            let script = format!("echo +0 > {CLOCK}");
            self.context.access.exec_command_now(&self.place, &["sh", "-c", &script]).status().ok();
        }
    }
}

/// The node's clock jumps on, its connection breaks and is made under the wrong time; a change comes through each time.
pub(super) async fn jumps(context: &Context, cluster: &str) -> CheckResult {
    let reader = node(context, cluster)?;
    let others = context.inventory.other(cluster);
    let other = others.ok_or_else(|| Failure::new("another cluster", "none", "lab.yaml"))?;
    let scene = Scene::set(context, &other.name).await?;
    let loads = scene.loads().await?;
    let mut clock = Clock { context, place: Place::node(reader), due: false };
    let log: PathBuf = context.inventory.lab_dir.join(reader).join("node.log");
    let year = this_year() + 9;
    clock.set("+10y").await?;
    context.access.verb("kill-agent", &other.etcd).await?;
    let changed = scene.change()?;
    scene.applied(1).await?;
    let forward = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    // The proof that the clock did jump: the agent's own log.
    poll::until(SETTLE, || async {
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let stamped =
            |line: &str| line.get(..4).and_then(|text| text.parse().ok()).is_some_and(|at: u64| at >= year);
        if text.lines().any(stamped) {
            return Ok(());
        }
        Err(Failure::new(
            format!("lines of {year} or later in the log of {reader}"),
            "none",
            log.display().to_string(),
        ))
    })
    .await?;
    clock.set("-1d").await?;
    context.access.verb("kill-agent", &other.etcd).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let back = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    clock.set("+0").await?;
    let sum = scene.unharmed(loads, &format!("while the clock of {reader} jumps")).await?;
    Ok(vec![
        format!(
            "ten years on: in sync {:.1} s after the change; to yesterday: {:.1} s",
            forward.as_secs_f64(),
            back.as_secs_f64()
        ),
        kept(&scene),
        sum,
    ])
}

/// The year by this machine's clock, or the one beside it around New Year.
fn this_year() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    1970 + now.as_secs() / 31_556_952
}
