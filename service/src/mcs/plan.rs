//! The plan of exports and imports: one name is computed from the exports of all clusters, its Service and slices here,
//! and its clusterset IPs.

use super::address::ClusterSetRange;
use super::resolve::{Constituent, Reason, Resolved, resolve};
use super::rows::{
    Condition, ExportRow, ExportSpec, ExportStatus, ExportedPort, ImportRequest, ImportRow, ImportType,
    RemoteExport,
};
use super::share::{PORTS_OF_CLUSTER_MAX, Shares};
use super::{derived_name, is_derived};
use crate::details::ServiceDetails;
use crate::rows::{
    Affinity, Claim, Distribution, LbAssignment, ServiceName, ServicePort, ServiceRow, ServiceType, SliceRow,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::aggregate::Gate;
use tombolo_base::clock::Moment;
use tombolo_base::ids::ClusterName;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Row, Snapshot, Writer};

/// Namespaces of this cluster, each with whether its services may be shared.
pub type Namespaces = BTreeMap<Arc<str>, bool>;

/// Namespaces that every cluster has.
const ALWAYS: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];
/// The label that ties a derived service to its import.
const NAME_LABEL: &str = "multicluster.kubernetes.io/service-name";
/// An exported annotation that counts for the import.
const AFFINITY: &str = "service.cilium.io/affinity";

/// The tables the plan reads, as they were when it last ran.
#[derive(Clone, Default)]
pub struct Inputs {
    /// `ServiceExport` objects of this cluster.
    pub exports: Snapshot<ExportRow>,
    /// `ServiceImport` objects of this cluster.
    pub requests: Snapshot<ImportRequest>,
    /// Exports in the etcds of all clusters, this one's too.
    pub remote: Snapshot<RemoteExport>,
    /// Services of this cluster.
    pub services: Snapshot<ServiceRow>,
    /// Their slices.
    pub slices: Snapshot<SliceRow>,
    /// Clusterset IPs, under the names of derived services.
    pub addresses: Snapshot<LbAssignment>,
    /// Namespaces.
    pub namespaces: Namespaces,
}

impl Inputs {
    /// The Service of this cluster that has an address: a cluster, external or LoadBalancer address is no import's.
    fn owner(&self, address: &IpAddr) -> Option<&ServiceName> {
        let own =
            self.services.by_index(&Claim::Address(*address)).find(|row| row.source == Source::Manifests);
        let given = || self.addresses.by_index(address).find(|row| !is_derived(&row.name));
        own.map(|row| &row.name).or_else(|| given().map(|row| &row.name))
    }
}

/// What changed since the last step.
#[derive(Default)]
pub struct InputChanges {
    /// `ServiceExport` objects.
    pub exports: Option<Batch<ExportRow>>,
    /// `ServiceImport` objects.
    pub requests: Option<Batch<ImportRequest>>,
    /// Exports of all clusters.
    pub remote: Option<Batch<RemoteExport>>,
    /// Services.
    pub services: Option<Batch<ServiceRow>>,
    /// Slices.
    pub slices: Option<Batch<SliceRow>>,
    /// Clusterset IPs.
    pub addresses: Option<Batch<LbAssignment>>,
    /// All namespaces.
    pub namespaces: Option<Namespaces>,
}

/// Where the plan is written.
#[derive(Debug)]
pub struct Outputs {
    /// The status of this cluster's exports.
    pub exports: Writer<ExportStatus>,
    /// Imports.
    pub imports: Writer<ImportRow>,
    /// Derived services, among those of the manifests.
    pub services: Arc<Writer<ServiceRow>>,
    /// Their slices, likewise.
    pub slices: Arc<Writer<SliceRow>>,
}

/// Plans exports and imports.
pub struct Planner {
    own: Source,
    own_name: Arc<str>,
    range: ClusterSetRange,
    inputs: Inputs,
    gate: Gate,
    open: bool,
    shares: Shares,
    /// Imports by their derived services.
    derived: BTreeMap<ServiceName, ServiceName>,
    /// Derived slices of each name that has some.
    slices: BTreeMap<ServiceName, BTreeSet<ServiceName>>,
}

