//! The decision process (RFC 4271 section 9.1.2): which paths of one prefix are used, best first.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::next_hops::NextHops;
use super::{Marks, PeerFacts, PeerId, Route};

/// Preference of a path without LOCAL_PREF.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// A path under comparison: its place in the list, itself, its peer.
type Candidate<'a> = (usize, &'a Route, &'a PeerFacts);
type Candidates<'a> = SmallVec<[Candidate<'a>; 8]>;

/// Ranks the paths: the best is 1, then follow those equal to it up to the tie-breaks; at most `max_paths` are in use, the others have rank 0.
/// Whether any rank changed.
pub(super) fn rank(
    routes: &mut [Route],
    peers: &BTreeMap<PeerId, PeerFacts>,
    max_paths: usize,
    next_hops: &NextHops,
) -> bool {
    // Most prefixes have one path.
    if let [only] = routes {
        let rank = u8::from(only.refused.is_none() && next_hops.is_usable(only.set.next_hop()));
        return std::mem::replace(&mut only.rank, rank) != rank;
    }
    let selected = select(routes, peers, max_paths, next_hops);
    let mut changed = false;
    for (at, route) in routes.iter_mut().enumerate() {
        let place = selected.iter().position(|chosen| *chosen == at).map_or(0, |place| place + 1);
        let rank = u8::try_from(place).unwrap_or(u8::MAX);
        changed |= std::mem::replace(&mut route.rank, rank) != rank;
    }
    changed
}

/// Indexes of the paths in use, best first.
fn select(
    routes: &[Route],
    peers: &BTreeMap<PeerId, PeerFacts>,
    max_paths: usize,
    next_hops: &NextHops,
) -> SmallVec<[usize; 8]> {
    let mut left: Candidates<'_> = routes
        .iter()
        .enumerate()
        .filter(|(_, route)| route.refused.is_none() && next_hops.is_usable(route.set.next_hop()))
        .filter_map(|(at, route)| Some((at, route, peers.get(&route.peer)?)))
        .collect();
    keep_least(&mut left, |path| path.1.marks.has(Marks::LEAST));
    keep_least(&mut left, |path| u32::MAX - path.1.set.attributes().local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
    keep_least(&mut left, |path| path.1.set.attributes().as_path.hops());
    keep_least(&mut left, |path| path.1.set.attributes().origin);
    keep_least_med(&mut left);
    keep_least(&mut left, |(_, route, _)| !route.ebgp);
    if next_hops.is_tracked() {
        keep_least(&mut left, |(_, route, _)| next_hops.cost(route.set.next_hop()));
    }
    // What is left is equal but for the tie-breaks: the multipath set. Paths through different ASes of equal length count as equal,
    // since two ToRs usually have two AS numbers.
    left.sort_by_key(|path| {
        let (_, route, peer) = path;
        let attributes = route.set.attributes();
        let originator = attributes.originator_id.unwrap_or(peer.router_id);
        (originator, attributes.cluster_list.len(), peer.address, route.peer)
    });
    left.into_iter().take(max_paths.clamp(1, usize::from(u8::MAX))).map(|(at, ..)| at).collect()
}

fn keep_least<K: Ord>(left: &mut Candidates<'_>, key: impl Fn(&Candidate<'_>) -> K) {
    if left.len() < 2 {
        return;
    }
    if let Some(least) = left.iter().map(&key).min() {
        left.retain(|path| key(path) == least);
    }
}

/// MED compares only paths of the same neighbouring AS; a missing one is 0 (RFC 4271 section 9.1.2.2 c).
fn keep_least_med(left: &mut Candidates<'_>) {
    if left.len() < 2 {
        return;
    }
    let neighbour_and_med = |(_, route, _): &Candidate<'_>| {
        let attributes = route.set.attributes();
        (attributes.as_path.first(), attributes.med.unwrap_or(0))
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

    use super::super::{PathSet, Refusal};
    use super::*;
    use crate::family::NextHop;
    use crate::wire::{AsPath, Attributes, Origin};

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
        let facts = |peer: u32| PeerFacts { router_id: Ipv4Addr::from(peer), address: address(peer) };
        let peers = [1, 2, 3, 11, 12, 13].map(|peer| (peer, facts(peer))).into_iter().collect();
        let mut routes = routes.into();
        rank(&mut routes, &peers, max_paths, &NextHops::new(false, 0));
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
}
