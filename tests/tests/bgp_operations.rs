//! What operators look at, with the programs that they use: pmacct's BMP collector, bgpdump, StayRTR as RPKI cache, and BIRD as the peer. Needs root.

#![cfg(test)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use tombolo_tests::netns::{Daemon, Namespace, eventually, join, run};

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
/// Refuses what is invalid, takes the rest.
const POLICY: &str = r#""import_policy":{"name":"origin","statements":[{"name":"invalid","when":[{"rpki":["invalid"]}],"then":"reject"}],"default":"accept"}"#;

/// The speaker's namespace, joined to that of its peer, collector and cache.
struct Lab {
    ours: Namespace,
    theirs: Namespace,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let (ours, theirs) = (Namespace::new("ops"), Namespace::new("noc"));
        join(&ours, &["10.77.0.1/24", "fd00:77::1/64"], &theirs, &["10.77.0.2/24", "fd00:77::2/64"]);
        theirs.ip(&["link", "set", "lo", "up"]);
        let directory = tempfile::Builder::new().prefix("tbt-ops-").tempdir().unwrap();
        Self { ours, theirs, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.text_path(name)
    }

    fn bird(&self) -> Daemon {
        let config = self.file(
            "bird.conf",
            "router id 10.77.0.2;
             protocol device {}
             protocol static { ipv4; route 198.51.100.0/24 blackhole; route 203.0.113.0/24 blackhole; }
             protocol static { ipv6; route 2001:db8:100::/48 blackhole; }
             template bgp node { local as 65002; hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
             protocol bgp v4 from node { local 10.77.0.2; neighbor 10.77.0.1 as 65001; ipv4 { import all; export where source = RTS_STATIC; next hop self; }; }
             protocol bgp v6 from node { local fd00:77::2; neighbor fd00:77::1 as 65001; ipv6 { import all; export where source = RTS_STATIC; next hop self; }; }\n",
        );
        let (control, pid) = (self.text_path("bird.ctl"), self.text_path("bird.pid"));
        self.theirs.spawn("/usr/sbin/bird", &["-f", "-c", &config, "-s", &control, "-P", &pid])
    }

    fn speaker(&self, more: &[&str]) -> Daemon {
        let peer = |name: &str, address: &str| {
            format!(r#"peer-json={{"name":"{name}","address":"{address}","peer_asn":65002,{POLICY}}}"#)
        };
        let (v4, v6) = (peer("v4", "10.77.0.2"), peer("v6", "fd00:77::2"));
        let mut arguments = vec!["asn=65001", "router-id=10.77.0.1", &v4, &v6];
        arguments.extend(more);
        let mut speaker = self.ours.spawn(SPEAKER, &arguments);
        speaker.wait_for("start", |line| line.contains("started").then_some(()));
        speaker
    }
}

/// Prefix, and why it is refused, of everything the speaker received.
fn received(speaker: &mut Daemon) -> Vec<(String, Option<String>)> {
    speaker.tell("received");
    let answer = speaker.wait_for("answer", |line| {
        let answer: Value = serde_json::from_str(line).ok()?;
        answer.get("received").cloned()
    });
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let rows = answer.as_array().unwrap().iter();
    rows.map(|row| (text(&row["prefix"]).unwrap(), text(&row["refused"]))).collect()
}

fn wait_for_routes(speaker: &mut Daemon, wanted: &[(&str, bool)]) {
    eventually("the routes are as they should be", || {
        let seen = received(speaker);
        let same = seen.iter().map(|(prefix, refused)| (prefix.as_str(), refused.is_none()));
        if same.eq(wanted.iter().copied()) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

fn cache_file(origin: u32) -> String {
    format!(
        r#"{{"metadata":{{"buildtime":"2026-11-27T00:00:00Z"}},"roas":[
            {{"prefix":"198.51.100.0/24","maxLength":24,"asn":"AS{origin}"}},
            {{"prefix":"2001:db8::/32","maxLength":48,"asn":"AS{origin}"}}]}}"#
    )
}

#[test]
fn routes_are_judged_by_a_real_cache_and_again_when_it_changes() {
    let lab = Lab::new();
    let _bird = lab.bird();
    let roas = lab.file("roas.json", &cache_file(65099));
    let cache = [
        "-cache",
        &roas,
        "-bind",
        "10.77.0.2:3323",
        "-checktime=false",
        "-refresh",
        "1",
        "-metrics.addr",
        "127.0.0.1:9847",
    ];
    let cache = lab.theirs.spawn_quiet("/usr/bin/stayrtr", &cache);
    let mut speaker = lab.speaker(&["rpki=10.77.0.2:3323"]);
    wait_for_routes(
        &mut speaker,
        &[("198.51.100.0/24", false), ("203.0.113.0/24", true), ("2001:db8:100::/48", false)],
    );
    let cache_state = |speaker: &mut Daemon| {
        speaker.tell("caches");
        speaker.wait_for("caches", |line| {
            serde_json::from_str::<Value>(line).ok()?.pointer("/caches/0").cloned()
        })
    };
    let first = cache_state(&mut speaker);
    assert_eq!(
        (&first["state"], &first["ipv4"], &first["ipv6"], &first["last_error"]),
        (&"synchronised".into(), &1.into(), &1.into(), &Value::Null),
        "{first}"
    );
    assert!(first["session"].is_u64() && first["age_secs"].is_u64(), "{first}");
    // The cache tells of the change by itself.
    lab.file("roas.json", &cache_file(65002));
    let all = [("198.51.100.0/24", true), ("203.0.113.0/24", true), ("2001:db8:100::/48", true)];
    wait_for_routes(&mut speaker, &all);
    let serial = |state: &Value| state["serial"].as_u64().unwrap();
    assert!(serial(&cache_state(&mut speaker)) > serial(&first));
    drop(cache);
    eventually("the loss is told, and the payloads still count", || {
        let state = cache_state(&mut speaker);
        let told = state["state"] != "synchronised" && state["last_error"].is_string();
        if told && state["ipv6"] == 1 && state["age_secs"].is_u64() { Ok(()) } else { Err(state.to_string()) }
    });
    wait_for_routes(&mut speaker, &all);
}

/// What pmbmpd wrote.
fn told(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_real_collector_hears_of_sessions_and_routes() {
    let lab = Lab::new();
    let bird = lab.bird();
    let log = lab.path("bmp.log");
    let config = format!(
        "bmp_daemon_ip: 10.77.0.2\nbmp_daemon_port: 1790\nbmp_daemon_msglog_file: {}\nbmp_daemon_msglog_output: json\ndaemonize: false\n",
        log.display()
    );
    let config = lab.file("pmbmpd.conf", &config);
    let _collector = lab.theirs.spawn_quiet("/usr/sbin/pmbmpd", &["-f", &config]);
    let mut speaker = lab.speaker(&["bmp=10.77.0.2:1790", "announce=10.1.1.0/24"]);
    let expect = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        eventually(&format!("the collector hears of {what}"), || {
            let told = told(&log);
            if told.iter().any(wanted) { Ok(()) } else { Err(format!("{told:#?}")) }
        });
    };
    let of = |one: &Value, kind: &str| one["bmp_msg_type"] == kind;
    expect("us", &|one| of(one, "init") && one.to_string().contains("speaker"));
    for peer in ["10.77.0.2", "fd00:77::2"] {
        expect("a session", &|one| of(one, "peer_up") && one["peer_ip"] == peer);
        expect("statistics", &|one| of(one, "stats") && one["peer_ip"] == peer);
    }
    for (prefix, peer, hop) in
        [("198.51.100.0/24", "10.77.0.2", "10.77.0.2"), ("2001:db8:100::/48", "fd00:77::2", "fd00:77::2")]
    {
        for post in [0, 1] {
            expect("a route", &|one| {
                of(one, "route_monitor")
                    && (&one["ip_prefix"], &one["peer_ip"], &one["bgp_nexthop"], &one["log_type"])
                        == (&prefix.into(), &peer.into(), &hop.into(), &"update".into())
                    && one["as_path"] == "65002"
                    && one["is_post"] == post
            });
        }
    }
    // What BIRD is sent, after policy (RFC 8671).
    expect("a route of ours", &|one| {
        of(one, "route_monitor")
            && (&one["ip_prefix"], &one["peer_ip"]) == (&"10.1.1.0/24".into(), &"10.77.0.2".into())
            && (&one["bgp_nexthop"], &one["as_path"]) == (&"10.77.0.1".into(), &"65001".into())
            && (&one["is_out"], &one["is_post"]) == (&1.into(), &1.into())
    });
    speaker.tell("withdraw 10.1.1.0/24");
    expect("its withdrawal", &|one| {
        one["ip_prefix"] == "10.1.1.0/24" && one["log_type"] == "withdraw" && one["is_out"] == 1
    });
    drop(bird);
    expect("the end of a session", &|one| of(one, "peer_down") && one["peer_ip"] == "10.77.0.2");
    speaker.tell("shutdown maintenance");
    expect("our end", &|one| of(one, "term"));
}

#[test]
fn bgpdump_reads_what_a_real_session_left() {
    let lab = Lab::new();
    let _bird = lab.bird();
    let folder = lab.text_path("messages");
    let mut speaker = lab.speaker(&[&format!("log={folder}"), "announce=10.1.1.0/24"]);
    let all = [("198.51.100.0/24", true), ("203.0.113.0/24", true), ("2001:db8:100::/48", true)];
    wait_for_routes(&mut speaker, &all);
    let table = lab.text_path("table.mrt");
    speaker.tell(&format!("dump {table}"));
    speaker.wait_for("dump", |line| line.contains("dumped").then_some(()));
    let lines = run("bgpdump", &["-m", &table]);
    for (peer, prefix) in [("10.77.0.2", "198.51.100.0/24"), ("fd00:77::2", "2001:db8:100::/48")] {
        let wanted = format!("|B|{peer}|65002|{prefix}|65002|IGP|{peer}|");
        assert!(lines.contains(&wanted), "{wanted} in {lines}");
    }
    // The log: what came and what went out, in the order it did, and the states.
    eventually("the log is written", || {
        let lines = run("bgpdump", &["-m", &format!("{folder}/v4.mrt")]);
        let place = |what: &str| lines.lines().position(|line| line.contains(what));
        let (up, route) =
            (place("|STATE|10.77.0.2|65002|5|6"), place("|A|10.77.0.2|65002|198.51.100.0/24|65002|"));
        if up.is_some() && up < route { Ok(()) } else { Err(lines) }
    });
    speaker.tell(r#"operate v4 {"action":"shutdown","text":"maintenance"}"#);
    eventually("BIRD is told why", || {
        let control = lab.text_path("bird.ctl");
        let text = run("/usr/sbin/birdc", &["-s", &control, "show", "protocols", "all", "v4"]);
        if text.contains("Administrative shutdown") { Ok(()) } else { Err(text) }
    });
    speaker.tell(r#"operate v4 {"action":"start"}"#);
    wait_for_routes(&mut speaker, &all);
}
