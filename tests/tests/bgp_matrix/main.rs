//! The cells of the interoperability matrix that no other test shows: every daemon with everything on, one after the other, over one pair of
//! sessions each. Needs root.

#![cfg(test)]

mod daemons;

use daemons::Subject;
use serde_json::{Value, json};
use tombolo_tests::matrix::{Feature, Peer, cell, lacks};
use tombolo_tests::netns::{Namespace, eventually, join_by};
use tombolo_tests::speaker::Speaker;

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
/// Announced by us, and tagged with a large community.
const OURS: [&str; 2] = ["10.1.1.0/24", "2001:db8:e::/64"];
/// Announced by us with attributes that no message of 4096 bytes holds.
const WIDE: &str = "10.1.2.0/24";
/// Announced by the daemon, the first with a large community.
const THEIRS: [&str; 2] = ["198.51.100.0/24", "2001:db8:100::/48"];
/// Announced by the daemon, by a third speaker to both of us, and by a fourth to us.
const SHARED: &str = "203.0.113.0/24";
const TEXT: &str = "ticket 4711";

struct Lab {
    subject: Subject,
    speaker: Speaker,
    _others: [Speaker; 2],
    _namespaces: [Namespace; 4],
}

/// Numbers with one blank between them: what the notations of all daemons have in common.
fn numbers(text: &str) -> String {
    let words = text.split(|letter: char| !letter.is_ascii_digit()).filter(|word| !word.is_empty());
    format!(" {} ", words.collect::<Vec<_>>().join(" "))
}

fn v4(peer: Peer) -> Value {
    let large: Vec<String> = (1..=500).map(|number| format!("65001:9:{number}")).collect();
    let tag = |name: &str, prefix: &str, large: &[String]| json!({"name": name, "when": [{"prefixes": [prefix]}], "actions": [{"addLargeCommunities": large}], "then": "accept"});
    let mut statements = vec![tag("tag", OURS[0], &["65001:1:2".to_owned()])];
    if !lacks(peer, Feature::ExtendedMessage) {
        statements.push(tag("wide", WIDE, &large));
    }
    let mut settings = json!({
        "name": "v4", "address": "10.77.0.2", "peer_asn": 65002, "local_address": "10.77.0.1",
        "extended_messages": true, "export_learned": true, "add_path": {"receive": true, "send": "all"},
        "export_policy": {"name": "tags", "statements": statements, "default": "accept"},
        "graceful_restart": {"enabled": true, "restart_time_secs": 3},
        "long_lived": {"enabled": true, "stale_time_secs": {"ipv4-unicast": 60}},
    });
    if peer == Peer::ExaBgp {
        settings["transport"] = json!({"md5": "tor-secret"});
    }
    settings
}

fn v6(peer: Peer) -> Value {
    let mut settings = json!({
        "name": "v6", "address": "fd00:77::2", "peer_asn": 65002, "local_address": "fd00:77::1",
        "families": ["ipv4-unicast", "ipv6-unicast"], "extended_next_hop": true,
    });
    if peer == Peer::ExaBgp {
        settings["transport"] = json!({"gtsm_hops": 1});
    }
    settings
}

