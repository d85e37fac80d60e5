//! The rows that service owns.

mod host_port;
mod planned;

pub use host_port::HostPortRow;
pub use planned::{BackendRow, FrontendKey, FrontendRow, Scope};

use crate::details::ServiceDetails;
use crate::spread::Spread;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::cells::list;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Row;

/// A transport protocol that services speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// IP protocol 6.
    #[serde(rename = "TCP")]
    Tcp,
    /// IP protocol 17.
    #[serde(rename = "UDP")]
    Udp,
    /// IP protocol 132.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// By its number.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }

    /// From Kubernetes' spelling.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Namespace and name of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `spec.type`, as far as it decides which frontends exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ServiceType {
    /// Cluster-internal.
    ClusterIP,
    /// Also on a port of every node.
    NodePort,
    /// Also on addresses of a pool.
    LoadBalancer,
    /// A DNS alias: no frontends.
    ExternalName,
}

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum TrafficPolicy {
    /// Backends on any node.
    #[default]
    Cluster,
    /// Backends on the receiving node only.
    Local,
}

/// `service.cilium.io/affinity`: which cluster's backends are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// All alike.
    #[default]
    None,
    /// Local ones while at least one is active.
    Local,
    /// Remote ones while at least one is active.
    Remote,
}

/// `spec.trafficDistribution`: which backends are preferred by where they run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Distribution {
    /// What the hints of the slices say; all alike without hints.
    #[default]
    Any,
    /// `PreferSameZone`, formerly `PreferClose`.
    SameZone,
    /// `PreferSameNode`: this node's, else this zone's.
    SameNode,
}

/// What is known of a backend's readiness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackendState {
    /// Takes new flows.
    #[default]
    Ready,
    /// Serves what it has: terminating, as a rule. Takes new flows only where nobody is ready (KEP-1669).
    Serving,
    /// Takes none.
    NotReady,
}

impl BackendState {
    /// Of an EndpointSlice's conditions; `None` for an endpoint that is as good as gone.
    #[must_use]
    pub const fn of(ready: bool, serving: bool, terminating: bool) -> Option<Self> {
        match (ready, serving, terminating) {
            (true, ..) => Some(Self::Ready),
            (_, true, _) => Some(Self::Serving),
            (.., false) => Some(Self::NotReady),
            (.., true) => None,
        }
    }
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Serving => "serving",
            Self::NotReady => "not-ready",
        })
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// Name; empty for a single unnamed port.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The port of the service's addresses.
    pub port: u16,
    /// `nodePort`: the port of the nodes' own addresses that leads here, too. Only of a service that may have one.
    pub node_port: Option<u16>,
}

impl ServicePort {
    /// The node port as something that one service can have.
    #[must_use]
    pub fn claim(&self) -> Option<Claim> {
        self.node_port.map(|number| Claim::NodePort(number, self.protocol))
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node_port {
            Some(node_port) => write!(f, "{}:{node_port}/{}", self.port, self.protocol),
            None => write!(f, "{}/{}", self.port, self.protocol),
        }
    }
}

/// What at most one service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// A cluster or external address: at each of its ports one service is meant.
    Address(IpAddr),
    /// A port of the nodes' own addresses.
    NodePort(u16, Protocol),
}

