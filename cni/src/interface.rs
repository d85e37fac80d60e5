//! The interfaces of a pod: a veth pair, its addresses, routes and neighbours.
//!
//! The pod has /32 and /128 addresses and reaches everything through its gateway, the node's internal address, which
//! both sides know by permanent neighbour entries: no ARP, no neighbour discovery, nothing to spoof or to time out.
//! The pod's end stays down until the datapath is in place, so that no packet of it can pass before.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use tombolo_netlink::{
    AddressOptions, Error, Link, LinkSettings, MacAddr, NetNs, Netlink, NextHop, Route, RouteFilter,
    TABLE_MAIN, VethEnd, Watch,
};

/// Owner of the host's routes to pods (RTPROT_*); not the number of the route reconciler, which prunes its own.
pub const ROUTE_PROTOCOL: u8 = 0x55;
/// What host interface names begin with; 11 hexadecimal digits follow.
pub const HOST_PREFIX: &str = "tb";
/// How long the pair may take from "both ends up" to "running".
const RUNNING_TIMEOUT: Duration = Duration::from_secs(5);

/// The interfaces of one pod, as they shall be.
#[derive(Clone, Debug)]
pub struct PodInterface {
    /// The host's end.
    pub host_name: String,
    /// The pod's end.
    pub pod_name: String,
    /// The host end's Ethernet address.
    pub host_mac: MacAddr,
    /// The pod end's Ethernet address.
    pub pod_mac: MacAddr,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// MTU of the pod's default routes where the path is narrower than the device.
    pub route_mtu: Option<u32>,
    /// The node's pod CIDRs: pods there are reached over no wire, so their routes take the interface's whole MTU.
    pub near: Vec<IpNet>,
    /// Whether the pod's packets go through queues of the host's end and then the node's stack, which must take those of them
    /// that bear an address of the node: answers of its ports.
    pub queued: bool,
    /// Each address with its gateway.
    pub addresses: Vec<(IpAddr, IpAddr)>,
}

/// The host interface's name for an attachment: `tb` and 11 hexadecimal digits of a hash, 13 bytes.
#[must_use]
pub fn host_name(container_id: &str, ifname: &str) -> String {
    let digits: String =
        hash("name", container_id, ifname).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{HOST_PREFIX}{}", digits.chars().take(11).collect::<String>())
}

/// Whether an interface name is one that [`host_name`] makes.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.strip_prefix(HOST_PREFIX).is_some_and(|rest| rest.len() == 11 && rest.bytes().all(lower_hex))
}

/// The Ethernet addresses (pod's end, host's end) for an attachment: the same at each try.
#[must_use]
pub fn macs(container_id: &str, ifname: &str) -> (MacAddr, MacAddr) {
    let mac = |salt| {
        let [a, b, c, d, e, f, ..] = hash(salt, container_id, ifname);
        MacAddr::local([a, b, c, d, e, f])
    };
    (mac("pod"), mac("host"))
}