impl Lab {
    fn start(peer: Peer) -> Self {
        let namespaces = ["mspk", "mpeer", "mthird", "mfourth"].map(Namespace::new);
        let [ours, theirs, third, fourth] = &namespaces;
        join_by(
            [ours, theirs],
            ["eth1", "eth1"],
            [&["10.77.0.1/24", "fd00:77::1/64"], &["10.77.0.2/24", "fd00:77::2/64"]],
        );
        join_by([ours, third], ["eth2", "eth1"], [&["10.78.0.1/24"], &["10.78.0.3/24"]]);
        join_by([theirs, third], ["eth2", "eth2"], [&["10.79.0.2/24"], &["10.79.0.3/24"]]);
        join_by([ours, fourth], ["eth3", "eth1"], [&["10.80.0.1/24"], &["10.80.0.4/24"]]);
        let subject = Subject::start(peer, theirs);
        let shared = format!("announce={SHARED}");
        let other =
            |name: &str, address: &str, asn: u32| json!({"name": name, "address": address, "peer_asn": asn});
        let peers = [other("us", "10.78.0.1", 65001), other("them", "10.79.0.2", 65002)];
        let third = Speaker::start(SPEAKER, third, &peers, &["asn=65003", "router-id=10.78.0.3", &shared]);
        let peers = [other("us", "10.80.0.1", 65001)];
        let fourth = Speaker::start(SPEAKER, fourth, &peers, &["asn=65004", "router-id=10.80.0.4", &shared]);
        let announced: Vec<String> =
            [OURS[0], OURS[1], WIDE].iter().map(|prefix| format!("announce={prefix}")).collect();
        let mut arguments = vec!["asn=65001", "router-id=10.77.0.1", "allow=0.0.0.0/0", "allow=::/0"];
        arguments.extend(announced.iter().map(String::as_str));
        let peers =
            [v4(peer), v6(peer), other("third", "10.78.0.3", 65003), other("fourth", "10.80.0.4", 65004)];
        let mut speaker = Speaker::start(SPEAKER, ours, &peers, &arguments);
        speaker.tell("complete");
        Self { subject, speaker, _others: [third, fourth], _namespaces: namespaces }
    }

    fn peer(&self) -> Peer {
        self.subject.peer
    }

    fn lacks(&self, feature: Feature) -> bool {
        lacks(self.peer(), feature)
    }

    fn proved(&self, feature: Feature) {
        cell(self.peer(), feature, env!("CARGO_CRATE_NAME"));
    }

    /// The daemon's answer of a prefix holds all of these, in plain or as numbers.
    fn shows(&mut self, prefix: &str, wanted: &[&str]) {
        let what = format!("{} shows {prefix} with {wanted:?}", self.peer().name());
        eventually(&what, || {
            let text = self.subject.route(prefix);
            let bare = numbers(&text);
            let good = wanted.iter().all(|one| text.contains(one) || bare.contains(&format!(" {one} ")));
            if good && text.contains(prefix.split('/').next().unwrap()) { Ok(()) } else { Err(text) }
        });
    }

    fn told(&mut self, wanted: &str) {
        eventually(&format!("{} tells {wanted}", self.peer().name()), || {
            let text = self.subject.told();
            if text.contains(wanted) { Ok(()) } else { Err(text) }
        });
    }

    fn is(&mut self, session: &str, what: &str, wanted: impl Fn(&Value) -> bool) {
        let name = self.peer().name();
        eventually(&format!("our session {session} with {name}: {what}"), || {
            let peer = self.speaker.peer(session);
            if wanted(&peer) { Ok(()) } else { Err(peer.to_string()) }
        });
    }

    fn has(rows: &[Value], prefix: &str, hop: &str) -> bool {
        rows.iter().any(|row| row["prefix"] == prefix && row["next_hop"]["address"] == hop)
    }

