//! Whatever can be said is heard as it was said.

#![cfg(test)]

mod support;

use std::net::Ipv4Addr;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::prelude::*;
use tombolo_bgp::wire::{
    self, AddPath, Aggregator, AsPath, Attributes, Capability, Community, EXTENDED_MESSAGE_MAX,
    EncodeContext, Frame, LargeCommunity, LongLivedFamily, MESSAGE_MAX, Message, Notification, Open, Origin,
    Partial, RawAttribute, Route, Segment, SegmentKind, UpdateContext, UpdateView, Verdict,
};
use tombolo_bgp::{Family, NextHop};

fn segment() -> impl Strategy<Value = Segment> {
    let kinds =
        [SegmentKind::Set, SegmentKind::Sequence, SegmentKind::ConfedSequence, SegmentKind::ConfedSet];
    (prop::sample::select(kinds.to_vec()), vec(1u32.., 1..6))
        .prop_map(|(kind, asns)| Segment { kind, asns: asns.into() })
}

fn sorted<T: Ord + std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::btree_set(item, 0..6).prop_map(|set| set.into_iter().collect())
}

fn large() -> impl Strategy<Value = LargeCommunity> {
    any::<[u32; 3]>().prop_map(|[global, local1, local2]| LargeCommunity { global, local1, local2 })
}

prop_compose! {
    fn lists()(
        communities in sorted(any::<u32>().prop_map(Community)),
        extended_communities in sorted(any::<u64>()),
        large_communities in sorted(large()),
        cluster_list in vec(any::<u32>().prop_map(Ipv4Addr::from), 0..4),
        unknown in prop::option::of((50u8..=255, vec(any::<u8>(), 0..600))),
        partial in any::<bool>(),
    ) -> Attributes {
        let mut attributes = Attributes {
            communities,
            extended_communities,
            large_communities,
            cluster_list,
            unknown: unknown.into_iter().map(|(code, value)| RawAttribute { flags: 0xe0, code, value }).collect(),
            ..Attributes::default()
        };
        if partial && !attributes.communities.is_empty() {
            attributes.partial = Partial::default();
            attributes.partial.insert(8);
        }
        attributes
    }
}

prop_compose! {
    fn attributes()(
        lists in lists(),
        origin in prop::sample::select(vec![Origin::Igp, Origin::Egp, Origin::Incomplete]),
        segments in vec(segment(), 0..4),
        med in any::<Option<u32>>(),
        local_pref in any::<Option<u32>>(),
        atomic_aggregate in any::<bool>(),
        aggregator in prop::option::of((1u32.., any::<u32>())),
        originator in any::<Option<u32>>(),
    ) -> Attributes {
        Attributes {
            origin,
            as_path: AsPath { segments: segments.into() },
            med,
            local_pref,
            atomic_aggregate,
            aggregator: aggregator.map(|(asn, address)| Aggregator { asn, address: Ipv4Addr::from(address) }),
            originator_id: originator.map(Ipv4Addr::from),
            ..lists
        }
    }
}

fn route(v6: bool) -> impl Strategy<Value = Route> {
    (any::<u128>(), 0u8..=if v6 { 128 } else { 32 }, any::<u32>()).prop_map(move |(bits, len, path_id)| {
        let address: std::net::IpAddr = if v6 {
            // 2000::/3 keeps clear of link-local and multicast.
            std::net::Ipv6Addr::from(bits >> 3 | 1 << 125).into()
        } else {
            Ipv4Addr::from((u32::try_from(bits & 0xffff_ffff).unwrap() >> 2) | 1).into()
        };
        Route { prefix: ipnet::IpNet::new(address, len).unwrap().trunc(), path_id }
    })
}

