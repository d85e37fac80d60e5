//! UPDATE: each error gets the treatment RFC 7606 gives it, on bytes written by hand.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use crate::family::{Family, NextHop};
use crate::wire::{
    AsPath, Attributes, Community, EncodeContext, Frame, Message, Notification, Origin, RawAttribute,
    Treatment, Update, UpdateContext, announce, code, end_of_rib, withdraw,
};

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 2];
/// 10.1.0.0/16
const NLRI: &[u8] = &[16, 10, 1];

fn context() -> UpdateContext {
    UpdateContext {
        four_octet_as: true,
        ebgp: true,
        first_asn: Some(65002),
        families: Family::ALL.to_vec(),
        ..UpdateContext::default()
    }
}

fn body(withdrawn: &[u8], attributes: &[&[u8]], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let mut body = u16::try_from(withdrawn.len()).unwrap().to_be_bytes().to_vec();
    body.extend(withdrawn);
    body.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    body.extend(attributes);
    body.extend(nlri);
    body
}

/// A route with one more attribute, or another one in place of its own.
fn with(attribute: &[u8]) -> Result<Update, Notification> {
    let own = [ORIGIN, AS_PATH, NEXT_HOP].into_iter().filter(|own| own[1] != attribute[1]);
    let attributes: Vec<&[u8]> = own.chain([attribute]).collect();
    Update::decode(&body(&[], &attributes, NLRI), &context())
}

fn prefixes(update: &Update) -> (Vec<String>, Vec<String>) {
    let text = |prefix: &IpNet| prefix.to_string();
    let reach = update.reach.iter().flat_map(|reach| reach.prefixes.iter().map(text)).collect();
    (reach, update.withdrawn.iter().map(text).collect())
}

#[test]
fn a_good_route_is_read_whole() {
    let update = with(&[0xc0, 8, 8, 0xff, 0xff, 0xff, 1, 0xfd, 0xe8, 0, 1]).unwrap();
    assert_eq!(prefixes(&update), (vec!["10.1.0.0/16".to_owned()], vec![]));
    assert_eq!(update.reach[0].next_hop, NextHop::new(Ipv4Addr::new(10, 0, 0, 2).into()));
    assert_eq!(update.attributes.as_path, AsPath::sequence(&[65002]));
    assert_eq!(update.attributes.communities, [Community(0xfde8_0001), Community::NO_EXPORT]);
    assert_eq!((update.attributes.origin, update.faults), (Origin::Igp, vec![]));
}

