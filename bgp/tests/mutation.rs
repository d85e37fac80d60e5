//! Damaged messages: no input may panic, hang, cost unbounded time or memory, or make the codec say something that it cannot say again.
//!
//! The kept messages of `tests/corpus` are damaged by a seeded generator. `TOMBOLO_BGP_MUTATIONS` says how often (default 500,000, the
//! twentieth part of the 10 million of `make fuzz-bgp`), `TOMBOLO_SEED` from where. A message that ever broke something is added to the
//! corpus as a file of its own.

#![cfg(test)]

mod support;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use support::damage::{Random, mutate, resident_kib, setting};
use support::{context, corpus};
use tombolo_bgp::wire::{
    self, Destination, EXTENDED_MESSAGE_MAX, EncodeContext, Frame, MESSAGE_MAX, Message, MessageType, Route,
    UpdateContext, UpdateView, Verdict,
};
use tombolo_bgp::{Family, NextHop};

/// Most that the process may grow while all messages are decoded and dropped, in KiB.
const GROWTH_MAX_KIB: u64 = 64 * 1024;

/// Longest that one message may take, with the checks of what was accepted.
const SLOW: Duration = Duration::from_millis(200);

enum Outcome {
    Accepted,
    Refused,
    CutOff,
}

#[test]
fn no_damage_panics_hangs_or_grows() {
    let corpus: Vec<Vec<u8>> = corpus().into_iter().map(|(_, wire)| wire).collect();
    let rounds = setting("TOMBOLO_BGP_MUTATIONS", 500_000);
    let seed = setting("TOMBOLO_SEED", 0x5eed_cafe_f00d_d00d);
    println!("seed {seed}, {rounds} messages from {} kept ones", corpus.len());
    let mut random = Random(seed);
    let (mut accepted, mut refused, mut waiting, mut slowest) = (0u64, 0u64, 0u64, Duration::ZERO);
    let mut before = 0;
    for round in 0..rounds {
        let mut message = corpus[random.below(corpus.len())].clone();
        mutate(&mut message, &corpus[random.below(corpus.len())], &mut random);
        let context = context(round % 2 == 0, round % 3 == 0, round % 5 == 0);
        let max = if round % 7 == 0 { EXTENDED_MESSAGE_MAX } else { MESSAGE_MAX };
        let start = Instant::now();
        let outcome = hear_one(&message, &context, max);
        let mut elapsed = start.elapsed();
        // The machine may have looked elsewhere: what is slow must be slow again.
        for _ in 0..5 {
            if elapsed < SLOW {
                break;
            }
            let start = Instant::now();
            hear_one(&message, &context, max);
            elapsed = elapsed.min(start.elapsed());
        }
        slowest = slowest.max(elapsed);
        match outcome {
            Outcome::Accepted => accepted += 1,
            Outcome::Refused => refused += 1,
            Outcome::CutOff => waiting += 1,
        }
        if round == rounds / 10 {
            before = resident_kib();
        }
    }
    println!("{accepted} accepted, {refused} refused, {waiting} cut off, slowest {slowest:?}");
    assert!(accepted > rounds / 20 && refused > rounds / 20, "{accepted} {refused} {waiting}");
    assert!(slowest < SLOW, "one message took {slowest:?}");
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < GROWTH_MAX_KIB, "grew by {grown} KiB");
}

fn hear_one(message: &[u8], context: &UpdateContext, max: usize) -> Outcome {
    match Frame::next_within(&mut BytesMut::from(message), max) {
        Ok(None) => Outcome::CutOff,
        Err(_) => Outcome::Refused,
        Ok(Some(frame)) => match Message::decode(&frame, context) {
            Ok(decoded) => {
                check(&decoded, &frame, context, message);
                Outcome::Accepted
            }
            Err(notification) => {
                assert!((1..=7).contains(&notification.code), "{notification} for {message:02x?}");
                Outcome::Refused
            }
        },
    }
}

