//! Metrics in Prometheus' text form. Label values are bounded: reasons, tables, clusters, peers.

mod mesh;

pub use mesh::{
    ClusterLabels, ConflictLabels, FoundLabels, KindLabels, MeshMetrics, QuantileLabels, QuorumLabels,
    RefusedLabels, StageLabels, SyncLabels, WriteLabels,
};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

/// Labels of a drop counter.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabels {
    /// Cilium's name of the reason; `FORWARDED` for packets that passed.
    pub reason: String,
    /// `ingress` or `egress`.
    pub direction: String,
}

/// Labels of a table's gauge.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct TableLabels {
    /// The table's name.
    pub table: String,
}

/// Labels of a BGP peer's gauge.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerLabels {
    /// The instance.
    pub vrouter: String,
    /// The peer's address and port.
    pub neighbor: String,
    /// The peer's AS.
    pub neighbor_asn: String,
}

/// Labels of a gauge of one address family of a BGP peer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerFamilyLabels {
    /// The instance's AS.
    pub vrouter: String,
    /// The peer's address and port.
    pub neighbor: String,
    /// The peer's AS.
    pub neighbor_asn: String,
    /// `ipv4` or `ipv6`.
    pub afi: String,
    /// `unicast`.
    pub safi: String,
}

/// Labels of a gauge of the messages of a BGP peer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerMessageLabels {
    /// The instance's AS.
    pub vrouter: String,
    /// The peer's address and port.
    pub neighbor: String,
    /// The peer's AS.
    pub neighbor_asn: String,
    /// `received` or `sent`.
    pub direction: String,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Packets by verdict, taken from the datapath's per-CPU counters.
    pub packets: Family<ReasonLabels, Gauge>,
    /// Rows by table.
    pub rows: Family<TableLabels, Gauge>,
    /// Rows that a target does not hold yet, by table.
    pub pending: Family<TableLabels, Gauge>,
    /// Rows whose last write failed, by table.
    pub failed: Family<TableLabels, Gauge>,
    /// Flow events seen.
    pub flows: Counter,
    /// Flow events that the ring had no room for.
    pub flows_lost: Counter,
    /// Flow events beyond what one interface may tell in a second.
    pub flows_limited: Counter,
    /// The cluster mesh.
    pub mesh: MeshMetrics,
    /// 1 if a BGP session is established (Cilium's name).
    pub bgp_session_state: Family<PeerLabels, Gauge>,
    /// Routes told to a BGP peer (Cilium's name).
    pub bgp_advertised_routes: Family<PeerFamilyLabels, Gauge>,
    /// Routes held from a BGP peer (Cilium's name).
    pub bgp_received_routes: Family<PeerFamilyLabels, Gauge>,
    /// Messages of any type exchanged with a BGP peer.
    pub bgp_messages: Family<PeerMessageLabels, Gauge>,
    /// Sessions with a BGP peer that were established.
    pub bgp_sessions: Family<PeerLabels, Gauge>,
    /// UPDATEs of a BGP peer whose routes were treated as withdrawn (RFC 7606).
    pub bgp_treated_as_withdraw: Family<PeerLabels, Gauge>,
    /// Entries of each eBPF map.
    pub map_entries: Family<TableLabels, Gauge>,
    /// Room of each eBPF map.
    pub map_capacity: Family<TableLabels, Gauge>,
}

impl Metrics {
    /// All metrics as text, with those that `more` adds: what is not set here but counted where it happens.
    ///
    /// # Errors
    /// Only if the writer fails, which a `String` does not.
    pub fn render(&self, more: impl FnOnce(&mut Registry)) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        more(&mut registry);
        add(&mut registry, "tombolo_datapath_packets", "Packets by verdict and direction", &self.packets);
        add(&mut registry, "tombolo_table_rows", "Rows by table", &self.rows);
        add(
            &mut registry,
            "tombolo_reconciler_pending",
            "Rows not carried to their target yet",
            &self.pending,
        );
        add(&mut registry, "tombolo_reconciler_failed", "Rows whose last write failed", &self.failed);
        add(&mut registry, "tombolo_flows", "Flow events seen", &self.flows);
        add(&mut registry, "tombolo_flows_lost", "Flow events lost for want of room", &self.flows_lost);
        add(
            &mut registry,
            "tombolo_flows_limited",
            "Flow events beyond datapath.events_per_second of their interface",
            &self.flows_limited,
        );
        self.mesh.register(&mut registry);
        add(
            &mut registry,
            "cilium_bgp_control_plane_session_state",
            "1 if established",
            &self.bgp_session_state,
        );
        add(
            &mut registry,
            "cilium_bgp_control_plane_advertised_routes",
            "Routes told to the peer",
            &self.bgp_advertised_routes,
        );
        add(
            &mut registry,
            "cilium_bgp_control_plane_received_routes",
            "Routes held from the peer",
            &self.bgp_received_routes,
        );
        add(&mut registry, "tombolo_bgp_messages", "Messages by direction", &self.bgp_messages);
        add(&mut registry, "tombolo_bgp_sessions", "Sessions established so far", &self.bgp_sessions);
        add(
            &mut registry,
            "tombolo_bgp_treated_as_withdraw",
            "UPDATEs whose routes were treated as withdrawn",
            &self.bgp_treated_as_withdraw,
        );
        add(&mut registry, "tombolo_bpf_map_entries", "Entries by eBPF map", &self.map_entries);
        add(&mut registry, "tombolo_bpf_map_capacity", "Room by eBPF map", &self.map_capacity);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

pub(crate) fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: &M) {
    registry.register(name, help, metric.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let metrics = Metrics::default();
        metrics.rows.get_or_create(&TableLabels { table: "nodes".to_owned() }).set(4);
        metrics.flows.inc();
        let text = metrics.render(|_| {}).unwrap();
        assert!(text.contains("tombolo_table_rows{table=\"nodes\"} 4"), "{text}");
        assert!(text.contains("tombolo_flows_total 1"), "{text}");
    }
}
