//! What a peer should hear about a prefix (RFC 4271 sections 9.1.3 and 9.2, next hops by 5.1.3).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::config::{Announcement, PeerConfig};
use crate::family::{Family, NextHop};
use crate::fsm::{Identity, Session};
use crate::rib::out::Said;
use crate::rib::{DEFAULT_LOCAL_PREF, Interner, PeerId, Rib};
use crate::wire::{AsPath, Attributes, Community};

/// The session towards which something is exported.
pub(super) struct Toward<'a> {
    pub(super) peer: PeerId,
    pub(super) config: &'a PeerConfig,
    pub(super) session: &'a Session,
    pub(super) identity: Identity,
}

impl Toward<'_> {
    /// What the peer should hear; `None` for nothing.
    pub(super) fn desired(&self, rib: &Rib, interner: &mut Interner, prefix: &IpNet) -> Option<Said> {
        if !self.session.families.contains(&Family::of(prefix)) {
            return None;
        }
        if let Some(announcement) = rib.announcement(prefix, &self.config.name) {
            let next_hop = match announcement.next_hop {
                Some(address) => NextHop::new(address),
                None => self.own_next_hop(Family::of(prefix))?,
            };
            return Some((next_hop, interner.intern(self.originated(announcement))));
        }
        if !self.config.export_learned || rib.is_local(prefix) {
            return None;
        }
        self.learned(rib, interner, prefix)
    }

    fn originated(&self, announcement: &Announcement) -> Attributes {
        let ebgp = self.session.ebgp;
        let mut communities = announcement.communities.clone();
        communities.sort_unstable();
        communities.dedup();
        let mut large_communities = announcement.large_communities.clone();
        large_communities.sort_unstable();
        large_communities.dedup();
        Attributes {
            origin: announcement.origin,
            as_path: if ebgp { AsPath::sequence(&[self.identity.asn]) } else { AsPath::default() },
            med: announcement.med,
            local_pref: (!ebgp).then(|| announcement.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
            communities,
            large_communities,
            ..Attributes::default()
        }
    }

    fn learned(&self, rib: &Rib, interner: &mut Interner, prefix: &IpNet) -> Option<Said> {
        let best = rib.destination(prefix)?.used().next()?;
        let both_internal = !best.ebgp && !self.session.ebgp;
        if best.peer == self.peer || both_internal || !may_leave(&best.attributes, self.session.ebgp) {
            return None;
        }
        let mut attributes = Attributes::clone(&best.attributes);
        if !self.session.ebgp {
            attributes.local_pref = Some(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
            return Some((best.next_hop, interner.intern(attributes)));
        }
        if attributes.as_path.contains(self.session.peer_asn) {
            return None;
        }
        attributes.as_path = attributes.as_path.prepended(self.identity.asn);
        attributes.med = None;
        attributes.local_pref = None;
        attributes.originator_id = None;
        attributes.cluster_list.clear();
        Some((self.own_next_hop(Family::of(prefix))?, interner.intern(attributes)))
    }

    /// The session's own address, or the configured one when the family differs. Without either there is nothing a peer could use.
    fn own_next_hop(&self, family: Family) -> Option<NextHop> {
        let session = Some(self.session.local_address).filter(|own| Family::of_address(own) == family);
        let configured = match family {
            Family::Ipv4Unicast => self.config.next_hop_ipv4.map(IpAddr::V4),
            Family::Ipv6Unicast => self.config.next_hop_ipv6.map(IpAddr::V6),
            // Not carried yet (PeerConfig::check).
            _ => None,
        };
        configured.or(session).map(NextHop::new)
    }
}

/// Well-known communities on learned routes (RFC 1997).
fn may_leave(attributes: &Arc<Attributes>, ebgp: bool) -> bool {
    let has = |community| attributes.communities.contains(&community);
    let internal_only = has(Community::NO_EXPORT) || has(Community::NO_EXPORT_SUBCONFED);
    !(has(Community::NO_ADVERTISE) || ebgp && internal_only)
}
