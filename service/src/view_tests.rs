//! What `tombolo mesh services` shows of a small mesh.

use super::*;
use crate::plan::tests::service;
use crate::rows::{LbAssignment, Protocol, RemoteBackend, SliceEndpoint, SlicePort, SliceRow};
use crate::spread::Spread;
use std::net::IpAddr;
use tombolo_base::ids::ClusterName;
use tombolo_base::table::{Row, Snapshot, Table};

fn table<R: Row>(rows: impl IntoIterator<Item = R>) -> Snapshot<R> {
    let (table, writer) = Table::new();
    for row in rows {
        writer.upsert(row);
    }
    table.snapshot()
}

fn remote(cluster: &str, name: &ServiceName, port: &str, ips: &[&str]) -> RemoteService {
    let ports = [RemotePort { name: port.into(), protocol: Protocol::Tcp, port: 8080 }];
    let backend =
        RemoteBackend { ports: Arc::new(ports.into()), zone: Some("a".into()), ..RemoteBackend::default() };
    RemoteService {
        source: Source::Cluster(ClusterName::new(cluster).unwrap()),
        name: name.clone(),
        backends: ips.iter().map(|ip| (ip.parse().unwrap(), backend.clone())).collect(),
    }
}

fn inputs(services: Vec<ServiceRow>, remote: Vec<RemoteService>) -> Inputs {
    let endpoint = |ip: &str, ready| SliceEndpoint {
        addresses: vec![ip.parse().unwrap()],
        ready,
        serving: ready,
        ..SliceEndpoint::default()
    };
    let slice = SliceRow {
        source: Source::Manifests,
        name: ServiceName { name: "web-4".into(), ..service().name },
        service: service().name,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![endpoint("10.1.1.5", true), endpoint("10.1.1.6", false)],
    };
    Inputs {
        services: table(services),
        slices: table([slice]),
        remote: table(remote),
        addresses: table::<LbAssignment>([]),
        probes: table([]),
        host_ports: table([]),
    }
}

#[test]
fn shares_tiers_and_reasons() {
    let spread = Spread {
        tiers: Spread::parse_tiers("local;west").unwrap(),
        overflow: Some(100),
        ..Spread::default()
    };
    let web = service().name;
    let rows = vec![
        remote("west", &web, "http", &["10.2.1.5", "10.2.1.9"]),
        remote("north", &web, "http", &["10.3.1.5", "10.2.1.5"]),
    ];
    let inputs = inputs(vec![ServiceRow { spread, ..service() }], rows);
    let all = global(&inputs, "n1", "east", Some("a"), None);
    assert_eq!((all.len(), all[0].used_here, all[0].shared), (1, true, true));
    let clusters: Vec<_> =
        all[0].clusters.iter().map(|(name, c)| format!("{name} {}/{}", c.ready, c.known)).collect();
    assert_eq!(clusters, ["east 1/2", "north 2/2", "west 2/2"]);
    let port = &all[0].ports[0];
    assert_eq!((all[0].ports.len(), port.family, port.tier_in_use, port.overflowing), (1, "IPv4", 1, true));
    let seen: Vec<String> = port
        .backends
        .iter()
        .map(|b| {
            format!(
                "{} {} {:.0} {}",
                b.backend.0,
                b.cluster,
                b.percent,
                b.why.map_or("-".to_owned(), |w| w.to_string())
            )
        })
        .collect();
    // Of an address that two clusters say the first one's by name counts: here one that is in no tier.
    assert_eq!(
        seen,
        [
            "10.1.1.5 east 50 -",
            "10.1.1.6 east 0 not-ready",
            "10.2.1.5 north 0 no-tier",
            "10.2.1.9 west 50 -",
            "10.3.1.5 north 0 no-tier"
        ]
    );
    assert!(
        all[0]
            .conflicts
            .iter()
            .any(|text| text.contains("1 backends have addresses") && text.contains("10.2.1.5")),
        "{:?}",
        all[0].conflicts
    );
}

#[test]
fn what_keeps_clusters_apart_is_told() {
    let name = |name: &str| ServiceName { name: name.into(), ..service().name };
    let rows = vec![
        remote("west", &service().name, "web", &["10.2.1.5"]),
        remote("west", &name("only-there"), "http", &["10.2.1.6"]),
        remote("west", &name("not-global"), "http", &["10.2.1.7"]),
    ];
    let mine = vec![service(), ServiceRow { name: name("not-global"), global: false, ..service() }];
    let inputs = inputs(mine, rows);
    let told = |only: &str| {
        let mut found = global(&inputs, "n1", "east", None, Some(only));
        assert_eq!(found.len(), 1, "{only}");
        found.remove(0)
    };
    assert!(told("only-there").conflicts[0].contains("no such service in this cluster"));
    assert!(told("demo/not-global").conflicts[0].contains("not global in this cluster"));
    assert!(!told("not-global").used_here && told("not-global").ports.is_empty());
    let web = told("web");
    assert!(
        web.conflicts[0].contains("no backend has port \"http\" TCP")
            && web.conflicts[0].contains("\"web\" TCP"),
        "{:?}",
        web.conflicts
    );
    assert!(global(&inputs, "n1", "east", None, Some("other")).is_empty());
    assert!(web.ports[0].backends.iter().all(|b| b.backend.0 != "10.2.1.5".parse::<IpAddr>().unwrap()));
}
