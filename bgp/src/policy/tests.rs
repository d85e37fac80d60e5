use super::*;
use crate::rpki::Vrp;
use crate::wire::{AsPath, Community, Origin};

const YAML_AS_JSON: &str = r#"{
    "name": "from-tor",
    "statements": [
        {"name": "bogons", "when": [{"prefixes": ["192.168.0.0/16 orlonger", "fc00::/7 orlonger"]}], "then": "reject"},
        {"name": "tag", "when": [{"peerGroups": ["tors"]}], "actions": [{"addCommunities": ["65000:7"]}]},
        {"name": "spoofed", "when": [{"rpki": ["invalid"]}], "then": "reject"},
        {"name": "preferred",
         "when": [{"communities": ["65000:*"]}, {"any": [{"originAs": [65001, "64512-64599"]}, {"largeCommunities": ["65000:1:*"]}]}],
         "actions": [{"localPref": {"set": 200}}, {"removeCommunities": ["65000:7"]}, {"prepend": {"times": 2}}, "removeMed"],
         "then": "accept"},
        {"name": "short", "when": [{"asPathLength": {"max": 3}}, {"not": {"asPathContains": ["666"]}}], "then": "accept"}
    ]
}"#;

fn policy() -> Policy {
    let policy: Policy = serde_json::from_str(YAML_AS_JSON).unwrap();
    policy.check(true).unwrap();
    policy
}

fn subject<'a>(prefix: &str, attributes: &'a Attributes, rpki: &'a RpkiTable) -> Subject<'a> {
    Subject {
        prefix: prefix.parse().unwrap(),
        attributes,
        next_hop: Some(NextHop::new([10, 0, 0, 1].into())),
        source: Source::Peer { name: "tor1", group: Some("tors"), external: true },
        local_asn: 65111,
        rpki,
    }
}

