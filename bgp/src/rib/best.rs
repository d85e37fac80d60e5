//! The decision process (RFC 4271 section 9.1.2): which paths of one prefix are used, best first.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use smallvec::SmallVec;

use super::next_hops::NextHops;
use super::{Best, Marks, PathSet, PeerFacts, PeerId, Route};
use crate::config::SpeakerConfig;
use crate::family::NextHop;
use crate::routing::Decision;
use crate::wire::Origin;

/// Preference of a path without LOCAL_PREF.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// How paths are compared, and how many are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection {
    decision: Decision,
    max_external: usize,
    max_internal: usize,
}

impl Selection {
    pub(super) fn new(config: &SpeakerConfig) -> Self {
        let bounded = |paths: usize| paths.clamp(1, usize::from(u8::MAX));
        Self {
            decision: config.decision,
            max_external: bounded(config.max_paths),
            max_internal: bounded(config.decision.max_internal_paths.unwrap_or(config.max_paths)),
        }
    }
}

/// A path under comparison: its place in the list, itself.
type Candidate<'a> = (usize, &'a Route);
/// The last steps as a key, least first; the last two keep paths apart.
type TieBreak = (Option<Ipv4Addr>, usize, Option<IpAddr>, PeerId, u32);
type Candidates<'a> = SmallVec<[Candidate<'a>; 8]>;

/// Ranks the paths: the best is 1, then follow those equal to it up to the tie-breaks, as many as are to be used; the others have rank 0.
/// Whether any rank changed.
pub(super) fn rank(
    routes: &mut [Route],
    peers: &BTreeMap<PeerId, PeerFacts>,
    selection: &Selection,
    next_hops: &NextHops,
) -> bool {
    // Most prefixes have one path.
    if let [only] = routes {
        let rank = u8::from(is_candidate(only, next_hops));
        return std::mem::replace(&mut only.rank, rank) != rank;
    }
    let selected = select(routes, peers, selection, next_hops);
    let mut changed = false;
    for (at, route) in routes.iter_mut().enumerate() {
        let place = selected.iter().position(|chosen| *chosen == at).map_or(0, |place| place + 1);
        let rank = u8::try_from(place).unwrap_or(u8::MAX);
        changed |= std::mem::replace(&mut route.rank, rank) != rank;
    }
    changed
}

/// After a path in use was taken away: has those behind it move up, if that is all that follows. It is if every path that comes as far as the comparison
/// of MEDs is in use: what has lost to none of the others loses to none of fewer, and nobody waits for a place. Whether it was all: else they are to be
/// ranked.
pub(super) fn close_gap(routes: &mut [Route], gone: &Route, next_hops: &NextHops) -> bool {
    let Some(in_use) = routes.iter().find(|route| route.used()).map(preference).filter(|_| gone.used())
    else {
        return false;
    };
    let waits =
        |route: &Route| !route.used() && is_candidate(route, next_hops) && preference(route) <= in_use;
    if routes.iter().any(waits) {
        return false;
    }
    for route in routes.iter_mut().filter(|route| route.rank > gone.rank) {
        route.rank -= 1;
    }
    true
}

fn is_candidate(route: &Route, next_hops: &NextHops) -> bool {
    route.refused.is_none() && next_hops.is_usable(route.set.next_hop())
}

/// What is compared first, least first: long-lived stale, LOCAL_PREF turned round, hops of AS_PATH, ORIGIN (RFC 9494 section 4.3, RFC 4271 section 9.1.1 and
/// 9.1.2.2 a and b).
fn preference(route: &Route) -> (bool, u32, usize, Origin) {
    let attributes = route.set.attributes();
    let local_pref = attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
    (route.marks.has(Marks::LEAST), u32::MAX - local_pref, attributes.as_path.hops(), attributes.origin)
}

/// The paths that are equal in what is compared first.
fn preferred<'a>(routes: &'a [Route], next_hops: &NextHops) -> Candidates<'a> {
    let mut left: Candidates<'_> = SmallVec::new();
    let mut least = None;
    for (at, route) in routes.iter().enumerate().filter(|(_, route)| is_candidate(route, next_hops)) {
        let found = preference(route);
        match least.map_or(Ordering::Less, |least| found.cmp(&least)) {
            Ordering::Greater => continue,
            Ordering::Less => left.clear(),
            Ordering::Equal => {}
        }
        least = Some(found);
        left.push((at, route));
    }
    left
}

