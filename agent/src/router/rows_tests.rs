use super::super::config::{is_router, parse};
use super::*;

const ROUTER: &str = "
asn: 65100
router_id: 172.20.101.2
policies:
  of-a-node:
    statements:
    - {name: pods, when: [{prefixes: ['10.0.0.0/8 orlonger', 'fd00:10::/32 orlonger']}], then: accept}
groups:
  nodes: {hold_time_secs: 9, import: of-a-node, export: all, graceful_restart_secs: 120}
peers:
  n1-ipv4: {group: nodes, address: 172.20.11.2, asn: 65111}
  n1-ipv6: {group: nodes, address: 'fd00:20:11::2', asn: 65111, hold_time_secs: 30, import: all}
  link: {interface: eth5, asn: 65000}
dynamic:
  rack: {group: nodes, prefix: 172.20.0.0/16, limit: 8, asns: [65001, 65100-65199]}
networks: [0.0.0.0/0]
connected: ['eth*', lo]
";

#[test]
fn peers_take_what_they_do_not_say_from_their_group() {
    assert!(is_router(ROUTER) && !is_router("cluster: {name: east}\n"));
    let rows = rows(&parse(ROUTER).unwrap()).unwrap();
    let of = |name: &str| rows.peers.iter().find(|row| &*row.name == name).unwrap();
    let (v4, v6) = (of("n1-ipv4"), of("n1-ipv6"));
    assert_eq!(
        (v4.asn, v4.hold_time_secs, v4.keepalive_secs, v4.graceful_restart_secs),
        (65111, 9, 3, Some(120))
    );
    assert_eq!((v6.hold_time_secs, v6.keepalive_secs), (30, 10));
    assert_eq!(v4.families.iter().copied().collect::<Vec<_>>(), [RowFamily::Ipv4Unicast]);
    let import = |row: &PeerRow| row.tuning.import.as_ref().unwrap().json().to_owned();
    assert!(import(v4).contains("of-a-node") && import(v6).contains("\"all\""));
    assert_eq!((v4.local_port, v4.local_asn, v4.tuning.group.as_deref()), (Some(179), 65100, Some("nodes")));
    let link = of("link");
    assert!(link.unnumbered && link.families.len() == 2 && link.address.is_unspecified());
    assert!(import(link).contains("\"none\""), "what no policy allows is refused (RFC 8212)");
    let range = of("rack").range.as_ref().unwrap();
    assert_eq!((range.limit, range.asns.clone()), (8, vec![(65001, 65001), (65100, 65199)]));
    assert_eq!(rows.adverts.len(), 1);
}

#[test]
fn every_mistake_is_told_at_once_with_its_key() {
    let bad = "
asn: 0
router_id: 0.0.0.0
max_paths: 0
policies: {all: {}, p: {statements: [{name: a, when: [{moon: full}]}]}}
peers:
  a: {group: gone, address: 10.0.0.1}
  b: {address: 10.0.0.2, export: gone}
  c: {asn: 1}
  d: {address: 10.0.0.3, hold_time_secs: 2}
  e: {address: 10.0.0.4, teleport: true}
  f: {address: 10.0.0.5, password_file: /nowhere/at/all}
dynamic:
  r: {prefix: 10.0.0.0/8, asns: [9-1]}
";
    let problems = rows(&parse(bad).unwrap()).unwrap_err();
    for key in [
        "asn:",
        "router_id:",
        "max_paths:",
        "policies.all:",
        "policies.p.statements[0].when[0]",
        "peers.a.group:",
        "peers.b.export:",
        "peers.c.interface:",
        "peers.d.hold_time_secs:",
        "peers.e",
        "peers.f.password_file:",
        "dynamic.r.asns[0]:",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key} missing in {problems:#?}");
    }
    assert_eq!(problems.len(), 12, "{problems:#?}");
    assert!(problems.iter().all(|problem| problem.ends_with(')')), "each has a remedy: {problems:#?}");
    assert!(parse("asn: many\nrouter_id: 1.1.1.1\n").unwrap_err().starts_with("asn:"));
    assert!(parse("asn: 1\nrouter_id: 1.1.1.1\nmoon: 1\n").unwrap_err().contains("moon"));
    assert!(parse("asn: [").unwrap_err().contains("no YAML"));
}
