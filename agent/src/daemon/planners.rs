//! The tasks that run the pure planners: wait for changes, step, sleep again. No logic of their own.

use super::backend::Texts;
use super::drive::Driver;
use super::landmarks;
use crate::config::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use tombolo_base::prefix::Prefix;
use tombolo_base::residence::Residence;
use tombolo_base::source::Source;
use tombolo_base::table::{Batch, Row, Table, Writer};
use tombolo_clustermesh::certificate::unix_now;
use tombolo_service::pools::LbPool;
use tombolo_service::{FailedProbe, HostPortRow, LbAssignment, RemoteService, ServiceRow, SliceRow};
use tombolo_topology::{
    CidrIdentity, EndpointRow, EndpointState, IdentityRow, LearnedRoute, NodeRow, PrefixRow, Purpose,
    ReservedRow, plan,
};

/// The tables the topology planner reads.
pub(crate) struct TopologyInputs {
    /// All nodes.
    pub(crate) nodes: Table<NodeRow>,
    /// All addresses.
    pub(crate) prefixes: Table<PrefixRow>,
    /// What BGP taught.
    pub(crate) learned: Table<LearnedRoute>,
    /// What this cluster has besides.
    pub(crate) reserved: Table<ReservedRow>,
    /// Identities of addresses outside the mesh.
    pub(crate) cidrs: Table<CidrIdentity>,
    /// EndpointSlices, for the API server's.
    pub(crate) slices: Table<SliceRow>,
}

/// Runs the topology planner until cancelled.
pub(crate) async fn topology(
    driver: Driver,
    mut planner: plan::Planner,
    inputs: TopologyInputs,
    out: plan::Outputs,
) {
    let (mut nodes, mut prefixes) = (inputs.nodes.changes(), inputs.prefixes.changes());
    let (mut learned, mut reserved) = (inputs.learned.changes(), inputs.reserved.changes());
    let (mut cidrs, mut slices) = (inputs.cidrs.changes(), inputs.slices.changes());
    let mut apiservers = BTreeSet::new();
    loop {
        let (mut a, mut b, mut c, mut d, mut e) = (None, None, None, None, None);
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = nodes.next() => a = Some(batch),
            batch = prefixes.next() => b = Some(batch),
            batch = learned.next() => c = Some(batch),
            batch = reserved.next() => d = Some(batch),
            batch = cidrs.next() => e = Some(batch),
            batch = slices.next() => {
                if landmarks::apiservers(&batch.snapshot) == apiservers {
                    continue;
                }
            }
        }
        let known = landmarks::apiservers(&inputs.slices.snapshot());
        if known != apiservers {
            apiservers.clone_from(&known);
            planner.know_apiservers(known);
        }
        // What changed meanwhile goes into the same step, so that a node and its pods are planned together.
        let a = a.or_else(|| nodes.drain());
        let b = b.or_else(|| prefixes.drain());
        let c = c.or_else(|| learned.drain());
        if let Some(batch) = d.or_else(|| reserved.drain()) {
            planner.reserve(&batch.snapshot);
        }
        if let Some(batch) = e.or_else(|| cidrs.drain()) {
            planner.know_cidrs(batch);
        }
        planner.set_time(driver.clock.now(), u64::try_from(unix_now()).unwrap_or(0));
        planner.step(a, b, c, &out);
    }
}

/// What the configuration says that no other cluster's pods may have.
pub(crate) fn reserved(config: &Config, connected: &[Prefix]) -> Vec<ReservedRow> {
    let row = |purpose| move |prefix| ReservedRow { source: Source::Local, prefix, purpose };
    let etcd = config.etcd.as_ref().map(crate::config::Etcd::client);
    let links = connected.iter().copied().map(row(Purpose::Link));
    let members = etcd
        .iter()
        .flat_map(tombolo_clustermesh::etcd::EtcdConfig::addresses)
        .map(Prefix::host)
        .map(row(Purpose::Etcd));
    let clusterset = config.clustermesh.clusterset_cidrs.iter().copied().map(row(Purpose::Clusterset));
    links.chain(members).chain(clusterset).collect()
}

/// Reserves what the pools of the manifests offer beside that, until cancelled.
pub(crate) async fn reserved_pools(driver: Driver, pools: Table<LbPool>, out: Arc<Writer<ReservedRow>>) {
    let mut pools = pools.changes();
    loop {
        let batch = tokio::select! {
            () = driver.cancel.cancelled() => return,
            batch = pools.next() => batch,
        };
        let blocks = batch.snapshot.iter().flat_map(|pool| &pool.blocks);
        let prefixes = blocks.flat_map(|block| Prefix::of_range(block.first, block.last));
        let row = |prefix| ReservedRow { source: Source::Manifests, prefix, purpose: Purpose::LbPool };
        out.replace_source(&Source::Manifests, prefixes.map(row));
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
    /// Pods with ports of this node.
    pub(crate) host_ports: Table<HostPortRow>,
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
    let mut host_ports = inputs.host_ports.changes();
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
            batch = host_ports.next() => changes.host_ports = Some(batch),
            batch = nodes.next() => changes.zone = zone(Some(batch)),
            () = driver.clock.sleep_until(planner.next_deadline()) => {}
        }
        changes.services = changes.services.or_else(|| services.drain());
        changes.slices = changes.slices.or_else(|| slices.drain());
        changes.remote = changes.remote.or_else(|| remote.drain());
        changes.addresses = changes.addresses.or_else(|| addresses.drain());
        changes.probes = changes.probes.or_else(|| probes.drain());
        changes.host_ports = changes.host_ports.or_else(|| host_ports.drain());
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
                residence: Residence::of(host_ip, encryption_key, &row.namespace),
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
