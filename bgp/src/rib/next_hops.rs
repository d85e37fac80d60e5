//! Next hops and whether they can be reached, as somebody who knows the kernel's routes says (RFC 4271 section 9.1.2.1: a path whose next hop cannot
//! be resolved is not used). Without tracking every next hop counts as reachable, at no cost.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::family::NextHop;

/// Next hops before the first sweep for those that no path has any more.
const SWEEP_MIN: usize = 64;

/// What is known of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Asked, not answered: not usable yet.
    Asked,
    /// No way there.
    Unreachable,
    /// A way of this interior cost.
    Reachable(u32),
}

/// The next hops of all paths.
#[derive(Debug)]
pub(crate) struct NextHops {
    /// None: not tracked.
    known: Option<HashMap<IpAddr, Known, FixedState>>,
    changed: bool,
    sweep_at: usize,
}

/// The address to resolve. A link-local one is on the link of the session by what it is.
const fn key(next_hop: &NextHop) -> Option<IpAddr> {
    match (next_hop.address, next_hop.link_local) {
        (IpAddr::V6(address), _) if address.is_unicast_link_local() => None,
        (IpAddr::V6(_), Some(_)) => None,
        (address, _) => Some(address),
    }
}

impl NextHops {
    pub(super) fn new(tracked: bool, seed: u64) -> Self {
        let known = tracked.then(|| HashMap::with_hasher(FixedState::with_seed(seed)));
        Self { known, changed: false, sweep_at: SWEEP_MIN }
    }

    /// A path with this next hop has come. True: there are so many that unused ones should be [swept](Self::sweep).
    pub(super) fn seen(&mut self, next_hop: &NextHop) -> bool {
        let (Some(known), Some(address)) = (&mut self.known, key(next_hop)) else { return false };
        known.entry(address).or_insert_with(|| {
            self.changed = true;
            Known::Asked
        });
        known.len() >= self.sweep_at
    }

    /// Forgets all but those in use.
    pub(super) fn sweep<'a>(&mut self, used: impl Iterator<Item = &'a NextHop>) {
        let Some(known) = &mut self.known else { return };
        let used: HashSet<IpAddr, FixedState> = used.filter_map(key).collect();
        known.retain(|address, _| used.contains(address));
        self.sweep_at = SWEEP_MIN.max(known.len() * 2);
        self.changed = true;
    }

    /// All next hops to resolve, if they are others than last taken.
    pub(crate) fn take_changed(&mut self) -> Option<BTreeSet<IpAddr>> {
        let known = self.known.as_ref()?;
        std::mem::take(&mut self.changed).then(|| known.keys().copied().collect())
    }

    /// The answer: the cost of the way there, none if there is no way. Whether it is another than before.
    pub(super) fn resolved(&mut self, address: IpAddr, metric: Option<u32>) -> bool {
        let entry = self.known.as_mut().and_then(|known| known.get_mut(&address));
        let news = metric.map_or(Known::Unreachable, Known::Reachable);
        entry.is_some_and(|entry| std::mem::replace(entry, news) != news)
    }

    /// The interior cost of a way there (RFC 4271 section 9.1.2.2 e); none: not usable.
    pub(super) fn cost(&self, next_hop: &NextHop) -> Option<u32> {
        let (Some(known), Some(address)) = (&self.known, key(next_hop)) else { return Some(0) };
        match known.get(&address) {
            Some(Known::Reachable(metric)) => Some(*metric),
            _ => None,
        }
    }

    pub(crate) fn is_usable(&self, next_hop: &NextHop) -> bool {
        self.known.is_none() || self.cost(next_hop).is_some()
    }

    pub(super) const fn is_tracked(&self) -> bool {
        self.known.is_some()
    }
}
