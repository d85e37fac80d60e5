//! What the elected relay says of each cluster, for the agents that read the mirrors, and its heartbeat.

use super::Context;
use crate::error::MeshError;
use crate::etcd::request;
use crate::follower::ClusterStatus;
use crate::operations::{Operation, operate};
use crate::publisher::election::Won;
use crate::publisher::lease::short_lease;
use crate::publisher::scope::lost_election;
use crate::rfc3339;
use crate::wire::key;
use crate::wire::relay::RelayReport;
use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tombolo_base::ids::ClusterName;

/// How often the age of what is not confirmed is told anew.
const AGES: Duration = Duration::from_secs(15);
/// After as many of these all reports are written again: somebody may have deleted one.
const AUDIT: u32 = 20;
/// How long changes of states are gathered: all clusters change theirs when the relay starts.
const SETTLE: Duration = Duration::from_millis(250);
/// Reports in one transaction.
const BATCH: usize = 64;

/// Runs until the connection is lost.
pub(super) async fn report(context: &Context, client: &Client, won: &Won) -> MeshError {
    match try_report(context, client, won).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_report(context: &Context, client: &Client, won: &Won) -> Result<Infallible, MeshError> {
    // Outlives the election: the next relay writes its own reports before these go.
    let ttl = context.config.election_ttl * 3;
    let lease = short_lease(client, i64::try_from(ttl.as_secs()).unwrap_or(45).max(3)).await?;
    let beat = context.config.heartbeat.unwrap_or(Duration::from_secs(3600));
    let (mut keep_alive, mut heartbeat, mut ages) = (interval(ttl / 4), interval(beat), interval(AGES));
    for timer in [&mut keep_alive, &mut heartbeat, &mut ages] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let (mut told, mut ticks) = (BTreeMap::new(), 0_u32);
    loop {
        tokio::select! {
            _ = keep_alive.tick() => {
                let mut leases = client.lease_client();
                request(|| "keeping the reports".to_owned(), leases.keep_alive(lease)).await?;
                continue;
            }
            _ = heartbeat.tick(), if context.config.heartbeat.is_some() => {
                write(client, won, vec![(key::HEARTBEAT.to_owned(), rfc3339::now().into_bytes())], lease).await?;
                continue;
            }
            _ = ages.tick() => {
                ticks = (ticks + 1) % AUDIT;
                if ticks == 0 {
                    told.clear();
                }
            }
            () = context.book.states.notified() => sleep(SETTLE).await,
        }
        let reports = reports(context).await;
        let changed: Vec<_> = reports.iter().filter(|(key, value)| told.get(*key) != Some(*value)).collect();
        for some in changed.chunks(BATCH) {
            let some = some.iter().map(|(key, value)| ((*key).clone(), (*value).clone()));
            write(client, won, some.collect(), lease).await?;
        }
        told = reports;
    }
}

async fn write(
    client: &Client,
    won: &Won,
    entries: Vec<(String, Vec<u8>)>,
    lease: i64,
) -> Result<(), MeshError> {
    let (fence, held) = won.fence();
    let first = entries.first().map(|(key, _)| key.clone()).unwrap_or_default();
    let put =
        |(key, value): (String, Vec<u8>)| TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
    let txn = Txn::new()
        .when([Compare::lease(fence, CompareOp::Equal, held)])
        .and_then(entries.into_iter().map(put).collect::<Vec<_>>());
    let what = || "writing reports".to_owned();
    let answer = operate(Operation::Update, &first, what, client.kv_client().txn(txn)).await?;
    if answer.succeeded() { Ok(()) } else { Err(lost_election()) }
}

/// What is to be said of every cluster now, by key.
async fn reports(context: &Context) -> BTreeMap<String, Vec<u8>> {
    let mut reports = BTreeMap::new();
    for status in context.mesh.status().await {
        let slot = ClusterName::new(&status.name).ok().and_then(|name| context.book.get(&name));
        let Some(slot) = slot.filter(|slot| *slot.wanted.borrow()) else { continue };
        let problem = slot.notes().problem.clone();
        let report = one(context, &status, slot.progress().established, problem);
        // Its strings are plain.
        if let Ok(value) = serde_json::to_vec(&report) {
            reports.insert(key::relay_status(&status.name), value);
        }
    }
    reports
}

fn one(context: &Context, status: &ClusterStatus, established: bool, problem: Option<String>) -> RelayReport {
    let ready = status.ready && established && problem.is_none();
    let text = match problem {
        Some(problem) => format!("its mirror cannot be written: {problem}"),
        None if status.ready && !established => "the mirror is being written".to_owned(),
        None => status.status.clone(),
    };
    RelayReport {
        relay: context.config.name.to_string(),
        connected: status.connected,
        ready,
        stale_secs: status.stale_secs,
        status: text.chars().take(1000).collect(),
    }
}
