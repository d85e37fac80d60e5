//! What happens when the way to a peer or a next hop goes: fast fall-over and next-hop tracking.

use super::net::{Net, speaker};
use super::*;

const P: &str = "10.1.0.0/16";

fn own(id: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, id).into()
}

fn two(change: impl Fn(&mut PeerConfig)) -> Net {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net.join(1, 2, change);
    net.wait(10);
    net.announce(2, P);
    assert!(net.up(1, 2));
    net
}

#[test]
fn a_link_that_goes_down_ends_the_session_of_a_direct_peer_at_once_and_keeps_nothing() {
    let mut net = two(|_| {});
    let now = net.now;
    assert_eq!(net.core(1).path_lost(now, Some("eth9"), &[own(7)]), 0);
    assert!(net.up(1, 2));
    net.sent.clear();
    assert_eq!(net.core(1).path_lost(now, Some("eth0"), &[own(1)]), 1);
    net.run();
    assert!(!net.up(1, 2));
    assert!(net.last_error(1).contains("interface eth0 is down"));
    assert_eq!(net.used(1).len(), 0, "graceful restart or not");
    assert!(net.used(2).is_empty() && !net.said(1, 2).iter().any(|word| word.starts_with("notification")));
    net.wait(20);
    assert!(net.up(1, 2), "it tries again");
    assert_eq!(net.used(1).len(), 1);
}

#[test]
fn only_direct_external_peers_fall_over_and_only_if_wanted() {
    let multihop = |config: &mut PeerConfig| config.ebgp_multihop = 3;
    let unwanted = |config: &mut PeerConfig| config.fast_fallover = false;
    for change in [&multihop as &dyn Fn(&mut PeerConfig), &unwanted] {
        let mut net = two(change);
        let now = net.now;
        assert_eq!(net.core(1).path_lost(now, Some("eth0"), &[own(1)]), 0);
        assert!(net.up(1, 2));
    }
    let mut net = Net::new();
    [1, 2].into_iter().for_each(|id| net.start(speaker(id, 65001), id));
    net.join(1, 2, |config| config.peer_asn = 65001);
    net.wait(10);
    let now = net.now;
    assert_eq!(net.core(1).path_lost(now, None, &[own(1)]), 0, "internal peers may be reached another way");
}

/// Speaker 1 of AS 65001 with external 2 and internal 3 and 4, tracking next hops.
fn tracking() -> Net {
    let mut net = Net::new();
    net.start(SpeakerConfig { track_next_hops: true, ..speaker(1, 65001) }, 1);
    net.add(2);
    [3, 4].into_iter().for_each(|id| net.start(speaker(id, 65001), id));
    [2, 3, 4].into_iter().for_each(|id| net.join_apart(1, id, |config| config.export_learned = true, |_| {}));
    net.wait(15);
    net
}

#[test]
fn paths_wait_for_their_next_hop_and_go_with_it() {
    let mut net = tracking();
    net.announce(2, P);
    assert_eq!(net.used(1).len(), 0);
    assert_eq!(net.core(1).take_next_hops(), Some([own(2)].into()));
    assert_eq!(net.core(1).take_next_hops(), None);
    assert_eq!(net.rows(1, RouteView::Received)[0].refused, Some(crate::rib::Refusal::NextHopUnreachable));
    net.core(1).next_hop_resolved(own(2), Some(0));
    net.run();
    assert_eq!((net.used(1), net.used(3)), (vec![format!("{P} n2")], vec![format!("{P} n1")]));
    net.core(1).next_hop_resolved(own(9), None);
    net.run();
    assert_eq!(net.used(1).len(), 1);
    net.core(1).next_hop_resolved(own(2), None);
    net.run();
    assert!(net.used(1).is_empty() && net.used(3).is_empty(), "and peers are told");
}

#[test]
fn the_interior_cost_decides_between_internal_paths() {
    let mut net = tracking();
    [3, 4].into_iter().for_each(|id| net.announce(id, P));
    let mut used = |costs: [Option<u32>; 2]| {
        net.core(1).next_hop_resolved(own(3), costs[0]);
        net.core(1).next_hop_resolved(own(4), costs[1]);
        net.run();
        net.used(1)
    };
    assert_eq!(used([Some(20), Some(10)]), [format!("{P} n4")]);
    assert_eq!(used([Some(5), Some(10)]), [format!("{P} n3")]);
    assert_eq!(used([Some(5), Some(5)]), [format!("{P} n3"), format!("{P} n4")]);
    assert_eq!(used([None, Some(5)]), [format!("{P} n4")]);
}

#[test]
fn next_hops_that_no_path_has_any_more_are_forgotten() {
    let mut net = tracking();
    for round in 0..1000u32 {
        let next_hop = Some(Ipv4Addr::from(0xc633_0000 + round).into());
        let announcement = Announcement { next_hop, ..Announcement::default() };
        net.core(2).announce(Scope::All, prefix(P), announcement).unwrap();
        net.run();
    }
    let known = net.core(1).take_next_hops().unwrap();
    assert!(known.len() <= 64, "{}", known.len());
}
