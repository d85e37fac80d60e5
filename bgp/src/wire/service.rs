//! Destinations of VPN, EVPN and FlowSpec: our walker proves their shape, then zettabgp names their fields.
//!
//! zettabgp panics or guesses on lengths it does not expect (docs/adr/0010), so it sees only bytes whose every length was checked here.
//! What it reads wrongly even then is read by us: EVPN label fields, type-5 routes, FlowSpec values of eight octets and IPv6 offsets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zettabgp::BgpAddrItem as _;
use zettabgp::afi::{BgpAddrV4, BgpAddrV6, BgpEVPN, BgpFlowSpec, BgpItem, BgpRD, FS6, Labeled, WithRd};
use zettabgp::prelude::BgpTransportMode;

use super::cursor::Cursor;
use super::nlri::Destination;
use crate::family::Family;

/// Bytes of a label field, a route distinguisher, an Ethernet segment identifier.
const LABEL: usize = 3;
const RD: usize = 8;
const ESI: usize = 10;
const TAG: usize = 4;
/// Bits of a VPN route before its prefix: one label and the route distinguisher (RFC 8277 section 2.2: one, unless several were agreed on).
const VPN_HEAD_BITS: u8 = 88;
/// FlowSpec lengths from here on have two octets (RFC 8955 section 4.1).
const FLOWSPEC_LONG: u8 = 0xf0;

/// One destination of a family other than unicast: opaque to the RIB, which may compare and carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceNlri<'a> {
    family: Family,
    path_id: u32,
    bytes: &'a [u8],
}

/// What a destination says.
#[derive(Clone, Debug)]
pub enum Service {
    /// A VPNv4 route: label, route distinguisher, prefix.
    Ipv4Vpn(Labeled<WithRd<BgpAddrV4>>),
    /// A VPNv6 route.
    Ipv6Vpn(Labeled<WithRd<BgpAddrV6>>),
    /// An EVPN route of types 1 to 4; its label fields are in [`ServiceNlri::labels`].
    Evpn(BgpEVPN),
    /// An EVPN IP prefix route, type 5.
    EvpnPrefix(EvpnPrefix),
    /// An IPv4 flow.
    Ipv4Flowspec(BgpFlowSpec<BgpAddrV4>),
    /// An IPv6 flow.
    Ipv6Flowspec(BgpFlowSpec<FS6>),
}

/// An EVPN IP prefix route (RFC 9136 section 3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvpnPrefix {
    /// Route distinguisher.
    pub rd: BgpRD,
    /// Ethernet segment identifier.
    pub esi: [u8; ESI],
    /// Ethernet tag.
    pub ethernet_tag: u32,
    /// Prefix.
    pub prefix: ipnet::IpNet,
    /// Gateway; unspecified for none.
    pub gateway: IpAddr,
    /// Label or VNI, 24 bits.
    pub label: u32,
}

impl fmt::Display for EvpnPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "5:{}:{:08x}:{} via {} {}",
            self.rd, self.ethernet_tag, self.prefix, self.gateway, self.label
        )
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4Vpn(route) => route.fmt(f),
            Self::Ipv6Vpn(route) => route.fmt(f),
            Self::Evpn(route) => route.fmt(f),
            Self::EvpnPrefix(route) => route.fmt(f),
            Self::Ipv4Flowspec(flow) => flow.fmt(f),
            Self::Ipv6Flowspec(flow) => flow.fmt(f),
        }
    }
}

impl<'a> ServiceNlri<'a> {
    pub(super) const fn new(family: Family, path_id: u32, bytes: &'a [u8]) -> Self {
        Self { family, path_id, bytes }
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// The bytes that name it, lengths included, path identifier not. For VPN routes the label is among them but not part of the name.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The bytes that make it the same route or another one: without labels, which may change (RFC 8277 section 2, RFC 7432 section 7).
    pub fn key(&self) -> (&'a [u8], &'a [u8]) {
        let labels = self.label_range();
        (self.bytes.get(..labels.start).unwrap_or_default(), self.bytes.get(labels.end..).unwrap_or_default())
    }

    fn label_range(&self) -> std::ops::Range<usize> {
        let len = self.bytes.len();
        match (self.family, self.bytes.first()) {
            (Family::Ipv4Vpn | Family::Ipv6Vpn, _) => 1..1 + LABEL,
            (Family::L2vpnEvpn, Some(1 | 5)) => len.saturating_sub(LABEL)..len,
            (Family::L2vpnEvpn, Some(2)) => {
                // Behind type, length, RD, ESI, tag, MAC and the IP address whose length in bits comes before it.
                let bits = self.bytes.get(2 + RD + ESI + TAG + 7).copied().unwrap_or_default();
                (2 + RD + ESI + TAG + 8 + usize::from(bits / 8)).min(len)..len
            }
            _ => len..len,
        }
    }

    /// Its label fields, 24 bits each: an MPLS label is the upper 20 (RFC 8277), a VNI all of it (RFC 8365 section 5.1.3).
    pub fn labels(&self) -> impl Iterator<Item = u32> + use<'a> {
        let bytes = self.bytes.get(self.label_range()).unwrap_or_default();
        bytes.as_chunks::<LABEL>().0.iter().map(|[a, b, c]| u32::from_be_bytes([0, *a, *b, *c]))
    }