fn context(four_octet_as: bool, add_path: bool) -> UpdateContext {
    support::context(four_octet_as, false, add_path)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn routes_and_attributes(
        attributes in attributes(),
        v4 in vec(route(false), 1..900),
        v6 in vec(route(true), 1..400),
        add_path in any::<bool>(),
        over_v6 in any::<bool>(),
        extended in any::<bool>(),
    ) {
        let message_max = if extended { EXTENDED_MESSAGE_MAX } else { MESSAGE_MAX };
        let own = EncodeContext { four_octet_as: true, add_path, message_max };
        let (hop4, hop6) = (support::hop4(), support::hop6());
        for (family, hop, routes) in [
            (Family::Ipv4Unicast, if over_v6 { hop6 } else { hop4 }, v4),
            (Family::Ipv6Unicast, hop6, v6),
        ] {
            let mut said = Vec::new();
            wire::announce(&attributes, &hop, family, &routes, own, &mut said).unwrap();
            let expected: Vec<Route> =
                routes.iter().map(|route| Route { path_id: if add_path { route.path_id } else { 0 }, ..*route }).collect();
            prop_assert_eq!(hear(&said, &attributes, hop, add_path, message_max), expected.clone());
            let mut gone = Vec::new();
            wire::withdraw_with(family, &routes, own, &mut gone);
            prop_assert_eq!(withdrawn(&gone, add_path, message_max), expected);
        }
    }

    #[test]
    fn two_octet_sessions_lose_nothing(asns in vec(1u32.., 1..40)) {
        let attributes = Attributes { as_path: AsPath::sequence(&asns), ..Attributes::default() };
        let old = EncodeContext { four_octet_as: false, ..EncodeContext::default() };
        let mut said = Vec::new();
        let prefix: [ipnet::IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
        wire::announce(&attributes, &support::hop4(), Family::Ipv4Unicast, &prefix, old, &mut said).unwrap();
        let frame = Frame::next(&mut BytesMut::from(&said[..])).unwrap().unwrap();
        let view = UpdateView::parse(&frame.body, &context(false, false)).unwrap();
        prop_assert_eq!(view.attributes(&context(false, false)).attributes, attributes);
    }

    #[test]
    fn opens(
        asn in 1u32..,
        hold_time_secs in 3u16..,
        router_id in 1u32..,
        families in vec(prop::sample::select(Family::KNOWN.to_vec()), 0..9),
        stale_time_secs in 0u32..1 << 24,
        host in "[a-zü]{0,20}",
        version in "[ -~]{0,100}",
        unknown in vec((100u8..=255, vec(any::<u8>(), 0..255)), 0..6),
    ) {
        let mut capabilities: Vec<Capability> = families.iter().copied().map(Capability::Multiprotocol).collect();
        capabilities.extend([
            Capability::FourOctetAs(asn),
            Capability::AddPath(
                families.iter().map(|family| AddPath { family: *family, receive: true, send: asn % 2 == 0 }).collect(),
            ),
            Capability::LongLivedGracefulRestart(
                families
                    .iter()
                    .map(|family| LongLivedFamily { family: *family, forwarding_preserved: asn % 3 == 0, stale_time_secs })
                    .collect(),
            ),
            Capability::Fqdn { host, domain: String::new() },
            Capability::SoftwareVersion(version),
        ]);
        capabilities.extend(unknown.into_iter().map(|(code, value)| Capability::Unknown { code, value }));
        let open = Open { asn, hold_time_secs, router_id: router_id.into(), capabilities };
        let frame = Frame::next(&mut BytesMut::from(&wire::open(&open)[..])).unwrap().unwrap();
        prop_assert_eq!(Message::decode(&frame, &UpdateContext::default()), Ok(Message::Open(open)));
    }

    #[test]
    fn shutdown_texts(text in "\\PC{0,300}", hard in any::<bool>()) {
        let sent = Notification::cease(wire::cease::ADMIN_SHUTDOWN, &text);
        let sent = if hard { sent.hard_reset() } else { sent };
        let frame = Frame::next(&mut BytesMut::from(&wire::notification(&sent)[..])).unwrap().unwrap();
        let Ok(Message::Notification(read)) = Message::decode(&frame, &UpdateContext::default()) else { panic!() };
        prop_assert_eq!(&read, &sent);
        let told = read.shutdown_text().unwrap_or_default();
        prop_assert!(text.starts_with(told) && (told.len() + 4 > 255 || told == text));
    }
}

fn hear(said: &[u8], attributes: &Attributes, hop: NextHop, add_path: bool, max: usize) -> Vec<Route> {
    let mut buffer = BytesMut::from(said);
    let mut heard = Vec::new();
    while let Some(frame) = Frame::next_within(&mut buffer, max).unwrap() {
        let context = context(true, add_path);
        let view = UpdateView::parse(&frame.body, &context).unwrap();
        let set = view.attributes(&context);
        assert_eq!(view.judge(&set, &mut Vec::new()), Ok(Verdict::Accept));
        assert_eq!((&set.attributes, &set.faults), (attributes, &vec![]));
        for run in view.announced(&set) {
            assert_eq!(run.next_hop, Some(hop));
            heard.extend(run.nlri.routes());
        }
    }
    heard
}

fn withdrawn(said: &[u8], add_path: bool, max: usize) -> Vec<Route> {
    let mut buffer = BytesMut::from(said);
    let mut heard = Vec::new();
    while let Some(frame) = Frame::next_within(&mut buffer, max).unwrap() {
        heard.extend(UpdateView::parse(&frame.body, &context(true, add_path)).unwrap().withdrawn_routes());
    }
    heard
}
