//! Which frontends a service has: its own addresses and the node's, with its ports, as far as nobody else has them.

use super::{Planner, Pool};
use crate::choice::Candidate;
use crate::rows::{
    Claim, FrontendKey, Protocol, Scope, ServiceName, ServicePort, ServiceRow, ServiceType, TrafficPolicy,
};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::{Row, Snapshot};

/// A frontend before its backends have numbers.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) key: FrontendKey,
    pub(super) terms: Terms,
    /// Which of the service's pools it chooses from.
    pub(super) pool: usize,
}

/// On which terms a frontend serves.
#[derive(Clone, Debug, Default)]
pub(super) struct Terms {
    /// With backends of this node alone.
    pub(super) local_only: bool,
    /// The address has nothing but services' ports.
    pub(super) whole_address: bool,
    /// These clients; `None`: anybody.
    pub(super) source_ranges: Option<Arc<[Prefix]>>,
    /// A node port of one of the node's addresses.
    pub(super) node_port: bool,
    /// A pod's host port.
    pub(super) host_port: bool,
}

impl Planner {
    /// The frontends of one service and the pools they choose from, from scratch.
    pub(super) fn wanted(&self, name: &ServiceName) -> (Vec<Wanted>, Vec<Pool>) {
        if let Some(row) = self.inputs.host_ports.get(name) {
            return self.host_ports(row);
        }
        let mut pools = Vec::new();
        let Some(service) = self.inputs.services.get(name) else { return (Vec::new(), pools) };
        if service.kind == ServiceType::ExternalName || service.headless {
            return (Vec::new(), pools);
        }
        let assigned = self.inputs.addresses.get(name).filter(|_| service.kind == ServiceType::LoadBalancer);
        let local = |policy| policy == TrafficPolicy::Local;
        let inside = Terms { local_only: local(service.internal_traffic_policy), ..Terms::default() };
        let outside = Terms { local_only: local(service.external_traffic_policy), ..Terms::default() };
        let whole = |terms: &Terms| Terms { whole_address: true, ..terms.clone() };
        // Kubernetes: from inside the cluster the external policy does not narrow the choice.
        let from_inside = Terms::default();
        let mut wanted = Vec::new();
        for port in &service.ports {
            let mut add = |address: IpAddr, number, scope, mut terms: Terms| {
                let key = FrontendKey { address, port: number, protocol: port.protocol, scope };
                let pool = self.pool(service, port, address.is_ipv4(), terms.local_only, &mut pools);
                if pools
                    .get(pool)
                    .is_some_and(|pool| translates_sctp(port.protocol, number, &pool.candidates))
                {
                    return;
                }
                terms.whole_address &= !self.node_addresses.contains(&address);
                wanted.push(Wanted { key, terms, pool });
            };
            let free = |address: &&IpAddr| !self.is_node_port(address, port.port, port.protocol);
            for address in service.cluster_ips.iter().filter(free) {
                add(*address, port.port, Scope::Internal, whole(&inside));
            }
            for address in assigned.into_iter().flat_map(|row| &row.addresses).filter(free) {
                let source_ranges = source_ranges(service, address.is_ipv4());
                add(*address, port.port, Scope::External, Terms { source_ranges, ..whole(&outside) });
                add(*address, port.port, Scope::Internal, whole(&from_inside));
            }
            // An external address may be somebody's whom pods reach at other ports: another node's, for example.
            let external = service.external_ips.iter().filter(|ip| self.has_external(service, port, ip));
            for address in external.filter(free) {
                add(*address, port.port, Scope::External, whole(&outside));
                add(*address, port.port, Scope::Internal, from_inside.clone());
            }
            for (address, number) in self.node_ports(service, port) {
                add(address, number, Scope::External, Terms { node_port: true, ..outside.clone() });
                add(address, number, Scope::Internal, Terms { node_port: true, ..from_inside.clone() });
            }
        }
        (wanted, pools)
    }

    /// The addresses of the node that lead to a port of the service, with the number that they have it under.
    fn node_ports(&self, service: &ServiceRow, port: &ServicePort) -> impl Iterator<Item = (IpAddr, u16)> {
        let number = port.node_port.filter(|_| self.has_node_port(service, port));
        let of_family = |ip: &&IpAddr| service.families_ipv4.contains(&ip.is_ipv4());
        number.into_iter().flat_map(move |number| {
            self.node_addresses.iter().filter(of_family).map(move |address| (*address, number))
        })
    }

