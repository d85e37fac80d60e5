//! RFC 7606 case by case: a malformed attribute costs the routes or itself, never the session. What does end it stands in `errors.rs`.

use std::net::IpAddr;

use tombolo_bgp::{Attributes, PeerState};

use crate::client::{Client, Rig, peer};
use crate::messages::*;

/// What becomes of a route that was there before and comes again with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    /// The route is gone.
    Withdraw,
    /// The route is there, without the attribute.
    Discard,
    /// The route is there, and nothing was wrong: this speaker does not read the attribute.
    PassOn,
}

use Treatment::{Discard, PassOn, Withdraw};

type Row = (&'static str, Treatment, Vec<u8>);

/// Attributes of any peer (sections 3, 4, 7 and RFC 8092).
fn of_any_peer() -> Vec<(&'static str, Treatment, &'static [u8])> {
    vec![
        ("3 (c) ORIGIN optional", Withdraw, &[0xc0, 1, 1, 0]),
        ("3 (c) AS_PATH not transitive", Withdraw, &[0x00, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9]),
        ("3 (c) MED transitive", Withdraw, &[0xc0, 4, 4, 0, 0, 0, 1]),
        ("3 (c) COMMUNITIES not transitive", Withdraw, &[0x80, 8, 4, 0, 1, 0, 1]),
        ("4 an attribute past the end", Withdraw, &[0xc0, 99, 200, 1]),
        ("4 half an attribute header", Withdraw, &[0xc0, 99]),
        ("4 half an extended length", Withdraw, &[0xd0, 99, 1]),
        ("7.1 ORIGIN empty", Withdraw, &[0x40, 1, 0]),
        ("7.1 ORIGIN of two bytes", Withdraw, &[0x40, 1, 2, 0, 0]),
        ("7.1 ORIGIN 3", Withdraw, &[0x40, 1, 1, 3]),
        ("7.2 unknown segment", Withdraw, &[0x40, 2, 6, 9, 1, 0, 0, 0xfd, 0xe9]),
        ("7.2 segment past the end", Withdraw, &[0x40, 2, 6, 2, 2, 0, 0, 0xfd, 0xe9]),
        ("7.2 one byte left over", Withdraw, &[0x40, 2, 7, 2, 1, 0, 0, 0xfd, 0xe9, 0]),
        ("7.2 empty segment", Withdraw, &[0x40, 2, 8, 2, 1, 0, 0, 0xfd, 0xe9, 2, 0]),
        ("7607 AS 0 in AS_PATH", Withdraw, &[0x40, 2, 10, 2, 2, 0, 0, 0xfd, 0xe9, 0, 0, 0, 0]),
        ("7.3 NEXT_HOP of three bytes", Withdraw, &[0x40, 3, 3, 10, 0, 0]),
        ("7.3 NEXT_HOP of five bytes", Withdraw, &[0x40, 3, 5, 10, 0, 0, 2, 0]),
        ("7.3 NEXT_HOP 0.0.0.0", Withdraw, &[0x40, 3, 4, 0, 0, 0, 0]),
        ("7.3 NEXT_HOP multicast", Withdraw, &[0x40, 3, 4, 224, 0, 0, 1]),
        ("7.4 MED of three bytes", Withdraw, &[0x80, 4, 3, 0, 0, 0]),
        ("7.6 ATOMIC_AGGREGATE with a value", Discard, &[0x40, 6, 1, 0]),
        ("7.7 AGGREGATOR of six bytes", Discard, &[0xc0, 7, 6, 0, 1, 10, 0, 0, 1]),
        ("7.7 AGGREGATOR of nine bytes", Discard, &[0xc0, 7, 9, 0, 0, 0, 1, 10, 0, 0, 1, 0]),
        ("7.8 COMMUNITIES of five bytes", Withdraw, &[0xc0, 8, 5, 0, 0, 0, 0, 0]),
        ("7.8 COMMUNITIES empty", Withdraw, &[0xc0, 8, 0]),
        ("7.13 Traffic Engineering of one byte", PassOn, &[0x80, 24, 1, 0]),
        ("7.14 EXTENDED COMMUNITIES of nine bytes", Withdraw, &[0xc0, 16, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("7.14 EXTENDED COMMUNITIES empty", Withdraw, &[0xc0, 16, 0]),
        ("7.15 IPv6 EXTENDED COMMUNITIES of three bytes", Withdraw, &[0xc0, 25, 3, 0, 0, 0]),
        ("7.15 IPv6 EXTENDED COMMUNITIES empty", Withdraw, &[0xc0, 25, 0]),
        ("7.16 ATTR_SET of one byte", PassOn, &[0xc0, 128, 1, 0]),
        ("8092 LARGE_COMMUNITY of eleven bytes", Withdraw, &[0xc0, 32, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("8092 LARGE_COMMUNITY empty", Withdraw, &[0xc0, 32, 0]),
    ]
}

/// Sections 7.2, 7.5, 7.9 and 7.10, of a peer in another AS.
fn of_external_peers() -> Vec<(&'static str, Treatment, &'static [u8])> {
    vec![
        ("7.2 AS_PATH empty", Withdraw, &[0x40, 2, 0]),
        ("7.2 AS_PATH that begins elsewhere", Withdraw, &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xeb]),
        ("7.5 LOCAL_PREF", Discard, &[0x40, 5, 4, 0, 0, 0, 200]),
        ("7.5 LOCAL_PREF of three bytes", Discard, &[0x40, 5, 3, 0, 0, 0]),
        ("7.9 ORIGINATOR_ID", Discard, &[0x80, 9, 4, 1, 2, 3, 4]),
        ("7.9 ORIGINATOR_ID of three bytes", Discard, &[0x80, 9, 3, 1, 2, 3]),
        ("7.10 CLUSTER_LIST", Discard, &[0x80, 10, 4, 1, 2, 3, 4]),
        ("7.10 CLUSTER_LIST of three bytes", Discard, &[0x80, 10, 3, 1, 2, 3]),
    ]
}

/// The same sections, of a peer in this AS.
fn of_internal_peers() -> Vec<(&'static str, Treatment, &'static [u8])> {
    vec![
        ("7.5 LOCAL_PREF of three bytes", Withdraw, &[0x40, 5, 3, 0, 0, 0]),
        ("7.9 ORIGINATOR_ID of three bytes", Withdraw, &[0x80, 9, 3, 1, 2, 3]),
        ("7.10 CLUSTER_LIST of three bytes", Withdraw, &[0x80, 10, 3, 1, 2, 3]),
        ("7.10 CLUSTER_LIST empty", Withdraw, &[0x80, 10, 0]),
    ]
}

/// Whole messages: what is missing, what is there twice, and MP_REACH_NLRI.
fn of_messages() -> Vec<Row> {
    let ipv4 = |attributes: &[&[u8]]| update(&[], attributes, NLRI);
    let mut flags = MP_REACH.to_vec();
    flags[0] = 0xc0;
    let mut no_host = MP_REACH.to_vec();
    no_host[7..23].fill(0);
    vec![
        ("3 (d) no ORIGIN", Withdraw, ipv4(&[AS_PATH, NEXT_HOP])),
        ("3 (d) no AS_PATH", Withdraw, ipv4(&[ORIGIN, NEXT_HOP])),
        ("3 (d) no NEXT_HOP", Withdraw, ipv4(&[ORIGIN, AS_PATH])),
        ("3 (d) nothing", Withdraw, ipv4(&[])),
        ("3 (g) ORIGIN twice", Discard, ipv4(&[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 1, 1, 2]])),
        ("3 (h) two errors, one for the routes", Withdraw, ipv4(&[&[0x40, 1, 0], &[0x40, 6, 1, 0], AS_PATH])),
        ("5.2 beside MP_REACH_NLRI", Withdraw, update(&[], &[MP_REACH, AS_PATH, &[0x40, 1, 1, 3]], NLRI)),
        ("3 (c) MP_REACH_NLRI transitive", Withdraw, update(&[], &[&flags, ORIGIN, AS_PATH, NEXT_HOP], NLRI)),
        ("7.11 next hop ::", Withdraw, update(&[], &[&no_host, ORIGIN, AS_PATH, NEXT_HOP], NLRI)),
    ]
}

/// 65001 where AS numbers have two octets.
const OLD_AS_PATH: &[u8] = &[0x40, 2, 4, 2, 1, 0xfd, 0xe9];

/// Sections 7.2 and 7.7 where AS numbers have two octets, and RFC 6793 section 6.
fn of_two_octet_peers() -> Vec<Row> {
    let with = |attribute: &[u8]| update(&[], &[ORIGIN, OLD_AS_PATH, NEXT_HOP, attribute], NLRI);
    vec![
        ("7.2 AS_PATH of four octets", Withdraw, update(&[], &[ORIGIN, AS_PATH, NEXT_HOP], NLRI)),
        ("7.7 AGGREGATOR of four octets", Discard, with(&[0xc0, 7, 8, 0, 0, 0, 1, 10, 0, 0, 1])),
        ("6793 AS4_PATH past its end", Discard, with(&[0xc0, 17, 6, 2, 2, 0, 0, 0xfd, 0xe9])),
        ("6793 AS4_AGGREGATOR of seven bytes", Discard, with(&[0xc0, 18, 7, 0, 0, 1, 10, 0, 0, 1])),
    ]
}

struct Session {
    rig: Rig,
    client: Client,
    /// The path and attributes of routes without errors.
    good: Vec<u8>,
}

impl Session {
    async fn new(from: &str, asn: u16) -> Self {
        let (rig, from): (Rig, IpAddr) = (Rig::start().await, from.parse().unwrap());
        let mut config = peer("client", from);
        config.peer_asn = asn.into();
        rig.speaker.add_peer(config).await.unwrap();
        let client = rig.establish(from, &Opening::new(asn)).await;
        // IPv4 and IPv6, so that the loss of either is seen.
        let good = update(&[], &[MP_REACH, ORIGIN, AS_PATH, NEXT_HOP], NLRI);
        Self { rig, client, good }
    }

    /// With a peer that does not know four-octet AS numbers.
    async fn of_two_octets() -> Self {
        let (rig, from) = Rig::with_peer("127.0.0.2").await;
        let mut open = Opening::new(PEER_ASN);
        open.capabilities.truncate(16);
        let client = rig.establish(from, &open).await;
        let good = update(&[], &[MP_REACH, ORIGIN, OLD_AS_PATH, NEXT_HOP], NLRI);
        Self { rig, client, good }
    }

    async fn held(&self) -> Vec<(String, Attributes)> {
        let rows = self.rig.received("client").await;
        rows.into_iter().map(|row| (row.prefix.to_string(), (*row.attributes).clone())).collect()
    }

    /// Announces the routes, announces them again with an error, and looks.
    async fn try_row(&mut self, name: &str, treatment: Treatment, wire: &[u8]) {
        self.client.say(&self.good).await;
        self.client.fence().await;
        let before = (self.held().await, self.rig.state("client").await);
        assert_eq!(before.0.len(), 2, "{name}: both routes are there before");
        self.client.say(wire).await;
        self.client.fence().await;
        let after = (self.held().await, self.rig.state("client").await);
        let left = |prefix: &str| after.0.iter().any(|(held, _)| held == prefix);
        let counted = |count: fn(&PeerState) -> u64| count(&after.1) - count(&before.1);
        let withdrawn = counted(|state| state.counters.treated_as_withdraw);
        let discarded = counted(|state| state.counters.attributes_discarded);
        match treatment {
            Withdraw => {
                assert!(!left("10.1.0.0/16") && withdrawn > 0, "{name}: {:?}", after.0);
                let of_v6 = wire.windows(4).any(|at| at == [0, 2, 1, 16]);
                assert_eq!(left("2001:db8:1::/48"), !of_v6, "{name}");
            }
            Discard => {
                assert_eq!((&after.0, withdrawn), (&before.0, 0), "{name}");
                assert!(discarded > 0, "{name}");
            }
            PassOn => {
                assert!(left("10.1.0.0/16"), "{name}");
                assert_eq!((withdrawn, discarded), (0, 0), "{name}");
            }
        }
        assert_eq!(after.1.counters.sessions, 1, "{name}: it is the same session");
    }
}

#[tokio::test]
async fn attributes_of_external_peers_are_treated_as_rfc_7606_says() {
    for from in ["127.0.0.2", "::1"] {
        let mut session = Session::new(from, PEER_ASN).await;
        for (name, treatment, attribute) in of_any_peer().into_iter().chain(of_external_peers()) {
            session.try_row(name, treatment, &route_with(attribute)).await;
        }
        for (name, treatment, wire) in of_messages() {
            session.try_row(name, treatment, &wire).await;
        }
    }
}

#[tokio::test]
async fn attributes_of_internal_peers_are_treated_as_rfc_7606_says() {
    let mut session = Session::new("127.0.0.2", OWN_ASN).await;
    for (name, treatment, attribute) in of_any_peer().into_iter().chain(of_internal_peers()) {
        session.try_row(name, treatment, &route_with(attribute)).await;
    }
}

#[tokio::test]
async fn attributes_of_two_octet_peers_are_treated_as_rfc_7606_says() {
    let mut session = Session::of_two_octets().await;
    for (name, treatment, wire) in of_two_octet_peers() {
        session.try_row(name, treatment, &wire).await;
    }
}
