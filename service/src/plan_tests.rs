//! Affinity, traffic policies, sharing of backends and the hold after a restart.

use super::*;
use crate::rows::{
    Affinity, Distribution, RemoteBackend, RemotePort, Scope, ServiceType, SliceEndpoint, SlicePort,
};
use crate::spread::Spread;
use std::time::Duration;
use tombolo_base::ids::ClusterName;
use tombolo_base::table::{Row, Table};

fn name() -> ServiceName {
    ServiceName { namespace: "demo".into(), name: "web".into() }
}

pub(crate) fn service() -> ServiceRow {
    ServiceRow {
        cluster_ips: vec!["10.101.0.10".parse().unwrap(), "fd00:101::10".parse().unwrap()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        families_ipv4: vec![true, false],
        global: true,
        shared: true,
        ..ServiceRow::new(Source::Manifests, name())
    }
}

fn endpoint(ip: &str, node: &str, ready: bool) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![ip.parse().unwrap()],
        ready,
        serving: true,
        terminating: !ready,
        node: Some(node.into()),
        ..SliceEndpoint::default()
    }
}

fn slice(endpoints: Vec<SliceEndpoint>) -> SliceRow {
    SliceRow {
        source: Source::Manifests,
        name: ServiceName { namespace: "demo".into(), name: "web-ipv4".into() },
        service: name(),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints,
    }
}

fn west() -> Source {
    Source::Cluster(ClusterName::new("west").unwrap())
}

fn remote(ips: &[&str]) -> RemoteService {
    let port = RemotePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let backend = RemoteBackend { ports: Arc::new([port].into()), ..RemoteBackend::default() };
    let backends = ips.iter().map(|ip| (ip.parse().unwrap(), backend.clone())).collect();
    RemoteService { source: west(), name: name(), backends }
}

/// Shared by two planners in the property test.
type Shared<R> = (Table<R>, Arc<Writer<R>>);

fn shared<R: Row>() -> Shared<R> {
    let (table, writer) = Table::new();
    (table, Arc::new(writer))
}

/// The node's own addresses.
const NODE: [&str; 2] = ["172.20.11.2", "fd00:20:11::2"];

struct World {
    services: Shared<ServiceRow>,
    slices: Shared<SliceRow>,
    remote: Shared<RemoteService>,
    addresses: Shared<LbAssignment>,
    probes: Shared<FailedProbe>,
    host_ports: Shared<HostPortRow>,
    /// Kept, so that they tell of rows that went.
    service_changes: tombolo_base::table::Changes<ServiceRow>,
    host_port_changes: tombolo_base::table::Changes<HostPortRow>,
    zone: Option<Arc<str>>,
    planner: Planner,
    out: Outputs,
}

impl World {
    fn new() -> Self {
        let out = Outputs { frontends: Table::new().1, backends: Table::new().1 };
        let addresses = NODE.map(|text| text.parse().unwrap());
        let planner = Planner::new("n1".into(), Moment::ZERO).in_cluster("east").at(addresses);
        let (services, host_ports) = (shared::<ServiceRow>(), shared::<HostPortRow>());
        Self {
            service_changes: services.0.changes(),
            services,
            slices: shared(),
            remote: shared(),
            addresses: shared(),
            probes: shared(),
            host_port_changes: host_ports.0.changes(),
            host_ports,
            zone: None,
            planner,
            out,
        }
    }

    fn step(&mut self, secs: u64) {
        let changes = InputChanges {
            services: self.service_changes.drain().or_else(|| self.services.0.changes().drain()),
            slices: self.slices.0.changes().drain(),
            remote: self.remote.0.changes().drain(),
            addresses: self.addresses.0.changes().drain(),
            probes: self.probes.0.changes().drain(),
            host_ports: self.host_port_changes.drain(),
            zone: Some(self.zone.clone()),
        };
        self.planner.step(changes, Moment::from_origin(Duration::from_secs(secs)), &self.out);
    }

    fn initialize(&self) {
        self.services.1.set_source(&Source::Manifests, SourceState::Initialized);
        self.slices.1.set_source(&Source::Manifests, SourceState::Initialized);
        self.remote.1.set_source(&west(), SourceState::Initialized);
    }

    fn backends_of(&self, address: &str, scope: Scope) -> Vec<String> {
        let key = FrontendKey { address: address.parse().unwrap(), port: 80, protocol: Protocol::Tcp, scope };
        let frontends = self.out.frontends.table().snapshot();
        let backends = self.out.backends.table().snapshot();
        let ids = frontends.get(&key).map(|row| row.backends.clone()).unwrap_or_default();
        ids.iter().filter_map(|id| backends.get(id)).map(|row| row.address.to_string()).collect()
    }
}

