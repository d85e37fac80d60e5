//! What a cluster announces, as the follower takes it: a cluster that publishes slices only has backends all the same.

use super::*;
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Table;
use tombolo_clustermesh::follower::{
    Change, Failure, FailureKind, Follower, FollowerConfig, Header, Input, MeshSink, Output, Scope,
};
use tombolo_clustermesh::publisher::Desired;
use tombolo_clustermesh::rows::{RemoteSlices, TableSink};
use tombolo_clustermesh::wire::key;
use tombolo_clustermesh::wire::{Capabilities, ClusterConfig, ExportMode, Layout, ProducerForms};
use tombolo_service::rows::{
    BackendState, Protocol, RemoteService, ServiceName, ServiceRow, SliceEndpoint, SlicePort, SliceRow,
};

const HEADER: Header = Header { etcd: 7, revision: 3, term: 2 };

fn now() -> Moment {
    Moment::from_origin(Duration::from_secs(1))
}

/// An etcd with canaries of what is announced, and the golden records of these kinds.
struct Etcd {
    forms: ProducerForms,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Breaks the connection after the first page of these.
    breaks_at: Option<Kind>,
}

impl Etcd {
    fn new(backends: ExportMode, layout: Layout) -> Self {
        let forms = ProducerForms { backends, layout, ..ProducerForms::default() };
        // Not the one of services, which somebody who publishes slices only need not write.
        let canaries = forms.canaries().filter(|kind| backends.services() || *kind != Kind::Services);
        let mut entries: Vec<_> =
            canaries.map(|kind| (kind.canary(layout, "c1").into_bytes(), b"now".to_vec())).collect();
        for kept in kept("golden") {
            let Some(kind) = kept.kind.filter(|kind| forms.writes(*kind)) else { continue };
            entries.push((kind.key(layout, "c1", &kept.name).into_bytes(), kept.value));
        }
        Self { forms, entries, breaks_at: None }
    }

    fn without_canary(mut self, kind: Kind) -> Self {
        let canary = kind.canary(self.forms.layout, "c1").into_bytes();
        self.entries.retain(|(name, _)| *name != canary);
        self
    }

    fn config(&self) -> Vec<u8> {
        let capabilities: Capabilities = self.forms.capabilities(MaxClusters::C255);
        ClusterConfig { id: 1, capabilities }.encode().unwrap()
    }

    fn answer(&self, output: Output) -> Option<Input> {
        match output {
            Output::Connect => Some(Input::Connected),
            Output::GetConfig(name) => {
                assert_eq!(name, key::cluster_config("c1"));
                Some(Input::Config(HEADER, Some(self.config())))
            }
            Output::List { ticket, scope, from, prefix, .. } => {
                let below = self.entries.iter().filter(|(name, _)| name.starts_with(prefix.as_bytes()));
                let entries = below.cloned().collect();
                let more = self.breaks_at.is_some_and(|kind| scope == Scope::Entries(kind));
                if more && from != prefix.as_bytes() {
                    let failure = Failure { kind: FailureKind::Transport, text: "broken".to_owned() };
                    return Some(Input::ListFailed(ticket, scope, failure));
                }
                Some(Input::Page { ticket, scope, header: HEADER, entries, more })
            }
            _ => None,
        }
    }
}

fn follower() -> Follower {
    let config = FollowerConfig {
        own_id: ClusterId::new(9, MaxClusters::C255).ok(),
        ..FollowerConfig::new(ClusterName::new("c1").unwrap(), ClusterName::new("own").unwrap())
    };
    Follower::new(config, now())
}

/// A sink, and the table of remote services that it writes.
fn sink() -> (TableSink, Table<RemoteService>) {
    let (table, services) = Table::<RemoteService>::new();
    let sink = TableSink {
        nodes: Arc::new(Table::new().1),
        identities: Arc::new(Table::new().1),
        prefixes: Arc::new(Table::new().1),
        services: Arc::new(services),
        slices: RemoteSlices::default(),
        exports: Arc::new(Table::new().1),
        assignments: Arc::new(Table::new().1),
        own: ClusterName::new("own").unwrap(),
        max: MaxClusters::C255,
    };
    (sink, table)
}

/// Answers everything until nothing is asked; what changed, and the last state.
fn run(follower: &mut Follower, etcd: &Etcd, first: Input) -> (Vec<Change>, Option<SourceState>, Vec<Scope>) {
    let (mut inputs, mut changes, mut state, mut listed) = (vec![first], Vec::new(), None, Vec::new());
    while let Some(input) = inputs.pop() {
        let mut outputs = Vec::new();
        follower.handle(now(), input, &mut outputs);
        for output in outputs {
            match output {
                Output::Change(change) => changes.push(change),
                Output::State(new) => state = Some(new),
                output => {
                    if let Output::List { scope, .. } = &output {
                        listed.push(*scope);
                    }
                    inputs.extend(etcd.answer(output));
                }
            }
        }
    }
    (changes, state, listed)
}

