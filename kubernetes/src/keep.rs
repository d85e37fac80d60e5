//! The last good text of every manifest, kept on disk: a file that is broken when the agent starts has no earlier version
//! in memory, and what it said before must not be taken away for a slip of the pen.

use crate::problem::Problem;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A folder with one copy per manifest, under the manifest's file name.
#[derive(Debug)]
pub(crate) struct Keep {
    folder: PathBuf,
    /// Why the last copy could not be written.
    pub(crate) complaint: Option<Problem>,
}

impl Keep {
    pub(crate) const fn new(folder: PathBuf) -> Self {
        Self { folder, complaint: None }
    }

    fn file(&self, manifest: &Path) -> Option<PathBuf> {
        manifest.file_name().map(|name| self.folder.join(name))
    }

    /// The last good text of a manifest, of this or an earlier life.
    pub(crate) fn read(&self, manifest: &Path) -> Option<String> {
        std::fs::read_to_string(self.file(manifest)?).ok()
    }

    /// Keeps a text that was understood as a whole.
    pub(crate) fn write(&mut self, manifest: &Path, text: &str) {
        let Some(file) = self.file(manifest) else { return };
        if std::fs::read(&file).is_ok_and(|old| old == text.as_bytes()) {
            return;
        }
        self.complaint = self.replace(&file, text).err().map(|error| {
            let remedy = "check space and rights of state_dir; a manifest that is broken at the next start would lose its objects";
            Problem::of_file(&file, format!("cannot keep a copy of the manifest: {error}"), remedy)
        });
    }

    /// A reader sees the old copy or the new one. Not synced: after a power cut the manifest itself is read first.
    fn replace(&self, file: &Path, text: &str) -> std::io::Result<()> {
        // Manifests may say what not everybody on the node should read.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut name = OsString::from(".");
        name.push(file.file_name().unwrap_or_default());
        let temporary = self.folder.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut copy = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        copy.write_all(text.as_bytes())?;
        std::fs::rename(&temporary, file)
    }

    /// The manifest is gone, and was not broken: so is its copy.
    pub(crate) fn remove(&self, manifest: &Path) {
        let Some(file) = self.file(manifest) else { return };
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "The copy of a manifest that is gone cannot be removed.");
        }
    }

    /// Manifests removed while the agent was away lose their copies.
    pub(crate) fn retain(&self, present: &BTreeSet<PathBuf>) {
        let names: BTreeSet<_> = present.iter().filter_map(|path| path.file_name()).collect();
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten().filter(|entry| !names.contains(entry.file_name().as_os_str())) {
            self.remove(&entry.path());
        }
    }
}
