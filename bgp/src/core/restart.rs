//! The receiving speaker of graceful restart: whose routes are kept when a session ends, and until when (RFC 4724 section 4.2, RFC 8538, RFC 9494).
//!
//! ```text
//!  session ends ──► stale ──restart time──► long-lived stale ──stale time──► gone      (each family by itself)
//!                     │ session is back         │ session is back: the stale time runs on
//!                     ▼                         ▼
//!                   waits for End-of-RIB, then what is still stale is gone
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use ipnet::IpNet;

use super::Core;
use super::import::add;
use crate::config::PeerConfig;
use crate::family::Family;
use crate::fsm::{DownCause, Session};
use crate::rib::{Marks, PathSet, PeerId, Route};
use crate::wire::{Attributes, Community};

/// What is kept of one peer.
#[derive(Debug, Default)]
pub(super) struct Retention {
    families: BTreeMap<Family, Kept>,
}

/// A family with stale routes.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// The session must be back by then.
    restart_until: Option<Instant>,
    /// The session is back: End-of-RIB must have come by then.
    synchronised_by: Option<Instant>,
    /// Long-lived stale routes go then, whether the session is back or not.
    long_lived_until: Option<Instant>,
    /// How long routes stay after the restart time; zero: not at all.
    long_lived: Duration,
    /// The long-lived stale time ended while the session that is back was not synchronised yet.
    expired: bool,
    /// Routes that were stale already survive another restart until then (RFC 8538 section 4.1).
    limit: Instant,
}

impl Retention {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let of = |kept: &Kept| {
            let timers = [kept.restart_until, kept.synchronised_by, kept.long_lived_until];
            timers.into_iter().flatten().min()
        };
        self.families.values().filter_map(of).min()
    }

    /// Whether nothing is kept.
    pub(super) fn is_empty(&self) -> bool {
        self.families.is_empty()
    }

    /// End-of-RIB has come.
    pub(super) fn synchronised(&mut self, family: Family) {
        self.families.remove(&family);
    }
}

impl Kept {
    /// What becomes of a family whose session ends now; none: its routes go.
    fn after(
        now: Instant,
        config: &PeerConfig,
        session: &Session,
        family: Family,
        before: Option<&Self>,
    ) -> Option<Self> {
        let restart = session.peer_restart.as_ref()?;
        if before.is_some_and(|before| before.expired) {
            return None;
        }
        let covered = restart.families.iter().any(|entry| entry.family == family);
        let restart_secs = if covered { restart.restart_time_secs } else { 0 };
        let restart_time = Duration::from_secs(restart_secs.into());
        let offered = session.long_lived.family(family).map_or(0, |entry| entry.stale_time_secs);
        let long_lived_secs = config.long_lived.longest_secs.map_or(offered, |most| offered.min(most));
        let long_lived = Duration::from_secs(long_lived_secs.into());
        let long_lived_until = before.and_then(|before| before.long_lived_until);
        if restart_time.is_zero() && long_lived.is_zero() && long_lived_until.is_none() {
            return None;
        }
        let limit = now + restart_time + stale_time(config);
        Some(Self {
            restart_until: Some(now + restart_time),
            synchronised_by: None,
            long_lived_until,
            long_lived,
            expired: false,
            limit: before.map_or(limit, |before| before.limit),
        })
    }
}

fn stale_time(config: &PeerConfig) -> Duration {
    Duration::from_secs(config.graceful_restart.stale_secs.into())
}

/// Marks of a path as it comes in: one with LLGR_STALE is the least preferred if we offered the peer to understand that (RFC 9494 section 4.3).
pub(super) fn marks_of(session: &Session, attributes: &Attributes) -> Marks {
    if session.long_lived.own && has(attributes, Community::LLGR_STALE) { Marks::LEAST } else { Marks::NONE }
}

pub(super) fn has(attributes: &Attributes, community: Community) -> bool {
    attributes.communities.binary_search(&community).is_ok()
}

