use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;

use super::connection::offered;
use super::*;
use crate::family::Family;
use crate::wire::{self, Frame, Message, MessageType, Open, UpdateContext, cease};

pub(super) const LOCAL: Identity = Identity { asn: 65001, router_id: Ipv4Addr::new(10, 0, 0, 1) };

pub(super) struct Bench {
    pub(super) fsm: Fsm,
    pub(super) now: Instant,
}

pub(super) fn local() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 40000)
}

pub(super) fn config(change: impl FnOnce(&mut PeerConfig)) -> PeerConfig {
    let mut config = PeerConfig::new("tor", IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 65002);
    config.graceful_restart.enabled = true;
    change(&mut config);
    config
}

pub(super) fn remote_open(router_id: [u8; 4], change: impl FnOnce(&mut Open)) -> Vec<u8> {
    let identity = Identity { asn: 65002, router_id: router_id.into() };
    let mut open = Open {
        asn: identity.asn,
        hold_time_secs: 9,
        router_id: identity.router_id,
        capabilities: offered(&config(|_| {}), identity, false, false),
    };
    change(&mut open);
    wire::open(&open)
}

/// Actions in a form that is easy to compare.
pub(super) fn words(fsm: &mut Fsm) -> Vec<String> {
    std::iter::from_fn(|| fsm.next_action())
        .map(|action| match action {
            Action::Connect { .. } => "connect".to_owned(),
            Action::Abandon => "abandon".to_owned(),
            Action::Send { connection, bytes } => {
                let frame = Frame::next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
                match Message::decode(&frame, &UpdateContext::default()).unwrap() {
                    Message::Notification(n) => format!("{connection}:notify {}/{}", n.code, n.subcode),
                    _ => format!("{connection}:{:?}", frame.kind),
                }
            }
            Action::Close { connection } => format!("{connection}:close"),
            Action::Up { connection, .. } => format!("{connection}:up"),
            Action::Down { cause } => {
                format!("down keeps={}", matches!(cause, DownCause::Lost(_) | DownCause::Replaced))
            }
            Action::Update { .. } => "update".to_owned(),
            Action::Refresh { refresh } => format!("refresh {:?}", refresh.kind),
        })
        .collect()
}

impl Bench {
    pub(super) fn new(change: impl FnOnce(&mut PeerConfig)) -> Self {
        let now = Instant::now();
        let mut fsm = Fsm::new(Arc::new(config(change)), LOCAL, false, Jitter::new(1));
        fsm.start(now);
        Self { fsm, now }
    }

    pub(super) fn wait(&mut self, secs: u64) -> Vec<String> {
        let end = self.now + Duration::from_secs(secs);
        let mut seen = Vec::new();
        while let Some(at) = self.fsm.next_deadline().filter(|at| *at <= end) {
            self.now = at;
            self.fsm.timers(at);
            seen.extend(words(&mut self.fsm));
        }
        self.now = end;
        seen
    }

    pub(super) fn hear(&mut self, id: ConnectionId, bytes: &[u8]) -> Vec<String> {
        let frame = Frame::next(&mut BytesMut::from(bytes)).unwrap().unwrap();
        self.fsm.frame(self.now, id, &frame);
        words(&mut self.fsm)
    }

    pub(super) fn connect(&mut self, id: ConnectionId) -> Vec<String> {
        let attempt = self.fsm.attempt;
        assert!(self.fsm.connected(self.now, attempt, id, local()));
        words(&mut self.fsm)
    }

    pub(super) fn establish(&mut self, id: ConnectionId) {
        words(&mut self.fsm);
        self.connect(id);
        self.hear(id, &remote_open([10, 0, 0, 2], |_| {}));
        assert_eq!(self.hear(id, &wire::keepalive()), [format!("{id}:up")]);
    }
}

