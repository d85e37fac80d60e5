//! RFC 4271 sections 6.1 to 6.6 (with 4760, 5492, 6286, 6608, 7313, 7606 and 9234): each error, the NOTIFICATION it is answered with, and the end
//! of the connection.

use std::net::IpAddr;

use tombolo_bgp::Role;

use crate::client::{Client, Rig, peer};
use crate::messages::*;

/// How far the session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    OpenSent,
    OpenConfirm,
    Established,
}

use Stage::{Established, OpenConfirm, OpenSent};

/// Code, subcode and data; nothing where the connection is closed without a word.
type Answer = Option<(u8, u8, Vec<u8>)>;

fn answer(code: u8, subcode: u8, data: &[u8]) -> Answer {
    Some((code, subcode, data.to_vec()))
}

async fn reach(rig: &Rig, from: IpAddr, open: &Opening, stage: Stage) -> Client {
    match stage {
        OpenSent => rig.connect(from).await,
        OpenConfirm => rig.confirm(from, open).await,
        Established => {
            let mut client = rig.establish(from, open).await;
            client.say(&route_with(&[])).await;
            client.fence().await;
            assert_eq!(rig.received("client").await.len(), 1);
            client
        }
    }
}

/// Says something wrong, and checks what comes back, that the connection is closed, and that nothing of the session is left.
async fn wrong(rig: &Rig, from: IpAddr, stage: Stage, name: &str, wire: &[u8], expected: Answer) {
    let open = Opening::new(PEER_ASN);
    let mut client = reach(rig, from, &open, stage).await;
    client.say(wire).await;
    assert_eq!(client.last_words().await, expected, "{name} in {stage:?} from {from}");
    assert!(!rig.is_up("client").await, "{name}");
    assert_eq!(rig.received("client").await.len(), 0, "{name}: the routes are gone");
}

/// Section 6.1, the same in each state.
fn header_errors() -> Vec<(&'static str, Vec<u8>, Answer)> {
    let length = |kind, len: u16| (of_length(kind, len), answer(1, 2, &len.to_be_bytes()));
    let mut rows = vec![
        ("first byte of the marker", header(0, &[0xfe]), answer(1, 1, &[])),
        ("last byte of the marker", header(15, &[0]), answer(1, 1, &[])),
        ("type 0", header(18, &[0]), answer(1, 3, &[0])),
        ("type 6", header(18, &[6]), answer(1, 3, &[6])),
        ("type 255", header(18, &[255]), answer(1, 3, &[255])),
    ];
    let lengths = [
        ("length 0", 4, 0),
        ("length 18", 4, 18),
        ("length 4097", 2, 4097),
        ("length 65535", 2, 65535),
        ("OPEN of 28", 1, 28),
        ("UPDATE of 22", 2, 22),
        ("NOTIFICATION of 20", 3, 20),
        ("KEEPALIVE of 20", 4, 20),
        ("ROUTE-REFRESH of 22", 5, 22),
    ];
    rows.extend(lengths.map(|(name, kind, len)| {
        let (wire, answer) = length(kind, len);
        (name, wire, answer)
    }));
    rows
}

/// Section 6.2, in OpenSent.
fn open_errors() -> Vec<(&'static str, Vec<u8>, Answer)> {
    let good = Opening::new(PEER_ASN);
    let with = |change: fn(&mut Opening)| {
        let mut open = good.clone();
        change(&mut open);
        open.wire()
    };
    let supported = [MULTIPROTOCOL_V4, MULTIPROTOCOL_V6].concat();
    vec![
        ("version 3", with(|open| open.version = 3), answer(2, 1, &[0, 4])),
        ("version 5", with(|open| open.version = 5), answer(2, 1, &[0, 4])),
        ("AS 0", with(|open| open.asn = 0), answer(2, 2, &[0, 0])),
        ("AS of somebody else", Opening::new(65009).wire(), answer(2, 2, &[0xfd, 0xf1])),
        ("four-octet AS 0", with(|open| open.capabilities[18..].fill(0)), answer(2, 2, &[0xfd, 0xe9])),
        ("identifier 0.0.0.0", with(|open| open.router_id = [0; 4]), answer(2, 3, &[0; 4])),
        ("authentication", good.with_parameters(3, &[1, 1, 0]), answer(2, 4, &[])),
        ("parameter 99", good.with_parameters(2, &[99, 0]), answer(2, 4, &[])),
        ("parameters longer than the message", good.with_parameters(9, &[2, 0]), answer(2, 0, &[])),
        ("parameters shorter than the message", good.with_parameters(0, &[2, 0]), answer(2, 0, &[])),
        ("a parameter past the end", good.with_parameters(2, &[2, 1]), answer(2, 0, &[])),
        ("a capability past the end", good.with_parameters(4, &[2, 2, 65, 4]), answer(2, 0, &[])),
        ("extended parameters cut off", good.with_parameters(255, &[255, 0, 9]), answer(2, 0, &[])),
        ("hold time 1", with(|open| open.hold = 1), answer(2, 6, &[0, 1])),
        ("hold time 2", with(|open| open.hold = 2), answer(2, 6, &[0, 2])),
        ("multicast only", with(|open| open.capabilities = vec![1, 4, 0, 1, 0, 2]), answer(2, 7, &supported)),
        ("two providers", with(|open| open.capabilities.extend([9, 1, 0])), answer(2, 11, &[])),
    ]
}