    /// What it says. `None` for EVPN route types and FlowSpec values that are carried but not understood.
    pub fn decode(&self) -> Option<Service> {
        match self.family {
            Family::Ipv4Vpn => vpn(self.bytes).map(Service::Ipv4Vpn),
            Family::Ipv6Vpn => vpn(self.bytes).map(Service::Ipv6Vpn),
            Family::L2vpnEvpn => self.evpn(),
            Family::Ipv4Flowspec => flow(self.bytes, false).map(Service::Ipv4Flowspec),
            Family::Ipv6Flowspec => flow(self.bytes, true).map(Service::Ipv6Flowspec),
            Family::Ipv4Unicast | Family::Ipv6Unicast => None,
        }
    }

    fn evpn(&self) -> Option<Service> {
        match self.bytes.first()? {
            1..=4 => {
                let (route, used) = BgpEVPN::decode_from(BgpTransportMode::IPv4, self.bytes).ok()?;
                (used <= self.bytes.len()).then_some(Service::Evpn(route))
            }
            5 => evpn_prefix(self.bytes).map(Service::EvpnPrefix),
            _ => None,
        }
    }
}

impl Destination for ServiceNlri<'_> {
    fn path_id(&self) -> u32 {
        self.path_id
    }

    fn encoded_len(&self) -> usize {
        self.bytes.len()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.bytes);
    }
}

/// Takes the next destination by its own length; `None` if that is impossible, after which the run cannot be read (RFC 7606 section 5.3).
pub(super) fn take<'a>(family: Family, cursor: &mut Cursor<'a>) -> Option<&'a [u8]> {
    let mut ahead = *cursor;
    let (head, len) = match family {
        Family::Ipv4Vpn | Family::Ipv6Vpn => {
            let bits = ahead.u8()?;
            let max = VPN_HEAD_BITS + if family == Family::Ipv4Vpn { 32 } else { 128 };
            if !(VPN_HEAD_BITS..=max).contains(&bits) {
                return None;
            }
            (1, usize::from(bits).div_ceil(8))
        }
        Family::L2vpnEvpn => {
            ahead.u8()?;
            (2, usize::from(ahead.u8()?))
        }
        Family::Ipv4Flowspec | Family::Ipv6Flowspec => {
            let first = ahead.u8()?;
            if first < FLOWSPEC_LONG {
                (1, usize::from(first))
            } else {
                (2, usize::from(u16::from_be_bytes([first & 0x0f, ahead.u8()?])))
            }
        }
        Family::Ipv4Unicast | Family::Ipv6Unicast => return None,
    };
    cursor.take(head + len)
}

/// Whether a destination whose envelope was read says something. Others are passed over and the session lives (RFC 7606 section 5.4).
pub(super) fn check(family: Family, bytes: &[u8]) -> bool {
    match family {
        Family::Ipv4Vpn | Family::Ipv6Vpn => true,
        Family::L2vpnEvpn => evpn_fits(bytes),
        Family::Ipv4Flowspec => flow_fits(bytes, false).is_some(),
        Family::Ipv6Flowspec => flow_fits(bytes, true).is_some(),
        Family::Ipv4Unicast | Family::Ipv6Unicast => false,
    }
}

/// Lengths of RFC 7432 section 7 and RFC 9136 section 3.1. Types not known are carried as they are.
fn evpn_fits(bytes: &[u8]) -> bool {
    let [kind, _, route @ ..] = bytes else { return false };
    let address = |at: usize, none: bool| match route.get(at) {
        Some(0) if none => Some(0),
        Some(32) => Some(4),
        Some(128) => Some(16),
        _ => None,
    };
    match kind {
        1 => route.len() == RD + ESI + TAG + LABEL,
        2 => {
            let mac = RD + ESI + TAG;
            let Some(ip) = address(mac + 7, true) else { return false };
            let fixed = mac + 1 + 6 + 1 + ip;
            route.get(mac) == Some(&48) && [fixed + LABEL, fixed + 2 * LABEL].contains(&route.len())
        }
        3 => address(RD + TAG, false).is_some_and(|ip| route.len() == RD + TAG + 1 + ip),
        4 => address(RD + ESI, false).is_some_and(|ip| route.len() == RD + ESI + 1 + ip),
        5 => evpn_prefix(bytes).is_some(),
        _ => true,
    }
}

