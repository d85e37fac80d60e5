//! What DNS says of services: one entry for each Service of this cluster and each import, computed from its Service, its
//! slices and what other clusters share.
//!
//! Entries are the whole of what the DNS unit knows, so they can be read back: it lives on when the agent does not.

use crate::mcs::{ImportRow, ImportType};
use crate::rows::{
    Affinity, BackendState, Protocol, RemotePort, RemoteService, ServiceName, ServiceRow, ServiceType,
    SliceEndpoint, SliceRow,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::aggregate::Gate;
use tombolo_base::cells::list;
use tombolo_base::clock::Moment;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, NoIndex, Row, Snapshot, Writer};

/// Records of an entry at most: one of each endpoint and one of each of its ports. An answer carries 2000.
const RECORDS_MAX: usize = 32_768;
/// Longest name of a port that can be asked for: its label begins with an underscore.
const PORT_NAME_MAX: usize = 62;
/// Longest label of a name.
const LABEL_MAX: usize = 63;

/// Which zone a name is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameZone {
    /// `cluster.local`: Services of this cluster.
    Cluster,
    /// `clusterset.local`: imports.
    ClusterSet,
}

/// A port with a name that SRV records are made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamePort {
    /// Its name; unnamed ports have no record.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// An endpoint with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NameEndpoint {
    /// The name below the service's.
    pub hostname: Arc<str>,
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// Its ports.
    pub ports: Vec<NamePort>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameAnswer {
    /// A service with addresses of its own.
    Service {
        /// Cluster IPs or clusterset IPs; none while it has none.
        addresses: BTreeSet<IpAddr>,
        /// Ports.
        ports: Vec<NamePort>,
    },
    /// The endpoints that are ready.
    Headless {
        /// In order.
        endpoints: Vec<NameEndpoint>,
    },
    /// Another name.
    Alias {
        /// `spec.externalName`.
        target: Arc<str>,
    },
}

/// Everything of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameEntry {
    /// Zone.
    pub zone: NameZone,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of the service.
    pub name: Arc<str>,
    /// What it stands for.
    pub answer: NameAnswer,
}

/// Desired: an entry of DNS.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NameRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// The entry.
    #[serde(flatten)]
    pub entry: NameEntry,
}

/// Zone and service.
pub type NameKey = (NameZone, ServiceName);

impl Row for NameRow {
    type Key = NameKey;
    type Index = NoIndex;
    const TABLE: &'static str = "names";
    fn key(&self) -> NameKey {
        let entry = &self.entry;
        (entry.zone, ServiceName { namespace: entry.namespace.clone(), name: entry.name.clone() })
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["ZONE", "NAMESPACE", "NAME", "KIND", "ADDRESSES"]
    }
    fn cells(&self) -> Vec<String> {
        let (kind, text) = match &self.entry.answer {
            NameAnswer::Service { addresses, .. } => ("service", list(addresses)),
            NameAnswer::Headless { endpoints } => ("headless", list(endpoints.iter().map(|e| e.address))),
            NameAnswer::Alias { target } => ("alias", target.to_string()),
        };
        let zone = format!("{:?}", self.entry.zone).to_lowercase();
        vec![zone, self.entry.namespace.to_string(), self.entry.name.to_string(), kind.to_owned(), text]
    }
}

/// The tables the plan reads, as they were when it last ran.
#[derive(Clone, Default)]
pub struct Inputs {
    /// Services, derived ones among them.
    pub services: Snapshot<ServiceRow>,
    /// Slices, likewise.
    pub slices: Snapshot<SliceRow>,
    /// What other clusters share.
    pub remote: Snapshot<RemoteService>,
    /// Imports.
    pub imports: Snapshot<ImportRow>,
}

/// What changed since the last step.
#[derive(Default)]
pub struct InputChanges {
    /// Services.
    pub services: Option<Batch<ServiceRow>>,
    /// Slices.
    pub slices: Option<Batch<SliceRow>>,
    /// What other clusters share.
    pub remote: Option<Batch<RemoteService>>,
    /// Imports.
    pub imports: Option<Batch<ImportRow>>,
}

/// Plans what DNS says.
///
/// The reader of entries knows those of an earlier life: an entry that says less only because its sources have not spoken
/// yet is held back until they have, or the gate opens.
pub struct Planner {
    own: Arc<str>,
    inputs: Inputs,
    gate: Gate,
    open: bool,
    /// Whether some cluster has said nothing of what it shares.
    remote_pending: bool,
    held: BTreeSet<NameKey>,
}

impl Planner {
    /// For a cluster of this name, and a life that began at `start`.
    #[must_use]
    pub fn new(own: &ClusterName, start: Moment) -> Self {
        Self {
            own: own.as_str().into(),
            inputs: Inputs::default(),
            gate: Gate::new(start),
            open: false,
            remote_pending: false,
            held: BTreeSet::new(),
        }
    }