fn hash(salt: &str, container_id: &str, ifname: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    // The lengths keep ("a", "bc") and ("ab", "c") apart.
    for part in [salt, container_id, ifname] {
        hasher.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

impl PodInterface {
    /// First step: makes the pair; the host's end goes up, the pod's stays down. Gives back the host's end.
    ///
    /// # Errors
    /// [`Error`] of the verb that failed.
    pub async fn create(&self, host: &Netlink, netns: &NetNs) -> Result<Link, Error> {
        let host_end =
            VethEnd { mac: Some(self.host_mac), mtu: Some(self.mtu), ..VethEnd::new(self.host_name.clone()) };
        let pod_end = VethEnd {
            namespace: Some(netns.clone()),
            mac: Some(self.pod_mac),
            mtu: Some(self.mtu),
            ..VethEnd::new(self.pod_name.clone())
        };
        let made = match host.create_veth(&host_end, &pod_end).await {
            // A leftover of an earlier sandbox with the same id, its pod end elsewhere: ours by its name.
            Err(Error::Conflict { .. }) if host.find_link(&self.host_name).await?.is_some() => {
                host.delete_link(&self.host_name).await?;
                host.create_veth(&host_end, &pod_end).await
            }
            made => made,
        };
        let (host_link, _) = made?;
        host.set_sysctls(&self.sysctls(&self.host_name, true)).await?;
        let settings =
            LinkSettings { ipv6_link_local: Some(false), up: Some(true), ..LinkSettings::default() };
        host.set_link(host_link.index, &settings).await?;
        Ok(host_link)
    }

    /// Second step, once the datapath is in place: the pod's end goes up and gets its addresses and routes, the host
    /// its routes to the pod. Returns when both ends are running. May be repeated.
    ///
    /// # Errors
    /// [`Error`] of the verb that failed.
    pub async fn activate(&self, host: &Netlink, netns: &NetNs) -> Result<(), Error> {
        let pod = Netlink::in_namespace(netns)?;
        let mut changes = pod.changes(Watch { links: true, ..Watch::default() })?;
        let pod_link = pod.link(&self.pod_name).await?;
        let host_link = host.link(&self.host_name).await?;
        pod.set_sysctls(&self.sysctls(&self.pod_name, false)).await?;
        let settings =
            LinkSettings { ipv6_link_local: Some(false), up: Some(true), ..LinkSettings::default() };
        pod.set_link(pod_link.index, &settings).await?;
        if let Some(loopback) = pod.find_link("lo").await?.filter(|link| !link.up) {
            pod.set_up(loopback.index).await?;
        }
        for (address, gateway) in &self.addresses {
            let options = AddressOptions { no_dad: true, no_prefix_route: true };
            pod.add_address(pod_link.index, IpNet::from(*address), options).await?;
            pod.set_neighbour(pod_link.index, *gateway, self.host_mac).await?;
            for route in self.pod_routes(*gateway, pod_link.index) {
                pod.replace_route(&route).await?;
            }
        }
        self.attach_host(host, &host_link).await?;
        let running = async {
            loop {
                let ends = (pod.link(&self.pod_name).await?, host.link(&self.host_name).await?);
                if ends.0.running && ends.1.running {
                    return Ok(());
                }
                // The host's end follows the pod's, which is the one watched; a lost subscription ends in the timeout.
                drop(tokio::time::timeout(Duration::from_millis(20), changes.next()).await);
            }
        };
        tokio::time::timeout(RUNNING_TIMEOUT, running).await.unwrap_or_else(|_| {
            let found =
                format!("an end that has no carrier {} s after both went up", RUNNING_TIMEOUT.as_secs());
            Err(Error::Conflict { what: "bring up the veth pair", object: self.host_name.clone(), found })
        })
    }

    /// The host's side of [`PodInterface::activate`]: neighbours and routes to the pod.
    ///
    /// # Errors
    /// [`Error`] of the verb that failed.
    pub async fn attach_host(&self, host: &Netlink, host_link: &Link) -> Result<(), Error> {
        let own: Vec<IpAddr> = host.addresses(None).await?.iter().map(|a| a.address.addr()).collect();
        for (address, gateway) in &self.addresses {
            host.set_neighbour(host_link.index, *address, self.pod_mac).await?;
            host.replace_route(&host_route(
                *address,
                host_link.index,
                Some(*gateway).filter(|g| own.contains(g)),
            ))
            .await?;
        }
        Ok(())
    }

    /// After a restart of the agent, with perhaps another MTU: brings what is there in line without disturbing it.
    ///
    /// # Errors
    /// [`Error`] of the verb that failed.
    pub async fn refresh(
        &self,
        host: &Netlink,
        host_link: &Link,
        netns: Option<&NetNs>,
    ) -> Result<(), Error> {
        if host_link.mtu != self.mtu {
            let settings = LinkSettings { mtu: Some(self.mtu), ..LinkSettings::default() };
            host.set_link(host_link.index, &settings).await?;
        }
        self.attach_host(host, host_link).await?;
        let Some(netns) = netns else { return Ok(()) };
        let pod = Netlink::in_namespace(netns)?;
        let pod_link = pod.link(&self.pod_name).await?;
        if pod_link.mtu != self.mtu {
            let settings = LinkSettings { mtu: Some(self.mtu), ..LinkSettings::default() };
            pod.set_link(pod_link.index, &settings).await?;
        }
        for (_, gateway) in &self.addresses {
            // After the interface: the kernel lifts the MTU of an IPv6 route with that of its interface.
            for route in self.pod_routes(*gateway, pod_link.index) {
                pod.replace_route(&route).await?;
            }
        }
        Ok(())
    }

    /// What differs from what should be; empty if nothing does.
    ///
    /// # Errors
    /// [`Error`] when the kernel cannot be asked.
    pub async fn differences(&self, host: &Netlink, netns: &NetNs) -> Result<Vec<String>, Error> {
        let mut differences = Vec::new();
        let pod = Netlink::in_namespace(netns)?;
        let host_index = self.compare_link(host, &self.host_name, self.host_mac, &mut differences).await?;
        let pod_index = self.compare_link(&pod, &self.pod_name, self.pod_mac, &mut differences).await?;
        let (Some(host_index), Some(pod_index)) = (host_index, pod_index) else { return Ok(differences) };
        let addresses = pod.addresses(Some(pod_index)).await?;
        let neighbours = pod.neighbours(Some(pod_index)).await?;
        let filter = RouteFilter { table: Some(TABLE_MAIN), protocol: None };
        let (pod_routes, host_routes) = (pod.routes(filter).await?, host.routes(filter).await?);
        for (address, gateway) in &self.addresses {
            if !addresses.iter().any(|found| found.address == IpNet::from(*address)) {
                differences.push(format!("{address} is not on {}", self.pod_name));
            }
            for route in self.pod_routes(*gateway, pod_index).map(Route::normalised) {
                if !pod_routes.contains(&route) {
                    differences.push(format!("the pod lacks the route {route}"));
                }
            }
            let at_host =
                |found: &&tombolo_netlink::Neighbour| found.mac == Some(self.host_mac) && found.permanent;
            if neighbours.iter().filter(at_host).all(|found| found.address != *gateway) {
                differences.push(format!("the pod lacks the neighbour {gateway} at {}", self.host_mac));
            }
            let way = |route: &&Route| {
                route.destination == IpNet::from(*address)
                    && route.next_hops.iter().any(|hop| hop.link == Some(host_index))
            };
            if !host_routes.iter().any(|route| way(&route)) {
                differences.push(format!("the host has no route to {address} by {}", self.host_name));
            }
        }
        Ok(differences)
    }

    async fn compare_link(
        &self,
        netlink: &Netlink,
        name: &str,
        mac: MacAddr,
        differences: &mut Vec<String>,
    ) -> Result<Option<u32>, Error> {
        let Some(link) = netlink.find_link(name).await? else {
            differences.push(format!("there is no interface {name} in {}", netlink.namespace_name()));
            return Ok(None);
        };
        if link.mac != Some(mac) {
            differences.push(format!("{name} has the address {:?}, not {mac}", link.mac));
        }
        if !link.up {
            differences.push(format!("{name} is down"));
        }
        if link.mtu != self.mtu {
            differences.push(format!("{name} has MTU {}, not {}", link.mtu, self.mtu));
        }
        Ok(Some(link.index))
    }

    /// The pod's routes for one gateway: the way to it, to the pods of its own node, and the default route.
    fn pod_routes(&self, gateway: IpAddr, pod_link: u32) -> impl Iterator<Item = Route> {
        let any: IpNet = if gateway.is_ipv4() {
            IpNet::from(IpAddr::from([0u8; 4]))
        } else {
            IpNet::from(IpAddr::from([0u8; 16]))
        };
        let default = IpNet::new(any.addr(), 0).unwrap_or(any);
        let to_gateway = Route::unicast(IpNet::from(gateway), vec![NextHop::link(pod_link)]);
        let through = move |net| Route::unicast(net, vec![NextHop::on_link(gateway, pod_link)]);
        let same_family = move |net: &&IpNet| net.addr().is_ipv4() == gateway.is_ipv4();
        let near = self.near.iter().filter(same_family).map(move |net| through(net.trunc()));
        let beyond = Route { mtu: self.route_mtu, ..through(default) };
        std::iter::once(to_gateway).chain(near).chain(std::iter::once(beyond))
    }

    /// No reverse path filter (replies may come another way than the kernel thinks), no redirects, no
    /// autoconfiguration, no duplicate address detection.
    fn sysctls(&self, name: &str, is_host: bool) -> Vec<(String, String)> {
        let mut settings =
            vec![("net/ipv4/conf", "rp_filter", "0"), ("net/ipv4/conf", "send_redirects", "0")];
        if is_host {
            settings.extend([("net/ipv4/conf", "proxy_arp", "0"), ("net/ipv4/conf", "forwarding", "1")]);
        }
        if is_host && self.queued {
            settings.push(("net/ipv4/conf", "accept_local", "1"));
        }
        if self.addresses.iter().any(|(address, _)| address.is_ipv6()) {
            settings.extend([
                ("net/ipv6/conf", "disable_ipv6", "0"),
                ("net/ipv6/conf", "accept_ra", "0"),
                ("net/ipv6/conf", "accept_dad", "0"),
            ]);
            if is_host {
                settings.extend([("net/ipv6/conf", "proxy_ndp", "0"), ("net/ipv6/conf", "forwarding", "1")]);
            }
        }
        let written =
            |(base, key, value): (&str, &str, &str)| (format!("{base}/{name}/{key}"), value.to_owned());
        settings.into_iter().map(written).collect()
    }
}

/// The host's route to a pod. `source`: what this host's own packets to the pod come from, if that address is its own.
fn host_route(address: IpAddr, host_link: u32, source: Option<IpAddr>) -> Route {
    let route = Route::unicast(IpNet::from(address), vec![NextHop::link(host_link)]);
    Route { protocol: ROUTE_PROTOCOL, source, ..route }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_recognised() {
        let name = host_name("0123456789abcdef", "eth0");
        assert_eq!(name.len(), 13);
        assert!(is_host_name(&name), "{name}");
        assert_ne!(name, host_name("0123456789abcdef", "eth1"));
        assert_ne!(host_name("a", "bc"), host_name("ab", "c"));
        for other in
            ["tb", "tb0123456789", "tbXYZ45678901", "tb0123456789A", "eth0", "tombolo_host", "tb0123456789ab"]
        {
            assert!(!is_host_name(other), "{other}");
        }
    }

    #[test]
    fn both_ends_have_their_own_stable_address() {
        let (pod, host) = macs("c1", "eth0");
        assert_ne!(pod, host);
        assert_eq!((pod, host), macs("c1", "eth0"));
        assert_eq!(pod.octets()[0] & 3, 2);
    }
}
