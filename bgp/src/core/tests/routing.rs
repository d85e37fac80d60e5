//! What passes from peer to peer: policies, reflection, route servers, well-known communities; by speakers that talk over in-memory connections.

use std::sync::Arc;

use super::super::*;
use super::net::{self, Id, Net, prefix};
use crate::event::{RouteRow, RouteView};
use crate::policy::Policy;
use crate::routing::{AddPaths, LimitAction, PathCount, PrefixLimit, Role};
use crate::rpki::Vrp;

pub(super) fn policy(statements: &str) -> Option<Arc<Policy>> {
    let text = format!(r#"{{"name": "test", "statements": [{statements}]}}"#);
    Some(Arc::new(serde_json::from_str(&text).unwrap()))
}

/// All that a speaker has from a peer, as it came or as it was refused.
pub(super) fn heard(net: &mut Net, id: Id, from: Id) -> Vec<String> {
    let rows = net.core(id).routes(RouteView::Received);
    rows.iter().filter(|row| row.peer == format!("n{from}")).map(text).collect()
}

fn text(row: &RouteRow) -> String {
    let attributes = &row.attributes;
    let mut text = format!("{} via {} path {}", row.prefix, row.next_hop, attributes.as_path);
    let communities = attributes.communities.iter().map(|community| community.to_string());
    let parts = attributes
        .med
        .map(|med| format!("med {med}"))
        .into_iter()
        .chain(attributes.local_pref.map(|preference| format!("pref {preference}")))
        .chain(communities)
        .chain(row.refused.map(|refused| format!("refused {refused:?}")));
    parts.for_each(|part| text = format!("{text} {part}"));
    text
}

/// Speakers 1, 2 and 3 of three ASes in a row.
fn row(change: impl Fn(&mut PeerConfig)) -> Net {
    let mut net = Net::new();
    [1, 2, 3].into_iter().for_each(|id| net.add(id));
    net.join(1, 2, |_| {});
    net.join_apart(2, 3, change, |_| {});
    net.wait(5);
    net
}

#[test]
fn learned_routes_leave_only_by_a_policy_and_as_it_says() {
    let mut net = row(|_| {});
    net.announce_with(1, "10.1.0.0/16", &["65001:1"]);
    net.announce_with(1, "10.2.0.0/16", &["65001:2"]);
    net.announce(2, "10.3.0.0/16");
    let own = "10.3.0.0/16 via 10.0.0.2 path 65002".to_owned();
    assert_eq!(
        heard(&mut net, 3, 2),
        std::slice::from_ref(&own),
        "RFC 8212: nothing learned without a policy"
    );
    let sessions = |net: &mut Net| {
        let now = net.now;
        net.core(2).peers(now).iter().map(|peer| peer.counters.sessions).sum::<u64>()
    };
    let before = sessions(&mut net);
    let mut change = |statements: &str| {
        let config = PeerConfig { export_policy: policy(statements), ..net::peer(2, 3) };
        let now = net.now;
        net.core(2).update_peer(now, config).unwrap();
        net.run();
        assert_eq!(sessions(&mut net), before, "no session was reset");
        heard(&mut net, 3, 2)
    };
    let tagged = r#"{"name": "a", "when": [{"communities": ["65001:1"]}], "then": "accept",
        "actions": [{"med": {"set": 7}}, {"prepend": {"times": 2}}, {"setCommunities": ["65002:9"]}]}"#;
    assert_eq!(
        change(tagged),
        ["10.1.0.0/16 via 10.0.0.2 path 65002 65002 65002 65001 med 7 65002:9", &own],
        "own announcements need no permission"
    );
    let reject = r#"{"name": "own", "when": [{"sources": ["own"]}], "then": "reject"},
        {"name": "rest", "when": [{"prefixes": ["10.2.0.0/16"]}], "actions": [{"nextHop": {"address": "10.0.0.9"}}], "then": "accept"}"#;
    assert_eq!(change(reject), ["10.2.0.0/16 via 10.0.0.9 path 65002 65001 65001:2"]);
    assert_eq!(change(""), [own]);
}

