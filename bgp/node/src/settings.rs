//! What the adapter is told once, and how rows become the speaker's own types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::ways::Ways;
use tombolo_bgp::bfd::BfdSettings;
use tombolo_bgp::bfd::client::Unit;
use tombolo_bgp::mrt::MessageLog;
use tombolo_bgp::policy::Policy;
use tombolo_bgp::rpki::RpkiCache;
use tombolo_bgp::{
    AddPaths, AllowedPrefix, Announcement, AsnRange, BfdUnit, BmpStation, Community, Error, Family,
    GracefulRestart, LargeCommunity, ListenRange, PathCount, PeerConfig, PrefixLimit, Secret, SpeakerConfig,
    Timers,
};
use tombolo_topology::bgp::{
    AddPath, AdvertRow, BfdProfile, Family as RowFamily, LimitAction, ListenRange as RowRange, MaxPrefixes,
    PeerRow, PeerTuning, PolicyDocument, Role,
};

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
    /// Identifier of the cluster that routes are reflected in (RFC 4456); the router id otherwise.
    pub cluster_id: Option<Ipv4Addr>,
    /// Stale time of long-lived graceful restart (RFC 9494), in seconds, of peers with graceful restart whose row does not say it; none: it is off.
    pub long_lived_secs: Option<u32>,
    /// Seed of the timers' jitter; different on each node.
    pub jitter_seed: u64,
    /// The unit that keeps BFD sessions; started when a peer asks for one.
    pub bfd: Option<Unit>,
    /// Where to ask whether next hops can be reached, and to hear of links that go; none: every next hop counts as reachable.
    pub ways: Option<Ways>,
    /// The file in which the operator's shutdowns outlive this process; none: they end with it.
    pub shutdowns: Option<PathBuf>,
    /// Where messages are logged, in a folder for each instance.
    pub message_log: Option<MessageLog>,
    /// Collectors of BMP.
    pub stations: Vec<BmpStation>,
    /// RPKI caches.
    pub caches: Vec<RpkiCache>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            restarting: false,
            import: Vec::new(),
            listen: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            max_paths: 16,
            cluster_id: None,
            long_lived_secs: None,
            jitter_seed: 0,
            bfd: None,
            ways: None,
            shutdowns: None,
            message_log: None,
            stations: Vec::new(),
            caches: Vec::new(),
        }
    }
}

/// What makes an instance the one it is: if any of this changes, it starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    asn: u32,
    router_id: Ipv4Addr,
    port: Option<u16>,
    max_paths: Option<u16>,
}

impl Identity {
    pub(crate) const fn of(row: &PeerRow) -> Self {
        Self {
            asn: row.local_asn,
            router_id: row.router_id,
            port: row.local_port,
            max_paths: row.tuning.max_paths,
        }
    }

    pub(crate) const fn router_id(&self) -> Ipv4Addr {
        self.router_id
    }

    pub(crate) fn speaker(&self, name: &str, settings: &Settings, restarting: bool) -> SpeakerConfig {
        let mut config = SpeakerConfig::new(self.asn, self.router_id);
        config.restarting = restarting;
        config.max_paths = self.max_paths.map_or(settings.max_paths, usize::from);
        config.cluster_id = settings.cluster_id;
        config.track_next_hops = settings.ways.is_some();
        config.jitter_seed = settings.jitter_seed;
        config.bfd = settings.bfd.clone().map(|unit| BfdUnit { unit, owner: format!("bgp/{name}") });
        config.message_log = settings.message_log.clone().map(|log| {
            // A name of an instance is whatever its author chose; a folder is not to leave its own.
            let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
            let folder = log.folder.join(name.chars().map(plain).collect::<String>());
            MessageLog { folder, ..log }
        });
        config.stations = settings.stations.clone();
        config.caches = settings.caches.clone();
        let listen = |port| settings.listen.iter().map(move |address| SocketAddr::new(*address, port));
        config.listen = self.port.into_iter().flat_map(listen).collect();
        config
    }
}

/// A peer as the speaker wants it.
///
/// # Errors
/// A policy that the speaker cannot read.
pub(crate) fn peer_config(row: &PeerRow, settings: &Settings) -> Result<PeerConfig, Error> {
    let mut config = match (&row.interface, row.unnumbered) {
        (Some(interface), true) => PeerConfig::unnumbered(&row.name, interface, row.asn),
        _ => PeerConfig::new(&row.name, row.address, row.asn),
    };
    config.interface = row.interface.as_deref().map(str::to_owned);
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
        connect_retry: connect_retry(row.connect_retry_secs),
        hold: Duration::from_secs(u64::from(row.hold_time_secs)),
        keepalive: Duration::from_secs(u64::from(row.keepalive_secs)),
    };
    config.ebgp_multihop = row.ebgp_multihop;
    config.graceful_restart.enabled = row.graceful_restart_secs.is_some();
    config.graceful_restart.restart_time_secs =
        row.graceful_restart_secs.unwrap_or(GracefulRestart::default().restart_time_secs);
    config.transport.md5 = row.password.as_ref().map(|password| Secret::new(password.expose().to_owned()));
    config.import = settings.import.clone();
    tune(&mut config, &row.tuning)?;
    // Without graceful restart the capability is void (RFC 9494 section 4.1).
    let by_default = settings.long_lived_secs.filter(|_| config.graceful_restart.enabled);
    if let Some(secs) = row.tuning.long_lived_secs.or(by_default) {
        config.long_lived.enabled = true;
        config.long_lived.stale_time_secs = config.families.iter().map(|family| (*family, secs)).collect();
    }
    Ok(config)
}

