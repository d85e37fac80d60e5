//! All that the datapath knows of one packet: as the model's rows, and as rows for the maps of a replay.
//!
//! Rows that the agent writes are read for the packet's addresses alone, so that the cost does not grow with the mesh; flows are
//! looked for in one walk through their tables, without the node's own addresses, which all translations have.

use crate::abi::{self, Addr};
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::rows::{
    EgressWay, LbMode, LocalAddress, NodePath, PolicySet, PolicySide, RuleAction, RuleEntry, RuleTier,
};
use crate::sys;
use crate::tables::Hash;
use aya::maps::MapData;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use tombolo_model as model;
use tombolo_model::ct::{Entry, Key, Kind, Signs};
use tombolo_model::nat::Mapping;

/// Flows that are looked at for one packet, of each table.
pub(crate) const MOST_FLOWS: usize = 6000;

/// A row of fragments, as bytes.
pub(crate) type FragmentRow = (Vec<u8>, Vec<u8>);

/// What is known.
pub(crate) struct Scene {
    pub(crate) model: model::Node,
    pub(crate) flows: [Vec<(abi::Tuple, abi::Ct)>; 2],
    pub(crate) nat: [Vec<(abi::Tuple, abi::Nat)>; 2],
    pub(crate) fragments: Vec<FragmentRow>,
    pub(crate) affinity: Vec<(abi::AffinityKey, abi::Affinity)>,
    /// The numbers that rules go by in events.
    pub(crate) cookies: BTreeMap<(u32, model::Direction, model::Rule), u32>,
    /// There were more flows than are looked at.
    pub(crate) cut: bool,
}

fn socket(addr: Addr, port: u16) -> model::Socket {
    (addr.ip(), u16::from_be(port))
}

fn tuple(key: &abi::Tuple) -> model::Tuple {
    model::Tuple {
        source: socket(key.src, key.sport),
        destination: socket(key.dst, key.dport),
        protocol: key.proto,
    }
}

fn signs(flags: u16) -> Signs {
    let has = |bit: u16| flags & 1 << bit != 0;
    Signs { replied: has(0), closing_opener: has(1), closing_answerer: has(2), confirmed: has(4) }
}

fn entry(key: &abi::Tuple, value: &abi::Ct) -> Option<(Key, Entry)> {
    let kind = match key.kind {
        abi::CT_EGRESS => Kind::Egress,
        abi::CT_INGRESS => Kind::Ingress,
        abi::CT_SERVICE => Kind::Service,
        abi::CT_HOST_IN => Kind::HostIn,
        abi::CT_HOST_OUT => Kind::HostOut,
        _ => return None,
    };
    let backend = (value.backend, socket(value.backend_addr, value.backend_port));
    let entry = Entry {
        expires_ns: value.expires_ns,
        packets: value.packets,
        bytes: value.bytes,
        identity: value.identity,
        rev_nat: value.rev_nat,
        signs: signs(value.flags),
        loopback: value.flags & abi::CTF_LOOPBACK != 0,
        one_sided: value.flags & abi::CTF_ONE_SIDED != 0,
        named: value.flags & abi::CTF_NAMED != 0,
        by_stack: value.flags & abi::CTF_BY_STACK != 0,
        backend: (kind == Kind::Service).then_some(backend),
    };
    Some((Key { kind, tuple: tuple(key) }, entry))
}

fn rule(entry: &RuleEntry) -> model::Rule {
    model::Rule {
        tier: match entry.tier {
            RuleTier::Admin => model::Tier::Admin,
            RuleTier::Normal => model::Tier::Normal,
            RuleTier::Baseline => model::Tier::Baseline,
        },
        identity: entry.identity,
        protocol: entry.protocol,
        port: entry.port.map(|port| (port.first, port.bits)),
        action: match entry.action {
            RuleAction::Pass => model::Action::Pass,
            RuleAction::Allow => model::Action::Allow,
            RuleAction::Deny => model::Action::Deny,
        },
        priority: entry.priority,
    }
}

