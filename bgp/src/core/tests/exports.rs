//! Whatever happens to policies, routes and peers: each peer holds what a recomputation says.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::*;
use super::net::{self, Id, Net, prefix};
use super::routing::{heard, policy, several};
use crate::event::{RouteRow, RouteView};
use crate::routing::{AddPaths, PathCount};
use crate::rpki::Vrp;

/// Something that happens around speaker 2, which has peers 1 and 3 outside, 4 and its client 5 inside.
#[derive(Clone, Debug)]
enum Happening {
    Announce(Id, u8, u8),
    Withdraw(Id, u8),
    Import(Id, usize),
    Export(Id, usize),
    Refresh(Id),
    Drain(bool),
    Rpki(u8),
}

const POLICIES: [&str; 6] = [
    r#"{"name": "all", "then": "accept"}"#,
    r#"{"name": "odd", "when": [{"communities": ["*:1"]}], "actions": [{"localPref": {"set": 300}}, {"med": {"add": 3}}], "then": "accept"}"#,
    r#"{"name": "tag", "actions": [{"addCommunities": ["1:1"]}]}, {"name": "some", "when": [{"prefixes": ["10.0.0.0/15 orlonger"]}], "then": "accept"}"#,
    r#"{"name": "from", "when": [{"any": [{"peers": ["n1"]}, {"sources": ["internal"]}]}], "actions": [{"prepend": {"times": 1}}], "then": "accept"}"#,
    r#"{"name": "rov", "when": [{"rpki": ["invalid"]}], "then": "reject"}, {"name": "rest", "actions": [{"setCommunities": []}], "then": "accept"}"#,
    r#"{"name": "own", "when": [{"sources": ["own"]}], "then": "reject"}, {"name": "short", "when": [{"asPathLength": {"max": 1}}], "then": "accept"}"#,
];

fn happening() -> impl Strategy<Value = Happening> {
    let speaker = prop::sample::select(vec![1u8, 2, 3, 4, 5]);
    let other = prop::sample::select(vec![1u8, 3, 4, 5]);
    prop_oneof![
        5 => (speaker.clone(), 0u8..4, 0u8..3).prop_map(|(id, net, tag)| Happening::Announce(id, net, tag)),
        3 => (speaker, 0u8..4).prop_map(|(id, net)| Happening::Withdraw(id, net)),
        1 => (other.clone(), 0..POLICIES.len()).prop_map(|(id, at)| Happening::Import(id, at)),
        2 => (other.clone(), 0..POLICIES.len()).prop_map(|(id, at)| Happening::Export(id, at)),
        1 => other.prop_map(Happening::Refresh),
        1 => any::<bool>().prop_map(Happening::Drain),
        1 => (0u8..4).prop_map(Happening::Rpki),
    ]
}

