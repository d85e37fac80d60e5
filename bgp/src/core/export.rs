//! What peers should hear (RFC 4271 sections 9.1.3 and 9.2, next hops by 5.1.3), and how it is put into messages.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;

use crate::config::{Announcement, PeerConfig};
use crate::family::{Family, NextHop};
use crate::fsm::{Identity, Session};
use crate::rib::out::Said;
use crate::rib::{Best, DEFAULT_LOCAL_PREF, PathSet, PeerId};
use crate::wire::{self, AsPath, Attributes, Community, EncodeContext, UpdateContext};

/// Everything that what a peer hears depends on, but for whom a route is from: peers of equal views form a group and share messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View {
    own_asn: u32,
    ebgp: bool,
    four_octet_as: bool,
    /// Longest message the peer takes, in bytes (RFC 8654).
    message_max: usize,
    families: Vec<Family>,
    /// Families whose routes may have IPv6 next hops (RFC 8950).
    extended_next_hop: Vec<Family>,
    /// Next hop of what is announced as ours, by family; without one there is nothing the peer could use.
    next_hops: [Option<NextHop>; 2],
}

impl View {
    pub(super) fn new(identity: Identity, config: &PeerConfig, session: &Session) -> Self {
        let extended_next_hop = session.context.extended_next_hop.clone();
        let own = |family| {
            let fits = |own: &IpAddr| own.is_ipv6() && extended_next_hop.contains(&family);
            let address =
                Some(session.local_address).filter(|own| Family::of_address(own) == family || fits(own));
            let configured = match family {
                Family::Ipv4Unicast => config.next_hop_ipv4.map(IpAddr::V4),
                Family::Ipv6Unicast => config.next_hop_ipv6.map(IpAddr::V6),
                // Not carried yet (PeerConfig::check).
                _ => None,
            };
            configured.or(address).map(NextHop::new)
        };
        Self {
            own_asn: identity.asn,
            ebgp: session.ebgp,
            four_octet_as: session.context.four_octet_as,
            message_max: session.message_max,
            families: session.families.clone(),
            next_hops: [Family::Ipv4Unicast, Family::Ipv6Unicast].map(own),
            extended_next_hop,
        }
    }

    fn own_next_hop(&self, family: Family) -> Option<NextHop> {
        let [v4, v6] = self.next_hops;
        match family {
            Family::Ipv4Unicast => v4,
            Family::Ipv6Unicast => v6,
            _ => None,
        }
    }

    /// Whether routes of a family may be sent with a next hop (RFC 8950 section 4: an IPv6 one for IPv4 only where agreed on).
    fn carries(&self, family: Family, next_hop: &NextHop) -> bool {
        Family::of_address(&next_hop.address) == family || self.extended_next_hop.contains(&family)
    }

    /// How a peer of the group reads what it is sent.
    pub(super) fn update_context(&self) -> UpdateContext {
        UpdateContext {
            four_octet_as: self.four_octet_as,
            ebgp: self.ebgp,
            first_asn: None,
            families: self.families.clone(),
            extended_next_hop: self.extended_next_hop.clone(),
            ..UpdateContext::default()
        }
    }

    fn context(&self) -> EncodeContext {
        EncodeContext {
            four_octet_as: self.four_octet_as,
            message_max: self.message_max,
            ..EncodeContext::default()
        }
    }

