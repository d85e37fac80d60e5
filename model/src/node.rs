//! A node: its rows, its flows, and who is at which address.

use crate::ct::Conntrack;
use crate::flight::{Flight, LocalSource, Place};
use crate::lb::{Affinity, Backend, Frontend, Service};
use crate::nat::Nat;
use crate::outcome::Reason;
use crate::packet::{Fragments, Packet, SCTP, Socket, Tuple};
use crate::story::Step;
use crate::verdict::Policy;
use ipnet::IpNet;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// The identity of the node itself.
pub const HOST: u32 = 1;
/// The identity of what nobody named.
pub const WORLD: u32 = 2;
/// The identity of other nodes.
pub const REMOTE_NODE: u32 = 6;
/// Another node that the API server is on.
const KUBE_APISERVER: u32 = 7;

/// Whether an identity is another node's; one that policies tell apart by its address has 2 in its upper byte.
pub(crate) const fn is_node(identity: u32) -> bool {
    matches!(identity, REMOTE_NODE | KUBE_APISERVER) || identity >> 24 == 2
}

/// What the programs know of their node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether the rows are complete.
    pub ready: bool,
    /// Whether encrypt flags are honoured.
    pub encrypt: bool,
    /// Whether there is a VXLAN device.
    pub overlay: bool,
    /// Whether there is a WireGuard device.
    pub wireguard: bool,
    /// Source ports for SNAT.
    pub snat_ports: RangeInclusive<u16>,
    /// The UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The UDP port of WireGuard.
    pub wireguard_port: Option<u16>,
    /// Outside clients of backends on other nodes are answered from there: of TCP, of UDP.
    pub direct_return: (bool, bool),
    /// The policy of the node's own traffic; 0: none.
    pub host_policy: u32,
    /// Whether the node has served clients outside as a backend: its answers are looked for.
    pub host_serves: bool,
    /// The node's address inside the pod network, IPv4.
    pub internal4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub internal6: Option<Ipv6Addr>,
    /// The source of what pods send out of the mesh; `None`: their own.
    pub masquerade4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub masquerade6: Option<Ipv6Addr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ready: false,
            encrypt: false,
            overlay: false,
            wireguard: false,
            snat_ports: 11_000..=29_999,
            vxlan_port: 8472,
            wireguard_port: None,
            direct_return: (false, false),
            host_policy: 0,
            host_serves: false,
            internal4: None,
            internal6: None,
            masquerade4: None,
            masquerade6: None,
        }
    }
}

impl Config {
    pub(crate) fn internal(&self, ipv4: bool) -> Option<IpAddr> {
        if ipv4 { self.internal4.map(IpAddr::V4) } else { self.internal6.map(IpAddr::V6) }
    }

    pub(crate) fn masquerade(&self, ipv4: bool) -> Option<IpAddr> {
        if ipv4 { self.masquerade4.map(IpAddr::V4) } else { self.masquerade6.map(IpAddr::V6) }
    }
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Identity and policy are in place.
    pub ready: bool,
    /// Its identity.
    pub identity: u32,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its policy's number; 0: none, everything is allowed.
    pub policy: u32,
}

/// Where a local address lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// At a pod, by the ifindex of its host end.
    Pod(u32),
    /// At the node itself.
    Host,
}

/// What lies behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its identity.
    pub identity: u32,
    /// The node that holds it; 0: none.
    pub node: u32,
    /// Must leave this node encrypted.
    pub encrypt: bool,
    /// Belongs to another cluster.
    pub remote_cluster: bool,
    /// Reached directly whatever the node's path says.
    pub skip_tunnel: bool,
    /// Pods are there, and nobody has said on which node.
    pub strict: bool,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            identity: WORLD,
            node: 0,
            encrypt: false,
            remote_cluster: false,
            skip_tunnel: false,
            strict: false,
        }
    }
}

/// How a node's pods are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Through VXLAN.
    Overlay,
    /// Along the routing table.
    Direct,
}

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteNode {
    /// The outer destination address; `None`: not known.
    pub tunnel: Option<IpAddr>,
    /// The path.
    pub path: Path,
    /// VXLAN packets to it are encrypted.
    pub encrypt: bool,
}

