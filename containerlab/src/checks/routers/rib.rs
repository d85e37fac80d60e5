//! What BIRD and FRR print of their RIBs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::Routes;
use crate::checks::check::Family;

/// A RIB: every valid path, and those in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Every valid path.
    pub(super) all: Routes,
    /// The best one of each prefix, and those as good as it.
    pub(super) best: Routes,
}

/// One path in BIRD's listing.
#[derive(Debug, Default)]
struct BirdPath {
    hops: BTreeSet<IpAddr>,
    best: bool,
    /// Preference (`(100)`), local preference and length of the AS path: BIRD merges paths that are equal in these.
    rank: (String, String, usize),
}

/// The paths of `birdc show route all`.
pub(super) fn parse_bird(text: &str) -> Held {
    let mut held = Held::default();
    let mut paths: BTreeMap<IpNet, Vec<BirdPath>> = BTreeMap::new();
    let mut current: Option<IpNet> = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !line.starts_with(char::is_whitespace) {
            // A line that begins with a prefix opens it; any other unindented line ends it.
            current = words.next().and_then(|first| first.parse().ok());
        }
        let Some(prefix) = current else { continue };
        let paths = paths.entry(prefix).or_default();
        if line.contains('[') && !line.starts_with('\t') {
            let preference = line.split_whitespace().find(|word| word.starts_with('(')).unwrap_or_default();
            let best = line.split_whitespace().any(|word| word == "*");
            paths.push(BirdPath {
                best,
                rank: (preference.to_owned(), String::new(), 0),
                ..BirdPath::default()
            });
            continue;
        }
        let Some(path) = paths.last_mut() else { continue };
        match words.next() {
            Some("via") => path.hops.extend(words.next().and_then(|hop| hop.parse::<IpAddr>().ok())),
            Some("BGP.local_pref:") => path.rank.1 = words.next().unwrap_or_default().to_owned(),
            Some("BGP.as_path:") => path.rank.2 = words.count(),
            _ => {}
        }
    }
    for (prefix, paths) in paths {
        let best = paths.iter().find(|path| path.best).map(|path| &path.rank);
        for path in &paths {
            held.all.entry(prefix).or_default().extend(&path.hops);
            if Some(&path.rank) == best {
                held.best.entry(prefix).or_default().extend(&path.hops);
            }
        }
    }
    held
}

#[derive(Deserialize)]
struct FrrTable {
    #[serde(default)]
    routes: BTreeMap<String, Vec<FrrPath>>,
}

#[derive(Deserialize)]
struct FrrPath {
    #[serde(default)]
    valid: bool,
    #[serde(default)]
    bestpath: bool,
    #[serde(default)]
    multipath: bool,
    #[serde(default)]
    nexthops: Vec<FrrHop>,
}

#[derive(Deserialize)]
struct FrrHop {
    ip: Option<IpAddr>,
}

impl FrrPath {
    fn hops(&self) -> impl Iterator<Item = IpAddr> {
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(address) if address.is_unicast_link_local());
        let hops = || self.nexthops.iter().filter_map(|hop| hop.ip).filter(|ip| !ip.is_unspecified());
        let only_link_local = hops().all(|ip| link_local(&ip));
        hops().filter(move |ip| only_link_local || !link_local(ip))
    }
}

/// The JSON in what vtysh printed: a warning may precede it.
fn json(text: &str) -> &str {
    text.find('{').and_then(|start| text.get(start..)).unwrap_or(text)
}

/// The paths of `vtysh -c "show bgp ipv4|ipv6 unicast json"`. Of a next hop given as global and link-local address the
/// global one counts; unnumbered peers have but the other.
///
/// # Errors
/// What is wrong with the JSON.
pub(super) fn parse_frr(text: &str) -> Result<Held, String> {
    let table: FrrTable = serde_json::from_str(json(text)).map_err(|error| error.to_string())?;
    let mut held = Held::default();
    for (prefix, paths) in table.routes {
        let prefix: IpNet = prefix.parse().map_err(|_| format!("{prefix:?} is no prefix"))?;
        for path in paths.iter().filter(|path| path.valid) {
            held.all.entry(prefix).or_default().extend(path.hops());
            if path.bestpath || path.multipath {
                held.best.entry(prefix).or_default().extend(path.hops());
            }
        }
    }
    Ok(held)
}

