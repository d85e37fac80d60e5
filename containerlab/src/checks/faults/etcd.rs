//! A cluster's etcd is away, or comes back empty: traffic goes on and nothing known is taken away.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::load::{self, Load, LoadPlan};
use super::watch;
use super::{cluster_ip, first_node, other, pod_of};
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

/// The scene of both faults: whose etcd, who watches, what was known.
struct Scene<'a> {
    context: &'a Context,
    victim: &'a Cluster,
    observer: &'a str,
    known: BTreeSet<IpAddr>,
    etcd_id: Option<String>,
}

impl<'a> Scene<'a> {
    async fn set(context: &'a Context, cluster: &str) -> Result<Self, Failure> {
        let victim = context.cluster(cluster)?;
        let observer = first_node(other(context, cluster)?)?;
        let known = watch::known_pods(context, observer, victim).await?;
        let etcd_id = watch::remote(context, observer, cluster).await?.etcd_id;
        Ok(Self { context, victim, observer, known, etcd_id })
    }

    async fn nothing_gone(&self) -> Result<(), Failure> {
        watch::still_known(self.context, self.observer, self.victim, &self.known).await
    }

    async fn stop(&self) -> Result<(), Failure> {
        self.context.access.verb("stop-cmd", &self.victim.etcd).await
    }

    async fn start(&self) -> Result<(), Failure> {
        self.context.access.verb("start-cmd", &self.victim.etcd).await
    }

    fn look(&self) -> String {
        self.context.access.shown(&Place::node(self.observer), &["tombolo", "mesh", "status"])
    }

    /// Traffic between the clusters, both ways, by address and by global service.
    async fn loads(&self) -> Result<Vec<Load>, Failure> {
        let context = self.context;
        let remote = other(context, &self.victim.name)?;
        let mut loads = Vec::new();
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
                };
                let address = context.pod_address(web, family)?;
                let service = cluster_ip(context, &from.name, "demo/web-remote", family)?;
                loads.push(Load::start(context, plan("tcp", address, 9000)).await?);
                loads.push(Load::start(context, plan("http", service, 80)).await?);
            }
        }
        Ok(loads)
    }

    /// Waits until the observer is in sync again, and fails as soon as it loses an entry.
    async fn resync(&self, patience: Duration, wiped: bool) -> Result<Duration, Failure> {
        let (gone, took) = poll::until(patience, || async {
            if let Err(gone) = self.nothing_gone().await {
                return Ok(Some(gone));
            }
            let remote = watch::remote(self.context, self.observer, &self.victim.name).await?;
            let what = format!("{} is in sync with {} again", self.observer, self.victim.name);
            if !remote.ready || !remote.connected || remote.stale_secs.is_some_and(|secs| secs > 0) {
                return Err(Failure::new(what, remote.status, self.look()));
            }
            if wiped && self.etcd_id.is_some() && remote.etcd_id == self.etcd_id {
                return Err(Failure::new(what, "it still shows the etcd from before the wipe", self.look()));
            }
            for node in self.victim.nodes.keys() {
                ready::agent(&self.context.access, node).await?;
            }
            Ok(None)
        })
        .await?;
        gone.map_or(Ok(took), Err)
    }

    /// While etcd is away: shown as stale in time, and every entry kept until the time is over.
    async fn while_away(&self) -> Result<Duration, Failure> {
        let stopped_at = Instant::now();
        let (_, stale_after) = poll::until(STALE_PATIENCE.min(self.context.etcd_down), || async {
            let remote = watch::remote(self.context, self.observer, &self.victim.name).await?;
            if remote.stale_secs.is_some() || !remote.connected {
                return Ok(());
            }
            let what = format!("{} shows {} as stale", self.observer, self.victim.name);
            Err(Failure::new(what, remote.status, self.look()))
        })
        .await?;
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        while stopped_at.elapsed() < self.context.etcd_down {
            ticks.tick().await;
            self.nothing_gone().await?;
        }
        Ok(stale_after)
    }
}

pub(super) async fn stopped(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    scene.stop().await?;
    let away = scene.while_away().await;
    scene.start().await?;
    let stale_after = away?;
    let took = scene.resync(RESYNC_PATIENCE, false).await?;
    let reports = load::stop_all(loads).await?;
    load::unharmed(&reports, &format!("while the etcd of {cluster} is stopped"))?;
    Ok(vec![
        format!("shown as stale after {:.1} s", stale_after.as_secs_f64()),
        format!("in sync {:.1} s after its return, nothing taken away", took.as_secs_f64()),
        load::sum(&reports),
    ])
}

pub(super) async fn wiped(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    scene.stop().await?;
    let wiped = context.access.verb("wipe", &scene.victim.etcd).await;
    scene.start().await?;
    wiped?;
    let took = scene.resync(REPUBLISH_PATIENCE, true).await?;
    let reports = load::stop_all(loads).await?;
    load::unharmed(&reports, &format!("while the etcd of {cluster} is wiped and republished"))?;
    Ok(vec![
        format!(
            "published and in sync again after {:.1} s, nothing deleted at the peers",
            took.as_secs_f64()
        ),
        load::sum(&reports),
    ])
}
