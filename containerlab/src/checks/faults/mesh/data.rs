//! What becomes of the data of an etcd: killed in the middle, restored from a backup, compacted, full.

use super::super::etcd::{REPUBLISH_PATIENCE, wiped_then};
use super::super::keys::{ETCDCTL, etcdctl};
use super::super::mend::Mend;
use super::super::scene::{Etcd, RESYNC_PATIENCE, SETTLE, Scene};
use super::network::Cut;
use super::{join, kept};
use crate::checks::access::Place;
use crate::checks::check::{CheckResult, Failure, Family};
use crate::checks::context::Context;
use crate::checks::poll;
use crate::checks::ready;

/// Where a backup lies on the node of an etcd.
const BACKUP: &str = "/var/lib/etcd/backup.db";

pub(super) async fn killed(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    context.access.verb("kill-agent", &scene.victim.etcd).await?;
    let changed = scene.change()?;
    scene.applied(1).await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let sum = scene.unharmed(loads, &format!("while the etcd of {cluster} is killed")).await?;
    Ok(vec![format!("in sync {:.1} s after the change", took.as_secs_f64()), kept(&scene), sum])
}

/// With the data go the users that `tombolo mesh connect` made: who was let in so is let in again.
pub(super) async fn emptied(context: &Context, cluster: &str) -> CheckResult {
    wiped_then(context, cluster, || join::again(context, cluster)).await
}

/// The last change is not in the backup. Who publishes writes it again; nothing that peers know goes in between.
pub(super) async fn restored(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let etcd = &scene.victim.etcd;
    etcdctl(context, etcd, &format!("snapshot save {BACKUP}")).await?;
    let changed = scene.change()?;
    scene.applied(1).await?;
    let mend = Mend::by(context, "start-cmd", etcd);
    context.access.verb("stop-cmd", etcd).await?;
    let addresses = crate::checks::routers::addresses(context, &Place::node(etcd)).await?;
    let address = addresses.iter().find(|net| Family::Ipv4.holds(net.addr()));
    let address =
        address.ok_or_else(|| Failure::new(format!("an address of {etcd}"), "none", "ip address"))?;
    let (name, peers) = (etcd, format!("https://{}:2380", address.addr()));
    let script = format!(
        "set -e; rm -rf /var/lib/etcd/data; ETCDCTL_API=3 etcdctl snapshot restore {BACKUP} --data-dir /var/lib/etcd/data \
         --name {name} --initial-cluster {name}={peers} --initial-advertise-peer-urls {peers} \
         --initial-cluster-token restored; rm {BACKUP}"
    );
    context.access.text(&Place::node(etcd), &["sh", "-c", &script]).await?;
    mend.now().await?;
    let took = scene.resync(REPUBLISH_PATIENCE, Etcd::Another).await?;
    changed.restore()?;
    let (_, settled) = poll::until(SETTLE, || scene.unchanged()).await?;
    let sum =
        scene.unharmed(loads, &format!("while the etcd of {cluster} is restored from a backup")).await?;
    Ok(vec![
        format!(
            "in sync {:.1} s after its return, all {} entries as before {:.1} s later, none deleted",
            took.as_secs_f64(),
            scene.known.count(),
            settled.as_secs_f64()
        ),
        sum,
    ])
}

/// The peers cannot go on where they were: what they would ask for is compacted.
pub(super) async fn compacted(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let etcd = &scene.victim.etcd;
    let cut = Cut::others_from(context, scene.victim).await?;
    let changed = scene.change()?;
    published(context, &scene).await?;
    let revision = compact(context, etcd).await?;
    context.access.verb("kill-agent", etcd).await?;
    cut.mend().await?;
    scene.applied(1).await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let sum = scene.unharmed(loads, &format!("while the etcd of {cluster} is compacted")).await?;
    Ok(vec![
        format!("compacted up to revision {revision}; in sync {:.1} s after the change", took.as_secs_f64()),
        kept(&scene),
        sum,
    ])
}

