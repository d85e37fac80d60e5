//! The rows of the datapath in plain Rust types. No ABI struct leaves the crate.

use ipnet::IpNet;
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Apart from node ports (30000 on), from the kernel's own choice (32768 on) and from what Kubernetes' parts listen on.
pub const SNAT_PORTS: RangeInclusive<u16> = 11_000..=29_999;

/// What the programs must know about their node. Written whole with [`crate::Datapath::set_config`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeConfig {
    /// Whether the node's rows are complete. Until then every policing hook drops with reason 202.
    pub ready: bool,
    /// Whether encrypt flags of prefixes and nodes are honoured.
    pub encrypt: bool,
    /// Whether each new policed flow yields a verdict event.
    pub verdict_events: bool,
    /// Whether the uplink's queue sends each packet at the time that it bears (the kernel's fq): then what pods send into the
    /// network is paced to their rates, else what is more is dropped.
    pub paced: bool,
    /// Whether the node itself has served clients outside as a service's backend: then its answers are looked for. The programs
    /// set it with the first such client; who writes the row leaves it as it is.
    pub host_serves: bool,
    /// The local cluster's id.
    pub cluster_id: u32,
    /// The underlay interface.
    pub uplink_ifindex: u32,
    /// The VXLAN device; 0 without overlay.
    pub overlay_ifindex: u32,
    /// The WireGuard device; 0 while there is none. With `encrypt`, 0 means drop (195), never plain text.
    pub wireguard_ifindex: u32,
    /// Source ports for SNAT; keep them apart from those that the host uses itself.
    pub snat_ports: RangeInclusive<u16>,
    /// The UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The UDP port of WireGuard; `None`: no encryption.
    pub wireguard_port: Option<u16>,
    /// How many events of one interface are told in a second, on each CPU; 0: all. The others are counted.
    pub events_per_sec: u32,
    /// Which packets are told.
    pub aggregation: Aggregation,
    /// TCP flags that are told when a direction of a flow shows them first (RFC 9293, section 3.1).
    pub report_flags: u8,
    /// Whose events carry the packet's first bytes.
    pub capture: CaptureOf,
    /// The policy of the node's own traffic; 0: none, everything is allowed.
    pub host_policy_id: u32,
    /// An established flow yields a trace event at most this often per direction.
    pub report_interval: Duration,
    /// The node's own address inside the pod network ("CiliumInternalIP"), IPv4.
    pub internal4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub internal6: Option<Ipv6Addr>,
    /// Whether what pods send out of the mesh leaves under the underlay address, IPv4 ([`crate::Datapath::set_unmasked`]
    /// says where not).
    pub masquerade4: bool,
    /// The same, IPv6.
    pub masquerade6: bool,
    /// The node's underlay address, IPv4.
    pub underlay4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub underlay6: Option<Ipv6Addr>,
    /// For tests alone: how far ahead of `CLOCK_MONOTONIC` the clock is that flows live by. An agent leaves it at zero:
    /// [`crate::Datapath::gc`] and events go by the kernel's clock.
    pub test_clock_offset: Duration,
    /// At whose sockets services are translated, where [`crate::Datapath::attach_sockets`] has hooked the programs for it.
    /// Who writes the configuration does it from within the node's network namespace.
    pub socket_lb: SocketLb,
    /// How outside clients of services reach backends on other nodes.
    pub lb_mode: LbMode,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            ready: false,
            encrypt: false,
            verdict_events: true,
            paced: false,
            host_serves: false,
            cluster_id: 0,
            uplink_ifindex: 0,
            overlay_ifindex: 0,
            wireguard_ifindex: 0,
            snat_ports: SNAT_PORTS,
            vxlan_port: 8472,
            wireguard_port: None,
            events_per_sec: 0,
            aggregation: Aggregation::Flows,
            report_flags: 0x07,
            capture: CaptureOf::Drops,
            host_policy_id: 0,
            report_interval: Duration::from_secs(5),
            internal4: None,
            internal6: None,
            masquerade4: false,
            masquerade6: false,
            underlay4: None,
            underlay6: None,
            test_clock_offset: Duration::ZERO,
            socket_lb: SocketLb::Off,
            lb_mode: LbMode::Snat,
        }
    }
}