#[test]
fn a_policy_survives_being_written() {
    let policy = policy();
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<Policy>(&text).unwrap(), policy);
    for bad in [
        r#"{"name": "x", "statements": [{"name": "s", "when": [{"prefixes": ["10.0.0.0/33"]}]}]}"#,
        r#"{"name": "x", "statements": [{"name": "s", "wen": []}]}"#,
        r#"{"name": "x", "statements": [{"name": "s", "actions": [{"addCommunities": ["70000:1"]}]}]}"#,
    ] {
        assert!(serde_json::from_str::<Policy>(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_first_deciding_statement_wins_and_is_named() {
    let policy = policy();
    let rpki: RpkiTable =
        [Vrp { prefix: "203.0.113.0/24".parse().unwrap(), max_len: 24, asn: 65001 }].into_iter().collect();
    let path =
        |asns: &[u32]| Attributes { as_path: AsPath::sequence(asns), med: Some(9), ..Default::default() };
    for (prefix, asns, accepted, by) in [
        ("192.168.1.0/24", &[65100, 65001][..], false, Some("bogons")),
        ("fd00:1::/48", &[65100, 65001], false, Some("bogons")),
        ("203.0.113.0/24", &[65100, 65001], true, Some("preferred")),
        ("203.0.113.0/24", &[65100, 65002], false, Some("spoofed")),
        ("198.51.100.0/24", &[65100, 64520], true, Some("preferred")),
        ("198.51.100.0/24", &[65100, 65200], true, Some("short")),
        ("198.51.100.0/24", &[65100, 666], false, None),
        ("198.51.100.0/24", &[1, 2, 3, 4], false, None),
        ("2001:db8::/32", &[65001], true, Some("preferred")),
    ] {
        let attributes = path(asns);
        let found = policy.evaluate(&subject(prefix, &attributes, &rpki));
        assert_eq!((found.accepted, found.decided_by.as_deref()), (accepted, by), "{prefix} {asns:?}");
    }
}

#[test]
fn later_statements_see_what_earlier_ones_did() {
    let (policy, rpki) = (policy(), RpkiTable::default());
    let attributes = Attributes { as_path: AsPath::sequence(&[65001]), med: Some(9), ..Default::default() };
    let found = policy.evaluate(&subject("198.51.100.0/24", &attributes, &rpki));
    // "preferred" holds because "tag" added the community, and then removes it.
    assert_eq!(found.decided_by.as_deref(), Some("preferred"));
    assert_eq!(found.attributes.as_path.to_string(), "65111 65111 65001");
    assert_eq!((found.attributes.local_pref, found.attributes.med), (Some(200), None));
    assert_eq!(found.attributes.communities, []);
    let trace: Vec<(&str, Option<&str>)> =
        found.trace.iter().map(|step| (step.statement.as_str(), step.failed.as_deref())).collect();
    assert_eq!(
        trace,
        [
            ("bogons", Some(r#"{"prefixes":["192.168.0.0/16 le 32","fc00::/7 le 128"]}"#)),
            ("tag", None),
            ("spoofed", Some(r#"{"rpki":["invalid"]}"#)),
            ("preferred", None)
        ]
    );
    assert_eq!(found.trace[3].actions[0], r#"{"localPref":{"set":200}}"#);
}

#[test]
fn every_condition_holds_and_fails() {
    let rpki = RpkiTable::default();
    let attributes = Attributes {
        as_path: AsPath::sequence(&[65100, 65001]),
        origin: Origin::Egp,
        med: Some(50),
        communities: vec!["65000:7".parse().unwrap()],
        large_communities: vec!["65000:1:2".parse().unwrap()],
        extended_communities: vec!["rt:65000:1".parse::<ExtendedCommunity>().unwrap().0],
        ..Default::default()
    };
    let route = subject("10.1.0.0/16", &attributes, &rpki);
    for (holds, fails) in [
        (r#"{"prefixes": ["10.0.0.0/8 le 16"]}"#, r#"{"prefixes": ["10.0.0.0/8"]}"#),
        (r#"{"families": ["ipv4-unicast"]}"#, r#"{"families": ["ipv6-unicast"]}"#),
        (r#"{"asPathLength": {"min": 2, "max": 2}}"#, r#"{"asPathLength": {"min": 3}}"#),
        (r#"{"asPathContains": [65001]}"#, r#"{"asPathContains": ["1-64999"]}"#),
        (r#"{"originAs": [65001]}"#, r#"{"originAs": [65100]}"#),
        (r#"{"neighbourAs": [65100]}"#, r#"{"neighbourAs": [65001]}"#),
        (r#"{"communities": ["1:1", "65000:*"]}"#, r#"{"communities": ["65000:8-9"]}"#),
        (r#"{"largeCommunities": ["65000:*:2"]}"#, r#"{"largeCommunities": ["65000:*:3"]}"#),
        (r#"{"extendedCommunities": ["rt:65000:*"]}"#, r#"{"extendedCommunities": ["rt:65000:2"]}"#),
        (r#"{"nextHops": ["10.0.0.0/24"]}"#, r#"{"nextHops": ["10.0.1.0/24"]}"#),
        (r#"{"peers": ["tor1"]}"#, r#"{"peers": ["tor2"]}"#),
        (r#"{"peerGroups": ["tors"]}"#, r#"{"peerGroups": []}"#),
        (r#"{"sources": ["external"]}"#, r#"{"sources": ["own", "internal"]}"#),
        (r#"{"origins": ["egp"]}"#, r#"{"origins": ["igp"]}"#),
        (r#"{"rpki": ["not-found"]}"#, r#"{"rpki": ["valid"]}"#),
        (r#"{"localPref": {"min": 100, "max": 100}}"#, r#"{"localPref": {"min": 101}}"#),
        (r#"{"med": {"max": 50}}"#, r#"{"med": {"max": 49}}"#),
        (r#"{"all": []}"#, r#"{"any": []}"#),
        (r#"{"not": {"any": [{"peers": []}]}}"#, r#"{"not": {"all": [{"peers": ["tor1"]}]}}"#),
    ] {
        for (text, expected) in [(holds, true), (fails, false)] {
            let condition: Condition = serde_json::from_str(text).unwrap();
            let found = condition.holds(&route, route.attributes, route.next_hop.as_ref());
            assert_eq!(found, expected, "{text}");
            assert_eq!(serde_json::from_str::<Condition>(&condition.to_string()).unwrap(), condition);
        }
    }
}

#[test]
fn every_action_does_its_part() {
    let before = Attributes {
        communities: vec![Community(1), Community(2)],
        extended_communities: vec![1],
        med: Some(10),
        ..Default::default()
    };
    let done = |text: &str| {
        let action: Action = serde_json::from_str(text).unwrap();
        action.check().unwrap();
        assert_eq!(serde_json::from_str::<Action>(&action.to_string()).unwrap(), action);
        let mut route = Edited::of(&before);
        action.apply(65111, &mut route);
        route
    };
    assert_eq!(
        done(r#"{"addCommunities": ["0:2", "0:0"]}"#).attributes.communities,
        [0, 1, 2].map(Community)
    );
    assert_eq!(done(r#"{"removeCommunities": ["0:2-3"]}"#).attributes.communities, [Community(1)]);
    assert_eq!(done(r#"{"setCommunities": ["no-export"]}"#).attributes.communities, [Community::NO_EXPORT]);
    assert_eq!(done(r#"{"addLargeCommunities": ["1:2:3"]}"#).attributes.large_communities.len(), 1);
    assert_eq!(done(r#"{"setLargeCommunities": []}"#).attributes.large_communities, []);
    assert_eq!(done(r#"{"removeLargeCommunities": ["*:*:*"]}"#).attributes.large_communities, []);
    assert_eq!(done(r#"{"addExtendedCommunities": ["rt:1:1"]}"#).attributes.extended_communities.len(), 2);
    assert_eq!(done(r#"{"removeExtendedCommunities": ["0x1"]}"#).attributes.extended_communities, [0; 0]);
    assert_eq!(done(r#"{"setExtendedCommunities": []}"#).attributes.extended_communities, [0; 0]);
    assert_eq!(done(r#"{"localPref": {"add": 5}}"#).attributes.local_pref, Some(105));
    assert_eq!(done(r#"{"localPref": {"subtract": 500}}"#).attributes.local_pref, Some(0));
    let med = done(r#"{"med": {"add": 5}}"#);
    assert_eq!((med.attributes.med, med.med), (Some(15), true));
    assert_eq!(done(r#""removeMed""#).attributes.med, None);
    assert_eq!(done(r#"{"prepend": {"asn": 7, "times": 2}}"#).attributes.as_path.to_string(), "7 7");
    assert_eq!(done(r#"{"nextHop": "self"}"#).next_hop, Some(NextHopAction::Own));
    assert_eq!(
        done(r#"{"nextHop": {"address": "10.0.0.9"}}"#).next_hop,
        Some(NextHopAction::Address([10, 0, 0, 9].into()))
    );
}

#[test]
fn what_makes_no_sense_is_said() {
    let with = |actions: &str| -> Policy {
        serde_json::from_str(&format!(
            r#"{{"name": "x", "statements": [{{"name": "s", "actions": [{actions}]}}]}}"#
        ))
        .unwrap()
    };
    assert!(with(r#"{"prepend": {"times": 0}}"#).check(false).is_err());
    assert!(with(r#"{"nextHop": {"address": "224.0.0.1"}}"#).check(false).is_err());
    with(r#"{"nextHop": "self"}"#).check(false).unwrap();
    assert!(with(r#"{"nextHop": "self"}"#).check(true).unwrap_err().0.contains("import"));
    let mut deep = Condition::All(Vec::new());
    for _ in 0..20 {
        deep = Condition::Not(Box::new(deep));
    }
    let statements = vec![Statement { when: vec![deep], ..Default::default() }];
    assert!(Policy { statements, ..Default::default() }.check(false).is_err());
}

#[test]
fn own_announcements_pass_unless_a_statement_rejects_them() {
    let (rpki, attributes) = (RpkiTable::default(), Attributes::default());
    let own = Subject { source: Source::Own, next_hop: None, ..subject("10.1.0.0/16", &attributes, &rpki) };
    assert!(Policy::default().decide(&own).is_some());
    assert!(Policy::default().decide(&subject("10.1.0.0/16", &attributes, &rpki)).is_none());
    let reject = Statement { then: Then::Reject, ..Statement::default() };
    assert!(Policy { statements: vec![reject], ..Policy::default() }.decide(&own).is_none());
}