#[test]
fn a_session_comes_up_and_is_kept() {
    let mut bench = Bench::new(|_| {});
    assert_eq!(words(&mut bench.fsm), ["connect"]);
    assert_eq!(bench.fsm.state(), State::Connect);
    assert_eq!(bench.connect(1), ["1:Open"]);
    assert_eq!(bench.fsm.state(), State::OpenSent);
    assert_eq!(bench.hear(1, &remote_open([10, 0, 0, 2], |_| {})), ["1:Keepalive"]);
    assert_eq!(bench.fsm.state(), State::OpenConfirm);
    assert_eq!(bench.hear(1, &wire::keepalive()), ["1:up"]);
    assert_eq!(bench.fsm.state(), State::Established);
    // Hold time 9 was negotiated: a KEEPALIVE at least every 3 s, and the session lives while the peer sends them.
    for _ in 0..10 {
        let sent = bench.wait(3);
        assert!((1..=2).contains(&sent.len()), "{sent:?}");
        assert!(sent.iter().all(|word| word == "1:Keepalive"));
        bench.hear(1, &wire::keepalive());
    }
}

#[test]
fn silence_ends_the_session_after_the_hold_time() {
    let mut bench = Bench::new(|_| {});
    bench.establish(1);
    let seen: Vec<String> = bench.wait(10).into_iter().filter(|word| word != "1:Keepalive").collect();
    assert_eq!(seen[..3], ["1:notify 4/0", "1:close", "down keeps=false"]);
    assert!(bench.fsm.last_error().unwrap().contains("hold timer expired"));
}

#[test]
fn hold_time_zero_never_ends() {
    let mut bench = Bench::new(|config| config.timers.hold = Duration::ZERO);
    words(&mut bench.fsm);
    bench.connect(1);
    bench.hear(1, &remote_open([10, 0, 0, 2], |_| {}));
    bench.hear(1, &wire::keepalive());
    assert_eq!(bench.fsm.next_deadline(), None);
}

#[test]
fn attempts_are_repeated_ever_more_slowly() {
    let mut bench = Bench::new(|config| config.timers.connect_retry = Duration::from_secs(8));
    words(&mut bench.fsm);
    let mut gaps = Vec::new();
    for _ in 0..8 {
        let attempt = bench.fsm.attempt;
        bench.fsm.connect_failed(bench.now, attempt, "Connection refused");
        assert_eq!(bench.fsm.state(), State::Active);
        let at = bench.fsm.next_deadline().unwrap();
        gaps.push((at - bench.now).as_secs_f64());
        bench.now = at;
        bench.fsm.timers(at);
        assert_eq!(words(&mut bench.fsm), ["connect"]);
    }
    for (gap, base) in gaps.iter().zip([1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0]) {
        assert!((base * 0.75..=base).contains(gap), "{gaps:?}");
    }
    assert!(bench.fsm.last_error().unwrap().contains("Connection refused"));
}

#[test]
fn a_passive_peer_only_waits() {
    let mut bench = Bench::new(|config| config.passive = true);
    assert_eq!((words(&mut bench.fsm).len(), bench.fsm.next_deadline()), (0, None));
    assert_eq!(bench.fsm.state(), State::Active);
    assert!(bench.fsm.accepted(bench.now, 7, local()));
    assert_eq!(words(&mut bench.fsm), ["7:Open"]);
    bench.fsm.lost(bench.now, 7, "reset");
    assert_eq!((words(&mut bench.fsm).len(), bench.fsm.state()), (0, State::Active));
}

/// RFC 4271 section 6.8: the connection begun by the speaker with the higher identifier stays.
#[test]
fn collisions_keep_one_connection() {
    for (remote, kept, closed) in [([10, 0, 0, 2], 2, 1), ([9, 0, 0, 2], 1, 2)] {
        let mut bench = Bench::new(|_| {});
        words(&mut bench.fsm);
        bench.connect(1);
        assert!(bench.fsm.accepted(bench.now, 2, local()));
        words(&mut bench.fsm);
        assert_eq!(bench.hear(1, &remote_open(remote, |_| {})), ["1:Keepalive"]);
        let mut expected = vec![format!("{closed}:notify 6/7"), format!("{closed}:close")];
        if kept == 2 {
            expected.push("2:Keepalive".to_owned());
        }
        assert_eq!(bench.hear(2, &remote_open(remote, |_| {})), expected);
        assert_eq!(bench.hear(kept, &wire::keepalive()), [format!("{kept}:up")]);
    }
}