/// Which packets are told, of those that are not dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Aggregation {
    /// What opens a flow, changes its TCP flags, or is due after [`NodeConfig::report_interval`].
    #[default]
    Flows,
    /// Each, where it leaves.
    Sent,
    /// Each, where it comes in and where it leaves.
    None,
}

/// Whose events carry the packet's first 128 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum CaptureOf {
    /// Nobody's.
    Nothing,
    /// Those of drops.
    #[default]
    Drops,
    /// All.
    All,
}

/// At whose sockets services are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum SocketLb {
    /// At none.
    #[default]
    Off,
    /// At those of the node's own network namespace.
    Host,
    /// At those of pods, too.
    All,
}

/// How an outside client of a service reaches a backend on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum LbMode {
    /// Under this node's address; answers come back this way.
    #[default]
    Snat,
    /// Under its own address, and the backend's node answers it. Any node takes such packets, whatever its own mode.
    Dsr,
    /// TCP as [`Self::Dsr`], UDP as [`Self::Snat`].
    Hybrid,
}

/// What a pod's traffic is limited to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// What it sends, in bytes per second, headers and all; `None`: no limit.
    pub egress: Option<u64>,
    /// What it receives, likewise.
    pub ingress: Option<u64>,
    /// `skb->priority` of what it sends; `None`: as its sockets say.
    pub priority: Option<u32>,
}

/// A pod's interface as the programs on its host end know it, keyed by that end's ifindex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// False: everything is dropped with reason 203.
    pub ready: bool,
    /// The pod's identity.
    pub identity: u32,
    /// The policy that applies; see [`PolicySet`]. 0: none, everything is allowed.
    pub policy_id: u32,
    /// The endpoint's number on this node.
    pub endpoint_id: u16,
    /// The pod's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// MAC of the pod's end.
    pub mac: [u8; 6],
    /// MAC of the host's end.
    pub host_mac: [u8; 6],
    /// What its traffic is limited to.
    pub limits: Limits,
    /// Whether others keep its packets in queues of this interface, which none may pass by: what the pod receives goes
    /// through the queue of the host's end, and what it sends through that end's filters and the node's stack.
    pub queued: bool,
}

/// Where a local address lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LocalAddress {
    /// A pod, by the ifindex of its host end.
    Pod(u32),
    /// The node itself.
    Host,
}

/// What lies behind a prefix. A /32 or /128 goes to the hash that is asked before the trie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrefixEntry {
    /// Its identity.
    pub identity: u32,
    /// Index of the node that holds it; 0: none (world).
    pub node: u32,
    /// Must leave this node encrypted.
    pub encrypt: bool,
    /// Belongs to another cluster of the mesh.
    pub remote_cluster: bool,
    /// Reached directly whatever the node's path says (node addresses, for example).
    pub skip_tunnel: bool,
    /// Pods are there, and nobody has said on which node: with encryption nothing leaves for it in clear.
    pub strict: bool,
}

/// How to reach a node's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum NodePath {
    /// This node.
    #[default]
    Local,
    /// Through VXLAN, the sender's identity as VNI.
    Overlay,
    /// Through the routing table.
    Direct,
}

/// A node by index: all that may change for all its prefixes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeEntry {
    /// The outer destination address.
    pub tunnel: Option<IpAddr>,
    /// The path.
    pub path: NodePath,
    /// VXLAN packets to it go through WireGuard.
    pub encrypt: bool,
    /// Largest IP packet of a pod on this path, in bytes; 0: not checked.
    pub mtu: u32,
}

