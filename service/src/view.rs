//! Global services as people look at them: who exports them, which tier is in use, and why a backend is not chosen.
//! Computed when somebody asks, from the rows that the planner reads.

use crate::choice::{Candidate, Choice, TierUse, Why};
use crate::plan::{BackendKey, Inputs, Planner};
use crate::rows::{BackendState, RemotePort, RemoteService, ServiceName, ServiceRow};
use crate::spread;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::source::Source;

/// A global service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ServiceView {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Whether it exists and is global in this cluster: without that nobody here uses what others share.
    pub used_here: bool,
    /// Whether this cluster shares it.
    pub shared: bool,
    /// Clusters that have or share it, by name.
    pub clusters: BTreeMap<Arc<str>, ClusterView>,
    /// `service.cilium.io/affinity`.
    pub affinity: String,
    /// The tiers in force.
    pub tiers: Vec<Vec<String>>,
    /// Weights, as written; `-` without.
    pub weights: String,
    /// `service.tombolo.io/overflow`, percent.
    pub overflow: Option<u8>,
    /// Its ports.
    pub ports: Vec<PortView>,
    /// What does not fit together between the clusters, or keeps backends from being used.
    pub conflicts: Vec<String>,
}

/// What one cluster has of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterView {
    /// Addresses of backends that are known.
    pub known: usize,
    /// Those that are ready.
    pub ready: usize,
    /// Seconds since the cluster's services were confirmed last; absent while they are current.
    pub stale_secs: Option<u64>,
}

/// One port in one family, as new flows of this node's pods meet it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortView {
    /// Port name.
    pub name: Arc<str>,
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The tiers as they are used.
    pub tiers: Vec<TierUse>,
    /// The tier that is asked first of those that take traffic, from 1; 0 if no backend can be chosen.
    pub tier_in_use: usize,
    /// Whether more than one tier takes traffic.
    pub overflowing: bool,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackendView {
    /// Address, port, protocol.
    #[serde(serialize_with = "key_text")]
    pub backend: BackendKey,
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// How ready it is.
    pub state: BackendState,
    /// Whether it does not answer this node's probes.
    pub failing: bool,
    /// Percent of the new flows.
    pub percent: f64,
    /// Why it gets none.
    pub why: Option<Why>,
}

fn key_text<S: serde::Serializer>(key: &BackendKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{} {}/{}", key.0, key.1, key.2))
}

/// The global services: those of this cluster, and those that others share. `only` narrows to a name, or to
/// `namespace/name`.
#[must_use]
pub fn global(
    inputs: &Inputs,
    node: &str,
    cluster: &str,
    zone: Option<&str>,
    only: Option<&str>,
) -> Vec<ServiceView> {
    let planner = Planner::viewing(inputs.clone(), node, cluster, zone);
    let ours = inputs.services.iter().filter(|row| row.global).map(|row| row.name.clone());
    let theirs = inputs.remote.iter().map(|row| row.name.clone());
    let names: BTreeSet<ServiceName> = ours.chain(theirs).collect();
    let asked = |name: &ServiceName| only.is_none_or(|only| only == &*name.name || only == name.to_string());
    names.into_iter().filter(asked).map(|name| view(inputs, &planner, cluster, name)).collect()
}

fn view(inputs: &Inputs, planner: &Planner, cluster: &str, name: ServiceName) -> ServiceView {
    let row = inputs.services.get(&name);
    let used_here = row.is_some_and(|row| row.global);
    let ports = if used_here { planner.pools(&name) } else { Vec::new() };
    let ports = ports.into_iter().map(|(port, ipv4, candidates, choice)| PortView {
        name: port.name,
        port: port.port,
        protocol: port.protocol.to_string(),
        family: if ipv4 { "IPv4" } else { "IPv6" },
        tier_in_use: choice.tiers.iter().position(|tier| tier.load > 0).map_or(0, |at| at + 1),
        overflowing: choice.tiers.iter().filter(|tier| tier.load > 0).count() > 1,
        backends: backends(&candidates, &choice, cluster),
        tiers: choice.tiers,
    });
    let tiers = row.map(spread::tiers).unwrap_or_default();
    let words = |tier: &BTreeSet<spread::Place>| tier.iter().map(ToString::to_string).collect();
    ServiceView {
        used_here,
        shared: row.is_some_and(|row| row.global && row.shared),
        clusters: clusters(inputs, &name, row, cluster),
        affinity: row.map(|row| format!("{:?}", row.affinity).to_lowercase()).unwrap_or_default(),
        tiers: tiers.iter().map(words).collect(),
        weights: row.map_or_else(|| "-".to_owned(), |row| row.spread.weights_text()),
        overflow: row.and_then(|row| row.spread.overflow),
        ports: ports.collect(),
        conflicts: conflicts(inputs, &name, row),
        namespace: name.namespace,
        name: name.name,
    }
}

