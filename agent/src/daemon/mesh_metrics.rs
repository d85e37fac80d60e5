//! The followers' states as metrics.

use super::mesh_view::{Conflict, counted};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tombolo_base::table::Snapshot;
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::follower::{ClusterConflictKind, ClusterStatus, Quantiles};
use tombolo_clustermesh::publisher::WriteCounts;
use tombolo_clustermesh::wire::Kind;
use tombolo_observe::metrics::{
    ClusterLabels, ConflictLabels, FoundLabels, KindLabels, MeshMetrics, QuantileLabels, QuorumLabels,
    RefusedLabels, StageLabels, SyncLabels, WriteLabels,
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
    /// From the rows to the datapath's map.
    pub(crate) map: Quantiles,
    /// What is written to the own etcd, once the publisher runs.
    pub(crate) written: Option<Written>,
}

/// How the own etcd takes what is published.
pub(crate) struct Written {
    /// By whose keys they are.
    pub(crate) writes: [(&'static str, WriteCounts); 2],
    /// Connections that ended because it had no leader.
    pub(crate) no_leader: u64,
}

fn wide<T: TryInto<i64>>(value: T) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// Sets all of them anew.
pub(crate) fn fill(metrics: &MeshMetrics, seen: &Seen<'_>) {
    metrics.clear();
    let others = seen.clusters.iter().filter(|cluster| cluster.name != seen.own);
    metrics.remote_clusters.set(wide(others.count()));
    let names: BTreeSet<_> = seen.services.iter().map(|row| &row.name).collect();
    metrics.global_services.set(wide(names.len()));
    for (kind, count) in counted(seen.conflicts) {
        metrics.conflicts.get_or_create(&ConflictLabels { kind: kind.to_owned() }).set(wide(count));
    }
    for kind in ConflictKind::ALL {
        found(metrics, kind.word(), "", seen.found.map_or(0, |found| found.found(kind)));
    }
    for cluster in seen.clusters {
        // Cilium's metrics are of remote clusters only.
        if cluster.name != seen.own {
            remote(metrics, cluster);
        }
        one(metrics, cluster);
    }
    stage(metrics, "", "map", &seen.map);
    if let Some(written) = &seen.written {
        publisher(metrics, seen.own, written);
    }
}

fn publisher(metrics: &MeshMetrics, own: &str, written: &Written) {
    for (scope, counts) in written.writes {
        let labels = WriteLabels { scope: scope.to_owned(), source_cluster: own.to_owned() };
        metrics.queue.get_or_create(&labels).set(wide(counts.queued));
        metrics.write_errors.get_or_create(&labels).inner().store(counts.failed, Ordering::Relaxed);
    }
    let labels = QuorumLabels { error: "no leader".to_owned() };
    metrics.quorum_errors.get_or_create(&labels).inner().store(written.no_leader, Ordering::Relaxed);
}

/// Quantiles in seconds, with the label that Prometheus' summaries have.
fn quantiles(times: &Quantiles) -> impl Iterator<Item = (&'static str, f64)> {
    let found = [("0.5", times.p50_us), ("0.99", times.p99_us), ("1", times.max_us)];
    let any = times.count > 0;
    let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
    found.into_iter().filter(move |_| any).map(move |(quantile, micros)| (quantile, seconds(micros)))
}

fn stage(metrics: &MeshMetrics, cluster: &str, stage: &str, times: &Quantiles) {
    for (quantile, seconds) in quantiles(times) {
        let labels = StageLabels {
            target_cluster: cluster.to_owned(),
            stage: stage.to_owned(),
            quantile: quantile.to_owned(),
        };
        metrics.stages.get_or_create(&labels).set(seconds);
    }
}

fn found(metrics: &MeshMetrics, kind: &str, cluster: &str, count: u64) {
    let labels = FoundLabels { kind: kind.to_owned(), target_cluster: cluster.to_owned() };
    metrics.conflicts_found.get_or_create(&labels).inner().store(count, Ordering::Relaxed);
}

/// What Cilium counts of a remote cluster, under its names.
fn remote(metrics: &MeshMetrics, cluster: &ClusterStatus) {
    let labels = ClusterLabels { target_cluster: cluster.name.clone() };
    let count = |kind| wide(cluster.counts.get(&kind).copied().unwrap_or(0));
    metrics.ready.get_or_create(&labels).set(i64::from(cluster.ready));
    metrics.failures.get_or_create(&labels).set(wide(cluster.reconnections));
    metrics.nodes.get_or_create(&labels).set(count(Kind::Nodes));
    metrics.services.get_or_create(&labels).set(count(Kind::Services));
    metrics.endpoints.get_or_create(&labels).set(count(Kind::Ips));
    if let Some(failure) = &cluster.last_failure {
        let at = unix_now().saturating_sub(wide(failure.age_secs));
        metrics.last_failure.get_or_create(&labels).set(at);
    }
}

/// What is counted of every cluster that is followed.
fn one(metrics: &MeshMetrics, cluster: &ClusterStatus) {
    let name = || cluster.name.clone();
    let labels = ClusterLabels { target_cluster: name() };
    metrics.refused_entries.get_or_create(&labels).set(wide(cluster.refused_now));
    metrics.stale.get_or_create(&labels).set(wide(cluster.stale_secs.unwrap_or(0)));
    for kind in ClusterConflictKind::ALL {
        let count = cluster.conflicts_found.get(&kind).copied().unwrap_or(0);
        found(metrics, kind.word(), &cluster.name, count);
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
    for (quantile, seconds) in cluster.lag.iter().flat_map(|lag| quantiles(&lag.lag)) {
        let labels = QuantileLabels { target_cluster: name(), quantile: quantile.to_owned() };
        metrics.lag.get_or_create(&labels).set(seconds);
    }
    stage(metrics, &cluster.name, "commit", &cluster.commit);
    for (reason, counted) in cluster.rejected.iter() {
        let labels = RefusedLabels { reason: reason.to_string(), target_cluster: name() };
        metrics.refused_updates.get_or_create(&labels).inner().store(counted.count, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tombolo_clustermesh::follower::{FailureStatus, KindUsage, LagStatus};
    use tombolo_clustermesh::operations::{Operation, Operations};
    use tombolo_clustermesh::wire::{Reason, Reject, Rejections};
    use tombolo_observe::metrics::Metrics;

    const TIMES: Quantiles = Quantiles { count: 3, p50_us: 2_000, p99_us: 9_000, max_us: 10_000 };

    /// A cluster of which everything is known.
    fn status() -> ClusterStatus {
        let mut rejected = Rejections::default();
        rejected.count("some/key", &Reject { reason: Reason::Malformed, detail: "{".to_owned() });
        let usage = KindUsage { keys: 7, bytes: 700 };
        ClusterStatus {
            name: "west".to_owned(),
            ready: true,
            counts: BTreeMap::from([(Kind::Nodes, 2), (Kind::Services, 3), (Kind::Ips, 7)]),
            synced: BTreeMap::from([(Kind::Ips, true)]),
            last_failure: Some(FailureStatus { text: "x".to_owned(), age_secs: 5 }),
            heartbeat_age_secs: Some(3),
            last_event_age_secs: Some(4),
            certificate_expires_unix_secs: Some(4_000_000_000),
            usage: BTreeMap::from([(Kind::Ips, usage)]),
            withheld: BTreeMap::from([(Kind::Services, 3)]),
            conflicts_found: BTreeMap::from([(ClusterConflictKind::Identity, 2)]),
            rejected,
            lag: Some(LagStatus { lag: TIMES, last_us: 1, base_us: 1 }),
            commit: TIMES,
            ..ClusterStatus::default()
        }
    }

    fn scrape(metrics: &Metrics, clusters: &[ClusterStatus]) -> String {
        let seen = Seen {
            own: "east",
            clusters,
            conflicts: &[],
            found: None,
            services: Snapshot::default(),
            map: TIMES,
            written: Some(Written {
                writes: [
                    ("node", WriteCounts { queued: 4, failed: 5 }),
                    ("cluster", WriteCounts { queued: 0, failed: 6 }),
                ],
                no_leader: 7,
            }),
        };
        fill(&metrics.mesh, &seen);
        let etcd = Operations::default();
        etcd.note(Operation::Get, "cilium/.heartbeat", Duration::from_millis(2), true);
        metrics.render(|registry| etcd.register(registry, "cilium_kvstore")).unwrap()
    }

    /// Names of the mesh's metrics in a text, each a word that begins as they do.
    fn names(text: &str) -> BTreeSet<String> {
        let word = |letter: char| !(letter.is_ascii_alphanumeric() || letter == '_');
        let ours = |word: &&str| {
            ["cilium_clustermesh_", "cilium_kvstore_", "tombolo_clustermesh_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        };
        let series = |name: &str| {
            let suffixes = ["_bucket", "_sum", "_count"];
            suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name).to_owned()
        };
        text.split(word).filter(ours).map(series).collect()
    }

    #[test]
    fn what_is_scraped_is_what_the_documentation_lists() {
        let own = ClusterStatus { name: "east".to_owned(), ..status() };
        let text = scrape(&Metrics::default(), &[own, status()]);
        let samples: String =
            text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let documented = include_str!("../../../docs/clustermesh.md");
        let start = documented.find("## Metrics").unwrap();
        let section = documented[start + 3..].split("\n## ").next().unwrap();
        assert_eq!(names(&samples), names(section));
        for line in [
            "cilium_clustermesh_remote_clusters 1",
            "cilium_clustermesh_global_services 0",
            "cilium_kvstore_sync_queue_size{scope=\"node\",source_cluster=\"east\"} 4",
            "cilium_kvstore_sync_errors_total{scope=\"cluster\",source_cluster=\"east\"} 6",
            "cilium_kvstore_operations_duration_seconds_bucket{le=\"0.005\",scope=\"cilium/.hear\",kind=\"read\",action=\"Get\",outcome=\"success\"} 1",
            "cilium_kvstore_quorum_errors_total{error=\"no leader\"} 7",
            "cilium_clustermesh_remote_cluster_endpoints{target_cluster=\"west\"} 7",
            "tombolo_clustermesh_keys{target_cluster=\"west\",kind=\"ips\"} 7",
            "tombolo_clustermesh_lag_seconds{target_cluster=\"west\",quantile=\"0.99\"} 0.009",
            "tombolo_clustermesh_stage_seconds{target_cluster=\"\",stage=\"map\",quantile=\"0.5\"} 0.002",
            "tombolo_clustermesh_conflicts{kind=\"pod-cidr\"} 0",
            "tombolo_clustermesh_conflicts_found_total{kind=\"pod-cidr\",target_cluster=\"\"} 0",
            "tombolo_clustermesh_conflicts_found_total{kind=\"identity\",target_cluster=\"west\"} 2",
            "tombolo_clustermesh_conflicts_found_total{kind=\"cluster-id\",target_cluster=\"west\"} 0",
            "tombolo_clustermesh_refused_updates_total{reason=\"malformed\",target_cluster=\"west\"} 1",
            "tombolo_clustermesh_keys{target_cluster=\"east\",kind=\"ips\"} 7",
        ] {
            assert!(samples.lines().any(|sample| sample == line), "{line}\n{samples}");
        }
        let of_remotes = samples.lines().filter(|line| line.starts_with("cilium_clustermesh_"));
        assert_eq!(of_remotes.filter(|line| line.contains("east")).count(), 0, "{samples}");
    }

    #[test]
    fn a_cluster_that_was_removed_is_in_no_metric() {
        let metrics = Metrics::default();
        assert!(scrape(&metrics, &[status()]).contains("west"));
        let text = scrape(&metrics, &[]);
        assert!(!text.contains("west") && text.contains("cilium_clustermesh_remote_clusters 0"), "{text}");
    }
}
