use super::*;
use crate::mcs::{Condition, ExportSpec, ExportedPort, derived_name};
use crate::rows::{RemoteBackend, ServicePort, SlicePort};
use proptest::prelude::*;
use std::time::Duration;
use tombolo_base::table::{Changes, Table};

fn named_service(name: &str) -> ServiceName {
    ServiceName { namespace: "demo".into(), name: name.into() }
}

fn service(name: &str, source: Source) -> ServiceRow {
    ServiceRow {
        cluster_ips: vec!["10.101.0.9".parse().unwrap(), "fd00:101::9".parse().unwrap()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        families_ipv4: vec![true, false],
        ..ServiceRow::new(source, named_service(name))
    }
}

fn slice(service: &str, ready: bool) -> SliceRow {
    let endpoint = |ip: &str, ready, hostname: Option<&str>| SliceEndpoint {
        addresses: vec![ip.parse().unwrap()],
        ready,
        serving: ready,
        terminating: false,
        node: None,
        hostname: hostname.map(Into::into),
        ..SliceEndpoint::default()
    };
    SliceRow {
        source: Source::Manifests,
        name: named_service(&format!("{service}-1")),
        service: named_service(service),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![endpoint("10.1.1.5", true, Some("web-0")), endpoint("10.1.1.6", ready, None)],
    }
}

fn shared(name: ServiceName, ip: &str) -> RemoteService {
    let port = RemotePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let source = Source::Cluster(ClusterName::new("west").unwrap());
    let backend = RemoteBackend {
        ports: Arc::new([port].into()),
        hostname: Some("db-7".into()),
        ..RemoteBackend::default()
    };
    RemoteService { source, name, backends: [(ip.parse().unwrap(), backend)].into() }
}

fn import(name: &str, kind: ImportType) -> ImportRow {
    let ports =
        vec![ExportedPort { name: "http".into(), protocol: Protocol::Tcp, app_protocol: None, port: 80 }];
    ImportRow {
        source: Source::Planner,
        name: named_service(name),
        derived: derived_name(&named_service(name)),
        ips: ["10.111.0.1".parse().unwrap()].into(),
        spec: ExportSpec { kind, ports, ..ExportSpec::default() },
        clusters: ["west".into()].into(),
        conditions: vec![Condition::new("Ready", true, "Ready", "")],
    }
}

struct World {
    services: (Table<ServiceRow>, Writer<ServiceRow>),
    slices: (Table<SliceRow>, Writer<SliceRow>),
    remote: (Table<RemoteService>, Writer<RemoteService>),
    imports: (Table<ImportRow>, Writer<ImportRow>),
}

type Streams = (Changes<ServiceRow>, Changes<SliceRow>, Changes<RemoteService>, Changes<ImportRow>);

struct Run {
    planner: Planner,
    changes: Streams,
    names: Table<NameRow>,
    writer: Writer<NameRow>,
}

impl World {
    fn new() -> Self {
        Self { services: Table::new(), slices: Table::new(), remote: Table::new(), imports: Table::new() }
    }

    /// Manifests were read.
    fn read(&self) {
        self.services.1.set_source(&Source::Manifests, SourceState::Initialized);
        self.slices.1.set_source(&Source::Manifests, SourceState::Initialized);
    }

    fn run(&self) -> Run {
        let (names, writer) = Table::new();
        let changes = (
            self.services.0.changes(),
            self.slices.0.changes(),
            self.remote.0.changes(),
            self.imports.0.changes(),
        );
        Run {
            planner: Planner::new(&ClusterName::new("east").unwrap(), Moment::ZERO),
            changes,
            names,
            writer,
        }
    }
}

impl Run {
    /// When nobody is waited for any more.
    fn step(&mut self) {
        self.step_at(60);
    }

    fn step_at(&mut self, secs: u64) {
        let changes = InputChanges {
            services: self.changes.0.drain(),
            slices: self.changes.1.drain(),
            remote: self.changes.2.drain(),
            imports: self.changes.3.drain(),
        };
        self.planner.step(changes, Moment::from_origin(Duration::from_secs(secs)), &self.writer);
    }

    fn answer(&self, zone: NameZone, name: &str) -> Option<NameAnswer> {
        self.names.snapshot().get(&(zone, named_service(name))).map(|row| row.entry.answer.clone())
    }
}

fn hosts(answer: Option<NameAnswer>) -> Vec<String> {
    let Some(NameAnswer::Headless { endpoints }) = answer else { panic!("{answer:?}") };
    endpoints.iter().map(|e| format!("{}.{}={}", e.hostname, e.cluster, e.address)).collect()
}

#[test]
fn services_headless_ones_and_aliases() {
    let world = World::new();
    let mut run = world.run();
    run.step();
    assert_eq!(run.names.snapshot().source_state(&Source::Planner), Some(SourceState::Pending));
    world.read();
    world.services.1.upsert(service("web", Source::Manifests));
    world.services.1.upsert(ServiceRow { headless: true, ..service("db", Source::Manifests) });
    world.slices.1.upsert(slice("db", false));
    let mut alias = service("out", Source::Manifests);
    alias.kind = ServiceType::ExternalName;
    alias.details.external_name = Some("db.example.".into());
    world.services.1.upsert(alias);
    run.step();
    assert_eq!(run.names.snapshot().source_state(&Source::Planner), Some(SourceState::Initialized));
    let Some(NameAnswer::Service { addresses, ports }) = run.answer(NameZone::Cluster, "web") else {
        panic!()
    };
    assert_eq!((addresses.len(), ports[0].port), (2, 80));
    assert_eq!(hosts(run.answer(NameZone::Cluster, "db")), ["web-0.east=10.1.1.5"]);
    world.slices.1.upsert(slice("db", true));
    run.step();
    assert_eq!(hosts(run.answer(NameZone::Cluster, "db")), ["10-1-1-6.east=10.1.1.6", "web-0.east=10.1.1.5"]);
    let target = NameAnswer::Alias { target: "db.example.".into() };
    assert_eq!(run.answer(NameZone::Cluster, "out"), Some(target));
    // What the unit reads is what was written.
    for row in run.names.snapshot().iter() {
        let text = serde_json::to_string(&row.entry).unwrap();
        assert_eq!(serde_json::from_str::<NameEntry>(&text).unwrap(), row.entry);
    }
}

#[test]
fn a_global_headless_service_and_a_headless_import_have_the_others_endpoints() {
    let world = World::new();
    let mut run = world.run();
    let global = ServiceRow { headless: true, global: true, ..service("db", Source::Manifests) };
    world.services.1.upsert(global.clone());
    world.slices.1.upsert(slice("db", false));
    world.remote.1.upsert(shared(named_service("db"), "10.2.1.5"));
    run.step();
    assert_eq!(hosts(run.answer(NameZone::Cluster, "db")), ["web-0.east=10.1.1.5", "db-7.west=10.2.1.5"]);
    for (affinity, wanted) in
        [(Affinity::Local, "web-0.east=10.1.1.5"), (Affinity::Remote, "db-7.west=10.2.1.5")]
    {
        world.services.1.upsert(ServiceRow { affinity, ..global.clone() });
        run.step();
        assert_eq!(hosts(run.answer(NameZone::Cluster, "db")), [wanted]);
    }
    // The import's endpoints are those of the derived service, which has no name of its own.
    let derived = derived_name(&named_service("set"));
    world.imports.1.upsert(import("set", ImportType::Headless));
    let carrier = ServiceRow { headless: true, global: true, ..service(&derived.name, Source::Planner) };
    world.services.1.upsert(carrier);
    world.remote.1.upsert(shared(derived.clone(), "10.2.1.7"));
    run.step();
    assert_eq!(hosts(run.answer(NameZone::ClusterSet, "set")), ["db-7.west=10.2.1.7"]);
    assert_eq!(run.answer(NameZone::Cluster, &derived.name), None);
    world.imports.1.upsert(import("set", ImportType::ClusterSetIP));
    run.step();
    let Some(NameAnswer::Service { addresses, .. }) = run.answer(NameZone::ClusterSet, "set") else {
        panic!()
    };
    assert_eq!(addresses.len(), 1);
    world.imports.1.remove(&named_service("set"));
    run.step();
    assert_eq!(run.answer(NameZone::ClusterSet, "set"), None);
}

fn west() -> Source {
    Source::Cluster(ClusterName::new("west").unwrap())
}

/// A reader that knows what an earlier life told is told nothing less before everybody has spoken.
#[test]
fn an_entry_that_would_say_less_waits_for_its_sources() {
    let (world, derived) = (World::new(), derived_name(&named_service("set")));
    let mut run = world.run();
    let headless = |name: &str, source| ServiceRow { headless: true, ..service(name, source) };
    world.services.1.upsert(headless("own", Source::Manifests));
    world.services.1.upsert(ServiceRow { global: true, ..headless("db", Source::Manifests) });
    world.services.1.upsert(ServiceRow { global: true, ..headless(&derived.name, Source::Planner) });
    world.imports.1.upsert(import("set", ImportType::Headless));
    world.imports.1.upsert(ImportRow { ips: [].into(), ..import("web", ImportType::ClusterSetIP) });
    world.remote.1.set_source(&west(), SourceState::Pending);
    let told =
        |run: &Run| run.names.snapshot().iter().map(|row| row.entry.name.to_string()).collect::<Vec<_>>();
    let state = |run: &Run| run.names.snapshot().source_state(&Source::Planner);
    // Its slices are not read yet.
    world.services.1.set_source(&Source::Manifests, SourceState::Initialized);
    run.step_at(0);
    assert_eq!((told(&run), state(&run)), (vec![], Some(SourceState::Pending)));
    world.slices.1.upsert(slice("own", true));
    world.slices.1.upsert(slice("db", true));
    world.read();
    run.step_at(1);
    assert_eq!(told(&run), ["own"]);
    assert_eq!(hosts(run.answer(NameZone::Cluster, "own")).len(), 2);
    // What others have of it, as it was in the last life, is as good.
    world.remote.1.upsert(shared(named_service("db"), "10.2.1.5"));
    world.remote.1.upsert(shared(derived.clone(), "10.2.1.7"));
    world.remote.1.set_source(&west(), SourceState::Stale);
    world.imports.1.set_source(&Source::Planner, SourceState::Initialized);
    run.step_at(2);
    assert_eq!(
        (told(&run), state(&run)),
        (["db", "own", "set"].map(Into::into).to_vec(), Some(SourceState::Initialized))
    );
    assert_eq!(hosts(run.answer(NameZone::ClusterSet, "set")), ["db-7.west=10.2.1.7"]);
    assert!(!run.planner.knows_imports(), "an address is to come");
    // A cluster that is silent is waited for no longer than a minute.
    run.step_at(59);
    assert!(run.answer(NameZone::ClusterSet, "web").is_none());
    assert_eq!(run.planner.next_deadline(), Some(Moment::from_origin(Duration::from_secs(60))));
    run.step();
    assert!(run.answer(NameZone::ClusterSet, "web").is_some() && run.planner.knows_imports());
    assert_eq!(run.planner.next_deadline(), None);
}

#[test]
fn names_that_cannot_be_asked_for_are_left_out() {
    let world = World::new();
    let mut run = world.run();
    world.services.1.upsert(ServiceRow { headless: true, global: true, ..service("db", Source::Manifests) });
    let port = |name: &str| RemotePort { name: name.into(), protocol: Protocol::Tcp, port: 1 };
    let names = ["p".repeat(62), "p".repeat(63), "p".repeat(1 << 20), "a.b".into(), String::new()];
    let mut row = shared(named_service("db"), "10.2.1.5");
    let backend = row.backends.values_mut().next().unwrap();
    backend.ports = Arc::new(names.iter().map(|name| port(name)).collect());
    backend.hostname = Some("h".repeat(64).into());
    world.remote.1.upsert(row);
    run.step();
    let Some(NameAnswer::Headless { endpoints }) = run.answer(NameZone::Cluster, "db") else { panic!() };
    let ports: Vec<usize> = endpoints[0].ports.iter().map(|port| port.name.len()).collect();
    assert_eq!((&*endpoints[0].hostname, ports), ("10-2-1-5", vec![62]));
}

/// A cluster with very many endpoints costs its own, and a line that the unit reads.
#[test]
fn an_entry_is_bounded_and_each_cluster_has_its_part() {
    let endpoint = |cluster: &str, n: u32, ports: u16| {
        let ports = 0..ports;
        NameEndpoint {
            hostname: "h".repeat(63).into(),
            cluster: cluster.into(),
            address: std::net::Ipv6Addr::from(u128::MAX - u128::from(n)).into(),
            ports: ports
                .map(|n| NamePort { name: "p".repeat(62).into(), protocol: Protocol::Sctp, port: n })
                .collect(),
        }
    };
    let all = |hostile: u32| -> Vec<NameEndpoint> {
        let sizes = [("aa", hostile, 100), ("east", 3, 2), ("west", 10_000, 1)];
        sizes.iter().flat_map(|(name, count, ports)| (0..*count).map(|n| endpoint(name, n, *ports))).collect()
    };
    let of =
        |endpoints: &[NameEndpoint], name: &str| endpoints.iter().filter(|e| &*e.cluster == name).count();
    assert_eq!(bounded(all(10)), all(10));
    let kept = bounded(all(1_000));
    assert_eq!((of(&kept, "east"), of(&kept, "west"), of(&kept, "aa")), (3, 8_189, 162));
    let entry = NameEntry {
        zone: NameZone::ClusterSet,
        namespace: "n".repeat(63).into(),
        name: "s".repeat(63).into(),
        answer: NameAnswer::Headless { endpoints: kept },
    };
    // The unit reads lines of 16 MiB.
    assert!(serde_json::to_vec(&entry).unwrap().len() < 6 << 20);
}

proptest! {
    /// Whatever changes in whatever order, the entries are those of a plan from scratch.
    #[test]
    fn incremental_is_full(script in prop::collection::vec((0..4u8, 0..3u8, any::<u8>()), 1..40)) {
        let world = World::new();
        let mut run = world.run();
        for (what, n, bits) in script {
            let name = ["a", "b", "c"][usize::from(n)];
            let derived = derived_name(&named_service(name));
            let carrier = bits & 1 != 0;
            let on = bits & 2 != 0;
            let carried = if carrier { derived.name.to_string() } else { name.to_owned() };
            let source = if carrier { Source::Planner } else { Source::Manifests };
            match (what, on) {
                (0, true) => {
                    let (headless, global) = (bits & 4 != 0, bits & 8 != 0);
                    world.services.1.upsert(ServiceRow { headless, global, ..service(&carried, source) });
                }
                (0, false) => drop(world.services.1.remove(&named_service(&carried))),
                (1, true) => { world.slices.1.upsert(slice(&carried, bits & 4 != 0)); }
                (1, false) => drop(world.slices.1.remove(&named_service(&format!("{carried}-1")))),
                (2, true) => { world.remote.1.upsert(shared(named_service(&carried), "10.2.1.7")); }
                (2, false) => {
                    let west = Source::Cluster(ClusterName::new("west").unwrap());
                    drop(world.remote.1.remove(&(named_service(&carried), west)));
                }
                (_, true) => {
                    let kind = if bits & 4 != 0 { ImportType::Headless } else { ImportType::ClusterSetIP };
                    world.imports.1.upsert(import(name, kind));
                }
                (_, false) => drop(world.imports.1.remove(&named_service(name))),
            }
            run.step();
        }
        let mut full = world.run();
        full.step();
        let rows = |names: &Table<NameRow>| names.snapshot().iter().cloned().collect::<Vec<_>>();
        prop_assert_eq!(rows(&run.names), rows(&full.names));
    }
}
