//! `BGPPeerPolicy` (`tombolo.io/v1alpha1`): what the `cilium.io` kinds have no field for.

use crate::selector::LabelSelector;
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// BFD with a peer (RFC 5880, RFC 5882).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BfdProfile {
    /// Desired Min TX Interval.
    pub transmit_ms: u32,
    /// Required Min RX Interval.
    pub receive_ms: u32,
    /// Required Min Echo RX Interval; 0 returns no echo packets.
    pub echo_receive_ms: u32,
    /// Packets that may be missed.
    pub detect_multiplier: u8,
    /// Wait for the peer to speak first.
    pub passive: bool,
}

/// A routing policy in the speaker's JSON, checked by whoever read it. Topology hands it on and looks at nothing in it.
#[derive(Clone, PartialEq, Eq)]
pub struct PolicyDocument(Arc<str>);

impl PolicyDocument {
    /// The JSON of a policy that is known to be good.
    #[must_use]
    pub fn new(json: impl Into<Arc<str>>) -> Self {
        Self(json.into())
    }

    /// The JSON.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PolicyDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PolicyDocument {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What happens when a peer sends more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LimitAction {
    /// It is warned of.
    Warn,
    /// New routes are not taken.
    Discard,
    /// The session ends, and begins again after so many seconds.
    Restart(u32),
    /// The session ends until the peer is changed.
    Stop,
}

/// A bound on the routes of each family held from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaxPrefixes {
    /// Most routes.
    pub limit: u32,
    /// Percentage from which on it is warned of.
    pub warning_percent: u8,
    /// What happens beyond it.
    pub action: LimitAction,
}

/// What this node is to a neighbour in another AS (RFC 9234).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It gives transit.
    Provider,
    /// It is a route server.
    RouteServer,
    /// It is a route server's client.
    RouteServerClient,
    /// It gets transit.
    Customer,
    /// Neither.
    Peer,
}

/// Several paths of a prefix with a peer (RFC 7911).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AddPath {
    /// Offer to take them.
    pub receive: bool,
    /// Offer to send this many; 0: all of them.
    pub send: Option<u8>,
}

/// How a session differs from what the `cilium.io` kinds can say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerTuning {
    /// The policy that says so.
    pub policy: Option<Arc<str>>,
    /// What is done with routes from the peer, instead of what the agent's configuration allows for all.
    pub import: Option<PolicyDocument>,
    /// What the peer hears, and how.
    pub export: Option<PolicyDocument>,
    /// BFD.
    pub bfd: Option<BfdProfile>,
    /// Our role, and whether a peer that tells none is refused.
    pub role: Option<(Role, bool)>,
    /// ADD-PATH.
    pub add_path: Option<AddPath>,
    /// Long-lived graceful restart (RFC 9494): seconds that the peer should keep our routes after the restart time.
    pub long_lived_secs: Option<u32>,
    /// Routes held from the peer; the speaker's default otherwise.
    pub max_prefixes: Option<MaxPrefixes>,
    /// Generalized TTL security (RFC 5082): hops that the peer may be away.
    pub gtsm_hops: Option<u8>,
    /// Group of peers that policies may ask for.
    pub group: Option<Arc<str>>,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950); over IPv6 sessions if not said.
    pub extended_next_hop: Option<bool>,
    /// Take routes with the BLACKHOLE community (RFC 7999).
    pub accept_blackhole: bool,
    /// An internal peer that routes are reflected to and from (RFC 4456).
    pub reflector_client: bool,
    /// An external peer that is served as by a route server (RFC 7947).
    pub route_server_client: bool,
    /// Pass on what other peers taught where there is no export policy: a router's peer, never a node's.
    pub transit: bool,
    /// Most equal paths of a prefix; the same for all peers of an instance.
    pub max_paths: Option<u16>,
    /// Wait for the peer to connect.
    pub passive: bool,
    /// Offer messages of 65535 bytes (RFC 8654).
    pub extended_messages: bool,
    /// Take paths whose first AS is not the peer's (a route server's).
    pub any_first_as: bool,
    /// Next hop of IPv4 routes where the session's own address is not IPv4.
    pub next_hop_ipv4: Option<Ipv4Addr>,
    /// Next hop of IPv6 routes where the session's own address is not IPv6.
    pub next_hop_ipv6: Option<Ipv6Addr>,
}

/// Which peers a policy is for: all that is given must fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerMatch {
    /// `peerConfigRef.name` of the peer.
    pub peer_config: Option<Arc<str>>,
    /// Name of the instance.
    pub instance: Option<Arc<str>>,
    /// Name of the peer.
    pub peer: Option<Arc<str>>,
}

impl PeerMatch {
    /// Whether the peer is meant.
    #[must_use]
    pub fn fits(&self, instance: &str, peer: &str, peer_config: Option<&str>) -> bool {
        self.peer_config.as_deref().is_none_or(|name| Some(name) == peer_config)
            && self.instance.as_deref().is_none_or(|name| name == instance)
            && self.peer.as_deref().is_none_or(|name| name == peer)
    }
}

/// Intent: a `BGPPeerPolicy`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerPolicyRow {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// `nodeSelector`; empty selects all nodes.
    pub node_selector: LabelSelector,
    /// Peers that it is for: those that fit any entry.
    pub peers: Vec<PeerMatch>,
    /// What it changes.
    pub tuning: PeerTuning,
}

impl Row for PeerPolicyRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-peer-policies";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "PEERS", "BFD", "MAX-PREFIXES"]
    }
    fn cells(&self) -> Vec<String> {
        let peer = |one: &PeerMatch| {
            let parts = [
                one.peer_config.as_ref().map(|name| format!("config={name}")),
                one.instance.as_ref().map(|name| format!("instance={name}")),
                one.peer.as_ref().map(|name| format!("peer={name}")),
            ];
            parts.into_iter().flatten().collect::<Vec<_>>().join(",")
        };
        let bfd = self.tuning.bfd.as_ref();
        vec![
            self.name.to_string(),
            self.peers.iter().map(peer).collect::<Vec<_>>().join(" "),
            bfd.map_or_else(
                || "-".to_owned(),
                |bfd| format!("{}ms x {}", bfd.transmit_ms, bfd.detect_multiplier),
            ),
            self.tuning.max_prefixes.map_or_else(|| "-".to_owned(), |most| most.limit.to_string()),
        ]
    }
}
