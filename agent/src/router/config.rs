//! `router.yaml`: one typed structure; all that is wrong with it is found before anything starts.

use crate::config::{Api, BmpCollector, Log, MessageLog, RpkiCache, StateDir};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use tombolo_base::prefix::Prefix;

/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouterConfig {
    /// This router's AS.
    pub(crate) asn: u32,
    /// Its BGP identifier.
    pub(crate) router_id: Ipv4Addr,
    /// Addresses to listen on.
    #[serde(default = "everywhere")]
    pub(crate) listen: Vec<IpAddr>,
    /// TCP port to listen on; 0 listens nowhere.
    #[serde(default = "bgp_port")]
    pub(crate) port: u16,
    /// Identifier of the cluster in which routes are reflected; the router id otherwise.
    #[serde(default)]
    pub(crate) cluster_id: Option<Ipv4Addr>,
    /// Most equal paths of a prefix.
    #[serde(default = "max_paths")]
    pub(crate) max_paths: u16,
    /// Whether learned routes go into the kernel: a route reflector or server forwards nothing.
    #[serde(default = "yes")]
    pub(crate) install_routes: bool,
    /// Whether a path counts only while the kernel has a way, other than by BGP, to its next hop. Off: for a reflector that has no part in the routing it
    /// reflects.
    #[serde(default = "yes")]
    pub(crate) track_next_hops: bool,
    /// Routing policies by name: `statements` and `default`. `all` and `none` are there already.
    #[serde(default)]
    pub(crate) policies: BTreeMap<String, Value>,
    /// Settings that peers share, by name.
    #[serde(default)]
    pub(crate) groups: BTreeMap<String, PeerSettings>,
    /// Peers by name.
    #[serde(default)]
    pub(crate) peers: BTreeMap<String, Peer>,
    /// Ranges of addresses from which whoever connects is a peer, by name.
    #[serde(default)]
    pub(crate) dynamic: BTreeMap<String, Dynamic>,
    /// Prefixes to announce to all peers.
    #[serde(default)]
    pub(crate) networks: Vec<Prefix>,
    /// Interfaces whose own prefixes are announced: names, or beginnings of names with a `*` behind.
    #[serde(default)]
    pub(crate) connected: Vec<String>,
    /// Where every BGP message is logged; nowhere by default.
    #[serde(default)]
    pub(crate) message_log: Option<MessageLog>,
    /// Collectors of BMP (RFC 7854).
    #[serde(default)]
    pub(crate) bmp: Vec<BmpCollector>,
    /// RPKI caches (RFC 8210).
    #[serde(default)]
    pub(crate) rpki: Vec<RpkiCache>,
    /// Where state is kept: which sessions the operator shut down.
    #[serde(default)]
    pub(crate) state_dir: StateDir,
    /// The local API.
    #[serde(default)]
    pub(crate) api: Api,
    /// Logs.
    #[serde(default)]
    pub(crate) log: Log,
}

fn everywhere() -> Vec<IpAddr> {
    vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
}

const fn bgp_port() -> u16 {
    179
}

const fn max_paths() -> u16 {
    16
}

const fn yes() -> bool {
    true
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    /// IPv4 unicast.
    Ipv4,
    /// IPv6 unicast.
    Ipv6,
}

/// BFD with a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bfd {
    /// Shortest interval to send at.
    pub(crate) transmit_ms: u32,
    /// Shortest interval to receive at.
    pub(crate) receive_ms: u32,
    /// Packets that may be missed.
    pub(crate) multiplier: u8,
}

impl Default for Bfd {
    fn default() -> Self {
        Self { transmit_ms: 300, receive_ms: 300, multiplier: 3 }
    }
}

/// Several paths of a prefix with a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AddPath {
    /// Take them.
    pub(crate) receive: bool,
    /// Send this many; 0: all.
    pub(crate) send: Option<u8>,
}

