//! `tombolo mesh services`: the tables' rows as the service planner sees them, and how fresh each cluster's are.

use super::planners::ZONE;
use super::tables::Intent;
use serde::Serialize;
use std::collections::BTreeMap;
use tombolo_base::table::Row;
use tombolo_clustermesh::follower::ClusterStatus;
use tombolo_clustermesh::wire::Kind;
use tombolo_service::plan::Inputs;
use tombolo_service::view::{self, ServiceView};
use tombolo_topology::NodeRow;

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct MeshServices {
    /// Global services by namespace and name.
    services: Vec<ServiceView>,
    /// Clusters whose services are known and not used, and how many.
    withheld: BTreeMap<String, usize>,
}

/// Services, or slices where a cluster publishes those only.
fn withheld(cluster: &ClusterStatus) -> usize {
    [Kind::Services, Kind::EndpointSlices].iter().filter_map(|kind| cluster.withheld.get(kind)).sum()
}

/// All global services, or those of a name, as this node uses them.
pub(crate) fn services(
    intent: &Intent,
    own: &<NodeRow as Row>::Key,
    clusters: &[ClusterStatus],
    only: Option<&str>,
) -> MeshServices {
    let inputs = Inputs {
        services: intent.kube.services.snapshot(),
        slices: intent.kube.slices.snapshot(),
        remote: intent.remote_services.snapshot(),
        addresses: intent.addresses.snapshot(),
        probes: intent.probes.snapshot(),
        host_ports: intent.host_ports.snapshot(),
    };
    let nodes = intent.kube.nodes.snapshot();
    let zone = nodes.get(own).and_then(|row| row.labels.get(ZONE));
    let (_, cluster, node) = own;
    let mut services = view::global(&inputs, node, cluster.as_str(), zone.map(AsRef::as_ref), only);
    for status in clusters {
        for service in &mut services {
            if let Some(cluster) = service.clusters.get_mut(status.name.as_str()) {
                cluster.stale_secs = status.stale_secs;
            }
        }
    }
    let withheld = clusters.iter().map(|status| (status.name.clone(), withheld(status)));
    MeshServices { services, withheld: withheld.filter(|(_, count)| *count > 0).collect() }
}
