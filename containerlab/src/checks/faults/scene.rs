//! The scene of faults of a cluster's etcd: whose it is, what every node of the other clusters knew of it, and traffic between all
//! clusters beside it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::known::{self, Known, Remote};
use super::load::{self, Load, LoadPlan};
use super::mend::Away;
use super::{cluster_ip, pod_of};
use crate::checks::access::Place;
use crate::checks::check::{Failure, Family};
use crate::checks::context::Context;
use crate::checks::inventory::Cluster;
use crate::checks::poll;
use crate::checks::ready;

/// How long the peers may take to show a dead etcd as stale.
const STALE_PATIENCE: Duration = Duration::from_secs(45);
/// How long they may take to be in sync again.
pub(super) const RESYNC_PATIENCE: Duration = Duration::from_secs(90);
/// How long traffic may take to be right afterwards, and an entry to reach the peers.
pub(super) const SETTLE: Duration = Duration::from_secs(45);
/// The service that is changed while etcd is away.
const CHANGED: &str = "demo/web";

/// Long-lived connections between clusters, of all loads together.
const CONNECTIONS: usize = 100;

/// Which etcd must answer after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Etcd {
    /// The one from before.
    Same,
    /// One with another id: its data was lost, or replaced.
    Another,
}

/// Whose etcd, and what every node of the other clusters knew of it.
pub(super) struct Scene<'a> {
    pub context: &'a Context,
    pub victim: &'a Cluster,
    pub known: Known,
}

impl<'a> Scene<'a> {
    pub(super) async fn set(context: &'a Context, cluster: &str) -> Result<Self, Failure> {
        let victim = context.cluster(cluster)?;
        let known = Known::read(context, victim).await?;
        let scene = Self { context, victim, known };
        for node in scene.known.nodes() {
            if scene.etcd_before(node).is_none() {
                let what = format!("{node} shows the id of the etcd of {cluster}");
                return Err(Failure::new(what, "none", scene.look(node)));
            }
        }
        Ok(scene)
    }

    fn etcd_before(&self, node: &str) -> Option<&str> {
        self.known.remote(node).and_then(|remote| remote.etcd_id.as_deref())
    }

    pub(super) fn look(&self, node: &str) -> String {
        self.context.access.shown(&Place::node(node), &["tombolo", "mesh", "status"])
    }

    pub(super) async fn remote(&self, node: &str) -> Result<Remote, Failure> {
        known::remote(self.context, node, &self.victim.name).await
    }

    pub(super) async fn unchanged(&self) -> Result<(), Failure> {
        self.known.unchanged(&Known::read(self.context, self.victim).await?, self.context)
    }

    /// Traffic between all clusters, both ways, by address over long-lived connections and by global service.
    pub(super) async fn loads(&self) -> Result<Vec<Load>, Failure> {
        loads_between(self.context, &self.context.inventory.clusters.values().collect::<Vec<_>>()).await
    }

    /// Waits until every node of the other clusters is in sync again, with the etcd that is to be.
    pub(super) async fn resync(&self, patience: Duration, etcd: Etcd) -> Result<Duration, Failure> {
        let (_, took) = poll::until(patience, || async {
            for node in self.known.nodes() {
                self.in_sync(node, &self.remote(node).await?, etcd)?;
            }
            for node in self.victim.nodes.keys() {
                ready::agent(&self.context.access, node).await?;
            }
            Ok(())
        })
        .await?;
        Ok(took)
    }

    fn in_sync(&self, node: &str, remote: &Remote, etcd: Etcd) -> Result<(), Failure> {
        let wrong = |got: &str| {
            let what = format!("{node} is in sync with {} again", self.victim.name);
            Failure::new(what, got, self.look(node))
        };
        if !remote.ready || !remote.connected || remote.stale_secs.is_some() {
            return Err(wrong(&remote.status));
        }
        let same = match remote.etcd_id.as_deref() {
            None => return Err(wrong("it shows no id of its etcd")),
            id => id == self.etcd_before(node),
        };
        match (same, etcd) {
            (true, Etcd::Another) => Err(wrong("it still shows the etcd from before")),
            (false, Etcd::Same) => Err(wrong("it shows another etcd than before")),
            _ => Ok(()),
        }
    }

    /// The age of what a node knows, if it shows the cluster as lost.
    async fn stale(&self, node: &str) -> Result<u64, Failure> {
        let remote = self.remote(node).await?;
        match remote.stale_secs {
            Some(secs) if !remote.connected && !remote.ready => Ok(secs),
            _ => {
                let what = format!("{node} shows {} as stale", self.victim.name);
                let got = format!("stale-secs {:?}, {}", remote.stale_secs, remote.status);
                Err(Failure::new(what, got, self.look(node)))
            }
        }
    }