#[test]
fn malformed_attributes_withdraw_the_routes() {
    let cases: [(&str, &[u8]); 17] = [
        ("ORIGIN of two bytes", &[0x40, 1, 2, 0, 0]),
        ("ORIGIN 3", &[0x40, 1, 1, 3]),
        ("ORIGIN optional", &[0xc0, 1, 1, 0]),
        ("AS_PATH overrun", &[0x40, 2, 6, 2, 2, 0, 0, 0xfd, 0xea]),
        ("AS_PATH left over", &[0x40, 2, 7, 2, 1, 0, 0, 0xfd, 0xea, 0]),
        ("AS_PATH of another AS first", &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xeb]),
        ("AS_PATH empty from outside", &[0x40, 2, 0]),
        ("NEXT_HOP of five bytes", &[0x40, 3, 5, 10, 0, 0, 2, 0]),
        ("NEXT_HOP 0.0.0.0", &[0x40, 3, 4, 0, 0, 0, 0]),
        ("NEXT_HOP multicast", &[0x40, 3, 4, 224, 0, 0, 1]),
        ("MED of three bytes", &[0x80, 4, 3, 0, 0, 0]),
        ("COMMUNITIES of five bytes", &[0xc0, 8, 5, 0, 0, 0, 0, 0]),
        ("COMMUNITIES empty", &[0xc0, 8, 0]),
        ("EXTENDED COMMUNITIES of nine bytes", &[0xc0, 16, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("LARGE_COMMUNITY of eleven bytes", &[0xc0, 32, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("an attribute past the end", &[0xc0, 99, 200, 1]),
        ("half an attribute header", &[0xc0, 99]),
    ];
    for (name, attribute) in cases {
        let update = with(attribute).unwrap();
        assert_eq!(prefixes(&update), (vec![], vec!["10.1.0.0/16".to_owned()]), "{name}");
        assert!(update.faults.iter().any(|fault| fault.treatment == Treatment::TreatAsWithdraw), "{name}");
    }
}

#[test]
fn missing_mandatory_attributes_withdraw_the_routes() {
    for missing in [ORIGIN, AS_PATH, NEXT_HOP] {
        let left: Vec<&[u8]> =
            [ORIGIN, AS_PATH, NEXT_HOP].into_iter().filter(|own| *own != missing).collect();
        let update = Update::decode(&body(&[], &left, NLRI), &context()).unwrap();
        assert_eq!(prefixes(&update).1, ["10.1.0.0/16"], "without {}", missing[1]);
        assert_eq!(update.faults[0].attribute, missing[1]);
    }
}

#[test]
fn lesser_faults_cost_the_attribute_only() {
    let cases: [(&str, &[u8]); 5] = [
        ("ATOMIC_AGGREGATE with a value", &[0x40, 6, 1, 0]),
        ("AGGREGATOR of six bytes", &[0xc0, 7, 6, 0, 1, 10, 0, 0, 1]),
        ("LOCAL_PREF from outside", &[0x40, 5, 4, 0, 0, 0, 200]),
        ("ORIGINATOR_ID from outside", &[0x80, 9, 4, 1, 2, 3, 4]),
        ("CLUSTER_LIST from outside", &[0x80, 10, 3, 1, 2, 3]),
    ];
    for (name, attribute) in cases {
        let update = with(attribute).unwrap();
        assert_eq!(prefixes(&update).0, ["10.1.0.0/16"], "{name}");
        assert_eq!(update.faults[0].treatment, Treatment::AttributeDiscard, "{name}");
        assert_eq!(update.attributes.local_pref, None);
    }
    let twice = Update::decode(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 1, 1, 2]], NLRI), &context());
    assert_eq!(twice.unwrap().attributes.origin, Origin::Igp, "the first of two counts");
}

#[test]
fn only_unreadable_routes_end_the_session() {
    let attributes = [ORIGIN, AS_PATH, NEXT_HOP];
    let reach: &[u8] =
        &[0x80, 14, 21, 0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let good = body(&[], &[ORIGIN, AS_PATH, reach], &[]);
    assert!(Update::decode(&good, &context()).is_ok());
    let cases: [(&str, Vec<u8>, u8); 8] = [
        ("NLRI of 33 bits", body(&[], &attributes, &[33, 1, 2, 3, 4, 5]), 10),
        ("NLRI cut off", body(&[], &attributes, &[24, 1, 2]), 10),
        ("withdrawn of 33 bits", body(&[33, 1, 2, 3, 4, 5], &[], &[]), 10),
        ("withdrawn length too long", vec![0, 9, 0, 0], 1),
        ("attribute length too long", vec![0, 0, 0, 9, 1], 1),
        ("two MP_REACH", body(&[], &[ORIGIN, AS_PATH, reach, reach], &[]), 1),
        ("MP_REACH next hop of 5 bytes", body(&[], &[&[0x80, 14, 10, 0, 2, 1, 5, 1, 2, 3, 4, 5, 0]], &[]), 9),
        ("unknown well-known attribute", body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 99, 1, 7]], NLRI), 2),
    ];
    for (name, body, subcode) in cases {
        let error = Update::decode(&body, &context()).unwrap_err();
        assert_eq!((error.code, error.subcode), (code::UPDATE, subcode), "{name}");
    }
    let unknown = body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, &[0x40, 99, 1, 7]], NLRI);
    assert_eq!(Update::decode(&unknown, &context()).unwrap_err().data, [0x40, 99, 1, 7]);
}

