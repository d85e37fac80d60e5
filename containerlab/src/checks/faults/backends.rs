//! Backends go: the global service answers from the other cluster, and an address without a local endpoint is
//! withdrawn.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::load::{self, Load, LoadPlan};
use super::{cluster_ip, other, pod_of};
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::inventory::{self, Cluster, PodFacts};
use crate::checks::poll;
use crate::checks::ready;
use crate::checks::routers;
use crate::workload::LoadReport;

/// How long a change of pods may take to reach services, peers and routers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Manifests taken out of a cluster's folder; put back by [`Away::restore`].
struct Away {
    files: Vec<(PathBuf, String)>,
}

impl Away {
    fn take(pods: &[&PodFacts]) -> Result<Self, Failure> {
        let mut away = Self { files: Vec::new() };
        let paths: BTreeSet<&Path> = pods.iter().map(|pod| pod.file.as_path()).collect();
        for path in paths {
            let failed = |error: std::io::Error| {
                Failure::tool("deleting a manifest", error, path.display().to_string())
            };
            let text = std::fs::read_to_string(path).map_err(failed)?;
            std::fs::remove_file(path).map_err(failed)?;
            away.files.push((path.to_owned(), text));
        }
        Ok(away)
    }

    /// Writes the manifests again, without the status of the pods that are gone, by rename: no reader sees half.
    fn restore(self) -> Result<(), Failure> {
        for (path, text) in self.files {
            let failed = |why: String| Failure::tool("restoring a manifest", why, path.display().to_string());
            let documents = inventory::documents(&text).map_err(failed)?;
            let fresh: Vec<String> = documents.into_iter().map(without_status).collect();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let hidden = path.with_file_name(format!(".{name}.new"));
            std::fs::write(&hidden, fresh.join("\n---\n")).map_err(|error| failed(error.to_string()))?;
            std::fs::rename(&hidden, &path).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }
}

/// A document without its status; JSON, which is YAML.
fn without_status(mut document: Value) -> String {
    if let Some(fields) = document.as_object_mut() {
        fields.remove("status");
    }
    document.to_string()
}

pub(super) async fn deleted(context: &Context, cluster: &str) -> CheckResult {
    let home = context.cluster(cluster)?;
    let remote = other(context, cluster)?;
    let service = context.service(cluster, "demo/web")?;
    let backends: Vec<&PodFacts> = home.backends(service).collect();
    let client = pod_of(home, "client", None)?;
    let mut loads = Vec::new();
    for family in Family::BOTH {
        let plan = LoadPlan {
            name: format!("http {} in {cluster} -> web {family}", client.name),
            place: context.inside(client),
            protocol: "http",
            target: cluster_ip(context, cluster, "demo/web", family)?,
            port: 80,
            rate: 20,
            timeout_ms: 1000,
        };
        loads.push(Load::start(context, plan).await?);
    }
    let away = Away::take(&backends)?;
    let moved = answered_by(context, client, cluster, &remote.name).await;
    let settled = settle(&mut loads).await;
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

async fn settle(loads: &mut [Load]) -> Result<(), Failure> {
    for load in loads {
        load.settled(PATIENCE).await?;
    }
    Ok(())
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
        match Away::take(&there) {
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
    for away in taken {
        away.restore()?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_leave_and_come_back_without_status() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pod-demo-web-1.yaml");
        let text = "kind: Pod\nmetadata: {name: web-1}\nstatus: {podIPs: [{ip: 10.1.1.9}]}\n";
        std::fs::write(&file, text).expect("written");
        let pod = PodFacts { file: file.clone(), ..PodFacts::default() };
        let away = Away::take(&[&pod, &pod]).expect("taken once");
        assert!(!file.exists());
        away.restore().expect("restored");
        let back = inventory::documents(&std::fs::read_to_string(&file).expect("there")).expect("YAML");
        assert_eq!(back.len(), 1);
        assert_eq!(back[0]["metadata"]["name"], "web-1");
        assert!(back[0].get("status").is_none());
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "no hidden file is left");
    }
}
