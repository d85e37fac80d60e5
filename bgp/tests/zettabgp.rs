//! What zettabgp 0.6.0 gets wrong (reference/bgp.md section 1), shown beside our answer. If one of its halves fails after an update, the
//! library was repaired: then docs/adr/0010 may be thought over.

#![cfg(test)]

mod support;

use bytes::BytesMut;
use support::*;
use tombolo_bgp::wire::{
    self, Aggregator, AsPath, Attributes, EXTENDED_MESSAGE_MAX, EncodeContext, Frame, Message, Notification,
    Service, UpdateContext, UpdateView, Verdict,
};
use tombolo_bgp::{Family, NextHop};
use zettabgp::prelude::*;

fn params() -> BgpSessionParams {
    BgpSessionParams::new(
        65001,
        90,
        BgpTransportMode::IPv4,
        [10, 0, 0, 1].into(),
        vec![BgpCapability::CapASN32(65001)],
    )
}

/// The UPDATE body zettabgp writes.
fn theirs(update: &BgpUpdateMessage) -> Vec<u8> {
    let mut buffer = vec![0u8; 4096];
    let len = update.encode_to(&params(), &mut buffer).unwrap();
    buffer.truncate(len);
    buffer
}

fn ours(attributes: &Attributes) -> Vec<u8> {
    let mut out = Vec::new();
    let hop = hop4();
    let context = EncodeContext::default();
    wire::announce(attributes, &hop, Family::Ipv4Unicast, &v4_routes(), context, &mut out).unwrap();
    out[wire::HEADER_LEN..].to_vec()
}

/// Value of the attribute of a type in an UPDATE's body, with its flags.
fn attribute(body: &[u8], code: u8) -> Option<(u8, Vec<u8>)> {
    let withdrawn = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let at = 2 + withdrawn;
    let len = usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let mut rest = &body[at + 2..at + 2 + len];
    while let [flags, found, tail @ ..] = rest {
        let (len, head) = if flags & 0x10 == 0 {
            (usize::from(tail[0]), 1)
        } else {
            (usize::from(u16::from_be_bytes([tail[0], tail[1]])), 2)
        };
        if *found == code {
            return Some((*flags, tail[head..head + len].to_vec()));
        }
        rest = &tail[head + len..];
    }
    None
}

fn their_update(attributes: Vec<BgpAttrItem>) -> BgpUpdateMessage {
    let mut update = BgpUpdateMessage::new();
    update.attrs = attributes;
    update
}

#[test]
fn defect_1_a_sequence_is_written_as_a_set() {
    let path = BgpASpath::from(vec![65001u32, 65002]);
    let body = theirs(&their_update(vec![BgpAttrItem::ASPath(path)]));
    assert_eq!(attribute(&body, 2).unwrap().1[0], 1, "zettabgp: AS_SET");
    let attributes = Attributes { as_path: AsPath::sequence(&[65001, 65002]), ..Attributes::default() };
    assert_eq!(
        attribute(&ours(&attributes), 2),
        Some((0x40, vec![2, 2, 0, 0, 0xfd, 0xe9, 0, 0, 0xfd, 0xea]))
    );
}

#[test]
fn defect_2_aggregator_is_not_written_and_as_numbers_fold() {
    let aggregator = BgpAggregatorAS { asn: 70_000, addr: [192, 0, 2, 1].into() };
    let body = theirs(&their_update(vec![BgpAttrItem::AggregatorAS(aggregator)]));
    let written = attribute(&body, 7);
    assert_ne!(written.map(|(_, value)| value.len()), Some(8), "zettabgp: not eight bytes");
    assert_eq!(BgpAS::new(65_536), BgpAS::new(1), "zettabgp: AS 65536 is AS 1");
    let own = Aggregator { asn: 70_000, address: [192, 0, 2, 1].into() };
    let attributes = Attributes { aggregator: Some(own), ..Attributes::default() };
    assert_eq!(attribute(&ours(&attributes), 7), Some((0xc0, vec![0, 1, 0x11, 0x70, 192, 0, 2, 1])));
    assert!(!AsPath::sequence(&[65_536]).contains(1));
}

