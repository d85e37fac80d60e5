//! Graceful restart with notification support, long-lived graceful restart and enhanced route refresh, against BIRD and FRR. Needs root.

#![cfg(test)]

use serde_json::{Value, json};
use tombolo_tests::matrix::{Feature, Peer, cell};
use tombolo_tests::netns::{Daemon, Namespace, eventually, join};
use tombolo_tests::routers::{Bird, Frr};

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
const OURS: &str = "10.1.1.0/24";
const THEIRS: &str = "198.51.100.0/24";

fn namespaces() -> [Namespace; 2] {
    let pair = [Namespace::new("aspk"), Namespace::new("apeer")];
    join(&pair[0], &["10.77.0.1/24"], &pair[1], &["10.77.0.2/24"]);
    pair
}

fn settings(more: &Value) -> Value {
    let mut settings = json!({
        "name": "peer", "address": "10.77.0.2", "peer_asn": 65002,
        "graceful_restart": {"enabled": true, "restart_time_secs": 60},
    });
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    settings
}

fn start(namespace: &Namespace, more: &Value, restarting: bool) -> Daemon {
    let peer = format!("peer-json={}", settings(more));
    let (ours, theirs) = (format!("announce={OURS}"), format!("allow={THEIRS}"));
    let mut arguments = vec!["asn=65001", "router-id=10.77.0.1", &peer, &ours, &theirs];
    if restarting {
        arguments.push("restarting");
    }
    let mut daemon = namespace.spawn(SPEAKER, &arguments);
    daemon.wait_for("start", |line| line.contains("started").then_some(()));
    daemon.tell("complete");
    daemon
}

fn ask(speaker: &mut Daemon, command: &str, key: &str) -> Value {
    speaker.tell(command);
    speaker.wait_for(command, |line| serde_json::from_str::<Value>(line).ok()?.get(key).cloned())
}

/// Waits until what the speaker received satisfies `check`.
fn holds(speaker: &mut Daemon, what: &str, check: impl Fn(&[Value]) -> bool) {
    eventually(what, || {
        let rows = ask(speaker, "received", "received");
        if check(rows.as_array().unwrap()) { Ok(()) } else { Err(rows.to_string()) }
    });
}

fn fresh(rows: &[Value]) -> bool {
    // FRR says our own route back to us.
    let theirs: Vec<&Value> = rows.iter().filter(|row| row["prefix"] == THEIRS).collect();
    theirs.len() == 1 && theirs[0]["stale"] == false
}

fn frr(namespace: &Namespace) -> Frr {
    let config = format!(
        "router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart notification
 no bgp hard-administrative-reset
 neighbor 10.77.0.1 remote-as 65001
 neighbor 10.77.0.1 timers 3 9
 neighbor 10.77.0.1 timers connect 2
 address-family ipv4 unicast
  network {THEIRS}
 exit-address-family
"
    );
    Frr::start(namespace, &config)
}

/// FRR's path to our prefix: whether it is stale, none if there is none.
fn in_frr(frr: &Frr) -> Option<bool> {
    let answer: Value = serde_json::from_str(&frr.ask(&format!("show bgp ipv4 unicast {OURS} json"))).ok()?;
    let path = answer.get("paths")?.get(0)?.clone();
    Some(path.get("stale").and_then(Value::as_bool).unwrap_or_default())
}

#[test]
fn routes_outlive_a_reset_by_frr_where_both_set_the_n_bit_and_no_shutdown() {
    let [ours, theirs] = namespaces();
    let frr = frr(&theirs);
    let mut speaker = start(&ours, &json!({}), false);
    holds(&mut speaker, "FRR's route comes", fresh);
    eventually("FRR has ours", || {
        in_frr(&frr).filter(|stale| !stale).map(drop).ok_or_else(|| "no route".into())
    });

    // FRR resets the session: a NOTIFICATION that is no hard reset.
    frr.ask("clear bgp 10.77.0.1");
    let down = speaker.wait_for("down", |line| line.contains("\"down\"").then(|| line.to_owned()));
    assert!(down.contains("administrative reset (6/4)"), "{down}");
    holds(&mut speaker, "the route is there, and fresh again after the session is back", fresh);

    // We go for good: a hard reset, after which FRR keeps nothing.
    speaker.tell("shutdown gone for good");
    assert!(speaker.wait());
    eventually("FRR drops our route", || match in_frr(&frr) {
        None => Ok(()),
        stale => Err(format!("{stale:?}")),
    });
    let told = frr.ask("show bgp neighbors 10.77.0.1");
    assert!(told.contains("Hard Reset") || told.contains("Administrative Shutdown"), "{told}");
    cell(Peer::Frr, Feature::GracefulRestart, env!("CARGO_CRATE_NAME"));
}

