//! SIGKILL to an agent under load: pinned programs and BGP graceful restart must carry everything through.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::fib::FibWatch;
use super::keys::KeyWatch;
use super::known::Known;
use super::load::{self, Load, LoadPlan};
use super::segments::{self, Segments};
use super::{cluster_ip, other, pod_of};
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
/// How long traffic may take to be right after that.
const SETTLE: Duration = Duration::from_secs(30);
/// Datagrams a second on every path of one family: a gap of 10 ms loses one of the path's two families.
const UDP_RATE: u32 = 100;
/// Requests a second of every TCP load.
const TCP_RATE: u32 = 20;

/// What was there before the agent was killed, and who watches that it stays.
struct Before<'a> {
    context: &'a Context,
    victim: &'a Cluster,
    known: Known,
    routes: BTreeMap<(String, Family), Routes>,
    fibs: Vec<FibWatch>,
    keys: KeyWatch,
}

pub(super) async fn killed(context: &Context, node: &str) -> CheckResult {
    let victim = context.inventory.cluster_of(node).ok_or_else(|| {
        Failure::new(format!("a cluster with the node {node}"), "none", "the Node manifests")
    })?;
    let remote = other(context, &victim.name)?;
    let before = Before {
        context,
        victim,
        known: Known::read(context, victim).await?,
        routes: routes(context).await?,
        fibs: try_join_all(tors(context).map(|name| FibWatch::start(context, name))).await?,
        keys: KeyWatch::start(context, victim).await?,
    };
    segments::quiet(context, [Place::node(ask::client(context)?)].into_iter()).await?;
    let mut loads = start_loads(context, victim, remote, node).await?;
    let segments = Segments::read(context, speakers(context)?).await?;
    let killed_at = Instant::now();
    context.access.verb("kill-agent", node).await?;
    // What must never be gone ends the wait at once; what must come back is waited for.
    let (gone, took) = poll::until(PATIENCE, || async {
        if let Err(gone) = before.routes_stay().await {
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
    load::all_settled(&mut loads, SETTLE).await?;
    before.routes_stay().await?;
    // The connections are still there to be asked.
    let after = Segments::read(context, speakers(context)?).await?;
    let reports = load::stop_all(loads).await?;
    let during = format!("while the agent of {node} is killed and restarted");
    let mut notes = vec![format!("ready again after {:.1} s", took.as_secs_f64()), load::sum(&reports)];
    notes.push(before.judge().await?);
    load::unharmed(&reports, &during)?;
    let needless = after.none_lost_since(&segments, context, &during)?;
    notes.push(format!("no TCP segment lost ({needless} sent again without need)"));
    Ok(notes)
}

impl Before<'_> {
    /// Fails when a router lacks a route or a next hop now.
    async fn routes_stay(&self) -> Result<(), Failure> {
        for ((router, family), expected) in &self.routes {
            let rib = routers::rib(self.context, router, *family).await?;
            still_in("RIB", router, expected, &rib)?;
            let fib = routers::fib(self.context, router, *family).await?;
            still_in("FIB", router, expected, &fib)?;
        }
        Ok(())
    }

    /// Fails when anything was gone at any time: of the FIBs, of etcd, or of what the other clusters know.
    async fn judge(&self) -> Result<String, Failure> {
        let mut changes = 0;
        for fib in &self.fibs {
            let own = self.routes.iter().filter(|((router, _), _)| router == fib.router());
            let expected: Vec<&Routes> = own.map(|(_, routes)| routes).collect();
            changes += fib.judge(self.context, &expected).await?;
        }
        let writes = self.keys.judge(self.context).await?;
        self.known.unchanged(&Known::read(self.context, self.victim).await?, self.context)?;
        Ok(format!(
            "no route left RIB or FIB ({changes} notifications), no key left etcd ({writes} writes), {} entries as before at the peers",
            self.known.count()
        ))
    }
}

/// Fails when a router's table lacks an expected prefix or one of its next hops.
fn still_in(table: &str, router: &str, expected: &Routes, held: &Routes) -> Result<(), Failure> {
    let gone: Vec<String> = expected
        .iter()
        .filter(|(prefix, hops)| !held.get(*prefix).is_some_and(|held| hops.is_subset(held)))
        .map(|(prefix, hops)| format!("{prefix} via {hops:?} (there: {:?})", held.get(prefix)))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let what = format!("no route leaves the {table} of {router}");
    Err(Failure::new(what, gone.join(", "), format!("the log of {router} and `tombolo bgp peers`")))
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

/// Everybody who speaks TCP in the loads: all pods, as either end retransmits what it sent, and the client.
fn speakers(context: &Context) -> Result<impl Iterator<Item = Place>, Failure> {
    let pods = context.inventory.clusters.values().flat_map(|cluster| cluster.pods.values());
    Ok(pods.map(|pod| context.inside(pod)).chain([Place::node(ask::client(context)?)]))
}

/// The pods of the loads: the victim's node has one of each, and there is one of each elsewhere.
struct Cast<'a> {
    own_web: &'a PodFacts,
    own_client: &'a PodFacts,
    near_web: &'a PodFacts,
    near_client: &'a PodFacts,
    far_web: &'a PodFacts,
    far_client: &'a PodFacts,
}

async fn start_loads(
    context: &Context,
    victim: &Cluster,
    remote: &Cluster,
    node: &str,
) -> Result<Vec<Load>, Failure> {
    let beside = victim.nodes.keys().find(|name| name.as_str() != node).map(String::as_str);
    let cast = Cast {
        own_web: pod_of(victim, "web", Some(node))?,
        own_client: pod_of(victim, "client", Some(node))?,
        near_web: pod_of(victim, "web", beside)?,
        near_client: pod_of(victim, "client", beside)?,
        far_web: pod_of(remote, "web", None)?,
        far_client: pod_of(remote, "client", None)?,
    };
    let mut plans = Vec::new();
    for family in Family::BOTH {
        plans.extend(cast.plans(context, family)?);
        let echo = cluster_ip(context, &victim.name, "demo/echo", family)?;
        for client in [cast.own_client, cast.near_client] {
            let name = format!("udp {} on {} -> service echo {family}", client.name, client.node);
            let plan = plan(name, context.inside(client), "udp", echo, 9001);
            plans.push(LoadPlan { rate: UDP_RATE / 2, ..plan });
        }
        let service = context.service(&victim.name, "demo/lb-local")?;
        let address = context.load_balancer(&victim.name, service, family).await?;
        let outside = Place::node(ask::client(context)?);
        plans.push(plan(format!("http client -> lb-local {family}"), outside, "http", address, 80));
    }
    load::start_all(context, plans).await
}

impl Cast<'_> {
    /// Every kind of path between pods that the victim's node takes part in.
    fn plans(&self, context: &Context, family: Family) -> Result<Vec<LoadPlan>, Failure> {
        let paths = [
            (self.own_client, self.own_web),
            (self.own_client, self.near_web),
            (self.near_client, self.own_web),
            (self.own_client, self.far_web),
            (self.far_client, self.own_web),
        ];
        let mut plans = Vec::new();
        for (from, to) in paths {
            let target = context.pod_address(to, family)?;
            for (protocol, port, rate) in [("udp", 9001, UDP_RATE), ("tcp", 9000, TCP_RATE)] {
                let name = format!(
                    "{protocol} {} on {} -> {} on {} {family}",
                    from.name, from.node, to.name, to.node
                );
                let plan = plan(name, context.inside(from), protocol, target, port);
                plans.push(LoadPlan { rate, crosses: from.node != to.node, ..plan });
            }
        }
        Ok(plans)
    }
}

fn plan(name: String, place: Place, protocol: &'static str, target: IpAddr, port: u16) -> LoadPlan {
    LoadPlan {
        name,
        place,
        protocol,
        target,
        port,
        connections: 4,
        rate: TCP_RATE,
        timeout_ms: 4000,
        crosses: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_next_hop_is_a_lost_route() {
        let routes = |hops: &[&str]| {
            let hops = hops.iter().map(|hop| hop.parse().expect("literal")).collect();
            Routes::from([("203.0.113.1/32".parse().expect("literal"), hops)])
        };
        let expected = routes(&["172.20.11.2", "172.20.12.2"]);
        assert!(still_in("FIB", "tor", &expected, &expected).is_ok());
        assert!(still_in("FIB", "tor", &expected, &routes(&["172.20.11.2"])).is_err());
        assert!(still_in("FIB", "tor", &expected, &Routes::new()).is_err());
        assert!(still_in("FIB", "tor", &routes(&["172.20.11.2"]), &expected).is_ok());
    }
}
