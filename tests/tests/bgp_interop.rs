//! The BGP speaker against BIRD, FRR and GoBGP: real daemons, real sessions over IPv4 and IPv6, in namespaces. Needs root.

#![cfg(test)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tombolo_tests::matrix::{self, Feature, cell};
use tombolo_tests::netns::{Daemon, Namespace, eventually, join, run, unique};

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
/// What the daemons originate, and what the speaker must learn with the daemon as next hop.
const THEIRS: [(&str, &str); 2] = [("198.51.100.0/24", "10.77.0.2"), ("2001:db8:100::/48", "fd00:77::2")];
/// What the speaker originates, and what the daemons must learn with the speaker as next hop.
const OURS: [(&str, &str); 4] = [
    ("10.1.1.0/24", "10.77.0.1"),
    ("203.0.113.1/32", "10.77.0.1"),
    ("2001:db8:e::1/128", "fd00:77::1"),
    ("fd00:10:1:1::/64", "fd00:77::1"),
];

/// Two joined namespaces: the speaker's and the daemon's.
struct Lab {
    ours: Namespace,
    theirs: Namespace,
    directory: tempfile::TempDir,
}

impl Lab {
    fn new(role: &str) -> Self {
        let (ours, theirs) = (Namespace::new("spk"), Namespace::new(role));
        join(&ours, &["10.77.0.1/24", "fd00:77::1/64"], &theirs, &["10.77.0.2/24", "fd00:77::2/64"]);
        let directory = tempfile::Builder::new().prefix("tbt-bgp-").tempdir().unwrap();
        Self { ours, theirs, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Starts the speaker with everything in `OURS` but what `without` names.
    fn speaker(&self, more: &[&str], without: &[&str]) -> Daemon {
        let announced: Vec<String> = OURS
            .iter()
            .filter(|(prefix, _)| !without.contains(prefix))
            .map(|(prefix, _)| format!("announce={prefix}"))
            .collect();
        let mut arguments = vec![
            "asn=4200000001",
            "router-id=10.77.0.1",
            "peer=v4,10.77.0.2,65002,10.77.0.1",
            "peer=v6,fd00:77::2,65002,fd00:77::1",
            "allow=198.51.100.0/24",
            "allow=2001:db8:100::/48",
        ];
        arguments.extend(announced.iter().map(String::as_str));
        arguments.extend(more);
        let mut speaker = self.ours.spawn(SPEAKER, &arguments);
        speaker.wait_for("start", |line| line.contains("started").then_some(()));
        speaker
    }
}

fn both_up(speaker: &mut Daemon) {
    let mut wanted = vec!["v4", "v6"];
    while !wanted.is_empty() {
        let peer = speaker.wait_for("session", |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["event"] == "up").then(|| event["peer"].as_str().map(str::to_owned)).flatten()
        });
        wanted.retain(|name| *name != peer);
    }
}

/// The speaker holds exactly the daemon's routes, by the daemon's own addresses.
fn learned(speaker: &mut Daemon) {
    eventually("the speaker learns the daemon's routes", || {
        speaker.tell("received");
        let answer = speaker.wait_for("answer", |line| {
            let answer: Value = serde_json::from_str(line).ok()?;
            answer.get("received").cloned()
        });
        let mut seen: Vec<(String, String, String)> = answer
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row.get("refused").is_none())
            .map(|row| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let attributes = &row["attributes"];
                (text(&row["prefix"]), text(&row["next_hop"]["address"]), text(&attributes["as_path"]))
            })
            .collect();
        seen.sort();
        let expected = THEIRS.map(|(prefix, hop)| (prefix.to_owned(), hop.to_owned(), "65002".to_owned()));
        if seen == expected { Ok(()) } else { Err(format!("{answer}")) }
    });
}

/// What a daemon says about a prefix it learned.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    next_hop: String,
    as_path: String,
    stale: bool,
}

trait Peer {
    /// The daemon's route to a prefix, if it has one.
    fn route(&self, prefix: &str) -> Option<Seen>;

    /// Whether [`Peer::route`] can tell stale routes. BIRD marks them inside, but prints the mark only for long-lived restarts.
    fn shows_stale(&self) -> bool {
        true
    }

