//! A node loses its links and its power: what breaks, and how long until traffic is right again, from three vantage
//! points (the ToR, the same cluster, the other cluster).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::load::{self, Load, LoadPlan};
use super::mend::Mend;
use super::{cluster_ip, other, pod_of};
use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::ask;
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::{Context, rows};
use crate::checks::inventory::{Cluster, Inventory, PodFacts};
use crate::checks::poll;
use crate::checks::ready;
use crate::workload::LoadReport;

/// How long it may take until no request fails any more.
const PATIENCE: Duration = Duration::from_secs(150);
/// How long the lab may take to mark the node, and the agents to see it.
const MARK_PATIENCE: Duration = Duration::from_secs(30);
/// How long the pods of the node may take until they are reached again after everything is ready.
const RETURN_PATIENCE: Duration = Duration::from_secs(60);

/// The scene: the node, those who talk to it from elsewhere, and their loads.
struct Scene<'a> {
    context: &'a Context,
    node: &'a str,
    victim: &'a Cluster,
    /// Another node of the same cluster.
    beside: &'a str,
    near: &'a PodFacts,
    far: &'a PodFacts,
    /// The pod that goes with the node.
    lost: &'a PodFacts,
}

/// Loads by what the fault may do to them.
struct Loads {
    /// Fresh connections to services: right again after a while, by another path or backend.
    fresh: Vec<Load>,
    /// Open connections and datagrams to a pod of the node: they end with it.
    lost: Vec<Load>,
    /// Open connections and datagrams that have nothing to do with the node: unharmed.
    others: Vec<Load>,
}

pub(super) async fn off(context: &Context, node: &str) -> CheckResult {
    let scene = Scene::set(context, node)?;
    let mut loads = scene.start_loads().await?;
    let mend = Mend::by(context, "power-on", node);
    let off_at = unix_ms();
    let result = match context.access.verb("power-off", node).await {
        Ok(()) => scene.while_off(&mut loads).await,
        Err(failure) => Err(failure),
    };
    // What the lost ones saw, before the node comes back.
    let lost: Vec<(String, LoadReport)> =
        loads.lost.iter().filter_map(|load| Some((load.name().to_owned(), load.latest()?))).collect();
    mend.now().await?;
    let on_at = unix_ms();
    let fresh = load::stop_all(loads.fresh).await;
    let others = load::stop_all(loads.others).await;
    drop(loads.lost);
    let returned = scene.returned(on_at).await;
    let (marked_after, settled) = result.map_err(|mut failure| {
        let seen = fresh.iter().flatten().map(|(name, report)| describe(name, report, off_at));
        failure.got = format!("{} ({})", failure.got, seen.collect::<Vec<_>>().join("; "));
        failure
    })?;
    let mut notes =
        vec![format!("shown as not ready by its cluster after {:.1} s", marked_after.as_secs_f64())];
    // Until it settled; what the return of the node did is told apart.
    for (report, (name, last)) in settled.iter().zip(fresh?) {
        notes.push(format!(
            "{}; while it came back {} more failed",
            describe(&name, report, off_at),
            last.failed.saturating_sub(report.failed)
        ));
    }
    for (name, report) in &lost {
        notes.push(ended(name, report, off_at)?);
    }
    let others = others?;
    load::unharmed(&others, &format!("between pods elsewhere while {node} is off"))?;
    notes.push(format!("between pods elsewhere nothing failed: {}", load::sum(&others)));
    notes.extend(returned?);
    Ok(notes)
}

impl<'a> Scene<'a> {
    fn set(context: &'a Context, node: &'a str) -> Result<Self, Failure> {
        let victim = context.inventory.cluster_of(node).ok_or_else(|| {
            Failure::new(format!("a cluster with the node {node}"), "none", "the Node manifests")
        })?;
        let remote = other(context, &victim.name)?;
        let beside = victim.nodes.keys().map(String::as_str).find(|name| *name != node).ok_or_else(|| {
            Failure::new(format!("a second node in {}", victim.name), "none", "the Node manifests")
        })?;
        Ok(Self {
            context,
            node,
            victim,
            beside,
            near: pod_of(victim, "client", Some(beside))?,
            far: pod_of(remote, "client", None)?,
            lost: pod_of(victim, "web", Some(node))?,
        })
    }

