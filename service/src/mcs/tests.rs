use super::*;

#[path = "hostile_tests.rs"]
mod hostile;

use crate::rows::{LbAssignment, Protocol, ServicePort, ServiceRow, ServiceType, SliceRow, TrafficPolicy};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Changes, Row, Table, Writer};

fn named(namespace: &str, name: &str) -> ServiceName {
    ServiceName { namespace: namespace.into(), name: name.into() }
}

fn cluster(name: &str) -> Source {
    Source::Cluster(ClusterName::new(name).unwrap())
}

fn port(name: &str, number: u16) -> ExportedPort {
    ExportedPort { name: name.into(), protocol: Protocol::Tcp, app_protocol: None, port: number }
}

fn spec(ports: &[(&str, u16)]) -> ExportSpec {
    ExportSpec {
        ports: ports.iter().map(|(name, number)| port(name, *number)).collect(),
        families_ipv4: vec![true, false],
        ..ExportSpec::default()
    }
}

fn export(cluster: &str, created: i64, change: impl FnOnce(&mut ExportSpec)) -> Constituent {
    let mut spec = spec(&[("http", 80)]);
    change(&mut spec);
    Constituent { cluster: cluster.into(), created_unix_secs: created, spec }
}

fn found(exports: &[Constituent]) -> (Resolved, Vec<(String, Reason)>) {
    let resolved = resolve(exports).unwrap();
    let conflicts = resolved.conflicts.iter().map(|c| (c.cluster.to_string(), c.reason)).collect();
    (resolved, conflicts)
}

#[test]
fn derived_names_are_those_of_every_implementation() {
    // sha256("demo/web") in base32hex begins so.
    assert_eq!(derived_name(&named("demo", "web")), named("demo", "derived-scaifns3gd"));
    assert!(is_derived(&derived_name(&named("a", "b"))));
    assert!(!is_derived(&named("a", "derived-web")) && !is_derived(&named("a", "b")));
}

#[test]
fn the_oldest_export_decides_and_of_equal_age_the_first_cluster_by_name() {
    let headless = |spec: &mut ExportSpec| spec.kind = ImportType::Headless;
    let (resolved, conflicts) = found(&[export("a", 20, headless), export("b", 10, |_| {})]);
    assert_eq!(resolved.spec.kind, ImportType::ClusterSetIP);
    assert_eq!(conflicts, [("a".to_owned(), Reason::TypeConflict)]);
    let (resolved, conflicts) = found(&[export("b", 10, |_| {}), export("a", 10, headless)]);
    assert_eq!(resolved.spec.kind, ImportType::Headless);
    assert_eq!(conflicts, [("b".to_owned(), Reason::TypeConflict)]);
    assert_eq!(resolve(&[]), None);
}

#[test]
fn each_deviation_is_a_conflict_of_the_younger_export() {
    type Change = fn(&mut ExportSpec);
    let cases: [(Reason, Change, Change); 6] = [
        (Reason::SessionAffinityConflict, |_| {}, |s| s.client_ip_affinity = true),
        (
            Reason::SessionAffinityConfigConflict,
            |s| (s.client_ip_affinity, s.affinity_timeout_secs) = (true, Some(10)),
            |s| (s.client_ip_affinity, s.affinity_timeout_secs) = (true, Some(20)),
        ),
        (Reason::LabelsConflict, |_| {}, |s| drop(s.labels.insert("a".into(), "b".into()))),
        (Reason::AnnotationsConflict, |_| {}, |s| drop(s.annotations.insert("a".into(), "b".into()))),
        (
            Reason::InternalTrafficPolicyConflict,
            |s| s.internal_traffic_policy = Some(TrafficPolicy::Cluster),
            |s| s.internal_traffic_policy = Some(TrafficPolicy::Local),
        ),
        (
            Reason::TrafficDistributionConflict,
            |s| s.traffic_distribution = Some("PreferClose".into()),
            |s| s.traffic_distribution = Some("PreferSameNode".into()),
        ),
    ];
    for (reason, old, young) in cases {
        let (resolved, conflicts) = found(&[export("east", 1, old), export("west", 2, young)]);
        assert_eq!(conflicts, [("west".to_owned(), reason)]);
        let mut expected = spec(&[("http", 80)]);
        old(&mut expected);
        assert_eq!(resolved.spec, expected, "{reason}");
        assert!(resolved.conflicts[0].message.contains("cluster east"), "{resolved:?}");
    }
    // What a cluster up to 1.16 does not say is no deviation.
    let local = |s: &mut ExportSpec| s.internal_traffic_policy = Some(TrafficPolicy::Local);
    assert_eq!(found(&[export("east", 1, local), export("west", 2, |_| {})]).1, []);
}