#[test]
fn import_policy_changes_what_is_kept_and_can_change_itself() {
    let mut net = row(|config| config.export_learned = true);
    net.announce_with(1, "10.1.0.0/16", &["65001:1"]);
    net.announce(1, "2001:db8:1::/48");
    let mut change = |import_policy| {
        let config = PeerConfig { import_policy, ..net::peer(2, 1) };
        let now = net.now;
        net.core(2).update_peer(now, config).unwrap();
        net.run();
        (heard(&mut net, 2, 1), heard(&mut net, 3, 2).len())
    };
    let v6 = "2001:db8:1::/48 via 2001:db8::1 path 65001";
    let (kept, passed) = change(policy(
        r#"{"name": "a", "when": [{"neighbourAs": [65001]}, {"families": ["ipv4-unicast"]}], "then": "accept",
            "actions": [{"localPref": {"set": 200}}, {"removeCommunities": ["*:*"]}, {"nextHop": {"address": "10.0.0.77"}}]}"#,
    ));
    assert_eq!(kept, ["10.1.0.0/16 via 10.0.0.77 path 65001 pref 200", &format!("{v6} refused Policy")]);
    assert_eq!(passed, 1);
    // What came is still known: another policy starts from it, without a new session or a refresh.
    let (kept, passed) = change(policy(
        r#"{"name": "a", "when": [{"communities": ["65001:1"]}], "then": "accept", "actions": ["removeMed"]},
           {"name": "b", "when": [{"prefixes": ["2001:db8::/32 le 48"]}], "then": "accept"}"#,
    ));
    assert_eq!(kept, ["10.1.0.0/16 via 10.0.0.1 path 65001 65001:1", v6]);
    assert_eq!(passed, 2);
    let (kept, passed) = change(policy(""));
    assert!(kept.iter().all(|row| row.ends_with("refused Policy")), "{kept:?}");
    assert_eq!(passed, 0);
    assert_eq!(change(None).1, 2, "the allow-list again");
}