/// What was accepted can be said again, and reads back the same.
fn check(decoded: &Message, frame: &Frame, context: &UpdateContext, message: &[u8]) {
    match decoded {
        Message::Open(open) => {
            // Texts and lists may have been longer than one capability holds; the bytes themselves were not.
            let again = wire::open(open);
            let back = reframe(&again);
            assert_eq!(Message::decode(&back, context).unwrap(), *decoded, "{message:02x?}");
        }
        Message::Notification(notification) => {
            let again = wire::notification(notification);
            assert_eq!(reframe(&again).body.len(), frame.body.len().min(MESSAGE_MAX - wire::HEADER_LEN));
        }
        Message::RouteRefresh(refresh) => {
            let back = reframe(&wire::refresh(refresh));
            assert_eq!(back.kind, MessageType::RouteRefresh);
        }
        Message::Keepalive => {}
        Message::Update(update) => {
            let listed =
                update.withdrawn.len() + update.reach.iter().map(|r| r.prefixes.len()).sum::<usize>();
            assert!(listed <= frame.body.len(), "no more routes than bytes");
            check_view(frame, context, message);
        }
    }
}

fn reframe(wire: &[u8]) -> Frame {
    Frame::next_within(&mut BytesMut::from(wire), EXTENDED_MESSAGE_MAX).unwrap().unwrap()
}

fn check_view(frame: &Frame, context: &UpdateContext, message: &[u8]) {
    let view = UpdateView::parse(&frame.body, context).unwrap();
    let set = view.attributes(context);
    let mut key = Vec::new();
    view.key().append_to(&mut key);
    assert!(view.key().is(&key) && view.key().len() == key.len());
    assert!(!view.key().is(&[&key[..], &[0]].concat()));
    let mut faults = Vec::new();
    let verdict = view.judge(&set, &mut faults).unwrap();
    for run in view.withdrawn().chain(view.announced(&set).map(|run| run.nlri)) {
        let read = run.routes().count() + run.services().count();
        assert_eq!(read, run.len(), "{message:02x?}");
        for service in run.services() {
            // zettabgp's names for it must not panic either.
            let named = service.decode().map(|said| said.to_string());
            assert!(named.is_none_or(|text| text.len() < 64 * 1024));
            let (left, right) = service.key();
            assert!(left.len() + right.len() + 3 * service.labels().count() <= service.bytes().len());
        }
    }
    if verdict == Verdict::TreatAsWithdraw {
        return;
    }
    for run in view.announced(&set) {
        assert!(run.next_hop.is_none_or(|hop| hop.is_usable()), "{message:02x?}");
        let hop = run.next_hop.unwrap_or(NextHop::new([10, 0, 0, 1].into()));
        let family = run.nlri.family();
        if family.is_unicast() {
            let routes: Vec<Route> = run.nlri.routes().collect();
            let said = say(&set.attributes, &hop, family, &routes, context);
            assert_eq!(hear(&said, &set.attributes, context, |nlri| nlri.routes().collect()), routes);
        } else {
            let services: Vec<_> = run.nlri.services().collect();
            let said = say(&set.attributes, &hop, family, &services, context);
            let bytes = |nlri: wire::Nlri<'_>| nlri.services().map(|one| one.bytes().to_vec()).collect();
            let heard: Vec<Vec<u8>> = hear(&said, &set.attributes, context, bytes);
            assert_eq!(heard, services.iter().map(|one| one.bytes()).collect::<Vec<_>>());
        }
    }
}

/// All messages that announce the routes.
fn say<D: Destination>(
    attributes: &wire::Attributes,
    hop: &NextHop,
    family: Family,
    routes: &[D],
    context: &UpdateContext,
) -> Vec<u8> {
    let context = EncodeContext {
        four_octet_as: context.four_octet_as,
        add_path: context.add_path.contains(&family),
        message_max: EXTENDED_MESSAGE_MAX,
    };
    let mut out = Vec::new();
    wire::announce(attributes, hop, family, routes, context, &mut out).unwrap();
    out
}

fn hear<T>(
    said: &[u8],
    attributes: &wire::Attributes,
    context: &UpdateContext,
    read: impl Fn(wire::Nlri<'_>) -> Vec<T>,
) -> Vec<T> {
    let mut buffer = BytesMut::from(said);
    let mut heard = Vec::new();
    while let Some(frame) = Frame::next_within(&mut buffer, EXTENDED_MESSAGE_MAX).unwrap() {
        let view = UpdateView::parse(&frame.body, context).unwrap();
        let set = view.attributes(context);
        assert_eq!(view.judge(&set, &mut Vec::new()), Ok(Verdict::Accept), "{said:02x?} {:?}", set.faults);
        // Without four octets a merged path may come back in other segments; its text is the same.
        if context.four_octet_as {
            assert_eq!(&set.attributes, attributes);
        }
        heard.extend(view.announced(&set).flat_map(|run| read(run.nlri)));
    }
    heard
}