#[test]
fn affinity_decides_between_clusters() {
    for (affinity, with_local, without_local) in [
        (Affinity::None, vec!["10.1.1.5", "10.2.1.5"], vec!["10.2.1.5"]),
        (Affinity::Local, vec!["10.1.1.5"], vec!["10.2.1.5"]),
        (Affinity::Remote, vec!["10.2.1.5"], vec!["10.2.1.5"]),
    ] {
        let mut world = World::new();
        world.initialize();
        world.services.1.upsert(ServiceRow { affinity, ..service() });
        world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", true)]));
        world.remote.1.upsert(remote(&["10.2.1.5", "fd00:10:2:1::5"]));
        world.step(1);
        assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), with_local, "{affinity:?}");
        let known: Vec<_> =
            world.out.backends.table().snapshot().iter().map(|row| row.address.to_string()).collect();
        assert_eq!(known.len(), 3, "those that are not chosen keep the flows they have: {known:?}");
        assert_eq!(world.backends_of("fd00:101::10", Scope::Internal), ["fd00:10:2:1::5"], "{affinity:?}");
        world.slices.1.upsert(slice(vec![]));
        world.step(2);
        assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), without_local, "{affinity:?}");
        world.remote.1.upsert(remote(&[]));
        world.step(3);
        assert!(world.backends_of("10.101.0.10", Scope::Internal).is_empty());
        assert_eq!(world.out.backends.table().snapshot().len(), 0, "unused backends go");
    }
}

#[test]
fn a_cluster_does_not_take_anothers_backend_out() {
    let mut world = World::new();
    world.initialize();
    world.services.1.upsert(service());
    world.remote.1.upsert(remote(&["10.2.1.5"]));
    // It comes first by name, and says that nobody is ready there.
    let mut claim = remote(&["10.2.1.5"]);
    claim.source = Source::Cluster(ClusterName::new("aa").unwrap());
    claim.backends.values_mut().for_each(|backend| backend.state = BackendState::NotReady);
    world.remote.1.upsert(claim);
    world.step(1);
    assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), ["10.2.1.5"]);
    let row = world.out.backends.table().snapshot().iter().next().unwrap().clone();
    assert_eq!((row.state, row.cluster.as_deref()), (BackendState::Ready, Some("west")));
    // This cluster's word counts before both.
    world.slices.1.upsert(slice(vec![endpoint("10.2.1.5", "n1", false)]));
    world.step(2);
    let row = world.out.backends.table().snapshot().iter().next().unwrap().clone();
    assert_eq!((row.state, row.cluster), (BackendState::Serving, None));
}

#[test]
fn external_local_narrows_only_the_outside() {
    let mut world = World::new();
    world.initialize();
    world.services.1.upsert(ServiceRow {
        kind: ServiceType::LoadBalancer,
        external_traffic_policy: TrafficPolicy::Local,
        global: false,
        ..service()
    });
    world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", true), endpoint("10.1.2.5", "n2", true)]));
    world.addresses.1.upsert(LbAssignment {
        source: Source::Planner,
        name: name(),
        addresses: ["203.0.113.1".parse().unwrap()].into(),
        pools: ["pool".into()].into(),
    });
    world.step(1);
    assert_eq!(world.backends_of("203.0.113.1", Scope::External), ["10.1.1.5"]);
    assert_eq!(world.backends_of("203.0.113.1", Scope::Internal), ["10.1.1.5", "10.1.2.5"]);
    world.services.1.remove(&name());
    world.step(2);
    assert!(
        world.out.frontends.table().snapshot().is_empty() && world.out.backends.table().snapshot().is_empty()
    );
}

#[test]
fn external_ips_are_served_and_belong_to_the_first_service_that_names_them() {
    let mut world = World::new();
    world.initialize();
    let ip: IpAddr = "198.51.100.7".parse().unwrap();
    let local = TrafficPolicy::Local;
    let first =
        ServiceRow { external_ips: vec![ip], external_traffic_policy: local, global: false, ..service() };
    world.services.1.upsert(first.clone());
    world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", true), endpoint("10.1.2.5", "n2", true)]));
    world.step(1);
    assert_eq!(world.backends_of("198.51.100.7", Scope::External), ["10.1.1.5"]);
    assert_eq!(world.backends_of("198.51.100.7", Scope::Internal), ["10.1.1.5", "10.1.2.5"]);
    // Another service, earlier by name, names it too: at this port it is its own.
    let other = ServiceName { name: "api".into(), ..name() };
    world.services.1.upsert(ServiceRow { name: other.clone(), cluster_ips: vec![], ..first });
    world.step(2);
    let owner = |world: &World| {
        let rows = world.out.frontends.table().snapshot();
        rows.iter()
            .filter(|row| row.key.address == ip)
            .map(|row| row.service.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(owner(&world), ["api", "api"]);
    world.services.1.remove(&other);
    world.step(3);
    assert_eq!(owner(&world), ["web", "web"]);
}

#[test]
fn serving_backends_answer_while_none_is_ready() {
    let mut world = World::new();
    world.initialize();
    world.services.1.upsert(ServiceRow { global: false, ..service() });
    world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", true), endpoint("10.1.2.5", "n2", false)]));
    world.step(1);
    assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), ["10.1.1.5"]);
    world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", false), endpoint("10.1.2.5", "n2", false)]));
    world.step(2);
    assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), ["10.1.1.5", "10.1.2.5"]);
}

