//! Damaged messages of the corpus on live sessions: a session ends where the codec says so, with the NOTIFICATION it says, and nowhere else; what
//! is held is what was said; memory does not grow.
//!
//! `TOMBOLO_BGP_MUTATIONS` says how many (default 50,000; `make fuzz-bgp`: 10 million), `TOMBOLO_SEED` from where.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use ipnet::IpNet;
use tombolo_bgp::wire::{
    EXTENDED_MESSAGE_MAX, Frame, MESSAGE_MAX, Message, MessageType, Notification, Treatment, UpdateContext,
    code,
};
use tombolo_bgp::{AddPaths, Family};

use crate::client::{Rig, peer};
use crate::messages::*;
use crate::support::corpus;
use crate::support::damage::{Random, mutate, mutate_attributes, resident_kib, setting};

/// Most that the process may grow after the first tenth, in KiB.
const GROWTH_MAX_KIB: u64 = 8 * 1024;
/// Messages of one session without a fatal one.
const SESSION_MAX: usize = 256;
/// A message type that ends what no damage ended; no mutation is taken for it, for the whole NOTIFICATION is compared.
const LAST: u8 = 0xee;

/// One kind of session, with a peer of its own.
#[derive(Clone)]
struct Kind {
    name: &'static str,
    from: &'static str,
    asn: u16,
    open: Opening,
    context: UpdateContext,
    message_max: usize,
}

fn kinds() -> Vec<Kind> {
    let families = vec![Family::Ipv4Unicast, Family::Ipv6Unicast];
    let context = UpdateContext {
        four_octet_as: true,
        ebgp: true,
        first_asn: Some(PEER_ASN.into()),
        families: families.clone(),
        ..UpdateContext::default()
    };
    let open = Opening::new(PEER_ASN);
    let with = |more: &[u8]| {
        let mut open = open.clone();
        open.capabilities.extend(more);
        open
    };
    // RFC 8950 for IPv4, extended messages, ADD-PATH to send in both families.
    let everything = with(&[5, 6, 0, 1, 0, 1, 0, 2, 6, 0, 69, 8, 0, 1, 1, 2, 0, 2, 1, 2]);
    let mut old = open.clone();
    old.capabilities.truncate(16);
    let plain =
        Kind { name: "plain", from: "127.0.1.1", asn: PEER_ASN, open, context, message_max: MESSAGE_MAX };
    let internal = UpdateContext { ebgp: false, first_asn: None, ..plain.context.clone() };
    let two_octets = UpdateContext { four_octet_as: false, ..plain.context.clone() };
    let rich = UpdateContext {
        add_path: families,
        extended_next_hop: vec![Family::Ipv4Unicast],
        ..plain.context.clone()
    };
    let ipv6 = Kind { name: "ipv6", from: "::1", ..plain.clone() };
    let internal = Kind {
        name: "internal",
        from: "127.0.1.2",
        asn: OWN_ASN,
        open: Opening::new(OWN_ASN),
        context: internal,
        ..plain.clone()
    };
    let old = Kind { name: "two-octet", from: "127.0.1.3", open: old, context: two_octets, ..plain.clone() };
    let rich = Kind {
        name: "rich",
        from: "127.0.1.4",
        open: everything,
        context: rich,
        message_max: EXTENDED_MESSAGE_MAX,
        ..plain.clone()
    };
    vec![plain, ipv6, internal, old, rich]
}

/// What the codec makes of the bytes of a session.
#[derive(Default)]
struct Verdicts {
    stream: BytesMut,
    held: BTreeSet<(IpNet, u32)>,
    refreshes: bool,
    counted: Counted,
}

/// What the speaker must have counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    sessions: u64,
    updates: u64,
    withdrawn: u64,
    discarded: u64,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.updates += other.updates;
        self.withdrawn += other.withdrawn;
        self.discarded += other.discarded;
    }
}

/// How a session ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Told(Notification),
    /// By the peer's own NOTIFICATION, which is not answered.
    Silent,
}

impl Verdicts {
    /// Reads what has been said since; completes a message that is cut off, so that each is judged.
    fn judge(&mut self, kind: &Kind, said: &mut Vec<u8>) -> Option<End> {
        self.stream.extend_from_slice(said);
        loop {
            match Frame::next_within(&mut self.stream, kind.message_max) {
                Err(notification) => return Some(End::Told(notification)),
                Ok(Some(frame)) => {
                    if let Some(end) = self.frame(kind, &frame) {
                        return Some(end);
                    }
                }
                Ok(None) if self.stream.is_empty() => return None,
                Ok(None) => {
                    let missing = match self.stream.get(16..18) {
                        Some(len) if self.stream.len() >= 19 => {
                            usize::from(u16::from_be_bytes([len[0], len[1]])) - self.stream.len()
                        }
                        _ => 19 - self.stream.len(),
                    };
                    let rest = vec![0xff; missing];
                    said.extend(&rest);
                    self.stream.extend(rest);
                }
            }
        }
    }

    fn frame(&mut self, kind: &Kind, frame: &Frame) -> Option<End> {
        // RFC 6608: whatever an OPEN says, in Established it is out of turn.
        if frame.kind == MessageType::Open {
            return Some(End::Told(Notification::new(code::STATE_MACHINE, 3)));
        }
        match Message::decode(frame, &kind.context) {
            Err(notification) => Some(End::Told(notification)),
            Ok(Message::Notification(_)) => Some(End::Silent),
            Ok(Message::Update(update)) => {
                self.counted.updates += 1;
                for fault in &update.faults {
                    match fault.treatment {
                        Treatment::TreatAsWithdraw => self.counted.withdrawn += 1,
                        Treatment::AttributeDiscard => self.counted.discarded += 1,
                        Treatment::Ignored => {}
                    }
                }
                for route in update.withdrawn_routes() {
                    self.held.remove(&(route.prefix, route.path_id));
                }
                let reach = update.reach.iter().flat_map(|reach| reach.routes());
                self.held.extend(reach.map(|route| (route.prefix, route.path_id)));
                None
            }
            Ok(Message::RouteRefresh(_)) => {
                self.refreshes = true;
                None
            }
            Ok(_) => None,
        }
    }
}

