//! Endpoints on disk: one JSON file each, and one for the memory of the address pools. Written to a new file, synced and
//! renamed, so that an agent or a machine that dies in between leaves the old state or the new one.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::gate::EndpointSpec;
use crate::ipam::PoolMemory;

/// The layout of the files; another number is not read.
const VERSION: u32 = 1;
/// The largest file that is read, in bytes.
const MAX_BYTES: u64 = 256 * 1024;

/// How far an endpoint's life had come when it was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    Creating,
    Ready,
    Deleting,
}

/// An endpoint as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) spec: EndpointSpec,
    pub(crate) stage: Stage,
    pub(crate) identity: Option<u32>,
    /// `source:key=value;...`
    pub(crate) labels: String,
}

impl Record {
    pub(crate) fn new(spec: EndpointSpec) -> Self {
        Self { version: VERSION, spec, stage: Stage::Creating, identity: None, labels: String::new() }
    }
}

/// What is kept besides the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) version: u32,
    /// The endpoint number handed out last.
    pub(crate) last_id: u16,
    pub(crate) pools: Vec<PoolMemory>,
}

/// The directory of the files.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Opens, or makes, `state_dir/endpoints` (mode 0700).
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = state_dir.join("endpoints");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All endpoints that can be read. A file that cannot is put aside as `NAME.bad` with a warning: it costs that
    /// endpoint only.
    pub(crate) fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with('.') || name == "memory.json" || !name.ends_with(".json") {
                continue;
            }
            match read::<Record>(&path) {
                Ok(record) if record.version == VERSION && name == file_name(record.spec.id) => {
                    records.push(record)
                }
                Ok(record) => {
                    put_aside(&path, &format!("version {} or number {}", record.version, record.spec.id))
                }
                Err(error) => put_aside(&path, &error.to_string()),
            }
        }
        records.sort_by_key(|record| record.spec.id);
        Ok(records)
    }

    pub(crate) fn load_memory(&self) -> Memory {
        let path = self.path.join("memory.json");
        match read::<Memory>(&path) {
            Ok(memory) if memory.version == VERSION => memory,
            Ok(_) => Memory::default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Memory::default(),
            Err(error) => {
                put_aside(&path, &error.to_string());
                Memory::default()
            }
        }
    }

    /// Writes an endpoint. One that is being made is not synced: if the machine dies it is taken away anyway, and an ADD
    /// must not wait for the disk at each of its steps.
    pub(crate) fn store(&self, record: &Record) -> io::Result<()> {
        self.write(&file_name(record.spec.id), record, record.stage != Stage::Creating)
    }

    pub(crate) fn store_memory(&self, last_id: u16, pools: Vec<PoolMemory>) -> io::Result<()> {
        self.write("memory.json", &Memory { version: VERSION, last_id, pools }, true)
    }

    /// Removes an endpoint's file; a missing one is fine. Not synced: one that comes back after a crash of the machine has
    /// no interface any more and is taken away.
    pub(crate) fn remove(&self, id: u16) -> io::Result<()> {
        match fs::remove_file(self.path.join(file_name(id))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T, durable: bool) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
        let temporary = self.path.join(format!(".{name}"));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        if durable {
            // Before the rename: else the new name could point at an empty file after a crash.
            file.sync_all()?;
        }
        fs::rename(&temporary, self.path.join(name))?;
        if durable { fs::File::open(&self.path)?.sync_all() } else { Ok(()) }
    }
}

fn file_name(id: u16) -> String {
    format!("{id}.json")
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    if fs::metadata(path)?.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(&fs::read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn put_aside(path: &Path, reason: &str) {
    tracing::warn!(path = %path.display(), reason, "a state file cannot be used and is put aside as .bad");
    if let Err(error) = fs::rename(path, path.with_extension("json.bad")) {
        tracing::warn!(path = %path.display(), %error, "the state file cannot be put aside");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tombolo_topology::HostPort;

    pub(crate) fn spec(id: u16) -> EndpointSpec {
        EndpointSpec {
            id,
            container_id: format!("c{id}"),
            ifname: "eth0".into(),
            netns: "/run/netns/x".into(),
            namespace: "default".into(),
            pod: "web".into(),
            pod_uid: None,
            addresses: vec!["10.1.1.2".parse().unwrap(), "fd00:10:1:1::2".parse().unwrap()],
            host_interface: "tb0123456789a".into(),
            ifindex: 7,
            mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            port_mappings: [HostPort { host: None, host_port: 8080, protocol: 6, port: 80 }].into(),
            queued: false,
        }
    }

    #[test]
    fn records_round_trip_and_a_broken_file_costs_that_endpoint_only() {
        let state = tempfile::tempdir().unwrap();
        let directory = Directory::open(state.path()).unwrap();
        let record = Record { stage: Stage::Ready, identity: Some(66001), ..Record::new(spec(7)) };
        directory.store(&record).unwrap();
        directory.store(&Record::new(spec(9))).unwrap();
        fs::write(directory.path().join("8.json"), "{").unwrap();
        fs::write(directory.path().join("10.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(directory.load().unwrap(), [record, Record::new(spec(9))]);
        assert!(
            directory.path().join("8.json.bad").exists() && directory.path().join("10.json.bad").exists()
        );
        directory.remove(9).unwrap();
        directory.remove(9).unwrap();
        assert_eq!(directory.load().unwrap().len(), 1);
    }

    #[test]
    fn the_pools_memory_round_trips_and_a_broken_one_starts_afresh() {
        let state = tempfile::tempdir().unwrap();
        let directory = Directory::open(state.path()).unwrap();
        assert_eq!(directory.load_memory(), Memory::default());
        let mut ipam = crate::ipam::Ipam::new(&["10.1.1.0/24".parse().unwrap()], &[]).unwrap();
        let address = ipam.allocate().unwrap()[0];
        ipam.release(address);
        directory.store_memory(7, ipam.memory()).unwrap();
        let memory = directory.load_memory();
        assert_eq!((memory.last_id, memory.pools), (7, ipam.memory()));
        fs::write(directory.path().join("memory.json"), "[]").unwrap();
        assert_eq!(directory.load_memory(), Memory::default());
    }
}
