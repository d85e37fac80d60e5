//! The plan of services: which frontends exist and which backends each may choose.
//!
//! One service is computed from its Service, its EndpointSlices, what other clusters share under its name and its
//! LoadBalancer addresses. Backends are shared between frontends and counted.

mod host_ports;
mod numbers;
mod wanted;

use self::numbers::FrontendNumbers;
use self::wanted::Wanted;
use crate::choice::{Candidate, Choice, Member, Rules, Site, TierUse, Why, choose};
use crate::maglev;
use crate::members;
use crate::numbers::Numbers;
use crate::probe::FailedProbe;
use crate::rows::{
    BackendRow, BackendState, Claim, FrontendKey, FrontendRow, HostPortRow, LbAssignment, Protocol,
    RemoteService, ServiceName, ServicePort, ServiceRow, SliceRow, TrafficPolicy,
};
use crate::spread;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::aggregate::Gate;
use tombolo_base::clock::Moment;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Snapshot, Writer};

/// What makes a backend: address, port, protocol.
pub type BackendKey = (IpAddr, u16, Protocol);

/// The backends of one port and family, and what is chosen of them. Frontends that choose alike share one.
#[derive(Clone, Debug, PartialEq)]
struct Pool {
    port: ServicePort,
    ipv4: bool,
    local_only: bool,
    candidates: Vec<Candidate>,
    choice: Choice,
}

/// What a service was planned to be.
#[derive(Clone, Debug, Default)]
struct Planned {
    frontends: BTreeSet<FrontendKey>,
    /// All its known backends by key.
    backends: Vec<Candidate>,
}

/// A choice in numbers, as the frontends' rows have it.
#[derive(Clone)]
struct Numbered {
    backends: Vec<u32>,
    weights: Arc<[u32]>,
    spare: Arc<[(u32, Why)]>,
    tiers: Arc<[TierUse]>,
    maglev: Arc<[u16]>,
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
    /// Backends that do not answer this node's probes.
    pub probes: Snapshot<FailedProbe>,
    /// Pods of this node with ports of the node.
    pub host_ports: Snapshot<HostPortRow>,
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
    /// Backends that do not answer this node's probes.
    pub probes: Option<Batch<FailedProbe>>,
    /// Pods of this node with ports of the node.
    pub host_ports: Option<Batch<HostPortRow>>,
    /// The zone of this node, `Some(None)` if it has none.
    pub zone: Option<Option<Arc<str>>>,
}

impl InputChanges {
    /// Whether there is nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.services.is_none()
            && self.slices.is_none()
            && self.remote.is_none()
            && self.addresses.is_none()
            && self.probes.is_none()
            && self.host_ports.is_none()
            && self.zone.is_none()
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
    site: Site,
    /// The node's own addresses, which have its node ports.
    node_addresses: BTreeSet<IpAddr>,
    inputs: Inputs,
    gate: Gate,
    gate_was_open: bool,
    frontend_numbers: FrontendNumbers,
    backend_numbers: Numbers<BackendKey>,
    /// What an earlier life's datapath held; members stay until the gate opens.
    before: BTreeMap<FrontendKey, BTreeSet<BackendKey>>,
    by_service: BTreeMap<ServiceName, Planned>,
    /// How many services know a backend.
    uses: BTreeMap<BackendKey, u32>,
    /// Backends of frontends that an earlier life's datapath holds: some of those may not be planned yet, so their
    /// backends keep number and row until the gate opens.
    held: BTreeSet<BackendKey>,
    /// Ports that are asked for and not served, by pod or service.
    refused: BTreeMap<ServiceName, Vec<String>>,
}

