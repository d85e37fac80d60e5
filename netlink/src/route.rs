//! Routes: replaced, deleted, listed; IPv4, IPv6, several next hops, IPv4 through IPv6 next hops.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use crate::Error;
use crate::batch::Write;
use crate::connection::Netlink;

/// The number of the main routing table (RT_TABLE_MAIN).
pub const TABLE_MAIN: u32 = 254;
/// The number of the local table (RT_TABLE_LOCAL).
pub const TABLE_LOCAL: u32 = 255;
/// The protocol number of routes made by an administrator (RTPROT_STATIC).
pub const PROTOCOL_STATIC: u8 = 4;
/// The metric the kernel gives an IPv6 route that asks for none (IP6_RT_PRIO_USER).
const V6_DEFAULT_METRIC: u32 = 1024;

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RouteKind {
    /// Forward to a next hop.
    #[default]
    Unicast,
    /// Deliver to this host.
    Local,
    /// Drop silently.
    Blackhole,
    /// Answer with "unreachable".
    Unreachable,
    /// Answer with "prohibited".
    Prohibit,
    /// Look on in the next rule.
    Throw,
}

/// One way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The neighbour; none = the destination is on the link. May be IPv6 for an IPv4 route (RFC 5549).
    pub via: Option<IpAddr>,
    /// Index of the interface; none = the kernel finds it from `via`.
    pub link: Option<u32>,
    /// Share among several hops, 1 to 256.
    pub weight: u16,
    /// Take `via` to be on the link even if no prefix of the interface says so.
    pub on_link: bool,
}

impl NextHop {
    /// Out of an interface, the destination being on the link.
    #[must_use]
    pub fn link(index: u32) -> Self {
        Self { via: None, link: Some(index), weight: 1, on_link: false }
    }

    /// To a neighbour; the kernel finds the interface.
    #[must_use]
    pub fn via(neighbour: IpAddr) -> Self {
        Self { via: Some(neighbour), link: None, weight: 1, on_link: false }
    }

    /// To a neighbour out of an interface, whether or not the interface's prefixes say so.
    #[must_use]
    pub fn on_link(neighbour: IpAddr, index: u32) -> Self {
        Self { via: Some(neighbour), link: Some(index), weight: 1, on_link: true }
    }
}

/// A route. (destination, table, metric) identify it; the rest is replaced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Host bits zero.
    pub destination: IpNet,
    /// Routing table; [`TABLE_MAIN`] by default.
    pub table: u32,
    /// Who owns the route (RTPROT_*): a reconciler prunes only its own number.
    pub protocol: u8,
    /// Lower wins. 0 means none for IPv4; for IPv6 the kernel makes 1024 of it, and so does this crate.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// Source address that this host's own packets take.
    pub source: Option<IpAddr>,
    /// Route MTU in bytes (RTAX_MTU).
    pub mtu: Option<u32>,
    /// The ways out; empty unless `kind` is unicast or local.
    pub next_hops: Vec<NextHop>,
    /// The number of the next-hop object that has the ways out ([`crate::NextHopObjects`]); then `next_hops` is not asked for, and told as the kernel
    /// sees it.
    pub object: Option<u32>,
}

impl Route {
    /// A unicast route in the main table with protocol "static".
    #[must_use]
    pub fn unicast(destination: IpNet, next_hops: Vec<NextHop>) -> Self {
        Self {
            destination: destination.trunc(),
            table: TABLE_MAIN,
            protocol: PROTOCOL_STATIC,
            metric: 0,
            kind: RouteKind::Unicast,
            source: None,
            mtu: None,
            next_hops,
            object: None,
        }
    }

    /// The form in which the kernel gives the route back, so that what was asked for and what is there compare equal:
    /// host bits cleared, the IPv6 default metric filled in, hops sorted, no hops where the kind has none.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        self.destination = self.destination.trunc();
        if self.destination.addr().is_ipv6() && self.metric == 0 {
            self.metric = V6_DEFAULT_METRIC;
        }
        if !matches!(self.kind, RouteKind::Unicast | RouteKind::Local) {
            self.next_hops.clear();
        }
        self.next_hops.sort();
        self
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != RouteKind::Unicast {
            write!(f, "{:?} ", self.kind)?;
        }
        write!(
            f,
            "{} table {} proto {} metric {}",
            self.destination, self.table, self.protocol, self.metric
        )?;
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        for hop in &self.next_hops {
            if let Some(via) = hop.via {
                write!(f, " via {via}")?;
            }
            if let Some(link) = hop.link {
                write!(f, " dev #{link}")?;
            }
            if hop.weight > 1 {
                write!(f, " weight {}", hop.weight)?;
            }
            if hop.on_link {
                write!(f, " onlink")?;
            }
        }
        Ok(())
    }
}

