//! Watching state while a fault lasts: nothing that worked may be taken away.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;

use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::check::{Failure, Family};
use crate::checks::context::{Context, rows, strings};
use crate::checks::inventory::Cluster;
use crate::checks::routers::{self, Routes};

/// The table of remote and local pod addresses.
const SHOW_PREFIXES: [&str; 5] = ["tombolo", "show", "prefixes", "-o", "json"];
/// The state of the remote clusters.
const MESH: [&str; 5] = ["tombolo", "mesh", "status", "-o", "json"];

/// The pod addresses of a cluster as the agent of `node` (of another cluster) knows them.
///
/// # Errors
/// When the agent cannot be asked.
pub(super) async fn known_pods(
    context: &Context,
    node: &str,
    of: &Cluster,
) -> Result<BTreeSet<IpAddr>, Failure> {
    let table: Value = context.access.json(&Place::node(node), &SHOW_PREFIXES, COMMAND_TIMEOUT).await?;
    let cidrs: Vec<IpNet> = of.nodes.values().flat_map(|facts| facts.pod_cidrs.iter().copied()).collect();
    let mut found = BTreeSet::new();
    for row in rows(&table) {
        strings(row, &mut |text| {
            let bare = text.split('/').next().unwrap_or(text);
            if let Ok(address) = bare.parse::<IpAddr>()
                && cidrs.iter().any(|cidr| cidr.contains(&address))
            {
                found.insert(address);
            }
        });
    }
    Ok(found)
}

/// Fails when an address of `before` is no longer known at `node`.
///
/// # Errors
/// What was withdrawn.
pub(super) async fn still_known(
    context: &Context,
    node: &str,
    of: &Cluster,
    before: &BTreeSet<IpAddr>,
) -> Result<(), Failure> {
    let now = known_pods(context, node, of).await?;
    let gone: Vec<&IpAddr> = before.difference(&now).collect();
    if gone.is_empty() {
        return Ok(());
    }
    let what = format!("{node} keeps every entry of cluster {}", of.name);
    let look = context.access.shown(&Place::node(node), &SHOW_PREFIXES);
    Err(Failure::new(what, format!("{gone:?} are gone"), look))
}

/// What `tombolo mesh status -o json` says about one remote cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Remote {
    /// Its name.
    pub name: String,
    /// Whether it is connected and in sync.
    pub ready: bool,
    /// Whether its etcd answers.
    pub connected: bool,
    /// In words.
    pub status: String,
    /// The etcd's own cluster id; another one after it was wiped.
    #[serde(alias = "etcd-id")]
    pub etcd_id: Option<String>,
    /// For how long what is known has not been confirmed.
    #[serde(alias = "stale-secs")]
    pub stale_secs: Option<u64>,
}

/// How the agent of `node` sees a remote cluster.
///
/// # Errors
/// When it cannot be asked or knows none of the name.
pub(super) async fn remote(context: &Context, node: &str, cluster: &str) -> Result<Remote, Failure> {
    let place = Place::node(node);
    let all: Vec<Remote> = context.access.json(&place, &MESH, COMMAND_TIMEOUT).await?;
    let names: Vec<String> = all.iter().map(|remote| remote.name.clone()).collect();
    all.into_iter().find(|remote| remote.name == cluster).ok_or_else(|| {
        let look = context.access.shown(&place, &MESH);
        Failure::new(format!("{node} follows cluster {cluster}"), format!("{names:?}"), look)
    })
}

/// Notes every route that leaves a router's FIB, from the kernel's own notifications.
pub(super) struct FibWatch {
    router: String,
    deleted: Arc<Mutex<Vec<String>>>,
    reader: JoinHandle<()>,
    _child: Child,
}

impl Drop for FibWatch {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl FibWatch {
    /// Starts watching one router.
    ///
    /// # Errors
    /// When `ip monitor` cannot be started there.
    pub(super) fn start(context: &Context, router: &str) -> Result<Self, Failure> {
        let place = Place::node(router);
        let argv = ["ip", "monitor", "route"];
        let mut child = context.access.spawn(&place, &argv)?;
        let Some(stdout) = child.stdout.take() else {
            return Err(Failure::tool("ip monitor", "no output", context.access.shown(&place, &argv)));
        };
        let deleted = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&deleted);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("Deleted") {
                    notes.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        Ok(Self { router: router.to_owned(), deleted, reader, _child: child })
    }

    /// Fails when one of the `expected` prefixes was deleted, even for a moment.
    ///
    /// # Errors
    /// The notifications.
    pub(super) fn judge(&self, expected: &Routes) -> Result<(), Failure> {
        let deleted = self.deleted.lock().unwrap_or_else(PoisonError::into_inner);
        let ours: Vec<&String> = deleted
            .iter()
            .filter(|line| deleted_prefix(line).is_some_and(|prefix| expected.contains_key(&prefix)))
            .collect();
        if ours.is_empty() {
            return Ok(());
        }
        let what = format!("no route leaves the FIB of {}", self.router);
        let look = format!("`tombolo lab exec {} -- ip monitor route`", self.router);
        Err(Failure::new(what, format!("{ours:?}"), look))
    }
}

/// The prefix of a line of `ip monitor route` that tells of a deletion.
fn deleted_prefix(line: &str) -> Option<IpNet> {
    line.split_whitespace()
        .skip(1)
        .find_map(|word| word.parse().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from)))
}

/// Fails when a prefix of `expected` is not in the RIB of a router, whatever its next hops.
///
/// # Errors
/// The missing prefixes.
pub(super) async fn still_in_rib(
    context: &Context,
    router: &str,
    family: Family,
    expected: &Routes,
) -> Result<(), Failure> {
    let held = routers::rib(context, router, family).await?;
    let gone: Vec<String> = expected
        .iter()
        .filter(|(prefix, hops)| !held.get(*prefix).is_some_and(|held| hops.is_subset(held)))
        .map(|(prefix, hops)| format!("{prefix} via {hops:?}"))
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let what = format!("no {family} route leaves the RIB of {router}");
    Err(Failure::new(what, gone.join(", "), format!("the log of {router} and `tombolo bgp peers`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_of_ip_monitor_are_read() {
        let prefix = |text: &str| Some(text.parse::<IpNet>().expect("literal"));
        assert_eq!(
            deleted_prefix("Deleted 10.1.1.0/24 via 172.20.11.2 dev eth1 proto bird "),
            prefix("10.1.1.0/24")
        );
        assert_eq!(
            deleted_prefix("Deleted 203.0.113.1 nhid 14 proto bgp metric 20 "),
            prefix("203.0.113.1/32")
        );
        assert_eq!(
            deleted_prefix(
                "Deleted fd00:10:1:1::/64 via fd00:20:11::2 dev eth1 proto bird metric 32 pref medium"
            ),
            prefix("fd00:10:1:1::/64")
        );
        assert_eq!(deleted_prefix("Deleted default via x"), None);
    }
}
