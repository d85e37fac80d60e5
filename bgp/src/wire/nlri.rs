//! Prefixes on the wire: one length octet, then as many octets as the length needs (RFC 4271 section 4.3).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::cursor::Cursor;
use crate::family::Family;

/// Decodes a run of prefixes. Bits beyond the mask are cleared, as RFC 4271 calls them irrelevant.
///
/// Returns `None` when a length is impossible or the run ends early: the caller cannot trust the rest.
pub(crate) fn decode(family: Family, bytes: &[u8]) -> Option<Vec<IpNet>> {
    let mut cursor = Cursor::new(bytes);
    let mut prefixes = Vec::new();
    while !cursor.is_empty() {
        let bits = cursor.u8()?;
        let octets = cursor.take(usize::from(bits).div_ceil(8))?;
        prefixes.push(match family {
            Family::Ipv4Unicast => {
                let mut address = [0u8; 4];
                address.get_mut(..octets.len())?.copy_from_slice(octets);
                IpNet::V4(Ipv4Net::new(Ipv4Addr::from(address), bits).ok()?.trunc())
            }
            Family::Ipv6Unicast => {
                let mut address = [0u8; 16];
                address.get_mut(..octets.len())?.copy_from_slice(octets);
                IpNet::V6(Ipv6Net::new(Ipv6Addr::from(address), bits).ok()?.trunc())
            }
        });
    }
    Some(prefixes)
}

/// Bytes one prefix takes on the wire.
pub(crate) fn encoded_len(prefix: &IpNet) -> usize {
    1 + usize::from(prefix.prefix_len()).div_ceil(8)
}

/// Appends one prefix.
pub(crate) fn encode(prefix: &IpNet, out: &mut Vec<u8>) {
    let octets = usize::from(prefix.prefix_len()).div_ceil(8);
    out.push(prefix.prefix_len());
    match prefix {
        IpNet::V4(net) => out.extend(net.network().octets().into_iter().take(octets)),
        IpNet::V6(net) => out.extend(net.network().octets().into_iter().take(octets)),
    }
}

/// Whether a prefix can be a unicast destination. RFC 4271 section 6.3: others are logged and ignored.
pub(crate) fn is_unicast(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => !(net.network().is_multicast() && net.prefix_len() >= 4),
        IpNet::V6(net) => {
            let link_local = net.network().is_unicast_link_local() && net.prefix_len() >= 10;
            !(link_local || net.network().is_multicast() && net.prefix_len() >= 8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_round_trip_and_lose_host_bits() {
        let wire = [0u8, 8, 10, 12, 172, 0x1f, 32, 1, 2, 3, 4];
        let prefixes = decode(Family::Ipv4Unicast, &wire).unwrap();
        let text: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["0.0.0.0/0", "10.0.0.0/8", "172.16.0.0/12", "1.2.3.4/32"]);
        let mut again = Vec::new();
        prefixes.iter().for_each(|prefix| encode(prefix, &mut again));
        assert_eq!(again, [0u8, 8, 10, 12, 172, 0x10, 32, 1, 2, 3, 4]);
        assert_eq!(again.len(), prefixes.iter().map(encoded_len).sum::<usize>());
    }

    #[test]
    fn impossible_prefixes_are_refused() {
        assert_eq!(decode(Family::Ipv4Unicast, &[33, 1, 2, 3, 4, 5]), None);
        assert_eq!(decode(Family::Ipv4Unicast, &[24, 1, 2]), None);
        assert_eq!(decode(Family::Ipv6Unicast, &[129; 18]), None);
        assert_eq!(decode(Family::Ipv6Unicast, &[64, 0x20]), None);
    }

    #[test]
    fn only_destinations_count() {
        for (prefix, unicast) in [
            ("224.0.0.0/4", false),
            ("239.1.0.0/16", false),
            ("0.0.0.0/0", true),
            ("ff02::/16", false),
            ("fe80::/64", false),
            ("::/0", true),
        ] {
            assert_eq!(is_unicast(&prefix.parse().unwrap()), unicast, "{prefix}");
        }
    }
}
