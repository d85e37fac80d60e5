//! Addresses for LoadBalancer services: what pools offer, and who gets which.
//!
//! [`assign`] is pure and stable: an address that is still valid is never changed, so that it may run again after any
//! change, and on another agent after an election, with the present assignments as its memory.

use crate::rows::{LbAssignment, ServiceName, ServiceRow, ServiceType};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};
use tombolo_topology::bgp::plan::LOAD_BALANCER_CLASS;
use tombolo_topology::selector::LabelSelector;

/// A contiguous range of one family that a pool may hand out, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PoolBlock {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
}

/// Intent: a `CiliumLoadBalancerIPPool`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LbPool {
    /// Who said it.
    pub source: Source,
    /// Object name.
    pub name: Arc<str>,
    /// Ranges, with first and last address of a CIDR already cut off where `allowFirstLastIPs` is `No`.
    pub blocks: Vec<PoolBlock>,
    /// `serviceSelector`; `None` and empty select all services.
    pub selector: Option<LabelSelector>,
    /// `disabled`: hands out nothing new, keeps what it gave.
    pub disabled: bool,
}

impl Row for LbPool {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "lb-pools";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "BLOCKS", "DISABLED"]
    }
    fn cells(&self) -> Vec<String> {
        let blocks: Vec<_> = self.blocks.iter().map(|b| format!("{}-{}", b.first, b.last)).collect();
        vec![self.name.to_string(), blocks.join(" "), self.disabled.to_string()]
    }
}

/// What [`assign`] decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assigned {
    /// One row per service that has an address, by name.
    pub rows: Vec<LbAssignment>,
    /// What could not be given, and why.
    pub problems: Vec<String>,
}

/// Gives every LoadBalancer service its addresses.
///
/// `present` is what was assigned before, read completely: without it addresses would change. A service without class
/// or with [`LOAD_BALANCER_CLASS`] gets the addresses it asks for, and nothing else if it asks; otherwise one of each
/// of its families, the lowest free one of the first pool by name that selects it.
#[must_use]
pub fn assign(
    pools: &[LbPool],
    services: &[ServiceRow],
    present: &BTreeMap<ServiceName, BTreeSet<IpAddr>>,
) -> Assigned {
    assign_beside(pools, services, present, BTreeMap::new())
}

/// As [`assign`], where some addresses are others' already and nobody's here.
pub(crate) fn assign_beside(
    pools: &[LbPool],
    services: &[ServiceRow],
    present: &BTreeMap<ServiceName, BTreeSet<IpAddr>>,
    others: BTreeMap<IpAddr, ServiceName>,
) -> Assigned {
    let mut services: Vec<_> = services.iter().filter(|service| is_served(service)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let mut book = Book::new(pools);
    book.owners = others;
    // All that is kept is booked before anything new is handed out.
    for service in &services {
        for address in present.get(&service.name).into_iter().flatten() {
            if is_wanted(service, *address, book.of(&service.name)) && book.offers(service, *address, true) {
                book.take(&service.name, *address);
            }
        }
    }
    for service in &services {
        for address in &service.requested_addresses {
            book.request(service, *address);
        }
    }
    for service in services.iter().filter(|service| service.requested_addresses.is_empty()) {
        for ipv4 in wanted_families(service) {
            if !book.of(&service.name).iter().any(|address| address.is_ipv4() == ipv4) {
                book.next(service, ipv4);
            }
        }
    }
    book.finish(&services)
}

/// Whether a service gets its addresses from [`assign`].
#[must_use]
pub fn is_served(service: &ServiceRow) -> bool {
    service.kind == ServiceType::LoadBalancer
        && service.load_balancer_class.as_deref().is_none_or(|class| class == LOAD_BALANCER_CLASS)
}

/// The service's families as "is IPv4", each once.
fn wanted_families(service: &ServiceRow) -> BTreeSet<bool> {
    match service.families_ipv4.is_empty() {
        true => [true].into(),
        false => service.families_ipv4.iter().copied().collect(),
    }
}

/// Whether a service may keep an address beside those it keeps already.
fn is_wanted(service: &ServiceRow, address: IpAddr, kept: &BTreeSet<IpAddr>) -> bool {
    if !service.requested_addresses.is_empty() {
        return service.requested_addresses.contains(&address);
    }
    wanted_families(service).contains(&address.is_ipv4())
        && !kept.iter().any(|other| other.is_ipv4() == address.is_ipv4())
}

fn selects(pool: &LbPool, service: &ServiceRow) -> bool {
    pool.selector.as_ref().is_none_or(|selector| {
        selector.matches(|key| match key {
            "io.kubernetes.service.name" => Some(service.name.name.as_ref()),
            "io.kubernetes.service.namespace" => Some(service.name.namespace.as_ref()),
            other => service.labels.get(other).map(AsRef::as_ref),
        })
    })
}

impl PoolBlock {
    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4() && self.first <= other.last && other.first <= self.last
    }
}

pub(crate) fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|next| Ipv4Addr::from(next).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|next| Ipv6Addr::from(next).into()),
    }
}