/// The API's time is the least: it is stretched to at most twice of it. The speaker's is the most, and RFC 4271 section 10 has it shortened to at least
/// three quarters: a third more makes it lie between the time and four thirds of it.
fn connect_retry(secs: u32) -> Duration {
    Duration::from_millis(u64::from(secs) * 4000 / 3)
}

fn tune(config: &mut PeerConfig, tuning: &PeerTuning) -> Result<(), Error> {
    config.import_policy = policy(config, tuning.import.as_ref())?;
    config.export_policy = policy(config, tuning.export.as_ref())?;
    config.export_learned = tuning.transit;
    config.bfd = tuning.bfd.as_ref().map(bfd);
    if let Some(most) = tuning.max_prefixes {
        // The families' own limits count, not the one over all.
        config.max_prefixes = usize::MAX;
        config.prefix_limits = config.families.iter().map(|family| prefix_limit(*family, most)).collect();
    }
    if let Some(AddPath { receive, send }) = tuning.add_path {
        let count = |send| NonZeroU8::new(send).map_or(PathCount::All, PathCount::Best);
        config.add_path = AddPaths { receive, send: send.map(count) };
    }
    if let Some((role, strict)) = tuning.role {
        config.role = Some(speakers_role(role));
        config.strict_role = strict;
    }
    config.transport.gtsm_hops = tuning.gtsm_hops;
    config.group = tuning.group.as_deref().map(str::to_owned);
    config.passive = tuning.passive;
    config.extended_messages = tuning.extended_messages;
    config.enforce_first_as = !tuning.any_first_as;
    config.accept_blackhole = tuning.accept_blackhole;
    config.reflector_client = tuning.reflector_client;
    config.route_server_client = tuning.route_server_client;
    config.next_hop_ipv4 = tuning.next_hop_ipv4;
    config.next_hop_ipv6 = tuning.next_hop_ipv6;
    if let Some(extended) = tuning.extended_next_hop {
        config.extended_next_hop = extended;
    }
    Ok(())
}

fn policy(config: &PeerConfig, document: Option<&PolicyDocument>) -> Result<Option<Arc<Policy>>, Error> {
    let Some(document) = document else { return Ok(None) };
    match serde_json::from_str(document.json()) {
        Ok(policy) => Ok(Some(Arc::new(policy))),
        // Whoever made the row has read it with the same types.
        Err(_) => Err(Error::Peer {
            peer: config.name.clone(),
            what: "its policy cannot be read",
            remedy: "report this with the policy: it is a bug",
        }),
    }
}

const fn speakers_role(role: Role) -> tombolo_bgp::Role {
    match role {
        Role::Provider => tombolo_bgp::Role::Provider,
        Role::RouteServer => tombolo_bgp::Role::RouteServer,
        Role::RouteServerClient => tombolo_bgp::Role::RouteServerClient,
        Role::Customer => tombolo_bgp::Role::Customer,
        Role::Peer => tombolo_bgp::Role::Peer,
    }
}

fn prefix_limit(family: Family, most: MaxPrefixes) -> PrefixLimit {
    PrefixLimit {
        family,
        max: usize::try_from(most.limit).unwrap_or(usize::MAX),
        warning_percent: most.warning_percent,
        action: match most.action {
            LimitAction::Warn => tombolo_bgp::LimitAction::Warn,
            LimitAction::Discard => tombolo_bgp::LimitAction::Discard,
            LimitAction::Restart(after_secs) => tombolo_bgp::LimitAction::Restart { after_secs },
            LimitAction::Stop => tombolo_bgp::LimitAction::Stop,
        },
    }
}

fn bfd(profile: &BfdProfile) -> BfdSettings {
    let interval = |ms: u32| Duration::from_millis(u64::from(ms));
    BfdSettings {
        min_tx: interval(profile.transmit_ms),
        min_rx: interval(profile.receive_ms),
        min_echo_rx: interval(profile.echo_receive_ms),
        detect_mult: profile.detect_multiplier,
        passive: profile.passive,
        ..BfdSettings::default()
    }
}

/// The peers of a range as the speaker wants them.
///
/// # Errors
/// As [`peer_config`].
pub(crate) fn listen_range(
    row: &PeerRow,
    range: &RowRange,
    settings: &Settings,
) -> Result<ListenRange, Error> {
    let mut out = ListenRange::new(&row.name, range.prefix.net());
    out.limit = usize::try_from(range.limit).unwrap_or(usize::MAX);
    out.template = peer_config(row, settings)?;
    out.template.peer_asns =
        range.asns.iter().map(|(first, last)| AsnRange { first: *first, last: *last }).collect();
    Ok(out)
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