impl Planner {
    /// A planner for `node`, whose life begins at `start`.
    #[must_use]
    pub fn new(node: Arc<str>, start: Moment) -> Self {
        Self {
            site: Site { node, ..Site::default() },
            node_addresses: BTreeSet::new(),
            inputs: Inputs::default(),
            gate: Gate::new(start),
            gate_was_open: false,
            frontend_numbers: FrontendNumbers::new(),
            backend_numbers: Numbers::new(u32::MAX),
            before: BTreeMap::new(),
            by_service: BTreeMap::new(),
            uses: BTreeMap::new(),
            held: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The cluster it plans for: who is meant by its name in tiers and weights.
    #[must_use]
    pub fn in_cluster(mut self, name: &str) -> Self {
        self.site.cluster = name.into();
        self
    }

    /// The node's own addresses: node ports are served there.
    #[must_use]
    pub fn at(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.node_addresses = addresses.into_iter().collect();
        self
    }

    /// One that only looks at rows as they are; see [`crate::view`].
    pub(crate) fn viewing(inputs: Inputs, node: &str, cluster: &str, zone: Option<&str>) -> Self {
        let mut planner = Self::new(node.into(), Moment::ZERO).in_cluster(cluster);
        planner.site.zone = zone.map(Into::into);
        planner.inputs = inputs;
        planner
    }

    /// What pods choose from, by port and family: candidates and choice. Also of ports without an address.
    pub(crate) fn pools(&self, name: &ServiceName) -> Vec<(ServicePort, bool, Vec<Candidate>, Choice)> {
        let Some(service) = self.inputs.services.get(name).filter(|row| !row.headless) else {
            return Vec::new();
        };
        let local_only = service.internal_traffic_policy == TrafficPolicy::Local;
        let mut pools = Vec::new();
        for port in &service.ports {
            for ipv4 in [true, false] {
                self.pool(service, port, ipv4, local_only, &mut pools);
            }
        }
        let pools = pools.into_iter().filter(|pool| !pool.candidates.is_empty());
        pools.map(|pool| (pool.port, pool.ipv4, pool.candidates, pool.choice)).collect()
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
            self.frontend_numbers.restore(key, number);
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
        self.gate.observe(changes.services.as_ref());
        self.gate.observe(changes.slices.as_ref());
        self.gate.observe(changes.remote.as_ref());
        self.gate.observe(changes.addresses.as_ref());
        self.gate.observe(changes.host_ports.as_ref());
        let mut affected = self.take(changes);
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
            let planned = self.by_service.values().flat_map(|planned| &planned.frontends);
            self.frontend_numbers.retain(planned);
        }
        for name in self.frontend_numbers.waiting() {
            self.plan_service(&name, out);
        }
        let state = if self.gate_was_open { SourceState::Initialized } else { SourceState::Pending };
        out.frontends.set_source(&Source::Planner, state);
        out.backends.set_source(&Source::Planner, state);
    }

    /// Takes in what changed; the services it touches.
    fn take(&mut self, changes: InputChanges) -> BTreeSet<ServiceName> {
        let mut affected = BTreeSet::new();
        if let Some(batch) = changes.services {
            for key in &batch.keys {
                affected.extend(self.sharing(&self.inputs.services, key));
                affected.extend(self.sharing(&batch.snapshot, key));
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
                    let services = &self.inputs.services;
                    affected
                        .extend(row.iter().flat_map(|ip| wanted::claiming(services, Claim::Address(*ip))));
                }
            }
            affected.extend(batch.keys);
            self.inputs.addresses = batch.snapshot;
        }
        if let Some(batch) = changes.probes {
            affected.extend(batch.keys.into_iter().map(|(name, _)| name));
            self.inputs.probes = batch.snapshot;
        }
        if let Some(batch) = changes.host_ports {
            for key in &batch.keys {
                affected.extend(self.pods_sharing(&self.inputs.host_ports, key));
                affected.extend(self.pods_sharing(&batch.snapshot, key));
            }
            affected.extend(batch.keys);
            self.inputs.host_ports = batch.snapshot;
        }
        if let Some(zone) = changes.zone.filter(|zone| *zone != self.site.zone) {
            self.site.zone = zone;
            affected.extend(self.by_service.keys().cloned());
        }
        affected
    }

    fn plan_service(&mut self, name: &ServiceName, out: &Outputs) {
        let (wanted, pools) = self.wanted(name);
        let refused = self.refusals(name);
        if refused.is_empty() {
            self.refused.remove(name);
        } else {
            self.refused.insert(name.clone(), refused);
        }
        let old = self.by_service.remove(name).unwrap_or_default();
        let new = Planned {
            frontends: wanted.iter().map(|frontend| frontend.key).collect(),
            backends: self.known(&wanted, &pools),
        };
        let gone = self.write_backends(&old.backends, &new.backends, out);
        let rows = self.frontend_rows(name, &wanted, &pools, out);
        self.frontend_numbers.note(name, self.is_import(name), rows.len() < wanted.len());
        // Another service may have taken over an external address before this one let go of it.
        let taken: BTreeSet<FrontendKey> = old
            .frontends
            .iter()
            .filter(|key| !new.frontends.contains(key) && self.is_planned(key))
            .copied()
            .collect();
        out.frontends.commit(|txn| {
            for row in rows {
                txn.upsert(row);
            }
            for key in old.frontends.difference(&new.frontends).filter(|key| !taken.contains(key)) {
                txn.remove(key);
                self.frontend_numbers.release(*key, &new.frontends);
            }
        });
        out.backends.commit(|txn| {
            for key in gone {
                if let Some(id) = self.unuse(&key) {
                    txn.remove(&id);
                }
            }
        });
        if !new.frontends.is_empty() {
            self.by_service.insert(name.clone(), new);
        }
    }

