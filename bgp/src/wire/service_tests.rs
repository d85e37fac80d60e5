//! VPN, EVPN and FlowSpec: what our walker lets through, and what zettabgp then says about it.

use super::nlri::Nlri;
use super::service::Service;
use crate::family::Family;

const RD: [u8; 8] = [0, 0, 0xfd, 0xe9, 0, 0, 0, 7];
const ESI_AND_TAG: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 100];

fn check(family: Family, bytes: &[u8]) -> Option<(usize, usize)> {
    Nlri::check(family, false, bytes).map(|nlri| (nlri.len(), nlri.dropped()))
}

fn said(family: Family, bytes: &[u8]) -> Option<String> {
    let nlri = Nlri::check(family, false, bytes).unwrap();
    nlri.services().next().unwrap().decode().map(|service| service.to_string())
}

fn vpn(label: [u8; 3], bits: u8, prefix: &[u8]) -> Vec<u8> {
    [&[88 + bits][..], &label, &RD, prefix].concat()
}

fn evpn(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let route = parts.concat();
    [&[kind, u8::try_from(route.len()).unwrap()][..], &route].concat()
}

#[test]
fn vpn_routes_have_one_label_whatever_its_bottom_bit_says() {
    for label in [[0, 1, 1], [0, 1, 0], [0x80, 0, 0], [0, 0, 0]] {
        let wire = vpn(label, 24, &[10, 1, 2]);
        let nlri = Nlri::check(Family::Ipv4Vpn, false, &wire).unwrap();
        let route = nlri.services().next().unwrap();
        let Some(Service::Ipv4Vpn(read)) = route.decode() else { panic!("{label:?}") };
        assert_eq!(
            (read.prefix.rd.to_string(), read.prefix.prefix.to_string()),
            ("65001:7".into(), "10.1.2.0/24".into())
        );
        assert_eq!(
            route.labels().collect::<Vec<_>>(),
            [u32::from_be_bytes([0, label[0], label[1], label[2]])]
        );
    }
    assert_eq!(
        said(Family::Ipv6Vpn, &vpn([0, 1, 1], 32, &[0x20, 1, 0xd, 0xb8])).unwrap(),
        "<l:16> <rd:65001:7> 2001:db8::/32"
    );
}

#[test]
fn the_same_route_with_another_label_has_the_same_key() {
    let (one, two) = (vpn([0, 1, 1], 8, &[10]), vpn([0, 2, 1], 8, &[10]));
    let key = |wire| Nlri::check(Family::Ipv4Vpn, false, wire).unwrap().services().next().unwrap().key();
    assert_eq!(key(&one), key(&two));
    let mac = |label| {
        evpn(2, &[&RD, &ESI_AND_TAG, &[48, 2, 0, 0, 0, 0, 1, 32, 10, 0, 0, 1], &[0, 0, label], &[0, 0, 9]])
    };
    let (one, two) = (mac(1), mac(2));
    let route = |wire| Nlri::check(Family::L2vpnEvpn, false, wire).unwrap().services().next().unwrap();
    assert_eq!(route(&one).key(), route(&two).key());
    assert_eq!(route(&two).labels().collect::<Vec<_>>(), [2, 9]);
}

#[test]
fn impossible_envelopes_are_refused_as_a_whole() {
    for (family, wire) in [
        (Family::Ipv4Vpn, vec![87; 12]),
        (Family::Ipv4Vpn, vpn([0, 1, 1], 33, &[1, 2, 3, 4, 5])),
        (Family::Ipv4Vpn, vpn([0, 1, 1], 24, &[10, 1])),
        (Family::Ipv6Vpn, vpn([0, 1, 1], 129, &[1; 17])),
        (Family::L2vpnEvpn, vec![1]),
        (Family::L2vpnEvpn, vec![3, 200, 1]),
        (Family::Ipv4Flowspec, vec![9, 1]),
        (Family::Ipv4Flowspec, vec![0xf0]),
        (Family::Ipv4Flowspec, vec![0xf0, 9, 3]),
    ] {
        assert_eq!(check(family, &wire), None, "{family} {wire:?}");
    }
}

