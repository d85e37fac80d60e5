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
        external_ips: vec![],
        requested_addresses: vec![],
        publish_not_ready: false,
        global: true,
        shared: true,
        affinity: Affinity::None,
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        details: Default::default(),
    }
}

fn endpoint(ip: &str, node: &str, ready: bool) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![ip.parse().unwrap()],
        ready,
        serving: true,
        terminating: !ready,
        node: Some(node.into()),
        hostname: None,
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

/// Shared by two planners in the property test.
type Shared<R> = (Table<R>, Arc<Writer<R>>);

fn shared<R: Row>() -> Shared<R> {
    let (table, writer) = Table::new();
    (table, Arc::new(writer))
}

struct World {
    services: Shared<ServiceRow>,
    slices: Shared<SliceRow>,
    remote: Shared<RemoteService>,
    addresses: Shared<LbAssignment>,
    planner: Planner,
    out: Outputs,
}

impl World {
    fn new() -> Self {
        let out = Outputs { frontends: Table::new().1, backends: Table::new().1 };
        let planner = Planner::new("n1".into(), Moment::ZERO);
        Self { services: shared(), slices: shared(), remote: shared(), addresses: shared(), planner, out }
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

mod property {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Service(u8, u8),
        DropService(u8),
        Slice(u8, u8),
        DropSlice(u8),
        Remote(u8, u8, u8),
        DropRemote(u8, u8),
        Address(u8, bool),
        Initialize(u8),
        Wait(u64),
        Look,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..3, any::<u8>()).prop_map(|(n, bits)| Step::Service(n, bits)),
            1 => (0u8..3).prop_map(Step::DropService),
            3 => (0u8..3, any::<u8>()).prop_map(|(n, bits)| Step::Slice(n, bits)),
            1 => (0u8..3).prop_map(Step::DropSlice),
            3 => (0u8..2, 0u8..3, any::<u8>()).prop_map(|(c, n, bits)| Step::Remote(c, n, bits)),
            1 => (0u8..2, 0u8..3).prop_map(|(c, n)| Step::DropRemote(c, n)),
            1 => (0u8..3, any::<bool>()).prop_map(|(n, on)| Step::Address(n, on)),
            1 => (0u8..4).prop_map(Step::Initialize),
            1 => (0u64..30).prop_map(Step::Wait),
            4 => Just(Step::Look),
        ]
    }

    fn named(n: u8) -> ServiceName {
        ServiceName { namespace: "demo".into(), name: format!("s{n}").into() }
    }

    fn remote_cluster(c: u8) -> Source {
        Source::Cluster(ClusterName::new(&format!("c{c}")).unwrap())
    }

    fn own() -> Source {
        Source::Cluster(ClusterName::new("own").unwrap())
    }

    /// Two services share the same backends.
    fn backends(bits: u8) -> impl Iterator<Item = u8> {
        (0..3).filter(move |bit| bits & (1 << bit) != 0)
    }

    fn service_of(n: u8, bits: u8) -> ServiceRow {
        let pick = |bit: u8| if bits & bit != 0 { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        ServiceRow {
            name: named(n),
            kind: if bits & 1 != 0 { ServiceType::LoadBalancer } else { ServiceType::ClusterIP },
            cluster_ips: vec![format!("10.101.0.{n}").parse().unwrap()],
            // Two services each share one, and one of those may be another service's LoadBalancer address.
            external_ips: match bits & 48 {
                16 => vec![format!("198.51.100.{}", n / 2).parse().unwrap()],
                48 => vec!["203.0.113.0".parse().unwrap()],
                _ => vec![],
            },
            external_traffic_policy: pick(2),
            internal_traffic_policy: pick(4),
            global: bits & 8 != 0,
            affinity: [Affinity::None, Affinity::Local, Affinity::Remote, Affinity::None]
                [usize::from(bits >> 6)],
            ..service()
        }
    }

    /// A frontend as packets meet it: key, service, whether local only, members, and the backend of each slot.
    type Seen = (FrontendKey, ServiceName, bool, BTreeSet<BackendKey>, Vec<BackendKey>);
    /// A frontend of an earlier life: its number and members.
    type Restored = (FrontendKey, u16, BTreeSet<BackendKey>);

    impl World {
        fn take(&mut self, step: &Step, secs: &mut u64) {
            match *step {
                Step::Service(n, bits) => drop(self.services.1.upsert(service_of(n, bits))),
                Step::DropService(n) => drop(self.services.1.remove(&named(n))),
                Step::Slice(n, bits) => {
                    let pod = |bit: u8| {
                        endpoint(&format!("10.1.1.{bit}"), &format!("n{}", bit % 2), bits & (8 << bit) == 0)
                    };
                    let row = SliceRow {
                        service: named(n),
                        name: named(n),
                        ..slice(backends(bits).map(pod).collect())
                    };
                    self.slices.1.upsert(row);
                }
                Step::DropSlice(n) => drop(self.slices.1.remove(&slice_key(n))),
                Step::Remote(c, n, bits) => {
                    let ips: Vec<_> = backends(bits).map(|bit| format!("10.2.{c}.{bit}")).collect();
                    let ips: Vec<_> = ips.iter().map(String::as_str).collect();
                    self.remote.1.upsert(RemoteService {
                        source: remote_cluster(c),
                        name: named(n),
                        ..remote(&ips)
                    });
                }
                Step::DropRemote(c, n) => drop(self.remote.1.remove(&(named(n), remote_cluster(c)))),
                Step::Address(n, true) => {
                    let addresses = [format!("203.0.113.{n}").parse().unwrap()].into();
                    self.addresses.1.upsert(LbAssignment {
                        source: own(),
                        name: named(n),
                        addresses,
                        pools: BTreeSet::new(),
                    });
                }
                Step::Address(n, false) => drop(self.addresses.1.remove(&named(n))),
                Step::Initialize(0) => {
                    self.services.1.set_source(&Source::Manifests, SourceState::Initialized);
                    self.slices.1.set_source(&Source::Manifests, SourceState::Initialized);
                }
                Step::Initialize(1) => self.addresses.1.set_source(&own(), SourceState::Initialized),
                Step::Initialize(c) => {
                    self.remote.1.set_source(&remote_cluster(c - 2), SourceState::Initialized)
                }
                Step::Wait(more) => *secs += more,
                Step::Look => self.step(*secs),
            }
        }

        fn announce(&self) {
            self.services.1.set_source(&Source::Manifests, SourceState::Pending);
            self.slices.1.set_source(&Source::Manifests, SourceState::Pending);
            self.addresses.1.set_source(&own(), SourceState::Pending);
            (0..2).for_each(|c| self.remote.1.set_source(&remote_cluster(c), SourceState::Pending));
        }

        /// The rows with backends by what they are: numbers depend on the order of arrival.
        fn view(&self) -> Vec<Seen> {
            let backends = self.out.backends.table().snapshot();
            let of = |id: &u32| {
                backends
                    .get(id)
                    .map(|row| (row.address, row.port, row.protocol))
                    .expect("every named backend has a row")
            };
            let frontend = |row: &FrontendRow| {
                let maglev = row.maglev.iter().map(|slot| of(&row.backends[usize::from(*slot)])).collect();
                (row.key, row.service.clone(), row.local_only, row.backends.iter().map(of).collect(), maglev)
            };
            self.out.frontends.table().snapshot().iter().map(frontend).collect()
        }

        fn backend_keys(&self) -> BTreeSet<BackendKey> {
            self.out
                .backends
                .table()
                .snapshot()
                .iter()
                .map(|row| (row.address, row.port, row.protocol))
                .collect()
        }
    }

    fn slice_key(n: u8) -> <SliceRow as Row>::Key {
        SliceRow { service: named(n), name: named(n), ..slice(vec![]) }.key()
    }

    /// What an earlier life left: some frontends with members, all of them with numbers.
    fn earlier(bits: &[u8]) -> (Vec<(BackendKey, u32)>, Vec<Restored>) {
        let member = |bit: u8| (format!("10.2.0.{bit}").parse().unwrap(), 8080, Protocol::Tcp);
        let key = |n: usize| FrontendKey {
            address: format!("10.101.0.{n}").parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            scope: Scope::Internal,
        };
        let frontends = bits
            .iter()
            .enumerate()
            .map(|(n, bits)| (key(n), u16::try_from(n).unwrap() + 40, backends(*bits).map(member).collect()));
        ((0..3).map(|bit| (member(bit), 70 + u32::from(bit))).collect(), frontends.collect())
    }

    proptest! {
        /// Whatever comes in whatever order, the rows are those of a plan from scratch; and as long as somebody has not
        /// spoken and 60 s are not over, no frontend loses a member that the earlier life's datapath gives it.
        #[test]
        fn incremental_equals_full_and_nothing_shrinks_early(
            steps in prop::collection::vec(step(), 1..60),
            bits in prop::collection::vec(any::<u8>(), 3),
        ) {
            let (numbers, frontends) = earlier(&bits);
            let mut world = World::new();
            world.planner.restore(numbers.clone(), frontends.clone());
            world.announce();
            let mut changes = (world.services.0.changes(), world.slices.0.changes(), world.remote.0.changes(), world.addresses.0.changes());
            let mut secs = 0;
            let mut spoken = BTreeSet::new();
            for step in steps.iter().chain([&Step::Look]) {
                if let Step::Initialize(n) = step { spoken.insert(*n); }
                if !matches!(step, Step::Look) {
                    world.take(step, &mut secs);
                    continue;
                }
                let now = Moment::from_origin(Duration::from_secs(secs));
                let batch = InputChanges { services: changes.0.drain(), slices: changes.1.drain(), remote: changes.2.drain(), addresses: changes.3.drain() };
                world.planner.step(batch, now, &world.out);
                let shut = spoken.len() < 4 && secs < 60;
                let rows = world.view();
                if shut {
                    for (key, _, _, members, _) in &rows {
                        let before = frontends.iter().find(|(other, _, _)| other == key).map(|(_, _, before)| before.clone()).unwrap_or_default();
                        prop_assert!(before.is_subset(members), "{key:?} lost {:?}", before.difference(members));
                    }
                }
                prop_assert_eq!(world.out.frontends.table().snapshot().unconfirmed_sources().is_empty(), !shut);
            }
            let mut fresh = World::new();
            fresh.planner.restore(numbers, frontends);
            fresh.services = world.services.clone();
            (fresh.slices, fresh.remote, fresh.addresses) = (world.slices.clone(), world.remote.clone(), world.addresses.clone());
            fresh.step(secs);
            prop_assert_eq!(world.view(), fresh.view());
            let used: BTreeSet<BackendKey> = world.view().into_iter().flat_map(|row| row.3).collect();
            if spoken.len() == 4 || secs >= 60 {
                prop_assert_eq!(world.backend_keys(), used);
            } else {
                prop_assert!(used.is_subset(&world.backend_keys()));
            }
        }
    }
}
