//! Between wire records and the rows of the tables.

mod exports;
mod slices;

pub use exports::{export_entry, remote_export};

use crate::follower::{Change, MeshSink};
pub use crate::wire::Assignment;
use crate::wire::node::Address;
use crate::wire::service::{BackendZone, ForZone};
use crate::wire::slice::{self, SERVICE_LABEL};
use crate::wire::{EndpointSlice, IpEntry, Node, Record, Service, ServiceExport};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::Writer;
use tombolo_service::mcs::RemoteExport;
use tombolo_service::rows::{
    BackendState, LbAssignment, Protocol, RemoteBackend, RemotePort, RemoteService, ServiceName, ServiceRow,
    SliceEndpoint, SlicePort, SliceRow,
};
use tombolo_topology::{AddressKind, IdentityRow, NodeAddress, NodeRow, PrefixRow, WireguardKey};

/// Writes what the followers accept into the tables, each row under [`Source::Cluster`].
#[derive(Clone, Debug)]
pub struct TableSink {
    /// Nodes.
    pub nodes: Arc<Writer<NodeRow>>,
    /// Identities.
    pub identities: Arc<Writer<IdentityRow>>,
    /// Addresses.
    pub prefixes: Arc<Writer<PrefixRow>>,
    /// Shared services of remote clusters.
    pub services: Arc<Writer<RemoteService>>,
    /// The endpoint slices that services are made of, where a cluster publishes slices only.
    pub slices: RemoteSlices,
    /// Exports of the Multi-Cluster Services API, the own cluster's too.
    pub exports: Arc<Writer<RemoteExport>>,
    /// LoadBalancer addresses that the own cluster's elected agent assigned.
    pub assignments: Arc<Writer<LbAssignment>>,
    /// The own cluster: its source is announced to `assignments`, remote ones to `services`.
    pub own: ClusterName,
    /// The size of the mesh.
    pub max: MaxClusters,
}

/// Endpoint slices of remote clusters, which become rows service by service; empty at first. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct RemoteSlices(Arc<Mutex<slices::SliceBook>>);

impl MeshSink for TableSink {
    fn apply(&self, cluster: &ClusterName, changes: Vec<Change>) {
        let source = Source::Cluster(*cluster);
        let mut sorted = Sorted::default();
        for change in changes {
            sorted.take(change);
        }
        if !sorted.nodes.is_empty() {
            self.nodes.commit(|table| {
                for (record, keep) in sorted.nodes {
                    if let Some(row) = node_row(&source, cluster, &record, self.max) {
                        if keep {
                            table.upsert(row);
                        } else {
                            table.remove(&tombolo_base::table::Row::key(&row));
                        }
                    }
                }
            });
        }
        // Entries come in the order of their names. In that of the rows they go in beside each other, and fill what holds them.
        sorted.identities.sort_by_key(|(id, ..)| *id);
        sorted.ips.sort_by_key(|(entry, _)| entry.prefix);
        if !sorted.identities.is_empty() {
            self.identities.commit(|table| {
                for (id, labels, keep) in sorted.identities {
                    if keep {
                        table.upsert(IdentityRow { source, id, labels });
                    } else {
                        table.remove(&(id, source));
                    }
                }
            });
        }
        if !sorted.ips.is_empty() {
            self.prefixes.commit(|table| {
                for (entry, keep) in sorted.ips {
                    if keep {
                        table.upsert(prefix_row(&source, entry));
                    } else {
                        table.remove(&(entry.prefix, source));
                    }
                }
            });
        }
        self.apply_backends(cluster, sorted.services, sorted.slices);
        if !sorted.exports.is_empty() {
            self.exports.commit(|table| {
                for (export, keep) in sorted.exports {
                    let row = remote_export(&source, &export);
                    if keep {
                        table.upsert(row);
                    } else {
                        table.remove(&(row.name, row.source));
                    }
                }
            });
        }
        if !sorted.assignments.is_empty() {
            self.assignments.commit(|table| {
                for (name, assignment, keep) in sorted.assignments {
                    if keep {
                        table.upsert(assignment.row(&source, name));
                    } else {
                        table.remove(&name);
                    }
                }
            });
        }
    }

    fn state(&self, cluster: &ClusterName, state: SourceState) {
        let source = Source::Cluster(*cluster);
        self.nodes.set_source(&source, state);
        self.identities.set_source(&source, state);
        self.prefixes.set_source(&source, state);
        self.exports.set_source(&source, state);
        if *cluster == self.own {
            self.assignments.set_source(&source, state);
        } else {
            self.services.set_source(&source, state);
        }
    }

