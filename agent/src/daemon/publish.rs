//! What this node says in its own cluster's etcd, and what the elected one says for all.

use super::backend::Texts;
use super::drive::Driver;
use super::mcs::{self, News, Speaker};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Snapshot, Table};
use tombolo_clustermesh::publisher::{Desired, PublisherHandle};
use tombolo_clustermesh::rows::{self, Assignment};
use tombolo_clustermesh::wire::{ExportMode, key};
use tombolo_kubernetes::{NamespaceRow, Tables};
use tombolo_service::{LbAssignment, ServiceName, ServiceRow, SliceRow, pools};
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

/// What was assigned before, as etcd has it. The elected agent reads it itself: its own follower of this etcd waits for
/// canaries, which it is this agent's task to write.
async fn assigned_before(publisher: &PublisherHandle) -> Result<Assignments, tombolo_clustermesh::MeshError> {
    let listed = publisher.key_values().list(key::ASSIGNMENTS).await?;
    let one = |(key, value): (&String, &Vec<u8>)| {
        let decoded = Assignment::decode(key.strip_prefix(key::ASSIGNMENTS)?, value);
        let told = decoded.inspect_err(|reject| {
            tracing::warn!(key = %key.escape_debug(), %reject, "not used; what this node remembers is written there again");
        });
        told.ok().map(|(name, assignment)| (name, assignment.addresses))
    };
    Ok(listed.iter().filter_map(one).collect())
}

/// What this cluster's elected agents said before: addresses, and when exports were published first.
async fn said_before(
    publisher: &PublisherHandle,
    id: ClusterId,
    mcs: &mut Option<(Speaker, MaxClusters)>,
) -> Result<Assignments, tombolo_clustermesh::MeshError> {
    let assigned = assigned_before(publisher).await?;
    if let Some((speaker, max)) = mcs {
        speaker.learn(publisher, (id, *max)).await?;
    }
    Ok(assigned)
}

type Assignments = BTreeMap<ServiceName, BTreeSet<IpAddr>>;

/// What the cluster-wide plan reads.
pub(crate) struct ClusterInputs {
    /// This cluster's name.
    pub(crate) name: ClusterName,
    /// This cluster's id.
    pub(crate) id: ClusterId,
    /// How backends are published.
    pub(crate) backends: ExportMode,
    /// Kubernetes objects.
    pub(crate) tables: Tables,
    /// Addresses as this node learned them, also from an earlier life.
    pub(crate) addresses: Table<LbAssignment>,
    /// Exports and imports, unless they are switched off; and the size of the mesh, which says which entries are sound.
    pub(crate) mcs: Option<(Speaker, MaxClusters)>,
}

/// The services that other clusters are told of. Like Cilium's exporter: one without any EndpointSlice is not exported, an
/// empty slice is enough; a namespace that is not described is global.
fn exported<'a>(
    services: &'a [ServiceRow],
    slices: &'a Snapshot<SliceRow>,
    namespaces: &'a Snapshot<NamespaceRow>,
) -> impl Iterator<Item = &'a ServiceRow> {
    services.iter().filter(|row| {
        let global = namespaces.get(&row.name.namespace).is_none_or(|namespace| namespace.global);
        rows::exported(row, global) && slices.by_index(&row.name).next().is_some()
    })
}