    /// When a step without changes is due: what is held back is told.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        (!self.open).then(|| self.gate.opens_at())
    }

    /// Takes in what changed and writes the entries it touches.
    pub fn step(&mut self, changes: InputChanges, now: Moment, out: &Writer<NameRow>) {
        self.gate.observe(changes.services.as_ref());
        self.gate.observe(changes.slices.as_ref());
        self.gate.observe(changes.remote.as_ref());
        self.gate.observe(changes.imports.as_ref());
        let mut affected = self.take(changes);
        self.open |= self.gate.is_open(now);
        affected.append(&mut self.held);
        out.commit(|txn| {
            for key in affected {
                match self.entry(&key) {
                    Some(entry) if !self.open && self.says_less(&entry) => drop(self.held.insert(key)),
                    Some(entry) => {
                        txn.upsert(NameRow { source: Source::Planner, entry });
                    }
                    None => drop(txn.remove(&key)),
                }
            }
            let complete = self.knows_manifests() && !self.holds(NameZone::Cluster);
            let state = if complete { SourceState::Initialized } else { SourceState::Pending };
            txn.set_source(&Source::Planner, state);
        });
    }

    /// Whether an import that is not there is nowhere: every cluster has said what it exports.
    #[must_use]
    pub fn knows_imports(&self) -> bool {
        let state = self.inputs.imports.source_state(&Source::Planner);
        state == Some(SourceState::Initialized) && !self.holds(NameZone::ClusterSet)
    }

    fn holds(&self, zone: NameZone) -> bool {
        self.held.iter().any(|(held, _)| *held == zone)
    }

    fn knows_manifests(&self) -> bool {
        let known = |state: Option<SourceState>| state.is_some_and(|state| state != SourceState::Pending);
        known(self.inputs.services.source_state(&Source::Manifests))
            && known(self.inputs.slices.source_state(&Source::Manifests))
    }

    /// Whether an entry may say less than what its sources will say.
    fn says_less(&self, entry: &NameEntry) -> bool {
        let name = ServiceName { namespace: entry.namespace.clone(), name: entry.name.clone() };
        let short = match (&entry.answer, entry.zone) {
            (NameAnswer::Headless { .. }, NameZone::Cluster) => {
                self.inputs.services.get(&name).is_some_and(|service| service.global) && self.remote_pending
            }
            (NameAnswer::Headless { .. }, NameZone::ClusterSet) => {
                let import = self.inputs.imports.get(&name);
                let carried = import.is_some_and(|row| self.inputs.services.get(&row.derived).is_some());
                !carried || self.remote_pending
            }
            // Addresses are read from etcd.
            (NameAnswer::Service { addresses, .. }, NameZone::ClusterSet) => addresses.is_empty(),
            _ => false,
        };
        short || !self.knows_manifests()
    }

    fn take(&mut self, changes: InputChanges) -> BTreeSet<NameKey> {
        let mut services = BTreeSet::new();
        let mut affected = BTreeSet::new();
        let inputs = &mut self.inputs;
        if let Some(batch) = changes.services {
            services.extend(batch.keys);
            inputs.services = batch.snapshot;
        }
        if let Some(batch) = changes.slices {
            let of = |snapshot: &Snapshot<SliceRow>, key| snapshot.get(key).map(|row| row.service.clone());
            let touched =
                batch.keys.iter().flat_map(|key| [of(&inputs.slices, key), of(&batch.snapshot, key)]);
            services.extend(touched.flatten());
            inputs.slices = batch.snapshot;
        }
        if let Some(batch) = changes.remote {
            if batch.sources_changed {
                let pending = |(_, state)| state == SourceState::Pending;
                self.remote_pending = batch.snapshot.sources().any(pending);
            }
            services.extend(batch.keys.into_iter().map(|(name, _)| name));
            inputs.remote = batch.snapshot;
        }
        if let Some(batch) = changes.imports {
            affected.extend(batch.keys.into_iter().map(|name| (NameZone::ClusterSet, name)));
            inputs.imports = batch.snapshot;
        }
        for name in services {
            affected.extend(
                inputs.imports.by_index(&name).map(|import| (NameZone::ClusterSet, import.name.clone())),
            );
            affected.insert((NameZone::Cluster, name));
        }
        affected
    }

    /// One entry, from scratch.
    fn entry(&self, (zone, name): &NameKey) -> Option<NameEntry> {
        let answer = match zone {
            NameZone::Cluster => self.of_service(name)?,
            NameZone::ClusterSet => self.of_import(name)?,
        };
        Some(NameEntry { zone: *zone, namespace: name.namespace.clone(), name: name.name.clone(), answer })
    }

    fn of_service(&self, name: &ServiceName) -> Option<NameAnswer> {
        // Derived services are nobody's; their imports have names.
        let service = self.inputs.services.get(name).filter(|row| row.source == Source::Manifests)?;
        Some(if service.kind == ServiceType::ExternalName {
            NameAnswer::Alias { target: service.details.external_name.clone()? }
        } else if service.headless {
            NameAnswer::Headless { endpoints: self.endpoints(service) }
        } else {
            let ports = service.ports.iter().map(|p| port(&p.name, p.protocol, p.port));
            NameAnswer::Service {
                addresses: service.cluster_ips.iter().copied().collect(),
                ports: named(ports),
            }
        })
    }

    fn of_import(&self, name: &ServiceName) -> Option<NameAnswer> {
        let import = self.inputs.imports.get(name)?;
        Some(match import.spec.kind {
            ImportType::Headless => {
                let carrier = self.inputs.services.get(&import.derived);
                NameAnswer::Headless { endpoints: carrier.map(|row| self.endpoints(row)).unwrap_or_default() }
            }
            ImportType::ClusterSetIP => {
                let ports = import.spec.ports.iter().map(|p| port(&p.name, p.protocol, p.port));
                NameAnswer::Service { addresses: import.ips.clone(), ports: named(ports) }
            }
        })
    }

    /// The endpoints of a headless service that are ready, other clusters' too if it is global.
    fn endpoints(&self, service: &ServiceRow) -> Vec<NameEndpoint> {
        let mut local: BTreeMap<(Arc<str>, Arc<str>, IpAddr), BTreeSet<NamePort>> = BTreeMap::new();
        for slice in self.inputs.slices.by_index(&service.name) {
            let ready = |endpoint: &&SliceEndpoint| endpoint.ready || service.publish_not_ready;
            for endpoint in slice.endpoints.iter().filter(ready) {
                for ip in &endpoint.addresses {
                    let key = (self.own.clone(), hostname(endpoint.hostname.as_ref(), *ip), *ip);
                    let ports = slice.ports.iter().map(|p| port(&p.name, p.protocol, p.port));
                    local.entry(key).or_default().extend(named(ports));
                }
            }
        }
        let mut remote = BTreeMap::new();
        for row in self.inputs.remote.by_index(&service.name).filter(|_| service.global) {
            let Source::Cluster(cluster) = &row.source else { continue };
            for backend in remote_backends(row) {
                let key = (
                    Arc::from(cluster.as_str()),
                    hostname(backend.hostname, backend.address),
                    backend.address,
                );
                let ports = backend.ports.iter().map(|p| port(&p.name, p.protocol, p.port));
                remote.insert(key, named(ports).into_iter().collect());
            }
        }
        let chosen = match service.affinity {
            Affinity::Local if !local.is_empty() => local,
            Affinity::Remote if !remote.is_empty() => remote,
            _ => local.into_iter().chain(remote).collect(),
        };
        let endpoint =
            |((cluster, hostname, address), ports): ((Arc<str>, Arc<str>, IpAddr), BTreeSet<NamePort>)| {
                NameEndpoint { hostname, cluster, address, ports: ports.into_iter().collect() }
            };
        bounded(chosen.into_iter().map(endpoint).collect())
    }
}

