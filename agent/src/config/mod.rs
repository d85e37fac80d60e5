//! The agent's configuration: one typed structure, read from layers of YAML, all mistakes reported at once.

mod load;
mod validate;

pub(crate) use load::load;

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::prefix::Prefix;
use tombolo_clustermesh::etcd::{EtcdConfig, Flaw};
use tombolo_clustermesh::follower::Limits;
use tombolo_clustermesh::wire::{ExportMode, ServicePreference};

/// `agent.yaml`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// This cluster.
    pub(crate) cluster: Cluster,
    /// This node.
    pub(crate) node: Node,
    /// Where Kubernetes objects come from.
    pub(crate) manifests: Manifests,
    /// The cluster's own etcd: identities are allocated and the node is published there. Required.
    pub(crate) etcd: Option<Etcd>,
    /// What makes identities.
    pub(crate) identities: Identities,
    /// The other clusters.
    pub(crate) clustermesh: Clustermesh,
    /// Forwarding.
    pub(crate) datapath: Datapath,
    /// Network policy.
    pub(crate) policy: Policy,
    /// BGP.
    pub(crate) bgp: Bgp,
    /// DNS of services.
    pub(crate) dns: Dns,
    /// Where state lives that survives a restart.
    pub(crate) state_dir: StateDir,
    /// The local API.
    pub(crate) api: Api,
    /// Prometheus metrics.
    pub(crate) metrics: Metrics,
    /// Logs.
    pub(crate) log: Log,
}

/// `policy`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    /// What policies would drop passes, and is told of.
    pub(crate) audit: bool,
    /// What rules about prefixes take besides addresses outside the mesh.
    pub(crate) cidr_match: Vec<CidrMatch>,
}

impl Policy {
    /// Whether rules about prefixes take nodes.
    pub(crate) fn cidrs_take_nodes(&self) -> bool {
        self.cidr_match.contains(&CidrMatch::Nodes)
    }
}

/// An element of `policy.cidr_match` (Cilium's `policyCIDRMatchMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CidrMatch {
    /// Nodes, by their addresses.
    Nodes,
}

/// `cluster`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cluster {
    /// Name, unique in the mesh.
    pub(crate) name: Option<ClusterName>,
    /// Number, `1..=max_connected_clusters`, unique in the mesh.
    pub(crate) id: u32,
    /// 255 or 511; the same in the whole mesh.
    pub(crate) max_connected_clusters: MaxClusters,
}

/// `node`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Node {
    /// Node name as in Kubernetes; empty = the host name.
    pub(crate) name: String,
    /// The interface towards the routers.
    pub(crate) underlay_interface: String,
}

/// `manifests`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Manifests {
    /// A folder of Kubernetes manifests, watched.
    pub(crate) folder: PathBuf,
}

/// `etcd`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Etcd {
    /// `https://host:port`, tried in turn.
    pub(crate) endpoints: Vec<String>,
    /// The CA that signed the servers' certificates (PEM file).
    pub(crate) ca: PathBuf,
    /// Our client certificate (PEM file).
    pub(crate) cert: PathBuf,
    /// Its key (PEM file).
    pub(crate) key: PathBuf,
    /// Accept `http://` endpoints: no TLS, nobody is known, everybody on the way reads and writes.
    pub(crate) allow_plaintext: bool,
}

impl Etcd {
    /// In the mesh's terms.
    pub(crate) fn client(&self) -> EtcdConfig {
        let file = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
        EtcdConfig {
            endpoints: self.endpoints.clone(),
            trusted_ca_file: file(&self.ca),
            cert_file: file(&self.cert),
            key_file: file(&self.key),
            host_aliases: Vec::new(),
        }
    }

    /// Every mistake in it, under the name that it has here.
    pub(crate) fn flaws(&self) -> Vec<Flaw> {
        let named = |flaw: Flaw| {
            let name = match flaw.key.as_str() {
                "trusted-ca-file" => "ca",
                "cert-file" => "cert",
                "key-file" => "key",
                endpoints => endpoints,
            };
            Flaw { key: format!("etcd.{name}"), ..flaw }
        };
        self.client().check(self.allow_plaintext).into_iter().map(named).collect()
    }
}

impl Config {
    /// The etcd that a relay mirrors the other clusters in, where they are read through one.
    pub(crate) fn relay(&self) -> Option<EtcdConfig> {
        self.etcd.as_ref().filter(|_| self.clustermesh.relay).map(Etcd::client)
    }
}