    fn gone(&self, cluster: &ClusterName) {
        let source = Source::Cluster(*cluster);
        self.nodes.drain_source(&source);
        self.exports.drain_source(&source);
        self.services.drain_source(&source);
        self.slices.0.lock().unwrap_or_else(PoisonError::into_inner).forget(cluster);
        self.prefixes.drain_source(&source);
        self.identities.drain_source(&source);
        self.assignments.drain_source(&source);
    }
}

impl TableSink {
    /// Both forms of backends make the same rows: what goes in one form goes first, so that a service that comes in the other one
    /// stays, in the same revision.
    fn apply_backends(
        &self,
        cluster: &ClusterName,
        services: Vec<(Arc<Service>, bool)>,
        slices: Vec<(EndpointSlice, bool)>,
    ) {
        if services.is_empty() && slices.is_empty() {
            return;
        }
        let source = Source::Cluster(*cluster);
        // The last word on each.
        let services: BTreeMap<ServiceName, Option<RemoteService>> = services
            .into_iter()
            .map(|(service, keep)| {
                let row = remote_service(&source, &service);
                (row.name.clone(), keep.then_some(row))
            })
            .collect();
        let mut book = self.slices.0.lock().unwrap_or_else(PoisonError::into_inner);
        let touched = book.take(cluster, slices);
        self.services.commit(|table| {
            for (name, _) in services.iter().filter(|(_, row)| row.is_none()) {
                table.remove(&(name.clone(), source));
            }
            for name in touched {
                match book.row(cluster, &name) {
                    Some(row) => drop(table.upsert(row)),
                    None => drop(table.remove(&(name, source))),
                }
            }
            for row in services.into_values().flatten() {
                table.upsert(row);
            }
        });
    }
}

/// Changes by table, in order; `true` writes, `false` removes.
#[derive(Default)]
struct Sorted {
    nodes: Vec<(Arc<Node>, bool)>,
    identities: Vec<(tombolo_base::ids::IdentityId, tombolo_base::labels::Labels, bool)>,
    ips: Vec<(IpEntry, bool)>,
    services: Vec<(Arc<Service>, bool)>,
    slices: Vec<(EndpointSlice, bool)>,
    exports: Vec<(ServiceExport, bool)>,
    assignments: Vec<(ServiceName, Assignment, bool)>,
}

impl Sorted {
    fn take(&mut self, change: Change) {
        let (record, keep) = match change {
            Change::Upsert(record) => (record, true),
            Change::Delete(record) => (record, false),
        };
        match record {
            Record::Node(node) => self.nodes.push((node, keep)),
            Record::Identity(id, labels) => self.identities.push((id, labels, keep)),
            Record::Ip(entry) => self.ips.push((entry, keep)),
            Record::Service(service) => self.services.push((service, keep)),
            Record::Assignment(name, value) => self.assignments.push((name, value, keep)),
            Record::EndpointSlice(slice) => self.slices.push((Arc::unwrap_or_clone(slice), keep)),
            Record::ServiceExport(export) => self.exports.push((Arc::unwrap_or_clone(export), keep)),
            // Raw entries are the relay's.
            Record::Raw(_) => {}
        }
    }
}

fn node_row(source: &Source, cluster: &ClusterName, node: &Node, max: MaxClusters) -> Option<NodeRow> {
    let kind = |name: &str| match name {
        "InternalIP" => Some(AddressKind::Internal),
        "ExternalIP" => Some(AddressKind::External),
        "CiliumInternalIP" => Some(AddressKind::CiliumInternal),
        _ => None,
    };
    let addresses = node.addresses.iter();
    let mut row = NodeRow {
        source: *source,
        cluster: *cluster,
        cluster_id: ClusterId::new(node.cluster_id, max).ok()?,
        name: node.name.clone(),
        addresses: addresses
            .filter_map(|address| Some(NodeAddress { kind: kind(&address.kind)?, ip: address.ip }))
            .collect(),
        pod_cidrs: node.ipv4_pod_cidrs.iter().chain(&node.ipv6_pod_cidrs).copied().collect(),
        wireguard_key: wireguard_key(&node.wireguard_key),
        encryption_key: node.encryption_key,
        labels: node.labels.clone(),
        ready: None,
        health: Default::default(),
    };
    // There may be 50,000, and what a vector begins with is more than most have.
    row.addresses.shrink_to_fit();
    row.pod_cidrs.shrink_to_fit();
    Some(row)
}