fn names(changes: &[Change], wanted: Kind) -> Vec<String> {
    let named = |change: &Change| match change {
        Change::Upsert(record) if record.kind() == wanted => Some(record.key_name()),
        _ => None,
    };
    changes.iter().filter_map(named).collect()
}

#[test]
fn each_mode_is_read_in_the_form_it_has() {
    for layout in [Layout::State, Layout::Cache] {
        for (mode, read, absent) in [
            (ExportMode::Services, Kind::Services, Kind::EndpointSlices),
            (ExportMode::ServicesAndSlices, Kind::Services, Kind::EndpointSlices),
            (ExportMode::SlicesOnly, Kind::EndpointSlices, Kind::Services),
        ] {
            let etcd = Etcd::new(mode, layout);
            let (changes, state, listed) = run(&mut follower(), &etcd, Input::Tick);
            assert_eq!(state, Some(SourceState::Initialized), "{mode:?}");
            assert!(!names(&changes, read).is_empty() && names(&changes, absent).is_empty(), "{mode:?}");
            assert!(listed.contains(&Scope::Entries(read)) && !listed.contains(&Scope::Entries(absent)));
            for kind in [Kind::Nodes, Kind::Identities, Kind::Ips] {
                assert!(!names(&changes, kind).is_empty(), "{kind}");
            }
        }
    }
}

#[test]
fn a_cluster_that_turns_to_slices_keeps_its_backends_in_the_table() {
    let (sink, table) = sink();
    let cluster = ClusterName::new("c1").unwrap();
    let row = || {
        let name = ServiceName { namespace: "shop".into(), name: "web".into() };
        table.snapshot().get(&(name, Source::Cluster(cluster))).cloned()
    };
    let mut follower = follower();
    let (changes, ..) =
        run(&mut follower, &Etcd::new(ExportMode::ServicesAndSlices, Layout::State), Input::Tick);
    sink.apply(&cluster, changes);
    assert_eq!(row().unwrap().backends.len(), 1, "the golden service has one backend");
    let only = Etcd::new(ExportMode::SlicesOnly, Layout::State);
    let (changes, state, _) = run(&mut follower, &only, Input::Reconfigured);
    assert_eq!(state, Some(SourceState::Initialized));
    sink.apply(&cluster, changes);
    let backends = row().unwrap().backends;
    // Of the slices of both families: what is ready, or still serves.
    for ip in ["10.1.0.7", "10.1.0.8", "10.1.0.9", "10.1.0.10", "fd00:10:1::7"] {
        assert!(backends.contains_key(&ip.parse().unwrap()), "{ip} of {backends:?}");
    }
    let mut out = Vec::new();
    follower.drain(&mut out);
    let gone = out.into_iter().filter_map(|output| match output {
        Output::Change(change) => Some(change),
        _ => None,
    });
    sink.apply(&cluster, gone.collect());
    assert!(row().is_none());
}

/// Its backends may be dead or alive: what was known of them counts until the new form says it all.
#[test]
fn a_cluster_that_changes_its_form_loses_no_backend_on_the_way() {
    use ExportMode::{Services, SlicesOnly};
    let golden = |mode| Etcd::new(mode, Layout::State);
    for (before, after, kind) in
        [(Services, SlicesOnly, Kind::EndpointSlices), (SlicesOnly, Services, Kind::Services)]
    {
        let (sink, table) = sink();
        let cluster = ClusterName::new("c1").unwrap();
        let row = || {
            let name = ServiceName { namespace: "shop".into(), name: "web".into() };
            table.snapshot().get(&(name, Source::Cluster(cluster))).cloned()
        };
        let mut follower = follower();
        let mut read = |etcd: &Etcd| {
            let (changes, state, _) = run(&mut follower, etcd, Input::Reconfigured);
            let told = names(&changes, kind).len();
            sink.apply(&cluster, changes);
            (told, state)
        };
        read(&golden(before));
        let known = row().expect("the golden service");
        // Not written whole yet; then read in part.
        let parts = [
            golden(after).without_canary(kind),
            Etcd { breaks_at: Some(kind), ..golden(after) },
            // Back again, and forth.
            golden(before),
            golden(after).without_canary(kind),
        ];
        for (at, etcd) in parts.iter().enumerate() {
            let (told, state) = read(etcd);
            assert_eq!((told, row().as_ref()), (0, Some(&known)), "{after:?} {at}");
            assert_eq!(state == Some(SourceState::Initialized), at == 2, "{after:?} {at}: {state:?}");
        }
        let (told, state) = read(&golden(after));
        assert!(told > 0 && state == Some(SourceState::Initialized), "{after:?}: {state:?}");
        let now_known = row().expect("it is in both forms");
        assert_ne!(now_known, known, "the forms differ, so this is the new one");
        // What the new form did not bring is gone with the old one.
        let other = if kind == Kind::Services { Kind::EndpointSlices } else { Kind::Services };
        assert!(!follower.status(now()).counts.contains_key(&other));
    }
}

