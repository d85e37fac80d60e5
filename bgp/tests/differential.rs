//! Two codecs, one message: ours and rustbgpd-wire must agree on what it says and on what RFC 7606 does about it.
//!
//! Where they differ and we hold to our reading, `excused` says why. `TOMBOLO_BGP_DIFFERENCES` says how many messages (default 200,000).

#![cfg(test)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use rustbgpd_wire::{
    Afi, AsPathSegment, ErrorDisposition, PathAttribute, Prefix, Safi, UpdateMessage,
    validate::validate_update_attributes,
};
use support::corpus;
use tombolo_bgp::Family;
use tombolo_bgp::wire::{Attributes, Frame, Origin, SegmentKind, UpdateContext, UpdateView, Verdict};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % u64::try_from(bound.max(1)).unwrap()).try_into().unwrap()
    }
}

/// What a codec made of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Reset,
    Withdraw,
    Routes(Box<Content>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    withdrawn: Vec<(String, u32)>,
    announced: Vec<(String, u32)>,
    origin: Option<u8>,
    path: Vec<(bool, Vec<u32>)>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: BTreeSet<u32>,
    large: BTreeSet<[u32; 3]>,
    next_hops: BTreeSet<IpAddr>,
}

fn context(ebgp: bool, add_path: bool) -> UpdateContext {
    UpdateContext {
        four_octet_as: true,
        ebgp,
        families: Family::ALL.to_vec(),
        add_path: if add_path { Family::ALL.to_vec() } else { vec![] },
        extended_next_hop: vec![Family::Ipv4Unicast],
        ..UpdateContext::default()
    }
}

fn ours(body: &[u8], context: &UpdateContext) -> Said {
    let Ok(view) = UpdateView::parse(body, context) else { return Said::Reset };
    let set = view.attributes(context);
    match view.judge(&set, &mut Vec::new()) {
        Err(_) => return Said::Reset,
        Ok(Verdict::TreatAsWithdraw) => return Said::Withdraw,
        Ok(Verdict::Accept) => {}
    }
    let mut content = Content::default();
    let named = |route: tombolo_bgp::wire::Route| (route.prefix.to_string(), route.path_id);
    content.withdrawn = view.withdrawn_routes().map(named).collect();
    for run in view.announced(&set) {
        content.announced.extend(run.nlri.routes().map(named));
        content.next_hops.extend(run.next_hop.map(|hop| hop.address));
    }
    if !content.announced.is_empty() {
        fill(&mut content, &set.attributes);
    }
    Said::Routes(Box::new(content))
}

fn fill(content: &mut Content, attributes: &Attributes) {
    content.origin = Some(match attributes.origin {
        Origin::Igp => 0,
        Origin::Egp => 1,
        Origin::Incomplete => 2,
    });
    let sequence = |kind| kind == SegmentKind::Sequence;
    content.path = attributes.as_path.segments.iter().map(|s| (sequence(s.kind), s.asns.to_vec())).collect();
    content.med = attributes.med;
    content.local_pref = attributes.local_pref;
    content.communities = attributes.communities.iter().map(|community| community.0).collect();
    content.large =
        attributes.large_communities.iter().map(|large| [large.global, large.local1, large.local2]).collect();
}

fn theirs(body: &[u8], context: &UpdateContext) -> Said {
    let mut bytes = Bytes::copy_from_slice(body);
    let Ok(message) = UpdateMessage::decode(&mut bytes, body.len()) else { return Said::Reset };
    let add_path = !context.add_path.is_empty();
    let families: &[(Afi, Safi)] =
        if add_path { &[(Afi::Ipv4, Safi::Unicast), (Afi::Ipv6, Safi::Unicast)] } else { &[] };
    let Ok(parsed) = message.parse_revised(true, !context.ebgp, add_path, families) else {
        return Said::Reset;
    };
    let worst = parsed.malformed.iter().map(|fault| fault.disposition).max();
    let update = parsed.update;
    let mut content = Content::default();
    let v4 = |entry: &rustbgpd_wire::Ipv4NlriEntry| (entry.prefix.to_string(), entry.path_id);
    let any = |entry: &rustbgpd_wire::NlriEntry| {
        let text = match entry.prefix {
            Prefix::V4(prefix) => prefix.to_string(),
            Prefix::V6(prefix) => prefix.to_string(),
        };
        (text, entry.path_id)
    };
    content.withdrawn = update.withdrawn.iter().map(v4).collect();
    content.announced = update.announced.iter().map(v4).collect();
    let body_routes = !update.announced.is_empty();
    let mut reach = false;
    for attribute in &update.attributes {
        match attribute {
            PathAttribute::MpReachNlri(mp) => {
                reach |= !mp.announced.is_empty();
                content.announced.extend(mp.announced.iter().map(any));
                content.next_hops.insert(mp.next_hop);
            }
            PathAttribute::MpUnreachNlri(mp) => content.withdrawn.extend(mp.withdrawn.iter().map(any)),
            PathAttribute::NextHop(hop) if body_routes => {
                content.next_hops.insert((*hop).into());
            }
            _ => {}
        }
    }
    let valid =
        validate_update_attributes(&update.attributes, body_routes || reach, body_routes, context.ebgp);
    match worst {
        Some(ErrorDisposition::SessionReset) => return Said::Reset,
        Some(ErrorDisposition::TreatAsWithdraw) => return Said::Withdraw,
        _ if valid.is_err() => return Said::Withdraw,
        _ => {}
    }
    if !content.announced.is_empty() {
        collect(&mut content, &update.attributes, context.ebgp);
    } else {
        content.next_hops.clear();
    }
    Said::Routes(Box::new(content))
}

