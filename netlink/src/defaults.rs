//! The routes to everywhere, followed by what the kernel tells of changes: they are few, and the table that they are in may be long.

use std::collections::BTreeSet;

use crate::{Change, Error, Netlink, Route};

/// The default routes of one table. Subscribe with [`crate::Watch::default_routes`], links and addresses, have it [note](Self::note) every change, and
/// [read](Self::read) before looking.
#[derive(Clone, Debug)]
pub struct DefaultRoutes {
    table: u32,
    routes: BTreeSet<Route>,
    /// What is kept may not be what is there.
    in_doubt: bool,
}

impl DefaultRoutes {
    /// Those of a table, not read yet.
    #[must_use]
    pub const fn of(table: u32) -> Self {
        Self { table, routes: BTreeSet::new(), in_doubt: true }
    }

    /// Takes in a change. Whether the routes are others now, or in doubt.
    pub fn note(&mut self, change: &Change) -> bool {
        match change {
            Change::Route(route) if self.is_one(route) => self.appeared(route),
            Change::RouteGone(route) if self.is_one(route) => self.gone(route),
            // IPv4 routes that go with their interface or their source address are not told one by one.
            Change::Link(link) if !link.up && self.leads_through(link.index) => self.doubt(),
            Change::LinkGone(link) if self.leads_through(link.index) => self.doubt(),
            Change::AddressGone(address)
                if self.leads_through(address.link)
                    || self.routes.iter().any(|route| route.source == Some(address.address.addr())) =>
            {
                self.doubt()
            }
            Change::Lost => self.doubt(),
            _ => false,
        }
    }

    /// Lists the table if what is kept is in doubt; else asks the kernel nothing.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell; it stays in doubt.
    pub async fn read(&mut self, netlink: &Netlink) -> Result<(), Error> {
        if self.in_doubt {
            self.routes = netlink.default_routes(self.table).await?.into_iter().collect();
            self.in_doubt = false;
        }
        Ok(())
    }

    /// The routes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    fn is_one(&self, route: &Route) -> bool {
        route.table == self.table && route.destination.prefix_len() == 0
    }

    /// Another route of the same destination and metric: the new one took its place, was put beside it, or is a part of it.
    fn has_rival(&self, route: &Route) -> bool {
        let rival = |kept: &Route| {
            kept.destination == route.destination && kept.metric == route.metric && kept != route
        };
        self.routes.iter().any(rival)
    }

    fn leads_through(&self, link: u32) -> bool {
        self.routes.iter().flat_map(|route| &route.next_hops).any(|hop| hop.link == Some(link))
    }

    fn doubt(&mut self) -> bool {
        self.in_doubt = true;
        true
    }

    fn appeared(&mut self, route: &Route) -> bool {
        if self.has_rival(route) { self.doubt() } else { self.routes.insert(route.clone()) }
    }

    fn gone(&mut self, route: &Route) -> bool {
        if self.has_rival(route) { self.doubt() } else { self.routes.remove(route) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NextHop;

    fn default(via: &str, metric: u32) -> Route {
        let hop = NextHop { link: Some(2), ..NextHop::via(via.parse().unwrap()) };
        Route { metric, ..Route::unicast("0.0.0.0/0".parse().unwrap(), vec![hop]) }
    }

    #[test]
    fn a_change_is_taken_in_unless_it_leaves_a_doubt() {
        let mut defaults = DefaultRoutes { in_doubt: false, ..DefaultRoutes::of(254) };
        let (first, worse) = (default("10.0.0.1", 0), default("10.0.0.9", 5));
        assert!(defaults.note(&Change::Route(first.clone())) && defaults.note(&Change::Route(worse.clone())));
        assert!(!defaults.note(&Change::Route(first.clone())), "it is known");
        let elsewhere = Route { table: 100, ..default("10.0.0.1", 7) };
        assert!(!defaults.note(&Change::Route(elsewhere)));
        assert!(
            defaults.note(&Change::RouteGone(worse.clone())) && !defaults.note(&Change::RouteGone(worse))
        );
        assert!(defaults.iter().eq([&first]) && !defaults.in_doubt);
        // In its place, or beside it?
        assert!(defaults.note(&Change::Route(default("10.0.0.3", 0))) && defaults.in_doubt);
        defaults.in_doubt = false;
        assert!(defaults.note(&Change::Lost) && defaults.in_doubt);
    }
}
