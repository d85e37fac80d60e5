//! What passes from peer to peer, with real BIRD and FRR: several paths (RFC 7911), reflection (RFC 4456), large communities by policy (RFC 8092), prefix
//! limits (RFC 4486), graceful shutdown (RFC 8326). Needs root.

#![cfg(test)]

use serde_json::{Value, json};
use tombolo_tests::matrix::{Feature, Peer, cell};
use tombolo_tests::netns::{Namespace, eventually, join, join_by};
use tombolo_tests::routers::{Bird, Frr};
use tombolo_tests::speaker::Speaker;

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
const THEIRS: &str = "198.51.100.0/24";
const OURS: &str = "10.1.1.0/24";

/// Our namespace and that of a daemon, each with several addresses.
fn namespaces() -> [Namespace; 2] {
    let pair = [Namespace::new("pspk"), Namespace::new("ppeer")];
    let theirs = ["10.77.0.2/24", "10.77.0.3/24", "10.77.0.4/24", "fd00:77::2/64"];
    let ours = ["10.77.0.1/24", "10.77.0.11/24", "10.77.0.12/24", "fd00:77::1/64"];
    join(&pair[0], &ours, &pair[1], &theirs);
    pair
}

fn speaker(namespace: &Namespace, peers: &[Value], more: &[&str]) -> Speaker {
    let arguments = ["asn=65001", "router-id=10.77.0.1", "allow=0.0.0.0/0", "allow=::/0"];
    Speaker::start(SPEAKER, namespace, peers, &[&arguments, more].concat())
}

fn peer(name: &str, address: &str, asn: u32, more: Value) -> Value {
    let mut settings =
        json!({"name": name, "address": address, "peer_asn": asn, "local_address": "10.77.0.1"});
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    settings
}

/// A policy of one statement that takes everything.
fn all_with(actions: &Value) -> Value {
    json!({"name": "test", "statements": [{"name": "all", "actions": actions, "then": "accept"}]})
}

const BIRD: &str = "router id 10.77.0.2;
protocol device {}
template bgp node { hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
";

fn bird_has(bird: &Bird, question: &str, wanted: impl Fn(&str) -> bool) -> String {
    eventually(&format!("BIRD answers {question}"), || {
        let text = bird.ask(question);
        if wanted(&text) { Ok(text) } else { Err(text) }
    })
}

fn frr_path(frr: &Frr, prefix: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("FRR has {prefix}"), || {
        let text = frr.ask(&format!("show bgp ipv4 unicast {prefix} json"));
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        let path = answer["paths"][0].clone();
        if wanted(&path) { Ok(path) } else { Err(text) }
    })
}

fn frr(namespace: &Namespace, asn: u32, neighbour: &str, lines: &str) -> Frr {
    Frr::start(
        namespace,
        &format!(
            "router bgp {asn}
 bgp router-id 10.88.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {neighbour} remote-as 65001
 neighbor {neighbour} timers 3 9
 neighbor {neighbour} timers connect 2
{lines}"
        ),
    )
}

