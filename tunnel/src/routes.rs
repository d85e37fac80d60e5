//! The kernel's routes as a target of [`RouteEntry`] rows.

use std::collections::{BTreeMap, BTreeSet};

use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Mutex;
use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::{Change, Target};
use tombolo_base::rows::Rows;
use tombolo_base::source::Source;
use tombolo_netlink::{Error, Netlink, NextHop, Route, RouteFilter, RouteKind, TABLE_MAIN, Write};
use tombolo_topology::{LearnedNextHop, RouteEntry, RouteOrigin};

use crate::groups::Groups;

/// The protocol number (RTPROT_*) of our routes, unless the configuration gives another.
pub const DEFAULT_PROTOCOL: u8 = 0x54;
/// The metric of our routes, unless the configuration gives another: an administrator's route to the same prefix (metric
/// 0 for IPv4, 1024 for IPv6 by default) is neither replaced nor deleted.
pub const DEFAULT_METRIC: u32 = 84;

/// Groups of next hops that may stand unused before they are cleared away.
const UNUSED_MAX: usize = 64;
/// Rows that are written together: a few datagrams, some milliseconds.
const BATCH_MAX: usize = 512;

/// Interfaces by name, for the time of a batch.
type Indexes = BTreeMap<Arc<str>, u32>;

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

/// Carries route rows to the kernel. Clones share what is known of the kernel's next-hop objects.
#[derive(Clone, Debug)]
pub struct KernelRoutes {
    netlink: Netlink,
    settings: RouteSettings,
    groups: Arc<Mutex<Groups>>,
}

impl KernelRoutes {
    /// A target in the handle's namespace.
    #[must_use]
    pub fn new(netlink: Netlink, settings: RouteSettings) -> Self {
        let groups = Arc::new(Mutex::new(Groups::new(settings.protocol)));
        Self { netlink, settings, groups }
    }

