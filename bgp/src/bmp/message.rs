//! Messages of BMP version 3 (RFC 7854 section 4, RFC 9069 section 4).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::core::tap::messages;
use crate::family::Family;
use crate::fsm::DownCause;
use crate::wire;

/// Message types.
const ROUTE_MONITORING: u8 = 0;
pub(crate) const STATISTICS: u8 = 1;
pub(crate) const PEER_DOWN: u8 = 2;
pub(crate) const PEER_UP: u8 = 3;
pub(crate) const INITIATION: u8 = 4;
pub(crate) const TERMINATION: u8 = 5;
/// Version.
const VERSION: u8 = 3;
/// Types of a peer: one whose routes are in the global table; the table itself (RFC 9069).
const GLOBAL: u8 = 0;
const LOC_RIB: u8 = 3;
/// Flags of a peer: its address is IPv6; after policy.
const V_FLAG: u8 = 0x80;
const L_FLAG: u8 = 0x40;
/// Flag of a peer: what it is sent rather than what it sends (RFC 8671 section 4).
const O_FLAG: u8 = 0x10;

/// Whom a message is about: the per-peer header (RFC 7854 section 4.2), its time apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerHead {
    kind: u8,
    flags: u8,
    address: Option<IpAddr>,
    asn: u32,
    router_id: Ipv4Addr,
}

impl PeerHead {
    /// A peer, and its routes before policy.
    pub(crate) fn peer(address: IpAddr, asn: u32, router_id: Ipv4Addr) -> Self {
        let flags = if address.is_ipv6() { V_FLAG } else { 0 };
        Self { kind: GLOBAL, flags, address: Some(address), asn, router_id }
    }

    /// The table of this speaker.
    pub(crate) const fn loc_rib(asn: u32, router_id: Ipv4Addr) -> Self {
        Self { kind: LOC_RIB, flags: 0, address: None, asn, router_id }
    }

    /// The same peer's routes after policy.
    pub(crate) const fn post_policy(self) -> Self {
        Self { flags: self.flags | L_FLAG, ..self }
    }

    /// The routes that the peer is sent rather than those that it sends.
    pub(crate) const fn sent(self) -> Self {
        Self { flags: self.flags | O_FLAG, ..self }
    }

    fn encode(&self, at: Duration, out: &mut Vec<u8>) {
        out.extend([self.kind, self.flags]);
        out.extend([0; 8]);
        put_address(self.address, out);
        out.extend(self.asn.to_be_bytes());
        out.extend(self.router_id.octets());
        out.extend(u32::try_from(at.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend(at.subsec_micros().to_be_bytes());
    }
}

/// An address in 16 octets, that of IPv4 at the end.
fn put_address(address: Option<IpAddr>, out: &mut Vec<u8>) {
    match address {
        Some(IpAddr::V4(address)) => {
            out.extend([0; 12]);
            out.extend(address.octets());
        }
        Some(IpAddr::V6(address)) => out.extend(address.octets()),
        None => out.extend([0; 16]),
    }
}

/// Appends a message: about a peer, at a time, unless it is about none.
pub(crate) fn message(kind: u8, head: Option<(&PeerHead, Duration)>, body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.push(VERSION);
    out.extend([0; 4]);
    out.push(kind);
    if let Some((head, at)) = head {
        head.encode(at, out);
    }
    out.extend(body);
    let len = u32::try_from(out.len() - start).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(field) = out.get_mut(start + 1..start + 5) {
        field.copy_from_slice(&len);
    }
}

/// Appends a Route Monitoring message for each of a run of UPDATEs.
pub(crate) fn route_monitoring(head: &PeerHead, at: Duration, updates: &[u8], out: &mut Vec<u8>) {
    messages(updates).for_each(|update| message(ROUTE_MONITORING, Some((head, at)), update, out));
}

/// A type, a length and a text.
fn text(kind: u16, text: &str, out: &mut Vec<u8>) {
    let text = text.as_bytes();
    let text = text.get(..1024).unwrap_or(text);
    out.extend(kind.to_be_bytes());
    out.extend(u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
    out.extend(text);
}

/// The body of Initiation (section 4.3): sysDescr and sysName.
pub(crate) fn initiation(description: &str, name: &str) -> Vec<u8> {
    let mut body = Vec::new();
    text(1, description, &mut body);
    text(2, name, &mut body);
    body
}

/// The body of Termination (section 4.5): the session is closed by the operator.
pub(crate) fn termination() -> Vec<u8> {
    vec![0, 1, 0, 2, 0, 0]
}

/// The body of Peer Up (section 4.10) with the OPENs as they passed; a table has a name instead of ends (RFC 9069 section 4.4).
pub(crate) fn peer_up(
    local: Option<IpAddr>,
    ports: (u16, u16),
    opens: (&[u8], &[u8]),
    name: (u16, &str),
) -> Vec<u8> {
    let mut body = Vec::new();
    put_address(local, &mut body);
    body.extend(ports.0.to_be_bytes());
    body.extend(ports.1.to_be_bytes());
    body.extend(opens.0);
    body.extend(opens.1);
    text(name.0, name.1, &mut body);
    body
}

/// The body of Peer Down (section 4.9).
pub(crate) fn down_reason(cause: &DownCause) -> Vec<u8> {
    let told = |reason: u8, notification: &wire::Notification| {
        let mut body = vec![reason];
        body.extend(wire::notification(notification));
        body
    };
    match cause {
        DownCause::Sent(notification) => told(1, notification),
        DownCause::Received(notification) => told(3, notification),
        // The connection ended without a word, be it because another took its place.
        DownCause::Lost(_) | DownCause::Replaced => vec![4],
    }
}

/// One statistic (section 4.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Statistic {
    /// Type 0: prefixes rejected by import policy, as they are now.
    Rejected(u32),
    /// Type 7: routes held from the peer.
    AdjRibIn(u64),
    /// Type 9: the same, of a family.
    AdjRibInOf(Family, u64),
    /// Type 11: UPDATEs treated as withdraw.
    TreatedAsWithdraw(u32),
}

/// The body of a Statistics Report.
pub(crate) fn statistics(all: &[Statistic]) -> Vec<u8> {
    let mut body = u32::try_from(all.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    let mut put = |kind: u16, value: &[u8]| {
        body.extend(kind.to_be_bytes());
        body.extend(u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
        body.extend(value);
    };
    for statistic in all {
        match statistic {
            Statistic::Rejected(count) => put(0, &count.to_be_bytes()),
            Statistic::AdjRibIn(count) => put(7, &count.to_be_bytes()),
            Statistic::AdjRibInOf(family, count) => {
                let mut value = family.afi().to_be_bytes().to_vec();
                value.push(family.safi());
                value.extend(count.to_be_bytes());
                put(9, &value);
            }
            Statistic::TreatedAsWithdraw(count) => put(11, &count.to_be_bytes()),
        }
    }
    body
}
