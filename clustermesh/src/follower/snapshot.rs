//! What was accepted from a cluster, kept on disk so that a restart takes nothing away.

use crate::error::MeshError;
use crate::wire::{Kind, Record};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use tombolo_base::ids::{ClusterId, ClusterName};

/// The present form of the file.
const VERSION: u32 = 1;

/// The file's content: values in wire form, so that reading them back passes the same checks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    version: u32,
    cluster: String,
    pub(crate) id: ClusterId,
    entries: BTreeMap<Kind, BTreeMap<String, String>>,
}

impl Saved {
    pub(crate) fn new<'a>(
        cluster: &ClusterName,
        id: ClusterId,
        records: impl Iterator<Item = (Kind, Cow<'a, str>, Cow<'a, Record>)>,
    ) -> Self {
        let mut entries: BTreeMap<Kind, BTreeMap<String, String>> = BTreeMap::new();
        for (kind, name, record) in records {
            // What cannot be written as text is read from etcd again.
            if let Some(text) = record.encode().ok().and_then(|value| String::from_utf8(value).ok()) {
                entries.entry(kind).or_default().insert(name.into_owned(), text);
            }
        }
        Self { version: VERSION, cluster: cluster.to_string(), id, entries }
    }

    /// Kind, key name and value of everything saved.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &str, &[u8])> {
        let of = |(kind, names): (&Kind, _)| (*kind, names);
        let one = |(kind, names)| {
            BTreeMap::iter(names)
                .map(move |(name, text): (&String, &String)| (kind, name.as_str(), text.as_bytes()))
        };
        self.entries.iter().map(of).flat_map(one)
    }
}

/// Reads a snapshot; `None` if there is none or it has another form.
pub(crate) async fn read(path: &Path) -> Result<Option<Saved>, MeshError> {
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MeshError::Read { what: "snapshot", path: path.to_owned(), source }),
    };
    let saved: Saved = serde_json::from_slice(&text).map_err(|error| MeshError::Read {
        what: "snapshot",
        path: path.to_owned(),
        source: std::io::Error::other(error),
    })?;
    Ok((saved.version == VERSION).then_some(saved))
}

pub(crate) async fn write(path: &Path, saved: Saved) -> Result<(), MeshError> {
    write_json(path, "snapshot", saved).await
}

/// Writes JSON so that a reader sees the old file or the new one, never a part.
pub(crate) async fn write_json<T: Serialize + Send + 'static>(
    path: &Path,
    what: &'static str,
    content: T,
) -> Result<(), MeshError> {
    let target = path.to_owned();
    let write = move || -> std::io::Result<()> {
        let folder = target.parent().unwrap_or_else(|| Path::new("."));
        std::fs::create_dir_all(folder)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = folder.join(format!(".{name}.{}", std::process::id()));
        let mut file = std::fs::File::create(&temporary)?;
        serde_json::to_writer(std::io::BufWriter::new(&file), &content)?;
        file.flush()?;
        file.sync_all()?;
        std::fs::rename(&temporary, &target)
    };
    let done =
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    done.map_err(|source| MeshError::Write { what, path: path.to_owned(), source })
}
