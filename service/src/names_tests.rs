use super::*;
use crate::mcs::{Condition, ExportSpec, ExportedPort, derived_name};
use crate::rows::{RemoteBackend, ServicePort, SlicePort, TrafficPolicy};
use proptest::prelude::*;
use tombolo_base::table::{Changes, Table};

fn named_service(name: &str) -> ServiceName {
    ServiceName { namespace: "demo".into(), name: name.into() }
}

fn service(name: &str, source: Source) -> ServiceRow {
    ServiceRow {
        source,
        name: named_service(name),
        kind: ServiceType::ClusterIP,
        cluster_ips: vec!["10.101.0.9".parse().unwrap(), "fd00:101::9".parse().unwrap()],
        headless: false,
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        load_balancer_class: None,
        families_ipv4: vec![true, false],
        external_ips: vec![],
        requested_addresses: vec![],
        publish_not_ready: false,
        global: false,
        shared: false,
        affinity: Affinity::None,
        spread: Default::default(),
        distribution: Default::default(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        details: Default::default(),
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

    fn run(&self) -> Run {
        let (names, writer) = Table::new();
        let changes = (
            self.services.0.changes(),
            self.slices.0.changes(),
            self.remote.0.changes(),
            self.imports.0.changes(),
        );
        Run { planner: Planner::new(&ClusterName::new("east").unwrap()), changes, names, writer }
    }
}

impl Run {
    fn step(&mut self) {
        let changes = InputChanges {
            services: self.changes.0.drain(),
            slices: self.changes.1.drain(),
            remote: self.changes.2.drain(),
            imports: self.changes.3.drain(),
        };
        self.planner.step(changes, &self.writer);
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
    world.services.1.set_source(&Source::Manifests, SourceState::Initialized);
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
