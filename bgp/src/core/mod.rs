//! The whole speaker without I/O: peers, table and events. The driver feeds it sockets' news and the time, and does what [`Output`] says.
//!
//! ```text
//!  frames, connections, time ──► Fsm of the peer ──► Action ──► Rib ──► changed prefixes ──► Adj-RIB-Out marks ──► Output::Send
//!  announce, withdraw ─────────────────────────────────────────► │                └──────► Event
//! ```

mod admit;
mod bfd;
mod bmp;
mod bmp_out;
#[cfg(test)]
mod bmp_tests;
mod export;
mod fallover;
mod import;
mod limits;
mod log;
mod operate;
#[cfg(test)]
mod operate_tests;
mod paths;
mod peer;
mod policy;
mod refresh;
mod restart;
mod routes;
mod selection;
mod snapshot;
pub(crate) mod tap;
mod tell;
#[cfg(test)]
mod tests;
mod unnumbered;
mod weight;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ipnet::IpNet;

use crate::config::{Announcement, PeerConfig, Scope, SpeakerConfig};
use crate::error::Error;
use crate::event::{Event, EventQueue, Path, Pending};
use crate::family::Family;
use crate::fsm::{Action, ConnectionId, Fsm, Identity, Jitter};
use crate::rib::{PathSets, PeerId, Rib, Route};
use crate::rpki::RpkiTable;
use crate::transport::Target;
use crate::wire::{Community, EXTENDED_MESSAGE_MAX, Frame, MESSAGE_MAX, Notification, cease};

pub(crate) use admit::{Admission, Incoming};
pub(crate) use bmp::{StationId, StationOutput};
use import::Import;
use log::Logs;
use peer::Peer;
use policy::Policies;
pub use policy::PolicyQuestion;
use selection::Selection;

/// A connection that takes no byte for this long is dead (RFC 9687, send hold timer: 8 minutes or twice the hold time).
const SEND_HOLD_MIN: Duration = Duration::from_secs(480);

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Output {
    Connect { peer: PeerId, attempt: u64, target: Target },
    Abandon { peer: PeerId },
    Send { connection: ConnectionId, bytes: Bytes },
    Close { connection: ConnectionId },
}

struct Link {
    peer: PeerId,
    outstanding: usize,
    progress_at: Instant,
}

/// The speaker's state.
pub(crate) struct Core {
    identity: Identity,
    restarting: bool,
    jitter_seed: u64,
    peers: BTreeMap<PeerId, Peer>,
    links: BTreeMap<ConnectionId, Link>,
    next_peer: PeerId,
    next_connection: ConnectionId,
    rib: Rib,
    sets: PathSets,
    cluster_id: Ipv4Addr,
    /// What origin validation goes by.
    rpki: Arc<RpkiTable>,
    policies: Policies,
    /// The speaker goes away soon: peers are told so (RFC 8326).
    draining: bool,
    logs: Logs,
    export_complete: bool,
    outputs: VecDeque<Output>,
    events: EventQueue,
    /// Prefixes the reader was told about and not yet told to forget.
    published: BTreeSet<IpNet>,
    /// Route selection after a restart waits for the peers.
    selection: Selection,
    /// The BFD sessions that peers ask for may be others than last taken.
    bfd_changed: bool,
    admission: Admission,
    /// Peers that the operator shut down, by name, with the text for the other one; not all need be there.
    held_down: BTreeMap<String, String>,
    tap: tap::Tap,
    stations: bmp::Stations,
}

impl Core {
    pub(crate) fn new(config: &SpeakerConfig) -> Self {
        let mut core = Self {
            identity: Identity { asn: config.local_asn, router_id: config.router_id },
            restarting: config.restarting,
            jitter_seed: config.jitter_seed,
            peers: BTreeMap::new(),
            links: BTreeMap::new(),
            next_peer: 1,
            next_connection: 1,
            rib: Rib::new(config),
            sets: PathSets::new(config.jitter_seed),
            cluster_id: config.cluster_id.unwrap_or(config.router_id),
            rpki: Arc::default(),
            policies: Policies::default(),
            draining: false,
            logs: Logs::default(),
            export_complete: false,
            outputs: VecDeque::new(),
            events: EventQueue::new(config.event_queue > 0),
            published: BTreeSet::new(),
            selection: Selection::new(config),
            bfd_changed: false,
            admission: Admission::new(config),
            held_down: config.shut_down.clone(),
            tap: tap::Tap::default(),
            stations: bmp::Stations::default(),
        };
        if config.restarting {
            Family::ALL.into_iter().for_each(|family| core.rib.defer(family));
        }
        core
    }