    /// All backends that the frontends know, by key, no key twice.
    fn known(&self, wanted: &[Wanted], pools: &[Pool]) -> Vec<Candidate> {
        let mut all: Vec<Candidate> = pools.iter().flat_map(|pool| pool.candidates.iter().cloned()).collect();
        // A member that only the earlier life knew: where it runs is not known, nor needed.
        let restored = wanted.iter().flat_map(|frontend| self.restored(&frontend.key));
        let kept: Vec<Candidate> = restored
            .map(|key| Candidate {
                key,
                cluster: None,
                state: BackendState::Ready,
                local_node: false,
                zone: None,
                for_zones: Vec::new(),
                for_nodes: Vec::new(),
                failing: false,
            })
            .collect();
        all.extend(kept);
        // Stable: what is known comes before what is only remembered.
        all.sort_by_key(|candidate| candidate.key);
        all.dedup_by_key(|candidate| candidate.key);
        all
    }

    /// Members of an earlier life's frontend, until the gate opens.
    fn restored(&self, key: &FrontendKey) -> impl Iterator<Item = BackendKey> {
        let before = self.before.get(key).filter(|_| !self.gate_was_open);
        before.into_iter().flatten().filter(|key| self.backend_numbers.get(key).is_some()).copied()
    }

    /// Writes the rows of backends that came or changed. Those that went are given back: their rows go after the
    /// frontends let go of them, and one that only moves between services keeps its number.
    fn write_backends(&mut self, old: &[Candidate], new: &[Candidate], out: &Outputs) -> Vec<BackendKey> {
        let mut before = old.iter().peekable();
        let mut gone = Vec::new();
        out.backends.commit(|txn| {
            for candidate in new {
                while let Some(other) = before.next_if(|other| other.key < candidate.key) {
                    gone.push(other.key);
                }
                let known = before.next_if(|other| other.key == candidate.key);
                if known.is_none() {
                    *self.uses.entry(candidate.key).or_insert(0) += 1;
                }
                if known != Some(candidate)
                    && let Some(id) = self.backend_numbers.of(&candidate.key)
                {
                    txn.upsert(backend_row(candidate, id));
                }
            }
        });
        gone.extend(before.map(|candidate| candidate.key));
        gone
    }

    /// The rows of a service's frontends.
    fn frontend_rows(
        &mut self,
        service: &ServiceName,
        wanted: &[Wanted],
        pools: &[Pool],
        out: &Outputs,
    ) -> Vec<FrontendRow> {
        let present = out.frontends.table().snapshot();
        let import = self.is_import(service);
        let affinity_secs = self.inputs.services.get(service).and_then(|row| row.details.affinity_secs());
        let mut numbered: BTreeMap<usize, Numbered> = BTreeMap::new();
        let mut rows = Vec::with_capacity(wanted.len());
        for frontend in wanted {
            let Some(pool) = pools.get(frontend.pool) else { continue };
            let restored: BTreeSet<BackendKey> = self.restored(&frontend.key).collect();
            let old = present.get(&frontend.key);
            let chosen = match numbered.get(&frontend.pool).filter(|_| restored.is_empty()) {
                Some(numbered) => numbered.clone(),
                None if restored.is_empty() => {
                    let fresh = self.number(&pool.choice, old);
                    numbered.insert(frontend.pool, fresh.clone());
                    fresh
                }
                None => self.number(&with_restored(&pool.choice, &restored), old),
            };
            let Some(id) = self.frontend_numbers.of(frontend.key, import) else { continue };
            rows.push(FrontendRow {
                source: Source::Planner,
                key: frontend.key,
                id,
                service: service.clone(),
                backends: chosen.backends,
                weights: chosen.weights,
                tiers: chosen.tiers,
                spare: chosen.spare,
                maglev: chosen.maglev,
                local_only: frontend.terms.local_only,
                whole_address: frontend.terms.whole_address,
                source_ranges: frontend.terms.source_ranges.clone(),
                affinity_secs,
                node_port: frontend.terms.node_port,
                host_port: frontend.terms.host_port,
            });
        }
        rows
    }

