use super::*;
use crate::line::Line;
use std::sync::Arc;

fn port(name: &str, port: u16) -> NamePort {
    NamePort { name: name.into(), protocol: Protocol::Tcp, port }
}

fn entry(zone: NameZone, name: &str, answer: NameAnswer) -> Line {
    Line::Entry(NameEntry { zone, namespace: "demo".into(), name: name.into(), answer })
}

fn service(ips: &[&str]) -> NameAnswer {
    let addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    NameAnswer::Service { addresses, ports: vec![port("http", 80)] }
}

fn headless(list: &[(&str, &str, &str)]) -> NameAnswer {
    let endpoint = |(host, cluster, ip): &(&str, &str, &str)| NameEndpoint {
        hostname: Arc::from(*host),
        cluster: Arc::from(*cluster),
        address: ip.parse().unwrap(),
        ports: vec![port("http", 8080)],
    };
    NameAnswer::Headless { endpoints: list.iter().map(endpoint).collect() }
}

fn zones() -> Zones {
    use NameZone::{Cluster, ClusterSet};
    let mut zones = Zones::default();
    zones.begin();
    zones.take([
        entry(Cluster, "web", service(&["10.101.0.9", "fd00:101::9"])),
        entry(Cluster, "v4", service(&["10.101.0.10"])),
        entry(
            Cluster,
            "db",
            headless(&[
                ("db-0", "east", "10.1.1.5"),
                ("db-0", "east", "fd00::5"),
                ("db-1", "east", "10.1.1.6"),
            ]),
        ),
        entry(Cluster, "none", headless(&[])),
        entry(Cluster, "out", NameAnswer::Alias { target: "db.example.com".into() }),
        entry(ClusterSet, "web", service(&["10.111.0.1"])),
        entry(ClusterSet, "db", headless(&[("db-0", "east", "10.1.1.5"), ("db-0", "west", "10.2.1.5")])),
        entry(ClusterSet, "new", service(&[])),
        Line::Namespace { name: "empty".into(), exists: true },
    ]);
    zones
}

fn known() -> Zones {
    let mut zones = zones();
    zones.take([Line::State { cluster: true, clusterset: true }]);
    zones
}

fn domains() -> Domains {
    Domains::new("cluster.local", "clusterset.local.", vec!["192.0.2.1".parse().unwrap()], 5)
}

/// Short words for an outcome.
fn ask(zones: &Zones, name: &str, kind: RecordType) -> String {
    let answer = domains().answer(zones, &Name::from_ascii(name).unwrap(), kind);
    match answer {
        Outcome::Records(records, _) => {
            records.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" | ")
        }
        Outcome::Alias(_, target) => format!("-> {target}"),
        Outcome::NoData(soa) => format!("nodata {}", soa.name),
        Outcome::NxDomain(soa) => format!("nxdomain {}", soa.name),
        Outcome::Unknown => "unknown".to_owned(),
        Outcome::NotOurs => "not ours".to_owned(),
    }
}