    pub(crate) fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next event, with the state its prefix has now.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        loop {
            match self.events.pop()? {
                Pending::Session(event) => return Some(event),
                Pending::Route(prefix) => {
                    let paths = self.paths(&prefix);
                    let known = if paths.is_empty() {
                        self.published.remove(&prefix)
                    } else {
                        self.published.insert(prefix);
                        true
                    };
                    if known {
                        return Some(Event::Route { prefix, paths });
                    }
                }
            }
        }
    }

    /// Learned paths in use. What this speaker originates itself is served here, so learned routes for it are not used.
    fn paths(&self, prefix: &IpNet) -> Vec<Path> {
        if self.rib.is_local(prefix) {
            return Vec::new();
        }
        let Some(destination) = self.rib.destination(prefix) else { return Vec::new() };
        let used: Vec<&Route> = destination.used().collect();
        let weights = weight::weights(used.iter().map(|route| route.set.attributes().as_ref()));
        let paths = used.into_iter().zip(weights).filter_map(|(route, weight)| {
            let config = &self.peers.get(&route.peer)?.config;
            let attributes = route.set.attributes();
            Some(Path {
                peer: config.name.clone(),
                next_hop: *route.set.next_hop(),
                interface: config.interface.clone(),
                attributes: Arc::clone(attributes),
                stale: route.is_stale(),
                blackhole: config.accept_blackhole
                    && attributes.communities.binary_search(&Community::BLACKHOLE).is_ok(),
                weight,
            })
        });
        paths.collect()
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let peers = self.peers.values().filter_map(Peer::next_deadline);
        let links = self
            .links
            .values()
            .filter(|link| link.outstanding > 0)
            .map(|link| link.progress_at + self.send_hold(link.peer));
        peers.chain(links).chain(self.selection.next_deadline()).min()
    }

    fn send_hold(&self, peer: PeerId) -> Duration {
        let session = self.peers.get(&peer).and_then(|peer| peer.session.as_ref());
        session.map_or(SEND_HOLD_MIN, |(_, session)| (session.hold * 2).max(SEND_HOLD_MIN))
    }

    fn by_name(&self, name: &str) -> Result<PeerId, Error> {
        self.peers
            .iter()
            .find(|(_, peer)| peer.config.name == name)
            .map(|(id, _)| *id)
            .ok_or_else(|| Error::NoSuchPeer { peer: name.to_owned() })
    }

    fn check_unique(&self, config: &PeerConfig, except: Option<PeerId>) -> Result<(), Error> {
        for (_, other) in self.peers.iter().filter(|(id, _)| Some(**id) != except) {
            let duplicate =
                |what| Error::Duplicate { peer: config.name.clone(), with: other.config.name.clone(), what };
            if other.config.name == config.name {
                return Err(duplicate("name"));
            }
            if (other.config.address, &other.config.interface) == (config.address, &config.interface) {
                return Err(duplicate("address"));
            }
        }
        Ok(())
    }

    pub(crate) fn add_peer(&mut self, now: Instant, config: PeerConfig) -> Result<(), Error> {
        config.check()?;
        self.check_unique(&config, None)?;
        let id = self.next_peer;
        self.next_peer += 1;
        let config = Arc::new(config);
        let jitter = Jitter::new(self.jitter_seed ^ (u64::from(id) << 32));
        let mut fsm = Fsm::new(Arc::clone(&config), self.identity, self.restarting, jitter);
        if !self.held_down.contains_key(&config.name) {
            fsm.start(now);
        }
        self.peers.insert(id, Peer::new(config, fsm));
        self.selection.started(now);
        self.bfd_changed = true;
        self.admission.changed();
        self.settle(now, id);
        Ok(())
    }

    pub(crate) fn remove_peer(&mut self, now: Instant, name: &str) -> Result<(), Error> {
        let id = self.by_name(name)?;
        self.drop_peer(now, id, &Notification::cease(cease::DECONFIGURED, ""));
        self.propagate();
        Ok(())
    }

    /// Ends a peer's session, if it has one, and forgets the peer and its routes.
    fn drop_peer(&mut self, now: Instant, id: PeerId, notification: &Notification) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.fsm.stop(notification);
        }
        self.act(now, id);
        self.rib.remove_where(id, |_, _| true);
        // What others were told of its routes depends on who it is.
        self.log_changes();
        self.rib.remove_peer(id);
        self.peers.remove(&id);
        self.bfd_changed = true;
        self.admission.changed();
        self.select_if_complete();
    }

    pub(crate) fn update_peer(&mut self, now: Instant, mut config: PeerConfig) -> Result<(), Error> {
        config.check()?;
        let id = self.by_name(&config.name)?;
        self.check_unique(&config, Some(id))?;
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        unnumbered::keep_address(&peer.config, &mut config);
        let config = Arc::new(config);
        let old = std::mem::replace(&mut peer.config, Arc::clone(&config));
        peer.import = Import::new(Arc::clone(&config));
        peer.fsm.set_config(Arc::clone(&config));
        self.bfd_changed = true;
        self.admission.changed();
        if old.needs_reset(&config) {
            // What the operator stopped stays so.
            if !self.held_down.contains_key(&peer.config.name) {
                peer.fsm.reset(now, &Notification::cease(cease::CONFIG_CHANGE, ""));
            }
        } else {
            self.rejudge(id);
            self.view_changed(id);
            self.check_limits(now, id);
        }
        self.settle(now, id);
        Ok(())
    }

    /// Originates a prefix.
    pub(crate) fn announce(
        &mut self,
        scope: Scope,
        prefix: IpNet,
        announcement: Announcement,
    ) -> Result<(), Error> {
        if let Some(next_hop) = announcement.next_hop
            && next_hop.is_ipv4()
            && Family::of(&prefix) == Family::Ipv6Unicast
        {
            return Err(Error::NextHopFamily { prefix, next_hop });
        }
        self.rib.announce(scope, prefix.trunc(), announcement);
        self.propagate();
        Ok(())
    }

    pub(crate) fn withdraw(&mut self, scope: &Scope, prefix: &IpNet) {
        self.rib.withdraw(scope, &prefix.trunc());
        self.propagate();
    }

    pub(crate) fn withdraw_all(&mut self) {
        self.rib.withdraw_all();
        self.propagate();
    }

    /// Everything this speaker will originate for now has been announced: End-of-RIB may go out.
    pub(crate) fn export_complete(&mut self) {
        if !std::mem::replace(&mut self.export_complete, true) {
            self.bfd_changed = true;
            let selected = Family::ALL.into_iter().filter(|family| !self.rib.is_deferred(*family));
            selected.collect::<Vec<_>>().into_iter().for_each(|family| self.owe_end_of_rib(family));
            self.select_if_complete();
            self.propagate();
        }
    }

    /// Whether every established peer has been sent everything.
    pub(crate) fn is_flushed(&self) -> bool {
        self.peers.values().all(|peer| match &peer.session {
            Some((connection, _)) => {
                self.has_heard_all(peer)
                    && self.links.get(connection).is_none_or(|link| link.outstanding == 0)
            }
            None => true,
        })
    }

    /// The next hops to resolve, if they are others than last taken.
    pub(crate) fn take_next_hops(&mut self) -> Option<BTreeSet<IpAddr>> {
        self.rib.next_hops.take_changed()
    }

    /// What is known of a next hop: the cost of the way there, or that there is none.
    pub(crate) fn next_hop_resolved(&mut self, next_hop: IpAddr, metric: Option<u32>) {
        self.rib.next_hop_resolved(next_hop, metric);
        self.propagate();
    }

    /// Asks a peer to send its routes again (RFC 2918). False if there is no session, or the peer cannot.
    pub(crate) fn refresh(&mut self, name: &str) -> Result<bool, Error> {
        let id = self.by_name(name)?;
        let session = self.peers.get(&id).and_then(|peer| peer.session.clone());
        let Some((connection, session)) = session.filter(|(_, session)| session.route_refresh) else {
            return Ok(false);
        };
        session
            .families
            .iter()
            .for_each(|family| self.send(connection, crate::wire::route_refresh(*family).into()));
        Ok(true)
    }

    /// Stops every peer with an administrative shutdown.
    pub(crate) fn stop_all(&mut self, now: Instant, text: &str) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.fsm.stop(&Notification::cease(cease::ADMIN_SHUTDOWN, text));
            }
            self.settle(now, id);
        }
    }

    /// Our attempt to connect succeeded. `None`: not wanted any more, close it.
    pub(crate) fn connected(
        &mut self,
        now: Instant,
        id: PeerId,
        attempt: u64,
        local: SocketAddr,
    ) -> Option<ConnectionId> {
        let connection = self.next_connection;
        let wanted = self.peers.get_mut(&id)?.fsm.connected(now, attempt, connection, local);
        self.opened(now, id, wanted)
    }

    fn opened(&mut self, now: Instant, peer: PeerId, wanted: bool) -> Option<ConnectionId> {
        if !wanted {
            return None;
        }
        let connection = self.next_connection;
        self.next_connection += 1;
        self.links.insert(connection, Link { peer, outstanding: 0, progress_at: now });
        self.settle(now, peer);
        Some(connection)
    }

    /// Longest message a connection reads: what its peer is offered (RFC 8654 section 4).
    pub(crate) fn message_max(&self, connection: ConnectionId) -> usize {
        let peer = self.links.get(&connection).and_then(|link| self.peers.get(&link.peer));
        let extended = peer.is_some_and(|peer| peer.config.extended_messages);
        if extended { EXTENDED_MESSAGE_MAX } else { MESSAGE_MAX }
    }

    pub(crate) fn connect_failed(&mut self, now: Instant, id: PeerId, attempt: u64, reason: &str) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.fsm.connect_failed(now, attempt, reason);
        }
        self.settle(now, id);
    }

    /// Messages that came in together; what follows from them goes out together.
    pub(crate) fn frames(&mut self, now: Instant, connection: ConnectionId, frames: &[Frame]) {
        for frame in frames {
            let Some(id) = self.links.get(&connection).map(|link| link.peer) else { break };
            let Some(peer) = self.peers.get_mut(&id) else { break };
            peer.counters.messages_received += 1;
            self.heard(id, frame);
            let Some(peer) = self.peers.get_mut(&id) else { break };
            peer.fsm.frame(now, connection, frame);
            self.act(now, id);
            self.forget_if_gone(now, id);
        }
        self.propagate();
    }

    pub(crate) fn unframed(&mut self, now: Instant, connection: ConnectionId, notification: Notification) {
        self.on_link(now, connection, |peer| peer.fsm.unframed(now, connection, notification));
    }

    pub(crate) fn lost(&mut self, now: Instant, connection: ConnectionId, reason: &str) {
        self.on_link(now, connection, |peer| peer.fsm.lost(now, connection, reason));
        self.links.remove(&connection);
    }

    fn on_link(&mut self, now: Instant, connection: ConnectionId, handle: impl FnOnce(&mut Peer)) {
        let Some(id) = self.links.get(&connection).map(|link| link.peer) else { return };
        if let Some(peer) = self.peers.get_mut(&id) {
            handle(peer);
        }
        self.settle(now, id);
    }

    /// The connection has taken bytes: there may be room for more.
    pub(crate) fn drained(&mut self, now: Instant, connection: ConnectionId, bytes: usize) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.outstanding = link.outstanding.saturating_sub(bytes);
            link.progress_at = now;
            let peer = link.peer;
            self.pump(peer);
        }
    }

    /// Runs every timer that is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        let stuck: Vec<ConnectionId> = self
            .links
            .iter()
            .filter(|(_, link)| link.outstanding > 0 && link.progress_at + self.send_hold(link.peer) <= now)
            .map(|(connection, _)| *connection)
            .collect();
        for connection in stuck {
            self.outputs.push_back(Output::Close { connection });
            self.lost(now, connection, "the peer takes no more data (send hold timer)");
        }
        let due: Vec<PeerId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.next_deadline().is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            peer.fsm.timers(now);
            self.kept_timers(now, id);
            self.refresh_timers(now, id);
            self.settle(now, id);
        }
        if self.selection.is_due(now) {
            self.select_all();
            self.propagate();
        }
    }

    /// Carries out what a peer's machine asked for, and tells everybody what follows.
    fn settle(&mut self, now: Instant, id: PeerId) {
        self.act(now, id);
        self.forget_if_gone(now, id);
        self.propagate();
    }

    /// Carries out what a peer's machine asked for, until it asks for nothing more.
    fn act(&mut self, now: Instant, id: PeerId) {
        while let Some(action) = self.peers.get_mut(&id).and_then(|peer| peer.fsm.next_action()) {
            match action {
                Action::Connect { attempt } => {
                    let Some(peer) = self.peers.get(&id) else { return };
                    let target = self.target(&peer.config);
                    self.outputs.push_back(Output::Connect { peer: id, attempt, target });
                }
                Action::Abandon => self.outputs.push_back(Output::Abandon { peer: id }),
                Action::Send { connection, bytes } => self.send_to(id, connection, bytes.into()),
                Action::Close { connection } => {
                    self.links.remove(&connection);
                    self.outputs.push_back(Output::Close { connection });
                }
                Action::Up { connection, session } => {
                    self.session_up(now, id, connection, session);
                    self.tell_stations_up(id);
                }
                Action::Down { cause } => {
                    self.tell_stations_down(id, &cause);
                    self.session_down(now, id, &cause);
                }
                Action::Update { update } => self.update(now, id, update),
                Action::Refresh { refresh } => self.refreshed(now, id, &refresh),
            }
        }
        self.note_state(now, id);
    }

    /// Sends on a connection that has been entered.
    fn send(&mut self, connection: ConnectionId, bytes: Bytes) {
        if let Some(id) = self.links.get(&connection).map(|link| link.peer) {
            self.send_to(id, connection, bytes);
        }
    }

    fn send_to(&mut self, id: PeerId, connection: ConnectionId, bytes: Bytes) {
        self.said(id, &bytes);
        // A connection opens with its OPEN before the link is entered, and closes with its NOTIFICATION after it left.
        if let Some(link) = self.links.get_mut(&connection) {
            link.outstanding += bytes.len();
        }
        self.outputs.push_back(Output::Send { connection, bytes });
    }
}
