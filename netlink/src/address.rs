//! Addresses of interfaces.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::connection::{Netlink, Refusal};
use crate::{Change, Error, Route, RouteFilter, TABLE_LOCAL, Watch};

/// How long the kernel may take from accepting an IPv6 address to delivering to it.
const LOCAL_ROUTE_TIMEOUT: Duration = Duration::from_secs(10);

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the interface.
    pub link: u32,
    /// The address with the length of its prefix (host bits kept).
    pub address: IpNet,
    /// IPv6 duplicate address detection is still running: the address cannot be used yet.
    pub tentative: bool,
    /// Valid on the link only (fe80::/10) or inside the host.
    pub link_scope: bool,
}

/// How to add an address.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressOptions {
    /// Skip IPv6 duplicate address detection (RFC 4862 §5.4): usable at once.
    pub no_dad: bool,
    /// Add no route to the prefix.
    pub no_prefix_route: bool,
}

impl Netlink {
    /// Adds an address. One that is there with the same prefix length is fine. An IPv6 address without duplicate address
    /// detection on an interface that is up is in use when this returns: the kernel answers before it delivers packets to
    /// it (a worker puts the local route in), so the route is awaited.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is there with another prefix length, else [`Error::Kernel`].
    pub async fn add_address(&self, link: u32, address: IpNet, options: AddressOptions) -> Result<(), Error> {
        if !(options.no_dad && address.addr().is_ipv6()) {
            return self.request_address(link, address, options).await;
        }
        let mut routes = self.changes(Watch { routes: true, ..Watch::default() })?;
        self.request_address(link, address, options).await?;
        if self.find_link_by_index(link).await?.is_none_or(|link| !link.up) {
            return Ok(());
        }
        let host = IpNet::from(address.addr());
        let is_local = |route: &Route| route.table == TABLE_LOCAL && route.destination == host;
        let filter = RouteFilter { table: Some(TABLE_LOCAL), ..RouteFilter::default() };
        let awaited = async {
            let mut there = self.routes(filter).await?.iter().any(is_local);
            while !there {
                there = match routes.next().await {
                    Some(Change::Route(route)) => is_local(&route),
                    Some(Change::Lost) => self.routes(filter).await?.iter().any(is_local),
                    Some(_) => false,
                    None => return Err(Refusal::Closed.on("await the local route of", address.to_string())),
                };
            }
            Ok(())
        };
        tokio::time::timeout(LOCAL_ROUTE_TIMEOUT, awaited).await.unwrap_or_else(|_| {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the kernel does not put it in");
            Err(Refusal::Errno(late).on("await the local route of", address.to_string()))
        })
    }

    async fn request_address(&self, link: u32, address: IpNet, options: AddressOptions) -> Result<(), Error> {
        const WHAT: &str = "add the address";
        let mut message = message(link, address);
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Nodad, options.no_dad && address.addr().is_ipv6());
        flags.set(AddressFlags::Noprefixroute, options.no_prefix_route);
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        let refusal =
            match self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).await {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
        let object = format!("{address} on interface index {link}");
        if refusal.errno() != Some(libc::EEXIST) {
            return Err(refusal.on(WHAT, object));
        }
        let there = self.addresses(Some(link)).await?;
        match there.iter().find(|a| a.address.addr() == address.addr()) {
            Some(same) if same.address.prefix_len() == address.prefix_len() => Ok(()),
            Some(other) => Err(Error::Conflict { what: WHAT, object, found: other.address.to_string() }),
            None => Err(refusal.on(WHAT, object)),
        }
    }

    /// Takes an address away. True if it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn delete_address(&self, link: u32, address: IpNet) -> Result<bool, Error> {
        match self.change(RouteNetlinkMessage::DelAddress(message(link, address)), 0).await {
            Ok(()) => Ok(true),
            Err(refusal) if matches!(refusal.errno(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(false),
            Err(refusal) => {
                Err(refusal.on("delete the address", format!("{address} of interface index {link}")))
            }
        }
    }

    /// The addresses of one interface, or of all.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn addresses(&self, link: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut filter = AddressMessage::default();
        filter.header.index = link.unwrap_or(0);
        let found = match self.dump(RouteNetlinkMessage::GetAddress(filter)).await {
            Ok(found) => found,
            Err(refusal) if link.is_some() && refusal.errno() == Some(libc::ENODEV) => return Ok(Vec::new()),
            Err(refusal) => return Err(refusal.on("list", "the addresses")),
        };
        let mut addresses: Vec<Address> = found
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address) => Address::from_message(address),
                _ => None,
            })
            .filter(|address| link.is_none_or(|link| link == address.link))
            .collect();
        addresses.sort();
        Ok(addresses)
    }
}

impl Address {
    pub(crate) fn from_message(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut address, mut flags) = (None, None, AddressFlags::empty());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        // On point-to-point links IFA_ADDRESS is the other side; IFA_LOCAL is ours where it is given.
        let own: IpAddr = local.or(address)?;
        Some(Self {
            link: message.header.index,
            address: IpNet::new(own, message.header.prefix_len).ok()?,
            tentative: flags.contains(AddressFlags::Tentative),
            link_scope: message.header.scope != AddressScope::Universe,
        })
    }
}

fn message(link: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = link;
    message.header.prefix_len = address.prefix_len();
    message.header.family = if address.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // The kernel derives no scope itself; loopback addresses belong to the host.
    if address.addr().is_loopback() {
        message.header.scope = AddressScope::Host;
    }
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    message
}