    /// A next hop is lost, as BGP or BFD tell: it leaves every group of next hops at once, before the rows of the prefixes behind it change. How
    /// many groups it was in.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub async fn lose(&self, next_hop: IpAddr) -> Result<usize, Error> {
        self.groups.lock().await.lose(next_hop).await
    }

    /// Messages sent so far about next-hop objects.
    pub async fn object_messages(&self) -> u64 {
        self.groups.lock().await.messages()
    }

    /// What is to be written for a row, and the group its route names then; no write if the route is there. Groups of next hops that it
    /// needs are made at once: they come before the routes that name them.
    async fn write_for(
        &self,
        change: &Change<RouteEntry>,
        groups: &mut Groups,
        indexes: &mut Indexes,
    ) -> Result<Option<(Write, Option<u32>)>, String> {
        let text = |error: Error| error.to_string();
        match change {
            Change::Delete(row) => Ok(Some((Write::DeleteRoute(self.key(row)), None))),
            Change::Update(row) if is_grouped(row) => {
                if !groups.is_loaded() {
                    let there = self.ours().await.map_err(text)?;
                    groups.load(&self.netlink, &there).await.map_err(text)?;
                }
                let Some(group) = groups.group_for(&self.netlink, row).await? else { return Ok(None) };
                let mtu = row.mtu.map(u32::from);
                let route = Route { source: row.source_address, mtu, object: Some(group), ..self.key(row) };
                Ok(Some((Write::ReplaceRoute(route), Some(group))))
            }
            Change::Update(row) => {
                let route = self.route(row, indexes).await.map_err(text)?;
                Ok(Some((Write::ReplaceRoute(route), None)))
            }
        }
    }

    /// Carries changes to the kernel in as few messages as they fit into.
    async fn carry_all(&self, changes: &[Change<RouteEntry>]) -> Vec<Result<(), String>> {
        let mut groups = self.groups.lock().await;
        let mut indexes = Indexes::new();
        let mut outcomes = Vec::with_capacity(changes.len());
        let (mut writes, mut named) = (Vec::new(), Vec::new());
        for (at, change) in changes.iter().enumerate() {
            let wanted = self.write_for(change, &mut groups, &mut indexes).await;
            outcomes.push(wanted.map(|write| {
                if let Some((write, group)) = write {
                    writes.push(write);
                    named.push((at, group));
                }
            }));
        }
        let done = self.netlink.write_all(&writes).await;
        for (done, (at, group)) in done.into_iter().zip(named) {
            match (done, changes.get(at), outcomes.get_mut(at)) {
                (Ok(_), Some(change), _) => groups.note(change.row(), group),
                (Err(error), _, Some(outcome)) => *outcome = Err(error.to_string()),
                _ => {}
            }
        }
        // Only now: a group is named by a route once that is written, and may go once the last is written over.
        if groups.unused() > UNUSED_MAX
            && let Err(error) = groups.collect(&self.netlink).await
        {
            tracing::warn!(%error, "groups of next hops that no route names are left for the next prune");
        }
        outcomes
    }

    async fn carry_one(&self, change: Change<RouteEntry>) -> Result<(), String> {
        self.carry_all(&[change]).await.pop().unwrap_or(Ok(()))
    }

    /// The index of an interface, asked once in a batch.
    async fn index(&self, name: &str, indexes: &mut Indexes) -> Result<u32, Error> {
        if let Some(index) = indexes.get(name) {
            return Ok(*index);
        }
        let index = self.netlink.link(name).await?.index;
        indexes.insert(name.into(), index);
        Ok(index)
    }

    /// The kernel's form of a row; names of interfaces become indexes.
    async fn route(&self, row: &RouteEntry, indexes: &mut Indexes) -> Result<Route, Error> {
        let mut next_hops = Vec::new();
        for hop in &row.next_hops {
            let link = match hop.interface.as_deref().or(row.device.as_deref()) {
                Some(name) => Some(self.index(name, indexes).await?),
                None => None,
            };
            next_hops.push(NextHop { link, ..NextHop::via(hop.via) });
        }
        if let (true, Some(device)) = (next_hops.is_empty(), row.device.as_deref()) {
            next_hops.push(NextHop::link(self.index(device, indexes).await?));
        }
        Ok(Route { source: row.source_address, mtu: row.mtu.map(u32::from), next_hops, ..self.key(row) })
    }

    fn key(&self, row: &RouteEntry) -> Route {
        let leads_somewhere = row.device.is_some() || !row.next_hops.is_empty();
        Route {
            destination: row.prefix.net(),
            table: self.settings.table,
            protocol: self.settings.protocol,
            metric: self.settings.metric,
            kind: if leads_somewhere { RouteKind::Unicast } else { RouteKind::Unreachable },
            source: None,
            mtu: None,
            next_hops: Vec::new(),
            object: None,
        }
    }

    async fn ours(&self) -> Result<Vec<Route>, Error> {
        let filter = RouteFilter { table: Some(self.settings.table), protocol: Some(self.settings.protocol) };
        self.netlink.routes(filter).await
    }

    /// The gateways of our routes, as an earlier life left them; a link-local one with its interface.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell.
    pub async fn next_hops(&self) -> Result<BTreeMap<Prefix, BTreeSet<LearnedNextHop>>, Error> {
        let names: BTreeMap<u32, String> =
            self.netlink.links().await?.into_iter().map(|link| (link.index, link.name)).collect();
        let hop = |hop: &NextHop| {
            let via = hop.via?;
            let link_local = matches!(via, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
            let interface = hop.link.filter(|_| link_local).and_then(|link| names.get(&link));
            let interface = interface.map(|name| name.as_str().into());
            Some(LearnedNextHop { weight: hop.weight, ..LearnedNextHop::new(via, interface) })
        };
        let mut all: BTreeMap<Prefix, BTreeSet<LearnedNextHop>> = BTreeMap::new();
        for route in self.ours().await?.into_iter().filter(|route| route.metric == self.settings.metric) {
            all.entry(Prefix::from(route.destination))
                .or_default()
                .extend(route.next_hops.iter().filter_map(hop));
        }
        Ok(all)
    }

    /// The rows whose route is missing or another in the kernel.
    async fn missing(&self, wanted: &Rows<RouteEntry>) -> Result<BTreeSet<Prefix>, Error> {
        let mut ours = self.ours().await?;
        ours.retain(|route| route.metric == self.settings.metric);
        let mut groups = self.groups.lock().await;
        groups.load(&self.netlink, &ours).await?;
        let there: BTreeMap<Prefix, Route> =
            ours.into_iter().map(|route| (Prefix::from(route.destination), route)).collect();
        let (mut missing, mut indexes) = (BTreeSet::new(), Indexes::new());
        for (prefix, row) in wanted.values().map(|row| (&row.prefix, row)) {
            if is_grouped(row) {
                if !groups.is_same(&self.netlink, row).await {
                    missing.insert(*prefix);
                }
                continue;
            }
            // A row that names an interface which is not there cannot be in the kernel either.
            let same = match (there.get(prefix), self.route(row, &mut indexes).await) {
                (Some(there), Ok(asked)) => is_same(there, &asked.normalised()),
                _ => false,
            };
            if !same {
                missing.insert(*prefix);
            }
        }
        Ok(missing)
    }

    /// Deletes our routes that are not wanted, except those that may belong to a source whose first list is missing: a
    /// route with a gateway may be a BGP peer's, one without any other source's.
    async fn prune_routes(&self, keep: &Rows<RouteEntry>, held: &BTreeSet<Source>) -> Result<(), Error> {
        let peers_held = held.iter().any(|source| matches!(source, Source::Peer(_)));
        let others_held = held.iter().any(|source| !matches!(source, Source::Peer(_)));
        let mut unwanted = Vec::new();
        for route in self.ours().await? {
            let has_gateway = route.next_hops.iter().any(|hop| hop.via.is_some());
            let may_be_held = if has_gateway { peers_held } else { others_held };
            // One of another metric is of an earlier configuration of ours.
            let wanted =
                keep.contains_key(&Prefix::from(route.destination)) && route.metric == self.settings.metric;
            if !wanted && !may_be_held {
                tracing::info!(%route, "a route that nothing asks for is deleted");
                unwanted.push(Write::DeleteRoute(route));
            }
        }
        self.netlink.write_all(&unwanted).await.into_iter().try_for_each(|outcome| outcome.map(drop))
    }
}

