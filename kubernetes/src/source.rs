//! The folder on disk: read once, then followed by inotify.
//!
//! ```text
//! inotify thread ──► set of names + flag "look at everything" ──► one task ──► Folder ──► tables, report
//! ```
//! The set is bounded by the number of names; an overflow of the kernel's queue sets the flag. The task waits
//! [`COALESCE`] after the first event, so that a burst of changes is one pass.

use crate::convert::ClusterIdentity;
use crate::document::parse;
use crate::folder::{Folder, Limits};
use crate::keep::Keep;
use crate::problem::{Problem, Severity};
use crate::tables::{Tables, Writers};
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tombolo_base::source::{Source, SourceState};

/// How long changes are gathered before they are read.
const COALESCE: Duration = Duration::from_millis(50);
/// How often a folder that vanished is looked for; its return gives no event of its own.
const RETRY: Duration = Duration::from_secs(1);
/// Names gathered before the whole folder is read instead.
const MAX_NAMES: usize = 10_000;

/// Where manifests are and whose they are.
#[derive(Clone, Debug)]
pub struct FolderConfig {
    /// The folder; it must exist at start.
    pub folder: PathBuf,
    /// The cluster whose objects it holds.
    pub cluster: ClusterIdentity,
    /// Bounds.
    pub limits: Limits,
    /// Where the last good text of every manifest is kept over restarts; `None` keeps none.
    pub keep: Option<PathBuf>,
}

impl FolderConfig {
    /// A folder with the usual bounds.
    pub fn new(folder: impl Into<PathBuf>, cluster: ClusterIdentity) -> Self {
        Self { folder: folder.into(), cluster, limits: Limits::default(), keep: None }
    }
}

/// Why a folder cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The path is missing or no folder.
    #[error("read manifests of {folder}: {error}; create the folder or correct the path in agent.yaml", folder = .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// No inotify watch.
    #[error(
        "watch {folder} for changes: {error}; raise fs.inotify.max_user_instances or max_user_watches",
        folder = .folder.display()
    )]
    Watch {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        error: notify::Error,
    },
}

/// What the source has found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FolderReport {
    /// Whether the first complete read is done.
    pub complete: bool,
    /// Files read.
    pub files: usize,
    /// Objects in use.
    pub objects: usize,
    /// Documents per `apiVersion/kind` that are not used here.
    pub unknown_kinds: BTreeMap<String, u64>,
    /// Findings, by file and line.
    pub problems: Arc<[Problem]>,
}

/// What changed on disk since the task last looked.
#[derive(Debug, Default)]
struct Pending {
    names: BTreeSet<PathBuf>,
    everything: bool,
    /// The watched folder itself went away.
    lost: bool,
}

#[derive(Debug, Default)]
struct Signal {
    pending: Mutex<Pending>,
    notify: Notify,
}

impl Signal {
    fn add(&self, change: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut pending);
        if pending.names.len() > MAX_NAMES {
            pending.names.clear();
            pending.everything = true;
        }
        drop(pending);
        self.notify.notify_one();
    }

    fn take(&self) -> Pending {
        std::mem::take(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running source; dropping it leaves the source running until its token is cancelled.
#[derive(Debug)]
pub struct FolderSource {
    report: watch::Receiver<Arc<FolderReport>>,
    task: JoinHandle<()>,
}

impl FolderSource {
    /// Announces the tables' source as pending, watches the folder, and reads it in a task of the current runtime.
    ///
    /// # Errors
    /// [`FolderError`] if the folder cannot be listed or watched.
    pub fn start(
        config: FolderConfig,
        writers: Writers,
        stop: CancellationToken,
    ) -> Result<Self, FolderError> {
        let folder = config.folder.clone();
        std::fs::read_dir(&folder).map_err(|error| FolderError::Folder { folder: folder.clone(), error })?;
        let signal = Arc::new(Signal::default());
        let watcher = watch_folder(&folder, &signal)
            .map_err(|error| FolderError::Watch { folder: folder.clone(), error })?;
        writers.set_source(&Source::Manifests, SourceState::Pending);
        let (sender, report) = watch::channel(Arc::new(FolderReport::default()));
        let state = Folder::new(config.cluster, config.limits);
        let follower = Follower {
            path: folder,
            watcher: Some(watcher),
            signal,
            state,
            writers,
            sender,
            complaint: None,
            keep: config.keep.map(Keep::new),
        };
        Ok(Self { report, task: tokio::spawn(follower.run(stop)) })
    }

    /// What was found so far.
    #[must_use]
    pub fn report(&self) -> Arc<FolderReport> {
        self.report.borrow().clone()
    }

    /// The findings, for `tombolo status`.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.report().problems.to_vec()
    }

    /// A receiver that tells when the report changes.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Arc<FolderReport>> {
        self.report.clone()
    }

    /// Waits until the source has stopped after its token was cancelled.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "The manifest source ended abnormally.");
        }
    }
}