/// Sections 6.3 and 6.4, in Established: what RFC 7606 leaves to end a session.
fn update_errors() -> Vec<(&'static str, Vec<u8>, Answer)> {
    let own = [ORIGIN, AS_PATH, NEXT_HOP];
    let bare = |attribute: &[u8]| update(&[], &[attribute], &[]);
    let short_hop: &[u8] = &[0x80, 14, 10, 0, 2, 1, 5, 1, 2, 3, 4, 5, 0];
    let hop_past_end: &[u8] = &[0x80, 14, 5, 0, 2, 1, 16, 1];
    let mut long_prefix = MP_REACH.to_vec();
    long_prefix[24] = 129;
    let unreach: &[u8] = &[0x80, 15, 3, 0, 2, 1];
    let cut_unreach: &[u8] = &[0x80, 15, 2, 0, 2];
    let long_unreach: &[u8] = &[0x80, 15, 5, 0, 2, 1, 129, 1];
    let unknown: &[u8] = &[0x40, 99, 1, 7];
    let begin = message(5, &[0, 2, 1, 1, 0]);
    vec![
        ("withdrawn length too long", message(2, &[0, 9, 0, 0]), answer(3, 1, &[])),
        ("attribute length too long", message(2, &[0, 0, 0, 9, 1]), answer(3, 1, &[])),
        ("no room for the attribute length", message(2, &[0, 2, 8, 10]), answer(3, 1, &[])),
        ("MP_REACH_NLRI twice", update(&[], &[ORIGIN, AS_PATH, MP_REACH, MP_REACH], &[]), answer(3, 1, &[])),
        ("MP_UNREACH_NLRI twice", update(&[], &[unreach, unreach], &[]), answer(3, 1, &[])),
        ("MP_REACH_NLRI past the end", update(&[], &[&MP_REACH[..20]], &[]), answer(3, 1, &[])),
        ("ORIGIN 3 and no routes", bare(&[0x40, 1, 1, 3]), answer(3, 1, &[])),
        ("unknown well-known", route_with(unknown), answer(3, 2, unknown)),
        ("MP next hop of five bytes", bare(short_hop), answer(3, 9, short_hop)),
        ("MP next hop past the end", bare(hop_past_end), answer(3, 9, hop_past_end)),
        ("MP_REACH_NLRI of 129 bits", bare(&long_prefix), answer(3, 9, &long_prefix)),
        ("MP_UNREACH_NLRI without SAFI", bare(cut_unreach), answer(3, 9, cut_unreach)),
        ("MP_UNREACH_NLRI of 129 bits", bare(long_unreach), answer(3, 9, long_unreach)),
        ("NLRI of 33 bits", update(&[], &own, &[33, 1, 2, 3, 4, 5]), answer(3, 10, &[])),
        ("NLRI cut off", update(&[], &own, &[24, 1, 2]), answer(3, 10, &[])),
        ("withdrawn of 33 bits", update(&[33, 1, 2, 3, 4, 5], &[], &[]), answer(3, 10, &[])),
        ("withdrawn cut off", update(&[24, 1, 2], &[], &[]), answer(3, 10, &[])),
        ("BoRR of five bytes", begin.clone(), answer(7, 1, &begin)),
    ]
}

