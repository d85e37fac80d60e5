//! The programs (`ebpf/bpf/datapath.bpf.c`, `forward.h`): one method each. The packets of [`Packet`] are all IP, and the
//! routing table leads everywhere.

use crate::ct::{Key, Kind};
use crate::flight::{Flight, LocalSource, Place, is_group};
use crate::frame::{Frame, Ip, LinkMessage};
use crate::lb::Scope;
use crate::node::{EgressWay, HOST, Local, Node, Path, Pod, Prefix, REMOTE_NODE, RemoteNode, is_node};
use crate::outcome::{Outcome, Reason, To};
use crate::packet::{Packet, Payload, UDP};
use crate::story::Step;
use crate::verdict::Direction;
use std::net::IpAddr;

type Decision = Result<(To, Packet), Reason>;

/// A program, and what it knows beside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `from_endpoint`, at the interface with this index.
    FromEndpoint(u32),
    /// `to_endpoint`.
    ToEndpoint(u32),
    /// `from_uplink`, and `from_wireguard` likewise.
    FromUplink,
    /// `to_uplink`.
    ToUplink {
        /// WireGuard's own, by its mark: never looked at.
        ciphertext: bool,
        /// A pod's or client's under the node's address, by its mark: not the node's own.
        forwarded: bool,
    },
    /// `from_overlay`: the outer source and the key, which is the sender's word on the identity.
    FromOverlay(IpAddr, u32),
    /// `to_overlay`; `true`: the key is set already, by the mark.
    ToOverlay(bool),
}

fn outcome(decision: Decision) -> Outcome {
    match decision {
        Ok((to, packet)) => Outcome::Pass { to, packet },
        Err(reason) => Outcome::Drop(reason),
    }
}

/// The kernel goes on with the packet, translated as decided.
fn to_kernel(flight: &Flight<'_>) -> Decision {
    Ok((To::Kernel, flight.written()))
}

/// It leaves for its last or next hop. At the end of its hops the stack answers an untouched packet, and none else.
fn hop(flight: &Flight<'_>, to: To) -> Decision {
    let packet = match to {
        To::Pod(_) => flight.written().naming(None),
        _ if flight.naming => flight.written().naming(flight.frontend),
        _ => flight.written(),
    };
    match packet.hops {
        0 | 1 if flight.translated() => Err(Reason::TtlExceeded),
        0 | 1 => to_kernel(flight),
        hops => Ok((to, Packet { hops: hops - 1, ..packet })),
    }
}

/// Whether a packet is sent under the pod's address. An error must speak of a packet that this pod received, too.
fn own_address(flight: &Flight<'_>, pod: &Pod) -> bool {
    let owns = |address| pod.addresses.contains(&address);
    owns(flight.packet.source) && (flight.broken.is_some() || owns(flight.was.source.0))
}

impl Node {
    /// A pod sends: `from_endpoint` at the interface `ifindex`, at `now_ns` of a monotonic clock.
    pub fn from_endpoint(&mut self, now_ns: u64, ifindex: u32, packet: &Packet) -> Outcome {
        outcome(self.pod_sends(now_ns, ifindex, packet))
    }

    /// The stack sends to a pod: `to_endpoint` at the interface `ifindex`.
    pub fn to_endpoint(&mut self, now_ns: u64, ifindex: u32, packet: &Packet) -> Outcome {
        outcome(self.pod_receives(now_ns, ifindex, packet))
    }

    /// A packet from the network: `from_uplink`, and `from_wireguard` likewise.
    pub fn from_uplink(&mut self, now_ns: u64, packet: &Packet) -> Outcome {
        outcome(self.uplink_receives(now_ns, packet))
    }

    /// A packet into the network: `to_uplink`.
    pub fn to_uplink(&mut self, now_ns: u64, packet: &Packet) -> Outcome {
        outcome(self.uplink_sends(now_ns, packet, false))
    }

    /// The node's own packet into the tunnel: `to_overlay`.
    pub fn to_overlay(&mut self, now_ns: u64, packet: &Packet) -> Outcome {
        outcome(self.overlay_sends(now_ns, packet))
    }