    /// What a peer hears about a prefix that this speaker originates.
    pub(super) fn originated(&self, prefix: &IpNet, announcement: &Announcement) -> Option<Said> {
        let family = Family::of(prefix);
        if !self.families.contains(&family) {
            return None;
        }
        let next_hop = match announcement.next_hop {
            Some(address) => NextHop::new(address),
            None => self.own_next_hop(family)?,
        };
        if !self.carries(family, &next_hop) {
            return None;
        }
        let mut communities = announcement.communities.clone();
        communities.sort_unstable();
        communities.dedup();
        let mut large_communities = announcement.large_communities.clone();
        large_communities.sort_unstable();
        large_communities.dedup();
        let attributes = Attributes {
            origin: announcement.origin,
            as_path: if self.ebgp { AsPath::sequence(&[self.own_asn]) } else { AsPath::default() },
            med: announcement.med,
            local_pref: (!self.ebgp).then(|| announcement.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
            communities,
            large_communities,
            ..Attributes::default()
        };
        Some((next_hop, Arc::new(attributes)))
    }

    /// Whether the peers of the group hear of a learned path, the one it came from apart. Sent on even if it has the peer's own AS in it, as most
    /// speakers do: the peer looks for loops itself.
    pub(super) fn passes(&self, prefix: &IpNet, best: &Best) -> bool {
        let family = Family::of(prefix);
        let reachable = if self.ebgp {
            self.own_next_hop(family).is_some()
        } else {
            self.carries(family, best.set.next_hop())
        };
        (best.ebgp || self.ebgp)
            && reachable
            && self.families.contains(&family)
            && may_leave(best.set.attributes(), self.ebgp)
    }

    /// A learned path as the group hears it.
    pub(super) fn learned(&self, family: Family, set: &PathSet) -> Option<(NextHop, Attributes)> {
        let mut attributes = Attributes::clone(set.attributes());
        if !self.ebgp {
            attributes.local_pref = Some(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
            return Some((*set.next_hop(), attributes));
        }
        attributes.as_path.prepend(self.own_asn);
        attributes.med = None;
        attributes.local_pref = None;
        attributes.originator_id = None;
        attributes.cluster_list.clear();
        Some((self.own_next_hop(family)?, attributes))
    }

    /// UPDATEs that withdraw prefixes, families apart.
    pub(super) fn withdrawals(&self, prefixes: &[IpNet], out: &mut Vec<u8>) {
        for family in &self.families {
            let of: Vec<IpNet> =
                prefixes.iter().filter(|prefix| Family::of(prefix) == *family).copied().collect();
            wire::withdraw(*family, &of, out);
        }
    }

    /// UPDATEs that announce what this speaker originates, equal ones together.
    pub(super) fn announcements(&self, news: Vec<(IpNet, Said)>, out: &mut Vec<u8>) {
        let mut by_said: std::collections::BTreeMap<(Family, Said), Vec<IpNet>> =
            std::collections::BTreeMap::new();
        for (prefix, said) in news {
            by_said.entry((Family::of(&prefix), said)).or_default().push(prefix);
        }
        for ((family, said), prefixes) in by_said {
            let sent = wire::announce(&said.1, &said.0, family, &prefixes, self.context(), out);
            if let Err(bytes) = sent {
                too_long(bytes, prefixes.len());
                self.withdrawals(&prefixes, out);
            }
        }
    }
}

fn too_long(bytes: usize, count: usize) {
    tracing::warn!(bytes, count, "Attributes too long for one message; routes not sent.");
}

/// Well-known communities on learned routes (RFC 1997).
fn may_leave(attributes: &Attributes, ebgp: bool) -> bool {
    if attributes.communities.is_empty() {
        return true;
    }
    let has = |community| attributes.communities.binary_search(&community).is_ok();
    let internal_only = has(Community::NO_EXPORT) || has(Community::NO_EXPORT_SUBCONFED);
    !(has(Community::NO_ADVERTISE) || ebgp && internal_only)
}

/// A prefix to be told about.
#[derive(Clone, Copy, Debug)]
pub(super) struct News<'a> {
    pub(super) prefix: IpNet,
    /// The path the peers may hold now.
    pub(super) old: Held<'a>,
    /// The best path.
    pub(super) new: Option<&'a Best>,
}

/// What a peer may hold of a prefix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held<'a> {
    /// What follows from the best path before.
    Of(Option<&'a Best>),
    /// Something or not.
    Anything(bool),
}

impl Held<'_> {
    /// Whether anybody in the group holds something.
    fn anybody(&self, view: &View, prefix: &IpNet) -> bool {
        match self {
            Self::Of(best) => best.is_some_and(|best| view.passes(prefix, best)),
            Self::Anything(held) => *held,
        }
    }