pub(crate) fn predecessor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_sub(1).map(|before| Ipv4Addr::from(before).into()),
        IpAddr::V6(v6) => u128::from(v6).checked_sub(1).map(|before| Ipv6Addr::from(before).into()),
    }
}

/// Who has what while an assignment is made.
struct Book<'a> {
    /// By name; a pool in conflict with an earlier one gives nothing new.
    pools: Vec<(&'a LbPool, bool)>,
    owners: BTreeMap<IpAddr, ServiceName>,
    given: BTreeMap<ServiceName, BTreeSet<IpAddr>>,
    /// Below the cursor of a block everything is taken: addresses are only ever added.
    cursors: BTreeMap<PoolBlock, IpAddr>,
    problems: Vec<String>,
}

static NOTHING: BTreeSet<IpAddr> = BTreeSet::new();

impl<'a> Book<'a> {
    fn new(pools: &'a [LbPool]) -> Self {
        let mut sorted: Vec<_> = pools.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        let mut book = Self {
            pools: Vec::new(),
            owners: BTreeMap::new(),
            given: BTreeMap::new(),
            cursors: BTreeMap::new(),
            problems: Vec::new(),
        };
        for pool in sorted {
            let clash = |other: &LbPool| {
                pool.blocks.iter().any(|block| other.blocks.iter().any(|other| block.overlaps(other)))
            };
            let conflict =
                book.pools.iter().find(|(other, open)| *open && clash(other)).map(|(pool, _)| pool);
            if let Some(other) = conflict {
                book.problems.push(format!(
                    "CiliumLoadBalancerIPPool {}: overlaps pool {} and gives no new addresses; separate their blocks",
                    pool.name, other.name
                ));
            }
            let open = conflict.is_none() && !pool.disabled;
            book.pools.push((pool, open));
        }
        book
    }

    fn of(&self, service: &ServiceName) -> &BTreeSet<IpAddr> {
        self.given.get(service).unwrap_or(&NOTHING)
    }

    /// Whether a pool that selects the service holds a free address; `keep` also asks closed pools.
    fn offers(&self, service: &ServiceRow, address: IpAddr, keep: bool) -> bool {
        let mut holders = self.pools.iter().filter(|(pool, open)| {
            (*open || keep) && pool.blocks.iter().any(|block| block.contains(address))
        });
        !self.owners.contains_key(&address) && holders.any(|(pool, _)| selects(pool, service))
    }

    fn take(&mut self, service: &ServiceName, address: IpAddr) {
        self.owners.insert(address, service.clone());
        self.given.entry(service.clone()).or_default().insert(address);
    }

    fn request(&mut self, service: &ServiceRow, address: IpAddr) {
        if self.offers(service, address, false) {
            self.take(&service.name, address);
            return;
        }
        match self.owners.get(&address) {
            Some(owner) if *owner == service.name => {}
            Some(owner) => self.problems.push(format!(
                "Service {}: requested address {address} belongs to service {owner}; ask for another",
                service.name
            )),
            None => self.problems.push(format!(
                "Service {}: no enabled pool that selects it holds the requested address {address}; \
                 extend a pool or ask for another",
                service.name
            )),
        }
    }

    /// Gives the lowest free address of the first pool that has one.
    fn next(&mut self, service: &ServiceRow, ipv4: bool) {
        let pools = self.pools.iter().filter(|(pool, open)| *open && selects(pool, service));
        let blocks: Vec<_> = pools
            .flat_map(|(pool, _)| &pool.blocks)
            .filter(|block| block.first.is_ipv4() == ipv4)
            .copied()
            .collect();
        let some = !blocks.is_empty();
        if let Some(address) = blocks.into_iter().find_map(|block| self.lowest_free(block)) {
            return self.take(&service.name, address);
        }
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        self.problems.push(if some {
            format!("Service {}: the pools' {family} addresses are used up; add a block", service.name)
        } else {
            format!(
                "Service {}: no enabled pool with {family} addresses selects it; create one",
                service.name
            )
        });
    }

    fn lowest_free(&mut self, block: PoolBlock) -> Option<IpAddr> {
        let mut candidate = *self.cursors.get(&block).unwrap_or(&block.first);
        while self.owners.contains_key(&candidate) && candidate < block.last {
            candidate = successor(candidate)?;
        }
        self.cursors.insert(block, candidate);
        (!self.owners.contains_key(&candidate)).then_some(candidate)
    }

    fn finish(self, services: &[&ServiceRow]) -> Assigned {
        let row = |service: &&ServiceRow| {
            let addresses = self.given.get(&service.name)?.clone();
            let holds = |pool: &LbPool| {
                pool.blocks.iter().any(|block| addresses.iter().any(|address| block.contains(*address)))
            };
            let pools = self.pools.iter().filter(|(pool, _)| holds(pool) && selects(pool, service));
            let pools = pools.map(|(pool, _)| pool.name.clone()).collect();
            Some(LbAssignment { source: Source::Planner, name: service.name.clone(), addresses, pools })
        };
        Assigned { rows: services.iter().filter_map(row).collect(), problems: self.problems }
    }
}

#[cfg(test)]
#[path = "pools_tests.rs"]
mod tests;
