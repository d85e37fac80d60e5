//! The ends of the lab's links: whose address a next hop is.
//!
//! A router may hold a next hop by any address of the interface that it means: a link-local one (unnumbered peering, FRR's IPv6
//! routes), or one of the other family (RFC 8950). All are told by the global address of the route's family on that interface. FRR 8.4 gives
//! the kernel 169.254.0.1 on the link instead of an IPv6 next hop: that is whoever else is on it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures_util::future::try_join_all;
use ipnet::IpNet;

use super::{LinkAddresses, on_a_link};
use crate::checks::access::{COMMAND_TIMEOUT, Place};
use crate::checks::check::{Failure, Family};
use crate::checks::context::Context;

/// One interface on a link of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    node: String,
    interface: String,
    global: Vec<IpNet>,
}

impl End {
    fn address(&self, family: Family) -> Option<IpAddr> {
        self.global.iter().map(IpNet::addr).find(|address| family.holds(*address))
    }
}

/// Where a route stands: on which router, and by which of its interfaces it leaves.
#[derive(Debug, Clone, Copy)]
pub(in crate::checks) struct Way<'a> {
    pub(in crate::checks) router: &'a str,
    pub(in crate::checks) interface: Option<&'a str>,
}

/// What FRR 8.4 gives the kernel as the gateway of IPv4 routes with an IPv6 next hop.
const FRR_STANDS_FOR_IPV6: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 0, 1));

/// Every address on a link of the lab, with the interface that has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::checks) struct Ends(BTreeMap<IpAddr, End>);

impl Ends {
    /// The ends of all links, asked for once.
    ///
    /// # Errors
    /// When a node cannot be asked.
    pub(in crate::checks) async fn of_lab(context: &Context) -> Result<Arc<Self>, Failure> {
        context.ends.get_or_try_init(|| async { Self::read(context).await.map(Arc::new) }).await.cloned()
    }

    /// Asks every router and every node for the addresses of its links.
    async fn read(context: &Context) -> Result<Self, Failure> {
        let clusters = context.inventory.clusters.values();
        let names = context.inventory.routers.keys().chain(clusters.flat_map(|cluster| cluster.nodes.keys()));
        let one = |name: &String| {
            let place = Place::node(name);
            async move {
                let argv = ["ip", "-j", "address", "show"];
                let links: Vec<LinkAddresses> = context.access.json(&place, &argv, COMMAND_TIMEOUT).await?;
                Ok::<_, Failure>((place.node, links))
            }
        };
        let mut ends = Self::default();
        for (node, links) in try_join_all(names.map(one)).await? {
            links.iter().filter(|link| on_a_link(link)).for_each(|link| ends.add(&node, link));
        }
        Ok(ends)
    }

    /// One interface of a node with these addresses.
    #[cfg(test)]
    pub(in crate::checks) fn of(node: &str, addresses: &[&str]) -> Self {
        let mut ends = Self::default();
        ends.add(node, &LinkAddresses::of("eth1", addresses));
        ends
    }

    pub(super) fn add(&mut self, node: &str, link: &LinkAddresses) {
        let end =
            End { node: node.to_owned(), interface: link.ifname.clone(), global: link.global().collect() };
        self.0.extend(link.all().map(|address| (address, end.clone())));
    }

    /// A next hop as the global address of `family` on the same interface; itself if the lab has no such interface.
    pub(super) fn known_as(&self, hop: IpAddr, family: Family, way: Way<'_>) -> IpAddr {
        let link_local = matches!(hop, IpAddr::V6(address) if address.is_unicast_link_local());
        let end = match hop {
            FRR_STANDS_FOR_IPV6 => self.beyond(way),
            hop if family.holds(hop) && !link_local => return hop,
            hop => self.0.get(&hop),
        };
        end.and_then(|end| end.address(family)).unwrap_or(hop)
    }

    /// The other end of the link that a way leaves by.
    fn beyond(&self, way: Way<'_>) -> Option<&End> {
        let here = self.0.values().find(|end| {
            end.node == way.router && way.interface.is_some_and(|interface| interface == end.interface)
        })?;
        let shares =
            |end: &&End| end.global.iter().any(|net| here.global.iter().any(|own| own.contains(&net.addr())));
        self.0.values().filter(|end| end.node != here.node).find(shares)
    }

    /// The node that has an address.
    pub(in crate::checks) fn node(&self, address: &IpAddr) -> Option<&str> {
        self.0.get(address).map(|end| end.node.as_str())
    }
}