#[test]
fn a_restart_keeps_numbers_and_members_until_all_have_spoken() {
    let mut world = World::new();
    let key = FrontendKey {
        address: "10.101.0.10".parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        scope: Scope::Internal,
    };
    let far = ("10.2.1.5".parse().unwrap(), 8080, Protocol::Tcp);
    world.planner.restore([(far, 77)], [(key, 5, [far].into())]);
    world.remote.1.set_source(&west(), SourceState::Pending);
    world.services.1.upsert(service());
    world.slices.1.upsert(slice(vec![endpoint("10.1.1.5", "n1", true)]));
    world.step(1);
    let row = world.out.frontends.table().snapshot().get(&key).cloned().unwrap();
    assert_eq!(row.id, 5);
    assert!(row.backends.contains(&77) && row.backends.len() == 2);
    assert_eq!(world.out.frontends.table().snapshot().unconfirmed_sources().len(), 1);
    world.initialize();
    world.step(2);
    assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), ["10.1.1.5"]);
    assert!(world.out.frontends.table().snapshot().is_complete());
}

#[test]
fn a_backend_that_an_unplanned_frontend_still_uses_stays_until_the_gate_opens() {
    let mut world = World::new();
    let far = ("10.2.1.5".parse().unwrap(), 8080, Protocol::Tcp);
    let key = |address: &str| FrontendKey {
        address: address.parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        scope: Scope::Internal,
    };
    // The datapath holds two frontends that lead there; this life has heard of one, and it goes.
    let frontends = [(key("10.101.0.10"), 5, [far].into()), (key("203.0.113.1"), 6, [far].into())];
    world.planner.restore([(far, 77)], frontends);
    world.remote.1.set_source(&west(), SourceState::Pending);
    world.services.1.upsert(service());
    world.services.1.set_source(&Source::Manifests, SourceState::Pending);
    world.slices.1.upsert(slice(vec![]));
    world.step(1);
    world.services.1.remove(&name());
    world.step(2);
    assert!(world.out.frontends.table().snapshot().is_empty());
    assert!(world.out.backends.table().snapshot().get(&77).is_some(), "the other frontend still leads there");
    world.initialize();
    world.step(3);
    assert!(world.out.backends.table().snapshot().is_empty());
}

/// One service port with 5000 backends in each cluster; how many rows one change writes.
#[test]
fn what_changes_is_what_is_written() {
    let mut world = World::new();
    world.initialize();
    world.services.1.upsert(service());
    let ip = |n: u32| IpAddr::from([10, 2, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap()]);
    let port = RemotePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let backend = RemoteBackend { ports: Arc::new([port].into()), ..RemoteBackend::default() };
    let mut row =
        RemoteService { backends: (0..5000).map(|n| (ip(n), backend.clone())).collect(), ..remote(&[]) };
    world.remote.1.upsert(row.clone());
    world.step(1);
    let (frontends, backends) = (world.out.frontends.table().clone(), world.out.backends.table().clone());
    let before = frontends.snapshot().iter().next().unwrap().clone();
    assert_eq!((before.backends.len(), before.maglev.len()), (5000, 65521));
    let mut written = (frontends.changes(), backends.changes());
    written.0.drain();
    written.1.drain();
    row.backends.remove(&ip(2500));
    world.remote.1.upsert(row.clone());
    let mut changes = world.remote.0.changes();
    let start = std::time::Instant::now();
    world.planner.step(
        InputChanges { remote: changes.drain(), ..InputChanges::default() },
        Moment::from_origin(Duration::from_secs(2)),
        &world.out,
    );
    let took = start.elapsed();
    assert_eq!(written.1.drain().unwrap().keys.len(), 1, "the backend that went");
    assert_eq!(written.0.drain().unwrap().keys.len(), 1, "the family that has it");
    let after = frontends.snapshot().iter().next().unwrap().clone();
    let slot = |row: &FrontendRow, n: usize| row.backends[usize::from(row.maglev[n])];
    let moved = (0..before.maglev.len()).filter(|n| slot(&before, *n) != slot(&after, *n)).count();
    println!("one of 5000 backends goes: {moved} of 65521 slots, planned in {took:?}");
    assert!(moved <= 300, "{moved} of 65521 slots");
    // Not ready: it stays known, the numbers of the others and their flows too.
    row.backends.get_mut(&ip(7)).unwrap().state = BackendState::NotReady;
    world.remote.1.upsert(row);
    world.step(3);
    let now = frontends.snapshot().iter().next().unwrap().clone();
    assert_eq!((now.backends.len(), now.spare.len()), (4998, 1));
    assert_eq!(now.spare[0].1, Why::NotReady);
    assert_eq!(backends.snapshot().len(), 4999);
    assert_eq!(now.tiers[0].to_string(), "4998/4999:100%");
}

