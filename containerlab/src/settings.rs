//! `lab.yaml`, beside the topology file: what only this runner needs and containerlab does not know. How an image
//! name runs as programs of the host, which clusters the lab holds, which certificates its own CA issues.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file::substitute;

/// Largest `lab.yaml` that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why `lab.yaml` could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file could not be read.
    #[error(
        "reading the lab settings {path}: {source}; put a lab.yaml beside the topology file, or remove it altogether"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than any sensible one.
    #[error("the lab settings {path} have {bytes} bytes, more than {MAX_BYTES}; is this the right file?")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Not YAML, or not of this shape.
    #[error("the lab settings {path}: {message}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Parser's message with line and column.
        message: String,
    },
    /// Readable but contradictory.
    #[error("the lab settings {path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Path of the key.
        key: String,
        /// What is wrong and what is allowed.
        message: String,
    },
}

/// The content of `lab.yaml`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What `tombolo lab test` checks.
    pub checks: Checks,
    /// Image name (with or without tag or digest) to how it runs on the host.
    pub images: BTreeMap<String, Image>,
    /// The clusters of the lab.
    pub clusters: Vec<Cluster>,
    /// Certificates of the lab's own CA.
    pub certificates: Certificates,
}

/// Which checks a lab is made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checks {
    /// All of them: traffic, routers, the wire, faults.
    #[default]
    All,
    /// What can happen to the etcds of a mesh, while connections run between its clusters.
    Mesh,
}

/// How an image runs as programs of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    /// Programs that must exist on the host (name in PATH or absolute path); checked before anything is deployed.
    pub programs: Vec<String>,
    /// Debian package that brings them, named in the error when one is missing.
    pub package: String,
    /// Command line when the node has neither `cmd` nor `entrypoint`; empty: nothing runs, a plain host.
    pub cmd: String,
    /// Directories to make in the node's own file system before the command starts.
    pub directories: Vec<Directory>,
    /// Directories of the host to hide behind an empty one (so that a daemon's state is the node's own).
    pub private: Vec<String>,
    /// Environment under the node's own `env`.
    pub env: BTreeMap<String, String>,
    /// When the node counts as up; without it, as soon as the command runs.
    pub ready: Option<Readiness>,
}

/// A directory in a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// Absolute path in the node.
    pub path: String,
    /// User name on the host, default `root`.
    #[serde(default = "root")]
    pub owner: String,
    /// Group name on the host, default `root`.
    #[serde(default = "root")]
    pub group: String,
    /// Octal mode as text, default `0755`.
    #[serde(default = "mode_0755")]
    pub mode: String,
}

impl Directory {
    /// The mode's bits; `None` if it is not octal (refused at load).
    pub fn mode_bits(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|bits| *bits <= 0o7777)
    }
}

/// How the node tells that it is up: one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Readiness {
    /// Command line, run inside the node, repeated until it succeeds.
    #[serde(default)]
    pub command: String,
    /// The node's own command says so, as to systemd (`READY=1` to `NOTIFY_SOCKET`).
    #[serde(default)]
    pub notify: bool,
    /// Give up after so many seconds.
    #[serde(default = "ready_timeout_secs")]
    pub timeout_secs: u64,
}

/// One cluster of the lab.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Name, as in the agents' configuration.
    pub name: String,
    /// Cluster id, 1 to 511.
    pub id: u32,
    /// Folders of manifests, relative to the topology file; copied to `LAB_DIR/NAME/manifests` at `up`, the later over the earlier.
    pub manifests: Vec<PathBuf>,
    /// Folders of etcd client files of other clusters, copied to `LAB_DIR/NAME/clustermesh` in the same way.
    #[serde(default)]
    pub clustermesh: Vec<PathBuf>,
    /// Folders of etcd client files that the cluster's relays read, copied to `LAB_DIR/NAME/remotes` in the same way.
    #[serde(default)]
    pub remotes: Vec<PathBuf>,
    /// Nodes that run a relay (`tombolo relay`): the agents read the other clusters through them.
    #[serde(default)]
    pub relays: Vec<String>,
    /// Nodes whose pods the node init runs (short node names).
    pub nodes: Vec<String>,
    /// The node that runs the cluster's etcd.
    pub etcd: String,
    /// All nodes that run a member of it; empty: that one alone.
    #[serde(default)]
    pub members: Vec<String>,
    /// What the cluster's pods ask for names; without it services stand in their hosts files.
    #[serde(default)]
    pub dns: Option<Dns>,
}

/// What is written into the pods' `resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Addresses of the cluster's DNS service.
    pub servers: Vec<IpAddr>,
    /// The domain of the cluster's services.
    #[serde(default = "cluster_domain")]
    pub domain: String,
}

fn cluster_domain() -> String {
    "cluster.local".to_owned()
}

impl Cluster {
    /// Where the running lab keeps this cluster's manifests: agent, kubelet and controllers all use this folder.
    pub fn live_manifests(&self, lab_dir: &Path) -> PathBuf {
        lab_dir.join(&self.name).join("manifests")
    }

