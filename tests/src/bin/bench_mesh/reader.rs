//! The readers, each a process of its own: the followers as the agent runs them, and a bare client that throws away what it reads.
//!
//! A reader prints `ready` and waits for a line before it reads; it prints `done` when everything is there, and ends with its standard input.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, GetOptions, WatchOptions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Table, Writer};
use tombolo_clustermesh::etcd::{EtcdConfig, PAGE};
use tombolo_clustermesh::follower::{Change, Limits, MeshConfig, MeshSink, Timers, start};
use tombolo_clustermesh::relay::{self, RelayConfig};
use tombolo_clustermesh::rows::{RemoteSlices, TableSink};
use tombolo_clustermesh::wire::key::range_end;
use tombolo_clustermesh::wire::{KINDS, Layout};
use tombolo_topology::plan::{NodeIndexes, Outputs, PathMtus, PlanConfig, Planner};
use tombolo_topology::{AddressKind, NodeAddress, NodeRow, PathKind, PrefixEntry, PrefixRow};

use crate::Failure;
use crate::sync::float;
use crate::world::{Size, TIMED, home, name};
use tombolo_tests::report::percentile;

/// Waits for the parent's word; false when it has closed the pipe.
pub(crate) fn told() -> bool {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok_and(|read| read > 0)
}

/// Reads every key of every cluster, page by page with the follower's own prefixes and page size, and drops it.
pub(crate) async fn bare(folder: &Path, size: Size) -> Result<(), Failure> {
    let file = folder.join(format!("{}.yaml", name(1)));
    let config = EtcdConfig::parse(&file, &std::fs::read_to_string(&file)?, false)?;
    println!("ready");
    told();
    let client = config.client().await?.0;
    let (mut entries, mut bytes) = (0, 0);
    for number in 1..=size.clusters {
        for kind in KINDS {
            let read = pages(&client, &kind.prefix(Layout::Cache, &name(number))).await?;
            entries += read.0;
            bytes += read.1;
        }
    }
    println!("done {entries} {bytes}");
    told();
    Ok(())
}

/// Entries and bytes of a prefix.
async fn pages(client: &Client, prefix: &str) -> Result<(usize, usize), Failure> {
    let (mut entries, mut bytes, mut revision, mut from) = (0, 0, 0, prefix.as_bytes().to_vec());
    loop {
        let options =
            GetOptions::new().with_range(range_end(prefix)).with_limit(PAGE).with_revision(revision);
        let answer = client.kv_client().get(from, Some(options)).await?;
        revision = answer.header().map_or(revision, etcd_client::ResponseHeader::revision);
        entries += answer.kvs().len();
        bytes += answer.kvs().iter().map(|kv| kv.key().len() + kv.value().len()).sum::<usize>();
        match answer.kvs().last().filter(|_| answer.more()) {
            Some(last) => from = [last.key(), &[0]].concat(),
            None => return Ok((entries, bytes)),
        }
    }
}

/// The tables that the followers write, and those that the planner makes of them.
pub(crate) struct Tables {
    pub(crate) sink: Arc<TableSink>,
    pub(crate) entries: Table<PrefixEntry>,
    nodes: Table<NodeRow>,
    prefixes: Table<PrefixRow>,
    planner: Option<(Planner, Outputs)>,
}

fn shared<R: Row>() -> (Table<R>, Arc<Writer<R>>) {
    let (table, writer) = Table::new();
    (table, Arc::new(writer))
}

