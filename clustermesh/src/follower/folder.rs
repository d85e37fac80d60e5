//! The folder with one etcd client file per remote cluster, watched by a task of its own; file name = cluster name.

use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::ClusterName;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most remote clusters.
const MAX_FILES: usize = 1024;
/// Most names in the folder: certificates lie beside the files.
const MAX_NAMES: usize = 16_384;
/// How long changes are collected before the folder is read; a swap of links causes several events.
const SETTLE: Duration = Duration::from_millis(200);
/// The folder is read anyway after that time: links may point to places that no watch covers.
const RESCAN: Duration = Duration::from_secs(30);
/// A folder that cannot be watched is looked at again after that time; its return gives no event.
const RETRY: Duration = Duration::from_secs(2);

/// What a look at the folder gave.
#[derive(Debug)]
pub(crate) enum Reading {
    /// Everything in it.
    Listed(Scan),
    /// It could not be listed, and why: nothing is known about any file, so nothing may be concluded.
    Failed(String),
}

/// What the folder says now.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The cluster name of every entry, whatever is in it: only what is missing here was removed.
    pub(crate) names: BTreeSet<String>,
    /// Usable files by cluster, with the digest of their text.
    pub(crate) remotes: BTreeMap<ClusterName, (EtcdConfig, [u8; 32])>,
    /// Files that mean to be such and are not, with what is wrong.
    pub(crate) broken: BTreeMap<String, String>,
}

/// A watched folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    own: ClusterName,
    allow_plaintext: bool,
    watcher: Option<notify::RecommendedWatcher>,
    /// Device and inode that the watch is on: a folder made anew under the same name needs a new watch.
    watched: Option<(u64, u64)>,
    wake: mpsc::Receiver<()>,
    waker: mpsc::Sender<()>,
}

impl Folder {
    pub(crate) fn new(path: PathBuf, own: ClusterName, allow_plaintext: bool) -> Self {
        let (waker, wake) = mpsc::channel(1);
        Self { path, own, allow_plaintext, watcher: None, watched: None, wake, waker }
    }

    /// Reads now and after every change, until cancelled. A reader that is busy delays the next look; no change is lost,
    /// because a wake-up stays in its channel until the folder is read after it.
    pub(crate) async fn run(mut self, readings: mpsc::Sender<Reading>, cancel: CancellationToken) {
        let follow = async {
            loop {
                let reading = self.read().await;
                if readings.send(reading).await.is_err() {
                    return;
                }
                self.changed().await;
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = follow => {}
        }
    }

    /// Starts the watch; a folder that is missing is looked for again at each rescan.
    fn watch(&mut self) {
        let place = std::fs::metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
        if place.is_some() && place == self.watched {
            return;
        }
        let waker = self.waker.clone();
        let watcher = notify::recommended_watcher(move |event: Result<Event, notify::Error>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                // A full channel means that a rescan is due already.
                waker.try_send(()).ok();
            }
        });
        self.watcher = watcher.ok().and_then(|mut watcher| {
            watcher.watch(&self.path, RecursiveMode::NonRecursive).ok().map(|()| watcher)
        });
        self.watched = self.watcher.as_ref().and(place);
    }

    /// Waits until something may have changed.
    async fn changed(&mut self) {
        let longest = if self.watcher.is_some() { RESCAN } else { RETRY };
        if tokio::time::timeout(longest, self.wake.recv()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            while self.wake.try_recv().is_ok() {}
        }
    }

    /// Reads all files.
    async fn read(&mut self) -> Reading {
        self.watch();
        let (path, own, plain) = (self.path.clone(), self.own, self.allow_plaintext);
        let read = tokio::task::spawn_blocking(move || read_folder(&path, &own, plain)).await;
        read.unwrap_or_else(|error| {
            Reading::Failed(format!(
                "reading the folder {} broke off: {error}; this is a bug, please report the log",
                self.path.display()
            ))
        })
    }
}

/// Our own reading makes open and close events; they must not wake us.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// Looks at a folder once; what is wrong with it if it cannot be listed.
pub(crate) async fn scan(path: &Path, own: &ClusterName, allow_plaintext: bool) -> Result<Scan, String> {
    let (path, own) = (path.to_owned(), *own);
    let read = tokio::task::spawn_blocking(move || read_folder(&path, &own, allow_plaintext)).await;
    match read.map_err(|error| error.to_string())? {
        Reading::Listed(scan) => Ok(scan),
        Reading::Failed(text) => Err(text),
    }
}

fn read_folder(path: &Path, own: &ClusterName, allow_plaintext: bool) -> Reading {
    let files = match list(path) {
        Ok(files) => files,
        Err(text) => return Reading::Failed(text),
    };
    let mut scan = Scan::default();
    for file in files {
        if let Err((name, text)) = read_file(&file, own, allow_plaintext, &mut scan) {
            scan.broken.insert(name, text);
        }
    }
    Reading::Listed(scan)
}

/// Every entry in name order; an error if any of them cannot be told, because it would look removed.
fn list(path: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| {
        let remedy = match error.kind() {
            ErrorKind::NotFound => "create it, or correct clustermesh.folder in agent.yaml",
            ErrorKind::NotADirectory => "clustermesh.folder in agent.yaml must name a folder",
            _ => "check its permissions and the disk",
        };
        format!("cannot list the folder {}: {error}; {remedy}", path.display())
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
        if files.len() > MAX_NAMES {
            let text = "put nothing but cluster files and their certificates there";
            return Err(format!("the folder {} has more than {MAX_NAMES} entries; {text}", path.display()));
        }
    }
    files.sort();
    Ok(files)
}

