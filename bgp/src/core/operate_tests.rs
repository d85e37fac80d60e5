//! What an operator does, between two cores; and a session that is logged and played again.

use super::tap::Passed;
use super::tests::*;
use super::*;
use crate::event::RouteView;
use crate::fsm::State;
use crate::mrt::{Record, SessionEntry};
use crate::operate::PeerAction;

fn settled() -> Pair {
    let mut pair = Pair::new();
    pair.cores[1].announce(Scope::All, prefix("10.1.0.0/16"), Announcement::default()).unwrap();
    pair.cores[1].announce(Scope::All, prefix("2001:db8:1::/48"), Announcement::default()).unwrap();
    pair.wait(30);
    assert_eq!(state(&pair, 0).state, State::Established);
    pair
}

fn state(pair: &Pair, side: usize) -> crate::event::PeerState {
    pair.cores[side].peers(pair.now).remove(0)
}

fn act(pair: &mut Pair, action: PeerAction) -> Result<(), Error> {
    let now = pair.now;
    let result = pair.cores[0].operate(now, "other", &action);
    pair.run();
    result
}

#[test]
fn a_shutdown_lasts_until_it_is_taken_back_and_says_why() {
    let mut pair = settled();
    act(&mut pair, PeerAction::Shutdown { text: "new cable".into() }).unwrap();
    assert!(state(&pair, 1).last_error.unwrap().contains("new cable"));
    pair.wait(600);
    assert_eq!(
        (state(&pair, 0).state, state(&pair, 0).shutdown.as_deref()),
        (State::Idle, Some("new cable"))
    );
    let mut config = peer_config(0);
    config.timers.hold = Duration::from_secs(30);
    let now = pair.now;
    pair.cores[0].update_peer(now, config).unwrap();
    pair.wait(600);
    assert_eq!(state(&pair, 0).state, State::Idle, "new settings do not undo it");
    assert!(state(&pair, 0).outlook.next.contains("stopped by the operator"));
    let refused = act(&mut pair, PeerAction::Clear { text: String::new() }).unwrap_err();
    assert!(refused.to_string().contains("start it first"), "{refused}");
    act(&mut pair, PeerAction::Start).unwrap();
    pair.wait(300);
    assert_eq!((state(&pair, 0).state, state(&pair, 0).shutdown), (State::Established, None));
}

#[test]
fn a_shutdown_of_a_life_before_holds_also_for_a_dynamic_neighbour() {
    let dynamic = format!("rack-{}", address(1));
    let held = [("other".to_owned(), "new cable".to_owned()), (dynamic.clone(), String::new())];
    let config = SpeakerConfig { shut_down: held.into(), ..speaker(0, false) };
    for with_range in [false, true] {
        let mut pair = Pair::new();
        let now = pair.now;
        pair.cores[0] = Core::new(&config);
        let (name, text) = if with_range { (dynamic.as_str(), "") } else { ("other", "new cable") };
        if with_range {
            let mut range = crate::dynamic::ListenRange::new("rack", IpNet::from(address(1)));
            range.template = PeerConfig { name: "rack".into(), ..peer_config(0) };
            pair.cores[0].add_range(range).unwrap();
        } else {
            pair.cores[0].add_peer(now, peer_config(0)).unwrap();
        }
        pair.wait(600);
        let seen = state(&pair, 0);
        assert_eq!((seen.name.as_str(), seen.state), (name, State::Idle));
        assert_eq!(seen.shutdown.as_deref(), Some(text), "shown, though it was never up");
        let now = pair.now;
        pair.cores[0].operate(now, name, &PeerAction::Start).unwrap();
        pair.wait(600);
        assert_eq!((state(&pair, 0).state, state(&pair, 0).shutdown), (State::Established, None));
    }
    // One that is not there is started for when it comes, once.
    let (mut core, now) = (Core::new(&config), Instant::now());
    assert!(core.operate(now, "other", &PeerAction::Start).is_ok());
    assert!(core.operate(now, "other", &PeerAction::Start).is_err());
}

