//! Packets to an etcd vanish: nobody is told, connections stand and are silent.

use std::process::Stdio;
use std::time::Duration;

use super::super::scene::{Etcd, RESYNC_PATIENCE, Scene};
use super::kept;
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;
use crate::checks::inventory::Cluster;

/// How long readers may take to notice that nothing answers: keep-alives find it after 40 s, nothing else before two minutes.
const NOTICE: Duration = Duration::from_secs(60);

/// Packets from the nodes of other clusters to the members of an etcd are dropped at the router between them; no longer when
/// this is dropped.
pub(super) struct Cut<'a> {
    context: &'a Context,
    core: &'a str,
    rules: Vec<String>,
}

impl<'a> Cut<'a> {
    /// Cuts all other clusters off from a cluster's etcd.
    ///
    /// # Errors
    /// When the router does not take the rules.
    pub(super) async fn others_from(context: &'a Context, victim: &Cluster) -> Result<Self, Failure> {
        let core = context.inventory.core.as_deref().ok_or_else(|| {
            Failure::new("a node labelled tombolo.io/role: core", "none", "the topology file")
        })?;
        let mut cut = Self { context, core, rules: Vec::new() };
        let others = context.inventory.clusters.values().filter(|cluster| cluster.name != victim.name);
        let mut readers = Vec::new();
        for other in others {
            readers.extend(other.nodes.values().flat_map(|node| node.underlay.iter().copied()));
            for relay in &other.relays {
                let nets = crate::checks::routers::addresses(context, &Place::node(relay)).await?;
                readers.extend(nets.iter().map(ipnet::IpNet::addr));
            }
        }
        for member in &victim.members {
            let place = Place::node(member);
            for etcd in crate::checks::routers::addresses(context, &place).await? {
                for reader in readers.iter().filter(|reader| reader.is_ipv4() == etcd.addr().is_ipv4()) {
                    cut.rules.push(format!("from {reader} to {} blackhole", etcd.addr()));
                }
            }
        }
        cut.context.access.text(&Place::node(core), &["sh", "-ec", &cut.script("add")]).await?;
        Ok(cut)
    }

    fn script(&self, verb: &str) -> String {
        let one = |rule: &String| {
            let family = if rule.contains(':') { "-6" } else { "-4" };
            format!("ip {family} rule {verb} {rule}")
        };
        self.rules.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// Lets the packets pass again.
    ///
    /// # Errors
    /// When the router does not take the rules away.
    pub(super) async fn mend(mut self) -> Result<(), Failure> {
        let script = self.script("del");
        self.rules.clear();
        self.context.access.text(&Place::node(self.core), &["sh", "-ec", &script]).await?;
        Ok(())
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if self.rules.is_empty() {
            return;
        }
        let script = self.script("del");
        let mut command =
            self.context.access.exec_command_now(&Place::node(self.core), &["sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            eprintln!(
                "the lab stays broken: packets to an etcd are dropped at {}; take it down and up again",
                self.core
            );
        }
    }
}

pub(super) async fn partitioned(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let cut = Cut::others_from(context, scene.victim).await?;
    let changed = scene.change()?;
    // However short outages are in this run: before that, the connections might just go on.
    let (_, noticed) = scene.lost(NOTICE).await?;
    scene.unchanged().await?;
    cut.mend().await?;
    scene.applied(1).await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let sum =
        scene.unharmed(loads, &format!("while all others are cut off from the etcd of {cluster}")).await?;
    Ok(vec![
        format!(
            "noticed by all after {:.1} s; in sync {:.1} s after the change came through",
            noticed.as_secs_f64(),
            took.as_secs_f64()
        ),
        kept(&scene),
        sum,
    ])
}