#[test]
fn defect_3_large_communities_are_written_as_partial() {
    let mut list = BgpLargeCommunityList::new();
    list.value.insert(BgpLargeCommunity { ga: 65001, ldp1: 2, ldp2: 3 });
    let body = theirs(&their_update(vec![BgpAttrItem::LargeCommunityList(list)]));
    assert_eq!(attribute(&body, 32).unwrap().0 & 0x20, 0x20, "zettabgp: partial");
    let mut attributes =
        Attributes { large_communities: vec!["65001:2:3".parse().unwrap()], ..Attributes::default() };
    assert_eq!(attribute(&ours(&attributes), 32).unwrap().0, 0xc0);
    attributes.partial.insert(32);
    assert_eq!(attribute(&ours(&attributes), 32).unwrap().0, 0xe0, "but what came so goes on so");
}

fn kept(name: &str) -> Frame {
    let (_, wire) = corpus().into_iter().find(|(found, _)| found == name).unwrap();
    Frame::next_within(&mut BytesMut::from(&wire[..]), EXTENDED_MESSAGE_MAX).unwrap().unwrap()
}

#[test]
fn defect_4_an_ipv6_next_hop_of_ipv4_is_cut_to_four_bytes() {
    let body = kept("update-v4-over-v6-next-hop").body;
    let mut update = BgpUpdateMessage::new();
    let read = update.decode_from(&params(), &body);
    let hop = update.attrs.iter().find_map(|item| match item {
        BgpAttrItem::MPUpdates(mp) => Some(mp.nexthop.clone()),
        _ => None,
    });
    let right = matches!(&hop, Some(BgpAddr::V6(address)) if *address == "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap());
    assert!(read.is_err() || !right, "zettabgp: {hop:?}");
    let context = context(true, true, false);
    let view = UpdateView::parse(&body, &context).unwrap();
    let hops: Vec<Option<NextHop>> =
        view.announced(&view.attributes(&context)).map(|run| run.next_hop).collect();
    assert_eq!(hops, [Some(hop6())]);
}

#[test]
fn defect_5_the_data_of_a_notification_is_lost() {
    let sent = Notification::cease(2, "node drains: kernel upgrade");
    let wire = wire::notification(&sent);
    let mut read = BgpNotificationMessage::new();
    read.decode_from(&params(), &wire[wire::HEADER_LEN..]).unwrap();
    let mut buffer = vec![0u8; 4096];
    let len = read.encode_to(&params(), &mut buffer).unwrap();
    assert_eq!(len, 4, "zettabgp: four bytes, whatever was said");
    let Message::Notification(own) =
        Message::decode(&kept("notification-text"), &UpdateContext::default()).unwrap()
    else {
        panic!()
    };
    assert_eq!(own, sent);
}

#[test]
fn defects_6_and_7_open_with_a_host_name_or_long_parameters_is_refused() {
    for name in ["open-every-capability", "open-extended-parameters"] {
        let body = kept(name).body;
        let read = std::panic::catch_unwind(|| {
            let mut open = BgpOpenMessage::new();
            open.decode_from(&params(), &body).is_ok_and(|()| open.caps.len() >= every_capability().len())
        });
        assert!(!read.unwrap_or(false), "zettabgp reads {name}");
        let Message::Open(own) = Message::decode(&kept(name), &UpdateContext::default()).unwrap() else {
            panic!()
        };
        assert_eq!(own.capabilities[..every_capability().len()], every_capability());
    }
}

#[test]
fn defect_8_a_header_of_length_five_is_taken() {
    let mut wire = wire::keepalive();
    wire[17] = 5;
    let read = std::panic::catch_unwind(|| params().decode_message_head(&wire));
    assert!(!matches!(read, Ok(Err(_))), "zettabgp: no error, or a panic");
    let error = Frame::next(&mut BytesMut::from(&wire[..])).unwrap_err();
    assert_eq!((error.code, error.subcode, error.data), (1, 2, vec![0, 5]));
}

#[test]
fn defect_9_path_ids_are_guessed() {
    // 0/0 0/0 10/8 172.16/16: zettabgp's default reads one route with a path id.
    let nlri = [0u8, 0, 8, 10, 16, 172, 16];
    assert!(params().fuzzy_pathid, "zettabgp: on by default");
    let simple = kept("update-v4-simple").body;
    let v4_at = simple.len() - 1 - 2 - 5 - 5;
    let body = [&simple[..v4_at], &nlri].concat();
    let context = context(true, true, false);
    let view = UpdateView::parse(&body, &context).unwrap();
    let routes: Vec<String> = view
        .announced(&view.attributes(&context))
        .flat_map(|run| run.nlri.routes())
        .map(|r| r.prefix.to_string())
        .collect();
    assert_eq!(routes, ["0.0.0.0/0", "0.0.0.0/0", "10.0.0.0/8", "172.16.0.0/16"]);
}

#[test]
fn defect_10_nothing_is_checked() {
    // ORIGIN of two bytes, ORIGIN twice, no AS_PATH, no NEXT_HOP.
    let attributes = [0x40u8, 1, 2, 0, 0, 0x40, 1, 1, 0];
    let body = [&[0u8, 0, 0, 9][..], &attributes, &[8, 10]].concat();
    let mut update = BgpUpdateMessage::new();
    assert!(update.decode_from(&params(), &body).is_ok(), "zettabgp: fine");
    let context = context(true, true, false);
    let view = UpdateView::parse(&body, &context).unwrap();
    assert_eq!(view.judge(&view.attributes(&context), &mut vec![]), Ok(Verdict::TreatAsWithdraw));
    // Confederation segments are an error to it, whoever sends them.
    let mut update = BgpUpdateMessage::new();
    assert!(update.decode_from(&params(), &kept("update-v4-confederation").body).is_err());
}

#[test]
fn a_stray_byte_in_as_path_ends_here_and_hangs_there() {
    // Not run through zettabgp: it never returns and its memory grows.
    let body = [
        &[0u8, 0, 0, 18][..],
        &[0x40, 1, 1, 0, 0x40, 2, 7, 2, 1, 0, 0, 0xfd, 0xe9, 7, 0x40, 3, 1, 0],
        &[8, 10],
    ]
    .concat();
    let context = context(true, true, false);
    let view = UpdateView::parse(&body, &context).unwrap();
    assert_eq!(view.judge(&view.attributes(&context), &mut vec![]), Ok(Verdict::TreatAsWithdraw));
}

#[test]
fn more_found_here_evpn_type_5_of_ipv6_and_flowspec_offsets() {
    let plain = context(true, true, false);
    let body = kept("update-evpn").body;
    let view = UpdateView::parse(&body, &plain).unwrap();
    let run = view.announced(&view.attributes(&plain)).next().unwrap();
    let v6 = run.nlri.services().nth(7).unwrap();
    let (read, _) = BgpEVPN::decode_from(BgpTransportMode::IPv4, v6.bytes()).unwrap();
    assert!(matches!(&read, BgpEVPN::EVPN5(route) if route.prefix.is_ipv4()), "zettabgp: an IPv4 prefix");
    let Some(Service::EvpnPrefix(own)) = v6.decode() else { panic!() };
    assert_eq!(own.prefix, "2001:db8::/64".parse().unwrap());
    let body = kept("update-flowspec-v6").body;
    let view = UpdateView::parse(&body, &plain).unwrap();
    let run = view.announced(&view.attributes(&plain)).next().unwrap();
    let decoded: Vec<bool> = run.nlri.services().map(|flow| flow.decode().is_some()).collect();
    assert_eq!(decoded, [true, false], "an offset is carried, not misread");
}