fn policy(set: &PolicySet) -> model::Policy {
    let side = |side: &PolicySide| model::Side {
        enforced: side.enforced,
        rules: side.entries.iter().map(rule).collect(),
    };
    model::Policy { ingress: side(&set.ingress), egress: side(&set.egress), audit: set.audit }
}

/// Rows in which one of these addresses stands.
fn about<V>(
    table: &Hash<abi::Tuple, V>,
    of: &BTreeSet<Addr>,
    other: impl Fn(&V) -> Addr,
) -> Result<(Vec<(abi::Tuple, V)>, bool), DatapathError>
where
    V: aya::Pod + std::fmt::Debug + Default + PartialEq,
{
    let (mut found, mut cut) = (Vec::new(), false);
    table.each(|key, value| {
        if [key.src, key.dst, other(&value)].iter().any(|end| of.contains(end)) {
            cut |= found.len() >= MOST_FLOWS;
            if found.len() < MOST_FLOWS {
                found.push((key, value));
            }
        }
        Ok(())
    })?;
    Ok((found, cut))
}

impl Scene {
    fn new(model: model::Node) -> Self {
        Self {
            model,
            flows: [Vec::new(), Vec::new()],
            nat: [Vec::new(), Vec::new()],
            fragments: Vec::new(),
            affinity: Vec::new(),
            cookies: BTreeMap::new(),
            cut: false,
        }
    }
}

impl Datapath {
    /// What is known of a packet, and of whoever sent it through the tunnel.
    pub(crate) fn scene(&self, frame: &model::Frame, tunnel: Option<IpAddr>) -> Result<Scene, DatapathError> {
        let mut scene = Scene::new(model::Node { config: self.model_config()?, ..model::Node::default() });
        self.write_pods(&mut scene)?;
        let model::Frame::Ip(ip) = frame else { return Ok(scene) };
        self.read_fragments(&mut scene, &ip.packet)?;
        let flow = ip.packet.flow(&scene.model.fragments);
        let mut ends: BTreeSet<IpAddr> =
            [ip.packet.source, ip.packet.destination, flow.source.0, flow.destination.0].into();
        ends.extend(tunnel);
        ends.extend(self.write_services(&mut scene, &flow)?);
        self.write_named(&mut scene, &ip.packet, &flow)?;
        self.write_ways_out(&mut scene, ip.packet.source)?;
        self.read_flows(&mut scene, &mut ends)?;
        ends.into_iter().try_for_each(|address| self.write_prefix(&mut scene, address))?;
        self.write_policies(&mut scene)?;
        Ok(scene)
    }

    fn model_config(&self) -> Result<model::Config, DatapathError> {
        let config = self.config()?;
        Ok(model::Config {
            ready: config.ready,
            encrypt: config.encrypt,
            overlay: config.overlay_ifindex != 0,
            wireguard: config.wireguard_ifindex != 0,
            snat_ports: config.snat_ports,
            vxlan_port: config.vxlan_port,
            wireguard_port: config.wireguard_port,
            host_policy: config.host_policy_id,
            internal4: config.internal4,
            internal6: config.internal6,
            masquerade4: config.underlay4.filter(|_| config.masquerade4),
            masquerade6: config.underlay6.filter(|_| config.masquerade6),
            direct_return: (config.lb_mode != LbMode::Snat, config.lb_mode == LbMode::Dsr),
            host_serves: config.host_serves,
        })
    }

    fn write_pods(&self, scene: &mut Scene) -> Result<(), DatapathError> {
        for (ifindex, row) in self.interfaces()? {
            let addresses = row.v4.map(IpAddr::V4).into_iter().chain(row.v6.map(IpAddr::V6)).collect();
            let pod =
                model::Pod { ready: row.ready, identity: row.identity, addresses, policy: row.policy_id };
            scene.model.pods.insert(ifindex, pod);
        }
        let place = |place| match place {
            LocalAddress::Pod(ifindex) => model::Local::Pod(ifindex),
            LocalAddress::Host => model::Local::Host,
        };
        let local = self.local_addresses()?;
        scene.model.local = local.into_iter().map(|(address, at)| (address, place(at))).collect();
        Ok(())
    }

