//! What peers should hear (RFC 4271 sections 9.1.3 and 9.2, next hops by 5.1.3), and how it is put into messages.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;

use super::import::{add, source};
use super::policy::ExportPolicy;
use super::restart::has;
use crate::config::{Announcement, PeerConfig};
use crate::family::{Family, NextHop};
use crate::fsm::{Identity, Session};
use crate::policy::{Applied, Edited, NextHopAction, Source, Subject};
use crate::rib::out::Said;
use crate::rib::{Best, DEFAULT_LOCAL_PREF, PathSet, PeerId, Rib};
use crate::routing::Role;
use crate::rpki::RpkiTable;
use crate::wire::{self, Attributes, Community, EncodeContext, UpdateContext};

/// Everything that what a peer hears depends on, but for whom a route is from: peers of equal views form a group and share messages.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View {
    own_asn: u32,
    ebgp: bool,
    /// The peer understands long-lived stale routes (RFC 9494); or it is to hear of them all the same.
    long_lived: bool,
    partial: bool,
    four_octet_as: bool,
    /// Longest message the peer takes, in bytes (RFC 8654).
    message_max: usize,
    families: Vec<Family>,
    /// Families whose routes may have IPv6 next hops (RFC 8950).
    extended_next_hop: Vec<Family>,
    /// Next hop of what is announced as ours, by family; without one there is nothing the peer could use.
    next_hops: [Option<NextHop>; 2],
    /// Families in which path identifiers are sent (RFC 7911).
    add_path: Vec<Family>,
    policy: Option<Arc<ExportPolicy>>,
    /// Routes are reflected to the peers, in this cluster (RFC 4456).
    client: bool,
    cluster_id: Ipv4Addr,
    /// The peers are served as by a route server (RFC 7947).
    transparent: bool,
    /// What this speaker is to the peers (RFC 9234).
    role: Option<Role>,
    /// Paths through this speaker go away soon (RFC 8326).
    draining: bool,
}

/// What of the speaker, beside the session, decides what a peer hears.
#[derive(Clone, Debug)]
pub(super) struct Exporter {
    pub(super) identity: Identity,
    pub(super) cluster_id: Ipv4Addr,
    pub(super) policy: Option<Arc<ExportPolicy>>,
    pub(super) draining: bool,
}

