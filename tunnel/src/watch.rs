//! What somebody else does to the node's routes and devices, told by the kernel as it happens.
//!
//! The agent's own writes disturb nothing: a route that goes counts if it is still wanted, one that comes if another
//! program put it in our route's place. IPv4 routes that go with their interface are not told one by one, so a device
//! that goes or falls disturbs routes as well.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use tombolo_base::prefix::Prefix;
use tombolo_netlink::{Change, Changes, Link, Netlink, Route, Watch};

use crate::routes::RouteSettings;

/// How long a burst of changes is collected before it is told.
const SETTLE: Duration = Duration::from_millis(100);
/// How long before a broken subscription is made anew.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

/// What may be another in the kernel than it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disturbance {
    /// Routes: compare them.
    pub routes: bool,
    /// One of the node's devices is gone, new or down: ensure them.
    pub devices: bool,
}

impl Disturbance {
    const ALL: Self = Self { routes: true, devices: true };

    const fn is_any(self) -> bool {
        self.routes || self.devices
    }

    const fn add(&mut self, other: Self) {
        self.routes |= other.routes;
        self.devices |= other.devices;
    }
}

/// The stream of disturbances of one namespace.
#[derive(Debug)]
pub struct Disturbances {
    netlink: Netlink,
    settings: RouteSettings,
    changes: Option<Changes>,
    /// The devices that matter, with index and whether they were up when last heard of.
    devices: BTreeMap<String, Option<(u32, bool)>>,
    /// The burst that is being collected, and when it is told.
    found: Disturbance,
    until: Option<Instant>,
}

impl Disturbances {
    /// Listens from now on: to the routes of `settings` and to the named devices.
    pub async fn listen(netlink: Netlink, settings: RouteSettings, devices: BTreeSet<String>) -> Self {
        let devices = devices.into_iter().map(|name| (name, None)).collect();
        let (found, until) = (Disturbance::default(), None);
        let mut this = Self { netlink, settings, changes: None, devices, found, until };
        this.subscribe().await;
        this
    }

    async fn subscribe(&mut self) {
        let watch = Watch { links: true, routes: true, ..Watch::default() };
        match self.netlink.changes(watch) {
            Ok(changes) => self.changes = Some(changes),
            Err(error) => {
                tracing::warn!(%error, "changes of routes and devices are not told; they are looked at now and then")
            }
        }
        for link in self.netlink.links().await.unwrap_or_default() {
            if let Some(known) = self.devices.get_mut(&link.name) {
                *known = Some((link.index, link.up));
            }
        }
    }

    /// The next disturbance, bursts as one. `is_wanted` tells whether a route is to be there. Safe to cancel.
    pub async fn next(&mut self, is_wanted: impl Fn(Prefix) -> bool) -> Disturbance {
        loop {
            let Some(changes) = &mut self.changes else {
                tokio::time::sleep(SUBSCRIBE_AGAIN).await;
                self.subscribe().await;
                if self.changes.is_some() {
                    return Disturbance::ALL;
                }
                continue;
            };
            let change = match self.until {
                None => changes.next().await,
                Some(at) => match tokio::time::timeout_at(at, changes.next()).await {
                    Ok(change) => change,
                    Err(_) => {
                        self.until = None;
                        return std::mem::take(&mut self.found);
                    }
                },
            };
            match change {
                Some(change) => {
                    let disturbance = self.judge(change, &is_wanted);
                    self.found.add(disturbance);
                }
                None => self.changes = None,
            }
            if self.found.is_any() && self.until.is_none() {
                self.until = Some(Instant::now() + SETTLE);
            }
        }
    }

    fn judge(&mut self, change: Change, is_wanted: &impl Fn(Prefix) -> bool) -> Disturbance {
        let is_in_place = |route: &Route| {
            route.table == self.settings.table
                && route.metric == self.settings.metric
                && is_wanted(Prefix::from(route.destination))
        };
        let routes = |disturbed| Disturbance { routes: disturbed, devices: false };
        match change {
            Change::RouteGone(route) => {
                routes(route.protocol == self.settings.protocol && is_in_place(&route))
            }
            Change::Route(route) => routes(route.protocol != self.settings.protocol && is_in_place(&route)),
            Change::Link(link) => self.link(&link, Some((link.index, link.up))),
            Change::LinkGone(link) => self.link(&link, None),
            Change::Lost => Disturbance::ALL,
            Change::Address(_) | Change::AddressGone(_) => Disturbance::default(),
        }
    }

    fn link(&mut self, link: &Link, now: Option<(u32, bool)>) -> Disturbance {
        match self.devices.get_mut(&link.name) {
            Some(known) if *known != now => {
                *known = now;
                Disturbance::ALL
            }
            _ => Disturbance::default(),
        }
    }
}