#[test]
fn what_came_by_a_policy_is_withdrawn_with_its_peer() {
    let mut net = row(|config| {
        config.export_policy = policy(r#"{"name": "n1", "when": [{"peers": ["n1"]}], "then": "accept"}"#)
    });
    net.announce(1, "10.1.0.0/16");
    assert_eq!(heard(&mut net, 3, 2).len(), 1);
    let now = net.now;
    net.core(2).remove_peer(now, "n1").unwrap();
    net.run();
    assert_eq!(heard(&mut net, 3, 2).len(), 0);
}

/// Speakers of AS 65000; 2 reflects to clients 1 and 3, not to 4; 5 is of another AS.
fn reflector() -> Net {
    let mut net = Net::new();
    [1, 2, 3, 4].into_iter().for_each(|id| net.start(net::speaker(id, 65000), id));
    net.add(5);
    let passes = |config: &mut PeerConfig| config.export_learned = true;
    let client = |config: &mut PeerConfig| (config.export_learned, config.reflector_client) = (true, true);
    net.join_apart(2, 1, client, |_| {});
    net.join_apart(2, 3, client, |_| {});
    net.join_apart(2, 4, passes, passes);
    net.join_apart(2, 5, passes, |_| {});
    net.wait(5);
    net
}

#[test]
fn routes_are_reflected_from_clients_to_all_and_from_others_to_clients() {
    let mut net = reflector();
    net.announce(1, "10.1.0.0/16");
    net.announce(4, "10.4.0.0/16");
    net.announce(5, "10.5.0.0/16");
    let of_client = "10.1.0.0/16 via 10.0.0.1 path  pref 100";
    let of_other = "10.4.0.0/16 via 10.0.0.4 path  pref 100";
    let external = "10.5.0.0/16 via 10.0.0.5 path 65005 pref 100";
    assert_eq!(heard(&mut net, 3, 2), [of_client, of_other, external]);
    assert_eq!(heard(&mut net, 4, 2), [of_client, external], "not back to where it is from");
    assert_eq!(heard(&mut net, 1, 2), [of_other, external]);
    assert_eq!(heard(&mut net, 5, 2).len(), 2, "nothing of reflection outside");
    let marks = |net: &mut Net, id, what: &str| {
        let rows = net.core(id).routes(RouteView::Received);
        let row = rows.into_iter().find(|row| row.prefix == prefix(what)).unwrap();
        (row.attributes.originator_id, row.attributes.cluster_list.clone())
    };
    let cluster = vec![Ipv4Addr::new(1, 1, 1, 2)];
    assert_eq!(marks(&mut net, 3, "10.1.0.0/16"), (Some([1, 1, 1, 1].into()), cluster));
    assert_eq!(marks(&mut net, 3, "10.5.0.0/16"), (None, vec![]), "from outside: not reflected");
    assert_eq!(marks(&mut net, 5, "10.1.0.0/16"), (None, vec![]));
    net.core(1).withdraw(&Scope::All, &prefix("10.1.0.0/16"));
    net.run();
    assert_eq!(heard(&mut net, 3, 2), [of_other, external]);
}

#[test]
fn reflected_routes_do_not_go_in_circles() {
    // Two reflectors of one cluster, and a client of both; then of two clusters.
    for (cluster, taken) in [(Some(Ipv4Addr::new(9, 9, 9, 9)), false), (None, true)] {
        let mut net = Net::new();
        for id in [1, 2, 3, 4] {
            let config = SpeakerConfig { cluster_id: cluster, ..net::speaker(id, 65000) };
            net.start(config, id);
        }
        let client =
            |config: &mut PeerConfig| (config.export_learned, config.reflector_client) = (true, true);
        for reflector in [2, 3] {
            net.join_apart(reflector, 1, client, |_| {});
        }
        net.join(2, 3, client);
        net.wait(5);
        net.announce(1, "10.1.0.0/16");
        let refused = |net: &mut Net, id, from: Id| {
            let rows = net.core(id).routes(RouteView::Received);
            rows.iter().find(|row| row.peer == format!("n{from}")).map(|row| row.refused)
        };
        assert_eq!(refused(&mut net, 1, 2), None, "the originator is not told");
        let expected = if taken { None } else { Some(crate::rib::Refusal::OwnRouterId) };
        assert_eq!(refused(&mut net, 3, 2), Some(expected), "{cluster:?}");
    }
}

#[test]
fn a_route_server_changes_nothing() {
    let mut net = Net::new();
    [1, 2, 3].into_iter().for_each(|id| net.add(id));
    let served = |config: &mut PeerConfig| (config.export_learned, config.route_server_client) = (true, true);
    let serves = |config: &mut PeerConfig| config.enforce_first_as = false;
    net.join_apart(2, 1, served, serves);
    net.join_apart(2, 3, served, serves);
    net.wait(5);
    let announcement = Announcement { med: Some(5), ..Announcement::default() };
    net.core(1).announce(Scope::All, prefix("10.1.0.0/16"), announcement).unwrap();
    net.announce(1, "2001:db8:1::/48");
    assert_eq!(
        heard(&mut net, 3, 2),
        ["10.1.0.0/16 via 10.0.0.1 path 65001 med 5", "2001:db8:1::/48 via 2001:db8::1 path 65001"]
    );
}

#[test]
fn well_known_communities_are_honoured() {
    let mut net = reflector();
    for (text, communities, inside, outside) in [
        ("10.10.0.0/16", &[][..], true, true),
        ("10.11.0.0/16", &["no-export"], true, false),
        ("10.12.0.0/16", &["no-export-subconfed"], true, false),
        ("10.13.0.0/16", &["no-advertise"], false, false),
    ] {
        net.announce_with(1, text, communities);
        let mut has = |id| heard(&mut net, id, 2).iter().any(|row| row.starts_with(text));
        assert_eq!((has(3), has(5)), (inside, outside), "{communities:?}");
    }
}

/// Speaker 2 has a provider 1, a peer 3, a customer 4 and another provider 5.
#[test]
fn routes_for_customers_only_do_not_leak() {
    let mut net = Net::new();
    (1..=5).for_each(|id| net.add(id));
    let roles = [(1, Role::Customer), (3, Role::Peer), (4, Role::Provider), (5, Role::Customer)];
    for (id, role) in roles {
        let own = move |config: &mut PeerConfig| (config.role, config.export_learned) = (Some(role), true);
        let theirs = move |config: &mut PeerConfig| config.role = (id != 5).then(|| role.opposite());
        net.join_apart(2, id, own, theirs);
    }
    net.wait(5);
    [(1, "10.1.0.0/16"), (3, "10.3.0.0/16"), (4, "10.4.0.0/16"), (5, "10.5.0.0/16")]
        .into_iter()
        .for_each(|(id, net_of)| net.announce(id, net_of));
    let marked = |net: &mut Net, id| -> Vec<(String, Option<u32>)> {
        let rows = net.core(id).routes(RouteView::Received);
        let used = rows.iter().filter(|row| row.refused.is_none());
        used.map(|row| (row.prefix.to_string(), row.attributes.only_to_customer())).collect()
    };
    let row = |prefix: &str, asn| (prefix.to_owned(), Some(asn));
    // 1 is told by its customer only of what that customer's customers have.
    assert_eq!(marked(&mut net, 1), [("10.4.0.0/16".to_owned(), None)]);
    assert_eq!(marked(&mut net, 3), [row("10.4.0.0/16", 65002)]);
    assert_eq!(
        marked(&mut net, 4),
        [row("10.1.0.0/16", 65001), row("10.3.0.0/16", 65003), row("10.5.0.0/16", 65005)]
    );
    // 5 has no role, but 2 marks for itself what it got from there, and tells it nothing that is marked.
    assert_eq!(marked(&mut net, 5), [("10.4.0.0/16".to_owned(), None)]);
    // A customer that passes its provider's routes back up leaks.
    let mut attributes =
        crate::Attributes { as_path: crate::AsPath::sequence(&[65004, 7]), ..Default::default() };
    attributes.set_only_to_customer(7);
    let (hop, mut bytes) = (crate::NextHop::new([10, 0, 0, 4].into()), Vec::new());
    let routes = [prefix("10.7.0.0/16")];
    crate::wire::announce(&attributes, &hop, Family::Ipv4Unicast, &routes, Default::default(), &mut bytes)
        .unwrap();
    net.inject(4, 2, &bytes);
    assert!(heard(&mut net, 2, 4).iter().any(|row| row.ends_with("refused RouteLeak")));
}

#[test]
fn roles_that_do_not_fit_keep_the_session_from_coming_up() {
    for (theirs, strict, fits) in [
        (Some(Role::Customer), true, true),
        (None, false, true),
        (None, true, false),
        (Some(Role::Provider), false, false),
        (Some(Role::Peer), false, false),
    ] {
        let mut net = Net::new();
        (1..=2).for_each(|id| net.add(id));
        let ours =
            |config: &mut PeerConfig| (config.role, config.strict_role) = (Some(Role::Provider), strict);
        net.join_apart(1, 2, ours, |config| config.role = theirs);
        net.wait(5);
        let up = state(&mut net, 1).state == crate::fsm::State::Established;
        assert_eq!(up, fits, "{theirs:?} {strict}");
        if !fits {
            let told = state(&mut net, 2).last_error.unwrap();
            assert!(told.contains("2/11"), "{told}");
        }
    }
}

#[test]
fn what_is_not_transitive_ends_with_the_as() {
    let lb = "lb:65002:1000000".parse::<crate::policy::ExtendedCommunity>().unwrap().0;
    let sets =
        |actions: &str| policy(&format!(r#"{{"name": "a", "actions": [{actions}], "then": "accept"}}"#));
    let tags = r#"{"addExtendedCommunities": ["lb:65002:1000000", "rt:65002:7"]}"#;
    for (on_import, on_export, arrives) in [(tags, "", 1), ("", tags, 2)] {
        let mut net = Net::new();
        (1..=3).for_each(|id| net.add(id));
        net.join_apart(2, 1, |config| config.import_policy = sets(on_import), |_| {});
        net.join_apart(2, 3, |config| config.export_policy = sets(on_export), |_| {});
        net.wait(5);
        net.announce(1, "10.1.0.0/16");
        let rows = net.core(3).routes(RouteView::Received);
        let communities = &rows[0].attributes.extended_communities;
        assert_eq!((communities.len(), communities.contains(&lb)), (arrives, arrives == 2));
    }
}

#[test]
fn blackholes_are_taken_where_agreed_on_and_stay_inside() {
    for (accept, kept) in
        [(true, "10.1.2.3/32 via 10.0.0.1 path 65001 blackhole no-export"), (false, "refused Policy")]
    {
        let mut net = Net::new();
        [1, 2, 3].into_iter().for_each(|id| net.add(id));
        net.join_apart(
            2,
            1,
            |config| {
                config.import = vec![crate::config::AllowedPrefix::exact(prefix("10.1.0.0/16"))];
                config.accept_blackhole = accept;
            },
            |_| {},
        );
        net.join_apart(2, 3, |config| config.export_learned = true, |_| {});
        net.wait(5);
        net.announce_with(1, "10.1.2.3/32", &["blackhole"]);
        net.announce_with(1, "10.2.2.3/32", &["blackhole"]);
        let rows = heard(&mut net, 2, 1);
        assert!(rows[0].ends_with(kept), "{rows:?}");
        assert!(rows[1].ends_with("refused Policy"), "not the peer's to speak for: {rows:?}");
        assert_eq!(heard(&mut net, 3, 2).len(), 0);
        let paths = net.core(2).paths(&prefix("10.1.2.3/32"));
        assert_eq!(
            paths.iter().map(|path| path.blackhole).collect::<Vec<_>>(),
            vec![true; usize::from(accept)]
        );
    }
}

#[test]
fn a_draining_speaker_is_avoided_and_comes_back() {
    let mut net = Net::new();
    net.add(1);
    net.start(net::speaker(2, 65001), 2);
    net.add(3);
    net.join(1, 2, |_| {});
    net.join(1, 3, |_| {});
    net.wait(5);
    net.announce(1, "10.1.0.0/16");
    net.core(1).set_draining(true);
    net.run();
    assert_eq!(heard(&mut net, 3, 1), ["10.1.0.0/16 via 10.0.0.1 path 65001 pref 0 graceful-shutdown"]);
    assert_eq!(heard(&mut net, 2, 1), ["10.1.0.0/16 via 10.0.0.1 path  pref 0 graceful-shutdown"]);
    net.core(1).set_draining(false);
    net.run();
    assert_eq!(heard(&mut net, 3, 1), ["10.1.0.0/16 via 10.0.0.1 path 65001"]);
    assert_eq!(heard(&mut net, 2, 1), ["10.1.0.0/16 via 10.0.0.1 path  pref 100"]);
}

#[test]
fn another_rpki_table_judges_routes_anew() {
    let not_invalid = r#"{"name": "rov", "when": [{"rpki": ["invalid"]}], "then": "reject"}, {"name": "rest", "then": "accept"}"#;
    let mut net = Net::new();
    [1, 2, 3, 4].into_iter().for_each(|id| net.add(id));
    net.join_apart(2, 1, |config| config.import_policy = policy(not_invalid), |_| {});
    net.join(2, 4, |_| {});
    net.join_apart(2, 3, |config| config.export_policy = policy(not_invalid), |_| {});
    net.wait(5);
    net.announce(1, "10.1.0.0/16");
    net.announce(4, "10.4.0.0/16");
    assert_eq!(heard(&mut net, 3, 2).len(), 2);
    let vrp = |text, asn| Vrp { prefix: prefix(text), max_len: 16, asn };
    net.core(2).set_rpki(Arc::new([vrp("10.1.0.0/16", 7), vrp("10.4.0.0/16", 7)].into_iter().collect()));
    net.run();
    assert!(heard(&mut net, 2, 1)[0].ends_with("refused Policy"));
    assert_eq!(
        heard(&mut net, 2, 4),
        ["10.4.0.0/16 via 10.0.0.4 path 65004"],
        "its peer's policy does not ask"
    );
    assert_eq!(heard(&mut net, 3, 2).len(), 0);
    net.core(2).set_rpki(Arc::new([vrp("10.1.0.0/16", 65001)].into_iter().collect()));
    net.run();
    assert_eq!(heard(&mut net, 3, 2).len(), 2);
}

#[test]
fn a_policy_can_be_tried_before_a_route_comes() {
    let mut net = row(|config| {
        config.export_policy = policy(r#"{"name": "n1", "when": [{"peers": ["n1"]}], "then": "accept"}"#)
    });
    let mut question = PolicyQuestion {
        peer: "n3".into(),
        import: false,
        from: Some("n1".into()),
        prefix: prefix("10.1.0.0/16"),
        next_hop: None,
        attributes: Default::default(),
    };
    let found = net.core(2).try_policy(&question).unwrap();
    assert_eq!((found.accepted, found.decided_by.as_deref()), (true, Some("n1")));
    question.from = None;
    let found = net.core(2).try_policy(&question).unwrap();
    assert_eq!(
        (found.accepted, found.decided_by),
        (true, None),
        "own announcements are their own permission"
    );
    (question.import, question.peer) = (true, "n1".into());
    assert_eq!(net.core(2).try_policy(&question).unwrap().decided_by.as_deref(), Some("allowed"));
    question.peer = "n9".into();
    assert!(net.core(2).try_policy(&question).is_err());
}

pub(super) fn several(config: &mut PeerConfig) {
    config.export_learned = true;
    config.add_path = AddPaths { receive: true, send: Some(PathCount::All) };
}

/// Speakers 1, 3 and 4 announce to 2, which tells 5 of all paths, which tells 6 of the best two.
fn paths() -> Net {
    let mut net = Net::new();
    (1..=6).for_each(|id| net.add(id));
    [1, 3, 4].into_iter().for_each(|id| net.join(2, id, |_| {}));
    net.join(2, 5, several);
    let two = |config: &mut PeerConfig| {
        several(config);
        config.add_path.send = Some(PathCount::Best(std::num::NonZeroU8::new(2).unwrap()));
    };
    net.join_apart(5, 6, two, several);
    net.wait(5);
    net
}

/// Path identifiers and paths of what a speaker has from a peer.
fn identified(net: &mut Net, id: Id, from: Id) -> Vec<(u32, String)> {
    let rows = net.core(id).routes(RouteView::Received);
    let rows = rows.iter().filter(|row| row.peer == format!("n{from}"));
    rows.map(|row| (row.path_id, row.attributes.as_path.to_string())).collect()
}

#[test]
fn all_paths_go_to_who_takes_them_and_keep_their_identifiers() {
    let mut net = paths();
    let net_of = "10.1.0.0/16";
    [1, 3, 4].into_iter().for_each(|id| net.announce(id, net_of));
    let all = identified(&mut net, 5, 2);
    assert_eq!(
        all.iter().map(|(_, path)| path.as_str()).collect::<Vec<_>>(),
        ["65002 65001", "65002 65003", "65002 65004"]
    );
    let of_best: Vec<String> = identified(&mut net, 6, 5).into_iter().map(|(_, path)| path).collect();
    assert_eq!(of_best, ["65005 65002 65001", "65005 65002 65003"]);
    let paths = net.core(5).paths(&prefix(net_of));
    assert_eq!(paths.len(), 1, "all lead to one next hop");
    // The best goes: the others keep their identifiers, and 6 hears of the next.
    net.core(1).withdraw(&Scope::All, &prefix(net_of));
    net.run();
    assert_eq!(identified(&mut net, 5, 2), all[1..]);
    let mut of_best: Vec<String> = identified(&mut net, 6, 5).into_iter().map(|(_, path)| path).collect();
    of_best.sort();
    assert_eq!(of_best, ["65005 65002 65003", "65005 65002 65004"]);
    // Own announcements take the place of learned paths, and give it back.
    net.announce(2, net_of);
    assert_eq!(identified(&mut net, 5, 2), [(0, "65002".to_owned())]);
    net.core(2).withdraw(&Scope::All, &prefix(net_of));
    net.run();
    assert_eq!(identified(&mut net, 5, 2), all[1..]);
    let state = net.core(5).refresh("n2").unwrap();
    net.run();
    assert!(state && identified(&mut net, 5, 2) == all[1..], "a refresh changes nothing");
    let now = net.now;
    net.core(2).remove_peer(now, "n3").unwrap();
    net.run();
    assert_eq!(identified(&mut net, 5, 2), all[2..]);
}

#[test]
fn a_peer_that_takes_one_path_hears_of_the_best_only() {
    let mut net = Net::new();
    (1..=5).for_each(|id| net.add(id));
    [1, 3].into_iter().for_each(|id| net.join(2, id, |_| {}));
    let receive_only = |config: &mut PeerConfig| config.add_path.receive = true;
    net.join_apart(2, 4, several, |_| {});
    net.join_apart(2, 5, |config| config.export_learned = true, receive_only);
    net.wait(5);
    [1, 3].into_iter().for_each(|id| net.announce(id, "2001:db8:1::/48"));
    for id in [4, 5] {
        assert_eq!(identified(&mut net, id, 2), [(0, "65002 65001".to_owned())], "{id}");
    }
}

#[test]
fn a_peer_has_64_paths_of_a_prefix_at_most() {
    let mut net = Net::new();
    (1..=2).for_each(|id| net.add(id));
    net.join(1, 2, several);
    net.wait(5);
    let update = |count: u32| {
        let attributes =
            crate::Attributes { as_path: crate::AsPath::sequence(&[65001]), ..Default::default() };
        let hop = crate::NextHop::new([10, 0, 0, 1].into());
        let routes: Vec<_> = (1..=count)
            .map(|path_id| crate::wire::Route { prefix: prefix("10.1.0.0/16"), path_id })
            .collect();
        let context = crate::wire::EncodeContext { add_path: true, ..Default::default() };
        let mut bytes = Vec::new();
        crate::wire::announce(&attributes, &hop, Family::Ipv4Unicast, &routes, context, &mut bytes).unwrap();
        bytes
    };
    net.inject(1, 2, &update(100));
    assert_eq!(identified(&mut net, 2, 1).len(), 64);
    let now = net.now;
    assert_eq!(net.core(2).peers(now)[0].counters.ignored, 36);
}

/// Speaker 1 announces to 2, which takes five routes of IPv4 and does `action` beyond.
fn limited(action: LimitAction, announced: u8) -> Net {
    let mut net = Net::new();
    (1..=2).for_each(|id| net.add(id));
    let limit = PrefixLimit { family: Family::Ipv4Unicast, max: 5, warning_percent: 80, action };
    net.join_apart(2, 1, |config| config.prefix_limits = vec![limit], |_| {});
    net.wait(5);
    net.announce(1, "2001:db8:1::/48");
    (0..announced).for_each(|number| net.announce(1, &format!("10.{number}.0.0/16")));
    net
}

fn state(net: &mut Net, id: Id) -> crate::event::PeerState {
    let now = net.now;
    net.core(id).peers(now).remove(0)
}

#[test]
fn a_limit_warns_discards_restarts_or_stops() {
    let up = |net: &mut Net| state(net, 2).state == crate::fsm::State::Established;
    let mut net = limited(LimitAction::Warn, 9);
    assert!(up(&mut net) && heard(&mut net, 2, 1).len() == 10);

    let mut net = limited(LimitAction::Discard, 9);
    assert!(up(&mut net) && heard(&mut net, 2, 1).len() == 6);
    let family = state(&mut net, 2).families[0].clone();
    assert_eq!((family.received, family.limit, family.discarded), (5, Some(5), 4));
    net.announce_with(1, "10.0.0.0/16", &["1:1"]);
    assert!(heard(&mut net, 2, 1)[0].ends_with("1:1"), "what is held may change");
    for number in 0..2 {
        net.core(1).withdraw(&Scope::All, &prefix(&format!("10.{number}.0.0/16")));
        net.run();
    }
    assert_eq!(heard(&mut net, 2, 1).len(), 6, "asked for again once there was room");

    let mut net = limited(LimitAction::Restart { after_secs: 300 }, 6);
    assert!(!up(&mut net) && heard(&mut net, 2, 1).is_empty());
    let told = state(&mut net, 1).last_error.unwrap();
    assert!(told.contains("maximum number of prefixes"), "{told}");
    net.core(1).withdraw(&Scope::All, &prefix("10.0.0.0/16"));
    net.wait(290);
    assert!(!up(&mut net), "it rests");
    net.wait(60);
    assert!(up(&mut net) && heard(&mut net, 2, 1).len() == 6);

    let mut net = limited(LimitAction::Stop, 6);
    net.wait(4000);
    assert!(!up(&mut net));
}

#[test]
fn the_warning_comes_at_its_percentage() {
    let limit = |max, warning_percent| PrefixLimit {
        family: Family::Ipv4Unicast,
        max,
        warning_percent,
        action: LimitAction::Warn,
    };
    let from = [(5, 80), (1_000_000, 75), (1, 1), (usize::MAX, 100)];
    assert_eq!(from.map(|(max, percent)| limit(max, percent).warning()), [4, 750_000, 1, usize::MAX]);
}
