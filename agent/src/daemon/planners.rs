//! The tasks that run the pure planners: wait for changes, step, sleep again. No logic of their own.

use super::backend::Texts;
use super::drive::Driver;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::{Batch, Row, Table, Writer};
use tombolo_clustermesh::certificate::unix_now;
use tombolo_service::{FailedProbe, LbAssignment, RemoteService, ServiceRow, SliceRow};
use tombolo_topology::{EndpointRow, EndpointState, IdentityRow, LearnedRoute, NodeRow, PrefixRow, plan};

/// Runs the topology planner until cancelled.
pub(crate) async fn topology(
    driver: Driver,
    mut planner: plan::Planner,
    nodes: Table<NodeRow>,
    prefixes: Table<PrefixRow>,
    learned: Table<LearnedRoute>,
    out: plan::Outputs,
) {
    let (mut nodes, mut prefixes, mut learned) = (nodes.changes(), prefixes.changes(), learned.changes());
    loop {
        let (mut a, mut b, mut c) = (None, None, None);
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = nodes.next() => a = Some(batch),
            batch = prefixes.next() => b = Some(batch),
            batch = learned.next() => c = Some(batch),
        }
        // What changed meanwhile goes into the same step, so that a node and its pods are planned together.
        let a = a.or_else(|| nodes.drain());
        let b = b.or_else(|| prefixes.drain());
        let c = c.or_else(|| learned.drain());
        planner.set_time(u64::try_from(unix_now()).unwrap_or(0));
        planner.step(a, b, c, &out);
    }
}

/// The tables the service planner reads.
pub(crate) struct ServiceInputs {
    /// Services.
    pub(crate) services: Table<ServiceRow>,
    /// EndpointSlices.
    pub(crate) slices: Table<SliceRow>,
    /// What other clusters share.
    pub(crate) remote: Table<RemoteService>,
    /// LoadBalancer addresses.
    pub(crate) addresses: Table<LbAssignment>,
    /// What probes found.
    pub(crate) probes: Table<FailedProbe>,
    /// All nodes, of which only this one is looked at: its label says which zone it is in.
    pub(crate) nodes: Table<NodeRow>,
    /// This node.
    pub(crate) own: <NodeRow as Row>::Key,
}

/// The label of a node's zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";

/// Runs the service planner until cancelled.
pub(crate) async fn services(
    driver: Driver,
    mut planner: tombolo_service::plan::Planner,
    inputs: ServiceInputs,
    out: tombolo_service::plan::Outputs,
    problems: Texts,
) {
    let (mut services, mut slices) = (inputs.services.changes(), inputs.slices.changes());
    let (mut remote, mut addresses) = (inputs.remote.changes(), inputs.addresses.changes());
    let (mut probes, mut nodes) = (inputs.probes.changes(), inputs.nodes.changes());
    let zone = |batch: Option<Batch<NodeRow>>| {
        let own = batch.filter(|batch| batch.keys.contains(&inputs.own))?;
        Some(own.snapshot.get(&inputs.own).and_then(|row| row.labels.get(ZONE).cloned()))
    };
    loop {
        let mut changes = tombolo_service::plan::InputChanges::default();
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = services.next() => changes.services = Some(batch),
            batch = slices.next() => changes.slices = Some(batch),
            batch = remote.next() => changes.remote = Some(batch),
            batch = addresses.next() => changes.addresses = Some(batch),
            batch = probes.next() => changes.probes = Some(batch),
            batch = nodes.next() => changes.zone = zone(Some(batch)),
            () = driver.clock.sleep_until(planner.next_deadline()) => {}
        }
        changes.services = changes.services.or_else(|| services.drain());
        changes.slices = changes.slices.or_else(|| slices.drain());
        changes.remote = changes.remote.or_else(|| remote.drain());
        changes.addresses = changes.addresses.or_else(|| addresses.drain());
        changes.probes = changes.probes.or_else(|| probes.drain());
        changes.zone = changes.zone.or_else(|| zone(nodes.drain()));
        planner.step(changes, driver.clock.now(), &out);
        *problems.lock().unwrap_or_else(PoisonError::into_inner) = planner.problems();
    }
}

/// What this node's pods mean to the mesh: an address with an identity, and that identity's labels.
pub(crate) async fn local_rows(
    driver: Driver,
    endpoints: Table<EndpointRow>,
    host_ip: Option<IpAddr>,
    encryption_key: u8,
    prefixes: Arc<Writer<PrefixRow>>,
    identities: Arc<Writer<IdentityRow>>,
) {
    let mut changes = endpoints.changes();
    loop {
        let batch = tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = changes.next() => batch,
        };
        let living = batch.snapshot.iter().filter(|row| row.state != EndpointState::Deleting);
        let known: Vec<_> = living.filter_map(|row| row.identity.map(|id| (row, id))).collect();
        let prefix = |(row, identity): &(&EndpointRow, _)| {
            let row = (*row).clone();
            let identity = *identity;
            row.addresses.into_iter().map(move |ip| PrefixRow {
                source: Source::Local,
                prefix: Prefix::host(ip),
                identity,
                host_ip,
                encryption_key,
                namespace: Some(row.namespace.clone()),
                pod: Some(row.pod.clone()),
            })
        };
        let rows: Vec<_> = known.iter().flat_map(prefix).collect();
        let labels: BTreeMap<_, _> = known.iter().map(|(row, id)| (*id, row.labels.clone())).collect();
        let state = batch.snapshot.source_state(&Source::Local);
        prefixes.commit(|txn| {
            txn.replace_source(&Source::Local, rows);
            state.into_iter().for_each(|state| txn.set_source(&Source::Local, state));
        });
        identities.commit(|txn| {
            let row = |(id, labels)| IdentityRow { source: Source::Local, id, labels };
            txn.replace_source(&Source::Local, labels.into_iter().map(row));
            state.into_iter().for_each(|state| txn.set_source(&Source::Local, state));
        });
    }
}
