//! The other daemons, with a neighbour for each family.

use tombolo_tests::matrix::Peer;
use tombolo_tests::netns::Namespace;
use tombolo_tests::routers::{Bird, Frr, GoBgp, OpenBgpd};

use crate::BOTH_LEARNED;

/// FRR with a neighbour for each family, and more lines for each.
pub(crate) fn frr(namespace: &Namespace, lines: &[&str]) -> Frr {
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

pub(crate) const BIRD_COMMON: &str = "router id 10.77.0.2;
protocol device {}
protocol kernel { ipv4 { export where source = RTS_BGP; }; }
protocol kernel { ipv6 { export where source = RTS_BGP; }; }
protocol static { ipv4; route 198.51.100.0/24 blackhole; }
protocol static { ipv6; route 2001:db8:100::/48 blackhole; }
template bgp node { local as 65002; hold time 9; connect retry time 2; connect delay time 1; error wait time 1, 2; }
";

/// BIRD with a protocol for each family, and more lines for each.
pub(crate) fn bird(namespace: &Namespace, lines: &str) -> Bird {
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
pub(crate) fn gobgp(namespace: &Namespace, config: &str, tables: &str) -> GoBgp {
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
pub(crate) fn openbgpd(namespace: &Namespace, lines: &str) -> OpenBgpd {
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
pub(crate) enum Asks {
    Nothing,
    Key,
    Gtsm,
}

pub(crate) const DAEMONS: [Peer; 4] = [Peer::Frr, Peer::Bird, Peer::GoBgp, Peer::OpenBgpd];

pub(crate) fn start(daemon: Peer, namespace: &Namespace, asks: Asks) -> Box<dyn std::any::Any> {
    let pick = |key, gtsm| match asks {
        Asks::Nothing => "",
        Asks::Key => key,
        Asks::Gtsm => gtsm,
    };
    match daemon {
        Peer::Frr => {
            let line = pick("password tor-secret", "ttl-security hops 1");
            let lines: &[&str] = if line.is_empty() { &[] } else { &[line] };
            Box::new(frr(namespace, lines))
        }
        Peer::Bird => Box::new(bird(namespace, pick("password \"tor-secret\";", "ttl security on;"))),
        Peer::GoBgp => Box::new(gobgp(
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
