//! Who may connect, and with which socket options: configured peers, dynamic neighbours (listen ranges), keys, GTSM.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::peer::Peer;
use super::{Core, Link};
use crate::config::{PeerConfig, SpeakerConfig};
use crate::dynamic::ListenRange;
use crate::error::Error;
use crate::fsm::{ConnectionId, Fsm, Identity, Jitter};
use crate::rib::PeerId;
use crate::transport::{Keys, SocketOptions, Target, credential};
use crate::wire::{Notification, cease};

/// How long a dynamic neighbour may take to send its OPEN: anybody in the range can hold a half-open session for that long.
const OPEN_WAIT_DYNAMIC: Duration = Duration::from_secs(30);

/// A connection that came in.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) remote: IpAddr,
    pub(crate) local: SocketAddr,
    /// The interface of a link-local address.
    pub(crate) interface: Option<String>,
    /// Time-to-live of its SYN.
    pub(crate) ttl: Option<u8>,
}

/// What the core keeps to decide who may connect.
pub(crate) struct Admission {
    ranges: BTreeMap<String, ListenRange>,
    half_open_max: usize,
    device: Option<String>,
    /// The keys may be others than last taken.
    pub(super) keys_changed: bool,
    /// The interfaces of unnumbered peers may be others than last taken.
    pub(super) interfaces_changed: bool,
    /// Connections refused since the start: unknown, too far, over a limit, or of a peer that is Idle.
    pub(super) refused: u64,
}

impl Admission {
    pub(super) fn new(config: &SpeakerConfig) -> Self {
        Self {
            ranges: BTreeMap::new(),
            half_open_max: config.half_open_max,
            device: config.device.clone(),
            keys_changed: false,
            interfaces_changed: false,
            refused: 0,
        }
    }

    /// Peers have come, gone or changed.
    pub(super) const fn changed(&mut self) {
        self.keys_changed = true;
        self.interfaces_changed = true;
    }

    /// The range with the longest prefix that holds an address.
    fn range(&self, address: IpAddr) -> Option<&ListenRange> {
        let holds = self.ranges.values().filter(|range| range.prefix.contains(&address));
        holds.max_by_key(|range| range.prefix.prefix_len())
    }
}

impl Core {
    /// Adds a range of addresses to accept peers from.
    pub(crate) fn add_range(&mut self, range: ListenRange) -> Result<(), Error> {
        range.check()?;
        let with = self.admission.ranges.values();
        let same = with.clone().find(|other| other.name == range.name || other.prefix == range.prefix);
        if let Some(other) = same {
            let what = if other.name == range.name { "name" } else { "prefix" };
            return Err(Error::Duplicate { peer: range.name, with: other.name.clone(), what });
        }
        self.admission.ranges.insert(range.name.clone(), range);
        self.admission.keys_changed = true;
        Ok(())
    }

