//! The folder with one etcd client file per remote cluster, watched; file name = cluster name.

use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use notify::{RecursiveMode, Watcher};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tombolo_base::ids::ClusterName;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most remote clusters.
const MAX_FILES: usize = 1024;
/// How long changes are collected before the folder is read; a swap of links causes several events.
const SETTLE: Duration = Duration::from_millis(200);
/// The folder is read anyway after that time: links may point to places that no watch covers.
const RESCAN: Duration = Duration::from_secs(30);

/// What the folder says now.
#[derive(Debug, Default)]
pub(crate) struct Scan {
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
    wake: mpsc::Receiver<()>,
    waker: mpsc::Sender<()>,
}

impl Folder {
    pub(crate) fn new(path: PathBuf, own: ClusterName, allow_plaintext: bool) -> Self {
        let (waker, wake) = mpsc::channel(1);
        Self { path, own, allow_plaintext, watcher: None, wake, waker }
    }

    /// Starts the watch; a folder that is missing is looked for again at each rescan.
    fn watch(&mut self) {
        let waker = self.waker.clone();
        // A full channel means that a rescan is due already.
        let watcher = notify::recommended_watcher(move |_| {
            waker.try_send(()).ok();
        });
        self.watcher = watcher.ok().and_then(|mut watcher| {
            watcher.watch(&self.path, RecursiveMode::NonRecursive).ok().map(|()| watcher)
        });
    }

    /// Waits until something may have changed, then reads everything.
    pub(crate) async fn changed(&mut self) -> Scan {
        if tokio::time::timeout(RESCAN, self.wake.recv()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
            while self.wake.try_recv().is_ok() {}
        }
        self.scan().await
    }

    /// Reads all files.
    pub(crate) async fn scan(&mut self) -> Scan {
        if self.watcher.is_none() || !self.path.is_dir() {
            self.watch();
        }
        let (path, own, plain) = (self.path.clone(), self.own.clone(), self.allow_plaintext);
        let scan = tokio::task::spawn_blocking(move || read_folder(&path, &own, plain)).await;
        scan.unwrap_or_default()
    }
}

fn read_folder(path: &Path, own: &ClusterName, allow_plaintext: bool) -> Scan {
    let mut scan = Scan::default();
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                let text = format!("cannot read the folder {}: {error}", path.display());
                scan.broken.insert(path.display().to_string(), text);
            }
            return scan;
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files.into_iter().take(MAX_FILES * 4) {
        if let Err((name, text)) = read_file(&file, own, allow_plaintext, &mut scan) {
            scan.broken.insert(name, text);
        }
    }
    scan
}

/// A file counts when its text says `endpoints:`; certificates lie beside it.
fn read_file(
    file: &Path,
    own: &ClusterName,
    allow_plaintext: bool,
    scan: &mut Scan,
) -> Result<(), (String, String)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with('.') || !file.is_file() {
        return Ok(());
    }
    let cluster =
        name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml")).unwrap_or(&name).to_owned();
    let broken = |text: String| (cluster.clone(), text);
    let size = std::fs::metadata(file).map_or(0, |meta| meta.len());
    if size > MAX_FILE_BYTES {
        return Err(broken(format!("{} has {size} bytes; it is no etcd client file", file.display())));
    }
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Ok(()),
        Err(source) => {
            let error = MeshError::Read { what: "cluster file", path: file.to_owned(), source };
            return Err(broken(error.to_string()));
        }
    };
    let meant = cluster != name || text.contains("endpoints:");
    if !meant || cluster == own.as_str() {
        return Ok(());
    }
    let remote =
        ClusterName::new(&cluster).map_err(|error| broken(format!("{}: {error}", file.display())))?;
    if scan.remotes.len() >= MAX_FILES {
        return Err(broken(format!("more than {MAX_FILES} remote clusters")));
    }
    let config =
        EtcdConfig::parse(file, &text, allow_plaintext).map_err(|error| broken(error.to_string()))?;
    scan.remotes.insert(remote, (config, Sha256::digest(text.as_bytes()).into()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_count_and_files_that_are_broken() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let good = "endpoints: [https://192.0.2.1:2379]\ntrusted-ca-file: ca\ncert-file: c\nkey-file: k\n";
        write("west.yaml", good);
        write("north", good);
        write("east.yaml", good);
        write("ca.crt", "-----BEGIN CERTIFICATE-----");
        write("south.yaml", "endpoints: [http://192.0.2.1:2379]\n");
        write("Bad_Name.yaml", good);
        write(".west.yaml.tmp", good);
        let scan = read_folder(folder.path(), &ClusterName::new("east").unwrap(), false);
        assert_eq!(scan.remotes.keys().map(ClusterName::as_str).collect::<Vec<_>>(), ["north", "west"]);
        assert_eq!(scan.broken.keys().collect::<Vec<_>>(), ["Bad_Name", "south"]);
        assert!(scan.broken["south"].contains("plaintext"), "{:?}", scan.broken);
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
        let mut watched = Folder::new(folder.path().to_owned(), ClusterName::new("east").unwrap(), false);
        let west = ClusterName::new("west").unwrap();
        let before = watched.scan().await.remotes[&west].1;
        std::os::unix::fs::symlink("v2", folder.path().join("..new")).unwrap();
        std::fs::rename(folder.path().join("..new"), folder.path().join("..data")).unwrap();
        let after = tokio::time::timeout(Duration::from_secs(10), watched.changed()).await.unwrap();
        assert_ne!(after.remotes[&west].1, before);
    }
}
