//! Graceful restart, long-lived graceful restart, and the deferral of route selection, played by cores over in-memory connections.

use super::net::{Net, speaker};
use super::*;

const P: &str = "10.1.0.0/16";
const Q: &str = "10.2.0.0/16";
const V6: &str = "2001:db8:1::/48";

/// Two speakers with a session; the second announces `P`, `Q` and `V6` and has nothing more to say.
fn two(change: impl Fn(&mut PeerConfig)) -> Net {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net.join(1, 2, change);
    net.wait(10);
    assert!(net.up(1, 2));
    [P, Q, V6].into_iter().for_each(|text| net.announce(2, text));
    net.complete(2);
    net.complete(1);
    assert_eq!(net.used(1).len(), 3);
    net
}

fn without_n_bit(config: &mut PeerConfig) {
    config.graceful_restart.notification = false;
}

/// The second speaker dies and its next life starts; what it preserved is for `config` to say.
fn reborn(net: &mut Net, config: SpeakerConfig, change: impl Fn(&mut PeerConfig)) {
    net.sever(1, 2);
    net.start(config, 2);
    net.add_peer(2, 1, change);
    net.heal(1, 2);
}

fn restarting() -> SpeakerConfig {
    SpeakerConfig { restarting: true, ..speaker(2, 65002) }
}

fn stale(net: &mut Net) -> Vec<String> {
    net.used(1).into_iter().filter(|route| route.contains(" stale")).collect()
}

#[test]
fn routes_are_kept_through_notifications_only_where_both_set_the_n_bit() {
    for (of_a, of_b, kept) in [(true, true, 3), (true, false, 0), (false, true, 0), (false, false, 0)] {
        let mut net = Net::new();
        net.add(1);
        net.add(2);
        net.join_apart(
            1,
            2,
            |config| config.graceful_restart.notification = of_a,
            |config| config.graceful_restart.notification = of_b,
        );
        net.wait(10);
        [P, Q, V6].into_iter().for_each(|text| net.announce(2, text));
        // The hold timer runs out on both sides: each sends a NOTIFICATION that nobody hears.
        net.silence(1, 2);
        net.wait(100);
        assert!(!net.up(1, 2));
        assert_eq!(stale(&mut net).len(), kept, "{of_a} {of_b}");
    }
}

#[test]
fn a_notification_that_arrives_keeps_routes_and_a_hard_reset_does_not() {
    let mut net = two(|_| {});
    let now = net.now;
    let changed = PeerConfig { extended_messages: true, ..net::peer(2, 1) };
    net.core(2).update_peer(now, changed).unwrap();
    net.run();
    assert!(
        net.said(2, 1).contains(&"notification 6/6"),
        "not a hard reset: it is over with the next session"
    );
    assert_eq!(stale(&mut net).len(), 3);
    net.wait(20);
    assert!(net.up(1, 2));
    assert_eq!((net.used(1).len(), stale(&mut net).len()), (3, 0));

    net.core(2).stop_all(now, "moving away");
    net.run();
    assert!(net.said(2, 1).contains(&"notification 6/9"), "an administrative shutdown is meant to last");
    assert_eq!(net.used(1).len(), 0);
    let told = net.last_error(1);
    assert!(told.contains("administrative shutdown (6/2) as a hard reset") && told.contains("moving away"));
}

#[test]
fn without_the_n_bit_nobody_is_sent_a_hard_reset() {
    let mut net = two(without_n_bit);
    let now = net.now;
    net.core(2).stop_all(now, "");
    net.run();
    assert!(net.said(2, 1).contains(&"notification 6/2"));
    assert_eq!(net.used(1).len(), 0);
}

