//! One TCP connection of a peer, and what its two OPENs agreed on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::config::PeerConfig;
use crate::family::Family;
use crate::wire::{
    AddPath, Capability, EXTENDED_MESSAGE_MAX, ExtendedNextHop, GracefulRestartCapability, MESSAGE_MAX,
    Notification, Open, UpdateContext, code,
};

use super::restart::{self, LongLived};

/// Names a connection for as long as the speaker runs.
pub(crate) type ConnectionId = u64;

/// Hold time until the OPEN has come (RFC 4271 section 8.2.2 suggests four minutes).
pub(super) const OPEN_WAIT: Duration = Duration::from_secs(240);

/// States of a connection; before it exists, and until our OPEN is sent, the peer is Idle, Connect or Active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// In Connect or Active, with the DelayOpenTimer running.
    DelayOpen,
    OpenSent,
    OpenConfirm,
    Established,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) outgoing: bool,
    pub(super) local: SocketAddr,
    pub(super) stage: Stage,
    pub(super) hold_at: Option<Instant>,
    pub(super) keepalive_at: Option<Instant>,
    pub(super) delay_at: Option<Instant>,
    pub(super) session: Option<Session>,
}

impl Connection {
    pub(super) const fn new(id: ConnectionId, outgoing: bool, local: SocketAddr) -> Self {
        Self {
            id,
            outgoing,
            local,
            stage: Stage::DelayOpen,
            hold_at: None,
            keepalive_at: None,
            delay_at: None,
            session: None,
        }
    }

    /// Restarts the hold timer (RFC 4271 section 8.2.2); a hold time of 0 never runs out.
    pub(super) fn heard(&mut self, now: Instant) {
        if let Some(session) = &self.session {
            self.hold_at = (!session.hold.is_zero()).then(|| now + session.hold);
        }
    }
}

/// What both OPENs agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The peer's AS.
    pub(crate) peer_asn: u32,
    /// The peer's BGP identifier.
    pub(crate) peer_router_id: Ipv4Addr,
    /// The peer is in another AS.
    pub(crate) ebgp: bool,
    /// The smaller of both hold times; zero means none.
    pub(crate) hold: Duration,
    /// Time between our KEEPALIVEs.
    pub(crate) keepalive: Duration,
    /// Families both offered.
    pub(crate) families: Vec<Family>,
    /// Longest message the peer reads, if we offered as much (RFC 8654).
    pub(crate) message_max: usize,
    /// The peer understands ROUTE-REFRESH.
    pub(crate) route_refresh: bool,
    /// The peer's graceful restart capability.
    pub(crate) peer_restart: Option<GracefulRestartCapability>,
    /// Both sides keep routes through a NOTIFICATION (N bit, RFC 8538).
    pub(crate) notification_restart: bool,
    /// What the peer's long-lived graceful restart capability says (RFC 9494).
    pub(crate) long_lived: LongLived,
    /// The peer understands the demarcation of refreshes (RFC 7313).
    pub(crate) enhanced_refresh: bool,
    /// Everything the peer offered.
    pub(crate) peer_capabilities: Vec<Capability>,
    /// Families in which the peer takes several paths of a prefix and we would send them (RFC 7911).
    pub(crate) add_path_send: Vec<Family>,
    /// Our address on the session.
    pub(crate) local_address: IpAddr,
    /// How to read its UPDATEs.
    pub(crate) context: UpdateContext,
}

/// Who we are to a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) asn: u32,
    pub(crate) router_id: Ipv4Addr,
}

/// Subcode of an OPEN error (RFC 9234 section 4.2).
const ROLE_MISMATCH: u8 = 11;

/// Whether what the peer says it is to us fits what we are to it. A peer that says nothing fits, unless that is not enough.
fn roles_agree(config: &PeerConfig, open: &Open) -> bool {
    let Some(own) = config.role else { return true };
    let told = |capability: &Capability| match capability {
        Capability::Role(role) => Some(*role),
        _ => None,
    };
    let mut told = open.capabilities.iter().filter_map(told).peekable();
    if told.peek().is_none() {
        return !config.strict_role;
    }
    // Of several all must be the same, so all must fit.
    told.all(|role| role == own.opposite().code())
}

/// Families whose routes we take with IPv6 next hops (RFC 8950).
fn extended_families(config: &PeerConfig) -> Vec<Family> {
    let wanted = |family: &Family| config.extended_next_hop && *family == Family::Ipv4Unicast;
    config.families.iter().copied().filter(wanted).collect()
}