/// What one name comes to.
struct Wanted {
    status: Option<ExportStatus>,
    import: Option<ImportRow>,
    service: Option<ServiceRow>,
    slices: Vec<SliceRow>,
}

impl Planner {
    /// A plan for a cluster whose life began at `start`.
    #[must_use]
    pub fn new(own: &ClusterName, range: ClusterSetRange, start: Moment) -> Self {
        Self {
            own: Source::Cluster(*own),
            own_name: own.as_str().into(),
            range,
            inputs: Inputs::default(),
            gate: Gate::new(start).not_waiting_for(Source::Planner),
            open: false,
            shares: Shares::new(PORTS_OF_CLUSTER_MAX),
            derived: BTreeMap::new(),
            slices: BTreeMap::new(),
        }
    }

    /// When a step without changes is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        (!self.open).then(|| self.gate.opens_at())
    }

    /// One in which each of the other clusters may bring so many ports.
    #[cfg(test)]
    pub(super) fn with_ports_of_cluster(mut self, ports_max: usize) -> Self {
        self.shares = Shares::new(ports_max);
        self
    }

    /// What is not imported, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.shares.problems()
    }

    /// Takes in what changed and writes the rows of the names it touches.
    pub fn step(&mut self, changes: InputChanges, now: Moment, out: &Outputs) {
        self.gate.observe(changes.exports.as_ref());
        self.gate.observe(changes.services.as_ref());
        self.gate.observe(changes.remote.as_ref());
        self.gate.observe(changes.addresses.as_ref());
        for name in self.take(changes) {
            self.plan(&name, out);
        }
        let (inputs, planner) = (&self.inputs, Source::Planner);
        let manifests = inputs.services.source_state(&Source::Manifests).unwrap_or(SourceState::Pending);
        self.open |= self.gate.is_open(now);
        // Usable as soon as this cluster's objects are known; confirmed when everybody has spoken.
        let state = match (manifests, self.open) {
            (SourceState::Pending, _) => SourceState::Pending,
            (_, true) => SourceState::Initialized,
            (_, false) => SourceState::Stale,
        };
        out.exports.set_source(&planner, state);
        out.imports.set_source(&planner, state);
        out.services.set_source(&planner, state);
        out.slices.set_source(&planner, state);
    }

    /// Takes in what changed; the names that it touches.
    fn take(&mut self, changes: InputChanges) -> BTreeSet<ServiceName> {
        let mut affected = BTreeSet::new();
        let inputs = &mut self.inputs;
        if let Some(batch) = changes.exports {
            affected.extend(batch.keys);
            inputs.exports = batch.snapshot;
        }
        if let Some(batch) = changes.requests {
            affected.extend(batch.keys);
            inputs.requests = batch.snapshot;
        }
        if let Some(batch) = changes.remote {
            for key in batch.keys {
                let (name, source) = &key;
                if *source != self.own {
                    let ports = batch.snapshot.get(&key).map(|row| row.spec.ports.len());
                    self.shares.note(name, *source, ports);
                }
                affected.insert(key.0);
            }
            affected.append(&mut self.shares.settle());
            inputs.remote = batch.snapshot;
        }
        if let Some(batch) = changes.services {
            let rows = batch.keys.iter().flat_map(|key| [inputs.services.get(key), batch.snapshot.get(key)]);
            let own = rows.flatten().filter(|row| row.source == Source::Manifests);
            for address in own.flat_map(ServiceRow::addresses) {
                affected.extend(inputs.requests.by_index(address).map(|request| request.name.clone()));
                let given = inputs.addresses.by_index(address);
                affected.extend(given.filter_map(|row| self.derived.get(&row.name).cloned()));
            }
            affected.extend(batch.keys.into_iter().filter(|name| inputs.exports.get(name).is_some()));
            inputs.services = batch.snapshot;
        }
        if let Some(batch) = changes.slices {
            let of = |snapshot: &Snapshot<SliceRow>, key| snapshot.get(key).map(|row| row.service.clone());
            let touched =
                batch.keys.iter().flat_map(|key| [of(&inputs.slices, key), of(&batch.snapshot, key)]);
            affected.extend(touched.flatten().filter(|name| inputs.exports.get(name).is_some()));
            inputs.slices = batch.snapshot;
        }
        if let Some(batch) = changes.addresses {
            let rows = batch.keys.iter().flat_map(|key| [inputs.addresses.get(key), batch.snapshot.get(key)]);
            for address in rows.flatten().flat_map(|row| &row.addresses) {
                affected.extend(inputs.requests.by_index(address).map(|request| request.name.clone()));
                let given = batch.snapshot.by_index(address);
                affected.extend(given.filter_map(|row| self.derived.get(&row.name).cloned()));
            }
            affected.extend(batch.keys.iter().filter_map(|name| self.derived.get(name).cloned()));
            inputs.addresses = batch.snapshot;
        }
        if let Some(namespaces) = changes.namespaces {
            let changed =
                namespaces.iter().filter(|(name, global)| inputs.namespaces.get(*name) != Some(global));
            let gone = inputs.namespaces.keys().filter(|name| !namespaces.contains_key(*name));
            let touched: BTreeSet<Arc<str>> = changed.map(|(name, _)| name).chain(gone).cloned().collect();
            for namespace in touched {
                affected.extend(names_in(inputs, &namespace));
            }
            inputs.namespaces = namespaces;
        }
        affected
    }

    fn plan(&mut self, name: &ServiceName, out: &Outputs) {
        let wanted = self.wanted(name);
        let derived = derived_name(name);
        match wanted.status {
            Some(row) => {
                out.exports.upsert(row);
            }
            None => drop(out.exports.remove(name)),
        }
        if wanted.import.is_some() {
            self.derived.insert(derived.clone(), name.clone());
        } else {
            self.derived.remove(&derived);
        }
        match wanted.import {
            Some(row) => {
                out.imports.upsert(row);
            }
            None => drop(out.imports.remove(name)),
        }
        out.services.commit(|txn| match wanted.service {
            // A Service of that very name among the manifests is left alone.
            _ if txn.current().get(&derived).is_some_and(|row| row.source != Source::Planner) => {}
            Some(row) => {
                txn.upsert(row);
            }
            None => drop(txn.remove(&derived)),
        });
        let keys: BTreeSet<ServiceName> = wanted.slices.iter().map(Row::key).collect();
        let before = self.slices.remove(name).unwrap_or_default();
        out.slices.commit(|txn| {
            for row in wanted.slices {
                if txn.current().get(&row.name).is_none_or(|known| known.source == Source::Planner) {
                    txn.upsert(row);
                }
            }
            for key in before.difference(&keys) {
                if txn.current().get(key).is_some_and(|known| known.source == Source::Planner) {
                    txn.remove(key);
                }
            }
        });
        if !keys.is_empty() {
            self.slices.insert(name.clone(), keys);
        }
    }

    /// Everything of one name, from scratch.
    fn wanted(&self, name: &ServiceName) -> Wanted {
        let inputs = &self.inputs;
        let own = inputs.exports.get(name);
        let service = inputs.services.get(name).filter(|row| row.source == Source::Manifests);
        let global = is_global(&inputs.namespaces, name);
        let valid = own.map(|row| exportable(row, service));
        let mut constituents = Vec::new();
        if let Some(Ok(spec)) = &valid
            && global
        {
            // An export that nobody has given a time yet is the youngest.
            let published = inputs.remote.get(&(name.clone(), self.own));
            let created = own.and_then(|row| row.created_unix_secs);
            let created_unix_secs =
                created.or(published.map(|row| row.created_unix_secs)).unwrap_or(i64::MAX);
            constituents.push(Constituent {
                cluster: self.own_name.clone(),
                created_unix_secs,
                spec: spec.clone(),
            });
        }
        let others = inputs.remote.by_index(name).filter(|row| row.source != self.own);
        for row in others.filter(|row| self.shares.admits(name, &row.source)) {
            let Source::Cluster(cluster) = &row.source else { continue };
            constituents.push(Constituent {
                cluster: cluster.as_str().into(),
                created_unix_secs: row.created_unix_secs,
                spec: row.spec.clone(),
            });
        }
        let resolved = resolve(&constituents);
        let status = valid.as_ref().map(|valid| self.status(name, valid.as_ref(), global, resolved.as_ref()));
        let exists = own.is_some() || has_namespace(&inputs.namespaces, &name.namespace);
        let import = resolved.filter(|_| exists && global).map(|resolved| self.import(name, resolved));
        let exported = service.filter(|_| matches!(valid, Some(Ok(_))) && global);
        let service = import.as_ref().map(|import| derived_service(import, exported));
        let slices = match (&import, exported) {
            (Some(import), Some(service)) => inputs
                .slices
                .by_index(&service.name)
                .filter(|slice| slice.source == Source::Manifests)
                .map(|slice| derived_slice(&import.derived, slice))
                .collect(),
            _ => Vec::new(),
        };
        Wanted { status, import, service, slices }
    }

    fn import(&self, name: &ServiceName, resolved: Resolved) -> ImportRow {
        let Resolved { mut spec, clusters, .. } = resolved;
        let derived = derived_name(name);
        let mut ips = BTreeSet::new();
        let condition = if spec.kind == ImportType::Headless {
            Condition::new("Ready", true, "Ready", "names of the endpoints")
        } else {
            if spec.families_ipv4.is_empty() {
                spec.families_ipv4 = vec![true, false];
            }
            let asked =
                self.inputs.requests.get(name).map(|request| request.ips.as_slice()).unwrap_or_default();
            let usable = |ipv4: bool| self.range.has(ipv4) || asked.iter().any(|ip| ip.is_ipv4() == ipv4);
            let theirs = std::mem::take(&mut spec.families_ipv4);
            spec.families_ipv4 = theirs.iter().copied().filter(|ipv4| usable(*ipv4)).collect();
            let assigned = self.inputs.addresses.get(&derived).into_iter().flat_map(|row| &row.addresses);
            let usable =
                |ip: &&IpAddr| spec.families_ipv4.contains(&ip.is_ipv4()) && self.inputs.owner(ip).is_none();
            ips = assigned.filter(usable).copied().collect();
            let taken = asked.iter().find_map(|ip| Some((ip, self.inputs.owner(ip)?)));
            match taken {
                Some((ip, owner)) => Condition::new(
                    "Ready",
                    false,
                    "AddressInUse",
                    format!("{ip} of spec.ips is an address of Service {owner}; ask for another"),
                ),
                None => self.addressed(&spec, &ips, &theirs),
            }
        };
        ImportRow {
            source: Source::Planner,
            name: name.clone(),
            derived,
            ips,
            spec,
            clusters,
            conditions: vec![condition],
        }
    }

    /// Whether an import that needs addresses has them.
    fn addressed(&self, spec: &ExportSpec, ips: &BTreeSet<IpAddr>, theirs: &[bool]) -> Condition {
        if spec.families_ipv4.is_empty() {
            let message = if self.range.0.is_empty() {
                "there is no range for clusterset IPs; give one in clustermesh.clusterset_cidrs of agent.yaml on every \
                 node, or ips in a ServiceImport object"
                    .to_owned()
            } else {
                let names: Vec<_> = theirs.iter().map(|ipv4| if *ipv4 { "IPv4" } else { "IPv6" }).collect();
                format!(
                    "the exports have {}, and clustermesh.clusterset_cidrs of agent.yaml has no range of that family",
                    names.join(" and ")
                )
            };
            return Condition::new("Ready", false, "IPFamilyNotSupported", message);
        }
        if spec.families_ipv4.iter().any(|ipv4| !ips.iter().any(|ip| ip.is_ipv4() == *ipv4)) {
            let message = "the elected agent has not given an address of each family yet; if it stays, its status \
                           (part etcd says `elected`) has the reason";
            return Condition::new("Ready", false, "Pending", message);
        }
        Condition::new("Ready", true, "Ready", "it has its addresses")
    }

    fn status(
        &self,
        name: &ServiceName,
        valid: Result<&ExportSpec, &Condition>,
        global: bool,
        resolved: Option<&Resolved>,
    ) -> ExportStatus {
        let mut conditions = vec![match valid {
            Ok(_) => Condition::new("Valid", true, "Valid", "the Service can be exported"),
            Err(condition) => condition.clone(),
        }];
        let published = self.inputs.remote.get(&(name.clone(), self.own)).is_some();
        conditions.push(match (valid, global, published) {
            (Err(_), ..) => Condition::new("Ready", false, "Failed", "not exported while it is not valid"),
            (Ok(_), false, _) => Condition::new(
                "Ready",
                false,
                "Failed",
                "its namespace is not shared: it has clustermesh.cilium.io/global: \"false\"",
            ),
            (Ok(_), true, true) => {
                Condition::new("Ready", true, "Exported", "it stands in this cluster's etcd")
            }
            (Ok(_), true, false) => {
                Condition::new("Ready", false, "Pending", "the elected agent has not written it to etcd yet")
            }
        });
        conditions.push(conflict(&self.own_name, resolved));
        ExportStatus { source: Source::Planner, name: name.clone(), conditions }
    }
}

