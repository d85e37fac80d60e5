//! From bytes to a [`Packet`] (`ebpf/bpf/parse.h`): for packets that were captured, not made up. Bounded, and each failure
//! has the reason for which the programs would drop it.

use crate::outcome::Reason;
use crate::packet::{Fragment, ICMP, ICMPV6, Packet, Payload, Protocol, SCTP, Socket, TCP, TcpFlags, UDP};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;
/// Extension headers that are looked through.
const EXTENSIONS: usize = 6;

/// What came in at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// No IP: ARP, or a VLAN's.
    Foreign,
    /// An IP packet.
    Ip(Ip),
}

/// An IP packet as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// As far as it can be read; what cannot is [`Payload::Broken`].
    pub packet: Packet,
    /// Neighbour discovery or a listener's report: no policy judges it.
    pub link: Option<LinkMessage>,
    /// The largest packet that it becomes on the wire, where no router may cut it.
    pub whole: Option<u32>,
}

/// ICMPv6 between neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMessage {
    /// Neighbour or router discovery (RFC 4861), of this type.
    Discovery(u8),
    /// Multicast listener discovery (RFC 2710, RFC 3810).
    Listener,
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    bytes(data, at).map(u16::from_be_bytes)
}

/// What the IP header says.
struct Header {
    source: IpAddr,
    destination: IpAddr,
    hops: u8,
    length: u32,
    protocol: Protocol,
    /// Where the transport header begins.
    payload: usize,
    fragment: Fragment,
    whole: bool,
    /// The frontend that it names.
    frontend: Option<Socket>,
    fault: Option<Reason>,
}

/// The frontend that the first option of an IPv4 header names (`ebpf/bpf/dsr.h`): port and address, lowest byte first.
fn named4(data: &[u8]) -> Option<Socket> {
    let [kind, length, p0, p1, a0, a1, a2, a3] = bytes::<8>(data, 20)?;
    let named = (Ipv4Addr::new(a3, a2, a1, a0).into(), u16::from_le_bytes([p0, p1]));
    (kind == 0x9a && length == 8).then_some(named)
}

/// The same of the first of the destination options right behind an IPv6 header.
fn named6(data: &[u8]) -> Option<Socket> {
    let [_, words, kind, length] = bytes::<4>(data, 40)?;
    let named = (Ipv6Addr::from(bytes::<16>(data, 44)?).into(), u16_at(data, 60)?);
    bytes::<2>(data, 62)?;
    (words == 2 && kind == 0x1b && length == 20).then_some(named)
}

impl Header {
    fn unreadable(ipv4: bool) -> Self {
        let nobody: IpAddr = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self {
            source: nobody,
            destination: nobody,
            hops: 0,
            length: 0,
            protocol: 0,
            payload: 0,
            fragment: Fragment::Whole,
            whole: false,
            frontend: None,
            fault: Some(Reason::Invalid),
        }
    }

    fn v4(data: &[u8]) -> Option<Self> {
        let fixed: [u8; 20] = bytes(data, 0)?;
        let [first, _, _, _, _, _, _, _, hops, protocol, ..] = fixed;
        let words = usize::from(first & 0xf);
        if words < 5 || first >> 4 != 4 {
            return None;
        }
        let part = u16_at(data, 6)?;
        let id = u32::from(u16_at(data, 4)?);
        Some(Self {
            source: Ipv4Addr::from(bytes::<4>(data, 12)?).into(),
            destination: Ipv4Addr::from(bytes::<4>(data, 16)?).into(),
            hops,
            length: u16_at(data, 2)?.into(),
            protocol,
            payload: words * 4,
            fragment: match part {
                _ if part & 0x1fff != 0 => Fragment::Later(id),
                _ if part & 0x2000 != 0 => Fragment::First(id),
                _ => Fragment::Whole,
            },
            whole: part & 0x4000 != 0,
            frontend: if words >= 7 { named4(data) } else { None },
            fault: None,
        })
    }