/// `identities`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Identities {
    /// Patterns of labels that make identities, after Cilium's defaults: regular expressions matched from the start of the
    /// key, `!` refuses. The same on all nodes of a cluster.
    pub(crate) labels: Vec<String>,
}

/// `clustermesh`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Clustermesh {
    /// A folder with one file per remote cluster, named after it, in Cilium's format. Empty = no mesh.
    pub(crate) folder: PathBuf,
    /// Accept `http://` endpoints in these files.
    pub(crate) allow_plaintext: bool,
    /// Read all clusters from the own etcd, where a relay mirrors them; the files only name them then.
    pub(crate) relay: bool,
    /// How backends of global services are published.
    pub(crate) backends: Backends,
    /// Which form of them is read of clusters that publish both.
    pub(crate) service_preference: Preference,
    /// Whether services are exported and imported by the Multi-Cluster Services API.
    pub(crate) service_exports: bool,
    /// Where imported services get their addresses from, of either family; the same on all nodes of a cluster.
    pub(crate) clusterset_cidrs: Vec<Prefix>,
    /// How long a cluster's services are used after they were confirmed last, in seconds; 0 = for ever.
    pub(crate) services_stale_secs: u32,
    /// Most entries that are taken of one cluster.
    pub(crate) max_entries: u32,
    /// Most MiB of keys and values that are taken of one cluster.
    pub(crate) max_mib: u32,
}

impl Default for Clustermesh {
    fn default() -> Self {
        Self {
            folder: PathBuf::new(),
            allow_plaintext: false,
            relay: false,
            backends: Backends::default(),
            service_preference: Preference::default(),
            service_exports: true,
            clusterset_cidrs: Vec::new(),
            services_stale_secs: 900,
            max_entries: 1_000_000,
            max_mib: 512,
        }
    }
}

impl Clustermesh {
    /// What one remote cluster may cost.
    pub(crate) fn limits(&self) -> Limits {
        let secs = u64::from(self.services_stale_secs);
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            max_entries: number(self.max_entries),
            max_bytes: number(self.max_mib).saturating_mul(1 << 20),
            services_stale: (secs > 0).then(|| Duration::from_secs(secs)),
        }
    }
}

/// The forms of a global service's backends, in Cilium's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Backends {
    /// As services: what every peer reads.
    #[default]
    Services,
    /// Also as endpoint slices, for peers that prefer them (from 1.20 on).
    ServicesAndEndpointslices,
    /// As endpoint slices only: peers up to 1.19 see no backends.
    EndpointslicesOnly,
}

impl From<Backends> for ExportMode {
    fn from(backends: Backends) -> Self {
        match backends {
            Backends::Services => Self::Services,
            Backends::ServicesAndEndpointslices => Self::ServicesAndSlices,
            Backends::EndpointslicesOnly => Self::SlicesOnly,
        }
    }
}

/// The form of backends that is read, in Cilium's words (`clustermesh-service-v2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preference {
    /// Services where there are any.
    #[default]
    PreferLegacy,
    /// Endpoint slices where there are any.
    PreferEndpointslice,
    /// Endpoint slices only: clusters that publish services alone have no backends.
    OnlyEndpointslice,
}

impl From<Preference> for ServicePreference {
    fn from(preference: Preference) -> Self {
        match preference {
            Preference::PreferLegacy => Self::Services,
            Preference::PreferEndpointslice => Self::Slices,
            Preference::OnlyEndpointslice => Self::OnlySlices,
        }
    }
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Path {
    /// In VXLAN.
    #[default]
    Overlay,
    /// By the routers.
    Direct,
}

/// What encrypts packets between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Encryption {
    /// Nothing.
    #[default]
    None,
    /// WireGuard, on the whole mesh.
    Wireguard,
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Attach {
    /// tcx where the kernel has it, clsact elsewhere.
    #[default]
    Auto,
    /// tcx (Linux 6.6 and later).
    Tcx,
    /// clsact.
    Clsact,
}

/// At whose sockets services are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SocketLb {
    /// Those of pods and of the node.
    #[default]
    All,
    /// Those of the node's own network namespace.
    Host,
    /// None.
    Off,
}

/// How outside clients of services reach backends on other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LbMode {
    /// Under this node's address; answers come back this way.
    #[default]
    Snat,
    /// Under their own; the backend's node answers them.
    Dsr,
    /// TCP as `dsr`, UDP as `snat`.
    Hybrid,
}

