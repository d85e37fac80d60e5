//! Metrics of the cluster mesh: Cilium's names where Cilium has them, ours for what it lacks.

use super::add;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// A gauge of seconds.
type Seconds = Gauge<f64, AtomicU64>;

/// Labels of a remote cluster's gauge.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ClusterLabels {
    /// The remote cluster's name.
    pub target_cluster: String,
}

/// Labels of refused updates of a cluster's entries.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RefusedLabels {
    /// Why, as `tombolo mesh status -o json` names it.
    pub reason: String,
    /// The cluster's name.
    pub target_cluster: String,
}

/// Labels of what a cluster's entries of one kind cost.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabels {
    /// The cluster's name.
    pub target_cluster: String,
    /// The kind, as in `tombolo mesh status -o json`.
    pub kind: String,
}

/// Labels of a list that is complete or not (Cilium's).
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SyncLabels {
    /// What is listed.
    pub scope: String,
    /// Whose etcd it is in.
    pub source_cluster: String,
    /// Always `read`.
    pub action: String,
}

/// Labels of keys that are written (Cilium's).
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WriteLabels {
    /// Whose keys: `node`, this one's, or `cluster`, what the elected agent writes.
    pub scope: String,
    /// Which cluster's.
    pub source_cluster: String,
}

/// Labels of failures of an etcd (Cilium's).
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct QuorumLabels {
    /// What it said.
    pub error: String,
}

/// Labels of conflicts that were found.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct FoundLabels {
    /// The kind, as `tombolo mesh conflicts` names it.
    pub kind: String,
    /// The cluster as a whole that is wrong; empty where single claims of several are.
    pub target_cluster: String,
}

/// Labels of conflicts.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ConflictLabels {
    /// The kind, as `tombolo mesh conflicts` names it.
    pub kind: String,
}

/// Labels of a quantile of a cluster's times.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct QuantileLabels {
    /// The cluster's name.
    pub target_cluster: String,
    /// `0.5`, `0.99` or `1`.
    pub quantile: String,
}

/// Labels of a quantile of a local stage's times.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StageLabels {
    /// The cluster's name; empty for all together.
    pub target_cluster: String,
    /// `commit` or `map`.
    pub stage: String,
    /// `0.5`, `0.99` or `1`.
    pub quantile: String,
}

/// Everything that is counted of the mesh. Set as a whole when somebody asks, so that a cluster that was removed is in none.
#[derive(Debug, Default)]
pub struct MeshMetrics {
    /// Remote clusters that are followed (Cilium's name).
    pub remote_clusters: Gauge,
    /// 1 if a remote cluster is ready (Cilium's name).
    pub ready: Family<ClusterLabels, Gauge>,
    /// Reconnections to a remote cluster (Cilium's name).
    pub failures: Family<ClusterLabels, Gauge>,
    /// When the connection to it failed last, seconds since 1970 (Cilium's name).
    pub last_failure: Family<ClusterLabels, Gauge>,
    /// Its nodes (Cilium's name).
    pub nodes: Family<ClusterLabels, Gauge>,
    /// Its services (Cilium's name).
    pub services: Family<ClusterLabels, Gauge>,
    /// Its addresses (Cilium's name).
    pub endpoints: Family<ClusterLabels, Gauge>,
    /// Services that some remote cluster shares, by name (Cilium's name).
    pub global_services: Gauge,
    /// 1 for each list that is complete (Cilium's name).
    pub synced: Family<SyncLabels, Gauge>,
    /// Keys to be written to the own etcd (Cilium's name).
    pub queue: Family<WriteLabels, Gauge>,
    /// Transactions there that failed (Cilium's name).
    pub write_errors: Family<WriteLabels, Counter>,
    /// Connections there that ended because it had no leader (Cilium's name).
    pub quorum_errors: Family<QuorumLabels, Counter>,
    /// Entries of a cluster that are refused as they stand now.
    pub refused_entries: Family<ClusterLabels, Gauge>,
    /// Updates of a cluster's entries that were refused so far.
    pub refused_updates: Family<RefusedLabels, Counter>,
    /// When the first certificate towards a cluster's etcd ends, seconds since 1970.
    pub certificate_expiry: Family<ClusterLabels, Gauge>,
    /// Conflicts that stand, by kind.
    pub conflicts: Family<ConflictLabels, Gauge>,
    /// Conflicts that were found so far.
    pub conflicts_found: Family<FoundLabels, Counter>,
    /// Keys that are known, by kind.
    pub keys: Family<KindLabels, Gauge>,
    /// Bytes of names and values of these keys.
    pub bytes: Family<KindLabels, Gauge>,
    /// Entries that are known and not used, because they were not confirmed for too long.
    pub withheld: Family<KindLabels, Gauge>,
    /// Seconds since a cluster's last heartbeat.
    pub heartbeat_age: Family<ClusterLabels, Gauge>,
    /// Seconds since the last change of an entry.
    pub event_age: Family<ClusterLabels, Gauge>,
    /// Seconds since the entries were last confirmed; 0 while they are current.
    pub stale: Family<ClusterLabels, Gauge>,
    /// Time from a write in the cluster's etcd to its follower here.
    pub lag: Family<QuantileLabels, Seconds>,
    /// Time of a stage inside this agent.
    pub stages: Family<StageLabels, Seconds>,
}

