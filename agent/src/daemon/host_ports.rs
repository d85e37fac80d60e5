//! Pods of this node with ports of the node: what their Pod objects say and what the runtime said, each port once.

use super::drive::Driver;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{Snapshot, Table, Writer};
use tombolo_kubernetes::PodRow;
use tombolo_service::{HostPortRow, ServiceName};
use tombolo_topology::{EndpointRow, EndpointState};

/// The rows of the pods that are ready. A pod whose sandbox was made anew has the ports of the last one.
fn rows(endpoints: &Snapshot<EndpointRow>, pods: &Snapshot<PodRow>) -> Vec<HostPortRow> {
    let mut rows: BTreeMap<ServiceName, HostPortRow> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|row| row.state == EndpointState::Ready) {
        let mut ports = endpoint.port_mappings.clone();
        if let Some(pod) = pods.get(&(endpoint.namespace.clone(), endpoint.pod.clone())) {
            ports.extend(pod.host_ports.iter().copied());
        }
        if !ports.is_empty() {
            let name = HostPortRow::name_of(&endpoint.namespace, &endpoint.pod);
            let addresses = endpoint.addresses.clone();
            rows.insert(name.clone(), HostPortRow { name, addresses, ports });
        }
    }
    rows.into_values().collect()
}

/// Keeps the table in step with pods and endpoints until cancelled.
pub(crate) async fn plan(
    driver: Driver,
    endpoints: Table<EndpointRow>,
    pods: Table<PodRow>,
    out: Arc<Writer<HostPortRow>>,
) {
    let (mut endpoint_changes, mut pod_changes) = (endpoints.changes(), pods.changes());
    loop {
        let (endpoint_rows, pod_rows) = (endpoints.snapshot(), pods.snapshot());
        // Both must have spoken before anything of an earlier life goes.
        let said = [endpoint_rows.source_state(&Source::Local), pod_rows.source_state(&Source::Manifests)];
        out.commit(|txn| {
            txn.replace_source(&Source::Local, rows(&endpoint_rows, &pod_rows));
            if let Some(least) = said.into_iter().min().flatten() {
                txn.set_source(&Source::Local, least);
            }
        });
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = endpoint_changes.next() => {}
            _ = pod_changes.next() => {}
        }
    }
}