    /// Waits until every node of the other clusters shows the cluster as lost; the ages they tell, and how long that took.
    pub(super) async fn lost(&self, patience: Duration) -> Result<(Vec<u64>, Duration), Failure> {
        poll::until(patience, || async {
            let mut all = Vec::new();
            for node in self.known.nodes() {
                all.push(self.stale(node).await?);
            }
            Ok(all)
        })
        .await
    }

    /// While etcd is away: shown as stale by every node in time and from then on, and every entry kept.
    pub(super) async fn while_away(&self) -> Result<Duration, Failure> {
        let stopped_at = Instant::now();
        let (first, stale_after) = self.lost(STALE_PATIENCE.min(self.context.etcd_down)).await?;
        let shown_at = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        while stopped_at.elapsed() < self.context.etcd_down {
            ticks.tick().await;
            self.unchanged().await?;
        }
        for (node, before) in self.known.nodes().zip(first) {
            let grown = shown_at.elapsed().as_secs();
            let now = self.stale(node).await?;
            // Both ages are cut to whole seconds.
            if now + 1 < before + grown {
                let what = format!("the age of {} at {node} grows with the time", self.victim.name);
                let got = format!("{before} s, then {now} s after {grown} s more");
                return Err(Failure::new(what, got, self.look(node)));
            }
        }
        Ok(stale_after)
    }

    /// Waits until every node of the other clusters has applied `upserts` changes since the beginning, and fails
    /// when one has applied more, or any deletion.
    pub(super) async fn applied(&self, upserts: u64) -> Result<(), Failure> {
        let wanted = || async {
            let now = Known::read(self.context, self.victim).await?;
            self.known.applied_since(&now, upserts, self.context)
        };
        poll::until(SETTLE, wanted).await?;
        Ok(())
    }

    /// The end of every fault: traffic is right again, nothing of it was lost, and nothing of what is known went. Returns the loads'
    /// account in one line.
    pub(super) async fn unharmed(&self, mut loads: Vec<Load>, during: &str) -> Result<String, Failure> {
        load::all_settled(&mut loads, SETTLE).await?;
        let reports = load::stop_all(loads).await?;
        // After everything has come to rest: nothing may go late either.
        self.unchanged().await?;
        load::unharmed(&reports, during)?;
        Ok(load::sum(&reports))
    }

    /// For as long as faults of etcd last: nothing of what is known goes.
    pub(super) async fn hold(&self) -> Result<(), Failure> {
        let began = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        while began.elapsed() < self.context.etcd_down {
            ticks.tick().await;
            self.unchanged().await?;
        }
        Ok(())
    }

    /// Another label on a shared service of the victim: it is published, and changes nothing of the traffic.
    pub(super) fn change(&self) -> Result<Away, Failure> {
        Away::change(&self.context.service(&self.victim.name, CHANGED)?.file, relabel)
    }
}

/// Loads between each two of these clusters, both ways.
pub(super) async fn loads_between(context: &Context, clusters: &[&Cluster]) -> Result<Vec<Load>, Failure> {
    let pairs: Vec<(&Cluster, &Cluster)> = clusters
        .iter()
        .flat_map(|from| clusters.iter().map(move |to| (*from, *to)))
        .filter(|(from, to)| from.name != to.name)
        .collect();
    let connections = CONNECTIONS.div_ceil((pairs.len() * Family::BOTH.len()).max(1));
    let connections = u32::try_from(connections).unwrap_or(u32::MAX);
    let mut plans = Vec::new();
    for family in Family::BOTH {
        for (from, to) in &pairs {
            let (client, web) = (pod_of(from, "client", None)?, pod_of(to, "web", None)?);
            let plan = |protocol, target, port, connections| LoadPlan {
                name: format!("{protocol} {} -> {} {family}", from.name, to.name),
                place: context.inside(client),
                protocol,
                target,
                port,
                connections,
                rate: 10,
                timeout_ms: 4000,
                crosses: true,
            };
            let address = context.pod_address(web, family)?;
            let service = cluster_ip(context, &from.name, "demo/web-remote", family)?;
            plans.push(plan("tcp", address, 9000, connections));
            plans.push(plan("http", service, 80, 4));
        }
    }
    load::start_all(context, plans).await
}

/// Another label on a shared service: it is published, and changes nothing of the traffic.
fn relabel(service: &mut Value) {
    let Some(metadata) = service.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("tombolo.io/changed-during-outage".to_owned(), json!("yes"));
    }
}
