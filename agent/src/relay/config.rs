//! `relay.yaml`: one typed structure; all that is wrong with it is found before anything starts.

use crate::config::{Cluster, Etcd, Log, Metrics};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tombolo_base::ids::ClusterId;
use tombolo_clustermesh::follower::Limits;
use tombolo_clustermesh::relay as mesh;

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Where the command line looks for the relay.
pub(crate) const DEFAULT_SOCKET: &str = "/run/tombolo/relay.sock";

/// The whole file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RelayFile {
    /// The cluster whose agents read the mirrors.
    pub(crate) cluster: Cluster,
    /// What is mirrored.
    pub(crate) relay: Relay,
    /// The cluster's own etcd, where the mirrors are written. Required.
    pub(crate) etcd: Option<Etcd>,
    /// The local API.
    pub(crate) api: Api,
    /// Prometheus metrics.
    pub(crate) metrics: Metrics,
    /// Logs.
    pub(crate) log: Log,
}

/// `relay`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Relay {
    /// This relay's name, its own among the relays of the cluster; empty = the host name.
    pub(crate) name: String,
    /// A folder with one etcd client file for each cluster, named after it. Required.
    pub(crate) folder: PathBuf,
    /// Accept `http://` endpoints in these files.
    pub(crate) allow_plaintext: bool,
    /// Most entries that are taken of one cluster.
    pub(crate) max_entries: u32,
    /// Most MiB of keys and values that are taken of one cluster.
    pub(crate) max_mib: u32,
    /// How long the mirrors stay when no relay runs.
    pub(crate) lease_secs: u32,
    /// How long a removed cluster's entries stay after its configuration went.
    pub(crate) removal_grace_secs: u32,
    /// Write `cilium/.heartbeat` too, where no agent and no clustermesh-apiserver does.
    pub(crate) heartbeat: bool,
}

impl Default for Relay {
    fn default() -> Self {
        Self {
            name: String::new(),
            folder: PathBuf::new(),
            allow_plaintext: false,
            max_entries: 1_000_000,
            max_mib: 512,
            lease_secs: 86_400,
            removal_grace_secs: 180,
            heartbeat: false,
        }
    }
}

/// `api`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Api {
    /// Unix socket of the local API (mode 0600).
    pub(crate) socket: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into() }
    }
}

/// Whether a file is a relay's configuration rather than an agent's.
pub(crate) fn is_relay(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("relay:"))
}

/// Reads and checks the file.
///
/// # Errors
/// All mistakes, each with file, key, reason and remedy.
pub(crate) fn load(path: &Path) -> Result<(RelayFile, mesh::RelayConfig), Vec<String>> {
    let named = |problem: String| format!("{}: {problem}", path.display());
    let cannot =
        |error: std::io::Error| vec![named(format!("cannot be read: {error} (check path and permissions)"))];
    let size = std::fs::metadata(path).map_err(cannot)?.len();
    if size > MAX_BYTES {
        return Err(vec![named(format!("{size} bytes is too large (a relay.yaml has some 500)"))]);
    }
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    let file = parse(&text).map_err(|problem| vec![named(problem)])?;
    let config = check(&file).map_err(|problems| problems.into_iter().map(named).collect::<Vec<_>>())?;
    Ok((file, config))
}

fn parse(text: &str) -> Result<RelayFile, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| {
        let text = error.without_snippet().to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("is no YAML: {text} (correct the line named, or the one above it)")
    })?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let place = error.path().to_string();
        format!("{place}: {} (docs/clustermesh.md lists the keys)", error.into_inner())
    })
}