/// Our own reading makes Open and Close events; they must not wake us.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn watch_folder(folder: &Path, signal: &Arc<Signal>) -> Result<RecommendedWatcher, notify::Error> {
    let (signal, own) = (signal.clone(), folder.to_owned());
    let mut watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| match event {
        Ok(event) if event.need_rescan() => signal.add(|pending| pending.everything = true),
        Ok(event) if !is_change(event.kind) => {}
        Ok(event) => signal.add(|pending| {
            for path in event.paths {
                if path == own {
                    pending.lost |= matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(_));
                    pending.everything = true;
                } else if is_swap(&path) {
                    pending.everything = true;
                } else if is_manifest(&path) {
                    pending.names.insert(path);
                }
            }
        }),
        Err(error) => {
            tracing::warn!(%error, "Watching manifests failed once; the whole folder is read again.");
            signal.add(|pending| pending.everything = true);
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Mounted ConfigMaps change by renaming `..data`; the files beside it are links into it and give no event.
fn is_swap(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."))
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

struct Follower {
    path: PathBuf,
    watcher: Option<RecommendedWatcher>,
    signal: Arc<Signal>,
    state: Folder,
    writers: Writers,
    sender: watch::Sender<Arc<FolderReport>>,
    /// What is wrong with the folder itself, as of its last listing.
    complaint: Option<Problem>,
    keep: Option<Keep>,
}

impl Follower {
    async fn run(mut self, stop: CancellationToken) {
        let mut pending = Pending { everything: true, ..Pending::default() };
        loop {
            // Reading files blocks; the state travels to a blocking thread and back.
            let pass = tokio::task::spawn_blocking(move || {
                self.pass(pending);
                self
            });
            match pass.await {
                Ok(back) => self = back,
                Err(error) => {
                    tracing::error!(%error, "Reading manifests failed; restart the agent.");
                    return;
                }
            }
            let lost = self.watcher.is_none();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.signal.notify.notified() => {}
                () = tokio::time::sleep(RETRY), if lost => self.rewatch(),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(COALESCE) => {}
            }
            pending = self.signal.take();
        }
    }

    fn rewatch(&mut self) {
        if let Ok(watcher) = watch_folder(&self.path, &self.signal) {
            tracing::info!(folder = %self.path.display(), "The manifest folder is back.");
            self.watcher = Some(watcher);
            self.signal.add(|pending| pending.everything = true);
        }
    }

    fn pass(&mut self, pending: Pending) {
        if pending.lost {
            // The watch follows the old folder; one by the same name is a new folder.
            self.watcher = watch_folder(&self.path, &self.signal).ok();
        }
        if pending.everything || pending.lost {
            match list(&self.path, self.state.limits().files) {
                Ok((present, refused)) => {
                    let gone: Vec<_> =
                        self.state.files().filter(|path| !present.contains(*path)).cloned().collect();
                    gone.iter().for_each(|path| self.forget(path));
                    if let Some(keep) = self.keep.as_ref().filter(|_| !self.sender.borrow().complete) {
                        keep.retain(&present);
                    }
                    present.iter().for_each(|path| self.read(path));
                    self.complaint = refused;
                }
                Err(error) => {
                    let remedy = "restore the folder; what was known stays in use";
                    self.complaint =
                        Some(Problem::of_file(&self.path, format!("cannot list: {error}"), remedy));
                    self.watcher = None;
                }
            }
        } else {
            pending.names.iter().for_each(|path| self.read(path));
        }
        self.state.write(&self.writers);
        self.publish();
    }

    fn read(&mut self, path: &Path) {
        let text = match read_text(path, self.state.limits().file_bytes) {
            Ok(Some(text)) => Ok(text),
            Ok(None) => return self.forget(path),
            Err(problem) => Err(problem),
        };
        let first = !self.state.knows(path);
        let good = text.as_ref().is_ok_and(|text| self.state.put(path, text));
        match (&mut self.keep, &text) {
            (Some(keep), Ok(text)) if good => keep.write(path, text),
            (Some(keep), _) if first => {
                // Broken at the first look: what an earlier life understood comes first, as if it had been read before.
                if let Some(old) = keep.read(path) {
                    tracing::info!(file = %path.display(), "A manifest is broken; its last good version is used.");
                    self.state.put(path, &old);
                    if let Ok(text) = &text {
                        self.state.put(path, text);
                    }
                }
            }
            _ => {}
        }
        if let Err(problem) = text {
            self.state.fail(path, *problem);
        }
    }

    fn forget(&mut self, path: &Path) {
        self.state.remove(path);
        if let Some(keep) = &self.keep {
            keep.remove(path);
        }
    }

    fn publish(&self) {
        let mut problems = self.state.problems();
        let failed_list = self.complaint.is_some() && self.watcher.is_none();
        problems.extend(self.complaint.clone());
        problems.extend(self.keep.as_ref().and_then(|keep| keep.complaint.clone()));
        let before = self.sender.borrow().clone();
        for problem in problems.iter().filter(|problem| !before.problems.contains(problem)) {
            match problem.severity {
                Severity::Error => tracing::warn!(%problem, "A manifest is not used."),
                Severity::Warning => tracing::info!(%problem, "A manifest looks wrong."),
            }
        }
        let report = FolderReport {
            complete: before.complete || !failed_list,
            files: self.state.files().count(),
            objects: self.state.objects(),
            unknown_kinds: self.state.unknown_kinds(),
            problems: problems.into(),
        };
        if report.complete && !before.complete {
            self.writers.set_source(&Source::Manifests, SourceState::Initialized);
        }
        if *before != report {
            self.sender.send_replace(Arc::new(report));
        }
    }
}

/// The manifests of a folder in name order, and a complaint if there are more than `most`.
fn list(folder: &Path, most: usize) -> Result<(BTreeSet<PathBuf>, Option<Problem>), std::io::Error> {
    let mut paths = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if is_manifest(&path) {
            paths.insert(path);
        }
    }
    let total = paths.len();
    let complaint = (total > most).then(|| {
        let reason = format!("{total} files; the last {} are not read", total - most);
        Problem::of_file(folder, reason, "put several documents into one file, or raise the limit")
    });
    Ok((paths.into_iter().take(most).collect(), complaint))
}

