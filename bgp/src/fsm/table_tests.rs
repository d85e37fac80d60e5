//! Every state with every event (RFC 4271 section 8.2.2): what the machine does and where it goes.

use std::time::Duration;

use super::tests::{Bench, LOCAL, config, local, remote_open, words};
use super::*;
use crate::wire::{self, cease, code};

/// How a machine gets into a state, with connection 1 in it from OpenSent on.
#[derive(Clone, Copy, Debug)]
enum Place {
    Idle,
    /// Resting after an error.
    Resting,
    Connect,
    /// Connected, but OPEN is delayed.
    ConnectDelayed,
    Active,
    ActiveDelayed,
    OpenSent,
    OpenConfirm,
    Established,
}

fn place(place: Place) -> Bench {
    let delayed = matches!(place, Place::ConnectDelayed | Place::ActiveDelayed);
    let change = |config: &mut PeerConfig| {
        config.passive = matches!(place, Place::ActiveDelayed);
        config.delay_open = delayed.then(|| Duration::from_secs(3));
    };
    if matches!(place, Place::Idle) {
        let fsm = Fsm::new(Arc::new(config(change)), LOCAL, false, Jitter::new(1));
        return Bench { fsm, now: Instant::now() };
    }
    let mut bench = Bench::new(change);
    let open = remote_open([10, 0, 0, 2], |_| {});
    let steps = match place {
        Place::Idle | Place::Connect => 0,
        Place::Active => {
            bench.fsm.connect_failed(bench.now, 1, "refused");
            0
        }
        Place::ActiveDelayed => {
            assert!(bench.fsm.accepted(bench.now, 1, local()));
            0
        }
        Place::ConnectDelayed | Place::OpenSent => 1,
        Place::OpenConfirm => 2,
        Place::Established => 3,
        Place::Resting => 4,
    };
    words(&mut bench.fsm);
    if steps > 0 {
        bench.connect(1);
    }
    match steps {
        2 | 3 => drop(bench.hear(1, &open)),
        4 => drop(bench.hear(1, &wire::keepalive())),
        _ => {}
    }
    if steps == 3 {
        bench.hear(1, &wire::keepalive());
    }
    bench
}

/// Lets a timer expire by the time it would; true if it was running.
fn expire(bench: &mut Bench, timer: impl Fn(&Fsm) -> Option<Instant>) -> bool {
    let Some(at) = timer(&bench.fsm) else { return false };
    bench.now = at;
    bench.fsm.timers(at);
    true
}

fn on_connection(bench: &mut Bench, timer: impl Fn(&Connection) -> Option<Instant>) -> bool {
    expire(bench, |fsm| fsm.connections.first().and_then(&timer))
}

/// Gives an event to the machine; what it did, or "-" where the event cannot come.
fn give(bench: &mut Bench, event: FsmEvent) -> String {
    let (now, attempt) = (bench.now, bench.fsm.attempt);
    let bad_as = remote_open([10, 0, 0, 2], |open| {
        open.capabilities = vec![wire::Capability::FourOctetAs(65009)];
    });
    let mut bad_update = Vec::new();
    wire::end_of_rib(crate::Family::Ipv4Unicast, &mut bad_update);
    let update = bad_update.clone();
    // The length of the withdrawn routes points beyond the message.
    bad_update[19] = 9;
    let message = |bench: &mut Bench, bytes: &[u8]| {
        let frame = wire::Frame::next(&mut bytes::BytesMut::from(bytes)).unwrap().unwrap();
        bench.fsm.frame(now, 1, &frame);
        !bench.fsm.connections.is_empty() || !bench.fsm.actions.is_empty()
    };
    let cease = Notification::cease(cease::ADMIN_SHUTDOWN, "");
    let came = match event {
        FsmEvent::ManualStart => {
            bench.fsm.start(now);
            true
        }
        FsmEvent::ManualStop => {
            bench.fsm.stop(&cease);
            true
        }
        FsmEvent::AutomaticStop => {
            bench.fsm.fail_session(now, &Notification::new(code::CEASE, cease::MAX_PREFIXES));
            true
        }
        FsmEvent::ConnectRetryTimerExpires => expire(bench, |fsm| fsm.retry_at),
        FsmEvent::HoldTimerExpires => on_connection(bench, |connection| connection.hold_at),
        FsmEvent::KeepaliveTimerExpires => on_connection(bench, |connection| connection.keepalive_at),
        FsmEvent::DelayOpenTimerExpires => on_connection(bench, |connection| connection.delay_at),
        FsmEvent::IdleHoldTimerExpires => expire(bench, |fsm| fsm.blocked_until),
        FsmEvent::TcpCrAcked => bench.fsm.connected(now, attempt, 2, local()),
        FsmEvent::TcpConnectionConfirmed => bench.fsm.accepted(now, 3, local()),
        FsmEvent::TcpConnectionFails if bench.fsm.connections.is_empty() => {
            bench.fsm.connect_failed(now, attempt, "refused");
            true
        }
        FsmEvent::TcpConnectionFails => {
            bench.fsm.lost(now, 1, "reset");
            true
        }
        FsmEvent::BgpOpen => message(bench, &remote_open([10, 0, 0, 2], |_| {})),
        FsmEvent::BgpHeaderErr => {
            let any = !bench.fsm.connections.is_empty();
            bench.fsm.unframed(now, 1, Notification::new(code::HEADER, 1));
            any
        }
        FsmEvent::BgpOpenMsgErr => message(bench, &bad_as),
        FsmEvent::NotifMsgVerErr => message(bench, &wire::notification(&Notification::new(code::OPEN, 1))),
        FsmEvent::NotifMsg => message(bench, &wire::notification(&cease)),
        FsmEvent::KeepAliveMsg => message(bench, &wire::keepalive()),
        FsmEvent::UpdateMsg => message(bench, &update),
        FsmEvent::UpdateMsgErr => message(bench, &bad_update),
        other => panic!("{other:?} has no input of its own"),
    };
    let told = words(&mut bench.fsm).join(", ");
    if came { format!("{told} -> {:?}", bench.fsm.state()) } else { "-".to_owned() }
}