#[test]
fn ports_are_joined_by_number_and_a_name_that_is_taken_leaves_its_port_out() {
    let ports = |list: &'static [(&'static str, u16)]| {
        move |s: &mut ExportSpec| s.ports = list.iter().map(|(name, number)| port(name, *number)).collect()
    };
    let (resolved, conflicts) = found(&[
        export("a", 1, ports(&[("http", 80)])),
        export("b", 2, ports(&[("http", 80), ("metrics", 9090)])),
        export("c", 3, ports(&[("web", 80), ("metrics", 9091), ("admin", 81)])),
    ]);
    let numbers: Vec<_> = resolved.spec.ports.iter().map(|p| (p.name.to_string(), p.port)).collect();
    assert_eq!(numbers, [("http".to_owned(), 80), ("metrics".to_owned(), 9090), ("admin".to_owned(), 81)]);
    assert!(conflicts.iter().all(|(_, reason)| *reason == Reason::PortConflict));
    let of = |cluster: &str| {
        let mine = resolved.conflicts.iter().filter(|c| &*c.cluster == cluster);
        mine.map(|c| c.message.as_str()).collect::<Vec<_>>().join("\n")
    };
    assert!(of("a").contains("no port 9090/TCP, 81/TCP"), "{}", of("a"));
    assert!(of("b").contains("no port 81/TCP"), "{}", of("b"));
    let c = of("c");
    assert!(c.contains("the name of port 80/TCP differs from that of cluster a"), "{c}");
    assert!(c.contains("port 9091/TCP is left out, for its name \"metrics\""), "{c}");
}

#[test]
fn families_are_those_of_all_and_a_cluster_without_any_is_left_out() {
    let families = |list: &'static [bool]| move |s: &mut ExportSpec| s.families_ipv4 = list.to_vec();
    let (resolved, conflicts) = found(&[
        export("a", 1, families(&[true, false])),
        export("b", 2, families(&[true])),
        export("c", 3, families(&[false])),
        // Up to 1.18 nothing is said.
        export("d", 4, families(&[])),
    ]);
    assert_eq!(resolved.spec.families_ipv4, [true]);
    let clusters: Vec<_> = resolved.clusters.iter().map(ToString::to_string).collect();
    assert_eq!(clusters, ["a", "b", "d"]);
    let family = Reason::IPFamilyConflict;
    assert_eq!(conflicts, [("a".to_owned(), family), ("c".to_owned(), family)]);
}

/// The tables of cluster `east`, and a planner over them.
struct World {
    exports: (Table<ExportRow>, Writer<ExportRow>),
    requests: (Table<ImportRequest>, Writer<ImportRequest>),
    remote: (Table<RemoteExport>, Writer<RemoteExport>),
    services: (Table<ServiceRow>, Arc<Writer<ServiceRow>>),
    slices: (Table<SliceRow>, Arc<Writer<SliceRow>>),
    addresses: (Table<LbAssignment>, Writer<LbAssignment>),
    namespaces: Namespaces,
}

