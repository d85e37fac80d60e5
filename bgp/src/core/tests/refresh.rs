//! Route refresh between two cores, and what a peer may say wrongly about it.

use super::net::Net;
use super::*;
use crate::wire::{self, RefreshKind, RouteRefresh};

const P: &str = "10.1.0.0/16";
const Q: &str = "10.2.0.0/16";

fn two() -> Net {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net.join(1, 2, |_| {});
    net.wait(10);
    [P, Q].into_iter().for_each(|text| net.announce(2, text));
    net
}

/// Speaker 2 says something to 1 that its core did not mean to.
fn says(net: &mut Net, bytes: Vec<u8>) {
    let core = net.core(2);
    let connection = core.peers.values().find_map(|peer| Some(peer.session.as_ref()?.0)).unwrap();
    core.send(connection, bytes.into());
    net.run();
}

fn marked(net: &mut Net, kind: RefreshKind) {
    says(net, wire::refresh(&RouteRefresh::new(Family::Ipv4Unicast, kind)));
}

fn told(net: &Net) -> Vec<&str> {
    net.said(2, 1).into_iter().filter(|word| *word != "keepalive").collect()
}

#[test]
fn a_refresh_is_framed_by_its_beginning_and_end_but_not_within_the_initial_update() {
    let mut net = two();
    net.sent.clear();
    assert!(net.core(1).refresh("n2").unwrap());
    net.run();
    assert_eq!(told(&net), ["update"], "End-of-RIB is still to come");
    net.complete(2);
    net.sent.clear();
    assert!(net.core(1).refresh("n2").unwrap());
    net.run();
    let asked = net.said(1, 2);
    assert_eq!(asked, ["refresh 0", "refresh 0"], "one for each family");
    assert_eq!(told(&net), ["refresh 1", "update", "refresh 2", "refresh 1", "refresh 2"]);
    assert_eq!(net.used(1), [format!("{P} n2"), format!("{Q} n2")]);
}

#[test]
fn what_is_not_sent_again_goes_at_the_end_and_not_before() {
    let mut net = two();
    net.complete(2);
    marked(&mut net, RefreshKind::Begin);
    assert_eq!(net.used(1).len(), 2);
    // Only P again.
    net.core(2).withdraw(&Scope::All, &prefix(P));
    net.run();
    net.announce(2, P);
    marked(&mut net, RefreshKind::End);
    assert_eq!(net.used(1), [format!("{P} n2")]);
}

#[test]
fn a_refresh_that_does_not_end_is_ended() {
    let mut net = two();
    net.complete(2);
    marked(&mut net, RefreshKind::Begin);
    net.wait(590);
    assert_eq!(net.used(1).len(), 2);
    net.wait(20);
    assert!(net.up(1, 2));
    assert_eq!(net.used(1).len(), 0);
}

#[test]
fn beginnings_before_end_of_rib_and_ends_without_beginning_mean_nothing() {
    let mut net = two();
    marked(&mut net, RefreshKind::Begin);
    marked(&mut net, RefreshKind::End);
    assert_eq!(net.used(1).len(), 2, "before End-of-RIB");
    net.complete(2);
    marked(&mut net, RefreshKind::End);
    assert_eq!(net.used(1).len(), 2, "no beginning");
    marked(&mut net, RefreshKind::Unknown(9));
    assert!(net.up(1, 2));
    // A session that ends within a refresh: what was not sent again yet is stale like the rest, not gone.
    marked(&mut net, RefreshKind::Begin);
    net.sever(1, 2);
    assert_eq!(net.used(1).len(), 2);
    net.heal(1, 2);
    net.wait(30);
    assert_eq!(net.used(1), [format!("{P} n2"), format!("{Q} n2")]);
}

#[test]
fn a_request_within_a_refresh_starts_it_again_and_ends_once() {
    let mut net = two();
    net.complete(2);
    net.sent.clear();
    let now = net.now;
    let core = net.core(2);
    let (id, peer) = core.peers.iter().next().unwrap();
    let (id, connection) = (*id, peer.session.as_ref().unwrap().0);
    // The connection takes nothing for now.
    core.send(connection, wire::keepalive().repeat(20_000).into());
    core.say_again(id, Family::Ipv4Unicast);
    core.say_again(id, Family::Ipv4Unicast);
    core.drained(now, connection, 1);
    net.run();
    assert_eq!(told(&net), ["refresh 1", "refresh 1", "update", "refresh 2"]);
    assert_eq!(net.used(1).len(), 2);
}
