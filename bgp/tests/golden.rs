//! The bytes of the corpus are what we send, and say what was meant. `TOMBOLO_BLESS=1` writes them anew.

#![cfg(test)]

mod support;

use bytes::BytesMut;
use support::*;
use tombolo_bgp::wire::{
    AsPath, Attributes, EXTENDED_MESSAGE_MAX, Frame, Message, Notification, RefreshKind, Route, RouteRefresh,
    UpdateContext, UpdateView, Verdict,
};
use tombolo_bgp::{Family, NextHop};

fn frame(name: &str) -> Frame {
    let (_, wire) = corpus().into_iter().find(|(found, _)| found == name).unwrap();
    Frame::next_within(&mut BytesMut::from(&wire[..]), EXTENDED_MESSAGE_MAX).unwrap().unwrap()
}

fn message(name: &str) -> Message {
    Message::decode(&frame(name), &context(true, false, false)).unwrap()
}

#[test]
fn what_we_send_is_in_the_corpus() {
    for sample in samples() {
        let path = corpus_folder().join(sample.name).with_extension("hex");
        if std::env::var_os("TOMBOLO_BLESS").is_some() {
            std::fs::write(&path, to_hex(&sample.wire)).unwrap();
        }
        let kept =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(to_hex(&sample.wire), kept, "{}", sample.name);
    }
}

#[test]
fn opens_say_what_was_meant() {
    let Message::Open(read) = message("open-every-capability") else { panic!() };
    assert_eq!(read, open(every_capability()));
    let Message::Open(read) = message("open-extended-parameters") else { panic!() };
    assert_eq!(read.capabilities[..every_capability().len()], every_capability());
    assert_eq!(frame("open-extended-parameters").body[9..11], [255, 255], "RFC 9072");
    let Message::Open(read) = message("open-bare") else { panic!() };
    assert_eq!((read.asn, read.capabilities.len()), (65001, 0));
}

#[test]
fn notifications_and_refreshes_say_what_was_meant() {
    let text = Some("node drains: kernel upgrade");
    for name in ["notification-text", "notification-hard-reset"] {
        let Message::Notification(read) = message(name) else { panic!() };
        assert_eq!((read.shutdown_text(), read.is_hard_reset()), (text, name.ends_with("reset")));
    }
    let data = Notification::with_data(3, 2, &[0x40, 99, 1, 7]);
    assert_eq!(message("notification-data"), Message::Notification(data));
    for (name, kind) in [
        ("refresh-request", RefreshKind::Request),
        ("refresh-begin", RefreshKind::Begin),
        ("refresh-end", RefreshKind::End),
        ("refresh-filters", RefreshKind::Filters(vec![1, 64, 0, 2, 0, 0])),
    ] {
        assert_eq!(message(name), Message::RouteRefresh(RouteRefresh::new(Family::Ipv6Unicast, kind)));
    }
}

struct Read {
    attributes: Attributes,
    next_hops: Vec<Option<NextHop>>,
    routes: Vec<Route>,
    services: Vec<(Vec<u8>, u32)>,
}

fn read(name: &str, context: &UpdateContext) -> Read {
    let frame = frame(name);
    let view = UpdateView::parse(&frame.body, context).unwrap();
    let set = view.attributes(context);
    let mut faults = view.faults().to_vec();
    assert_eq!(view.judge(&set, &mut faults), Ok(Verdict::Accept), "{name}");
    assert_eq!((faults, &set.faults), (vec![], &vec![]), "{name}");
    let runs: Vec<_> = view.announced(&set).collect();
    Read {
        attributes: set.attributes.clone(),
        next_hops: runs.iter().map(|run| run.next_hop).collect(),
        routes: runs.iter().flat_map(|run| run.nlri.routes()).chain(view.withdrawn_routes()).collect(),
        services: runs
            .iter()
            .map(|run| run.nlri)
            .chain(view.withdrawn())
            .flat_map(|nlri| nlri.services())
            .map(|service| (service.bytes().to_vec(), tombolo_bgp::wire::Destination::path_id(&service)))
            .collect(),
    }
}

fn without_ids(routes: Vec<Route>) -> Vec<Route> {
    routes.into_iter().map(|route| Route { path_id: 0, ..route }).collect()
}

#[test]
fn unicast_updates_say_what_was_meant() {
    let own = |four_octet_as, add_path| context(four_octet_as, false, add_path);
    for (name, context) in [("update-v4-rich", own(true, false)), ("update-v4-two-octet", own(false, false))]
    {
        let read = read(name, &context);
        assert_eq!((read.attributes, read.next_hops), (rich_attributes(), vec![Some(hop4())]), "{name}");
        assert_eq!(read.routes, without_ids(v4_routes()), "{name}");
    }
    let paths = read("update-v4-add-path", &own(true, true));
    assert_eq!((paths.routes, paths.attributes), (v4_routes(), rich_attributes()));
    let paths = read("update-v6-add-path", &own(true, true));
    assert_eq!((paths.routes, paths.next_hops), (v6_routes(), vec![Some(hop6())]));
    let over_v6 = read("update-v4-over-v6-next-hop", &own(true, false));
    assert_eq!((over_v6.next_hops, over_v6.routes), (vec![Some(hop6())], without_ids(v4_routes())));
    for four_octet_as in [true, false] {
        let name =
            if four_octet_as { "update-v4-confederation" } else { "update-v4-confederation-two-octet" };
        assert_eq!(read(name, &own(four_octet_as, false)).attributes.as_path, confederation_path());
    }
    let long = read("update-extended-message", &own(true, false));
    assert_eq!((long.attributes.unknown[0].value.len(), long.routes.len()), (5000, 4));
    assert_eq!(read("withdraw-v4-add-path", &own(true, true)).routes, v4_routes());
    assert_eq!(read("withdraw-v6", &own(true, false)).routes, without_ids(v6_routes()));
    assert_eq!(read("update-v4-simple", &own(true, false)).attributes.as_path, AsPath::sequence(&[65001]));
}

#[test]
fn other_families_carry_their_bytes() {
    let plain = context(true, true, false);
    for (name, raw) in [
        ("update-vpnv4", vpn_routes(false)),
        ("update-vpnv6", vpn_routes(true)),
        ("update-evpn", evpn_routes()),
        ("update-flowspec-v4", flows(false)),
        ("update-flowspec-v6", flows(true)),
        ("withdraw-evpn", evpn_routes()),
    ] {
        let expected: Vec<_> = raw.into_iter().map(|raw| (raw.0, 0)).collect();
        assert_eq!(read(name, &plain).services, expected, "{name}");
    }
    assert_eq!(read("update-flowspec-v4", &plain).next_hops, [None]);
    assert_eq!(read("update-vpnv6", &plain).next_hops, [Some(hop6())]);
    let with_paths = read("update-evpn-add-path", &context(true, true, true));
    assert!(with_paths.services.iter().all(|(_, path_id)| *path_id == 9));
}
