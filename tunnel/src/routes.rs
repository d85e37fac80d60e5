//! The kernel's routes as a target of [`RouteEntry`] rows.

use std::collections::BTreeSet;

use imbl::OrdMap;
use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::Target;
use tombolo_base::source::Source;
use tombolo_netlink::{Error, Netlink, NextHop, Route, RouteFilter, RouteKind, TABLE_MAIN};
use tombolo_topology::RouteEntry;

/// The protocol number (RTPROT_*) of our routes, unless the configuration gives another.
pub const DEFAULT_PROTOCOL: u8 = 0x54;
/// The metric of our routes, unless the configuration gives another: an administrator's route to the same prefix (metric
/// 0 for IPv4, 1024 for IPv6 by default) is neither replaced nor deleted.
pub const DEFAULT_METRIC: u32 = 84;

/// Which routes are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// Owner (RTPROT_*); only routes with it are pruned.
    pub protocol: u8,
    /// Metric of all our routes.
    pub metric: u32,
    /// Routing table.
    pub table: u32,
}

impl Default for RouteSettings {
    fn default() -> Self {
        Self { protocol: DEFAULT_PROTOCOL, metric: DEFAULT_METRIC, table: TABLE_MAIN }
    }
}

/// Carries route rows to the kernel.
#[derive(Clone, Debug)]
pub struct KernelRoutes {
    netlink: Netlink,
    settings: RouteSettings,
}

impl KernelRoutes {
    /// A target in the handle's namespace.
    #[must_use]
    pub fn new(netlink: Netlink, settings: RouteSettings) -> Self {
        Self { netlink, settings }
    }

    /// The kernel's form of a row; names of interfaces become indexes.
    async fn route(&self, row: &RouteEntry) -> Result<Route, Error> {
        let mut next_hops = Vec::new();
        for hop in &row.next_hops {
            let link = match hop.interface.as_deref().or(row.device.as_deref()) {
                Some(name) => Some(self.netlink.link(name).await?.index),
                None => None,
            };
            next_hops.push(NextHop { link, ..NextHop::via(hop.via) });
        }
        if let (true, Some(device)) = (next_hops.is_empty(), row.device.as_deref()) {
            next_hops.push(NextHop::link(self.netlink.link(device).await?.index));
        }
        Ok(Route {
            source: row.source_address,
            mtu: row.mtu.map(u32::from),
            next_hops,
            ..self.key(row.prefix)
        })
    }

    fn key(&self, prefix: Prefix) -> Route {
        Route {
            destination: prefix.net(),
            table: self.settings.table,
            protocol: self.settings.protocol,
            metric: self.settings.metric,
            kind: RouteKind::Unicast,
            source: None,
            mtu: None,
            next_hops: Vec::new(),
        }
    }

    /// Deletes our routes that are not wanted, except those that may belong to a source whose first list is missing: a
    /// route with a gateway may be a BGP peer's, one without any other source's.
    async fn prune_routes(
        &self,
        keep: &OrdMap<Prefix, RouteEntry>,
        held: &BTreeSet<Source>,
    ) -> Result<(), Error> {
        let peers_held = held.iter().any(|source| matches!(source, Source::Peer(_)));
        let others_held = held.iter().any(|source| !matches!(source, Source::Peer(_)));
        let filter = RouteFilter { table: Some(self.settings.table), protocol: Some(self.settings.protocol) };
        for route in self.netlink.routes(filter).await? {
            let has_gateway = route.next_hops.iter().any(|hop| hop.via.is_some());
            let may_be_held = if has_gateway { peers_held } else { others_held };
            // One of another metric is of an earlier configuration of ours.
            let wanted =
                keep.contains_key(&Prefix::from(route.destination)) && route.metric == self.settings.metric;
            if !wanted && !may_be_held {
                tracing::info!(%route, "a route that nothing asks for is deleted");
                self.netlink.delete_route(&route).await?;
            }
        }
        Ok(())
    }
}

impl Target<RouteEntry> for KernelRoutes {
    async fn update(&mut self, row: &RouteEntry) -> Result<(), String> {
        let route = self.route(row).await.map_err(|error| error.to_string())?;
        self.netlink.replace_route(&route).await.map_err(|error| error.to_string())
    }

    async fn delete(&mut self, row: &RouteEntry) -> Result<(), String> {
        self.netlink.delete_route(&self.key(row.prefix)).await.map(drop).map_err(|error| error.to_string())
    }

    async fn prune(
        &mut self,
        keep: &OrdMap<Prefix, RouteEntry>,
        held: &BTreeSet<Source>,
    ) -> Result<(), String> {
        self.prune_routes(keep, held).await.map_err(|error| error.to_string())
    }
}
