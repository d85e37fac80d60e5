//! The BFD unit against FRR's bfdd and BIRD: real daemons in namespaces, IPv4 and IPv6. Needs root.

#![cfg(test)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tombolo_bgp::bfd::client::{Client, Subscription};
use tombolo_bgp::bfd::{Auth, BfdSettings, SessionConfig, SessionKey, SessionStatus, State, Status};
use tombolo_tests::matrix::{Feature, Peer, cell};
use tombolo_tests::netns::{Daemon, Namespace, eventually, join, run};

/// Serves as the unit when its first argument is `bfd`.
const UNIT: &str = env!("CARGO_BIN_EXE_bgp_speaker");
const OURS: [&str; 2] = ["10.77.0.1", "fd00:77::1"];
const THEIRS: [&str; 2] = ["10.77.0.2", "fd00:77::2"];
/// The daemons run like any process on a machine that others use too: their packets may be late by more than 150 ms.
const INTERVAL: Duration = Duration::from_millis(300);
const DETECT_MULT: u8 = 5;

struct Lab {
    ours: Namespace,
    theirs: Namespace,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Lab {
    fn new(role: &str) -> Self {
        let (ours, theirs) = (Namespace::new("bfd"), Namespace::new(role));
        join(&ours, &["10.77.0.1/24", "fd00:77::1/64"], &theirs, &["10.77.0.2/24", "fd00:77::2/64"]);
        let directory = tempfile::Builder::new().prefix("tbt-bfd-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { ours, theirs, directory, runtime }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn unit(&self) -> Daemon {
        let (socket, pid, log) =
            (self.path("bfd.sock"), self.path("bfd-unit.pid"), self.path("bfd-unit.log"));
        let arguments = ["bfd", "--socket", &socket, "--pid-file", &pid, "--log-file", &log];
        let mut unit = self.ours.spawn(UNIT, &arguments);
        unit.wait_for("start", |line| (line == "ready").then_some(()));
        unit
    }

    fn client(&self) -> Client {
        Client::new(Path::new(&self.path("bfd.sock")))
    }

    fn set(&self, sessions: &[SessionConfig]) {
        self.runtime.block_on(self.client().set("test", sessions)).unwrap();
    }

    fn status(&self) -> Status {
        self.runtime.block_on(self.client().status()).unwrap()
    }

    fn all(&self, state: State) {
        eventually(&format!("all sessions are {state}"), || {
            let sessions = self.status().sessions;
            let good = !sessions.is_empty() && sessions.iter().all(|session| session.state == state);
            if good { Ok(()) } else { Err(format!("{sessions:?}")) }
        });
    }

    fn subscribe(&self) -> Subscription {
        self.runtime.block_on(self.client().subscribe()).unwrap().1
    }

    /// The next changes, until each session has left Up; with how long that took.
    fn lost(
        &self,
        changes: &mut Subscription,
        since: Instant,
        count: usize,
    ) -> Vec<(SessionStatus, Duration)> {
        let mut lost = Vec::new();
        while lost.len() < count {
            let next = async { tokio::time::timeout(Duration::from_secs(30), changes.next()).await };
            let (previous, session) = self.runtime.block_on(next).unwrap().unwrap();
            if previous == State::Up {
                lost.push((session, since.elapsed()));
            }
        }
        lost
    }
}

fn sessions(settings: &BfdSettings, multihop: bool) -> Vec<SessionConfig> {
    let of = |at: usize| SessionKey {
        peer: THEIRS[at].parse().unwrap(),
        local: Some(OURS[at].parse().unwrap()),
        interface: (!multihop).then(|| "eth1".into()),
        multihop,
    };
    (0..2).map(|at| SessionConfig { key: of(at), settings: settings.clone() }).collect()
}

fn settings() -> BfdSettings {
    BfdSettings { min_tx: INTERVAL, min_rx: INTERVAL, detect_mult: DETECT_MULT, ..BfdSettings::default() }
}

struct Frr {
    _daemons: [Daemon; 2],
    directory: String,
}

impl Frr {
    fn start(lab: &Lab) -> Self {
        let peer = |at: usize| {
            format!(
                " peer {} local-address {} interface eth1\n  receive-interval 300\n  transmit-interval 300\n  detect-multiplier 5\n  no shutdown\n !\n",
                OURS[at], THEIRS[at]
            )
        };
        let config = lab.file("bfdd.conf", &format!("bfd\n{}{}!\n", peer(0), peer(1)));
        let zebra = lab.file("zebra.conf", "hostname zebra\n");
        let directory = lab.path("");
        run("chown", &["-R", "frr:frr", &directory]);
        let api = lab.path("zserv.api");
        let start = |daemon: &str, config: &str, more: &[&str]| {
            let pid = lab.path(&format!("{daemon}.pid"));
            let arguments = ["-f", config, "-i", &pid, "-z", &api, "--vty_socket", &directory, "-P", "0"];
            let process = lab.theirs.spawn(&format!("/usr/lib/frr/{daemon}"), &[&arguments, more].concat());
            let socket = lab.path(&format!("{daemon}.vty"));
            eventually(&format!("{daemon} opens {socket}"), || {
                if Path::new(&socket).exists() { Ok(()) } else { Err("no socket".into()) }
            });
            process
        };
        let control = lab.path("bfdd.sock");
        let daemons = [start("zebra", &zebra, &[]), start("bfdd", &config, &["--bfdctl", &control])];
        Self { _daemons: daemons, directory }
    }

    fn ask(&self, questions: &[&str]) -> String {
        let mut arguments = vec!["--vty_socket", &self.directory, "-d", "bfdd"];
        questions.iter().for_each(|question| arguments.extend(["-c", question]));
        run("/usr/bin/vtysh", &arguments)
    }

    fn peers(&self) -> Vec<Value> {
        serde_json::from_str::<Value>(&self.ask(&["show bfd peers json"]))
            .unwrap()
            .as_array()
            .unwrap()
            .clone()
    }

    /// Waits until FRR says this of both sessions.
    fn expect(&self, key: &str, value: &Value) {
        eventually(&format!("FRR says {key} {value}"), || {
            let peers = self.peers();
            let good = peers.len() == 2 && peers.iter().all(|peer| peer[key] == *value);
            if good { Ok(()) } else { Err(format!("{peers:#?}")) }
        });
    }

    fn shutdown(&self, no: &str) {
        for at in 0..2 {
            let peer = format!("peer {} local-address {} interface eth1", OURS[at], THEIRS[at]);
            self.ask(&["configure terminal", "bfd", &peer, &format!("{no}shutdown")]);
        }
    }
}

#[test]
fn frr_comes_up_changes_timers_and_tells_intent_from_failure() {
    let lab = Lab::new("frr");
    let frr = Frr::start(&lab);
    let _unit = lab.unit();
    lab.set(&sessions(&settings(), false));
    lab.all(State::Up);
    frr.expect("status", &"up".into());
    frr.expect("remote-transmit-interval", &300.into());
    frr.expect("remote-detect-multiplier", &5.into());

    // Timers by a poll sequence: faster, slower; nobody goes down.
    for interval in [200, 700] {
        let interval_ms = Duration::from_millis(interval);
        lab.set(&sessions(&BfdSettings { min_tx: interval_ms, min_rx: interval_ms, ..settings() }, false));
        frr.expect("remote-transmit-interval", &interval.into());
        frr.expect("remote-receive-interval", &interval.into());
        eventually("the poll sequence ends", || {
            let agreed = u64::max(300_000, interval * 1000);
            let sessions = lab.status().sessions;
            let good = sessions.iter().all(|session| session.tx_interval_us == agreed);
            if good { Ok(()) } else { Err(format!("{sessions:?}")) }
        });
    }
    lab.set(&sessions(&settings(), false));
    frr.expect("remote-transmit-interval", &300.into());
    assert!(lab.status().sessions.iter().all(|session| session.downs == 0), "{:?}", lab.status());

    // AdminDown of ours, then of theirs.
    lab.set(&sessions(&BfdSettings { admin_down: true, ..settings() }, false));
    frr.expect("status", &"down".into());
    frr.expect("diagnostic", &"neighbor signaled session down".into());
    frr.expect("remote-diagnostic", &"administratively down".into());
    lab.set(&sessions(&settings(), false));
    lab.all(State::Up);
    let mut changes = lab.subscribe();
    frr.shutdown("");
    for (session, _) in lab.lost(&mut changes, Instant::now(), 2) {
        assert_eq!((session.state, session.remote_state), (State::Down, State::AdminDown), "{session:?}");
        assert!(!session.is_failure(), "the neighbour means it so");
    }
    frr.shutdown("no ");
    lab.all(State::Up);
}

#[test]
fn frr_and_the_unit_find_each_others_end_in_the_detection_time() {
    let lab = Lab::new("frr");
    let frr = Frr::start(&lab);
    let mut unit = lab.unit();
    lab.set(&sessions(&settings(), false));
    lab.all(State::Up);
    frr.expect("status", &"up".into());

    let detection = INTERVAL * u32::from(DETECT_MULT);
    let mut changes = lab.subscribe();
    let cut = Instant::now();
    lab.theirs.ip(&["link", "set", "eth1", "down"]);
    for (session, took) in lab.lost(&mut changes, cut, 2) {
        assert_eq!(session.reason, "control detection time expired");
        assert!(session.is_failure());
        // The unit is prompt; this test's own thread may be late to read of it.
        assert!(took > detection - INTERVAL && took < detection + Duration::from_secs(3), "{took:?}");
    }
    lab.theirs.ip(&["link", "set", "eth1", "up"]);
    // The kernel drops IPv6 addresses with the link.
    lab.theirs.ip(&["addr", "replace", "fd00:77::2/64", "dev", "eth1", "nodad"]);
    lab.all(State::Up);
    frr.expect("status", &"up".into());

    unit.kill();
    frr.expect("status", &"down".into());
    frr.expect("diagnostic", &"control detection time expired".into());
    let _unit = lab.unit();
    assert!(lab.status().sessions.is_empty(), "a new unit knows nothing until it is told");
    lab.set(&sessions(&settings(), false));
    lab.all(State::Up);
    frr.expect("status", &"up".into());
    cell(Peer::Frr, Feature::Bfd, env!("CARGO_CRATE_NAME"));
}

struct Bird {
    daemon: Daemon,
    control: String,
}

impl Bird {
    fn start(lab: &Lab, bfd: &str, more: &str) -> Self {
        let config = lab.file(
            "bird.conf",
            &format!("router id 10.77.0.2;\nprotocol device {{}}\nprotocol bfd {{ {bfd} }}\n{more}\n"),
        );
        let (control, pid) = (lab.path("bird.ctl"), lab.path("bird.pid"));
        let daemon = lab.theirs.spawn("/usr/sbin/bird", &["-f", "-c", &config, "-s", &control, "-P", &pid]);
        eventually("BIRD opens its control socket", || {
            if Path::new(&control).exists() { Ok(()) } else { Err("no socket".into()) }
        });
        Self { daemon, control }
    }

    fn expect(&self, state: &str) {
        eventually(&format!("BIRD says {state} of both sessions"), || {
            let text = run("/usr/sbin/birdc", &["-r", "-s", &self.control, "show", "bfd", "sessions"]);
            let found = text.lines().filter(|line| line.split_whitespace().any(|word| word == state)).count();
            if found == 2 { Ok(()) } else { Err(text) }
        });
    }
}

const TIMERS: &str = "min rx interval 300 ms; min tx interval 300 ms; multiplier 5;";

#[test]
fn bird_comes_up_with_and_without_keys_and_over_several_hops() {
    let neighbors = |more: &str| {
        (0..2).map(|at| format!("neighbor {} {more} local {};", OURS[at], THEIRS[at])).collect::<String>()
    };
    let sha1 = Auth::MeticulousKeyedSha1 { key_id: 7, secret: "sandbar".into() };
    let password = Auth::Password { key_id: 7, secret: "sandbar".into() };
    let key = "password \"sandbar\" { id 7; };";
    for (options, multihop, auth) in [
        (String::new(), false, None),
        (format!("authentication meticulous keyed sha1; {key}"), false, Some(sha1)),
        (format!("authentication simple; {key}"), false, Some(password)),
        (String::new(), true, None),
    ] {
        let lab = Lab::new("bird");
        let bfd = if multihop {
            format!("multihop {{ {TIMERS} }}; {}", neighbors("").replace(';', " multihop yes;"))
        } else {
            format!("interface \"eth1\" {{ {TIMERS} {options} }}; {}", neighbors("dev \"eth1\""))
        };
        let bird = Bird::start(&lab, &bfd, "");
        let _unit = lab.unit();
        lab.set(&sessions(&BfdSettings { auth, ..settings() }, multihop));
        lab.all(State::Up);
        bird.expect("Up");
        // Left out of the list: AdminDown, and BIRD does not wait for its detection time.
        lab.set(&[]);
        bird.expect("Down");
        assert!(lab.status().sessions.is_empty());
    }
}

fn event(speaker: &mut Daemon, kind: &str) -> Value {
    speaker.wait_for(kind, |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        (event["event"] == kind).then_some(event)
    })
}

#[test]
fn a_bgp_session_ends_with_its_bfd_session_and_bfd_outlives_the_speaker() {
    let lab = Lab::new("bird");
    let bgp = |name: &str, at: usize, channel: &str| {
        format!(
            "protocol bgp {name} {{ local {} as 65002; neighbor {} as 4200000001; hold time 90; graceful restart on; bfd on;
              connect retry time 2; connect delay time 1; error wait time 1, 2; {channel} {{ import all; export none; }}; }}",
            THEIRS[at], OURS[at]
        )
    };
    let timers = "interface \"eth1\" { min rx interval 100 ms; min tx interval 100 ms; multiplier 5; };";
    let bird = Bird::start(&lab, timers, &format!("{}{}", bgp("v4", 0, "ipv4"), bgp("v6", 1, "ipv6")));
    let directory = lab.path("run");
    let start = |more: &[&str]| {
        let bfd = format!("bfd={directory}");
        let arguments = [
            "asn=4200000001",
            "router-id=10.77.0.1",
            "peer=v4,10.77.0.2,65002,10.77.0.1",
            "peer=v6,fd00:77::2,65002,fd00:77::1",
            "announce=10.1.1.0/24",
            &bfd,
        ];
        let mut speaker = lab.ours.spawn(UNIT, &[&arguments, more].concat());
        for _ in 0..2 {
            event(&mut speaker, "up");
        }
        speaker
    };
    let unit = tombolo_bgp::bfd::client::Unit::of_this_program(Path::new(&directory));
    // The unit is nobody's child: whatever happens here, it ends with this guard.
    let _end = EndUnit(unit.clone());
    let status = || lab.runtime.block_on(unit.client().status());
    let both_up = || {
        eventually("both BFD sessions are up", || match status() {
            Ok(status)
                if status.sessions.len() == 2 && status.sessions.iter().all(|s| s.state == State::Up) =>
            {
                Ok(status)
            }
            other => Err(format!("{other:?}")),
        })
    };
    let mut speaker = start(&[]);
    let before = both_up();
    bird.expect("Up");
    assert!(before.sessions.iter().all(|session| !session.key.multihop), "one hop, as the BGP session");

    // The agent dies; the unit and its sessions do not notice. The next one finds them.
    speaker.kill();
    let mut speaker = start(&["restarting"]);
    speaker.tell("complete");
    let after = both_up();
    assert_eq!((before.unit.pid, true), (after.unit.pid, after.unit.uptime_ms > before.unit.uptime_ms));
    for (old, new) in before.sessions.iter().zip(&after.sessions) {
        assert_eq!((old.discriminator, new.ups, new.downs), (new.discriminator, 1, 0), "undisturbed");
    }

    // BIRD freezes: its TCP stays, its BFD does not.
    let pid = bird.daemon.id().to_string();
    let frozen = Instant::now();
    run("kill", &["-STOP", &pid]);
    for _ in 0..2 {
        let down = event(&mut speaker, "down");
        assert!(down["reason"].as_str().unwrap().contains("BFD down (6/10)"), "{down}");
        assert_eq!(down["kept"], false);
    }
    let took = frozen.elapsed();
    run("kill", &["-CONT", &pid]);
    assert!(took < Duration::from_secs(9), "long before the hold time of 9 s: {took:?}");
    for _ in 0..2 {
        event(&mut speaker, "up");
    }

    // The unit is killed: it is started anew and told again what is wanted.
    let (old, killed) = (unit.pid().unwrap(), both_up());
    run("kill", &["-KILL", &old.to_string()]);
    let again = both_up();
    assert_ne!(again.unit.pid, killed.unit.pid);
    speaker.tell("shutdown done");
    assert!(speaker.wait());
    eventually("an orderly end takes the sessions along", || match status() {
        Ok(status) if status.sessions.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cell(Peer::Bird, Feature::Bfd, env!("CARGO_CRATE_NAME"));
}

struct EndUnit(tombolo_bgp::bfd::client::Unit);

impl Drop for EndUnit {
    fn drop(&mut self) {
        if let Some(pid) = self.0.pid() {
            run("kill", &["-KILL", &pid.to_string()]);
        }
    }
}
