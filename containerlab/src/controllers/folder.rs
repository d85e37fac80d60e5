//! A manifest folder read again and again: only files that changed are parsed, and a file that cannot be parsed keeps
//! its last good content, so that a half edited manifest takes nothing away.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Largest manifest that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most files of one folder.
const MAX_FILES: usize = 10_000;

/// The files of one folder.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    path: PathBuf,
    files: BTreeMap<String, File>,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    text: String,
    documents: Vec<Value>,
}

/// What changes when a file does: a rename brings another inode, a write another time or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed_secs: i64,
    changed_nanos: i64,
}

impl Folder {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: BTreeMap::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes up what changed in the folder; returns what is wrong with single files.
    pub(crate) fn scan(&mut self) -> io::Result<Vec<String>> {
        let mut problems = Vec::new();
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().filter(|name| is_manifest(name)).map(str::to_owned)
            else {
                continue;
            };
            // A file may vanish between the listing and the look.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_file() {
                let stamp = Stamp {
                    inode: metadata.ino(),
                    size: metadata.len(),
                    changed_secs: metadata.ctime(),
                    changed_nanos: metadata.ctime_nsec(),
                };
                present.insert(name, stamp);
            }
            if present.len() > MAX_FILES {
                problems.push(format!("more than {MAX_FILES} files; the rest is not looked at"));
                break;
            }
        }
        self.files.retain(|name, _| present.contains_key(name));
        for (name, stamp) in present {
            if self.files.get(&name).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            if let Err(problem) = self.read(&name, stamp) {
                problems.push(format!("{name}: {problem}"));
            }
        }
        Ok(problems)
    }

    fn read(&mut self, name: &str, stamp: Stamp) -> Result<(), String> {
        let parsed = self.parse(name, stamp);
        match (parsed, self.files.get_mut(name)) {
            (Ok((text, documents)), _) => {
                self.files.insert(name.to_owned(), File { stamp, text, documents });
                Ok(())
            }
            (Err(problem), Some(old)) => {
                old.stamp = stamp;
                Err(format!("{problem}; its last good content stays in force"))
            }
            (Err(problem), None) => {
                self.files
                    .insert(name.to_owned(), File { stamp, text: String::new(), documents: Vec::new() });
                Err(format!("{problem}; the file is left out"))
            }
        }
    }

    fn parse(&self, name: &str, stamp: Stamp) -> Result<(String, Vec<Value>), String> {
        if stamp.size > MAX_FILE_BYTES {
            return Err(format!("has {} bytes, more than {MAX_FILE_BYTES}", stamp.size));
        }
        let text = fs::read_to_string(self.path.join(name)).map_err(|error| error.to_string())?;
        let options = serde_saphyr::options! { with_snippet: false };
        let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(&text, options)
            .map_err(|error| format!("is not YAML: {error}"))?;
        Ok((text, documents.into_iter().filter(|document| !document.is_null()).collect()))
    }

    /// Every document with the name of its file, in order of file names.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.files
            .iter()
            .flat_map(|(name, file)| file.documents.iter().map(move |document| (name.as_str(), document)))
    }

    /// The documents of one file.
    pub(crate) fn file(&self, name: &str) -> &[Value] {
        self.files.get(name).map_or(&[], |file| &file.documents)
    }

    /// Names of all files.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Writes a file whole, by renaming; does nothing when it has this content already.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<bool> {
        if self.files.get(name).is_some_and(|file| file.text == text) {
            return Ok(false);
        }
        let temporary = self.path.join(format!(".{name}.controller"));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, self.path.join(name))?;
        Ok(true)
    }

    /// Removes a file; one that is gone already is fine.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Names starting with a dot are files being written.
pub(crate) fn is_manifest(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
}