impl Core {
    /// A session has ended: keeps the peer's routes as stale, or removes them. Whether any are kept.
    pub(super) fn keep_or_forget(
        &mut self,
        now: Instant,
        id: PeerId,
        session: &Session,
        cause: &DownCause,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let before = std::mem::take(&mut peer.kept.families);
        if !peer.config.graceful_restart.enabled || !session.keeps_routes(cause) {
            self.rib.remove_where(id, |_, _| true);
            return false;
        }
        let mut kept = BTreeMap::new();
        // What was stale before goes (RFC 4724 section 4.2), unless it is long-lived or both sides agreed on more (RFC 8538 section 4.1).
        let mut twice = Vec::new();
        for family in &session.families {
            let mut known = before.get(family);
            let survives = known.is_some_and(|known| {
                known.long_lived_until.is_some() || session.notification_restart && known.limit > now
            });
            if !survives {
                twice.push(*family);
                known = known.filter(|known| known.expired);
            }
            if let Some(entry) = Kept::after(now, &peer.config, session, *family, known) {
                kept.insert(*family, entry);
            }
        }
        self.rib.remove_where(id, |prefix, route| {
            let family = Family::of(prefix);
            !kept.contains_key(&family) || route.is_stale() && twice.contains(&family)
        });
        for family in kept.keys() {
            self.rib.mark_where(id, *family, |marks| marks.without(Marks::REFRESHING).with(Marks::STALE));
        }
        let any = !kept.is_empty();
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.kept.families = kept;
        }
        // A restart time of 0 is over at once.
        self.kept_timers(now, id);
        any
    }

    /// A session is up: what the peer did not keep forwarding is not worth keeping here; the rest waits for End-of-RIB.
    pub(super) fn back_again(&mut self, now: Instant, id: PeerId, session: &Session) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let wait = stale_time(&peer.config);
        let mut lost = Vec::new();
        peer.kept.families.retain(|family, kept| {
            let preserved = if kept.long_lived_until.is_some() {
                session.long_lived.family(*family).is_some_and(|entry| entry.forwarding_preserved)
            } else {
                session.peer_restart.as_ref().is_some_and(|restart| {
                    restart.families.iter().any(|entry| entry.family == *family && entry.forwarding_preserved)
                })
            };
            kept.restart_until = None;
            kept.synchronised_by = kept.long_lived_until.is_none().then(|| now + wait);
            let stays = preserved && session.families.contains(family);
            if !stays {
                lost.push(*family);
            }
            stays
        });
        if !lost.is_empty() {
            self.rib.remove_where(id, |prefix, route| route.is_stale() && lost.contains(&Family::of(prefix)));
        }
    }

    /// Runs the timers of what is kept of a peer.
    pub(super) fn kept_timers(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let up = peer.session.is_some();
        let (mut gone, mut long_lived) = (Vec::new(), Vec::new());
        peer.kept.families.retain(|family, kept| {
            if due(kept.restart_until) && !due(kept.long_lived_until) {
                kept.restart_until = None;
                if kept.long_lived_until.is_some() || !kept.long_lived.is_zero() {
                    long_lived.push(*family);
                    kept.long_lived_until = kept.long_lived_until.or(Some(now + kept.long_lived));
                    return true;
                }
            } else if due(kept.long_lived_until) && up {
                gone.push(*family);
                (kept.long_lived_until, kept.expired) = (None, true);
                return true;
            } else if !due(kept.long_lived_until) && !due(kept.synchronised_by) {
                return true;
            }
            gone.push(*family);
            false
        });
        if !gone.is_empty() {
            self.rib.remove_where(id, |prefix, route| route.is_stale() && gone.contains(&Family::of(prefix)));
        }
        long_lived.into_iter().for_each(|family| self.long_lived(id, family));
    }

    /// The restart time is over: stale routes of a family become the least preferred and say so; some do not want that (RFC 9494 section 4.2).
    fn long_lived(&mut self, id: PeerId, family: Family) {
        let chosen = |prefix: &IpNet, route: &Route| {
            route.is_stale() && !route.marks.has(Marks::LONG_LIVED) && Family::of(prefix) == family
        };
        let mut renamed: HashMap<usize, Arc<PathSet>, FixedState> = HashMap::default();
        for (prefix, route) in self.rib.routes_where(id, chosen) {
            if has(route.set.attributes(), Community::NO_LLGR) {
                self.rib.remove(prefix, id, route.set.path_id());
                continue;
            }
            let sets = &mut self.sets;
            // The routes found keep their sets, so an address stays one set's.
            let set = renamed.entry(Arc::as_ptr(&route.set).addr()).or_insert_with(|| {
                sets.changed(&route.set, |attributes| add(&mut attributes.communities, Community::LLGR_STALE))
            });
            let set = Arc::clone(set);
            let marks = route.marks.with(Marks::LONG_LIVED).with(Marks::LEAST);
            self.rib.insert(prefix, Route::new(id, route.ebgp, set, route.refused).marked(marks));
        }
    }

    /// The peer's forwarding is known to have failed: nothing stale is worth keeping.
    pub(super) fn forget_kept(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.kept = Retention::default();
            self.rib.remove_where(id, |_, route| route.is_stale());
        }
    }
}