#[test]
fn contents_that_say_nothing_are_passed_over() {
    let good = evpn(3, &[&RD, &[0, 0, 0, 1, 32, 10, 0, 0, 1]]);
    for bad in [
        evpn(1, &[&RD, &ESI_AND_TAG, &[0, 0]]),
        evpn(2, &[&RD, &ESI_AND_TAG, &[47, 2, 0, 0, 0, 0, 1, 0, 0, 0, 1]]),
        evpn(2, &[&RD, &ESI_AND_TAG, &[48, 2, 0, 0, 0, 0, 1, 33, 1, 2, 3, 4, 5, 0, 0, 1]]),
        evpn(2, &[&RD, &ESI_AND_TAG, &[48, 2, 0, 0, 0, 0, 1, 32, 1, 2, 3, 4, 0, 1]]),
        evpn(3, &[&RD, &[0, 0, 0, 1, 0]]),
        evpn(4, &[&RD, &ESI_AND_TAG[..10], &[32, 10, 0, 0]]),
        evpn(5, &[&RD, &ESI_AND_TAG, &[33, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]]),
        evpn(5, &[&RD, &ESI_AND_TAG, &[24, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]]),
    ] {
        assert_eq!(check(Family::L2vpnEvpn, &[&bad[..], &good].concat()), Some((1, 1)), "{bad:?}");
    }
    for bad in [
        &[0u8][..],
        &[3, 1, 33, 10],
        &[3, 3, 0x01, 6],
        &[2, 14, 0],
        &[6, 5, 0x81, 80, 3, 0x81, 6],
        &[6, 3, 0x81, 6, 3, 0x81, 7],
        &[3, 13, 0x81, 1],
    ] {
        assert_eq!(check(Family::Ipv4Flowspec, bad), Some((0, 1)), "{bad:?}");
    }
    assert_eq!(
        check(Family::Ipv6Flowspec, &[4, 1, 32, 32, 0]),
        Some((0, 1)),
        "an offset as long as the prefix"
    );
}

#[test]
fn what_is_not_understood_is_carried() {
    let unknown = evpn(9, &[&[1, 2, 3]]);
    assert_eq!((check(Family::L2vpnEvpn, &unknown), said(Family::L2vpnEvpn, &unknown)), (Some((1, 0)), None));
    // A value of eight octets, and an offset: zettabgp reads neither.
    let wide = [10, 10, 0xb1, 0, 0, 0, 0, 0, 0, 5, 220];
    assert_eq!((check(Family::Ipv4Flowspec, &wide), said(Family::Ipv4Flowspec, &wide)), (Some((1, 0)), None));
    let offset = [7, 2, 64, 32, 1, 2, 3, 4];
    assert_eq!(
        (check(Family::Ipv6Flowspec, &offset), said(Family::Ipv6Flowspec, &offset)),
        (Some((1, 0)), None)
    );
}

#[test]
fn what_is_understood_has_a_text() {
    let prefix = evpn(5, &[&RD, &ESI_AND_TAG, &[24, 10, 1, 2, 9], &[10, 0, 0, 1], &[0, 0x27, 0x10]]);
    assert_eq!(
        said(Family::L2vpnEvpn, &prefix).unwrap(),
        "5:65001:7:00000064:10.1.2.0/24 via 10.0.0.1 10000"
    );
    let multicast = evpn(3, &[&RD, &[0, 0, 0, 100, 32, 10, 0, 0, 1]]);
    assert_eq!(said(Family::L2vpnEvpn, &multicast).unwrap(), "3:65001:7:00000064:10.0.0.1");
    let flow = [8, 1, 24, 10, 1, 2, 3, 0x81, 6];
    let text = said(Family::Ipv4Flowspec, &flow).unwrap();
    assert!(text.contains("10.1.2.0/24") && text.contains('6'), "{text}");
}