/// All deviations under one condition; also on the export that is followed, so that both sides see them.
fn conflict(own: &Arc<str>, resolved: Option<&Resolved>) -> Condition {
    let found = resolved.map(|resolved| resolved.conflicts.as_slice()).unwrap_or_default();
    if found.is_empty() {
        return Condition::new("Conflict", false, "NoConflicts", "all exports of this name agree");
    }
    let reasons: BTreeSet<Reason> = found.iter().map(|conflict| conflict.reason).collect();
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    // What this cluster can mend comes first.
    let (ours, theirs): (Vec<_>, Vec<_>) = found.iter().partition(|conflict| conflict.cluster == *own);
    let text =
        |conflict: &&super::resolve::Conflict| format!("cluster {}: {}", conflict.cluster, conflict.message);
    let texts: Vec<String> = ours.iter().chain(&theirs).map(text).collect();
    Condition::new("Conflict", true, &reasons.join(","), texts.join("; "))
}

/// The names in a namespace that somebody exports.
fn names_in(inputs: &Inputs, namespace: &Arc<str>) -> BTreeSet<ServiceName> {
    let first = ServiceName { namespace: namespace.clone(), name: "".into() };
    let from = (first.clone(), Source::Manifests);
    let exports = inputs.exports.from_key(&first).map(|row| &row.name);
    let remote = inputs.remote.from_key(&from).map(|row| &row.name);
    let inside = |name: &&ServiceName| name.namespace == *namespace;
    exports.take_while(inside).chain(remote.take_while(inside)).cloned().collect()
}