    fn v6(data: &[u8]) -> Option<Self> {
        let fixed: [u8; 8] = bytes(data, 0)?;
        let [first, _, _, _, _, _, next, hops] = fixed;
        if first >> 4 != 6 {
            return None;
        }
        let mut header = Self {
            source: Ipv6Addr::from(bytes::<16>(data, 8)?).into(),
            destination: Ipv6Addr::from(bytes::<16>(data, 24)?).into(),
            hops,
            length: u32::from(u16_at(data, 4)?) + 40,
            protocol: 0,
            payload: 40,
            fragment: Fragment::Whole,
            whole: true,
            frontend: if next == 60 { named6(data) } else { None },
            fault: None,
        };
        header.walk(data, next);
        Some(header)
    }

    /// Looks for the transport header behind extension headers. As the programs do, it goes on behind a later fragment's
    /// header, though that is payload.
    fn walk(&mut self, data: &[u8], mut next: u8) {
        for _ in 0..EXTENSIONS {
            if !matches!(next, 0 | 43 | 44 | 51 | 60) {
                self.protocol = next;
                return;
            }
            let Some([following, units, h2, h3, id @ ..]) = bytes::<8>(data, self.payload) else { break };
            let units = usize::from(units);
            self.payload += match next {
                44 => {
                    let part = u16::from_be_bytes([h2, h3]);
                    let id = u32::from_be_bytes(id);
                    if part >> 3 != 0 {
                        self.fragment = Fragment::Later(id);
                    } else if part & 1 != 0 {
                        self.fragment = Fragment::First(id);
                    }
                    8
                }
                51 => (units + 2) * 4,
                _ => (units + 1) * 8,
            };
            next = following;
        }
        self.fault = Some(Reason::InvalidExtension);
    }
}

/// What the transport header says.
struct Read {
    payload: Payload,
    link: Option<LinkMessage>,
    /// Bytes of the header, as far as they count for segments.
    header: u32,
}

impl Read {
    const fn of(payload: Payload) -> Self {
        Self { payload, link: None, header: 0 }
    }

    const fn broken(protocol: Protocol, reason: Reason, error: bool) -> Self {
        Self::of(Payload::Broken { protocol, reason, error })
    }
}

/// A fragment without transport header: its protocol is all there is.
const fn of_protocol(protocol: Protocol, ipv4: bool) -> Payload {
    match protocol {
        TCP => Payload::Tcp { ports: (0, 0), flags: TcpFlags(0) },
        UDP => Payload::Udp { ports: (0, 0) },
        SCTP => Payload::Sctp { ports: (0, 0) },
        ICMP if ipv4 => Payload::Echo { id: 0, request: true },
        ICMPV6 if !ipv4 => Payload::Echo { id: 0, request: true },
        other => Payload::Other(other),
    }
}

fn transport(header: &Header, data: &[u8]) -> Read {
    let (ipv4, protocol) = (header.source.is_ipv4(), header.protocol);
    if let Some(reason) = header.fault {
        return Read::broken(protocol, reason, false);
    }
    if matches!(header.fragment, Fragment::Later(_)) {
        return Read::of(of_protocol(protocol, ipv4));
    }
    let rest = data.get(header.payload..).unwrap_or_default();
    let ports = || Some((u16_at(rest, 0)?, u16_at(rest, 2)?));
    let cut = Read::broken(protocol, Reason::InvalidHeader, false);
    match protocol {
        TCP => match (ports(), bytes::<2>(rest, 12)) {
            (Some(ports), Some([words, flags])) => {
                let payload = Payload::Tcp { ports, flags: TcpFlags(flags) };
                Read { header: u32::from(words >> 4) * 4, ..Read::of(payload) }
            }
            _ => cut,
        },
        UDP => match (ports(), bytes::<8>(rest, 0)) {
            (Some(ports), Some(_)) => Read { header: 8, ..Read::of(Payload::Udp { ports }) },
            _ => cut,
        },
        SCTP => match (ports(), bytes::<12>(rest, 0)) {
            (Some(ports), Some(_)) => Read { header: 12, ..Read::of(Payload::Sctp { ports }) },
            _ => cut,
        },
        ICMP if ipv4 => message(header, rest),
        ICMPV6 if !ipv4 => message(header, rest),
        other => Read::of(Payload::Other(other)),
    }
}

