//! A packet on its way through a program: what it is, and what has been decided so far.

use crate::ct::Sight;
use crate::node::Prefix;
use crate::outcome::Reason;
use crate::packet::{Fragment, Packet, Reading, Socket, TCP, TcpFlags, Tuple, UDP};
use std::net::IpAddr;

/// Whether an address is that of many, so that nobody sends under it.
pub(crate) fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_multicast(),
    }
}

/// Where a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not on this node; what is known of the prefix.
    Away(Prefix),
    /// A pod of this node, by ifindex.
    Pod(u32),
    /// The node itself.
    Host,
}

/// Whose address of this node a packet from the network claims to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LocalSource {
    Pod,
    Host,
}

pub(crate) struct Flight<'a> {
    pub(crate) packet: &'a Packet,
    pub(crate) sight: Sight,
    /// The flow as the packet has it.
    pub(crate) was: Tuple,
    /// The flow after translation.
    pub(crate) becomes: Tuple,
    /// Why the packet cannot be tracked.
    pub(crate) broken: Option<Reason>,
    /// The frontend, if it is translated to or from one.
    pub(crate) frontend: Option<Socket>,
    /// The number of this packet's translation, either way.
    pub(crate) rev_nat: u32,
    /// What the receiving pod's entry must remember: it is translated at the uplink.
    pub(crate) in_rev_nat: u32,
    pub(crate) source_identity: u32,
    pub(crate) destination_identity: u32,
    pub(crate) place: Place,
    pub(crate) reply: bool,
    /// An entry was made for it.
    pub(crate) fresh: bool,
    pub(crate) loopback: bool,
    /// The node's stack led the flow here.
    pub(crate) by_stack: bool,
    pub(crate) local_source: Option<LocalSource>,
    /// It came from the network, and its sender is no part of the mesh.
    pub(crate) outsider: bool,
    /// The frontend that the packet names.
    pub(crate) named: Option<Socket>,
    /// The backend's node answers this flow's client.
    pub(crate) one_sided: bool,
    /// An error of no known flow, led to the backend that all nodes would choose.
    pub(crate) guessed: bool,
    /// The packet names the frontend when it leaves.
    pub(crate) naming: bool,
}

impl<'a> Flight<'a> {
    pub(crate) fn new(now_ns: u64, packet: &'a Packet, reading: Reading) -> Self {
        let sight = Sight {
            now_ns,
            protocol: reading.tuple.protocol,
            flags: reading.flags,
            is_error: reading.is_error,
            bytes: u64::from(packet.length),
        };
        Self {
            packet,
            sight,
            was: reading.tuple,
            becomes: reading.tuple,
            broken: reading.broken,
            frontend: None,
            rev_nat: 0,
            in_rev_nat: 0,
            source_identity: 0,
            destination_identity: 0,
            place: Place::Away(Prefix::default()),
            reply: false,
            fresh: false,
            loopback: false,
            by_stack: false,
            local_source: None,
            outsider: false,
            named: packet.frontend,
            one_sided: false,
            guessed: false,
            naming: false,
        }
    }

    /// The packet as it was, unless it cannot be tracked.
    pub(crate) fn whole(&self) -> Result<(), Reason> {
        self.broken.map_or(Ok(()), Err)
    }

    pub(crate) fn translated(&self) -> bool {
        self.was != self.becomes
    }

    /// The packet after translation.
    pub(crate) fn written(&self) -> Packet {
        if self.translated() { self.packet.translated(&self.was, &self.becomes) } else { self.packet.clone() }
    }

    /// Whether it may be the first that the backend's node sees of its flow, so that it names the frontend.
    pub(crate) fn may_open(&self) -> bool {
        let first = self.sight.protocol != TCP || self.sight.flags.opens();
        first && !self.sight.is_error && !matches!(self.packet.fragment, Fragment::Later(_))
    }

    /// Whether a packet of this kind would have named a frontend.
    pub(crate) fn could_name(&self) -> bool {
        let later = matches!(self.packet.fragment, Fragment::Later(_));
        !later && (self.sight.protocol != TCP || self.sight.flags.any(TcpFlags::SYN))
    }

    pub(crate) fn to_group(&self) -> bool {
        is_group(self.packet.destination)
    }

    /// Whether it would be read as a tunnel packet where it goes: whoever writes those says any identity he likes.
    pub(crate) fn to_tunnel(&self, vxlan_port: u16) -> bool {
        self.was.protocol == UDP && !self.sight.is_error && self.becomes.destination.1 == vxlan_port
    }
}