impl Tables {
    /// Empty, but for the node that reads.
    pub(crate) fn new(max: MaxClusters) -> Result<Self, Failure> {
        let ((nodes, node_writer), (prefixes, prefix_writer)) = (shared(), shared());
        let (paths, entries, routes, peers) = (Table::new(), Table::new(), Table::new(), Table::new());
        let own = NodeRow {
            source: Source::Manifests,
            cluster: home()?,
            cluster_id: ClusterId::new(max.max(), max)?,
            name: "reader".into(),
            addresses: vec![
                NodeAddress { kind: AddressKind::Internal, ip: "192.0.2.1".parse()? },
                NodeAddress { kind: AddressKind::Internal, ip: "2001:db8::1".parse()? },
            ],
            pod_cidrs: vec!["198.51.100.0/24".parse()?],
            wireguard_key: None,
            encryption_key: 0,
            labels: Default::default(),
            ready: None,
            health: Default::default(),
        };
        node_writer.upsert(own);
        let plan = PlanConfig {
            cluster: home()?,
            node: "reader".into(),
            path: PathKind::Overlay,
            encrypt: false,
            wireguard_port: 51871,
            overlay_device: "tombolo_vxlan".into(),
            mtu: PathMtus { ipv4: Some(1450), ipv6: Some(1430) },
            connected: Vec::new(),
        };
        let planner = Planner::new(plan, NodeIndexes::default());
        let out = Outputs {
            paths: paths.1,
            entries: entries.1,
            routes: routes.1,
            peers: peers.1,
            conflicts: Table::new().1,
        };
        let sink = TableSink {
            nodes: node_writer,
            identities: shared().1,
            prefixes: prefix_writer,
            services: shared().1,
            exports: shared().1,
            slices: RemoteSlices::default(),
            assignments: shared().1,
            own: home()?,
            max,
        };
        Ok(Self { sink: Arc::new(sink), entries: entries.0, nodes, prefixes, planner: Some((planner, out)) })
    }

    /// Runs the planner as the agent does.
    pub(crate) fn plan(&mut self) {
        let Some((mut planner, out)) = self.planner.take() else { return };
        let (mut nodes, mut prefixes) = (self.nodes.changes(), self.prefixes.changes());
        tokio::spawn(async move {
            loop {
                let (mut a, mut b) = (None, None);
                tokio::select! {
                    batch = nodes.next() => a = Some(batch),
                    batch = prefixes.next() => b = Some(batch),
                }
                let a = a.or_else(|| nodes.drain());
                let b = b.or_else(|| prefixes.drain());
                planner.step(a, b, None, &out);
            }
        });
    }
}

/// Waits until every cluster is complete in a table; the number of its rows.
pub(crate) async fn complete<R: Row>(table: &Table<R>, clusters: u32) -> usize {
    let mut changes = table.changes();
    loop {
        let snapshot = changes.next().await.snapshot;
        let ready = |(source, state): &(&Source, SourceState)| {
            matches!(source, Source::Cluster(_)) && *state == SourceState::Initialized
        };
        if u32::try_from(snapshot.sources().filter(ready).count()).is_ok_and(|ready| ready == clusters) {
            return snapshot.len();
        }
    }
}

/// What the followers of the bench know.
pub(crate) fn mesh(folder: &Path, max: MaxClusters) -> Result<MeshConfig, Failure> {
    Ok(MeshConfig {
        cluster: home()?,
        cluster_id: None,
        max,
        folder: folder.to_owned(),
        snapshots: None,
        allow_plaintext: false,
        own: None,
        timers: Timers::default(),
        limits: Limits::default(),
        preference: Default::default(),
        mirror: false,
        relay: None,
        exports: true,
    })
}

/// Follows every cluster, planned or not. Asked once more it says how late the endpoints were that tell when they were written.
pub(crate) async fn ours(folder: &Path, size: Size, planned: bool) -> Result<(), Failure> {
    println!("ready");
    told();
    let mut tables = Tables::new(size.max())?;
    if planned {
        tables.plan();
    }
    let cancel = CancellationToken::new();
    let config = mesh(folder, size.max())?;
    let (_handle, running) = start(config, tables.sink.clone(), cancel.clone()).await;
    let rows = if planned {
        complete(&tables.entries, size.clusters).await
    } else {
        complete(&tables.prefixes, size.clusters).await
    };
    println!("done {rows}");
    let mut lags = Vec::new();
    let mut asked = std::pin::pin!(tokio::task::spawn_blocking(told));
    let mut changes = tables.prefixes.later_changes();
    loop {
        let batch = tokio::select! {
            batch = changes.next() => batch,
            asked = &mut asked => if asked? { break } else { return Ok(()) },
        };
        let now = now_micros()?;
        let pods = batch.keys.iter().filter_map(|key| batch.snapshot.get(key)?.pod.as_deref());
        lags.extend(pods.filter_map(|pod| lag_millis(now, pod)));
    }
    tell_lags(&mut lags);
    cancel.cancel();
    running.await?;
    Ok(())
}

/// Microseconds of the clock that all processes here share.
pub(crate) fn now_micros() -> Result<u64, Failure> {
    Ok(u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros())?)
}

