//! When each kind of a cluster's entries was confirmed last, kept on disk beside the snapshot: a restart of the agent must not make a dead
//! cluster's services look fresh.
//!
//! The snapshot itself is written when something changes; this small file once a minute while the cluster is read. Within one boot of
//! the machine the time since boot counts, so that a wall clock that jumps changes nothing; over a boot the wall clock has to do.

use super::snapshot;
use crate::certificate::unix_now;
use crate::error::MeshError;
use crate::wire::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The present form of the file.
const VERSION: u32 = 2;
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 16 * 1024;

/// A point in time, comparable over a restart of the agent and of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Which boot of the machine.
    boot: String,
    /// Seconds since that boot.
    up_secs: u64,
    /// Seconds since 1970.
    unix_secs: i64,
}

impl Stamp {
    /// Now. Where the kernel does not tell its boot, the wall clock alone is compared.
    pub(crate) async fn now() -> Self {
        let boot = tokio::fs::read_to_string("/proc/sys/kernel/random/boot_id").await.unwrap_or_default();
        let up = tokio::fs::read_to_string("/proc/uptime").await.unwrap_or_default();
        let up_secs = up.split('.').next().and_then(|secs| secs.parse().ok()).unwrap_or(0);
        Self { boot: boot.trim().to_owned(), up_secs, unix_secs: unix_now() }
    }

    /// A point in wall clock time.
    pub(crate) fn at(unix_secs: i64) -> Self {
        Self { unix_secs, ..Self::default() }
    }

    /// How long before `now` it was; nothing if it seems to lie ahead.
    pub(crate) fn age(&self, now: &Self) -> Duration {
        if !self.boot.is_empty() && self.boot == now.boot {
            return Duration::from_secs(now.up_secs.saturating_sub(self.up_secs));
        }
        let secs = now.unix_secs.saturating_sub(self.unix_secs);
        Duration::from_secs(u64::try_from(secs).unwrap_or(0))
    }
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    version: u32,
    /// When each kind was confirmed last.
    kinds: BTreeMap<Kind, Stamp>,
}

impl Default for Confirmed {
    fn default() -> Self {
        Self { version: VERSION, kinds: BTreeMap::new() }
    }
}

impl Confirmed {
    /// These kinds are confirmed at that time; of the others what was known stays.
    pub(crate) fn note(&mut self, at: &Stamp, kinds: impl IntoIterator<Item = Kind>) {
        self.kinds.extend(kinds.into_iter().map(|kind| (kind, at.clone())));
    }

    /// How long before `now` a kind was confirmed; `None` if that was never noted.
    pub(crate) fn age(&self, kind: Kind, now: &Stamp) -> Option<Duration> {
        self.kinds.get(&kind).map(|at| at.age(now))
    }
}

/// The file beside a snapshot.
pub(crate) fn beside(snapshot: &Path) -> PathBuf {
    snapshot.with_extension("confirmed")
}

/// What the file says; `None` without one that can be used: the snapshot's own time counts then.
pub(crate) async fn read(snapshot: &Path) -> Option<Confirmed> {
    let path = beside(snapshot);
    if tokio::fs::metadata(&path).await.is_ok_and(|meta| meta.len() > MAX_BYTES) {
        return None;
    }
    let text = tokio::fs::read(&path).await.ok()?;
    match serde_json::from_slice::<Confirmed>(&text) {
        Ok(found) if found.version == VERSION => Some(found),
        Ok(found) => {
            tracing::info!(path = %path.display(), version = found.version, "of another version: not used, the snapshot's own time counts");
            None
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "not readable: the snapshot's own time counts");
            None
        }
    }
}

pub(crate) async fn write(snapshot: &Path, confirmed: Confirmed) -> Result<(), MeshError> {
    snapshot::write_json(&beside(snapshot), "time of the last confirmation", confirmed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jumps_of_the_wall_clock_count_only_over_a_boot() {
        let stamp = |boot: &str, up_secs, unix_secs| Stamp { boot: boot.into(), up_secs, unix_secs };
        let then = stamp("a", 100, 1_000_000);
        let age = |now: Stamp| then.age(&now).as_secs();
        assert_eq!(age(stamp("a", 160, 5)), 60, "the clock went back");
        assert_eq!(age(stamp("a", 160, 9_000_000)), 60, "the clock went forward");
        assert_eq!(age(stamp("b", 20, 1_000_300)), 300, "the machine was booted");
        assert_eq!(age(stamp("b", 20, 5)), 0, "and its clock is wrong");
        assert_eq!(Stamp::at(1_000).age(&stamp("a", 1, 1_060)).as_secs(), 60);
        let (one, two) = (Stamp::now().await, Stamp::now().await);
        assert!(!one.boot.is_empty() && one.age(&two) < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn a_file_of_another_form_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("west.json");
        assert_eq!(read(&snapshot).await, None);
        let mut confirmed = Confirmed::default();
        confirmed.note(&Stamp::at(7), [Kind::Services]);
        write(&snapshot, confirmed.clone()).await.unwrap();
        assert_eq!(read(&snapshot).await, Some(confirmed.clone()));
        // Another kind is confirmed later, and the first one is not forgotten.
        confirmed.note(&Stamp::at(17), [Kind::Ips]);
        let ages = [Kind::Services, Kind::Ips, Kind::Nodes].map(|kind| confirmed.age(kind, &Stamp::at(27)));
        assert_eq!(ages.map(|age| age.map(|age| age.as_secs())), [Some(20), Some(10), None]);
        let later = serde_json::to_string(&Confirmed { version: 9, ..confirmed }).unwrap();
        for bad in [later, "{".to_owned(), String::new(), " ".repeat(20_000)] {
            std::fs::write(beside(&snapshot), bad).unwrap();
            assert_eq!(read(&snapshot).await, None);
        }
    }
}
