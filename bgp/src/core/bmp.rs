//! The collectors of BMP: what they are told, when their connections have room.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

use super::Core;
use crate::bmp::{self, BmpStation, PeerHead, StationLink, Statistic};
use crate::family::{Family, NextHop};
use crate::fsm::DownCause;
use crate::rib::{LOC_RIB, PathKey, PathSet, PeerId};
use crate::wire::{
    self, Announcer, Attributes, Capability, EXTENDED_MESSAGE_MAX, EncodeContext, Open, Route,
};

/// Unsent bytes on a connection above which nothing more is put on it.
const OUTSTANDING_MAX: usize = 1024 * 1024;

/// The number of a collector among the settings.
pub(crate) type StationId = usize;

/// What the driver is to do about a collector.
#[derive(Debug)]
pub(crate) enum StationOutput {
    Send(Bytes),
    /// Close and connect again: it fell too far behind.
    Restart,
}

/// A collector.
#[derive(Debug)]
pub(super) struct Station {
    settings: BmpStation,
    link: Option<StationLink>,
}

/// The collectors.
#[derive(Debug, Default)]
pub(super) struct Stations(Vec<Station>);

/// A set of paths of one family that say the same, or are gone.
type Groups = BTreeMap<(Family, Option<u64>), (Option<Arc<PathSet>>, Vec<Route>)>;

impl Stations {
    /// The connections that are told what peers are sent.
    pub(super) fn sent_links(&mut self) -> impl Iterator<Item = &mut StationLink> {
        let watching = self.0.iter_mut().filter(|station| station.settings.adj_rib_out);
        watching.filter_map(|station| station.link.as_mut())
    }

    /// Whether there is one.
    pub(super) fn watching_sent(&self) -> bool {
        self.0.iter().any(|station| station.settings.adj_rib_out && station.link.is_some())
    }

    fn links(&mut self) -> impl Iterator<Item = &mut StationLink> {
        self.0.iter_mut().filter_map(|station| station.link.as_mut())
    }
}

impl Core {
    /// Takes the collectors of the settings; none is connected yet.
    pub(crate) fn set_stations(&mut self, stations: &[BmpStation]) {
        let station = |settings: &BmpStation| Station { settings: settings.clone(), link: None };
        self.stations = Stations(stations.iter().map(station).collect());
        if !stations.is_empty() {
            self.rib.journal.open();
        }
    }

    /// A collector is connected: it is told who is up, then the table.
    pub(crate) fn station_up(&mut self, id: StationId) {
        let mut table: Vec<IpNet> = self.rib.destinations().map(|(prefix, _)| prefix).collect();
        let Some(settings) = self.stations.0.get(id).map(|station| station.settings.clone()) else { return };
        if settings.adj_rib_out {
            table.extend(self.rib.originated());
        }
        table.sort_unstable();
        table.dedup();
        let mut link = StationLink::new(table.into());
        let hello = bmp::initiation(&settings.system_description, &settings.system_name);
        link.control(bmp::INITIATION, None, hello);
        if settings.loc_rib {
            let (head, body) = self.table_up();
            link.control(bmp::PEER_UP, Some(head), body);
            link.peer_up(LOC_RIB, true);
        }
        for peer in self.peers.keys() {
            if let Some((head, body)) = self.peer_up(*peer) {
                link.control(bmp::PEER_UP, Some(head), body);
                link.peer_up(*peer, true);
            }
        }
        if let Some(station) = self.stations.0.get_mut(id) {
            station.link = Some(link);
        }
    }

    /// A collector's connection is gone.
    pub(crate) fn station_down(&mut self, id: StationId) {
        if let Some(station) = self.stations.0.get_mut(id) {
            station.link = None;
        }
    }

    /// A collector has taken bytes.
    pub(crate) fn station_drained(&mut self, id: StationId, bytes: usize) {
        if let Some(link) = self.stations.0.get_mut(id).and_then(|station| station.link.as_mut()) {
            link.outstanding = link.outstanding.saturating_sub(bytes);
        }
    }