    /// A packet as it came in meets a program. What is no IP goes on as it is.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn meet(&mut self, now_ns: u64, hook: &Hook, frame: &Frame) -> Result<(To, Option<Packet>), Reason> {
        self.admits(hook)?;
        let Frame::Ip(ip) = frame else {
            return match hook {
                Hook::FromOverlay(..) | Hook::ToOverlay(false) => Err(Reason::UnknownL3),
                _ => Ok((To::Kernel, None)),
            };
        };
        self.whole = ip.whole;
        if let Some(message) = ip.link {
            self.neighbour(hook, ip, message)?;
            return Ok((To::Kernel, Some(ip.packet.clone())));
        }
        let packet = &ip.packet;
        let decision = match *hook {
            Hook::FromEndpoint(ifindex) => self.pod_sends(now_ns, ifindex, packet),
            Hook::ToEndpoint(ifindex) => self.pod_receives(now_ns, ifindex, packet),
            Hook::FromUplink => self.uplink_receives(now_ns, packet),
            Hook::ToUplink { ciphertext: true, .. } | Hook::ToOverlay(true) => {
                Ok((To::Kernel, packet.clone()))
            }
            Hook::ToUplink { forwarded, .. } => self.uplink_sends(now_ns, packet, forwarded),
            Hook::FromOverlay(sender, key) => self.overlay_receives(now_ns, sender, key, packet),
            Hook::ToOverlay(false) => match packet.payload {
                Payload::Broken { protocol: 0, reason, .. } => Err(reason),
                _ => self.overlay_sends(now_ns, packet),
            },
        };
        self.whole = None;
        decision.map(|(to, packet)| (to, Some(packet)))
    }

    /// What is asked of every frame, whatever it is.
    fn admits(&self, hook: &Hook) -> Result<(), Reason> {
        match *hook {
            Hook::FromEndpoint(ifindex) => {
                self.ready_pod(ifindex)?;
                if self.config.ready { Ok(()) } else { Err(Reason::HostNotReady) }
            }
            Hook::ToEndpoint(ifindex) => self.ready_pod(ifindex).map(drop),
            Hook::FromUplink | Hook::ToUplink { .. } | Hook::FromOverlay(..) | Hook::ToOverlay(_) => Ok(()),
        }
    }

    /// Neighbour discovery of a pod is between it and the node; the tunnel is no link.
    fn neighbour(&self, hook: &Hook, ip: &Ip, message: LinkMessage) -> Result<(), Reason> {
        let ifindex = match hook {
            Hook::FromEndpoint(ifindex) => *ifindex,
            Hook::FromOverlay(..) if !self.config.ready => return Err(Reason::HostNotReady),
            Hook::FromOverlay(..) | Hook::ToOverlay(false) => return Err(Reason::ForbiddenIcmp6),
            Hook::ToEndpoint(_) | Hook::FromUplink | Hook::ToUplink { .. } | Hook::ToOverlay(true) => {
                return Ok(());
            }
        };
        // A router's advertisement, or a redirect.
        let LinkMessage::Discovery(133 | 135 | 136) = message else { return Err(Reason::ForbiddenIcmp6) };
        let (source, destination) = (ip.packet.source, ip.packet.destination);
        let pod = self.ready_pod(ifindex)?;
        let link_local = |address| matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let on_link = link_local(destination)
            || matches!(destination, IpAddr::V6(ip) if ip.octets().starts_with(&[0xff, 0x02]));
        if !(source.is_unspecified() || pod.addresses.contains(&source) || link_local(source)) {
            return Err(Reason::InvalidSource);
        }
        if on_link || self.is_own(destination) { Ok(()) } else { Err(Reason::ForbiddenIcmp6) }
    }

    fn pod_sends(&mut self, now_ns: u64, ifindex: u32, packet: &Packet) -> Decision {
        let pod = self.ready_pod(ifindex)?.clone();
        if !self.config.ready {
            return Err(Reason::HostNotReady);
        }
        let flight = &mut self.begin(now_ns, packet);
        flight.source_identity = pod.identity;
        let (address, believed) = (packet.source, own_address(flight, &pod));
        self.tell(|| Step::Sender { address, identity: pod.identity, believed });
        if !believed {
            return Err(Reason::InvalidSource);
        }
        flight.whole()?;
        // Nodes alone do that.
        if flight.named.is_some() {
            return Err(Reason::Invalid);
        }
        if flight.to_group() {
            return Err(Reason::UnknownTarget);
        }
        if flight.to_tunnel(self.config.vxlan_port) {
            return Err(Reason::EncapProhibited);
        }
        let runs = self.conntrack.runs(&Key { kind: Kind::Egress, tuple: flight.was }, &flight.sight);
        if !runs && self.answers(flight, pod.policy)? {
            return self.answer_of_pod(flight);
        }
        let served = !runs && self.serve(flight, Scope::Internal)?;
        if served && flight.to_tunnel(self.config.vxlan_port) {
            return Err(Reason::EncapProhibited);
        }
        self.locate(flight)?;
        if served && flight.place == Place::Pod(ifindex) {
            flight.loopback = true;
            self.snat(flight)?;
        } else {
            self.sends(flight, pod.policy)?;
            if let Place::Away(prefix) = flight.place
                && prefix.node == 0
                && !prefix.strict
                && let Some(gateway) = self.leave(flight)?
            {
                return self.to_gateway(flight, gateway);
            }
        }
        self.onward(flight)
    }

    fn answer_of_pod(&mut self, flight: &mut Flight<'_>) -> Decision {
        if flight.loopback && !self.unsnat(flight) {
            return Err(Reason::NatNoMapping);
        }
        self.locate(flight)?;
        // The stack may have translated it on its way here.
        if flight.by_stack && !flight.loopback && flight.place != Place::Host {
            return to_kernel(flight);
        }
        self.onward(flight)
    }

    fn pod_receives(&mut self, now_ns: u64, ifindex: u32, packet: &Packet) -> Decision {
        self.ready_pod(ifindex)?;
        let flight = &mut self.begin(now_ns, packet);
        flight.whole()?;
        flight.named = None;
        if flight.to_group() {
            return Err(Reason::UnknownTarget);
        }
        self.identify(flight);
        if flight.source_identity == HOST {
            flight.destination_identity = self.ready_pod(ifindex)?.identity;
            self.host_sends(flight)?;
            (flight.reply, flight.fresh) = (false, false);
        }
        flight.by_stack = flight.source_identity != HOST;
        self.receives(flight, ifindex)?;
        to_kernel(flight)
    }

    fn uplink_receives(&mut self, now_ns: u64, packet: &Packet) -> Decision {
        if !self.config.ready {
            return Ok((To::Kernel, packet.clone()));
        }
        let flight = &mut self.begin(now_ns, packet);
        if flight.to_group() {
            return to_kernel(flight);
        }
        if let Some(reason) = flight.broken {
            if self.is_ours(flight) {
                return Err(reason);
            }
            if self.is_own(flight.packet.destination) {
                self.identify_outsider(flight);
                self.host_untracked(flight, Direction::Ingress, flight.source_identity)?;
            }
            return to_kernel(flight);
        }
        self.identify_outsider(flight);
        if flight.local_source == Some(LocalSource::Pod) || is_group(flight.packet.source) {
            return Err(Reason::InvalidSource);
        }
        if self.may_turn_back(flight) && self.unsnat(flight) {
            return self.turned_back(flight);
        }
        self.locate(flight)?;
        let away = matches!(flight.place, Place::Away(_));
        // An address of the node may be a service's, too; but the tunnel's packets spare the look-up.
        let may_serve = away || (flight.place == Place::Host && !flight.to_tunnel(self.config.vxlan_port));
        if may_serve && self.serve(flight, Scope::External)? {
            return self.outside_client(flight);
        }
        if away {
            return to_kernel(flight);
        }
        if flight.local_source.is_some() {
            return Err(Reason::InvalidSource);
        }
        if let Place::Pod(_) = flight.place {
            self.named_here(flight)?;
        }
        self.onward(flight)
    }

    /// Out of the tunnel: the identity is the sending node's word.
    fn overlay_receives(&mut self, now_ns: u64, sender: IpAddr, key: u32, packet: &Packet) -> Decision {
        if !self.config.ready {
            return Err(Reason::HostNotReady);
        }
        let flight = &mut self.begin(now_ns, packet);
        let node = self.prefix_of(sender);
        let believed = node.is_some_and(|node| node.node != 0 && is_node(node.identity));
        let identity = if key == HOST { REMOTE_NODE } else { key };
        self.tell(|| Step::Sender { address: sender, identity, believed });
        if !believed {
            return Err(Reason::UnknownSender);
        }
        flight.whole()?;
        flight.source_identity = identity;
        if identity == 0 {
            self.identify_outsider(flight);
            if flight.local_source.is_some() {
                return Err(Reason::InvalidSource);
            }
        }
        let internal = self.config.internal(flight.was.is_ipv4()) == Some(flight.was.destination.0);
        if internal && self.unsnat(flight) {
            return self.turned_back(flight);
        }
        self.locate(flight)?;
        if let Place::Away(prefix) = flight.place {
            self.leave_here(flight, prefix)?;
            return self.forward(flight, prefix);
        }
        // Pods of other nodes reach the internal address this way, and its node ports.
        let may_serve = flight.place == Place::Host && !flight.to_tunnel(self.config.vxlan_port);
        if may_serve && self.serve(flight, Scope::External)? {
            return self.outside_client(flight);
        }
        if let Place::Pod(_) = flight.place {
            self.named_here(flight)?;
        }
        self.onward(flight)
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.local.get(&address) == Some(&Local::Host)
    }

    /// Whether a packet that cannot be tracked is meant for a pod or service: else it is the stack's business.
    fn is_ours(&self, flight: &Flight<'_>) -> bool {
        let address = flight.packet.destination;
        match self.local.get(&address) {
            Some(local) => *local != Local::Host,
            None => self.closes_rest(address, Scope::External),
        }
    }

    /// A service's client outside: local backends, the node itself too, see its address, remote ones the node's, or its own.
    fn outside_client(&mut self, flight: &mut Flight<'_>) -> Decision {
        if flight.to_tunnel(self.config.vxlan_port) {
            return Err(Reason::EncapProhibited);
        }
        self.locate(flight)?;
        match flight.place {
            Place::Host | Place::Pod(_) => flight.in_rev_nat = flight.rev_nat,
            Place::Away(prefix) if self.answered_there(flight, prefix) => flight.naming = flight.may_open(),
            Place::Away(_) => self.snat(flight)?,
        }
        self.config.host_serves |= flight.place == Place::Host;
        self.onward(flight)
    }

    /// The packet is judged and its translation decided.
    fn onward(&mut self, flight: &mut Flight<'_>) -> Decision {
        match flight.place {
            Place::Host => {
                self.host_receives(flight)?;
                to_kernel(flight)
            }
            Place::Away(prefix) => self.forward(flight, prefix),
            Place::Pod(ifindex) => {
                self.receives(flight, ifindex)?;
                hop(flight, To::Pod(ifindex))
            }
        }
    }

    /// A pod's packet leaves the mesh: under an address of this node, or by the gateway with the number returned.
    fn leave(&mut self, flight: &mut Flight<'_>) -> Result<Option<u32>, Reason> {
        let (pod, address) = (flight.was.source.0, flight.becomes.destination.0);
        match self.egress_way(pod, address) {
            Some(EgressWay::Nowhere) => Err(Reason::NoEgressGateway),
            Some(EgressWay::Node(number)) => Ok(Some(number)),
            Some(EgressWay::Here(own)) => {
                self.snat_to(flight, own.ok_or(Reason::NoEgressIp)?, 0).map(|()| None)
            }
            Some(EgressWay::Excluded) | None => {
                let Some(own) = self.config.masquerade(flight.was.is_ipv4()) else { return Ok(None) };
                if self.unmasked.iter().any(|net| net.contains(&address)) {
                    return Ok(None);
                }
                self.snat_to(flight, own, 0).map(|()| None)
            }
        }
    }

    /// A tunnel packet for an address outside the mesh: this node must be the sender's gateway for it.
    fn leave_here(&mut self, flight: &mut Flight<'_>, prefix: Prefix) -> Result<(), Reason> {
        let (pod, address) = (flight.was.source.0, flight.becomes.destination.0);
        match self.egress_way(pod, address).filter(|_| prefix.node == 0 && !prefix.strict) {
            Some(EgressWay::Here(own)) => self.snat_to(flight, own.ok_or(Reason::NoEgressIp)?, 0),
            _ => Err(Reason::Unroutable),
        }
    }

    /// What a policy says of this pod and destination: the narrowest prefix counts.
    fn egress_way(&self, pod: IpAddr, address: IpAddr) -> Option<EgressWay> {
        let ways = self.egress.iter().filter(|((of, net), _)| *of == pod && net.contains(&address));
        ways.max_by_key(|((_, net), _)| net.prefix_len()).map(|(_, way)| *way)
    }

    /// An answer to a flow that got another source: with encryption one from
    /// outside the mesh goes back as its flow came, by the tunnel.
    fn turned_back(&mut self, flight: &mut Flight<'_>) -> Decision {
        self.locate(flight)?;
        match flight.place {
            Place::Away(prefix)
                if self.config.encrypt && flight.rev_nat == 0 && prefix.node != 0 && !prefix.skip_tunnel =>
            {
                self.to_gateway(flight, prefix.node)
            }
            _ => self.onward(flight),
        }
    }

    /// Through the tunnel, whatever the path to the node.
    fn to_gateway(&self, flight: &Flight<'_>, number: u32) -> Decision {
        let node = self.nodes.get(&number).ok_or(Reason::NoEgressGateway)?;
        self.tunnelled(flight, node)
    }

    /// Whether it fits on the path to a node. A node's own address is not tunnelled: its path is narrower only if
    /// encrypted.
    fn fits(&self, prefix: &Prefix) -> bool {
        let (Some(node), Some(mtu)) = (self.nodes.get(&prefix.node), self.mtus.get(&prefix.node)) else {
            return true;
        };
        let encrypted = self.config.encrypt && (prefix.encrypt || (node.encrypt && !prefix.skip_tunnel));
        let narrow = !prefix.skip_tunnel || encrypted;
        !narrow || *mtu == 0 || self.whole.is_none_or(|bytes| bytes <= *mtu)
    }

    fn tunnelled(&self, flight: &Flight<'_>, node: &RemoteNode) -> Decision {
        if !self.config.overlay {
            return Err(Reason::NoDevice);
        }
        node.tunnel.ok_or(Reason::NoTunnelEndpoint)?;
        hop(flight, To::Overlay)
    }

    fn forward(&self, flight: &Flight<'_>, prefix: Prefix) -> Decision {
        if prefix.node != 0 && !self.fits(&prefix) {
            return Err(Reason::FragmentNeeded);
        }
        let node = self.nodes.get(&prefix.node).filter(|_| prefix.node != 0 && !prefix.skip_tunnel);
        let Some(node) = node.filter(|node| node.path == Path::Overlay) else {
            return hop(flight, To::Network);
        };
        self.tunnelled(flight, node)
    }

    fn overlay_sends(&mut self, now_ns: u64, packet: &Packet) -> Decision {
        let flight = &mut self.begin(now_ns, packet);
        if flight.to_group() {
            return Err(Reason::UnknownTarget);
        }
        flight.source_identity = HOST;
        self.locate(flight)?;
        self.own_packet(flight)?;
        let node = match flight.place {
            Place::Away(prefix) if prefix.node != 0 => self.nodes.get(&prefix.node),
            _ => None,
        };
        node.and_then(|node| node.tunnel).ok_or(Reason::NoTunnelEndpoint)?;
        to_kernel(flight)
    }

    /// A packet of the node, whose receiver is known.
    fn own_packet(&mut self, flight: &mut Flight<'_>) -> Result<(), Reason> {
        if flight.broken.is_some() {
            self.host_untracked(flight, Direction::Egress, flight.destination_identity)
        } else {
            self.host_sends(flight)
        }
    }

    fn uplink_sends(&mut self, now_ns: u64, packet: &Packet, forwarded: bool) -> Decision {
        if !self.config.encrypt && self.config.host_policy == 0 && !self.config.host_serves {
            return Ok((To::Kernel, packet.clone()));
        }
        let flight = &mut self.begin(now_ns, packet);
        if flight.to_group() {
            return to_kernel(flight);
        }
        if !forwarded && self.is_own(packet.source) {
            let receiver = self.prefix_of(packet.destination).unwrap_or_default();
            flight.destination_identity = receiver.identity;
            self.own_packet(flight)?;
        }
        if !self.config.encrypt {
            to_kernel(flight)
        } else if !self.must_encrypt(flight) {
            if self.would_leak(flight, forwarded) { Err(Reason::Unencrypted) } else { to_kernel(flight) }
        } else if self.config.wireguard {
            Ok((To::WireGuard, flight.written()))
        } else {
            Err(Reason::Unencrypted)
        }
    }

    /// What is meant for a pod that nobody has named; the node's own is no pod's.
    fn would_leak(&self, flight: &Flight<'_>, forwarded: bool) -> bool {
        let strict = self.prefix_of(flight.packet.destination).is_some_and(|prefix| prefix.strict);
        strict && (forwarded || !self.is_own(flight.packet.source))
    }

    /// By the prefix, or because it is the tunnel to such a node.
    fn must_encrypt(&self, flight: &Flight<'_>) -> bool {
        let Some(prefix) = self.prefix_of(flight.packet.destination) else { return false };
        let by_node = self.nodes.get(&prefix.node).is_some_and(|node| prefix.node != 0 && node.encrypt);
        let tunnel = flight.was.protocol == UDP
            && !flight.sight.is_error
            && flight.was.destination.1 == self.config.vxlan_port;
        prefix.encrypt || (by_node && (!prefix.skip_tunnel || tunnel))
    }
}
