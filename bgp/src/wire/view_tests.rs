//! The borrowed view: keys to intern by, ADD-PATH, RFC 8950, and what RFC 7606 says about whole messages.

use std::net::Ipv4Addr;

use super::view::{UpdateView, Verdict};
use super::{AttributeSet, Fault, Notification, Treatment, UpdateContext, code};
use crate::family::{Family, NextHop};

const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
const AS_PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xea];
const NEXT_HOP: &[u8] = &[0x40, 3, 4, 10, 0, 0, 2];
const MED: &[u8] = &[0x80, 4, 4, 0, 0, 0, 7];
const BAD_MED: &[u8] = &[0x80, 4, 3, 0, 0, 7];
/// 2001:db8::/32 by 2001:db8::1.
const REACH: &[u8] = &[
    0x80, 14, 26, 0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 32, 0x20, 1, 0xd,
    0xb8,
];
const UNREACH: &[u8] = &[0x80, 15, 8, 0, 2, 1, 32, 0x20, 1, 0xd, 0xb8];

fn context() -> UpdateContext {
    UpdateContext {
        four_octet_as: true,
        ebgp: true,
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

fn judged(body: &[u8], context: &UpdateContext) -> (Result<Verdict, Notification>, AttributeSet, Vec<Fault>) {
    let view = UpdateView::parse(body, context).unwrap();
    let set = view.attributes(context);
    let mut faults = view.faults().to_vec();
    (view.judge(&set, &mut faults), set, faults)
}

#[test]
fn the_key_is_the_attributes_without_the_routes() {
    let key = |attributes: &[&[u8]]| {
        let body = body(&[], attributes, &[]);
        let view = UpdateView::parse(&body, &context()).unwrap();
        let mut bytes = Vec::new();
        view.key().append_to(&mut bytes);
        assert!(view.key().is(&bytes) && !view.key().is(&bytes[1..]));
        (bytes, view.key().hash64(7), view.key().contiguous().is_some(), view.attributes(&context()))
    };
    let first = key(&[REACH, ORIGIN, AS_PATH, MED]);
    let middle = key(&[ORIGIN, AS_PATH, REACH, MED, UNREACH]);
    let last = key(&[ORIGIN, AS_PATH, MED, UNREACH, REACH]);
    assert_eq!([ORIGIN, AS_PATH, MED].concat(), first.0);
    assert_eq!((&first.0, first.1, &first.3), (&middle.0, middle.1, &middle.3));
    assert_eq!((&first.0, first.1), (&last.0, last.1));
    assert_eq!((first.2, middle.2, last.2), (true, false, true));
    assert_ne!(first.1, key(&[REACH, ORIGIN, AS_PATH]).1);
}

#[test]
fn keys_compare_however_they_are_split() {
    let (one, two) = (body(&[], &[REACH, ORIGIN, AS_PATH], &[]), body(&[], &[ORIGIN, REACH, AS_PATH], &[]));
    let view = |body| UpdateView::parse(body, &context()).map(|view| view.key()).unwrap();
    assert_eq!(view(&one), view(&two));
    assert_ne!(view(&one), view(&body(&[], &[REACH, ORIGIN], &[])));
}

#[test]
fn sessions_that_read_alike_may_share_a_store() {
    assert!(context().reads_like(&UpdateContext { families: vec![], ..context() }));
    assert!(!context().reads_like(&UpdateContext { four_octet_as: false, ..context() }));
    assert!(!context().reads_like(&UpdateContext { first_asn: Some(1), ..context() }));
}

#[test]
fn path_ids_come_with_routes_where_agreed_on() {
    let agreed = UpdateContext { add_path: Family::ALL.to_vec(), ..context() };
    let nlri = [0, 0, 0, 7, 16, 10, 1];
    let wire = body(&[0, 0, 0, 9, 8, 11], &[ORIGIN, AS_PATH, NEXT_HOP], &nlri);
    let view = UpdateView::parse(&wire, &agreed).unwrap();
    let set = view.attributes(&agreed);
    let said: Vec<_> = view
        .announced(&set)
        .flat_map(|run| run.nlri.routes())
        .map(|r| (r.prefix.to_string(), r.path_id))
        .collect();
    assert_eq!(said, [("10.1.0.0/16".to_owned(), 7)]);
    assert_eq!(view.withdrawn_routes().map(|route| route.path_id).collect::<Vec<_>>(), [9]);
    // RFC 7911 section 5: without agreement the same bytes are other prefixes, or none.
    assert!(
        UpdateView::parse(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP], &[0, 0, 0, 7, 33, 10, 1]), &context())
            .is_err()
    );
}

