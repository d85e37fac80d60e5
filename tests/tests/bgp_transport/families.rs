//! Which families over which transport, and from where.

use serde_json::json;
use tombolo_tests::matrix::{Feature, Peer, cell};
use tombolo_tests::netns::eventually;
use tombolo_tests::routers::{Bird, Frr};

use crate::daemons::{BIRD_COMMON, frr};
use crate::speaker::{Speaker, both, peer};
use crate::{BOTH_LEARNED, OURS, in_kernel, namespaces};

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
    for daemon in [Peer::Frr, Peer::Bird] {
        let [ours, theirs] = namespaces();
        let keep: Box<dyn std::any::Any> = match daemon {
            Peer::Frr => Box::new(Frr::start(
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
        cell(daemon, Feature::ExtendedNextHop, env!("CARGO_CRATE_NAME"));
    }
}