#[test]
fn families_that_were_not_preserved_or_not_named_again_go_when_the_session_is_back() {
    // F bits clear: the process restarted and forwards nothing.
    let mut net = two(|_| {});
    reborn(&mut net, speaker(2, 65002), |_| {});
    assert_eq!(stale(&mut net).len(), 3);
    net.wait(30);
    assert!(net.up(1, 2));
    assert_eq!(net.used(1).len(), 0, "before any End-of-RIB");
    // IPv6 is not in the new capability; the other family waits for its End-of-RIB.
    let mut net = two(|_| {});
    reborn(&mut net, restarting(), |config| config.families = vec![Family::Ipv4Unicast]);
    net.wait(30);
    assert_eq!(net.used(1), [format!("{P} n2 stale"), format!("{Q} n2 stale")]);
    // No capability at all.
    let mut net = two(|_| {});
    reborn(&mut net, restarting(), |config| config.graceful_restart.enabled = false);
    net.wait(30);
    assert!(net.up(1, 2));
    assert_eq!(net.used(1).len(), 0);
}

#[test]
fn end_of_rib_sweeps_its_family_and_the_stale_time_bounds_the_wait_for_it() {
    let mut net = two(|config| config.graceful_restart.stale_secs = 60);
    reborn(&mut net, restarting(), |_| {});
    net.wait(30);
    net.announce(2, P);
    assert_eq!(stale(&mut net), [format!("{Q} n2 stale"), format!("{V6} n2 stale")]);
    net.wait(25);
    assert_eq!(stale(&mut net).len(), 2, "no End-of-RIB yet");
    net.wait(35);
    assert_eq!(net.used(1), [format!("{P} n2")]);
}

#[test]
fn consecutive_restarts_delete_what_was_stale_unless_the_n_bit_was_agreed_on() {
    for (n_bit, left) in [(false, 1), (true, 3)] {
        let change = |config: &mut PeerConfig| config.graceful_restart.notification = n_bit;
        let mut net = two(change);
        reborn(&mut net, restarting(), change);
        net.wait(30);
        net.announce(2, P);
        // It dies again before it has said everything.
        reborn(&mut net, restarting(), change);
        assert_eq!(stale(&mut net).len(), left, "N bit {n_bit}");
        net.wait(30);
        // Again and again: nothing is kept for ever (restart time 120 s, stale time 180 s).
        for _ in 0..10 {
            reborn(&mut net, restarting(), change);
            net.wait(30);
        }
        reborn(&mut net, restarting(), change);
        assert_eq!(net.used(1).len(), 0, "N bit {n_bit}");
    }
}

#[test]
fn the_receiving_speaker_does_not_claim_to_have_restarted() {
    let mut net = two(|_| {});
    net.sever(1, 2);
    net.heal(1, 2);
    net.wait(30);
    let now = net.now;
    let offered = net.core(2).peers(now).remove(0).capabilities;
    let restart = offered.iter().find_map(|capability| match capability {
        crate::wire::Capability::GracefulRestart(restart) => Some(restart.clone()),
        _ => None,
    });
    let restart = restart.unwrap();
    assert!(!restart.restarted && restart.notification);
    assert!(restart.families.len() == 2 && restart.families.iter().all(|entry| entry.forwarding_preserved));
    assert_eq!((net.used(1).len(), stale(&mut net).len()), (3, 0));
}

/// A restarting speaker 2 between 1 and 3, which both announce the same prefix; 3 is better but late.
fn restarting_router(of_3: impl Fn(&mut PeerConfig)) -> Net {
    let mut net = Net::new();
    net.add(1);
    net.add(3);
    net.start(restarting(), 2);
    let router = |config: &mut PeerConfig| config.export_learned = true;
    net.join_apart(2, 1, router, |_| {});
    net.join_apart(2, 3, router, of_3);
    net
}

#[test]
fn a_restarting_speaker_selects_when_every_peer_has_spoken_and_only_then_ends_its_own_list() {
    let mut net = restarting_router(|_| {});
    net.announce(1, P);
    net.complete(1);
    net.complete(2);
    net.wait(15);
    assert!(net.up(2, 1) && net.up(2, 3));
    assert_eq!(net.used(2).len(), 0, "3 has not spoken");
    assert!(!net.said(2, 1).contains(&"end-of-rib") && !net.said(2, 3).contains(&"update"));
    net.announce(3, Q);
    net.complete(3);
    assert_eq!(net.used(2), [format!("{P} n1"), format!("{Q} n3")]);
    assert_eq!(net.used(3), [format!("{P} n2")]);
    let told: Vec<&str> = net.said(2, 3).into_iter().filter(|word| *word != "keepalive").collect();
    let end = told.iter().position(|word| *word == "end-of-rib").unwrap();
    assert!(told[..end].contains(&"update"), "{told:?}");
}