    /// Whether a service carries an import.
    fn is_import(&self, name: &ServiceName) -> bool {
        self.inputs.services.get(name).is_some_and(|row| row.source == Source::Planner)
    }

    /// What is not served for want of numbers, or because somebody else has it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let refused = self.refused.values().flatten().cloned();
        self.frontend_numbers.problems().into_iter().chain(refused).collect()
    }

    /// A choice in numbers. Ordered by address: every node of the cluster builds the same Maglev table.
    fn number(&mut self, choice: &Choice, old: Option<&FrontendRow>) -> Numbered {
        let members: Vec<(&Member, u32)> = choice
            .members
            .iter()
            .filter_map(|member| Some((member, self.backend_numbers.of(&member.key)?)))
            .collect();
        let alike = members.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a.weight == b.weight));
        let weights: Vec<u32> =
            if alike { Vec::new() } else { members.iter().map(|(member, _)| member.weight).collect() };
        let backends: Vec<u32> = members.iter().map(|(_, id)| *id).collect();
        // Numbers are kept, so equal ones mean the same backends: the table is only made where it differs.
        let same = old.filter(|row| row.backends == backends && *row.weights == *weights);
        let maglev = same.map_or_else(
            || {
                let identity = |member: &Member| (member.key.0, member.key.1, member.key.2.number());
                let identities: Vec<_> = members.iter().map(|(member, _)| identity(member)).collect();
                maglev::table(&identities, &weights)
            },
            |row| row.maglev.clone(),
        );
        let spare = choice.spare.iter().filter_map(|(key, why)| Some((self.backend_numbers.get(key)?, *why)));
        Numbered {
            backends,
            weights: weights.into(),
            spare: spare.collect(),
            tiers: choice.tiers.as_slice().into(),
            maglev,
        }
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

    /// The number of a pool, made at first sight.
    fn pool(
        &self,
        service: &ServiceRow,
        port: &ServicePort,
        ipv4: bool,
        local_only: bool,
        pools: &mut Vec<Pool>,
    ) -> usize {
        let same = |pool: &Pool| (&pool.port, pool.ipv4, pool.local_only) == (port, ipv4, local_only);
        if let Some(found) = pools.iter().position(same) {
            return found;
        }
        let mut candidates = members::candidates(&self.inputs, service, port, ipv4, &self.site);
        // A slice need not name the node of a backend in the host's network: the API servers' does not.
        for own in candidates.iter_mut().filter(|own| own.cluster.is_none()) {
            own.local_node |= self.node_addresses.contains(&own.key.0);
        }
        if local_only {
            candidates.retain(|candidate| candidate.local_node);
        }
        let tiers = spread::tiers(service);
        let here = vec![BTreeSet::from([spread::Place::Rest])];
        let none = BTreeMap::new();
        // On this node alone there is nothing to choose between clusters or zones.
        let rules = Rules {
            tiers: if local_only { &here } else { &tiers },
            weights: if local_only { &none } else { &service.spread.weights },
            overflow: service.spread.overflow,
            distribution: (!local_only).then_some(service.distribution),
        };
        let choice = choose(&candidates, &rules, &self.site);
        pools.push(Pool { port: port.clone(), ipv4, local_only, candidates, choice });
        pools.len() - 1
    }
}

/// A choice with members of an earlier life, which have not been said yet or are not chosen now.
fn with_restored(choice: &Choice, restored: &BTreeSet<BackendKey>) -> Choice {
    let heaviest = choice.members.iter().map(|member| member.weight).max().unwrap_or(1);
    let chosen: BTreeSet<BackendKey> = choice.members.iter().map(|member| member.key).collect();
    let added = restored.difference(&chosen).map(|key| Member { key: *key, weight: heaviest });
    let mut members: Vec<Member> = choice.members.iter().copied().chain(added).collect();
    members.sort_by_key(|member| member.key);
    let spare = choice.spare.iter().filter(|(key, _)| !restored.contains(key)).copied().collect();
    Choice { members, spare, tiers: choice.tiers.clone() }
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
        state: candidate.state,
        zone: candidate.zone.clone(),
        failing: candidate.failing,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