/// The text of a file, or what is wrong with it; `None` if it cannot mean to be a cluster's file.
fn read_text(file: &Path, named: bool) -> Result<Option<String>, String> {
    let unreadable =
        |source| MeshError::Read { what: "cluster file", path: file.to_owned(), source }.to_string();
    let meta = match std::fs::metadata(file) {
        Ok(meta) => meta,
        Err(error) => return if named { Err(unreadable(error)) } else { Ok(None) },
    };
    if !meta.is_file() {
        let text = || format!("{} is no regular file; write an etcd client file there", file.display());
        return if named { Err(text()) } else { Ok(None) };
    }
    if meta.len() > MAX_FILE_BYTES {
        let text = "an etcd client file has some 300; remove what is too much";
        return Err(format!("{} has {} bytes; {text}", file.display(), meta.len()));
    }
    match std::fs::read(file).map(String::from_utf8) {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(error)) if named => {
            let at = error.utf8_error().valid_up_to();
            Err(format!("{} is not UTF-8 from byte {at} on; save it as plain text", file.display()))
        }
        // A certificate in its binary form, for one.
        Ok(Err(_)) => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}

/// A file counts when its name says so or its text says `endpoints:`; certificates lie beside it.
fn read_file(
    file: &Path,
    own: &ClusterName,
    allow_plaintext: bool,
    scan: &mut Scan,
) -> Result<(), (String, String)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with('.') {
        return Ok(());
    }
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    let cluster = stem.unwrap_or(&name).to_owned();
    let first = scan.names.insert(cluster.clone());
    if cluster == own.as_str() {
        return Ok(());
    }
    let broken = |text: String| (cluster.clone(), text);
    let text = read_text(file, stem.is_some()).map_err(broken)?;
    let Some(text) = text.filter(|text| stem.is_some() || text.contains("endpoints:")) else { return Ok(()) };
    let remote = ClusterName::new(&cluster)
        .map_err(|error| broken(format!("{}: {error}; the file's name is the cluster's", file.display())))?;
    if !first && scan.remotes.contains_key(&remote) {
        let text = "is the second file of this cluster; the first in name order is used, remove one";
        return Err(broken(format!("{} {text}", file.display())));
    }
    if scan.remotes.len() >= MAX_FILES {
        return Err(broken(format!(
            "{}: more than {MAX_FILES} remote clusters; remove some",
            file.display()
        )));
    }
    let config =
        EtcdConfig::parse(file, &text, allow_plaintext).map_err(|error| broken(error.to_string()))?;
    scan.remotes.insert(remote, (config, Sha256::digest(text.as_bytes()).into()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(reading: Reading) -> Scan {
        match reading {
            Reading::Listed(scan) => scan,
            Reading::Failed(text) => panic!("not listed: {text}"),
        }
    }

    #[test]
    fn files_that_count_and_files_that_are_broken() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let good = "endpoints: [https://192.0.2.1:2379]\ntrusted-ca-file: ca\ncert-file: c\nkey-file: k\n";
        write("west.yaml", good);
        write("west.yml", good);
        write("north", good);
        write("east.yaml", good);
        write("ca.crt", "-----BEGIN CERTIFICATE-----");
        write("south.yaml", "endpoints: [http://192.0.2.1:2379]\n");
        write("Bad_Name.yaml", good);
        write("default.yaml", good);
        write("empty.yaml", "");
        write(".west.yaml.tmp", good);
        let east = ClusterName::new("east").unwrap();
        let scan = listed(read_folder(folder.path(), &east, false));
        assert_eq!(scan.remotes.keys().map(ClusterName::as_str).collect::<Vec<_>>(), ["north", "west"]);
        assert_eq!(scan.broken.keys().collect::<Vec<_>>(), ["Bad_Name", "default", "empty", "south", "west"]);
        assert!(scan.broken["south"].contains("plaintext"), "{:?}", scan.broken);
        assert!(scan.broken["west"].contains("west.yml"), "{:?}", scan.broken);
        assert!(scan.broken.values().all(|text| !text.contains('\n')), "{:?}", scan.broken);
        assert!(scan.names.contains("ca.crt") && !scan.names.contains(".west.yaml.tmp"));
        assert!(matches!(read_folder(&folder.path().join("west.yaml"), &east, false), Reading::Failed(_)));
    }

    #[tokio::test]
    async fn a_swapped_link_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let good = "endpoints: [https://192.0.2.1:2379]\ntrusted-ca-file: ca\ncert-file: c\nkey-file: k\n";
        for version in ["v1", "v2"] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
            let text = good.replace("192.0.2.1", if version == "v1" { "192.0.2.1" } else { "192.0.2.2" });
            std::fs::write(folder.path().join(version).join("west.yaml"), text).unwrap();
        }
        std::os::unix::fs::symlink("v1", folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/west.yaml", folder.path().join("west.yaml")).unwrap();
        let watched = Folder::new(folder.path().to_owned(), ClusterName::new("east").unwrap(), false);
        let (readings, mut inbox) = mpsc::channel(1);
        tokio::spawn(watched.run(readings, CancellationToken::new()));
        let west = ClusterName::new("west").unwrap();
        let before = listed(inbox.recv().await.unwrap()).remotes[&west].1;
        std::os::unix::fs::symlink("v2", folder.path().join("..new")).unwrap();
        std::fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
        let after = tokio::time::timeout(Duration::from_secs(10), inbox.recv()).await.unwrap().unwrap();
        assert_ne!(listed(after).remotes[&west].1, before);
        // Reading it does not look like a change of it.
        let again = tokio::time::timeout(Duration::from_secs(2), inbox.recv()).await;
        assert!(again.is_err(), "the folder is read again and again: {again:?}");
    }
}