/// What the values mean together.
fn check(file: &RelayFile) -> Result<mesh::RelayConfig, Vec<String>> {
    let mut problems = Vec::new();
    let RelayFile { cluster, relay, etcd, .. } = file;
    if cluster.name.is_none() {
        problems
            .push("cluster.name: is missing (give the name of the cluster whose etcd this is)".to_owned());
    }
    let id = ClusterId::new(cluster.id, cluster.max_connected_clusters);
    if let Err(error) = &id {
        problems.push(format!("cluster.id: {error} (give that cluster's number)"));
    }
    if relay.folder.as_os_str().is_empty() {
        problems.push("relay.folder: is missing (name the folder with a file for each cluster)".to_owned());
    }
    if etcd.is_none() {
        problems
            .push("etcd: is missing (give endpoints, ca, cert and key of the cluster's own etcd)".to_owned());
    }
    for flaw in etcd.iter().flat_map(Etcd::flaws) {
        problems.push(format!("{}: {} ({})", flaw.key, flaw.reason, flaw.remedy));
    }
    if !(60..=1_000_000).contains(&relay.lease_secs) {
        let text =
            "give 60 to 1000000 seconds; a short time removes the mirrors when no relay runs that long";
        problems.push(format!("relay.lease_secs: {} ({text})", relay.lease_secs));
    }
    if relay.max_entries == 0 || relay.max_mib == 0 {
        problems.push(
            "relay.max_entries, relay.max_mib: 0 takes nothing (leave them out for the defaults)".to_owned(),
        );
    }
    let name = match relay.name.as_str() {
        "" => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
        name => name.to_owned(),
    };
    if name.is_empty() || name.len() > 253 {
        problems.push("relay.name: is no name (give one of 1 to 253 characters)".to_owned());
    }
    let (Some(cluster_name), Ok(id), Some(etcd), true) = (&cluster.name, id, etcd, problems.is_empty())
    else {
        return Err(problems);
    };
    let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let secs = |secs: u32| Duration::from_secs(u64::from(secs));
    let base = mesh::RelayConfig::new(*cluster_name, name.into(), relay.folder.clone(), etcd.client());
    Ok(mesh::RelayConfig {
        cluster_id: Some(id),
        max: cluster.max_connected_clusters,
        allow_plaintext: relay.allow_plaintext,
        lease_ttl: secs(relay.lease_secs),
        removal_grace: secs(relay.removal_grace_secs),
        heartbeat: relay.heartbeat.then(|| Duration::from_secs(60)),
        limits: Limits {
            max_entries: number(relay.max_entries),
            max_bytes: number(relay.max_mib).saturating_mul(1 << 20),
            ..Limits::default()
        },
        ..base
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "cluster: {name: east, id: 1}\nrelay: {folder: /etc/tombolo/remotes}\netcd: {endpoints: [\"https://e:2379\"], ca: a, cert: b, key: c}\n";

    fn problems(text: &str) -> Vec<String> {
        parse(text).map_or_else(|problem| vec![problem], |file| check(&file).err().unwrap_or_default())
    }

    #[test]
    fn a_short_file_is_enough_and_every_mistake_is_told() {
        assert_eq!(problems(GOOD), Vec::<String>::new());
        let config = check(&parse(GOOD).unwrap()).unwrap();
        assert_eq!((config.lease_ttl, config.heartbeat), (Duration::from_secs(86_400), None));
        assert!(!config.name.is_empty() && is_relay(GOOD));
        assert!(!is_relay("cluster: {name: east}\nclustermesh:\n  relay: true\n"));
        let nothing = problems("relay: {lease_secs: 1, max_mib: 0}\n");
        for key in
            ["cluster.name", "cluster.id", "relay.folder", "etcd:", "relay.lease_secs", "relay.max_mib"]
        {
            assert!(nothing.iter().any(|problem| problem.contains(key)), "{key}: {nothing:?}");
        }
        let plain = GOOD.replace("https://", "http://");
        assert!(problems(&plain)[0].contains("etcd.endpoints[0]"), "{:?}", problems(&plain));
        assert!(problems("relay: {folders: /x}")[0].contains("folders"));
        assert!(problems("relay: [")[0].contains("no YAML"));
    }
}
