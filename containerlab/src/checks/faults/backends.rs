//! Backends go: the global service answers from the other cluster, and an address without a local endpoint is
//! withdrawn.

use std::collections::BTreeSet;
use std::time::Duration;

use super::load::{self, LoadPlan};
use super::mend::Away;
use super::{cluster_ip, other, pod_of};
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::inventory::{Cluster, PodFacts};
use crate::checks::poll;
use crate::checks::ready;
use crate::checks::routers;
use crate::workload::LoadReport;

/// How long a change of pods may take to reach services, peers and routers.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn deleted(context: &Context, cluster: &str) -> CheckResult {
    let home = context.cluster(cluster)?;
    let remote = other(context, cluster)?;
    let service = context.service(cluster, "demo/web")?;
    let backends: Vec<&PodFacts> = home.backends(service).collect();
    let client = pod_of(home, "client", None)?;
    let mut plans = Vec::new();
    for family in Family::BOTH {
        let plan = LoadPlan {
            name: format!("http {} in {cluster} -> web {family}", client.name),
            place: context.inside(client),
            protocol: "http",
            target: cluster_ip(context, cluster, "demo/web", family)?,
            port: 80,
            connections: 4,
            rate: 20,
            timeout_ms: 1000,
            crosses: false,
        };
        plans.push(plan);
    }
    let mut loads = load::start_all(context, plans).await?;
    let away = Away::take(backends.iter().map(|pod| pod.file.as_path()))?;
    let moved = answered_by(context, client, cluster, &remote.name).await;
    let settled = load::all_settled(&mut loads, PATIENCE).await;
    away.restore()?;
    let moved = moved?;
    settled?;
    ready::wait(&context.access, context.access.topology(), Some(context.variant)).await?;
    let (back, _) = (answered_by(context, client, cluster, cluster).await?, ());
    let reports = load::stop_all(loads).await?;
    let mut notes = vec![
        format!("only {} answers after {:.1} s", remote.name, moved.as_secs_f64()),
        format!("{cluster} answers again after {:.1} s", back.as_secs_f64()),
    ];
    notes.extend(reports.iter().map(counted));
    Ok(notes)
}

fn counted((name, report): &(String, LoadReport)) -> String {
    format!("{name}: {} of {} requests failed {:?}", report.failed, report.sent, report.errors)
}

/// Waits until a burst to the global service is answered whole: by `wanted` alone when it is the other cluster, by
/// it among others when it is the asker's own.
async fn answered_by(
    context: &Context,
    client: &PodFacts,
    cluster: &str,
    wanted: &str,
) -> Result<Duration, Failure> {
    let mut targets = Vec::new();
    for family in Family::BOTH {
        targets.push(cluster_ip(context, cluster, "demo/web", family)?);
    }
    let place = context.inside(client);
    let (_, took) = poll::until(PATIENCE, || async {
        for target in &targets {
            let url = match target {
                std::net::IpAddr::V4(address) => format!("http://{address}/"),
                std::net::IpAddr::V6(address) => format!("http://[{address}]/"),
            };
            let argv = ["http", &url, "--count", "24", "--parallel", "4", "--timeout-ms", "1000"];
            let report = context.probe(&place, &argv).await?;
            let by: BTreeSet<&str> = report.answers().map(|answer| answer.whoami.cluster.as_str()).collect();
            let right = if wanted == cluster { by.contains(wanted) } else { by == BTreeSet::from([wanted]) };
            if report.answered != report.sent || !right {
                let got = format!("{} of {} answered, by {by:?}", report.answered, report.sent);
                let look = "`tombolo show frontends` and `tombolo show slices` in both clusters";
                return Err(Failure::new(format!("global service web answers from {wanted}"), got, look));
            }
        }
        Ok(())
    })
    .await?;
    Ok(took)
}

pub(super) async fn local_endpoints_gone(context: &Context, cluster: &str) -> CheckResult {
    let home = context.cluster(cluster)?;
    let service = context.service(cluster, "demo/lb-local")?;
    let backends: Vec<&PodFacts> = home.backends(service).collect();
    let nodes: Vec<String> = home.advertisers(service).into_iter().collect();
    let mut notes = Vec::new();
    let mut taken = Vec::new();
    let mut result = Ok(());
    for (position, node) in nodes.iter().enumerate() {
        let there: Vec<&PodFacts> = backends.iter().copied().filter(|pod| pod.node == *node).collect();
        match Away::take(there.iter().map(|pod| pod.file.as_path())) {
            Ok(away) => taken.push(away),
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
        let left: BTreeSet<String> = nodes.iter().skip(position + 1).cloned().collect();
        match withdrawn(context, home, &left).await {
            Ok(took) => {
                let left = if left.is_empty() { "nobody".to_owned() } else { format!("{left:?}") };
                notes.push(format!(
                    "advertised by {left} {:.1} s after {node} lost its last",
                    took.as_secs_f64()
                ));
            }
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    // One that cannot be restored must not keep the others from it.
    let restored: Vec<Result<(), Failure>> = taken.into_iter().map(Away::restore).collect();
    restored.into_iter().collect::<Result<(), Failure>>()?;
    ready::wait(&context.access, context.access.topology(), Some(context.variant)).await?;
    result?;
    let all: BTreeSet<String> = nodes.into_iter().collect();
    let took = withdrawn(context, home, &all).await?;
    notes.push(format!("advertised by all again {:.1} s after the pods are ready", took.as_secs_f64()));
    Ok(notes)
}

/// Waits until the routers hold the Local service's addresses with exactly the given nodes behind them.
async fn withdrawn(
    context: &Context,
    home: &Cluster,
    advertisers: &BTreeSet<String>,
) -> Result<Duration, Failure> {
    let service = context.service(&home.name, "demo/lb-local")?;
    let (_, took) = poll::until(PATIENCE, || async {
        for router in context.inventory.routers.keys() {
            for family in Family::BOTH {
                let address = context.load_balancer(&home.name, service, family).await?;
                let prefix = ipnet::IpNet::from(address);
                let before = routers::expected(context, router, family).await?;
                let mut expected = before.clone();
                let own = context.inventory.routers.get(router).and_then(|facts| facts.cluster.as_ref())
                    == Some(&home.name);
                if advertisers.is_empty() {
                    expected.remove(&prefix);
                } else if own {
                    let nodes = advertisers.iter().filter_map(|node| home.nodes.get(node));
                    let hops = nodes.filter_map(|node| node.underlay(family)).collect();
                    expected.insert(prefix, hops);
                }
                routers::compare(context, router, family, &expected).await?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(took)
}