#[test]
fn the_deferral_ends_by_its_timer_and_does_not_wait_for_restarted_or_plain_peers() {
    // The timer: 3 never says End-of-RIB.
    let mut net = restarting_router(|_| {});
    net.announce(1, P);
    [1, 2].into_iter().for_each(|id| net.complete(id));
    net.wait(40);
    assert_eq!(net.used(2).len(), 0);
    net.wait(10);
    assert_eq!(net.used(2), [format!("{P} n1")]);
    assert!(net.said(2, 3).contains(&"end-of-rib"));
    // 3 does not speak of graceful restart: nobody waits for it.
    let mut net = restarting_router(|config| config.graceful_restart.enabled = false);
    net.announce(1, P);
    [1, 2].into_iter().for_each(|id| net.complete(id));
    net.wait(20);
    assert_eq!(net.used(2), [format!("{P} n1")]);
    // 3 has restarted itself: both would wait for each other for ever.
    let mut net = restarting_router(|_| {});
    let config = SpeakerConfig { restarting: true, ..speaker(3, 65003) };
    net.start(config, 3);
    net.add_peer(3, 2, |_| {});
    net.announce(1, P);
    [1, 2].into_iter().for_each(|id| net.complete(id));
    net.wait(20);
    assert_eq!(net.used(2), [format!("{P} n1")]);
}

fn long_lived(config: &mut PeerConfig) {
    config.long_lived.enabled = true;
    config.long_lived.stale_time_secs = Family::ALL.into_iter().map(|family| (family, 1000)).collect();
}

#[test]
fn routes_outlive_the_restart_time_marked_and_least_preferred_until_the_stale_time_is_over() {
    let mut net = two(long_lived);
    net.announce_with(2, Q, &["65002:1", "no-llgr"]);
    net.sever(1, 2);
    net.wait(110);
    assert_eq!(stale(&mut net).len(), 3);
    assert!(!net.used(1)[0].contains("llgr-stale"));
    net.wait(20);
    let expected = [format!("{P} n2 stale llgr-stale"), format!("{V6} n2 stale llgr-stale")];
    assert_eq!(net.used(1), expected, "NO_LLGR is obeyed");
    net.wait(980);
    assert_eq!(net.used(1).len(), 2);
    net.wait(20);
    assert_eq!(net.used(1).len(), 0);
}

#[test]
fn the_stale_time_is_cut_by_ours_and_a_restart_time_of_a_family_left_out_is_zero() {
    let mut net = two(|config| {
        long_lived(config);
        config.long_lived.stale_time_secs.remove(&Family::Ipv6Unicast);
        config.long_lived.longest_secs = Some(50);
    });
    net.sever(1, 2);
    net.wait(125);
    assert_eq!(net.used(1).len(), 2, "IPv6 is not to be kept that long");
    net.wait(50);
    assert_eq!(net.used(1).len(), 0);
}

#[test]
fn the_stale_time_runs_on_while_the_session_that_is_back_is_not_synchronised() {
    let mut net = two(long_lived);
    net.sever(1, 2);
    net.wait(130);
    reborn(&mut net, restarting(), long_lived);
    net.wait(20);
    assert!(net.up(1, 2));
    net.announce(2, P);
    assert_eq!(
        net.used(1),
        [format!("{P} n2"), format!("{Q} n2 stale llgr-stale"), format!("{V6} n2 stale llgr-stale")]
    );
    // Far beyond the stale time of graceful restart, which does not count here.
    net.wait(800);
    assert_eq!(stale(&mut net).len(), 2);
    net.wait(200);
    assert_eq!(net.used(1), [format!("{P} n2")]);
    // Still no End-of-RIB: the next loss keeps nothing.
    net.sever(1, 2);
    assert_eq!(net.used(1).len(), 0);
}

