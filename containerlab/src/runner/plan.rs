//! What is to run: the topology and `lab.yaml` boiled down to node and link specifications that the supervisor
//! compares with what it runs already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::enter::Bind;
use crate::error::LabError;
use crate::file::{self, LinkType, Node, Topology};
use crate::settings::{Image, Settings};

/// Where the `tombolo` program is inside every node.
pub const PROGRAM_IN_NODE: &str = "/usr/local/bin/tombolo";
/// The cluster's manifest folder inside a node.
pub const MANIFESTS_IN_NODE: &str = "/etc/tombolo/manifests";
/// MTU of a link that names none, as containerlab's.
const DEFAULT_MTU: u32 = 9500;

/// A whole lab, ready to be deployed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The lab's name.
    pub name: String,
    /// The topology file.
    pub file: PathBuf,
    /// The lab directory.
    pub lab_dir: PathBuf,
    /// The `tombolo` program on the host.
    pub program: PathBuf,
    /// Nodes by short name.
    pub nodes: BTreeMap<String, NodeSpec>,
    /// Links in file order.
    pub links: Vec<LinkSpec>,
    /// The clusters of the lab.
    pub clusters: Vec<ClusterSpec>,
}

/// One cluster, as the controllers need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Its name.
    pub name: String,
    /// Its running manifest folder.
    pub manifests: PathBuf,
    /// The nodes that run pods.
    pub nodes: Vec<String>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Short name.
    pub name: String,
    /// Host name inside.
    pub hostname: String,
    /// The image named in the file, for people.
    pub image: String,
    /// Host paths that appear in the node.
    pub binds: Vec<Bind>,
    /// Directories that are the node's own and empty at first.
    pub private: Vec<PathBuf>,
    /// Directories to make.
    pub directories: Vec<OwnedDirectory>,
    /// Kernel settings of the node's namespace, `net.ipv4.ip_forward` form.
    pub sysctls: BTreeMap<String, String>,
    /// The supervised command; empty for a plain host.
    pub argv: Vec<String>,
    /// Whether the command is started again when it ends.
    pub restart: bool,
    /// The command's environment.
    pub env: BTreeMap<String, String>,
    /// Commands run once after the command was started.
    pub exec: Vec<Vec<String>>,
    /// Wait so long before the command is started, in seconds.
    pub startup_delay_secs: u32,
    /// When the node counts as up.
    pub ready: Option<ReadySpec>,
    /// Its interfaces.
    pub interfaces: Vec<InterfaceSpec>,
    /// Whether the init plays the kubelet for the pods of this node.
    pub kubelet: bool,
    /// Labels, for people and for `inspect`.
    pub labels: BTreeMap<String, String>,
}

/// A directory with an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedDirectory {
    /// Path in the node.
    pub path: PathBuf,
    /// User name.
    pub owner: String,
    /// Group name.
    pub group: String,
    /// Permission bits.
    pub mode: u32,
}

/// A command that succeeds once the node is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadySpec {
    /// The command.
    pub argv: Vec<String>,
    /// Give up after so many seconds.
    pub timeout_secs: u64,
}

/// An interface of a node with the addresses the file gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceSpec {
    /// Its name.
    pub name: String,
    /// An IPv4 address for it.
    pub ipv4: Option<Ipv4Net>,
    /// An IPv6 address for it.
    pub ipv6: Option<Ipv6Net>,
}

/// A veth link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// One end.
    pub a: EndSpec,
    /// The other.
    pub b: EndSpec,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndSpec {
    /// The node; `None` for the lab's enclosing namespace.
    pub node: Option<String>,
    /// Interface name.
    pub interface: String,
    /// MAC address, if the file gives one.
    pub mac: Option<[u8; 6]>,
}

impl Plan {
    /// Makes the plan of a topology.
    ///
    /// # Errors
    /// A command line that cannot be split, a program missing on the host, a bind whose source does not exist, an
    /// interface name that is too long.
    pub fn new(topology: &Topology, settings: &Settings, program: &Path) -> Result<Self, LabError> {
        let mut links = Vec::new();
        for link in &topology.links {
            let mtu = link.mtu.unwrap_or(DEFAULT_MTU);
            match &link.link_type {
                LinkType::Veth { a, b } | LinkType::VethStitch { a, b } => {
                    links.push(LinkSpec { a: end(a)?, b: end(b)?, mtu });
                }
                LinkType::Host { endpoint, host_interface } => {
                    let host = EndSpec { node: None, interface: checked_name(host_interface)?, mac: None };
                    links.push(LinkSpec { a: end(endpoint)?, b: host, mtu });
                }
                // `file::undeployable` has told the user.
                _ => {}
            }
        }
        let mut nodes = BTreeMap::new();
        for (name, node) in &topology.nodes {
            nodes.insert(name.clone(), node_spec(topology, settings, node, program)?);
        }
        let clusters = settings.clusters.iter().map(|cluster| ClusterSpec {
            name: cluster.name.clone(),
            manifests: cluster.live_manifests(&topology.lab_dir),
            nodes: cluster.nodes.clone(),
        });
        Ok(Self {
            name: topology.name.clone(),
            file: topology.file.clone(),
            lab_dir: topology.lab_dir.clone(),
            program: program.to_owned(),
            nodes,
            links,
            clusters: clusters.collect(),
        })
    }
}

