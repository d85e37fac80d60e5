//! The plan of services: which frontends exist and which backends each may choose.
//!
//! One service is computed from its Service, its EndpointSlices, what other clusters share under its name and its
//! LoadBalancer addresses. Backends are shared between frontends and counted.

use crate::maglev;
use crate::numbers::Numbers;
use crate::rows::{
    Affinity, BackendRow, FrontendKey, FrontendRow, LbAssignment, Protocol, RemoteService, Scope,
    ServiceName, ServicePort, ServiceRow, ServiceType, SliceRow, TrafficPolicy,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::aggregate::Gate;
use tombolo_base::clock::Moment;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Row, Snapshot, Writer};

/// What makes a backend: address, port, protocol.
pub type BackendKey = (IpAddr, u16, Protocol);

/// A backend that a service may choose.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    key: BackendKey,
    local_node: bool,
    cluster: Option<Arc<str>>,
}

/// A frontend before its backends have numbers.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    key: FrontendKey,
    backends: BTreeSet<Candidate>,
    local_only: bool,
}

/// The tables the plan reads, as they were when it last ran.
#[derive(Clone, Default)]
pub struct Inputs {
    /// Services of this cluster.
    pub services: Snapshot<ServiceRow>,
    /// EndpointSlices of this cluster.
    pub slices: Snapshot<SliceRow>,
    /// What other clusters share.
    pub remote: Snapshot<RemoteService>,
    /// LoadBalancer addresses.
    pub addresses: Snapshot<LbAssignment>,
}

/// What changed in the inputs.
#[derive(Default)]
pub struct InputChanges {
    /// Services.
    pub services: Option<Batch<ServiceRow>>,
    /// EndpointSlices.
    pub slices: Option<Batch<SliceRow>>,
    /// Remote services.
    pub remote: Option<Batch<RemoteService>>,
    /// LoadBalancer addresses.
    pub addresses: Option<Batch<LbAssignment>>,
}

impl InputChanges {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.services.is_none() && self.slices.is_none() && self.remote.is_none() && self.addresses.is_none()
    }
}

/// The tables the plan writes.
pub struct Outputs {
    /// Frontends.
    pub frontends: Writer<FrontendRow>,
    /// Backends.
    pub backends: Writer<BackendRow>,
}

/// Plans frontends and backends of one node.
pub struct Planner {
    node: Arc<str>,
    inputs: Inputs,
    gate: Gate,
    gate_was_open: bool,
    frontend_numbers: Numbers<FrontendKey>,
    backend_numbers: Numbers<BackendKey>,
    /// What an earlier life's datapath held; members stay until the gate opens.
    before: BTreeMap<FrontendKey, BTreeSet<BackendKey>>,
    by_service: BTreeMap<ServiceName, BTreeMap<FrontendKey, BTreeSet<BackendKey>>>,
    uses: BTreeMap<BackendKey, u32>,
    /// Backends of frontends that an earlier life's datapath holds: some of those may not be planned yet, so their
    /// backends keep number and row until the gate opens.
    held: BTreeSet<BackendKey>,
}

impl Planner {
    /// A planner for `node`, whose life begins at `start`.
    #[must_use]
    pub fn new(node: Arc<str>, start: Moment) -> Self {
        Self {
            node,
            inputs: Inputs::default(),
            gate: Gate::new(start),
            gate_was_open: false,
            frontend_numbers: Numbers::new(u32::from(u16::MAX)),
            backend_numbers: Numbers::new(u32::MAX),
            before: BTreeMap::new(),
            by_service: BTreeMap::new(),
            uses: BTreeMap::new(),
            held: BTreeSet::new(),
        }
    }

    /// Takes over the numbers and members that the datapath holds from an earlier life.
    pub fn restore(
        &mut self,
        backends: impl IntoIterator<Item = (BackendKey, u32)>,
        frontends: impl IntoIterator<Item = (FrontendKey, u16, BTreeSet<BackendKey>)>,
    ) {
        for (key, number) in backends {
            self.backend_numbers.restore(key, number);
        }
        for (key, number, members) in frontends {
            self.frontend_numbers.restore(number_key(key), u32::from(number));
            self.held.extend(members.iter().copied());
            self.before.insert(key, members);
        }
    }