    /// Waits until the node is marked and every fresh connection is right again; how long the first took, and what
    /// the loads had seen then.
    async fn while_off(&self, loads: &mut Loads) -> Result<(Duration, Vec<LoadReport>), Failure> {
        let (marked, settled) = tokio::join!(
            poll::until(MARK_PATIENCE, || self.marked(false)),
            load::all_settled(&mut loads.fresh, PATIENCE)
        );
        Ok((marked?.1, settled?))
    }

    /// Fails unless the Node's manifest and the other node's agent say that it is ready, or that it is not.
    async fn marked(&self, ready: bool) -> Result<(), Failure> {
        let words = if ready { "ready" } else { "not ready" };
        let inventory = Inventory::read(self.context.access.topology())
            .map_err(|why| Failure::tool("reading the lab's files", why, "the lab's manifests"))?;
        let marked = inventory.cluster_of(self.node).and_then(|cluster| cluster.nodes.get(self.node));
        if marked.is_none_or(|facts| facts.not_ready == ready) {
            let look = self.victim.manifests.display().to_string();
            return Err(Failure::new(
                format!("the manifest of {} says {words}", self.node),
                "it does not",
                look,
            ));
        }
        let place = Place::node(self.beside);
        let argv = ["tombolo", "show", "nodes", "-o", "json"];
        let table: Value = self.context.access.json(&place, &argv, COMMAND_TIMEOUT).await?;
        let field = |row: &Value, key: &str, value: &str| row.get(key).and_then(Value::as_str) == Some(value);
        let row = rows(&table)
            .iter()
            .find(|row| field(row, "name", self.node) && field(row, "source", "manifests"));
        let shown = row.and_then(|row| row.get("ready")).and_then(Value::as_bool);
        if shown == Some(ready) {
            return Ok(());
        }
        let what = format!("{} shows {} as {words}", self.beside, self.node);
        Err(Failure::new(what, format!("ready: {shown:?}"), self.context.access.shown(&place, &argv)))
    }

    /// Waits until the node is back: ready everywhere, and its pod reached from both clusters.
    async fn returned(&self, on_at: u64) -> CheckResult {
        let since = || Duration::from_millis(unix_ms().saturating_sub(on_at)).as_secs_f64();
        let topology = self.context.access.topology();
        ready::wait(&self.context.access, topology, Some(self.context.variant)).await?;
        poll::until(MARK_PATIENCE, || self.marked(true)).await?;
        let mut notes = vec![format!("{} is ready {:.1} s after its return", self.node, since())];
        for (vantage, from) in [("same cluster", self.near), ("other cluster", self.far)] {
            let reached = || async {
                // The pod has another address now; until its kubelet has said so its manifest shows the old one.
                let fresh = Inventory::read(topology)
                    .map_err(|why| Failure::tool("the inventory", why, topology.display().to_string()))?;
                let pod = fresh.pod_by_name(&self.victim.name, &self.lost.key()).cloned().unwrap_or_default();
                if pod.addresses.is_empty() {
                    let what = format!("an address of {} on {}", self.lost.key(), self.node);
                    return Err(Failure::new(what, "none", topology.display().to_string()));
                }
                for address in &pod.addresses {
                    let target = address.to_string();
                    let argv = ["tcp", target.as_str(), "9000", "--count", "4", "--timeout-ms", "1000"];
                    let report = self.context.probe(&self.context.inside(from), &argv).await?;
                    if report.answered != report.sent {
                        let what = format!("{} on {} answers {} again", pod.key(), self.node, from.name);
                        let got = format!("{} of {}", report.answered, report.sent);
                        return Err(Failure::new(what, got, "`tombolo flows` on both nodes"));
                    }
                }
                Ok(())
            };
            poll::until(RETURN_PATIENCE, reached).await?;
            notes.push(format!("{vantage}: its pod is reached again {:.1} s after its return", since()));
        }
        Ok(notes)
    }

