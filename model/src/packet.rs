//! A packet as far as the datapath looks into it, and the flow it belongs to.

use crate::outcome::Reason;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::BitOr;

/// An IP protocol number.
pub type Protocol = u8;
/// An address with a port. Of an ICMP echo the port is the identifier at the asking end, and 0 at the other.
pub type Socket = (IpAddr, u16);

pub(crate) const ICMP: Protocol = 1;
pub(crate) const TCP: Protocol = 6;
pub(crate) const UDP: Protocol = 17;
pub(crate) const ICMPV6: Protocol = 58;
pub(crate) const SCTP: Protocol = 132;

/// The flags of a TCP header (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// The sender is done.
    pub const FIN: Self = Self(0x01);
    /// Opens, or agrees to open.
    pub const SYN: Self = Self(0x02);
    /// Ends it at once.
    pub const RST: Self = Self(0x04);
    /// Acknowledges.
    pub const ACK: Self = Self(0x10);

    /// Whether any of these is set.
    #[must_use]
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    /// Whether it asks for a new connection.
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0) == Self::SYN.0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::SYN, "S"), (Self::FIN, "F"), (Self::RST, "R"), (Self::ACK, "A")];
        names.into_iter().filter(|(flag, _)| self.any(*flag)).try_for_each(|(_, name)| f.write_str(name))
    }
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's address, of the same family.
    pub destination: IpAddr,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Bytes, with the IP header.
    pub length: u16,
    /// Which part of a datagram it is.
    pub fragment: Fragment,
    /// The frontend that its IP header names, as nodes do for each other (`ebpf/bpf/dsr.h`).
    pub frontend: Option<Socket>,
    /// What is in it; of a later fragment, what the datagram's first has.
    pub payload: Payload,
}

/// Which part of a datagram a packet is, with the datagram's identification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    #[default]
    Whole,
    /// The first part, with the transport header.
    First(u32),
    /// Another, without.
    Later(u32),
}

/// What tells datagrams apart: ends, identification and protocol.
pub type Datagram = (IpAddr, IpAddr, u32, Protocol);
/// The ports of datagrams whose first fragment was seen. The programs' table forgets the least recently used.
pub type Fragments = BTreeMap<Datagram, (u16, u16)>;

/// What an IP packet carries. ICMP is that of the packet's family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// TCP.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// The flags.
        flags: TcpFlags,
    },
    /// UDP.
    Udp {
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// SCTP. Its ports stay: the checksum covers them.
    Sctp {
        /// Source and destination port.
        ports: (u16, u16),
    },
    /// An ICMP echo.
    Echo {
        /// The identifier.
        id: u16,
        /// Request, or reply.
        request: bool,
    },
    /// An ICMP error, and the packet it quotes.
    Error(Box<Packet>),
    /// A protocol that is not tracked.
    Other(Protocol),
    /// It cannot be read.
    Broken {
        /// As far as that is known; 0: it is not.
        protocol: Protocol,
        /// Why not.
        reason: Reason,
        /// It is an ICMP error, and what it quotes cannot be read.
        error: bool,
    },
}

/// A flow's five-tuple, in the direction of some packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: Socket,
    /// To whom.
    pub destination: Socket,
    /// The protocol.
    pub protocol: Protocol,
}

impl Tuple {
    /// The same flow in the other direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, protocol: self.protocol }
    }

    /// Whether it is IPv4.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.source.0.is_ipv4()
    }
}

/// What the programs take a packet for.
pub(crate) struct Reading {
    /// The flow. An error's is that of the packet it quotes, turned round: as if it were an answer to it.
    pub(crate) tuple: Tuple,
    /// Whether it is an ICMP error.
    pub(crate) is_error: bool,
    /// No flags but of TCP itself.
    pub(crate) flags: TcpFlags,
    /// Why it cannot be tracked.
    pub(crate) broken: Option<Reason>,
}

impl Packet {
    /// The protocol that the IP header names.
    #[must_use]
    pub const fn protocol(&self) -> Protocol {
        match self.payload {
            Payload::Tcp { .. } => TCP,
            Payload::Udp { .. } => UDP,
            Payload::Sctp { .. } => SCTP,
            Payload::Echo { .. } | Payload::Error(_) if self.source.is_ipv4() => ICMP,
            Payload::Echo { .. } | Payload::Error(_) => ICMPV6,
            Payload::Other(protocol) | Payload::Broken { protocol, .. } => protocol,
        }
    }

    /// Ports of what can be a flow.
    const fn ports(&self) -> Option<(u16, u16)> {
        match self.payload {
            Payload::Tcp { ports, .. } | Payload::Udp { ports } | Payload::Sctp { ports } => Some(ports),
            Payload::Echo { id, request: true } => Some((id, 0)),
            Payload::Echo { id, request: false } => Some((0, id)),
            Payload::Error(_) | Payload::Other(_) | Payload::Broken { .. } => None,
        }
    }

    fn tuple_with(&self, (source, destination): (u16, u16)) -> Tuple {
        Tuple {
            source: (self.source, source),
            destination: (self.destination, destination),
            protocol: self.protocol(),
        }
    }

    fn tuple(&self) -> Tuple {
        self.tuple_with(self.ports().unwrap_or_default())
    }

