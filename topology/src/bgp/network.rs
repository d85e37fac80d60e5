//! What BGP must know of the node's own network: interfaces with their addresses, and default gateways. Plain values; the
//! agent reads them from the kernel.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its addresses, link-local ones included; none that is still tentative.
    pub addresses: BTreeSet<IpAddr>,
    /// Operational state "up" or "unknown" (RFC 2863): packets can be sent as far as is known.
    pub running: bool,
}

/// A next hop of a default route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Gateway {
    /// The router's address.
    pub address: IpAddr,
    /// The interface it is on.
    pub interface: Arc<str>,
    /// Metric of the route; lower wins.
    pub metric: u32,
}

/// The node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Interfaces by name.
    pub interfaces: BTreeMap<Arc<str>, Interface>,
    /// Next hops of the default routes of both families that are not BGP's own.
    pub gateways: BTreeSet<Gateway>,
    /// Low 32 bits of the MAC address of the node's own device: the router id of a node without IPv4.
    pub fallback_router_id: Option<Ipv4Addr>,
}

impl Network {
    /// The gateways of the default route of the lowest metric of a family: several if that route has several next hops.
    #[must_use]
    pub fn default_gateways(&self, ipv4: bool) -> Vec<&Gateway> {
        let of_family = || self.gateways.iter().filter(|gateway| gateway.address.is_ipv4() == ipv4);
        let lowest = of_family().map(|gateway| gateway.metric).min();
        of_family().filter(|gateway| Some(gateway.metric) == lowest).collect()
    }

    /// An address of an interface that others can reach it by, of a family; the least if there are several.
    #[must_use]
    pub fn source_address(&self, interface: &str, ipv4: bool) -> Option<IpAddr> {
        let addresses = &self.interfaces.get(interface)?.addresses;
        addresses.iter().copied().find(|address| address.is_ipv4() == ipv4 && is_global(address))
    }
}

/// Whether an address means the same beyond its link: not loopback, multicast, link-local, unspecified, nor IPv4 in
/// IPv6's clothes.
#[must_use]
pub fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_multicast()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_of_the_lowest_metric_count_and_families_do_not_mix() {
        let gateway = |address: &str, metric| Gateway {
            address: address.parse().unwrap(),
            interface: "eth1".into(),
            metric,
        };
        let network = Network {
            gateways: [
                gateway("10.0.0.1", 100),
                gateway("10.0.0.2", 50),
                gateway("10.0.0.3", 50),
                gateway("fe80::1", 1024),
            ]
            .into(),
            ..Network::default()
        };
        let of =
            |ipv4| network.default_gateways(ipv4).iter().map(|g| g.address.to_string()).collect::<Vec<_>>();
        assert_eq!(
            (of(true), of(false)),
            (vec!["10.0.0.2".into(), "10.0.0.3".into()], vec!["fe80::1".to_owned()])
        );
        assert!(Network::default().default_gateways(true).is_empty());
    }

    #[test]
    fn only_addresses_of_use_beyond_the_link_are_global() {
        for text in
            ["127.1.2.3", "::1", "224.0.0.1", "ff02::1", "169.254.1.1", "fe80::1", "::ffff:10.0.0.1", "::"]
        {
            assert!(!is_global(&text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(is_global(&text.parse().unwrap()), "{text}");
        }
    }
}
