//! The relays of a cluster: the elected one is killed and comes back, another one takes its place, and the agents do without
//! them for a while. And what they leave of a cluster that was put out: nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::super::keys::{KeyWatch, etcdctl};
use super::super::mend::Mend;
use super::super::scene::{SETTLE, Scene};
use super::join::copy;
use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;
use crate::checks::inventory::Cluster;
use crate::checks::poll;
use crate::checks::ready::AgentStatus;

/// How long a relay may take to begin again, and another one to be elected in place of one that stopped.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a removed cluster's mirror may stay: the time of grace of the lab's `relay.yaml`, and then some.
const GONE: Duration = Duration::from_secs(30);
/// What a relay says of its mirrors.
const RELAY: [&str; 5] = ["tombolo", "relay", "status", "-o", "json"];
/// What it says of itself.
const STATUS: [&str; 6] = ["tombolo", "status", "-o", "json", "--socket", "/run/tombolo/relay.sock"];

/// `tombolo relay status -o json`, as far as it is used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RelayStatus {
    leader: bool,
    status: String,
    clusters: Vec<Relayed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Relayed {
    mirror: Mirror,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    complete: bool,
}

/// A cluster with relays, and what everybody knew of the others.
struct Mirrors<'a> {
    context: &'a Context,
    own: &'a Cluster,
    scenes: Vec<Scene<'a>>,
}

impl<'a> Mirrors<'a> {
    async fn set(context: &'a Context, cluster: &str) -> Result<Self, Failure> {
        let own = context.cluster(cluster)?;
        let mut scenes = Vec::new();
        for other in context.inventory.clusters.keys().filter(|other| *other != cluster) {
            scenes.push(Scene::set(context, other).await?);
        }
        let mirrors = Self { context, own, scenes };
        mirrors.read(true).await?;
        Ok(mirrors)
    }

    /// The scene whose service is changed.
    fn changing(&self) -> Result<&Scene<'a>, Failure> {
        self.scenes.first().ok_or_else(|| Failure::new("another cluster", "none", "lab.yaml"))
    }

    /// Fails unless every node of the cluster reads all others, through a relay or not.
    async fn read(&self, relayed: bool) -> Result<(), Failure> {
        for node in self.own.nodes.keys() {
            for scene in &self.scenes {
                let remote = scene.remote(node).await?;
                if !remote.ready || !remote.connected || remote.relay.is_some() != relayed {
                    let how = if relayed { "through a relay" } else { "directly" };
                    let what = format!("{node} reads {} {how}, in sync", scene.victim.name);
                    return Err(Failure::new(what, format!("{remote:?}"), scene.look(node)));
                }
            }
        }
        Ok(())
    }

    /// Waits until some relay, other than one, is elected and all its mirrors are whole; its node.
    async fn elected(&self, other_than: Option<&str>) -> Result<(&'a str, Duration), Failure> {
        poll::until(PATIENCE, || async {
            let mut said = Vec::new();
            for relay in self.own.relays.iter().filter(|relay| other_than != Some(relay.as_str())) {
                let place = Place::node(relay);
                let asked = self.context.access.json::<RelayStatus>(&place, &RELAY, COMMAND_TIMEOUT);
                match asked.await {
                    Ok(status) if status.leader && self.is_whole(&status) => return Ok(relay.as_str()),
                    Ok(status) => said.push(format!("{relay}: {}", status.status)),
                    Err(failure) => said.push(format!("{relay}: {}", failure.got)),
                }
            }
            let what = format!("an elected relay of {} with whole mirrors", self.own.name);
            Err(Failure::new(what, said.join("; "), "tombolo relay status"))
        })
        .await
    }

    fn is_whole(&self, status: &RelayStatus) -> bool {
        status.clusters.len() == self.scenes.len()
            && status.clusters.iter().all(|relayed| relayed.mirror.complete)
    }

    /// Waits until the process that was killed then is another one.
    async fn restarted(&self, relay: &str, killed_at: Instant) -> Result<(), Failure> {
        let place = Place::node(relay);
        poll::until(PATIENCE, || async {
            let status: AgentStatus = self.context.access.json(&place, &STATUS, COMMAND_TIMEOUT).await?;
            if status.uptime_secs <= killed_at.elapsed().as_secs() {
                return Ok(());
            }
            let look = self.context.access.shown(&place, &STATUS);
            Err(Failure::new(format!("the relay of {relay} was restarted"), "the one from before", look))
        })
        .await?;
        Ok(())
    }

    /// At no node anything of any other cluster went or changed, beside so many changes of the first.
    async fn applied(&self, changes: u64) -> Result<(), Failure> {
        for (position, scene) in self.scenes.iter().enumerate() {
            scene.applied(if position == 0 { changes } else { 0 }).await?;
            scene.unchanged().await?;
        }
        Ok(())
    }

    fn kept(&self) -> String {
        let count: usize = self.scenes.iter().map(|scene| scene.known.count()).sum();
        format!("{count} entries of {} clusters at their readers, none deleted", self.scenes.len())
    }
}

