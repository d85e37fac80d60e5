//! Host ports: frontends at the node's addresses that lead to one pod of this node.

use super::wanted::{Terms, Wanted, translates_sctp};
use super::{Planner, Pool};
use crate::choice::{Candidate, Rules, choose};
use crate::members;
use crate::rows::{
    BackendState, Claim, FrontendKey, HostPortRow, Protocol, Scope, ServiceName, ServicePort, ServiceRow,
};
use crate::spread::Place;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_base::table::{Row, Snapshot};
use tombolo_topology::HostPort;

/// Why a pod has not a port that it asks for.
enum Refusal {
    /// The address is none of the node's.
    Elsewhere(IpAddr),
    /// A service or another pod has it.
    Taken(ServiceName),
    /// SCTP has one port on both sides.
    Sctp,
}

impl Planner {
    /// The frontends of a pod's host ports and the pools they choose from: the pod itself.
    pub(super) fn host_ports(&self, row: &HostPortRow) -> (Vec<Wanted>, Vec<Pool>) {
        let (mut wanted, mut pools) = (Vec::new(), Vec::new());
        for port in &row.ports {
            let Some(protocol) = Protocol::of(port.protocol) else { continue };
            for address in self.host_addresses(port) {
                let Some(backend) = row.addresses.iter().find(|ip| ip.is_ipv4() == address.is_ipv4()) else {
                    continue;
                };
                if self.refusal(row, port, address).is_some() {
                    continue;
                }
                let pool = self.pod_pool((*backend, port.port, protocol), &mut pools);
                // The node's loopback is nobody's from outside, and no packet's: sockets alone are led there.
                let outside = (!address.is_loopback()).then_some(Scope::External);
                for scope in outside.into_iter().chain([Scope::Internal]) {
                    let key = FrontendKey { address, port: port.host_port, protocol, scope };
                    wanted.push(Wanted { key, terms: Terms { host_port: true, ..Terms::default() }, pool });
                }
            }
        }
        // A port may be asked for at all addresses and again at one.
        let mut seen = BTreeSet::new();
        wanted.retain(|frontend| seen.insert(frontend.key));
        (wanted, pools)
    }

    /// The addresses that a port is asked for at.
    fn host_addresses(&self, port: &HostPort) -> Vec<IpAddr> {
        let all = self.node_addresses.iter().copied();
        match port.host {
            None => all.collect(),
            Some(host) if host.is_unspecified() => all.filter(|ip| ip.is_ipv4() == host.is_ipv4()).collect(),
            Some(host) => vec![host],
        }
    }

    /// Why a pod does not get a port at an address. Services go first, then pods by name.
    fn refusal(&self, row: &HostPortRow, port: &HostPort, address: IpAddr) -> Option<Refusal> {
        if !address.is_loopback() && !self.node_addresses.contains(&address) {
            return Some(Refusal::Elsewhere(address));
        }
        let protocol = Protocol::of(port.protocol)?;
        if protocol == Protocol::Sctp && port.port != port.host_port {
            return Some(Refusal::Sctp);
        }
        let claim = Claim::NodePort(port.host_port, protocol);
        let of_service = |service: &&ServiceRow| {
            let ports = service.ports.iter().filter(|other| other.protocol == protocol);
            let named = service.addresses().any(|ip| *ip == address);
            ports.clone().any(|other| {
                other.claim() == Some(claim) && self.is_node_port(&address, port.host_port, protocol)
            }) || (named && ports.clone().any(|other| other.port == port.host_port))
        };
        let services = &self.inputs.services;
        let mut all = services.by_index(&claim).chain(services.by_index(&Claim::Address(address)));
        if let Some(service) = all.find(|service| of_service(service)) {
            return Some(Refusal::Taken(service.name.clone()));
        }
        // At one of a pod's own ports the least has it.
        let asks = |other: &HostPortRow, than: &HostPort| {
            let same = (than.host_port, than.protocol) == (port.host_port, port.protocol);
            let twice = other.name == row.name && than.port == port.port;
            let first = (&other.name, than) < (&row.name, port);
            same && first && !twice && self.host_addresses(than).contains(&address)
        };
        let mut pods = self.inputs.host_ports.by_index(&claim);
        let first = pods.find(|other| other.ports.iter().any(|than| asks(other, than)));
        first.map(|other| Refusal::Taken(other.name.clone()))
    }

