//! C1: one endpoint of very many services comes or goes; how long until packets find the change.
//!
//! Ours from the slice's row on, through the planner, to the last map write; theirs is the write alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use tombolo_base::clock::Moment;
use tombolo_base::source::Source;
use tombolo_base::table::{Changes, Table, Writer};
use tombolo_ebpf::{Backend, Datapath, DatapathConfig, Frontend, MapSizes, Scope, ServiceEntry};
use tombolo_service::plan::{InputChanges, Outputs, Planner};
use tombolo_service::rows::{
    BackendRow, FrontendKey, FrontendRow, Protocol, Scope as Side, ServiceName, ServicePort, ServiceRow,
    SliceEndpoint, SlicePort, SliceRow,
};
use tombolo_tests::netns::Namespace;
use tombolo_tests::report::{Figure, Goal, Report, median, percentile};

use crate::Failure;
use crate::balance::{self, address};
use crate::spaces::Bpffs;

/// Endpoints of each service; with one less the Maglev table keeps its size.
const ENDPOINTS: u32 = 4;
/// Slots of a service of so many.
const SLOTS: u32 = 509;

fn name(number: u32) -> ServiceName {
    ServiceName { namespace: "bench".into(), name: format!("s{number}").into() }
}

fn service(number: u32) -> ServiceRow {
    ServiceRow {
        cluster_ips: vec![address(number).into()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        families_ipv4: vec![true],
        ..ServiceRow::new(Source::Manifests, name(number))
    }
}

fn slice(number: u32, endpoints: u32) -> SliceRow {
    let endpoint = |of: u32| SliceEndpoint {
        addresses: vec![IpAddr::V4(Ipv4Addr::from(0x0a10_0000 + number * ENDPOINTS + of))],
        ready: true,
        serving: true,
        ..SliceEndpoint::default()
    };
    SliceRow {
        source: Source::Manifests,
        name: name(number),
        service: name(number),
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
    }
}

/// From rows of services and slices to the maps.
struct Rooms {
    datapath: Datapath,
    services: (Table<ServiceRow>, Writer<ServiceRow>),
    slices: (Table<SliceRow>, Writer<SliceRow>),
    changed: (Changes<ServiceRow>, Changes<SliceRow>),
    planner: Planner,
    out: Outputs,
    planned: (Changes<FrontendRow>, Changes<BackendRow>),
    /// What the maps hold.
    written: BTreeMap<FrontendKey, (Frontend, ServiceEntry)>,
}

impl Rooms {
    fn new(datapath: Datapath) -> Self {
        let (services, slices) = (Table::new(), Table::new());
        let out = Outputs { frontends: Table::new().1, backends: Table::new().1 };
        Self {
            datapath,
            changed: (services.0.changes(), slices.0.changes()),
            services,
            slices,
            planner: Planner::new("bench".into(), Moment::ZERO),
            planned: (out.frontends.table().changes(), out.backends.table().changes()),
            out,
            written: BTreeMap::new(),
        }
    }

    /// Plans what changed and writes it: backends, then frontends, then backends that are gone.
    fn carry(&mut self) -> Result<(), Failure> {
        let news = InputChanges {
            services: self.changed.0.drain(),
            slices: self.changed.1.drain(),
            ..InputChanges::default()
        };
        // Nothing is held back for want of a source any more.
        self.planner.step(news, Moment::from_origin(Duration::from_secs(3600)), &self.out);
        let (frontends, backends) = (self.planned.0.drain(), self.planned.1.drain());
        let rows = self.out.backends.table().snapshot();
        let touched = || backends.iter().flat_map(|batch| &batch.keys);
        for row in touched().filter_map(|key| rows.get(key)) {
            let backend = Backend { ip: row.address, port: row.port, protocol: row.protocol.number() };
            self.datapath.upsert_backend(row.id, &backend)?;
        }
        let planned = self.out.frontends.table().snapshot();
        for row in frontends.iter().flat_map(|batch| &batch.keys).filter_map(|key| planned.get(key)) {
            self.write(row)?;
        }
        for key in touched().filter(|key| rows.get(key).is_none()) {
            self.datapath.delete_backend(*key)?;
        }
        Ok(())
    }

    fn write(&mut self, row: &FrontendRow) -> Result<(), Failure> {
        let scope = if row.key.scope == Side::External { Scope::External } else { Scope::Internal };
        let frontend =
            Frontend { ip: row.key.address, port: row.key.port, protocol: row.key.protocol.number(), scope };
        let entry = ServiceEntry {
            rev_nat: u32::from(row.id),
            maglev: row.slots().collect(),
            ..ServiceEntry::default()
        };
        match self.written.get(&row.key) {
            Some((_, before)) => drop(self.datapath.change_service(&frontend, before, &entry)?),
            None => self.datapath.set_service(&frontend, &entry)?,
        }
        self.written.insert(row.key, (frontend, entry));
        Ok(())
    }

    /// How many slots of the service's table name different backends.
    fn backends(&self, number: u32) -> usize {
        let of = |(frontend, _): &&(Frontend, ServiceEntry)| frontend.ip == IpAddr::V4(address(number));
        let entry = self.written.values().find(of).map(|(_, entry)| entry);
        entry.map_or(0, |entry| entry.maglev.iter().collect::<std::collections::BTreeSet<_>>().len())
    }
}

/// Microseconds of each change, ours.
fn ours(count: u32, turns: u32) -> Result<Vec<f64>, Failure> {
    let bpffs = Bpffs::new()?;
    let sizes = MapSizes {
        services: count + 64,
        backends: count * ENDPOINTS + 64,
        maglev_slots: (count + 8) * SLOTS,
        ..MapSizes::default()
    };
    let config = DatapathConfig { bpffs: bpffs.path().to_owned(), sizes, ..DatapathConfig::default() };
    let mut rooms = Rooms::new(Datapath::open(&config)?);
    rooms.services.1.replace_source(&Source::Manifests, (0..count).map(service));
    rooms.slices.1.replace_source(&Source::Manifests, (0..count).map(|number| slice(number, ENDPOINTS)));
    rooms.carry()?;
    let mut micros = Vec::new();
    for turn in 0..turns {
        let number = (turn / 2).wrapping_mul(7919) % count;
        // It goes, then it comes again.
        let endpoints = ENDPOINTS - 1 + turn % 2;
        let row = slice(number, endpoints);
        let begun = Instant::now();
        rooms.slices.1.upsert(row);
        rooms.carry()?;
        micros.push(begun.elapsed().as_secs_f64() * 1e6);
        let there = rooms.backends(number);
        if there != usize::try_from(endpoints)? {
            return Err(format!("service {number} has {there} backends after the change").into());
        }
    }
    Ok(micros)
}

/// Milliseconds that a program takes to read a text.
fn millis(space: &Namespace, program: &[&str], text: &str) -> Result<f64, Failure> {
    let begun = Instant::now();
    balance::read_by(space, program, text)?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

pub(crate) fn bench(report: &mut Report, short: bool) -> Result<(), Failure> {
    let (count, turns, rounds) = if short { (100, 20, 1) } else { (10_000, 400, 5) };
    let mut micros = ours(count, turns)?;
    let p99 = percentile(&mut micros, 99).map(|us| us / 1e3);
    let p50 = median(micros).map(|us| us / 1e3);
    let space = Namespace::new("change");
    let (mut full, mut one) = (Vec::new(), Vec::new());
    balance::read_by(&space, &["nft", "-f"], &balance::map(count))?;
    for round in 0..rounds {
        let key = format!("{} . 80", address(round));
        let text = format!(
            "delete element ip services frontends {{ {key} }}\nadd element ip services frontends {{ {key} : 10.1.1.4 . 8080 }}\n"
        );
        one.push(millis(&space, &["nft", "-f"], &text)?);
    }
    space.run(&["nft", "flush", "ruleset"]);
    for _ in 0..=rounds {
        full.push(millis(&space, &["iptables-restore"], &balance::chains(count))?);
    }
    // The first one found nothing to replace.
    full.remove(0);
    let what = format!("one endpoint of {count} services changes: row to map");
    let note = p99
        .map(|ms| format!("p99 {ms:.3} ms; theirs is the write alone, by the program"))
        .unwrap_or_default();
    for (id, peer, goal) in [
        ("C1", None, Goal::Most(1.0)),
        ("C1-iptables", Some((median(full), "iptables-restore, all")), Goal::Ratio(0.01)),
        ("C1-nft", Some((median(one), "nft, one element")), Goal::Ratio(0.5)),
    ] {
        report.add_noted(&Figure { id, what: &what, unit: "ms", ours: p50, peer, goal }, &note);
    }
    Ok(())
}
