//! The rows that service owns.

use crate::choice::{TierUse, Why};
use crate::details::ServiceDetails;
use crate::spread::Spread;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(" ") }
}

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
    /// Also on every node's port; its frontends come with the kube-proxy replacement issue.
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

impl Row for ServiceRow {
    type Key = ServiceName;
    type Index = IpAddr;
    const TABLE: &'static str = "services";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<IpAddr> {
        self.cluster_ips.iter().chain(&self.external_ips).copied().collect()
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
            list(self.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol))),
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

/// Who may use a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Traffic that enters from outside the cluster.
    External,
    /// Traffic of pods and of the node.
    Internal,
}

/// Address, port, protocol and scope of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FrontendKey {
    /// Service address.
    pub address: IpAddr,
    /// Service port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Who may use it.
    pub scope: Scope,
}

/// Desired: a frontend with its chosen backends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FrontendRow {
    /// Always [`Source::Planner`]: built from several.
    pub source: Source,
    /// Address, port, protocol, scope.
    pub key: FrontendKey,
    /// Number for reverse translation, stable over restarts, 1..=65535.
    pub id: u16,
    /// The service.
    pub service: ServiceName,
    /// Ids of the backends that take new flows, in Maglev order; empty drops (158).
    pub backends: Vec<u32>,
    /// Their shares, beside each other; empty when all are alike.
    pub weights: Arc<[u32]>,
    /// The tiers of clusters, first choice first: what each has, and how much of the traffic it gets.
    pub tiers: Arc<[TierUse]>,
    /// Known backends that take no new flows, and why. They keep the flows they have.
    pub spare: Arc<[(u32, Why)]>,
    /// The Maglev table: positions into `backends`. Empty when there is at most one backend.
    pub maglev: Arc<[u16]>,
    /// Whether only backends of this node are used and the client's address is kept.
    pub local_only: bool,
}

impl Row for FrontendRow {
    type Key = FrontendKey;
    type Index = ServiceName;
    const TABLE: &'static str = "frontends";
    fn key(&self) -> FrontendKey {
        self.key
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<ServiceName> {
        vec![self.service.clone()]
    }
    fn columns() -> &'static [&'static str] {
        &["ADDRESS", "PORT", "PROTOCOL", "SCOPE", "ID", "SERVICE", "BACKENDS", "TIERS", "NOT-CHOSEN"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.key.address.to_string(),
            self.key.port.to_string(),
            self.key.protocol.to_string(),
            format!("{:?}", self.key.scope).to_lowercase(),
            self.id.to_string(),
            self.service.to_string(),
            list(self.shares().map(|(id, percent)| match percent {
                Some(percent) => format!("{id}:{percent:.1}%"),
                None => id.to_string(),
            })),
            list(self.tiers.iter()),
            list(self.spare.iter().map(|(id, why)| format!("{id}:{why}"))),
        ]
    }
}

impl FrontendRow {
    /// The backend of each slot, as packets find it.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        let single = self.backends.iter().copied().filter(|_| self.maglev.is_empty());
        let slots = self.maglev.iter().filter_map(|slot| self.backends.get(usize::from(*slot)).copied());
        single.chain(slots)
    }

    /// The ids, and the percentage of new flows of each where they are not alike.
    pub fn shares(&self) -> impl Iterator<Item = (u32, Option<f64>)> {
        let all: f64 = self.weights.iter().map(|weight| f64::from(*weight)).sum();
        self.backends.iter().enumerate().map(move |(position, id)| {
            (*id, self.weights.get(position).map(|weight| f64::from(*weight) * 100.0 / all))
        })
    }
}

/// Desired: a backend. Shared by all frontends that choose it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BackendRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Number, stable over restarts, 1..
    pub id: u32,
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Whether it runs on this node.
    pub local: bool,
    /// The cluster it runs in; `None` for this one.
    pub cluster: Option<Arc<str>>,
    /// How ready it is.
    pub state: BackendState,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Whether it does not answer this node's probes.
    pub failing: bool,
}

impl Row for BackendRow {
    type Key = u32;
    type Index = NoIndex;
    const TABLE: &'static str = "backends";
    fn key(&self) -> u32 {
        self.id
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["ID", "ADDRESS", "PORT", "PROTOCOL", "LOCAL", "CLUSTER", "ZONE", "STATE", "PROBE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            self.address.to_string(),
            self.port.to_string(),
            self.protocol.to_string(),
            self.local.to_string(),
            self.cluster.as_deref().unwrap_or("-").to_owned(),
            self.zone.as_deref().unwrap_or("-").to_owned(),
            self.state.to_string(),
            if self.failing { "FAILED" } else { "-" }.to_owned(),
        ]
    }
}