/// Sends damaged messages, in as many sessions as they need.
async fn play(rig: Arc<Rig>, kind: Kind, seed: u64, messages: u64) -> Counted {
    let corpus: Vec<Vec<u8>> = corpus().into_iter().map(|(_, wire)| wire).collect();
    // UPDATEs that a session of this kind survives as long as they are whole.
    let survives =
        |wire: &&Vec<u8>| wire[18] == 2 && Verdicts::default().judge(&kind, &mut (*wire).clone()).is_none();
    let updates: Vec<Vec<u8>> = corpus.iter().filter(survives).cloned().collect();
    let mut random = Random(seed | 1);
    let from: IpAddr = kind.from.parse().unwrap();
    let mut counted = Counted::default();
    let mut left = messages;
    while left > 0 {
        let mut client = rig.confirm(from, &kind.open).await;
        client.say(&message(4, &[])).await;
        let (mut verdicts, mut end) = (Verdicts::default(), None);
        let mut all = Vec::new();
        for _ in 0..SESSION_MAX {
            if left == 0 || end.is_some() {
                break;
            }
            // Mostly within the attributes of UPDATEs, which a session survives; else anything anywhere.
            let among = if random.below(16) == 0 { &corpus } else { &updates };
            let mut said = among[random.below(among.len())].clone();
            if random.below(16) == 0 || !mutate_attributes(&mut said, &mut random) {
                mutate(&mut said, &corpus[random.below(corpus.len())], &mut random);
            }
            end = verdicts.judge(&kind, &mut said);
            all.extend(said);
            left -= 1;
        }
        // Half of the sessions hear all at once, the others in pieces that know nothing of messages.
        let piece = if random.below(2) == 0 { all.len() } else { 1 + random.below(all.len()) };
        let survives = end.is_none();
        for bytes in all.chunks(piece.max(1)) {
            client.say(bytes).await;
        }
        if survives && !verdicts.refreshes {
            client.fence().await;
            let held: BTreeSet<_> =
                rig.received(kind.name).await.iter().map(|row| (row.prefix, row.path_id)).collect();
            assert_eq!(held, verdicts.held, "seed {seed}, {} left, {all:02x?}", messages - left);
        }
        if survives {
            client.say(&header(18, &[LAST])).await;
        }
        let expected = match end {
            Some(End::Told(notification)) => {
                Some((notification.code, notification.subcode, notification.data))
            }
            Some(End::Silent) => None,
            None => Some((code::HEADER, 3, vec![LAST])),
        };
        assert_eq!(client.last_words().await, expected, "{} seed {seed}: {all:02x?}", kind.name);
        verdicts.counted.sessions = 1;
        counted.add(verdicts.counted);
    }
    counted
}

#[tokio::test]
async fn damage_ends_only_the_sessions_that_the_rfcs_end_and_memory_stays() {
    let total = setting("TOMBOLO_BGP_MUTATIONS", 50_000);
    let seed = setting("TOMBOLO_SEED", 0x5eed_cafe_f00d_d00d);
    let rig = Arc::new(Rig::start().await);
    let kinds = kinds();
    for kind in &kinds {
        let mut config = peer(kind.name, kind.from.parse().unwrap());
        config.peer_asn = kind.asn.into();
        config.extended_messages = kind.message_max == EXTENDED_MESSAGE_MAX;
        config.add_path = AddPaths { receive: !kind.context.add_path.is_empty(), send: None };
        rig.speaker.add_peer(config).await.unwrap();
    }
    println!("seed {seed}, {total} messages on sessions of {} kinds", kinds.len());
    let (start, mut first, mut counts) = (Instant::now(), 0, vec![Counted::default(); kinds.len()]);
    for tenth in 0..10u64 {
        let parts = kinds.iter().enumerate().map(|(number, kind)| {
            let seed = seed.wrapping_add((tenth * 64 + u64::try_from(number).unwrap()) << 32);
            let messages = total / 10 / u64::try_from(kinds.len()).unwrap();
            tokio::spawn(play(Arc::clone(&rig), kind.clone(), seed, messages))
        });
        for (part, counted) in parts.collect::<Vec<_>>().into_iter().zip(&mut counts) {
            counted.add(part.await.unwrap());
        }
        let resident = resident_kib();
        if tenth == 0 {
            first = resident;
        }
        println!("{}0 %: {resident} KiB, {:?}", tenth + 1, start.elapsed());
    }
    for (kind, counted) in kinds.iter().zip(counts) {
        let counters = rig.state(kind.name).await.counters;
        let told = Counted {
            sessions: counters.sessions,
            updates: counters.updates_received,
            withdrawn: counters.treated_as_withdraw,
            discarded: counters.attributes_discarded,
        };
        println!("{}: {counted:?}", kind.name);
        assert_eq!(told, counted, "{}: what the speaker counted", kind.name);
        assert!(counted.updates > 0 && counted.withdrawn > 0 && counted.discarded > 0);
        assert_eq!(rig.received(kind.name).await.len(), 0, "no routes are left without sessions");
    }
    let grown = resident_kib().saturating_sub(first);
    assert!(grown <= GROWTH_MAX_KIB, "grew by {grown} KiB");
}
