//! The rows that topology owns.

use crate::wants::HostPort;
use serde::{Serialize, Serializer};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tombolo_base::cells::{list, opt};
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::residence::Residence;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};
use tombolo_base::texts::Texts;

/// What a node's address is for (Kubernetes' and Cilium's type names).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum AddressKind {
    /// Reachable between nodes: the underlay.
    #[serde(rename = "InternalIP")]
    Internal,
    /// Reachable from outside.
    #[serde(rename = "ExternalIP")]
    External,
    /// The node's address inside its own pod prefix: pods' gateway and source of translated traffic.
    #[serde(rename = "CiliumInternalIP")]
    CiliumInternal,
}

/// One address of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NodeAddress {
    /// What it is for.
    pub kind: AddressKind,
    /// The address.
    pub ip: IpAddr,
}

/// A WireGuard public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireguardKey(pub [u8; 32]);

impl fmt::Display for WireguardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for WireguardKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Intent: a node of any cluster, this one included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeRow {
    /// Who said it.
    pub source: Source,
    /// Its cluster's name.
    pub cluster: ClusterName,
    /// Its cluster's id.
    pub cluster_id: ClusterId,
    /// Its name, unique in the cluster.
    pub name: Arc<str>,
    /// All its addresses in the order published.
    pub addresses: Vec<NodeAddress>,
    /// Its pod prefixes, both families.
    pub pod_cidrs: Vec<Prefix>,
    /// Its WireGuard key, if it encrypts.
    pub wireguard_key: Option<WireguardKey>,
    /// Cilium's `EncryptionKey`: 255 for WireGuard, 0 for none.
    pub encryption_key: u8,
    /// Its labels; shared with the entry they were read from.
    pub labels: Texts,
    /// Kubernetes' Ready condition, where the source knows it.
    pub ready: Option<bool>,
    /// What else Kubernetes says of its state.
    pub health: NodeHealth,
}

/// The state of a node as its object says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeHealth {
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// Keys of `spec.taints`.
    pub taints: BTreeSet<Arc<str>>,
    /// The condition DiskPressure holds.
    pub disk_pressure: bool,
}

impl NodeRow {
    /// The first underlay address of a family: InternalIP before ExternalIP.
    #[must_use]
    pub fn underlay(&self, ipv4: bool) -> Option<IpAddr> {
        let of =
            |kind| self.addresses.iter().find(|a| a.kind == kind && a.ip.is_ipv4() == ipv4).map(|a| a.ip);
        of(AddressKind::Internal).or_else(|| of(AddressKind::External))
    }

    /// The node's address inside its pod prefix, by family.
    #[must_use]
    pub fn internal(&self, ipv4: bool) -> Option<IpAddr> {
        let wanted = |a: &&NodeAddress| a.kind == AddressKind::CiliumInternal && a.ip.is_ipv4() == ipv4;
        self.addresses.iter().find(wanted).map(|a| a.ip)
    }
}

/// How nodes are looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeLookup {
    /// By any of its addresses.
    Address(IpAddr),
    /// By one of its pod prefixes.
    PodCidr(Prefix),
    /// By cluster and name, whoever said it.
    Name(ClusterName, Arc<str>),
}

impl Row for NodeRow {
    type Key = (Source, ClusterName, Arc<str>);
    type Index = NodeLookup;
    const TABLE: &'static str = "nodes";
    fn key(&self) -> Self::Key {
        (self.source, self.cluster, self.name.clone())
    }
    fn cmp_key(&self, key: &Self::Key) -> Ordering {
        let numbers = self.source.cmp(&key.0).then_with(|| self.cluster.cmp(&key.1));
        numbers.then_with(|| self.name.cmp(&key.2))
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<NodeLookup> {
        let name = NodeLookup::Name(self.cluster, self.name.clone());
        let addresses = self.addresses.iter().map(|address| NodeLookup::Address(address.ip));
        let cidrs = self.pod_cidrs.iter().map(|prefix| NodeLookup::PodCidr(*prefix));
        std::iter::once(name).chain(addresses).chain(cidrs).collect()
    }
    fn columns() -> &'static [&'static str] {
        &["CLUSTER", "NAME", "UNDERLAY", "POD-CIDRS", "WIREGUARD", "READY", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        let underlay = self.addresses.iter().filter(|a| a.kind == AddressKind::Internal).map(|a| a.ip);
        let key = self.wireguard_key.map(|key| key.to_string().chars().take(8).collect::<String>());
        vec![
            self.cluster.to_string(),
            self.name.to_string(),
            list(underlay),
            list(&self.pod_cidrs),
            opt(key),
            opt(self.ready),
            self.source.to_string(),
        ]
    }
}

/// Intent: what labels a number stands for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IdentityRow {
    /// Who said it.
    pub source: Source,
    /// The number.
    pub id: IdentityId,
    /// Its labels.
    pub labels: Labels,
}