fn collect(content: &mut Content, attributes: &[PathAttribute], ebgp: bool) {
    for attribute in attributes {
        match attribute {
            PathAttribute::Origin(origin) => {
                content.origin = [0u8, 1, 2]
                    .into_iter()
                    .find(|code| rustbgpd_wire::Origin::from_u8(*code).as_ref() == Some(origin));
            }
            PathAttribute::AsPath(path) => {
                let segment = |segment: &AsPathSegment| match segment {
                    AsPathSegment::AsSet(asns) => (false, asns.clone()),
                    AsPathSegment::AsSequence(asns) => (true, asns.clone()),
                };
                content.path = path.segments.iter().map(segment).collect();
            }
            PathAttribute::Med(med) => content.med = Some(*med),
            PathAttribute::LocalPref(preference) if !ebgp => content.local_pref = Some(*preference),
            PathAttribute::Communities(list) | PathAttribute::CommunitiesPartial(list) => {
                content.communities = list.iter().copied().collect();
            }
            PathAttribute::LargeCommunities(list) | PathAttribute::LargeCommunitiesPartial(list) => {
                content.large = list
                    .iter()
                    .map(|large| [large.global_admin, large.local_data1, large.local_data2])
                    .collect();
            }
            _ => {}
        }
    }
}

/// Flags, type and value of each attribute that can be read.
fn attributes(body: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let word =
        |at: usize| body.get(at..at + 2).map_or(0, |two| usize::from(u16::from_be_bytes([two[0], two[1]])));
    let at = 2 + word(0);
    let mut rest = body.get(at + 2..at + 2 + word(at)).unwrap_or_default();
    let mut found = Vec::new();
    while let [flags, code, tail @ ..] = rest {
        let (len, head) = match (flags & 0x10, tail) {
            (0, [len, ..]) => (usize::from(*len), 1),
            (_, [high, low, ..]) => (usize::from(u16::from_be_bytes([*high, *low])), 2),
            _ => break,
        };
        let Some(value) = tail.get(head..head + len) else { break };
        found.push((*flags, *code, value.to_vec()));
        rest = &tail[head + len..];
    }
    found
}

