//! Metrics of a relay, with the names of Cilium's KVStoreMesh where it has them.

use crate::metrics::{ClusterLabels, add};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of a mirror's gauge.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SourceLabels {
    /// The cluster that is mirrored.
    pub source_cluster: String,
}

/// Everything a relay counts.
#[derive(Debug, Default)]
pub struct RelayMetrics {
    /// 1 if this relay is the elected one.
    pub elected: Gauge,
    /// Clusters with a file.
    pub remote_clusters: Gauge,
    /// 1 if a cluster is read whole (Cilium's name).
    pub ready: Family<ClusterLabels, Gauge>,
    /// Connections to a cluster that were lost (Cilium's name).
    pub failures: Family<ClusterLabels, Gauge>,
    /// The last of them, seconds since 1970 (Cilium's name).
    pub last_failure: Family<ClusterLabels, Gauge>,
    /// Keys to be compared or written (Cilium's name).
    pub queue: Family<SourceLabels, Gauge>,
    /// 1 if a cluster's mirror is whole (Cilium's name).
    pub synced: Family<SourceLabels, Gauge>,
    /// Entries that a mirror should hold.
    pub entries: Family<SourceLabels, Gauge>,
    /// Entries of a cluster that are refused as they stand now.
    pub refused: Family<SourceLabels, Gauge>,
    /// Seconds since a cluster was confirmed last; 0 while it is current.
    pub stale: Family<SourceLabels, Gauge>,
    /// When the first certificate towards a cluster's etcd ends, seconds since 1970.
    pub certificate_expiry: Family<ClusterLabels, Gauge>,
}

impl RelayMetrics {
    /// All metrics as text, with those that `more` adds: what is not set here but counted where it happens.
    ///
    /// # Errors
    /// Only if the writer fails, which a `String` does not.
    pub fn render(&self, more: impl FnOnce(&mut Registry)) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        more(&mut registry);
        let mesh = "cilium_kvstoremesh";
        add(&mut registry, "tombolo_relay_elected", "1 if elected", &self.elected);
        add(&mut registry, &format!("{mesh}_remote_clusters"), "Clusters with a file", &self.remote_clusters);
        add(&mut registry, &format!("{mesh}_remote_cluster_readiness_status"), "1 if ready", &self.ready);
        add(&mut registry, &format!("{mesh}_remote_cluster_failures"), "Reconnections", &self.failures);
        let last = format!("{mesh}_remote_cluster_last_failure_ts");
        add(&mut registry, &last, "Time of the last failure", &self.last_failure);
        add(&mut registry, &format!("{mesh}_kvstore_sync_queue_size"), "Keys to be written", &self.queue);
        let synced = format!("{mesh}_kvstore_initial_sync_completed");
        add(&mut registry, &synced, "1 if the mirror is whole", &self.synced);
        add(&mut registry, "tombolo_relay_entries", "Entries of a mirror", &self.entries);
        add(&mut registry, "tombolo_relay_refused_entries", "Entries refused as they stand", &self.refused);
        add(&mut registry, "tombolo_relay_stale_seconds", "Age of what is not confirmed", &self.stale);
        add(
            &mut registry,
            "tombolo_clustermesh_certificate_expiry_timestamp_seconds",
            "End of the first certificate that ends",
            &self.certificate_expiry,
        );
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let metrics = RelayMetrics::default();
        metrics.queue.get_or_create(&SourceLabels { source_cluster: "west".to_owned() }).set(4);
        metrics.elected.set(1);
        let text = metrics.render(|_| {}).unwrap();
        assert!(
            text.contains("cilium_kvstoremesh_kvstore_sync_queue_size{source_cluster=\"west\"} 4"),
            "{text}"
        );
        assert!(text.contains("tombolo_relay_elected 1"), "{text}");
    }
}