/// A namespace that is not described is shared.
fn is_global(namespaces: &Namespaces, name: &ServiceName) -> bool {
    namespaces.get(&name.namespace).is_none_or(|global| *global)
}

fn has_namespace(namespaces: &Namespaces, namespace: &Arc<str>) -> bool {
    namespaces.contains_key(namespace) || ALWAYS.contains(&namespace.as_ref())
}

/// What is exported of a Service, or why it cannot be.
fn exportable(export: &ExportRow, service: Option<&ServiceRow>) -> Result<ExportSpec, Condition> {
    let Some(service) = service else {
        let message = format!("there is no Service {}", export.name);
        return Err(Condition::new("Valid", false, "NoService", message));
    };
    if service.kind == ServiceType::ExternalName {
        let message = "a Service of type ExternalName cannot be exported";
        return Err(Condition::new("Valid", false, "InvalidServiceType", message));
    }
    let details = &service.details;
    let port = |port: &ServicePort| ExportedPort {
        name: port.name.clone(),
        protocol: port.protocol,
        app_protocol: details.app_protocols.get(&(port.port, port.protocol)).cloned(),
        port: port.port,
    };
    Ok(ExportSpec {
        ports: service.ports.iter().map(port).collect(),
        kind: if service.headless { ImportType::Headless } else { ImportType::ClusterSetIP },
        client_ip_affinity: details.client_ip_affinity,
        affinity_timeout_secs: details.affinity_timeout_secs,
        families_ipv4: service.families_ipv4.clone(),
        internal_traffic_policy: Some(service.internal_traffic_policy),
        traffic_distribution: details.traffic_distribution.clone(),
        labels: export.labels.clone(),
        annotations: export.annotations.clone(),
    })
}