/// The capabilities we offer.
pub(super) fn offered(
    config: &PeerConfig,
    identity: Identity,
    restarted: bool,
    forwarding_preserved: bool,
) -> Vec<Capability> {
    let mut capabilities: Vec<Capability> =
        config.families.iter().copied().map(Capability::Multiprotocol).collect();
    let extended = extended_families(config);
    if !extended.is_empty() {
        let entry = |family| ExtendedNextHop { family, next_hop_afi: Family::Ipv6Unicast.afi() };
        capabilities.push(Capability::ExtendedNextHop(extended.into_iter().map(entry).collect()));
    }
    capabilities.extend([Capability::RouteRefresh, Capability::EnhancedRefresh]);
    capabilities.extend(restart::offered(config, restarted, forwarding_preserved));
    capabilities.push(Capability::FourOctetAs(identity.asn));
    capabilities.extend(config.role.map(|role| Capability::Role(role.code())));
    let (receive, send) = (config.add_path.receive, config.add_path.send.is_some());
    if receive || send {
        let entry = |family: &Family| AddPath { family: *family, receive, send };
        capabilities.push(Capability::AddPath(config.families.iter().map(entry).collect()));
    }
    if config.extended_messages {
        capabilities.push(Capability::ExtendedMessage);
    }
    capabilities
}

/// Checks the peer's OPEN against the configuration and settles the session (RFC 4271 section 6.2).
pub(super) fn negotiate(
    config: &PeerConfig,
    identity: Identity,
    local: IpAddr,
    open: Open,
) -> Result<Session, Notification> {
    let any = config.peer_asns.is_empty() || config.peer_asns.iter().any(|range| range.contains(open.asn));
    if config.peer_asn != open.asn && (config.peer_asn != 0 || !any) {
        let two_octets = u16::try_from(open.asn).unwrap_or(crate::wire::AS_TRANS);
        return Err(Notification::with_data(code::OPEN, 2, &two_octets.to_be_bytes()));
    }
    let ebgp = open.asn != identity.asn;
    if !ebgp && open.router_id == identity.router_id {
        // RFC 6286: only internal peers must differ.
        return Err(Notification::with_data(code::OPEN, 3, &open.router_id.octets()));
    }
    if ebgp && !roles_agree(config, &open) {
        return Err(Notification::new(code::OPEN, ROLE_MISMATCH));
    }
    let offered = open.families();
    let families: Vec<Family> =
        config.families.iter().copied().filter(|family| offered.contains(family)).collect();
    if families.is_empty() {
        let mut data = Vec::new();
        config.families.iter().for_each(|family| {
            let (afi, safi) = (family.afi().to_be_bytes(), family.safi());
            data.extend([1, 4]);
            data.extend(afi);
            data.extend([0, safi]);
        });
        return Err(Notification::with_data(code::OPEN, 7, &data));
    }
    let hold_secs = config.timers.hold_secs().min(open.hold_time_secs);
    let hold = Duration::from_secs(u64::from(hold_secs));
    let mut extended_next_hop = extended_families(config);
    extended_next_hop.retain(|family| families.contains(family) && open.extended_next_hop(*family));
    // RFC 7911 section 4: per family, one side would send and the other receive.
    let agreed = |ours: bool, theirs: fn(AddPath) -> bool| -> Vec<Family> {
        let agrees = |family: &Family| ours && open.add_path(*family).is_some_and(theirs);
        families.iter().copied().filter(agrees).collect()
    };
    let add_path_send = agreed(config.add_path.send.is_some(), |entry| entry.receive);
    let context = UpdateContext {
        add_path: agreed(config.add_path.receive, |entry| entry.send),
        extended_next_hop,
        four_octet_as: open.four_octet_as(),
        ebgp,
        first_asn: (ebgp && config.enforce_first_as).then_some(open.asn),
        families: families.clone(),
        ..UpdateContext::default()
    };
    Ok(Session {
        peer_asn: open.asn,
        peer_router_id: open.router_id,
        ebgp,
        hold,
        keepalive: config.timers.keepalive.min(hold / 3),
        message_max: if config.extended_messages && open.extended_message() {
            EXTENDED_MESSAGE_MAX
        } else {
            MESSAGE_MAX
        },
        route_refresh: open.route_refresh(),
        peer_restart: open.graceful_restart().cloned(),
        notification_restart: restart::through_notifications(config, &open),
        long_lived: LongLived::new(config, &open, &families),
        enhanced_refresh: open.route_refresh() && open.enhanced_refresh(),
        peer_capabilities: open.capabilities,
        add_path_send,
        local_address: local,
        context,
        families,
    })
}
