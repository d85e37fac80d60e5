//! Ways of learned routes as next-hop objects: a group for each distinct set of next hops, named by the routes. When a router is lost, each group
//! it is in is changed once, however many prefixes go through it (prefix-independent convergence); the rows that follow find their route as they
//! want it and cost the kernel nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use tombolo_base::prefix::Prefix;
use tombolo_netlink::{Error, Netlink, NextHopKind, NextHopObject, NextHopObjects, Route, Write};
use tombolo_topology::{LearnedNextHop, RouteEntry};

/// Our objects' numbers start here: other owners count from 1.
const FIRST_ID: u32 = 0x5400_0000;

/// The greatest share of a member (the kernel keeps it less one in an octet).
const WEIGHT_MAX: u16 = 256;

/// Single objects by number, with their share.
type Members = BTreeMap<u32, u16>;

/// A next hop as a row names it: an address, and the interface of a link-local one.
type Named = (IpAddr, Option<Arc<str>>);

/// A route that names a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Installed {
    group: u32,
    source: Option<IpAddr>,
    mtu: Option<u32>,
}

/// What is in the kernel, as far as this process put it there or found it of an earlier life.
#[derive(Debug)]
pub(crate) struct Groups {
    /// None until first used, or if the kernel has no such objects.
    objects: Option<NextHopObjects>,
    protocol: u8,
    singles: BTreeMap<(IpAddr, u32), u32>,
    groups: BTreeMap<u32, Members>,
    by_members: BTreeMap<Members, u32>,
    installed: HashMap<Prefix, Installed>,
    /// Routes that name each group; groups without any are left out.
    uses: BTreeMap<u32, usize>,
    /// Where a next hop leads: a neighbour on a link. Asked anew after a disturbance.
    resolved: BTreeMap<Named, (IpAddr, u32)>,
    next_id: u32,
    /// Messages sent about objects, for tests and metrics.
    messages: u64,
}

impl Groups {
    pub(crate) fn new(protocol: u8) -> Self {
        Self {
            objects: None,
            protocol,
            singles: BTreeMap::new(),
            groups: BTreeMap::new(),
            by_members: BTreeMap::new(),
            installed: HashMap::new(),
            uses: BTreeMap::new(),
            resolved: BTreeMap::new(),
            next_id: FIRST_ID,
            messages: 0,
        }
    }

    pub(crate) const fn messages(&self) -> u64 {
        self.messages
    }

    pub(crate) const fn is_loaded(&self) -> bool {
        self.objects.is_some()
    }

    /// Takes over what is in the kernel now: of an earlier life, or after others meddled with it.
    pub(crate) async fn load(&mut self, netlink: &Netlink, routes: &[Route]) -> Result<(), Error> {
        let objects = match &self.objects {
            Some(objects) => objects.clone(),
            None => netlink.next_hop_objects()?,
        };
        let mut found = objects.list(self.protocol).await?;
        self.objects = Some(objects.clone());
        if self.restore(&found).await {
            found = objects.list(self.protocol).await?;
        }
        self.singles.clear();
        self.groups.clear();
        self.by_members.clear();
        self.resolved.clear();
        self.next_id = found.keys().next_back().map_or(FIRST_ID, |last| last.saturating_add(1)).max(FIRST_ID);
        for (id, object) in found {
            match object.kind {
                NextHopKind::Single { via, link } => {
                    self.singles.insert((via, link), id);
                }
                NextHopKind::Group(members) => {
                    self.by_members.insert(members.clone(), id);
                    self.groups.insert(id, members);
                }
            }
        }
        let named = routes.iter().filter_map(|route| Some((route, route.object?)));
        self.installed = named
            .filter(|(_, group)| self.groups.contains_key(group))
            .map(|(route, group)| {
                let installed = Installed { group, source: route.source, mtu: route.mtu };
                (Prefix::from(route.destination), installed)
            })
            .collect();
        self.uses.clear();
        for installed in self.installed.values() {
            *self.uses.entry(installed.group).or_default() += 1;
        }
        Ok(())
    }