/// A difference we stand by, with the reason.
fn excused(body: &[u8], context: &UpdateContext, own: &Said, other: &Said) -> Option<&'static str> {
    const KNOWN: [u8; 17] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 25, 32];
    let attributes = attributes(body);
    let any = |test: &dyn Fn(u8, u8, &[u8]) -> bool| {
        attributes.iter().any(|(flags, code, value)| test(*flags, *code, value))
    };
    let Ok(view) = UpdateView::parse(body, context) else {
        let unknown = any(&|flags, code, _| flags & 0x80 == 0 && !KNOWN.contains(&code));
        return unknown.then_some("an unknown well-known attribute resets the session: RFC 4271 section 6.3");
    };
    let ignored = view.faults().iter().any(|fault| fault.what.contains("negotiated"));
    let dropped = view
        .withdrawn()
        .chain(view.announced(&view.attributes(context)).map(|run| run.nlri))
        .any(|run| run.dropped() > 0);
    let wrong_mp = any(&|flags, code, _| matches!(code, 14 | 15) && flags & 0xc0 != 0x80);
    let partial_mp = any(&|flags, code, _| matches!(code, 14 | 15) && flags & 0x20 != 0);
    let odd_half = any(&|_, code, value| {
        code == 14
            && value.get(3) == Some(&32)
            && value.get(20..22).is_some_and(|half| half[0] != 0xfe || half[1] & 0xc0 != 0x80)
    });
    let two_octet_only = any(&|_, code, _| matches!(code, 17 | 18));
    let sets = any(&|_, code, value| code == 2 && value.contains(&1));
    let foreign_code = any(&|_, code, _| !KNOWN.contains(&code));
    let no_next_hop = !any(&|_, code, _| code == 3);
    Some(match (own, other) {
        (_, Said::Reset) if ignored => "a family that was not agreed on is ignored: RFC 4760 section 8",
        (Said::Reset, _) => "an error where nothing is announced resets the session: RFC 7606 section 5.2",
        (Said::Withdraw, Said::Reset) if wrong_mp => {
            "wrong flags of MP attributes withdraw: RFC 7606 section 3 (c)"
        }
        (_, Said::Reset) if partial_mp => {
            "the partial bit is none of the flags that are judged: RFC 7606 section 3 (c)"
        }
        (Said::Routes(_), Said::Routes(_)) if dropped => {
            "multicast and link-local prefixes are no routes: RFC 4271 section 6.3"
        }
        (Said::Routes(_), Said::Withdraw) if odd_half => {
            "a second next hop that is not link-local is passed over"
        }
        (Said::Routes(_), _) if two_octet_only => "AS4 attributes cost themselves only: RFC 6793 section 6",
        (Said::Routes(_), Said::Withdraw) if sets => {
            "AS_SET is a matter of policy, not of the codec: RFC 9774 section 3"
        }
        (Said::Routes(_), Said::Withdraw) if foreign_code => "an attribute that is opaque to us is passed on",
        (Said::Withdraw, Said::Routes(_)) if no_next_hop => "NEXT_HOP is mandatory: RFC 4271 section 5",
        _ => return None,
    })
}

#[test]
fn both_codecs_agree() {
    let kept: Vec<Vec<u8>> = corpus()
        .into_iter()
        .filter(|(name, _)| {
            let unicast =
                name.starts_with("update-v") || name.starts_with("withdraw-v") || name.starts_with("end-of");
            unicast && !name.contains("vpn") && !name.contains("confederation") && !name.contains("two-octet")
        })
        .map(|(_, wire)| wire)
        .collect();
    assert!(kept.len() > 9, "{}", kept.len());
    let rounds: u64 = std::env::var("TOMBOLO_BGP_DIFFERENCES").map_or(200_000, |text| text.parse().unwrap());
    let mut random = Random(0x0ddb_a115_eed5);
    let (mut agreed, mut excuses, mut differ) = (0u64, BTreeMap::new(), BTreeMap::new());
    for round in 0..rounds {
        let mut wire = kept[random.below(kept.len())].clone();
        for _ in 0..random.below(4) {
            let at = 19 + random.below(wire.len() - 19);
            wire[at] = match random.below(4) {
                0 => [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                1 => wire[at].wrapping_add(1),
                2 => wire[at].wrapping_sub(1),
                _ => u8::try_from(random.below(256)).unwrap(),
            };
        }
        let Ok(Some(frame)) = Frame::next(&mut BytesMut::from(&wire[..])) else { continue };
        let context = context(round % 2 == 0, round % 5 == 0);
        let (own, other) = (ours(&frame.body, &context), theirs(&frame.body, &context));
        if own == other {
            agreed += 1;
        } else if let Some(why) = excused(&frame.body, &context, &own, &other) {
            *excuses.entry(why).or_insert(0u64) += 1;
        } else {
            let word = |said: &Said| match said {
                Said::Reset => "reset",
                Said::Withdraw => "withdraw",
                Said::Routes(_) => "routes",
            };
            let entry = differ.entry((word(&own), word(&other))).or_insert((0u64, vec![]));
            entry.0 += 1;
            if entry.1.len() < 12 {
                entry.1.push((frame.body.clone(), context.ebgp, own, other));
            }
        }
    }
    println!("{agreed} agreed, excused: {excuses:#?}");
    for ((own, other), (count, examples)) in &differ {
        println!("ours {own}, theirs {other}: {count}");
        for (body, ebgp, own, other) in examples {
            let body: Vec<String> = body.iter().take(140).map(|byte| format!("{byte:02x}")).collect();
            println!("  ebgp {ebgp} {}\n    {own:?}\n    {other:?}", body.join(""));
        }
    }
    assert!(differ.is_empty(), "a difference without an excuse");
    assert!(agreed > rounds / 2, "{agreed} of {rounds}");
}