fn evpn_prefix(bytes: &[u8]) -> Option<EvpnPrefix> {
    let mut cursor = Cursor::new(bytes);
    cursor.u16()?;
    let (rd_high, rd_low) = (cursor.u32()?, cursor.u32()?);
    let (esi, ethernet_tag, bits) = (cursor.array::<ESI>()?, cursor.u32()?, cursor.u8()?);
    // RFC 9136 section 3.1: 34 or 58 octets, and both addresses of one family.
    let (address, gateway) = match cursor.rest().len() {
        11 => (IpAddr::V4(Ipv4Addr::from(cursor.u32()?)), IpAddr::V4(Ipv4Addr::from(cursor.u32()?))),
        35 => (IpAddr::V6(Ipv6Addr::from(cursor.array()?)), IpAddr::V6(Ipv6Addr::from(cursor.array()?))),
        _ => return None,
    };
    let [a, b, c] = cursor.array::<LABEL>()?;
    Some(EvpnPrefix {
        rd: BgpRD::new(rd_high, rd_low),
        esi,
        ethernet_tag,
        prefix: ipnet::IpNet::new(address, bits).ok()?.trunc(),
        gateway,
        label: u32::from_be_bytes([0, a, b, c]),
    })
}

/// zettabgp reads on until it finds the bottom of the label stack, whose bit is to be ignored (RFC 8277 section 2.2): it gets a copy with
/// the bit set, and only as many bytes as the length says.
fn vpn<T: BgpItem<T>>(bytes: &[u8]) -> Option<Labeled<WithRd<T>>> {
    let (bits, rest) = bytes.split_first()?;
    let mut copy = [0u8; LABEL + RD + 16];
    let copy = copy.get_mut(..rest.len())?;
    copy.copy_from_slice(rest);
    *copy.get_mut(LABEL - 1)? |= 1;
    let (route, used) = Labeled::<WithRd<T>>::extract_bits_from(*bits, copy).ok()?;
    (used == rest.len()).then_some(route)
}

/// Walks the components of a flow (RFC 8955 section 4.2, RFC 8956 section 3). `None` if it says nothing; `Some(false)` if zettabgp cannot
/// read it.
fn flow_fits(bytes: &[u8], v6: bool) -> Option<bool> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u8()? >= FLOWSPEC_LONG {
        cursor.u8()?;
    }
    let (mut readable, mut last) = (true, 0);
    while !cursor.is_empty() {
        let kind = cursor.u8()?;
        // Components are in order, each once.
        if kind <= last {
            return None;
        }
        last = kind;
        readable &= match kind {
            1 | 2 => flow_prefix(&mut cursor, v6)?,
            3..=12 => flow_values(&mut cursor)?,
            13 if v6 => flow_values(&mut cursor)?,
            _ => return None,
        };
    }
    (last != 0).then_some(readable)
}

fn flow_prefix(cursor: &mut Cursor<'_>, v6: bool) -> Option<bool> {
    let bits = cursor.u8()?;
    let offset = if v6 { cursor.u8()? } else { 0 };
    // RFC 8956 section 3.1: an offset is smaller than the length, but for the whole range 0/0.
    if bits > if v6 { 128 } else { 32 } || offset > bits || (offset == bits && bits != 0) {
        return None;
    }
    cursor.take(usize::from(bits - offset).div_ceil(8))?;
    Some(offset == 0)
}

fn flow_values(cursor: &mut Cursor<'_>) -> Option<bool> {
    const END: u8 = 0x80;
    let mut readable = true;
    loop {
        let operator = cursor.u8()?;
        let len = 1usize << ((operator >> 4) & 3);
        cursor.take(len)?;
        readable &= len <= 4;
        if operator & END != 0 {
            return Some(readable);
        }
    }
}

fn flow<T: zettabgp::afi::FSItem<T>>(bytes: &[u8], v6: bool) -> Option<BgpFlowSpec<T>> {
    if !flow_fits(bytes, v6)? {
        return None;
    }
    let (flow, used) = BgpFlowSpec::<T>::decode_from(BgpTransportMode::IPv4, bytes).ok()?;
    (used == bytes.len()).then_some(flow)
}