    /// The longest prefix around an address, and its node.
    fn write_prefix(&self, scene: &mut Scene, address: IpAddr) -> Result<(), DatapathError> {
        let Some(row) = self.prefix_around(address)? else { return Ok(()) };
        let crate::rows::PrefixEntry { identity, node, encrypt, remote_cluster, skip_tunnel, strict } = row;
        let prefix = model::Prefix { identity, node, encrypt, remote_cluster, skip_tunnel, strict };
        scene.model.prefixes.insert(address.into(), prefix);
        self.write_node(scene, row.node)
    }

    fn write_node(&self, scene: &mut Scene, number: u32) -> Result<(), DatapathError> {
        if let Some(node) = self.node(number)? {
            let path = match node.path {
                NodePath::Overlay => model::Path::Overlay,
                NodePath::Direct | NodePath::Local => model::Path::Direct,
            };
            let remote = model::RemoteNode { tunnel: node.tunnel, path, encrypt: node.encrypt };
            scene.model.nodes.insert(number, remote);
            scene.model.mtus.insert(number, node.mtu);
        }
        Ok(())
    }

    /// The services that the flow may be for; returns their backends' addresses.
    fn write_services(&self, scene: &mut Scene, flow: &model::Tuple) -> Result<Vec<IpAddr>, DatapathError> {
        let mut backends = Vec::new();
        let (address, port) = flow.destination;
        for scope in [model::Scope::External, model::Scope::Internal] {
            let real = match scope {
                model::Scope::External => crate::rows::Scope::External,
                model::Scope::Internal => crate::rows::Scope::Internal,
            };
            for (port, protocol) in [(port, flow.protocol), (0, 0)] {
                let frontend = model::Frontend { address, port, protocol, scope };
                let key = crate::rows::Frontend { ip: address, port, protocol, scope: real };
                let Some(entry) = self.service(&key)? else { continue };
                for number in entry.maglev.iter().collect::<BTreeSet<_>>() {
                    backends.extend(self.write_backend(scene, *number)?.map(|(ip, _)| ip));
                }
                if let Some(ranges) = &entry.source_ranges {
                    scene.model.ranges.insert(frontend, ranges.iter().copied().collect());
                }
                self.write_affinity(scene, &frontend, &entry, flow.source.0)?;
                self.write_rev_nat(scene, entry.rev_nat)?;
                let service = model::Service { rev_nat: entry.rev_nat, slots: entry.maglev };
                scene.model.services.insert(frontend, service);
            }
        }
        Ok(backends)
    }

    /// The service that the packet's header names.
    fn write_named(
        &self,
        scene: &mut Scene,
        packet: &model::Packet,
        flow: &model::Tuple,
    ) -> Result<(), DatapathError> {
        let Some(named) = packet.frontend else { return Ok(()) };
        let asked = model::Tuple { destination: named, ..*flow };
        self.write_services(scene, &asked)?;
        let (address, port) = named;
        let frontend =
            model::Frontend { address, port, protocol: flow.protocol, scope: model::Scope::External };
        let Some(service) = scene.model.services.get(&frontend) else { return Ok(()) };
        let (backend, port) = flow.destination;
        let key = abi::FrontKey {
            addr: backend.into(),
            port: port.to_be(),
            proto: flow.protocol,
            pad0: 0,
            rev_nat: service.rev_nat,
        };
        let backend = self.tables.fronts.get(key)?.map(|_| flow.destination);
        scene.model.fronts.insert(frontend, backend.into_iter().collect());
        Ok(())
    }