#[test]
fn frr_keeps_our_routes_when_we_change_our_settings() {
    let [ours, theirs] = namespaces();
    let frr = frr(&theirs);
    let mut speaker = start(&ours, &json!({}), false);
    holds(&mut speaker, "FRR's route comes", fresh);
    eventually("FRR has ours", || in_frr(&frr).map(drop).ok_or_else(|| "no route".into()));
    // Passive and slow to come back: FRR's retained route can be seen.
    ask(&mut speaker, &format!("update {}", settings(&json!({"extended_messages": true}))), "updated");
    eventually("the session is new", || {
        let peers = ask(&mut speaker, "peers", "peers");
        if peers[0]["counters"]["sessions"] == 2 { Ok(()) } else { Err(peers.to_string()) }
    });
    holds(&mut speaker, "FRR's route is fresh again", fresh);
    eventually("FRR has ours, fresh", || match in_frr(&frr) {
        Some(false) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

const BIRD: &str = "router id 10.77.0.2;
 protocol device {}
 protocol static { ipv4; route 198.51.100.0/24 blackhole; }
 protocol bgp node {
   local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001;
   graceful restart on; graceful restart time 3; long lived graceful restart on; long lived stale time 60;
   hold time 9; connect retry time 1; connect delay time 1; error wait time 1, 2;
   ipv4 { import table on; import all; export where source = RTS_STATIC; next hop self; };
 }
";

fn long_lived() -> Value {
    json!({
        "graceful_restart": {"enabled": true, "restart_time_secs": 3},
        "long_lived": {"enabled": true, "stale_time_secs": {"ipv4-unicast": 60}},
    })
}

#[test]
fn bird_keeps_our_routes_as_long_lived_stale_and_we_keep_its() {
    let [ours, theirs] = namespaces();
    let bird = Bird::start(&theirs, BIRD);
    let mut speaker = start(&ours, &long_lived(), false);
    holds(&mut speaker, "BIRD's route comes", fresh);
    let shown = |bird: &Bird| bird.ask(&format!("show route {OURS} all"));
    eventually("BIRD has ours", || {
        let text = shown(&bird);
        if text.contains("10.77.0.1") { Ok(()) } else { Err(text) }
    });
    // Our process dies; after the restart time BIRD marks the route itself.
    drop(speaker);
    eventually("BIRD has our route as long-lived stale", || {
        let text = shown(&bird);
        if text.contains("(65535,6)") { Ok(()) } else { Err(text) }
    });
    // The next life says it again.
    let mut speaker = start(&ours, &long_lived(), true);
    holds(&mut speaker, "BIRD's route comes again", fresh);
    eventually("BIRD has ours, fresh", || {
        let text = shown(&bird);
        if text.contains("10.77.0.1") && !text.contains("(65535,6)") { Ok(()) } else { Err(text) }
    });
    // BIRD dies.
    drop(bird);
    holds(&mut speaker, "we have BIRD's route as long-lived stale", |rows| {
        rows.len() == 1 && rows[0]["stale"] == true && rows[0].to_string().contains("llgr-stale")
    });
    for feature in [Feature::GracefulRestart, Feature::LongLived] {
        cell(Peer::Bird, feature, env!("CARGO_CRATE_NAME"));
    }
}

#[test]
fn bird_frames_its_refresh_and_takes_ours_framed() {
    let [ours, theirs] = namespaces();
    let bird = Bird::start(&theirs, &BIRD.replace("import table on; ", ""));
    let mut speaker = start(&ours, &long_lived(), false);
    holds(&mut speaker, "BIRD's route comes", fresh);
    let state = bird.ask("show protocols all node");
    assert!(state.matches("Enhanced refresh").count() == 2, "both sides offer it: {state}");
    assert_eq!(ask(&mut speaker, "refresh peer", "refreshed"), true);
    holds(&mut speaker, "BIRD's route is there after a refresh", fresh);
    // BIRD asks us, and would remove our route if we did not say it between beginning and end.
    bird.ask("reload in node");
    speaker.tell("announce 10.1.2.0/24");
    eventually("BIRD has both of our routes", || {
        let text = bird.ask("show route protocol node");
        if text.contains("10.1.1.0/24") && text.contains("10.1.2.0/24") { Ok(()) } else { Err(text) }
    });
    let peers = ask(&mut speaker, "peers", "peers");
    assert_eq!(peers[0]["counters"]["sessions"], 1, "no session was lost: {peers}");
    cell(Peer::Bird, Feature::RouteRefresh, env!("CARGO_CRATE_NAME"));
}
