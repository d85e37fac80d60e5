//! Rows, written to the programs' maps and to the model alike.

use crate::support::Node;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_ebpf as real;
use tombolo_model as model;

/// A node of both kinds.
pub struct Rows {
    pub real: Node,
    pub model: model::Node,
}

impl Rows {
    pub fn config(&mut self, config: &real::NodeConfig) {
        self.real.datapath.set_config(config).unwrap();
        self.model.config = model::Config {
            ready: config.ready,
            encrypt: config.encrypt,
            overlay: config.overlay_ifindex != 0,
            wireguard: config.wireguard_ifindex != 0,
            snat_ports: config.snat_ports.clone(),
            vxlan_port: config.vxlan_port,
            wireguard_port: config.wireguard_port,
            direct_return: (config.lb_mode != real::LbMode::Snat, config.lb_mode == real::LbMode::Dsr),
            host_policy: config.host_policy_id,
            host_serves: config.host_serves,
            internal4: config.internal4,
            internal6: config.internal6,
            masquerade4: config.underlay4.filter(|_| config.masquerade4),
            masquerade6: config.underlay6.filter(|_| config.masquerade6),
        };
        self.model.nat.search_again();
    }

    pub fn pod(&mut self, ifindex: u32, row: &real::Interface) {
        self.real.datapath.upsert_interface(ifindex, row).unwrap();
        let addresses = row.v4.map(IpAddr::V4).into_iter().chain(row.v6.map(IpAddr::V6)).collect();
        let pod = model::Pod { ready: row.ready, identity: row.identity, addresses, policy: row.policy_id };
        self.model.pods.insert(ifindex, pod);
    }

    pub fn local(&mut self, address: IpAddr, place: real::LocalAddress) {
        self.real.datapath.upsert_local_address(address, place).unwrap();
        let place = match place {
            real::LocalAddress::Pod(ifindex) => model::Local::Pod(ifindex),
            real::LocalAddress::Host => model::Local::Host,
        };
        self.model.local.insert(address, place);
    }

    pub fn prefix(&mut self, prefix: &str, row: real::PrefixEntry) {
        let prefix = prefix.parse().unwrap();
        self.real.datapath.upsert_prefix(prefix, &row).unwrap();
        let real::PrefixEntry { identity, node, encrypt, remote_cluster, skip_tunnel, strict } = row;
        let row = model::Prefix { identity, node, encrypt, remote_cluster, skip_tunnel, strict };
        self.model.prefixes.insert(prefix, row);
    }

    pub fn node(&mut self, index: u32, row: &real::NodeEntry) {
        self.real.datapath.upsert_node(index, row).unwrap();
        let path = match row.path {
            real::NodePath::Overlay => model::Path::Overlay,
            real::NodePath::Direct | real::NodePath::Local => model::Path::Direct,
        };
        self.model.nodes.insert(index, model::RemoteNode { tunnel: row.tunnel, path, encrypt: row.encrypt });
    }

    /// Which way a pod's packets to a destination leave, or that nothing is said of it.
    pub fn egress(&mut self, pod: IpAddr, destination: IpNet, way: Option<real::EgressWay>) {
        let Some(way) = way else {
            self.real.datapath.delete_egress(pod, destination).unwrap();
            self.model.egress.remove(&(pod, destination));
            return;
        };
        self.real.datapath.upsert_egress(pod, destination, way).unwrap();
        let way = match way {
            real::EgressWay::Nowhere => model::EgressWay::Nowhere,
            real::EgressWay::Excluded => model::EgressWay::Excluded,
            real::EgressWay::Node(node) => model::EgressWay::Node(node),
            real::EgressWay::Here { address, .. } => model::EgressWay::Here(address),
        };
        self.model.egress.insert((pod, destination), way);
    }

    pub fn unmasked(&mut self, destinations: &[&str]) {
        let destinations = destinations.iter().map(|net| net.parse().unwrap()).collect();
        self.real.datapath.set_unmasked(&destinations).unwrap();
        self.model.unmasked = destinations;
    }

    pub fn backend(&mut self, number: u32, socket: Option<(IpAddr, u16)>) {
        match socket {
            Some((ip, port)) => {
                let backend = real::Backend { ip, port, protocol: 6 };
                self.real.datapath.upsert_backend(number, &backend).unwrap();
                self.model.backends.insert(number, model::Backend { socket: (ip, port) });
            }
            None => {
                self.real.datapath.delete_backend(number).unwrap();
                self.model.backends.remove(&number);
            }
        }
    }

    /// Writes a service with this table, or deletes it.
    pub fn service(&mut self, frontend: &model::Frontend, rev_nat: u32, slots: Option<&[u32]>) {
        let model::Frontend { address, port, protocol, scope } = *frontend;
        let place = match scope {
            model::Scope::External => real::Scope::External,
            model::Scope::Internal => real::Scope::Internal,
        };
        let row = real::Frontend { ip: address, port, protocol, scope: place };
        let Some(slots) = slots else {
            self.real.datapath.delete_service(&row).unwrap();
            self.model.services.remove(frontend);
            self.model.fronts.remove(frontend);
            return;
        };
        let entry = real::ServiceEntry { rev_nat, maglev: slots.to_vec(), ..real::ServiceEntry::default() };
        self.real.datapath.set_service(&row, &entry).unwrap();
        self.model.services.insert(*frontend, model::Service { rev_nat, slots: slots.to_vec() });
        let backends = slots.iter().filter_map(|number| self.model.backends.get(number));
        self.model.fronts.insert(*frontend, backends.map(|backend| backend.socket).collect());
        if rev_nat != 0 {
            self.model.rev_nats.insert(rev_nat, (address, port));
        }
    }

    pub fn policy(&mut self, number: u32, policy: Option<&model::Policy>) {
        let Some(policy) = policy else {
            self.real.datapath.delete_policy(number).unwrap();
            self.model.policies.remove(&number);
            return;
        };
        let side = |side: &model::Side| real::PolicySide {
            enforced: side.enforced,
            entries: side.rules.iter().map(entry).collect(),
        };
        let (ingress, egress) = (side(&policy.ingress), side(&policy.egress));
        let set = real::PolicySet { ingress, egress, audit: policy.audit };
        self.real.datapath.set_policy(number, &set).unwrap();
        self.model.policies.insert(number, policy.clone());
    }
}

fn entry(rule: &model::Rule) -> real::RuleEntry {
    real::RuleEntry {
        tier: match rule.tier {
            model::Tier::Admin => real::RuleTier::Admin,
            model::Tier::Normal => real::RuleTier::Normal,
            model::Tier::Baseline => real::RuleTier::Baseline,
        },
        identity: rule.identity,
        protocol: rule.protocol,
        port: rule.port.map(|(first, bits)| real::PortPrefix { first, bits }),
        action: match rule.action {
            model::Action::Pass => real::RuleAction::Pass,
            model::Action::Allow => real::RuleAction::Allow,
            model::Action::Deny => real::RuleAction::Deny,
        },
        priority: rule.priority,
        cookie: 1,
    }
}
