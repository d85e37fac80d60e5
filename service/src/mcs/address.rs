//! Clusterset IPs: given by the elected agent, kept in etcd like the addresses of LoadBalancer services, under the name of
//! the derived service.

use super::rows::{ImportRequest, ImportRow, ImportType};
use crate::pools::{self, Assigned, LbPool, PoolBlock};
use crate::rows::{ServiceName, ServiceRow, ServiceType};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
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

    fn has_address(&self, address: IpAddr) -> bool {
        self.0.iter().any(|prefix| prefix.net().contains(&address))
    }

    /// How many addresses of a family can be given.
    fn size(&self, ipv4: bool) -> u128 {
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let blocks = self.blocks().into_iter().filter(|block| block.first.is_ipv4() == ipv4);
        blocks
            .map(|block| number(block.last) - number(block.first))
            .fold(0, |sum, size| sum.saturating_add(size).saturating_add(1))
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

/// What clusterset IPs are given by.
pub struct Round<'a> {
    /// This cluster.
    pub own: &'a str,
    /// Where they come from.
    pub range: &'a ClusterSetRange,
    /// Imports.
    pub imports: &'a Snapshot<ImportRow>,
    /// What is asked for.
    pub requests: &'a Snapshot<ImportRequest>,
    /// Addresses that Services of this cluster have: they are no import's.
    pub taken: BTreeMap<IpAddr, ServiceName>,
    /// What was given before.
    pub present: &'a BTreeMap<ServiceName, BTreeSet<IpAddr>>,
}

/// Gives every import with an address its clusterset IPs: those its `ServiceImport` object asks for, else one of each of
/// its families from the range. What is still valid never changes. What one other cluster alone exports gets no more than
/// half of the range, so that it does not use up what all imports share.
#[must_use]
pub fn assign(round: Round<'_>) -> Assigned {
    let Round { range, imports, requests, .. } = round;
    let mut parts = Parts::new(&round);
    let mut wanted = Vec::new();
    let mut offered = vec![pool("clusterset", range.blocks(), None)];
    for import in imports.iter().filter(|import| import.spec.kind == ImportType::ClusterSetIP) {
        let asked = requests.get(&import.name).map(|request| request.ips.clone()).unwrap_or_default();
        let free = asked.iter().filter(|ip| !range.has_address(**ip));
        let blocks: Vec<_> = free.map(|ip| PoolBlock { first: *ip, last: *ip }).collect();
        if !blocks.is_empty() {
            offered.push(pool(&format!("import {}", import.name), blocks, Some(&import.derived)));
        }
        let families = match import.spec.families_ipv4.is_empty() {
            true => vec![true, false],
            false => import.spec.families_ipv4.clone(),
        };
        let families = families.into_iter().filter(|ipv4| range.has(*ipv4));
        let families: Vec<bool> =
            families.filter(|ipv4| !asked.is_empty() || parts.admits(import, *ipv4)).collect();
        // Without a range and without a wish there is nothing to give, and the import says so.
        if !asked.is_empty() || !families.is_empty() {
            wanted.push(request(&import.derived, families, asked));
        }
    }
    let problems = parts.problems();
    let mut assigned = pools::assign_beside(&offered, &wanted, round.present, round.taken);
    for problem in &mut assigned.problems {
        *problem = named(problem, imports);
    }
    assigned.problems.extend(problems);
    assigned
}

/// How much of the range goes to what one cluster alone exports.
struct Parts<'a> {
    own: &'a str,
    range: &'a ClusterSetRange,
    present: &'a BTreeMap<ServiceName, BTreeSet<IpAddr>>,
    /// Addresses by cluster and "is IPv4".
    given: BTreeMap<(Arc<str>, bool), u128>,
    /// Imports without, likewise: how many, and the first.
    without: BTreeMap<(Arc<str>, bool), (usize, ServiceName)>,
}

impl<'a> Parts<'a> {
    fn new(round: &Round<'a>) -> Self {
        let mut parts = Self {
            own: round.own,
            range: round.range,
            present: round.present,
            given: BTreeMap::new(),
            without: BTreeMap::new(),
        };
        // All that is kept counts before anything new is given.
        for import in round.imports.iter() {
            let Some(cluster) = parts.alone(import) else { continue };
            for ipv4 in [true, false] {
                if parts.keeps(import, ipv4) {
                    *parts.given.entry((cluster.clone(), ipv4)).or_default() += 1;
                }
            }
        }
        parts
    }

    /// The other cluster that alone exports an import.
    fn alone(&self, import: &ImportRow) -> Option<Arc<str>> {
        let cluster = import.clusters.first().filter(|_| import.clusters.len() == 1)?;
        (**cluster != *self.own).then(|| cluster.clone())
    }

    fn keeps(&self, import: &ImportRow, ipv4: bool) -> bool {
        let kept = self.present.get(&import.derived).into_iter().flatten();
        kept.into_iter().any(|ip| ip.is_ipv4() == ipv4 && self.range.has_address(*ip))
    }

    /// Whether an import may have an address of the range.
    fn admits(&mut self, import: &ImportRow, ipv4: bool) -> bool {
        let Some(cluster) = self.alone(import).filter(|_| !self.keeps(import, ipv4)) else { return true };
        let given = self.given.entry((cluster.clone(), ipv4)).or_default();
        let admitted = *given < self.range.size(ipv4).div_ceil(2);
        if admitted {
            *given += 1;
        } else {
            let entry = self.without.entry((cluster, ipv4));
            entry.or_insert_with(|| (0, import.name.clone())).0 += 1;
        }
        admitted
    }

    fn problems(self) -> Vec<String> {
        let text = |((cluster, ipv4), (count, first)): (&(Arc<str>, bool), &(usize, ServiceName))| {
            let family = if *ipv4 { "IPv4" } else { "IPv6" };
            format!(
                "cluster {cluster}: {count} imports get no {family} address, ServiceImport {first} the first: what it alone \
                 exports has half of the range already; widen clustermesh.clusterset_cidrs on every node, or export less there"
            )
        };
        self.without.iter().map(text).collect()
    }
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
        kind: ServiceType::LoadBalancer,
        families_ipv4,
        requested_addresses,
        ..ServiceRow::new(Source::Planner, name.clone())
    }
}