/// A global service without addresses of its own.
fn global(name: ServiceName) -> ServiceRow {
    ServiceRow { headless: true, global: true, shared: true, ..ServiceRow::new(Source::Manifests, name) }
}

/// What we publish of an EndpointSlice, as a reader of slices and one of services take it.
#[test]
fn our_slices_carry_conditions_and_our_services_what_is_ready() {
    let name = |name: &str| ServiceName { namespace: "shop".into(), name: name.into() };
    let service = global(name("web"));
    let endpoint = |ip: &str, ready, serving, terminating| SliceEndpoint {
        addresses: vec![ip.parse().unwrap()],
        ready,
        serving,
        terminating,
        node: Some("n1".into()),
        zone: Some("a".into()),
        for_zones: vec!["a".into(), "b".into()],
        hostname: Some("web-0".into()),
        ..SliceEndpoint::default()
    };
    let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let row = |slice: &str, endpoints| SliceRow {
        source: Source::Manifests,
        name: name(slice),
        service: name("web"),
        ports: vec![port.clone()],
        endpoints,
    };
    let rows = [
        row(
            "web-4",
            vec![endpoint("10.1.0.7", true, true, false), endpoint("10.1.0.8", false, false, false)],
        ),
        row("web-6", vec![endpoint("fd00::7", false, true, true), endpoint("fd00::8", false, false, true)]),
    ];
    let (cluster, id) = (ClusterName::new("c1").unwrap(), ClusterId::new(1, MaxClusters::C255).unwrap());
    let records = rows.iter().map(|row| {
        let slice = tombolo_clustermesh::rows::slice_entry(&cluster, id, &service, row);
        let written = Desired::slice(&slice).unwrap();
        assert_eq!(written.key, format!("cilium/state/endpointslices/v1/c1/shop/{}", row.name.name));
        let read = decode(Kind::EndpointSlices, &row.name.to_string(), &written.value).unwrap().unwrap();
        assert_eq!(read, Record::EndpointSlice(std::sync::Arc::new(slice)));
        read
    });
    let entry = tombolo_clustermesh::rows::service_entry(&cluster, id, &service, &rows);
    let table = |records: Vec<Record>| {
        let (sink, table) = sink();
        sink.apply(&cluster, records.into_iter().map(Change::Upsert).collect());
        table.snapshot().iter().next().cloned().unwrap()
    };
    let (of_slices, of_service) =
        (table(records.collect()), table(vec![Record::Service(std::sync::Arc::new(entry))]));
    let states: Vec<_> = of_slices.backends.iter().map(|(ip, b)| format!("{ip} {}", b.state)).collect();
    assert_eq!(states, ["10.1.0.7 ready", "10.1.0.8 not-ready", "fd00::7 serving"], "::8 is as good as gone");
    let ips: Vec<String> = of_service.backends.keys().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.1.0.7"], "being in a service means ready");
    // Ports, zones and hints are the same in both; names are for services only, nodes for slices only.
    let (a, b) = (
        &of_slices.backends[&rows[0].endpoints[0].addresses[0]],
        of_service.backends.values().next().unwrap(),
    );
    assert_eq!((&a.ports, &a.zone, &a.for_zones), (&b.ports, &b.zone, &b.for_zones));
    assert_eq!((a.zone.as_deref(), a.for_zones.len()), (Some("a"), 2));
    assert_eq!((a.node.as_deref(), b.hostname.as_deref()), (Some("n1"), Some("web-0")));
    // Where nobody is ready those that serve are published, so that the service goes on.
    let left = tombolo_clustermesh::rows::service_entry(&cluster, id, &service, &rows[1..]);
    assert_eq!(left.backends.keys().map(ToString::to_string).collect::<Vec<_>>(), ["fd00::7"]);
    assert_eq!(of_slices.backends.values().filter(|b| b.state == BackendState::Ready).count(), 1);
}