fn end(endpoint: &file::Endpoint) -> Result<EndSpec, LabError> {
    Ok(EndSpec {
        node: Some(endpoint.node.clone()),
        interface: checked_name(&endpoint.interface)?,
        mac: endpoint.mac,
    })
}

fn checked_name(name: &str) -> Result<String, LabError> {
    if name.is_empty() || name.len() > 15 {
        return Err(LabError::Plan {
            subject: format!("interface {name:?}"),
            reason: "the kernel takes names of 1 to 15 bytes".to_owned(),
            remedy: "choose a shorter interface name in the topology file".to_owned(),
        });
    }
    Ok(name.to_owned())
}

fn node_spec(
    topology: &Topology,
    settings: &Settings,
    node: &Node,
    program: &Path,
) -> Result<NodeSpec, LabError> {
    let none = Image::default();
    let image = match &node.image {
        Some(name) => match settings.image(name) {
            Some(image) => image,
            None if settings.images.is_empty() => &none,
            None => {
                return Err(LabError::Plan {
                    subject: format!("node {} (line {})", node.name, node.line),
                    reason: format!("image {name:?} is not in the image table"),
                    remedy: "add it under `images:` of lab.yaml beside the topology file".to_owned(),
                });
            }
        },
        None => &none,
    };
    check_programs(node, image)?;

    let mut argv = words(node, node.entrypoint.as_deref().unwrap_or_default())?;
    match &node.cmd {
        Some(cmd) => argv.extend(words(node, cmd)?),
        None if argv.is_empty() => argv = words(node, &image.cmd)?,
        None => {}
    }
    let mut env = image.env.clone();
    env.extend(node.env.clone());
    let ready = match &image.ready {
        Some(ready) => {
            Some(ReadySpec { argv: words(node, &ready.command)?, timeout_secs: ready.timeout_secs })
        }
        None => None,
    };
    Ok(NodeSpec {
        name: node.name.clone(),
        hostname: node.host_name().to_owned(),
        image: node.image.clone().unwrap_or_default(),
        binds: binds(node, program),
        private: image.private.iter().map(PathBuf::from).collect(),
        directories: image.directories.iter().map(directory).collect(),
        sysctls: node.sysctls.clone(),
        argv,
        restart: !node.auto_remove && node.restart_policy.as_deref() != Some("no"),
        env,
        exec: node.exec.iter().map(|line| words(node, line)).collect::<Result<_, _>>()?,
        startup_delay_secs: node.startup_delay_secs,
        ready,
        interfaces: interfaces(topology, &node.name),
        kubelet: settings.clusters.iter().any(|cluster| cluster.nodes.contains(&node.name)),
        labels: node.labels.clone(),
    })
}

fn words(node: &Node, line: &str) -> Result<Vec<String>, LabError> {
    file::split_words(line).map_err(|error| LabError::Plan {
        subject: format!("node {} (line {}), command {line:?}", node.name, node.line),
        reason: error.to_string(),
        remedy: "close every quote; use sh -c '...' for shell syntax".to_owned(),
    })
}

fn check_programs(node: &Node, image: &Image) -> Result<(), LabError> {
    for program in &image.programs {
        if !found(program) {
            return Err(LabError::Plan {
                subject: format!("node {}", node.name),
                reason: format!("its image needs the program {program}, which is not on this host"),
                remedy: format!("apt-get install --no-install-recommends {}", image.package),
            });
        }
    }
    Ok(())
}

fn found(program: &str) -> bool {
    if program == "tombolo" || program.starts_with('/') {
        return program == "tombolo" || Path::new(program).exists();
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    path.split(':').any(|directory| Path::new(directory).join(program).exists())
}

fn binds(node: &Node, program: &Path) -> Vec<Bind> {
    let mut binds = vec![new_bind(program, Path::new(PROGRAM_IN_NODE), true)];
    for bind in node.binds.iter().chain(&node.volumes).filter(|bind| !bind.source.is_empty()) {
        let (host, place) = (Path::new(&bind.source), Path::new(&bind.destination));
        binds.push(new_bind(host, place, bind.read_only()));
    }
    // Parents before children, so that a bind inside another bind's directory lands in it.
    binds.sort_by(|a, b| a.node.cmp(&b.node));
    binds
}

fn new_bind(host: &Path, node: &Path, read_only: bool) -> Bind {
    Bind { host: host.to_owned(), node: node.to_owned(), read_only, revision: crate::enter::revision(host) }
}

fn directory(directory: &crate::settings::Directory) -> OwnedDirectory {
    OwnedDirectory {
        path: PathBuf::from(&directory.path),
        owner: directory.owner.clone(),
        group: directory.group.clone(),
        mode: directory.mode_bits().unwrap_or(0o755),
    }
}

fn interfaces(topology: &Topology, node: &str) -> Vec<InterfaceSpec> {
    let deployed = topology.links.iter().filter(|link| {
        matches!(link.link_type, LinkType::Veth { .. } | LinkType::VethStitch { .. } | LinkType::Host { .. })
    });
    deployed
        .flat_map(file::Link::endpoints)
        .filter(|endpoint| endpoint.node == node)
        .map(|endpoint| InterfaceSpec {
            name: endpoint.interface.clone(),
            ipv4: endpoint.ipv4,
            ipv6: endpoint.ipv6,
        })
        .collect()
}