    /// Where the running lab keeps the etcd client files of other clusters, for labs whose agents read them there.
    pub fn live_clustermesh(&self, lab_dir: &Path) -> PathBuf {
        lab_dir.join(&self.name).join("clustermesh")
    }

    /// Where the running lab keeps the etcd client files that the cluster's relays read.
    pub fn live_remotes(&self, lab_dir: &Path) -> PathBuf {
        lab_dir.join(&self.name).join("remotes")
    }
}

/// Certificates to issue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificates {
    /// Common name of the CA; empty: no CA, nothing is issued.
    pub ca: String,
    /// What the CA issues, by file name without suffix: `pki/NAME.crt` and `pki/NAME.key` in the lab directory.
    pub issue: BTreeMap<String, Certificate>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Common name; etcd takes it for the user name.
    pub common_name: String,
    /// DNS names of a server.
    #[serde(default)]
    pub dns: Vec<String>,
    /// Addresses of a server.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// `server`, `client`, or both.
    pub usages: Vec<Usage>,
}

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
}

fn root() -> String {
    "root".to_owned()
}

fn mode_0755() -> String {
    "0755".to_owned()
}

fn ready_timeout_secs() -> u64 {
    20
}

impl Settings {
    /// Reads `lab.yaml` beside the topology file. A lab without one has no images, clusters or certificates: its
    /// nodes are plain hosts.
    ///
    /// # Errors
    /// The file exists but cannot be read, is too large, is not YAML of this shape, or contradicts itself.
    pub fn beside(topology_file: &Path, env: &BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let path = topology_file.with_file_name("lab.yaml");
        if path.exists() { Self::load(&path, env) } else { Ok(Self::default()) }
    }

    /// Reads and checks one settings file. Variables in it are replaced as in a topology file.
    ///
    /// # Errors
    /// As [`Settings::beside`].
    pub fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<Self, SettingsError> {
        let read = |source| SettingsError::Read { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_BYTES {
            return Err(SettingsError::TooLarge { path: path.to_owned(), bytes });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&substitute(&text, env).0, path)
    }

    /// Parses the text of a settings file; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Settings::beside`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        // One line with line and column; the file is at hand.
        let options = serde_saphyr::options! { with_snippet: false };
        let settings: Self = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| SettingsError::Shape { path: path.to_owned(), message: error.to_string() })?;
        settings.check(path)?;
        Ok(settings)
    }

    /// How an image of the topology file runs here: the entry with exactly this name, else the one without tag and
    /// digest, else the one named by the last component alone (`frr` serves `quay.io/frrouting/frr:8.4.4`).
    pub fn image(&self, image: &str) -> Option<&Image> {
        let plain = without_tag(image);
        let last = plain.rsplit('/').next().unwrap_or(plain);
        [image, plain, last].into_iter().find_map(|name| self.images.get(name))
    }

    /// Whether an image runs here. Without a table every image does: as a plain host.
    pub fn runs(&self, image: &str) -> bool {
        self.images.is_empty() || self.image(image).is_some()
    }

    fn check(&self, path: &Path) -> Result<(), SettingsError> {
        let wrong =
            |key: String, message: String| SettingsError::Value { path: path.to_owned(), key, message };
        for (name, image) in &self.images {
            if image.ready.as_ref().is_some_and(|ready| ready.notify != ready.command.is_empty()) {
                let message = "needs either a command, or notify: true, and not both";
                return Err(wrong(format!("images.{name}.ready"), message.to_owned()));
            }
            for directory in &image.directories {
                if !directory.path.starts_with('/') || directory.mode_bits().is_none() {
                    let message = format!(
                        "{} mode {}: needs an absolute path and an octal mode such as \"0755\"",
                        directory.path, directory.mode
                    );
                    return Err(wrong(format!("images.{name}.directories"), message));
                }
            }
        }
        for (index, cluster) in self.clusters.iter().enumerate() {
            if !(1..=511).contains(&cluster.id) {
                return Err(wrong(
                    format!("clusters[{index}].id"),
                    format!("{} is not within 1 to 511", cluster.id),
                ));
            }
            if cluster.dns.as_ref().is_some_and(|dns| dns.servers.is_empty() || dns.servers.len() > 3) {
                let message = "resolv.conf holds one to three servers";
                return Err(wrong(format!("clusters[{index}].dns.servers"), message.to_owned()));
            }
            if !file_name(&cluster.name) {
                let message = format!("{:?}: use letters, digits, '-' and '.'", cluster.name);
                return Err(wrong(format!("clusters[{index}].name"), message));
            }
        }
        for (name, certificate) in &self.certificates.issue {
            if !file_name(name) || certificate.usages.is_empty() {
                let message = "the name becomes a file name (letters, digits, '-', '.'), and usages needs server, client or both";
                return Err(wrong(format!("certificates.issue.{name}"), message.to_owned()));
            }
        }
        Ok(())
    }
}

/// `registry/name:tag@digest` without tag and digest. A port of the registry is not a tag.
fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn file_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}