/// Who asks: packets from outside, or from pods of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Scope {
    /// Looked up by packets that enter at the uplink.
    External,
    /// Looked up by packets of local pods.
    Internal,
}

/// Which way a pod's packets to a destination outside the mesh go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum EgressWay {
    /// A gateway is wanted, and there is none: dropped (194).
    Nowhere,
    /// As if there were no policy.
    Excluded,
    /// Through the tunnel to the node with this index.
    Node(u32),
    /// This node is the gateway.
    Here {
        /// The source they get; `None`: dropped (204).
        address: Option<IpAddr>,
        /// The interface by which they leave.
        ifindex: u32,
    },
}

/// A service address. Write one row per scope in which it is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Frontend {
    /// The address.
    pub ip: IpAddr,
    /// The port; 0 together with protocol 0: all other packets to this address are dropped (158).
    pub port: u16,
    /// IP protocol number (6 TCP, 17 UDP).
    pub protocol: u8,
    /// The scope.
    pub scope: Scope,
}

/// A backend, keyed by an id that is unique on the node and stays with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Backend {
    /// The pod's address.
    pub ip: IpAddr,
    /// The target port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// What a frontend leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceEntry {
    /// Number of the reverse translation, not 0; the same in both scopes of one frontend address and port.
    pub rev_nat: u32,
    /// The Maglev table: backend ids. Empty: packets are dropped with 158.
    pub maglev: Vec<u32>,
    /// Only backends of this node are in the table: told where there is none.
    pub local_only: bool,
    /// Prefixes of the clients that it takes, of [`Scope::External`] alone: all others are dropped with 177. `None`: anybody.
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// Session affinity: how long, in seconds, a client is sent to the same backend after it opened a flow; 0: not at all.
    pub affinity_secs: u32,
    /// A node port, so the node itself has it at its loopback addresses, too.
    pub node_port: bool,
    /// A pod's host port, likewise.
    pub host_port: bool,
}

/// Where an entry stands: an earlier tier's allow or deny is final, a pass or silence asks the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum RuleTier {
    /// Asked first.
    Admin,
    /// Asked second. Where it is enforced, what it leaves unsaid is dropped.
    #[default]
    Normal,
    /// Asked last, where the normal tier is not enforced.
    Baseline,
}

/// What an entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum RuleAction {
    /// Ask the next tier.
    Pass,
    /// Let it pass.
    #[default]
    Allow,
    /// Drop it with reason 181.
    Deny,
}

/// Ports that share their leading bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortPrefix {
    /// The lowest of them; of ICMP the type in the upper byte, the code in the lower.
    pub first: u16,
    /// How many leading bits they share, 1..=16.
    pub bits: u8,
}

impl From<u16> for PortPrefix {
    fn from(port: u16) -> Self {
        Self { first: port, bits: 16 }
    }
}

/// One policy entry: of those of a tier that match, the one of the smallest priority decides, at one priority a deny
/// before an allow before a pass. `None` matches anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleEntry {
    /// Where it stands.
    pub tier: RuleTier,
    /// The peer's identity.
    pub identity: Option<u32>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Destination ports, only with a protocol.
    pub port: Option<PortPrefix>,
    /// What it says.
    pub action: RuleAction,
    /// 0..=0xFFFFFE, the smaller the more urgent.
    pub priority: u32,
    /// A number that events carry back to the rule's origin.
    pub cookie: u32,
}

/// The entries of one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicySide {
    /// Whether what the normal tier leaves unsaid is dropped with reason 133.
    pub enforced: bool,
    /// The entries.
    pub entries: Vec<RuleEntry>,
}

impl PolicySide {
    /// Nothing but these passes.
    #[must_use]
    pub const fn only(entries: Vec<RuleEntry>) -> Self {
        Self { enforced: true, entries }
    }
}

