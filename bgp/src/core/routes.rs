//! Sessions coming and going, and the routes that come with them.

use std::sync::Arc;
use std::time::Instant;

use super::import::Setting;
use super::limits::discards_from;
use super::{Core, restart};
use crate::config::PeerConfig;
use crate::event::Event;
use crate::family::Family;
use crate::fsm::{ConnectionId, DownCause, Session};
use crate::rib::out::AdjRibOut;
use crate::rib::{PeerFacts, PeerId, Route};
use crate::wire::{self, Treatment, Update};

impl Core {
    pub(super) fn session_up(
        &mut self,
        now: Instant,
        id: PeerId,
        connection: ConnectionId,
        session: Arc<Session>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        tracing::info!(
            peer = peer.config.name,
            peer_asn = session.peer_asn,
            hold_time_secs = session.hold.as_secs(),
            "BGP session established."
        );
        peer.counters.sessions += 1;
        peer.limits.renew();
        peer.end_of_rib.clear();
        peer.out = AdjRibOut::default();
        peer.session = Some((connection, Arc::clone(&session)));
        let facts = PeerFacts {
            router_id: session.peer_router_id,
            address: peer.config.address,
            config: Arc::clone(&peer.config),
        };
        let told_of =
            |config: &PeerConfig| (config.name.clone(), config.group.clone(), config.reflector_client);
        if self.rib.facts(id).is_some_and(|before| told_of(&before.config) != told_of(&facts.config)) {
            // What others were told of its kept routes depends on who it was.
            self.rib.remove_where(id, |_, _| true);
            self.log_changes();
        }
        self.rib.set_peer(id, facts);
        self.start_telling(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let name = peer.config.name.clone();
        if self.export_complete {
            for family in Family::ALL.into_iter().filter(|family| !self.rib.is_deferred(*family)) {
                if let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.wants_end_of_rib(family)) {
                    peer.out.owe_end_of_rib(&[family]);
                }
            }
        }
        self.back_again(now, id, &session);
        self.select_if_complete();
        self.log_changes();
        self.events.session(Event::PeerUp { peer: name });
        self.pump(id);
    }

    pub(super) fn session_down(&mut self, now: Instant, id: PeerId, cause: &DownCause) {
        self.stop_telling(id, false);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((connection, session)) = peer.session.take() else { return };
        if matches!(cause, DownCause::Lost(_)) {
            self.links.remove(&connection);
        }
        tracing::warn!(peer = peer.config.name, reason = %cause, "BGP session down.");
        peer.out = AdjRibOut::default();
        peer.end_of_rib.clear();
        peer.refreshing.clear();
        let name = peer.config.name.clone();
        self.note_path_hearers();
        let routes_kept = self.keep_or_forget(now, id, &session, cause);
        self.events.session(Event::PeerDown { peer: name, reason: cause.to_string(), routes_kept });
    }

    pub(super) fn update(&mut self, now: Instant, id: PeerId, mut update: Box<Update>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((_, session)) = peer.session.clone() else { return };
        peer.counters.updates_received += 1;
        for fault in &update.faults {
            match fault.treatment {
                Treatment::TreatAsWithdraw => peer.counters.treated_as_withdraw += 1,
                Treatment::AttributeDiscard => peer.counters.attributes_discarded += 1,
                Treatment::Ignored => peer.counters.ignored += 1,
            }
            tracing::debug!(
                peer = peer.config.name,
                attribute = fault.attribute,
                treatment = ?fault.treatment,
                what = fault.what,
                "Fault in an UPDATE."
            );
        }
        let config = Arc::clone(&peer.config);
        for route in update.withdrawn_routes() {
            self.rib.remove(route.prefix, id, route.path_id);
        }
        self.sets.note_withdrawn(update.withdrawn.len());
        let setting = Setting {
            identity: self.identity,
            cluster_id: self.cluster_id,
            own_address: Some(session.local_address),
            ebgp: session.ebgp,
            peer_asn: session.peer_asn,
            rpki: &self.rpki,
        };
        let mut runs = update.reach.len();
        for reach in &update.reach {
            runs -= 1;
            // Mostly there is one run of routes, which takes the attributes as they are.
            let attributes = match runs {
                0 => std::mem::take(&mut update.attributes),
                _ => update.attributes.clone(),
            };
            let plain = self.sets.intern(attributes, reach.next_hop);
            let refused = peer.import.refusal(&setting, &plain);
            let marks = restart::marks_of(&session, plain.attributes());
            let discards_from = discards_from(&config, reach.family);
            for wire::Route { prefix, path_id } in reach.routes() {
                let full = discards_from.is_some_and(|most| self.rib.count(id, reach.family) >= most);
                if full && !self.rib.holds(&prefix, id, path_id) {
                    peer.limits.discard(reach.family);
                    continue;
                }
                let set = self.sets.with_path_id(&plain, path_id);
                let (set, refused) = match refused {
                    Some(_) => (set, refused),
                    None => peer.import.judge(&setting, &mut self.sets, &prefix, &set),
                };
                let route = Route::new(id, session.ebgp, set, refused);
                let kept = self.rib.insert(prefix, route.marked(marks));
                peer.counters.ignored += u64::from(!kept);
            }
        }
        if let Some(family) = update.end_of_rib.filter(|family| session.families.contains(family)) {
            self.end_of_rib(id, family);
        }
        self.check_limits(now, id);
    }

    fn end_of_rib(&mut self, id: PeerId, family: Family) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.kept.synchronised(family);
        peer.end_of_rib.insert(family);
        self.rib.remove_where(id, |prefix, route| route.is_stale() && Family::of(prefix) == family);
        self.select_if_complete();
        self.log_changes();
        let Some(peer) = self.peers.get(&id) else { return };
        self.events.session(Event::EndOfRib { peer: peer.config.name.clone(), family });
    }
}
