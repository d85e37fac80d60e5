//! Node ports: where they are, who has them, whom they choose.

use super::*;
use tombolo_base::prefix::Prefix;

/// The service with a node port, one backend on this node and one on another.
fn with_node_port(world: &World, number: u16) -> ServiceRow {
    world.initialize();
    world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", true), endpoint("10.1.2.5", "n2", true)]));
    let mut row = ServiceRow { kind: ServiceType::NodePort, global: false, ..service() };
    row.ports[0].node_port = Some(number);
    row
}

/// Whose each frontend on an address of the node is.
fn on_node(world: &World) -> BTreeSet<(String, u16, String)> {
    let rows = world.out.frontends.table().snapshot();
    let here = rows.iter().filter(|row| NODE.contains(&row.key.address.to_string().as_str()));
    here.map(|row| (row.key.address.to_string(), row.key.port, row.service.name.to_string())).collect()
}

fn have(port: u16, name: &str) -> BTreeSet<(String, u16, String)> {
    NODE.map(|address| (address.to_owned(), port, name.to_owned())).into()
}

#[test]
fn a_node_port_is_on_every_address_of_the_node_and_of_the_services_families() {
    let mut world = World::new();
    let row = with_node_port(&world, 30_080);
    world.services.1.upsert(row.clone());
    world.step(1);
    assert_eq!(on_node(&world), have(30_080, "web"));
    let frontends = world.out.frontends.table().snapshot();
    let numbers: BTreeSet<_> = frontends.iter().map(|row| (row.key.address, row.key.port, row.id)).collect();
    assert_eq!(numbers.len(), 4, "both scopes of a node port have one number: {numbers:?}");
    assert!(frontends.iter().all(|row| row.node_port == (row.key.port == 30_080)));
    world.services.1.upsert(ServiceRow { families_ipv4: vec![true], ..row.clone() });
    world.step(2);
    assert_eq!(on_node(&world), [(NODE[0].to_owned(), 30_080, "web".to_owned())].into());
    let without = ServiceRow { ports: service().ports, ..row };
    world.services.1.upsert(without);
    world.step(3);
    assert!(on_node(&world).is_empty());
}

#[test]
fn the_external_policy_narrows_a_node_port_only_for_the_outside() {
    for (policy, outside) in
        [(TrafficPolicy::Cluster, vec!["10.1.1.5", "10.1.2.5"]), (TrafficPolicy::Local, vec!["10.1.1.5"])]
    {
        let mut world = World::new();
        let row = with_node_port(&world, 80);
        world.services.1.upsert(ServiceRow { external_traffic_policy: policy, ..row });
        world.step(1);
        assert_eq!(world.backends_of(NODE[0], Scope::External), outside, "{policy:?}");
        assert_eq!(world.backends_of(NODE[0], Scope::Internal), ["10.1.1.5", "10.1.2.5"], "{policy:?}");
    }
}

#[test]
fn another_clusters_backends_come_with_a_global_service_not_with_its_node_port() {
    let mut world = World::new();
    let row = with_node_port(&world, 80);
    world.services.1.upsert(ServiceRow { global: true, ..row });
    world.remote.1.upsert(remote(&["10.2.1.5"]));
    world.step(1);
    assert_eq!(world.backends_of(NODE[0], Scope::External), ["10.1.1.5", "10.1.2.5", "10.2.1.5"]);
    // What is only shared there is no service here.
    world.services.1.remove(&name());
    world.step(2);
    assert!(world.out.frontends.table().snapshot().is_empty());
}

#[test]
fn a_node_port_that_two_services_want_is_the_firsts_by_name() {
    let mut world = World::new();
    let row = with_node_port(&world, 30_080);
    world.services.1.upsert(row.clone());
    world.step(1);
    let other = ServiceName { name: "api".into(), ..name() };
    world.services.1.upsert(ServiceRow { name: other.clone(), cluster_ips: vec![], ..row });
    world.step(2);
    assert_eq!(on_node(&world), have(30_080, "api"));
    world.services.1.remove(&other);
    world.step(3);
    assert_eq!(on_node(&world), have(30_080, "web"));
}