#[test]
fn a_second_connection_replaces_a_session_only_after_a_restart() {
    let mut bench = Bench::new(|_| {});
    bench.establish(1);
    assert!(bench.fsm.accepted(bench.now, 2, local()));
    words(&mut bench.fsm);
    let seen = bench.hear(2, &remote_open([10, 0, 0, 2], |_| {}));
    assert_eq!(seen, ["1:close", "down keeps=true", "2:Keepalive"]);

    let mut bench = Bench::new(|_| {});
    words(&mut bench.fsm);
    bench.connect(1);
    let plain =
        |open: &mut Open| open.capabilities.retain(|c| !matches!(c, wire::Capability::GracefulRestart(_)));
    bench.hear(1, &remote_open([10, 0, 0, 2], plain));
    bench.hear(1, &wire::keepalive());
    assert!(bench.fsm.accepted(bench.now, 2, local()));
    words(&mut bench.fsm);
    assert_eq!(bench.hear(2, &remote_open([10, 0, 0, 2], plain)), ["2:notify 6/7", "2:close"]);
    assert_eq!(bench.fsm.state(), State::Established);
}

#[test]
fn wrong_opens_are_answered_with_their_subcode() {
    type Change = fn(&mut Open);
    let cases: [(Change, &str); 3] = [
        (|open| open.capabilities.retain(|c| !matches!(c, wire::Capability::FourOctetAs(_))), "1:Keepalive"),
        (|open| open.capabilities = vec![wire::Capability::FourOctetAs(65009)], "1:notify 2/2"),
        (
            |open| {
                open.capabilities = vec![
                    wire::Capability::FourOctetAs(65002),
                    wire::Capability::Multiprotocol(Family::Ipv6Unicast),
                ]
            },
            "1:notify 2/7",
        ),
    ];
    for (change, expected) in cases {
        let mut bench = Bench::new(|_| {});
        words(&mut bench.fsm);
        bench.connect(1);
        assert_eq!(bench.hear(1, &remote_open([10, 0, 0, 2], change))[0], expected);
    }
}

#[test]
fn messages_out_of_turn_are_errors_of_the_state_machine() {
    let mut bench = Bench::new(|_| {});
    words(&mut bench.fsm);
    bench.connect(1);
    assert_eq!(bench.hear(1, &wire::keepalive())[0], "1:notify 5/1");
    assert_eq!(bench.fsm.state(), State::Idle);
    assert!(!bench.fsm.wants_incoming());
    let seen = bench.wait(2);
    assert_eq!(seen, ["connect"], "after the error hold it starts again");
    let mut bench = Bench::new(|_| {});
    bench.establish(1);
    let again = remote_open([10, 0, 0, 2], |_| {});
    assert_eq!(bench.hear(1, &again)[0], "1:notify 5/3");
}

#[test]
fn errors_in_a_row_wait_longer_and_longer() {
    let mut bench = Bench::new(|_| {});
    words(&mut bench.fsm);
    let mut waits = Vec::new();
    for id in 1..=9 {
        bench.connect(id);
        bench.hear(id, &wire::keepalive());
        let at = bench.fsm.next_deadline().unwrap();
        waits.push((at - bench.now).as_secs());
        bench.now = at;
        bench.fsm.timers(at);
        assert_eq!(words(&mut bench.fsm), ["connect"]);
    }
    assert!(waits.is_sorted() || waits[7..].iter().all(|wait| *wait >= 90), "{waits:?}");
    assert!(waits[8] >= 90 && waits[8] <= 120, "{waits:?}");
}

