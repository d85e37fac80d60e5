//! What is to run: the topology and `lab.yaml` boiled down to node and link specifications that the supervisor
//! compares with what it runs already.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::enter::Bind;
use crate::error::LabError;
use crate::file::{self, About, LinkType, Node, Notice, Topology};
use crate::settings::{Dns, Image, Settings};

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
    /// Nodes and links of the file that are left out, in words.
    pub skipped: Vec<String>,
}

/// One cluster, as the controllers need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Its name.
    pub name: String,
    /// Its running manifest folder.
    pub manifests: PathBuf,
    /// The folders that it was copied from: with others the lab is built anew.
    pub sources: Vec<PathBuf>,
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
    /// When the command is started again after it ended.
    pub restart: Restart,
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
    /// Interfaces that the file gives it, of links that are not deployed: an exec line may fail for want of one.
    pub lacks: Vec<String>,
    /// Whether the init plays the kubelet for the pods of this node.
    pub kubelet: bool,
    /// What its pods ask for names.
    pub dns: Option<Dns>,
    /// Labels, for people and for `inspect`.
    pub labels: BTreeMap<String, String>,
}

/// When a command is started again after it ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Whatever its exit status was.
    #[default]
    Always,
    /// Unless its exit status was 0.
    OnFailure,
    /// Never.
    Never,
}

impl Restart {
    /// Whether a command that ended, with success or not, is started again.
    #[must_use]
    pub fn again(self, success: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !success,
            Self::Never => false,
        }
    }
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

/// When a node is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadySpec {
    /// How that is known.
    pub sign: Sign,
    /// Give up after so many seconds.
    pub timeout_secs: u64,
}

/// How it is known that a node is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sign {
    /// Its command says so (sd_notify(3), `READY=1`).
    Notify,
    /// This command succeeds.
    Command(Vec<String>),
}

impl Sign {
    /// What is missing as long as the node is not up.
    #[must_use]
    pub fn missing(&self) -> String {
        match self {
            Self::Notify => "its command has not said READY=1 (sd_notify)".to_owned(),
            Self::Command(argv) => format!("{:?} does not succeed", argv.join(" ")),
        }
    }
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
    /// Makes the plan of a topology. `notices` are those of [`file::undeployable`]: what they skip is left out, and
    /// nothing else is.
    ///
    /// # Errors
    /// A command line that cannot be split, a program missing on the host, a cluster with a node that is none, or
    /// nothing that can be deployed.
    pub fn new(
        topology: &Topology,
        settings: &Settings,
        notices: &[Notice],
        program: &Path,
    ) -> Result<Self, LabError> {
        check_clusters(topology, settings)?;
        let skips = |about: &About| notices.iter().any(|notice| notice.skips && notice.about == *about);
        let (mut links, mut deployed) = (Vec::new(), Vec::new());
        for (position, link) in topology.links.iter().enumerate() {
            if skips(&About::Link(position)) {
                continue;
            }
            links.push(link_spec(link)?);
            deployed.push(link);
        }
        let mut nodes = BTreeMap::new();
        for (name, node) in &topology.nodes {
            if !skips(&About::Node(name.clone())) {
                let interfaces = Interfaces::of(name, topology, &deployed);
                nodes.insert(name.clone(), node_spec(settings, node, interfaces, program)?);
            }
        }
        let skipped: Vec<String> =
            notices.iter().filter(|notice| notice.skips).map(|notice| notice.subject.clone()).collect();
        if nodes.is_empty() {
            return Err(LabError::Plan {
                subject: format!("lab {}", topology.name),
                reason: format!("none of its nodes can be deployed here ({})", skipped.join(", ")),
                remedy: "the warnings above say why".to_owned(),
            });
        }
        let clusters = settings.clusters.iter().map(|cluster| ClusterSpec {
            name: cluster.name.clone(),
            manifests: cluster.live_manifests(&topology.lab_dir),
            sources: cluster.manifests.clone(),
            nodes: cluster.nodes.iter().filter(|node| nodes.contains_key(*node)).cloned().collect(),
        });
        let clusters = clusters.collect();
        Ok(Self {
            name: topology.name.clone(),
            file: topology.file.clone(),
            lab_dir: topology.lab_dir.clone(),
            program: program.to_owned(),
            nodes,
            links,
            clusters,
            skipped,
        })
    }
}

/// A cluster's nodes must be in the topology file; that one of them cannot be deployed is another matter.
fn check_clusters(topology: &Topology, settings: &Settings) -> Result<(), LabError> {
    for cluster in &settings.clusters {
        if let Some(node) = cluster.nodes.iter().find(|node| !topology.nodes.contains_key(*node)) {
            let known: Vec<&str> = topology.nodes.keys().map(String::as_str).take(20).collect();
            return Err(LabError::Plan {
                subject: format!("lab.yaml, cluster {}", cluster.name),
                reason: format!("its node {node:?} is not in the topology file"),
                remedy: format!("use one of {}", known.join(", ")),
            });
        }
    }
    Ok(())
}

