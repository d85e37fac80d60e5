//! Permanent neighbour entries (ARP and ND).

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use crate::connection::Netlink;
use crate::{Error, MacAddr};

/// A neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// Index of the interface.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its Ethernet address, once resolved.
    pub mac: Option<MacAddr>,
    /// Set by hand and never aged (NUD_PERMANENT).
    pub permanent: bool,
}

impl Netlink {
    /// Makes, or replaces, a permanent entry: no ARP or ND is needed for `address` any more.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses (the interface gone).
    pub async fn set_neighbour(&self, link: u32, address: IpAddr, mac: MacAddr) -> Result<(), Error> {
        let mut message = message(link, address);
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).await.map_err(
            |refusal| {
                refusal.on("set the neighbour", format!("{address} at {mac} on interface index {link}"))
            },
        )
    }

    /// Deletes an entry. True if it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn delete_neighbour(&self, link: u32, address: IpAddr) -> Result<bool, Error> {
        match self.change(RouteNetlinkMessage::DelNeighbour(message(link, address)), 0).await {
            Ok(()) => Ok(true),
            Err(refusal) if matches!(refusal.errno(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
                Ok(false)
            }
            Err(refusal) => {
                Err(refusal.on("delete the neighbour", format!("{address} on interface index {link}")))
            }
        }
    }

    /// The entries of both families, of one interface or of all.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn neighbours(&self, link: Option<u32>) -> Result<Vec<Neighbour>, Error> {
        let found = self
            .dump(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))
            .await
            .map_err(|refusal| refusal.on("list", "the neighbours"))?;
        let mut neighbours: Vec<Neighbour> = found
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(neighbour) => Neighbour::from_message(neighbour),
                _ => None,
            })
            .filter(|neighbour| link.is_none_or(|link| link == neighbour.link))
            .collect();
        neighbours.sort();
        Ok(neighbours)
    }
}

impl Neighbour {
    fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::from(*v4))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::from(*v6))
                }
                NeighbourAttribute::LinkLayerAddress(octets) => {
                    mac = MacAddr::try_from(octets.as_slice()).ok()
                }
                _ => {}
            }
        }
        Some(Self {
            link: message.header.ifindex,
            address: address?,
            mac,
            permanent: message.header.state == NeighbourState::Permanent,
        })
    }
}

fn message(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = link;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}