/// Whether outside clients are served before socket buffers are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Acceleration {
    /// No.
    #[default]
    Disabled,
    /// By XDP in the uplink's driver; a problem where that has none.
    Native,
    /// The same where the driver has it.
    BestEffort,
    /// By the kernel's own XDP, with any driver and no faster: for tests.
    Generic,
}

/// `datapath.load_balancer`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LoadBalancer {
    /// `snat`, `dsr` or `hybrid` (Cilium: `loadBalancer.mode`).
    pub(crate) mode: LbMode,
    /// `disabled`, `native`, `best-effort` or `generic` (Cilium: `loadBalancer.acceleration`).
    pub(crate) acceleration: Acceleration,
}

/// Which packets of flows are told, in Cilium's words (`monitor-aggregation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Aggregation {
    /// Each, where it comes in and where it leaves.
    None,
    /// Each, where it leaves.
    #[serde(alias = "lowest")]
    Low,
    /// What opens a flow, shows a TCP flag of `report_flags` first, or is due after `report_interval_secs`.
    #[default]
    Medium,
    /// The same, as it is in Cilium.
    Maximum,
}

/// Whose events carry the packet's first 128 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capture {
    /// Nobody's.
    Off,
    /// Those of drops.
    #[default]
    Drops,
    /// All.
    All,
}

/// A TCP flag (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TcpFlag {
    Fin,
    Syn,
    Rst,
    Psh,
    Ack,
    Urg,
    Ece,
    Cwr,
}

impl TcpFlag {
    /// Its bit in the header.
    pub(crate) const fn bit(self) -> u8 {
        match self {
            Self::Fin => 0x01,
            Self::Syn => 0x02,
            Self::Rst => 0x04,
            Self::Psh => 0x08,
            Self::Ack => 0x10,
            Self::Urg => 0x20,
            Self::Ece => 0x40,
            Self::Cwr => 0x80,
        }
    }
}

/// `datapath`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Datapath {
    /// `overlay` or `direct`.
    pub(crate) path: Path,
    /// `none` or `wireguard`.
    pub(crate) encryption: Encryption,
    /// Where pods of the mesh are: what goes there and to no known node is dropped, not sent in clear.
    pub(crate) strict_encryption: Vec<Prefix>,
    /// UDP port of VXLAN; must agree in the whole mesh (Cilium: 8472).
    pub(crate) vxlan_port: u16,
    /// UDP port of WireGuard (Cilium: 51871).
    pub(crate) wireguard_port: u16,
    /// Where the BPF file system is mounted.
    pub(crate) bpffs: PathBuf,
    /// `auto`, `tcx` or `clsact`.
    pub(crate) attach: Attach,
    /// Flow events of one interface that are told in a second, on each CPU; the others are counted. 0 = all.
    pub(crate) events_per_second: u32,
    /// `none`, `low`, `medium` or `maximum` (Cilium: `monitorAggregation`).
    pub(crate) aggregation: Aggregation,
    /// How often a running flow is told in each direction, in seconds (Cilium: `monitorInterval`, 5 s).
    pub(crate) report_interval_secs: u32,
    /// TCP flags that are told when a direction shows them first (Cilium: `monitorFlags`).
    pub(crate) report_flags: Vec<TcpFlag>,
    /// `drops`, `all` or `off`: whose events carry the packet's first 128 bytes, for `tombolo why`.
    pub(crate) capture: Capture,
    /// `all`, `host` or `off`: at whose sockets services are translated.
    pub(crate) socket_lb: SocketLb,
    /// Services from outside.
    pub(crate) load_balancer: LoadBalancer,
    /// Whether pods' annotations limit their bandwidth.
    pub(crate) bandwidth: bool,
    /// The cgroup v2 directory below which they are; by default the root of this cgroup namespace, where it is mounted.
    pub(crate) cgroup: Option<PathBuf>,
    /// Source ports of translated flows.
    pub(crate) snat_ports: PortRange,
    /// What pods send out of the mesh, under the node's address.
    pub(crate) masquerade: Masquerade,
    /// Whether nodes that route their pods have the tunnel's device all the same: packets to egress gateways go through it.
    pub(crate) egress_gateway: bool,
    /// Map sizes.
    pub(crate) maps: Maps,
}

/// Ports, written `first-last`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct PortRange(pub(crate) RangeInclusive<u16>);

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no range of ports: write first-last, like 11000-29999");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let number = |part: &str| part.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first == 0 || first > last { Err(wrong()) } else { Ok(Self(first..=last)) }
    }
}