impl View {
    pub(super) fn new(exporter: Exporter, config: &PeerConfig, session: &Session) -> Self {
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
            own_asn: exporter.identity.asn,
            ebgp: session.ebgp,
            long_lived: session.long_lived.peer,
            partial: !session.ebgp && config.long_lived.partial_deployment,
            four_octet_as: session.context.four_octet_as,
            message_max: session.message_max,
            families: session.families.clone(),
            next_hops: [Family::Ipv4Unicast, Family::Ipv6Unicast].map(own),
            extended_next_hop,
            add_path: session.add_path_send.clone(),
            policy: exporter.policy,
            client: config.reflector_client && !session.ebgp,
            cluster_id: exporter.cluster_id,
            transparent: config.route_server_client && session.ebgp,
            role: config.role.filter(|_| session.ebgp),
            draining: exporter.draining,
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

    /// Whether path identifiers are sent with routes of a family (RFC 7911).
    pub(super) fn sends_path_ids(&self, family: Family) -> bool {
        self.add_path.contains(&family)
    }

    /// How routes of a family are written.
    pub(super) fn context(&self, family: Family) -> EncodeContext {
        EncodeContext {
            four_octet_as: self.four_octet_as,
            message_max: self.message_max,
            add_path: self.sends_path_ids(family),
        }
    }

    /// What a peer hears about a prefix that this speaker originates.
    pub(super) fn originated(&self, prefix: &IpNet, announcement: &Announcement) -> Option<Said> {
        let family = Family::of(prefix);
        if !self.families.contains(&family) {
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
            med: announcement.med,
            local_pref: announcement.local_pref,
            communities,
            large_communities,
            ..Attributes::default()
        };
        let announced = announcement.next_hop.map(NextHop::new);
        let Edited { mut attributes, next_hop, .. } = match &self.policy {
            None => Edited::of(&attributes),
            Some(export) => {
                let subject = self.subject(*prefix, &attributes, announced, Source::Own, &export.rpki);
                export.policy.apply(&export.policy.decide(&subject)?, &attributes, self.own_asn)
            }
        };
        let own = || self.own_next_hop(family);
        let next_hop = match next_hop {
            Some(NextHopAction::Own) => own()?,
            Some(NextHopAction::Address(address)) if self.carries(family, &NextHop::new(address)) => {
                NextHop::new(address)
            }
            _ => announced.or_else(own)?,
        };
        if !self.carries(family, &next_hop) {
            return None;
        }
        if self.ebgp {
            attributes.as_path.prepend(self.own_asn);
            attributes.local_pref = None;
        } else {
            attributes.local_pref.get_or_insert(DEFAULT_LOCAL_PREF);
        }
        self.mark(&mut attributes);
        self.drain(&mut attributes);
        Some((next_hop, Arc::new(attributes)))
    }

    fn subject<'a>(
        &self,
        prefix: IpNet,
        attributes: &'a Attributes,
        next_hop: Option<NextHop>,
        source: Source<'a>,
        rpki: &'a RpkiTable,
    ) -> Subject<'a> {
        Subject { prefix, attributes, next_hop, source, local_asn: self.own_asn, rpki }
    }

    /// Whether a route is for customers only and the peers are none (RFC 9234 section 5).
    fn would_leak(&self, attributes: &Attributes) -> bool {
        self.role.is_some_and(|role| !role.is_upstream()) && attributes.only_to_customer().is_some()
    }

    /// Marks a route to a customer, a peer or a client as one that goes no further up (RFC 9234 section 5).
    fn mark(&self, attributes: &mut Attributes) {
        let down = |role: Role| role.is_upstream() || role == Role::Peer;
        if self.role.is_some_and(down) && attributes.only_to_customer().is_none() {
            attributes.set_only_to_customer(self.own_asn);
        }
    }

    /// Says that the path goes away soon, if it does: to other ASes by the community, inside by the least preference as well.
    fn drain(&self, attributes: &mut Attributes) {
        if self.draining {
            add(&mut attributes.communities, Community::GRACEFUL_SHUTDOWN);
            attributes.local_pref = attributes.local_pref.map(|_| 0);
        }
    }

    /// Whether the peers of the group hear of a learned path, the one it came from apart, and then which statements of the export policy are to be applied to it.
    /// Sent on even if it has the peer's own AS in it, as most speakers do: the peer looks for loops itself.
    pub(super) fn passes(&self, rib: &Rib, prefix: &IpNet, best: &Best) -> Option<Applied> {
        let family = Family::of(prefix);
        let facts = || rib.facts(best.peer);
        // RFC 4456 section 6: from a client to all, from others to clients.
        let reflected = || self.client || facts().is_some_and(|facts| facts.config.reflector_client);
        let goes = (best.ebgp || self.ebgp || reflected())
            && (!best.least || self.long_lived || self.partial)
            && self.families.contains(&family)
            && may_leave(best.set.attributes(), self.ebgp)
            && !self.would_leak(best.set.attributes());
        if !goes {
            return None;
        }
        let applied = match &self.policy {
            None => Applied::new(),
            Some(export) => {
                let facts = facts()?;
                let set = &best.set;
                let from = source(&facts.config, best.ebgp);
                let subject =
                    self.subject(*prefix, set.attributes(), Some(*set.next_hop()), from, &export.rpki);
                export.policy.decide(&subject)?
            }
        };
        self.next_hop(family, &best.set, self.next_hop_action(&applied)).map(|_| applied)
    }

    /// Whether the peers hear of routes of a family at all.
    pub(super) fn speaks_of(&self, family: Family) -> bool {
        self.families.contains(&family)
    }

    /// Whether the peers hear of the best path that may go to them, rather than of the best one or of none (RFC 7947 section 2.3.2.1).
    pub(super) const fn chooses(&self) -> bool {
        self.transparent
    }

    /// The path that the peers of the group hear of, the one it came from apart, and the statements to be applied to it.
    pub(super) fn choice(&self, rib: &Rib, prefix: &IpNet) -> Option<(Best, Applied)> {
        let best = rib.destination(prefix).and_then(Best::of)?;
        match self.passes(rib, prefix, &best) {
            Some(applied) => Some((best, applied)),
            None => self.alternative(rib, prefix),
        }
    }

    /// The best path that may go to the peers, where they [choose](Self::chooses) and the best of all may not. All paths are ranked for it.
    pub(super) fn alternative(&self, rib: &Rib, prefix: &IpNet) -> Option<(Best, Applied)> {
        if !self.chooses() || !self.speaks_of(Family::of(prefix)) {
            return None;
        }
        rib.paths(prefix).skip(1).find_map(|(_, path)| {
            let applied = self.passes(rib, prefix, &path)?;
            Some((path, applied))
        })
    }

    /// What the export policy does to the next hop.
    fn next_hop_action(&self, applied: &[u16]) -> Option<NextHopAction> {
        self.policy.as_ref().and_then(|export| export.policy.next_hop(applied))
    }

    /// The next hop that peers hear with a learned path (RFC 4271 section 5.1.3); none: there is none that they could use.
    fn next_hop(&self, family: Family, set: &PathSet, action: Option<NextHopAction>) -> Option<NextHop> {
        let unchanged = !self.ebgp || self.transparent;
        let next_hop = match action {
            Some(NextHopAction::Address(address)) => NextHop::new(address),
            Some(NextHopAction::Own) => self.own_next_hop(family)?,
            Some(NextHopAction::Unchanged) => *set.next_hop(),
            None if unchanged => *set.next_hop(),
            None => self.own_next_hop(family)?,
        };
        Some(next_hop).filter(|next_hop| self.carries(family, next_hop))
    }

    /// A learned path as the group hears it, after what [`View::passes`] found.
    pub(super) fn learned(
        &self,
        rib: &Rib,
        family: Family,
        best: &Best,
        applied: &[u16],
    ) -> Option<(NextHop, Attributes)> {
        let known = best.set.attributes();
        let edited = match &self.policy {
            Some(export) if !applied.is_empty() => export.policy.apply(applied, known, self.own_asn),
            _ => Edited::of(known),
        };
        let next_hop = self.next_hop(family, &best.set, edited.next_hop)?;
        let mut attributes = edited.attributes;
        if self.ebgp {
            if !self.transparent {
                attributes.as_path.prepend(self.own_asn);
                attributes.med = attributes.med.filter(|_| edited.med);
            }
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list.clear();
            // RFC 4360 section 6: what does not pass from AS to AS ends here, unless export policy put it there.
            let stays = |community: &u64| {
                is_transitive(*community) || known.extended_communities.binary_search(community).is_err()
            };
            attributes.extended_communities.retain(stays);
        } else {
            attributes.local_pref.get_or_insert(DEFAULT_LOCAL_PREF);
            if !best.ebgp {
                // RFC 4456 section 8.
                attributes.originator_id.get_or_insert(rib.facts(best.peer)?.router_id);
                attributes.cluster_list.insert(0, self.cluster_id);
            }
            if self.partial && !self.long_lived && has(&attributes, Community::LLGR_STALE) {
                // RFC 9494 section 4.6: whoever does not know the community at least knows this.
                attributes.local_pref = Some(0);
                add(&mut attributes.communities, Community::NO_EXPORT);
            }
        }
        self.mark(&mut attributes);
        self.drain(&mut attributes);
        Some((next_hop, attributes))
    }

    /// UPDATEs that withdraw prefixes, families apart.
    pub(super) fn withdrawals(&self, prefixes: &[IpNet], out: &mut Vec<u8>) {
        for family in &self.families {
            let of: Vec<IpNet> =
                prefixes.iter().filter(|prefix| Family::of(prefix) == *family).copied().collect();
            wire::withdraw_with(*family, &of, self.context(*family), out);
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
            let sent = wire::announce(&said.1, &said.0, family, &prefixes, self.context(family), out);
            if let Err(bytes) = sent {
                too_long(bytes, prefixes.len());
                self.withdrawals(&prefixes, out);
            }
        }
    }
}

