//! What the kernel says of interfaces, addresses and default routes, followed as it changes.

use super::drive::Driver;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tombolo_netlink::{Address, Change, Changes, DefaultRoutes, Link, Netlink, Route, TABLE_MAIN, Watch};
use tombolo_topology::bgp::network::{Gateway, Interface, Network};

/// How long a burst of changes is collected before the kernel is asked.
const SETTLE: Duration = Duration::from_millis(100);
/// How long before the kernel is asked again after it refused.
const RETRY: Duration = Duration::from_secs(1);

/// Interfaces, addresses and default routes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Interfaces.
    pub(crate) links: Vec<Link>,
    /// Addresses of all interfaces.
    pub(crate) addresses: Vec<Address>,
    /// Default routes of the main table, whoever made them.
    pub(crate) defaults: Vec<Route>,
}

impl Seen {
    async fn read(netlink: &Netlink, defaults: &mut DefaultRoutes) -> Result<Self, tombolo_netlink::Error> {
        let mut links = netlink.links().await?;
        // Counters change all the time and matter to nobody here.
        links.iter_mut().for_each(|link| link.stats = tombolo_netlink::LinkStats::default());
        let addresses = netlink.addresses(None).await?;
        defaults.read(netlink).await?;
        Ok(Self { links, addresses, defaults: defaults.iter().cloned().collect() })
    }

    /// The name of an interface.
    pub(crate) fn name(&self, index: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == index).map(|link| link.name.as_str())
    }

    /// As BGP's planner sees it. Routes that `own` made are not taken for gateways: that a router taught the default route
    /// over BGP must not be why there is a session with it.
    pub(crate) fn network(&self, own: u8, own_device: &str) -> Network {
        let mut interfaces: BTreeMap<Arc<str>, Interface> = BTreeMap::new();
        for link in &self.links {
            let of_link =
                self.addresses.iter().filter(|address| address.link == link.index && !address.tentative);
            let addresses: BTreeSet<IpAddr> = of_link.map(|address| address.address.addr()).collect();
            interfaces.insert(link.name.as_str().into(), Interface { addresses, running: link.running });
        }
        let mut gateways = BTreeSet::new();
        for route in self.defaults.iter().filter(|route| route.protocol != own) {
            for hop in &route.next_hops {
                let name = hop.link.and_then(|index| self.name(index));
                if let (Some(address), Some(interface)) = (hop.via, name) {
                    // An IPv4 route may lead through an IPv6 gateway; such a router is found by Unnumbered.
                    if address.is_ipv4() == route.destination.addr().is_ipv4() {
                        gateways.insert(Gateway {
                            address,
                            interface: interface.into(),
                            metric: route.metric,
                        });
                    }
                }
            }
        }
        let device = self.links.iter().find(|link| link.name == own_device);
        let fallback_router_id = device.and_then(|link| link.mac).map(|mac| {
            let [_, _, a, b, c, d] = mac.octets();
            Ipv4Addr::new(a, b, c, d)
        });
        Network { interfaces, gateways, fallback_router_id }
    }
}

/// Takes a change in. Whether what was read may be another now.
fn matters(change: &Change, defaults: &mut DefaultRoutes) -> bool {
    let others = defaults.note(change);
    others || !matches!(change, Change::Route(_) | Change::RouteGone(_))
}

/// Waits for the next change that matters, and for the burst it is part of to end; false if the subscription broke.
async fn changed(changes: &mut Changes, defaults: &mut DefaultRoutes) -> bool {
    loop {
        match changes.next().await {
            Some(change) if matters(&change, defaults) => break,
            Some(_) => {}
            None => return false,
        }
    }
    let end = tokio::time::Instant::now() + SETTLE;
    while let Ok(next) = tokio::time::timeout_at(end, changes.next()).await {
        let Some(change) = next else { return false };
        defaults.note(&change);
    }
    true
}

/// Follows the kernel until cancelled. `None` in the channel: not read yet.
pub(crate) async fn follow(driver: Driver, netlink: Netlink, seen: watch::Sender<Option<Arc<Seen>>>) {
    let watch = Watch { links: true, addresses: true, default_routes: true, ..Watch::default() };
    let work = async {
        loop {
            let mut changes = match netlink.changes(watch) {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::warn!(%error, "interfaces and routes cannot be followed; it is tried again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            // What happened while nobody listened is not known.
            let mut defaults = DefaultRoutes::of(TABLE_MAIN);
            loop {
                match Seen::read(&netlink, &mut defaults).await {
                    Ok(now) => drop(seen.send_if_modified(|known| {
                        let differs = known.as_deref() != Some(&now);
                        if differs {
                            *known = Some(Arc::new(now));
                        }
                        differs
                    })),
                    Err(error) => {
                        tracing::warn!(%error, "interfaces and routes cannot be read; it is tried again");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
                if !changed(&mut changes, &mut defaults).await {
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = driver.cancel.cancelled() => {}
        () = work => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_netlink::NextHop;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            kind: None,
            mac: Some("02:00:0a:0b:0c:0d".parse().unwrap()),
            mtu: 1500,
            up: true,
            carrier: true,
            running: true,
            no_arp: false,
            loopback: false,
            peer_index: None,
            controller: None,
            vxlan: None,
            stats: tombolo_netlink::LinkStats::default(),
        }
    }

    fn default(via: &str, link: u32, protocol: u8, metric: u32) -> Route {
        let address: IpAddr = via.parse().unwrap();
        let destination = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let hop = NextHop { link: Some(link), ..NextHop::via(address) };
        Route { protocol, metric, ..Route::unicast(destination.parse().unwrap(), vec![hop]) }
    }

    #[test]
    fn gateways_are_told_with_their_interface_but_not_those_that_bgp_taught() {
        let address = |link, text: &str, tentative| Address {
            link,
            address: text.parse().unwrap(),
            tentative,
            link_scope: false,
        };
        let seen = Seen {
            links: vec![link(2, "eth1"), link(3, "tombolo_host")],
            addresses: vec![address(2, "10.0.0.2/24", false), address(2, "fd00::2/64", true)],
            defaults: vec![
                default("10.0.0.1", 2, 4, 0),
                default("10.0.0.9", 2, 0x54, 84),
                default("fe80::1", 2, 9, 1024),
                default("10.0.0.7", 99, 4, 0),
            ],
        };
        let network = seen.network(0x54, "tombolo_host");
        let gateways: Vec<_> = network.gateways.iter().map(|g| (g.address.to_string(), g.metric)).collect();
        assert_eq!(gateways, [("10.0.0.1".to_owned(), 0), ("fe80::1".to_owned(), 1024)]);
        assert_eq!(network.interfaces["eth1"].addresses.len(), 1, "a tentative address is none yet");
        assert_eq!(network.fallback_router_id, Some(Ipv4Addr::new(10, 11, 12, 13)));
        assert_eq!(seen.network(0x54, "none").fallback_router_id, None);
    }

    #[test]
    fn only_default_routes_matter_among_routes() {
        let mut defaults = DefaultRoutes::of(TABLE_MAIN);
        let mut route = default("10.0.0.1", 2, 4, 0);
        assert!(
            matters(&Change::Route(route.clone()), &mut defaults) && matters(&Change::Lost, &mut defaults)
        );
        assert!(matters(&Change::LinkGone(link(9, "eth9")), &mut defaults));
        route.destination = "10.9.0.0/16".parse().unwrap();
        assert!(!matters(&Change::RouteGone(route), &mut defaults));
    }
}