#[test]
fn end_of_rib_ends_the_long_lived_state() {
    let mut net = two(long_lived);
    net.sever(1, 2);
    net.wait(130);
    reborn(&mut net, restarting(), long_lived);
    net.wait(20);
    net.announce(2, P);
    net.complete(2);
    net.complete(1);
    net.wait(1);
    assert_eq!(net.used(1), [format!("{P} n2")]);
    net.sever(1, 2);
    assert_eq!(net.used(1), [format!("{P} n2 stale")], "an ordinary restart again");
}

#[test]
fn without_the_f_bit_of_the_long_lived_capability_stale_routes_go_at_once() {
    let mut net = two(long_lived);
    net.sever(1, 2);
    net.wait(130);
    reborn(&mut net, restarting(), |config| {
        long_lived(config);
        config.long_lived.stale_time_secs.remove(&Family::Ipv4Unicast);
    });
    net.wait(20);
    assert!(net.up(1, 2));
    assert_eq!(net.used(1), [format!("{V6} n2 stale llgr-stale")]);
}

/// 2 announces; 1 passes on to 3 (long-lived), 4 (not), 5 (internal, not) and 6 (internal, not, but told all the same). Another path of `Q` comes
/// from 7, worse by its length.
fn star() -> Net {
    let mut net = Net::new();
    [1, 2, 3, 4, 7].into_iter().for_each(|id| net.add(id));
    [5, 6].into_iter().for_each(|id| net.start(speaker(id, 65001), id));
    let pass_on = |config: &mut PeerConfig| config.export_learned = true;
    let both = |config: &mut PeerConfig| {
        long_lived(config);
        config.export_learned = true;
    };
    net.join_apart(1, 2, both, long_lived);
    net.join_apart(1, 3, both, long_lived);
    net.join_apart(1, 4, both, |_| {});
    net.join_apart(1, 5, pass_on, |_| {});
    let partial = |config: &mut PeerConfig| {
        both(config);
        config.long_lived.partial_deployment = true;
    };
    net.join_apart(1, 6, partial, |_| {});
    net.join(1, 7, pass_on);
    net.wait(20);
    [P, Q].into_iter().for_each(|text| net.announce(2, text));
    [1, 2].into_iter().for_each(|id| net.complete(id));
    net
}

#[test]
fn stale_routes_are_told_to_those_who_understand_and_withdrawn_from_the_others() {
    let mut net = star();
    for id in [3, 4, 5, 6] {
        assert_eq!(net.used(id).len(), 2, "n{id}");
    }
    net.sever(1, 2);
    net.wait(130);
    assert_eq!(net.used(3), [format!("{P} n1 llgr-stale"), format!("{Q} n1 llgr-stale")]);
    assert_eq!((net.used(4).len(), net.used(5).len()), (0, 0));
    assert_eq!(net.used(6), [format!("{P} n1 llgr-stale no-export"), format!("{Q} n1 llgr-stale no-export")]);
    let rows = net.rows(6, RouteView::Received);
    assert!(rows.iter().all(|row| row.attributes.local_pref == Some(0)));
    // A fresh path wins, however bad, and everybody hears of it.
    let longer = Announcement { origin: crate::wire::Origin::Incomplete, ..Announcement::default() };
    net.core(7).announce(Scope::All, prefix(Q), longer).unwrap();
    net.run();
    assert_eq!(net.used(4), [format!("{Q} n1")]);
    assert!(net.used(1).contains(&format!("{Q} n7")));
    // 3 takes what it is told for least preferred, too: a path of its own neighbour would win there.
    let mut net3 = star();
    net3.join(3, 7, |config| config.export_learned = true);
    net3.wait(10);
    net3.sever(1, 2);
    net3.wait(130);
    assert!(net3.used(3).iter().all(|route| route.ends_with("llgr-stale")));
    net3.announce(7, P);
    assert!(net3.used(3).contains(&format!("{P} n7")));
}
