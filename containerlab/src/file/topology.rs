//! The resolved topology: every node after `defaults < kind < group < node` has been merged and every variable
//! substituted, every link with its type spelled out. What the runner deploys, what `graph` draws.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};

/// A whole lab, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Topology {
    /// Absolute path of the topology file.
    pub file: PathBuf,
    /// The lab's own directory (`__clabDir__`): state, manifests, keys, logs, sockets.
    pub lab_dir: PathBuf,
    /// The lab's name (`name`).
    pub name: String,
    /// What precedes node names (`prefix`, default `clab`). Here nodes go by their short names.
    pub prefix: String,
    /// The management network, parsed but never deployed here.
    pub mgmt: Option<Mgmt>,
    /// Line of the lab wide `settings`; nothing of them is used, the lab's own CA serves instead.
    pub settings_line: Option<u64>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Links in file order.
    pub links: Vec<Link>,
}

/// One node, merged.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Name, the key under `topology.nodes`.
    pub name: String,
    /// Line of the node in the topology file, from 1.
    pub line: u64,
    /// The line of each key that says something about the node, be it in the defaults, its kind or its group.
    pub lines: BTreeMap<&'static str, u64>,
    /// `kind`, e.g. `linux`; empty when the file gives none (an error unless nothing needs it).
    pub kind: String,
    /// `type`, a variant of the kind.
    pub node_type: Option<String>,
    /// `group`.
    pub group: Option<String>,
    /// `image`; mapped by [`crate::settings::Settings::image`].
    pub image: Option<String>,
    /// `image-pull-policy`, lower case.
    pub image_pull_policy: Option<String>,
    /// `license`, an absolute path or URL.
    pub license: Option<String>,
    /// `startup-config`: an absolute path, a URL, or the configuration itself (several lines).
    pub startup_config: Option<String>,
    /// `startup-delay` in seconds.
    pub startup_delay_secs: u32,
    /// `enforce-startup-config`.
    pub enforce_startup_config: bool,
    /// `suppress-startup-config`.
    pub suppress_startup_config: bool,
    /// `auto-remove`: do not restart a command that ended.
    pub auto_remove: bool,
    /// `restart-policy`, lower case: `no`, `on-failure`, `always`, `unless-stopped`.
    pub restart_policy: Option<String>,
    /// `hostname`, default the node's name.
    pub hostname: Option<String>,
    /// `entrypoint`, a command line; split it with [`super::split_words`].
    pub entrypoint: Option<String>,
    /// `cmd`, a command line; split it with [`super::split_words`].
    pub cmd: Option<String>,
    /// `exec`: commands to run once the node is up, defaults first, the node's own last.
    pub exec: Vec<String>,
    /// `binds`, sorted by destination; a more specific level replaces the same destination.
    pub binds: Vec<Bind>,
    /// `volumes`, sorted by destination.
    pub volumes: Vec<Bind>,
    /// `ports` published on the host.
    pub ports: Vec<Port>,
    /// `env`, over the content of `env-files`.
    pub env: BTreeMap<String, String>,
    /// `env-files`, absolute paths (their content is in `env` already).
    pub env_files: Vec<PathBuf>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `user`.
    pub user: Option<String>,
    /// `network-mode`: `host`, `none` or `container:NAME`.
    pub network_mode: Option<String>,
    /// `mgmt-ipv4`.
    pub mgmt_ipv4: Option<Ipv4Addr>,
    /// `mgmt-ipv6`.
    pub mgmt_ipv6: Option<Ipv6Addr>,
    /// `runtime`.
    pub runtime: Option<String>,
    /// `cpu`, in CPUs.
    pub cpu: Option<f64>,
    /// `cpu-set`, e.g. `0-1,3`.
    pub cpu_set: Option<String>,
    /// `memory`, e.g. `512Mb`.
    pub memory: Option<String>,
    /// `sysctls` to set in the node's namespace before anything runs.
    pub sysctls: BTreeMap<String, String>,
    /// `cap-add`.
    pub cap_add: Vec<String>,
    /// `privileged`, true by default.
    pub privileged: bool,
    /// `devices`.
    pub devices: Vec<String>,
    /// `security-opts`.
    pub security_opts: Vec<String>,
    /// `shm-size`.
    pub shm_size: Option<String>,
    /// `tmpfs`: destination to mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// `cgroupns-mode`: `host` or `private`.
    pub cgroupns_mode: Option<String>,
    /// `cgroup-parent`.
    pub cgroup_parent: Option<String>,
    /// `pid-mode`.
    pub pid_mode: Option<String>,
    /// `aliases` in the management network.
    pub aliases: Vec<String>,
    /// `position`.
    pub position: Option<String>,
    /// `link-apply-mode`: `live`, `restart` or `recreate`.
    pub link_apply_mode: Option<String>,
    /// `dns`.
    pub dns: Option<Dns>,
    /// `healthcheck`.
    pub healthcheck: Option<Healthcheck>,
    /// `stages` by name: what to wait for, what to run on entering and leaving.
    pub stages: BTreeMap<String, Stage>,
    /// `certificate`, `credentials`, `extras`, `config`, `components`: kept as they stand, nothing here reads them.
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Node {
    /// The host name inside the node: `hostname`, or the node's name.
    pub fn host_name(&self) -> &str {
        self.hostname.as_deref().unwrap_or(&self.name)
    }
}