    /// Puts back what the kernel took away of ours: with a link that goes down its next hops leave their groups. Whether anything was put.
    async fn restore(&mut self, found: &BTreeMap<u32, NextHopObject>) -> bool {
        let lost: Vec<(u32, NextHopKind)> = self
            .singles
            .iter()
            .filter(|(_, id)| !found.contains_key(id))
            .map(|((via, link), id)| (*id, NextHopKind::Single { via: *via, link: *link }))
            .collect();
        let (mut back, mut away) = (!lost.is_empty(), BTreeSet::new());
        for (id, kind) in lost {
            if self.put(id, kind).await.is_err() {
                // The link is still down, or gone.
                away.insert(id);
            }
        }
        let is_found = |id: &u32, members: &Members| {
            found.get(id).is_some_and(|object| object.kind == NextHopKind::Group(members.clone()))
        };
        let broken: Vec<(u32, Members)> = self
            .groups
            .iter()
            .filter(|(id, members)| !is_found(id, members) && !members.keys().any(|id| away.contains(id)))
            .map(|(id, members)| (*id, members.clone()))
            .collect();
        for (id, members) in broken {
            back = true;
            if let Err(error) = self.put(id, NextHopKind::Group(members)).await {
                tracing::debug!(%error, "a group of next hops cannot be put back as it was");
            }
        }
        back
    }

    async fn put(&mut self, id: u32, kind: NextHopKind) -> Result<(), Error> {
        if let Some(objects) = &self.objects {
            self.messages += 1;
            objects.replace(&NextHopObject { id, protocol: self.protocol, kind }).await?;
        }
        Ok(())
    }

