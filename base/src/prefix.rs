//! Prefixes without host bits, in the text form Cilium and Go write.

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// An address prefix; host bits are always zero, a v4-mapped IPv6 host is kept as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

/// The text is no address and no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor an address/length prefix")]
pub struct PrefixError(String);

impl Prefix {
    /// No prefix comes before this one.
    pub const LOWEST: Self = Self(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)));

    /// A prefix of `len` bits; bits past it are cleared. `None` when `len` is too long for the family.
    #[must_use]
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        IpNet::new(address, len).ok().map(|net| Self(net.trunc()))
    }

    /// The prefix of one address (/32 or /128).
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::from(v4)),
            IpAddr::V6(v6) => IpNet::V6(Ipv6Net::from(v6)),
        })
    }

    /// The network address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// Length in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether it is a single address.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Whether it is IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Whether `address` lies inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether `other` lies inside, or is equal.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether any address lies in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Its last address as a prefix: with the prefix itself it bounds everything inside, in the order of prefixes.
    #[must_use]
    pub fn last(&self) -> Self {
        Self::host(self.0.broadcast())
    }

    /// The fewest prefixes that make up a range of addresses, both ends included; none if the ends are of two families or in the wrong
    /// order.
    #[must_use]
    pub fn of_range(first: IpAddr, last: IpAddr) -> Vec<Self> {
        match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Subnets::new(first, last, 0).map(|net| Self(net.into())).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Ipv6Subnets::new(first, last, 0).map(|net| Self(net.into())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// As an [`IpNet`].
    #[must_use]
    pub const fn net(&self) -> IpNet {
        self.0
    }

    /// `10.1.0.7` for a single address, `10.1.0.0/24` otherwise: the key form of the ip cache.
    #[must_use]
    pub fn short(&self) -> String {
        if self.is_host() { self.address().to_string() } else { self.0.to_string() }
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let parsed = text.parse::<IpNet>().map(Self::from);
        parsed
            .or_else(|_| text.parse::<IpAddr>().map(Self::host))
            .map_err(|_| PrefixError(text.chars().take(80).collect()))
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_made_of_prefixes() {
        let range = |first: &str, last: &str| -> Vec<String> {
            let prefixes = Prefix::of_range(first.parse().unwrap(), last.parse().unwrap());
            prefixes.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            range("10.0.0.1", "10.0.0.6"),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]
        );
        assert_eq!(range("192.0.2.0", "192.0.2.255"), ["192.0.2.0/24"]);
        assert_eq!(range("fd00::", "fd00::ffff"), ["fd00::/112"]);
        assert_eq!(range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert!(range("10.0.0.2", "10.0.0.1").is_empty() && range("10.0.0.1", "fd00::1").is_empty());
    }

    #[test]
    fn text_forms() {
        let net: Prefix = "10.1.0.9/24".parse().unwrap();
        assert_eq!(net.to_string(), "10.1.0.0/24");
        assert_eq!(net.short(), "10.1.0.0/24");
        let host: Prefix = "fd00:0::0001".parse().unwrap();
        assert_eq!((host.short().as_str(), host.to_string().as_str()), ("fd00::1", "fd00::1/128"));
        assert!("10.1.0.0/33".parse::<Prefix>().is_err());
        assert_eq!(net.last().to_string(), "10.1.0.255/32");
        assert_eq!(host.last(), host);
        assert!(net.covers(&"10.1.0.7".parse().unwrap()) && !net.overlaps(&"10.2.0.0/16".parse().unwrap()));
    }
}
