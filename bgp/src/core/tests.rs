//! Two cores talk to each other over in-memory connections: everything but sockets is real.

use std::net::{IpAddr, Ipv4Addr};

use bytes::BytesMut;

use super::*;
use crate::config::AllowedPrefix;
use crate::event::RouteView;
use crate::fsm::State;

/// Two speakers and the wire between them.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) cores: [Core; 2],
    /// Ends of open connections: (side 0's id, side 1's id).
    wires: Vec<(ConnectionId, ConnectionId)>,
    cut: bool,
}

pub(super) fn address(side: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(side).unwrap() + 1))
}

pub(super) fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(super) fn peer_config(side: usize) -> PeerConfig {
    let mut config = PeerConfig::new("other", address(1 - side), 0);
    config.families = Family::ALL.to_vec();
    config.next_hop_ipv6 = Some(format!("2001:db8::{}", side + 1).parse().unwrap());
    config.graceful_restart.enabled = true;
    config.import = vec![
        AllowedPrefix::or_longer(prefix("10.0.0.0/8")),
        AllowedPrefix::or_longer(prefix("2001:db8::/32")),
    ];
    config
}

pub(super) fn speaker(side: usize, restarting: bool) -> SpeakerConfig {
    let asn = 65001 + u32::try_from(side).unwrap();
    let mut config = SpeakerConfig::new(asn, Ipv4Addr::new(1, 1, 1, u8::try_from(side).unwrap() + 1));
    config.restarting = restarting;
    config.jitter_seed = asn.into();
    config
}

impl Pair {
    pub(super) fn new() -> Self {
        let cores = [0, 1].map(|side| Core::new(&speaker(side, false)));
        let mut pair = Self { now: Instant::now(), cores, wires: Vec::new(), cut: false };
        for side in [0, 1] {
            pair.cores[side].add_peer(pair.now, peer_config(side)).unwrap();
        }
        pair
    }

    fn other_end(&self, side: usize, id: ConnectionId) -> Option<ConnectionId> {
        self.wires.iter().find_map(|(a, b)| match side {
            0 => (*a == id).then_some(*b),
            _ => (*b == id).then_some(*a),
        })
    }

