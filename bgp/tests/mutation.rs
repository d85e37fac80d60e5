//! Damaged messages: no input may panic, hang, or make the codec say something that it cannot say again.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of this file is test code, helpers included"
)]

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tombolo_bgp::wire::{
    self, AsPath, Attributes, Capability, EncodeContext, Frame, GracefulRestartCapability,
    GracefulRestartFamily, Message, Notification, Open, RawAttribute, UpdateContext,
};
use tombolo_bgp::{Family, NextHop};

const MUTATIONS: u32 = 1_000_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % u64::try_from(bound.max(1)).unwrap()).try_into().unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

fn context(four_octet_as: bool, ebgp: bool) -> UpdateContext {
    UpdateContext {
        four_octet_as,
        ebgp,
        first_asn: None,
        families: Family::ALL.to_vec(),
        ..UpdateContext::default()
    }
}

fn rich_attributes() -> Attributes {
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
        unknown: vec![RawAttribute { flags: 0xe0, code: 99, value: vec![1; 300] }],
        ..Attributes::default()
    }
}

fn corpus() -> Vec<Vec<u8>> {
    let restart = GracefulRestartCapability {
        restarted: true,
        notification: true,
        restart_time_secs: 120,
        families: vec![GracefulRestartFamily { family: Family::Ipv4Unicast, forwarding_preserved: true }],
    };
    let mut open = Open {
        asn: 4_200_000_001,
        hold_time_secs: 90,
        router_id: [10, 0, 0, 1].into(),
        capabilities: vec![
            Capability::Multiprotocol(Family::Ipv4Unicast),
            Capability::Multiprotocol(Family::Ipv6Unicast),
            Capability::RouteRefresh,
            Capability::GracefulRestart(restart),
            Capability::FourOctetAs(4_200_000_001),
            Capability::Unknown { code: 73, value: b"\x04host\x00".to_vec() },
        ],
    };
    let mut messages = vec![
        wire::keepalive(),
        wire::route_refresh(Family::Ipv6Unicast),
        wire::notification(&Notification::cease(2, "maintenance")),
        wire::open(&open),
    ];
    open.capabilities.push(Capability::Unknown { code: 200, value: vec![3; 255] });
    messages.push(wire::open(&open));
    let v4: [ipnet::IpNet; 4] =
        ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/25", "198.51.100.7/32"].map(|text| text.parse().unwrap());
    let v6: [ipnet::IpNet; 4] =
        ["::/0", "2001:db8::/32", "2001:db8:1:2::/64", "2001:db8::1/128"].map(|text| text.parse().unwrap());
    let hop4 = NextHop::new("10.0.0.1".parse().unwrap());
    let hop6 =
        NextHop { address: "2001:db8::1".parse().unwrap(), link_local: Some("fe80::1".parse().unwrap()) };
    for attributes in [Attributes::default(), rich_attributes()] {
        for four_octet_as in [true, false] {
            let context = EncodeContext { four_octet_as, ..EncodeContext::default() };
            let mut out = Vec::new();
            wire::announce(&attributes, &hop4, Family::Ipv4Unicast, &v4, context, &mut out).unwrap();
            messages.push(std::mem::take(&mut out));
            wire::announce(&attributes, &hop6, Family::Ipv6Unicast, &v6, context, &mut out).unwrap();
            messages.push(out);
        }
    }
    for (family, prefixes) in [(Family::Ipv4Unicast, &v4), (Family::Ipv6Unicast, &v6)] {
        let mut out = Vec::new();
        wire::withdraw(family, prefixes, &mut out);
        messages.push(std::mem::take(&mut out));
        wire::end_of_rib(family, &mut out);
        messages.push(out);
    }
    messages
}

fn mutate(message: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(message.len());
        match random.below(6) {
            0 | 1 => {
                if let Some(byte) = message.get_mut(at) {
                    *byte = random.byte();
                }
            }
            2 => {
                if let Some(byte) = message.get_mut(at) {
                    *byte = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
                }
            }
            3 => message.insert(at, random.byte()),
            4 if message.len() > 20 => {
                message.remove(at);
            }
            _ => message.truncate(at.max(19)),
        }
    }
    // Half of the time the header is made right again, so that the damage reaches the decoders.
    if random.below(2) == 0 && message.len() >= 19 {
        message[..16].fill(0xff);
        let len = u16::try_from(message.len()).unwrap();
        message[16..18].copy_from_slice(&len.to_be_bytes());
    }
}

#[test]
fn no_damage_panics_or_hangs() {
    let corpus = corpus();
    let mut random = Random(0x5eed_cafe_f00d_d00d);
    let (mut accepted, mut refused, mut waiting) = (0u32, 0u32, 0u32);
    let mut slowest = Duration::ZERO;
    for round in 0..MUTATIONS {
        let mut message = corpus[random.below(corpus.len())].clone();
        mutate(&mut message, &mut random);
        let context = context(round % 2 == 0, round % 3 == 0);
        let start = Instant::now();
        match Frame::next(&mut BytesMut::from(&message[..])) {
            Ok(None) => waiting += 1,
            Err(_) => refused += 1,
            Ok(Some(frame)) => match Message::decode(&frame, &context) {
                Ok(decoded) => {
                    accepted += 1;
                    check(&decoded, &message);
                }
                Err(notification) => {
                    assert!((1..=7).contains(&notification.code), "{notification} for {message:02x?}");
                    refused += 1;
                }
            },
        }
        slowest = slowest.max(start.elapsed());
    }
    assert!(accepted > MUTATIONS / 20 && refused > MUTATIONS / 20, "{accepted} {refused} {waiting}");
    assert!(slowest < Duration::from_secs(1), "one message took {slowest:?}");
}

/// What was accepted is consistent: routes have a usable next hop, and can be said again and read back.
fn check(decoded: &Message, message: &[u8]) {
    let Message::Update(update) = decoded else { return };
    assert!(update.withdrawn.len() + update.reach.iter().map(|r| r.prefixes.len()).sum::<usize>() <= 4096);
    for reach in &update.reach {
        assert!(reach.next_hop.is_usable(), "{message:02x?}");
        assert!(!reach.prefixes.is_empty() && reach.prefixes.iter().all(|p| Family::of(p) == reach.family));
        let mut again = Vec::new();
        let said = wire::announce(
            &update.attributes,
            &reach.next_hop,
            reach.family,
            &reach.prefixes,
            EncodeContext::default(),
            &mut again,
        );
        if said.is_err() {
            continue;
        }
        let mut buffer = BytesMut::from(&again[..]);
        let mut prefixes = Vec::new();
        while let Some(frame) = Frame::next(&mut buffer).unwrap() {
            let Message::Update(back) = Message::decode(&frame, &context(true, false)).unwrap() else {
                panic!()
            };
            assert_eq!(back.attributes, update.attributes, "{message:02x?}");
            assert_eq!((back.reach.len(), &back.faults), (1, &vec![]));
            assert_eq!(back.reach[0].next_hop, reach.next_hop);
            prefixes.extend(back.reach[0].prefixes.clone());
        }
        assert_eq!(prefixes, reach.prefixes);
    }
}