/// Waits until a change has reached the cluster's own etcd.
async fn published(context: &Context, scene: &Scene<'_>) -> Result<(), Failure> {
    let key = format!("get --print-value-only cilium/state/services/v1/{}/demo/web", scene.victim.name);
    poll::until(SETTLE, || async {
        let value = etcdctl(context, &scene.victim.etcd, &key).await?;
        if value.contains("changed-during-outage") {
            return Ok(());
        }
        Err(Failure::new(format!("{} publishes the changed service", scene.victim.name), value, &key))
    })
    .await?;
    Ok(())
}

/// Forgets everything before now; returns the revision.
async fn compact(context: &Context, etcd: &str) -> Result<u64, Failure> {
    let status = etcdctl(context, etcd, "endpoint status -w json").await?;
    let revision = serde_json::from_str::<serde_json::Value>(&status)
        .ok()
        .and_then(|all| all.pointer("/0/Status/header/revision").and_then(serde_json::Value::as_u64))
        .ok_or_else(|| {
            Failure::new("a revision in etcd's status", status, "etcdctl endpoint status -w json")
        })?;
    etcdctl(context, etcd, &format!("compaction {revision} --physical")).await?;
    etcdctl(context, etcd, "defrag").await?;
    Ok(revision)
}

pub(super) async fn out_of_quota(context: &Context, cluster: &str) -> CheckResult {
    let scene = Scene::set(context, cluster).await?;
    let loads = scene.loads().await?;
    let etcd = scene.victim.etcd.clone();
    let full = Full { context, etcd: &etcd, due: true };
    full.fill().await?;
    let changed = scene.change()?;
    let (said, _) = poll::until(SETTLE, || told(context, &scene)).await?;
    scene.hold().await?;
    full.empty().await?;
    scene.applied(1).await?;
    changed.restore()?;
    scene.applied(2).await?;
    let took = scene.resync(RESYNC_PATIENCE, Etcd::Same).await?;
    let sum = scene.unharmed(loads, &format!("while the etcd of {cluster} is out of quota")).await?;
    Ok(vec![
        format!("its agents say: {said}"),
        format!("in sync {:.1} s after there was room again", took.as_secs_f64()),
        kept(&scene),
        sum,
    ])
}

/// What the agents of the victim say of an etcd that does not write.
async fn told(context: &Context, scene: &Scene<'_>) -> Result<String, Failure> {
    let mut all = Vec::new();
    for node in scene.victim.nodes.keys() {
        let status = ready::status(&context.access, node).await?;
        let part = status.parts.into_iter().find(|part| part.name == "etcd");
        all.push(part.map(|part| format!("{} ({})", part.detail, part.remedy)).unwrap_or_default());
    }
    let all = all.join("; ");
    if all.contains("space") {
        return Ok(all);
    }
    Err(Failure::new(
        format!("the agents of {} say that etcd has no space", scene.victim.name),
        all,
        "tombolo status",
    ))
}

/// An etcd that was filled up; emptied when dropped.
struct Full<'a> {
    context: &'a Context,
    etcd: &'a str,
    due: bool,
}

/// Below it lies what fills the etcd.
const FILLER: &str = "lab/filler";

impl Full<'_> {
    async fn fill(&self) -> Result<(), Failure> {
        // A megabyte each, until etcd says that there is no space.
        let put = format!("head -c 1000000 /dev/zero | tr '\\0' x | ({ETCDCTL} put {FILLER}/$i >/dev/null)");
        let script = format!("for i in $(seq 200); do if ! {put}; then exit 0; fi; done; exit 1");
        self.context.access.text(&Place::node(self.etcd), &["sh", "-c", &script]).await?;
        let alarms = etcdctl(self.context, self.etcd, "alarm list").await?;
        if alarms.contains("NOSPACE") {
            return Ok(());
        }
        Err(Failure::new(format!("{} raises the alarm NOSPACE", self.etcd), alarms, "etcdctl alarm list"))
    }

    async fn empty(mut self) -> Result<(), Failure> {
        self.due = false;
        etcdctl(self.context, self.etcd, &format!("del --prefix {FILLER}/")).await?;
        compact(self.context, self.etcd).await?;
        etcdctl(self.context, self.etcd, "alarm disarm").await?;
        Ok(())
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        if self.due {
            eprintln!("the etcd on {} stays full: take the lab down and up again", self.etcd);
        }
    }
}