fn link_spec(link: &file::Link) -> Result<LinkSpec, LabError> {
    let mtu = link.mtu.unwrap_or(DEFAULT_MTU);
    match &link.link_type {
        LinkType::Veth { a, b } | LinkType::VethStitch { a, b } => Ok(LinkSpec { a: end(a), b: end(b), mtu }),
        LinkType::Host { endpoint, host_interface } => {
            let host = EndSpec { node: None, interface: host_interface.clone(), mac: None };
            Ok(LinkSpec { a: end(endpoint), b: host, mtu })
        }
        // A notice has skipped it; if one is ever forgotten, nothing is left out in silence.
        other => Err(LabError::Plan {
            subject: format!("link of type {} (line {})", other.name(), link.line),
            reason: "is not deployed".to_owned(),
            remedy: "remove it from the topology file".to_owned(),
        }),
    }
}

fn end(endpoint: &file::Endpoint) -> EndSpec {
    EndSpec { node: Some(endpoint.node.clone()), interface: endpoint.interface.clone(), mac: endpoint.mac }
}

/// What a node has of the interfaces that the file gives it.
struct Interfaces {
    deployed: Vec<InterfaceSpec>,
    lacking: Vec<String>,
}

impl Interfaces {
    fn of(node: &str, topology: &Topology, deployed: &[&file::Link]) -> Self {
        let of_node = |link: &&file::Link| -> Vec<InterfaceSpec> {
            let ends = link.endpoints().into_iter().filter(|end| end.node == node);
            ends.map(|end| InterfaceSpec { name: end.interface.clone(), ipv4: end.ipv4, ipv6: end.ipv6 })
                .collect()
        };
        let deployed: Vec<InterfaceSpec> = deployed.iter().flat_map(of_node).collect();
        let wanted = topology.links.iter().flat_map(|link| of_node(&link)).map(|interface| interface.name);
        let lacking =
            wanted.filter(|name| !deployed.iter().any(|interface| interface.name == *name)).collect();
        Self { deployed, lacking }
    }
}