    /// How a pod's packets leave the mesh.
    fn write_ways_out(&self, scene: &mut Scene, pod: IpAddr) -> Result<(), DatapathError> {
        for ((of, destination), way) in self.egress()? {
            if of != pod {
                continue;
            }
            let way = match way {
                EgressWay::Nowhere => model::EgressWay::Nowhere,
                EgressWay::Excluded => model::EgressWay::Excluded,
                EgressWay::Node(node) => model::EgressWay::Node(node),
                EgressWay::Here { address, .. } => model::EgressWay::Here(address),
            };
            if let model::EgressWay::Node(number) = way {
                self.write_node(scene, number)?;
            }
            scene.model.egress.insert((of, destination), way);
        }
        scene.model.unmasked = self.unmasked()?;
        Ok(())
    }

    fn write_affinity(
        &self,
        scene: &mut Scene,
        frontend: &model::Frontend,
        entry: &crate::rows::ServiceEntry,
        client: IpAddr,
    ) -> Result<(), DatapathError> {
        if entry.affinity_secs == 0 {
            return Ok(());
        }
        let affinity = &mut scene.model.affinity;
        affinity.seconds.insert(*frontend, entry.affinity_secs);
        let scope = u32::from(frontend.scope == model::Scope::Internal);
        let key = abi::AffinityKey { client: client.into(), rev_nat: entry.rev_nat, by_cookie: 0 };
        let met = self.tables.affinity.get(key)?;
        for backend in entry.maglev.iter().copied().chain(met.map(|met| met.backend)) {
            let member = abi::MemberKey { rev_nat: entry.rev_nat, backend, scope };
            if self.tables.members.get(member)?.is_some() {
                affinity.members.insert((entry.rev_nat, backend, frontend.scope));
            }
        }
        if let Some(met) = met {
            let row = (met.last_ns, met.backend, socket(met.addr, met.port));
            affinity.met.insert((client, entry.rev_nat), row);
            scene.affinity.push((key, met));
            self.write_backend(scene, met.backend)?;
        }
        Ok(())
    }

    fn write_backend(&self, scene: &mut Scene, number: u32) -> Result<Option<model::Socket>, DatapathError> {
        let Some(row) = self.tables.backends.get(number)? else { return Ok(None) };
        let socket = socket(row.addr, row.port);
        scene.model.backends.insert(number, model::Backend { socket });
        Ok(Some(socket))
    }

    fn write_rev_nat(&self, scene: &mut Scene, number: u32) -> Result<(), DatapathError> {
        if let Some(frontend) = self.frontend_of(number)? {
            scene.model.rev_nats.insert(number, frontend);
        }
        Ok(())
    }

    fn write_policies(&self, scene: &mut Scene) -> Result<(), DatapathError> {
        for (number, set) in self.policies()? {
            let sides = [(model::Direction::Ingress, &set.ingress), (model::Direction::Egress, &set.egress)];
            for (direction, side) in sides {
                let known = side.entries.iter().map(|entry| ((number, direction, rule(entry)), entry.cookie));
                scene.cookies.extend(known);
            }
            scene.model.policies.insert(number, policy(&set));
        }
        Ok(())
    }

    /// The flows of these addresses, and of those that they are translated to.
    fn read_flows(&self, scene: &mut Scene, ends: &mut BTreeSet<IpAddr>) -> Result<(), DatapathError> {
        let tables = &self.tables;
        let mut wanted = BTreeSet::new();
        // Whom the first walk finds behind a translation, the second looks for.
        for _ in 0..2 {
            let local = &scene.model.local;
            let others = ends.iter().filter(|end| local.get(*end) != Some(&model::Local::Host));
            let found: BTreeSet<Addr> = others.map(|end| Addr::from(*end)).collect();
            if found == wanted {
                break;
            }
            wanted = found;
            scene.cut = false;
            for (place, table) in scene.flows.iter_mut().zip([&tables.ct_half, &tables.ct]) {
                let (rows, cut) = about(table, &wanted, |flow| flow.backend_addr)?;
                ends.extend(rows.iter().filter_map(|(_, flow)| flow.backend_addr.some_ip()));
                (*place, scene.cut) = (rows, scene.cut | cut);
            }
            for (place, table) in scene.nat.iter_mut().zip([&tables.nat_half, &tables.nat]) {
                let (rows, cut) = about(table, &wanted, |nat| nat.addr)?;
                let clients = rows.iter().filter(|(key, _)| key.kind == abi::NAT_IN);
                ends.extend(clients.map(|(_, nat)| nat.addr.ip()));
                (*place, scene.cut) = (rows, scene.cut | cut);
            }
        }
        self.write_flows(scene)
    }

