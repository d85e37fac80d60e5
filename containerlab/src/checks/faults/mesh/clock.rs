//! The clock of a node jumps: nothing of the mesh may hang on what time two machines think it is.

use std::ops::RangeInclusive;
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
    let log = Log(context.inventory.lab_dir.join(reader).join("node.log"));
    let (today, said) = (today(), log.length());
    clock.set("+10y").await?;
    context.access.verb("kill-agent", &other.etcd).await?;
    let changed = scene.change()?;
    scene.applied(1).await?;
    let forward = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    log.proves(reader, said, today + 9 * 365..=today + 11 * 366).await?;
    let said = log.length();
    clock.set("-1d").await?;
    context.access.verb("kill-agent", &other.etcd).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let back = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    // Midnight may have passed since.
    log.proves(reader, said, today - 1..=today).await?;
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

/// The log of a node.
struct Log(PathBuf);

impl Log {
    fn length(&self) -> usize {
        std::fs::metadata(&self.0).map_or(0, |meta| usize::try_from(meta.len()).unwrap_or(usize::MAX))
    }

    /// The proof that the clock did jump: what the agent has logged since bears one of these days.
    async fn proves(&self, reader: &str, since: usize, days: RangeInclusive<i64>) -> Result<(), Failure> {
        poll::until(SETTLE, || async {
            let text = std::fs::read(&self.0).unwrap_or_default();
            let text = String::from_utf8_lossy(text.get(since..).unwrap_or_default()).into_owned();
            if text.lines().filter_map(day_of).any(|day| days.contains(&day)) {
                return Ok(());
            }
            let what = format!(
                "lines of the days {days:?} since 1970 in the log of {reader} after its clock was set"
            );
            let last = text.lines().last().unwrap_or("nothing").to_owned();
            Err(Failure::new(what, last, self.0.display().to_string()))
        })
        .await?;
        Ok(())
    }
}

/// The day by this machine's clock, counted from 1970.
fn today() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs() / 86_400).unwrap_or(i64::MAX)
}

/// The day that a line's stamp (`2026-11-28T…`) names, counted from 1970.
fn day_of(line: &str) -> Option<i64> {
    let mut parts = line.get(..10)?.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    // Years that begin in March: the leap day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // From the first of March of year 0.
    Some(year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_names_its_day() {
        for (stamp, day) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T23:59:59.123Z INFO text", Some(11_016)),
            ("2026-11-28T02:25:56Z", Some(20_785)),
            ("2036-03-01", Some(24_166)),
            ("no stamp at all", None),
            ("", None),
        ] {
            assert_eq!(day_of(stamp), day, "{stamp}");
        }
    }
}
