//! Peers that are not configured by address: unnumbered links and listen ranges.

use serde_json::json;
use tombolo_tests::netns::{Namespace, eventually, join};
use tombolo_tests::routers::{Bird, Frr};

use crate::daemons::{BIRD_COMMON, bird, frr};
use crate::speaker::Speaker;
use crate::{BOTH_LEARNED, OURS, in_kernel, namespaces};

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
