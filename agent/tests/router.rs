//! `tombolo router` as a process, with BIRD as its peers: what a changed file does to sessions, what outlives a kill, and next hops that go. Needs root.

#![cfg(test)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tombolo_tests::netns::{Daemon, Namespace, eventually, join, run};
use tombolo_tests::routers::Bird;

const TOMBOLO: &str = env!("CARGO_BIN_EXE_tombolo");

/// A router and its peers, each in a namespace.
struct Lab {
    ours: Namespace,
    theirs: Namespace,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let (ours, theirs) = (Namespace::new("rtr"), Namespace::new("rtrp"));
        let peers = ["10.77.0.2/24", "10.77.0.3/24", "fd00:77::2/64", "fd00:77::3/64"];
        join(&ours, &["10.77.0.1/24", "10.77.0.11/24", "fd00:77::1/64", "fd00:77::11/64"], &theirs, &peers);
        Self { ours, theirs, folder: tempfile::Builder::new().prefix("tbt-rtr-").tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Puts a configuration in the place of the one before, as an editor does.
    fn configure(&self, text: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "router_id: 10.77.0.1\napi: {{socket: {folder}/api.sock}}\nstate_dir: {folder}/state\n{text}"
        );
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path("router.yaml")).unwrap();
    }

    fn start(&self) -> Daemon {
        let router = self.ours.spawn_quiet(TOMBOLO, &["router", "--config", &self.text_path("router.yaml")]);
        eventually("the router answers", || self.ask(&["status"]).map(drop));
        router
    }

    fn ask(&self, question: &[&str]) -> Result<Value, String> {
        let socket = self.text_path("api.sock");
        let output = Command::new(TOMBOLO)
            .args(question)
            .args(["-o", "json", "--socket", &socket])
            .output()
            .map_err(|error| error.to_string())?;
        // A command that finds something amiss fails and answers all the same.
        serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The state of a peer; null if there is none.
    fn peer(&self, name: &str) -> Value {
        self.ask(&["bgp", "peer", name]).map(|mut peers| peers[0].take()).unwrap_or_default()
    }

    fn is_up(&self, name: &str) {
        eventually(&format!("{name} is up"), || {
            let peer = self.peer(name);
            if peer["state"] == "established" { Ok(()) } else { Err(peer.to_string()) }
        });
    }
}

