//! Two cores talk to each other over in-memory connections: everything but sockets is real.

mod exports;
mod net;
mod paths;
mod refresh;
mod restart;
mod routing;

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
    /// The speakers have IPv6 addresses.
    v6: bool,
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
        let mut pair = Self { now: Instant::now(), cores, wires: Vec::new(), cut: false, v6: false };
        for side in [0, 1] {
            pair.cores[side].add_peer(pair.now, peer_config(side)).unwrap();
        }
        pair
    }

    fn address(&self, side: usize) -> IpAddr {
        if self.v6 { format!("fd00::{}", side + 1).parse().unwrap() } else { address(side) }
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
                let addresses = [0, 1].map(|side| self.address(side));
                let end = |side: usize, port| SocketAddr::new(addresses[side], port);
                let incoming = Incoming {
                    remote: addresses[side],
                    local: end(far, 179),
                    interface: None,
                    ttl: Some(255),
                };
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
    pub(super) fn sever(&mut self) {
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
    pair.cores.iter_mut().for_each(Core::export_complete);
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

fn incoming(remote: &str, interface: Option<&str>, ttl: u8) -> Incoming {
    let remote: IpAddr = remote.parse().unwrap();
    let any = if remote.is_ipv4() { "10.0.0.1:179" } else { "[fe80::1]:179" };
    let interface = interface.map(str::to_owned);
    Incoming { remote, local: any.parse().unwrap(), interface, ttl: Some(ttl) }
}

fn range_core(change: impl FnOnce(&mut SpeakerConfig)) -> Core {
    let mut config = speaker(0, false);
    change(&mut config);
    let mut core = Core::new(&config);
    let mut range = crate::dynamic::ListenRange::new("rack", prefix("10.1.0.0/16"));
    range.limit = 3;
    core.add_range(range).unwrap();
    core
}

#[test]
fn dynamic_neighbours_come_up_to_the_limit_and_vanish_when_they_go() {
    let (now, mut core) = (Instant::now(), range_core(|_| {}));
    let mut ids = Vec::new();
    for host in 1..=4 {
        let taken = core.accepted(now, &incoming(&format!("10.1.0.{host}"), None, 64));
        assert_eq!(taken.is_some(), host <= 3, "{host}");
        ids.extend(taken.map(|(id, _)| id));
    }
    assert_eq!(core.accepted(now, &incoming("10.2.0.1", None, 64)).map(|taken| taken.0), None);
    let names = |core: &Core| core.peers(now).into_iter().map(|peer| peer.name).collect::<Vec<_>>();
    assert_eq!(names(&core), ["rack-10.1.0.1", "rack-10.1.0.2", "rack-10.1.0.3"]);
    core.lost(now, ids[0], "reset");
    assert_eq!(names(&core), ["rack-10.1.0.2", "rack-10.1.0.3"]);
    assert!(core.accepted(now, &incoming("10.1.0.4", None, 64)).is_some(), "there is room again");
    // Silent ones are let go soon, so that they cannot hold the places.
    let mut at = now;
    while let Some(next) = core.next_deadline().filter(|next| *next <= now + Duration::from_secs(33)) {
        at = at.max(next);
        core.tick(at);
    }
    assert_eq!(core.peers(at).len(), 0);
    core.add_peer(now, PeerConfig::new("tor", "10.1.0.9".parse().unwrap(), 65100)).unwrap();
    core.accepted(now, &incoming("10.1.0.9", None, 64)).unwrap();
    assert_eq!(names(&core), ["tor"], "a configured peer wins over the range");
    core.accepted(now, &incoming("10.1.0.1", None, 64)).unwrap();
    core.remove_range(now, "rack").unwrap();
    assert_eq!(names(&core), ["tor"]);
    assert!(core.accepted(now, &incoming("10.1.0.1", None, 64)).is_none());
    assert!(core.remove_range(now, "rack").is_err());
}

#[test]
fn half_open_dynamic_sessions_are_bounded() {
    let (now, mut core) = (Instant::now(), range_core(|config| config.half_open_max = 2));
    let taken: Vec<bool> = (1..=3)
        .map(|host| core.accepted(now, &incoming(&format!("10.1.0.{host}"), None, 64)).is_some())
        .collect();
    assert_eq!(taken, [true, true, false]);
    core.add_peer(now, PeerConfig::new("tor", "10.1.0.9".parse().unwrap(), 65100)).unwrap();
    assert!(
        core.accepted(now, &incoming("10.1.0.9", None, 64)).is_some(),
        "configured peers are not refused"
    );
}

#[test]
fn dynamic_neighbours_exchange_routes_like_any_other() {
    let mut pair = Pair::new();
    pair.cores[1] = Core::new(&speaker(1, false));
    let mut range = crate::dynamic::ListenRange::new("rack", prefix("10.0.0.0/24"));
    range.template = PeerConfig { name: "any".into(), ..peer_config(1) };
    range.template.peer_asns = vec![crate::dynamic::AsnRange { first: 65001, last: 65001 }];
    pair.cores[1].add_range(range).unwrap();
    pair.wait(30);
    pair.announce(0, "10.1.0.0/16");
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1"]);
    let peer = &pair.cores[1].peers(pair.now)[0];
    assert_eq!((peer.name.as_str(), peer.range.as_deref()), ("rack-10.0.0.1", Some("rack")));
    pair.sever();
    assert_eq!(pair.received(1), ["10.1.0.0/16 via 10.0.0.1 stale"], "it may be restarting");
    pair.wait(200);
    assert_eq!((pair.received(1).len(), pair.cores[1].peers(pair.now).len()), (0, 0));
}

#[test]
fn far_away_speakers_are_refused_where_gtsm_asks() {
    let now = Instant::now();
    let mut core = Core::new(&speaker(0, false));
    let mut config = PeerConfig::new("tor", "10.1.0.9".parse().unwrap(), 65100);
    config.passive = true;
    config.transport.gtsm_hops = Some(2);
    core.add_peer(now, config).unwrap();
    assert!(core.accepted(now, &incoming("10.1.0.9", None, 253)).is_none());
    let (_, options) = core.accepted(now, &incoming("10.1.0.9", None, 254)).unwrap();
    assert_eq!((options.ttl, options.min_ttl), (Some(255), Some(254)));
}

#[test]
fn keys_follow_peers_and_ranges() {
    use crate::transport::{Credential, Secret};
    let (now, mut core) = (Instant::now(), range_core(|_| {}));
    let mut config = PeerConfig::new("tor", "10.1.0.9".parse().unwrap(), 65100);
    config.transport.md5 = Some(Secret::new("one".into()));
    core.add_peer(now, config.clone()).unwrap();
    let key = |key: &str| Some(Credential::Md5(Secret::new(key.into())));
    let keys = core.take_keys().unwrap();
    assert_eq!((keys.len(), keys.get(&prefix("10.1.0.9/32")).cloned()), (1, key("one")));
    assert!(core.take_keys().is_none());
    config.transport.md5 = Some(Secret::new("two".into()));
    core.update_peer(now, config).unwrap();
    assert_eq!(core.take_keys().unwrap().get(&prefix("10.1.0.9/32")).cloned(), key("two"));
    core.remove_peer(now, "tor").unwrap();
    assert!(core.take_keys().unwrap().is_empty());
}

#[test]
fn an_unnumbered_peer_is_whoever_is_heard_on_its_interface() {
    let now = Instant::now();
    let mut core = Core::new(&speaker(0, false));
    core.add_peer(now, PeerConfig::unnumbered("leaf", "eth1", 0)).unwrap();
    core.add_peer(now, PeerConfig::unnumbered("other", "eth2", 0)).unwrap();
    let wanted = core.take_interfaces().unwrap();
    assert_eq!(wanted.into_iter().collect::<Vec<_>>(), ["eth1", "eth2"]);
    assert!(core.next_output().is_none(), "nobody to connect to");
    let error = core.peers(now)[0].last_error.clone().unwrap();
    assert!(error.contains("eth1"), "{error}");
    core.neighbour(now, "eth1", "fe80::9".parse().unwrap());
    let Some(Output::Connect { target, .. }) = core.next_output() else { panic!("no attempt") };
    assert_eq!(target.remote, "[fe80::9]:179".parse().unwrap());
    assert_eq!(target.options.device.as_deref(), Some("eth1"));
    // The same again changes nothing; another router does while there is no session, and new settings keep the address.
    core.neighbour(now, "eth1", "fe80::9".parse().unwrap());
    assert!(core.next_output().is_none());
    core.update_peer(now, PeerConfig { max_prefixes: 5, ..PeerConfig::unnumbered("leaf", "eth1", 0) })
        .unwrap();
    assert_eq!(core.peers(now)[0].address, "fe80::9".parse::<IpAddr>().unwrap());
    // The peer of the other interface connects before it was heard; link-local addresses are told apart by interface.
    assert!(core.accepted(now, &incoming("fe80::9", None, 255)).is_some());
    assert!(core.accepted(now, &incoming("fe80::9", Some("eth3"), 255)).is_none());
    core.accepted(now, &incoming("fe80::9", Some("eth2"), 255)).unwrap();
    assert_eq!(core.peers(now)[1].address, "fe80::9".parse::<IpAddr>().unwrap());
}

/// RFC 8950: IPv4 routes over a session between IPv6 addresses, in both directions, only where both offer it.
#[test]
fn ipv4_routes_go_over_ipv6_next_hops_where_agreed_on() {
    for offers in [[true, true], [true, false]] {
        let mut pair = Pair::new();
        pair.v6 = true;
        for side in [0, 1] {
            pair.cores[side] = Core::new(&speaker(side, false));
            let config = PeerConfig {
                address: pair.address(1 - side),
                extended_next_hop: offers[side],
                next_hop_ipv6: None,
                ..peer_config(side)
            };
            pair.cores[side].add_peer(pair.now, config).unwrap();
        }
        pair.wait(30);
        let state = pair.cores[0].peers(pair.now).remove(0);
        assert_eq!(state.state, State::Established, "{state:?}");
        pair.announce(0, "10.1.0.0/16");
        pair.announce(0, "2001:db8:1::/48");
        pair.announce(1, "10.2.0.0/16");
        let hop = Announcement { next_hop: "2001:db8:ff::9".parse().ok(), ..Announcement::default() };
        pair.cores[0].announce(Scope::All, prefix("10.3.0.0/16"), hop).unwrap();
        pair.run();
        let v6 = "2001:db8:1::/48 via fd00::1";
        if offers[1] {
            let all = ["10.1.0.0/16 via fd00::1", "10.3.0.0/16 via 2001:db8:ff::9", v6];
            assert_eq!(pair.received(1), all);
            assert_eq!(pair.received(0), ["10.2.0.0/16 via fd00::2"]);
        } else {
            assert_eq!((pair.received(1), pair.received(0).len()), (vec![v6.to_owned()], 0));
        }
    }
}