/// At most [`RECORDS_MAX`] records. Where there are more, clusters with many give way: none costs another its endpoints.
fn bounded(endpoints: Vec<NameEndpoint>) -> Vec<NameEndpoint> {
    let records = |endpoint: &NameEndpoint| 1 + endpoint.ports.len();
    let mut by_cluster: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for endpoint in &endpoints {
        *by_cluster.entry(endpoint.cluster.clone()).or_default() += records(endpoint);
    }
    let mut sizes: Vec<usize> = by_cluster.values().copied().collect();
    sizes.sort_unstable();
    let (mut left, mut share) = (RECORDS_MAX, RECORDS_MAX);
    for (position, size) in sizes.iter().enumerate() {
        share = left / (sizes.len() - position);
        if *size > share {
            break;
        }
        left -= size;
        share = RECORDS_MAX;
    }
    let mut used: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    let fits = |endpoint: &NameEndpoint| {
        let used = used.entry(endpoint.cluster.clone()).or_default();
        *used += records(endpoint);
        *used <= share
    };
    endpoints.into_iter().filter(fits).collect()
}

/// A backend of another cluster that is ready.
struct ReadyBackend<'a> {
    address: IpAddr,
    hostname: Option<&'a Arc<str>>,
    ports: &'a BTreeSet<RemotePort>,
}

fn remote_backends(row: &RemoteService) -> impl Iterator<Item = ReadyBackend<'_>> {
    let ready = row.backends.iter().filter(|(_, backend)| backend.state == BackendState::Ready);
    ready.map(|(ip, backend)| ReadyBackend {
        address: *ip,
        hostname: backend.hostname.as_ref(),
        ports: &backend.ports,
    })
}

fn port(name: &Arc<str>, protocol: Protocol, port: u16) -> NamePort {
    NamePort { name: name.clone(), protocol, port }
}

/// Whether a text can be a label of a name. Other clusters' names of ports and hosts are what those clusters like.
fn is_label(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The ports that can be asked for.
fn named(ports: impl Iterator<Item = NamePort>) -> Vec<NamePort> {
    ports.filter(|port| is_label(&port.name, PORT_NAME_MAX)).collect()
}

/// The endpoint's own name, or one made of its address.
fn hostname(given: Option<&Arc<str>>, ip: IpAddr) -> Arc<str> {
    let given = given.filter(|name| is_label(name, LABEL_MAX)).cloned();
    given.unwrap_or_else(|| ip.to_string().replace(['.', ':'], "-").into())
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