impl From<PortRange> for String {
    fn from(PortRange(range): PortRange) -> Self {
        format!("{}-{}", range.start(), range.end())
    }
}

/// `datapath.masquerade`: off where routers know the way to pods.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Masquerade {
    /// Of IPv4 packets.
    pub(crate) ipv4: bool,
    /// Of IPv6 packets.
    pub(crate) ipv6: bool,
    /// Where pods' addresses are routed, of either family (Cilium: `ipv4NativeRoutingCIDR`).
    pub(crate) native_cidrs: Vec<Prefix>,
    /// Destinations that see pods' addresses all the same (ip-masq-agent: `nonMasqueradeCIDRs`).
    pub(crate) non_masquerade_cidrs: Vec<Prefix>,
}

impl Datapath {
    /// Whether the node has the tunnel's device.
    pub(crate) fn has_tunnel(&self) -> bool {
        self.path == Path::Overlay || self.egress_gateway
    }
}

impl Default for Datapath {
    fn default() -> Self {
        Self {
            path: Path::Overlay,
            encryption: Encryption::None,
            strict_encryption: Vec::new(),
            vxlan_port: 8472,
            wireguard_port: 51871,
            bpffs: "/sys/fs/bpf".into(),
            attach: Attach::Auto,
            events_per_second: 4000,
            aggregation: Aggregation::Medium,
            report_interval_secs: 5,
            report_flags: vec![TcpFlag::Syn, TcpFlag::Fin, TcpFlag::Rst],
            capture: Capture::Drops,
            socket_lb: SocketLb::All,
            load_balancer: LoadBalancer::default(),
            bandwidth: true,
            cgroup: None,
            snat_ports: PortRange(tombolo_ebpf::SNAT_PORTS),
            masquerade: Masquerade::default(),
            egress_gateway: false,
            maps: Maps::default(),
        }
    }
}

/// `datapath.maps`: entries per map; memory is taken at start, except for `nodes`, `prefixes`, `egress` and `source_ranges`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Maps {
    /// Connections, both families together.
    pub(crate) conntrack: u32,
    /// Source translations.
    pub(crate) nat: u32,
    /// Policy entries.
    pub(crate) policy: u32,
    /// Policies: one for each kind of pod on this node.
    pub(crate) policies: u32,
    /// Pods of this node.
    pub(crate) endpoints: u32,
    /// Nodes of the mesh.
    pub(crate) nodes: u32,
    /// Addresses and prefixes of the mesh.
    pub(crate) prefixes: u32,
    /// Service frontends.
    pub(crate) services: u32,
    /// Service backends.
    pub(crate) backends: u32,
    /// Slots of the frontends' Maglev tables, four bytes each.
    pub(crate) maglev_slots: u32,
    /// Prefixes in the source ranges of services, of each frontend.
    pub(crate) source_ranges: u32,
    /// Destinations of pods with egress policies.
    pub(crate) egress: u32,
    /// Clients of services with session affinity.
    pub(crate) affinity: u32,
    /// Sockets that were led to a backend.
    pub(crate) sockets: u32,
}

impl Default for Maps {
    fn default() -> Self {
        Self {
            conntrack: 131_072,
            nat: 65_536,
            policy: 65_536,
            policies: 16_384,
            endpoints: 4096,
            nodes: 65_536,
            prefixes: 512_000,
            services: 65_536,
            backends: 65_536,
            maglev_slots: 4_194_304,
            source_ranges: 65_536,
            egress: 16_384,
            affinity: 65_536,
            sockets: 131_072,
        }
    }
}

/// `bgp`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bgp {
    /// Whether the node speaks BGP as the `cilium.io` objects say.
    pub(crate) enabled: bool,
    /// What is taken from peers into the kernel; nothing by default.
    pub(crate) import: Import,
    /// What the node's own state does to what it advertises.
    pub(crate) health: tombolo_topology::bgp::health::HealthPolicy,
    /// Long-lived graceful restart (RFC 9494): how long stale routes of a peer are kept after its restart time, in seconds. For sessions with graceful
    /// restart whose `BGPPeerPolicy` does not say it; none by default.
    pub(crate) long_lived_secs: Option<u32>,
    /// The namespace of the Secrets that `authSecretRef` names (Cilium: `bgpControlPlane.secretsNamespace.name`).
    pub(crate) secrets_namespace: String,
    /// Where every message is logged; nowhere by default.
    pub(crate) message_log: Option<MessageLog>,
    /// Collectors of BMP (RFC 7854).
    pub(crate) bmp: Vec<BmpCollector>,
    /// RPKI caches (RFC 8210).
    pub(crate) rpki: Vec<RpkiCache>,
}

