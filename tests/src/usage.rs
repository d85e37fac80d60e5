//! What a process has used, out of /proc.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A daemon that has used no processor time for this long has nothing to do.
const QUIET: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A daemon that is never quiet is measured after this long.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// What a daemon, its threads and its children have used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

impl Usage {
    /// Of a process that runs; nothing of one that does not.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        tree(pid).into_iter().fold(Self::default(), |sum, pid| Self {
            cpu: sum.cpu + ticks(pid).unwrap_or_default().max(run_time(pid)),
            rss: sum.rss + rss(pid).unwrap_or_default(),
        })
    }
}

fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    for task in tasks(pid) {
        let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        all.extend(children.flat_map(tree));
    }
    all
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

/// In ticks of 10 ms: the only figure that knows of threads that have ended.
fn ticks(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis((user + system) * 10))
}

/// To the nanosecond, of the threads that are there.
fn run_time(pid: u32) -> Duration {
    let of = |task: PathBuf| {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    };
    tasks(pid).into_iter().filter_map(of).sum()
}

fn rss(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// What a daemon has used once it has nothing more to do.
#[must_use]
pub fn settled(pid: u32) -> Usage {
    let end = Instant::now() + QUIET_MAX;
    let (mut last, mut since) = (Usage::of(pid), Instant::now());
    loop {
        std::thread::sleep(LOOK_EVERY);
        let usage = Usage::of(pid);
        let now = Instant::now();
        // A timer that looks at something is not work.
        if usage.cpu > last.cpu + Duration::from_millis(2) {
            (last, since) = (usage, now);
        }
        if now.duration_since(since) >= QUIET || now > end {
            return usage;
        }
    }
}

/// Kernel memory of this process's maps, as the kernel accounts it.
///
/// # Errors
/// /proc cannot be read.
pub fn map_bytes() -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        // A descriptor that was closed meanwhile is no map.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        if text.contains("map_type:") {
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            bytes += line.and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(bytes)
}
