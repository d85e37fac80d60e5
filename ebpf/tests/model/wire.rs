//! Packets of the model as frames.
//!
//! An error quotes the IP header and eight bytes, as RFC 792 has it. No router recomputes a checksum that it quotes, so
//! those within are left at zero.

use crate::support::{HOST_MAC, MAC_A};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, Ipv4Header, PacketBuilder, PacketBuilderStep};
use std::net::IpAddr;
use tombolo_model::{Packet, Payload, TcpFlags};

pub const ETHERNET: usize = 14;

fn headers(packet: &Packet) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(MAC_A, HOST_MAC);
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let mut header = Ipv4Header::new(0, packet.hops, IpNumber(0), source, destination).unwrap();
            header.dont_fragment = true;
            ethernet.ip(IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), packet.hops)
        }
        _ => panic!("mixed families: {packet}"),
    }
}

/// The frame that carries a packet.
pub fn frame(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(160);
    let (step, v4) = (headers(packet), packet.source.is_ipv4());
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
        Payload::Tcp { .. } | Payload::Other(_) => {}
    }
    bytes
}

/// A packet that carries what `payload` says, as long as it is on the wire.
pub fn packet(source: IpAddr, destination: IpAddr, hops: u8, payload: Payload) -> Packet {
    let mut packet = Packet { source, destination, hops, length: 0, payload };
    packet.length = u16::try_from(frame(&packet).len() - ETHERNET).unwrap();
    packet
}