/// Rows: event, then what follows in Idle, Resting, Connect, ConnectDelayed, Active, ActiveDelayed, OpenSent, OpenConfirm, Established.
const TABLE: &[(FsmEvent, [&str; 9])] = &[
    (
        FsmEvent::ManualStart,
        [
            "connect -> Connect",
            "-> Idle",
            "-> Connect",
            "-> Connect",
            "-> Active",
            "-> Active",
            "-> OpenSent",
            "-> OpenConfirm",
            "-> Established",
        ],
    ),
    (
        FsmEvent::ManualStop,
        [
            "-> Idle",
            "-> Idle",
            "abandon -> Idle",
            "1:notify 6/2, 1:close -> Idle",
            "-> Idle",
            "1:notify 6/2, 1:close -> Idle",
            "1:notify 6/2, 1:close -> Idle",
            "1:notify 6/2, 1:close -> Idle",
            "1:notify 6/9, 1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::AutomaticStop,
        [
            "-> Idle",
            "-> Idle",
            "-> Connect",
            "-> Connect",
            "-> Active",
            "-> Active",
            "-> OpenSent",
            "-> OpenConfirm",
            "1:notify 6/9, 1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::ConnectRetryTimerExpires,
        ["-", "-", "abandon, connect -> Connect", "-", "connect -> Connect", "-", "-", "-", "-"],
    ),
    (
        FsmEvent::HoldTimerExpires,
        [
            "-",
            "-",
            "-",
            "-",
            "-",
            "-",
            "1:notify 4/0, 1:close -> Idle",
            "1:notify 4/0, 1:close -> Idle",
            "1:notify 4/0, 1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::KeepaliveTimerExpires,
        ["-", "-", "-", "-", "-", "-", "-", "1:Keepalive -> OpenConfirm", "1:Keepalive -> Established"],
    ),
    (
        FsmEvent::DelayOpenTimerExpires,
        ["-", "-", "-", "1:Open -> OpenSent", "-", "1:Open -> OpenSent", "-", "-", "-"],
    ),
    (FsmEvent::IdleHoldTimerExpires, ["-", "connect -> Connect", "-", "-", "-", "-", "-", "-", "-"]),
    (FsmEvent::TcpCrAcked, ["-", "-", "2:Open -> OpenSent", "-", "-", "-", "-", "-", "-"]),
    (
        FsmEvent::TcpConnectionConfirmed,
        [
            "-",
            "-",
            "3:Open -> OpenSent",
            "-> Connect",
            "3:Open -> OpenSent",
            "1:close -> Active",
            "3:Open -> OpenSent",
            "3:Open -> OpenConfirm",
            "3:Open -> Established",
        ],
    ),
    (
        FsmEvent::TcpConnectionFails,
        [
            "-> Idle",
            "-> Idle",
            "-> Active",
            "-> Active",
            "-> Active",
            "-> Active",
            "-> Active",
            "-> Idle",
            "down keeps=true -> Active",
        ],
    ),
    (
        FsmEvent::BgpOpen,
        [
            "-",
            "-",
            "-",
            "1:Open, 1:Keepalive -> OpenConfirm",
            "-",
            "1:Open, 1:Keepalive -> OpenConfirm",
            "1:Keepalive -> OpenConfirm",
            "1:notify 5/2, 1:close -> Idle",
            "1:notify 5/3, 1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::BgpHeaderErr,
        [
            "-",
            "-",
            "-",
            "1:notify 1/1, 1:close -> Idle",
            "-",
            "1:notify 1/1, 1:close -> Idle",
            "1:notify 1/1, 1:close -> Idle",
            "1:notify 1/1, 1:close -> Idle",
            "1:notify 1/1, 1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::BgpOpenMsgErr,
        [
            "-",
            "-",
            "-",
            "1:Open, 1:notify 2/2, 1:close -> Idle",
            "-",
            "1:Open, 1:notify 2/2, 1:close -> Idle",
            "1:notify 2/2, 1:close -> Idle",
            "1:notify 5/2, 1:close -> Idle",
            "1:notify 5/3, 1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::NotifMsgVerErr,
        [
            "-",
            "-",
            "-",
            "1:close -> Idle",
            "-",
            "1:close -> Idle",
            "1:close -> Idle",
            "1:close -> Idle",
            "1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::NotifMsg,
        [
            "-",
            "-",
            "-",
            "1:close -> Idle",
            "-",
            "1:close -> Idle",
            "1:close -> Idle",
            "1:close -> Idle",
            "1:close, down keeps=false -> Idle",
        ],
    ),
    (
        FsmEvent::KeepAliveMsg,
        [
            "-",
            "-",
            "-",
            "1:close -> Idle",
            "-",
            "1:close -> Idle",
            "1:notify 5/1, 1:close -> Idle",
            "1:up -> Established",
            "-> Established",
        ],
    ),
    (
        FsmEvent::UpdateMsg,
        [
            "-",
            "-",
            "-",
            "1:close -> Idle",
            "-",
            "1:close -> Idle",
            "1:notify 5/1, 1:close -> Idle",
            "1:notify 5/2, 1:close -> Idle",
            "update -> Established",
        ],
    ),
    (
        FsmEvent::UpdateMsgErr,
        [
            "-",
            "-",
            "-",
            "1:close -> Idle",
            "-",
            "1:close -> Idle",
            "1:notify 5/1, 1:close -> Idle",
            "1:notify 5/2, 1:close -> Idle",
            "1:notify 3/1, 1:close, down keeps=false -> Idle",
        ],
    ),
];

const PLACES: [Place; 9] = [
    Place::Idle,
    Place::Resting,
    Place::Connect,
    Place::ConnectDelayed,
    Place::Active,
    Place::ActiveDelayed,
    Place::OpenSent,
    Place::OpenConfirm,
    Place::Established,
];

#[test]
fn every_event_in_every_state_does_what_the_rfc_says() {
    for (event, expected) in TABLE {
        for (place_, expected) in PLACES.into_iter().zip(expected) {
            let mut bench = place(place_);
            let seen = give(&mut bench, *event);
            assert_eq!(seen.trim(), *expected, "event {} {event:?} in {place_:?}", event.number());
        }
    }
}

/// Events 1, 3 to 7 are starts: what a machine that was stopped does, by its settings. 14 and 15 are the driver's and the core's: a
/// connection from an address that is nobody's never gets here.
#[test]
fn starts_are_told_apart_by_their_settings() {
    let last = |fsm: &Fsm| fsm.transitions().last().map(|last| (last.event, last.to));
    for (passive, manual, automatic, damped, to) in [
        (
            false,
            FsmEvent::ManualStart,
            FsmEvent::AutomaticStart,
            FsmEvent::AutomaticStartDamp,
            State::Connect,
        ),
        (
            true,
            FsmEvent::ManualStartPassive,
            FsmEvent::AutomaticStartPassive,
            FsmEvent::AutomaticStartDampPassive,
            State::Active,
        ),
    ] {
        let mut bench = Bench::new(|config| config.passive = passive);
        assert_eq!(last(&bench.fsm), Some((manual, to)));
        bench.fsm.reset(bench.now, &Notification::new(code::CEASE, cease::CONFIG_CHANGE));
        assert_eq!(last(&bench.fsm), Some((automatic, to)));
        for expected in [automatic, damped] {
            assert!(bench.fsm.accepted(bench.now, 1, local()));
            bench.hear(1, &wire::keepalive());
            assert_eq!(bench.fsm.state(), State::Idle);
            assert!(expire(&mut bench, |fsm| fsm.blocked_until));
            assert_eq!(last(&bench.fsm), Some((expected, to)));
            bench.fsm.connect_failed(bench.now, bench.fsm.attempt, "refused");
        }
    }
}

/// RFC 4271 section 8.1.1: a NOTIFICATION about the version does not count against the peer.
#[test]
fn a_version_error_is_not_damped() {
    let rest = |notification: Notification| {
        let mut bench = place(Place::OpenSent);
        bench.hear(1, &wire::notification(&notification));
        bench.fsm.errors
    };
    assert_eq!((rest(Notification::new(code::OPEN, 1)), rest(Notification::new(code::OPEN, 2))), (0, 1));
}