impl Row for IdentityRow {
    type Key = (IdentityId, Source);
    type Index = NoIndex;
    const TABLE: &'static str = "identities";
    fn key(&self) -> Self::Key {
        (self.id, self.source)
    }
    fn cmp_key(&self, key: &Self::Key) -> Ordering {
        self.id.cmp(&key.0).then_with(|| self.source.cmp(&key.1))
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["ID", "LABELS", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.id.0.to_string(), list(self.labels.to_list()), self.source.to_string()]
    }
}

/// How far an endpoint's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Its interface exists; the datapath drops (203) until identity and policy are applied.
    Creating,
    /// Forwarding.
    Ready,
    /// Its interface is being taken away.
    Deleting,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointRow {
    /// Number on this node, 1..=65535.
    pub id: u16,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub pod: Arc<str>,
    /// The runtime's sandbox id.
    pub container_id: Arc<str>,
    /// One address per family at most.
    pub addresses: Vec<IpAddr>,
    /// The host side's interface name.
    pub host_interface: Arc<str>,
    /// The host side's interface index.
    pub ifindex: u32,
    /// The pod's MAC address.
    pub mac: [u8; 6],
    /// The host side's MAC address, the pod's gateway.
    pub host_mac: [u8; 6],
    /// Its identity once allocated.
    pub identity: Option<IdentityId>,
    /// The labels that make the identity.
    pub labels: Labels,
    /// Ports of the node that the runtime wants to lead to it (CNI's `portMappings`).
    pub port_mappings: BTreeSet<HostPort>,
    /// Whether plugins behind ours keep its traffic in queues of its interface, which packets must not pass by.
    pub queued: bool,
    /// How far it is.
    pub state: EndpointState,
}

impl Row for EndpointRow {
    type Key = u16;
    type Index = IpAddr;
    const TABLE: &'static str = "endpoints";
    fn key(&self) -> u16 {
        self.id
    }
    fn source(&self) -> &Source {
        &Source::Local
    }
    fn indexes(&self) -> Vec<IpAddr> {
        self.addresses.clone()
    }
    fn columns() -> &'static [&'static str] {
        &["ID", "NAMESPACE", "POD", "ADDRESSES", "IDENTITY", "INTERFACE", "STATE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.namespace.to_string(),
            self.pod.to_string(),
            list(&self.addresses),
            opt(self.identity.map(|id| id.0)),
            format!("{} ({})", self.host_interface, self.ifindex),
            format!("{:?}", self.state).to_lowercase(),
        ]
    }
}

/// Intent: an address or prefix and who is behind it (Cilium's ip cache entry).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefixRow {
    /// Who said it.
    pub source: Source,
    /// The address or prefix.
    pub prefix: Prefix,
    /// The identity behind it.
    pub identity: IdentityId,
    /// Where it lives.
    #[serde(flatten)]
    pub residence: Arc<Residence>,
    /// Pod name, if it is a pod.
    pub pod: Option<Arc<str>>,
}

impl Row for PrefixRow {
    type Key = (Prefix, Source);
    type Index = NoIndex;
    const TABLE: &'static str = "prefixes";
    fn key(&self) -> Self::Key {
        (self.prefix, self.source)
    }
    fn cmp_key(&self, key: &Self::Key) -> Ordering {
        self.prefix.cmp(&key.0).then_with(|| self.source.cmp(&key.1))
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["PREFIX", "IDENTITY", "NODE", "NAMESPACE", "POD", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.to_string(),
            self.identity.to_string(),
            opt(self.residence.host_ip),
            opt(self.residence.namespace.clone()),
            opt(self.pod.clone()),
            self.source.to_string(),
        ]
    }
}

/// Intent: a route learned from a BGP peer, all its equal paths.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LearnedRoute {
    /// [`Source::Peer`] of the BGP instance.
    pub source: Source,
    /// The destination.
    pub prefix: Prefix,
    /// The best paths' next hops, several when they are equal.
    pub next_hops: BTreeSet<LearnedNextHop>,
    /// Kept from a peer that restarts gracefully and not yet confirmed.
    pub stale: bool,
}

/// Where a learned route points.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LearnedNextHop {
    /// The router's address.
    pub via: IpAddr,
    /// The interface, for link-local next hops.
    pub interface: Option<Arc<str>>,
    /// Its share of the packets, against those of the route's other next hops: 1 to 256 (the kernel's range).
    pub weight: u16,
}

impl LearnedNextHop {
    /// A next hop that weighs no more than others.
    #[must_use]
    pub const fn new(via: IpAddr, interface: Option<Arc<str>>) -> Self {
        Self { via, interface, weight: 1 }
    }
}

impl fmt::Display for LearnedNextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.via)?;
        if self.weight > 1 { write!(f, " weight {}", self.weight) } else { Ok(()) }
    }
}

impl Row for LearnedRoute {
    type Key = (Prefix, Source);
    type Index = NoIndex;
    const TABLE: &'static str = "learned-routes";
    fn key(&self) -> Self::Key {
        (self.prefix, self.source)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["PREFIX", "NEXT-HOPS", "STALE", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.to_string(),
            list(self.next_hops.iter()),
            self.stale.to_string(),
            self.source.to_string(),
        ]
    }
}

