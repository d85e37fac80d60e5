//! A node loses its links and its power: what breaks, and how long until traffic is right again, from three vantage
//! points.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::load::{Load, LoadPlan};
use super::{cluster_ip, other, pod_of};
use crate::checks::access::Place;
use crate::checks::ask;
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::ready;
use crate::workload::LoadReport;

/// How long it may take until no request fails any more.
const PATIENCE: Duration = Duration::from_secs(150);

pub(super) async fn off(context: &Context, node: &str) -> CheckResult {
    let mut loads = start_loads(context, node).await?;
    let off_at = unix_ms();
    let result = match context.access.verb("power-off", node).await {
        Ok(()) => settle(&mut loads).await,
        Err(failure) => Err(failure),
    };
    let mut notes = Vec::new();
    for load in loads {
        let name = load.name().to_owned();
        notes.push(describe(&name, &load.stop().await?, off_at));
    }
    context.access.verb("power-on", node).await?;
    ready::wait(&context.access, context.access.topology(), Some(context.variant)).await?;
    let routers_after = ready::routers(context).await;
    result.map_err(|mut failure| {
        failure.got = format!("{} ({})", failure.got, notes.join("; "));
        failure
    })?;
    routers_after?;
    Ok(notes)
}

async fn settle(loads: &mut [Load]) -> Result<(), Failure> {
    for load in loads {
        load.settled(PATIENCE).await?;
    }
    Ok(())
}

/// Fresh connections only: they show the choice of path and backend, not the end of what was open.
async fn start_loads(context: &Context, node: &str) -> Result<Vec<Load>, Failure> {
    let victim = context.inventory.cluster_of(node).ok_or_else(|| {
        Failure::new(format!("a cluster with the node {node}"), "none", "the Node manifests")
    })?;
    let remote = other(context, &victim.name)?;
    let beside = victim.nodes.keys().find(|name| name.as_str() != node).map(String::as_str);
    let near = pod_of(victim, "client", beside)?;
    let far = pod_of(remote, "client", None)?;
    let service = context.service(&victim.name, "demo/lb-local")?;
    let mut loads = Vec::new();
    for family in Family::BOTH {
        let plan = |vantage: &str, place, target| LoadPlan {
            name: format!("{vantage} {family}"),
            place,
            protocol: "http",
            target,
            port: 80,
            rate: 20,
            timeout_ms: 500,
        };
        let outside = Place::node(ask::client(context)?);
        let address = context.load_balancer(&victim.name, service, family).await?;
        let local = cluster_ip(context, &victim.name, "demo/web-local", family)?;
        let from_far = cluster_ip(context, &remote.name, "demo/web-remote", family)?;
        let plans = [
            plan("ToR (outside client to lb-local)", outside, address),
            plan("same cluster (pod to web-local)", context.inside(near), local),
            plan("other cluster (pod to web-remote)", context.inside(far), from_far),
        ];
        for plan in plans {
            loads.push(Load::start(context, plan).await?);
        }
    }
    Ok(loads)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What one vantage point saw, with the time from the power cut to the last request that failed.
fn describe(name: &str, report: &LoadReport, off_at: u64) -> String {
    let last = report.last_failure_ms.map(|at| (report.started_unix_ms + at).saturating_sub(off_at));
    match last {
        None => format!("{name}: nothing failed of {} requests", report.sent),
        Some(after) => format!(
            "{name}: {} of {} requests failed {:?}, right again after {:.1} s",
            report.failed,
            report.sent,
            report.errors,
            Duration::from_millis(after).as_secs_f64()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_are_told_from_the_power_cut_on() {
        let report = LoadReport {
            sent: 100,
            failed: 7,
            started_unix_ms: 10_000,
            first_failure_ms: Some(5_200),
            last_failure_ms: Some(9_000),
            ..LoadReport::default()
        };
        assert!(describe("x", &report, 15_000).ends_with("right again after 4.0 s"));
        let whole = LoadReport { sent: 100, ..LoadReport::default() };
        assert_eq!(describe("x", &whole, 0), "x: nothing failed of 100 requests");
    }
}
