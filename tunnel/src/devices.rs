//! The node's own devices: the VXLAN device and the pair that carries the node's internal addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use tombolo_netlink::{AddressOptions, Error, Link, LinkSettings, MacAddr, Netlink, VethEnd, VxlanSpec};

/// The VXLAN device's name.
pub const VXLAN_DEVICE: &str = "tombolo_vxlan";
/// The device with the node's internal addresses.
pub const HOST_DEVICE: &str = "tombolo_host";
/// The other end of [`HOST_DEVICE`].
pub const NET_DEVICE: &str = "tombolo_net";
/// The WireGuard device's name.
pub const WIREGUARD_DEVICE: &str = "tombolo_wg";

/// The Ethernet address of every node's VXLAN device. The device resolves nothing (NOARP), so the kernel addresses frames
/// to the device's own address; since it is the same everywhere, the receiver takes them as its own.
pub const VXLAN_MAC: MacAddr = MacAddr([0x02, 0x74, 0x6f, 0x6d, 0x62, 0x6f]);

/// What the node's devices shall be.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The VXLAN device; none in direct mode, where one that is left over is removed.
    pub vxlan: Option<VxlanConfig>,
    /// The node's internal addresses, the pods' gateways.
    pub internal: Vec<IpAddr>,
    /// MTU of the host pair, in bytes.
    pub host_mtu: u32,
}

/// The VXLAN device's settings.
#[derive(Clone, Copy, Debug)]
pub struct VxlanConfig {
    /// UDP port; 8472 as Cilium's.
    pub port: u16,
    /// In bytes: what fits into VXLAN on the narrowest path, see [`crate::mtu`].
    pub mtu: u32,
}

/// The node's devices as they are.
#[derive(Clone, Debug)]
pub struct Devices {
    /// The VXLAN device, in overlay mode.
    pub vxlan: Option<Link>,
    /// The end with the internal addresses.
    pub host: Link,
    /// The other end.
    pub net: Link,
}

/// Makes the node's devices, or brings those that are there in line; all are up afterwards. Turns forwarding on and
/// the reverse path filter off (the datapath checks sources itself, and replies may take another way). May be repeated.
///
/// # Errors
/// [`Error`] of the verb that failed.
pub async fn ensure(netlink: &Netlink, config: &DeviceConfig) -> Result<Devices, Error> {
    let mut sysctls = vec![
        ("net/ipv4/ip_forward".to_owned(), "1".to_owned()),
        ("net/ipv4/conf/all/rp_filter".to_owned(), "0".to_owned()),
        ("net/ipv4/conf/default/rp_filter".to_owned(), "0".to_owned()),
    ];
    if config.internal.iter().any(IpAddr::is_ipv6) {
        sysctls.push(("net/ipv6/conf/all/forwarding".to_owned(), "1".to_owned()));
    }
    netlink.set_sysctls(&sysctls).await?;
    let (host, net) = ensure_host_pair(netlink, config).await?;
    let vxlan = match config.vxlan {
        Some(vxlan) => Some(ensure_vxlan(netlink, vxlan).await?),
        None => {
            netlink.delete_link(VXLAN_DEVICE).await?;
            None
        }
    };
    Ok(Devices { vxlan, host, net })
}

async fn ensure_host_pair(netlink: &Netlink, config: &DeviceConfig) -> Result<(Link, Link), Error> {
    let end = |name: &str| VethEnd { mtu: Some(config.host_mtu), ..VethEnd::new(name) };
    let (host, net) = netlink.create_veth(&end(HOST_DEVICE), &end(NET_DEVICE)).await?;
    for link in [&host, &net] {
        bring_up(netlink, link).await?;
    }
    // Also internal addresses of a former pod CIDR: pods must not take this node for another's gateway.
    for old in netlink.addresses(Some(host.index)).await? {
        if !config.internal.contains(&old.address.addr()) {
            netlink.delete_address(host.index, old.address).await?;
        }
    }
    for address in &config.internal {
        let options = AddressOptions { no_dad: true, no_prefix_route: true };
        netlink.add_address(host.index, IpNet::from(*address), options).await?;
    }
    Ok((netlink.link(HOST_DEVICE).await?, netlink.link(NET_DEVICE).await?))
}

async fn ensure_vxlan(netlink: &Netlink, config: VxlanConfig) -> Result<Link, Error> {
    let spec =
        VxlanSpec { name: VXLAN_DEVICE.to_owned(), port: config.port, mtu: config.mtu, mac: Some(VXLAN_MAC) };
    let link = match netlink.create_vxlan(&spec).await {
        // The port was changed in the configuration: the device cannot change it.
        Err(Error::Conflict { .. }) => {
            netlink.delete_link(VXLAN_DEVICE).await?;
            netlink.create_vxlan(&spec).await?
        }
        made => made?,
    };
    bring_up(netlink, &link).await?;
    netlink.link(VXLAN_DEVICE).await
}

/// No address resolution, no addresses of the kernel's own making, no reverse path filter; up.
async fn bring_up(netlink: &Netlink, link: &Link) -> Result<(), Error> {
    netlink.set_sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name), "0").await?;
    let settings = LinkSettings {
        ipv6_link_local: Some(false),
        no_arp: Some(true),
        up: Some(true),
        ..LinkSettings::default()
    };
    netlink.set_link(link.index, &settings).await
}

/// Takes the devices of [`ensure`] away; those that are not there are fine.
///
/// # Errors
/// [`Error`] of the first device that cannot be deleted.
pub async fn remove(netlink: &Netlink) -> Result<(), Error> {
    netlink.delete_link(VXLAN_DEVICE).await?;
    netlink.delete_link(HOST_DEVICE).await?;
    Ok(())
}
