//! Messages of every kind, built by our encoder: the corpus under `tests/corpus` holds their bytes.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod damage;

use std::path::PathBuf;

use tombolo_bgp::wire::{
    self, AddPath, Announcer, AsPath, Attributes, Capability, Destination, EXTENDED_MESSAGE_MAX,
    EncodeContext, ExtendedNextHop, GracefulRestartCapability, GracefulRestartFamily, LongLivedFamily,
    Notification, Open, RawAttribute, RefreshKind, Route, RouteRefresh, Segment, SegmentKind, UpdateContext,
    cease, code,
};
use tombolo_bgp::{Family, NextHop};

/// A message with a name.
pub struct Sample {
    pub name: &'static str,
    pub wire: Vec<u8>,
}

pub fn corpus_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// The kept messages, by file name.
pub fn corpus() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus_folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "hex"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        (path.file_stem().unwrap().to_string_lossy().into_owned(), from_hex(&text))
    };
    files.iter().map(read).collect()
}

pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

pub fn to_hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(32).map(line).collect()
}

/// A session that has agreed on everything.
pub fn context(four_octet_as: bool, ebgp: bool, add_path: bool) -> UpdateContext {
    UpdateContext {
        four_octet_as,
        ebgp,
        families: Family::KNOWN.to_vec(),
        confederation: !ebgp,
        add_path: if add_path { Family::KNOWN.to_vec() } else { vec![] },
        extended_next_hop: Family::KNOWN.to_vec(),
        ..UpdateContext::default()
    }
}

pub fn rich_attributes() -> Attributes {
    let mut partial = wire::Partial::default();
    partial.insert(8);
    Attributes {
        as_path: AsPath::sequence(&[65001, 4_200_000_000, 65003]),
        med: Some(50),
        local_pref: Some(200),
        atomic_aggregate: true,
        aggregator: Some(wire::Aggregator { asn: 70_000, address: [192, 0, 2, 1].into() }),
        communities: vec!["65001:1".parse().unwrap(), "no-export".parse().unwrap()],
        extended_communities: vec![0x0002_fde9_0000_0064],
        large_communities: vec!["65001:2:3".parse().unwrap()],
        originator_id: Some([10, 0, 0, 9].into()),
        cluster_list: vec![[10, 0, 0, 8].into()],
        partial,
        unknown: vec![
            RawAttribute { flags: 0xc0, code: 25, value: vec![2; 20] },
            RawAttribute { flags: 0xe0, code: 99, value: vec![1; 300] },
        ],
        ..Attributes::default()
    }
}

pub fn confederation_path() -> AsPath {
    let segment = |kind, asns: &[u32]| Segment { kind, asns: asns.into() };
    AsPath {
        segments: vec![
            segment(SegmentKind::ConfedSequence, &[65010, 65011]),
            segment(SegmentKind::ConfedSet, &[65012]),
            segment(SegmentKind::Sequence, &[64500]),
            segment(SegmentKind::Set, &[64501, 64502]),
        ]
        .into(),
    }
}

pub fn every_capability() -> Vec<Capability> {
    let (v4, v6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    let mut list: Vec<Capability> = Family::KNOWN.into_iter().map(Capability::Multiprotocol).collect();
    list.extend([
        Capability::RouteRefresh,
        Capability::ExtendedNextHop(vec![ExtendedNextHop { family: v4, next_hop_afi: 2 }]),
        Capability::ExtendedMessage,
        Capability::Role(4),
        Capability::GracefulRestart(GracefulRestartCapability {
            restarted: true,
            notification: true,
            restart_time_secs: 120,
            families: vec![GracefulRestartFamily { family: v4, forwarding_preserved: true }],
        }),
        Capability::FourOctetAs(4_200_000_001),
        Capability::AddPath(vec![AddPath { family: v6, receive: true, send: true }]),
        Capability::EnhancedRefresh,
        Capability::LongLivedGracefulRestart(vec![LongLivedFamily {
            family: v4,
            forwarding_preserved: false,
            stale_time_secs: 86_400,
        }]),
        Capability::Fqdn { host: "tor1".to_owned(), domain: "dc.example".to_owned() },
        Capability::SoftwareVersion("tombolo/0.1".to_owned()),
        Capability::Unknown { code: 200, value: vec![1, 2, 3] },
    ]);
    list
}

pub fn open(capabilities: Vec<Capability>) -> Open {
    Open { asn: 4_200_000_001, hold_time_secs: 90, router_id: [10, 0, 0, 1].into(), capabilities }
}

pub fn routes(texts: &[(&str, u32)]) -> Vec<Route> {
    let route = |(text, path_id): &(&str, u32)| Route { prefix: text.parse().unwrap(), path_id: *path_id };
    texts.iter().map(route).collect()
}

pub fn v4_routes() -> Vec<Route> {
    routes(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("192.0.2.0/25", 3), ("198.51.100.7/32", u32::MAX)])
}