/// The text of a file; `None` if it is not there or no regular file.
fn read_text(path: &Path, most: u64) -> Result<Option<String>, Box<Problem>> {
    let cannot = |error: &std::io::Error| {
        let reason = format!("cannot read: {error}");
        Box::new(Problem::of_file(path, reason, "check the file and its permissions"))
    };
    // Looked at before opening: opening a named pipe would wait for its other end.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(&error)),
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(&error)),
    };
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| cannot(&error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > most) {
        return Err(Box::new(Problem::of_file(path, format!("larger than {most} bytes"), "split the file")));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let reason = format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to());
        Box::new(Problem::of_file(path, reason, "save it as UTF-8"))
    })
}

/// The problems of one file, for `tombolo config check FILE`.
#[must_use]
pub fn check_file(path: &Path, cluster: &ClusterIdentity) -> Vec<Problem> {
    match read_text(path, Limits::default().file_bytes) {
        Ok(Some(text)) => {
            let parsed = parse(path, &text, cluster);
            let ignored = parsed.unknown_kinds.iter().map(|(kind, unknown)| unknown.problem(kind, path));
            ignored.chain(parsed.problems).collect()
        }
        Ok(None) => vec![Problem::of_file(path, "there is no such file", "check the path")],
        Err(problem) => vec![*problem],
    }
}

/// What a file's text would put into tables, and what is wrong with it. Nothing of it is in force.
#[must_use]
pub fn read_manifests(file: &Path, text: &str, cluster: &ClusterIdentity) -> (Tables, Vec<Problem>) {
    let (tables, writers) = Tables::new();
    let parsed = parse(file, text, cluster);
    parsed.objects.values().for_each(|object| object.write(None, &writers));
    let ignored = parsed.unknown_kinds.iter().map(|(kind, unknown)| unknown.problem(kind, file));
    (tables, ignored.chain(parsed.problems).collect())
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