/// Plans what belongs to the whole cluster, global services and LoadBalancer addresses, while this node is the elected
/// one, until cancelled.
pub(crate) async fn cluster(
    driver: Driver,
    inputs: ClusterInputs,
    publisher: PublisherHandle,
    problems: Texts,
) {
    let ClusterInputs { name, id, backends, tables, addresses, mut mcs } = inputs;
    let mut news = mcs.as_ref().map(|(speaker, _)| News::of(&tables, speaker));
    let (mut services, mut slices) = (tables.services.changes(), tables.slices.changes());
    let (mut offered, mut namespaces) = (tables.pools.changes(), tables.namespaces.changes());
    let mut leader = publisher.leader();
    // `None` until etcd was asked in this term: without what was assigned before, addresses would change.
    let mut present: Option<Assignments> = None;
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = services.next() => {}
            _ = slices.next() => {}
            _ = offered.next() => {}
            _ = namespaces.next() => {}
            () = mcs::next(&mut news) => {}
            changed = leader.changed() => {
                if changed.is_err() { return }
                present = None;
            }
        }
        if !*leader.borrow_and_update() || !tables.services.snapshot().is_complete() {
            continue;
        }
        let known = match present.take() {
            Some(known) => known,
            None => match said_before(&publisher, id, &mut mcs).await {
                // An etcd that was wiped has nothing; what this node remembers is as good.
                Ok(listed) => {
                    let remembered = addresses.snapshot();
                    let remembered = remembered.iter().map(|row| (row.name.clone(), row.addresses.clone()));
                    remembered.chain(listed).collect()
                }
                Err(error) => {
                    // The connection is gone, and with it the election; the next term asks again.
                    tracing::warn!(%error, "the present LoadBalancer addresses and exports cannot be read");
                    continue;
                }
            },
        };
        let (services, slices) = (tables.services.snapshot(), tables.slices.snapshot());
        let pools: Vec<_> = tables.pools.snapshot().iter().cloned().collect();
        let all: Vec<_> = services.iter().cloned().collect();
        let mut decided = pools::assign(&pools, &all, &known);
        let mut exports = Vec::new();
        if let Some((speaker, _)) = &mut mcs {
            let imports = speaker.assign(&tables, &decided.rows, &known);
            decided.rows.extend(imports.rows);
            decided.problems.extend(imports.problems);
            exports = speaker.entries(&tables);
        }
        *problems.lock().unwrap_or_else(PoisonError::into_inner) = decided.problems;
        let namespaces = tables.namespaces.snapshot();
        let exported = exported(&all, &slices, &namespaces).flat_map(|row| {
            let of_it = || slices.by_index(&row.name);
            let service =
                backends.services().then(|| Desired::service(&rows::service_entry(&name, id, row, of_it())));
            let slices = of_it().filter(|_| backends.slices());
            let slices = slices.map(|slice| Desired::slice(&rows::slice_entry(&name, id, row, slice)));
            service.into_iter().chain(slices).collect::<Vec<_>>()
        });
        let assigned = decided.rows.iter().map(|row| Desired::assignment(&row.name, &Assignment::of(row)));
        publisher.set_cluster(exported.chain(exports).chain(assigned).filter_map(written));
        present = Some(decided.rows.into_iter().map(|row| (row.name, row.addresses)).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::table::Row;

    fn service(name: &str, namespace: &str, global: bool, shared: bool) -> ServiceRow {
        ServiceRow {
            families_ipv4: vec![true],
            global,
            shared,
            ..ServiceRow::new(
                Source::Manifests,
                ServiceName { namespace: namespace.into(), name: name.into() },
            )
        }
    }

    #[test]
    fn only_shared_services_of_global_namespaces_with_a_slice_are_exported() {
        let (slices, slice_writer) = Table::new();
        let (namespaces, namespace_writer) = Table::new();
        let all = [
            service("yes", "shop", true, true),
            service("not-shared", "shop", true, false),
            service("not-global", "shop", false, false),
            service("no-slice", "shop", true, true),
            service("private", "home", true, true),
            service("undescribed", "other", true, true),
        ];
        for row in all.iter().filter(|row| &*row.name.name != "no-slice") {
            let (source, service) = (Source::Manifests, row.name.clone());
            let name = row.name.clone();
            slice_writer.upsert(SliceRow { source, name, service, ports: Vec::new(), endpoints: Vec::new() });
        }
        for (name, global) in [("shop", true), ("home", false)] {
            let (source, labels) = (Source::Manifests, BTreeMap::new());
            namespace_writer.upsert(NamespaceRow { source, name: name.into(), labels, global });
        }
        let (slices, namespaces) = (slices.snapshot(), namespaces.snapshot());
        let found: Vec<_> = exported(&all, &slices, &namespaces).map(|row| row.key().to_string()).collect();
        assert_eq!(found, ["shop/yes", "other/undescribed"]);
    }
}