fn wireguard_key(text: &str) -> Option<WireguardKey> {
    let bytes: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
    Some(WireguardKey(bytes))
}

fn prefix_row(source: &Source, entry: IpEntry) -> PrefixRow {
    PrefixRow {
        source: *source,
        prefix: entry.prefix,
        identity: entry.identity,
        residence: entry.residence,
        pod: Some(entry.pod).filter(|name| !name.is_empty()),
    }
}

fn remote_service(source: &Source, service: &Service) -> RemoteService {
    let ports = |named: &BTreeMap<Arc<str>, crate::wire::service::L4>| -> BTreeSet<RemotePort> {
        let port = |(name, l4): (&Arc<str>, &crate::wire::service::L4)| {
            Some(RemotePort { name: name.clone(), protocol: Protocol::parse(&l4.protocol)?, port: l4.port })
        };
        named.iter().filter_map(port).collect()
    };
    let mut shared = Shared::default();
    let backend = |(ip, named): (&IpAddr, &BTreeMap<Arc<str>, crate::wire::service::L4>)| {
        let zone = service.zones.get(ip);
        let hints = zone.map_or(&[][..], |zone| &zone.for_zones);
        let backend = RemoteBackend {
            ports: shared.ports(ports(named)),
            state: BackendState::Ready,
            zone: zone.filter(|zone| !zone.zone.is_empty()).map(|zone| shared.text(&zone.zone)),
            for_zones: hints.iter().map(|hint| shared.text(&hint.name)).collect(),
            hostname: service.hostnames.get(ip).filter(|name| !name.is_empty()).cloned(),
            node: None,
        };
        (*ip, backend)
    };
    RemoteService {
        source: *source,
        name: ServiceName { namespace: service.namespace.clone(), name: service.name.clone() },
        backends: service.backends.iter().map(backend).collect(),
    }
}

/// What many backends of one service have in common stands in memory once.
#[derive(Default)]
struct Shared {
    ports: BTreeSet<Arc<BTreeSet<RemotePort>>>,
    texts: BTreeSet<Arc<str>>,
}

impl Shared {
    fn ports(&mut self, ports: BTreeSet<RemotePort>) -> Arc<BTreeSet<RemotePort>> {
        if let Some(known) = self.ports.get(&ports) {
            return known.clone();
        }
        let fresh = Arc::new(ports);
        self.ports.insert(fresh.clone());
        fresh
    }

    fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.texts.insert(text.clone());
        text.clone()
    }
}

/// The entry of a node of this cluster, as this agent publishes it.
#[must_use]
pub fn node_entry(row: &NodeRow) -> Node {
    let kind = |kind| match kind {
        AddressKind::Internal => "InternalIP",
        AddressKind::External => "ExternalIP",
        AddressKind::CiliumInternal => "CiliumInternalIP",
    };
    let mut node = Node::new(row.cluster.as_str(), u32::from(row.cluster_id.get()), &row.name);
    let addresses = row.addresses.iter();
    node.addresses = addresses.map(|a| Address { kind: kind(a.kind).into(), ip: a.ip }).collect();
    (node.ipv4_pod_cidrs, node.ipv6_pod_cidrs) = row.pod_cidrs.iter().partition(|cidr| cidr.is_ipv4());
    node.encryption_key = row.encryption_key;
    node.labels = row.labels.clone();
    node.wireguard_key = row.wireguard_key.map_or_else(|| "".into(), |key| STANDARD.encode(key.0).into());
    node
}

/// The entry of an address of this node, as this agent publishes it.
#[must_use]
pub fn ip_entry(row: &PrefixRow) -> IpEntry {
    IpEntry {
        prefix: row.prefix,
        masked: !row.prefix.is_host(),
        identity: row.identity,
        residence: row.residence.clone(),
        pod: row.pod.clone().unwrap_or_else(|| "".into()),
        service_account: "".into(),
        named_ports: Vec::new(),
    }
}

/// Whether other clusters are told of a service: global, shared, and in a namespace that is global.
#[must_use]
pub const fn exported(service: &ServiceRow, namespace_is_global: bool) -> bool {
    service.global && service.shared && namespace_is_global
}

