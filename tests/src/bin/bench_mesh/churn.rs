//! Changes as in Cilium's daily scale test: 25 nodes, 50 identities and 250 endpoints a second over all clusters, beside a bare watch of
//! the same keys in the same run.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::Failure;
use crate::etcd::Etcd;
use crate::reader::now_micros;
use crate::sync::reader;
use crate::world::{Cluster, Size};
use tombolo_tests::report::{Figure, Goal, Report};

/// Changes of each kind in a 25th of a second: 1 node, 2 identities, 10 endpoints.
const TICK: Duration = Duration::from_millis(40);

/// Keeps the changes coming. The turn of an endpoint is the moment at which it was written, in microseconds.
async fn cause(etcd: &Etcd, size: Size, span: Duration) -> Result<(), Failure> {
    let mut kv = etcd.client().await?.kv_client();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + span;
    let mut turn = 1_u32;
    let mut beat = Instant::now();
    while Instant::now() < end {
        ticks.tick().await;
        if beat.elapsed() > Duration::from_secs(30) {
            beat = Instant::now();
            kv.put(tombolo_clustermesh::wire::key::HEARTBEAT, turn.to_string(), None).await?;
        }
        for step in 0..13 {
            let pick = turn * 13 + step;
            let cluster = Cluster::new(pick.wrapping_mul(7919) % size.clusters + 1, size)?;
            let (key, value) = match step {
                0 => cluster.node(pick % size.nodes, turn)?,
                1 | 2 => cluster.identity(pick % size.identities, turn),
                _ => cluster.timed_endpoint(pick % size.endpoints, now_micros()?)?,
            };
            kv.put(key, value, None).await?;
        }
        turn += 1;
    }
    Ok(())
}

pub(crate) async fn bench(
    report: &mut Report,
    etcd: &Etcd,
    folder: &Path,
    size: Size,
    span: Duration,
) -> Result<(), Failure> {
    let mut all = [reader("planned", folder, size)?, reader("watch", folder, size)?];
    for process in &mut all {
        process.go()?;
        process.says("done")?;
    }
    let before = all.each_ref().map(crate::child::Process::usage);
    let started = Instant::now();
    cause(etcd, size, span).await?;
    let secs = started.elapsed().as_secs_f64();
    let [ours, bare] = [0, 1].map(|at: usize| {
        let cpu = all.get(at).zip(before.get(at)).map(|(process, before)| process.usage().cpu - before.cpu);
        cpu.map(|cpu| cpu.as_secs_f64() / secs * 100.0)
    });
    let peer = "bare watch";
    report.add(&Figure {
        id: "churn-cpu",
        what: "325 changes a second: processor, percent of a core",
        unit: "%",
        ours,
        peer: Some((bare, peer)),
        goal: Goal::Most(10.0),
    });
    let mut lags = Vec::new();
    for process in &mut all {
        process.go()?;
        lags.push(process.says("lag")?);
    }
    let lag = |at: usize, which: usize| lags.get(at).and_then(|lags| lags.get(which)).copied();
    for (which, id, what, goal) in [
        (0, "churn-lag-p50", "325 changes a second: put to table, p50", Goal::None),
        (1, "churn-lag-p99", "325 changes a second: put to table, p99", Goal::Ratio(2.0)),
    ] {
        report.add(&Figure {
            id,
            what,
            unit: "ms",
            ours: lag(0, which),
            peer: Some((lag(1, which), peer)),
            goal,
        });
    }
    let seen = |at: usize| lag(at, 2).unwrap_or_default();
    eprintln!("  {} endpoints seen by ours, {} by the bare watch", seen(0), seen(1));
    Ok(())
}
