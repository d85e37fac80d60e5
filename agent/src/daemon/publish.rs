//! What this node says in its own cluster's etcd, and what the elected one says for all.

use super::backend::Texts;
use super::drive::Driver;
use std::sync::{Arc, PoisonError};
use tombolo_base::ids::{ClusterId, ClusterName};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Table;
use tombolo_clustermesh::publisher::{Desired, PublisherHandle};
use tombolo_clustermesh::rows::{self, Assignment};
use tombolo_kubernetes::Tables;
use tombolo_service::{LbAssignment, pools};
use tombolo_topology::{NodeRow, PrefixRow, WireguardKey};

/// A key that can be written, or a log line why not: one bad object costs itself only.
fn written(desired: Result<Desired, tombolo_clustermesh::MeshError>) -> Option<Desired> {
    desired.inspect_err(|error| tracing::warn!(%error, "not published")).ok()
}

/// Publishes this node and its pods' addresses until cancelled.
pub(crate) async fn node(
    driver: Driver,
    own: (Source, ClusterName, Arc<str>),
    nodes: Table<NodeRow>,
    prefixes: Table<PrefixRow>,
    wireguard: Option<WireguardKey>,
    publisher: PublisherHandle,
) {
    let (mut node_changes, mut prefix_changes) = (nodes.changes(), prefixes.changes());
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = node_changes.next() => {}
            _ = prefix_changes.next() => {}
        }
        let (nodes, prefixes) = (nodes.snapshot(), prefixes.snapshot());
        let cluster = nodes.by_source(&Source::Manifests).filter(|row| row.cluster == own.1);
        publisher.set_nodes(cluster.map(|row| row.name.clone()));
        // Until the endpoints of an earlier life are known, their addresses stay as they are in etcd.
        let restored = prefixes.source_state(&Source::Local) == Some(SourceState::Initialized);
        let Some(row) = nodes.get(&own).filter(|_| restored) else { continue };
        let encryption_key = if wireguard.is_some() { 255 } else { 0 };
        let row = NodeRow { wireguard_key: wireguard, encryption_key, ..row.clone() };
        let ips = prefixes.by_source(&Source::Local).map(|row| Desired::ip(&rows::ip_entry(row)));
        let node = Desired::node(&rows::node_entry(&row));
        publisher.set_node(std::iter::once(node).chain(ips).filter_map(written));
    }
}

/// Plans what belongs to the whole cluster, global services and LoadBalancer addresses, until cancelled. The publisher
/// writes it while this node is the elected one.
pub(crate) async fn cluster(
    driver: Driver,
    name: ClusterName,
    id: ClusterId,
    tables: Tables,
    addresses: Table<LbAssignment>,
    publisher: PublisherHandle,
    problems: Texts,
) {
    let (mut services, mut slices) = (tables.services.changes(), tables.slices.changes());
    let (mut offered, mut assigned) = (tables.pools.changes(), addresses.changes());
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = services.next() => {}
            _ = slices.next() => {}
            _ = offered.next() => {}
            _ = assigned.next() => {}
        }
        let (services, slices, present) =
            (tables.services.snapshot(), tables.slices.snapshot(), addresses.snapshot());
        let known = services.is_complete()
            && present.source_state(&Source::Cluster(name.clone())) == Some(SourceState::Initialized);
        // Without what was assigned before, addresses would change.
        if !known {
            continue;
        }
        let pools: Vec<_> = tables.pools.snapshot().iter().cloned().collect();
        let all: Vec<_> = services.iter().cloned().collect();
        let before = present.iter().map(|row| (row.name.clone(), row.addresses.clone())).collect();
        let decided = pools::assign(&pools, &all, &before);
        *problems.lock().unwrap_or_else(PoisonError::into_inner) = decided.problems;
        // Like Cilium's exporter: a service without any EndpointSlice is not exported, an empty slice is enough.
        let global = all.iter().filter(|row| row.global && slices.by_index(&row.name).next().is_some());
        let exported = global
            .map(|row| Desired::service(&rows::service_entry(&name, id, row, slices.by_index(&row.name))));
        let assigned = decided.rows.iter().map(|row| Desired::assignment(&row.name, &Assignment::of(row)));
        publisher.set_cluster(exported.chain(assigned).filter_map(written));
    }
}