    /// The statistics of each peer are due.
    pub(crate) fn station_statistics(&mut self, id: StationId) {
        let reports: Vec<(PeerHead, Vec<u8>)> =
            self.peers.keys().filter_map(|peer| self.report(*peer)).collect();
        let Some(link) = self.stations.0.get_mut(id).and_then(|station| station.link.as_mut()) else {
            return;
        };
        reports.into_iter().for_each(|(head, body)| link.control(bmp::STATISTICS, Some(head), body));
    }

    /// The speaker stops: the collectors are told so.
    pub(crate) fn stop_stations(&mut self) {
        self.stations.links().for_each(|link| link.control(bmp::TERMINATION, None, bmp::termination()));
    }

    /// What the driver is to send to collectors now. `at`: since 1970.
    pub(crate) fn pump_stations(&mut self, at: Duration) -> Vec<(StationId, StationOutput)> {
        if self.stations.0.is_empty() {
            return Vec::new();
        }
        let changed = self.rib.journal.take();
        for link in self.stations.links() {
            changed.iter().for_each(|key| link.mark(*key));
        }
        let mut stations = std::mem::take(&mut self.stations);
        let mut outputs = Vec::new();
        for (id, station) in stations.0.iter_mut().enumerate() {
            let Some(link) = station.link.as_mut() else { continue };
            while link.outstanding < OUTSTANDING_MAX && !link.is_overrun() {
                let bytes = self.next_for(&station.settings, link, at);
                if bytes.is_empty() {
                    break;
                }
                link.outstanding += bytes.len();
                outputs.push((id, StationOutput::Send(bytes.into())));
            }
            if link.is_overrun() {
                tracing::warn!(station = %station.settings.address, "The BMP collector is too slow; it begins anew.");
                station.link = None;
                outputs.push((id, StationOutput::Restart));
            }
        }
        self.stations = stations;
        outputs
    }

    /// The next bytes for a collector; none if it has been told all.
    fn next_for(&self, settings: &BmpStation, link: &mut StationLink, at: Duration) -> Vec<u8> {
        loop {
            let mut bytes = link.take_control(at);
            if bytes.is_empty() {
                self.tell_paths(settings, link.take_marks(), at, &mut bytes);
            }
            if bytes.is_empty() {
                self.tell_sent(link.take_sent(), at, &mut bytes);
            }
            if !bytes.is_empty() {
                return bytes;
            }
            match link.walk() {
                Some(prefixes) => prefixes.iter().for_each(|prefix| {
                    self.mark_all(prefix, link);
                    if settings.adj_rib_out {
                        self.mark_all_sent(prefix, link);
                    }
                }),
                None => {
                    for peer in link.take_end_of_rib() {
                        self.end_table(settings, peer, at, &mut bytes);
                    }
                    return bytes;
                }
            }
        }
    }

    fn mark_all(&self, prefix: &IpNet, link: &mut StationLink) {
        let Some(destination) = self.rib.destination(prefix) else { return };
        // What is kept of a session that ended is not the state of any session.
        for route in destination.routes.iter().filter(|route| !route.is_stale()) {
            link.mark((route.peer, *prefix, route.set.path_id()));
        }
        if destination.best().is_some() {
            link.mark((LOC_RIB, *prefix, 0));
        }
    }

