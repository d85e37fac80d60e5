//! One backend of a large service changes: what it costs from the event's value to the rows, and what reaches the maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use tombolo_base::clock::Moment;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Table, Writer};
use tombolo_clustermesh::follower::{Change, MeshSink as _};
use tombolo_clustermesh::rows::TableSink;
use tombolo_clustermesh::wire::service::L4;
use tombolo_clustermesh::wire::slice::{Endpoint, Port, SERVICE_LABEL};
use tombolo_clustermesh::wire::{EndpointSlice, Kind, Record, Remote, Service};
use tombolo_service::plan::{InputChanges, Outputs, Planner};
use tombolo_service::rows::{FrontendKey, FrontendRow, Protocol, ServiceName, ServicePort, ServiceRow};

use crate::Failure;
use crate::reader::Tables;
use crate::sync::float;
use tombolo_tests::report::{Figure, Goal, Report, median};

/// Endpoints of a slice, as Kubernetes cuts them.
const SLICE: u32 = 100;
/// Bytes of a row in the maps: a backend's key and value, a slot's.
const BACKEND_BYTES: u64 = 4 + 24;
const SLOT_BYTES: u64 = 4 + 4;

/// How the backends are published.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Object,
    Slices,
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a01_0000 + number).into()
}

/// A service of this cluster that shares its name with the remote one.
fn own() -> Result<ServiceRow, Failure> {
    Ok(ServiceRow {
        cluster_ips: vec!["10.96.0.10".parse()?],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        families_ipv4: vec![true],
        global: true,
        shared: true,
        ..ServiceRow::new(Source::Manifests, ServiceName { namespace: "shop".into(), name: "web".into() })
    })
}

/// Name and value of what is published when backend 0 is there or not.
fn value(form: Form, first: u32, count: u32, with_first: bool) -> Result<(String, Vec<u8>), Failure> {
    let numbers = (first..first + count).filter(|number| with_first || *number != 0);
    match form {
        Form::Object => {
            let mut service = Service::new("c1", 1, "shop", "web");
            let l4 = |port| L4 { protocol: "TCP".into(), port };
            let ports: BTreeMap<_, _> = [("http".into(), l4(8080)), ("metrics".into(), l4(9090))].into();
            service.backends = numbers.map(|number| (address(number), ports.clone())).collect();
            service.shared = true;
            Ok(("shop/web".to_owned(), service.encode()?))
        }
        Form::Slices => {
            let name = format!("web-{first:05}");
            let mut slice = EndpointSlice::new("c1", 1, "shop", &name, true);
            slice.labels.insert(SERVICE_LABEL.into(), "web".into());
            let endpoint = |number| Endpoint {
                addresses: vec![address(number)],
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
                ..Endpoint::default()
            };
            slice.endpoints = numbers.map(endpoint).collect();
            let port = Port { name: Some("http".into()), protocol: Some("TCP".into()), port: Some(8080) };
            slice.ports = vec![port];
            Ok((format!("shop/{name}"), slice.encode()))
        }
    }
}

/// The rooms between the event and the maps.
struct Rooms {
    sink: TableSink,
    remote: Remote,
    planner: Planner,
    out: Outputs,
    services: (Table<ServiceRow>, Writer<ServiceRow>),
    /// What the maps hold.
    held: BTreeMap<FrontendKey, Vec<u32>>,
}

/// What one change cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    micros: f64,
    writes: u64,
    bytes: u64,
}

fn slots(row: &FrontendRow) -> Vec<u32> {
    if row.maglev.is_empty() {
        return row.backends.clone();
    }
    row.maglev.iter().filter_map(|slot| row.backends.get(usize::from(*slot)).copied()).collect()
}

impl Rooms {
    fn new() -> Result<Self, Failure> {
        let sink = (*Tables::new(MaxClusters::C255)?.sink).clone();
        let (frontends, backends) = (Table::new().1, Table::new().1);
        let services = Table::new();
        services.1.replace_source(&Source::Manifests, [own()?]);
        let name = ClusterName::new("c1")?;
        let max = MaxClusters::C255;
        sink.state(&name, SourceState::Initialized);
        Ok(Self {
            sink,
            remote: Remote { name, id: ClusterId::new(1, max)?, max, own: false },
            planner: Planner::new("reader".into(), Moment::ZERO),
            out: Outputs { frontends, backends },
            services,
            held: BTreeMap::new(),
        })
    }