pub(super) fn too_long(bytes: usize, count: usize) {
    tracing::warn!(bytes, count, "Attributes too long for one message; routes not sent.");
}

/// Whether an extended community passes from AS to AS (RFC 4360 section 2).
const fn is_transitive(community: u64) -> bool {
    community & (0x40 << 56) == 0
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
    fn anybody(&self, view: &View, rib: &Rib, prefix: &IpNet) -> bool {
        match self {
            Self::Of(best) => best.is_some_and(|best| view.passes(rib, prefix, best).is_some()),
            Self::Anything(held) => *held,
        }
    }

    /// Whether one peer does.
    fn by(&self, peer: PeerId, view: &View, rib: &Rib, prefix: &IpNet) -> bool {
        let own = matches!(self, Self::Of(Some(best)) if best.peer == peer);
        !own && self.anybody(view, rib, prefix)
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
pub(super) fn pack<'a>(
    view: &View,
    rib: &Rib,
    news: impl Iterator<Item = News<'a>>,
    members: &[PeerId],
) -> Parcel {
    let mut withdrawn: Vec<IpNet> = Vec::new();
    let mut runs: Vec<Run<'a>> = Vec::new();
    let mut by_path: HashMap<RunKey, usize, foldhash::fast::FixedState> = HashMap::default();
    let mut last: Option<(RunKey, usize)> = None;
    for item in news {
        let passing = item.new.and_then(|best| Some((best, view.passes(rib, &item.prefix, best)?)));
        let Some((best, applied)) = passing else {
            if item.old.anybody(view, rib, &item.prefix) {
                withdrawn.push(item.prefix);
            }
            continue;
        };
        let key = (best.set.serial(), best.peer, Family::of(&item.prefix), applied);
        let run = match &last {
            Some((known, run)) if *known == key => *run,
            _ => {
                let run = *by_path.entry(key.clone()).or_insert_with(|| {
                    let (family, applied) = (key.2, key.3.clone());
                    runs.push(Run { best, family, applied, prefixes: Vec::new(), held: Vec::new() });
                    runs.len() - 1
                });
                last = Some((key, run));
                run
            }
        };
        if let Some(run) = runs.get_mut(run) {
            run.prefixes.push(item.prefix);
            if members.contains(&best.peer) && item.old.by(best.peer, view, rib, &item.prefix) {
                run.held.push(item.prefix);
            }
        }
    }
    let mut out = Vec::new();
    view.withdrawals(&withdrawn, &mut out);
    let mut parts = Vec::new();
    for run in runs {
        let start = out.len();
        run.encode(view, rib, &mut out);
        if members.contains(&run.best.peer) && out.len() > start {
            let mut instead = Vec::new();
            view.withdrawals(&run.held, &mut instead);
            parts.push(Part { from: run.best.peer, start, end: out.len(), instead: instead.into() });
        }
    }
    Parcel { bytes: out.into(), parts }
}

/// What tells runs apart: content, peer, family, statements of the export policy that apply.
type RunKey = (u64, PeerId, Family, Applied);

/// Prefixes of one path.
struct Run<'a> {
    best: &'a Best,
    family: Family,
    applied: Applied,
    prefixes: Vec<IpNet>,
    /// Of these, what the peer the path is from may hold from us.
    held: Vec<IpNet>,
}

impl Run<'_> {
    fn encode(&self, view: &View, rib: &Rib, out: &mut Vec<u8>) {
        let learned = view.learned(rib, self.family, self.best, &self.applied);
        let Some((next_hop, attributes)) = learned else { return };
        let sent = wire::announce(
            &attributes,
            &next_hop,
            self.family,
            &self.prefixes,
            view.context(self.family),
            out,
        );
        if let Err(bytes) = sent {
            too_long(bytes, self.prefixes.len());
            view.withdrawals(&self.prefixes, out);
        }
    }
}