fn node_spec(
    settings: &Settings,
    node: &Node,
    interfaces: Interfaces,
    program: &Path,
) -> Result<NodeSpec, LabError> {
    let none = Image::default();
    // An image that does not run here was skipped with its node.
    let image = node.image.as_deref().and_then(|name| settings.image(name)).unwrap_or(&none);
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
        // Nobody is there to say anything.
        Some(ready) if ready.notify && argv.is_empty() => None,
        Some(ready) => {
            let sign = if ready.notify { Sign::Notify } else { Sign::Command(words(node, &ready.command)?) };
            Some(ReadySpec { sign, timeout_secs: ready.timeout_secs })
        }
        None => None,
    };
    let home = settings.clusters.iter().find(|cluster| cluster.nodes.contains(&node.name));
    Ok(NodeSpec {
        name: node.name.clone(),
        hostname: node.host_name().to_owned(),
        image: node.image.clone().unwrap_or_default(),
        binds: binds(node, program),
        private: image.private.iter().map(PathBuf::from).collect(),
        directories: image.directories.iter().map(directory).collect(),
        sysctls: node.sysctls.clone(),
        argv,
        restart: match node.restart_policy.as_deref() {
            _ if node.auto_remove => Restart::Never,
            Some("no") => Restart::Never,
            Some("on-failure") => Restart::OnFailure,
            // `unless-stopped` differs only after a restart of the runtime, which a lab does not survive.
            _ => Restart::Always,
        },
        env,
        exec: node.exec.iter().map(|line| words(node, line)).collect::<Result<_, _>>()?,
        startup_delay_secs: node.startup_delay_secs,
        ready,
        interfaces: interfaces.deployed,
        lacks: interfaces.lacking,
        kubelet: home.is_some(),
        dns: home.and_then(|cluster| cluster.dns.clone()),
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
    for bind in &node.binds {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MIXED: &str = "name: x
topology:
  defaults: {kind: linux}
  nodes:
    a: {volumes: ['data:/data', '/host:/there']}
    b: {image: 'frr:9', restart-policy: on-failure}
    c: {image: 'unheard-of:1'}
    d: {kind: nokia_srlinux}
    e: {image: frr, restart-policy: 'no'}
    f: {auto-remove: true}
  links:
    - endpoints: [a:eth1, b:eth1]
    - endpoints: [a:eth2, c:eth1]
    - endpoints: [a:eth3, d:e1-1]
    - endpoints: [a:an-interface-name-too-long, b:eth2]
    - endpoints: [b:eth3, host:a-host-name-far-too-long]
    - endpoints: [b:eth4, host:b-out]
    - {type: veth-stitch, endpoints: [{node: a, interface: eth5}, {node: b, interface: eth5}]}
    - {type: dummy, endpoint: {node: a, interface: dum0}}
    - endpoints: [a:eth6, mgmt-net:a-mgmt]
    - endpoints: [a:eth7, macvlan:enp1s0]
    - {type: vxlan, endpoint: {node: a, interface: eth8}, remote: 192.0.2.1, vni: 1, dst-port: 4789}
";

    fn plan(text: &str, settings: &str) -> (Topology, Vec<Notice>, Result<Plan, LabError>) {
        let topology = file::parse(Path::new("/x.clab.yml"), text, &BTreeMap::new()).unwrap().0;
        let settings = Settings::parse(settings, Path::new("/lab.yaml")).unwrap();
        let notices = file::undeployable(&topology, &|image| settings.runs(image));
        let plan = Plan::new(&topology, &settings, &notices, Path::new("/bin/true"));
        (topology, notices, plan)
    }

    #[test]
    fn exactly_what_the_notices_skip_is_left_out() {
        let (topology, notices, plan) = plan(MIXED, "images: {frr: {}}");
        let plan = plan.unwrap();
        let skips = |about: About| notices.iter().any(|notice| notice.skips && notice.about == about);
        let expected: BTreeSet<&String> =
            topology.nodes.keys().filter(|name| !skips(About::Node((*name).clone()))).collect();
        assert_eq!(plan.nodes.keys().collect::<BTreeSet<_>>(), expected);
        assert_eq!(plan.nodes.keys().collect::<Vec<_>>(), ["a", "b", "e", "f"]);
        let kept = (0..topology.links.len()).filter(|position| !skips(About::Link(*position))).count();
        assert_eq!(plan.links.len(), kept);
        let links: Vec<&str> = plan.links.iter().map(|link| link.a.interface.as_str()).collect();
        assert_eq!(links, ["eth1", "eth4", "eth5"], "a stitched link is a plain one");
        assert_eq!(plan.skipped.len(), notices.iter().filter(|notice| notice.skips).count());
        for name in ["c", "d"] {
            assert!(plan.skipped.contains(&format!("node {name}")), "{:?}", plan.skipped);
        }
        assert_eq!(
            plan.nodes["a"].lacks,
            ["eth2", "eth3", "an-interface-name-too-long", "dum0", "eth6", "eth7", "eth8"]
        );
        assert_eq!(plan.nodes["b"].lacks, ["eth2", "eth3"]);
    }

    #[test]
    fn volumes_are_not_bound_as_the_notice_says() {
        let (_, notices, plan) = plan(MIXED, "images: {frr: {}}");
        let places: Vec<PathBuf> =
            plan.unwrap().nodes["a"].binds.iter().map(|bind| bind.node.clone()).collect();
        assert_eq!(places, [PathBuf::from(PROGRAM_IN_NODE)]);
        assert!(notices.iter().any(|notice| notice.message.starts_with("volumes has no effect here")));
    }

    #[test]
    fn restart_policies_are_what_they_say() {
        let (_, _, plan) = plan(MIXED, "images: {frr: {}}");
        let plan = plan.unwrap();
        let restart = |name: &str| plan.nodes[name].restart;
        assert_eq!(
            [restart("a"), restart("b"), restart("e"), restart("f")],
            [Restart::Always, Restart::OnFailure, Restart::Never, Restart::Never]
        );
        assert!(Restart::OnFailure.again(false) && !Restart::OnFailure.again(true));
    }

    #[test]
    fn a_lab_of_which_nothing_runs_here_says_so() {
        let text = "name: x\ntopology: {nodes: {a: {kind: nokia_srlinux}, b: {kind: bridge}}}\n";
        let error = plan(text, "").2.unwrap_err().to_string();
        assert!(error.contains("none of its nodes") && error.contains("node a, node b"), "{error}");
    }

    #[test]
    fn clusters_name_nodes_that_there_are() {
        let text = "name: x\ntopology: {nodes: {a: {kind: linux}}}\n";
        let settings = "clusters: [{name: one, id: 1, manifests: [m], nodes: [a, z], etcd: a}]";
        let error = plan(text, settings).2.unwrap_err().to_string();
        assert!(
            error.contains("cluster one") && error.contains("\"z\"") && error.contains("use one of a"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_program_names_the_package() {
        let text = "name: x\ntopology: {nodes: {a: {kind: linux, image: i}}}\n";
        let error =
            plan(text, "images: {i: {programs: [no-such-program], package: the-package}}").2.unwrap_err();
        let error = error.to_string();
        for part in ["node a", "no-such-program", "apt-get install --no-install-recommends the-package"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
