//! The configuration file is read again when it changes, and on SIGHUP. What differs is carried out; sessions whose settings stay the same go on.
//!
//! ```text
//!  inotify on the folder ─┐
//!  SIGHUP ────────────────┴► read, check ──► peers ──────────────────► reconciler
//!                              │         └─► networks, interfaces ───► planner of adverts
//!                              └► mistakes: one message, `tombolo status`; everything stays as it was
//! ```

use super::config::RouterConfig;
use super::rows::Rows;
use super::{Checked, load};
use crate::daemon::drive::Driver;
use anyhow::Context;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tombolo_base::source::Source;
use tombolo_base::table::Writer;
use tombolo_topology::bgp::{AdvertRow, PeerRow};

/// Keys that are read at start only.
const FIXED: [&str; 11] = [
    "listen",
    "max_paths",
    "cluster_id",
    "install_routes",
    "track_next_hops",
    "message_log",
    "bmp",
    "rpki",
    "state_dir",
    "api",
    "log",
];

/// What is announced: prefixes, and interfaces whose prefixes are.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Announced {
    pub(super) networks: Vec<AdvertRow>,
    pub(super) interfaces: Vec<String>,
}

/// What is wrong with the file as it is now, or waits for a restart.
pub(super) type Problems = watch::Receiver<Vec<String>>;

/// Where a changed configuration goes.
struct Outlets {
    peers: Writer<PeerRow>,
    announced: watch::Sender<Announced>,
    problems: watch::Sender<Vec<String>>,
}

/// Follows the configuration file.
pub(super) struct Reload {
    file: PathBuf,
    /// As the router was started; its [`FIXED`] keys are in force.
    started: RouterConfig,
    outlets: Outlets,
    changed: Arc<Notify>,
    hangup: Signal,
    /// Stops watching when it is dropped.
    _watcher: RecommendedWatcher,
}

impl Reload {
    /// Watches from now on. The rows of the configuration as it was read go out at once.
    ///
    /// # Errors
    /// The folder cannot be watched, or SIGHUP not be listened for.
    pub(super) fn new(
        checked: &Checked,
        peers: Writer<PeerRow>,
    ) -> anyhow::Result<(Self, watch::Receiver<Announced>, Problems)> {
        let Checked { file, config, rows } = checked;
        let changed = Arc::new(Notify::new());
        let watcher = watch_file(file, &changed).with_context(|| {
            format!(
                "cannot watch {} for changes; raise fs.inotify.max_user_instances or max_user_watches",
                file.display()
            )
        })?;
        let (announced, adverts) = watch::channel(Announced::default());
        let (problems, told) = watch::channel(Vec::new());
        let hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        let outlets = Outlets { peers, announced, problems };
        outlets.carry(config, rows.clone());
        let (file, started) = (file.clone(), config.clone());
        Ok((Self { file, started, outlets, changed, hangup, _watcher: watcher }, adverts, told))
    }

    /// Follows until cancelled.
    pub(super) async fn follow(mut self, driver: Driver) {
        loop {
            tokio::select! {
                () = driver.cancel.cancelled() => return,
                () = self.changed.notified() => {}
                _ = self.hangup.recv() => tracing::info!("SIGHUP: the configuration is read again"),
            }
            self.again();
        }
    }

    fn again(&mut self) {
        let (problems, news) = match load(&self.file) {
            Ok(checked) => (restarts(&self.started, &checked.config), Some(checked)),
            Err(mistakes) => (mistakes, None),
        };
        let new = self.outlets.problems.send_if_modified(|before| {
            let new = *before != problems;
            before.clone_from(&problems);
            new
        });
        if new && !problems.is_empty() {
            let told = problems.join("; ");
            match news {
                None => tracing::warn!("the old configuration stays: {told}"),
                Some(_) => tracing::warn!("{told}"),
            }
        }
        let Some(Checked { config, rows, .. }) = news else { return };
        if self.outlets.carry(&config, rows) {
            tracing::info!(file = %self.file.display(), "the changed configuration is in force");
        }
    }
}

impl Outlets {
    /// Puts a configuration into force; false if it changes nothing.
    fn carry(&self, config: &RouterConfig, rows: Rows) -> bool {
        let before = self.peers.table().snapshot().revision();
        self.peers.replace_source(&Source::Local, rows.peers);
        let announced = Announced { networks: rows.adverts, interfaces: config.connected.clone() };
        let other = self.announced.send_if_modified(|now| {
            let other = *now != announced;
            *now = announced;
            other
        });
        other || self.peers.table().snapshot().revision() != before
    }
}

/// The keys that changed and wait for a restart, in one sentence; nothing if there is none.
fn restarts(before: &RouterConfig, now: &RouterConfig) -> Vec<String> {
    let value = |config: &RouterConfig| serde_json::to_value(config).unwrap_or_default();
    let (before, now) = (value(before), value(now));
    let other = |key: &&&str| before.get(**key) != now.get(**key);
    let keys: Vec<&str> = FIXED.iter().filter(other).copied().collect();
    let text = format!("{}: read at start only, and changed (restart the router)", keys.join(", "));
    if keys.is_empty() { Vec::new() } else { vec![text] }
}

/// Whether an event of the folder may mean another content of the file. A file is read when its writer closes it, or when it is moved there.
fn concerns(event: &Event, name: &OsString) -> bool {
    let whole = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(notify::event::ModifyKind::Name(_)) => true,
        // A symbolic link, as Kubernetes writes configuration maps.
        EventKind::Create(_) => true,
        _ => false,
    };
    let named = |path: &PathBuf| path.file_name().is_some_and(|found| found == name || found == "..data");
    event.need_rescan() || (whole && event.paths.iter().any(named))
}

/// Watches the folder rather than the file: editors put a new file in place of the old one.
fn watch_file(file: &Path, changed: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let name = file.file_name().unwrap_or_default().to_owned();
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
        Ok(event) if concerns(&event, &name) => changed.notify_one(),
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%error, "changes of the configuration may be missed; SIGHUP has it read");
        }
    })?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