#[test]
fn ipv4_routes_over_ipv6_next_hops_need_an_agreement() {
    let mut reach = vec![0x80, 14, 24, 0, 1, 1, 16];
    reach.extend("2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets());
    reach.extend([0, 16, 10, 1]);
    reach[2] = u8::try_from(reach.len() - 3).unwrap();
    let wire = body(&[], &[&reach, ORIGIN, AS_PATH], &[]);
    let agreed = UpdateContext { extended_next_hop: vec![Family::Ipv4Unicast], ..context() };
    let view = UpdateView::parse(&wire, &agreed).unwrap();
    let hops: Vec<_> =
        view.announced(&view.attributes(&agreed)).map(|run| (run.nlri.family(), run.next_hop)).collect();
    assert_eq!(hops, [(Family::Ipv4Unicast, Some(NextHop::new("2001:db8::9".parse().unwrap())))]);
    let error = UpdateView::parse(&wire, &context()).unwrap_err();
    assert_eq!((error.code, error.subcode, &error.data[..2]), (code::UPDATE, 9, &[0x80, 14][..]));
}

#[test]
fn an_error_where_nothing_is_announced_resets_the_session() {
    // RFC 7606 section 5.2: the routes may be what could not be read.
    for attributes in [&[ORIGIN, BAD_MED][..], &[BAD_MED, UNREACH], &[ORIGIN, &[0xc0, 99, 200, 1]]] {
        let (verdict, ..) = judged(&body(&[], attributes, &[]), &context());
        assert_eq!(verdict.unwrap_err().subcode, 1, "{attributes:?}");
    }
    let withdrawing = body(&[8, 11], &[BAD_MED], &[]);
    assert!(judged(&withdrawing, &context()).0.is_err());
    // Not for what is only discarded, nor for wrong flags of a lone MP_UNREACH, whose routes are known.
    let discard = body(&[], &[&[0x40, 6, 1, 0]], &[]);
    assert_eq!(judged(&discard, &context()).0, Ok(Verdict::Accept));
    let mut flags = UNREACH.to_vec();
    flags[0] = 0xc0;
    let (verdict, _, faults) = judged(&body(&[], &[&flags], &[]), &context());
    assert_eq!((verdict, faults.len()), (Ok(Verdict::TreatAsWithdraw), 1));
    // Routes of a family that was not agreed on were announced all the same.
    let v4_only = UpdateContext { families: vec![Family::Ipv4Unicast], ..context() };
    assert_eq!(judged(&body(&[], &[REACH, BAD_MED], &[]), &v4_only).0, Ok(Verdict::TreatAsWithdraw));
}

#[test]
fn routes_that_overrun_the_attributes_reset_the_session() {
    // Found by the differential test: the MP attribute is cut off, an IPv4 route follows (RFC 7606 section 3 (j)).
    for cut in [&UNREACH[..UNREACH.len() - 1], &REACH[..5], &REACH[..2]] {
        let error = UpdateView::parse(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, cut], &[8, 10]), &context())
            .unwrap_err();
        assert_eq!((error.code, error.subcode), (code::UPDATE, 1));
    }
}

#[test]
fn the_strongest_treatment_wins_and_all_are_told() {
    let wire = body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, BAD_MED, &[0x40, 6, 1, 0]], &[8, 10]);
    let (verdict, set, _) = judged(&wire, &context());
    let treatments: Vec<_> = set.faults.iter().map(|fault| fault.treatment).collect();
    assert_eq!(treatments, [Treatment::TreatAsWithdraw, Treatment::AttributeDiscard]);
    assert_eq!(verdict, Ok(Verdict::TreatAsWithdraw));
}

#[test]
fn next_hops_matter_where_they_are_used() {
    let zero: &[u8] = &[0x40, 3, 4, 0, 0, 0, 0];
    assert_eq!(
        judged(&body(&[], &[ORIGIN, AS_PATH, zero], &[8, 10]), &context()).0,
        Ok(Verdict::TreatAsWithdraw)
    );
    let (verdict, set, _) = judged(&body(&[], &[REACH, ORIGIN, AS_PATH, zero], &[]), &context());
    assert_eq!((verdict, set.next_hop), (Ok(Verdict::Accept), Some(Ipv4Addr::UNSPECIFIED)));
}

#[test]
fn confederations_speak_among_themselves() {
    let path: &[u8] = &[0x40, 2, 6, 3, 1, 0, 0, 0xfd, 0xea];
    let preference: &[u8] = &[0x40, 5, 4, 0, 0, 0, 200];
    let wire = body(&[], &[ORIGIN, path, NEXT_HOP, preference], &[8, 10]);
    assert_eq!(judged(&wire, &context()).0, Ok(Verdict::TreatAsWithdraw));
    let member = UpdateContext { confederation: true, first_asn: Some(65002), ..context() };
    let (verdict, set, _) = judged(&wire, &member);
    assert_eq!(
        (verdict, set.attributes.local_pref, set.attributes.as_path.hops()),
        (Ok(Verdict::Accept), Some(200), 0)
    );
}

#[test]
fn malformed_internal_attributes_withdraw_inside() {
    // RFC 7606 sections 7.5, 7.9 and 7.10: from outside they are only discarded (update_tests).
    let inside = UpdateContext { ebgp: false, ..context() };
    for bad in [
        &[0x40u8, 5, 3, 0, 0, 1][..],
        &[0x40, 5, 5, 0, 0, 0, 0, 1],
        &[0x80, 9, 3, 1, 2, 3],
        &[0x80, 10, 3, 1, 2, 3],
        &[0x80, 10, 0],
    ] {
        let (verdict, set, _) = judged(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, bad], &[8, 10]), &inside);
        assert_eq!((verdict, set.faults[0].attribute), (Ok(Verdict::TreatAsWithdraw), bad[1]), "{bad:?}");
    }
}