/// `SOURCE:DESTINATION[:OPTIONS]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// Absolute path on the host; empty for an anonymous volume.
    pub source: String,
    /// Absolute path in the node.
    pub destination: String,
    /// `ro`, `rw`, `z`, `shared`, ...
    pub options: Vec<String>,
}

impl Bind {
    /// True when the node may not write to it.
    pub fn read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.source.is_empty() {
            write!(f, "{}:", self.source)?;
        }
        f.write_str(&self.destination)?;
        if !self.options.is_empty() {
            write!(f, ":{}", self.options.join(","))?;
        }
        Ok(())
    }
}

/// A published port: `[HOST-IP:][HOST-PORT:]NODE-PORT[/PROTOCOL]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Address on the host, if limited to one.
    pub host_ip: Option<IpAddr>,
    /// Port on the host; `None` lets the runtime choose.
    pub host_port: Option<u16>,
    /// Port in the node.
    pub node_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// `dns` of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    /// Servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// `healthcheck` of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `CMD prog args...` or `CMD-SHELL line`.
    pub test: Vec<String>,
    /// Seconds between two checks (default 30).
    pub interval_secs: u32,
    /// Failures in a row before the node counts as unhealthy (default 3).
    pub retries: u32,
    /// Seconds one check may take (default 30).
    pub timeout_secs: u32,
    /// Seconds at start during which failures do not count (default 0).
    pub start_period_secs: u32,
}

/// One deployment stage of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// Wait until these nodes have reached these stages.
    pub wait_for: Vec<WaitFor>,
    /// Commands to run.
    pub exec: Vec<StageExec>,
}

/// `wait-for` entry of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitFor {
    /// Node to wait for.
    pub node: String,
    /// Stage it must have reached.
    pub stage: String,
}

/// `exec` entry of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageExec {
    /// Command line.
    pub command: String,
    /// `container` (in the node, default) or `host`.
    pub target: String,
    /// `on-enter` (default) or `on-exit`.
    pub phase: String,
}

/// `mgmt`: the management network.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mgmt {
    /// Line in the topology file, from 1.
    pub line: u64,
    /// Network name.
    pub network: Option<String>,
    /// Bridge name.
    pub bridge: Option<String>,
    /// Everything given, by key.
    pub options: BTreeMap<String, String>,
}

/// One link.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Line in the topology file, from 1.
    pub line: u64,
    /// What it is and what it joins.
    pub link_type: LinkType,
    /// MTU in bytes; `None` leaves the choice to the runner (containerlab itself takes 9500 for veth).
    pub mtu: Option<u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Variables of templates, as they stand.
    pub vars: BTreeMap<String, serde_json::Value>,
}