    /// The pool of a single pod's port, made at first sight.
    fn pod_pool(&self, key: (IpAddr, u16, Protocol), pools: &mut Vec<Pool>) -> usize {
        if let Some(found) =
            pools.iter().position(|pool| pool.candidates.iter().any(|known| known.key == key))
        {
            return found;
        }
        let candidates = vec![Candidate {
            key,
            cluster: None,
            state: BackendState::Ready,
            local_node: true,
            zone: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
            failing: false,
        }];
        let (here, none) = (vec![BTreeSet::from([Place::Rest])], BTreeMap::new());
        let rules = Rules { tiers: &here, weights: &none, overflow: None, distribution: None };
        let choice = choose(&candidates, &rules, &self.site);
        let port = ServicePort { name: "".into(), protocol: key.2, port: key.1, node_port: None };
        pools.push(Pool { port, ipv4: key.0.is_ipv4(), local_only: true, candidates, choice });
        pools.len() - 1
    }

    /// Pods that have host ports which one of these services or pods may claim, too.
    pub(super) fn pods_beside<'a>(&self, services: impl Iterator<Item = &'a ServiceRow>) -> Vec<ServiceName> {
        let mut pods = Vec::new();
        for service in services {
            let on_node = service.addresses().any(|ip| self.node_addresses.contains(ip));
            let numbers = service.ports.iter().flat_map(|port| {
                let own = on_node.then_some(Claim::NodePort(port.port, port.protocol));
                own.into_iter().chain(port.claim())
            });
            pods.extend(numbers.flat_map(|claim| self.claiming_pods(&self.inputs.host_ports, claim)));
        }
        pods
    }

    /// Pods that share a number with one.
    pub(super) fn pods_sharing(&self, pods: &Snapshot<HostPortRow>, name: &ServiceName) -> Vec<ServiceName> {
        let claims = pods.get(name).map(Row::indexes).unwrap_or_default();
        claims.into_iter().flat_map(|claim| self.claiming_pods(pods, claim)).collect()
    }

    fn claiming_pods(&self, pods: &Snapshot<HostPortRow>, claim: Claim) -> Vec<ServiceName> {
        pods.by_index(&claim).map(|row| row.name.clone()).collect()
    }

    /// Ports of a service that are not served because SCTP's cannot be translated.
    fn sctp_problems(&self, name: &ServiceName) -> Vec<String> {
        let Some(service) = self.inputs.services.get(name) else { return Vec::new() };
        let told = |port: &&ServicePort| {
            let here =
                [true, false].map(|ipv4| members::candidates(&self.inputs, service, port, ipv4, &self.site));
            let wrong = |number| here.iter().any(|all| translates_sctp(port.protocol, number, all));
            port.protocol == Protocol::Sctp && (wrong(port.port) || port.node_port.is_some_and(wrong))
        };
        let text = |port: &ServicePort| {
            format!(
                "{name}: port {port} is not served, or its node port is not: the ports of SCTP cannot be translated; give both \
                 the number of targetPort"
            )
        };
        service.ports.iter().filter(told).map(text).collect()
    }

    /// Ports that a pod asks for and has not, with the reason and the remedy.
    pub(super) fn refusals(&self, name: &ServiceName) -> Vec<String> {
        let Some(row) = self.inputs.host_ports.get(name) else { return self.sctp_problems(name) };
        let told = |port: &HostPort| {
            let refused =
                self.host_addresses(port).into_iter().find_map(|address| self.refusal(row, port, address))?;
            let why = match refused {
                Refusal::Elsewhere(address) => {
                    format!(
                        "hostIP {address} is no address of this node; write one that its Node object names, or none"
                    )
                }
                Refusal::Sctp => {
                    "the ports of SCTP cannot be translated; give it the number of containerPort".to_owned()
                }
                Refusal::Taken(other) => format!("{other} has it; give one of the two another port"),
            };
            Some(format!("{name}: host port {port} is not served: {why}"))
        };
        row.ports.iter().filter_map(told).collect()
    }
}