#[test]
fn a_lost_connection_keeps_routes_and_a_notification_does_not() {
    let mut bench = Bench::new(|_| {});
    bench.establish(1);
    bench.fsm.lost(bench.now, 1, "reset by peer");
    assert_eq!(words(&mut bench.fsm), ["down keeps=true"]);
    assert_eq!(bench.wait(1), ["connect"]);
    bench.establish_again(2);
    let cease = wire::notification(&Notification::cease(cease::ADMIN_SHUTDOWN, "maintenance"));
    assert_eq!(bench.hear(2, &cease), ["2:close", "down keeps=false"]);
    assert!(bench.fsm.last_error().unwrap().contains("maintenance"));
}

impl Bench {
    fn establish_again(&mut self, id: ConnectionId) {
        self.connect(id);
        self.hear(id, &remote_open([10, 0, 0, 2], |_| {}));
        self.hear(id, &wire::keepalive());
        assert_eq!(self.fsm.state(), State::Established);
    }

    fn sent_open(&mut self, id: ConnectionId) -> Open {
        let attempt = self.fsm.attempt;
        assert!(self.fsm.connected(self.now, attempt, id, local()));
        let Some(Action::Send { bytes, .. }) = self.fsm.next_action() else { panic!("no OPEN") };
        let frame = Frame::next(&mut BytesMut::from(&bytes[..])).unwrap().unwrap();
        assert_eq!(frame.kind, MessageType::Open);
        let Message::Open(open) = Message::decode(&frame, &UpdateContext::default()).unwrap() else {
            panic!()
        };
        open
    }
}

/// RFC 4724 section 3: R after a restart of the process, F whenever forwarding outlived the session.
#[test]
fn restart_bits_say_what_happened() {
    let bits = |open: &Open| {
        let restart = open.graceful_restart().unwrap();
        (restart.restarted, restart.families[0].forwarding_preserved)
    };
    let mut bench = Bench::new(|_| {});
    words(&mut bench.fsm);
    assert_eq!(bits(&bench.sent_open(1)), (false, false));
    bench.hear(1, &remote_open([10, 0, 0, 2], |_| {}));
    bench.hear(1, &wire::keepalive());
    bench.fsm.lost(bench.now, 1, "reset");
    words(&mut bench.fsm);
    assert_eq!(bench.wait(1), ["connect"]);
    assert_eq!(bits(&bench.sent_open(2)), (false, true));

    let mut fsm = Fsm::new(Arc::new(config(|_| {})), LOCAL, true, Jitter::new(1));
    let now = Instant::now();
    fsm.start(now);
    words(&mut fsm);
    let mut bench = Bench { fsm, now };
    assert_eq!(bits(&bench.sent_open(1)), (true, true));
}

#[test]
fn stop_says_why_and_ignores_what_comes_later() {
    let mut bench = Bench::new(|_| {});
    bench.establish(1);
    bench.fsm.stop(&Notification::cease(cease::ADMIN_SHUTDOWN, "bye"));
    assert_eq!(words(&mut bench.fsm), ["1:notify 6/9", "1:close", "down keeps=false"]);
    assert_eq!((bench.fsm.state(), bench.fsm.next_deadline()), (State::Idle, None));
    assert!(!bench.fsm.accepted(bench.now, 2, local()));
    assert_eq!(bench.hear(1, &wire::keepalive()).len(), 0);
}

