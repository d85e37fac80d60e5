//! RFC 4271 sections 6.7 and 6.8 with the subcodes of RFC 4486: why the speaker itself ends a session.

use std::net::IpAddr;

use tombolo_bgp::{LimitAction, PeerAction, PrefixLimit};

use crate::client::{Client, Rig, peer};
use crate::messages::*;

async fn session() -> (Rig, IpAddr, Client) {
    let (rig, from) = Rig::with_peer("127.0.0.2").await;
    let client = rig.establish(from, &Opening::new(PEER_ASN)).await;
    (rig, from, client)
}

fn cease(subcode: u8, data: &[u8]) -> Option<(u8, u8, Vec<u8>)> {
    Some((6, subcode, data.to_vec()))
}

#[tokio::test]
async fn an_operator_shuts_down_and_resets_with_a_text() {
    let (rig, from, client) = session().await;
    rig.speaker.operate("client", PeerAction::Clear { text: "again".to_owned() }).await.unwrap();
    assert_eq!(client.last_words().await, cease(4, b"\x05again"));
    let client = rig.establish(from, &Opening::new(PEER_ASN)).await;
    rig.speaker.operate("client", PeerAction::Shutdown { text: "kernel".to_owned() }).await.unwrap();
    assert_eq!(client.last_words().await, cease(2, b"\x06kernel"));
}

#[tokio::test]
async fn settings_that_change_or_go_are_told() {
    let (rig, from, client) = session().await;
    let mut config = peer("client", from);
    config.extended_messages = true;
    rig.speaker.update_peer(config).await.unwrap();
    assert_eq!(client.last_words().await, cease(6, &[]));
    let client = rig.establish(from, &Opening::new(PEER_ASN)).await;
    rig.speaker.remove_peer("client").await.unwrap();
    assert_eq!(client.last_words().await, cease(3, &[]));
}

#[tokio::test]
async fn too_many_prefixes_are_told_with_family_and_limit() {
    let (rig, from) = (Rig::start().await, "127.0.0.2".parse().unwrap());
    let mut config = peer("client", from);
    let family = tombolo_bgp::Family::Ipv4Unicast;
    config.prefix_limits =
        vec![PrefixLimit { family, max: 2, warning_percent: 75, action: LimitAction::Stop }];
    rig.speaker.add_peer(config).await.unwrap();
    let mut client = rig.establish(from, &Opening::new(PEER_ASN)).await;
    let attributes = [ORIGIN, AS_PATH, NEXT_HOP];
    client.say(&update(&[], &attributes, &[16, 10, 1, 16, 10, 2])).await;
    client.fence().await;
    client.say(&update(&[], &attributes, &[16, 10, 3])).await;
    assert_eq!(client.last_words().await, cease(1, &[0, 1, 1, 0, 0, 0, 2]));
}

#[tokio::test]
async fn a_second_connection_loses_against_a_session() {
    let (rig, from, mut client) = session().await;
    let mut second = rig.connect(from).await;
    second.say(&Opening::new(PEER_ASN).wire()).await;
    assert_eq!(second.last_words().await, cease(7, &[]));
    client.fence().await;
    assert_eq!(rig.state("client").await.counters.sessions, 1);
}
