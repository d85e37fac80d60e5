//! The status of this node's sessions, in the shape of `CiliumBGPNodeConfig.status`.

use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// `routeCount[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteCount {
    /// `ipv4` or `ipv6`.
    pub afi: &'static str,
    /// `unicast`.
    pub safi: &'static str,
    /// Routes held from the peer.
    pub received: usize,
    /// Routes that the peer holds from us.
    pub advertised: usize,
}

/// `peers[]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The peer's name in the cluster configuration.
    pub name: Arc<str>,
    /// Its address; that of an unnumbered peer once it is found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_address: Option<IpAddr>,
    /// Its AS: as opened with, else as configured.
    #[serde(rename = "peerASN")]
    pub peer_asn: u32,
    /// `idle`, `connect`, `active`, `opensent`, `openconfirm` or `established`.
    pub peering_state: String,
    /// Negotiated hold time, while established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_hold_time_seconds: Option<u64>,
    /// Time between KEEPALIVEs, while established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_keepalive_seconds: Option<u64>,
    /// When the session was established, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub established_time: Option<String>,
    /// By family.
    pub route_count: Vec<RouteCount>,
}

/// Status: an instance of this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeConfigRow {
    /// Who said it.
    #[serde(skip)]
    pub source: Source,
    /// The node: the object's name.
    pub node: Arc<str>,
    /// Name of the instance.
    pub name: Arc<str>,
    /// Our AS.
    #[serde(rename = "localASN")]
    pub local_asn: u32,
    /// Our router id.
    #[serde(rename = "routerID")]
    pub router_id: Ipv4Addr,
    /// Its peers.
    pub peers: Vec<PeerStatus>,
}

impl Row for NodeConfigRow {
    type Key = (Arc<str>, Arc<str>);
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-node-configs";
    fn key(&self) -> Self::Key {
        (self.node.clone(), self.name.clone())
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NODE", "INSTANCE", "LOCAL-AS", "ROUTER-ID", "PEERS"]
    }
    fn cells(&self) -> Vec<String> {
        let peer = |peer: &PeerStatus| {
            let routes = |of: fn(&RouteCount) -> usize| peer.route_count.iter().map(of).sum::<usize>();
            let (received, advertised) = (routes(|count| count.received), routes(|count| count.advertised));
            format!("{}={} ({received} received, {advertised} advertised)", peer.name, peer.peering_state)
        };
        vec![
            self.node.to_string(),
            self.name.to_string(),
            self.local_asn.to_string(),
            self.router_id.to_string(),
            self.peers.iter().map(peer).collect::<Vec<_>>().join(", "),
        ]
    }
}
