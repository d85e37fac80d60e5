//! What the `cilium.io` BGP kinds ask for, validated and with defaults filled in.

use super::{Family, Password};
use crate::selector::LabelSelector;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// `autoDiscovery`: where the peer's address comes from if it is not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Discovery {
    /// The gateways of the default route of the lowest metric, one session with each.
    DefaultGateway {
        /// `addressFamily`: of the route and of the session.
        ipv4: bool,
    },
    /// Whoever answers on the other end of an interface.
    Unnumbered {
        /// Its name.
        interface: Arc<str>,
    },
}

/// `spec.bgpInstances[].peers[]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerIntent {
    /// Unique in the instance.
    pub name: Arc<str>,
    /// `peerAddress`; `None` when it is to be discovered.
    pub address: Option<IpAddr>,
    /// The `%zone` of a link-local `peerAddress`.
    pub zone: Option<Arc<str>>,
    /// `peerASN`; 0 accepts whatever AS number the peer opens with.
    pub asn: u32,
    /// `autoDiscovery`; not looked at where there is an address.
    pub discovery: Option<Discovery>,
    /// `peerConfigRef.name`; `None` = all defaults.
    pub peer_config: Option<Arc<str>>,
}

/// `spec.bgpInstances[]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstanceIntent {
    /// Unique in the configuration.
    pub name: Arc<str>,
    /// `localASN`, unless a node override gives it.
    pub local_asn: Option<u32>,
    /// `localPort`; `None` = no listener.
    pub local_port: Option<u16>,
    /// Peers.
    pub peers: Vec<PeerIntent>,
}

/// Intent: a `CiliumBGPClusterConfig`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterConfigRow {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// `nodeSelector`; empty selects all nodes.
    pub node_selector: LabelSelector,
    /// Instances.
    pub instances: Vec<InstanceIntent>,
}

/// `spec.families[]` of a peer configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FamilyIntent {
    /// `None` for a family that the API knows and this speaker does not.
    pub family: Option<Family>,
    /// `afi/safi` as written.
    pub text: Arc<str>,
    /// Selects advertisements by their labels; `None` selects none.
    pub advertisements: Option<LabelSelector>,
}

/// Intent: a `CiliumBGPPeerConfig`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerConfigRow {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// `transport.peerPort`.
    pub peer_port: u16,
    /// `transport.sourceInterface`.
    pub source_interface: Option<Arc<str>>,
    /// `timers.connectRetryTimeSeconds`.
    pub connect_retry_secs: u32,
    /// `timers.holdTimeSeconds`.
    pub hold_time_secs: u16,
    /// `timers.keepAliveTimeSeconds`.
    pub keepalive_secs: u16,
    /// `authSecretRef`.
    pub auth_secret: Option<Arc<str>>,
    /// `gracefulRestart.restartTimeSeconds` if enabled.
    pub graceful_restart_secs: Option<u16>,
    /// `ebgpMultihop`.
    pub ebgp_multihop: u8,
    /// Families.
    pub families: Vec<FamilyIntent>,
}

impl PeerConfigRow {
    /// The defaults of the API: port 179, timers 120/90/30 s, no graceful restart, both unicast families without
    /// advertisements.
    #[must_use]
    pub fn defaults(source: Source, name: Arc<str>) -> Self {
        let family = |family, text: &str| FamilyIntent {
            family: Some(family),
            text: text.into(),
            advertisements: None,
        };
        Self {
            source,
            name,
            peer_port: 179,
            source_interface: None,
            connect_retry_secs: 120,
            hold_time_secs: 90,
            keepalive_secs: 30,
            auth_secret: None,
            graceful_restart_secs: None,
            ebgp_multihop: 1,
            families: vec![
                family(Family::Ipv6Unicast, "ipv6/unicast"),
                family(Family::Ipv4Unicast, "ipv4/unicast"),
            ],
        }
    }
}

/// Which of a service's addresses an advertisement names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ServiceAddress {
    /// Addresses of a pool.
    LoadBalancerIP,
    /// `clusterIPs`.
    ClusterIP,
    /// `externalIPs`.
    ExternalIP,
}