impl MeshMetrics {
    /// Forgets what was set: the next values are all there are.
    pub fn clear(&self) {
        for family in [
            &self.ready,
            &self.failures,
            &self.last_failure,
            &self.nodes,
            &self.services,
            &self.endpoints,
            &self.refused_entries,
            &self.certificate_expiry,
            &self.heartbeat_age,
            &self.event_age,
            &self.stale,
        ] {
            family.clear();
        }
        [&self.keys, &self.bytes, &self.withheld].into_iter().for_each(Family::clear);
        self.synced.clear();
        self.refused_updates.clear();
        self.conflicts_found.clear();
        self.lag.clear();
        self.stages.clear();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        add(registry, "cilium_clustermesh_remote_clusters", "Remote clusters", &self.remote_clusters);
        let by_cluster = [
            ("cilium_clustermesh_remote_cluster_readiness_status", "1 if ready", &self.ready),
            ("cilium_clustermesh_remote_cluster_failures", "Reconnections", &self.failures),
            ("cilium_clustermesh_remote_cluster_last_failure_ts", "Last failure", &self.last_failure),
            ("cilium_clustermesh_remote_cluster_nodes", "Nodes", &self.nodes),
            ("cilium_clustermesh_remote_cluster_services", "Shared services", &self.services),
            ("cilium_clustermesh_remote_cluster_endpoints", "Addresses", &self.endpoints),
            ("tombolo_clustermesh_refused_entries", "Entries refused as they stand", &self.refused_entries),
            (
                "tombolo_clustermesh_certificate_expiry_timestamp_seconds",
                "End of the first certificate that ends",
                &self.certificate_expiry,
            ),
            ("tombolo_clustermesh_heartbeat_age_seconds", "Age of the last heartbeat", &self.heartbeat_age),
            ("tombolo_clustermesh_event_age_seconds", "Age of the last change", &self.event_age),
            ("tombolo_clustermesh_stale_seconds", "Time since entries were confirmed", &self.stale),
        ];
        by_cluster.into_iter().for_each(|(name, help, family)| add(registry, name, help, family));
        let services = "Services that remote clusters share";
        add(registry, "cilium_clustermesh_global_services", services, &self.global_services);
        add(registry, "cilium_kvstore_initial_sync_completed", "1 if the list is complete", &self.synced);
        add(registry, "cilium_kvstore_sync_queue_size", "Keys to be written", &self.queue);
        add(registry, "cilium_kvstore_sync_errors", "Transactions that failed", &self.write_errors);
        let quorum = "Connections that ended because etcd had no leader";
        add(registry, "cilium_kvstore_quorum_errors", quorum, &self.quorum_errors);
        let refused = "Updates refused so far";
        add(registry, "tombolo_clustermesh_refused_updates", refused, &self.refused_updates);
        add(registry, "tombolo_clustermesh_conflicts", "Conflicts that stand", &self.conflicts);
        add(registry, "tombolo_clustermesh_conflicts_found", "Conflicts so far", &self.conflicts_found);
        add(registry, "tombolo_clustermesh_keys", "Known keys", &self.keys);
        add(registry, "tombolo_clustermesh_bytes", "Bytes of known keys and values", &self.bytes);
        add(registry, "tombolo_clustermesh_withheld", "Entries known and not used", &self.withheld);
        add(
            registry,
            "tombolo_clustermesh_lag_seconds",
            "From a write there to the follower here",
            &self.lag,
        );
        add(registry, "tombolo_clustermesh_stage_seconds", "Time of a stage in this agent", &self.stages);
    }
}