impl World {
    fn new() -> Self {
        let (services, service_writer) = Table::new();
        let (slices, slice_writer) = Table::new();
        Self {
            exports: Table::new(),
            requests: Table::new(),
            remote: Table::new(),
            services: (services, Arc::new(service_writer)),
            slices: (slices, Arc::new(slice_writer)),
            addresses: Table::new(),
            namespaces: Namespaces::new(),
        }
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            exports: self.exports.0.snapshot(),
            requests: self.requests.0.snapshot(),
            remote: self.remote.0.snapshot(),
            services: self.services.0.snapshot(),
            slices: self.slices.0.snapshot(),
            addresses: self.addresses.0.snapshot(),
            namespaces: self.namespaces.clone(),
        }
    }

    /// The elected agent: addresses for all imports, and the own exports' entries in etcd.
    fn lead(&self, run: &Run, range: &ClusterSetRange) -> Vec<String> {
        let present = self.addresses.0.snapshot();
        let present: BTreeMap<_, _> = present.iter().map(|r| (r.name.clone(), r.addresses.clone())).collect();
        let services = self.services.0.snapshot();
        let own = services.by_source(&Source::Manifests);
        let own = own.flat_map(|row| row.addresses().map(|ip| (*ip, row.name.clone())));
        let given = assign(Round {
            own: "east",
            range,
            imports: &run.imports.snapshot(),
            requests: &self.requests.0.snapshot(),
            taken: own.collect(),
            present: &present,
        });
        let rows = given.rows.into_iter().map(|row| LbAssignment { source: cluster("east"), ..row });
        self.addresses.1.replace_source(&cluster("east"), rows);
        let known: BTreeMap<_, _> = [].into();
        let entries = own_exports(&self.inputs(), &known, 500).into_iter();
        let entries = entries.map(|(name, created_unix_secs, spec)| RemoteExport {
            source: cluster("east"),
            name,
            created_unix_secs,
            spec,
        });
        self.remote.1.replace_source(&cluster("east"), entries);
        given.problems
    }
}

type Streams = (
    Changes<ExportRow>,
    Changes<ImportRequest>,
    Changes<RemoteExport>,
    Changes<ServiceRow>,
    Changes<SliceRow>,
    Changes<LbAssignment>,
);

/// A planner that follows a world's tables.
struct Run {
    planner: Planner,
    changes: Streams,
    statuses: Table<ExportStatus>,
    imports: Table<ImportRow>,
    out: Outputs,
}

fn range() -> ClusterSetRange {
    ClusterSetRange(vec!["10.111.0.0/24".parse().unwrap(), "fd00:111::/120".parse().unwrap()])
}

fn planner(range: ClusterSetRange) -> Planner {
    Planner::new(&ClusterName::new("east").unwrap(), range, Moment::ZERO)
}

impl Run {
    fn new(world: &World, range: ClusterSetRange) -> Self {
        let (statuses, exports) = Table::new();
        let (imports_table, imports) = Table::new();
        Self {
            planner: planner(range),
            changes: (
                world.exports.0.changes(),
                world.requests.0.changes(),
                world.remote.0.changes(),
                world.services.0.changes(),
                world.slices.0.changes(),
                world.addresses.0.changes(),
            ),
            statuses,
            imports: imports_table,
            out: Outputs {
                exports,
                imports,
                services: world.services.1.clone(),
                slices: world.slices.1.clone(),
            },
        }
    }

    fn step(&mut self, world: &World, secs: u64) {
        let changes = InputChanges {
            exports: self.changes.0.drain(),
            requests: self.changes.1.drain(),
            remote: self.changes.2.drain(),
            services: self.changes.3.drain(),
            slices: self.changes.4.drain(),
            addresses: self.changes.5.drain(),
            namespaces: Some(world.namespaces.clone()),
        };
        self.planner.step(changes, Moment::from_origin(Duration::from_secs(secs)), &self.out);
    }

