//! From a put in etcd to the entry in the eBPF map of a node that follows the cluster: follower, tables, planner, reconciler, map.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;
use tombolo_base::clock::Moment;
use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::{Reconciler, Target};
use tombolo_base::rows::Rows;
use tombolo_base::source::Source;
use tombolo_base::table::Table;
use tombolo_clustermesh::etcd::EtcdConfig;
use tombolo_clustermesh::follower::start;
use tombolo_ebpf::{Datapath, DatapathConfig, MapSizes, PrefixEntry as MapEntry};
use tombolo_topology::PrefixEntry;

use crate::Failure;
use crate::reader::{Tables, complete, mesh, told};
use crate::sync::{float, reader};
use crate::world::{Cluster, Size, name};
use tombolo_tests::report::{Figure, Goal, Report, percentile};
use tombolo_tests::usage::map_bytes;

/// Longest wait for one entry.
const PATIENCE_SECS: u64 = 10;

/// The datapath in a mount namespace of its own: what is pinned goes with the thread, the maps with the process.
fn open(size: Size) -> Result<Datapath, Failure> {
    let open = move || -> Result<Datapath, Failure> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        let folder = tempfile::tempdir()?;
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), none)?;
        let nodes = size.clusters * size.nodes;
        let sizes = MapSizes {
            hosts: u32::try_from(size.all_endpoints())? + 2 * nodes + 1024,
            prefixes: nodes + 1024,
            nodes: nodes + 1024,
            ..MapSizes::default()
        };
        let config = DatapathConfig { bpffs: folder.path().to_owned(), sizes, ..DatapathConfig::default() };
        let datapath = Datapath::open(&config);
        nix::mount::umount2(folder.path(), nix::mount::MntFlags::MNT_DETACH)?;
        Ok(datapath?)
    };
    std::thread::spawn(open).join().map_err(|_| "the datapath's thread panicked")?
}

struct Map(Arc<Datapath>);

impl Target<PrefixEntry> for Map {
    async fn update(&mut self, row: &PrefixEntry) -> Result<(), String> {
        let entry = MapEntry {
            identity: row.identity.0,
            node: row.node.0,
            encrypt: false,
            remote_cluster: row.remote_cluster,
            skip_tunnel: row.node_address,
            strict: false,
        };
        self.0.upsert_prefix(row.prefix.net(), &entry).map_err(|error| error.to_string())
    }

    async fn delete(&mut self, row: &PrefixEntry) -> Result<(), String> {
        self.0.delete_prefix(row.prefix.net()).map_err(|error| error.to_string())
    }

    async fn prune(
        &mut self,
        _: &Rows<PrefixEntry>,
        _: &std::collections::BTreeSet<Source>,
    ) -> Result<(), String> {
        Ok(())
    }
}

/// Carries the rows to the map as the agent's driver does. Says so when the map holds everything for the first time.
async fn reconcile(rows: Table<PrefixEntry>, mut map: Map) {
    let origin = Instant::now();
    let now = || Moment::from_origin(origin.elapsed());
    let (mut changes, mut reconciler) = (rows.changes(), Reconciler::new(1));
    loop {
        let batch = changes.next().await;
        reconciler.observe(batch, now());
        while let Some(action) = reconciler.next(now(), 1) {
            let outcomes = action.carry_out(&mut map).await;
            reconciler.finish(outcomes, now());
            if let Some(batch) = changes.drain() {
                reconciler.observe(batch, now());
            }
        }
    }
}

/// The node: reads everything, then puts addresses itself and looks into the map without a pause until each shows.
pub(crate) async fn node(folder: &Path, size: Size, puts: u32) -> Result<(), Failure> {
    println!("ready");
    told();
    let datapath = Arc::new(open(size)?);
    let mut tables = Tables::new(size.max())?;
    tables.plan();
    tokio::spawn(reconcile(tables.entries.clone(), Map(datapath.clone())));
    let cancel = CancellationToken::new();
    let (_handle, running) = start(mesh(folder, size.max())?, tables.sink.clone(), cancel.clone()).await;
    complete(&tables.entries, size.clusters).await;
    let file = folder.join(format!("{}.yaml", name(1)));
    let config = EtcdConfig::parse(&file, &std::fs::read_to_string(&file)?, false)?;
    let mut kv = config.client().await?.0.kv_client();
    let mut micros = Vec::new();
    for turn in 1..=puts {
        let cluster = Cluster::new(turn.wrapping_mul(7919) % size.clusters + 1, size)?;
        // Each time round an address gets another identity than it had.
        let (key, value) = cluster.endpoint(turn % size.endpoints, 1 + turn / size.endpoints)?;
        let (address, identity) = said(&value)?;
        if datapath.prefix(address.net())?.is_some_and(|entry| entry.identity == identity) {
            return Err(format!("{address} has identity {identity} before it is put").into());
        }
        let (looking, started) = (datapath.clone(), Instant::now());
        let seen = tokio::task::spawn_blocking(move || -> Result<f64, String> {
            loop {
                let entry = looking.prefix(address.net()).map_err(|error| error.to_string())?;
                if entry.is_some_and(|entry| entry.identity == identity) {
                    return Ok(started.elapsed().as_secs_f64() * 1e6);
                }
                if started.elapsed().as_secs() > PATIENCE_SECS {
                    return Err(format!("{address} did not reach the map within {PATIENCE_SECS} s"));
                }
            }
        });
        kv.put(key, value, None).await?;
        // The first ones find nothing warm.
        micros.extend(Some(seen.await??).filter(|_| turn > puts / 10));
    }
    let [p50, p99] = [50, 99].map(|percent| percentile(&mut micros, percent).unwrap_or(f64::NAN));
    println!("path {p50} {p99} {}", map_bytes()?);
    told();
    cancel.cancel();
    running.await?;
    Ok(())
}

/// Address and identity of a value.
fn said(value: &[u8]) -> Result<(Prefix, u32), Failure> {
    let value: serde_json::Value = serde_json::from_slice(value)?;
    let address = value.get("IP").and_then(|ip| ip.as_str()).ok_or("an address")?;
    let identity = value.get("ID").and_then(serde_json::Value::as_u64).ok_or("an identity")?;
    Ok((address.parse()?, u32::try_from(identity)?))
}

pub(crate) fn bench(report: &mut Report, folder: &Path, size: Size, puts: u32) -> Result<(), Failure> {
    let mut process = reader("node", folder, size)?;
    process.go()?;
    let said = process.says("path")?;
    let of = |at: usize| said.get(at).copied();
    eprintln!("  {puts} puts seen in the map");
    for (at, id, what) in [
        (0, "path-p50", "put in etcd to entry in the eBPF map, p50"),
        (1, "path-p99", "put in etcd to entry in the eBPF map, p99"),
    ] {
        report.add(&Figure { id, what, unit: "us", ours: of(at), peer: None, goal: Goal::None });
    }
    let what = format!("{} endpoints: kernel memory of all maps", size.all_endpoints());
    let each = of(2).map(|bytes| bytes / float(size.all_endpoints()));
    report.add(&Figure {
        id: "map-memory",
        what: &what,
        unit: "B each",
        ours: each,
        peer: None,
        goal: Goal::None,
    });
    Ok(())
}