/// Which way a pod's packets to a destination outside the mesh go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressWay {
    /// A gateway is wanted, and there is none.
    Nowhere,
    /// As if there were no policy.
    Excluded,
    /// Through the tunnel to the node with this number.
    Node(u32),
    /// This node is the gateway, and gives them this source.
    Here(Option<IpAddr>),
}

/// A node. Rows are written by whoever plays the agent, flows by the programs.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The node itself.
    pub config: Config,
    /// Pods, by the ifindex of their host end.
    pub pods: BTreeMap<u32, Pod>,
    /// Addresses of pods and of the node.
    pub local: BTreeMap<IpAddr, Local>,
    /// Addresses elsewhere.
    pub prefixes: BTreeMap<IpNet, Prefix>,
    /// Other nodes, by number.
    pub nodes: BTreeMap<u32, RemoteNode>,
    /// Services.
    pub services: BTreeMap<Frontend, Service>,
    /// The backends that frontends had when they were written last. Other nodes may send their clients to these.
    pub fronts: BTreeMap<Frontend, BTreeSet<Socket>>,
    /// Backends, by number.
    pub backends: BTreeMap<u32, Backend>,
    /// Ways of pods' packets out of the mesh, by pod and destination.
    pub egress: BTreeMap<(IpAddr, IpNet), EgressWay>,
    /// Destinations that see pods' own addresses, whatever the node masquerades.
    pub unmasked: BTreeSet<IpNet>,
    /// Frontends by the number of their reverse translation. They outlive their services.
    pub rev_nats: BTreeMap<u32, Socket>,
    /// Policies, by number.
    pub policies: BTreeMap<u32, Policy>,
    /// The flows.
    pub conntrack: Conntrack,
    /// The address translations.
    pub nat: Nat,
    /// What is known of fragmented datagrams.
    pub fragments: Fragments,
    /// The largest packet on the path to a node, by number; none: any.
    pub mtus: BTreeMap<u32, u32>,
    /// Clients that a frontend takes, if not all.
    pub ranges: BTreeMap<Frontend, Vec<IpNet>>,
    /// Session affinity.
    pub affinity: Affinity,
    /// The largest packet that the one at hand becomes on the wire, where no router may cut it.
    pub whole: Option<u32>,
    /// What was decided, if somebody listens ([`Node::listen`]).
    pub story: RefCell<Option<Vec<Step>>>,
}

impl Node {
    /// User space collects what is over by `now_ns` (`Datapath::gc`, run until nothing changes): flows, mappings, and
    /// reverse translations that neither a service nor a flow names.
    pub fn collect(&mut self, now_ns: u64) {
        self.conntrack.collect(now_ns);
        self.nat.collect(now_ns);
        let flows = self.conntrack.half.values().chain(self.conntrack.established.values());
        let flows = flows.filter(|flow| flow.expires_ns >= now_ns).map(|flow| flow.rev_nat);
        let mappings = self.nat.half.back.values().chain(self.nat.answered.back.values());
        let mappings = mappings.filter(|mapping| mapping.expires_ns >= now_ns).map(|mapping| mapping.rev_nat);
        let services = self.services.values().map(|service| service.rev_nat);
        let named: BTreeSet<u32> = flows.chain(mappings).chain(services).collect();
        self.rev_nats.retain(|number, _| named.contains(number));
    }

    /// User space forgets the flows of addresses that others may get (`Datapath::forget_flows`).
    pub fn forget(&mut self, addresses: &[IpAddr]) {
        let stays = |tuple: &Tuple, other: Option<Socket>| {
            let ends = [Some(tuple.source), Some(tuple.destination), other];
            !ends.iter().flatten().any(|(end, _)| addresses.contains(end))
        };
        for flows in [&mut self.conntrack.half, &mut self.conntrack.established] {
            flows.retain(|key, flow| stays(&key.tuple, flow.backend.map(|(_, socket)| socket)));
        }
        for ways in [&mut self.nat.half, &mut self.nat.answered] {
            ways.out.retain(|flow, source| stays(flow, Some(*source)));
            ways.back.retain(|answers, mapping| stays(answers, Some(mapping.source)));
        }
        self.nat.search_again();
    }