#[derive(Deserialize)]
struct TomboloRoute {
    prefix: IpNet,
    peer: String,
    next_hop: TomboloHop,
    #[serde(default)]
    used: bool,
    #[serde(default)]
    refused: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct TomboloHop {
    address: IpAddr,
}

/// The paths of `tombolo bgp routes received -o json`: those that import policy took; with `peers` what those said, refused
/// or not.
///
/// # Errors
/// What is wrong with the JSON.
pub(super) fn parse_tombolo(text: &str, peers: Option<&BTreeSet<&str>>) -> Result<Held, String> {
    let routes: Vec<TomboloRoute> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut held = Held::default();
    for route in routes {
        let counts = match peers {
            Some(peers) => peers.contains(route.peer.as_str()),
            None => route.refused.is_none(),
        };
        if !counts {
            continue;
        }
        held.all.entry(route.prefix).or_default().insert(route.next_hop.address);
        if route.used {
            held.best.entry(route.prefix).or_default().insert(route.next_hop.address);
        }
    }
    Ok(held)
}

/// The prefixes that a Tombolo router announces by itself: `tombolo show adverts -o json`.
///
/// # Errors
/// What is wrong with the JSON.
pub(super) fn parse_tombolo_own(text: &str) -> Result<Vec<IpNet>, String> {
    #[derive(Deserialize)]
    struct Advert {
        prefix: IpNet,
    }
    let adverts: Vec<Advert> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(adverts.into_iter().map(|advert| advert.prefix).collect())
}

/// The sessions of `tombolo bgp peers -o json`, one a family: name and address.
///
/// # Errors
/// What is wrong with the JSON.
pub(super) fn tombolo_peers(text: &str) -> Result<Vec<(String, IpAddr)>, String> {
    #[derive(Deserialize)]
    struct Peer {
        peer: String,
        address: IpAddr,
    }
    let peers: Vec<Peer> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(peers.into_iter().map(|peer| (peer.peer, peer.address)).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FrrReceived {
    received_routes: Option<BTreeMap<String, FrrReceivedRoute>>,
    warning: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FrrReceivedRoute {
    next_hop: Option<IpAddr>,
    next_hop_global: Option<IpAddr>,
}

/// What a peer of FRR said, before any filter: `show bgp ipv4|ipv6 unicast neighbors PEER received-routes json`.
///
/// # Errors
/// What is wrong with the JSON, or that FRR does not keep it.
pub(super) fn parse_frr_received(text: &str) -> Result<Routes, String> {
    let table: FrrReceived = serde_json::from_str(json(text)).map_err(|error| error.to_string())?;
    let received = table
        .received_routes
        .ok_or_else(|| table.warning.unwrap_or_else(|| "no receivedRoutes".to_owned()))?;
    let mut routes = Routes::new();
    for (prefix, route) in received {
        let prefix: IpNet = prefix.parse().map_err(|_| format!("{prefix:?} is no prefix"))?;
        routes.entry(prefix).or_default().extend(route.next_hop_global.or(route.next_hop));
    }
    Ok(routes)
}

/// A peer of FRR.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FrrPeer {
    /// How FRR calls it: an address, or the interface of an unnumbered peer.
    pub(super) name: String,
    /// Its address.
    pub(super) address: IpAddr,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FrrNeighbour {
    /// `none` until it is known.
    bgp_neighbor_addr: Option<String>,
    #[serde(default)]
    address_family_info: BTreeMap<String, serde_json::Value>,
}

/// The peers that carry a family, of `show bgp neighbors json`. An unnumbered peer that FRR has not met has no address yet.
///
/// # Errors
/// What is wrong with the JSON.
pub(super) fn parse_frr_peers(text: &str, family: Family) -> Result<Vec<FrrPeer>, String> {
    let table: BTreeMap<String, FrrNeighbour> =
        serde_json::from_str(json(text)).map_err(|error| error.to_string())?;
    let wanted = format!("{family}Unicast");
    let carries =
        |peer: &FrrNeighbour| peer.address_family_info.keys().any(|name| name.eq_ignore_ascii_case(&wanted));
    let peers = table.into_iter().filter(|(_, peer)| carries(peer));
    Ok(peers
        .filter_map(|(name, peer)| {
            let address = name.parse().ok().or_else(|| peer.bgp_neighbor_addr?.parse().ok())?;
            Some(FrrPeer { name, address })
        })
        .collect())
}

/// A BGP session of BIRD, in `birdc show protocols all`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BirdSession {
    /// The protocol's name.
    pub(super) name: String,
    /// The peer's address.
    pub(super) neighbour: Option<IpAddr>,
    /// Whether routes that the filter rejects are kept.
    pub(super) keeps_filtered: bool,
}

/// The BGP sessions of `birdc show protocols all`.
pub(super) fn parse_bird_sessions(text: &str) -> Vec<BirdSession> {
    let mut sessions: Vec<BirdSession> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(char::is_whitespace) {
            inside = words.get(1) == Some(&"BGP");
            if let (true, Some(name)) = (inside, words.first()) {
                sessions.push(BirdSession { name: (*name).to_owned(), ..BirdSession::default() });
            }
            continue;
        }
        let Some(session) = sessions.last_mut().filter(|_| inside) else { continue };
        match words.as_slice() {
            // A link-local address comes with its interface.
            ["Neighbor", "address:", address, ..] => {
                session.neighbour = address.split('%').next().and_then(|address| address.parse().ok());
            }
            // The number is only there when they are kept.
            ["Routes:", rest @ ..] => session.keeps_filtered |= rest.contains(&"filtered,"),
            _ => {}
        }
    }
    sessions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bird_sessions_are_told_by_their_neighbour() {
        let text = "BIRD 2.0.12 ready.\nName       Proto      Table      State  Since         Info\n\
            direct1    Direct     ---        up     02:52:40.273\n    Routes:         3 imported, 15 exported\n\
            n1_ipv4    BGP        ---        up     02:52:40.273  Established\n    Neighbor address: 172.20.11.2\n\
            \u{20}   Routes:         3 imported, 0 filtered, 15 exported, 3 preferred\n\
            n2_ipv4    BGP        ---        up     02:52:40.273  Established\n    Neighbor address: 172.20.12.2\n\
            \u{20}   Routes:         3 imported, 15 exported, 3 preferred\n\
            n3_1       BGP        ---        up     02:52:40.273  Established\n    Neighbor address: fe80::3%eth3\n";
        let of = |name: &str, neighbour: &str, keeps_filtered| BirdSession {
            name: name.into(),
            neighbour: neighbour.parse().ok(),
            keeps_filtered,
        };
        let expected = [
            of("n1_ipv4", "172.20.11.2", true),
            of("n2_ipv4", "172.20.12.2", false),
            of("n3_1", "fe80::3", false),
        ];
        assert_eq!(parse_bird_sessions(text), expected);
    }

    #[test]
    fn a_tombolo_router_tells_what_it_takes_what_each_peer_said_and_its_own() {
        let text = r#"[
            {"prefix":"10.1.1.0/24","peer":"n1","next_hop":{"address":"172.20.11.2"},"best":true,"used":true,"refused":null},
            {"prefix":"203.0.113.0/32","peer":"n1","next_hop":{"address":"172.20.11.2"},"best":true,"used":true,"refused":null},
            {"prefix":"203.0.113.0/32","peer":"n2","next_hop":{"address":"172.20.12.2"},"best":false,"used":true,"refused":null},
            {"prefix":"192.168.0.0/16","peer":"n2","next_hop":{"address":"172.20.12.2"},"used":false,"refused":"import-policy"}]"#;
        let held = parse_tombolo(text, None).expect("its JSON");
        assert_eq!((held.all.len(), held.best.len()), (2, 2));
        let shared: IpNet = "203.0.113.0/32".parse().expect("a prefix");
        assert_eq!(held.best.get(&shared).map(std::collections::BTreeSet::len), Some(2));
        let said = parse_tombolo(text, Some(&["n2"].into())).expect("its JSON");
        assert_eq!(said.all.len(), 2, "what policy refused was said all the same");
        let own = parse_tombolo_own(r#"[{"prefix":"172.20.11.0/24","peer":""}]"#).expect("its JSON");
        assert_eq!(own.len(), 1);
        let peers = tombolo_peers(r#"[{"peer":"n1","address":"172.20.11.2","family":"ipv4-unicast"}]"#);
        assert_eq!(peers, Ok(vec![("n1".to_owned(), "172.20.11.2".parse().expect("an address"))]));
    }

    #[test]
    fn frr_peers_are_told_by_address_and_family() {
        let text = r#"{"172.20.21.2":{"remoteAs":65211,"addressFamilyInfo":{"ipv4Unicast":{}}},
            "eth2":{"bgpNeighborAddr":"fe80::2","addressFamilyInfo":{"ipv4Unicast":{},"ipv6Unicast":{}}},
            "eth3":{"bgpNeighborAddr":"none","addressFamilyInfo":{"ipv4Unicast":{}}},
            "fd00:20:21::2":{"addressFamilyInfo":{"ipv6Unicast":{}}}}"#;
        let names = |family| -> Vec<String> {
            let peers = parse_frr_peers(text, family).expect("FRR's JSON");
            peers.into_iter().map(|peer| format!("{} {}", peer.name, peer.address)).collect()
        };
        assert_eq!(names(Family::Ipv4), ["172.20.21.2 172.20.21.2", "eth2 fe80::2"]);
        assert_eq!(names(Family::Ipv6), ["eth2 fe80::2", "fd00:20:21::2 fd00:20:21::2"]);
        assert!(parse_frr_peers("% no", Family::Ipv4).is_err());
    }

    #[test]
    fn what_frr_keeps_of_a_peer_is_read_and_its_absence_told() {
        let text = r#"{"receivedRoutes":{"10.2.1.0/24":{"nextHop":"172.20.21.2"},"fd00::/64":{"nextHopGlobal":"fd00:20:21::2"}}}"#;
        let routes = parse_frr_received(text).expect("FRR's JSON");
        let hops: Vec<String> = routes.values().flatten().map(ToString::to_string).collect();
        assert_eq!(hops, ["172.20.21.2", "fd00:20:21::2"]);
        let off = parse_frr_received(r#"{ "warning": "Inbound soft reconfiguration not enabled" }"#);
        assert_eq!(off, Err("Inbound soft reconfiguration not enabled".to_owned()));
    }
}