    /// Whether one peer does.
    fn by(&self, peer: PeerId, view: &View, prefix: &IpNet) -> bool {
        let own = matches!(self, Self::Of(Some(best)) if best.peer == peer);
        !own && self.anybody(view, prefix)
    }
}

/// Messages for a group. A peer gets all parts but those that are from itself; in their place it gets what withdraws them, if it held anything.
#[derive(Clone, Debug, Default)]
pub(super) struct Parcel {
    bytes: Bytes,
    /// Parts that not everybody gets, in order.
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    from: PeerId,
    start: usize,
    end: usize,
    instead: Bytes,
}

impl Parcel {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The whole, whoever gets it.
    pub(super) const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The messages for one peer.
    pub(super) fn toward(&self, peer: PeerId) -> Vec<Bytes> {
        let mut out = Vec::new();
        let mut at = 0;
        for part in self.parts.iter().filter(|part| part.from == peer) {
            out.push(self.bytes.slice(at..part.start));
            out.push(part.instead.clone());
            at = part.end;
        }
        out.push(self.bytes.slice(at..));
        out.retain(|bytes| !bytes.is_empty());
        out
    }
}

/// Puts news into messages, withdrawals first, prefixes of equal paths together. `members`: peers that are told and that routes may be from.
pub(super) fn pack<'a>(view: &View, news: impl Iterator<Item = News<'a>>, members: &[PeerId]) -> Parcel {
    let mut withdrawn: Vec<IpNet> = Vec::new();
    let mut runs: Vec<Run<'a>> = Vec::new();
    let mut by_path: HashMap<(usize, PeerId, Family), usize, foldhash::fast::FixedState> = HashMap::default();
    let mut last = None;
    for item in news {
        let Some(best) = item.new.filter(|best| view.passes(&item.prefix, best)) else {
            if item.old.anybody(view, &item.prefix) {
                withdrawn.push(item.prefix);
            }
            continue;
        };
        let key = (Arc::as_ptr(&best.set).addr(), best.peer, Family::of(&item.prefix));
        let run = match last {
            Some((known, run)) if known == key => run,
            _ => *by_path.entry(key).or_insert_with(|| {
                runs.push(Run { best, family: key.2, prefixes: Vec::new(), held: Vec::new() });
                runs.len() - 1
            }),
        };
        last = Some((key, run));
        if let Some(run) = runs.get_mut(run) {
            run.prefixes.push(item.prefix);
            if members.contains(&best.peer) && item.old.by(best.peer, view, &item.prefix) {
                run.held.push(item.prefix);
            }
        }
    }
    let mut out = Vec::new();
    view.withdrawals(&withdrawn, &mut out);
    let mut parts = Vec::new();
    for run in runs {
        let start = out.len();
        run.encode(view, &mut out);
        if members.contains(&run.best.peer) && out.len() > start {
            let mut instead = Vec::new();
            view.withdrawals(&run.held, &mut instead);
            parts.push(Part { from: run.best.peer, start, end: out.len(), instead: instead.into() });
        }
    }
    Parcel { bytes: out.into(), parts }
}

/// Prefixes of one path.
struct Run<'a> {
    best: &'a Best,
    family: Family,
    prefixes: Vec<IpNet>,
    /// Of these, what the peer the path is from may hold from us.
    held: Vec<IpNet>,
}

impl Run<'_> {
    fn encode(&self, view: &View, out: &mut Vec<u8>) {
        let Some((next_hop, attributes)) = view.learned(self.family, &self.best.set) else { return };
        let sent = wire::announce(&attributes, &next_hop, self.family, &self.prefixes, view.context(), out);
        if let Err(bytes) = sent {
            too_long(bytes, self.prefixes.len());
            view.withdrawals(&self.prefixes, out);
        }
    }
}
