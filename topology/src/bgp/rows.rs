//! The desired rows of BGP: sessions and advertised prefixes.

use super::{Password, PeerTuning};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// An address family of BGP routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

/// Desired: a BGP session of this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerRow {
    /// Who said it.
    pub source: Source,
    /// `CiliumBGPClusterConfig` instance name.
    pub instance: Arc<str>,
    /// Unique within the instance: the peer's name there, `@address` appended where it was discovered.
    pub name: Arc<str>,
    /// The peer's name in the cluster configuration.
    pub peer: Arc<str>,
    /// The `CiliumBGPPeerConfig`; `None` = all defaults.
    pub peer_config: Option<Arc<str>>,
    /// Our AS number.
    pub local_asn: u32,
    /// Our router id.
    pub router_id: Ipv4Addr,
    /// TCP port to listen on; `None` = no listener.
    pub local_port: Option<u16>,
    /// The peer's address.
    pub address: IpAddr,
    /// The interface it is on, for a link-local address.
    pub interface: Option<Arc<str>>,
    /// The peer's TCP port.
    pub port: u16,
    /// The peer's AS number; 0 accepts whatever it opens with.
    pub asn: u32,
    /// Our address on the session, if fixed.
    pub local_address: Option<IpAddr>,
    /// Families to negotiate.
    pub families: BTreeSet<Family>,
    /// `connectRetryTimeSeconds`: seconds between tries, the jitter not counted.
    pub connect_retry_secs: u32,
    /// Hold time in seconds.
    pub hold_time_secs: u16,
    /// Keepalive interval in seconds.
    pub keepalive_secs: u16,
    /// Restart time in seconds if graceful restart is on.
    pub graceful_restart_secs: Option<u16>,
    /// TTL of eBGP packets; 1 = directly connected.
    pub ebgp_multihop: u8,
    /// TCP MD5 key (RFC 2385).
    pub password: Option<Password>,
    /// What a `BGPPeerPolicy` adds.
    pub tuning: PeerTuning,
}

impl Row for PeerRow {
    type Key = (Arc<str>, Arc<str>);
    type Index = NoIndex;
    const TABLE: &'static str = "peers";
    fn key(&self) -> Self::Key {
        (self.instance.clone(), self.name.clone())
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["INSTANCE", "PEER", "LOCAL-AS", "PEER-AS", "ADDRESS", "HOLD", "GRACEFUL-RESTART", "MD5", "POLICY"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.instance.to_string(),
            self.name.to_string(),
            self.local_asn.to_string(),
            self.asn.to_string(),
            match &self.interface {
                Some(interface) => format!("{}%{interface}", self.address),
                None => self.address.to_string(),
            },
            format!("{}s", self.hold_time_secs),
            self.graceful_restart_secs.map_or_else(|| "-".to_owned(), |secs| format!("{secs}s")),
            if self.password.is_some() { "yes" } else { "-" }.to_owned(),
            self.tuning.policy.as_deref().unwrap_or("-").to_owned(),
        ]
    }
}

/// What an advertised prefix is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdvertOrigin {
    /// A pod prefix of this node.
    PodCidr,
    /// An address of a service.
    Service {
        /// Namespace.
        namespace: Arc<str>,
        /// Name.
        name: Arc<str>,
    },
    /// A pod prefix of this node, out of a selected pool.
    PodIpPool {
        /// The pool's name.
        name: Arc<str>,
    },
    /// An address of an interface.
    Interface {
        /// Its name.
        name: Arc<str>,
    },
}

/// Desired: a prefix that this node advertises to one peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdvertRow {
    /// Who said it.
    pub source: Source,
    /// `CiliumBGPClusterConfig` instance name.
    pub instance: Arc<str>,
    /// Peer name within the instance.
    pub peer: Arc<str>,
    /// The prefix.
    pub prefix: Prefix,
    /// What it is.
    pub origin: AdvertOrigin,
    /// Standard communities.
    pub communities: BTreeSet<u32>,
    /// Large communities.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// Local preference, iBGP only.
    pub local_preference: Option<u32>,
    /// MULTI_EXIT_DISC, if a `BGPPeerPolicy` gives one.
    pub med: Option<u32>,
}

impl Row for AdvertRow {
    type Key = (Arc<str>, Arc<str>, Prefix);
    type Index = NoIndex;
    const TABLE: &'static str = "adverts";
    fn key(&self) -> Self::Key {
        (self.instance.clone(), self.peer.clone(), self.prefix)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["INSTANCE", "PEER", "PREFIX", "ORIGIN", "COMMUNITIES"]
    }
    fn cells(&self) -> Vec<String> {
        let origin = match &self.origin {
            AdvertOrigin::PodCidr => "pod-cidr".to_owned(),
            AdvertOrigin::Service { namespace, name } => format!("service {namespace}/{name}"),
            AdvertOrigin::PodIpPool { name } => format!("pod-ip-pool {name}"),
            AdvertOrigin::Interface { name } => format!("interface {name}"),
        };
        let communities = self.communities.iter().map(|c| format!("{}:{}", c >> 16, c & 0xffff));
        vec![
            self.instance.to_string(),
            self.peer.to_string(),
            self.prefix.to_string(),
            origin,
            communities.collect::<Vec<_>>().join(" "),
        ]
    }
}