/// Whether a row's route names a group of next hops: those that BGP taught.
fn is_grouped(row: &RouteEntry) -> bool {
    row.origin == RouteOrigin::Bgp && !row.next_hops.is_empty()
}

/// Whether the kernel's route is the one that was asked for. The kernel fills in interfaces that were left to it.
fn is_same(there: &Route, asked: &Route) -> bool {
    let hops =
        |route: &Route| -> BTreeSet<_> { route.next_hops.iter().map(|hop| (hop.via, hop.link)).collect() };
    let (found, wanted) = (hops(there), hops(asked));
    let is_there = |(via, link): &(_, Option<u32>)| match link {
        Some(_) => found.contains(&(*via, *link)),
        None => found.iter().any(|(other, _)| other == via),
    };
    there.kind == asked.kind
        && there.source == asked.source
        && there.mtu == asked.mtu
        && found.len() == wanted.len()
        && wanted.iter().all(is_there)
}

impl Target<RouteEntry> for KernelRoutes {
    const BATCH_MAX: usize = BATCH_MAX;

    async fn update(&mut self, row: &RouteEntry) -> Result<(), String> {
        self.carry_one(Change::Update(row.clone())).await
    }

    async fn delete(&mut self, row: &RouteEntry) -> Result<(), String> {
        self.carry_one(Change::Delete(row.clone())).await
    }

    async fn carry(&mut self, changes: &[Change<RouteEntry>]) -> Vec<Result<(), String>> {
        self.carry_all(changes).await
    }

    async fn prune(&mut self, keep: &Rows<RouteEntry>, held: &BTreeSet<Source>) -> Result<(), String> {
        self.prune_routes(keep, held).await.map_err(|error| error.to_string())?;
        // What an earlier life's routes named and nothing names any more.
        let ours = self.ours().await.map_err(|error| error.to_string())?;
        let mut groups = self.groups.lock().await;
        groups.load(&self.netlink, &ours).await.map_err(|error| error.to_string())?;
        groups.collect(&self.netlink).await.map_err(|error| error.to_string())
    }

    async fn audit(&mut self, wanted: &Rows<RouteEntry>) -> Result<Option<BTreeSet<Prefix>>, String> {
        self.missing(wanted).await.map(Some).map_err(|error| error.to_string())
    }
}