    /// When a step without changes is due: the hold on restored members ends.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        (!self.gate_was_open).then(|| self.gate.opens_at())
    }

    /// Takes in what changed and writes the rows of the services it touches.
    pub fn step(&mut self, changes: InputChanges, now: Moment, out: &Outputs) {
        let mut affected = BTreeSet::new();
        if let Some(batch) = changes.services {
            for key in &batch.keys {
                affected.extend(sharing(&self.inputs.services, key));
                affected.extend(sharing(&batch.snapshot, key));
            }
            affected.extend(batch.keys);
            self.inputs.services = batch.snapshot;
        }
        if let Some(batch) = changes.slices {
            let service =
                |snapshot: &Snapshot<SliceRow>, key| snapshot.get(key).map(|row| row.service.clone());
            for key in &batch.keys {
                affected.extend(
                    service(&self.inputs.slices, key).into_iter().chain(service(&batch.snapshot, key)),
                );
            }
            self.inputs.slices = batch.snapshot;
        }
        if let Some(batch) = changes.remote {
            affected.extend(batch.keys.into_iter().map(|(name, _)| name));
            self.inputs.remote = batch.snapshot;
        }
        if let Some(batch) = changes.addresses {
            for key in &batch.keys {
                for addresses in [&self.inputs.addresses, &batch.snapshot] {
                    let row = addresses.get(key).map(|row| row.addresses.clone()).unwrap_or_default();
                    affected.extend(row.iter().flat_map(|ip| with_address(&self.inputs.services, ip)));
                }
            }
            affected.extend(batch.keys);
            self.inputs.addresses = batch.snapshot;
        }
        let (services, remote) = (&self.inputs.services, &self.inputs.remote);
        let others = self.inputs.slices.sources().chain(self.inputs.addresses.sources());
        self.gate.observe(services.sources().chain(others).chain(remote.sources()));
        let opened = self.gate.is_open(now) && !self.gate_was_open;
        if opened {
            // Members that only the earlier life knew may go now: every service is looked at once.
            self.gate_was_open = true;
            self.before.clear();
            affected.extend(self.by_service.keys().cloned());
        }
        for name in &affected {
            self.plan_service(name, out);
        }
        if opened {
            let kept: Vec<u32> = std::mem::take(&mut self.held)
                .into_iter()
                .filter(|key| !self.uses.contains_key(key))
                .filter_map(|key| self.backend_numbers.release(&key))
                .collect();
            out.backends.commit(|txn| kept.iter().for_each(|id| drop(txn.remove(id))));
            self.backend_numbers.retain(|key| self.uses.contains_key(key));
            let planned: BTreeSet<_> =
                self.by_service.values().flat_map(BTreeMap::keys).copied().map(number_key).collect();
            self.frontend_numbers.retain(|key| planned.contains(key));
        }
        let state = if self.gate_was_open { SourceState::Initialized } else { SourceState::Pending };
        out.frontends.set_source(&Source::Planner, state);
        out.backends.set_source(&Source::Planner, state);
    }

    fn plan_service(&mut self, name: &ServiceName, out: &Outputs) {
        let wanted = self.wanted(name);
        let old = self.by_service.remove(name).unwrap_or_default();
        let mut new = BTreeMap::new();
        for frontend in &wanted {
            let mut members: BTreeSet<BackendKey> = frontend.backends.iter().map(|c| c.key).collect();
            if let Some(before) = self.before.get(&frontend.key) {
                members.extend(
                    before
                        .iter()
                        .filter(|key| !self.gate_was_open && self.backend_numbers.get(key).is_some()),
                );
            }
            new.insert(frontend.key, members);
        }
        // New uses first, so that a backend that only moves between frontends keeps its number.
        for key in new.values().flatten() {
            *self.uses.entry(*key).or_insert(0) += 1;
        }
        out.backends.commit(|txn| {
            let wanted = wanted.iter().flat_map(|frontend| frontend.backends.iter().cloned());
            let known: BTreeMap<_, _> = wanted.map(|candidate| (candidate.key, candidate)).collect();
            for key in new.values().flatten() {
                // A member that only the earlier life knew: where it runs is not known, nor needed.
                let restored = || Candidate { key: *key, local_node: false, cluster: None };
                let candidate = known.get(key).cloned().unwrap_or_else(restored);
                if let Some(id) = self.backend_numbers.of(key) {
                    txn.upsert(backend_row(&candidate, id));
                }
            }
        });
        // Another service may have taken over an external address before this one let go of it.
        let taken: BTreeSet<FrontendKey> =
            old.keys().filter(|key| !new.contains_key(key) && self.is_planned(key)).copied().collect();
        out.frontends.commit(|txn| {
            for frontend in &wanted {
                let members = new.get(&frontend.key).cloned().unwrap_or_default();
                if let Some(row) = self.frontend_row(name, frontend, &members) {
                    txn.upsert(row);
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(key) && !taken.contains(key)) {
                txn.remove(key);
                if !new.keys().any(|other| number_key(*other) == number_key(*key)) {
                    self.frontend_numbers.release(&number_key(*key));
                }
            }
        });
        out.backends.commit(|txn| {
            for key in old.values().flatten() {
                if let Some(id) = self.unuse(key) {
                    txn.remove(&id);
                }
            }
        });
        if !new.is_empty() {
            self.by_service.insert(name.clone(), new);
        }
    }

    /// Whether a service other than the one being planned has the frontend.
    fn is_planned(&self, key: &FrontendKey) -> bool {
        let assigned = self.inputs.addresses.by_index(&key.address).map(|row| row.name.clone());
        let mut names = with_address(&self.inputs.services, &key.address).into_iter().chain(assigned);
        names.any(|name| self.by_service.get(&name).is_some_and(|frontends| frontends.contains_key(key)))
    }

    /// Counts one use less; the number to give up if it was the last.
    fn unuse(&mut self, key: &BackendKey) -> Option<u32> {
        let uses = self.uses.get_mut(key)?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        self.uses.remove(key);
        if self.held.contains(key) { None } else { self.backend_numbers.release(key) }
    }

    fn frontend_row(
        &mut self,
        service: &ServiceName,
        wanted: &Wanted,
        members: &BTreeSet<BackendKey>,
    ) -> Option<FrontendRow> {
        // Ordered by address: every node of the cluster builds the same Maglev table.
        let identities: Vec<_> =
            members.iter().map(|(ip, port, protocol)| (*ip, *port, protocol.number())).collect();
        Some(FrontendRow {
            source: Source::Planner,
            key: wanted.key,
            id: u16::try_from(self.frontend_numbers.of(&number_key(wanted.key))?).ok()?,
            service: service.clone(),
            backends: members.iter().filter_map(|key| self.backend_numbers.of(key)).collect(),
            maglev: maglev::table(&identities),
            local_only: wanted.local_only,
        })
    }

    /// The frontends of one service, from scratch.
    fn wanted(&self, name: &ServiceName) -> Vec<Wanted> {
        let Some(service) = self.inputs.services.get(name) else { return Vec::new() };
        if service.kind == ServiceType::ExternalName || service.headless {
            return Vec::new();
        }
        let assigned = self.inputs.addresses.get(name).filter(|_| service.kind == ServiceType::LoadBalancer);
        let mut wanted = Vec::new();
        for port in &service.ports {
            for address in &service.cluster_ips {
                let local_only = service.internal_traffic_policy == TrafficPolicy::Local;
                wanted.push(self.frontend(service, port, *address, Scope::Internal, local_only));
            }
            for address in assigned.into_iter().flat_map(|row| &row.addresses) {
                let local_only = service.external_traffic_policy == TrafficPolicy::Local;
                wanted.push(self.frontend(service, port, *address, Scope::External, local_only));
                // Kubernetes: from inside the cluster the external policy does not narrow the choice.
                wanted.push(self.frontend(service, port, *address, Scope::Internal, false));
            }
            for address in service.external_ips.iter().filter(|ip| self.has_external(service, port, ip)) {
                let local_only = service.external_traffic_policy == TrafficPolicy::Local;
                wanted.push(self.frontend(service, port, *address, Scope::External, local_only));
                wanted.push(self.frontend(service, port, *address, Scope::Internal, false));
            }
        }
        wanted
    }

    /// Whether an address of `externalIPs` is the service's at this port. Anybody may write any address there: one that
    /// another service has as its cluster address, or earlier by name as an external one, is that service's.
    fn has_external(&self, service: &ServiceRow, port: &ServicePort, address: &IpAddr) -> bool {
        let same = |other: &ServicePort| (other.protocol, other.port) == (port.protocol, port.port);
        !self.inputs.services.by_index(address).any(|other| {
            let first = other.cluster_ips.contains(address) || other.name < service.name;
            other.name != service.name && first && other.ports.iter().any(same)
        }) && !self.inputs.addresses.by_index(address).any(|row| row.name != service.name)
            && !service.cluster_ips.contains(address)
    }

    fn frontend(
        &self,
        service: &ServiceRow,
        port: &ServicePort,
        address: IpAddr,
        scope: Scope,
        local_only: bool,
    ) -> Wanted {
        let ipv4 = address.is_ipv4();
        let local = self.local_backends(service, port, ipv4, local_only);
        let remote = if service.global && !local_only {
            self.remote_backends(service, port, ipv4)
        } else {
            BTreeSet::new()
        };
        let backends = match service.affinity {
            Affinity::Local if !local.is_empty() => local,
            Affinity::Remote if !remote.is_empty() => remote,
            _ => local.into_iter().chain(remote).collect(),
        };
        let key = FrontendKey { address, port: port.port, protocol: port.protocol, scope };
        Wanted { key, backends, local_only }
    }

    /// This cluster's backends: the ready ones; if there is none, those that still serve (KEP-1669).
    fn local_backends(
        &self,
        service: &ServiceRow,
        port: &ServicePort,
        ipv4: bool,
        local_only: bool,
    ) -> BTreeSet<Candidate> {
        let mut ready = BTreeSet::new();
        let mut serving = BTreeSet::new();
        for slice in self.inputs.slices.by_index(&service.name) {
            let matching = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for (slice_port, endpoint) in matching.flat_map(|p| slice.endpoints.iter().map(move |e| (p, e))) {
                let local_node = endpoint.node.as_ref() == Some(&self.node);
                if local_only && !local_node {
                    continue;
                }
                for address in endpoint.addresses.iter().filter(|address| address.is_ipv4() == ipv4) {
                    let key = (*address, slice_port.port, port.protocol);
                    let candidate = Candidate { key, local_node, cluster: None };
                    if endpoint.ready || service.publish_not_ready {
                        ready.insert(candidate);
                    } else if endpoint.serving {
                        serving.insert(candidate);
                    }
                }
            }
        }
        if ready.is_empty() { serving } else { ready }
    }

    /// Other clusters' backends, matched by port name and protocol.
    fn remote_backends(&self, service: &ServiceRow, port: &ServicePort, ipv4: bool) -> BTreeSet<Candidate> {
        let rows = self.inputs.remote.by_index(&service.name);
        let backends = rows.flat_map(|row| row.backends.iter().map(|(ip, ports)| (row.source(), *ip, ports)));
        let matching = backends.filter(|(_, ip, _)| ip.is_ipv4() == ipv4).flat_map(|(source, ip, ports)| {
            let of_port = ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            of_port.map(move |p| Candidate {
                key: (ip, p.port, p.protocol),
                local_node: false,
                cluster: match source {
                    Source::Cluster(name) => Some(name.as_str().into()),
                    _ => None,
                },
            })
        });
        matching.collect()
    }
}

/// Both scopes of an address and port share one number: an answer is translated back whoever asked.
const fn number_key(key: FrontendKey) -> FrontendKey {
    FrontendKey { scope: Scope::Internal, ..key }
}

fn backend_row(candidate: &Candidate, id: u32) -> BackendRow {
    let (address, port, protocol) = candidate.key;
    BackendRow {
        source: Source::Planner,
        id,
        address,
        port,
        protocol,
        local: candidate.local_node,
        cluster: candidate.cluster.clone(),
    }
}

/// The services that name an address.
fn with_address(services: &Snapshot<ServiceRow>, address: &IpAddr) -> Vec<ServiceName> {
    services.by_index(address).map(|row| row.name.clone()).collect()
}

/// The services that share an address with one: who has it may change with that one.
fn sharing(services: &Snapshot<ServiceRow>, name: &ServiceName) -> Vec<ServiceName> {
    let addresses = services.get(name).map(Row::indexes).unwrap_or_default();
    addresses.iter().flat_map(|address| with_address(services, address)).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