#[test]
fn names_of_the_cluster() {
    use RecordType::{A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    let zones = known();
    let none = "nxdomain cluster.local.";
    let empty = "nodata cluster.local.";
    for (name, kind, wanted) in [
        ("web.demo.svc.cluster.local.", A, "10.101.0.9"),
        ("WEB.Demo.SVC.cluster.LOCAL.", AAAA, "fd00:101::9"),
        ("v4.demo.svc.cluster.local.", AAAA, empty),
        ("web.demo.svc.cluster.local.", MX, empty),
        ("nobody.demo.svc.cluster.local.", A, none),
        ("web.other.svc.cluster.local.", A, none),
        ("web.demo.cluster.local.", A, none),
        // Names above others exist.
        ("demo.svc.cluster.local.", A, empty),
        ("empty.svc.cluster.local.", A, empty),
        ("other.svc.cluster.local.", A, none),
        ("svc.cluster.local.", A, empty),
        ("pod.cluster.local.", A, empty),
        ("cluster.local.", A, empty),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("ns.dns.cluster.local.", A, "192.0.2.1"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("dns-version.cluster.local.", A, empty),
        // Services.
        ("_http._tcp.web.demo.svc.cluster.local.", SRV, "0 100 80 web.demo.svc.cluster.local."),
        ("_http._tcp.web.demo.svc.cluster.local.", A, empty),
        ("_tcp.web.demo.svc.cluster.local.", SRV, empty),
        ("_http._udp.web.demo.svc.cluster.local.", SRV, none),
        ("_other._tcp.web.demo.svc.cluster.local.", SRV, none),
        ("host.web.demo.svc.cluster.local.", A, none),
        // Headless ones.
        ("db.demo.svc.cluster.local.", A, "10.1.1.5 | 10.1.1.6"),
        ("db.demo.svc.cluster.local.", AAAA, "fd00::5"),
        ("db-0.db.demo.svc.cluster.local.", A, "10.1.1.5"),
        ("db-1.db.demo.svc.cluster.local.", AAAA, empty),
        ("db-2.db.demo.svc.cluster.local.", A, none),
        ("none.demo.svc.cluster.local.", A, none),
        ("out.demo.svc.cluster.local.", A, "-> db.example.com."),
        ("out.demo.svc.cluster.local.", CNAME, "db.example.com."),
        ("x.out.demo.svc.cluster.local.", A, none),
        // Pods.
        ("10-1-1-5.demo.pod.cluster.local.", A, "10.1.1.5"),
        ("fd00-10-1--2.demo.pod.cluster.local.", AAAA, "fd00:10:1::2"),
        ("10-1-1-5.demo.pod.cluster.local.", AAAA, empty),
        ("10-1-1.demo.pod.cluster.local.", A, none),
        ("10-1-1-5.other.pod.cluster.local.", A, none),
        // Others.
        ("example.com.", A, "not ours"),
        ("xcluster.local.", A, "not ours"),
        ("local.", A, "not ours"),
        (".", SOA, "not ours"),
        // Reverse.
        ("9.0.101.10.in-addr.arpa.", PTR, "web.demo.svc.cluster.local."),
        ("9.0.101.10.in-addr.arpa.", A, empty),
        ("6.1.1.10.in-addr.arpa.", PTR, "db-1.db.demo.svc.cluster.local."),
        ("8.0.101.10.in-addr.arpa.", PTR, "not ours"),
        ("0.101.10.in-addr.arpa.", PTR, "not ours"),
    ] {
        assert_eq!(ask(&zones, name, kind).trim_matches('"'), wanted, "{name} {kind}");
    }
    let six = Name::from("fd00:101::9".parse::<IpAddr>().unwrap());
    assert_eq!(ask(&zones, &six.to_ascii(), PTR), "web.demo.svc.cluster.local.");
    assert!(
        ask(&zones, "cluster.local.", SOA).starts_with("ns.dns.cluster.local. hostmaster.cluster.local.")
    );
    let all = ask(&zones, "_http._tcp.db.demo.svc.cluster.local.", SRV);
    assert_eq!(all.matches("8080 db-").count(), 3, "{all}");
}

#[test]
fn names_of_the_clusterset() {
    use RecordType::{A, PTR, SRV, TXT};
    let zones = known();
    let none = "nxdomain clusterset.local.";
    let empty = "nodata clusterset.local.";
    for (name, kind, wanted) in [
        ("web.demo.svc.clusterset.local.", A, "10.111.0.1"),
        ("_http._tcp.web.demo.svc.clusterset.local.", SRV, "0 100 80 web.demo.svc.clusterset.local."),
        ("v4.demo.svc.clusterset.local.", A, none),
        ("web.other.svc.clusterset.local.", A, none),
        ("other.svc.clusterset.local.", A, none),
        ("demo.svc.clusterset.local.", A, empty),
        ("dns-version.clusterset.local.", TXT, "1.0.0"),
        ("10-1-1-5.demo.pod.clusterset.local.", A, none),
        ("db.demo.svc.clusterset.local.", A, "10.1.1.5 | 10.2.1.5"),
        ("db-0.west.db.demo.svc.clusterset.local.", A, "10.2.1.5"),
        ("west.db.demo.svc.clusterset.local.", A, empty),
        ("north.db.demo.svc.clusterset.local.", A, none),
        ("db-0.north.db.demo.svc.clusterset.local.", A, none),
        ("db-0.db.demo.svc.clusterset.local.", A, none),
        // No cluster of one with an address may be picked.
        ("west.web.demo.svc.clusterset.local.", A, none),
        ("new.demo.svc.clusterset.local.", A, "unknown"),
        ("1.0.111.10.in-addr.arpa.", PTR, "web.demo.svc.clusterset.local."),
        // Where the cluster has a name for it, that one is told.
        ("5.1.1.10.in-addr.arpa.", PTR, "db-0.db.demo.svc.cluster.local."),
        ("5.1.2.10.in-addr.arpa.", PTR, "db-0.west.db.demo.svc.clusterset.local."),
    ] {
        assert_eq!(ask(&zones, name, kind).trim_matches('"'), wanted, "{name} {kind}");
    }
    let srv = ask(&zones, "_http._tcp.db.demo.svc.clusterset.local.", SRV);
    assert!(srv.contains("0 50 8080 db-0.west.db.demo.svc.clusterset.local."), "{srv}");
}

#[test]
fn what_is_not_known_yet_is_neither_there_nor_not() {
    let (mut zones, a) = (zones(), RecordType::A);
    assert_eq!(ask(&zones, "web.demo.svc.cluster.local.", a), "10.101.0.9");
    for name in
        ["nobody.demo.svc.cluster.local.", "other.svc.cluster.local.", "nobody.demo.svc.clusterset.local."]
    {
        assert_eq!(ask(&zones, name, a), "unknown", "{name}");
    }
    zones.take([Line::State { cluster: true, clusterset: false }]);
    assert_eq!(ask(&zones, "nobody.demo.svc.cluster.local.", a), "nxdomain cluster.local.");
    assert_eq!(ask(&zones, "nobody.demo.svc.clusterset.local.", a), "unknown");
    assert_eq!(ask(&zones, "nobody.nowhere.svc.clusterset.local.", a), "nxdomain clusterset.local.");
    // Endpoints of a cluster that has not spoken.
    let endpoints = ["north.db.demo.svc.clusterset.local.", "db-0.north.db.demo.svc.clusterset.local."];
    endpoints.iter().for_each(|name| assert_eq!(ask(&zones, name, a), "unknown"));
    assert_eq!(ask(&zones, "db-0.west.db.demo.svc.clusterset.local.", a), "10.2.1.5");
    zones.take([Line::State { cluster: true, clusterset: true }]);
    assert_eq!(ask(&zones, "nobody.demo.svc.clusterset.local.", a), "nxdomain clusterset.local.");
}
