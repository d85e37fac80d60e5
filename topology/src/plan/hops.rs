//! Next hops of an earlier life's routes: an ECMP set does not shrink before all sessions have spoken.

use crate::rows::{LearnedNextHop, LearnedRoute, RouteEntry, RouteOrigin};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::prefix::Prefix;

/// Next hops that the kernel's routes had when this life began and that no session has named yet.
#[derive(Clone, Debug, Default)]
pub(super) struct RestoredHops {
    by_prefix: BTreeMap<Prefix, BTreeSet<LearnedNextHop>>,
}

impl RestoredHops {
    pub(super) fn restore(&mut self, hops: impl IntoIterator<Item = (Prefix, BTreeSet<LearnedNextHop>)>) {
        self.by_prefix.extend(hops.into_iter().filter(|(_, hops)| !hops.is_empty()));
    }

    /// A hop that was learned in this life goes when it is withdrawn.
    pub(super) fn heard(&mut self, row: &LearnedRoute) {
        if let Some(hops) = self.by_prefix.get_mut(&row.prefix) {
            hops.retain(|old| row.next_hops.iter().all(|new| new.via != old.via));
            if hops.is_empty() {
                self.by_prefix.remove(&row.prefix);
            }
        }
    }

    /// All sessions have spoken, or had their time: what none of them named goes. The prefixes it concerns.
    pub(super) fn release(&mut self) -> impl Iterator<Item = Prefix> + use<> {
        std::mem::take(&mut self.by_prefix).into_keys()
    }

    /// The route to have: the wanted one and the hops that wait for their session. If the sessions that have spoken
    /// withdrew it, those hops carry on what is `present`.
    pub(super) fn join(
        &self,
        prefix: Prefix,
        wanted: Option<RouteEntry>,
        present: Option<&RouteEntry>,
    ) -> Option<RouteEntry> {
        let Some(waiting) = self.by_prefix.get(&prefix) else { return wanted };
        match wanted {
            Some(mut route) if route.origin == RouteOrigin::Bgp => {
                route.next_hops.extend(waiting.iter().cloned());
                Some(route)
            }
            Some(route) => Some(route),
            None => {
                let present = present.filter(|route| route.origin == RouteOrigin::Bgp)?;
                Some(RouteEntry { next_hops: waiting.clone(), ..present.clone() })
            }
        }
    }
}