    pub(super) fn run(&mut self) {
        loop {
            let mut quiet = true;
            for side in [0, 1] {
                while let Some(output) = self.cores[side].next_output() {
                    quiet = false;
                    self.carry_out(side, output);
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn carry_out(&mut self, side: usize, output: Output) {
        let (now, far) = (self.now, 1 - side);
        match output {
            Output::Connect { peer, attempt, .. } if self.cut => {
                self.cores[side].connect_failed(now, peer, attempt, "unreachable");
            }
            Output::Connect { peer, attempt, .. } => {
                let port = 40000 + u16::try_from(self.wires.len()).unwrap();
                let end = |side, port| SocketAddr::new(address(side), port);
                let incoming =
                    Incoming { remote: address(side), local: end(far, 179), interface: None, ttl: Some(255) };
                let Some((there, options)) = self.cores[far].accepted(now, &incoming) else {
                    return self.cores[side].connect_failed(now, peer, attempt, "refused");
                };
                assert_eq!(options.ttl, Some(1));
                match self.cores[side].connected(now, peer, attempt, end(side, port)) {
                    Some(here) if side == 0 => self.wires.push((here, there)),
                    Some(here) => self.wires.push((there, here)),
                    None => self.cores[far].lost(now, there, "closed"),
                }
            }
            Output::Abandon { .. } => {}
            Output::Send { connection, bytes } => {
                if let Some(there) = self.other_end(side, connection) {
                    let mut buffer = BytesMut::from(&bytes[..]);
                    let max = self.cores[far].message_max(there);
                    let next = || Frame::next_within(&mut buffer, max).unwrap();
                    let frames: Vec<Frame> = std::iter::from_fn(next).collect();
                    assert!(buffer.is_empty());
                    self.cores[far].frames(now, there, &frames);
                }
                self.cores[side].drained(now, connection, bytes.len());
            }
            Output::Close { connection } => {
                if let Some(there) = self.other_end(side, connection) {
                    self.wires.retain(|(a, b)| *if side == 0 { a } else { b } != connection);
                    self.cores[far].lost(now, there, "closed by the peer");
                }
            }
        }
    }

    pub(super) fn wait(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        self.run();
        loop {
            let next = self.cores.iter().filter_map(Core::next_deadline).min().filter(|at| *at <= end);
            let Some(at) = next else { break };
            self.now = self.now.max(at);
            for side in [0, 1] {
                self.cores[side].tick(self.now);
            }
            self.run();
        }
        self.now = end;
    }

    /// Breaks every connection without a word, as a dying process does, and keeps the network cut.
    fn sever(&mut self) {
        self.cut = true;
        for (a, b) in std::mem::take(&mut self.wires) {
            self.cores[0].lost(self.now, a, "reset");
            self.cores[1].lost(self.now, b, "reset");
        }
        self.run();
    }

    fn restart(&mut self, side: usize) {
        self.sever();
        self.cores[side] = Core::new(&speaker(side, true));
        self.cores[side].add_peer(self.now, peer_config(side)).unwrap();
        self.cut = false;
    }

    fn received(&self, side: usize) -> Vec<String> {
        self.cores[side]
            .routes(RouteView::Best)
            .iter()
            .map(|row| {
                format!("{} via {}{}", row.prefix, row.next_hop, if row.stale { " stale" } else { "" })
            })
            .collect()
    }

    fn announce(&mut self, side: usize, text: &str) {
        self.cores[side].announce(Scope::All, prefix(text), Announcement::default()).unwrap();
        self.run();
    }

    fn events(&mut self, side: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.cores[side].next_event()).collect()
    }
}

fn up() -> Pair {
    let mut pair = Pair::new();
    pair.wait(10);
    for side in [0, 1] {
        assert_eq!(pair.cores[side].peers(pair.now)[0].state, State::Established);
    }
    pair
}

#[test]
fn both_families_go_both_ways_and_are_withdrawn() {
    let mut pair = up();
    pair.announce(0, "10.1.0.0/16");
    pair.announce(0, "2001:db8:1::/48");
    pair.announce(1, "10.2.0.0/16");
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1", "2001:db8:1::/48 via 2001:db8::1"]);
    assert_eq!(pair.received(0), ["10.2.0.0/16 via 10.0.0.2"]);
    pair.cores[0].withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    pair.run();
    assert_eq!(pair.received(1), ["2001:db8:1::/48 via 2001:db8::1"]);
    let routes: Vec<(String, usize)> = pair
        .events(1)
        .into_iter()
        .filter_map(|event| match event {
            Event::Route { prefix, paths } => Some((prefix.to_string(), paths.len())),
            _ => None,
        })
        .collect();
    assert_eq!(routes, [("2001:db8:1::/48".to_owned(), 1)], "the slow reader sees the newest state only");
}

#[test]
fn imports_are_denied_by_default_and_shown_with_the_reason() {
    let mut pair = up();
    pair.announce(0, "192.0.2.0/24");
    assert_eq!(pair.received(1).len(), 0);
    let rows = pair.cores[1].routes(RouteView::Received);
    assert_eq!(rows[0].refused, Some(crate::rib::Refusal::Policy));
    let mut config = peer_config(1);
    config.import.push(AllowedPrefix::exact(prefix("192.0.2.0/24")));
    pair.cores[1].update_peer(pair.now, config).unwrap();
    assert_eq!(pair.received(1), ["192.0.2.0/24 via 10.0.0.1"]);
    let state = &pair.cores[1].peers(pair.now)[0];
    assert_eq!((state.state, state.counters.sessions), (State::Established, 1), "no reset was needed");
}

#[test]
fn a_restart_takes_nothing_away() {
    let mut pair = up();
    pair.announce(0, "10.1.0.0/16");
    pair.announce(0, "10.9.0.0/16");
    pair.cores[0].export_complete();
    pair.run();
    pair.events(1);
    pair.restart(0);
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1 stale", "10.9.0.0/16 via 10.0.0.1 stale"]);
    pair.wait(20);
    assert_eq!(pair.cores[1].peers(pair.now)[0].state, State::Established);
    pair.announce(0, "10.1.0.0/16");
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1", "10.9.0.0/16 via 10.0.0.1 stale"]);
    pair.cores[0].export_complete();
    pair.run();
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1"], "End-of-RIB sweeps what did not come back");
    let lost: Vec<Event> = pair
        .events(1)
        .into_iter()
        .filter(|event| {
            matches!(event, Event::Route { prefix: p, paths } if *p == prefix("10.1.0.0/16") && paths.is_empty())
        })
        .collect();
    assert_eq!(lost, []);
}

#[test]
fn the_restart_time_bounds_the_wait() {
    let mut pair = up();
    pair.announce(0, "10.1.0.0/16");
    pair.sever();
    pair.wait(110);
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1 stale"]);
    pair.wait(15);
    assert_eq!(pair.received(1).len(), 0);
}

#[test]
fn shutdown_withdraws_first_and_keeps_nothing() {
    let mut pair = up();
    pair.announce(0, "10.1.0.0/16");
    pair.cores[0].withdraw_all();
    pair.run();
    assert!(pair.cores[0].is_flushed());
    assert_eq!(pair.received(1).len(), 0);
    let now = pair.now;
    pair.cores[0].stop_all(now, "node drains");
    pair.run();
    let error = pair.cores[1].peers(now)[0].last_error.clone().unwrap();
    assert!(error.contains("administrative shutdown") && error.contains("node drains"), "{error}");
}

#[test]
fn route_refresh_sends_everything_again() {
    let mut pair = up();
    pair.announce(0, "10.1.0.0/16");
    let before = pair.cores[1].peers(pair.now)[0].counters.updates_received;
    assert!(pair.cores[1].refresh("other").unwrap());
    pair.run();
    assert_eq!(pair.cores[1].peers(pair.now)[0].counters.updates_received, before + 1);
    pair.cores[0].withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    pair.run();
    assert_eq!(pair.received(1).len(), 0);
}

#[test]
fn too_many_prefixes_end_the_session() {
    let mut pair = up();
    let mut config = peer_config(1);
    config.max_prefixes = 10;
    pair.cores[1].update_peer(pair.now, config).unwrap();
    for index in 0..11 {
        pair.announce(0, &format!("10.1.{index}.0/24"));
    }
    let error = pair.cores[0].peers(pair.now)[0].last_error.clone().unwrap();
    assert!(error.contains("maximum number of prefixes"), "{error}");
    assert_eq!(pair.received(1).len(), 0);
}

#[test]
fn a_big_table_is_packed_and_flows_in_batches() {
    let mut pair = up();
    for index in 0u32..20_000 {
        let net = IpNet::new(Ipv4Addr::from(0x0a00_0000 + (index << 8)).into(), 24).unwrap();
        pair.cores[0].rib.announce(Scope::All, net, Announcement::default());
    }
    pair.cores[0].propagate();
    pair.run();
    assert_eq!(pair.received(1).len(), 20_000);
    let state = &pair.cores[1].peers(pair.now)[0];
    assert!(state.counters.updates_received < 40, "{}", state.counters.updates_received);
}

#[test]
fn messages_over_4096_bytes_are_sent_only_where_both_offer_them() {
    let communities = (0..1500).map(crate::wire::Community).collect();
    let long = Announcement { communities, ..Default::default() };
    for (offers, arrive) in [([true, true], 1), ([true, false], 0), ([false, true], 0), ([false, false], 0)] {
        let mut pair = Pair::new();
        for side in [0, 1] {
            let config = PeerConfig { extended_messages: offers[side], ..peer_config(side) };
            pair.cores[side].update_peer(pair.now, config).unwrap();
        }
        pair.wait(30);
        pair.cores[0].announce(Scope::All, prefix("10.8.0.0/16"), long.clone()).unwrap();
        pair.run();
        assert_eq!(pair.received(1).len(), arrive, "{offers:?}");
        assert_eq!(pair.cores[1].peers(pair.now)[0].state, crate::fsm::State::Established);
    }
}

#[test]
fn peer_scope_wins_and_own_prefixes_are_not_imported() {
    let mut pair = up();
    pair.announce(1, "10.7.0.0/16");
    let community = Announcement { communities: vec!["65001:7".parse().unwrap()], ..Default::default() };
    pair.announce(0, "10.7.0.0/16");
    pair.cores[0].announce(Scope::Peer("other".into()), prefix("10.7.0.0/16"), community).unwrap();
    pair.run();
    let rows = pair.cores[1].routes(RouteView::Received);
    assert_eq!(rows[0].attributes.communities.len(), 1);
    assert_eq!(pair.cores[0].paths(&prefix("10.7.0.0/16")), []);
    let wrong = Announcement { next_hop: Some(address(0)), ..Default::default() };
    assert!(pair.cores[0].announce(Scope::All, prefix("2001:db8::/48"), wrong).is_err());
}

#[test]
fn removed_peers_leave_nothing() {
    let mut pair = up();
    pair.announce(0, "10.1.0.0/16");
    pair.events(1);
    pair.cores[1].remove_peer(pair.now, "other").unwrap();
    pair.run();
    assert_eq!(pair.received(1).len(), 0);
    assert!(pair.events(1).contains(&Event::Route { prefix: prefix("10.1.0.0/16"), paths: vec![] }));
    assert!(pair.cores[1].remove_peer(pair.now, "other").is_err());
}

fn bfd_status(state: &str, ups: u64, remote_state: &str) -> crate::bfd::SessionStatus {
    serde_json::from_value(serde_json::json!({
        "peer": address(1), "multihop": false, "state": state, "diagnostic": 1, "reason": "",
        "remote_state": remote_state, "remote_diagnostic": 0, "discriminator": 1, "remote_discriminator": 2,
        "remote_control_plane_independent": false, "tx_interval_us": 0, "detection_time_us": 0, "changed_ms": 0,
        "ups": ups, "downs": 0, "received": 0, "sent": 0, "unauthenticated": 0,
    }))
    .unwrap()
}

#[test]
fn a_failed_bfd_session_ends_the_bgp_session_and_intent_does_not() {
    let mut pair = up();
    let mut config = peer_config(0);
    config.bfd = Some(crate::bfd::BfdSettings { multihop: Some(false), ..Default::default() });
    pair.cores[0].update_peer(pair.now, config).unwrap();
    pair.run();
    let established = |pair: &Pair| pair.cores[0].peers(pair.now)[0].state == State::Established;
    // Never up; up; up and then down by the neighbour's intent: RFC 5882 sections 3.2 and 4.1.
    for (state, ups, remote) in [
        ("down", 0, "down"),
        ("up", 1, "up"),
        ("down", 1, "admin_down"),
        ("up", 2, "up"),
        ("admin_down", 2, "up"),
        ("up", 3, "up"),
    ] {
        pair.cores[0].bfd_heard(pair.now, bfd_status(state, ups, remote));
        pair.run();
        assert!(established(&pair), "{state} {remote}");
    }
    pair.cores[0].bfd_heard(pair.now, bfd_status("down", 3, "down"));
    pair.run();
    assert!(!established(&pair));
    let told = pair.cores[1].peers(pair.now)[0].last_error.clone().unwrap();
    assert!(told.contains("BFD down (6/10)"), "RFC 9384: {told}");
}
