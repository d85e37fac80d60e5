//! What was accepted from a cluster, kept on disk so that a restart takes nothing away.

use super::confirmed::Stamp;
use crate::error::MeshError;
use crate::wire::{Kind, Record};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::UNIX_EPOCH;
use tombolo_base::ids::{ClusterId, ClusterName};

/// The present form of the file. The first one had no values that are no text and no time; it is read, too.
const VERSION: u32 = 2;
const FIRST: u32 = 1;

/// The file's content: values in wire form, so that reading them back passes the same checks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    version: u32,
    cluster: String,
    pub(crate) id: ClusterId,
    /// When it was written, and everything in it confirmed.
    #[serde(default)]
    pub(crate) at: Stamp,
    entries: BTreeMap<Kind, BTreeMap<String, String>>,
    /// Values that are no text (endpoint slices), in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    binary: BTreeMap<Kind, BTreeMap<String, String>>,
}

impl Saved {
    pub(crate) fn new<'a>(
        cluster: &ClusterName,
        id: ClusterId,
        at: Stamp,
        records: impl Iterator<Item = (Kind, &'a str, &'a Record)>,
    ) -> Self {
        let mut saved = Self {
            version: VERSION,
            cluster: cluster.to_string(),
            id,
            at,
            entries: BTreeMap::new(),
            binary: BTreeMap::new(),
        };
        for (kind, name, record) in records {
            // What cannot be encoded is read from etcd again.
            let Ok(value) = record.encode() else { continue };
            let (into, text) = match String::from_utf8(value) {
                Ok(text) => (&mut saved.entries, text),
                Err(error) => (&mut saved.binary, STANDARD.encode(error.as_bytes())),
            };
            into.entry(kind).or_default().insert(name.to_owned(), text);
        }
        saved
    }

    /// Kind, key name and value of everything saved.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &str, Cow<'_, [u8]>)> {
        let text = named(&self.entries).map(|(kind, name, text)| (kind, name, text.as_bytes().into()));
        // What is damaged is read from etcd again.
        let binary = named(&self.binary)
            .filter_map(|(kind, name, text)| Some((kind, name, STANDARD.decode(text).ok()?.into())));
        text.chain(binary)
    }
}

fn named(entries: &BTreeMap<Kind, BTreeMap<String, String>>) -> impl Iterator<Item = (Kind, &str, &str)> {
    let of = |(kind, names): (&Kind, _)| (*kind, names);
    entries.iter().map(of).flat_map(|(kind, names): (Kind, &BTreeMap<String, String>)| {
        names.iter().map(move |(name, text)| (kind, name.as_str(), text.as_str()))
    })
}

/// What every form has.
#[derive(Deserialize)]
struct Form {
    version: u32,
}

/// Reads a snapshot; `None` if there is none or it is of a later version of the program.
pub(crate) async fn read(path: &Path) -> Result<Option<Saved>, MeshError> {
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MeshError::Read { what: "snapshot", path: path.to_owned(), source }),
    };
    let bad = |error| MeshError::Read {
        what: "snapshot",
        path: path.to_owned(),
        source: std::io::Error::other::<serde_json::Error>(error),
    };
    let Form { version } = serde_json::from_slice(&text).map_err(bad)?;
    if !(FIRST..=VERSION).contains(&version) {
        tracing::info!(path = %path.display(), version, known = VERSION, "the snapshot is of another version of this program and is not used; entries come from etcd alone");
        return Ok(None);
    }
    let mut saved: Saved = serde_json::from_slice(&text).map_err(bad)?;
    if version == FIRST {
        let written = tokio::fs::metadata(path).await.and_then(|meta| meta.modified()).ok();
        let since = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        saved.at = Stamp::at(i64::try_from(since.as_secs()).unwrap_or(0));
        tracing::info!(path = %path.display(), "the snapshot is of an earlier version; it is used, and written in the present form");
    }
    Ok(Some(saved))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{EndpointSlice, Remote};
    use tombolo_base::ids::MaxClusters;

    fn remote() -> Remote {
        let id = ClusterId::new(1, MaxClusters::C255).unwrap();
        Remote { name: ClusterName::new("c1").unwrap(), id, max: MaxClusters::C255, own: false }
    }

    /// An address as text and a slice that is none.
    fn records() -> Vec<(Kind, String, Record)> {
        let ip = br#"{"IP":"10.1.0.7","Mask":null,"HostIP":"192.0.2.1","ID":66001,"Key":0,"Metadata":""}"#;
        let ip = Record::decode(&remote(), Kind::Ips, "10.1.0.7", ip).unwrap().unwrap();
        let slice = EndpointSlice::new("c1", 1, "shop", "web-1", true);
        vec![
            (Kind::Ips, "10.1.0.7".to_owned(), ip),
            (Kind::EndpointSlices, "shop/web-1".to_owned(), Record::EndpointSlice(Box::new(slice))),
        ]
    }

    #[tokio::test]
    async fn what_is_saved_is_read_again_also_what_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c1.json");
        let (remote, records) = (remote(), records());
        let entries = records.iter().map(|(kind, name, record)| (*kind, name.as_str(), record));
        write(&path, Saved::new(&remote.name, remote.id, Stamp::at(77), entries)).await.unwrap();
        let saved = read(&path).await.unwrap().unwrap();
        assert_eq!((saved.id, &saved.at), (remote.id, &Stamp::at(77)));
        let found: Vec<_> = saved
            .iter()
            .map(|(kind, name, value)| {
                (kind, name.to_owned(), Record::decode(&remote, kind, name, &value).unwrap().unwrap())
            })
            .collect();
        assert_eq!(found, records);
    }

    #[tokio::test]
    async fn the_first_form_is_read_and_a_later_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c1.json");
        let text = r#"{"version":1,"cluster":"c1","id":1,"entries":{"KIND":{"10.1.0.7":"{}"}}}"#;
        let kind = serde_json::to_string(&Kind::Ips).unwrap();
        let text = text.replace("\"KIND\"", &kind);
        std::fs::write(&path, &text).unwrap();
        let saved = read(&path).await.unwrap().unwrap();
        assert_eq!(saved.iter().count(), 1);
        let age = saved.at.age(&Stamp::now().await).as_secs();
        assert!(age < 60, "its time is that of the file: {age} s");
        // What a later version writes may look like anything but for its number.
        std::fs::write(&path, r#"{"version":3,"cluster":["c1"],"entries":7}"#).unwrap();
        assert!(read(&path).await.unwrap().is_none());
        for bad in ["", "{", r#"{"version":2}"#, r#"{"version":"2"}"#] {
            std::fs::write(&path, bad).unwrap();
            assert!(read(&path).await.unwrap_err().to_string().contains("c1.json"), "{bad}");
        }
    }
}
