//! What the other clusters know of one cluster: every table, at every node, before and after a fault.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::try_join_all;
use serde::Deserialize;
use serde_json::Value;

use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::check::Failure;
use crate::checks::context::{Context, rows};
use crate::checks::inventory::Cluster;

/// The tables whose rows come from other clusters' etcd.
const TABLES: [&str; 4] = ["nodes", "identities", "prefixes", "remote-services"];
/// The state of the remote clusters.
const MESH: [&str; 5] = ["tombolo", "mesh", "status", "-o", "json"];
/// The same at a relay.
const RELAY_MESH: [&str; 7] =
    ["tombolo", "mesh", "status", "-o", "json", "--socket", "/run/tombolo/relay.sock"];

/// Changes of one kind of entries that an agent has applied since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Applied {
    /// New or different entries.
    pub upserts: u64,
    /// Entries that went.
    pub deletes: u64,
}

/// What `tombolo mesh status -o json` says about one remote cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Remote {
    /// Its name.
    pub name: String,
    /// Whether it is connected and in sync.
    pub ready: bool,
    /// Whether its etcd answers.
    pub connected: bool,
    /// In words.
    pub status: String,
    /// The etcd's own cluster id while it is connected; another one after it was wiped.
    pub etcd_id: Option<String>,
    /// For how long what is known has not been confirmed; `None` while it is current.
    pub stale_secs: Option<u64>,
    /// Applied changes by kind.
    pub applied: BTreeMap<String, Applied>,
    /// What the relay says that it is read through, if it is.
    pub relay: Option<Word>,
}

/// What a relay says of a cluster that it mirrors.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Word {
    /// Whether its connection stands.
    pub connected: bool,
}

impl Remote {
    /// Applied changes of all kinds.
    #[must_use]
    pub(super) fn changes(&self) -> Applied {
        let sum = |of: fn(&Applied) -> u64| self.applied.values().map(of).sum();
        Applied { upserts: sum(|applied| applied.upserts), deletes: sum(|applied| applied.deletes) }
    }
}

/// How the agent of `node` sees a remote cluster; of one that it reads through a relay, which etcd that one reads.
///
/// # Errors
/// When it cannot be asked, knows none of the name, or counts no changes.
pub(super) async fn remote(context: &Context, node: &str, cluster: &str) -> Result<Remote, Failure> {
    let place = Place::node(node);
    let all: Vec<Remote> = context.access.json(&place, &MESH, COMMAND_TIMEOUT).await?;
    let names: Vec<String> = all.iter().map(|remote| remote.name.clone()).collect();
    let look = context.access.shown(&place, &MESH);
    let remote = all.into_iter().find(|remote| remote.name == cluster).ok_or_else(|| {
        Failure::new(format!("{node} follows cluster {cluster}"), format!("{names:?}"), &look)
    })?;
    if remote.applied.is_empty() {
        let what = format!("{node} counts the changes of cluster {cluster}");
        return Err(Failure::new(what, "no `applied` in its mesh status", look));
    }
    behind(context, node, remote).await
}

/// The agent's own connection is to the mirror: what is behind it, a relay knows.
async fn behind(context: &Context, node: &str, mut remote: Remote) -> Result<Remote, Failure> {
    let Some(word) = &remote.relay else { return Ok(remote) };
    remote.connected &= word.connected;
    let relays = context.inventory.cluster_of(node).map_or(&[][..], |cluster| cluster.relays.as_slice());
    let mut last = Failure::new(format!("a relay for {node}"), "none", "lab.yaml");
    for relay in relays {
        // One of them may be away.
        match context.access.json::<Vec<Remote>>(&Place::node(relay), &RELAY_MESH, COMMAND_TIMEOUT).await {
            Ok(all) => {
                let same = all.into_iter().find(|read| read.name == remote.name);
                remote.etcd_id = same.and_then(|read| read.etcd_id);
                return Ok(remote);
            }
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// Whether a node reads another cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RemoteState {
    /// Connected and in sync.
    Ready,
    /// Known, and why it is not ready.
    NotReady(String),
    /// Its agent has no such cluster.
    Unknown,
}

impl RemoteState {
    /// How the agent of `node` sees a cluster that it may not know.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(super) async fn of(context: &Context, node: &str, cluster: &str) -> Result<Self, Failure> {
        let all: Vec<Remote> = context.access.json(&Place::node(node), &MESH, COMMAND_TIMEOUT).await?;
        Ok(match all.into_iter().find(|remote| remote.name == cluster) {
            None => Self::Unknown,
            Some(remote) if remote.ready => Self::Ready,
            Some(remote) => Self::NotReady(remote.status),
        })
    }
}

/// What one node knows of a cluster.
#[derive(Debug, Clone)]
struct View {
    remote: Remote,
    rows: BTreeMap<&'static str, BTreeSet<String>>,
}

/// What the nodes of all other clusters know of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Known {
    of: String,
    views: BTreeMap<String, View>,
}

impl Known {
    /// Asks every node of every other cluster.
    ///
    /// # Errors
    /// When one cannot be asked, or knows nothing: then nothing could be lost.
    pub(super) async fn read(context: &Context, of: &Cluster) -> Result<Self, Failure> {
        let others = context.inventory.clusters.values().filter(|cluster| cluster.name != of.name);
        Self::read_at(context, of, others).await
    }