const BIRD: &str = "router id 10.77.0.2;
protocol device {}
template bgp node { hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
";

/// Two routers of AS 65002 and 65003, one session each and family, with a route each.
fn two_peers(theirs: &Namespace) -> Bird {
    Bird::start(
        theirs,
        &format!(
            "{BIRD}
protocol static {{ ipv4; route 198.51.100.0/24 blackhole; }}
protocol static {{ ipv6; route 2001:db8:100::/48 blackhole; }}
protocol bgp a from node {{ local 10.77.0.2 as 65002; neighbor 10.77.0.1 as 65001; ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
protocol bgp a6 from node {{ local fd00:77::2 as 65002; neighbor fd00:77::1 as 65001; ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
protocol bgp b from node {{ router id 10.77.0.3; local 10.77.0.3 as 65003; neighbor 10.77.0.11 as 65001; ipv4 {{ import all; export none; }}; }}
"
        ),
    )
}

const GROUP: &str = "asn: 65001\ngroups: {bird: {hold_time_secs: 9, connect_retry_secs: 2, import: all, graceful_restart_secs: 60}}\n";
const A: &str = "  a: {group: bird, address: 10.77.0.2}\n  a6: {group: bird, address: 'fd00:77::2'}\n";
const B: &str = "  b: {group: bird, address: 10.77.0.3, local_address: 10.77.0.11}\n";

/// How often a peer was up, and how often its state changed.
fn history(peer: &Value) -> (Value, Value) {
    (peer["counters"]["sessions"].clone(), peer["transition_count"].clone())
}

#[test]
fn a_changed_file_is_carried_out_and_sessions_that_stay_the_same_go_on() {
    let lab = Lab::new();
    let _bird = two_peers(&lab.theirs);
    lab.configure(&format!("{GROUP}peers:\n{A}"));
    let router = lab.start();
    ["a", "a6"].iter().for_each(|name| lab.is_up(name));
    let before = ["a", "a6"].map(|name| history(&lab.peer(name)));
    let same = |what: &str| {
        assert_eq!(["a", "a6"].map(|name| history(&lab.peer(name))), before, "{what}");
    };

    lab.configure(&format!("{GROUP}peers:\n{A}{B}networks: [203.0.113.0/24]\n"));
    lab.is_up("b");
    let told = |prefix: &str, wanted: bool| {
        eventually(&format!("{prefix} is announced: {wanted}"), || {
            let rows = lab.ask(&["bgp", "advertised", "b"])?;
            let told = rows.as_array().unwrap().iter().any(|row| row["prefix"] == prefix);
            if told == wanted { Ok(()) } else { Err(rows.to_string()) }
        });
    };
    told("203.0.113.0/24", true);
    same("added");

    // Another policy is no reason for another session.
    let refusing = GROUP.replace("import: all", "import: none");
    lab.configure(&format!("{refusing}peers:\n{A}{B}"));
    told("203.0.113.0/24", false);
    let accepted = |wanted: u64| {
        eventually("the policy counts", || {
            let peer = lab.peer("a6");
            if peer["families"][0]["accepted"] == wanted { Ok(()) } else { Err(peer.to_string()) }
        });
    };
    accepted(0);
    same("changed");

    let problems = |wanted: &str| {
        eventually("the status says what is wrong", || {
            let status = lab.ask(&["status"])?;
            let text = status["problems"].to_string();
            if text.contains(wanted) { Ok(()) } else { Err(text) }
        });
    };
    lab.configure(&format!("{GROUP}peers:\n  a: {{group: nobody, address: 10.77.0.2}}\n"));
    problems("peers.a.group");
    assert_eq!(lab.peer("b")["state"], "established", "the old configuration stays");
    same("broken");

    lab.configure(&format!("{GROUP}max_paths: 2\npeers:\n{A}"));
    problems("max_paths: read at start only");
    accepted(1);
    eventually("the removed peer is gone", || {
        let peer = lab.peer("b");
        if peer.is_null() { Ok(()) } else { Err(peer.to_string()) }
    });
    same("removed");

    // What a symbolic link leads to changes unseen; SIGHUP says so.
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("router.yaml");
    let text = std::fs::read_to_string(lab.path("router.yaml")).unwrap().replace("max_paths: 2\n", "");
    std::fs::write(&target, &text).unwrap();
    std::os::unix::fs::symlink(&target, lab.path("new")).unwrap();
    std::fs::rename(lab.path("new"), lab.path("router.yaml")).unwrap();
    problems("[]");
    std::fs::write(&target, text + B).unwrap();
    run("kill", &["-HUP", &router.id().to_string()]);
    lab.is_up("b");
    same("hung up");
}

#[test]
fn a_shutdown_outlives_a_killed_router_and_a_start_takes_it_back() {
    let lab = Lab::new();
    let _bird = two_peers(&lab.theirs);
    lab.configure(&format!("{GROUP}peers:\n{A}{B}"));
    let mut router = lab.start();
    ["a", "a6", "b"].iter().for_each(|name| lab.is_up(name));
    lab.ask(&["bgp", "shutdown", "a", "--message", "new cable"]).unwrap();
    router.kill();
    let _router = lab.start();
    ["a6", "b"].iter().for_each(|name| lab.is_up(name));
    let peer = lab.peer("a");
    assert_eq!((&peer["state"], &peer["shutdown"]), (&"idle".into(), &"new cable".into()), "{peer}");
    assert!(peer["shutdown_since_unix_secs"].is_u64() && peer["counters"]["sessions"] == 0, "{peer}");
    // A session that was meant to be down keeps nothing waiting.
    confirmed(&lab);
    lab.ask(&["bgp", "start", "a"]).unwrap();
    lab.is_up("a");
}

/// Waits until all learned routes are confirmed, for less time than what is silent is waited for.
fn confirmed(lab: &Lab) {
    let socket = lab.text_path("api.sock");
    let start = std::time::Instant::now();
    eventually("what was learned is confirmed", || {
        let text = run(TOMBOLO, &["show", "routes", "--socket", &socket]);
        if text.contains("pending") { Err(text) } else { Ok(()) }
    });
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn learned_routes_are_confirmed_when_every_peer_has_sent_end_of_rib() {
    let lab = Lab::new();
    let _bird = two_peers(&lab.theirs);
    lab.configure(&format!("{GROUP}peers:\n{A}{B}"));
    let _router = lab.start();
    ["a", "a6", "b"].iter().for_each(|name| lab.is_up(name));
    confirmed(&lab);
}

/// One that is not there is waited for, until the operator says that it will not come.
#[test]
fn learned_routes_are_confirmed_when_a_silent_peer_is_shut_down_or_removed() {
    let silent = "  silent: {group: bird, address: 10.77.0.9}\n  gone: {group: bird, address: 10.77.0.10}\n";
    let lab = Lab::new();
    let _bird = two_peers(&lab.theirs);
    lab.configure(&format!("{GROUP}peers:\n{A}{silent}"));
    let _router = lab.start();
    ["a", "a6"].iter().for_each(|name| lab.is_up(name));
    let text = run(TOMBOLO, &["show", "routes", "--socket", &lab.text_path("api.sock")]);
    assert!(text.contains("pending"), "{text}");
    lab.ask(&["bgp", "shutdown", "silent", "--message", "not built yet"]).unwrap();
    lab.configure(&format!("{GROUP}peers:\n{A}{}", silent.split_inclusive('\n').next().unwrap()));
    confirmed(&lab);
}

/// A reflector between two routers of its AS: what one says leads through a third that the kernel has a way to, until it has not.
#[test]
fn a_reflector_reflects_nothing_whose_next_hop_cannot_be_reached() {
    let lab = Lab::new();
    let bird = Bird::start(
        &lab.theirs,
        &format!(
            "{BIRD}
protocol static {{ ipv4; route 198.51.100.0/24 blackhole; }}
protocol static {{ ipv6; route 2001:db8:100::/48 blackhole; }}
protocol bgp from4 from node {{ local 10.77.0.2 as 65001; neighbor 10.77.0.1 as 65001; ipv4 {{ import none; export filter {{ if source != RTS_STATIC then reject; bgp_next_hop = 10.99.0.1; accept; }}; }}; }}
protocol bgp from6 from node {{ local fd00:77::2 as 65001; neighbor fd00:77::1 as 65001; ipv6 {{ import none; export filter {{ if source != RTS_STATIC then reject; bgp_next_hop = fd00:99::1; accept; }}; }}; }}
ipv4 table t4; ipv6 table t6;
protocol bgp to4 from node {{ router id 10.77.0.3; local 10.77.0.3 as 65001; neighbor 10.77.0.11 as 65001; ipv4 {{ table t4; import all; export none; }}; }}
protocol bgp to6 from node {{ router id 10.77.0.3; local fd00:77::3 as 65001; neighbor fd00:77::11 as 65001; ipv6 {{ table t6; import all; export none; }}; }}
"
        ),
    );
    let ways = [("10.99.0.0/24", "10.77.0.2"), ("fd00:99::/64", "fd00:77::2")];
    let way = |what: &str| {
        for (prefix, via) in ways {
            lab.ours.ip(&["route", what, prefix, "via", via]);
        }
    };
    way("add");
    let client = "{asn: 65001, hold_time_secs: 9, connect_retry_secs: 2, import: all, export: all, reflector_client: true, address: ";
    let peers =
        [("from4", "10.77.0.2"), ("from6", "fd00:77::2"), ("to4", "10.77.0.3"), ("to6", "fd00:77::3")];
    let peers: String =
        peers.iter().map(|(name, address)| format!("  {name}: {client}'{address}'}}\n")).collect();
    lab.configure(&format!("asn: 65001\ninstall_routes: false\npeers:\n{peers}"));
    let _router = lab.start();
    let reflected = |wanted: bool| {
        for (table, prefix) in [("t4", "198.51.100.0/24"), ("t6", "2001:db8:100::/48")] {
            eventually(&format!("{prefix} is reflected: {wanted}"), || {
                let text = bird.ask(&format!("show route table {table} all for {prefix}"));
                if text.contains("BGP.originator_id") == wanted { Ok(()) } else { Err(text) }
            });
        }
    };
    reflected(true);
    way("del");
    reflected(false);
    let rows = lab.ask(&["bgp", "received", "from4"]).unwrap();
    assert_eq!(rows[0]["refused"], "next-hop-unreachable", "{rows}");
    way("add");
    reflected(true);
}