pub fn v6_routes() -> Vec<Route> {
    routes(&[("::/0", 1), ("2001:db8::/32", 2), ("2001:db8:1:2::/64", 3), ("2001:db8::1/128", u32::MAX)])
}

pub fn hop4() -> NextHop {
    NextHop::new("10.0.0.1".parse().unwrap())
}

pub fn hop6() -> NextHop {
    NextHop { address: "2001:db8::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) }
}

/// NLRI bytes that only carry themselves.
pub struct Raw(pub Vec<u8>);

impl Destination for Raw {
    fn path_id(&self) -> u32 {
        9
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(&self.0);
    }
}

const RD: [u8; 8] = [0, 0, 0xfd, 0xe9, 0, 0, 0, 7];

pub fn vpn_routes(v6: bool) -> Vec<Raw> {
    let head = |bits: u8| [&[88 + bits, 0, 1, 1][..], &RD].concat();
    if v6 {
        vec![Raw([head(32), vec![0x20, 1, 0x0d, 0xb8]].concat()), Raw(head(0))]
    } else {
        vec![Raw([head(24), vec![10, 1, 2]].concat()), Raw([head(32), vec![10, 1, 2, 3]].concat())]
    }
}

pub fn evpn_routes() -> Vec<Raw> {
    let esi = [0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let tag = [0u8, 0, 0, 100];
    let label = [0u8, 0x27, 0x10];
    let mac = [48u8, 2, 0, 0, 0, 0, 1];
    let v6 = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let route = |kind: u8, parts: &[&[u8]]| {
        let body = parts.concat();
        Raw([&[kind, u8::try_from(body.len()).unwrap()][..], &body].concat())
    };
    vec![
        route(1, &[&RD, &esi, &tag, &label]),
        route(2, &[&RD, &esi, &tag, &mac, &[0], &label]),
        route(2, &[&RD, &esi, &tag, &mac, &[32, 10, 0, 0, 1], &label, &label]),
        route(2, &[&RD, &esi, &tag, &mac, &[128], &v6, &label]),
        route(3, &[&RD, &tag, &[32, 10, 0, 0, 1]]),
        route(4, &[&RD, &esi, &[128], &v6]),
        route(5, &[&RD, &esi, &tag, &[24, 10, 1, 2, 0], &[10, 0, 0, 1], &label]),
        route(5, &[&RD, &esi, &tag, &[64], &v6, &v6, &label]),
        route(9, &[&[1, 2, 3]]),
    ]
}

pub fn flows(v6: bool) -> Vec<Raw> {
    let flow = |body: &[u8]| Raw([&[u8::try_from(body.len()).unwrap()][..], body].concat());
    if v6 {
        vec![
            flow(&[1, 32, 0, 0x20, 1, 0x0d, 0xb8, 3, 0x81, 6, 13, 0xa1, 0, 0, 0, 9]),
            flow(&[2, 64, 32, 1, 2, 3, 4]),
        ]
    } else {
        vec![
            flow(&[1, 24, 10, 1, 2, 3, 0x81, 6, 5, 0x03, 80, 0xd5, 0x1f, 0x90, 9, 0x81, 2]),
            flow(&[10, 0xb1, 0, 0, 0, 0, 0, 0, 5, 220]),
        ]
    }
}

fn update<D: Destination>(
    attributes: &Attributes,
    hop: &NextHop,
    family: Family,
    routes: &[D],
    context: EncodeContext,
) -> Vec<u8> {
    let mut out = Vec::new();
    Announcer::new(attributes, hop, family, context).announce(routes, &mut out).unwrap();
    out
}

fn gone<D: Destination>(family: Family, routes: &[D], context: EncodeContext) -> Vec<u8> {
    let mut out = Vec::new();
    wire::withdraw_with(family, routes, context, &mut out);
    out
}

fn updates() -> Vec<Sample> {
    let plain = EncodeContext::default();
    let old = EncodeContext { four_octet_as: false, ..plain };
    let paths = EncodeContext { add_path: true, ..plain };
    let large = EncodeContext { message_max: EXTENDED_MESSAGE_MAX, ..plain };
    let rich = rich_attributes();
    let simple = Attributes { as_path: AsPath::sequence(&[65001]), ..Attributes::default() };
    let confederate =
        Attributes { as_path: confederation_path(), local_pref: Some(100), ..Attributes::default() };
    let huge = Attributes {
        unknown: vec![RawAttribute { flags: 0xe0, code: 200, value: vec![3; 5000] }],
        ..simple.clone()
    };
    let (v4, v6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    let sample = |name, wire| Sample { name, wire };
    let mut eors = Vec::new();
    wire::end_of_rib(v4, &mut eors);
    let mut eor6 = Vec::new();
    wire::end_of_rib(v6, &mut eor6);
    let peers_hop = NextHop::new("10.99.1.2".parse().unwrap());
    vec![
        sample(
            "update-for-peers",
            update(&attributes_for_peers(), &peers_hop, v4, &routes_for_peers(), plain),
        ),
        sample("update-v4-simple", update(&simple, &hop4(), v4, &v4_routes(), plain)),
        sample("update-v4-rich", update(&rich, &hop4(), v4, &v4_routes(), plain)),
        sample("update-v4-two-octet", update(&rich, &hop4(), v4, &v4_routes(), old)),
        sample("update-v4-add-path", update(&rich, &hop4(), v4, &v4_routes(), paths)),
        sample("update-v4-over-v6-next-hop", update(&simple, &hop6(), v4, &v4_routes(), plain)),
        sample("update-v4-confederation", update(&confederate, &hop4(), v4, &v4_routes(), plain)),
        sample("update-v4-confederation-two-octet", update(&confederate, &hop4(), v4, &v4_routes(), old)),
        sample("update-v6-rich", update(&rich, &hop6(), v6, &v6_routes(), plain)),
        sample("update-v6-add-path", update(&simple, &hop6(), v6, &v6_routes(), paths)),
        sample("update-extended-message", update(&huge, &hop4(), v4, &v4_routes(), large)),
        sample("update-vpnv4", update(&simple, &hop4(), Family::Ipv4Vpn, &vpn_routes(false), plain)),
        sample("update-vpnv6", update(&simple, &hop6(), Family::Ipv6Vpn, &vpn_routes(true), plain)),
        sample("update-evpn", update(&simple, &hop4(), Family::L2vpnEvpn, &evpn_routes(), plain)),
        sample("update-evpn-add-path", update(&simple, &hop4(), Family::L2vpnEvpn, &evpn_routes(), paths)),
        sample("update-flowspec-v4", update(&simple, &hop4(), Family::Ipv4Flowspec, &flows(false), plain)),
        sample("update-flowspec-v6", update(&simple, &hop4(), Family::Ipv6Flowspec, &flows(true), plain)),
        sample("withdraw-v4", gone(v4, &v4_routes(), plain)),
        sample("withdraw-v4-add-path", gone(v4, &v4_routes(), paths)),
        sample("withdraw-v6", gone(v6, &v6_routes(), plain)),
        sample("withdraw-evpn", gone(Family::L2vpnEvpn, &evpn_routes(), plain)),
        sample("end-of-rib-v4", eors),
        sample("end-of-rib-v6", eor6),
    ]
}

/// What real speakers were told, to see what they pass on: `peer-*-update.hex` are their words (tests/peers.rs).
pub fn attributes_for_peers() -> Attributes {
    Attributes {
        as_path: AsPath {
            segments: vec![Segment {
                kind: SegmentKind::Sequence,
                asns: vec![65002, 4_200_000_000, 64500].into(),
            }]
            .into(),
        },
        med: Some(50),
        atomic_aggregate: true,
        aggregator: Some(wire::Aggregator { asn: 70_000, address: [192, 0, 2, 1].into() }),
        communities: vec!["65002:1".parse().unwrap(), "65002:2".parse().unwrap()],
        extended_communities: vec![0x0002_fdea_0000_0064],
        large_communities: vec!["65002:2:3".parse().unwrap(), "4200000000:1:1".parse().unwrap()],
        unknown: vec![RawAttribute { flags: 0xe0, code: 99, value: vec![1; 300] }],
        ..Attributes::default()
    }
}

pub fn routes_for_peers() -> Vec<Route> {
    routes(&[("198.51.100.0/25", 0), ("203.0.113.0/24", 0)])
}

/// One of each.
pub fn samples() -> Vec<Sample> {
    let sample = |name, wire| Sample { name, wire };
    let text = Notification::cease(cease::ADMIN_SHUTDOWN, "node drains: kernel upgrade");
    let refresh = |kind| wire::refresh(&RouteRefresh::new(Family::Ipv6Unicast, kind));
    let mut many = every_capability();
    many.push(Capability::Unknown { code: 201, value: vec![3; 255] });
    let mut list = vec![
        sample("keepalive", wire::keepalive()),
        sample("open-bare", wire::open(&Open { asn: 65001, ..open(vec![]) })),
        sample("open-every-capability", wire::open(&open(every_capability()))),
        sample("open-extended-parameters", wire::open(&open(many))),
        sample("notification-bare", wire::notification(&Notification::new(code::HOLD_TIMER, 0))),
        sample("notification-data", wire::notification(&Notification::with_data(3, 2, &[0x40, 99, 1, 7]))),
        sample("notification-text", wire::notification(&text)),
        sample("notification-hard-reset", wire::notification(&text.hard_reset())),
        sample("refresh-request", refresh(RefreshKind::Request)),
        sample("refresh-begin", refresh(RefreshKind::Begin)),
        sample("refresh-end", refresh(RefreshKind::End)),
        sample("refresh-filters", refresh(RefreshKind::Filters(vec![1, 64, 0, 2, 0, 0]))),
    ];
    list.extend(updates());
    list
}
