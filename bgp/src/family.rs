//! Address families and next hops: the words every other module uses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family the codec reads and writes (RFC 4760: AFI and SAFI together). The RIB carries those in [`Family::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
    /// AFI 1, SAFI 128 (RFC 4364).
    Ipv4Vpn,
    /// AFI 2, SAFI 128 (RFC 4659).
    Ipv6Vpn,
    /// AFI 25, SAFI 70 (RFC 7432).
    L2vpnEvpn,
    /// AFI 1, SAFI 133 (RFC 8955).
    Ipv4Flowspec,
    /// AFI 2, SAFI 133 (RFC 8956).
    Ipv6Flowspec,
}

impl Family {
    /// Every family whose routes the RIB holds, in wire order.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// Every family the codec knows.
    pub const KNOWN: [Self; 7] = [
        Self::Ipv4Unicast,
        Self::Ipv6Unicast,
        Self::Ipv4Vpn,
        Self::Ipv6Vpn,
        Self::L2vpnEvpn,
        Self::Ipv4Flowspec,
        Self::Ipv6Flowspec,
    ];

    /// The address family identifier.
    pub const fn afi(self) -> u16 {
        match self {
            Self::Ipv4Unicast | Self::Ipv4Vpn | Self::Ipv4Flowspec => 1,
            Self::Ipv6Unicast | Self::Ipv6Vpn | Self::Ipv6Flowspec => 2,
            Self::L2vpnEvpn => 25,
        }
    }

    /// The subsequent address family identifier.
    pub const fn safi(self) -> u8 {
        match self {
            Self::Ipv4Unicast | Self::Ipv6Unicast => 1,
            Self::L2vpnEvpn => 70,
            Self::Ipv4Vpn | Self::Ipv6Vpn => 128,
            Self::Ipv4Flowspec | Self::Ipv6Flowspec => 133,
        }
    }

    /// The family of an AFI and SAFI pair, if the codec knows it.
    pub const fn from_codes(afi: u16, safi: u8) -> Option<Self> {
        Some(match (afi, safi) {
            (1, 1) => Self::Ipv4Unicast,
            (2, 1) => Self::Ipv6Unicast,
            (1, 128) => Self::Ipv4Vpn,
            (2, 128) => Self::Ipv6Vpn,
            (25, 70) => Self::L2vpnEvpn,
            (1, 133) => Self::Ipv4Flowspec,
            (2, 133) => Self::Ipv6Flowspec,
            _ => return None,
        })
    }

    /// Whether its NLRI are plain prefixes.
    pub const fn is_unicast(self) -> bool {
        matches!(self, Self::Ipv4Unicast | Self::Ipv6Unicast)
    }

    /// The family a prefix belongs to.
    pub const fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Ipv4Unicast,
            IpNet::V6(_) => Self::Ipv6Unicast,
        }
    }

    /// The family an address belongs to.
    pub const fn of_address(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4Unicast,
            IpAddr::V6(_) => Self::Ipv6Unicast,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Unicast => "ipv4-unicast",
            Self::Ipv6Unicast => "ipv6-unicast",
            Self::Ipv4Vpn => "ipv4-vpn",
            Self::Ipv6Vpn => "ipv6-vpn",
            Self::L2vpnEvpn => "l2vpn-evpn",
            Self::Ipv4Flowspec => "ipv4-flowspec",
            Self::Ipv6Flowspec => "ipv6-flowspec",
        })
    }
}

/// Where a route's packets go next. IPv6 may carry a link-local address beside the global one (RFC 2545 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// The global (or only) address.
    pub address: IpAddr,
    /// The link-local address given beside it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub link_local: Option<Ipv6Addr>,
}

impl NextHop {
    /// A next hop of one address.
    pub const fn new(address: IpAddr) -> Self {
        Self { address, link_local: None }
    }

    /// Whether packets could be sent there at all (RFC 4271 section 6.3: the address must be one of a host).
    pub fn is_usable(&self) -> bool {
        !(self.address.is_unspecified()
            || self.address.is_multicast()
            || self.address.is_loopback()
            || self.address == IpAddr::V4(Ipv4Addr::BROADCAST))
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link_local {
            Some(link_local) => write!(f, "{} ({link_local})", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        Self::new(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_lead_back() {
        for family in Family::KNOWN {
            assert_eq!(Family::from_codes(family.afi(), family.safi()), Some(family));
            // The name printed is the name configured.
            let text = family.to_string();
            let read: serde::de::value::StringDeserializer<serde::de::value::Error> =
                serde::de::IntoDeserializer::into_deserializer(text);
            assert_eq!(Family::deserialize(read), Ok(family));
        }
        assert_eq!(Family::from_codes(25, 1), None);
    }
}