    fn fresh_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        id
    }

    /// The neighbour and link that a next hop stands for: itself, or the gateway of the route that leads to it.
    async fn resolve(&mut self, netlink: &Netlink, hop: &LearnedNextHop) -> Result<(IpAddr, u32), String> {
        let key = (hop.via, hop.interface.clone());
        if let Some(known) = self.resolved.get(&key) {
            return Ok(*known);
        }
        let way = match hop.interface.as_deref() {
            Some(name) => (hop.via, netlink.link(name).await.map_err(|error| error.to_string())?.index),
            None => {
                let found = netlink.way_to(hop.via).await.map_err(|error| error.to_string())?;
                // A way that BGP taught may lead through the very router that is looked for.
                let found = found.filter(|found| found.protocol != self.protocol).ok_or_else(|| {
                    format!("no route leads to the next hop {}; is its interface up?", hop.via)
                })?;
                (found.via.unwrap_or(hop.via), found.link)
            }
        };
        self.resolved.insert(key, way);
        Ok(way)
    }

    /// The members that a row asks for, made if need be.
    async fn wanted(&mut self, netlink: &Netlink, row: &RouteEntry) -> Result<Members, String> {
        let mut members = Members::new();
        for hop in &row.next_hops {
            let (via, link) = self.resolve(netlink, hop).await?;
            let id = match self.singles.get(&(via, link)) {
                Some(id) => *id,
                None => {
                    let id = self.fresh_id();
                    let single = NextHopKind::Single { via, link };
                    self.put(id, single).await.map_err(|error| error.to_string())?;
                    self.singles.insert((via, link), id);
                    id
                }
            };
            // Two next hops behind one neighbour share twice.
            let share = members.entry(id).or_default();
            *share = share.saturating_add(hop.weight.max(1)).min(WEIGHT_MAX);
        }
        Ok(members)
    }

    /// Whether the route is in the kernel as the row asks, as far as we know.
    fn is_there(&self, row: &RouteEntry, members: &Members) -> bool {
        self.installed.get(&row.prefix).is_some_and(|installed| {
            self.groups.get(&installed.group) == Some(members)
                && installed.source == row.source_address
                && installed.mtu == row.mtu.map(u32::from)
        })
    }

    /// Whether the kernel's route is as the row asks; after [`Groups::load`].
    pub(crate) async fn is_same(&mut self, netlink: &Netlink, row: &RouteEntry) -> bool {
        match self.wanted(netlink, row).await {
            Ok(members) => self.is_there(row, &members),
            Err(_) => false,
        }
    }

    /// The group a row's route is to name; none if the route is there and names it.
    pub(crate) async fn group_for(
        &mut self,
        netlink: &Netlink,
        row: &RouteEntry,
    ) -> Result<Option<u32>, String> {
        let members = self.wanted(netlink, row).await?;
        if self.is_there(row, &members) {
            return Ok(None);
        }
        if let Some(id) = self.by_members.get(&members) {
            return Ok(Some(*id));
        }
        let id = self.fresh_id();
        self.put(id, NextHopKind::Group(members.clone())).await.map_err(|error| error.to_string())?;
        self.by_members.insert(members.clone(), id);
        self.groups.insert(id, members);
        Ok(Some(id))
    }

    /// A row's route names a group now, or none any more.
    pub(crate) fn note(&mut self, row: &RouteEntry, group: Option<u32>) {
        let before = match group {
            Some(group) => {
                *self.uses.entry(group).or_default() += 1;
                let mtu = row.mtu.map(u32::from);
                self.installed.insert(row.prefix, Installed { group, source: row.source_address, mtu })
            }
            None => self.installed.remove(&row.prefix),
        };
        if let Some(before) = before
            && let Some(uses) = self.uses.get_mut(&before.group)
        {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&before.group);
            }
        }
    }

    /// Takes a next hop out of every group that has others besides: one message a group.
    pub(crate) async fn lose(&mut self, next_hop: IpAddr) -> Result<usize, Error> {
        let behind = self.resolved.iter().filter(|((via, _), _)| *via == next_hop).map(|(_, way)| *way);
        let ways: BTreeSet<(IpAddr, u32)> = behind.collect();
        // A neighbour that other next hops stand behind as well is not lost with one of them.
        let shared = |way: &(IpAddr, u32)| {
            self.resolved.iter().any(|((via, _), other)| *via != next_hop && other == way)
        };
        let direct = self.singles.iter().filter(|((via, _), _)| *via == next_hop).map(|(_, id)| *id);
        let ways = ways.iter().filter(|way| !shared(way)).filter_map(|way| self.singles.get(way).copied());
        let lost: BTreeSet<u32> = ways.chain(direct).collect();
        let hit: Vec<(u32, Members)> = self
            .groups
            .iter()
            .filter(|(_, members)| members.keys().any(|id| lost.contains(id)))
            .map(|(group, members)| {
                let left = members.iter().filter(|(id, _)| !lost.contains(id));
                (*group, left.map(|(id, weight)| (*id, *weight)).collect())
            })
            .collect();
        let mut changed = 0;
        for (group, left) in hit {
            // The routes of a group without members go with their rows.
            if left.is_empty() {
                continue;
            }
            self.put(group, NextHopKind::Group(left.clone())).await?;
            if let Some(old) = self.groups.insert(group, left.clone())
                && self.by_members.get(&old) == Some(&group)
            {
                self.by_members.remove(&old);
            }
            self.by_members.entry(left).or_insert(group);
            changed += 1;
        }
        Ok(changed)
    }

    /// Deletes groups that no route names, and then single objects that are in no group.
    pub(crate) async fn collect(&mut self, netlink: &Netlink) -> Result<(), Error> {
        let unused: Vec<u32> = self.groups.keys().filter(|id| !self.uses.contains_key(id)).copied().collect();
        let (gone, refused) = delete(netlink, &unused).await;
        for id in gone {
            if let Some(members) = self.groups.remove(&id)
                && self.by_members.get(&members) == Some(&id)
            {
                self.by_members.remove(&members);
            }
        }
        let grouped: BTreeSet<u32> = self.groups.values().flat_map(BTreeMap::keys).copied().collect();
        let idle: Vec<u32> = self.singles.values().filter(|id| !grouped.contains(id)).copied().collect();
        let (gone, refused_too) = delete(netlink, &idle).await;
        self.singles.retain(|_, id| !gone.contains(id));
        refused.or(refused_too).map_or(Ok(()), Err)
    }

    /// How many groups stand without a route that names them.
    pub(crate) fn unused(&self) -> usize {
        self.groups.len().saturating_sub(self.uses.len())
    }
}

/// Deletes objects: those that are gone, and one refusal if there was any.
async fn delete(netlink: &Netlink, ids: &[u32]) -> (BTreeSet<u32>, Option<Error>) {
    let writes: Vec<Write> = ids.iter().copied().map(Write::DeleteNextHop).collect();
    let (mut gone, mut refused) = (BTreeSet::new(), None);
    for (id, outcome) in ids.iter().zip(netlink.write_all(&writes).await) {
        match outcome {
            Ok(_) => drop(gone.insert(*id)),
            Err(error) => refused = Some(error),
        }
    }
    (gone, refused)
}
