//! Host ports: where they are, who has them, and what is told of those that nobody gets.

use super::*;
use crate::rows::HostPortRow;
use tombolo_topology::HostPort;

fn port(host: Option<&str>, number: u16) -> HostPort {
    HostPort { host: host.map(|text| text.parse().unwrap()), host_port: number, protocol: 6, port: 8080 }
}

fn pod(name: &str, addresses: &[&str], ports: &[HostPort]) -> HostPortRow {
    HostPortRow {
        name: HostPortRow::name_of("demo", name),
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ports: ports.iter().copied().collect(),
    }
}

/// Address, scope, service and backends of each frontend at a port.
fn at(world: &World, number: u16) -> BTreeSet<(String, Scope, String, String)> {
    let (rows, backends) = (world.out.frontends.table().snapshot(), world.out.backends.table().snapshot());
    let backend = |id: &u32| {
        let row = backends.get(id).unwrap();
        assert!(row.local);
        format!("{}:{}", row.address, row.port)
    };
    let rows = rows.iter().filter(|row| row.key.port == number);
    rows.map(|row| {
        assert!(row.host_port || !row.service.name.contains('/'));
        let found: Vec<String> = row.backends.iter().map(backend).collect();
        (row.key.address.to_string(), row.key.scope, row.service.name.to_string(), found.join(" "))
    })
    .collect()
}

const WEB: [&str; 2] = ["10.1.1.5", "fd00:10:1:1::5"];

#[test]
fn a_host_port_is_on_every_address_of_the_node_and_goes_with_its_pod() {
    let mut world = World::new();
    world.initialize();
    // Twice the same, as of Pod object and runtime: it is there once.
    world.host_ports.1.upsert(pod("web", &WEB, &[port(None, 80), port(Some("0.0.0.0"), 80)]));
    world.step(1);
    let wanted: BTreeSet<_> = [(NODE[0], "10.1.1.5:8080"), (NODE[1], "fd00:10:1:1::5:8080")]
        .into_iter()
        .flat_map(|(address, backend)| {
            [Scope::External, Scope::Internal]
                .map(|scope| (address.to_owned(), scope, "web/host-port".to_owned(), backend.to_owned()))
        })
        .collect();
    assert_eq!(at(&world, 80), wanted);
    assert_eq!(world.planner.problems(), Vec::<String>::new());
    world.host_ports.1.upsert(pod("web", &WEB, &[port(Some(NODE[1]), 80), port(Some("127.0.0.1"), 81)]));
    world.step(2);
    assert_eq!(at(&world, 80).into_iter().map(|row| row.0).collect::<Vec<_>>(), [NODE[1], NODE[1]]);
    let loopback = at(&world, 81);
    assert_eq!(
        loopback.iter().map(|row| (&*row.0, row.1)).collect::<Vec<_>>(),
        [("127.0.0.1", Scope::Internal)]
    );
    world.host_ports.1.remove(&HostPortRow::name_of("demo", "web"));
    world.step(3);
    assert!(world.out.frontends.table().snapshot().is_empty());
    assert!(world.out.backends.table().snapshot().is_empty());
}

#[test]
fn a_service_goes_before_pods_and_the_first_pod_by_name_before_others_and_it_is_told() {
    let mut world = World::new();
    world.initialize();
    let owners = |world: &World| at(world, 80).into_iter().map(|row| row.2).collect::<BTreeSet<_>>();
    world.host_ports.1.upsert(pod("web", &WEB, &[port(None, 80)]));
    world.step(1);
    world.host_ports.1.upsert(pod("api", &["10.1.1.6", "fd00:10:1:1::6"], &[port(None, 80)]));
    world.step(2);
    assert_eq!(owners(&world), ["api/host-port".to_owned()].into());
    let problems = world.planner.problems();
    assert!(
        problems.len() == 1
            && problems[0].contains("demo/web/host-port")
            && problems[0].contains("demo/api/host-port"),
        "{problems:?}"
    );
    let mut service =
        ServiceRow { kind: ServiceType::NodePort, global: false, cluster_ips: vec![], ..service() };
    service.ports[0].node_port = Some(80);
    world.services.1.upsert(service);
    world.step(3);
    assert_eq!(owners(&world), ["web".to_owned()].into());
    assert!(
        world.planner.problems().iter().all(|text| text.contains("demo/web has it")),
        "{:?}",
        world.planner.problems()
    );
    // Each has it back when who was before it goes.
    world.services.1.remove(&name());
    world.step(4);
    assert_eq!(owners(&world), ["api/host-port".to_owned()].into());
    world.host_ports.1.remove(&HostPortRow::name_of("demo", "api"));
    world.step(5);
    assert_eq!((owners(&world), world.planner.problems()), (["web/host-port".to_owned()].into(), vec![]));
    // A pod takes no other node's address, nor a service's.
    world.host_ports.1.upsert(pod("web", &WEB, &[port(Some("10.101.0.10"), 80)]));
    world.step(6);
    assert!(at(&world, 80).is_empty());
    assert!(world.planner.problems()[0].contains("10.101.0.10 is no address of this node"));
}