#[test]
fn ports_of_one_number_under_two_names_are_two_ports() {
    let mut world = World::new();
    world.initialize();
    let port =
        |name: &str, port| ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: None };
    world.services.1.upsert(ServiceRow { ports: vec![port("http", 80), port("admin", 81)], ..service() });
    let remote_port = |name: &str| RemotePort { name: name.into(), protocol: Protocol::Tcp, port: 8080 };
    let of = |names: &[&str]| RemoteBackend {
        ports: Arc::new(names.iter().map(|name| remote_port(name)).collect()),
        ..RemoteBackend::default()
    };
    let backends =
        [("10.2.1.5".parse().unwrap(), of(&["admin", "http"])), ("10.2.1.6".parse().unwrap(), of(&["http"]))];
    world.remote.1.upsert(RemoteService { backends: backends.into(), ..remote(&[]) });
    world.step(1);
    let of_port = |world: &World, port| {
        let rows = world.out.frontends.table().snapshot();
        rows.iter().find(|row| row.key.port == port && row.key.address.is_ipv4()).unwrap().backends.clone()
    };
    assert_eq!((of_port(&world, 80).len(), of_port(&world, 81).len()), (2, 1));
    assert!(of_port(&world, 80).contains(&of_port(&world, 81)[0]), "one backend, one number");
    assert_eq!(world.out.backends.table().snapshot().len(), 2);
}

#[test]
fn a_backend_that_terminates_keeps_its_row_and_gets_nothing_new() {
    let mut world = World::new();
    world.initialize();
    world.services.1.upsert(ServiceRow { affinity: Affinity::Local, ..service() });
    let both = [endpoint("10.1.1.5", "n1", true), endpoint("10.1.2.5", "n2", true)];
    world.slices.1.upsert(slice(both.to_vec()));
    world.remote.1.upsert(remote(&["10.2.1.5"]));
    world.step(1);
    let numbers: Vec<u32> = world.out.backends.table().snapshot().iter().map(|row| row.id).collect();
    // Both terminate: the other cluster is ready, so it takes what is new.
    let leaving = |ip, node| endpoint(ip, node, false);
    world.slices.1.upsert(slice(vec![leaving("10.1.1.5", "n1"), leaving("10.1.2.5", "n2")]));
    world.step(2);
    assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), ["10.2.1.5"]);
    let now: Vec<u32> = world.out.backends.table().snapshot().iter().map(|row| row.id).collect();
    assert_eq!(now, numbers, "flows are remembered by number");
    // Terminating and not serving: gone.
    let gone = SliceEndpoint { serving: false, ..leaving("10.1.1.5", "n1") };
    world.slices.1.upsert(slice(vec![gone, leaving("10.1.2.5", "n2")]));
    world.step(3);
    assert_eq!(world.out.backends.table().snapshot().len(), 2);
}

#[test]
fn with_publish_not_ready_addresses_all_count() {
    let mut world = World::new();
    world.initialize();
    world.services.1.upsert(ServiceRow { publish_not_ready: true, ..service() });
    let unready = SliceEndpoint { serving: false, terminating: false, ..endpoint("10.1.1.5", "n1", false) };
    world.slices.1.upsert(slice(vec![unready]));
    let mut row = remote(&["10.2.1.5"]);
    row.backends.values_mut().for_each(|backend| backend.state = BackendState::NotReady);
    world.remote.1.upsert(row);
    world.step(1);
    assert_eq!(world.backends_of("10.101.0.10", Scope::Internal), ["10.1.1.5", "10.2.1.5"]);
}

#[path = "plan_property.rs"]
mod property;

#[path = "plan/host_ports_tests.rs"]
mod host_ports;

#[path = "plan/wanted_tests.rs"]
mod wanted;