    /// Asks every node of some clusters.
    ///
    /// # Errors
    /// As [`Known::read`].
    pub(super) async fn read_at<'a>(
        context: &Context,
        of: &Cluster,
        clusters: impl Iterator<Item = &'a Cluster>,
    ) -> Result<Self, Failure> {
        let nodes = clusters.flat_map(|cluster| cluster.nodes.keys());
        let views = try_join_all(nodes.map(|node| view(context, node, of))).await?;
        Ok(Self { of: of.name.clone(), views: views.into_iter().collect() })
    }

    /// How many rows a node has of a cluster, in all tables.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(super) async fn rows_of(context: &Context, node: &str, cluster: &str) -> Result<usize, Failure> {
        let mut all = 0;
        for table in TABLES {
            all += held(context, node, table, cluster).await?.len();
        }
        Ok(all)
    }

    /// The nodes asked.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &str> {
        self.views.keys().map(String::as_str)
    }

    /// How a node saw the cluster.
    #[must_use]
    pub(super) fn remote(&self, node: &str) -> Option<&Remote> {
        self.views.get(node).map(|view| &view.remote)
    }

    /// Rows known at all nodes together.
    #[must_use]
    pub(super) fn count(&self) -> usize {
        self.views.values().flat_map(|view| view.rows.values()).map(BTreeSet::len).sum()
    }

    /// Fails when a node knows anything less, more or else now, or has deleted anything since, even for a moment.
    ///
    /// # Errors
    /// The rows and the counts.
    pub(super) fn unchanged(&self, now: &Self, context: &Context) -> Result<(), Failure> {
        for (node, before) in &self.views {
            let place = Place::node(node);
            let Some(after) = now.views.get(node) else { continue };
            for (table, rows) in &before.rows {
                let held = after.rows.get(table).cloned().unwrap_or_default();
                let list = |rows: BTreeSet<&String>| {
                    let some: Vec<&str> = rows.iter().take(4).map(|row| row.as_str()).collect();
                    format!("{} rows, as {}", rows.len(), some.join(" "))
                };
                let (gone, new) = (rows.difference(&held).collect(), held.difference(rows).collect());
                if *rows != held {
                    let what = format!("{node} knows the same {table} of cluster {} as before", self.of);
                    let got = format!("gone: {}; new: {}", list(gone), list(new));
                    let look = context.access.shown(&place, &["tombolo", "show", table]);
                    return Err(Failure::new(what, got, look));
                }
            }
            let (was, is) = (before.remote.changes(), after.remote.changes());
            if was.deletes != is.deletes {
                let what = format!("{node} deletes no entry of cluster {}, even for a moment", self.of);
                let got =
                    format!("applied before {:?}, after {:?}", before.remote.applied, after.remote.applied);
                return Err(Failure::new(what, got, context.access.shown(&place, &MESH)));
            }
        }
        Ok(())
    }

    /// Fails unless every node has applied exactly `upserts` changes since, and no deletion.
    ///
    /// # Errors
    /// The counts.
    pub(super) fn applied_since(&self, now: &Self, upserts: u64, context: &Context) -> Result<(), Failure> {
        for (node, before) in &self.views {
            let Some(after) = now.views.get(node) else { continue };
            let (was, is) = (before.remote.changes(), after.remote.changes());
            let wanted = Applied { upserts: was.upserts + upserts, deletes: was.deletes };
            if is != wanted {
                let what = format!(
                    "the resync of {node} with cluster {} applies {upserts} changed entries and no deletion",
                    self.of
                );
                let got =
                    format!("applied before {:?}, after {:?}", before.remote.applied, after.remote.applied);
                return Err(Failure::new(what, got, context.access.shown(&Place::node(node), &MESH)));
            }
        }
        Ok(())
    }
}

/// The rows of one table at a node that came from a cluster.
async fn held(context: &Context, node: &str, table: &str, of: &str) -> Result<BTreeSet<String>, Failure> {
    let argv = ["tombolo", "show", table, "-o", "json"];
    let all: Value = context.access.json(&Place::node(node), &argv, COMMAND_TIMEOUT).await?;
    let source = format!("cluster:{of}");
    let ours = |row: &&Value| row.get("source").and_then(Value::as_str) == Some(source.as_str());
    Ok(rows(&all).iter().filter(ours).map(Value::to_string).collect())
}

async fn view(context: &Context, node: &str, of: &Cluster) -> Result<(String, View), Failure> {
    let place = Place::node(node);
    let mut known = BTreeMap::new();
    for table in TABLES {
        let held = held(context, node, table, &of.name).await?;
        if held.is_empty() {
            let what = format!("{node} knows {table} of cluster {}", of.name);
            let argv = ["tombolo", "show", table, "-o", "json"];
            return Err(Failure::new(what, "none", context.access.shown(&place, &argv)));
        }
        known.insert(table, held);
    }
    let remote = remote(context, node, &of.name).await?;
    Ok((node.to_owned(), View { remote, rows: known }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_status_is_read() {
        let text = r#"[{"name": "east", "ready": true, "etcd-id": "17", "stale-secs": 4, "num-nodes": 2,
            "applied": {"ips": {"upserts": 3, "deletes": 1}, "nodes": {"upserts": 2, "deletes": 0}}}]"#;
        let all: Vec<Remote> = serde_json::from_str(text).expect("read");
        assert_eq!(all[0].changes(), Applied { upserts: 5, deletes: 1 });
        assert_eq!((all[0].etcd_id.as_deref(), all[0].stale_secs), (Some("17"), Some(4)));
    }
}