    /// Waits until the daemon has seen the session go and keeps the routes for its return.
    fn noticed_restart(&self) {}

    fn fresh_routes(&self) {
        for (prefix, next_hop) in OURS {
            self.expect(prefix, next_hop, false);
        }
    }

    fn expect(&self, prefix: &str, next_hop: &str, stale: bool) {
        let stale = stale && self.shows_stale();
        let wanted = Seen { next_hop: next_hop.to_owned(), as_path: "4200000001".to_owned(), stale };
        eventually(&format!("the daemon has {prefix}, stale {stale}"), || match self.route(prefix) {
            Some(seen) if seen == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    fn gone(&self, prefix: &str) {
        eventually(&format!("{prefix} leaves the daemon"), || match self.route(prefix) {
            None => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

/// Watches the daemon's kernel table: no route may ever be deleted from it.
struct Watch {
    monitor: Daemon,
    namespace: String,
}

impl Watch {
    fn start(namespace: &Namespace) -> Self {
        let mut watch = Self {
            monitor: namespace.spawn("ip", &["-o", "monitor", "route"]),
            namespace: namespace.name().into(),
        };
        // A marker route shows that the monitor listens.
        watch.marker();
        watch
    }

    fn marker(&mut self) {
        let marker = format!("192.0.2.{}/32", 1 + unique().bytes().map(u32::from).sum::<u32>() % 250);
        let address = marker.trim_end_matches("/32").to_owned();
        eventually("the route monitor listens", || {
            for verb in ["add", "del"] {
                run("ip", &["-n", &self.namespace, "route", verb, "blackhole", &marker]);
            }
            let deleted = |line: &String| line.contains(&address) && line.starts_with("Deleted");
            if self.monitor.seen().iter().any(deleted) { Ok(()) } else { Err("nothing yet".into()) }
        });
    }

    fn deletions(&mut self, prefix: &str) -> Vec<String> {
        self.marker();
        let bare = prefix.trim_end_matches("/32").trim_end_matches("/128");
        self.monitor
            .seen()
            .iter()
            .filter(|line| line.starts_with("Deleted") && line.contains(bare))
            .cloned()
            .collect()
    }
}

/// SIGKILL, restart, export: no route leaves the daemon's RIB or the kernel table; what is no longer announced goes at End-of-RIB.
fn survives_kill(lab: &Lab, peer: &impl Peer, mut speaker: Daemon) -> Daemon {
    let dropped = OURS[1];
    for (prefix, _) in OURS {
        in_fib(lab, prefix);
    }
    let mut watch = Watch::start(&lab.theirs);
    speaker.kill();
    peer.noticed_restart();
    for (prefix, next_hop) in OURS {
        peer.expect(prefix, next_hop, true);
    }
    let mut speaker = lab.speaker(&["restarting"], &[dropped.0]);
    both_up(&mut speaker);
    for (prefix, next_hop) in OURS {
        peer.expect(prefix, next_hop, prefix == dropped.0);
    }
    for (prefix, _) in OURS {
        assert_eq!(watch.deletions(prefix), Vec::<String>::new(), "{prefix} left the kernel table");
    }
    speaker.tell("complete");
    peer.gone(dropped.0);
    for (prefix, next_hop) in OURS.iter().filter(|(prefix, _)| *prefix != dropped.0) {
        peer.expect(prefix, next_hop, false);
        assert_eq!(watch.deletions(prefix), Vec::<String>::new(), "{prefix} left the kernel table");
    }
    assert!(!watch.deletions(dropped.0).is_empty(), "the monitor must have seen the swept route go");
    learned(&mut speaker);
    speaker
}

fn in_fib(lab: &Lab, prefix: &str) {
    eventually(&format!("{prefix} is in the daemon's kernel table"), || {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        let found = lab.theirs.ip(&[family, "route", "show", prefix]);
        if found.trim().is_empty() { Err(lab.theirs.ip(&[family, "route"])) } else { Ok(()) }
    });
}

fn shut_down(peer: &impl Peer, mut speaker: Daemon) {
    speaker.tell("shutdown node drains for a test");
    assert!(speaker.wait(), "the speaker ends well");
    for (prefix, _) in OURS {
        peer.gone(prefix);
    }
}

struct Bird {
    _daemon: Daemon,
    control: String,
}

impl Bird {
    fn start(lab: &Lab) -> Self {
        let config = lab.file(
            "bird.conf",
            "router id 10.77.0.2;
             protocol device {}
             protocol kernel { ipv4 { export where source = RTS_BGP; }; }
             protocol kernel { ipv6 { export where source = RTS_BGP; }; }
             protocol static { ipv4; route 198.51.100.0/24 blackhole; }
             protocol static { ipv6; route 2001:db8:100::/48 blackhole; }
             template bgp node { local as 65002; graceful restart on; hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
             protocol bgp v4 from node { local 10.77.0.2; neighbor 10.77.0.1 as 4200000001; ipv4 { import all; export where source = RTS_STATIC; next hop self; }; }
             protocol bgp v6 from node { local fd00:77::2; neighbor fd00:77::1 as 4200000001; ipv6 { import all; export where source = RTS_STATIC; next hop self; }; }\n",
        );
        let control = lab.path("bird.ctl").to_str().unwrap().to_owned();
        let pid = lab.path("bird.pid");
        let daemon = lab
            .theirs
            .spawn("/usr/sbin/bird", &["-f", "-c", &config, "-s", &control, "-P", pid.to_str().unwrap()]);
        eventually("BIRD opens its control socket", || {
            if Path::new(&control).exists() { Ok(()) } else { Err("no socket".into()) }
        });
        Self { _daemon: daemon, control }
    }

    fn ask(&self, question: &[&str]) -> String {
        // birdc fails when there is no such route, which is an answer too.
        let arguments = [&["-r", "-s", self.control.as_str()], question].concat();
        let output = std::process::Command::new("/usr/sbin/birdc").args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Peer for Bird {
    fn route(&self, prefix: &str) -> Option<Seen> {
        let text = self.ask(&["show", "route", "all", "for", prefix]);
        if !text.contains(prefix) {
            return None;
        }
        let after = |key: &str| {
            text.lines().find_map(|line| line.trim().strip_prefix(key).map(|rest| rest.trim().to_owned()))
        };
        Some(Seen {
            next_hop: after("BGP.next_hop:")?.split(' ').next()?.to_owned(),
            as_path: after("BGP.as_path:")?,
            stale: false,
        })
    }

    fn shows_stale(&self) -> bool {
        false
    }

    fn noticed_restart(&self) {
        for protocol in ["v4", "v6"] {
            eventually("BIRD takes the loss for a restart", || {
                let text = self.ask(&["show", "protocols", "all", protocol]);
                if text.contains("Neighbor graceful restart active") { Ok(()) } else { Err(text) }
            });
        }
    }
}

#[test]
fn bird_exchanges_routes_and_keeps_them_over_a_kill() {
    let lab = Lab::new("bird");
    let bird = Bird::start(&lab);
    let mut speaker = lab.speaker(&[], &[]);
    both_up(&mut speaker);
    learned(&mut speaker);
    speaker.tell("complete");
    bird.fresh_routes();
    let speaker = survives_kill(&lab, &bird, speaker);
    shut_down(&bird, speaker);
    eventually("BIRD tells the shutdown text's reason", || {
        let text = bird.ask(&["show", "protocols", "all", "v4"]);
        if text.contains("Administrative shutdown") { Ok(()) } else { Err(text) }
    });
    for feature in [Feature::Ipv4, Feature::Ipv6, Feature::GracefulRestart] {
        cell(matrix::Peer::Bird, feature, env!("CARGO_CRATE_NAME"));
    }
}

#[test]
fn a_passive_speaker_lets_bird_connect() {
    let lab = Lab::new("bird");
    let bird = Bird::start(&lab);
    let mut speaker = lab.speaker(&["passive"], &[]);
    both_up(&mut speaker);
    learned(&mut speaker);
    bird.fresh_routes();
    speaker.tell("withdraw 10.1.1.0/24");
    bird.gone("10.1.1.0/24");
    speaker.tell("refresh v4");
    assert!(speaker.wait_for("answer", |line| line.contains("refreshed").then(|| line.contains("true"))));
}

struct Frr {
    _daemons: [Daemon; 2],
    directory: String,
}

impl Frr {
    fn start(lab: &Lab) -> Self {
        let config = lab.file(
            "bgpd.conf",
            "router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
 neighbor 10.77.0.1 remote-as 4200000001
 neighbor 10.77.0.1 timers 3 9
 neighbor 10.77.0.1 timers connect 2
 neighbor fd00:77::1 remote-as 4200000001
 neighbor fd00:77::1 timers 3 9
 neighbor fd00:77::1 timers connect 2
 address-family ipv4 unicast
  network 198.51.100.0/24
  neighbor 10.77.0.1 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:100::/48
  neighbor fd00:77::1 activate
 exit-address-family
",
        );
        let zebra = lab.file("zebra.conf", "hostname zebra\n");
        let directory = lab.directory.path().to_str().unwrap().to_owned();
        std::fs::set_permissions(lab.directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        run("chown", &["-R", "frr:frr", &directory]);
        let api = format!("{directory}/zserv.api");
        let start = |daemon: &str, config: &str| {
            let pid = format!("{directory}/{daemon}.pid");
            let program = format!("/usr/lib/frr/{daemon}");
            let arguments = ["-f", config, "-i", &pid, "-z", &api, "--vty_socket", &directory, "-P", "0"];
            let daemon = lab.theirs.spawn(&program, &arguments);
            let socket = format!("{directory}/{}.vty", program.trim_start_matches("/usr/lib/frr/"));
            eventually(&format!("{program} opens {socket}"), || {
                if Path::new(&socket).exists() { Ok(()) } else { Err("no socket".into()) }
            });
            daemon
        };
        Self { _daemons: [start("zebra", &zebra), start("bgpd", &config)], directory }
    }

    fn ask(&self, question: &str) -> String {
        run("/usr/bin/vtysh", &["--vty_socket", &self.directory, "-d", "bgpd", "-c", question])
    }
}

impl Peer for Frr {
    fn route(&self, prefix: &str) -> Option<Seen> {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let answer: Value =
            serde_json::from_str(&self.ask(&format!("show bgp {family} unicast {prefix} json"))).ok()?;
        let path = answer.get("paths")?.get(0)?;
        let hops = path.get("nexthops")?.as_array()?;
        let hop = hops.iter().find(|hop| hop["scope"] != "link-local")?;
        Some(Seen {
            next_hop: hop.get("ip")?.as_str()?.to_owned(),
            as_path: path.get("aspath")?.get("string")?.as_str()?.to_owned(),
            stale: path.get("stale").and_then(Value::as_bool).unwrap_or_default(),
        })
    }
}

#[test]
fn frr_exchanges_routes_and_keeps_them_over_a_kill() {
    let lab = Lab::new("frr");
    let frr = Frr::start(&lab);
    let mut speaker = lab.speaker(&[], &[]);
    both_up(&mut speaker);
    learned(&mut speaker);
    speaker.tell("complete");
    frr.fresh_routes();
    let speaker = survives_kill(&lab, &frr, speaker);
    shut_down(&frr, speaker);
    for feature in [Feature::Ipv4, Feature::Ipv6, Feature::GracefulRestart] {
        cell(matrix::Peer::Frr, feature, env!("CARGO_CRATE_NAME"));
    }
}

#[test]
fn frr_gets_everything_again_after_it_clears_softly() {
    let lab = Lab::new("frr");
    let frr = Frr::start(&lab);
    let mut speaker = lab.speaker(&[], &[]);
    both_up(&mut speaker);
    frr.fresh_routes();
    frr.ask("clear bgp ipv4 unicast 10.77.0.1 soft in");
    frr.ask("clear bgp ipv6 unicast fd00:77::1 soft in");
    eventually("FRR's route refresh is answered", || {
        let text = frr.ask("show bgp neighbors 10.77.0.1 json");
        let state: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let stats = &state["10.77.0.1"]["messageStats"];
        if stats["routeRefreshSent"].as_u64() >= Some(1) { Ok(()) } else { Err(stats.to_string()) }
    });
    frr.fresh_routes();
    let downs = speaker.seen().iter().filter(|line| line.contains("\"down\"")).count();
    assert_eq!(downs, 0, "the session stays up");
}

struct GoBgp<'a> {
    _daemon: Daemon,
    namespace: &'a Namespace,
}

impl<'a> GoBgp<'a> {
    fn start(lab: &'a Lab) -> Self {
        let neighbour = |address: &str, family: &str| {
            format!(
                "[[neighbors]]
[neighbors.config]
neighbor-address = \"{address}\"
peer-as = 4200000001
[neighbors.timers.config]
hold-time = 9
keepalive-interval = 3
connect-retry = 2
[neighbors.graceful-restart.config]
enabled = true
restart-time = 60
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = \"{family}\"
[neighbors.afi-safis.mp-graceful-restart.config]
enabled = true
"
            )
        };
        let config = lab.file(
            "gobgp.toml",
            &format!(
                "[global.config]\nas = 65002\nrouter-id = \"10.77.0.2\"\n{}{}",
                neighbour("10.77.0.1", "ipv4-unicast"),
                neighbour("fd00:77::1", "ipv6-unicast")
            ),
        );
        let daemon = lab
            .theirs
            .spawn("/usr/bin/gobgpd", &["-f", &config, "-l", "warn", "--api-hosts", "127.0.0.1:50051"]);
        let gobgp = Self { _daemon: daemon, namespace: &lab.theirs };
        let add = |arguments: &[&str]| {
            eventually("GoBGP takes a route", || {
                let command = [&["netns", "exec", lab.theirs.name(), "/usr/bin/gobgp"], arguments].concat();
                let output = std::process::Command::new("ip").args(&command).output().unwrap();
                if output.status.success() {
                    Ok(())
                } else {
                    Err(String::from_utf8_lossy(&output.stderr).into_owned())
                }
            });
        };
        add(&["global", "rib", "add", "198.51.100.0/24", "nexthop", "10.77.0.2"]);
        add(&["global", "rib", "-a", "ipv6", "add", "2001:db8:100::/48", "nexthop", "fd00:77::2"]);
        gobgp
    }
}

impl Peer for GoBgp<'_> {
    fn route(&self, prefix: &str) -> Option<Seen> {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let text = self.namespace.run(&["/usr/bin/gobgp", "global", "rib", "-a", family, "-j"]);
        let answer: Value = serde_json::from_str(&text).ok()?;
        let path = answer.get(prefix)?.get(0)?;
        let attributes = path.get("attrs")?.as_array()?;
        let next_hop = attributes.iter().find_map(|attribute| attribute.get("nexthop"))?.as_str()?;
        let segments = attributes.iter().find_map(|attribute| attribute.get("as_paths"))?;
        Some(Seen {
            next_hop: next_hop.to_owned(),
            as_path: segments.get(0)?.get("asns")?.get(0)?.to_string(),
            stale: path.get("stale").and_then(Value::as_bool).unwrap_or_default(),
        })
    }
}

#[test]
fn gobgp_exchanges_routes_and_keeps_them_over_a_kill() {
    let lab = Lab::new("gobgp");
    let gobgp = GoBgp::start(&lab);
    let mut speaker = lab.speaker(&[], &[]);
    both_up(&mut speaker);
    learned(&mut speaker);
    speaker.tell("complete");
    gobgp.fresh_routes();
    speaker.kill();
    for (prefix, next_hop) in OURS {
        gobgp.expect(prefix, next_hop, true);
    }
    let mut speaker = lab.speaker(&["restarting"], &[OURS[1].0]);
    both_up(&mut speaker);
    speaker.tell("complete");
    gobgp.gone(OURS[1].0);
    gobgp.expect(OURS[0].0, OURS[0].1, false);
    shut_down(&gobgp, speaker);
    for feature in [Feature::Ipv4, Feature::Ipv6, Feature::GracefulRestart] {
        cell(matrix::Peer::GoBgp, feature, env!("CARGO_CRATE_NAME"));
    }
}