/// The way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The neighbour; none: the address is on the link.
    pub via: Option<IpAddr>,
    /// Index of the interface.
    pub link: u32,
    /// The route's metric.
    pub metric: u32,
    /// The route's owner (RTPROT_*).
    pub protocol: u8,
}

/// Which routes to list; `None` is any.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteFilter {
    /// Only this table.
    pub table: Option<u32>,
    /// Only this owner.
    pub protocol: Option<u8>,
}

impl Netlink {
    /// Makes the route, or replaces the one of the same destination, table and metric.
    ///
    /// # Errors
    /// [`Error::Kernel`], for example when a next hop is not reachable; [`Error::Invalid`] for a unicast route without hops.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        self.write(Write::ReplaceRoute(route.clone())).await.map(drop)
    }

    /// How the kernel would reach an address now, by its whole tables; none if it would not.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn way_to(&self, address: IpAddr) -> Result<Option<Found>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        // Tell of the route that matched, not of the answer for this one address.
        message.header.flags = RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let answer = match self.get(RouteNetlinkMessage::GetRoute(message)).await {
            Ok(answer) => answer,
            Err(refusal)
                if matches!(
                    refusal.errno(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::ENOENT)
                ) =>
            {
                return Ok(None);
            }
            Err(refusal) => return Err(refusal.on("look up the way to", address.to_string())),
        };
        let RouteNetlinkMessage::NewRoute(message) = answer else { return Ok(None) };
        let route = Route::from_message(&message).filter(|route| route.kind == RouteKind::Unicast);
        Ok(route.and_then(|route| {
            let hop = *route.next_hops.first()?;
            Some(Found { via: hop.via, link: hop.link?, metric: route.metric, protocol: route.protocol })
        }))
    }

    /// Deletes the route of the same destination, table, metric and protocol, whatever its hops. True if it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn delete_route(&self, route: &Route) -> Result<bool, Error> {
        self.write(Write::DeleteRoute(route.clone())).await
    }

    /// The routes of both families that match, in normalised form (see [`Route::normalised`]). The kernel filters,
    /// so a full BGP table of another owner costs nothing here.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn routes(&self, filter: RouteFilter) -> Result<Vec<Route>, Error> {
        self.routes_where(filter, |_| true).await
    }

    /// The routes to everywhere of one table, in normalised form. The kernel cannot tell these alone: it lists the whole table, of which nothing
    /// else is kept. [`crate::DefaultRoutes`] follows them at less cost.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn default_routes(&self, table: u32) -> Result<Vec<Route>, Error> {
        let filter = RouteFilter { table: Some(table), ..RouteFilter::default() };
        self.routes_where(filter, is_default).await
    }

    async fn routes_where(
        &self,
        filter: RouteFilter,
        keep: fn(&RouteNetlinkMessage) -> bool,
    ) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
            if let Some(table) = filter.table {
                message.attributes.push(RouteAttribute::Table(table));
            }
            let found = self
                .dump_where(RouteNetlinkMessage::GetRoute(message), keep)
                .await
                .map_err(|refusal| refusal.on("list", "the routes"))?;
            routes.extend(found.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => Route::from_message(route),
                _ => None,
            }));
        }
        // Kernels before 4.20 do not filter: make sure here.
        routes.retain(|route| {
            filter.table.is_none_or(|table| table == route.table)
                && filter.protocol.is_none_or(|protocol| protocol == route.protocol)
        });
        routes.sort();
        Ok(routes)
    }
}

fn is_default(message: &RouteNetlinkMessage) -> bool {
    matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.destination_prefix_length == 0)
}