    fn write_flows(&self, scene: &mut Scene) -> Result<(), DatapathError> {
        let [half, established] = &scene.flows;
        let conntrack = &mut scene.model.conntrack;
        conntrack.half = half.iter().filter_map(|(key, value)| entry(key, value)).collect();
        conntrack.established = established.iter().filter_map(|(key, value)| entry(key, value)).collect();
        let [half, answered] = &scene.nat;
        let nat = &mut scene.model.nat;
        for (ways, rows) in [(&mut nat.half, half), (&mut nat.answered, answered)] {
            for (key, value) in rows {
                let other = socket(value.addr, value.port);
                if key.kind == abi::NAT_IN {
                    let mapping = Mapping {
                        expires_ns: value.expires_ns,
                        source: other,
                        rev_nat: value.rev_nat,
                        signs: signs(value.flags),
                    };
                    ways.back.insert(tuple(key), mapping);
                } else {
                    ways.out.insert(tuple(key), other);
                }
            }
        }
        let flows = scene.flows.iter().flatten();
        let numbers = flows.map(|(_, flow)| flow.rev_nat);
        let numbers: BTreeSet<u32> =
            numbers.chain(scene.nat.iter().flatten().map(|(_, nat)| nat.rev_nat)).collect();
        let of_services = scene.flows.iter().flatten().filter(|(key, _)| key.kind == abi::CT_SERVICE);
        let backends: BTreeSet<u32> = of_services.map(|(_, flow)| flow.backend).collect();
        numbers.into_iter().try_for_each(|number| self.write_rev_nat(scene, number))?;
        backends.into_iter().try_for_each(|number| self.write_backend(scene, number).map(drop))
    }

    /// What is known of datagrams between these ends: `struct tb_frag_key` and `struct tb_frag` as bytes.
    fn read_fragments(&self, scene: &mut Scene, packet: &model::Packet) -> Result<(), DatapathError> {
        if packet.fragment == model::Fragment::Whole {
            return Ok(());
        }
        let failed = |source| DatapathError::Map { operation: "walk".into(), map: "tb_frags", source };
        let map = MapData::from_pin(self.directory.join("tb_frags"));
        let map = map.map_err(|error| failed(std::io::Error::other(error)))?;
        let ends = [Addr::from(packet.source), Addr::from(packet.destination)].map(|addr| addr.0).concat();
        sys::each_entry(map.fd().as_fd(), |key, value| {
            let known = key.strip_prefix(ends.as_slice()).and_then(<[u8]>::first_chunk::<5>);
            let ports = value.first_chunk::<4>();
            if let (Some([id @ .., protocol]), Some([a, b, c, d])) = (known, ports) {
                // The identification stands in network order, of IPv4 in the lower half.
                let id = match packet.source {
                    IpAddr::V4(_) => u32::from(u16::from_be_bytes([id[0], id[1]])),
                    IpAddr::V6(_) => u32::from_be_bytes(*id),
                };
                let datagram = (packet.source, packet.destination, id, *protocol);
                let ports = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                scene.model.fragments.insert(datagram, ports);
                scene.fragments.push((key.to_vec(), value.to_vec()));
            }
            Ok(())
        })
        .map_err(failed)
    }
}
