//! What a speaker and its peers are told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::bfd::BfdSettings;
use crate::bfd::client::Unit;
use crate::bmp::BmpStation;
use crate::dynamic::AsnRange;
use crate::error::Error;
use crate::family::Family;
use crate::mrt::MessageLog;
use crate::policy::Policy;
use crate::routing::{AddPaths, Decision, LimitAction, PrefixLimit, Role};
use crate::rpki::RpkiCache;
use crate::transport::Transport;
use crate::wire::{Community, LargeCommunity, Origin, STALE_TIME_MAX};

/// Longest wait for a peer's OPEN before ours.
const DELAY_OPEN_MAX: Duration = Duration::from_secs(240);

/// Where a speaker's BFD sessions are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdUnit {
    /// The unit; started when the first peer asks for BFD, and found again by the next speaker.
    pub unit: Unit,
    /// Whose sessions these are: unique among the speakers of one unit, and the same after a restart.
    pub owner: String,
}

/// Settings of the whole speaker.
#[derive(Clone, Debug)]
pub struct SpeakerConfig {
    /// This speaker's AS, 1 to 4294967295.
    pub local_asn: u32,
    /// BGP identifier; unique among the speakers it meets, not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Addresses to accept sessions on, usually `0.0.0.0:179` and `[::]:179`; empty for none.
    pub listen: Vec<SocketAddr>,
    /// This process follows another that died with its routes still in the forwarding plane: sets the R and F bits (RFC 4724).
    pub restarting: bool,
    /// Longest wait of a restarting speaker for the End-of-RIB of its peers before it selects routes (RFC 4724 section 4.1).
    pub selection_deferral: Duration,
    /// Use only paths whose next hop somebody says can be reached: see [`SpeakerHandle::next_hops`](crate::SpeakerHandle::next_hops). Else every
    /// next hop counts as reachable.
    pub track_next_hops: bool,
    /// Most equal paths given for one prefix (ECMP); 1 turns multipath off.
    pub max_paths: usize,
    /// How paths are compared.
    pub decision: Decision,
    /// Identifier of the cluster this speaker reflects routes in (RFC 4456); none: its router id.
    pub cluster_id: Option<Ipv4Addr>,
    /// Seed of the timers' jitter; equal seeds and inputs give equal runs.
    pub jitter_seed: u64,
    /// The unit that keeps the BFD sessions of peers that ask for one; none ignores those settings.
    pub bfd: Option<BfdUnit>,
    /// Where every message of every session is logged; none logs nothing.
    pub message_log: Option<MessageLog>,
    /// Collectors of BMP.
    pub stations: Vec<BmpStation>,
    /// RPKI caches. What they say together is what policies judge origins by; [`crate::SpeakerHandle::set_rpki`] is for a speaker without.
    pub caches: Vec<RpkiCache>,
    /// Events queued for a slow reader before the channel makes the speaker keep only the newest state of each prefix; 0: there are no
    /// events of routes, for a speaker whose routes nobody but its peers wants.
    pub event_queue: usize,
    /// Connections the kernel holds for each listener until they are taken; a rack of nodes may come back at once.
    pub listen_backlog: u32,
    /// Most connections of dynamic neighbours that have not become sessions yet; further ones are refused.
    pub half_open_max: usize,
    /// Peers, also dynamic ones, that the operator shut down in a life before, by name, with the text: they wait for [`PeerAction::Start`](crate::PeerAction).
    pub shut_down: BTreeMap<String, String>,
    /// The VRF (or interface) that listeners and connections are bound to; peers on an interface are bound to theirs.
    pub device: Option<String>,
}

