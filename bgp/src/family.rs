//! Address families and next hops: the words every other module uses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family this speaker carries (RFC 4760: AFI and SAFI together).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    /// Every family this speaker knows, in wire order.
    pub const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// The address family identifier.
    pub const fn afi(self) -> u16 {
        match self {
            Self::Ipv4Unicast => 1,
            Self::Ipv6Unicast => 2,
        }
    }

    /// The subsequent address family identifier.
    pub const fn safi(self) -> u8 {
        1
    }

    /// The family of an AFI and SAFI pair, if this speaker knows it.
    pub const fn from_codes(afi: u16, safi: u8) -> Option<Self> {
        match (afi, safi) {
            (1, 1) => Some(Self::Ipv4Unicast),
            (2, 1) => Some(Self::Ipv6Unicast),
            _ => None,
        }
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
