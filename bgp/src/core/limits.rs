//! How many routes are taken from a peer, and what happens when there are more (RFC 4271 section 6.7, RFC 4486 section 4).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Core;
use crate::config::PeerConfig;
use crate::family::Family;
use crate::rib::PeerId;
use crate::routing::{LimitAction, PrefixLimit};
use crate::wire::{self, Notification, cease, code};

/// What was noticed of a peer's limits in its session.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Families of which the owner was warned.
    warned: BTreeSet<Family>,
    /// Routes that were not taken.
    pub(super) discarded: BTreeMap<Family, u64>,
    /// Families of which routes may be missed that there would be room for again.
    missed: BTreeSet<Family>,
}

impl Limits {
    /// A new session: warnings are given anew.
    pub(super) fn renew(&mut self) {
        self.warned.clear();
        self.missed.clear();
    }

    /// A route is not taken.
    pub(super) fn discard(&mut self, family: Family) {
        *self.discarded.entry(family).or_default() += 1;
        self.missed.insert(family);
    }
}

/// The limit of a family.
pub(super) fn limit(config: &PeerConfig, family: Family) -> Option<&PrefixLimit> {
    config.prefix_limits.iter().find(|limit| limit.family == family)
}

/// The number of routes of a family from which on new ones are not taken.
pub(super) fn discards_from(config: &PeerConfig, family: Family) -> Option<usize> {
    limit(config, family).filter(|limit| limit.action == LimitAction::Discard).map(|limit| limit.max)
}

impl Core {
    /// Compares what is held from a peer with its limits, after it may have become more or less.
    pub(super) fn check_limits(&mut self, now: Instant, id: PeerId) {
        let Some(config) = self.peers.get(&id).map(|peer| std::sync::Arc::clone(&peer.config)) else {
            return;
        };
        for limit in &config.prefix_limits {
            let held = self.rib.count(id, limit.family);
            self.warn(id, limit, held);
            if held > limit.max {
                return self.exceeded(now, id, limit, held);
            }
            self.miss_nothing(id, limit, held);
        }
        let held: usize = Family::ALL.iter().map(|family| self.rib.count(id, *family)).sum();
        if held > config.max_prefixes
            && let Some(peer) = self.peers.get_mut(&id)
        {
            tracing::error!(peer = config.name, held, limit = config.max_prefixes, "Too many prefixes.");
            peer.fsm.fail_session(now, &Notification::new(code::CEASE, cease::MAX_PREFIXES));
        }
    }

    fn warn(&mut self, id: PeerId, limit: &PrefixLimit, held: usize) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if held < limit.warning() {
            peer.limits.warned.remove(&limit.family);
        } else if peer.limits.warned.insert(limit.family) {
            tracing::warn!(
                peer = peer.config.name,
                family = %limit.family,
                held,
                limit = limit.max,
                "The peer comes near the most prefixes that are taken from it; raise the limit, or ask its operator."
            );
        }
    }

    fn exceeded(&mut self, now: Instant, id: PeerId, limit: &PrefixLimit, held: usize) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if matches!(limit.action, LimitAction::Warn | LimitAction::Discard) {
            return;
        }
        tracing::error!(
            peer = peer.config.name,
            family = %limit.family,
            held,
            limit = limit.max,
            "Too many prefixes; the session ends."
        );
        // RFC 4486 section 4: which family, and how many would have been taken.
        let mut data = limit.family.afi().to_be_bytes().to_vec();
        data.push(limit.family.safi());
        data.extend(u32::try_from(limit.max).unwrap_or(u32::MAX).to_be_bytes());
        let notification = Notification::with_data(code::CEASE, cease::MAX_PREFIXES, &data);
        match limit.action {
            LimitAction::Restart { after_secs } => {
                peer.fsm.fail_session(now, &notification);
                peer.fsm.rest_for(now, Duration::from_secs(after_secs.into()));
            }
            _ => peer.fsm.stop(&notification),
        }
    }

    /// There is room again for routes that were not taken: the peer is asked to send them once more.
    fn miss_nothing(&mut self, id: PeerId, limit: &PrefixLimit, held: usize) {
        let Some(peer) = self.peers.get_mut(&id).filter(|_| held < limit.warning()) else { return };
        let Some((connection, session)) = peer.session.clone() else { return };
        if session.route_refresh && peer.limits.missed.remove(&limit.family) {
            self.send(connection, wire::route_refresh(limit.family).into());
        }
    }
}