/// An echo of the family.
fn echo(ipv4: bool, kind: u8, id: u16) -> Option<Payload> {
    match (ipv4, kind) {
        (true, 8) | (false, 128) => Some(Payload::Echo { id, request: true }),
        (true, 0) | (false, 129) => Some(Payload::Echo { id, request: false }),
        _ => None,
    }
}

fn message(header: &Header, rest: &[u8]) -> Read {
    let (ipv4, protocol) = (header.source.is_ipv4(), header.protocol);
    let Some([kind, code, _, _, id @ .., _, _]) = bytes::<8>(rest, 0) else {
        return Read::broken(protocol, Reason::InvalidHeader, false);
    };
    let error = if ipv4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) };
    if error {
        return quoted(header, rest.get(8..).unwrap_or_default())
            .map_or(Read::broken(protocol, Reason::InvalidHeader, true), |quoted| {
                Read::of(Payload::Error(Box::new(quoted)))
            });
    }
    if !ipv4 && matches!(kind, 133..=137) {
        // A hop limit of 255 proves that no router forwarded it.
        if header.hops != 255 || code != 0 || header.fragment != Fragment::Whole {
            return Read::broken(protocol, Reason::ForbiddenIcmp6, false);
        }
        let link = Some(LinkMessage::Discovery(kind));
        return Read { link, ..Read::of(Payload::Other(protocol)) };
    }
    if !ipv4 && matches!(kind, 130..=132 | 143) {
        return Read { link: Some(LinkMessage::Listener), ..Read::of(Payload::Other(protocol)) };
    }
    Read::of(echo(ipv4, kind, u16::from_be_bytes(id)).unwrap_or(Payload::Other(protocol)))
}

/// The packet that an error speaks of; `None`: too little of it.
fn quoted(outer: &Header, data: &[u8]) -> Option<Packet> {
    let ipv4 = outer.source.is_ipv4();
    let (source, destination, mut protocol, mut at): (IpAddr, IpAddr, u8, usize) = if ipv4 {
        let fixed: [u8; 20] = bytes(data, 0)?;
        let words = usize::from(fixed.first()? & 0xf);
        let ends = (Ipv4Addr::from(bytes::<4>(data, 12)?), Ipv4Addr::from(bytes::<4>(data, 16)?));
        let protocol = *fixed.get(9)?;
        (words >= 5).then_some((ends.0.into(), ends.1.into(), protocol, words * 4))?
    } else {
        let ends = (Ipv6Addr::from(bytes::<16>(data, 8)?), Ipv6Addr::from(bytes::<16>(data, 24)?));
        (ends.0.into(), ends.1.into(), *data.get(6)?, 40)
    };
    if !ipv4 && protocol == 44 {
        protocol = *bytes::<8>(data, at)?.first()?;
        at += 8;
    }
    let payload = if source == outer.destination {
        let l4: [u8; 8] = bytes(data, at)?;
        let [kind, _, _, _, id @ .., _, _] = l4;
        let ports = (u16_at(&l4, 0)?, u16_at(&l4, 2)?);
        let known = match protocol {
            TCP => Some(Payload::Tcp { ports, flags: TcpFlags(0) }),
            UDP => Some(Payload::Udp { ports }),
            SCTP => Some(Payload::Sctp { ports }),
            ICMP if ipv4 => echo(ipv4, kind, u16::from_be_bytes(id)),
            ICMPV6 if !ipv4 => echo(ipv4, kind, u16::from_be_bytes(id)),
            _ => None,
        };
        known.unwrap_or(Payload::Other(protocol))
    } else {
        // Whatever else it is, it is for somebody else.
        Payload::Other(protocol)
    };
    let fragment = Fragment::Whole;
    Some(Packet { source, destination, hops: 64, length: 0, fragment, frontend: None, payload })
}