#[test]
fn open_waits_for_the_peers_where_it_is_delayed() {
    let delayed = |config: &mut PeerConfig| config.delay_open = Some(Duration::from_secs(5));
    let mut bench = Bench::new(delayed);
    words(&mut bench.fsm);
    assert_eq!(bench.connect(1).len(), 0);
    assert_eq!(bench.fsm.state(), State::Connect);
    assert_eq!(bench.wait(4).len(), 0);
    assert_eq!((bench.wait(1), bench.fsm.state()), (vec!["1:Open".to_owned()], State::OpenSent));

    let mut bench = Bench::new(|config| {
        delayed(config);
        config.passive = true;
    });
    assert!(bench.fsm.accepted(bench.now, 1, local()));
    assert_eq!(bench.fsm.state(), State::Active);
    assert_eq!(bench.hear(1, &remote_open([10, 0, 0, 2], |_| {})), ["1:Open", "1:Keepalive"]);
    assert_eq!(bench.fsm.state(), State::OpenConfirm);
}

#[test]
fn a_peer_that_comes_and_goes_rests_longer_each_time() {
    let rests = |damping: crate::config::Damping| {
        let mut bench = Bench::new(|config| config.damping = damping);
        let mut rests = Vec::new();
        for id in 1..=8 {
            bench.establish(id);
            bench.fsm.lost(bench.now, id, "reset");
            words(&mut bench.fsm);
            let at = bench.fsm.next_deadline().unwrap();
            rests.push((at - bench.now).as_secs_f64());
            assert_eq!(bench.fsm.wants_incoming(), id == 1, "the first loss may be a restart");
            bench.now = at;
            bench.fsm.timers(at);
        }
        rests
    };
    let damped = rests(crate::config::Damping::default());
    for (rest, base) in damped.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0]) {
        assert!((base * 0.75..=base).contains(rest), "{damped:?}");
    }
    let even = rests(crate::config::Damping { enabled: false, ..Default::default() });
    assert!(even.iter().all(|rest| *rest <= 1.0), "{even:?}");
}

#[test]
fn a_stable_session_clears_what_was_counted() {
    let mut bench = Bench::new(|config| config.timers.hold = Duration::ZERO);
    for id in 1..=3 {
        bench.establish(id);
        bench.fsm.lost(bench.now, id, "reset");
        bench.wait(10);
    }
    bench.establish(4);
    bench.now += Duration::from_secs(61);
    bench.fsm.lost(bench.now, 4, "reset");
    assert!(bench.fsm.wants_incoming());
}

#[test]
fn any_as_of_the_list_is_accepted_and_no_other() {
    let ranges = || vec![crate::dynamic::AsnRange { first: 65002, last: 65010 }];
    for (asn, expected) in [(65002, "1:Keepalive"), (65011, "1:notify 2/2")] {
        let mut bench = Bench::new(|config| {
            config.peer_asn = 0;
            config.peer_asns = ranges();
        });
        words(&mut bench.fsm);
        bench.connect(1);
        let open = remote_open([10, 0, 0, 2], |open| {
            open.asn = asn;
            open.capabilities.retain(|c| !matches!(c, wire::Capability::FourOctetAs(_)));
        });
        assert_eq!(bench.hear(1, &open)[0], expected, "{asn}");
    }
}

/// RFC 8950 section 4: only where both offer it.
#[test]
fn ipv6_next_hops_for_ipv4_are_agreed_on() {
    let entry = wire::ExtendedNextHop { family: crate::Family::Ipv4Unicast, next_hop_afi: 2 };
    for (ours, theirs) in [(true, true), (true, false), (false, true)] {
        let mut bench = Bench::new(|config| config.extended_next_hop = ours);
        words(&mut bench.fsm);
        bench.connect(1);
        let capability = wire::Capability::ExtendedNextHop(vec![entry]);
        let open = remote_open([10, 0, 0, 2], |open| open.capabilities.extend(theirs.then_some(capability)));
        bench.hear(1, &open);
        let frame = Frame::next(&mut BytesMut::from(&wire::keepalive()[..])).unwrap().unwrap();
        bench.fsm.frame(bench.now, 1, &frame);
        let Some(Action::Up { session, .. }) = bench.fsm.next_action() else { panic!("not up") };
        assert_eq!(session.context.extended_next_hop.is_empty(), !(ours && theirs), "{ours} {theirs}");
    }
}
