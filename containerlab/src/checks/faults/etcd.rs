//! A cluster's etcd is away, or comes back empty: traffic goes on and nothing known is taken away.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::known::{self, Known, Remote};
use super::load::{self, Load, LoadPlan};
use super::mend::{Away, Mend};
use super::{cluster_ip, other, pod_of};
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::inventory::Cluster;
use crate::checks::poll;
use crate::checks::ready;

/// How long the peers may take to show a dead etcd as stale.
const STALE_PATIENCE: Duration = Duration::from_secs(45);
/// How long they may take to be in sync again.
const RESYNC_PATIENCE: Duration = Duration::from_secs(90);
/// The same after a wipe, where peers wait for everything to be published again.
const REPUBLISH_PATIENCE: Duration = Duration::from_secs(180);
/// How long traffic may take to be right afterwards, and an entry to reach the peers.
const SETTLE: Duration = Duration::from_secs(45);
/// The service that is changed while etcd is away.
const CHANGED: &str = "demo/web";

/// The scene of both faults: whose etcd, and what every node of the other clusters knew of it.
struct Scene<'a> {
    context: &'a Context,
    victim: &'a Cluster,
    known: Known,
}

impl<'a> Scene<'a> {
    async fn set(context: &'a Context, cluster: &str) -> Result<Self, Failure> {
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

    fn look(&self, node: &str) -> String {
        self.context.access.shown(&Place::node(node), &["tombolo", "mesh", "status"])
    }

    async fn remote(&self, node: &str) -> Result<Remote, Failure> {
        known::remote(self.context, node, &self.victim.name).await
    }

    async fn unchanged(&self) -> Result<(), Failure> {
        self.known.unchanged(&Known::read(self.context, self.victim).await?, self.context)
    }

    /// Traffic between the clusters, both ways, by address and by global service.
    async fn loads(&self) -> Result<Vec<Load>, Failure> {
        let context = self.context;
        let remote = other(context, &self.victim.name)?;
        let mut plans = Vec::new();
        for family in Family::BOTH {
            for (from, to) in [(self.victim, remote), (remote, self.victim)] {
                let (client, web) = (pod_of(from, "client", None)?, pod_of(to, "web", None)?);
                let plan = |protocol, target, port| LoadPlan {
                    name: format!("{protocol} {} -> {} {family}", from.name, to.name),
                    place: context.inside(client),
                    protocol,
                    target,
                    port,
                    rate: 10,
                    timeout_ms: 4000,
                    crosses: true,
                };
                let address = context.pod_address(web, family)?;
                let service = cluster_ip(context, &from.name, "demo/web-remote", family)?;
                plans.push(plan("tcp", address, 9000));
                plans.push(plan("http", service, 80));
            }
        }
        load::start_all(context, plans).await
    }

    /// Waits until every node of the other clusters is in sync again, with the same etcd or (`wiped`) another one.
    async fn resync(&self, patience: Duration, wiped: bool) -> Result<Duration, Failure> {
        let (_, took) = poll::until(patience, || async {
            for node in self.known.nodes() {
                self.in_sync(node, &self.remote(node).await?, wiped)?;
            }
            for node in self.victim.nodes.keys() {
                ready::agent(&self.context.access, node).await?;
            }
            Ok(())
        })
        .await?;
        Ok(took)
    }

    fn in_sync(&self, node: &str, remote: &Remote, wiped: bool) -> Result<(), Failure> {
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
        match (same, wiped) {
            (true, true) => Err(wrong("it still shows the etcd from before the wipe")),
            (false, false) => Err(wrong("it shows another etcd than before the stop")),
            _ => Ok(()),
        }
    }

    /// While etcd is away: shown as stale by every node in time and from then on, and every entry kept.
    async fn while_away(&self) -> Result<Duration, Failure> {
        let stopped_at = Instant::now();
        let stale = |node: &str, remote: &Remote| match remote.stale_secs {
            Some(secs) if !remote.connected && !remote.ready => Ok(secs),
            _ => {
                let what = format!("{node} shows {} as stale", self.victim.name);
                let got = format!("stale-secs {:?}, {}", remote.stale_secs, remote.status);
                Err(Failure::new(what, got, self.look(node)))
            }
        };
        let patience = STALE_PATIENCE.min(self.context.etcd_down);
        let (first, stale_after) = poll::until(patience, || async {
            let mut all = Vec::new();
            for node in self.known.nodes() {
                all.push(stale(node, &self.remote(node).await?)?);
            }
            Ok(all)
        })
        .await?;
        let shown_at = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        while stopped_at.elapsed() < self.context.etcd_down {
            ticks.tick().await;
            self.unchanged().await?;
        }
        for (node, before) in self.known.nodes().zip(first) {
            let grown = shown_at.elapsed().as_secs();
            let now = stale(node, &self.remote(node).await?)?;
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
    async fn applied(&self, upserts: u64) -> Result<(), Failure> {
        let wanted = || async {
            let now = Known::read(self.context, self.victim).await?;
            self.known.applied_since(&now, upserts, self.context)
        };
        poll::until(SETTLE, wanted).await?;
        Ok(())
    }
}

/// Another label on a shared service: it is published, and changes nothing of the traffic.
fn relabel(service: &mut Value) {
    let Some(metadata) = service.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert("tombolo.io/changed-during-outage".to_owned(), json!("yes"));
    }
}

pub(super) async fn stopped(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let mut loads = scene.loads().await?;
    let mend = Mend::by(context, "start-cmd", &scene.victim.etcd);
    context.access.verb("stop-cmd", &scene.victim.etcd).await?;
    let changed = Away::change(&context.service(cluster, CHANGED)?.file, relabel)?;
    let stale_after = scene.while_away().await?;
    mend.now().await?;
    let took = scene.resync(RESYNC_PATIENCE, false).await?;
    load::all_settled(&mut loads, SETTLE).await?;
    scene.applied(1).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let reports = load::stop_all(loads).await?;
    // Once more after everything has come to rest: nothing may go late either.
    scene.applied(2).await?;
    scene.unchanged().await?;
    load::unharmed(&reports, &format!("while the etcd of {cluster} is stopped"))?;
    Ok(vec![
        format!("shown as stale by every peer after {:.1} s", stale_after.as_secs_f64()),
        format!(
            "in sync {:.1} s after its return: of {} entries at the peers the one that had changed was applied, none deleted",
            took.as_secs_f64(),
            scene.known.count()
        ),
        load::sum(&reports),
    ])
}

pub(super) async fn wiped(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let mut loads = scene.loads().await?;
    let mend = Mend::by(context, "start-cmd", &scene.victim.etcd);
    context.access.verb("stop-cmd", &scene.victim.etcd).await?;
    context.access.verb("wipe", &scene.victim.etcd).await?;
    mend.now().await?;
    let took = scene.resync(REPUBLISH_PATIENCE, true).await?;
    load::all_settled(&mut loads, SETTLE).await?;
    let reports = load::stop_all(loads).await?;
    scene.unchanged().await?;
    load::unharmed(&reports, &format!("while the etcd of {cluster} is wiped and republished"))?;
    Ok(vec![
        format!(
            "published and in sync again after {:.1} s, all {} entries as before and none deleted at the peers",
            took.as_secs_f64(),
            scene.known.count()
        ),
        load::sum(&reports),
    ])
}