#[test]
fn a_restart_keeps_host_ports_until_the_pods_have_spoken() {
    let mut world = World::new();
    let backend = (WEB[0].parse().unwrap(), 8080, Protocol::Tcp);
    let key = FrontendKey {
        address: NODE[0].parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        scope: Scope::External,
    };
    world.planner.restore([(backend, 7)], [(key, 9, [backend].into())]);
    world.initialize();
    world.host_ports.1.set_source(&Source::Local, SourceState::Pending);
    world.step(1);
    let state = |world: &World| world.out.frontends.table().snapshot().source_state(&Source::Planner);
    assert_eq!(state(&world), Some(SourceState::Pending), "nothing is pruned yet");
    world.host_ports.1.upsert(pod("web", &WEB, &[port(None, 80)]));
    world.host_ports.1.set_source(&Source::Local, SourceState::Initialized);
    world.step(2);
    assert_eq!(state(&world), Some(SourceState::Initialized));
    let row = world.out.frontends.table().snapshot().get(&key).cloned().unwrap();
    assert_eq!((row.id, row.backends), (9, vec![7]));
}

#[test]
fn a_backend_at_the_nodes_address_counts_as_local_without_naming_the_node() {
    let mut world = World::new();
    world.initialize();
    let mut row = ServiceRow {
        kind: ServiceType::NodePort,
        global: false,
        external_traffic_policy: TrafficPolicy::Local,
        ..service()
    };
    row.ports[0].node_port = Some(30_443);
    world.services.1.upsert(row);
    let nowhere = |address: &str| SliceEndpoint { node: None, ..endpoint(address, "", true) };
    world.slices.1.upsert(slice(vec![nowhere(NODE[0]), nowhere("172.20.12.2")]));
    world.step(1);
    let key = |scope| FrontendKey {
        address: NODE[0].parse().unwrap(),
        port: 30_443,
        protocol: Protocol::Tcp,
        scope,
    };
    let rows = world.out.frontends.table().snapshot();
    assert_eq!(rows.get(&key(Scope::External)).unwrap().backends.len(), 1);
    assert_eq!(rows.get(&key(Scope::Internal)).unwrap().backends.len(), 2);
}

#[test]
fn sctp_is_served_where_the_ports_are_the_same_on_both_sides_and_else_told() {
    let mut world = World::new();
    world.initialize();
    let mut row = ServiceRow { kind: ServiceType::NodePort, global: false, ..service() };
    row.ports[0] =
        ServicePort { protocol: Protocol::Sctp, port: 80, node_port: Some(30_080), ..row.ports[0].clone() };
    let mut backends = slice(vec![endpoint("10.1.1.5", "n1", true)]);
    backends.ports[0].protocol = Protocol::Sctp;
    world.services.1.upsert(row.clone());
    world.slices.1.upsert(backends.clone());
    world.step(1);
    let served = |world: &World| {
        let rows = world.out.frontends.table().snapshot();
        rows.iter().filter(|row| !row.backends.is_empty()).map(|row| row.key.port).collect::<BTreeSet<_>>()
    };
    assert!(
        served(&world).is_empty() && world.planner.problems()[0].contains("SCTP"),
        "{:?}",
        world.planner.problems()
    );
    backends.ports[0].port = 80;
    world.slices.1.upsert(backends);
    world.step(2);
    assert_eq!(
        (served(&world), world.planner.problems().len()),
        ([80].into(), 1),
        "the node port differs still"
    );
    row.ports[0].node_port = None;
    world.services.1.upsert(row);
    world.step(3);
    assert_eq!((served(&world), world.planner.problems()), ([80].into(), vec![]));
    let sctp = HostPort { protocol: 132, ..port(None, 90) };
    world.host_ports.1.upsert(pod("web", &WEB, &[sctp]));
    world.step(4);
    assert!(at(&world, 90).is_empty() && world.planner.problems()[0].contains("containerPort"));
}
