//! What BIRD 2.0.12, FRR 8.4.4 and GoBGP 3.10 said when they were told `update-for-peers` by us (AS 65002) and passed it on to AS 65003:
//! their OPENs, their words for our routes, their End-of-RIB. Captured once in a network namespace and kept; live sessions are in `tests/interop`.

#![cfg(test)]

mod support;

use bytes::BytesMut;
use support::{attributes_for_peers, corpus, routes_for_peers};
use tombolo_bgp::wire::{
    AsPath, Attributes, Capability, Frame, MESSAGE_MAX, Message, Open, RawAttribute, Update, UpdateContext,
};
use tombolo_bgp::{Family, NextHop};

const PEERS: [&str; 3] = ["bird", "frr", "gobgp"];

fn context() -> UpdateContext {
    UpdateContext {
        four_octet_as: true,
        ebgp: true,
        first_asn: Some(65001),
        families: Family::ALL.to_vec(),
        ..UpdateContext::default()
    }
}

fn heard(name: &str) -> Vec<Message> {
    let wires = corpus().into_iter().filter(|(found, _)| found.starts_with(name));
    wires
        .map(|(_, wire)| {
            let frame = Frame::next_within(&mut BytesMut::from(&wire[..]), MESSAGE_MAX).unwrap().unwrap();
            Message::decode(&frame, &context()).unwrap()
        })
        .collect()
}

fn open(peer: &str) -> Open {
    let Message::Open(open) = heard(&format!("peer-{peer}-open")).remove(0) else { panic!("{peer}") };
    open
}

#[test]
fn their_opens_are_understood_whole() {
    for peer in PEERS {
        let open = open(peer);
        assert_eq!((open.asn, open.router_id), (65001, [10, 99, 1, 1].into()), "{peer}");
        assert!(open.four_octet_as() && open.route_refresh(), "{peer}");
        assert!(open.families().contains(&Family::Ipv4Unicast), "{peer}");
        let named = |capability: &Capability| match capability {
            // FRR offers the old code of route refresh, 128; nobody else's value is a riddle.
            Capability::Unknown { code, .. } => peer == "frr" && *code == 128,
            _ => true,
        };
        assert!(open.capabilities.iter().all(named), "{peer}: {:?}", open.capabilities);
    }
    assert!(open("bird").extended_message() && open("bird").enhanced_refresh());
    assert!(open("bird").add_path(Family::Ipv4Unicast).is_some_and(|entry| entry.send && !entry.receive));
    assert!(open("bird").graceful_restart().is_some() && open("gobgp").graceful_restart().is_some());
    assert!(open("frr").extended_message());
    let host = |capability: &Capability| matches!(capability, Capability::Fqdn { .. });
    assert!(open("frr").capabilities.iter().any(host));
}

#[test]
fn our_routes_come_back_as_we_said_them() {
    let ours = attributes_for_peers();
    for peer in PEERS {
        let Message::Update(update) = heard(&format!("peer-{peer}-update")).remove(0) else {
            panic!("{peer}")
        };
        let Update { reach, attributes, faults, withdrawn, .. } = *update;
        assert_eq!((faults, withdrawn.len(), reach.len()), (vec![], 0, 1), "{peer}");
        assert_eq!(reach[0].next_hop, NextHop::new([10, 99, 2, 1].into()), "{peer}");
        let known = routes_for_peers();
        assert!(reach[0].prefixes.iter().all(|prefix| known.iter().any(|route| route.prefix == *prefix)));
        // BIRD and FRR keep routes with equal attributes together, GoBGP does not.
        assert_eq!(reach[0].prefixes.len(), if peer == "gobgp" { 1 } else { 2 }, "{peer}");
        let expected = Attributes {
            as_path: AsPath::sequence(&[65001, 65002, 4_200_000_000, 64500]),
            med: None,
            ..ours.clone()
        };
        assert_eq!(Attributes { med: None, ..attributes.clone() }, expected, "{peer}");
        // A MED is not passed on to another AS (RFC 4271 section 5.1.4).
        assert_eq!(attributes.med, None, "{peer}");
        assert_eq!(
            attributes.unknown,
            [RawAttribute { flags: 0xe0, code: 99, value: vec![1; 300] }],
            "{peer}"
        );
    }
}

#[test]
fn their_end_of_rib_is_known() {
    for peer in PEERS {
        for message in heard(&format!("peer-{peer}-end-of-rib")) {
            let Message::Update(update) = message else { panic!("{peer}") };
            assert!(update.end_of_rib.is_some() && update.faults.is_empty(), "{peer}");
        }
    }
}
