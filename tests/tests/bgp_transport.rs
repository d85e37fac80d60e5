//! What carries sessions, against BIRD, FRR, GoBGP and OpenBGPD: TCP MD5, GTSM, hops, IPv4 over IPv6 next hops, unnumbered links, listen ranges. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "all of this file is test code, helpers included"
)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tombolo_tests::netns::{Daemon, Namespace, eventually, join};
use tombolo_tests::routers::{Bird, Frr, GoBgp, OpenBgpd};

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
const OURS: [&str; 2] = ["10.1.1.0/24", "2001:db8:e::/64"];
const THEIRS: [&str; 2] = ["198.51.100.0/24", "2001:db8:100::/48"];
/// Longer than any attempt of either side: a session that is not there by then is refused, not late.
const REFUSED_FOR: Duration = Duration::from_secs(8);

fn namespaces() -> [Namespace; 2] {
    let pair = [Namespace::new("tspk"), Namespace::new("tpeer")];
    join(&pair[0], &["10.77.0.1/24", "fd00:77::1/64"], &pair[1], &["10.77.0.2/24", "fd00:77::2/64"]);
    pair
}

/// A speaker of ours that announces `OURS` and takes `THEIRS`.
struct Speaker(Daemon);

impl Speaker {
    fn start(namespace: &Namespace, asn: u32, arguments: &[String]) -> Self {
        let mut all = vec![format!("asn={asn}"), format!("router-id=10.77.{}.1", asn % 250)];
        all.extend(OURS.map(|prefix| format!("announce={prefix}")));
        all.extend(THEIRS.iter().chain(&OURS).map(|prefix| format!("allow={prefix}")));
        all.extend(arguments.iter().cloned());
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let mut daemon = namespace.spawn(SPEAKER, &all);
        daemon.wait_for("start", |line| line.contains("started").then_some(()));
        Self(daemon)
    }

    fn ask(&mut self, command: &str, key: &str) -> Value {
        self.0.tell(command);
        self.0.wait_for(command, |line| serde_json::from_str::<Value>(line).ok()?.get(key).cloned())
    }

    fn peers(&mut self) -> Vec<Value> {
        self.ask("peers", "peers").as_array().unwrap().clone()
    }

    fn peer(&mut self, name: &str) -> Value {
        self.peers().into_iter().find(|peer| peer["name"] == name).unwrap_or_default()
    }

    fn up(&mut self, name: &str) {
        eventually(&format!("{name} is up"), || {
            let peer = self.peer(name);
            if peer["state"] == "established" { Ok(()) } else { Err(peer.to_string()) }
        });
    }