#[test]
fn unknown_attributes_pass_on_with_the_partial_bit_or_stop_here() {
    let update = with(&[0xc0, 99, 2, 7, 8]).unwrap();
    let raw = &update.attributes.unknown[0];
    assert_eq!((raw.flags, raw.code, raw.value.as_slice()), (0xe0, 99, &[7, 8][..]));
    assert_eq!(with(&[0x80, 99, 2, 7, 8]).unwrap().attributes.unknown, []);
}

#[test]
fn families_that_were_not_agreed_on_are_ignored() {
    let v6_only = UpdateContext { families: vec![Family::Ipv6Unicast], ..context() };
    let update = Update::decode(&body(NLRI, &[ORIGIN, AS_PATH, NEXT_HOP], NLRI), &v6_only).unwrap();
    assert_eq!((prefixes(&update), update.faults[0].treatment), ((vec![], vec![]), Treatment::Ignored));
    let vpn: &[u8] = &[0x80, 14, 9, 0, 1, 128, 4, 10, 0, 0, 1, 0];
    let update = Update::decode(&body(&[], &[ORIGIN, AS_PATH, vpn], &[]), &context()).unwrap();
    assert_eq!((update.reach.len(), update.faults[0].treatment), (0, Treatment::Ignored));
}

#[test]
fn end_of_rib_is_known_for_both_families_and_nothing_else() {
    for family in Family::ALL {
        let mut wire = Vec::new();
        end_of_rib(family, &mut wire);
        let frame = Frame::next(&mut bytes::BytesMut::from(&wire[..])).unwrap().unwrap();
        let Message::Update(update) = Message::decode(&frame, &context()).unwrap() else { panic!() };
        assert_eq!((update.end_of_rib, update.faults.len()), (Some(family), 0));
    }
    let with_more = body(&[], &[ORIGIN, &[0x80, 15, 3, 0, 2, 1]], &[]);
    assert_eq!(Update::decode(&with_more, &context()).unwrap().end_of_rib, None);
}

#[test]
fn messages_never_exceed_4096_bytes_and_lose_nothing() {
    let attributes = Attributes { as_path: AsPath::sequence(&[65002]), ..Attributes::default() };
    let v4: Vec<IpNet> =
        (0u32..5000).map(|n| IpNet::new(Ipv4Addr::from(n << 8).into(), 24).unwrap()).collect();
    let v6: Vec<IpNet> = (0u128..3000)
        .map(|n| IpNet::new(std::net::Ipv6Addr::from((0x2001_u128 << 112) + n).into(), 128).unwrap())
        .collect();
    for (family, list, hop) in
        [(Family::Ipv4Unicast, v4, "10.0.0.1"), (Family::Ipv6Unicast, v6, "2001:db8::1")]
    {
        for announced in [true, false] {
            let mut wire = Vec::new();
            if announced {
                let hop = NextHop::new(hop.parse().unwrap());
                announce(&attributes, &hop, family, &list, EncodeContext::default(), &mut wire).unwrap();
            } else {
                withdraw(family, &list, &mut wire);
            }
            let mut buffer = bytes::BytesMut::from(&wire[..]);
            let mut seen = Vec::new();
            let mut messages = 0;
            while let Some(frame) = Frame::next(&mut buffer).unwrap() {
                messages += 1;
                let Message::Update(update) = Message::decode(&frame, &context()).unwrap() else { panic!() };
                assert_eq!(update.faults, []);
                seen.extend(update.withdrawn);
                seen.extend(update.reach.into_iter().flat_map(|reach| reach.prefixes));
            }
            assert_eq!(seen, list);
            assert!(wire.len() / messages > 3000, "packed: {messages} messages for {} bytes", wire.len());
        }
    }
}

#[test]
fn attributes_too_long_for_any_message_are_an_error() {
    let huge = RawAttribute { flags: 0xe0, code: 99, value: vec![0; 4080] };
    let attributes = Attributes { unknown: vec![huge], ..Attributes::default() };
    let hop = NextHop::new(Ipv4Addr::new(10, 0, 0, 1).into());
    let prefix: [IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
    let mut wire = Vec::new();
    let result =
        announce(&attributes, &hop, Family::Ipv4Unicast, &prefix, EncodeContext::default(), &mut wire);
    assert!(result.is_err() && wire.is_empty());
}