    /// Removes a range and ends the sessions it led to.
    pub(crate) fn remove_range(&mut self, now: Instant, name: &str) -> Result<(), Error> {
        if self.admission.ranges.remove(name).is_none() {
            return Err(Error::NoSuchPeer { peer: name.to_owned() });
        }
        self.admission.keys_changed = true;
        let of_range = |peer: &Peer| peer.dynamic.as_deref() == Some(name);
        let ids: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| of_range(peer)).map(|(id, _)| *id).collect();
        for id in ids {
            self.drop_peer(now, id, &Notification::cease(cease::DECONFIGURED, ""));
        }
        self.propagate();
        Ok(())
    }

    /// The keys of all peers and ranges, if they may have changed since they were last asked for.
    pub(crate) fn take_keys(&mut self) -> Option<Keys> {
        if !std::mem::take(&mut self.admission.keys_changed) {
            return None;
        }
        let ranges = self.admission.ranges.values();
        let ranges = ranges.map(|range| (range.prefix, credential(&range.template.transport)));
        let configured = self.peers.values().filter(|peer| peer.dynamic.is_none());
        let peers = configured.map(|peer| (prefix_of(&peer.config), credential(&peer.config.transport)));
        Some(ranges.chain(peers).filter_map(|(prefix, key)| Some((prefix, key?))).collect())
    }

    /// A connection came in. `None`: from nobody we know or want, close it. Also says which options its socket needs.
    pub(crate) fn accepted(
        &mut self,
        now: Instant,
        incoming: &Incoming,
    ) -> Option<(ConnectionId, SocketOptions)> {
        let admitted = self.admit(now, incoming);
        if admitted.is_none() {
            self.admission.refused += 1;
        }
        admitted
    }

    fn admit(&mut self, now: Instant, incoming: &Incoming) -> Option<(ConnectionId, SocketOptions)> {
        let id = match self.peer_at(incoming) {
            Some(id) => id,
            None => self.greet(now, incoming).or_else(|| self.meet(now, incoming))?,
        };
        let peer = self.peers.get_mut(&id)?;
        let wrong_address = peer.config.local_address.is_some_and(|own| own != incoming.local.ip());
        let options = options(&peer.config, self.identity, self.admission.device.as_ref());
        let wanted = !wrong_address
            && options.near_enough(incoming.ttl)
            && peer.fsm.accepted(now, self.next_connection, incoming.local);
        if !wanted {
            self.forget_if_gone(now, id);
            return None;
        }
        self.opened(now, id, true).map(|connection| (connection, options))
    }

    fn peer_at(&self, incoming: &Incoming) -> Option<PeerId> {
        let known = self.peers.iter().find(|(_, peer)| {
            let interface = incoming.interface.is_none() || peer.config.interface == incoming.interface;
            peer.config.address == incoming.remote && interface
        });
        known.map(|(id, _)| *id)
    }

    /// The unnumbered peer of an interface shows itself by connecting before it was heard.
    fn greet(&mut self, now: Instant, incoming: &Incoming) -> Option<PeerId> {
        let interface = incoming.interface.as_deref()?;
        let IpAddr::V6(address) = incoming.remote else { return None };
        let unknown = self.peers.get(&self.unnumbered(interface)?)?.config.address.is_unspecified();
        if unknown {
            self.neighbour(now, interface, address);
        }
        self.peer_at(incoming)
    }

    /// A new dynamic neighbour, if a range has room for it.
    fn meet(&mut self, now: Instant, incoming: &Incoming) -> Option<PeerId> {
        let range = self.admission.range(incoming.remote)?;
        let of_range = |peer: &&Peer| peer.dynamic.as_deref() == Some(range.name.as_str());
        if self.peers.values().filter(of_range).count() >= range.limit {
            tracing::warn!(
                range = range.name,
                limit = range.limit,
                remote = %incoming.remote,
                "A dynamic BGP neighbour is refused: the range has as many as it may."
            );
            return None;
        }
        if self.half_open() >= self.admission.half_open_max {
            tracing::warn!(
                range = range.name,
                limit = self.admission.half_open_max,
                remote = %incoming.remote,
                "A dynamic BGP neighbour is refused: too many sessions are half open."
            );
            return None;
        }
        let (config, name) = (range.peer(incoming.remote, incoming.interface.clone()), range.name.clone());
        if self.check_unique(&config, None).is_err() {
            return None;
        }
        let id = self.next_peer;
        self.next_peer += 1;
        let config = Arc::new(config);
        let jitter = Jitter::new(self.jitter_seed ^ (u64::from(id) << 32));
        let mut fsm = Fsm::new(Arc::clone(&config), self.identity, self.restarting, jitter);
        fsm.set_open_wait(OPEN_WAIT_DYNAMIC);
        if !self.held_down.contains_key(&config.name) {
            fsm.start(now);
        }
        self.peers.insert(id, Peer { dynamic: Some(name), ..Peer::new(config, fsm) });
        self.selection.started(now);
        self.bfd_changed = true;
        Some(id)
    }

    /// Connections of dynamic neighbours that are no sessions yet.
    fn half_open(&self) -> usize {
        let open = |link: &&Link| {
            let peer = self.peers.get(&link.peer);
            peer.is_some_and(|peer| peer.dynamic.is_some() && peer.session.is_none())
        };
        self.links.values().filter(open).count()
    }

    /// A dynamic neighbour is forgotten once its connections, its rest after an error, and its stale routes are over; not one that the operator
    /// shut down, who is to see it.
    pub(super) fn forget_if_gone(&mut self, now: Instant, id: PeerId) {
        let gone = |peer: &Peer| {
            let over = peer.kept.is_empty() && peer.fsm.is_waiting_for_nothing();
            peer.dynamic.is_some() && over && !self.held_down.contains_key(&peer.config.name)
        };
        if self.peers.get(&id).is_some_and(gone) {
            self.drop_peer(now, id, &Notification::cease(cease::DECONFIGURED, ""));
        }
    }

    /// How to reach a peer.
    pub(super) fn target(&self, config: &PeerConfig) -> Target {
        Target {
            remote: SocketAddr::new(config.address, config.port),
            local: config.local_address,
            source_interface: config.transport.source_interface.clone(),
            options: options(config, self.identity, self.admission.device.as_ref()),
        }
    }
}

fn options(config: &PeerConfig, identity: Identity, device: Option<&String>) -> SocketOptions {
    let device = config.interface.as_ref().or(device).cloned();
    SocketOptions::new(&config.transport, ttl(config, identity), device)
}

/// External peers are one hop away unless multihop says otherwise; internal ones may be anywhere.
pub(super) fn ttl(config: &PeerConfig, identity: Identity) -> Option<u8> {
    let external = config.peer_asn != identity.asn;
    config.transport.gtsm_hops.or_else(|| external.then_some(config.ebgp_multihop))
}

/// Where a configured peer's segments come from: one address, or any neighbour's until an unnumbered one is found.
fn prefix_of(config: &PeerConfig) -> IpNet {
    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    let link_local = ipnet::Ipv6Net::new(LINK_LOCAL, 10).map(IpNet::V6);
    match link_local {
        Ok(prefix) if config.unnumbered && config.address.is_unspecified() => prefix,
        _ => IpNet::from(config.address),
    }
}
