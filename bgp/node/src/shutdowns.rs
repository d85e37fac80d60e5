//! Sessions that the operator shut down. They are kept in a file, so that none comes up by itself because the process ended.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Largest file that is read, in bytes: more than as many shutdowns as a speaker allows, with the longest names and texts.
const MAX_BYTES: u64 = 32 << 20;
/// Bytes of a text that are kept: what RFC 9003 sends.
const TEXT_MAX: usize = 255;

/// A shutdown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shutdown {
    /// For the other operator.
    pub(crate) text: String,
    /// When, in seconds since 1970.
    pub(crate) since: u64,
}

/// By instance and peer.
type Kept = BTreeMap<Arc<str>, BTreeMap<String, Shutdown>>;

/// All shutdowns, and where they are kept.
#[derive(Debug, Default)]
pub(crate) struct Shutdowns {
    file: Option<PathBuf>,
    kept: Kept,
}

impl Shutdowns {
    /// Those of the lives before; without a file they end with this one. A file that cannot be read is put aside, and said.
    pub(crate) fn open(file: Option<PathBuf>) -> Self {
        let read = file.as_deref().map(read).unwrap_or_else(|| Ok(Kept::new()));
        let kept = read.unwrap_or_else(|error| {
            let path = file.as_deref().unwrap_or(Path::new("")).display();
            tracing::error!(%path, %error, "Which BGP sessions are shut down cannot be read; all will come up. The file is put aside as .bad: shut them down again.");
            let aside = file.as_ref().map(|file| std::fs::rename(file, file.with_extension("json.bad")));
            if let Some(Err(error)) = aside {
                tracing::warn!(%path, %error, "The file cannot be put aside either.");
            }
            Kept::new()
        });
        Self { file, kept }
    }

    /// Texts of an instance's peers that are shut down.
    pub(crate) fn texts(&self, instance: &str) -> BTreeMap<String, String> {
        let of = self.kept.get(instance).into_iter().flatten();
        of.map(|(peer, shutdown)| (peer.clone(), shutdown.text.clone())).collect()
    }

    /// Since when a peer is shut down, in seconds since 1970.
    pub(crate) fn since(&self, instance: &str, peer: &str) -> Option<u64> {
        Some(self.kept.get(instance)?.get(peer)?.since)
    }

    /// Every instance and peer.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.kept.iter().flat_map(|(instance, peers)| peers.keys().map(move |peer| (instance, peer.as_str())))
    }

    /// Keeps a shutdown; one that is there already stays as old as it is.
    ///
    /// # Errors
    /// Why it could not be written; it is kept until the process ends all the same.
    pub(crate) fn add(&mut self, instance: &Arc<str>, peer: &str, text: &str) -> Result<(), String> {
        let text = text.get(..text.floor_char_boundary(TEXT_MAX)).unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let since = self.since(instance, peer).unwrap_or(now);
        let shutdown = Shutdown { text: text.to_owned(), since };
        self.kept.entry(instance.clone()).or_default().insert(peer.to_owned(), shutdown);
        self.write("it is down, but will come up if this process ends")
    }

    /// Forgets a shutdown.
    ///
    /// # Errors
    /// Why it could not be written.
    pub(crate) fn remove(&mut self, instance: &str, peer: &str) -> Result<(), String> {
        let Some(peers) = self.kept.get_mut(instance) else { return Ok(()) };
        if peers.remove(peer).is_none() {
            return Ok(());
        }
        self.kept.retain(|_, peers| !peers.is_empty());
        self.write("it is started, but will be shut down again if this process ends")
    }

    fn write(&self, meaning: &str) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        replace(file, &self.kept).map_err(|error| {
            let path = file.display();
            format!("{meaning}: {path} cannot be written: {error}; make room or correct its rights, and do it again")
        })
    }
}

fn read(file: &Path) -> io::Result<Kept> {
    match std::fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::new()),
        Err(error) => return Err(error),
        Ok(found) if found.len() > MAX_BYTES => {
            return Err(io::Error::other(format!("longer than {MAX_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    serde_json::from_slice(&std::fs::read(file)?).map_err(io::Error::from)
}

/// A reader, and the next life after a power cut, sees the old file or the new one.
fn replace(file: &Path, kept: &Kept) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let temporary = file.with_extension("json.new");
    let mut options = std::fs::OpenOptions::new();
    let mut new = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    new.write_all(&serde_json::to_vec_pretty(kept)?)?;
    new.sync_all()?;
    std::fs::rename(&temporary, file)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutdowns_outlive_the_process_and_a_broken_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/bgp-shutdowns.json");
        let open = || Shutdowns::open(Some(file.clone()));
        let (main, mut first) = (Arc::from("main"), open());
        first.add(&main, "tor", &"é".repeat(200)).unwrap();
        first.add(&main, "rack-10.0.0.1", "").unwrap();
        let mut second = open();
        let texts = second.texts("main");
        assert_eq!((texts.len(), texts["tor"].len(), texts["rack-10.0.0.1"].as_str()), (2, 254, ""));
        assert_eq!(second.since("main", "tor"), first.since("main", "tor"));
        assert_eq!(second.names().map(|(_, peer)| peer).collect::<Vec<_>>(), ["rack-10.0.0.1", "tor"]);
        second.remove("main", "tor").unwrap();
        second.remove("main", "nobody").unwrap();
        assert_eq!(open().texts("main").len(), 1);
        assert!(open().texts("other").is_empty());
        std::fs::write(&file, "{").unwrap();
        assert!(open().texts("main").is_empty());
        assert!(file.with_extension("json.bad").exists() && !file.exists());
        std::fs::create_dir(file.with_extension("json.new")).unwrap();
        let error = open().add(&main, "tor", "x").unwrap_err();
        assert!(error.contains("bgp-shutdowns.json") && error.contains("will come up"), "{error}");
    }
}
