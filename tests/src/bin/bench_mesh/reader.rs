//! The readers, each a process of its own: the followers as the agent runs them, and a bare client that throws away what it reads.
//!
//! A reader prints `ready` and waits for a line before it reads; it prints `done` when everything is there, and ends with its standard input.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_client::{Client, GetOptions};
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, MaxClusters};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Table, Writer};
use tombolo_clustermesh::etcd::{EtcdConfig, PAGE};
use tombolo_clustermesh::follower::{Limits, MeshConfig, Timers, start};
use tombolo_clustermesh::rows::{RemoteSlices, TableSink};
use tombolo_clustermesh::wire::key::range_end;
use tombolo_clustermesh::wire::{KINDS, Layout};
use tombolo_topology::plan::{NodeIndexes, Outputs, PathMtus, PlanConfig, Planner};
use tombolo_topology::{AddressKind, NodeAddress, NodeRow, PathKind, PrefixEntry, PrefixRow};

use crate::Failure;
use crate::world::{Size, home, name};

/// Waits for the parent's word; false when it has closed the pipe.
fn told() -> bool {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).is_ok_and(|read| read > 0)
}

/// Reads every key of every cluster, page by page with the follower's own prefixes and page size, and drops it.
pub(crate) async fn bare(folder: &Path, size: Size, connections: bool) -> Result<(), Failure> {
    let file = folder.join(format!("{}.yaml", name(1)));
    let config = EtcdConfig::parse(&file, &std::fs::read_to_string(&file)?, false)?;
    println!("ready");
    told();
    let mut client = config.client().await?.0;
    let (mut entries, mut bytes, mut open) = (0, 0, Vec::new());
    for number in 1..=size.clusters {
        if connections && number > 1 {
            open.push(std::mem::replace(&mut client, config.client().await?.0));
        }
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

fn shared<R: tombolo_base::table::Row>() -> (Table<R>, Arc<Writer<R>>) {
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
        let out =
            Outputs { paths: paths.1, entries: entries.1, routes: routes.1, peers: peers.1 };
        let sink = TableSink {
            nodes: node_writer,
            identities: shared().1,
            prefixes: prefix_writer,
            services: shared().1,
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

    /// Waits until every cluster was read and planned.
    pub(crate) async fn complete(&self, clusters: u32) -> usize {
        let mut changes = self.entries.changes();
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
}

/// What the followers of the bench know.
pub(crate) fn mesh(folder: &Path, max: MaxClusters, snapshots: Option<PathBuf>) -> Result<MeshConfig, Failure> {
    Ok(MeshConfig {
        cluster: home()?,
        cluster_id: None,
        max,
        folder: folder.to_owned(),
        snapshots,
        allow_plaintext: false,
        own: None,
        timers: Timers::default(),
        limits: Limits::default(),
    })
}

/// Follows every cluster.
pub(crate) async fn ours(folder: &Path, size: Size) -> Result<(), Failure> {
    println!("ready");
    told();
    let mut tables = Tables::new(size.max())?;
    tables.plan();
    let cancel = CancellationToken::new();
    let (_handle, running) = start(mesh(folder, size.max(), None)?, tables.sink.clone(), cancel.clone()).await;
    let rows = tables.complete(size.clusters).await;
    println!("done {rows} {}", tables.prefixes.snapshot().len());
    // Another thread waits for the parent, so that the followers go on.
    tokio::task::spawn_blocking(told).await?;
    cancel.cancel();
    running.await?;
    Ok(())
}
