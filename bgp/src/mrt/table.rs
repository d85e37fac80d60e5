//! A table as it stands (RFC 6396 section 4.3).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;

use super::record::{Record, TABLE_DUMP_V2};
use crate::event::{PeerState, RouteRow};
use crate::family::Family;
use crate::wire::{Announcer, EncodeContext};

/// Subtypes.
const PEER_INDEX_TABLE: u16 = 1;
const RIB_IPV4_UNICAST: u16 = 2;
const RIB_IPV6_UNICAST: u16 = 4;
/// What a subtype rises by if paths have identifiers (RFC 8050 section 4).
const ADDPATH: u16 = 6;
/// Bits of a peer's type: its address is IPv6; its AS has four octets.
const PEER_IPV6: u8 = 1;
const PEER_AS4: u8 = 2;

/// Routes as TABLE_DUMP_V2: the peers they are from, then a record for each prefix. `view` names the table; `at` is since 1970, and stands for
/// the time each route came, which is not kept. Rows of peers that are not listed, and what does not fit its field, are left out.
pub fn table_dump(
    at: Duration,
    router_id: Ipv4Addr,
    view: &str,
    peers: &[PeerState],
    rows: &[RouteRow],
) -> Vec<u8> {
    let mut out = Vec::new();
    let peers = peers.get(..usize::from(u16::MAX)).unwrap_or(peers);
    let record = |subtype, body| Record { at, kind: TABLE_DUMP_V2, subtype, body };
    record(PEER_INDEX_TABLE, index(router_id, view, peers)).encode(&mut out);
    let numbers: BTreeMap<&str, u16> =
        peers.iter().zip(0u16..).map(|(peer, number)| (peer.name.as_str(), number)).collect();
    let mut by_prefix: BTreeMap<IpNet, Vec<(u16, &RouteRow)>> = BTreeMap::new();
    for row in rows {
        if let Some(number) = numbers.get(row.peer.as_str()) {
            by_prefix.entry(row.prefix).or_default().push((*number, row));
        }
    }
    for ((prefix, routes), sequence) in by_prefix.iter().zip(0u32..) {
        let subtype = match prefix {
            IpNet::V4(_) => RIB_IPV4_UNICAST,
            IpNet::V6(_) => RIB_IPV6_UNICAST,
        };
        let add_path = routes.iter().any(|(_, row)| row.path_id != 0);
        let subtype = if add_path { subtype + ADDPATH } else { subtype };
        record(subtype, rib(at, sequence, prefix, routes, add_path)).encode(&mut out);
    }
    out
}

fn index(router_id: Ipv4Addr, view: &str, peers: &[PeerState]) -> Vec<u8> {
    let mut body = router_id.octets().to_vec();
    let view: &[u8] = view.as_bytes().get(..255).unwrap_or(view.as_bytes());
    body.extend(u16::try_from(view.len()).unwrap_or_default().to_be_bytes());
    body.extend(view);
    body.extend(u16::try_from(peers.len()).unwrap_or(u16::MAX).to_be_bytes());
    for peer in peers {
        body.push(PEER_AS4 | if peer.address.is_ipv6() { PEER_IPV6 } else { 0 });
        body.extend(peer.router_id.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        match peer.address {
            IpAddr::V4(address) => body.extend(address.octets()),
            IpAddr::V6(address) => body.extend(address.octets()),
        }
        body.extend(peer.peer_asn.to_be_bytes());
    }
    body
}

fn rib(at: Duration, sequence: u32, prefix: &IpNet, routes: &[(u16, &RouteRow)], add_path: bool) -> Vec<u8> {
    let mut body = sequence.to_be_bytes().to_vec();
    body.push(prefix.prefix_len());
    let bytes = usize::from(prefix.prefix_len().div_ceil(8));
    match prefix {
        IpNet::V4(net) => body.extend(net.network().octets().iter().take(bytes)),
        IpNet::V6(net) => body.extend(net.network().octets().iter().take(bytes)),
    }
    let mut entries = Vec::new();
    let mut count = 0u16;
    for (peer, row) in routes {
        let family = Family::of(prefix);
        let context = EncodeContext::default();
        let attributes = Announcer::new(&row.attributes, &row.next_hop, family, context).table_attributes();
        let Ok(len) = u16::try_from(attributes.len()) else { continue };
        let Some(more) = count.checked_add(1) else { break };
        count = more;
        entries.extend(peer.to_be_bytes());
        entries.extend(u32::try_from(at.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
        if add_path {
            entries.extend(row.path_id.to_be_bytes());
        }
        entries.extend(len.to_be_bytes());
        entries.extend(attributes);
    }
    body.extend(count.to_be_bytes());
    body.extend(entries);
    body
}
