//! Packets of the model as frames.
//!
//! An error quotes the IP header and eight bytes, as RFC 792 has it. No router recomputes a checksum that it quotes, so
//! those within are left at zero.

use crate::support::{HOST_MAC, MAC_A};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep,
};
use std::net::IpAddr;
use tombolo_model::{Fragment, Packet, Payload, Socket, TcpFlags};

pub const ETHERNET: usize = 14;

fn headers(packet: &Packet) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(MAC_A, HOST_MAC);
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let mut header = Ipv4Header::new(0, packet.hops, IpNumber(0), source, destination).unwrap();
            let (id, more, offset) = part(packet.fragment);
            header.identification = u16::try_from(id).unwrap();
            (header.more_fragments, header.fragment_offset) = (more, offset);
            header.dont_fragment = packet.fragment == Fragment::Whole;
            if let Some(named) = packet.frontend {
                header.options = dsr4(named).into();
            }
            ethernet.ip(IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                source: source.octets(),
                destination: destination.octets(),
                hop_limit: packet.hops,
                ..Ipv6Header::default()
            };
            let (id, more, offset) = part(packet.fragment);
            let fragment = (packet.fragment != Fragment::Whole)
                .then(|| Ipv6FragmentHeader::new(IpNumber(0), offset, more, id));
            let destination_options = packet.frontend.map(dsr6);
            let extensions = Ipv6Extensions { destination_options, fragment, ..Ipv6Extensions::default() };
            ethernet.ip(IpHeaders::Ipv6(header, extensions))
        }
        _ => panic!("mixed families: {packet}"),
    }
}

/// The option that names a frontend to another node: port and address with their lowest byte first.
fn dsr4((address, port): Socket) -> [u8; 8] {
    let IpAddr::V4(address) = address else { panic!("{address} in IPv4") };
    let [a, b, c, d] = address.octets();
    let [high, low] = port.to_be_bytes();
    [0x9a, 8, low, high, d, c, b, a]
}

/// The same of IPv6: a destination option.
fn dsr6((address, port): Socket) -> Ipv6RawExtHeader {
    let IpAddr::V6(address) = address else { panic!("{address} in IPv6") };
    let option = [&[0x1b, 20][..], &address.octets(), &port.to_be_bytes(), &[0, 0]].concat();
    Ipv6RawExtHeader::new_raw(IpNumber(0), &option).unwrap()
}

/// Identification, whether more follow, and offset.
fn part(fragment: Fragment) -> (u32, bool, IpFragOffset) {
    let offset = |eights| IpFragOffset::try_new(eights).unwrap();
    match fragment {
        Fragment::Whole => (0, false, offset(0)),
        Fragment::First(id) => (id, true, offset(0)),
        Fragment::Later(id) => (id, false, offset(4)),
    }
}

/// The frame that carries a packet.
pub fn frame(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    let (step, v4) = (headers(packet), packet.source.is_ipv4());
    if let Fragment::Later(_) = packet.fragment {
        step.write(&mut bytes, IpNumber(packet.protocol()), &[5; 24]).unwrap();
        return bytes;
    }
    match &packet.payload {
        Payload::Tcp { ports, flags } => {
            let mut step = step.tcp(ports.0, ports.1, 1000, 64_000);
            step = if flags.any(TcpFlags::SYN) { step.syn() } else { step };
            step = if flags.any(TcpFlags::ACK) { step.ack(1) } else { step };
            step = if flags.any(TcpFlags::FIN) { step.fin() } else { step };
            step = if flags.any(TcpFlags::RST) { step.rst() } else { step };
            step.write(&mut bytes, &[]).unwrap();
        }
        Payload::Udp { ports } => step.udp(ports.0, ports.1).write(&mut bytes, &[7; 9]).unwrap(),
        // The tag and the checksum are nobody's business here.
        Payload::Sctp { ports } => {
            let [a, b] = ports.0.to_be_bytes();
            let [c, d] = ports.1.to_be_bytes();
            let mut header = vec![a, b, c, d];
            header.resize(24, 9);
            step.write(&mut bytes, IpNumber(packet.protocol()), &header).unwrap();
        }
        Payload::Echo { id, request } => match (v4, request) {
            (true, true) => step.icmpv4_echo_request(*id, 1).write(&mut bytes, &[1; 16]).unwrap(),
            (true, false) => step.icmpv4_echo_reply(*id, 1).write(&mut bytes, &[1; 16]).unwrap(),
            (false, true) => step.icmpv6_echo_request(*id, 1).write(&mut bytes, &[1; 16]).unwrap(),
            (false, false) => step.icmpv6_echo_reply(*id, 1).write(&mut bytes, &[1; 16]).unwrap(),
        },
        Payload::Error(quoted) => {
            let quote = quote(quoted);
            if v4 {
                let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
                step.icmpv4(kind).write(&mut bytes, &quote).unwrap();
            } else {
                let kind = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port);
                step.icmpv6(kind).write(&mut bytes, &quote).unwrap();
            }
        }
        Payload::Broken { .. } => panic!("nothing makes such: {packet}"),
        Payload::Other(protocol) => step.write(&mut bytes, IpNumber(*protocol), &[3; 24]).unwrap(),
    }
    bytes
}

fn quote(packet: &Packet) -> Vec<u8> {
    let mut bytes = frame(packet).split_off(ETHERNET);
    let header = if packet.source.is_ipv4() { 20 } else { 40 };
    bytes.truncate(header + 8);
    match packet.payload {
        Payload::Udp { .. } => bytes[header + 6..].fill(0),
        Payload::Echo { .. } | Payload::Error(_) => bytes[header + 2..header + 4].fill(0),
        Payload::Tcp { .. } | Payload::Sctp { .. } | Payload::Other(_) | Payload::Broken { .. } => {}
    }
    bytes
}

/// A whole packet that carries what `payload` says.
pub fn packet(source: IpAddr, destination: IpAddr, hops: u8, payload: Payload) -> Packet {
    measured(Packet {
        source,
        destination,
        hops,
        length: 0,
        fragment: Fragment::Whole,
        frontend: None,
        payload,
    })
}

/// As long as it is on the wire.
pub fn measured(mut packet: Packet) -> Packet {
    packet.length = u16::try_from(frame(&packet).len() - ETHERNET).unwrap();
    packet
}

/// Whether the frame is what a service that takes nothing has answered: an ICMP port unreachable, or a TCP reset, behind an
/// IP header without options.
pub fn is_refusal(frame: &[u8]) -> bool {
    let at = |offset: usize| frame.get(ETHERNET + offset).copied();
    match at(0).map(|first| first >> 4) {
        Some(4) if at(9) == Some(6) => at(33).is_some_and(|flags| flags & 4 != 0),
        Some(6) if at(6) == Some(6) => at(53).is_some_and(|flags| flags & 4 != 0),
        Some(4) => (at(9), at(20), at(21)) == (Some(1), Some(3), Some(3)),
        Some(6) => (at(6), at(40), at(41)) == (Some(58), Some(1), Some(4)),
        _ => false,
    }
}
