//! Damaged OPENs: each is answered with a KEEPALIVE or with the NOTIFICATION it has earned, whatever else is in it.
//!
//! A twentieth of the messages of `damaged.rs`: each needs a connection of its own.

use bytes::BytesMut;
use tombolo_bgp::Family;
use tombolo_bgp::wire::{
    Frame, MESSAGE_MAX, Message, MessageType, Notification, Open, UpdateContext, code, keepalive,
};

use crate::client::{Rig, peer};
use crate::messages::*;
use crate::support::corpus;
use crate::support::damage::{Random, mutate, setting};

/// What RFC 4271 section 6.2 makes of an OPEN that can be read, where any AS is welcome. None: a KEEPALIVE.
fn agree(open: &Open) -> Option<Notification> {
    if open.asn == u32::from(OWN_ASN) && open.router_id.octets() == [10, 0, 0, 1] {
        return Some(Notification::with_data(code::OPEN, 3, &[10, 0, 0, 1]));
    }
    let common = [Family::Ipv4Unicast, Family::Ipv6Unicast];
    if open.families().iter().any(|family| common.contains(family)) {
        return None;
    }
    let supported = [MULTIPROTOCOL_V4, MULTIPROTOCOL_V6].concat();
    Some(Notification::with_data(code::OPEN, 7, &supported))
}

/// What comes back; `Err` if the connection is closed without a word, or if more bytes are waited for.
fn verdict(wire: &[u8]) -> Result<Option<Notification>, ()> {
    let frame = match Frame::next_within(&mut BytesMut::from(wire), MESSAGE_MAX) {
        Err(notification) => return Ok(Some(notification)),
        Ok(None) => return Err(()),
        Ok(Some(frame)) => frame,
    };
    let out_of_turn = || Ok(Some(Notification::new(code::STATE_MACHINE, 1)));
    match (frame.kind, Message::decode(&frame, &UpdateContext::default())) {
        (MessageType::Notification, _) => Err(()),
        (_, Ok(Message::Open(open))) => Ok(agree(&open)),
        (_, Err(notification)) if [code::HEADER, code::OPEN].contains(&notification.code) => {
            Ok(Some(notification))
        }
        _ => out_of_turn(),
    }
}

#[tokio::test]
async fn damaged_opens_get_a_keepalive_or_what_they_have_earned() {
    let total = setting("TOMBOLO_BGP_MUTATIONS", 50_000) / 20;
    let seed = setting("TOMBOLO_SEED", 0x5eed_cafe_f00d_d00d);
    let (rig, from) = (Rig::start().await, "127.0.0.2".parse().unwrap());
    let mut config = peer("client", from);
    config.peer_asn = 0;
    rig.speaker.add_peer(config).await.unwrap();
    let mut opens: Vec<Vec<u8>> = corpus().into_iter().map(|(_, wire)| wire).collect();
    opens.retain(|wire| wire[18] == 1);
    let mut random = Random(seed);
    let (mut welcome, mut told) = (0u64, 0u64);
    for _ in 0..total {
        let mut wire = opens[random.below(opens.len())].clone();
        mutate(&mut wire, &opens[random.below(opens.len())], &mut random);
        let Ok(expected) = verdict(&wire) else { continue };
        let mut client = rig.connect(from).await;
        client.say(&wire).await;
        match expected {
            None => {
                welcome += 1;
                assert_eq!(client.hear().await, Some(keepalive()), "{wire:02x?}");
            }
            Some(Notification { code, subcode, data }) => {
                told += 1;
                assert_eq!(client.last_words().await, Some((code, subcode, data)), "{wire:02x?}");
            }
        }
    }
    println!("{total} OPENs: {welcome} welcome, {told} refused with a NOTIFICATION");
    assert!(welcome > total / 20 && told > total / 5, "{welcome} {told}");
    assert_eq!(rig.state("client").await.counters.sessions, 0, "none of them went on to a session");
}