    const fn datagram(&self, id: u32) -> Datagram {
        (self.source, self.destination, id, self.protocol())
    }

    /// The flow that the packet is taken for: of an error that which it quotes, turned round.
    #[must_use]
    pub fn flow(&self, fragments: &Fragments) -> Tuple {
        match self.fragment {
            Fragment::Later(id) => {
                self.tuple_with(fragments.get(&self.datagram(id)).copied().unwrap_or_default())
            }
            Fragment::First(_) | Fragment::Whole => self.read_headers().tuple,
        }
    }

    /// Reads the packet. Ports of later fragments come from the first.
    pub(crate) fn read(&self, fragments: &mut Fragments) -> Reading {
        match (self.fragment, self.ports()) {
            (Fragment::Later(id), _) => {
                let ports = fragments.get(&self.datagram(id)).copied();
                let broken = ports.is_none().then_some(Reason::FragmentNotFound);
                let tuple = self.tuple_with(ports.unwrap_or_default());
                return Reading { tuple, is_error: false, flags: TcpFlags(0), broken };
            }
            (Fragment::First(id), Some(ports)) => drop(fragments.insert(self.datagram(id), ports)),
            (Fragment::First(_) | Fragment::Whole, _) => {}
        }
        self.read_headers()
    }

    fn read_headers(&self) -> Reading {
        let plain = |broken| Reading { tuple: self.tuple(), is_error: false, flags: TcpFlags(0), broken };
        match &self.payload {
            Payload::Tcp { flags, .. } => Reading { flags: *flags, ..plain(None) },
            Payload::Udp { .. } | Payload::Sctp { .. } | Payload::Echo { .. } => plain(None),
            Payload::Other(_) => plain(Some(Reason::UnknownL4)),
            Payload::Broken { reason, error, .. } => Reading { is_error: *error, ..plain(Some(*reason)) },
            // Whom the error is for must have sent the packet it quotes.
            Payload::Error(quoted) if quoted.source != self.destination => {
                Reading { is_error: true, ..plain(Some(Reason::Invalid)) }
            }
            Payload::Error(quoted) => Reading {
                tuple: quoted.tuple().reversed(),
                is_error: true,
                flags: TcpFlags(0),
                broken: quoted.ports().is_none().then_some(Reason::UnknownL4),
            },
        }
    }

    /// The packet with the name of a frontend in its header, or without.
    pub(crate) fn naming(self, frontend: Option<Socket>) -> Self {
        let room = |named: Option<Socket>| match named {
            None => 0,
            Some((address, _)) if address.is_ipv4() => 8,
            Some(_) => 24,
        };
        let length = self.length.saturating_sub(room(self.frontend)).saturating_add(room(frontend));
        Self { length, frontend, ..self }
    }

    /// The packet after a translation of its flow.
    pub(crate) fn translated(&self, was: &Tuple, becomes: &Tuple) -> Self {
        let mut packet = self.clone();
        if matches!(self.fragment, Fragment::Later(_)) {
            (packet.source, packet.destination) = (becomes.source.0, becomes.destination.0);
        } else if let Payload::Error(quoted) = &mut packet.payload {
            // A router that speaks of the flow keeps its address.
            if self.source == was.source.0 {
                packet.source = becomes.source.0;
            }
            packet.destination = becomes.destination.0;
            quoted.set(&becomes.reversed());
        } else {
            packet.set(becomes);
        }
        packet
    }

    fn set(&mut self, tuple: &Tuple) {
        (self.source, self.destination) = (tuple.source.0, tuple.destination.0);
        let now = (tuple.source.1, tuple.destination.1);
        match &mut self.payload {
            Payload::Tcp { ports, .. } | Payload::Udp { ports } | Payload::Sctp { ports } => *ports = now,
            Payload::Echo { id, request } => *id = if *request { now.0 } else { now.1 },
            Payload::Error(_) | Payload::Other(_) | Payload::Broken { .. } => {}
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, .. } = self;
        match &self.payload {
            Payload::Tcp { ports: (from, to), flags } => {
                write!(f, "TCP[{flags}] {source} port {from} -> {destination} port {to}")?;
            }
            Payload::Udp { ports: (from, to) } => {
                write!(f, "UDP {source} port {from} -> {destination} port {to}")?;
            }
            Payload::Sctp { ports: (from, to) } => {
                write!(f, "SCTP {source} port {from} -> {destination} port {to}")?;
            }
            Payload::Echo { id, request } => {
                let what = if *request { "request" } else { "reply" };
                write!(f, "echo {what} {id} {source} -> {destination}")?;
            }
            Payload::Error(quoted) => write!(f, "ICMP error {source} -> {destination} about [{quoted}]")?,
            Payload::Other(protocol) => write!(f, "protocol {protocol} {source} -> {destination}")?,
            Payload::Broken { .. } => write!(f, "unreadable {source} -> {destination}")?,
        }
        if let Some((address, port)) = self.frontend {
            write!(f, " (of {address} port {port})")?;
        }
        match self.fragment {
            Fragment::Whole => {}
            Fragment::First(id) => write!(f, " (first fragment of {id})")?,
            Fragment::Later(id) => write!(f, " (later fragment of {id})")?,
        }
        if self.hops == 64 { Ok(()) } else { write!(f, " ({} hops)", self.hops) }
    }
}