/// How to speak with a peer. What a peer does not say, its group does; what neither says has the default given here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PeerSettings {
    /// AS; 0, the default, accepts any.
    pub(crate) asn: Option<u32>,
    /// Families; by default that of the address, both for an unnumbered peer.
    pub(crate) families: Option<Vec<Family>>,
    /// TCP port of the peer; 179.
    pub(crate) port: Option<u16>,
    /// Our address on the session.
    pub(crate) local_address: Option<IpAddr>,
    /// Hold time; 90.
    pub(crate) hold_time_secs: Option<u16>,
    /// Between KEEPALIVEs; a third of the hold time.
    pub(crate) keepalive_secs: Option<u16>,
    /// Between attempts to connect; 30.
    pub(crate) connect_retry_secs: Option<u32>,
    /// Graceful restart with this restart time; none by default.
    pub(crate) graceful_restart_secs: Option<u16>,
    /// Time-to-live towards external peers; 1.
    pub(crate) multihop: Option<u8>,
    /// Generalized TTL security: how many hops away the peer may be.
    pub(crate) gtsm_hops: Option<u8>,
    /// A file with the key of TCP MD5; its last line end does not count.
    pub(crate) password_file: Option<PathBuf>,
    /// Wait for the peer to connect.
    pub(crate) passive: Option<bool>,
    /// Policy for what the peer says; `none` by default.
    pub(crate) import: Option<String>,
    /// Policy for what the peer hears of other peers; `none` by default. What is announced here passes unless it is rejected.
    pub(crate) export: Option<String>,
    /// Routes of each family held from the peer before its session is ended; 100000 of both by default.
    pub(crate) max_prefixes: Option<u32>,
    /// With `max_prefixes`: the session begins again after this long; never by itself if it is not given.
    pub(crate) restart_secs: Option<u32>,
    /// Several paths of a prefix (RFC 7911).
    pub(crate) add_path: Option<AddPath>,
    /// Long-lived graceful restart (RFC 9494) with this stale time.
    pub(crate) long_lived_secs: Option<u32>,
    /// BFD; none by default.
    pub(crate) bfd: Option<Bfd>,
    /// Offer messages of 65535 bytes (RFC 8654).
    pub(crate) extended_messages: Option<bool>,
    /// Refuse paths whose first AS is not the peer's; yes.
    pub(crate) enforce_first_as: Option<bool>,
    /// Reflect routes to and from this internal peer (RFC 4456).
    pub(crate) reflector_client: Option<bool>,
    /// Serve this external peer as a route server does (RFC 7947).
    pub(crate) route_server_client: Option<bool>,
    /// Next hop of IPv4 routes where the session's own address is not IPv4.
    pub(crate) next_hop_ipv4: Option<Ipv4Addr>,
    /// Next hop of IPv6 routes where the session's own address is not IPv6.
    pub(crate) next_hop_ipv6: Option<Ipv6Addr>,
}

/// A peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// The group whose settings it shares; policies may ask for it.
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// Its address; a link-local one with `interface`. None: whoever answers on `interface`.
    #[serde(default)]
    pub(crate) address: Option<IpAddr>,
    /// The interface it is on.
    #[serde(default)]
    pub(crate) interface: Option<String>,
    /// Settings of its own.
    #[serde(flatten)]
    pub(crate) settings: Value,
}

/// Peers that come by themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Dynamic {
    /// The group whose settings they share.
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// Where they may connect from.
    pub(crate) prefix: Prefix,
    /// Most of them at a time.
    #[serde(default = "limit")]
    pub(crate) limit: u32,
    /// AS numbers or ranges (`64512-64999`) that are accepted; any if there is none.
    #[serde(default)]
    pub(crate) asns: Vec<AsnSpan>,
    /// Settings of their own.
    #[serde(flatten)]
    pub(crate) settings: Value,
}

const fn limit() -> u32 {
    100
}

/// `65001` or `65001-65099`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum AsnSpan {
    /// One.
    One(u32),
    /// From one to another.
    Range(String),
}

impl AsnSpan {
    /// First and last; none if it is no range.
    pub(crate) fn bounds(&self) -> Option<(u32, u32)> {
        match self {
            Self::One(asn) => Some((*asn, *asn)),
            Self::Range(text) => {
                let (first, last) = text.split_once('-')?;
                let bounds = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                (bounds.0 <= bounds.1).then_some(bounds)
            }
        }
    }
}

/// Reads the file; what its values mean together, [`super::rows`] checks.
///
/// # Errors
/// One sentence with file, key, reason and remedy.
pub(crate) fn load(file: &Path) -> Result<RouterConfig, String> {
    let cannot = |error: std::io::Error| {
        format!("{}: cannot be read: {error} (check path and permissions)", file.display())
    };
    let size = std::fs::metadata(file).map_err(cannot)?.len();
    if size > MAX_BYTES {
        return Err(format!("{}: {size} bytes is too large (use prefix ranges in policies)", file.display()));
    }
    let text = std::fs::read_to_string(file).map_err(cannot)?;
    parse(&text).map_err(|problem| format!("{}: {problem}", file.display()))
}

/// Reads the text.
///
/// # Errors
/// Key, reason and remedy.
pub(crate) fn parse(text: &str) -> Result<RouterConfig, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        let text = error.without_snippet().to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("is no YAML: {text} (correct the line named, or the one above it)")
    })?;
    serde_path_to_error::deserialize(value).map_err(|error| {
        let place = error.path().to_string();
        format!("{place}: {} (docs/router.md lists the keys)", error.into_inner())
    })
}

/// Whether a file is a router's configuration rather than an agent's: only the former has an AS of its own.
pub(crate) fn is_router(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("asn:"))
        && text.lines().any(|line| line.starts_with("router_id:"))
}
