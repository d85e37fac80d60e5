//! The desired rows of BGP: sessions and advertised prefixes.

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
    /// Peer name within the instance.
    pub name: Arc<str>,
    /// Our AS number.
    pub local_asn: u32,
    /// Our router id.
    pub router_id: Ipv4Addr,
    /// TCP port to listen on; `None` = no listener.
    pub local_port: Option<u16>,
    /// The peer's address.
    pub address: IpAddr,
    /// The peer's TCP port.
    pub port: u16,
    /// The peer's AS number; 0 accepts whatever it opens with.
    pub asn: u32,
    /// Our address on the session, if fixed.
    pub local_address: Option<IpAddr>,
    /// Families to negotiate.
    pub families: BTreeSet<Family>,
    /// Seconds between tries.
    pub connect_retry_secs: u32,
    /// Hold time in seconds.
    pub hold_time_secs: u16,
    /// Keepalive interval in seconds.
    pub keepalive_secs: u16,
    /// Restart time in seconds if graceful restart is on.
    pub graceful_restart_secs: Option<u16>,
    /// TTL of eBGP packets; 1 = directly connected.
    pub ebgp_multihop: u8,
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
        &["INSTANCE", "PEER", "LOCAL-AS", "PEER-AS", "ADDRESS", "HOLD", "GRACEFUL-RESTART"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.instance.to_string(),
            self.name.to_string(),
            self.local_asn.to_string(),
            self.asn.to_string(),
            self.address.to_string(),
            format!("{}s", self.hold_time_secs),
            self.graceful_restart_secs.map_or_else(|| "-".to_owned(), |secs| format!("{secs}s")),
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