    fn condition(&self, name: &ServiceName, kind: &str) -> (String, String) {
        let row = self.statuses.snapshot().get(name).unwrap().clone();
        let condition = row.conditions.into_iter().find(|condition| condition.kind == kind).unwrap();
        (format!("{} {}", condition.status, condition.reason), condition.message)
    }
}

fn service(name: ServiceName) -> ServiceRow {
    ServiceRow {
        cluster_ips: vec!["10.101.0.9".parse().unwrap()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        families_ipv4: vec![true, false],
        ..ServiceRow::new(Source::Manifests, name)
    }
}

fn slice(service: &ServiceName) -> SliceRow {
    let name = named(&service.namespace, &format!("{}-1", service.name));
    SliceRow { source: Source::Manifests, name, service: service.clone(), ports: vec![], endpoints: vec![] }
}

fn own(name: &ServiceName) -> ExportRow {
    ExportRow {
        source: Source::Manifests,
        name: name.clone(),
        created_unix_secs: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

fn theirs(name: &ServiceName, from: &str, created_unix_secs: i64, spec: ExportSpec) -> RemoteExport {
    RemoteExport { source: cluster(from), name: name.clone(), created_unix_secs, spec }
}

#[test]
fn an_export_becomes_an_import_with_stable_addresses_carried_by_a_global_service() {
    let (mut world, web) = (World::new(), named("demo", "web"));
    let mut run = Run::new(&world, range());
    let derived = derived_name(&web);
    // Another cluster's export alone: not before the namespace is here.
    world.remote.1.upsert(theirs(&web, "west", 5, spec(&[("http", 80), ("metrics", 9090)])));
    run.step(&world, 0);
    assert!(run.imports.snapshot().is_empty() && world.services.0.snapshot().is_empty());
    world.namespaces.insert("demo".into(), true);
    run.step(&world, 0);
    let pending = run.imports.snapshot().get(&web).unwrap().conditions[0].clone();
    assert_eq!((pending.status, pending.reason.as_str()), ("False", "Pending"));
    assert_eq!(world.lead(&run, &range()), [] as [String; 0]);
    run.step(&world, 0);
    let import = run.imports.snapshot().get(&web).unwrap().clone();
    let ips: BTreeSet<IpAddr> = ["10.111.0.1", "fd00:111::1"].map(|ip| ip.parse().unwrap()).into();
    assert_eq!((&import.ips, import.conditions[0].reason.as_str()), (&ips, "Ready"));
    let carrier = world.services.0.snapshot().get(&derived).unwrap().clone();
    assert!(carrier.global && carrier.shared && carrier.ports.len() == 2);
    assert_eq!(carrier.cluster_ips.iter().copied().collect::<BTreeSet<_>>(), ips);
    assert!(world.slices.0.snapshot().is_empty(), "nothing of it is here, so nothing is shared");
    // This cluster exports it too: its endpoints are shared under the derived name, and it is told what deviates.
    world.services.1.upsert(service(web.clone()));
    world.slices.1.upsert(slice(&web));
    world.exports.1.upsert(own(&web));
    run.step(&world, 0);
    assert_eq!(run.condition(&web, "Valid").0, "True Valid");
    assert_eq!(run.condition(&web, "Ready").0, "False Pending");
    world.lead(&run, &range());
    run.step(&world, 0);
    assert_eq!(run.condition(&web, "Ready").0, "True Exported");
    let (state, message) = run.condition(&web, "Conflict");
    assert_eq!(state, "True PortConflict,InternalTrafficPolicyConflict".split(',').next().unwrap());
    assert!(message.starts_with("cluster east: it has no port 9090/TCP"), "{message}");
    assert_eq!(world.slices.0.snapshot().by_index(&derived).count(), 1);
    let import = run.imports.snapshot().get(&web).unwrap().clone();
    assert_eq!((import.ips, import.clusters.len()), (ips, 2));
    // All go, and with them everything that was made.
    world.exports.1.remove(&web);
    world.remote.1.remove(&(web.clone(), cluster("west")));
    run.step(&world, 0);
    assert!(run.imports.snapshot().is_empty() && run.statuses.snapshot().is_empty());
    assert!(world.services.0.snapshot().get(&derived).is_none());
    assert_eq!(world.slices.0.snapshot().by_index(&derived).count(), 0);
}

#[test]
fn the_carrier_has_the_exports_session_affinity() {
    let (mut world, web) = (World::new(), named("demo", "web"));
    let mut run = Run::new(&world, range());
    world.namespaces.insert("demo".into(), true);
    let sticky =
        ExportSpec { client_ip_affinity: true, affinity_timeout_secs: Some(60), ..spec(&[("http", 80)]) };
    world.remote.1.upsert(theirs(&web, "west", 5, sticky));
    run.step(&world, 0);
    let details = world.services.0.snapshot().get(&derived_name(&web)).unwrap().details.clone();
    assert_eq!((details.client_ip_affinity, details.affinity_timeout_secs), (true, Some(60)));
}

#[test]
fn what_cannot_be_exported_or_imported_says_why() {
    let (mut world, web) = (World::new(), named("demo", "web"));
    let mut run = Run::new(&world, ClusterSetRange::default());
    world.exports.1.upsert(own(&web));
    run.step(&world, 0);
    assert_eq!(run.condition(&web, "Valid").0, "False NoService");
    world.services.1.upsert(ServiceRow { kind: ServiceType::ExternalName, ..service(web.clone()) });
    run.step(&world, 0);
    assert_eq!(run.condition(&web, "Valid").0, "False InvalidServiceType");
    assert!(own_exports(&world.inputs(), &BTreeMap::new(), 1).is_empty());
    world.services.1.upsert(service(web.clone()));
    world.namespaces.insert("demo".into(), false);
    run.step(&world, 0);
    assert_eq!(run.condition(&web, "Ready").0, "False Failed");
    assert!(own_exports(&world.inputs(), &BTreeMap::new(), 1).is_empty());
    world.namespaces.insert("demo".into(), true);
    run.step(&world, 0);
    // No range and no wish.
    let condition = |run: &Run| run.imports.snapshot().get(&web).unwrap().conditions[0].clone();
    assert_eq!(condition(&run).reason, "IPFamilyNotSupported");
    assert!(condition(&run).message.contains("clusterset_cidrs"));
    // The object's wish is enough.
    let ips = vec!["198.51.100.7".parse().unwrap()];
    world.requests.1.upsert(ImportRequest { source: Source::Manifests, name: web.clone(), ips });
    run.step(&world, 0);
    assert_eq!(world.lead(&run, &ClusterSetRange::default()), [] as [String; 0]);
    run.step(&world, 0);
    assert_eq!((condition(&run).status, run.imports.snapshot().get(&web).unwrap().ips.len()), ("True", 1));
    // A second import wants the same.
    let other = named("demo", "other");
    let ips = vec!["198.51.100.7".parse().unwrap()];
    world.requests.1.upsert(ImportRequest { source: Source::Manifests, name: other.clone(), ips });
    world.remote.1.upsert(theirs(&other, "west", 5, spec(&[("http", 80)])));
    run.step(&world, 0);
    let problems = world.lead(&run, &ClusterSetRange::default());
    assert!(problems.iter().any(|p| p.starts_with("ServiceImport demo/other: ")), "{problems:?}");
}

#[test]
fn the_time_of_an_export_stays() {
    let (mut world, web) = (World::new(), named("demo", "web"));
    world.namespaces.insert("demo".into(), true);
    world.services.1.upsert(service(web.clone()));
    world.exports.1.upsert(own(&web));
    let at = |world: &World, known: &[(ServiceName, i64)]| {
        own_exports(&world.inputs(), &known.iter().cloned().collect(), 900)[0].1
    };
    assert_eq!(at(&world, &[]), 900);
    assert_eq!(at(&world, &[(web.clone(), 300)]), 300, "as it was published");
    world.exports.1.upsert(ExportRow { created_unix_secs: Some(100), ..own(&web) });
    assert_eq!(at(&world, &[(web, 300)]), 100, "as its object says");
}

#[derive(Clone, Debug)]
enum Op {
    Export(u8, bool),
    Remote(u8, u8, i64, u8),
    DropRemote(u8, u8),
    Service(u8, u8),
    DropService(u8),
    Slice(u8, bool),
    Namespace(u8, u8),
    Request(u8, bool),
    Lead,
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..4u8, any::<bool>()).prop_map(|(n, on)| Op::Export(n, on)),
        (0..4u8, 0..3u8, 1..4i64, any::<u8>()).prop_map(|(n, c, at, bits)| Op::Remote(n, c, at, bits)),
        (0..4u8, 0..3u8).prop_map(|(n, c)| Op::DropRemote(n, c)),
        (0..4u8, any::<u8>()).prop_map(|(n, bits)| Op::Service(n, bits)),
        (0..4u8).prop_map(Op::DropService),
        (0..4u8, any::<bool>()).prop_map(|(n, on)| Op::Slice(n, on)),
        (0..2u8, 0..3u8).prop_map(|(n, state)| Op::Namespace(n, state)),
        (0..4u8, any::<bool>()).prop_map(|(n, on)| Op::Request(n, on)),
        Just(Op::Lead),
    ]
}

/// Four names in two namespaces.
fn nth(n: u8) -> ServiceName {
    named(["shop", "home"][usize::from(n / 2)], ["web", "api"][usize::from(n % 2)])
}

fn varied(bits: u8) -> ExportSpec {
    let mut spec = spec(if bits & 1 == 0 { &[("http", 80)] } else { &[("web", 80), ("http", 81)] });
    spec.kind = if bits & 2 == 0 { ImportType::ClusterSetIP } else { ImportType::Headless };
    spec.client_ip_affinity = bits & 4 != 0;
    spec.families_ipv4 = [vec![], vec![true], vec![false], vec![true, false]][usize::from(bits >> 6)].clone();
    spec
}

fn take(world: &mut World, run: &Run, op: &Op) {
    match *op {
        Op::Export(n, true) => {
            world.exports.1.upsert(own(&nth(n)));
        }
        Op::Export(n, false) => drop(world.exports.1.remove(&nth(n))),
        Op::Remote(n, c, at, bits) => {
            world.remote.1.upsert(theirs(&nth(n), ["a", "b", "z"][usize::from(c)], at, varied(bits)));
        }
        Op::DropRemote(n, c) => {
            drop(world.remote.1.remove(&(nth(n), cluster(["a", "b", "z"][usize::from(c)]))))
        }
        Op::Service(n, bits) => {
            let kind = if bits & 1 == 0 { ServiceType::ClusterIP } else { ServiceType::ExternalName };
            let headless = bits & 2 != 0;
            // Which an import may have, or ask for.
            let external_ips = match bits & 12 {
                4 => vec![IpAddr::from([198, 51, 100, bits >> 6])],
                8 => vec![IpAddr::from([10, 111, 0, 1 + (bits >> 6)])],
                _ => vec![],
            };
            let row = ServiceRow { kind, headless, external_ips, ..service(nth(n)) };
            {
                world.services.1.upsert(row);
            }
        }
        Op::DropService(n) => drop(world.services.1.remove(&nth(n))),
        Op::Slice(n, true) => {
            world.slices.1.upsert(slice(&nth(n)));
        }
        Op::Slice(n, false) => drop(world.slices.1.remove(&slice(&nth(n)).name)),
        Op::Namespace(n, 0) => {
            world.namespaces.remove(["shop", "home"][usize::from(n)]);
        }
        Op::Namespace(n, state) => {
            world.namespaces.insert(["shop", "home"][usize::from(n)].into(), state == 1);
        }
        Op::Request(n, true) => {
            let ips = vec![IpAddr::from([198, 51, 100, n])];
            let row = ImportRequest { source: Source::Manifests, name: nth(n), ips };
            {
                world.requests.1.upsert(row);
            }
        }
        Op::Request(n, false) => drop(world.requests.1.remove(&nth(n))),
        Op::Lead => drop(world.lead(run, &range())),
    }
}

fn rows<R: Row>(table: &Table<R>, keep: impl Fn(&R) -> bool) -> Vec<R> {
    table.snapshot().iter().filter(|row| keep(row)).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever changes in whatever order, the rows are those of a plan from scratch; and no import loses its address.
    #[test]
    fn incremental_is_full(script in prop::collection::vec(ops(), 1..60)) {
        let mut world = World::new();
        let bounded = |world: &World| {
            let mut run = Run::new(world, range());
            run.planner = planner(range()).with_ports_of_cluster(3);
            run
        };
        let mut run = bounded(&world);
        for op in &script {
            take(&mut world, &run, op);
            run.step(&world, 0);
        }
        // A world that holds what others said, without what was planned.
        let fresh = World { namespaces: world.namespaces.clone(), ..World::new() };
        rows(&world.exports.0, |_| true).into_iter().for_each(|row| { fresh.exports.1.upsert(row); });
        rows(&world.requests.0, |_| true).into_iter().for_each(|row| { fresh.requests.1.upsert(row); });
        rows(&world.remote.0, |_| true).into_iter().for_each(|row| { fresh.remote.1.upsert(row); });
        rows(&world.addresses.0, |_| true).into_iter().for_each(|row| { fresh.addresses.1.upsert(row); });
        let said = |source: &Source| *source != Source::Planner;
        rows(&world.services.0, |r| said(&r.source)).into_iter().for_each(|r| { fresh.services.1.upsert(r); });
        rows(&world.slices.0, |r| said(&r.source)).into_iter().for_each(|r| { fresh.slices.1.upsert(r); });
        let mut full = bounded(&fresh);
        full.step(&fresh, 0);
        prop_assert_eq!(rows(&run.statuses, |_| true), rows(&full.statuses, |_| true));
        prop_assert_eq!(rows(&run.imports, |_| true), rows(&full.imports, |_| true));
        prop_assert_eq!(rows(&world.services.0, |_| true), rows(&fresh.services.0, |_| true));
        prop_assert_eq!(rows(&world.slices.0, |_| true), rows(&fresh.slices.0, |_| true));
    }

    /// The order in which exports are known does not matter.
    #[test]
    fn resolution_has_no_order(specs in prop::collection::vec((0..3i64, any::<u8>()), 1..5), turn in 0..5usize) {
        let clusters = ["a", "b", "c", "d", "e"];
        let mut exports: Vec<Constituent> = specs.iter().zip(clusters).map(|((at, bits), cluster)| Constituent {
            cluster: cluster.into(), created_unix_secs: *at, spec: varied(*bits),
        }).collect();
        let before = resolve(&exports);
        let len = exports.len();
        exports.rotate_left(turn % len);
        prop_assert_eq!(resolve(&exports), before);
    }
}

#[test]
fn nothing_is_confirmed_before_all_have_spoken() {
    let world = World::new();
    let mut run = Run::new(&world, range());
    let state = |world: &World| world.services.0.snapshot().source_state(&Source::Planner);
    world.remote.1.set_source(&cluster("west"), SourceState::Pending);
    run.step(&world, 0);
    assert_eq!(state(&world), Some(SourceState::Pending));
    world.services.1.set_source(&Source::Manifests, SourceState::Initialized);
    run.step(&world, 1);
    assert_eq!(state(&world), Some(SourceState::Stale), "usable, so that this cluster can publish");
    world.remote.1.set_source(&cluster("west"), SourceState::Initialized);
    run.step(&world, 2);
    assert_eq!(state(&world), Some(SourceState::Initialized));
}