    /// Tells of paths as they are now.
    fn tell_paths(&self, settings: &BmpStation, marks: Vec<PathKey>, at: Duration, out: &mut Vec<u8>) {
        let mut by_peer: BTreeMap<PeerId, Vec<PathKey>> = BTreeMap::new();
        marks.into_iter().for_each(|key| by_peer.entry(key.0).or_default().push(key));
        for (peer, keys) in by_peer {
            if peer == LOC_RIB {
                let head = PeerHead::loc_rib(self.identity.asn, self.identity.router_id);
                let groups = group(&keys, |(_, prefix, _)| {
                    self.rib.destination(prefix)?.best().map(|best| Arc::clone(&best.set))
                });
                say(&head, at, &groups, &[], out);
                continue;
            }
            let Some((head, add_path)) = self.head(peer) else { continue };
            let held = |(peer, prefix, path_id): &PathKey| {
                let routes = &self.rib.destination(prefix)?.routes;
                routes.iter().find(|route| route.peer == *peer && route.set.path_id() == *path_id)
            };
            if settings.pre_policy {
                let groups =
                    group(&keys, |key| held(key).map(|route| Arc::clone(PathSet::received(&route.set))));
                say(&head, at, &groups, &add_path, out);
            }
            if settings.post_policy {
                let accepted = |key: &PathKey| held(key).filter(|route| route.refused.is_none());
                let groups = group(&keys, |key| accepted(key).map(|route| Arc::clone(&route.set)));
                say(&head.post_policy(), at, &groups, &add_path, out);
            }
        }
    }

    /// Ends the table of a peer, or the best paths.
    fn end_table(&self, settings: &BmpStation, peer: PeerId, at: Duration, out: &mut Vec<u8>) {
        let session = self.peers.get(&peer).and_then(|peer| peer.session.as_ref());
        let families = session.map_or_else(|| Family::ALL.to_vec(), |(_, session)| session.families.clone());
        let mut ends = Vec::new();
        families.iter().for_each(|family| wire::end_of_rib(*family, &mut ends));
        if peer == LOC_RIB {
            let head = PeerHead::loc_rib(self.identity.asn, self.identity.router_id);
            return bmp::route_monitoring(&head, at, &ends, out);
        }
        let Some((head, _)) = self.head(peer) else { return };
        if settings.pre_policy {
            bmp::route_monitoring(&head, at, &ends, out);
        }
        if settings.post_policy {
            bmp::route_monitoring(&head.post_policy(), at, &ends, out);
        }
        if settings.adj_rib_out {
            bmp::route_monitoring(&head.post_policy().sent(), at, &ends, out);
        }
    }

    /// An established peer, and the families in which it sends path identifiers.
    pub(super) fn head(&self, id: PeerId) -> Option<(PeerHead, Vec<Family>)> {
        let peer = self.peers.get(&id)?;
        let (_, session) = peer.session.as_ref()?;
        let head = PeerHead::peer(peer.config.address, session.peer_asn, session.peer_router_id);
        Some((head, session.context.add_path.clone()))
    }

    fn peer_up(&self, id: PeerId) -> Option<(PeerHead, Vec<u8>)> {
        let (head, _) = self.head(id)?;
        let peer = self.peers.get(&id)?;
        let (_, session) = peer.session.as_ref()?;
        let (sent, received) = (peer.opens.0.as_ref()?, peer.opens.1.as_ref()?);
        // Which side connected is not kept; a port that is not known is 0.
        let ports = (0, peer.config.port);
        let name = (0, peer.config.name.as_str());
        Some((head, bmp::peer_up(Some(session.local_address), ports, (sent, received), name)))
    }

    /// The Peer Up of the table itself, with OPENs made up for it (RFC 9069 section 4.4).
    fn table_up(&self) -> (PeerHead, Vec<u8>) {
        let mut capabilities: Vec<Capability> =
            Family::ALL.iter().copied().map(Capability::Multiprotocol).collect();
        capabilities.push(Capability::FourOctetAs(self.identity.asn));
        let open = wire::open(&Open {
            asn: self.identity.asn,
            hold_time_secs: 0,
            router_id: self.identity.router_id,
            capabilities,
        });
        let head = PeerHead::loc_rib(self.identity.asn, self.identity.router_id);
        (head, bmp::peer_up(None::<IpAddr>, (0, 0), (&open, &open), (3, "global")))
    }