    /// The session does not come up while there was time for it.
    fn stays_down(&mut self, name: &str) {
        let end = Instant::now() + REFUSED_FOR;
        while Instant::now() < end {
            let peer = self.peer(name);
            assert_eq!(peer["counters"]["sessions"], 0, "{peer}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Prefix and next hop of what is received and used.
    fn routes(&mut self) -> Vec<(String, String)> {
        let rows = self.ask("received", "received");
        let used = rows.as_array().unwrap().iter().filter(|row| row.get("refused").is_none());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut routes: Vec<_> =
            used.map(|row| (text(&row["prefix"]), text(&row["next_hop"]["address"]))).collect();
        routes.sort();
        routes.dedup();
        routes
    }

    fn learns(&mut self, wanted: &[(&str, &str)]) {
        let wanted: Vec<(String, String)> =
            wanted.iter().map(|(prefix, hop)| ((*prefix).to_owned(), (*hop).to_owned())).collect();
        eventually(&format!("we learn {wanted:?}"), || {
            let seen = self.routes();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }

    fn update(&mut self, settings: &Value) {
        self.ask(&format!("update {settings}"), "updated");
    }
}

fn peer(name: &str, address: &str, more: &Value) -> Value {
    let mut settings = json!({"name": name, "address": address, "peer_asn": 65002});
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    settings
}

fn both(more: &Value) -> Vec<String> {
    [("v4", "10.77.0.2"), ("v6", "fd00:77::2")]
        .map(|(name, address)| format!("peer-json={}", peer(name, address, more)))
        .to_vec()
}

/// FRR with a neighbour for each family, and more lines for each.
fn frr(namespace: &Namespace, lines: &[&str]) -> Frr {
    let neighbour = |address: &str| {
        let more: String = lines.iter().map(|line| format!(" neighbor {address} {line}\n")).collect();
        format!(
            " neighbor {address} remote-as 65001\n neighbor {address} timers 3 9\n neighbor {address} timers connect 2\n{more}"
        )
    };
    Frr::start(
        namespace,
        &format!(
            "router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 no bgp default ipv4-unicast
{}{} address-family ipv4 unicast
  network 198.51.100.0/24
  neighbor 10.77.0.1 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:100::/48
  neighbor fd00:77::1 activate
 exit-address-family
",
            neighbour("10.77.0.1"),
            neighbour("fd00:77::1")
        ),
    )
}

const BIRD_COMMON: &str = "router id 10.77.0.2;
protocol device {}
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
protocol kernel { ipv6 { export where source = RTS_BGP; }; }
protocol static { ipv4; route 198.51.100.0/24 blackhole; }
protocol static { ipv6; route 2001:db8:100::/48 blackhole; }
template bgp node { local as 65002; hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
";

/// BIRD with a protocol for each family, and more lines for each.
fn bird(namespace: &Namespace, lines: &str) -> Bird {
    Bird::start(
        namespace,
        &format!(
            "{BIRD_COMMON}
protocol bgp v4 from node {{ local 10.77.0.2; neighbor 10.77.0.1 as 65001; {lines}
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
protocol bgp v6 from node {{ local fd00:77::2; neighbor fd00:77::1 as 65001; {lines}
  ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
"
        ),
    )
}

/// GoBGP with a neighbour for each family, and more tables for each.
fn gobgp(namespace: &Namespace, config: &str, tables: &str) -> GoBgp {
    let neighbour = |address: &str, family: &str| {
        format!(
            "[[neighbors]]
[neighbors.config]
neighbor-address = \"{address}\"
peer-as = 65001
{config}
[neighbors.timers.config]
hold-time = 9
keepalive-interval = 3
connect-retry = 2
{tables}
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = \"{family}\"
"
        )
    };
    let global = "[global.config]\nas = 65002\nrouter-id = \"10.77.0.2\"\n";
    let v4 = neighbour("10.77.0.1", "ipv4-unicast");
    let v6 = neighbour("fd00:77::1", "ipv6-unicast");
    GoBgp::start(namespace, &format!("{global}{v4}{v6}"), &BOTH_LEARNED)
}

/// OpenBGPD with a neighbour for each family, and more lines for each.
fn openbgpd(namespace: &Namespace, lines: &str) -> OpenBgpd {
    let neighbour = |address: &str, family: &str| {
        format!(
            "neighbor {address} {{\n remote-as 65001\n holdtime 9\n announce {family} unicast\n {lines}\n}}\n"
        )
    };
    let v4 = neighbour("10.77.0.1", "IPv4");
    let v6 = neighbour("fd00:77::1", "IPv6");
    OpenBgpd::start(
        namespace,
        &format!(
            "AS 65002
router-id 10.77.0.2
fib-update no
listen on 10.77.0.2
listen on fd00:77::2
network 198.51.100.0/24
network 2001:db8:100::/48
{v4}{v6}allow from any
allow to any
"
        ),
    )
}

/// What a daemon is to ask of its neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Asks {
    Nothing,
    Key,
    Gtsm,
}

const DAEMONS: [&str; 4] = ["frr", "bird", "gobgp", "openbgpd"];

fn start(daemon: &str, namespace: &Namespace, asks: Asks) -> Box<dyn std::any::Any> {
    let pick = |key, gtsm| match asks {
        Asks::Nothing => "",
        Asks::Key => key,
        Asks::Gtsm => gtsm,
    };
    match daemon {
        "frr" => {
            let line = pick("password tor-secret", "ttl-security hops 1");
            let lines: &[&str] = if line.is_empty() { &[] } else { &[line] };
            Box::new(frr(namespace, lines))
        }
        "bird" => Box::new(bird(namespace, pick("password \"tor-secret\";", "ttl security on;"))),
        "gobgp" => Box::new(gobgp(
            namespace,
            pick("auth-password = \"tor-secret\"", ""),
            pick("", "[neighbors.ttl-security.config]\nenabled = true\nttl-min = 255"),
        )),
        _ => {
            let lines = pick("tcp md5sig password tor-secret", "ttl-security yes");
            Box::new(openbgpd(namespace, lines))
        }
    }
}

const BOTH_LEARNED: [(&str, &str); 2] =
    [("198.51.100.0/24", "10.77.0.2"), ("2001:db8:100::/48", "fd00:77::2")];

fn in_kernel(namespace: &Namespace, prefix: &str, via: &str) {
    eventually(&format!("{prefix} via {via} is in the kernel table"), || {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        let text = namespace.ip(&[family, "route", "show", prefix]);
        if text.contains(via) {
            Ok(())
        } else {
            Err(format!("{text} of {}", namespace.ip(&[family, "route"])))
        }
    });
}

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
        b.0.tell("announce 198.51.100.0/24");
        eventually("a route comes over the session with the new key", || {
            let routes = a.routes();
            if routes.iter().any(|(prefix, _)| prefix == "198.51.100.0/24") || here.contains(':') {
                Ok(())
            } else {
                Err(format!("{routes:?}"))
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
        if ["frr", "bird"].contains(&daemon) {
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

/// The source of connections is an address of a named interface: the daemon knows us by our loopback.
#[test]
fn connections_come_from_the_interface_that_is_asked_for() {
    let [ours, theirs] = namespaces();
    theirs.ip(&["route", "add", "10.99.0.1/32", "via", "10.77.0.1"]);
    theirs.ip(&["-6", "route", "add", "fd00:99::1/128", "via", "fd00:77::1"]);
    // Not every kernel has dummy devices.
    ours.ip(&["link", "add", "lo1", "type", "veth", "peer", "name", "lo1p"]);
    for address in ["10.99.0.1/32", "fd00:99::1/128"] {
        ours.ip(&["addr", "add", address, "dev", "lo1"]);
    }
    ours.ip(&["link", "set", "lo1p", "up"]);
    ours.ip(&["link", "set", "lo1", "up"]);
    let config = format!(
        "{BIRD_COMMON}
protocol bgp v4 from node {{ passive; multihop; local 10.77.0.2; neighbor 10.99.0.1 as 65001;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
protocol bgp v6 from node {{ passive; multihop; local fd00:77::2; neighbor fd00:99::1 as 65001;
  ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
"
    );
    let _bird = Bird::start(&theirs, &config);
    let settings = json!({"ebgp_multihop": 2, "transport": {"source_interface": "lo1"}});
    let mut speaker = Speaker::start(&ours, 65001, &both(&settings));
    speaker.learns(&BOTH_LEARNED);
    assert_eq!(speaker.peer("v4")["local_address"], "10.99.0.1");
    drop(speaker);
    let settings = json!({"transport": {"source_interface": "lo9"}});
    let mut speaker = Speaker::start(&ours, 65001, &both(&settings));
    eventually("an interface that is not there is named", || {
        let error = speaker.peer("v4")["last_error"].to_string();
        if error.contains("lo9") { Ok(()) } else { Err(error) }
    });
}

/// A speaker that is bound to a device, be it an interface or a VRF, is not there for others.
#[test]
fn a_device_binds_listeners_and_connections() {
    let [ours, theirs] = namespaces();
    let _frr = frr(&theirs, &[]);
    for passive in [false, true] {
        let mut arguments = both(&json!({"passive": passive}));
        arguments.push("device=eth1".to_owned());
        let mut speaker = Speaker::start(&ours, 65001, &arguments);
        speaker.learns(&BOTH_LEARNED);
        let sockets = ours.run(&["ss", "-H", "-tan", "sport = :179 or dport = :179"]);
        let bound = sockets.lines().filter(|line| line.contains("%eth1:179")).count();
        assert!(bound >= 2, "both listeners are bound: {sockets}");
    }
    let mut speaker =
        Speaker::start(&ours, 65001, &[both(&json!({})), vec!["device=lo".to_owned()]].concat());
    speaker.stays_down("v4");
}

/// Both families over one session, whatever it runs over.
#[test]
fn both_families_go_over_either_transport() {
    let [ours, theirs] = namespaces();
    let config = format!(
        "{BIRD_COMMON}
protocol bgp both from node {{ local 10.77.0.2; neighbor 10.77.0.1 as 65001;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
  ipv6 {{ import all; export where source = RTS_STATIC; next hop address fd00:77::2; }}; }}
"
    );
    let _bird = Bird::start(&theirs, &config);
    let more = json!({"families": ["ipv4-unicast", "ipv6-unicast"], "next_hop_ipv6": "fd00:77::1"});
    let argument = format!("peer-json={}", peer("both", "10.77.0.2", &more));
    let mut speaker = Speaker::start(&ours, 65001, &[argument]);
    speaker.learns(&BOTH_LEARNED);
    in_kernel(&theirs, OURS[0], "10.77.0.1");
    in_kernel(&theirs, OURS[1], "fd00:77::1");
}

/// RFC 8950 in both directions over a session between IPv6 addresses, into the other side's kernel.
#[test]
fn ipv4_goes_over_ipv6_next_hops_with_frr_and_bird() {
    for daemon in ["frr", "bird"] {
        let [ours, theirs] = namespaces();
        let keep: Box<dyn std::any::Any> = match daemon {
            "frr" => Box::new(Frr::start(
                &theirs,
                "router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor fd00:77::1 remote-as 65001
 neighbor fd00:77::1 timers 3 9
 neighbor fd00:77::1 timers connect 2
 neighbor fd00:77::1 capability extended-nexthop
 address-family ipv4 unicast
  network 198.51.100.0/24
  neighbor fd00:77::1 activate
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:100::/48
  neighbor fd00:77::1 activate
 exit-address-family
",
            )),
            _ => Box::new(Bird::start(
                &theirs,
                &format!(
                    "{BIRD_COMMON}
protocol bgp both from node {{ local fd00:77::2; neighbor fd00:77::1 as 65001;
  ipv4 {{ extended next hop on; import all; export where source = RTS_STATIC; next hop self; }};
  ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
"
                ),
            )),
        };
        let settings = peer(
            "both",
            "fd00:77::2",
            &json!({"families": ["ipv4-unicast", "ipv6-unicast"], "extended_next_hop": true}),
        );
        let mut speaker = Speaker::start(&ours, 65001, &[format!("peer-json={settings}")]);
        speaker.learns(&[("198.51.100.0/24", "fd00:77::2"), ("2001:db8:100::/48", "fd00:77::2")]);
        // FRR prefers the link-local address of the link, if it has learned it.
        in_kernel(&theirs, OURS[0], "inet6");
        in_kernel(&theirs, OURS[1], "via");
        drop(keep);
    }
}

fn link_local(namespace: &Namespace) -> String {
    eventually("the interface has a link-local address", || {
        let text = namespace.ip(&["-6", "-o", "addr", "show", "dev", "eth1", "scope", "link"]);
        let address = text.split_whitespace().find(|word| word.starts_with("fe80::"));
        match address.filter(|_| !text.contains("tentative")) {
            Some(address) => Ok(address.trim_end_matches("/64").to_owned()),
            None => Err(text),
        }
    })
}

#[test]
fn an_unnumbered_link_to_frr_carries_both_families() {
    let [ours, theirs] = ["tspk", "tpeer"].map(Namespace::new);
    join(&ours, &[], &theirs, &[]);
    let (our_address, their_address) = (link_local(&ours), link_local(&theirs));
    let frr = Frr::start(
        &theirs,
        "router bgp 65002
 bgp router-id 10.77.0.2
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor eth1 interface remote-as external
 neighbor eth1 timers 3 9
 neighbor eth1 timers connect 2
 address-family ipv4 unicast
  network 198.51.100.0/24
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:100::/48
  neighbor eth1 activate
 exit-address-family
",
    );
    let settings = json!({"name": "leaf", "unnumbered": true, "interface": "eth1"});
    let mut speaker = Speaker::start(&ours, 65001, &[format!("peer-json={settings}")]);
    let hop = their_address.as_str();
    speaker.learns(&[("198.51.100.0/24", hop), ("2001:db8:100::/48", hop)]);
    assert_eq!(speaker.peer("leaf")["address"], hop);
    assert_eq!(speaker.peer("leaf")["peer_asn"], 65002);
    in_kernel(&theirs, OURS[0], &format!("inet6 {our_address}"));
    in_kernel(&theirs, OURS[1], &our_address);
    // GTSM on top: both ask it of what is by nature one hop away.
    frr.configure(&["router bgp 65002", "neighbor eth1 ttl-security hops 1"]);
    let mut secure = settings;
    secure["transport"] = json!({"gtsm_hops": 1});
    speaker.update(&secure);
    eventually("the session is up again, with GTSM", || {
        let peer = speaker.peer("leaf");
        let again = peer["counters"]["sessions"].as_u64() > Some(1);
        if again && peer["state"] == "established" { Ok(()) } else { Err(peer.to_string()) }
    });
}

/// BIRD does not look for routers, but tells of itself, and takes whoever connects on the interface.
#[test]
fn an_unnumbered_link_to_bird_carries_both_families() {
    let [ours, theirs] = ["tspk", "tpeer"].map(Namespace::new);
    join(&ours, &[], &theirs, &[]);
    let (our_address, their_address) = (link_local(&ours), link_local(&theirs));
    let config = format!(
        "{BIRD_COMMON}
protocol radv {{ interface \"eth1\" {{ min ra interval 3; max ra interval 4; }}; }}
protocol bgp leaf from node {{ local as 65002; neighbor range fe80::/10 as 65001; interface \"eth1\"; direct;
  dynamic name \"leaf\";
  ipv4 {{ extended next hop on; import all; export where source = RTS_STATIC; next hop self; }};
  ipv6 {{ import all; export where source = RTS_STATIC; next hop self; }}; }}
"
    );
    let _bird = Bird::start(&theirs, &config);
    let settings = json!({"name": "leaf", "unnumbered": true, "interface": "eth1",
        "transport": {"md5": null}});
    let mut speaker = Speaker::start(&ours, 65001, &[format!("peer-json={settings}")]);
    let hop = their_address.as_str();
    speaker.learns(&[("198.51.100.0/24", hop), ("2001:db8:100::/48", hop)]);
    in_kernel(&theirs, OURS[0], &format!("inet6 {our_address}"));
    in_kernel(&theirs, OURS[1], &our_address);
}

/// Two speakers of ours find each other, with a key for whoever is on the link.
#[test]
fn unnumbered_speakers_find_each_other_with_a_key() {
    let [ours, theirs] = ["tspk", "tpeer"].map(Namespace::new);
    join(&ours, &[], &theirs, &[]);
    let settings = json!({"name": "leaf", "unnumbered": true, "interface": "eth1",
        "transport": {"md5": "link-key", "gtsm_hops": 1}});
    let argument = [format!("peer-json={settings}")];
    let mut a = Speaker::start(&ours, 65001, &argument);
    let mut b = Speaker::start(&theirs, 65002, &argument);
    a.up("leaf");
    b.up("leaf");
    let hop = link_local(&ours);
    b.learns(&[(OURS[0], &hop), (OURS[1], &hop)]);
}

/// An interface that comes after the speaker is found, and so is a neighbour that comes back with another link-local address.
#[test]
fn unnumbered_links_may_come_late_and_change() {
    let [ours, theirs] = ["tspk", "tpeer"].map(Namespace::new);
    let settings = json!({"name": "leaf", "unnumbered": true, "interface": "eth1"});
    let argument = [format!("peer-json={settings}")];
    let mut a = Speaker::start(&ours, 65001, &argument);
    let error = a.peer("leaf")["last_error"].to_string();
    assert!(error.contains("no router advertisement was heard on eth1"), "{error}");
    join(&ours, &[], &theirs, &[]);
    let mut b = Speaker::start(&theirs, 65002, &argument);
    a.up("leaf");
    let first = link_local(&theirs);
    assert_eq!(a.peer("leaf")["address"], first);
    b.0.kill();
    theirs.ip(&["link", "set", "eth1", "down"]);
    theirs.ip(&["link", "set", "eth1", "address", "02:00:00:00:77:02"]);
    theirs.ip(&["link", "set", "eth1", "up"]);
    let second = link_local(&theirs);
    assert_ne!(first, second);
    let mut b = Speaker::start(&theirs, 65002, &argument);
    eventually("the session is up with the new address", || {
        let peer = a.peer("leaf");
        let up = peer["state"] == "established" && peer["address"] == second;
        if up { Ok(()) } else { Err(peer.to_string()) }
    });
    b.up("leaf");
}

/// FRR and BIRD connect from addresses that are only known as ranges, with the range's key; they vanish when they go.
#[test]
fn dynamic_neighbours_come_from_ranges_and_vanish() {
    for daemon in ["frr", "bird"] {
        let [ours, theirs] = namespaces();
        let ranges = [("rack4", "10.77.0.0/24"), ("rack6", "fd00:77::/64")].map(|(name, prefix)| {
            let template = json!({"transport": {"md5": "rack-key"}, "families": [
                if prefix.contains(':') { "ipv6-unicast" } else { "ipv4-unicast" }],
                "peer_asns": [{"first": 65000, "last": 65010}]});
            format!(
                "range-json={}",
                json!({"name": name, "prefix": prefix, "limit": 5, "template": template})
            )
        });
        let mut speaker = Speaker::start(&ours, 65001, &ranges);
        assert_eq!(speaker.peers().len(), 0);
        let keep: Box<dyn std::any::Any> = match daemon {
            "frr" => Box::new(frr(&theirs, &["password rack-key"])),
            _ => Box::new(bird(&theirs, "password \"rack-key\";")),
        };
        speaker.learns(&BOTH_LEARNED);
        let names: Vec<String> =
            speaker.peers().iter().map(|peer| peer["name"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["rack4-10.77.0.2", "rack6-fd00:77::2"]);
        in_kernel(&theirs, OURS[0], "10.77.0.1");
        drop(keep);
        eventually("the neighbours vanish", || {
            let peers = speaker.peers();
            if peers.is_empty() { Ok(()) } else { Err(format!("{peers:?}")) }
        });
        assert_eq!(speaker.routes().len(), 0);
    }
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
