//! Affinity, traffic policies, sharing of backends and the hold after a restart.

use super::*;
use crate::rows::{RemotePort, SliceEndpoint, SlicePort};
use std::time::Duration;
use tombolo_base::ids::ClusterName;
use tombolo_base::table::Table;

fn name() -> ServiceName {
    ServiceName { namespace: "demo".into(), name: "web".into() }
}

fn service() -> ServiceRow {
    ServiceRow {
        source: Source::Manifests,
        name: name(),
        kind: ServiceType::ClusterIP,
        cluster_ips: vec!["10.101.0.10".parse().unwrap(), "fd00:101::10".parse().unwrap()],
        headless: false,
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        load_balancer_class: None,
        families_ipv4: vec![true, false],
        requested_addresses: vec![],
        publish_not_ready: false,
        global: true,
        shared: true,
        affinity: Affinity::None,
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
    }
}

fn endpoint(ip: &str, node: &str, ready: bool) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![ip.parse().unwrap()],
        ready,
        serving: true,
        terminating: !ready,
        node: Some(node.into()),
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
    let backends = ips.iter().map(|ip| (ip.parse().unwrap(), [port.clone()].into())).collect();
    RemoteService { source: west(), name: name(), backends }
}

struct World {
    services: (Table<ServiceRow>, Writer<ServiceRow>),
    slices: (Table<SliceRow>, Writer<SliceRow>),
    remote: (Table<RemoteService>, Writer<RemoteService>),
    addresses: (Table<LbAssignment>, Writer<LbAssignment>),
    planner: Planner,
    out: Outputs,
}

impl World {
    fn new() -> Self {
        let out = Outputs { frontends: Table::new().1, backends: Table::new().1 };
        let planner = Planner::new("n1".into(), Moment::ZERO);
        Self {
            services: Table::new(),
            slices: Table::new(),
            remote: Table::new(),
            addresses: Table::new(),
            planner,
            out,
        }
    }

    fn step(&mut self, secs: u64) {
        let changes = InputChanges {
            services: self.services.0.changes().drain(),
            slices: self.slices.0.changes().drain(),
            remote: self.remote.0.changes().drain(),
            addresses: self.addresses.0.changes().drain(),
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
