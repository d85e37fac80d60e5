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

/// A range of addresses from which whoever connects becomes a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenRange {
    /// Where peers may connect from.
    pub prefix: Prefix,
    /// Most peers at a time.
    pub limit: u32,
    /// AS numbers accepted, as first and last; empty: any.
    pub asns: Vec<(u32, u32)>,
}

/// Desired: a BGP session of this node, or with `range` the sessions of all peers in it.
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
    /// The peer's address; `::` if it is unnumbered.
    pub address: IpAddr,
    /// The interface it is on, for a link-local address or an unnumbered peer.
    pub interface: Option<Arc<str>>,
    /// The peer is whatever router answers on the interface.
    pub unnumbered: bool,
    /// The row stands for all peers of a range; `address` is then the range's own.
    pub range: Option<ListenRange>,
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
            match (&self.range, &self.interface) {
                (Some(range), _) => range.prefix.to_string(),
                (None, Some(interface)) => format!("{}%{interface}", self.address),
                (None, None) => self.address.to_string(),
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
    /// Written in a router's configuration.
    Network,
    /// A prefix that an interface of a router is in.
    Connected {
        /// The interface.
        interface: Arc<str>,
    },
}

/// Desired: a prefix that this node advertises to one peer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdvertRow {
    /// Who said it.
    pub source: Source,
    /// `CiliumBGPClusterConfig` instance name.
    pub instance: Arc<str>,
    /// Peer name within the instance; empty: all its peers.
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
            AdvertOrigin::Network => "network".to_owned(),
            AdvertOrigin::Connected { interface } => format!("connected {interface}"),
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