/// The elected relay is killed with SIGKILL and comes back; then it is stopped, and another one takes over. A change comes
/// through each time.
pub(super) async fn killed(context: &Context, cluster: &str) -> CheckResult {
    let mirrors = Mirrors::set(context, cluster).await?;
    let changing = mirrors.changing()?;
    let keys = KeyWatch::start(context, mirrors.own).await?;
    let loads = changing.loads().await?;
    let (first, _) = mirrors.elected(None).await?;
    let killed_at = Instant::now();
    context.access.verb("kill-agent", first).await?;
    mirrors.restarted(first, killed_at).await?;
    let (writes, _) = mirrors.elected(None).await?;
    let back = killed_at.elapsed();
    let changed = changing.change()?;
    changing.applied(1).await?;
    let mend = Mend::by(context, "start-cmd", writes);
    let stopped_at = Instant::now();
    context.access.verb("stop-cmd", writes).await?;
    let (second, _) = mirrors.elected(Some(writes)).await?;
    let taken_over = stopped_at.elapsed();
    changed.restore()?;
    changing.applied(2).await?;
    mend.now().await?;
    let during = format!("while relays of {cluster} are killed and take over from each other");
    let sum = changing.unharmed(loads, &during).await?;
    mirrors.applied(2).await?;
    let writes_seen = keys.judge(context).await?;
    Ok(vec![
        format!(
            "{first} killed: mirrors whole again after {:.1} s, by {writes}; {writes} stopped: {second} after {:.1} s",
            back.as_secs_f64(),
            taken_over.as_secs_f64()
        ),
        format!("no key left the etcd of {cluster} ({writes_seen} writes); {}", mirrors.kept()),
        sum,
    ])
}

/// The agents' files name the other clusters' etcds instead of the own one, and the own one again.
pub(super) async fn left(context: &Context, cluster: &str) -> CheckResult {
    let mirrors = Mirrors::set(context, cluster).await?;
    let changing = mirrors.changing()?;
    let loads = changing.loads().await?;
    let direct = Direct::enter(mirrors.own)?;
    let (_, left) = poll::until(SETTLE, || mirrors.read(false)).await?;
    mirrors.applied(0).await?;
    direct.back()?;
    let (_, back) = poll::until(SETTLE, || mirrors.read(true)).await?;
    let during = format!("while the agents of {cluster} read directly and through the relay again");
    let sum = changing.unharmed(loads, &during).await?;
    mirrors.applied(0).await?;
    Ok(vec![
        format!(
            "read directly after {:.1} s, through the relay again after {:.1} s, no agent restarted",
            left.as_secs_f64(),
            back.as_secs_f64()
        ),
        format!("{}, nor written anew", mirrors.kept()),
        sum,
    ])
}

/// The relays' files in place of the agents'; taken back when dropped.
struct Direct<'a> {
    own: &'a Cluster,
    /// What the agents had under these names.
    before: BTreeMap<String, Option<String>>,
}

impl<'a> Direct<'a> {
    fn enter(own: &'a Cluster) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::tool("reading the relays' files", error, own.remotes.display().to_string())
        };
        let mut direct = Self { own, before: BTreeMap::new() };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&own.remotes).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let before = std::fs::read_to_string(own.clustermesh.join(&name)).ok();
            files.push((before.is_some(), name.clone(), std::fs::read_to_string(&path).map_err(failed)?));
            direct.before.insert(name, before);
        }
        // Certificates first, then the files that name them.
        files.sort();
        for (_, name, text) in files {
            copy(&own.clustermesh.join(name), &text)?;
        }
        Ok(direct)
    }

    fn back(mut self) -> Result<(), Failure> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), Failure> {
        let (had, new): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.before).into_iter().partition(|(_, before)| before.is_some());
        for (name, before) in had {
            copy(&self.own.clustermesh.join(name), &before.unwrap_or_default())?;
        }
        for (name, _) in new {
            let path = self.own.clustermesh.join(name);
            std::fs::remove_file(&path).map_err(|error| {
                Failure::tool("removing a relay's file", error, path.display().to_string())
            })?;
        }
        Ok(())
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        if let Err(failure) = self.put_back() {
            eprintln!("the lab stays broken: {failure}; take it down and up again");
        }
    }
}

/// What relays keep of a cluster, by the cluster that they serve: numbers of keys.
///
/// # Errors
/// When they keep nothing: then nothing could be left.
pub(super) async fn kept_of<'a>(
    context: &Context,
    guest: &Cluster,
    others: &[&'a Cluster],
) -> Result<Vec<(&'a Cluster, usize)>, Failure> {
    let mut all = Vec::new();
    for own in others.iter().filter(|own| !own.relays.is_empty()) {
        let keys = keys_of(context, own, guest).await?;
        if keys.is_empty() {
            let what = format!("the relays of {} mirror {}", own.name, guest.name);
            return Err(Failure::new(what, "no key of it is in their etcd", "tombolo relay status"));
        }
        all.push((*own, keys.len()));
    }
    Ok(all)
}

/// Waits until nothing of a cluster is left where relays kept it; says so.
pub(super) async fn all_gone(
    context: &Context,
    guest: &Cluster,
    kept: &[(&Cluster, usize)],
) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for (own, count) in kept {
        let (_, took) = poll::until(GONE, || async {
            let left = keys_of(context, own, guest).await?;
            if left.is_empty() {
                return Ok(());
            }
            let what = format!("nothing of {} is left in the etcd of {}", guest.name, own.name);
            Err(Failure::new(what, left.join(", "), "etcdctl get --prefix ''"))
        })
        .await?;
        let secs = took.as_secs_f64();
        notes.push(format!(
            "of {count} keys that the relays of {} kept of it none is left after {secs:.1} s",
            own.name
        ));
    }
    Ok(notes)
}

/// The keys in the etcd of one cluster that are of another.
async fn keys_of(context: &Context, own: &Cluster, guest: &Cluster) -> Result<Vec<String>, Failure> {
    let listed = etcdctl(context, &own.etcd, "get --prefix '' --keys-only").await?;
    let of_guest = |key: &&str| key.split('/').any(|part| part == guest.name);
    Ok(listed.lines().filter(of_guest).map(str::to_owned).collect())
}