/// How old a name is that tells when it was written.
fn lag_millis(now: u64, name: &str) -> Option<f64> {
    let digits = name.strip_prefix(TIMED)?;
    let end = digits.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(digits.len());
    let written: u64 = digits.get(..end)?.parse().ok()?;
    Some(float(now.saturating_sub(written)) / 1000.0)
}

fn tell_lags(lags: &mut [f64]) {
    let count = lags.len();
    let of = |percent| percentile(lags, percent).unwrap_or(f64::NAN);
    let [p50, p99] = [50, 99].map(of);
    println!("lag {p50} {p99} {count}");
}

/// Watches everything in one watch, and looks into nothing but the names that tell when they were written.
pub(crate) async fn watch(folder: &Path) -> Result<(), Failure> {
    let file = folder.join(format!("{}.yaml", name(1)));
    let config = EtcdConfig::parse(&file, &std::fs::read_to_string(&file)?, false)?;
    println!("ready");
    told();
    let prefix = "cilium/cache/";
    let options = WatchOptions::new().with_range(range_end(prefix));
    let mut stream = config.client().await?.0.watch_client().watch(prefix, Some(options)).await?;
    println!("done");
    let mut lags = Vec::new();
    let mut asked = std::pin::pin!(tokio::task::spawn_blocking(told));
    loop {
        let answer = tokio::select! {
            answer = stream.message() => answer?.ok_or("the watch ended")?,
            asked = &mut asked => if asked? { break } else { return Ok(()) },
        };
        let now = now_micros()?;
        for value in answer.events().iter().filter_map(|event| Some(event.kv()?.value())) {
            let at = value.windows(TIMED.len()).position(|part| part == TIMED.as_bytes());
            let name = at.and_then(|at| std::str::from_utf8(value.get(at..)?).ok());
            lags.extend(name.and_then(|name| lag_millis(now, name)));
        }
    }
    tell_lags(&mut lags);
    Ok(())
}

/// Counts the readers that are current.
#[derive(Debug, Default)]
struct Current {
    states: Mutex<BTreeMap<usize, SourceState>>,
    changed: Notify,
}

struct Agent(usize, Arc<Current>);

impl MeshSink for Agent {
    fn apply(&self, _: &ClusterName, _: Vec<Change>) {}
    fn state(&self, _: &ClusterName, state: SourceState) {
        self.1.states.lock().unwrap_or_else(PoisonError::into_inner).insert(self.0, state);
        self.1.changed.notify_one();
    }
    fn gone(&self, _: &ClusterName) {}
}

impl Current {
    async fn wait(&self, count: usize, check: impl Fn(SourceState) -> bool) {
        loop {
            {
                let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
                if states.values().filter(|state| check(**state)).count() == count {
                    return;
                }
            }
            self.changed.notified().await;
        }
    }
}

/// Many agents that follow the first cluster, each with a mesh and a connection of its own.
pub(crate) async fn readers(folder: &Path, count: usize) -> Result<(), Failure> {
    let current = Arc::new(Current::default());
    let cancel = CancellationToken::new();
    let mut running = Vec::new();
    for number in 0..count {
        let sink = Arc::new(Agent(number, current.clone()));
        running.push(start(mesh(folder, MaxClusters::C255)?, sink, cancel.clone()).await);
    }
    let is_current = |state| state == SourceState::Initialized;
    current.wait(count, is_current).await;
    println!("current");
    current.wait(count, |state| !is_current(state)).await;
    println!("lost");
    tokio::task::spawn_blocking(told).await?;
    current.wait(count, is_current).await;
    println!("current");
    tokio::task::spawn_blocking(told).await?;
    Ok(())
}

/// A relay of the clusters in a folder, into the etcd of a client file, until it is killed.
pub(crate) async fn relay(folder: &Path, own: &Path) -> Result<(), Failure> {
    let etcd = EtcdConfig::parse(own, &std::fs::read_to_string(own)?, false)?;
    let config = RelayConfig::new(home()?, "bench".into(), folder.to_owned(), etcd);
    let config = RelayConfig { heartbeat: Some(Duration::from_secs(60)), ..config };
    let (_handle, task) = relay::start(config, CancellationToken::new()).await;
    Ok(task.await?)
}