    /// Whether a node port is the service's, and this one's of its ports.
    fn has_node_port(&self, service: &ServiceRow, port: &ServicePort) -> bool {
        let Some(claim) = port.claim() else { return false };
        let first = service.ports.iter().find(|other| other.claim() == Some(claim));
        first.is_some_and(|first| std::ptr::eq(first, port))
            && self.owner(claim).is_some_and(|owner| owner.name == service.name)
    }

    /// Who has a node port. An API server gives none twice, but nothing keeps manifests from it: the first service by name
    /// has it, on every node.
    fn owner(&self, claim: Claim) -> Option<&ServiceRow> {
        self.inputs.services.by_index(&claim).min_by(|one, other| one.name.cmp(&other.name))
    }

    /// Whether this is an address of the node with somebody's node port: no other word for it counts.
    pub(super) fn is_node_port(&self, address: &IpAddr, number: u16, protocol: Protocol) -> bool {
        let owner = || self.owner(Claim::NodePort(number, protocol));
        self.node_addresses.contains(address)
            && owner().is_some_and(|owner| owner.families_ipv4.contains(&address.is_ipv4()))
    }

    /// Whether an address of `externalIPs` is the service's at this port. Anybody may write any address there: one that
    /// another service has as its cluster address, or earlier by name as an external one, is that service's.
    fn has_external(&self, service: &ServiceRow, port: &ServicePort, address: &IpAddr) -> bool {
        let same = |other: &ServicePort| (other.protocol, other.port) == (port.protocol, port.port);
        !self.inputs.services.by_index(&Claim::Address(*address)).any(|other| {
            let first = other.cluster_ips.contains(address) || other.name < service.name;
            other.name != service.name && first && other.ports.iter().any(same)
        }) && !self.inputs.addresses.by_index(address).any(|row| row.name != service.name)
            && !service.cluster_ips.contains(address)
    }

    /// Whether a service other than the one being planned has the frontend.
    pub(super) fn is_planned(&self, key: &FrontendKey) -> bool {
        let mut names = self.at_address(&self.inputs.services, &key.address);
        let claim = Claim::NodePort(key.port, key.protocol);
        names.extend(claiming(&self.inputs.services, claim));
        names.extend(self.inputs.host_ports.by_index(&claim).map(|row| row.name.clone()));
        names
            .iter()
            .any(|name| self.by_service.get(name).is_some_and(|planned| planned.frontends.contains(key)))
    }

    /// The services that something is shared with that one claims: who has it may change with that one.
    pub(super) fn sharing(&self, services: &Snapshot<ServiceRow>, name: &ServiceName) -> Vec<ServiceName> {
        let claims = services.get(name).map(Row::indexes).unwrap_or_default();
        // A node port takes precedence over whoever else names an address of the node.
        let on_node = claims.iter().any(|claim| matches!(claim, Claim::NodePort(..)));
        let here = self.node_addresses.iter().filter(|_| on_node);
        let here = here.flat_map(|address| self.at_address(services, address));
        let pods = self.pods_beside(services.get(name).into_iter());
        claims.iter().flat_map(|claim| claiming(services, *claim)).chain(here).chain(pods).collect()
    }

    /// The services that name an address or were given it.
    fn at_address(&self, services: &Snapshot<ServiceRow>, address: &IpAddr) -> Vec<ServiceName> {
        let given = self.inputs.addresses.by_index(address).map(|row| row.name.clone());
        claiming(services, Claim::Address(*address)).into_iter().chain(given).collect()
    }
}

/// Whether a frontend would have to give SCTP another port, which cannot be: the checksum covers the ports.
pub(super) fn translates_sctp(protocol: Protocol, number: u16, candidates: &[Candidate]) -> bool {
    protocol == Protocol::Sctp && candidates.iter().any(|candidate| candidate.key.1 != number)
}

/// The clients of a family that a LoadBalancer address is for. Ranges of the other family alone leave nobody of this one.
fn source_ranges(service: &ServiceRow, ipv4: bool) -> Option<Arc<[Prefix]>> {
    let ranges = service.source_ranges.as_ref()?;
    Some(ranges.iter().filter(|range| range.is_ipv4() == ipv4).copied().collect())
}

/// The services with a claim.
pub(super) fn claiming(services: &Snapshot<ServiceRow>, claim: Claim) -> Vec<ServiceName> {
    services.by_index(&claim).map(|row| row.name.clone()).collect()
}