impl Default for Bgp {
    fn default() -> Self {
        Self {
            enabled: false,
            import: Import::default(),
            health: tombolo_topology::bgp::health::HealthPolicy::default(),
            long_lived_secs: None,
            secrets_namespace: "kube-system".to_owned(),
            message_log: None,
            bmp: Vec::new(),
            rpki: Vec::new(),
        }
    }
}

/// `bgp.message_log`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageLog {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// Size of a file before the next is begun, in MiB.
    #[serde(default = "message_log_mib")]
    pub(crate) file_mib: u32,
    /// Files kept for each peer.
    #[serde(default = "message_log_files")]
    pub(crate) files: u16,
}

const fn message_log_mib() -> u32 {
    16
}

const fn message_log_files() -> u16 {
    4
}

/// An entry of `bgp.bmp`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BmpCollector {
    /// Address and port.
    pub(crate) address: std::net::SocketAddr,
    /// Tell what peers sent as they sent it.
    #[serde(default = "yes")]
    pub(crate) pre_policy: bool,
    /// Tell what import policy made of it.
    #[serde(default = "yes")]
    pub(crate) post_policy: bool,
    /// Tell the best paths (RFC 9069).
    #[serde(default = "yes")]
    pub(crate) loc_rib: bool,
    /// Tell what peers are sent, after export policy (RFC 8671).
    #[serde(default)]
    pub(crate) adj_rib_out: bool,
    /// Time between statistics in seconds; 0 for none.
    #[serde(default = "statistics_secs")]
    pub(crate) statistics_secs: u32,
}

const fn yes() -> bool {
    true
}

const fn statistics_secs() -> u32 {
    60
}

/// An entry of `bgp.rpki`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RpkiCache {
    /// Address and port.
    pub(crate) address: std::net::SocketAddr,
}

/// `bgp.import`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Import {
    /// Allowed prefixes; everything else is refused.
    pub(crate) allow: Vec<AllowedPrefix>,
}

/// A prefix and the lengths that are allowed inside it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AllowedPrefix {
    /// The covering prefix.
    pub(crate) prefix: Prefix,
    /// Shortest length; the prefix's own by default.
    #[serde(default)]
    pub(crate) ge: Option<u8>,
    /// Longest length; the prefix's own by default.
    #[serde(default)]
    pub(crate) le: Option<u8>,
}

/// `dns`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Dns {
    /// Whether the agent keeps a DNS unit running on this node.
    pub(crate) enabled: bool,
    /// Where it listens; empty: port 53 of the node's own addresses.
    pub(crate) listen: Vec<SocketAddr>,
    /// The zone of this cluster's Services.
    pub(crate) cluster_domain: String,
    /// The zone of services that are imported.
    pub(crate) clusterset_domain: String,
    /// Who is asked for other names; without any they are refused.
    pub(crate) upstreams: Vec<SocketAddr>,
    /// Life of an answer, in seconds.
    pub(crate) ttl_secs: u32,
    /// Where Prometheus may scrape the unit; nothing is opened without it.
    pub(crate) metrics: Option<SocketAddr>,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            clusterset_domain: "clusterset.local".to_owned(),
            upstreams: Vec::new(),
            ttl_secs: 5,
            metrics: None,
        }
    }
}

/// `state_dir`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct StateDir(pub(crate) PathBuf);

impl Default for StateDir {
    fn default() -> Self {
        Self("/var/lib/tombolo".into())
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

/// Where the command line looks for the agent.
pub(crate) const DEFAULT_SOCKET: &str = "/run/tombolo/agent.sock";

/// `metrics`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Where Prometheus may scrape; nothing is opened without it.
    pub(crate) listen: Option<SocketAddr>,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// `log`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// `text` or `json`.
    pub(crate) format: LogFormat,
    /// A level, or tracing directives as `info,tombolo_bgp=debug`.
    pub(crate) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

/// The parts of the configuration that must be there, checked.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// This cluster's name.
    pub(crate) cluster: ClusterName,
    /// This cluster's number.
    pub(crate) cluster_id: ClusterId,
    /// The mesh's size.
    pub(crate) max_clusters: MaxClusters,
    /// This node's name.
    pub(crate) node: std::sync::Arc<str>,
}
