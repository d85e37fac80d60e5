//! Snapshots for whoever asks: peers and routes.

use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::peer::Peer;
use crate::event::{FamilyState, PeerState, RouteRow, RouteView};
use crate::family::Family;
use crate::rib::{Destination, PeerId, Route};

impl Core {
    /// The state of every peer, by name.
    pub(crate) fn peers(&self, now: Instant) -> Vec<PeerState> {
        let mut states: Vec<PeerState> =
            self.peers.iter().map(|(id, peer)| self.peer_state(now, *id, peer)).collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        states
    }

    fn peer_state(&self, now: Instant, id: PeerId, peer: &Peer) -> PeerState {
        let session = peer.session.as_ref().map(|(_, session)| session);
        PeerState {
            name: peer.config.name.clone(),
            address: peer.config.address,
            interface: peer.config.interface.clone(),
            local_asn: self.identity.asn,
            peer_asn: session.map_or(peer.config.peer_asn, |session| session.peer_asn),
            local_address: session.map(|session| session.local_address).or(peer.config.local_address),
            router_id: session.map(|session| session.peer_router_id),
            state: peer.fsm.state(),
            established_secs: peer.fsm.up_since().map(|since| now.saturating_duration_since(since).as_secs()),
            hold_time_secs: session.map(|session| session.hold.as_secs()),
            keepalive_secs: session.map(|session| session.keepalive.as_secs()),
            families: peer.config.families.iter().map(|family| self.family(id, peer, *family)).collect(),
            capabilities: session.map(|session| session.peer_capabilities.clone()).unwrap_or_default(),
            counters: peer.counters,
            last_error: peer.fsm.last_error().map(str::to_owned),
        }
    }

    fn family(&self, id: PeerId, peer: &Peer, family: Family) -> FamilyState {
        let mine = || {
            self.rib
                .destinations()
                .filter(|(prefix, _)| Family::of(prefix) == family)
                .filter_map(|(_, destination)| destination.route(id))
        };
        FamilyState {
            family,
            negotiated: peer.session.as_ref().is_some_and(|(_, session)| session.families.contains(&family)),
            received: self.rib.count(id, family),
            accepted: mine().filter(|route| route.refused.is_none()).count(),
            stale: mine().filter(|route| route.stale).count(),
            advertised: peer.out.count(family),
            end_of_rib: peer.end_of_rib.contains(&family),
        }
    }

    /// Routes as asked for, by prefix and peer.
    pub(crate) fn routes(&self, view: RouteView) -> Vec<RouteRow> {
        match view {
            RouteView::Advertised => self.advertised(),
            RouteView::Received | RouteView::Best => {
                let all = view == RouteView::Received;
                self.rib
                    .destinations()
                    .flat_map(|(prefix, destination)| {
                        destination.routes.iter().map(move |route| (prefix, destination, route))
                    })
                    .map(|(prefix, destination, route)| self.row(*prefix, destination, route))
                    .filter(|row| all || row.used)
                    .collect()
            }
        }
    }

    fn row(&self, prefix: ipnet::IpNet, destination: &Destination, route: &Route) -> RouteRow {
        RouteRow {
            prefix,
            peer: self.peers.get(&route.peer).map(|peer| peer.config.name.clone()).unwrap_or_default(),
            next_hop: route.next_hop,
            attributes: Arc::clone(&route.attributes),
            best: destination.selected.first() == Some(&route.peer),
            used: destination.selected.contains(&route.peer),
            stale: route.stale,
            refused: route.refused,
        }
    }

    fn advertised(&self) -> Vec<RouteRow> {
        let mut rows: Vec<RouteRow> = self
            .peers
            .values()
            .flat_map(|peer| peer.out.sent().map(move |(prefix, said)| (peer, prefix, said)))
            .map(|(peer, prefix, (next_hop, attributes))| RouteRow {
                prefix: *prefix,
                peer: peer.config.name.clone(),
                next_hop: *next_hop,
                attributes: Arc::clone(attributes),
                best: true,
                used: true,
                stale: false,
                refused: None,
            })
            .collect();
        rows.sort_by(|a, b| (a.prefix, &a.peer).cmp(&(b.prefix, &b.peer)));
        rows
    }
}