    /// Routes of both families, large communities, several paths, IPv6 next hops, long messages.
    fn routes(&mut self) {
        let rows = self
            .speaker
            .receives("v4", "the daemon's IPv4 route", |rows| Self::has(rows, THEIRS[0], "10.77.0.2"));
        self.shows(OURS[0], &["10.77.0.1", "65001 1 2"]);
        self.proved(Feature::Ipv4);
        assert!(rows.iter().any(|row| row.to_string().contains("65002:7:8")), "{rows:?}");
        self.proved(Feature::LargeCommunities);
        self.speaker
            .receives("v6", "the daemon's IPv6 route", |rows| Self::has(rows, THEIRS[1], "fd00:77::2"));
        self.shows(OURS[1], &["fd00:77::1", "65001"]);
        self.proved(Feature::Ipv6);
        if !self.lacks(Feature::ExtendedNextHop) {
            self.speaker.receives("v6", "IPv4 by IPv6", |rows| Self::has(rows, THEIRS[0], "fd00:77::2"));
            self.shows(OURS[0], &["fd00:77::1"]);
            self.proved(Feature::ExtendedNextHop);
        }
        let of_shared = |rows: &[Value]| {
            let mut ids: Vec<u64> = rows
                .iter()
                .filter(|row| row["prefix"] == SHARED)
                .filter_map(|row| row["path_id"].as_u64())
                .collect();
            ids.sort_unstable();
            ids.dedup();
            ids.len()
        };
        self.speaker.receives("v4", "two paths of the daemon", |rows| of_shared(rows) >= 2);
        self.shows(SHARED, &["65001 65003", "65001 65004"]);
        self.proved(Feature::AddPath);
        if !self.lacks(Feature::ExtendedMessage) {
            self.shows(WIDE, &["65001 9 1", "65001 9 500"]);
            self.proved(Feature::ExtendedMessage);
        }
        if self.peer() == Peer::ExaBgp {
            // Both sessions are up, the first signed, the second with what is one hop away only.
            self.proved(Feature::Md5);
            self.proved(Feature::Gtsm);
        }
    }

    /// Each asks the other for everything again; what is counted are messages with routes.
    fn refresh(&mut self) {
        let count = |peer: &Value, key: &str| peer["counters"][key].as_u64().unwrap();
        let name = "v4";
        let sessions = count(&self.speaker.peer(name), "sessions");
        let before = self.speaker.peer(name);
        // ExaBGP closes the connection when it is asked.
        if self.peer() != Peer::ExaBgp {
            assert_eq!(self.speaker.ask(&format!("refresh {name}"), "refreshed"), true);
        }
        if self.peer() == Peer::OpenBgpd {
            // It compares with what it has sent, and sends nothing that is the same; but it counts.
            eventually("OpenBGPD counts our request", || {
                let text = self.subject.ask("show neighbor 10.77.0.1");
                let counted = |line: &str| line.contains("Route Refresh") && numbers(line) == " 0 1 ";
                if text.lines().any(counted) { Ok(()) } else { Err(text) }
            });
        } else if self.peer() != Peer::ExaBgp {
            let received = "updates_received";
            self.is(name, "routes came again", |peer| count(peer, received) > count(&before, received));
        }
        let before = self.speaker.peer(name);
        let question = match self.peer() {
            Peer::Bird => "reload in v4",
            Peer::Frr => "clear bgp ipv4 unicast 10.77.0.1 soft in",
            Peer::OpenBgpd => "neighbor 10.77.0.1 refresh",
            Peer::ExaBgp => "announce route-refresh ipv4 unicast",
            // It keeps what it received and never asks.
            Peer::GoBgp => "",
        };
        if !question.is_empty() {
            self.subject.ask(question);
            let sent = "updates_sent";
            self.is(name, "routes went again", |peer| count(peer, sent) > count(&before, sent));
        }
        let after = self.speaker.peer(name);
        assert_eq!(count(&after, "sessions"), sessions, "no session was lost: {after}");
        self.proved(Feature::RouteRefresh);
    }

