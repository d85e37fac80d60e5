//! What the adapter is told once, and how rows become the speaker's own types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::ways::Ways;
use tombolo_bgp::bfd::client::Unit;
use tombolo_bgp::{
    AllowedPrefix, Announcement, BfdUnit, Community, Family, GracefulRestart, LargeCommunity, PeerConfig,
    SpeakerConfig, Timers,
};
use tombolo_topology::bgp::{AdvertRow, Family as RowFamily, PeerRow};

/// What does not come from rows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The process before this one died and its routes are still in the forwarding plane (RFC 4724).
    pub restarting: bool,
    /// Prefixes that may be learned from any peer; nothing else is.
    pub import: Vec<AllowedPrefix>,
    /// Addresses to listen on, with the port each instance names.
    pub listen: Vec<IpAddr>,
    /// Most equal next hops of a learned route.
    pub max_paths: usize,
    /// Seed of the timers' jitter; different on each node.
    pub jitter_seed: u64,
    /// The unit that keeps BFD sessions; started when a peer asks for one.
    pub bfd: Option<Unit>,
    /// Where to ask whether next hops can be reached, and to hear of links that go; none: every next hop counts as reachable.
    pub ways: Option<Ways>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            restarting: false,
            import: Vec::new(),
            listen: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            max_paths: 16,
            jitter_seed: 0,
            bfd: None,
            ways: None,
        }
    }
}

/// What makes an instance the one it is: if any of this changes, it starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    asn: u32,
    router_id: Ipv4Addr,
    port: Option<u16>,
}

impl Identity {
    pub(crate) const fn of(row: &PeerRow) -> Self {
        Self { asn: row.local_asn, router_id: row.router_id, port: row.local_port }
    }

    pub(crate) fn speaker(&self, name: &str, settings: &Settings, restarting: bool) -> SpeakerConfig {
        let mut config = SpeakerConfig::new(self.asn, self.router_id);
        config.restarting = restarting;
        config.max_paths = settings.max_paths;
        config.track_next_hops = settings.ways.is_some();
        config.jitter_seed = settings.jitter_seed;
        config.bfd = settings.bfd.clone().map(|unit| BfdUnit { unit, owner: format!("bgp/{name}") });
        let listen = |port| settings.listen.iter().map(move |address| SocketAddr::new(*address, port));
        config.listen = self.port.into_iter().flat_map(listen).collect();
        config
    }
}

/// A peer as the speaker wants it.
pub(crate) fn peer_config(row: &PeerRow, settings: &Settings) -> PeerConfig {
    let mut config = PeerConfig::new(&row.name, row.address, row.asn);
    config.port = row.port;
    config.local_address = row.local_address;
    config.families = row
        .families
        .iter()
        .map(|family| match family {
            RowFamily::Ipv4Unicast => Family::Ipv4Unicast,
            RowFamily::Ipv6Unicast => Family::Ipv6Unicast,
        })
        .collect();
    config.timers = Timers {
        connect_retry: Duration::from_secs(u64::from(row.connect_retry_secs)),
        hold: Duration::from_secs(u64::from(row.hold_time_secs)),
        keepalive: Duration::from_secs(u64::from(row.keepalive_secs)),
    };
    config.ebgp_multihop = row.ebgp_multihop;
    config.graceful_restart = match row.graceful_restart_secs {
        Some(restart_time_secs) => {
            GracefulRestart { enabled: true, restart_time_secs, ..GracefulRestart::default() }
        }
        None => GracefulRestart::default(),
    };
    config.import = settings.import.clone();
    config
}

/// What is said about an advertised prefix.
pub(crate) fn announcement(row: &AdvertRow) -> Announcement {
    Announcement {
        communities: row.communities.iter().copied().map(Community).collect(),
        large_communities: row
            .large_communities
            .iter()
            .map(|(global, local1, local2)| LargeCommunity {
                global: *global,
                local1: *local1,
                local2: *local2,
            })
            .collect(),
        local_pref: row.local_preference,
        ..Announcement::default()
    }
}