/// Section 6.6 with the subcodes of RFC 6608, and section 6.4: a NOTIFICATION is never answered.
fn out_of_turn() -> Vec<(Stage, &'static str, Vec<u8>, Answer)> {
    let (open, alive, end) = (Opening::new(PEER_ASN), message(4, &[]), message(2, &[0; 4]));
    let bad_update = message(2, &[0, 9, 0, 0]);
    let old = Opening { version: 3, ..open.clone() };
    let mut rows = vec![
        (OpenSent, "KEEPALIVE", alive, answer(5, 1, &[])),
        (OpenSent, "UPDATE", end.clone(), answer(5, 1, &[])),
        (OpenSent, "malformed UPDATE", bad_update.clone(), answer(5, 1, &[])),
        (OpenSent, "ROUTE-REFRESH", refresh(0), answer(5, 1, &[])),
        (OpenConfirm, "OPEN", open.wire(), answer(5, 2, &[])),
        (OpenConfirm, "UPDATE", end, answer(5, 2, &[])),
        (OpenConfirm, "malformed UPDATE", bad_update, answer(5, 2, &[])),
        (OpenConfirm, "ROUTE-REFRESH", refresh(0), answer(5, 2, &[])),
        (Established, "OPEN", open.wire(), answer(5, 3, &[])),
        (Established, "malformed OPEN", old.wire(), answer(5, 3, &[])),
    ];
    for stage in [OpenSent, OpenConfirm, Established] {
        rows.extend([
            (stage, "NOTIFICATION", notification(6, 2, b"\x04bye!"), None),
            (stage, "NOTIFICATION of the version", notification(2, 1, &[0, 4]), None),
            (stage, "NOTIFICATION of an unknown code", notification(99, 99, &[1; 500]), None),
            (stage, "NOTIFICATION whose text lies", notification(6, 2, &[200, b'x']), None),
        ]);
    }
    rows
}

async fn everything_wrong(from: &str) {
    let (rig, from) = (Rig::start().await, from.parse().unwrap());
    let mut config = peer("client", from);
    config.role = Some(Role::Provider);
    rig.speaker.add_peer(config).await.unwrap();
    for (name, wire, expected) in header_errors() {
        for stage in [OpenSent, OpenConfirm, Established] {
            wrong(&rig, from, stage, name, &wire, expected.clone()).await;
        }
    }
    for (name, wire, expected) in open_errors() {
        wrong(&rig, from, OpenSent, name, &wire, expected).await;
    }
    for (name, wire, expected) in update_errors() {
        wrong(&rig, from, Established, name, &wire, expected).await;
    }
    for (stage, name, wire, expected) in out_of_turn() {
        wrong(&rig, from, stage, name, &wire, expected).await;
    }
    rig.establish(from, &Opening::new(PEER_ASN)).await;
}

#[tokio::test]
async fn every_error_has_its_notification_over_ipv4() {
    everything_wrong("127.0.0.2").await;
}

#[tokio::test]
async fn every_error_has_its_notification_over_ipv6() {
    everything_wrong("::1").await;
}

#[tokio::test]
async fn an_internal_peer_has_an_identifier_of_its_own() {
    let (rig, from) = (Rig::start().await, "127.0.0.2".parse().unwrap());
    let mut config = peer("client", from);
    config.peer_asn = OWN_ASN.into();
    rig.speaker.add_peer(config).await.unwrap();
    let open = Opening { router_id: [10, 0, 0, 1], ..Opening::new(OWN_ASN) };
    wrong(&rig, from, OpenSent, "our own identifier", &open.wire(), answer(2, 3, &[10, 0, 0, 1])).await;
}

#[tokio::test]
async fn silence_ends_with_the_hold_timer_and_not_before() {
    let (rig, from) = Rig::with_peer("127.0.0.2").await;
    let open = Opening { hold: 3, ..Opening::new(PEER_ASN) };
    for stage in [OpenConfirm, Established] {
        let client = reach(&rig, from, &open, stage).await;
        let start = std::time::Instant::now();
        assert_eq!(client.last_words().await, answer(4, 0, &[]), "{stage:?}");
        assert!(start.elapsed().as_millis() >= 2900, "{stage:?} after {:?}", start.elapsed());
        assert_eq!(rig.received("client").await.len(), 0);
    }
}