impl Route {
    /// Reads the kernel's message; none for kinds that this crate does not speak of (multicast, broadcast, cached).
    pub(crate) fn from_message(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        if header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let kind = match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Local => RouteKind::Local,
            RouteType::BlackHole => RouteKind::Blackhole,
            RouteType::Unreachable => RouteKind::Unreachable,
            RouteType::Prohibit => RouteKind::Prohibit,
            RouteType::Throw => RouteKind::Throw,
            _ => return None,
        };
        let any: IpAddr = match header.address_family {
            AddressFamily::Inet => IpAddr::from([0u8; 4]),
            AddressFamily::Inet6 => IpAddr::from([0u8; 16]),
            _ => return None,
        };
        let mut route = Self {
            destination: IpNet::new(any, header.destination_prefix_length).ok()?,
            table: u32::from(header.table),
            protocol: header.protocol.into(),
            metric: 0,
            kind,
            source: None,
            mtu: None,
            next_hops: Vec::new(),
            object: None,
        };
        let single =
            RouteNextHopFlags::from_bits_retain(u8::try_from(header.flags.bits() & 0xff).unwrap_or(0));
        if let Some(hop) = next_hop(&message.attributes, None, 0, single) {
            route.next_hops.push(hop);
        }
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip(address)?, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Table(table) => route.table = *table,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::NhId(id) => route.object = Some(*id),
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                RouteAttribute::MultiPath(hops) => {
                    let read = |hop: &RouteNextHop| {
                        next_hop(&hop.attributes, Some(hop.interface_index), hop.hops, hop.flags)
                    };
                    route.next_hops.extend(hops.iter().filter_map(read));
                }
                _ => {}
            }
        }
        Some(route.normalised())
    }
}

/// Reads one next hop from the attributes of a route or of a member of a multipath.
fn next_hop(
    attributes: &[RouteAttribute],
    link: Option<u32>,
    hops: u8,
    flags: RouteNextHopFlags,
) -> Option<NextHop> {
    let on_link = flags.contains(RouteNextHopFlags::Onlink);
    let mut hop = NextHop { via: None, link, weight: u16::from(hops) + 1, on_link };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.link = Some(*index),
            RouteAttribute::Gateway(address) => hop.via = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => hop.via = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => hop.via = Some((*address).into()),
            _ => {}
        }
    }
    (hop.via.is_some() || hop.link.is_some()).then_some(hop)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

/// What identifies a route, as a message.
fn key(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = route.destination.trunc();
    let header = &mut message.header;
    header.address_family = family(destination.addr());
    header.destination_prefix_length = destination.prefix_len();
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Prohibit => RouteType::Prohibit,
        RouteKind::Throw => RouteType::Throw,
    };
    // The header's field has 8 bits only; RTA_TABLE rules.
    header.table = u8::try_from(route.table).unwrap_or(0);
    message.attributes.push(RouteAttribute::Table(route.table));
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.addr().into()));
    }
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

/// What asks for a route to be deleted.
pub(crate) fn deletion(route: &Route) -> RouteMessage {
    let mut message = key(route);
    // "Any scope": the kernel would else compare it with the route's.
    message.header.scope = RouteScope::NoWhere;
    message
}

/// The whole route, as a message.
pub(crate) fn request(route: &Route) -> Result<RouteMessage, Error> {
    let mut message = key(route);
    let forwards = matches!(route.kind, RouteKind::Unicast | RouteKind::Local);
    if forwards && route.next_hops.is_empty() && route.object.is_none() {
        let reason = "a unicast route needs a next hop; use kind blackhole or unreachable to drop".to_owned();
        return Err(Error::Invalid { what: "replace the route", object: route.to_string(), reason });
    }
    let is_v4 = route.destination.addr().is_ipv4();
    message.header.scope = match route.kind {
        RouteKind::Local => RouteScope::Host,
        RouteKind::Unicast
            if is_v4 && route.object.is_none() && route.next_hops.iter().all(|hop| hop.via.is_none()) =>
        {
            RouteScope::Link
        }
        _ => RouteScope::Universe,
    };
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(mtu) = route.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    match route.next_hops.as_slice() {
        _ if !forwards => {}
        _ if route.object.is_some() => message.attributes.extend(route.object.map(RouteAttribute::NhId)),
        [only] => {
            if only.on_link {
                message.header.flags |= RouteFlags::Onlink;
            }
            message.attributes.extend(gateway(only, is_v4));
            message.attributes.extend(only.link.map(RouteAttribute::Oif));
        }
        several => {
            let hops = several.iter().map(|hop| member(hop, is_v4)).collect();
            message.attributes.push(RouteAttribute::MultiPath(hops));
        }
    }
    Ok(message)
}

fn member(hop: &NextHop, is_v4: bool) -> RouteNextHop {
    let mut member = RouteNextHop::default();
    member.interface_index = hop.link.unwrap_or(0);
    member.hops = u8::try_from(hop.weight.clamp(1, 256) - 1).unwrap_or(0);
    member.flags.set(RouteNextHopFlags::Onlink, hop.on_link);
    member.attributes.extend(gateway(hop, is_v4));
    member
}

fn gateway(hop: &NextHop, is_v4: bool) -> Option<RouteAttribute> {
    hop.via.map(|via| match via {
        IpAddr::V6(v6) if is_v4 => RouteAttribute::Via(RouteVia::Inet6(v6)),
        via => RouteAttribute::Gateway(via.into()),
    })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