    /// Takes values in as the follower does, plans, and counts what the maps would be told.
    fn take(&mut self, kind: Kind, values: &[(String, Vec<u8>)]) -> Result<Cost, Failure> {
        let mut remote = self.sink.services.table().changes();
        let (mut frontends, mut backends) =
            (self.out.frontends.table().changes(), self.out.backends.table().changes());
        remote.drain();
        frontends.drain();
        backends.drain();
        let started = Instant::now();
        let mut changes = Vec::new();
        for (name, value) in values {
            let record =
                Record::decode(&self.remote, kind, name, value)?.ok_or("a value that says nothing")?;
            changes.push(Change::Upsert(record));
        }
        self.sink.apply(&self.remote.name, changes);
        let news = InputChanges { remote: remote.drain(), ..InputChanges::default() };
        self.planner.step(news, Moment::from_origin(started.elapsed()), &self.out);
        let (frontends, backends) = (frontends.drain(), backends.drain());
        let micros = started.elapsed().as_secs_f64() * 1e6;
        let rows = backends.map_or(0, |batch| u64::try_from(batch.keys.len()).unwrap_or(0));
        let mut cost = Cost { micros, writes: rows, bytes: rows * BACKEND_BYTES };
        for key in frontends.iter().flat_map(|batch| &batch.keys) {
            let now = self.out.frontends.table().snapshot().get(key).map(slots).unwrap_or_default();
            let before = self.held.insert(*key, now.clone()).unwrap_or_default();
            let same = now.iter().zip(&before).filter(|(now, before)| now == before).count();
            let written = u64::try_from(now.len() - same)? + u64::from(now.len() != before.len());
            cost.writes += written;
            cost.bytes += written * SLOT_BYTES;
        }
        Ok(cost)
    }
}

/// The first step knows what there is: the node's own service.
fn begin(rooms: &mut Rooms) {
    let services = rooms.services.0.changes().drain();
    rooms.planner.step(InputChanges { services, ..InputChanges::default() }, Moment::ZERO, &rooms.out);
}

fn measure(form: Form, count: u32, turns: u32) -> Result<(Cost, usize), Failure> {
    let (kind, size) = match form {
        Form::Object => (Kind::Services, count),
        Form::Slices => (Kind::EndpointSlices, SLICE),
    };
    let mut rooms = Rooms::new()?;
    begin(&mut rooms);
    let parts = (0..count / size).map(|part| value(form, part * size, size, true));
    rooms.take(kind, &parts.collect::<Result<Vec<_>, _>>()?)?;
    let (mut costs, mut bytes) = (Vec::new(), 0);
    for turn in 0..turns {
        let change = value(form, 0, size, turn % 2 == 1)?;
        bytes = change.1.len();
        costs.push(rooms.take(kind, &[change])?);
    }
    let of = |value: fn(&Cost) -> f64| median(costs.iter().map(value).collect()).unwrap_or(f64::NAN);
    let most = |value: fn(&Cost) -> u64| costs.iter().map(value).max().unwrap_or(0);
    Ok((
        Cost {
            micros: of(|cost| cost.micros),
            writes: most(|cost| cost.writes),
            bytes: most(|cost| cost.bytes),
        },
        bytes,
    ))
}

pub(crate) fn bench(report: &mut Report, short: bool) -> Result<(), Failure> {
    let turns = if short { 4 } else { 40 };
    for (form, count, id, text) in [
        (Form::Object, 5_000, "service-object", "5,000 backends in one object, one changes"),
        (Form::Slices, 10_000, "service-slices", "10,000 backends in slices, one changes"),
    ] {
        let (cost, bytes) = measure(form, count, turns)?;
        let mut add = |part: &str, what: &str, unit, ours| {
            let (id, what) = (format!("{id}-{part}"), format!("{text}: {what}"));
            report.add(&Figure {
                id: &id,
                what: &what,
                unit,
                ours: Some(ours),
                peer: None,
                goal: Goal::None,
            });
        };
        add("micros", "event to rows", "us", cost.micros);
        add("event", "bytes of the event", "B", float(u64::try_from(bytes)?));
        add("writes", "map writes", "", float(cost.writes));
        add("bytes", "bytes to the maps", "B", float(cost.bytes));
    }
    Ok(())
}