fn backends(candidates: &[Candidate], choice: &Choice, cluster: &str) -> Vec<BackendView> {
    let all: f64 = choice.members.iter().map(|member| f64::from(member.weight)).sum();
    let weights: BTreeMap<BackendKey, u32> =
        choice.members.iter().map(|member| (member.key, member.weight)).collect();
    let spare: BTreeMap<BackendKey, Why> = choice.spare.iter().copied().collect();
    let one = |candidate: &Candidate| BackendView {
        backend: candidate.key,
        cluster: candidate.cluster.clone().unwrap_or_else(|| cluster.into()),
        zone: candidate.zone.clone(),
        state: candidate.state,
        failing: candidate.failing,
        percent: weights.get(&candidate.key).map_or(0.0, |weight| f64::from(*weight) * 100.0 / all),
        why: spare.get(&candidate.key).copied(),
    };
    candidates.iter().map(one).collect()
}

fn clusters(
    inputs: &Inputs,
    name: &ServiceName,
    row: Option<&ServiceRow>,
    cluster: &str,
) -> BTreeMap<Arc<str>, ClusterView> {
    let mut all = BTreeMap::new();
    if let Some(row) = row.filter(|row| row.global) {
        let mut states = BTreeMap::new();
        for endpoint in inputs.slices.by_index(name).flat_map(|slice| &slice.endpoints) {
            let ready = endpoint.ready || row.publish_not_ready;
            let state = BackendState::of(ready, endpoint.serving, endpoint.terminating);
            states.extend(endpoint.addresses.iter().filter_map(|ip| Some((*ip, state?))));
        }
        let ready = states.values().filter(|state| **state == BackendState::Ready).count();
        all.insert(cluster.into(), ClusterView { known: states.len(), ready, ..ClusterView::default() });
    }
    for row in inputs.remote.by_index(name) {
        let Source::Cluster(other) = &row.source else { continue };
        let ready = row.backends.values().filter(|backend| backend.state == BackendState::Ready).count();
        let view = ClusterView { known: row.backends.len(), ready, ..ClusterView::default() };
        all.insert(other.as_str().into(), view);
    }
    all
}

/// What keeps clusters from meeting in a service.
fn conflicts(inputs: &Inputs, name: &ServiceName, row: Option<&ServiceRow>) -> Vec<String> {
    let mut told = Vec::new();
    match row {
        None => told.push(
            "there is no such service in this cluster; make one of this name and namespace, with service.cilium.io/global".to_owned(),
        ),
        Some(row) if !row.global => {
            told.push("it is not global in this cluster; add service.cilium.io/global: \"true\"".to_owned());
        }
        Some(_) => {}
    }
    let Some(row) = row.filter(|row| row.global && !row.headless) else { return told };
    for remote in inputs.remote.by_index(name) {
        for port in &row.ports {
            let same = |p: &RemotePort| p.name == port.name && p.protocol == port.protocol;
            let mut backends = remote.backends.values();
            if !remote.backends.is_empty() && !backends.any(|backend| backend.ports.iter().any(same)) {
                let mut names: BTreeSet<String> = BTreeSet::new();
                for p in remote.backends.values().flat_map(|backend| backend.ports.iter()) {
                    if names.len() < 8 {
                        names.insert(format!("{:?} {}", p.name, p.protocol));
                    }
                }
                told.push(format!(
                    "{}: no backend has port {:?} {} ({} has {}); ports are matched by name and protocol",
                    remote.source,
                    port.name,
                    port.protocol,
                    remote.source,
                    names.into_iter().collect::<Vec<_>>().join(", "),
                ));
            }
        }
        told.extend(twice(inputs, name, remote));
    }
    told
}

/// Addresses of backends that a cluster before it says too: they count as that one's.
fn twice(inputs: &Inputs, name: &ServiceName, remote: &RemoteService) -> Option<String> {
    let before = inputs.remote.by_index(name).take_while(|other| other.source != remote.source);
    let before: Vec<_> = before.collect();
    let local: BTreeSet<_> = inputs
        .slices
        .by_index(name)
        .flat_map(|slice| slice.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied()))
        .collect();
    let taken = |ip: &&std::net::IpAddr| {
        local.contains(ip) || before.iter().any(|other| other.backends.contains_key(ip))
    };
    let (first, count) = (remote.backends.keys().find(taken)?, remote.backends.keys().filter(taken).count());
    Some(format!(
        "{}: {count} backends have addresses that another cluster has too, the first is {first}; they count as the other's, for pod CIDRs must not overlap",
        remote.source
    ))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
