//! The followers' states as metrics.

use super::mesh_view::{Conflict, counted};
use std::collections::BTreeSet;
use tombolo_base::table::Snapshot;
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::follower::ClusterStatus;
use tombolo_clustermesh::wire::Kind;
use tombolo_observe::metrics::{
    ClusterLabels, ConflictLabels, KindLabels, MeshMetrics, RefusedLabels, SyncLabels,
};
use tombolo_service::RemoteService;
use tombolo_topology::ConflictKind;
use tombolo_topology::conflict::ConflictCounts;

/// What the metrics are made of.
pub(crate) struct Seen<'a> {
    /// This cluster's name: followed, but not remote.
    pub(crate) own: &'a str,
    /// The followed clusters.
    pub(crate) clusters: &'a [ClusterStatus],
    /// Conflicts that stand.
    pub(crate) conflicts: &'a [Conflict],
    /// Conflicts found so far.
    pub(crate) found: Option<&'a ConflictCounts>,
    /// What remote clusters share.
    pub(crate) services: Snapshot<RemoteService>,
}

fn wide<T: TryInto<i64>>(value: T) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Sets all of them anew.
pub(crate) fn fill(metrics: &MeshMetrics, seen: &Seen<'_>) {
    metrics.clear();
    let remote = seen.clusters.iter().filter(|cluster| cluster.name != seen.own);
    metrics.remote_clusters.set(wide(remote.count()));
    let names: BTreeSet<_> = seen.services.iter().map(|row| &row.name).collect();
    metrics.global_services.set(wide(names.len()));
    for (kind, count) in counted(seen.conflicts) {
        metrics.conflicts.get_or_create(&ConflictLabels { kind: kind.to_owned() }).set(wide(count));
    }
    for kind in ConflictKind::ALL {
        let labels = ConflictLabels { kind: kind.word().to_owned() };
        let found = seen.found.map_or(0, |found| found.get(kind));
        metrics.conflicts_found.get_or_create(&labels).set(wide(found));
    }
    seen.clusters.iter().for_each(|cluster| one(metrics, cluster));
}

fn one(metrics: &MeshMetrics, cluster: &ClusterStatus) {
    let name = || cluster.name.clone();
    let labels = ClusterLabels { target_cluster: name() };
    let count = |kind| wide(cluster.counts.get(&kind).copied().unwrap_or(0));
    metrics.ready.get_or_create(&labels).set(i64::from(cluster.ready));
    metrics.failures.get_or_create(&labels).set(wide(cluster.reconnections));
    metrics.nodes.get_or_create(&labels).set(count(Kind::Nodes));
    metrics.services.get_or_create(&labels).set(count(Kind::Services));
    metrics.endpoints.get_or_create(&labels).set(count(Kind::Ips));
    metrics.refused_entries.get_or_create(&labels).set(wide(cluster.refused_now));
    metrics.stale.get_or_create(&labels).set(wide(cluster.stale_secs.unwrap_or(0)));
    if let Some(failure) = &cluster.last_failure {
        let at = unix_now().saturating_sub(wide(failure.age_secs));
        metrics.last_failure.get_or_create(&labels).set(at);
    }
    if let Some(end) = cluster.certificate_expires_unix_secs {
        metrics.certificate_expiry.get_or_create(&labels).set(end);
    }
    if let Some(age) = cluster.heartbeat_age_secs {
        metrics.heartbeat_age.get_or_create(&labels).set(wide(age));
    }
    if let Some(age) = cluster.last_event_age_secs {
        metrics.event_age.get_or_create(&labels).set(wide(age));
    }
    for (reason, counted) in cluster.rejected.iter() {
        let labels = RefusedLabels { reason: reason.to_string(), target_cluster: name() };
        metrics.refused_updates.get_or_create(&labels).set(wide(counted.count));
    }
    for (kind, usage) in &cluster.usage {
        let labels = KindLabels { target_cluster: name(), kind: kind.to_string() };
        metrics.keys.get_or_create(&labels).set(wide(usage.keys));
        metrics.bytes.get_or_create(&labels).set(wide(usage.bytes));
    }
    for (kind, count) in &cluster.withheld {
        let labels = KindLabels { target_cluster: name(), kind: kind.to_string() };
        metrics.withheld.get_or_create(&labels).set(wide(*count));
    }
    for (kind, synced) in &cluster.synced {
        let labels =
            SyncLabels { scope: kind.to_string(), source_cluster: name(), action: "read".to_owned() };
        metrics.synced.get_or_create(&labels).set(i64::from(*synced));
    }
}