/// All entries of one policy id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicySet {
    /// For packets to the pods; identity is the sender's.
    pub ingress: PolicySide,
    /// For packets from the pods; identity is the receiver's.
    pub egress: PolicySide,
    /// What would be dropped passes, and events tell of it.
    pub audit: bool,
}

/// Events that nobody got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LostEvents {
    /// The ring was full.
    pub full: u64,
    /// Their interface had told enough in that second ([`NodeConfig::events_per_sec`]).
    pub limited: u64,
}

/// What a conntrack entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ConntrackKind {
    /// The source is a pod of this node.
    Egress,
    /// The destination is a pod of this node.
    Ingress,
    /// Client to frontend; remembers the backend.
    Service,
    /// The destination is the node itself.
    HostIn,
    /// The source is the node itself.
    HostOut,
}

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConntrackEntry {
    /// What it is about.
    pub kind: ConntrackKind,
    /// IP protocol number.
    pub protocol: u8,
    /// Who opened the flow.
    pub source: (IpAddr, u16),
    /// To whom, after translation (before it for [`ConntrackKind::Service`]).
    pub destination: (IpAddr, u16),
    /// Whether it is in the established table: an answer was seen and, of TCP, the opener's packet after it.
    pub established: bool,
    /// Whether FIN or RST was seen.
    pub closing: bool,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub expires_ns: u64,
    /// Packets in the opening and the answering direction.
    pub packets: [u64; 2],
    /// Bytes in the opening and the answering direction.
    pub bytes: [u64; 2],
    /// The peer's identity.
    pub identity: u32,
    /// Number of the reverse translation; 0: none.
    pub rev_nat: u32,
    /// The backend id ([`ConntrackKind::Service`]).
    pub backend: u32,
}

/// Which flows are meant; every given condition must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Address of either end, of the backend, or of the client behind a translation.
    pub ip: Option<IpAddr>,
    /// Port of either end.
    pub port: Option<u16>,
    /// IP protocol number.
    pub protocol: Option<u8>,
}

/// The source translation of a flow to a backend on another node, or of a pod to itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// IP protocol number.
    pub protocol: u8,
    /// Who opened the flow.
    pub client: (IpAddr, u16),
    /// To whom.
    pub backend: (IpAddr, u16),
    /// The node's address and port, as the backend sees them.
    pub node: (IpAddr, u16),
    /// Whether the flow was answered.
    pub answered: bool,
    /// Whether FIN or RST was seen.
    pub closing: bool,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub expires_ns: u64,
}

/// Direction of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Direction {
    /// Towards a pod.
    Ingress,
    /// From a pod, or out of the node.
    Egress,
}

/// Packets counted since the maps were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Cilium's drop reason; 0: forwarded.
    pub reason: u8,
    /// The direction.
    pub direction: Direction,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Packets that met a place in the programs, since the maps were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SiteMetric {
    /// The place; see [`crate::site`].
    pub site: u16,
    /// The direction.
    pub direction: Direction,
    /// Packets.
    pub packets: u64,
    /// Bytes of the packets, as far as they were known there.
    pub bytes: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapUsage {
    /// The map's name.
    pub map: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries it can hold.
    pub capacity: u64,
}

impl MapUsage {
    /// How much of it is used.
    #[must_use]
    pub fn percent(&self) -> u64 {
        self.entries.saturating_mul(100).checked_div(self.capacity).unwrap_or_default()
    }

    /// The agent's option below `datapath.maps` that gives it its size.
    #[must_use]
    pub fn option(&self) -> Option<&'static str> {
        crate::error::option_of(self.map)
    }

    /// Whether a full map gives up its least recently used entries; all others refuse new ones.
    #[must_use]
    pub fn evicts(&self) -> bool {
        matches!(self.map, "tb_ct_half" | "tb_nat_half" | "tb_affinity")
    }
}

/// A prefix in the form the maps use: host bits cleared, and whether it is a single address.
#[must_use]
pub(crate) fn is_host_prefix(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}