#[test]
fn several_paths_come_from_bird_and_go_to_bird() {
    let [ours, theirs] = namespaces();
    // Two origins of a prefix, and a third protocol that takes what we make of them.
    let bird = Bird::start(
        &theirs,
        &format!(
            "{BIRD}
protocol static one {{ ipv4 {{ preference 110; }}; route {THEIRS} blackhole {{ bgp_large_community.add((65002, 1, 1)); }}; }}
protocol static two {{ ipv4 {{ preference 100; }}; route {THEIRS} blackhole {{ bgp_large_community.add((65002, 2, 2)); }}; }}
protocol bgp both from node {{ local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001; ipv4 {{ import none; export where source = RTS_STATIC; add paths tx; }}; }}
protocol bgp single from node {{ local 10.77.0.3 as 65003; neighbor 10.77.0.11 as 65001; ipv4 {{ import none; export where proto = \"one\"; }}; }}
protocol bgp taker from node {{ local 10.77.0.4 as 65004; neighbor 10.77.0.12 as 65001; ipv4 {{ import all; export none; add paths rx; }}; }}
"
        ),
    );
    let several = json!({"receive": true, "send": "all"});
    let peers = [
        peer("both", "10.77.0.2", 65002, json!({"add_path": several})),
        peer("single", "10.77.0.3", 65003, json!({"add_path": several, "local_address": "10.77.0.11"})),
        peer(
            "taker",
            "10.77.0.4",
            65004,
            json!({"add_path": several, "export_learned": true, "local_address": "10.77.0.12"}),
        ),
    ];
    let mut speaker = speaker(&ours, &peers, &[&format!("announce={OURS}")]);
    let rows = speaker.receives("both", "we have both of BIRD's paths", |rows| rows.len() == 2);
    assert_ne!(rows[0]["path_id"], rows[1]["path_id"], "{rows:?}");
    speaker.receives(
        "single",
        "the third path has no identifier",
        |rows| matches!(rows, [row] if row.get("path_id").is_none()),
    );
    let question = format!("show route protocol taker all for {THEIRS}");
    let text = bird_has(&bird, &question, |text| text.matches("BGP.as_path: 65001 ").count() == 3);
    for wanted in ["BGP.as_path: 65001 65002", "BGP.as_path: 65001 65003", "(65002, 1, 1)", "(65002, 2, 2)"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    // One of them goes; the own announcement is one path beside.
    bird.ask("disable two");
    bird_has(&bird, &question, |text| text.matches("BGP.as_path: 65001 ").count() == 2);
    bird_has(&bird, &format!("show route protocol taker all for {OURS}"), |text| {
        text.contains("BGP.as_path: 65001")
    });
    cell(Peer::Bird, Feature::AddPath, env!("CARGO_CRATE_NAME"));
}

#[test]
fn bird_and_frr_hear_of_each_other_through_our_reflector() {
    let [ours, bird_side] = namespaces();
    let frr_side = Namespace::new("pfrr");
    join_by([&ours, &frr_side], ["eth2", "eth1"], [&["10.88.0.1/24"], &["10.88.0.2/24"]]);
    let bird = Bird::start(
        &bird_side,
        &format!(
            "{BIRD}
protocol static {{ ipv4; route {THEIRS} blackhole; }}
protocol bgp reflector from node {{ local 10.77.0.2 as 65001; neighbor 10.77.0.1 as 65001; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}
"
        ),
    );
    let frr = frr(&frr_side, 65001, "10.88.0.1", " network 203.0.113.0/24\n");
    let client = |more: Value| {
        let mut settings = json!({"export_learned": true, "reflector_client": true});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let peers = [
        peer("bird", "10.77.0.2", 65001, client(json!({}))),
        peer("frr", "10.88.0.2", 65001, client(json!({"local_address": "10.88.0.1"}))),
    ];
    let mut speaker = speaker(&ours, &peers, &[]);
    speaker.receives("bird", "BIRD's route comes", |rows| rows.len() == 1);
    let path = frr_path(&frr, THEIRS, |path| !path.is_null());
    assert_eq!(path["originatorId"], "10.77.0.2", "{path}");
    assert_eq!(path["clusterList"]["list"], json!(["10.77.0.1"]), "{path}");
    assert_eq!(path["nexthops"][0]["ip"], "10.77.0.2", "the next hop is that of the client");
    let question = "show route all for 203.0.113.0/24";
    let text = bird_has(&bird, question, |text| text.contains("BGP.originator_id"));
    for wanted in ["BGP.originator_id: 10.88.0.2", "BGP.cluster_list: 10.77.0.1", "BGP.next_hop: 10.88.0.2"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

/// Of two clients' paths the better one may not go to a third (RFC 7947 section 2.3.2.1): that hears of the other.
#[test]
fn a_client_of_our_route_server_hears_of_the_best_path_it_may_hear_of() {
    let [ours, theirs] = namespaces();
    let bird = Bird::start(
        &theirs,
        &format!(
            "{BIRD}
protocol static one {{ ipv4; route {THEIRS} blackhole; route 192.0.2.0/24 blackhole; }}
protocol bgp client1 from node {{ local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001; ipv4 {{ import none; export where proto = \"one\"; }}; }}
protocol bgp client2 from node {{ local 10.77.0.3 as 65003; neighbor 10.77.0.11 as 65001; ipv4 {{ import none; export filter {{ if proto = \"one\" then {{ bgp_path.prepend(65003); accept; }} reject; }}; }}; }}
protocol bgp taker from node {{ local 10.77.0.4 as 65004; neighbor 10.77.0.12 as 65001; ipv4 {{ import all; export none; }}; }}
"
        ),
    );
    let served = |name: &str, address: &str, asn, local: &str, more: Value| {
        let mut settings =
            json!({"route_server_client": true, "export_learned": true, "local_address": local});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        peer(name, address, asn, settings)
    };
    let not_of = |name: &str| {
        json!({"export_policy": {"name": "choice", "statements": [
            {"name": "hidden", "when": [{"peers": [name]}, {"prefixes": [THEIRS]}], "then": "reject"},
            // All are one BIRD, which takes nothing whose next hop is itself.
            {"name": "rest", "actions": [{"nextHop": "self"}], "then": "accept"},
        ]}})
    };
    let taker = |hidden: &str| served("taker", "10.77.0.4", 65004, "10.77.0.12", not_of(hidden));
    let peers = [
        served("first", "10.77.0.2", 65002, "10.77.0.1", json!({})),
        served("second", "10.77.0.3", 65003, "10.77.0.11", json!({})),
        taker("first"),
    ];
    let mut speaker = speaker(&ours, &peers, &[]);
    let has_path = |bird: &Bird, prefix: &str, path: &str| {
        let wanted = format!("BGP.as_path: {path}");
        bird_has(bird, &format!("show route all protocol taker for {prefix}"), |text| {
            text.lines().any(|line| line.trim() == wanted)
        });
    };
    has_path(&bird, "192.0.2.0/24", "65002");
    has_path(&bird, THEIRS, "65003 65003");
    // The path it hears of goes: nothing is left for it, though the best is there.
    bird.ask("disable client2");
    bird_has(&bird, &format!("show route protocol taker for {THEIRS}"), |text| !text.contains("unicast"));
    bird.ask("enable client2");
    has_path(&bird, THEIRS, "65003 65003");
    // Another policy, and no session ends for it.
    speaker.update(&taker("second"));
    has_path(&bird, THEIRS, "65002");
    assert_eq!(speaker.peer("taker")["counters"]["sessions"], 1);
}

#[test]
fn policies_set_and_match_large_communities_of_frr_and_bird() {
    let [ours, theirs] = namespaces();
    let frr_side = Namespace::new("pfrr");
    join_by([&ours, &frr_side], ["eth2", "eth1"], [&["10.88.0.1/24"], &["10.88.0.2/24"]]);
    let bird = Bird::start(
        &theirs,
        &format!(
            "{BIRD}
protocol static {{ ipv4; route {THEIRS} blackhole {{ bgp_large_community.add((65002, 7, 8)); }}; route 192.0.2.0/24 blackhole; }}
protocol bgp node1 from node {{ local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}
"
        ),
    );
    let frr = frr(
        &frr_side,
        65003,
        "10.88.0.1",
        " address-family ipv4 unicast
  network 203.0.113.0/24
  neighbor 10.88.0.1 route-map out out
 exit-address-family
route-map out permit 10
 set large-community 65003:9:9
",
    );
    let import = json!({"name": "in", "statements": [
        {"name": "tagged", "when": [{"largeCommunities": ["65002:7:*", "65003:*:9"]}],
         "actions": [{"addLargeCommunities": ["65001:1:2"]}], "then": "accept"},
    ]});
    let export = all_with(&json!([{"removeLargeCommunities": ["65002:*:*"]}, {"med": {"set": 77}}]));
    let settings = |more: Value| {
        let mut settings = json!({"import_policy": import, "export_policy": export});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let peers = [
        peer("bird", "10.77.0.2", 65002, settings(json!({}))),
        peer("frr", "10.88.0.2", 65003, settings(json!({"local_address": "10.88.0.1"}))),
    ];
    let mut speaker = speaker(&ours, &peers, &[&format!("announce={OURS}")]);
    let rows = speaker.receives("bird", "both of BIRD's routes come", |rows| rows.len() == 2);
    let row = |prefix: &str| rows.iter().find(|row| row["prefix"] == prefix).unwrap();
    assert_eq!(row("192.0.2.0/24")["refused"], "policy", "{rows:?}");
    assert_eq!(row(THEIRS)["attributes"]["large_communities"], json!(["65001:1:2", "65002:7:8"]));
    let path = frr_path(&frr, THEIRS, |path| !path.is_null());
    assert_eq!(
        (&path["largeCommunity"]["string"], &path["metric"]),
        (&json!("65001:1:2"), &json!(77)),
        "{path}"
    );
    let text =
        bird_has(&bird, "show route all for 203.0.113.0/24", |text| text.contains("BGP.large_community"));
    assert!(text.contains("(65001, 1, 2) (65003, 9, 9)") && text.contains("BGP.med: 77"), "{text}");
    // Another policy, and no session ends for it.
    let change =
        settings(json!({"import_policy": all_with(&json!([{"setLargeCommunities": ["65001:5:5"]}]))}));
    speaker.update(&peer("bird", "10.77.0.2", 65002, change));
    frr_path(&frr, "192.0.2.0/24", |path| path["largeCommunity"]["string"] == "65001:5:5");
    assert_eq!(speaker.peer("bird")["counters"]["sessions"], 1);
    // Drained: both hear it in the community.
    speaker.ask("drain true", "draining");
    frr_path(&frr, OURS, |path| path["community"]["string"].to_string().contains("graceful-shutdown"));
    bird_has(&bird, &format!("show route all for {OURS}"), |text| text.contains("(65535,0)"));
    for daemon in [Peer::Bird, Peer::Frr] {
        cell(daemon, Feature::LargeCommunities, env!("CARGO_CRATE_NAME"));
    }
}

#[test]
fn prefix_limits_end_the_session_on_both_sides() {
    let [ours, theirs] = namespaces();
    let bird = Bird::start(
        &theirs,
        &format!(
            "{BIRD}
protocol static {{ ipv4; route {THEIRS} blackhole; route 192.0.2.0/24 blackhole; route 203.0.113.0/24 blackhole; }}
protocol bgp node1 from node {{ local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001; ipv4 {{ import all; export where source = RTS_STATIC; }}; }}
"
        ),
    );
    let limited = |action: Value| {
        let limit = json!([{"family": "ipv4-unicast", "max": 2, "action": action}]);
        peer("bird", "10.77.0.2", 65002, json!({"prefix_limits": limit}))
    };
    let mut speaker = speaker(&ours, &[limited(json!("discard"))], &[&format!("announce={OURS}")]);
    speaker.receives("bird", "as many routes as may be come", |rows| rows.len() == 2);
    assert_eq!(speaker.peer("bird")["families"][0]["discarded"], 1);
    // The one that is too many shows with the next route refresh, or here the next session.
    speaker.update(&limited(json!({"restart": {"afterSecs": 600}})));
    speaker.ask("refresh bird", "refreshed");
    bird_has(&bird, "show protocols all node1", |text| text.contains("Maximum number of prefixes reached"));
    assert_ne!(speaker.peer("bird")["state"], "established");
    speaker.update(&limited(json!("warn")));
    cell(Peer::Bird, Feature::MaxPrefix, env!("CARGO_CRATE_NAME"));
}

#[test]
fn a_limit_of_frr_is_told_here() {
    let [ours, theirs] = namespaces();
    let lines = " address-family ipv4 unicast\n  neighbor 10.77.0.1 maximum-prefix 1\n exit-address-family\n";
    let _frr = frr(&theirs, 65002, "10.77.0.1", lines);
    let announced = format!("announce={OURS}");
    let mut speaker = speaker(&ours, &[peer("frr", "10.77.0.2", 65002, json!({}))], &[&announced]);
    eventually("the session is up", || {
        let peer = speaker.peer("frr");
        if peer["state"] == "established" { Ok(()) } else { Err(peer.to_string()) }
    });
    // FRR counts when the next message comes.
    (2..5).for_each(|number| speaker.tell(&format!("announce 10.1.{number}.0/24")));
    eventually("FRR's Cease is told", || {
        let peer = speaker.peer("frr");
        let told = peer["last_error"].as_str().unwrap_or_default().to_owned();
        if told.contains("maximum number of prefixes") { Ok(()) } else { Err(peer.to_string()) }
    });
    cell(Peer::Frr, Feature::MaxPrefix, env!("CARGO_CRATE_NAME"));
}