impl SpeakerConfig {
    /// Settings with the usual defaults: no listener, not restarting, 16 paths.
    pub const fn new(local_asn: u32, router_id: Ipv4Addr) -> Self {
        Self {
            local_asn,
            router_id,
            listen: Vec::new(),
            restarting: false,
            selection_deferral: Duration::from_secs(45),
            track_next_hops: false,
            max_paths: 16,
            decision: Decision::new(),
            cluster_id: None,
            jitter_seed: 0,
            bfd: None,
            message_log: None,
            stations: Vec::new(),
            caches: Vec::new(),
            event_queue: 1024,
            listen_backlog: 1024,
            half_open_max: 256,
            shut_down: BTreeMap::new(),
            device: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.local_asn == 0 {
            return Err(Error::speaker("the local AS number is 0", "give one from 1 to 4294967295"));
        }
        if self.router_id.is_unspecified() {
            return Err(Error::speaker("the router id is 0.0.0.0", "give an IPv4 address of this node"));
        }
        Ok(())
    }
}

/// Timers of one peer (RFC 4271 section 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// Longest wait between attempts to connect; the first attempts come sooner.
    pub connect_retry: Duration,
    /// Proposed hold time; 0 or 3 to 65535 seconds.
    pub hold: Duration,
    /// Time between KEEPALIVEs; at most a third of the negotiated hold time is used.
    pub keepalive: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            connect_retry: Duration::from_secs(120),
            hold: Duration::from_secs(90),
            keepalive: Duration::from_secs(30),
        }
    }
}

impl Timers {
    pub(crate) fn hold_secs(&self) -> u16 {
        u16::try_from(self.hold.as_secs()).unwrap_or(u16::MAX)
    }
}

/// Damping of a peer that comes and goes: it rests in Idle, twice as long each time (RFC 4271 section 8.1.1, DampPeerOscillations).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damping {
    /// False: it rests for `first` each time.
    pub enabled: bool,
    /// The first rest (IdleHoldTime).
    pub first: Duration,
    /// The longest rest.
    pub longest: Duration,
    /// A session of this length clears what was counted.
    pub stable_after: Duration,
}

impl Default for Damping {
    fn default() -> Self {
        Self {
            enabled: true,
            first: Duration::from_secs(1),
            longest: Duration::from_secs(120),
            stable_after: Duration::from_secs(60),
        }
    }
}

/// Graceful restart with one peer (RFC 4724, RFC 8538).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GracefulRestart {
    /// Offer it.
    pub enabled: bool,
    /// Seconds the peer should keep our routes; 1 to 4095.
    pub restart_time_secs: u16,
    /// Offer to keep routes through NOTIFICATIONs other than a hard reset and through an expired hold time (N bit, RFC 8538).
    #[serde(default = "yes")]
    pub notification: bool,
    /// Longest wait, in seconds, for the End-of-RIB of a peer that is back before its stale routes go; 1 to 3600.
    #[serde(default = "default_stale_secs")]
    pub stale_secs: u16,
}

/// What RFC 8538 section 4.1 recommends.
const fn default_stale_secs() -> u16 {
    180
}

const fn yes() -> bool {
    true
}

impl Default for GracefulRestart {
    fn default() -> Self {
        Self { enabled: false, restart_time_secs: 120, notification: true, stale_secs: default_stale_secs() }
    }
}

/// Long-lived graceful restart with one peer (RFC 9494): routes are kept beyond the restart time, less preferred than any other. It needs
/// [`GracefulRestart::enabled`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LongLivedRestart {
    /// Offer it, and keep the peer's routes if it offers as much.
    pub enabled: bool,
    /// Seconds the peer should keep our routes of each family after the restart time; 1 to 16777215. Families left out are not to be kept.
    pub stale_time_secs: BTreeMap<Family, u32>,
    /// Most seconds that we keep the peer's, whatever it asks for; none: no limit.
    pub longest_secs: Option<u32>,
    /// Tell internal peers without the capability of stale routes as well, with LOCAL_PREF 0 and NO_EXPORT (section 4.6); else they
    /// hear that those are withdrawn.
    pub partial_deployment: bool,
}

