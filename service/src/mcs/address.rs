//! Clusterset IPs: given by the elected agent, kept in etcd like the addresses of LoadBalancer services, under the name of
//! the derived service.

use super::rows::{ImportRequest, ImportRow, ImportType};
use crate::details::ServiceDetails;
use crate::pools::{self, Assigned, LbPool, PoolBlock};
use crate::rows::{Affinity, ServiceName, ServiceRow, ServiceType, TrafficPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Snapshot;
use tombolo_topology::selector::LabelSelector;

/// `clustermesh.clusterset_cidrs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterSetRange(pub Vec<Prefix>);

impl ClusterSetRange {
    /// Whether it has addresses of a family.
    #[must_use]
    pub fn has(&self, ipv4: bool) -> bool {
        self.0.iter().any(|prefix| prefix.is_ipv4() == ipv4)
    }

    fn blocks(&self) -> Vec<PoolBlock> {
        let inner = |prefix: &Prefix| {
            let (first, last) = (prefix.net().network(), prefix.net().broadcast());
            // The network's own and the last address look like others' mistakes in every log.
            let narrowed = pools::successor(first).zip(pools::predecessor(last)).filter(|(a, b)| a <= b);
            let (first, last) = narrowed.unwrap_or((first, last));
            PoolBlock { first, last }
        };
        self.0.iter().map(inner).collect()
    }
}

/// Gives every import with an address its clusterset IPs: those its `ServiceImport` object asks for, else one of each of
/// its families from the range. `present` is what was given before; what is still valid never changes.
#[must_use]
pub fn assign(
    range: &ClusterSetRange,
    imports: &Snapshot<ImportRow>,
    requests: &Snapshot<ImportRequest>,
    present: &BTreeMap<ServiceName, BTreeSet<IpAddr>>,
) -> Assigned {
    let mut wanted = Vec::new();
    let mut offered = vec![pool("clusterset", range.blocks(), None)];
    for import in imports.iter().filter(|import| import.spec.kind == ImportType::ClusterSetIP) {
        let asked = requests.get(&import.name).map(|request| request.ips.clone()).unwrap_or_default();
        let free = asked.iter().filter(|ip| !range.0.iter().any(|prefix| prefix.net().contains(*ip)));
        let blocks: Vec<_> = free.map(|ip| PoolBlock { first: *ip, last: *ip }).collect();
        if !blocks.is_empty() {
            offered.push(pool(&format!("import {}", import.name), blocks, Some(&import.derived)));
        }
        let families = match import.spec.families_ipv4.is_empty() {
            true => vec![true, false],
            false => import.spec.families_ipv4.clone(),
        };
        let families: Vec<bool> = families.into_iter().filter(|ipv4| range.has(*ipv4)).collect();
        // Without a range and without a wish there is nothing to give, and the import says so.
        if !asked.is_empty() || !families.is_empty() {
            wanted.push(request(&import.derived, families, asked));
        }
    }
    let mut assigned = pools::assign(&offered, &wanted, present);
    for problem in &mut assigned.problems {
        *problem = named(problem, imports);
    }
    assigned
}

/// A derived name says nothing to anybody: the problem under the import's.
fn named(problem: &str, imports: &Snapshot<ImportRow>) -> String {
    let problem = problem.replace("CiliumLoadBalancerIPPool", "Addresses of");
    let import = problem.strip_prefix("Service ").and_then(|rest| {
        let (derived, rest) = rest.split_once(": ")?;
        let (namespace, name) = derived.split_once('/')?;
        let derived = ServiceName { namespace: namespace.into(), name: name.into() };
        Some((imports.by_index(&derived).next()?, rest.to_owned()))
    });
    match import {
        Some((import, rest)) => {
            format!("ServiceImport {}: {rest} (clustermesh.clusterset_cidrs)", import.name)
        }
        None => problem,
    }
}

fn pool(name: &str, blocks: Vec<PoolBlock>, only: Option<&ServiceName>) -> LbPool {
    let selector = only.map(|service| LabelSelector {
        labels: BTreeMap::from([
            ("io.kubernetes.service.name".into(), service.name.clone()),
            ("io.kubernetes.service.namespace".into(), service.namespace.clone()),
        ]),
        ..LabelSelector::default()
    });
    LbPool { source: Source::Planner, name: name.into(), blocks, selector, disabled: false }
}

/// An import as one who asks a pool for addresses.
fn request(name: &ServiceName, families_ipv4: Vec<bool>, requested_addresses: Vec<IpAddr>) -> ServiceRow {
    ServiceRow {
        source: Source::Planner,
        name: name.clone(),
        kind: ServiceType::LoadBalancer,
        cluster_ips: Vec::new(),
        headless: false,
        ports: Vec::new(),
        external_traffic_policy: TrafficPolicy::Cluster,
        internal_traffic_policy: TrafficPolicy::Cluster,
        load_balancer_class: None,
        families_ipv4,
        external_ips: Vec::new(),
        requested_addresses,
        publish_not_ready: false,
        global: false,
        shared: false,
        affinity: Affinity::None,
        spread: Default::default(),
        distribution: Default::default(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        details: ServiceDetails::default(),
    }
}
