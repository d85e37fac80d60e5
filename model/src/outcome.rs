//! What a program decides.

use crate::packet::Packet;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on.
    Pass {
        /// Where.
        to: To,
        /// What it looks like then.
        packet: Packet,
    },
    /// It is dropped.
    Drop(Reason),
}

/// Where a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    /// The kernel goes on with it (`TC_ACT_OK`): the stack behind an ingress hook, the device behind an egress hook.
    Kernel,
    /// Into a pod of this node, by the ifindex of its host end.
    Pod(u32),
    /// Into the VXLAN device, with the tunnel's key set.
    Overlay,
    /// Along the routing table.
    Network,
    /// Into the WireGuard device.
    WireGuard,
}

/// Why a packet is dropped: Cilium's numbers (`TB_DROP_*` in `ebpf/bpf/abi.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// The source is not the sender's.
    InvalidSource = 132,
    /// No rule allows it.
    Policy = 133,
    /// An ICMP error for somebody who did not send what it quotes.
    Invalid = 134,
    /// A header that is cut short.
    InvalidHeader = 135,
    /// Larger than its path, and nobody may cut it.
    FragmentNeeded = 136,
    /// No IP where only that may come.
    UnknownL3 = 139,
    /// A protocol that is not tracked.
    UnknownL4 = 142,
    /// Multicast or broadcast.
    UnknownTarget = 150,
    /// Out of the tunnel for an address that is not here.
    Unroutable = 151,
    /// Extension headers that are cut short, or too many.
    InvalidExtension = 156,
    /// No backend, or no such port.
    NoService = 158,
    /// The tunnel endpoint of the node is not known.
    NoTunnelEndpoint = 160,
    /// An ICMP error of no known flow.
    UnknownCt = 163,
    /// No port, or no mapping, for source NAT.
    NatNoMapping = 167,
    /// A port would have to be translated that cannot be.
    NatProtocol = 168,
    /// Tunnel packets from where none may come.
    EncapProhibited = 170,
    /// Out of the tunnel, from nobody known.
    UnknownSender = 172,
    /// A fragment whose datagram's first was not seen.
    FragmentNotFound = 175,
    /// ICMPv6 between neighbours where it does not belong.
    ForbiddenIcmp6 = 176,
    /// The service takes others alone.
    NotInRange = 177,
    /// A rule denies it.
    PolicyDeny = 181,
    /// An egress policy without a gateway.
    NoEgressGateway = 194,
    /// It would leave in clear.
    Unencrypted = 195,
    /// The hop limit is used up on a translated packet.
    TtlExceeded = 196,
    /// The node's rows are not complete.
    HostNotReady = 202,
    /// The pod's rows are not complete.
    EndpointNotReady = 203,
    /// A gateway without an address of the family.
    NoEgressIp = 204,
    /// There is no VXLAN device.
    NoDevice = 206,
}

impl Reason {
    /// The number that events and counters carry.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}