/// One entry of an import allow-list: what lies within `prefix` and has a length from `min_len` to `max_len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedPrefix {
    /// The covering prefix.
    pub prefix: IpNet,
    /// Shortest length allowed ("ge").
    pub min_len: u8,
    /// Longest length allowed ("le").
    pub max_len: u8,
}

impl AllowedPrefix {
    /// Exactly this prefix.
    pub fn exact(prefix: IpNet) -> Self {
        Self { prefix, min_len: prefix.prefix_len(), max_len: prefix.prefix_len() }
    }

    /// This prefix and everything inside it.
    pub fn or_longer(prefix: IpNet) -> Self {
        Self { prefix, min_len: prefix.prefix_len(), max_len: prefix.max_prefix_len() }
    }

    /// Whether the entry allows a prefix.
    pub fn allows(&self, candidate: &IpNet) -> bool {
        self.prefix.contains(candidate) && (self.min_len..=self.max_len).contains(&candidate.prefix_len())
    }
}

/// Settings of one peer. Import is denied but for `import`; export is what was announced to it, unless `export_learned`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConfig {
    /// Name, unique in the speaker.
    pub name: String,
    /// Address of the peer.
    pub address: IpAddr,
    /// Interface the peer is on; needed when `address` is link-local.
    pub interface: Option<String>,
    /// TCP port of the peer.
    pub port: u16,
    /// AS of the peer; 0 accepts whatever it opens with, if `peer_asns` does. Until then it counts as external: see `ebgp_multihop`.
    pub peer_asn: u32,
    /// With a `peer_asn` of 0, the numbers accepted; empty means any.
    #[serde(default)]
    pub peer_asns: Vec<AsnRange>,
    /// Source address of our connections; also required of incoming ones.
    pub local_address: Option<IpAddr>,
    /// Families to offer; not empty.
    pub families: Vec<Family>,
    /// Timers.
    pub timers: Timers,
    /// Wait for the peer to connect.
    pub passive: bool,
    /// IP time-to-live for external peers; 1 means directly connected.
    pub ebgp_multihop: u8,
    /// Graceful restart.
    pub graceful_restart: GracefulRestart,
    /// Long-lived graceful restart.
    #[serde(default)]
    pub long_lived: LongLivedRestart,
    /// Prefixes accepted; none means none. Does not count beside `import_policy`.
    pub import: Vec<AllowedPrefix>,
    /// What is done with routes from the peer; none: `import` is all there is. Either way what nothing accepts is refused (RFC 8212).
    #[serde(default)]
    pub import_policy: Option<Arc<Policy>>,
    /// What the peer hears. Learned routes need it, or `export_learned`, as a permission (RFC 8212); own announcements pass unless a statement rejects
    /// them.
    #[serde(default)]
    pub export_policy: Option<Arc<Policy>>,
    /// Pass on best paths learned from other peers (a router; nodes do not transit) where there is no `export_policy`.
    pub export_learned: bool,
    /// Group of peers that policies may ask for by name.
    #[serde(default)]
    pub group: Option<String>,
    /// An internal peer that this speaker reflects routes to and from (RFC 4456).
    #[serde(default)]
    pub reflector_client: bool,
    /// An external peer that this speaker serves as a route server (RFC 7947): AS path, next hop and MED pass unchanged.
    #[serde(default)]
    pub route_server_client: bool,
    /// What this speaker is to the peer (RFC 9234): routes that are for customers only are marked, and do not leak. For external peers.
    #[serde(default)]
    pub role: Option<Role>,
    /// With a role: no session with a peer that tells none.
    #[serde(default)]
    pub strict_role: bool,
    /// Take routes with the BLACKHOLE community (RFC 7999) inside prefixes that import policy accepts, be they longer than it allows. They are given to the
    /// owner as such, and not passed on to other ASes.
    #[serde(default)]
    pub accept_blackhole: bool,
    /// Several paths of a prefix (RFC 7911), in all families of the session.
    #[serde(default)]
    pub add_path: AddPaths,
    /// Offer messages of up to 65535 bytes (RFC 8654); sent that long only if the peer offers it too.
    #[serde(default)]
    pub extended_messages: bool,
    /// End the session with a directly connected external peer at once when its link or our address goes, as
    /// [`SpeakerHandle::link_down`](crate::SpeakerHandle::link_down) tells.
    #[serde(default = "yes")]
    pub fast_fallover: bool,
    /// Refuse paths that do not start with the peer's AS.
    pub enforce_first_as: bool,
    /// Prefixes held from this peer before the session is ended with Cease.
    pub max_prefixes: usize,
    /// Limits by family, each with what happens beyond it.
    #[serde(default)]
    pub prefix_limits: Vec<PrefixLimit>,
    /// Next hop of IPv4 routes when the session's own address is not IPv4.
    pub next_hop_ipv4: Option<Ipv4Addr>,
    /// Next hop of IPv6 routes when the session's own address is not IPv6.
    pub next_hop_ipv6: Option<std::net::Ipv6Addr>,
    /// Keep a BFD session with the peer; when it fails, so does the BGP session, at once (RFC 5882 section 10.2, RFC 9384).
    #[serde(default)]
    pub bfd: Option<BfdSettings>,
    /// Keys, GTSM and source of its TCP connections.
    #[serde(default)]
    pub transport: Transport,
    /// Offer to take IPv4 routes with IPv6 next hops (RFC 8950); used, also for what is announced, if the peer offers it too.
    #[serde(default)]
    pub extended_next_hop: bool,
    /// The peer is whatever router answers on `interface` (unnumbered): its link-local address is learned from its router advertisements,
    /// and this speaker sends its own there. `address` is then `::`.
    #[serde(default)]
    pub unnumbered: bool,
    /// Wait this long for the peer's OPEN before sending ours (DelayOpenTime, RFC 4271 section 8.1.1).
    #[serde(default)]
    pub delay_open: Option<Duration>,
    /// How a peer that comes and goes is slowed down.
    #[serde(default)]
    pub damping: Damping,
}