/// What this cluster exports, each with its time: that of its object, else the one it was published with before
/// (`known`), else `now`.
#[must_use]
pub fn own_exports(
    inputs: &Inputs,
    known: &BTreeMap<ServiceName, i64>,
    now_unix_secs: i64,
) -> Vec<(ServiceName, i64, ExportSpec)> {
    let one = |row: &ExportRow| {
        let service = inputs.services.get(&row.name).filter(|row| row.source == Source::Manifests);
        let spec = exportable(row, service).ok().filter(|_| is_global(&inputs.namespaces, &row.name))?;
        let created = row.created_unix_secs.or_else(|| known.get(&row.name).copied());
        Some((row.name.clone(), created.unwrap_or(now_unix_secs), spec))
    };
    inputs.exports.iter().filter_map(one).collect()
}

fn derived_service(import: &ImportRow, exported: Option<&ServiceRow>) -> ServiceRow {
    let spec = &import.spec;
    let port = |port: &ExportedPort| ServicePort {
        name: port.name.clone(),
        protocol: port.protocol,
        port: port.port,
        // Nodes' ports are each cluster's own.
        node_port: None,
    };
    let affinity = match spec.annotations.get(AFFINITY).map(AsRef::as_ref) {
        Some("local") => Affinity::Local,
        Some("remote") => Affinity::Remote,
        _ => Affinity::None,
    };
    let mut labels = spec.labels.clone();
    labels.insert(NAME_LABEL.into(), import.name.name.clone());
    ServiceRow {
        cluster_ips: import.ips.iter().copied().collect(),
        headless: spec.kind == ImportType::Headless,
        ports: spec.ports.iter().map(port).collect(),
        internal_traffic_policy: spec.internal_traffic_policy.unwrap_or_default(),
        families_ipv4: spec.families_ipv4.clone(),
        publish_not_ready: exported.is_some_and(|service| service.publish_not_ready),
        global: true,
        shared: true,
        affinity,
        distribution: match spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Distribution::SameZone,
            Some("PreferSameNode") => Distribution::SameNode,
            _ => Distribution::Any,
        },
        labels,
        selector: exported.map(|service| service.selector.clone()).unwrap_or_default(),
        details: ServiceDetails {
            client_ip_affinity: spec.client_ip_affinity,
            affinity_timeout_secs: spec.affinity_timeout_secs,
            traffic_distribution: spec.traffic_distribution.clone(),
            ..ServiceDetails::default()
        },
        ..ServiceRow::new(Source::Planner, import.derived.clone())
    }
}

fn derived_slice(derived: &ServiceName, slice: &SliceRow) -> SliceRow {
    let name = format!("{}-{}", derived.name, slice.name.name).into();
    SliceRow {
        source: Source::Planner,
        name: ServiceName { namespace: derived.namespace.clone(), name },
        service: derived.clone(),
        ..slice.clone()
    }
}
