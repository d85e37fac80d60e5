//! Snapshots for whoever asks: peers and routes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::Core;
use super::export::View;
use super::limits::limit;
use super::paths::Wanted;
use super::peer::Peer;
use crate::event::{FamilyState, PeerState, RouteRow, RouteView};
use crate::family::Family;
use crate::rib::{PeerId, Refusal, Route};

impl Core {
    /// The state of every peer, by name.
    pub(crate) fn peers(&self, now: Instant) -> Vec<PeerState> {
        let tally = self.tally();
        let mut states: Vec<PeerState> =
            self.peers.iter().map(|(id, peer)| self.peer_state(now, *id, peer, &tally)).collect();
        states.sort_by(|a, b| a.name.cmp(&b.name));
        states
    }

    /// One pass over the table that counts for all peers.
    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for (prefix, destination) in self.rib.destinations() {
            let family = Family::of(&prefix);
            for route in &destination.routes {
                let counted = tally.received.entry((route.peer, family)).or_default();
                counted.accepted += usize::from(route.refused.is_none());
                counted.stale += usize::from(route.is_stale());
            }
            if self.rib.is_local(&prefix) {
                continue;
            }
            for (view, _) in self.logs.iter() {
                let Some((path, _)) = view.choice(&self.rib, &prefix) else { continue };
                let passed = tally.passed.entry((view.clone(), family)).or_default();
                passed.all += 1;
                *passed.from.entry(path.peer).or_default() += 1;
            }
        }
        tally
    }

    fn peer_state(&self, now: Instant, id: PeerId, peer: &Peer, tally: &Tally) -> PeerState {
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
            families: peer
                .config
                .families
                .iter()
                .map(|family| self.family(id, peer, *family, tally))
                .collect(),
            capabilities: session.map(|session| session.peer_capabilities.clone()).unwrap_or_default(),
            port: peer.config.port,
            import: peer.config.import_rules(),
            export: peer.config.export_rules(),
            offered: peer.fsm.offers(),
            state_secs: peer.state_since.map(|since| now.saturating_duration_since(since).as_secs()),
            shutdown: self.held_down.get(&peer.config.name).cloned(),
            unsent_bytes: self.unsent(peer),
            outlook: peer.fsm.outlook(now),
            counters: peer.counters,
            last_error: unheard(peer).or_else(|| peer.fsm.last_error().map(str::to_owned)),
            transitions: peer.fsm.transitions().copied().collect(),
            transition_count: peer.fsm.transition_count(),
            range: peer.dynamic.clone(),
        }
    }

    fn unsent(&self, peer: &Peer) -> usize {
        let link = peer.session.as_ref().and_then(|(connection, _)| self.links.get(connection));
        link.map_or(0, |link| link.outstanding)
    }

    fn family(&self, id: PeerId, peer: &Peer, family: Family, tally: &Tally) -> FamilyState {
        let received = tally.received.get(&(id, family)).copied().unwrap_or_default();
        let originated = peer.out.sent().filter(|(prefix, _)| Family::of(prefix) == family).count();
        let group = peer.view.as_ref().filter(|_| peer.out.place.is_some());
        let passed = group.and_then(|view| tally.passed.get(&(View::clone(view), family)));
        let learned = passed.map_or(0, |passed| passed.all - passed.from.get(&id).copied().unwrap_or(0));
        FamilyState {
            family,
            negotiated: peer.session.as_ref().is_some_and(|(_, session)| session.families.contains(&family)),
            received: self.rib.count(id, family),
            accepted: received.accepted,
            stale: received.stale,
            advertised: originated + learned + peer.out.told_paths(family),
            end_of_rib: peer.end_of_rib.contains(&family),
            limit: limit(&peer.config, family).map(|limit| limit.max),
            discarded: peer.limits.discarded.get(&family).copied().unwrap_or_default(),
        }
    }

    /// Routes as asked for, by prefix and peer.
    pub(crate) fn routes(&self, view: RouteView) -> Vec<RouteRow> {
        match view {
            RouteView::Advertised => self.advertised(),
            RouteView::Received | RouteView::Best => {
                let all = view == RouteView::Received;
                let mut rows: Vec<RouteRow> = self
                    .rib
                    .destinations()
                    .flat_map(|(prefix, destination)| {
                        destination.routes.iter().map(move |route| (prefix, route))
                    })
                    .filter(|(_, route)| all || route.used())
                    .map(|(prefix, route)| self.row(prefix, route))
                    .collect();
                rows.sort_by(|a, b| (a.prefix, &a.peer, a.path_id).cmp(&(b.prefix, &b.peer, b.path_id)));
                rows
            }
        }
    }

    fn row(&self, prefix: IpNet, route: &Route) -> RouteRow {
        let unreachable = !self.rib.next_hops.is_usable(route.set.next_hop());
        RouteRow {
            prefix,
            path_id: route.set.path_id(),
            peer: self.peers.get(&route.peer).map(|peer| peer.config.name.clone()).unwrap_or_default(),
            next_hop: *route.set.next_hop(),
            attributes: Arc::clone(route.set.attributes()),
            best: route.best(),
            used: route.used(),
            stale: route.is_stale(),
            refused: route.refused.or_else(|| unreachable.then_some(Refusal::NextHopUnreachable)),
        }
    }

    fn advertised(&self) -> Vec<RouteRow> {
        let mut rows = Vec::new();
        for (id, peer) in &self.peers {
            let row = |prefix, next_hop, attributes| RouteRow {
                prefix,
                path_id: 0,
                peer: peer.config.name.clone(),
                next_hop,
                attributes,
                best: true,
                used: true,
                stale: false,
                refused: None,
            };
            let sent = peer.out.sent();
            rows.extend(
                sent.map(|(prefix, (next_hop, attributes))| row(*prefix, *next_hop, Arc::clone(attributes))),
            );
            let Some(view) = &peer.view else { continue };
            for prefix in peer.out.paths.iter().flatten().map(|(prefix, _)| prefix) {
                for Wanted { path_id, best, applied } in self.wanted(*id, view, prefix) {
                    let heard = view.learned(&self.rib, Family::of(prefix), &best, &applied);
                    let heard =
                        heard.map(|(next_hop, attributes)| row(*prefix, next_hop, Arc::new(attributes)));
                    rows.extend(heard.map(|row| RouteRow { path_id, ..row }));
                }
            }
            if peer.out.place.is_none() {
                continue;
            }
            let learned = self.rib.destinations().filter(|(prefix, _)| !self.rib.is_local(prefix));
            for (prefix, _) in learned {
                let heard = self.held_by(*id, &prefix, 0);
                rows.extend(heard.map(|(next_hop, attributes)| row(prefix, next_hop, attributes)));
            }
        }
        rows.sort_by(|a, b| (a.prefix, &a.peer, a.path_id).cmp(&(b.prefix, &b.peer, b.path_id)));
        rows
    }
}

/// Why an unnumbered peer is not tried.
fn unheard(peer: &Peer) -> Option<String> {
    peer.config.awaits_neighbour().then(|| {
        let interface = peer.config.interface.as_deref().unwrap_or_default();
        format!(
            "no router advertisement was heard on {interface}; check that the interface is up with a link-local address and that the other side sends them"
        )
    })
}

/// What one pass over the table counted.
#[derive(Default)]
struct Tally {
    received: BTreeMap<(PeerId, Family), Received>,
    passed: BTreeMap<(View, Family), Passed>,
}

#[derive(Clone, Copy, Default)]
struct Received {
    accepted: usize,
    stale: usize,
}

/// Learned routes that a group hears.
#[derive(Default)]
struct Passed {
    all: usize,
    /// Of those, from each peer, which does not hear them itself.
    from: BTreeMap<PeerId, usize>,
}