impl PeerConfig {
    /// A peer with default settings, both sides active, of the family its address belongs to.
    pub fn new(name: &str, address: IpAddr, peer_asn: u32) -> Self {
        Self {
            name: name.to_owned(),
            address,
            interface: None,
            port: 179,
            peer_asn,
            peer_asns: Vec::new(),
            local_address: None,
            families: vec![Family::of_address(&address)],
            timers: Timers::default(),
            passive: false,
            ebgp_multihop: 1,
            graceful_restart: GracefulRestart::default(),
            long_lived: LongLivedRestart::default(),
            import: Vec::new(),
            import_policy: None,
            export_policy: None,
            export_learned: false,
            group: None,
            reflector_client: false,
            route_server_client: false,
            role: None,
            strict_role: false,
            accept_blackhole: false,
            add_path: AddPaths::default(),
            extended_messages: false,
            fast_fallover: true,
            enforce_first_as: true,
            max_prefixes: 100_000,
            prefix_limits: Vec::new(),
            next_hop_ipv4: None,
            next_hop_ipv6: None,
            bfd: None,
            transport: Transport::default(),
            extended_next_hop: address.is_ipv6(),
            unnumbered: false,
            delay_open: None,
            damping: Damping::default(),
        }
    }

    /// The router that answers on an interface, over its link-local address, with routes of both families (RFC 8950).
    pub fn unnumbered(name: &str, interface: &str, peer_asn: u32) -> Self {
        let mut config = Self::new(name, IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), peer_asn);
        config.interface = Some(interface.to_owned());
        config.unnumbered = true;
        config.families = Family::ALL.to_vec();
        config
    }

    /// Unnumbered, and the router on the other end is not found yet.
    pub(crate) const fn awaits_neighbour(&self) -> bool {
        self.unnumbered && self.address.is_unspecified()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |what: &'static str, remedy: &'static str| {
            Err(Error::Peer { peer: self.name.clone(), what, remedy })
        };
        if self.name.is_empty() || self.name.len() > 255 {
            return bad("the name is empty or over 255 bytes", "give the peer a short name");
        }
        if self.families.is_empty() {
            return bad("no address family is configured", "list ipv4-unicast or ipv6-unicast");
        }
        if !self.families.iter().all(|family| family.is_unicast()) {
            return bad(
                "an address family that is decoded but not carried",
                "list ipv4-unicast or ipv6-unicast",
            );
        }
        if self.unnumbered && self.interface.is_none() {
            return bad("an unnumbered peer without an interface", "name the interface it is on");
        }
        if !self.awaits_neighbour() && (self.address.is_unspecified() || self.address.is_multicast()) {
            return bad("the address is no host address", "give the peer's own address");
        }
        let link_local = matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local());
        if link_local && self.interface.is_none() {
            return bad("a link-local address without an interface", "write it as address%interface");
        }
        if self.local_address.is_some_and(|local| local.is_ipv4() != self.address.is_ipv4()) {
            return bad("local and remote address are of different families", "use two of the same family");
        }
        if !matches!(self.timers.hold.as_secs(), 0 | 3..=65535) {
            return bad("the hold time is 1, 2 or over 65535 seconds", "use 0 or 3 to 65535");
        }
        if self.timers.keepalive.is_zero() && !self.timers.hold.is_zero() {
            return bad("the keepalive time is 0 but the hold time is not", "use a third of the hold time");
        }
        if self.timers.connect_retry.is_zero() {
            return bad("the connect retry time is 0", "use at least one second");
        }
        if self.ebgp_multihop == 0 || self.port == 0 {
            return bad("the multihop limit or the port is 0", "use 1 to 255, and a port such as 179");
        }
        if !(1..=4095).contains(&self.graceful_restart.restart_time_secs) {
            return bad("the graceful restart time is not in 1..4095", "use for example 120");
        }
        if !(1..=3600).contains(&self.graceful_restart.stale_secs) {
            return bad("the stale time of graceful restart is not in 1..3600", "use for example 180");
        }
        if self.long_lived.enabled && !self.graceful_restart.enabled {
            return bad("long-lived graceful restart without graceful restart", "enable both (RFC 9494)");
        }
        let mut stale_times = self.long_lived.stale_time_secs.values();
        if stale_times.any(|secs| !(1..=STALE_TIME_MAX).contains(secs)) {
            return bad("a long-lived stale time is not in 1..16777215", "use for example 86400");
        }
        if let Err((what, remedy)) = self.transport.check() {
            return bad(what, remedy);
        }
        if self.peer_asns.iter().any(|range| range.first > range.last) {
            return bad("a range of AS numbers ends before it begins", "put the smaller number first");
        }
        if self.delay_open.is_some_and(|delay| delay > DELAY_OPEN_MAX) {
            return bad("the delay before OPEN is over 240 seconds", "use a few seconds, or none");
        }
        if self.damping.first.is_zero() || self.damping.longest < self.damping.first {
            return bad(
                "the damping's first rest is 0 or longer than its longest",
                "use for example 1 and 120 seconds",
            );
        }
        let sensible = |limit: &PrefixLimit| {
            (1..=100).contains(&limit.warning_percent)
                && limit.action != (LimitAction::Restart { after_secs: 0 })
        };
        if !self.prefix_limits.iter().all(sensible) {
            return bad(
                "a prefix limit warns from 0 or over 100 percent, or restarts after 0 seconds",
                "use for example 75 percent and 300 seconds",
            );
        }
        for (policy, import) in [(&self.import_policy, true), (&self.export_policy, false)] {
            if let Some(Err((what, remedy))) = policy.as_ref().map(|policy| policy.check(import)) {
                return bad(what, remedy);
            }
        }
        if let Some(Err((what, remedy))) = self.bfd.as_ref().map(BfdSettings::check) {
            return bad(what, remedy);
        }
        Ok(())
    }

    /// What is done with routes from the peer, the allow-list as a policy if that is all there is.
    pub fn import_rules(&self) -> Arc<Policy> {
        let list = || Arc::new(Policy::allow_list("import", &self.import));
        self.import_policy.clone().unwrap_or_else(list)
    }

    /// What is done with what the peer is told. Without a policy it hears own announcements, and learned routes if they are to be passed on.
    pub fn export_rules(&self) -> Arc<Policy> {
        let plain = || match self.export_learned {
            true => Arc::new(Policy::accept_all("export")),
            false => Arc::new(Policy { name: "export".to_owned(), ..Policy::default() }),
        };
        self.export_policy.clone().unwrap_or_else(plain)
    }

    /// Whether the peer may hear of learned routes at all.
    pub(crate) fn passes_on(&self) -> bool {
        self.export_learned || self.export_policy.is_some()
    }

    /// Whether going from `self` to `other` needs a new session.
    pub(crate) fn needs_reset(&self, other: &Self) -> bool {
        let session = |config: &Self| Self {
            import: Vec::new(),
            import_policy: None,
            export_policy: None,
            export_learned: false,
            accept_blackhole: false,
            max_prefixes: 0,
            prefix_limits: Vec::new(),
            next_hop_ipv4: None,
            next_hop_ipv6: None,
            bfd: None,
            fast_fallover: true,
            transport: config.transport.of_session(),
            delay_open: None,
            damping: Damping::default(),
            timers: Timers { connect_retry: Duration::from_secs(1), ..config.timers },
            ..config.clone()
        };
        session(self) != session(other)
    }
}

