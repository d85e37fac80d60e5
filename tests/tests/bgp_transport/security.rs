//! Keys, GTSM and hops: who is let in.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tombolo_tests::matrix::{Feature, Peer, cell};
use tombolo_tests::netns::{Namespace, eventually, join};
use tombolo_tests::routers::Bird;

use crate::daemons::{Asks, BIRD_COMMON, DAEMONS, start};
use crate::speaker::{Speaker, both, peer};
use crate::{BOTH_LEARNED, OURS, REFUSED_FOR, SPEAKER, namespaces};

fn table(namespace: &Namespace) -> String {
    namespace.ip(&["-4", "route"]) + &namespace.ip(&["-6", "route"])
}

/// FRR looks at the first segments of a connection before it has set its limit, so that a session may seem up for a moment here.
fn never_in_kernel(namespace: &Namespace, prefixes: &[&str]) {
    let end = Instant::now() + REFUSED_FOR;
    while Instant::now() < end {
        let table = table(namespace);
        assert!(!prefixes.iter().any(|prefix| table.contains(prefix)), "{table}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn md5_keys_are_those_of_every_other_daemon() {
    for daemon in DAEMONS {
        let [ours, theirs] = namespaces();
        let _keep = start(daemon, &theirs, Asks::Key);
        // Both sides active, then the daemon alone, whose SYN must find the key on our listener.
        for passive in [false, true] {
            let settings = json!({"passive": passive, "transport": {"md5": "tor-secret"}});
            let mut speaker = Speaker::start(&ours, 65001, &both(&settings));
            speaker.learns(&BOTH_LEARNED);
            let text = speaker.0.seen().join("\n");
            assert!(!text.contains("tor-secret"), "the key is told: {text}");
        }
        let wrong = both(&json!({"transport": {"md5": "another"}}));
        let mut speaker = Speaker::start(&ours, 65001, &wrong);
        speaker.stays_down("v4");
        assert_eq!(speaker.peer("v6")["counters"]["sessions"], 0);
        cell(daemon, Feature::Md5, env!("CARGO_CRATE_NAME"));
    }
}

/// No daemon here changes a key without a reset, so the other side is a speaker of ours.
#[test]
fn an_md5_key_is_changed_without_a_reset() {
    let [ours, theirs] = namespaces();
    let settings = |address: &str, asn: u32, key: &str| json!({"name": "other", "address": address, "peer_asn": asn, "transport": {"md5": key}});
    for (here, there) in [("10.77.0.1", "10.77.0.2"), ("fd00:77::1", "fd00:77::2")] {
        let argument = |address, asn| vec![format!("peer-json={}", settings(address, asn, "old"))];
        let mut a = Speaker::start(&ours, 65001, &argument(there, 65002));
        let mut b = Speaker::start(&theirs, 65002, &argument(here, 65001));
        a.up("other");
        b.up("other");
        let failures = || md5_failures(&theirs) + md5_failures(&ours);
        let before = failures();
        a.update(&settings(there, 65002, "new"));
        eventually("segments with the new key are refused by the other side", || {
            if failures() > before { Ok(()) } else { Err(format!("{before}")) }
        });
        b.update(&settings(here, 65001, "new"));
        // Longer than the hold time: KEEPALIVEs go through again, and so do routes.
        let end = Instant::now() + Duration::from_secs(11);
        while Instant::now() < end {
            for speaker in [&mut a, &mut b] {
                let peer = speaker.peer("other");
                assert_eq!(
                    (&peer["state"], &peer["counters"]["sessions"]),
                    (&json!("established"), &json!(1)),
                    "{peer}"
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let prefix = if here.contains(':') { "2001:db8:51::/48" } else { "198.51.100.0/24" };
        b.0.tell(&format!("announce {prefix}"));
        eventually("a route comes over the session with the new key", || {
            // Received is enough: whether it may be used is import policy's business.
            let routes = a.ask("received", "received");
            if routes.as_array().unwrap().iter().any(|row| row["prefix"] == prefix) {
                Ok(())
            } else {
                Err(routes.to_string())
            }
        });
        // A new connection uses the new key on both sides' listeners.
        b.0.kill();
        let mut b = Speaker::start(&theirs, 65002, &[format!("peer-json={}", settings(here, 65001, "new"))]);
        b.up("other");
    }
}

/// Segments a namespace has dropped for a wrong, missing or unexpected MD5 signature.
fn md5_failures(namespace: &Namespace) -> u64 {
    let text = namespace.run(&["cat", "/proc/net/netstat"]);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.filter(|(name, _)| name.contains("MD5")).filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

#[test]
fn gtsm_lets_neighbours_in_and_keeps_others_out() {
    for daemon in DAEMONS {
        let [ours, theirs] = namespaces();
        let keep = start(daemon, &theirs, Asks::Gtsm);
        for passive in [false, true] {
            let settings = json!({"passive": passive, "transport": {"gtsm_hops": 1}});
            let mut speaker = Speaker::start(&ours, 65001, &both(&settings));
            speaker.learns(&BOTH_LEARNED);
        }
        if [Peer::Frr, Peer::Bird].contains(&daemon) {
            // We send 1 without it, which the daemon drops.
            eventually("the routes of the speaker before are gone", || {
                let table = table(&theirs);
                if OURS.iter().any(|prefix| table.contains(prefix)) { Err(table) } else { Ok(()) }
            });
            let _plain = Speaker::start(&ours, 65001, &both(&json!({})));
            never_in_kernel(&theirs, &OURS);
        }
        drop(keep);
        // And we drop what it sends with 1. Elsewhere: children of OpenBGPD outlive it a little, and hold its port.
        let [ours, theirs] = namespaces();
        let _keep = start(daemon, &theirs, Asks::Nothing);
        let mut strict = Speaker::start(&ours, 65001, &both(&json!({"transport": {"gtsm_hops": 1}})));
        strict.stays_down("v4");
        assert_eq!(strict.peer("v6")["counters"]["sessions"], 0);
        cell(daemon, Feature::Gtsm, env!("CARGO_CRATE_NAME"));
    }
}

/// Two hops away: by default out of reach, in reach with multihop or two hops of GTSM.
#[test]
fn hops_are_counted() {
    let [ours, router, theirs] = ["tspk", "trtr", "tpeer"].map(Namespace::new);
    join(&ours, &["10.77.1.1/24", "fd00:77:1::1/64"], &router, &["10.77.1.254/24", "fd00:77:1::fe/64"]);
    router.ip(&["link", "set", "eth1", "down"]);
    router.ip(&["link", "set", "eth1", "name", "eth0"]);
    router.ip(&["link", "set", "eth0", "up"]);
    router.ip(&["addr", "replace", "fd00:77:1::fe/64", "dev", "eth0", "nodad"]);
    join(&router, &["10.77.2.254/24", "fd00:77:2::fe/64"], &theirs, &["10.77.2.2/24", "fd00:77:2::2/64"]);
    for forwarding in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        router.run(&["sysctl", "-qw", forwarding]);
    }
    for (namespace, net) in [(&ours, "1"), (&theirs, "2")] {
        namespace.ip(&["route", "add", "default", "via", &format!("10.77.{net}.254")]);
        namespace.ip(&["-6", "route", "add", "default", "via", &format!("fd00:77:{net}::fe")]);
    }
    let start = |lines: &str| {
        let protocol = |name: &str, local: &str, neighbour: &str, family: &str| {
            format!(
                "protocol bgp {name} from node {{ local {local}; neighbor {neighbour} as 65001; {lines}
  {family} {{ import all; export where source = RTS_STATIC; next hop self; }}; }}\n"
            )
        };
        let v4 = protocol("v4", "10.77.2.2", "10.77.1.1", "ipv4");
        let v6 = protocol("v6", "fd00:77:2::2", "fd00:77:1::1", "ipv6");
        Bird::start(&theirs, &format!("{BIRD_COMMON}{v4}{v6}"))
    };
    let peers = |more: &Value| {
        [("v4", "10.77.2.2"), ("v6", "fd00:77:2::2")]
            .map(|(name, address)| format!("peer-json={}", peer(name, address, more)))
    };
    let learned = [("198.51.100.0/24", "10.77.2.2"), ("2001:db8:100::/48", "fd00:77:2::2")];
    let bird = start("multihop 2;");
    Speaker::start(&ours, 65001, &peers(&json!({"ebgp_multihop": 2}))).learns(&learned);
    Speaker::start(&ours, 65001, &peers(&json!({}))).stays_down("v4");
    drop(bird);
    let _bird = start("multihop 2; ttl security on;");
    let secure = |hops: u8| peers(&json!({"transport": {"gtsm_hops": hops}}));
    Speaker::start(&ours, 65001, &secure(2)).learns(&learned);
    let mut near = Speaker::start(&ours, 65001, &secure(1));
    near.stays_down("v4");
    assert_eq!(near.peer("v6")["counters"]["sessions"], 0);
}

/// Not every kernel has TCP-AO; where it is missing, the error says so.
#[test]
fn tcp_ao_works_or_is_refused_with_the_reason() {
    let [ours, theirs] = namespaces();
    let key = json!({"transport": {"ao": {"key": "ao-secret", "send_id": 1, "receive_id": 1}}});
    let here = format!("peer-json={}", peer("v4", "10.77.0.2", &key));
    // Without input the speaker ends as soon as it has its peers.
    let command = ["netns", "exec", ours.name(), SPEAKER, "asn=65001", "router-id=10.0.0.1", &here];
    let output = std::process::Command::new("ip").args(command).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!told.contains("ao-secret"), "{told}");
    if output.status.success() {
        let mut there = peer("v4", "10.77.0.1", &key);
        there["peer_asn"] = json!(65001);
        let mut a = Speaker::start(&ours, 65001, &[here]);
        let _b = Speaker::start(&theirs, 65002, &[format!("peer-json={there}")]);
        a.up("v4");
    } else {
        assert!(told.contains("no TCP-AO") && told.contains("6.7"), "{told}");
    }
}
