//! Attribute sets with their next hop, each kept once however many prefixes share it.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::family::NextHop;
use crate::wire::Attributes;

/// Sets before the first sweep for unused ones.
const SWEEP_MIN: usize = 1024;

/// What a path says, apart from whom it came from.
#[derive(Debug)]
pub(crate) struct PathSet {
    said: Said,
    /// Order of first appearance: gives listings and messages an order that does not depend on addresses in memory.
    serial: u64,
}

/// Next hop and attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Said {
    pub(crate) next_hop: NextHop,
    pub(crate) attributes: Arc<Attributes>,
}

impl PathSet {
    pub(crate) fn next_hop(&self) -> &NextHop {
        &self.said.next_hop
    }

    pub(crate) fn attributes(&self) -> &Arc<Attributes> {
        &self.said.attributes
    }

    pub(crate) const fn serial(&self) -> u64 {
        self.serial
    }

    #[cfg(test)]
    pub(super) fn of(attributes: Attributes, next_hop: NextHop) -> Arc<Self> {
        Arc::new(Self { said: Said { next_hop, attributes: Arc::new(attributes) }, serial: 0 })
    }
}

impl PartialEq for PathSet {
    fn eq(&self, other: &Self) -> bool {
        self.said == other.said
    }
}

impl Eq for PathSet {}

impl Hash for PathSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.said.hash(state);
    }
}

impl Borrow<Said> for Shared {
    fn borrow(&self) -> &Said {
        &self.0.said
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Shared(Arc<PathSet>);

/// The store of sets.
#[derive(Debug)]
pub(crate) struct PathSets {
    sets: HashSet<Shared, FixedState>,
    sweep_at: usize,
    next_serial: u64,
}

impl PathSets {
    /// An empty store. The seed keeps peers from choosing attributes that collide.
    pub(crate) fn new(seed: u64) -> Self {
        let sets = HashSet::with_hasher(FixedState::with_seed(seed));
        Self { sets, sweep_at: SWEEP_MIN, next_serial: 0 }
    }

    /// The one shared copy of a set.
    pub(crate) fn intern(&mut self, attributes: Attributes, next_hop: NextHop) -> Arc<PathSet> {
        let said = Said { next_hop, attributes: Arc::new(attributes) };
        if let Some(known) = self.sets.get(&said) {
            return Arc::clone(&known.0);
        }
        if self.sets.len() >= self.sweep_at {
            self.sets.retain(|set| Arc::strong_count(&set.0) > 1);
            self.sweep_at = SWEEP_MIN.max(self.sets.len() * 2);
        }
        self.next_serial += 1;
        let shared = Arc::new(PathSet { said, serial: self.next_serial });
        self.sets.insert(Shared(Arc::clone(&shared)));
        shared
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_one_and_unused_ones_go() {
        let mut sets = PathSets::new(1);
        let hop = || NextHop::new([10, 0, 0, 1].into());
        let med = |med| Attributes { med: Some(med), ..Attributes::default() };
        let kept = sets.intern(med(0), hop());
        assert!(Arc::ptr_eq(&kept, &sets.intern(med(0), hop())));
        assert!(!Arc::ptr_eq(&kept, &sets.intern(med(0), NextHop::new([10, 0, 0, 2].into()))));
        for value in 0..10_000 {
            sets.intern(med(value), hop());
        }
        assert!(sets.len() <= SWEEP_MIN + 1, "{}", sets.len());
        assert!(Arc::ptr_eq(&kept, &sets.intern(med(0), hop())));
    }
}