    fn report(&self, id: PeerId) -> Option<(PeerHead, Vec<u8>)> {
        let (head, _) = self.head(id)?;
        let peer = self.peers.get(&id)?;
        let (_, session) = peer.session.as_ref()?;
        let count = |family: Family| u64::try_from(self.rib.count(id, family)).unwrap_or(u64::MAX);
        let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let mut all = vec![
            Statistic::AdjRibIn(Family::ALL.iter().map(|family| count(*family)).sum()),
            Statistic::TreatedAsWithdraw(narrow(peer.counters.treated_as_withdraw)),
            Statistic::Rejected(narrow(self.rejected(id))),
        ];
        all.extend(session.families.iter().map(|family| Statistic::AdjRibInOf(*family, count(*family))));
        Some((head, bmp::statistics(&all)))
    }

    fn rejected(&self, id: PeerId) -> u64 {
        let routes = self.rib.destinations().flat_map(|(_, destination)| &destination.routes);
        let rejected = routes.filter(|route| route.peer == id && route.refused.is_some()).count();
        u64::try_from(rejected).unwrap_or(u64::MAX)
    }

    /// A session is established.
    pub(super) fn tell_stations_up(&mut self, id: PeerId) {
        if self.stations.0.is_empty() {
            return;
        }
        let Some((head, body)) = self.peer_up(id) else { return };
        for link in self.stations.links() {
            link.control(bmp::PEER_UP, Some(head), body.clone());
            link.peer_up(id, false);
        }
    }

    /// An established session is about to be gone.
    pub(super) fn tell_stations_down(&mut self, id: PeerId, cause: &DownCause) {
        let Some((head, _)) = self.head(id) else { return };
        for link in self.stations.links() {
            if link.peer_down(id) {
                link.control(bmp::PEER_DOWN, Some(head), bmp::down_reason(cause));
            }
        }
    }
}

/// Sorts paths by what they say; `now` gives the set of a path, none if it is gone.
fn group(keys: &[PathKey], now: impl Fn(&PathKey) -> Option<Arc<PathSet>>) -> Groups {
    let mut groups = Groups::new();
    for key in keys {
        let set = now(key);
        let family = Family::of(&key.1);
        let place = (family, set.as_ref().map(|set| set.serial()));
        let (_, routes) = groups.entry(place).or_insert_with(|| (set, Vec::new()));
        routes.push(Route { prefix: key.1, path_id: key.2 });
    }
    groups
}

/// Appends what a collector is told of groups of paths.
fn say(head: &PeerHead, at: Duration, groups: &Groups, add_path: &[Family], out: &mut Vec<u8>) {
    for ((family, _), (set, routes)) in groups {
        let said = set.as_ref().map(|set| (set.attributes().as_ref(), set.next_hop()));
        let updates = encode(*family, said, routes, add_path.contains(family));
        bmp::route_monitoring(head, at, &updates, out);
    }
}

/// UPDATEs that announce routes with their attributes and next hop, or withdraw them.
pub(super) fn encode(
    family: Family,
    said: Option<(&Attributes, &NextHop)>,
    routes: &[Route],
    add_path: bool,
) -> Vec<u8> {
    let context = EncodeContext { add_path, ..EncodeContext::default() };
    let mut updates = Vec::new();
    let Some((attributes, next_hop)) = said else {
        wire::withdraw_with(family, routes, context, &mut updates);
        return updates;
    };
    let announce = |context, updates: &mut Vec<u8>| {
        Announcer::new(attributes, next_hop, family, context).announce(routes, updates)
    };
    let longer = EncodeContext { message_max: EXTENDED_MESSAGE_MAX, ..context };
    if let Err(bytes) = announce(context, &mut updates).or_else(|_| announce(longer, &mut updates)) {
        tracing::warn!(bytes, "Attributes are too long for a BMP collector; their routes are left out.");
    }
    updates
}
