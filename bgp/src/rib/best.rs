//! The decision process (RFC 4271 section 9.1.2): which routes of one prefix are used, best first.

use super::Route;

/// Preference of a route without LOCAL_PREF.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// Indexes of the routes in use: the best first, then those equal to it up to the tie-breaks, by peer; at most `max_paths`.
pub(super) fn select(routes: &[Route], max_paths: usize) -> Vec<usize> {
    let mut left: Vec<(usize, &Route)> =
        routes.iter().enumerate().filter(|(_, route)| route.refused.is_none()).collect();
    keep_least(&mut left, |route| u32::MAX - route.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
    keep_least(&mut left, |route| route.attributes.as_path.hops());
    keep_least(&mut left, |route| route.attributes.origin);
    keep_least_med(&mut left);
    keep_least(&mut left, |route| !route.ebgp);
    // What is left is equal but for the tie-breaks: the multipath set. Paths through different ASes of equal length count as equal,
    // since two ToRs usually have two AS numbers.
    left.sort_by_key(|(_, route)| {
        let originator = route.attributes.originator_id.unwrap_or(route.peer_router_id);
        (originator, route.attributes.cluster_list.len(), route.peer_address, route.peer)
    });
    left.into_iter().take(max_paths.max(1)).map(|(index, _)| index).collect()
}

fn keep_least<K: Ord>(left: &mut Vec<(usize, &Route)>, key: impl Fn(&Route) -> K) {
    if let Some(least) = left.iter().map(|(_, route)| key(route)).min() {
        left.retain(|(_, route)| key(route) == least);
    }
}

/// MED compares only routes of the same neighbouring AS; a missing one is 0 (RFC 4271 section 9.1.2.2 c).
fn keep_least_med(left: &mut Vec<(usize, &Route)>) {
    let neighbour_and_med =
        |route: &Route| (route.attributes.as_path.first(), route.attributes.med.unwrap_or(0));
    let all: Vec<_> = left.iter().map(|(_, route)| neighbour_and_med(route)).collect();
    left.retain(|(_, route)| {
        let (neighbour, med) = neighbour_and_med(route);
        !all.iter().any(|(other, less)| *other == neighbour && *less < med)
    });
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use super::super::Refusal;
    use super::*;
    use crate::family::NextHop;
    use crate::wire::{AsPath, Attributes, Origin};

    fn route(peer: u32, change: impl FnOnce(&mut Attributes)) -> Route {
        let mut attributes = Attributes { as_path: AsPath::sequence(&[65100, 1]), ..Default::default() };
        change(&mut attributes);
        let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + peer));
        Route {
            peer,
            peer_router_id: Ipv4Addr::from(peer),
            peer_address: address,
            ebgp: true,
            next_hop: NextHop::new(address),
            attributes: Arc::new(attributes),
            refused: None,
            stale: false,
        }
    }

    #[test]
    fn steps_decide_in_order() {
        let plain = || route(1, |_| {});
        let cases: [(&str, Route, Vec<usize>); 6] = [
            ("local preference", route(2, |a| a.local_pref = Some(200)), vec![1]),
            ("shorter path", route(2, |a| a.as_path = AsPath::sequence(&[65200])), vec![1]),
            ("origin", route(2, |a| a.origin = Origin::Incomplete), vec![0]),
            ("med of the same neighbour", route(2, |a| a.med = Some(5)), vec![0]),
            (
                "med of another neighbour",
                route(2, |a| {
                    a.med = Some(5);
                    a.as_path = AsPath::sequence(&[65200, 1]);
                }),
                vec![0, 1],
            ),
            ("equal", route(2, |_| {}), vec![0, 1]),
        ];
        for (name, other, expected) in cases {
            assert_eq!(select(&[plain(), other], 16), expected, "{name}");
        }
    }

    #[test]
    fn external_beats_internal_and_refused_never_counts() {
        let internal = Route { ebgp: false, ..route(1, |_| {}) };
        assert_eq!(select(&[internal.clone(), route(2, |_| {})], 16), [1]);
        let refused = Route { refused: Some(Refusal::Policy), ..route(2, |_| {}) };
        assert_eq!(select(&[internal, refused], 16), [0]);
    }

    #[test]
    fn the_lowest_router_id_is_best_and_the_set_is_bounded() {
        let routes = [route(3, |_| {}), route(1, |_| {}), route(2, |_| {})];
        assert_eq!(select(&routes, 2), [1, 2]);
        assert_eq!(select(&routes, 0), [1]);
    }
}