    /// A packet begins its way.
    pub(crate) fn begin<'a>(&mut self, now_ns: u64, packet: &'a Packet) -> Flight<'a> {
        let flight = Flight::new(now_ns, packet, packet.read(&mut self.fragments));
        let (flow, error, broken) = (flight.was, flight.sight.is_error, flight.broken);
        self.tell(|| Step::Read { flow, error, broken });
        flight
    }

    /// The longest prefix around an address.
    pub(crate) fn prefix_of(&self, address: IpAddr) -> Option<Prefix> {
        let around = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(&address));
        around.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, entry)| *entry)
    }

    pub(crate) fn ready_pod(&self, ifindex: u32) -> Result<&Pod, Reason> {
        self.pods.get(&ifindex).filter(|pod| pod.ready).ok_or(Reason::EndpointNotReady)
    }

    /// Where the packet's destination is, and which identity it has.
    pub(crate) fn locate(&self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        let address = flight.becomes.destination.0;
        (flight.place, flight.destination_identity) = match self.local.get(&address) {
            Some(Local::Host) => (Place::Host, HOST),
            Some(Local::Pod(ifindex)) => (Place::Pod(*ifindex), self.ready_pod(*ifindex)?.identity),
            None => {
                let prefix = self.prefix_of(address).unwrap_or_default();
                (Place::Away(prefix), prefix.identity)
            }
        };
        self.tell(|| Step::Place {
            address,
            identity: flight.destination_identity,
            place: match flight.place {
                Place::Host => crate::story::Place::Host,
                Place::Pod(ifindex) => crate::story::Place::Pod(ifindex),
                Place::Away(prefix) => crate::story::Place::Away(prefix.node),
            },
        });
        Ok(())
    }

    /// The sender's identity by its address, of a packet from the node's stack.
    pub(crate) fn identify(&self, flight: &mut Flight<'_>) {
        let address = flight.packet.source;
        flight.source_identity = match self.local.get(&address) {
            Some(Local::Host) => HOST,
            Some(Local::Pod(ifindex)) => self.pods.get(ifindex).map_or(0, |pod| pod.identity),
            None => self.prefix_of(address).unwrap_or_default().identity,
        };
        self.tell(|| Step::Sender { address, identity: flight.source_identity, believed: true });
    }

    /// The sender's identity by its address, of a packet from the network. One that names an address of this node is not
    /// from there: it is nobody's but the world's.
    pub(crate) fn identify_outsider(&self, flight: &mut Flight<'_>) {
        let address = flight.packet.source;
        let prefix = self.prefix_of(address).unwrap_or_default();
        let identity = prefix.identity;
        flight.local_source = match self.local.get(&address) {
            Some(Local::Pod(_)) => Some(LocalSource::Pod),
            Some(Local::Host) => Some(LocalSource::Host),
            None if identity == HOST => Some(LocalSource::Host),
            None => None,
        };
        flight.source_identity = if flight.local_source.is_some() { WORLD } else { identity };
        flight.outsider = flight.local_source.is_none() && prefix.node == 0;
        let (identity, believed) = (flight.source_identity, flight.local_source.is_none());
        self.tell(|| Step::Sender { address, identity, believed });
    }

    /// Whether it may be an answer to a flow that got another source: to the node's address inside the pod network, or to
    /// one that is no pod's, at one of the ports for it.
    pub(crate) fn may_turn_back(&self, flight: &Flight<'_>) -> bool {
        let (address, port) = flight.was.destination;
        let pod = matches!(self.local.get(&address), Some(Local::Pod(_)));
        self.config.internal(flight.was.is_ipv4()) == Some(address)
            || (!pod && (flight.was.protocol == SCTP || self.config.snat_ports.contains(&port)))
    }

    /// Gives an answer the frontend's address as source.
    pub(crate) fn unmask(&self, flight: &mut Flight<'_>, rev_nat: u32) {
        if let Some(frontend) = self.rev_nats.get(&rev_nat) {
            flight.rev_nat = rev_nat;
            flight.frontend = Some(*frontend);
            flight.becomes.source = *frontend;
            self.tell(|| Step::Unmask { frontend: *frontend });
        }
    }
}