/// Indexes of the paths in use, best first.
fn select(
    routes: &[Route],
    peers: &BTreeMap<PeerId, PeerFacts>,
    selection: &Selection,
    next_hops: &NextHops,
) -> SmallVec<[usize; 8]> {
    let mut left = preferred(routes, next_hops);
    keep_least_med(&mut left, selection.decision);
    keep_least(&mut left, |(_, route)| !route.ebgp);
    if next_hops.is_tracked() {
        keep_least(&mut left, |(_, route)| next_hops.cost(route.set.next_hop()));
    }
    // What is left is equal but for the tie-breaks: the multipath set.
    let mut left: SmallVec<[(TieBreak, Candidate<'_>); 8]> =
        left.into_iter().map(|path| (tie_break(path.1, peers), path)).collect();
    left.sort_unstable_by_key(|(key, _)| *key);
    let Some((_, (_, best))) = left.first().copied() else { return SmallVec::new() };
    if !selection.decision.relax_multipath {
        let path = &best.set.attributes().as_path;
        left.retain(|(_, (_, route))| route.set.attributes().as_path == *path);
    }
    let most = if best.ebgp { selection.max_external } else { selection.max_internal };
    let mut chosen: SmallVec<[usize; 8]> = SmallVec::new();
    let mut next_hops: SmallVec<[&NextHop; 8]> = SmallVec::new();
    for (_, (at, route)) in left {
        // Two paths to one next hop are one way for packets.
        let next_hop = route.set.next_hop();
        if chosen.len() < most && !next_hops.contains(&next_hop) {
            next_hops.push(next_hop);
            chosen.push(at);
        }
    }
    chosen
}

/// Whether a path comes as far as the comparison of MEDs beside the best, and so may rule others out there though it loses later.
pub(super) fn compared_by_med(path: &Route, best: Option<&Best>) -> bool {
    let rank = |set: &PathSet| {
        let attributes = set.attributes();
        let preference = attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
        (preference, attributes.as_path.hops(), attributes.origin)
    };
    path.refused.is_none() && best.is_some_and(|best| rank(&path.set) == rank(&best.set))
}

/// The last steps (RFC 4271 section 9.1.2.2 f and g, RFC 4456 section 9): identifier of the originator, length of the cluster list, address of the peer.
/// Of several paths from one peer the lowest path identifier is first.
fn tie_break(route: &Route, peers: &BTreeMap<PeerId, PeerFacts>) -> TieBreak {
    let attributes = route.set.attributes();
    // A peer is known for as long as there are paths of it.
    let peer = peers.get(&route.peer);
    let originator = attributes.originator_id.or_else(|| peer.map(|peer| peer.router_id));
    let address = peer.map(|peer| peer.address);
    (originator, attributes.cluster_list.len(), address, route.peer, route.set.path_id())
}

/// All paths that may be used, from the best to the worst: each is the best of those after it. What a peer is told that takes several paths.
pub(super) fn order(
    routes: &[Route],
    peers: &BTreeMap<PeerId, PeerFacts>,
    selection: &Selection,
    next_hops: &NextHops,
) -> SmallVec<[usize; 8]> {
    let usable = |route: &Route| is_candidate(route, next_hops);
    let mut left: SmallVec<[usize; 8]> =
        (0..).zip(routes).filter(|(_, route)| usable(route)).map(|(at, _)| at).collect();
    let one = Selection { max_external: 1, max_internal: 1, ..*selection };
    let mut ordered = SmallVec::new();
    while left.len() > 1 {
        let rest: SmallVec<[Route; 8]> = left.iter().filter_map(|at| routes.get(*at)).cloned().collect();
        let Some(best) =
            select(&rest, peers, &one, next_hops).first().and_then(|best| left.get(*best)).copied()
        else {
            break;
        };
        left.retain(|at| *at != best);
        ordered.push(best);
    }
    ordered.extend(left);
    ordered
}

fn keep_least<K: Ord>(left: &mut Candidates<'_>, key: impl Fn(&Candidate<'_>) -> K) {
    if left.len() < 2 {
        return;
    }
    if let Some(least) = left.iter().map(&key).min() {
        left.retain(|path| key(path) == least);
    }
}

/// MED compares only paths of the same neighbouring AS, unless all are to be compared; a missing one is 0, unless it is to be the worst (RFC 4271
/// section 9.1.2.2 c).
fn keep_least_med(left: &mut Candidates<'_>, decision: Decision) {
    if left.len() < 2 {
        return;
    }
    let neighbour_and_med = |(_, route): &Candidate<'_>| {
        let attributes = route.set.attributes();
        let missing = if decision.missing_med_is_worst { u32::MAX } else { 0 };
        let neighbour = attributes.as_path.first().filter(|_| !decision.always_compare_med);
        (neighbour, attributes.med.unwrap_or(missing))
    };
    let all: SmallVec<[_; 8]> = left.iter().map(neighbour_and_med).collect();
    left.retain(|path| {
        let (neighbour, med) = neighbour_and_med(path);
        !all.iter().any(|(other, less)| *other == neighbour && *less < med)
    });
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::Refusal;
    use super::*;
    use crate::config::PeerConfig;
    use crate::wire::{AsPath, Attributes};

    fn address(peer: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + peer))
    }

    fn route(peer: u32, change: impl FnOnce(&mut Attributes)) -> Route {
        let mut attributes = Attributes { as_path: AsPath::sequence(&[65100, 1]), ..Default::default() };
        change(&mut attributes);
        Route::new(peer, peer < 10, PathSet::of(attributes, NextHop::new(address(peer))), None)
    }

    /// Peers 1 to 3 are external, 11 to 13 internal.
    fn ranked(routes: impl Into<Vec<Route>>, max_paths: usize) -> Vec<PeerId> {
        let mut config = SpeakerConfig::new(1, [1, 1, 1, 1].into());
        config.max_paths = max_paths;
        chosen(routes, &Selection::new(&config))
    }

    fn decided(routes: impl Into<Vec<Route>>, decision: Decision) -> Vec<PeerId> {
        chosen(routes, &Selection { decision, max_external: 16, max_internal: 16 })
    }

    fn chosen(routes: impl Into<Vec<Route>>, selection: &Selection) -> Vec<PeerId> {
        let facts = |peer: u32| PeerFacts {
            router_id: Ipv4Addr::from(peer),
            address: address(peer),
            config: PeerConfig::new("peer", address(peer), 0).into(),
        };
        let peers = [1, 2, 3, 11, 12, 13].map(|peer| (peer, facts(peer))).into_iter().collect();
        let mut routes = routes.into();
        rank(&mut routes, &peers, selection, &NextHops::new(false, 0));
        let mut used: Vec<&Route> = routes.iter().filter(|route| route.used()).collect();
        used.sort_by_key(|route| route.rank);
        used.into_iter().map(|route| route.peer).collect()
    }

    #[test]
    fn steps_decide_in_order() {
        let plain = || route(1, |_| {});
        let cases: [(&str, Route, Vec<PeerId>); 6] = [
            ("local preference", route(2, |a| a.local_pref = Some(200)), vec![2]),
            ("shorter path", route(2, |a| a.as_path = AsPath::sequence(&[65200])), vec![2]),
            ("origin", route(2, |a| a.origin = Origin::Incomplete), vec![1]),
            ("med of the same neighbour", route(2, |a| a.med = Some(5)), vec![1]),
            (
                "med of another neighbour",
                route(2, |a| {
                    a.med = Some(5);
                    a.as_path = AsPath::sequence(&[65200, 1]);
                }),
                vec![1, 2],
            ),
            ("equal", route(2, |_| {}), vec![1, 2]),
        ];
        for (name, other, expected) in cases {
            assert_eq!(ranked([plain(), other], 16), expected, "{name}");
        }
    }

    #[test]
    fn external_beats_internal_and_refused_never_counts() {
        let internal = || route(11, |_| {});
        assert_eq!(ranked([internal(), route(2, |_| {})], 16), [2]);
        let refused = Route { refused: Some(Refusal::Policy), ..route(2, |_| {}) };
        assert_eq!(ranked([internal(), refused.clone()], 16), [11]);
        assert_eq!(ranked([refused], 16), [0; 0]);
    }

    #[test]
    fn long_lived_stale_paths_come_last_but_are_used_if_nothing_else_is_there() {
        let stale = |peer| {
            let route = route(peer, |a| a.local_pref = Some(900));
            Route { marks: Marks::LEAST, ..route }
        };
        assert_eq!(ranked([stale(1), route(11, |a| a.local_pref = Some(1))], 16), [11]);
        assert_eq!(ranked([stale(1), stale(2)], 16), [1, 2]);
        let graceful = Route { marks: Marks::STALE, ..route(1, |_| {}) };
        assert_eq!(ranked([graceful, route(2, |_| {})], 16), [1, 2], "RFC 4724: no difference");
    }

    #[test]
    fn the_lowest_router_id_is_best_and_the_set_is_bounded() {
        let routes = || [route(3, |_| {}), route(1, |_| {}), route(2, |_| {})];
        assert_eq!(ranked(routes(), 2), [1, 2]);
        assert_eq!(ranked(routes(), 0), [1]);
    }

    #[test]
    fn a_next_hop_is_used_once() {
        let through = |peer, hop| {
            Route::new(
                peer,
                true,
                PathSet::of(
                    route(peer, |_| {}).set.attributes().as_ref().clone(),
                    NextHop::new(address(hop)),
                ),
                None,
            )
        };
        assert_eq!(ranked([through(1, 7), through(2, 7), through(3, 8)], 16), [1, 3]);
    }

    #[test]
    fn choices_change_what_is_compared() {
        let plain = Decision::default;
        let other_as = |med| {
            route(2, move |a| {
                a.med = med;
                a.as_path = AsPath::sequence(&[65200, 1]);
            })
        };
        let first = || route(1, |a| a.med = Some(10));
        assert_eq!(decided([first(), other_as(Some(5))], plain()), [1, 2]);
        let always = Decision { always_compare_med: true, ..plain() };
        assert_eq!(decided([first(), other_as(Some(5))], always), [2]);
        assert_eq!(decided([first(), other_as(None)], always), [2]);
        let worst = Decision { missing_med_is_worst: true, ..always };
        assert_eq!(decided([first(), other_as(None)], worst), [1]);
        let strict = Decision { relax_multipath: false, ..plain() };
        assert_eq!(decided([first(), other_as(None)], strict), [1]);
        assert_eq!(decided([first(), route(2, |a| a.med = Some(10))], strict), [1, 2]);
        let internal = || [11, 12, 13].map(|peer| route(peer, |_| {}));
        let selection = Selection { decision: plain(), max_external: 16, max_internal: 2 };
        assert_eq!(chosen(internal(), &selection), [11, 12]);
    }

    #[test]
    fn reflected_paths_are_compared_by_originator_and_cluster_list() {
        let originated = |peer, id: u32, clusters: usize| {
            route(peer, move |a| {
                a.originator_id = Some(id.into());
                a.cluster_list = vec![[9, 9, 9, 9].into(); clusters];
            })
        };
        assert_eq!(ranked([originated(11, 7, 1), originated(12, 6, 3)], 1), [12]);
        assert_eq!(ranked([originated(11, 7, 2), originated(12, 7, 1)], 1), [12]);
        assert_eq!(ranked([originated(12, 7, 1), originated(11, 7, 1)], 1), [11]);
    }

    #[test]
    fn an_order_begins_with_the_best_and_leaves_nothing_out() {
        let facts = |peer: u32| PeerFacts {
            router_id: Ipv4Addr::from(peer),
            address: address(peer),
            config: PeerConfig::new("peer", address(peer), 0).into(),
        };
        let peers = [1, 2, 3, 11].map(|peer| (peer, facts(peer))).into_iter().collect();
        let refused = Route { refused: Some(Refusal::Policy), ..route(2, |_| {}) };
        let routes = [route(11, |_| {}), refused, route(3, |_| {}), route(1, |a| a.med = Some(9))];
        let selection = Selection::new(&SpeakerConfig::new(1, [1, 1, 1, 1].into()));
        // MED is compared before external is preferred to internal.
        assert_eq!(order(&routes, &peers, &selection, &NextHops::new(false, 0)).as_slice(), [2, 0, 3]);
    }
}
