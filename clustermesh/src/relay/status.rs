//! The state of the relay for `tombolo relay status`.

use super::RelayHandle;
use crate::certificate::unix_now;
use crate::follower::{ClusterStatus, MeshHandle};
use serde::Serialize;
use tombolo_base::ids::ClusterName;

/// The relay, as people and programs read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RelayStatus {
    /// Its name.
    pub name: String,
    /// Whether the connection to the own etcd stands.
    pub connected: bool,
    /// Whether it is the elected one.
    pub leader: bool,
    /// One sentence: what it does or what is wrong, and what to try.
    pub status: String,
    /// Connections to the own etcd lost.
    pub reconnections: u64,
    /// The last failure.
    pub last_failure: Option<String>,
    /// Mirrors of clusters without a file that were removed.
    pub removed: u64,
    /// What works now and will not for long.
    pub warnings: Vec<String>,
    /// The clusters, by name; also those whose mirrors are being removed.
    pub clusters: Vec<RelayedCluster>,
}

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RelayedCluster {
    /// How it is read.
    pub remote: ClusterStatus,
    /// How it is written.
    pub mirror: MirrorStatus,
}

/// A mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MirrorStatus {
    /// Whether all of it stands, canaries too; known to the elected relay.
    pub complete: bool,
    /// Entries that it should hold.
    pub entries: usize,
    /// Keys that are still to be compared or written.
    pub queued: usize,
    /// Whether the cluster has no file and its mirror is being removed.
    pub removing: bool,
    /// Why it cannot be written now.
    pub problem: Option<String>,
    /// What is not mirrored, and why.
    pub warnings: Vec<String>,
}

impl RelayHandle {
    /// The present state.
    pub async fn status(&self) -> RelayStatus {
        let context = &self.context;
        let mut clusters: Vec<RelayedCluster> = Vec::new();
        for remote in context.mesh.status().await {
            clusters.push(RelayedCluster { remote, mirror: MirrorStatus::default() });
        }
        for slot in context.book.slots() {
            let mirror = {
                let (progress, notes) = (slot.progress(), slot.notes().clone());
                MirrorStatus {
                    complete: progress.announced,
                    entries: progress.entries,
                    queued: progress.queued,
                    removing: !*slot.wanted.borrow(),
                    warnings: notes.warnings(slot.mirror().unwritable()),
                    problem: notes.problem,
                }
            };
            match clusters.iter_mut().find(|known| known.remote.name == slot.cluster.as_str()) {
                Some(known) => known.mirror = mirror,
                None => clusters.push(RelayedCluster { remote: without_file(&slot.cluster), mirror }),
            }
        }
        clusters.sort_by(|left, right| left.remote.name.cmp(&right.remote.name));
        let own = context.own.borrow().clone();
        let expiry = own.certificate.as_ref().and_then(|expiry| expiry.warning(unix_now()));
        let namesake = own.namesake.then(|| {
            format!(
                "another relay named {} runs and was elected in place of this one; give one another relay.name in relay.yaml",
                context.config.name
            )
        });
        RelayStatus {
            name: context.config.name.to_string(),
            connected: own.connected,
            leader: own.leader,
            status: own.status,
            reconnections: own.reconnections,
            last_failure: own.last_failure,
            removed: own.removed,
            warnings: expiry.into_iter().chain(own.renewal).chain(namesake).collect(),
            clusters,
        }
    }

    /// The followers.
    #[must_use]
    pub fn mesh(&self) -> &MeshHandle {
        &self.context.mesh
    }
}

fn without_file(cluster: &ClusterName) -> ClusterStatus {
    ClusterStatus {
        name: cluster.to_string(),
        status: "it has no file: its mirror is being removed".to_owned(),
        ..ClusterStatus::default()
    }
}
