//! The first sync of a whole mesh, beside a bare read of the same keys, in turn; and what it costs in the kernel.

use std::path::Path;
use std::time::Instant;

use tombolo_tests::usage::settled;

use crate::Failure;
use crate::child::Process;
use crate::world::Size;
use tombolo_tests::report::{Figure, Goal, Report, median};

/// What one run cost.
struct Run {
    cpu_secs: f64,
    wall_secs: f64,
    rss_bytes: f64,
}

pub(crate) fn arguments(mode: &str, folder: &Path, size: Size) -> [String; 6] {
    let Size { clusters, nodes, identities, endpoints } = size;
    [
        mode.to_owned(),
        folder.display().to_string(),
        clusters.to_string(),
        nodes.to_string(),
        identities.to_string(),
        endpoints.to_string(),
    ]
}

/// Starts a reader that waits.
pub(crate) fn reader(mode: &str, folder: &Path, size: Size) -> Result<Process, Failure> {
    let arguments = arguments(mode, folder, size);
    let mut process = Process::start(&arguments.each_ref().map(String::as_str))?;
    process.says("ready")?;
    Ok(process)
}

fn once(mode: &str, folder: &Path, size: Size) -> Result<Run, Failure> {
    let mut process = reader(mode, folder, size)?;
    let (before, started) = (process.usage(), Instant::now());
    process.go()?;
    process.says("done")?;
    let wall_secs = started.elapsed().as_secs_f64();
    let after = settled(process.id());
    let run = Run {
        cpu_secs: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
        wall_secs,
        rss_bytes: float(after.rss.saturating_sub(before.rss)),
    };
    eprintln!("  {mode:<8} {:.3} s processor, {wall_secs:.2} s, {:.1} MB", run.cpu_secs, run.rss_bytes / 1e6);
    Ok(run)
}

#[expect(clippy::cast_precision_loss, reason = "counts and bytes are far below 2^53")]
pub(crate) const fn float(value: u64) -> f64 {
    value as f64
}

/// Runs everybody in turn, the order turned round after each round.
pub(crate) fn bench(
    report: &mut Report,
    folder: &Path,
    size: Size,
    runs: usize,
    most: f64,
) -> Result<(), Failure> {
    let mut modes = [("bare", Vec::new()), ("tables", Vec::new()), ("planned", Vec::new())];
    for _ in 0..runs {
        for (mode, all) in &mut modes {
            all.push(once(mode, folder, size)?);
        }
        modes.reverse();
    }
    modes.sort_by_key(|(mode, _)| *mode);
    let [(_, bare), (_, planned), (_, tables)] = &modes;
    let of = |runs: &[Run], value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
    let n = size.clusters;
    let endpoints = float(size.all_endpoints());
    let cpu = |run: &Run| run.cpu_secs;
    let mut add = |id: &str, what: &str, unit, ours, peer, goal| {
        let (id, what) =
            (format!("sync-{n}-{id}"), format!("{n} clusters, {}: {what}", size.all_endpoints()));
        report.add(&Figure { id: &id, what: &what, unit, ours, peer, goal });
    };
    let peer = |value| Some((of(bare, value), "bare read"));
    add("cpu", "processor time into tables", "s", of(tables, cpu), peer(cpu), Goal::Ratio(1.5));
    add("cpu-planned", "the same, planned", "s", of(planned, cpu), peer(cpu), Goal::None);
    add(
        "wall",
        "until everything is planned",
        "s",
        of(planned, |run| run.wall_secs),
        peer(|run| run.wall_secs),
        Goal::None,
    );
    let each = |runs: &[Run]| of(runs, |run| run.rss_bytes).map(|bytes| bytes / endpoints);
    let (in_mib, goal) = (most > 1e6, Goal::Most(if most > 1e6 { most / 1_048_576.0 } else { most }));
    let mib = |runs: &[Run]| of(runs, |run| run.rss_bytes).map(|bytes| bytes / 1_048_576.0);
    if in_mib {
        add("rss", "memory, tables", "MiB", mib(tables), None, goal);
        add("rss-planned", "memory, with what is planned", "MiB", mib(planned), None, Goal::None);
    } else {
        add("rss", "memory an endpoint, tables", "B", each(tables), None, goal);
        add("rss-planned", "memory an endpoint, with what is planned", "B", each(planned), None, Goal::None);
    }
    Ok(())
}