/// What an entry of an advertisement is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum AdvertKind {
    /// The node's pod prefixes.
    PodCidr,
    /// Addresses of services.
    Service {
        /// Which ones.
        addresses: BTreeSet<ServiceAddress>,
        /// `aggregationLengthIPv4`.
        aggregation_ipv4: Option<u8>,
        /// `aggregationLengthIPv6`.
        aggregation_ipv6: Option<u8>,
    },
    /// The node's pod prefixes that lie in selected pools.
    PodIpPool,
    /// The addresses of an interface.
    Interface {
        /// Its name.
        name: Arc<str>,
    },
}

/// `spec.advertisements[]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdvertIntent {
    /// What it is about.
    pub kind: AdvertKind,
    /// Selects services or pools; `None` selects none.
    pub selector: Option<LabelSelector>,
    /// Standard and well-known communities.
    pub communities: BTreeSet<u32>,
    /// Large communities.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// `localPreference`, iBGP only.
    pub local_preference: Option<u32>,
}

/// Intent: a `CiliumBGPAdvertisement`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdvertisementRow {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// Labels, by which peer configurations select it.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Entries.
    pub entries: Vec<AdvertIntent>,
}

/// `spec.bgpInstances[]` of a node override.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstanceOverride {
    /// The instance it changes.
    pub name: Arc<str>,
    /// `routerID`.
    pub router_id: Option<Ipv4Addr>,
    /// `localPort`.
    pub local_port: Option<u16>,
    /// `localASN`.
    pub local_asn: Option<u32>,
    /// `peers[].localAddress` by peer name.
    pub local_addresses: BTreeMap<Arc<str>, IpAddr>,
}

/// Intent: a `CiliumBGPNodeConfigOverride`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverrideRow {
    /// Who said it.
    pub source: Source,
    /// The node's name.
    pub name: Arc<str>,
    /// Instances.
    pub instances: Vec<InstanceOverride>,
}

fn join<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(" ") }
}

impl Row for ClusterConfigRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-cluster-configs";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "INSTANCES", "PEERS"]
    }
    fn cells(&self) -> Vec<String> {
        let peers = self.instances.iter().flat_map(|instance| &instance.peers).map(|peer| &peer.name);
        vec![self.name.to_string(), join(self.instances.iter().map(|i| &i.name)), join(peers)]
    }
}

impl Row for PeerConfigRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-peer-configs";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "FAMILIES", "HOLD", "GRACEFUL-RESTART"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            join(self.families.iter().map(|family| &family.text)),
            format!("{}s", self.hold_time_secs),
            self.graceful_restart_secs.map_or_else(|| "-".to_owned(), |secs| format!("{secs}s")),
        ]
    }
}

impl Row for AdvertisementRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-advertisements";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "LABELS", "TYPES"]
    }
    fn cells(&self) -> Vec<String> {
        let kinds = self.entries.iter().map(|entry| match &entry.kind {
            AdvertKind::PodCidr => "PodCIDR".to_owned(),
            AdvertKind::Service { addresses, .. } => {
                join(addresses.iter().map(|address| format!("{address:?}")))
            }
            AdvertKind::PodIpPool => "CiliumPodIPPool".to_owned(),
            AdvertKind::Interface { name } => format!("Interface {name}"),
        });
        let labels = self.labels.iter().map(|(key, value)| format!("{key}={value}"));
        vec![self.name.to_string(), join(labels), join(kinds)]
    }
}

impl Row for OverrideRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-node-overrides";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NODE", "INSTANCES"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), join(self.instances.iter().map(|instance| &instance.name))]
    }
}

/// Intent: a `CiliumPodIPPool`, as far as advertising what a node has of it goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodPoolRow {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// Labels, by which advertisements select it.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `ipv4.cidrs` and `ipv6.cidrs`.
    pub cidrs: BTreeSet<Prefix>,
}

impl Row for PodPoolRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "pod-ip-pools";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "CIDRS"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), join(&self.cidrs)]
    }
}

/// Intent: a `Secret`, as far as BGP may use it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SecretRow {
    /// Who said it.
    pub source: Source,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Object name.
    pub name: Arc<str>,
    /// The value of the key `password`, if it has one.
    pub password: Option<Password>,
}

impl Row for SecretRow {
    type Key = (Arc<str>, Arc<str>);
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-secrets";
    fn key(&self) -> Self::Key {
        (self.namespace.clone(), self.name.clone())
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "PASSWORD"]
    }
    fn cells(&self) -> Vec<String> {
        let password = if self.password.is_some() { "set" } else { "-" };
        vec![self.namespace.to_string(), self.name.to_string(), password.to_owned()]
    }
}