fn net_of(number: u8) -> IpNet {
    prefix(["10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "2001:db8:1::/48"][usize::from(number)])
}

impl Happening {
    fn happen(&self, net: &mut Net, configs: &mut BTreeMap<Id, PeerConfig>) {
        let now = net.now;
        let mut change = |id: &Id, change: &dyn Fn(&mut PeerConfig)| {
            let config = configs.get_mut(id).unwrap();
            change(config);
            let config = config.clone();
            net.core(2).update_peer(now, config).unwrap();
        };
        match self {
            Self::Announce(id, number, tag) => {
                let communities = vec![crate::wire::Community(u32::from(*tag))];
                let announcement =
                    Announcement { communities, med: Some(u32::from(*tag)), ..Default::default() };
                net.core(*id).announce(Scope::All, net_of(*number), announcement).unwrap();
            }
            Self::Withdraw(id, number) => net.core(*id).withdraw(&Scope::All, &net_of(*number)),
            Self::Import(id, at) => change(id, &|config| config.import_policy = policy(POLICIES[*at])),
            Self::Export(id, at) => change(id, &|config| config.export_policy = policy(POLICIES[*at])),
            Self::Refresh(id) => {
                net.core(*id).refresh("n2").unwrap();
            }
            Self::Drain(draining) => net.core(2).set_draining(*draining),
            Self::Rpki(number) => {
                let vrp = Vrp {
                    prefix: net_of(*number),
                    max_len: 48.min(net_of(*number).max_prefix_len()),
                    asn: 65001,
                };
                net.core(2).set_rpki(Arc::new([vrp].into_iter().collect()));
            }
        }
    }
}

/// Of two paths the better one may not go to 3 (RFC 7947 section 2.3.2.1): it hears of the other, whatever comes and goes.
#[test]
fn a_route_server_hides_no_path_from_a_client_that_may_not_hear_of_the_best() {
    let mut net = Net::new();
    [1, 2, 3, 4].into_iter().for_each(|id| net.add(id));
    let served = |config: &mut PeerConfig| (config.export_learned, config.route_server_client) = (true, true);
    let not_of_1 = |config: &mut PeerConfig| {
        served(config);
        let rules = r#"{"name": "not-of-1", "when": [{"peers": ["n1"]}], "then": "reject"}, {"name": "rest", "then": "accept"}"#;
        config.export_policy = policy(rules);
    };
    let serves = |config: &mut PeerConfig| config.enforce_first_as = false;
    net.join_apart(2, 1, served, serves);
    net.join_apart(2, 3, not_of_1, serves);
    net.join_apart(2, 4, served, serves);
    net.wait(5);
    let say = |net: &mut Net, id, med| {
        let announcement = Announcement { med: Some(med), ..Announcement::default() };
        net.core(id).announce(Scope::All, prefix("10.1.0.0/16"), announcement).unwrap();
        net.run();
    };
    say(&mut net, 1, 1);
    assert_eq!(heard(&mut net, 3, 2), Vec::<String>::new());
    assert_eq!(heard(&mut net, 4, 2), ["10.1.0.0/16 via 10.0.0.1 path 65001 med 1"]);
    // The best stays that of 1, which has the lower identifier.
    say(&mut net, 4, 7);
    let second = ["10.1.0.0/16 via 10.0.0.4 path 65004 med 7"];
    assert_eq!(heard(&mut net, 3, 2), second);
    assert_eq!(heard(&mut net, 1, 2), Vec::<String>::new(), "the best is its own");
    let state = net.core(2).routes(RouteView::Advertised);
    assert_eq!(state.iter().filter(|row| row.peer == "n3").count(), 1);
    net.sent.clear();
    say(&mut net, 1, 2);
    assert_eq!(heard(&mut net, 3, 2), second);
    assert!(
        !net.sent.iter().any(|(from, to, _)| (*from, *to) == (2, 3)),
        "nothing new for it: {:?}",
        net.sent
    );
    say(&mut net, 4, 8);
    assert_eq!(heard(&mut net, 3, 2), ["10.1.0.0/16 via 10.0.0.4 path 65004 med 8"]);
    net.core(1).withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    net.run();
    assert_eq!(heard(&mut net, 3, 2), ["10.1.0.0/16 via 10.0.0.4 path 65004 med 8"]);
    say(&mut net, 1, 3);
    net.core(4).withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    net.run();
    assert_eq!(heard(&mut net, 3, 2), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happened, each peer holds what follows from the table and the policies now.
    #[test]
    fn what_peers_hold_is_what_a_recomputation_says(
        happenings in prop::collection::vec((happening(), any::<bool>()), 1..40),
        served in any::<bool>(),
    ) {
        let mut net = Net::new();
        [1, 3].into_iter().for_each(|id| net.add(id));
        [2, 4, 5].into_iter().for_each(|id| net.start(net::speaker(id, 65002), id));
        let mut configs = BTreeMap::new();
        for id in [1, 3, 4, 5] {
            let mut config = net::peer(2, id);
            config.reflector_client = id == 5;
            config.export_learned = id != 3;
            // Such a peer hears of the best path that its policy lets through.
            config.route_server_client = served && id == 1;
            if id == 3 {
                several(&mut config);
            } else if id == 5 {
                config.add_path = AddPaths { receive: true, send: Some(PathCount::All) };
            }
            configs.insert(id, config.clone());
            let takes_several = |settings: &mut PeerConfig| {
                settings.add_path.receive = true;
                settings.enforce_first_as = !(served && id == 1);
            };
            net.join_apart(2, id, |settings| *settings = config.clone(), takes_several);
        }
        net.wait(5);
        for (happening, settle) in &happenings {
            happening.happen(&mut net, &mut configs);
            if *settle {
                net.run();
            }
        }
        net.run();
        let told = net.core(2).routes(RouteView::Advertised);
        for id in [1, 3, 4, 5] {
            let name = format!("n{id}");
            let expected: Vec<_> = told.iter().filter(|row| row.peer == name).collect();
            let held = net.core(id).routes(RouteView::Received);
            let said = |row: &&RouteRow| (row.prefix, row.path_id, row.next_hop, Arc::clone(&row.attributes));
            // What came in from outside has no LOCAL_PREF but what its receiver gives it.
            let strip = |(prefix, path_id, hop, attributes): (IpNet, u32, crate::NextHop, Arc<crate::Attributes>)| {
                let mut attributes = crate::Attributes::clone(&attributes);
                if id == 1 || id == 3 {
                    attributes.local_pref = None;
                }
                (prefix, path_id, hop, attributes)
            };
            let expected: Vec<_> = expected.iter().map(|row| strip(said(row))).collect();
            let held: Vec<_> = held.iter().map(|row| strip(said(&row))).collect();
            prop_assert_eq!(held, expected, "what {} holds", name);
        }
    }
}
