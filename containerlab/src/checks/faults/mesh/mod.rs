//! What can happen to the etcds of a mesh, each while connections run between all clusters: no request may be lost, no entry
//! go at the peers, and what changed meanwhile must reach them. And a cluster that is let in and put out, with no restart.

mod agents;
mod certificate;
mod clock;
mod data;
mod join;
mod members;
mod mirror;
mod network;
mod slow;

use super::scene::Scene;
use crate::checks::check::{CheckResult, Failure};
use crate::checks::context::Context;

/// What happens, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshFault {
    /// A cluster is let in by `tombolo mesh connect`, in both directions with all others.
    Joins(String),
    /// A cluster's etcd is killed with SIGKILL; it is started again at once.
    EtcdKilled(String),
    /// Its etcd goes away for a while.
    EtcdStopped(String),
    /// Its etcd comes back without data.
    EtcdEmptied(String),
    /// Its etcd comes back with the data of a backup that lacks the last changes.
    EtcdRestored(String),
    /// Its etcd forgets its history while others are cut off from it, and is killed.
    EtcdCompacted(String),
    /// Its etcd has no room left and refuses to write.
    EtcdOutOfQuota(String),
    /// The other clusters are cut off from its etcd: packets vanish, nobody is told.
    EtcdPartitioned(String),
    /// Its etcd waits long for its disk.
    EtcdSlowDisk(String),
    /// Of an etcd of several members one is lost, and then so many that no majority is left.
    MembersLost(String),
    /// The certificate by which a cluster reads the others expires, and is renewed.
    CertificateExpires(String),
    /// The clock of a cluster's node jumps ten years on, and back.
    ClockJumps(String),
    /// The agent of each node of a cluster is killed.
    AgentsKilled(String),
    /// The elected relay of a cluster is killed and comes back, and another one takes its place.
    RelaysKilled(String),
    /// The agents of a cluster with relays read the others themselves, and through the relays again.
    RelaysLeft(String),
    /// A cluster is put out by `tombolo mesh disconnect`, in both directions.
    Leaves(String),
}

impl MeshFault {
    /// Its name in the list of checks.
    #[must_use]
    pub fn name(&self) -> String {
        let (what, whom) = match self {
            Self::Joins(whom) => ("joins", whom),
            Self::EtcdKilled(whom) => ("etcd-killed", whom),
            Self::EtcdStopped(whom) => ("etcd-stopped", whom),
            Self::EtcdEmptied(whom) => ("etcd-emptied", whom),
            Self::EtcdRestored(whom) => ("etcd-restored-from-backup", whom),
            Self::EtcdCompacted(whom) => ("etcd-compacted", whom),
            Self::EtcdOutOfQuota(whom) => ("etcd-out-of-quota", whom),
            Self::EtcdPartitioned(whom) => ("etcd-partitioned", whom),
            Self::EtcdSlowDisk(whom) => ("etcd-slow-disk", whom),
            Self::MembersLost(whom) => ("etcd-members-lost", whom),
            Self::CertificateExpires(whom) => ("certificate-expires", whom),
            Self::ClockJumps(whom) => ("clock-jumps", whom),
            Self::AgentsKilled(whom) => ("agents-killed", whom),
            Self::RelaysKilled(whom) => ("relays-killed", whom),
            Self::RelaysLeft(whom) => ("relays-left", whom),
            Self::Leaves(whom) => ("leaves", whom),
        };
        format!("mesh/{what}/{whom}")
    }

    /// Lets it happen and waits until all is well again.
    ///
    /// # Errors
    /// What was lost, or did not come back.
    pub(super) async fn run(&self, context: &Context) -> CheckResult {
        match self {
            Self::Joins(whom) => return join::joins(context, whom).await,
            Self::Leaves(whom) => return join::leaves(context, whom).await,
            _ => {}
        }
        // Run alone, the lab may not be whole yet.
        join::all_in(context).await?;
        match self {
            Self::EtcdKilled(whom) => data::killed(context, whom).await,
            Self::EtcdStopped(whom) => super::etcd::stopped(context, whom).await,
            Self::EtcdEmptied(whom) => data::emptied(context, whom).await,
            Self::EtcdRestored(whom) => data::restored(context, whom).await,
            Self::EtcdCompacted(whom) => data::compacted(context, whom).await,
            Self::EtcdOutOfQuota(whom) => data::out_of_quota(context, whom).await,
            Self::EtcdPartitioned(whom) => network::partitioned(context, whom).await,
            Self::EtcdSlowDisk(whom) => slow::disk(context, whom).await,
            Self::MembersLost(whom) => members::lost(context, whom).await,
            Self::CertificateExpires(whom) => certificate::expires(context, whom).await,
            Self::ClockJumps(whom) => clock::jumps(context, whom).await,
            Self::AgentsKilled(whom) => agents::killed(context, whom).await,
            Self::RelaysKilled(whom) => mirror::killed(context, whom).await,
            Self::RelaysLeft(whom) => mirror::left(context, whom).await,
            Self::Joins(_) | Self::Leaves(_) => Ok(Vec::new()),
        }
    }
}

/// What is said of a fault that changed one thing at the peers and deleted nothing.
fn kept(scene: &Scene<'_>) -> String {
    format!("{} entries at the peers: the one that changed was applied, none deleted", scene.known.count())
}

/// The only node of a cluster.
fn node<'a>(context: &'a Context, cluster: &str) -> Result<&'a str, Failure> {
    let nodes = &context.cluster(cluster)?.nodes;
    nodes
        .keys()
        .next()
        .map(String::as_str)
        .ok_or_else(|| Failure::new(format!("a node of {cluster}"), "none", "the cluster's manifests"))
}