    async fn start_loads(&self) -> Result<Loads, Failure> {
        let (mut fresh, mut lost, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for family in Family::BOTH {
            fresh.extend(self.fresh(family).await?);
            lost.extend(self.to_pod(self.lost, family, 1000)?);
            let kept = pod_of(self.victim, "web", Some(self.beside))?;
            others.extend(self.to_pod(kept, family, 4000)?);
        }
        Ok(Loads {
            fresh: load::start_all(self.context, fresh).await?,
            lost: load::start_all(self.context, lost).await?,
            others: load::start_all(self.context, others).await?,
        })
    }

    /// Fresh connections: they show the choice of path and backend.
    async fn fresh(&self, family: Family) -> Result<[LoadPlan; 3], Failure> {
        let context = self.context;
        let service = context.service(&self.victim.name, "demo/lb-local")?;
        let plan = |vantage: &str, place, target| LoadPlan {
            name: format!("{vantage} {family}"),
            place,
            protocol: "http",
            target,
            port: 80,
            connections: 4,
            rate: 20,
            timeout_ms: 500,
            crosses: false,
        };
        let outside = Place::node(ask::client(context)?);
        let address = context.load_balancer(&self.victim.name, service, family).await?;
        let local = cluster_ip(context, &self.victim.name, "demo/web-local", family)?;
        let remote = other(context, &self.victim.name)?;
        let from_far = cluster_ip(context, &remote.name, "demo/web-remote", family)?;
        Ok([
            plan("ToR (outside client to lb-local)", outside, address),
            plan("same cluster (pod to web-local)", context.inside(self.near), local),
            plan("other cluster (pod to web-remote)", context.inside(self.far), from_far),
        ])
    }

    /// Open connections and datagrams to a pod's own address, from both clusters.
    fn to_pod(&self, to: &PodFacts, family: Family, timeout_ms: u32) -> Result<Vec<LoadPlan>, Failure> {
        let target = self.context.pod_address(to, family)?;
        let mut plans = Vec::new();
        for (vantage, from) in [("same cluster", self.near), ("other cluster", self.far)] {
            for (what, protocol, port) in [("open connections", "tcp", 9000), ("datagrams", "udp", 9001)] {
                plans.push(LoadPlan {
                    name: format!("{vantage} ({what} to {} on {}) {family}", to.name, to.node),
                    place: self.context.inside(from),
                    protocol,
                    target,
                    port,
                    connections: 4,
                    rate: 20,
                    timeout_ms,
                    crosses: from.node != to.node,
                });
            }
        }
        Ok(plans)
    }
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

/// What became of a load to a pod of the node.
///
/// # Errors
/// When it did not end: then the node was not off.
fn ended(name: &str, report: &LoadReport, off_at: u64) -> Result<String, Failure> {
    if report.failed == 0 {
        let got = format!("{} requests, none failed", report.sent);
        return Err(Failure::new(format!("{name} end with the node"), got, "`tombolo lab inspect`"));
    }
    let last = report.last_answer_ms.map_or(0, |at| (report.started_unix_ms + at).saturating_sub(off_at));
    Ok(format!(
        "{name}: the last answer {:.1} s after the cut, then {} requests failed {:?}, {} of {} connections broke; not right before the node is back",
        Duration::from_millis(last).as_secs_f64(),
        report.failed,
        report.errors,
        report.broken_connections,
        report.connections
    ))
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
            last_answer_ms: Some(5_100),
            ..LoadReport::default()
        };
        assert!(describe("x", &report, 15_000).ends_with("right again after 4.0 s"));
        assert!(ended("x", &report, 15_000).expect("ended").contains("the last answer 0.1 s after the cut"));
        let whole = LoadReport { sent: 100, ..LoadReport::default() };
        assert_eq!(describe("x", &whole, 0), "x: nothing failed of 100 requests");
        assert!(ended("x", &whole, 0).is_err(), "a load to a pod of a dead node cannot go on");
    }
}