/// The entry of a global service of this cluster. The form has no conditions, so being there means ready: the ready
/// backends, or where there are none, those that still serve. Like Cilium's exporter, with `publishNotReadyAddresses` all.
///
/// What is not shared is not to be exported (see [`exported`]); this says so in the entry as well, for readers look at
/// `shared` and not at the key alone.
#[must_use]
pub fn service_entry<'a>(
    cluster: &ClusterName,
    id: ClusterId,
    service: &ServiceRow,
    slices: impl IntoIterator<Item = &'a SliceRow>,
) -> Service {
    let (namespace, name) = (&service.name.namespace, &service.name.name);
    let mut entry = Service::new(cluster.as_str(), u32::from(id.get()), namespace, name);
    for ip in &service.cluster_ips {
        let ports = service.ports.iter().map(|port| (port.name.clone(), l4(port.protocol, port.port)));
        entry.frontends.insert(*ip, ports.collect());
    }
    let slices: Vec<&SliceRow> = slices.into_iter().collect();
    for wanted in [BackendState::Ready, BackendState::Serving] {
        for slice in &slices {
            for endpoint in slice.endpoints.iter().filter(|e| exported_state(service, e) == Some(wanted)) {
                add_backend(&mut entry, slice, endpoint);
            }
        }
        if !entry.backends.is_empty() {
            break;
        }
    }
    entry.labels = service.labels.clone();
    entry.selector = service.selector.clone();
    entry.include_external = service.global;
    entry.shared = service.global && service.shared;
    entry
}

fn l4(protocol: Protocol, port: u16) -> crate::wire::service::L4 {
    crate::wire::service::L4 { protocol: protocol.to_string().into(), port }
}

fn exported_state(service: &ServiceRow, endpoint: &SliceEndpoint) -> Option<BackendState> {
    BackendState::of(endpoint.ready || service.publish_not_ready, endpoint.serving, endpoint.terminating)
}

fn add_backend(entry: &mut Service, slice: &SliceRow, endpoint: &SliceEndpoint) {
    let ports = || slice.ports.iter().map(|port| (port.name.clone(), l4(port.protocol, port.port)));
    for ip in &endpoint.addresses {
        entry.backends.entry(*ip).or_default().extend(ports());
        if let Some(name) = &endpoint.hostname {
            entry.hostnames.insert(*ip, name.clone());
        }
        if endpoint.zone.is_some() || !endpoint.for_zones.is_empty() {
            let hint = |name: &Arc<str>| ForZone { name: name.clone() };
            let zone = endpoint.zone.clone().unwrap_or_else(|| "".into());
            let for_zones = endpoint.for_zones.iter().map(hint).collect();
            entry.zones.insert(*ip, BackendZone { zone, for_zones });
        }
    }
}

/// The entry of an EndpointSlice of a global service of this cluster, with the conditions of every endpoint.
#[must_use]
pub fn slice_entry(
    cluster: &ClusterName,
    id: ClusterId,
    service: &ServiceRow,
    row: &SliceRow,
) -> EndpointSlice {
    // All addresses of a slice are of one family; without any it does not matter.
    let ipv4 = row.endpoints.iter().flat_map(|e| &e.addresses).next().is_none_or(std::net::IpAddr::is_ipv4);
    let mut slice =
        EndpointSlice::new(cluster.as_str(), u32::from(id.get()), &row.name.namespace, &row.name.name, ipv4);
    slice.labels.insert(SERVICE_LABEL.into(), service.name.name.clone());
    let endpoint = |e: &SliceEndpoint| slice::Endpoint {
        addresses: e.addresses.clone(),
        ready: Some(e.ready || service.publish_not_ready),
        serving: Some(e.serving),
        terminating: Some(e.terminating),
        node: e.node.clone(),
        zone: e.zone.clone(),
        for_zones: (!e.for_zones.is_empty()).then(|| e.for_zones.clone()),
        ..slice::Endpoint::default()
    };
    slice.endpoints = row.endpoints.iter().map(endpoint).collect();
    let port = |port: &SlicePort| slice::Port {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.to_string().into()),
        port: Some(port.port),
    };
    slice.ports = row.ports.iter().map(port).collect();
    slice
}

impl Assignment {
    /// Of a row.
    #[must_use]
    pub fn of(row: &LbAssignment) -> Self {
        Self { addresses: row.addresses.clone(), pools: row.pools.clone() }
    }

    fn row(self, source: &Source, name: ServiceName) -> LbAssignment {
        LbAssignment { source: *source, name, addresses: self.addresses, pools: self.pools }
    }
}