impl Link {
    /// The ends that lie in nodes of the topology: two for veth, one for the other types.
    pub fn endpoints(&self) -> Vec<&Endpoint> {
        match &self.link_type {
            LinkType::Veth { a, b } | LinkType::VethStitch { a, b } => vec![a, b],
            LinkType::Host { endpoint, .. }
            | LinkType::MgmtNet { endpoint, .. }
            | LinkType::Macvlan { endpoint, .. }
            | LinkType::Vxlan { endpoint, .. }
            | LinkType::Dummy { endpoint } => vec![endpoint],
        }
    }
}

/// The types of links.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkType {
    /// A veth pair between two nodes.
    Veth {
        /// First end.
        a: Endpoint,
        /// Second end.
        b: Endpoint,
    },
    /// Two veth pairs stitched by tc.
    VethStitch {
        /// First end.
        a: Endpoint,
        /// Second end.
        b: Endpoint,
    },
    /// A veth pair between a node and the host (here: the lab's enclosing namespace).
    Host {
        /// End in the node.
        endpoint: Endpoint,
        /// Name of the end on the host.
        host_interface: String,
    },
    /// A veth pair between a node and the management bridge.
    MgmtNet {
        /// End in the node.
        endpoint: Endpoint,
        /// Name of the end on the bridge.
        host_interface: String,
    },
    /// A macvlan device over a host interface.
    Macvlan {
        /// End in the node.
        endpoint: Endpoint,
        /// The parent on the host.
        host_interface: String,
        /// `private`, `vepa`, `bridge` (default), `passthru`, `source`.
        mode: String,
    },
    /// A VXLAN device, or with `stitched` a veth pair stitched to one.
    Vxlan {
        /// End in the node.
        endpoint: Endpoint,
        /// The other tunnel endpoint.
        remote: IpAddr,
        /// VXLAN network identifier, 1 to 16777215.
        vni: u32,
        /// UDP destination port.
        dst_port: u16,
        /// UDP source port.
        src_port: Option<u16>,
        /// True for `vxlan-stitch`.
        stitched: bool,
    },
    /// A dummy device.
    Dummy {
        /// End in the node.
        endpoint: Endpoint,
    },
}

impl LinkType {
    /// The name used in topology files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Veth { .. } => "veth",
            Self::VethStitch { .. } => "veth-stitch",
            Self::Host { .. } => "host",
            Self::MgmtNet { .. } => "mgmt-net",
            Self::Macvlan { .. } => "macvlan",
            Self::Vxlan { stitched: false, .. } => "vxlan",
            Self::Vxlan { stitched: true, .. } => "vxlan-stitch",
            Self::Dummy { .. } => "dummy",
        }
    }
}

/// One end of a link in a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Node name.
    pub node: String,
    /// Interface name inside the node.
    pub interface: String,
    /// MAC address, if given.
    pub mac: Option<[u8; 6]>,
    /// IPv4 address with prefix length to put on the interface.
    pub ipv4: Option<Ipv4Net>,
    /// IPv6 address with prefix length to put on the interface.
    pub ipv6: Option<Ipv6Net>,
    /// Variables of templates, as they stand.
    pub vars: BTreeMap<String, serde_json::Value>,
}

/// Something the file says that is understood but not deployed by this runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Line in the topology file, from 1.
    pub line: u64,
    /// What it is about.
    pub about: About,
    /// The same in words.
    pub subject: String,
    /// What will not be done and why.
    pub message: String,
    /// True when the thing itself (a node, a link) is not deployed, which is all the runner goes by; false when only a
    /// setting is ignored.
    pub skips: bool,
}

/// What a notice is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// The lab as a whole.
    Lab,
    /// The node of this name.
    Node(String),
    /// The link at this position in [`Topology::links`].
    Link(usize),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.subject, self.message)
    }
}
