//! Parsers against what BIRD 2.0.12, FRR 8.4.4 and iproute2 printed: a router with two nodes behind it that both
//! announce one LoadBalancer address, and each its own pod CIDR.

use super::*;

const BIRD: &str = include_str!("samples/bird-show-route-all.txt");
const FRR_IPV4: &str = include_str!("samples/frr-bgp-ipv4.json");
const FRR_IPV6: &str = include_str!("samples/frr-bgp-ipv6.json");
const FIB_BIRD_IPV4: &str = include_str!("samples/fib-bird4.json");
const FIB_BIRD_IPV6: &str = include_str!("samples/fib-bird6.json");
const FIB_FRR_IPV4: &str = include_str!("samples/fib-frr4.json");
const FIB_FRR_IPV6: &str = include_str!("samples/fib-frr6.json");

fn routes(entries: &[(&str, &[&str])]) -> Routes {
    let parse = |hops: &[&str]| hops.iter().map(|hop| hop.parse().expect("literal")).collect();
    entries.iter().map(|(prefix, hops)| (prefix.parse().expect("literal"), parse(hops))).collect()
}

fn subnets(of: &[&str]) -> BTreeSet<IpNet> {
    of.iter().map(|subnet| subnet.parse().expect("literal")).collect()
}

impl LinkAddresses {
    pub(super) fn of(ifname: &str, addresses: &[&str]) -> Self {
        let info = |text: &&str| {
            let net: IpNet = text.parse().expect("literal");
            let scope = if text.starts_with("fe80") { "link" } else { "global" };
            AddressInfo {
                local: Some(net.addr()),
                prefixlen: Some(net.prefix_len()),
                scope: Some(scope.to_owned()),
            }
        };
        Self { ifname: ifname.to_owned(), addr_info: addresses.iter().map(info).collect() }
    }
}

/// The ends of the samples' links that are nodes.
fn ends() -> Ends {
    let mut ends = Ends::default();
    let mut add = |node: &str, addresses: &[&str]| ends.add(node, &LinkAddresses::of("eth1", addresses));
    add("n1", &["172.20.21.2/24", "fd00:20:21::2/64", "fe80::54fa:aeff:fe04:484/64"]);
    add("tor", &["172.20.21.1/24", "fd00:20:21::1/64", "fe80::21/64"]);
    add("n2", &["172.20.22.2/24", "fd00:20:22::2/64", "fe80::b480:38ff:fe96:929a/64"]);
    ends
}

fn fib(text: &str, family: Family) -> Routes {
    let entries: Vec<KernelRoute> = serde_json::from_str(text).expect("iproute2's JSON");
    kernel_routes(&entries, family, &ends(), "tor")
}

#[test]
fn bird_tells_every_path_of_both_families() {
    let Held { all, best } = parse_bird(BIRD);
    assert_eq!(all, best, "both nodes' paths are equal");
    let underlay = subnets(&["172.20.11.0/24", "172.20.12.0/24", "fd00:20:11::/64", "fd00:20:12::/64"]);
    let expected = routes(&[
        ("10.1.1.0/24", &["172.20.11.2"]),
        ("10.1.2.0/24", &["172.20.12.2"]),
        ("203.0.113.1/32", &["172.20.11.2", "172.20.12.2"]),
    ]);
    assert_eq!(beside_underlay(all.clone(), Family::Ipv4, &underlay), expected);
    assert_eq!(beside_underlay(fib(FIB_BIRD_IPV4, Family::Ipv4), Family::Ipv4, &underlay), expected);
    let expected = routes(&[
        ("fd00:10:1:1::/64", &["fd00:20:11::2"]),
        ("fd00:10:1:2::/64", &["fd00:20:12::2"]),
        ("2001:db8:e::1/128", &["fd00:20:11::2", "fd00:20:12::2"]),
    ]);
    assert_eq!(beside_underlay(all, Family::Ipv6, &underlay), expected);
    assert_eq!(beside_underlay(fib(FIB_BIRD_IPV6, Family::Ipv6), Family::Ipv6, &underlay), expected);
}

#[test]
fn frr_tells_every_path_and_its_link_local_next_hops_are_known_by_their_link() {
    let underlay = subnets(&["172.20.21.0/24", "172.20.22.0/24", "fd00:20:21::/64", "fd00:20:22::/64"]);
    let expected = routes(&[
        ("10.1.1.0/24", &["172.20.21.2"]),
        ("10.1.2.0/24", &["172.20.22.2"]),
        ("203.0.113.1/32", &["172.20.21.2", "172.20.22.2"]),
    ]);
    let Held { all: rib, best } = parse_frr(FRR_IPV4).expect("FRR's JSON");
    assert_eq!(beside_underlay(best, Family::Ipv4, &underlay), expected);
    assert_eq!(beside_underlay(rib, Family::Ipv4, &underlay), expected);
    assert_eq!(beside_underlay(fib(FIB_FRR_IPV4, Family::Ipv4), Family::Ipv4, &underlay), expected);
    let expected = routes(&[
        ("fd00:10:1:1::/64", &["fd00:20:21::2"]),
        ("fd00:10:1:2::/64", &["fd00:20:22::2"]),
        ("2001:db8:e::1/128", &["fd00:20:21::2", "fd00:20:22::2"]),
    ]);
    let Held { all: rib, .. } = parse_frr(FRR_IPV6).expect("FRR's JSON");
    assert_eq!(beside_underlay(rib, Family::Ipv6, &underlay), expected);
    assert!(FIB_FRR_IPV6.contains("fe80::"), "the sample has link-local next hops");
    assert_eq!(beside_underlay(fib(FIB_FRR_IPV6, Family::Ipv6), Family::Ipv6, &underlay), expected);
}