/// A node's row number in the datapath; 0 is this node. Stable over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeIndex(pub u32);

impl NodeIndex {
    /// This node.
    pub const LOCAL: Self = Self(0);
}

/// How packets get to a node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// They live here.
    Local,
    /// In VXLAN to the node's tunnel endpoint.
    Overlay,
    /// As they are, by the routing table.
    Direct,
}

/// Desired: how to reach one node's pods. Switching path or key is one write.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodePath {
    /// Who said the node.
    pub source: Source,
    /// Row number in the datapath.
    pub index: NodeIndex,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub node: Arc<str>,
    /// How.
    pub path: PathKind,
    /// The underlay address that tunnels end at and WireGuard speaks to.
    pub underlay: Option<IpAddr>,
    /// Whether packets to its pods must be encrypted.
    pub encrypt: bool,
    /// The largest packet that fits the path, in bytes.
    pub mtu: u16,
}

impl Row for NodePath {
    type Key = NodeIndex;
    type Index = NoIndex;
    const TABLE: &'static str = "paths";
    fn key(&self) -> NodeIndex {
        self.index
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["INDEX", "CLUSTER", "NODE", "PATH", "UNDERLAY", "ENCRYPTED", "MTU"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.index.0.to_string(),
            self.cluster.to_string(),
            self.node.to_string(),
            format!("{:?}", self.path).to_lowercase(),
            opt(self.underlay),
            self.encrypt.to_string(),
            self.mtu.to_string(),
        ]
    }
}

/// Desired: what the datapath knows of a prefix; longest match wins.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PrefixEntry {
    /// Whose row won.
    pub source: Source,
    /// The prefix.
    pub prefix: Prefix,
    /// The identity behind it.
    pub identity: IdentityId,
    /// The node that serves it; its row holds path, tunnel endpoint and encryption.
    pub node: NodeIndex,
    /// It is a node's own underlay address: never tunnelled.
    pub node_address: bool,
    /// It lives in another cluster.
    pub remote_cluster: bool,
}

impl Row for PrefixEntry {
    type Key = Prefix;
    type Index = NoIndex;
    const TABLE: &'static str = "prefix-entries";
    fn key(&self) -> Prefix {
        self.prefix
    }
    fn cmp_key(&self, key: &Prefix) -> Ordering {
        self.prefix.cmp(key)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["PREFIX", "IDENTITY", "NODE-INDEX", "NODE-ADDRESS", "REMOTE", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.to_string(),
            self.identity.to_string(),
            self.node.0.to_string(),
            self.node_address.to_string(),
            self.remote_cluster.to_string(),
            self.source.to_string(),
        ]
    }
}

/// Why a kernel route exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteOrigin {
    /// Learned from a BGP peer.
    Bgp,
    /// The way to a remote node's pods through the tunnel device.
    Overlay,
    /// This node's own pod prefix: addresses that no pod has are unreachable.
    Own,
}

/// Desired: a route of the main table that is ours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouteEntry {
    /// Who caused it.
    pub source: Source,
    /// The destination.
    pub prefix: Prefix,
    /// Why it exists.
    pub origin: RouteOrigin,
    /// Next hops; several make a multipath route. Empty with a device alone; without either the prefix is unreachable.
    pub next_hops: BTreeSet<LearnedNextHop>,
    /// The device for routes without a next hop.
    pub device: Option<Arc<str>>,
    /// Preferred source address of the node's own packets.
    pub source_address: Option<IpAddr>,
    /// Largest packet, in bytes.
    pub mtu: Option<u16>,
}

impl Row for RouteEntry {
    type Key = Prefix;
    type Index = NoIndex;
    const TABLE: &'static str = "routes";
    fn key(&self) -> Prefix {
        self.prefix
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["PREFIX", "ORIGIN", "VIA", "DEVICE", "SRC", "MTU", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.to_string(),
            format!("{:?}", self.origin).to_lowercase(),
            list(self.next_hops.iter()),
            opt(self.device.clone()),
            opt(self.source_address),
            opt(self.mtu),
            self.source.to_string(),
        ]
    }
}

/// Desired: a WireGuard peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WireguardPeer {
    /// Who said the node.
    pub source: Source,
    /// Its public key.
    pub key: WireguardKey,
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its node name.
    pub node: Arc<str>,
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// What may come from it and goes to it.
    pub allowed_ips: BTreeSet<Prefix>,
}

impl Row for WireguardPeer {
    type Key = WireguardKey;
    type Index = (ClusterName, Arc<str>);
    const TABLE: &'static str = "wireguard-peers";
    fn key(&self) -> WireguardKey {
        self.key
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<(ClusterName, Arc<str>)> {
        vec![(self.cluster, self.node.clone())]
    }
    fn columns() -> &'static [&'static str] {
        &["KEY", "CLUSTER", "NODE", "ENDPOINT", "ALLOWED-IPS"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.key.to_string().chars().take(16).collect(),
            self.cluster.to_string(),
            self.node.to_string(),
            self.endpoint.to_string(),
            list(&self.allowed_ips),
        ]
    }
}