#[test]
fn the_partial_bit_stays_once_it_is_set() {
    let communities: &[u8] = &[0xe0, 8, 4, 0xfd, 0xe8, 0, 1];
    let large: &[u8] = &[0xc0, 32, 12, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3];
    let (_, set, _) =
        judged(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, communities, large], &[8, 10]), &context());
    assert!(set.attributes.partial.contains(8) && !set.attributes.partial.contains(32));
    let mut wire = Vec::new();
    let prefix: [ipnet::IpNet; 1] = ["10.0.0.0/8".parse().unwrap()];
    let hop = NextHop::new([10, 0, 0, 1].into());
    super::announce(
        &set.attributes,
        &hop,
        Family::Ipv4Unicast,
        &prefix,
        super::EncodeContext::default(),
        &mut wire,
    )
    .unwrap();
    let has = |bytes: &[u8]| wire.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(communities) && has(large), "{wire:02x?}");
}

#[test]
fn two_octet_sessions_merge_and_four_octet_ones_ignore() {
    let path: &[u8] = &[0x40, 2, 6, 2, 2, 0, 100, 0x5b, 0xa0];
    let as4: &[u8] = &[0xc0, 17, 6, 2, 1, 0, 1, 0x11, 0x70];
    let old = UpdateContext { four_octet_as: false, ..context() };
    let merged = |attributes: &[&[u8]]| {
        let (verdict, set, _) = judged(&body(&[], attributes, &[8, 10]), &old);
        assert_eq!(verdict, Ok(Verdict::Accept));
        (
            set.attributes.as_path.to_string(),
            set.attributes.aggregator.map(|found| found.asn),
            set.faults.len(),
        )
    };
    assert_eq!(merged(&[ORIGIN, path, NEXT_HOP, as4]), ("100 70000".to_owned(), None, 0));
    let trans: &[u8] = &[0xc0, 7, 6, 0x5b, 0xa0, 10, 0, 0, 1];
    let other: &[u8] = &[0xc0, 7, 6, 0, 100, 10, 0, 0, 1];
    let wide: &[u8] = &[0xc0, 18, 8, 0, 1, 0x11, 0x70, 10, 0, 0, 1];
    assert_eq!(merged(&[ORIGIN, path, NEXT_HOP, trans, as4, wide]).1, Some(70_000));
    // An aggregator of another AS: both AS4 attributes are ignored.
    assert_eq!(merged(&[ORIGIN, path, NEXT_HOP, other, as4, wide]), ("100 23456".to_owned(), Some(100), 0));
    // Malformed ones are discarded and the routes stay (RFC 6793 section 6).
    for bad in [
        &[0xc0u8, 17, 5, 2, 1, 0, 1, 0x11][..],
        &[0xc0, 17, 0],
        &[0xc0, 17, 6, 2, 1, 0, 0, 0, 0],
        &[0x40, 17, 0],
        &[0xc0, 18, 6, 0, 1, 0, 0, 0, 1],
    ] {
        assert_eq!(merged(&[ORIGIN, path, NEXT_HOP, bad]), ("100 23456".to_owned(), None, 1), "{bad:?}");
    }
    let (verdict, set, _) = judged(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, as4, wide], &[8, 10]), &context());
    assert_eq!(
        (verdict, set.faults.len(), set.attributes.as_path.to_string()),
        (Ok(Verdict::Accept), 2, "65002".into())
    );
}

#[test]
fn as_zero_is_malformed() {
    // RFC 7607 section 2.
    let path: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0, 0];
    assert_eq!(
        judged(&body(&[], &[ORIGIN, path, NEXT_HOP], &[8, 10]), &context()).0,
        Ok(Verdict::TreatAsWithdraw)
    );
    let aggregator: &[u8] = &[0xc0, 7, 8, 0, 0, 0, 0, 10, 0, 0, 1];
    let (verdict, set, _) =
        judged(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, aggregator], &[8, 10]), &context());
    assert_eq!((verdict, set.attributes.aggregator, set.faults.len()), (Ok(Verdict::Accept), None, 1));
}

#[test]
fn ipv6_communities_are_checked_and_go_on_as_they_came() {
    let with = |flags: u8, len: u8| {
        let mut attribute = vec![flags, 25, len];
        attribute.extend(vec![1; usize::from(len)]);
        judged(&body(&[], &[ORIGIN, AS_PATH, NEXT_HOP, &attribute], &[8, 10]), &context())
    };
    for (flags, passed_on) in [(0xc0, 0xc0), (0xe0, 0xe0)] {
        let (verdict, set, _) = with(flags, 40);
        assert_eq!((verdict, set.attributes.unknown[0].flags), (Ok(Verdict::Accept), passed_on));
    }
    assert_eq!(with(0xc0, 21).0, Ok(Verdict::TreatAsWithdraw));
    assert_eq!(with(0xc0, 0).0, Ok(Verdict::TreatAsWithdraw));
}
