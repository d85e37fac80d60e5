//! SIGKILL to an agent under load: pinned programs and BGP graceful restart must carry everything through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::load::{self, Load, LoadPlan};
use super::watch::{self, FibWatch};
use super::{first_node, other, pod_of};
use crate::checks::access::Place;
use crate::checks::ask;
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::inventory::{Cluster, PodFacts};
use crate::checks::poll;
use crate::checks::ready;
use crate::checks::routers::{self, Routes};

/// How long a killed agent may take until it is ready again.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long traffic must stay right after that.
const SETTLE: Duration = Duration::from_secs(30);

/// What was there before the agent was killed.
struct Before<'a> {
    victim: &'a Cluster,
    observer: &'a str,
    pods: BTreeSet<IpAddr>,
    routes: BTreeMap<(String, Family), Routes>,
}

pub(super) async fn killed(context: &Context, node: &str) -> CheckResult {
    let victim = context.inventory.cluster_of(node).ok_or_else(|| {
        Failure::new(format!("a cluster with the node {node}"), "none", "the Node manifests")
    })?;
    let remote = other(context, &victim.name)?;
    let observer = first_node(remote)?;
    let before = Before {
        victim,
        observer,
        pods: watch::known_pods(context, observer, victim).await?,
        routes: routes(context).await?,
    };
    let watches = start_watches(context)?;
    let mut loads = start_loads(context, victim, remote, node).await?;
    let killed_at = Instant::now();
    context.access.verb("kill-agent", node).await?;
    // What must never be gone ends the wait at once; what must come back is waited for.
    let (gone, took) = poll::until(PATIENCE, || async {
        if let Err(gone) = before.nothing_gone(context).await {
            return Ok(Some(gone));
        }
        let status = ready::agent(&context.access, node).await?;
        if status.uptime_secs > killed_at.elapsed().as_secs() {
            let look = context.access.shown(&Place::node(node), &["tombolo", "status"]);
            return Err(Failure::new("a restarted agent", "the agent from before the kill", look));
        }
        Ok(None)
    })
    .await?;
    if let Some(gone) = gone {
        return Err(gone);
    }
    for load in &mut loads {
        load.settled(SETTLE).await?;
    }
    before.nothing_gone(context).await?;
    let reports = load::stop_all(loads).await?;
    for watch in &watches {
        for expected in before.routes.values() {
            watch.judge(expected)?;
        }
    }
    load::unharmed(&reports, &format!("while the agent of {node} is killed and restarted"))?;
    Ok(vec![format!("ready again after {:.1} s", took.as_secs_f64()), load::sum(&reports)])
}

impl Before<'_> {
    async fn nothing_gone(&self, context: &Context) -> Result<(), Failure> {
        for ((router, family), expected) in &self.routes {
            watch::still_in_rib(context, router, *family, expected).await?;
        }
        watch::still_known(context, self.observer, self.victim, &self.pods).await
    }
}

async fn routes(context: &Context) -> Result<BTreeMap<(String, Family), Routes>, Failure> {
    let mut all = BTreeMap::new();
    for name in tors(context) {
        for family in Family::BOTH {
            let expected = routers::expected(context, name, family).await?;
            all.insert((name.to_owned(), family), expected);
        }
    }
    Ok(all)
}

fn tors(context: &Context) -> impl Iterator<Item = &str> {
    let tors = context.inventory.routers.iter().filter(|(_, router)| router.cluster.is_some());
    tors.map(|(name, _)| name.as_str())
}

fn start_watches(context: &Context) -> Result<Vec<FibWatch>, Failure> {
    tors(context).map(|name| FibWatch::start(context, name)).collect()
}

async fn start_loads(
    context: &Context,
    victim: &Cluster,
    remote: &Cluster,
    node: &str,
) -> Result<Vec<Load>, Failure> {
    let beside = victim.nodes.keys().find(|name| name.as_str() != node).map(String::as_str);
    let own_web = pod_of(victim, "web", Some(node))?;
    let own_client = pod_of(victim, "client", Some(node))?;
    let near = pod_of(victim, "client", beside)?;
    let far = pod_of(remote, "client", None)?;
    let far_web = pod_of(remote, "web", None)?;
    let service = context.service(&victim.name, "demo/lb-local")?;
    let outside = Place::node(ask::client(context)?);
    let mut loads = Vec::new();
    for family in Family::BOTH {
        let pair = |protocol, port, from: &PodFacts, to: &PodFacts| -> Result<LoadPlan, Failure> {
            Ok(LoadPlan {
                name: format!(
                    "{protocol} {} on {} -> {} on {} {family}",
                    from.name, from.node, to.name, to.node
                ),
                place: context.inside(from),
                protocol,
                target: context.pod_address(to, family)?,
                port,
                rate: 20,
                timeout_ms: 4000,
            })
        };
        let plans = [
            pair("tcp", 9000, near, own_web)?,
            pair("tcp", 9000, own_client, far_web)?,
            pair("udp", 9001, far, own_web)?,
            LoadPlan {
                name: format!("http client -> lb-local {family}"),
                place: outside.clone(),
                protocol: "http",
                target: context.load_balancer(&victim.name, service, family).await?,
                port: 80,
                rate: 20,
                timeout_ms: 4000,
            },
        ];
        for plan in plans {
            loads.push(Load::start(context, plan).await?);
        }
    }
    Ok(loads)
}