#[test]
fn whoever_names_an_address_of_the_node_leaves_its_node_ports_alone() {
    let mut world = World::new();
    let row = with_node_port(&world, 80);
    let other = ServiceName { name: "api".into(), ..name() };
    let external_ips = NODE.map(|text| text.parse().unwrap()).to_vec();
    world.services.1.upsert(ServiceRow {
        name: other.clone(),
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![],
        external_ips: external_ips.clone(),
        ..service()
    });
    let given = |addresses: &[IpAddr]| LbAssignment {
        source: Source::Planner,
        name: other.clone(),
        addresses: addresses.iter().copied().collect(),
        pools: BTreeSet::new(),
    };
    for step in 0..2 {
        world.step(1 + step * 3);
        assert_eq!(on_node(&world), have(80, "api"), "nobody has the node port");
        world.services.1.upsert(row.clone());
        world.step(2 + step * 3);
        assert_eq!(on_node(&world), have(80, "web"));
        world.services.1.remove(&name());
        world.step(3 + step * 3);
        assert_eq!(on_node(&world), have(80, "api"));
        // Once more with the addresses given by a pool.
        world.services.1.upsert(ServiceRow {
            name: other.clone(),
            kind: ServiceType::LoadBalancer,
            cluster_ips: vec![],
            ..service()
        });
        world.addresses.1.upsert(given(&external_ips));
    }
}

#[test]
fn source_ranges_narrow_loadbalancer_addresses_for_the_outside_alone() {
    let mut world = World::new();
    let row = with_node_port(&world, 30_080);
    let range: Prefix = "192.0.2.0/24".parse().unwrap();
    world.services.1.upsert(ServiceRow {
        kind: ServiceType::LoadBalancer,
        external_ips: vec!["198.51.100.7".parse().unwrap()],
        source_ranges: Some([range].into()),
        ..row.clone()
    });
    let addresses = ["203.0.113.1", "2001:db8:e::1"].map(|text| text.parse().unwrap()).into();
    let pools = BTreeSet::new();
    world.addresses.1.upsert(LbAssignment { source: Source::Planner, name: name(), addresses, pools });
    world.step(1);
    let narrowed = |world: &World| -> BTreeSet<(String, Vec<Prefix>)> {
        let rows = world.out.frontends.table().snapshot();
        let narrowed = rows.iter().filter(|row| row.source_ranges.is_some());
        narrowed
            .map(|row| {
                assert_eq!(row.key.scope, Scope::External, "{:?}", row.key);
                (row.key.address.to_string(), row.source_ranges.as_deref().unwrap().to_vec())
            })
            .collect()
    };
    // Nobody of the other family: it has no range.
    let expected = [("203.0.113.1".to_owned(), vec![range]), ("2001:db8:e::1".to_owned(), vec![])].into();
    assert_eq!(narrowed(&world), expected);
    world.services.1.upsert(ServiceRow { kind: ServiceType::LoadBalancer, ..row });
    world.step(2);
    assert_eq!(narrowed(&world), BTreeSet::new());
}

#[test]
fn session_affinity_is_of_every_address_and_within_kubernetes_bounds() {
    let mut world = World::new();
    let row = with_node_port(&world, 30_080);
    for (given, secs) in [(None, 10_800), (Some(60), 60), (Some(0), 1), (Some(u32::MAX), 86_400)] {
        for client_ip_affinity in [true, false] {
            let mut row = row.clone();
            row.details.client_ip_affinity = client_ip_affinity;
            row.details.affinity_timeout_secs = given;
            world.services.1.upsert(row);
            world.step(1);
            let rows = world.out.frontends.table().snapshot();
            let expected = client_ip_affinity.then_some(secs);
            assert!(rows.len() == 6 && rows.iter().all(|row| row.affinity_secs == expected), "{rows:?}");
        }
    }
}

#[test]
fn an_address_that_somebody_else_may_have_is_not_the_services_alone() {
    let mut world = World::new();
    let mut row = with_node_port(&world, 30_080);
    row.kind = ServiceType::LoadBalancer;
    row.families_ipv4 = vec![true];
    // Another node's address and this one's, too.
    row.external_ips = ["172.20.12.2", NODE[0]].map(|text| text.parse().unwrap()).to_vec();
    world.services.1.upsert(row);
    let addresses = ["203.0.113.1".parse().unwrap()].into();
    let pools = BTreeSet::new();
    world.addresses.1.upsert(LbAssignment { source: Source::Planner, name: name(), addresses, pools });
    world.step(1);
    let rows = world.out.frontends.table().snapshot();
    let whole = rows.iter().filter(|row| row.whole_address && row.key.address.is_ipv4());
    let whole: BTreeSet<_> = whole.map(|row| (row.key.address.to_string(), row.key.scope)).collect();
    let expected = [
        ("10.101.0.10", Scope::Internal),
        ("203.0.113.1", Scope::External),
        ("203.0.113.1", Scope::Internal),
        ("172.20.12.2", Scope::External),
    ];
    assert_eq!(whole, expected.map(|(address, scope)| (address.to_owned(), scope)).into());
}