    fn shutdown(&mut self) {
        let question = match self.peer() {
            Peer::Bird => format!("disable v4 \"{TEXT}\""),
            Peer::Frr => {
                format!("configure terminal\nrouter bgp 65002\nneighbor 10.77.0.1 shutdown message {TEXT}")
            }
            Peer::GoBgp => format!("neighbor 10.77.0.1 shutdown --reason \"{TEXT}\""),
            Peer::OpenBgpd => format!("neighbor 10.77.0.1 down \"{TEXT}\""),
            Peer::ExaBgp => "neighbor fd00:77::1 teardown 2".to_owned(),
        };
        self.subject.ask(&question);
        // ExaBGP's text is fixed, and with graceful restart it sends none.
        self.speaker.tells(if self.peer() == Peer::ExaBgp { "Administrative Shutdown" } else { TEXT });
        let question = match self.peer() {
            Peer::Bird => "enable v4",
            Peer::Frr => "configure terminal\nrouter bgp 65002\nno neighbor 10.77.0.1 shutdown",
            Peer::GoBgp => "neighbor 10.77.0.1 enable",
            Peer::OpenBgpd => "neighbor 10.77.0.1 up",
            Peer::ExaBgp => "",
        };
        if !question.is_empty() {
            self.subject.ask(question);
        }
        self.is("v4", "up again", |peer| peer["state"] == "established");
        if self.peer() != Peer::ExaBgp {
            self.speaker
                .tell(&format!("operate v4 {}", json!({"action": "shutdown", "text": "drained for 4712"})));
            match self.peer() {
                Peer::OpenBgpd => {
                    eventually("OpenBGPD shows our text", || {
                        let text = self.subject.ask("show neighbor 10.77.0.1");
                        if text.contains("drained for 4712") { Ok(()) } else { Err(text) }
                    });
                }
                _ => self.told("drained for 4712"),
            }
            self.speaker.tell(r#"operate v4 {"action":"start"}"#);
            self.is("v4", "up again", |peer| peer["state"] == "established");
        }
        self.proved(Feature::ShutdownText);
    }

    /// Our process dies, and the daemon keeps the routes; or ExaBGP's, which has no table, and we keep them.
    fn restart(mut self) {
        if self.peer() == Peer::ExaBgp {
            let Self { subject, mut speaker, _others, _namespaces } = self;
            drop(subject);
            let stale = |rows: &[Value]| rows.iter().any(|row| row["stale"] == true);
            speaker.receives("v4", "ExaBGP's routes are kept", stale);
            let again = Subject::start(Peer::ExaBgp, &_namespaces[1]);
            speaker.receives("v4", "and fresh again", |rows| !rows.is_empty() && !stale(rows));
            cell(again.peer, Feature::GracefulRestart, env!("CARGO_CRATE_NAME"));
            return;
        }
        self.shows(OURS[0], &["10.77.0.1"]);
        self.speaker.kill();
        match self.peer() {
            Peer::OpenBgpd => {
                eventually("OpenBGPD keeps the route as stale", || {
                    let text = self.subject.route(OURS[0]);
                    if text.contains("stale") { Ok(()) } else { Err(text) }
                });
                self.proved(Feature::GracefulRestart);
            }
            _ => {
                eventually("the route is long-lived stale", || {
                    let text = self.subject.route(OURS[0]);
                    let marked = text.contains("llgr-stale") || numbers(&text).contains(" 65535 6 ");
                    if marked { Ok(()) } else { Err(text) }
                });
                self.proved(Feature::LongLived);
            }
        }
    }

    /// More than the 20 prefixes that the daemon takes.
    fn limit(&mut self) {
        (1..40).for_each(|number| self.speaker.tell(&format!("announce 10.3.{number}.0/24")));
        self.speaker.tells("maximum number of prefixes");
        (1..40).for_each(|number| self.speaker.tell(&format!("withdraw 10.3.{number}.0/24")));
        self.proved(Feature::MaxPrefix);
    }
}

fn all(peer: Peer) {
    let mut lab = Lab::start(peer);
    lab.routes();
    lab.refresh();
    lab.shutdown();
    lab.restart();
    if !lacks(peer, Feature::MaxPrefix) {
        let mut lab = Lab::start(peer);
        lab.is("v4", "up", |peer| peer["state"] == "established");
        lab.limit();
    }
}

#[test]
fn bird() {
    all(Peer::Bird);
}

#[test]
fn frr() {
    all(Peer::Frr);
}

#[test]
fn gobgp() {
    all(Peer::GoBgp);
}

#[test]
fn openbgpd() {
    all(Peer::OpenBgpd);
}

#[test]
fn exabgp() {
    all(Peer::ExaBgp);
}
