//! Route refresh with its beginning and end marked, in both directions (RFC 2918, RFC 7313).

use std::time::{Duration, Instant};

use super::Core;
use crate::family::Family;
use crate::rib::{Marks, PeerId};
use crate::wire::{RefreshKind, RouteRefresh};

/// Longest wait for the end of a refresh before what the peer did not send again goes (RFC 7313 section 4).
const REFRESH_MAX: Duration = Duration::from_secs(600);

impl Core {
    /// A ROUTE-REFRESH has come.
    pub(super) fn refreshed(&mut self, now: Instant, id: PeerId, refresh: &RouteRefresh) {
        let Some(peer) = self.peers.get(&id) else { return };
        let Some((_, session)) = &peer.session else { return };
        let Some(family) = refresh.family().filter(|family| session.families.contains(family)) else {
            return;
        };
        let awaits_end_of_rib = session.peer_restart.is_some() && !peer.end_of_rib.contains(&family);
        let name = &peer.config.name;
        match &refresh.kind {
            RefreshKind::Request | RefreshKind::Filters(_) => self.say_again(id, family),
            RefreshKind::Begin if !session.enhanced_refresh || awaits_end_of_rib => {
                // RFC 7313 section 4: it would make routes of the first list look like old ones.
                tracing::warn!(peer = name, %family, "A refresh began before End-of-RIB, or unasked for; ignored.");
            }
            RefreshKind::Begin => self.refresh_begins(now, id, family),
            RefreshKind::End => self.refresh_ends(id, family),
            RefreshKind::Unknown(_) => {}
        }
    }

    fn refresh_begins(&mut self, now: Instant, id: PeerId, family: Family) {
        self.rib.mark_where(id, family, |marks| marks.with(Marks::REFRESHING));
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.refreshing.insert(family, now + REFRESH_MAX);
        }
    }

    /// What was not sent again is gone. An end without a beginning means nothing.
    fn refresh_ends(&mut self, id: PeerId, family: Family) {
        let begun = self.peers.get_mut(&id).and_then(|peer| peer.refreshing.remove(&family));
        if begun.is_some() {
            self.rib.remove_where(id, |prefix, route| {
                route.marks.has(Marks::REFRESHING) && Family::of(prefix) == family
            });
        }
    }

    /// Ends refreshes that take too long.
    pub(super) fn refresh_timers(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else { return };
        let due = peer.refreshing.iter().filter(|(_, until)| **until <= now);
        let due: Vec<Family> = due.map(|(family, _)| *family).collect();
        for family in due {
            let name = &self.peers.get(&id).map(|peer| peer.config.name.clone()).unwrap_or_default();
            tracing::warn!(peer = name, %family, "The peer did not end its refresh in time; what it left out goes.");
            self.refresh_ends(id, family);
        }
    }
}
