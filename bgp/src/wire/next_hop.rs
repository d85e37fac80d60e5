//! The next hop field of MP_REACH: 4, 16 or 32 octets, 12, 24 or 48 with route distinguishers (RFC 4760, 2545, 4364, 4659, 8950).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cursor::Cursor;
use crate::family::{Family, NextHop};

/// A route distinguisher, always zero before a next hop (RFC 4364 section 4.3.2).
const RD: [u8; 8] = [0; 8];

/// Decodes. `None` when the length is not one the family may have (RFC 7606 section 7.11); `Some(None)` where no next hop is given.
/// `extended`: the family may have IPv6 next hops (RFC 8950).
pub(super) fn mp_next_hop(family: Family, bytes: &[u8], extended: bool) -> Option<Option<NextHop>> {
    let fits = match family {
        Family::Ipv4Unicast => bytes.len() == 4 || extended && matches!(bytes.len(), 16 | 32),
        Family::Ipv4Vpn => bytes.len() == 12 || extended && matches!(bytes.len(), 24 | 48),
        Family::Ipv6Unicast => matches!(bytes.len(), 16 | 32),
        Family::Ipv6Vpn => matches!(bytes.len(), 24 | 48),
        Family::L2vpnEvpn => matches!(bytes.len(), 4 | 16),
        Family::Ipv4Flowspec | Family::Ipv6Flowspec => matches!(bytes.len(), 0 | 4 | 16 | 32),
    };
    if !fits {
        return None;
    }
    let mut cursor = Cursor::new(bytes);
    let behind_rd = matches!(family, Family::Ipv4Vpn | Family::Ipv6Vpn);
    let skip_rd =
        |cursor: &mut Cursor<'_>| if behind_rd { cursor.array::<8>().map(|_| ()) } else { Some(()) };
    if bytes.is_empty() {
        return Some(None);
    }
    skip_rd(&mut cursor)?;
    if cursor.rest().len() == 4 {
        return Some(Some(NextHop::new(IpAddr::V4(Ipv4Addr::from(cursor.u32()?)))));
    }
    let address = Ipv6Addr::from(cursor.array::<16>()?);
    if cursor.is_empty() {
        return Some(Some(NextHop::new(address.into())));
    }
    skip_rd(&mut cursor)?;
    let second = Ipv6Addr::from(cursor.array::<16>()?);
    Some(Some(if address.is_unspecified() {
        // RFC 2545 means a link-local second half; some speakers repeat it in both, or leave the global half empty.
        NextHop::new(second.into())
    } else if second.is_unicast_link_local() && second != address {
        NextHop { address: address.into(), link_local: Some(second) }
    } else {
        NextHop::new(address.into())
    }))
}

/// Appends what [`mp_next_hop`] reads, without the length.
pub(super) fn encode(family: Family, next_hop: &NextHop, out: &mut Vec<u8>) {
    if matches!(family, Family::Ipv4Flowspec | Family::Ipv6Flowspec) {
        return;
    }
    let behind_rd = matches!(family, Family::Ipv4Vpn | Family::Ipv6Vpn);
    let rd: &[u8] = if behind_rd { &RD } else { &[] };
    out.extend(rd);
    match next_hop.address {
        // RFC 4659 section 3.2.1.2: as a mapped address.
        IpAddr::V4(address) if matches!(family, Family::Ipv6Vpn | Family::Ipv6Unicast) => {
            out.extend(address.to_ipv6_mapped().octets());
        }
        IpAddr::V4(address) => out.extend(address.octets()),
        IpAddr::V6(address) => out.extend(address.octets()),
    }
    if let Some(link_local) = next_hop.link_local.filter(|_| family != Family::L2vpnEvpn) {
        out.extend(rd);
        out.extend(link_local.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_reads_back_and_no_other_does() {
        let v4 = NextHop::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
        let v6 = NextHop::new("2001:db8::1".parse().unwrap());
        let both = NextHop { link_local: Some("fe80::1".parse().unwrap()), ..v6 };
        for (family, hop, len) in [
            (Family::Ipv4Unicast, v4, 4),
            (Family::Ipv4Unicast, v6, 16),
            (Family::Ipv4Unicast, both, 32),
            (Family::Ipv6Unicast, v6, 16),
            (Family::Ipv6Unicast, both, 32),
            (Family::Ipv4Vpn, v4, 12),
            (Family::Ipv4Vpn, v6, 24),
            (Family::Ipv6Vpn, v6, 24),
            (Family::Ipv6Vpn, both, 48),
            (Family::L2vpnEvpn, v4, 4),
            (Family::L2vpnEvpn, v6, 16),
        ] {
            let mut wire = Vec::new();
            encode(family, &hop, &mut wire);
            assert_eq!(wire.len(), len, "{family} {hop}");
            assert_eq!(mp_next_hop(family, &wire, true), Some(Some(hop)), "{family}");
        }
        for family in Family::KNOWN {
            for len in [1, 3, 5, 8, 15, 17, 20, 31, 33, 40, 47, 49, 64] {
                assert_eq!(mp_next_hop(family, &vec![1; len], true), None, "{family} {len}");
            }
        }
    }

    #[test]
    fn ipv6_next_hops_of_ipv4_need_an_agreement() {
        assert_eq!(mp_next_hop(Family::Ipv4Unicast, &[0x20; 16], false), None);
        assert_eq!(mp_next_hop(Family::Ipv4Vpn, &[0; 24], false), None);
        assert_eq!(mp_next_hop(Family::Ipv4Flowspec, &[], false), Some(None));
    }
}
