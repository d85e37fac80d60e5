//! Dynamic neighbours: whoever connects from a range of addresses becomes a peer for as long as it is connected.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::PeerConfig;
use crate::error::Error;

/// AS numbers from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsnRange {
    /// The smallest.
    pub first: u32,
    /// The largest.
    pub last: u32,
}

impl AsnRange {
    /// Whether a number is in the range.
    pub const fn contains(self, asn: u32) -> bool {
        self.first <= asn && asn <= self.last
    }
}

/// A range of addresses to accept peers from. Of several ranges that hold an address, the longest prefix counts; a configured peer wins over all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenRange {
    /// Name, unique among the ranges; peers are called `NAME-ADDRESS`.
    pub name: String,
    /// Where peers may connect from.
    pub prefix: IpNet,
    /// Most peers at a time.
    pub limit: usize,
    /// Settings of each peer; its name and address are set, and it is passive. With a `peer_asn` of 0 any AS of `peer_asns` is accepted.
    pub template: PeerConfig,
}

impl ListenRange {
    /// A range with default settings of its peers: any AS, at most 100 peers.
    pub fn new(name: &str, prefix: IpNet) -> Self {
        Self {
            name: name.to_owned(),
            prefix: prefix.trunc(),
            limit: 100,
            template: PeerConfig::new(name, prefix.addr(), 0),
        }
    }

    /// The settings of the peer at an address.
    pub(crate) fn peer(&self, address: IpAddr, interface: Option<String>) -> PeerConfig {
        let mut config = self.template.clone();
        config.name = match &interface {
            Some(interface) => format!("{}-{address}%{interface}", self.name),
            None => format!("{}-{address}", self.name),
        };
        config.address = address;
        config.interface = interface.or(config.interface);
        config.passive = true;
        config.unnumbered = false;
        config
    }

    /// An address that only serves to check the template.
    fn sample(&self) -> PeerConfig {
        let address = self.prefix.hosts().next().unwrap_or_else(|| self.prefix.addr());
        let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        self.peer(address, link_local.then(|| "sample".to_owned()))
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let bad = |what: &'static str, remedy: &'static str| {
            Err(Error::Peer { peer: self.name.clone(), what, remedy })
        };
        if self.name.is_empty() || self.name.len() > 128 {
            return bad("the name of the range is empty or over 128 bytes", "give it a short name");
        }
        if self.limit == 0 {
            return bad("the range allows no peers", "give a limit of at least 1, or remove the range");
        }
        if self.prefix.trunc() != self.prefix {
            return bad("the range has bits beyond its length", "write the network's own address");
        }
        self.sample().check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_of_a_range_are_named_after_it_and_wait() {
        let mut range = ListenRange::new("rack", "10.1.0.0/16".parse().unwrap());
        range.check().unwrap();
        let peer = range.peer("10.1.2.3".parse().unwrap(), None);
        assert_eq!((peer.name.as_str(), peer.passive, peer.peer_asn), ("rack-10.1.2.3", true, 0));
        range.limit = 0;
        assert!(range.check().is_err());
        let mut range = ListenRange::new("links", "fe80::/10".parse().unwrap());
        range.check().unwrap();
        let peer = range.peer("fe80::1".parse().unwrap(), Some("eth1".into()));
        assert_eq!((peer.name.as_str(), peer.interface.as_deref()), ("links-fe80::1%eth1", Some("eth1")));
        range.template.timers.hold = std::time::Duration::from_secs(1);
        assert!(range.check().is_err(), "the template is checked");
        range = ListenRange { prefix: "10.1.2.3/16".parse().unwrap(), ..range };
        assert!(range.check().is_err());
    }
}