/// To whom a prefix is announced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Every peer whose families include the prefix's.
    All,
    /// One peer by name. Wins over `All` for that peer. The peer need not exist yet.
    Peer(String),
}

/// What is said about an announced prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Next hop; none means the session's own address.
    pub next_hop: Option<IpAddr>,
    /// ORIGIN.
    pub origin: Origin,
    /// Communities, any order.
    pub communities: Vec<Community>,
    /// Large communities, any order.
    pub large_communities: Vec<LargeCommunity>,
    /// LOCAL_PREF for internal peers; 100 when none is given. Never sent to external ones.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allow_list_entries_bound_the_length() {
        let entry = AllowedPrefix { prefix: "10.0.0.0/8".parse().unwrap(), min_len: 16, max_len: 24 };
        for (prefix, allowed) in [
            ("10.1.0.0/16", true),
            ("10.1.2.0/24", true),
            ("10.0.0.0/8", false),
            ("10.1.2.3/32", false),
            ("11.0.0.0/16", false),
            ("2001:db8::/20", false),
        ] {
            assert_eq!(entry.allows(&prefix.parse().unwrap()), allowed, "{prefix}");
        }
        assert!(AllowedPrefix::exact("::/0".parse().unwrap()).allows(&"::/0".parse().unwrap()));
        assert!(!AllowedPrefix::exact("::/0".parse().unwrap()).allows(&"2001:db8::/32".parse().unwrap()));
    }

    #[test]
    fn only_session_settings_need_a_reset() {
        let old = PeerConfig::new("tor", "172.20.11.1".parse().unwrap(), 65100);
        let mut new = old.clone();
        new.import.push(AllowedPrefix::exact("0.0.0.0/0".parse().unwrap()));
        new.timers.connect_retry = Duration::from_secs(5);
        assert!(!old.needs_reset(&new));
        new.timers.hold = Duration::from_secs(9);
        assert!(old.needs_reset(&new));
    }

    #[test]
    fn bad_settings_say_what_to_do() {
        let mut config = PeerConfig::new("tor", "fe80::1".parse().unwrap(), 65100);
        assert!(config.check().unwrap_err().to_string().contains("address%interface"));
        config.interface = Some("eth1".into());
        config.check().unwrap();
        config.timers.hold = Duration::from_secs(2);
        assert!(config.check().unwrap_err().to_string().contains("use 0 or 3"));
    }
}