#[test]
fn a_hard_clear_resets_and_a_soft_one_does_not() {
    let mut pair = settled();
    let before = state(&pair, 0);
    for action in [PeerAction::SoftIn, PeerAction::SoftOut, PeerAction::SoftBoth] {
        act(&mut pair, action).unwrap();
        pair.wait(1);
    }
    let soft = state(&pair, 0);
    assert_eq!(soft.counters.sessions, before.counters.sessions);
    assert_eq!(soft.families[0].received, 1);
    // Both routes came again for each of the two requests.
    assert!(soft.counters.updates_received >= before.counters.updates_received + 4, "{:?}", soft.counters);
    assert!(soft.counters.messages_sent > before.counters.messages_sent);
    act(&mut pair, PeerAction::Clear { text: "try again".into() }).unwrap();
    pair.wait(60);
    let hard = state(&pair, 0);
    assert_eq!((hard.state, hard.counters.sessions), (State::Established, before.counters.sessions + 1));
    let unknown = pair.cores[0].operate(pair.now, "nobody", &PeerAction::Start).unwrap_err();
    assert!(matches!(unknown, Error::NoSuchPeer { .. }));
}

#[test]
fn the_outlook_names_the_timers_that_run() {
    let pair = settled();
    let up = state(&pair, 0).outlook;
    let names: Vec<&str> = up.timers.iter().map(|timer| timer.name).collect();
    assert_eq!(names, ["KeepaliveTimer", "HoldTimer"]);
    assert!(up.timers[1].left_ms <= 90_000);
    assert_eq!(state(&pair, 0).offered.len(), state(&pair, 1).capabilities.len());
}

#[test]
fn a_logged_session_can_be_played_again() {
    let mut pair = Pair::new();
    pair.cores[0].open_tap();
    pair.cores[1].announce(Scope::All, prefix("10.1.0.0/16"), Announcement::default()).unwrap();
    pair.cores[1].announce(Scope::All, prefix("2001:db8:1::/48"), Announcement::default()).unwrap();
    pair.wait(30);
    pair.cores[1].withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    pair.wait(1);
    let (passed, lost) = pair.cores[0].take_tapped();
    assert_eq!(lost, 0);
    let mut file = Vec::new();
    for (peer, passed) in passed {
        if let Passed::Messages { bytes, .. } = &passed {
            assert_eq!(tap::messages(bytes).map(<[u8]>::len).sum::<usize>(), bytes.len());
        }
        let each = |entry: SessionEntry| entry.record().encode(&mut file);
        crate::driver::monitor::entries(Duration::from_secs(1), &peer, passed, each);
    }
    let replayed = replay(&file);
    let rows = |core: &Core| core.routes(RouteView::Received);
    assert_eq!(rows(&replayed), rows(&pair.cores[0]));
    assert_eq!(rows(&replayed).len(), 1);
}

/// Feeds what the peer said to a new core, as if it came in over one connection.
fn replay(mut file: &[u8]) -> Core {
    let now = Instant::now();
    let mut core = Core::new(&speaker(0, false));
    let mut config = peer_config(0);
    config.passive = true;
    core.add_peer(now, config).unwrap();
    let end = |side| SocketAddr::new(address(side), 179);
    let incoming = Incoming { remote: address(1), local: end(0), interface: None, ttl: Some(255) };
    let (connection, _) = core.accepted(now, &incoming).unwrap();
    let mut opened = 0;
    while let Some(record) = Record::next(&mut file).unwrap() {
        let Some(frame) = SessionEntry::of(&record).and_then(|entry| entry.received()) else { continue };
        // Of two connections that collided only one went on; its OPEN is as good as the other's.
        let open = frame.kind == crate::wire::MessageType::Open;
        opened += usize::from(open);
        let collision = frame.kind == crate::wire::MessageType::Notification;
        if !collision && (!open || opened == 1) {
            core.frames(now, connection, &[frame]);
        }
    }
    core
}