/// Intent: a Service of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceRow {
    /// Who said it.
    pub source: Source,
    /// Namespace and name.
    pub name: ServiceName,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIPs` without `None`; empty for headless.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP: None`.
    pub headless: bool,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// `internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `loadBalancerClass`.
    pub load_balancer_class: Option<Arc<str>>,
    /// `spec.ipFamilies` as "is IPv4".
    pub families_ipv4: Vec<bool>,
    /// `externalIPs`: addresses that routers lead here, for services of any type.
    pub external_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`: whose clients the LoadBalancer addresses are for; `None`: anybody's. A range that cannot be
    /// read is left out, so if none can, nobody is.
    pub source_ranges: Option<BTreeSet<Prefix>>,
    /// Addresses asked for: annotation `lbipam.cilium.io/ips` or `spec.loadBalancerIP`.
    pub requested_addresses: Vec<IpAddr>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `service.cilium.io/global`.
    pub global: bool,
    /// `service.cilium.io/shared` (true when global and not said otherwise).
    pub shared: bool,
    /// `service.cilium.io/affinity`.
    pub affinity: Affinity,
    /// The annotations `service.tombolo.io/…`: how traffic is spread over clusters.
    pub spread: Spread,
    /// `spec.trafficDistribution`.
    pub distribution: Distribution,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Selector.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// What only names and other clusters are told.
    pub details: ServiceDetails,
}

impl ServiceRow {
    /// What an object says that says nothing: a service of this cluster without addresses or ports.
    #[must_use]
    pub fn new(source: Source, name: ServiceName) -> Self {
        Self {
            source,
            name,
            kind: ServiceType::ClusterIP,
            cluster_ips: Vec::new(),
            headless: false,
            ports: Vec::new(),
            external_traffic_policy: TrafficPolicy::Cluster,
            internal_traffic_policy: TrafficPolicy::Cluster,
            load_balancer_class: None,
            families_ipv4: Vec::new(),
            external_ips: Vec::new(),
            source_ranges: None,
            requested_addresses: Vec::new(),
            publish_not_ready: false,
            global: false,
            shared: false,
            affinity: Affinity::None,
            spread: Spread::default(),
            distribution: Distribution::Any,
            labels: BTreeMap::new(),
            selector: BTreeMap::new(),
            details: ServiceDetails::default(),
        }
    }

    /// Its cluster and external addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.cluster_ips.iter().chain(&self.external_ips)
    }
}

impl Row for ServiceRow {
    type Key = ServiceName;
    type Index = Claim;
    const TABLE: &'static str = "services";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<Claim> {
        let addresses = self.addresses().copied().map(Claim::Address);
        addresses.chain(self.ports.iter().filter_map(ServicePort::claim)).collect()
    }
    fn columns() -> &'static [&'static str] {
        &[
            "NAMESPACE",
            "NAME",
            "TYPE",
            "CLUSTER-IPS",
            "PORTS",
            "GLOBAL",
            "AFFINITY",
            "TIERS",
            "WEIGHTS",
            "OVERFLOW",
        ]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            format!("{:?}", self.kind),
            list(&self.cluster_ips),
            list(&self.ports),
            self.global.to_string(),
            format!("{:?}", self.affinity).to_lowercase(),
            self.spread.tiers_text(),
            self.spread.weights_text(),
            self.spread.overflow.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%")),
        ]
    }
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlicePort {
    /// Port name, matched with the service's.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The backend's port.
    pub port: u16,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SliceEndpoint {
    /// Addresses of the slice's family.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready` (absent counts as true).
    pub ready: bool,
    /// `conditions.serving` (absent counts as ready).
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones`: zones that should use it.
    pub for_zones: Vec<Arc<str>>,
    /// `hints.forNodes`: nodes that should use it.
    pub for_nodes: Vec<Arc<str>>,
    /// Its name within a headless service.
    pub hostname: Option<Arc<str>>,
}

/// Intent: an EndpointSlice of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SliceRow {
    /// Who said it.
    pub source: Source,
    /// The slice's own namespace and name.
    pub name: ServiceName,
    /// The service it belongs to (label `kubernetes.io/service-name`).
    pub service: ServiceName,
    /// Ports.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl Row for SliceRow {
    type Key = ServiceName;
    type Index = ServiceName;
    const TABLE: &'static str = "slices";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<ServiceName> {
        vec![self.service.clone()]
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "SERVICE", "PORTS", "ENDPOINTS"]
    }
    fn cells(&self) -> Vec<String> {
        let endpoint =
            |e: &SliceEndpoint| format!("{}{}", list(&e.addresses), if e.ready { "" } else { "!" });
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            self.service.name.to_string(),
            list(self.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol))),
            list(self.endpoints.iter().map(endpoint)),
        ]
    }
}

/// A port of a remote backend, by the service's port name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RemotePort {
    /// Port name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The backend's port.
    pub port: u16,
}

/// A backend in another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemoteBackend {
    /// Its ports; backends of one service share them.
    pub ports: Arc<BTreeSet<RemotePort>>,
    /// How ready it is. What a cluster publishes as services, not as slices, is ready by being there.
    pub state: BackendState,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Zones that should use it; addresses of one endpoint share them.
    pub for_zones: Arc<[Arc<str>]>,
    /// Its name within a headless service.
    pub hostname: Option<Arc<str>>,
    /// The node of its cluster it runs on, where slices say so.
    pub node: Option<Arc<str>>,
}

/// Intent: a global service as another cluster shares it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemoteService {
    /// The remote cluster, [`Source::Cluster`].
    pub source: Source,
    /// Namespace and name.
    pub name: ServiceName,
    /// Its backends there.
    pub backends: BTreeMap<IpAddr, RemoteBackend>,
}

impl Row for RemoteService {
    type Key = (ServiceName, Source);
    type Index = ServiceName;
    const TABLE: &'static str = "remote-services";
    fn key(&self) -> Self::Key {
        (self.name.clone(), self.source)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<ServiceName> {
        vec![self.name.clone()]
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "BACKENDS", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            list(self.backends.keys()),
            self.source.to_string(),
        ]
    }
}

/// Intent: addresses that the elected agent assigned to a LoadBalancer service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LbAssignment {
    /// Who said it.
    pub source: Source,
    /// The service.
    pub name: ServiceName,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The pools they come from.
    pub pools: BTreeSet<Arc<str>>,
}

impl Row for LbAssignment {
    type Key = ServiceName;
    type Index = IpAddr;
    const TABLE: &'static str = "lb-addresses";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<IpAddr> {
        self.addresses.iter().copied().collect()
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "ADDRESSES", "POOLS"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            list(&self.addresses),
            list(&self.pools),
        ]
    }
}