impl Frame {
    /// Reads an Ethernet frame. `segment`: bytes of each segment that the kernel has not cut yet (GSO), else 0.
    #[must_use]
    pub fn read(frame: &[u8], segment: u32) -> Self {
        let data = frame.get(ETHERNET..).unwrap_or_default();
        match u16_at(frame, 12) {
            Some(0x0800) => Self::ip(Header::v4(data).unwrap_or(Header::unreadable(true)), data, segment),
            Some(0x86dd) => Self::ip(Header::v6(data).unwrap_or(Header::unreadable(false)), data, segment),
            _ => Self::Foreign,
        }
    }

    fn ip(header: Header, data: &[u8], segment: u32) -> Self {
        let Read { payload, link, header: transport } = transport(&header, data);
        let largest = match segment {
            0 => header.length,
            // Extension headers are counted with the IP header.
            _ => u32::try_from(header.payload).unwrap_or(u32::MAX).saturating_add(transport + segment),
        };
        let packet = Packet {
            source: header.source,
            destination: header.destination,
            hops: header.hops,
            length: u16::try_from(header.length).unwrap_or(u16::MAX),
            fragment: header.fragment,
            frontend: header.frontend,
            payload,
        };
        Self::Ip(Ip { packet, link, whole: header.whole.then_some(largest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 frame with this much behind its header.
    fn v4(protocol: u8, fragment: u16, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0_u8; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(20 + rest.len()).unwrap().to_be_bytes());
        frame.extend([0, 7]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(rest);
        frame
    }

    fn packet(frame: &[u8]) -> Packet {
        let Frame::Ip(Ip { packet, .. }) = Frame::read(frame, 0) else { panic!("{frame:?}") };
        packet
    }

    #[test]
    fn what_is_cut_or_unknown_says_why() {
        let reason = |frame: &[u8]| match packet(frame).payload {
            Payload::Broken { reason, .. } => Some(reason),
            _ => None,
        };
        assert_eq!(reason(&v4(6, 0, &[0; 20])), None);
        assert_eq!(reason(&v4(6, 0, &[0; 13])), Some(Reason::InvalidHeader));
        assert_eq!(reason(&v4(17, 0, &[0; 7])), Some(Reason::InvalidHeader));
        assert_eq!(reason(&v4(1, 0, &[3, 0, 0, 0, 0, 0, 0, 0, 0x45])), Some(Reason::InvalidHeader));
        assert_eq!(reason(&v4(6, 0, &[])[..30]), Some(Reason::Invalid), "half a header");
        assert_eq!(packet(&v4(47, 0, &[0; 20])).payload, Payload::Other(47));
        assert_eq!(packet(&v4(6, 0x2001, &[1; 3])).fragment, Fragment::Later(7));
        let mut v6 = [&[0; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 0, 64], &[0; 32]].concat();
        v6.extend([0_u8; 8].iter().cycle().take(64));
        assert_eq!(reason(&v6), Some(Reason::InvalidExtension), "headers without end");
        assert_eq!(Frame::read(&[0; 60], 0), Frame::Foreign);
    }

    #[test]
    fn an_error_quotes_what_was_sent() {
        let mut inner = v4(17, 0, &[0x0f, 0xa0, 0, 80, 0, 8, 0, 0]).split_off(ETHERNET);
        inner[12..20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 9]);
        let error = v4(1, 0, &[&[3, 3, 0, 0, 0, 0, 0, 0], inner.as_slice()].concat());
        let Payload::Error(quoted) = packet(&error).payload else { panic!("{error:?}") };
        assert_eq!(
            (quoted.payload, quoted.destination),
            (Payload::Udp { ports: (4000, 80) }, [10, 0, 0, 9].into())
        );
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(kind in prop::sample::select(vec![[8_u8, 0], [0x86, 0xdd], [8, 6]]), first in any::<u8>(), rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = [&[0; 12][..], &kind, &[first], &rest].concat();
            drop(Frame::read(&frame, 0));
        }
    }
}