#[test]
fn differences_are_told_prefix_by_prefix() {
    let expected = routes(&[("10.1.1.0/24", &["172.20.11.2"]), ("10.1.2.0/24", &["172.20.12.2"])]);
    assert_eq!(difference(&expected, &expected), None);
    let held = routes(&[("10.1.1.0/24", &["172.20.12.2"]), ("10.9.0.0/16", &[])]);
    let told = difference(&expected, &held).expect("they differ");
    for part in
        ["10.1.1.0/24 is via {172.20.12.2}", "10.1.2.0/24 is missing", "10.9.0.0/16 via {} should not"]
    {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn nonsense_is_no_route() {
    assert_eq!(parse_bird(""), Held::default());
    assert_eq!(parse_bird("garbage\n\tvia 10.0.0.1 on eth0\n"), Held::default());
    assert!(parse_frr("% BGP instance not found").is_err());
    assert_eq!(parse_frr("{}"), Ok(Held::default()));
}

#[test]
fn a_path_that_is_not_used_is_told_apart() {
    let bird = "203.0.113.1/32       unicast [n1_ipv4 02:52:40.363] * (100) [AS65111i]\n\
        \tvia 172.20.11.2 on eth1\n\tBGP.as_path: 65111\n\tBGP.local_pref: 100\n\
        \u{20}                    unicast [n2_ipv4 02:52:39.617] (100) [AS65112i]\n\
        \tvia 172.20.12.2 on eth2\n\tBGP.as_path: 65112 65112\n\tBGP.local_pref: 100\n";
    let held = parse_bird(bird);
    assert_eq!(held.all, routes(&[("203.0.113.1/32", &["172.20.11.2", "172.20.12.2"])]));
    assert_eq!(held.best, routes(&[("203.0.113.1/32", &["172.20.11.2"])]));
    let frr = r#"{"routes":{"203.0.113.1/32":[{"valid":true,"bestpath":true,"nexthops":[{"ip":"172.20.21.2"}]},
        {"valid":true,"nexthops":[{"ip":"172.20.22.2"}]},{"valid":true,"multipath":true,"nexthops":[{"ip":"172.20.23.2"}]}]}}"#;
    let held = parse_frr(frr).expect("FRR's JSON");
    assert_eq!(held.best, routes(&[("203.0.113.1/32", &["172.20.21.2", "172.20.23.2"])]));
    assert_eq!(held.all.values().map(BTreeSet::len).sum::<usize>(), 3);
}

#[test]
fn of_two_kernel_routes_the_lower_metric_counts() {
    let text = r#"[{"dst":"203.0.113.1","metric":32,"nexthops":[{"gateway":"172.20.11.2"},{"gateway":"172.20.12.2"}]},
        {"dst":"203.0.113.1","gateway":"172.20.12.2","dev":"eth2","metric":1},
        {"dst":"203.0.113.1","gateway":"172.20.11.2","dev":"eth1","metric":64},
        {"dst":"default","gateway":"172.20.101.1","dev":"eth4","metric":32}]"#;
    let expected = routes(&[("203.0.113.1/32", &["172.20.12.2"]), ("0.0.0.0/0", &["172.20.101.1"])]);
    assert_eq!(fib(text, Family::Ipv4), expected);
}

#[test]
fn a_next_hop_of_the_other_family_is_told_by_its_interface() {
    let expected = routes(&[("10.2.1.0/24", &["172.20.21.2"]), ("10.2.2.0/24", &["fe80::9"])]);
    let fib = fib(
        r#"[{"dst":"10.2.1.0/24","via":{"family":"inet6","host":"fe80::54fa:aeff:fe04:484"},"dev":"eth1","metric":20},
            {"dst":"10.2.2.0/24","via":{"family":"inet6","host":"fe80::9"},"dev":"eth1","metric":20}]"#,
        Family::Ipv4,
    );
    assert_eq!(fib, expected);
    let stand_in =
        r#"[{"dst":"10.2.1.0/24","gateway":"169.254.0.1","dev":"eth1","flags":["onlink"],"metric":20}]"#;
    assert_eq!(self::fib(stand_in, Family::Ipv4), routes(&[("10.2.1.0/24", &["172.20.21.2"])]));
    let frr = r#"{"routes":{"10.2.1.0/24":[{"valid":true,"bestpath":true,"nexthops":[{"ip":"fe80::54fa:aeff:fe04:484"}]}],
        "10.2.2.0/24":[{"valid":true,"bestpath":true,"nexthops":[{"ip":"fe80::9"}]}]}}"#;
    assert_eq!(told_by(&ends(), parse_frr(frr).expect("FRR's JSON").best, Family::Ipv4, "tor"), expected);
    assert_eq!(ends().node(&"fe80::54fa:aeff:fe04:484".parse().expect("literal")), Some("n1"));
}
