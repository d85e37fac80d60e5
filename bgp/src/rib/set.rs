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
    /// Order of first appearance of next hop and attributes: equal numbers mean that these are equal. It gives listings and messages an order that
    /// does not depend on addresses in memory.
    serial: u64,
}

/// Next hop and attributes, and what keeps sets apart that have these in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Said {
    next_hop: NextHop,
    attributes: Arc<Attributes>,
    /// The peer's path identifier (RFC 7911); 0 where it sends none. Here and not with the route, which most sessions have no identifier for.
    path_id: u32,
    /// What the peer sent, where import policy made this of it.
    received: Option<Received>,
}

/// A set as it was received.
#[derive(Clone, Debug)]
struct Received(Arc<PathSet>);

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        self.0.serial == other.0.serial
    }
}

impl Eq for Received {}

impl Hash for Received {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.serial.hash(state);
    }
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

    /// The peer's path identifier; 0 where it sends none.
    pub(crate) const fn path_id(&self) -> u32 {
        self.said.path_id
    }

    /// The set as the peer sent it, if import policy changed it.
    fn original(&self) -> Option<&Arc<Self>> {
        self.said.received.as_ref().map(|received| &received.0)
    }

    /// The set as the peer sent it: this one, unless import policy changed it.
    pub(crate) fn received(set: &Arc<Self>) -> &Arc<Self> {
        set.original().unwrap_or(set)
    }

    #[cfg(test)]
    pub(super) fn of(attributes: Attributes, next_hop: NextHop) -> Arc<Self> {
        let said = Said { next_hop, attributes: Arc::new(attributes), path_id: 0, received: None };
        Arc::new(Self { said, serial: 0 })
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
        let said = Said { next_hop, attributes: Arc::new(attributes), path_id: 0, received: None };
        if let Some(known) = self.sets.get(&said) {
            return Arc::clone(&known.0);
        }
        self.next_serial += 1;
        self.keep(PathSet { said, serial: self.next_serial })
    }

    /// A set with a path identifier; 0 is the set itself.
    pub(crate) fn with_path_id(&mut self, set: &Arc<PathSet>, path_id: u32) -> Arc<PathSet> {
        if set.path_id() == path_id {
            return Arc::clone(set);
        }
        self.variant(set.serial, Said { path_id, ..set.said.clone() })
    }

    /// What import policy made of a set.
    pub(crate) fn edited(
        &mut self,
        received: &Arc<PathSet>,
        attributes: Attributes,
        next_hop: NextHop,
    ) -> Arc<PathSet> {
        if *received.attributes().as_ref() == attributes && *received.next_hop() == next_hop {
            return Arc::clone(received);
        }
        let plain = self.intern(attributes, next_hop);
        let origin = Some(Received(Arc::clone(received)));
        self.variant(
            plain.serial,
            Said { path_id: received.path_id(), received: origin, ..plain.said.clone() },
        )
    }

    /// A set and what it was made of, with the same change.
    pub(crate) fn changed(&mut self, set: &Arc<PathSet>, change: impl Fn(&mut Attributes)) -> Arc<PathSet> {
        let changed = |set: &PathSet| {
            let mut attributes = Attributes::clone(set.attributes());
            change(&mut attributes);
            (attributes, *set.next_hop())
        };
        let (attributes, next_hop) = changed(PathSet::received(set));
        let plain = self.intern(attributes, next_hop);
        let received = self.with_path_id(&plain, set.path_id());
        if set.original().is_none() {
            return received;
        }
        let (attributes, next_hop) = changed(set);
        self.edited(&received, attributes, next_hop)
    }

    /// Another set of the same next hop and attributes.
    fn variant(&mut self, serial: u64, said: Said) -> Arc<PathSet> {
        match self.sets.get(&said) {
            Some(known) => Arc::clone(&known.0),
            None => self.keep(PathSet { said, serial }),
        }
    }

    fn keep(&mut self, set: PathSet) -> Arc<PathSet> {
        if self.sets.len() >= self.sweep_at {
            self.sets.retain(|set| Arc::strong_count(&set.0) > 1);
            self.sweep_at = SWEEP_MIN.max(self.sets.len() * 2);
        }
        let shared = Arc::new(set);
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
    fn variants_share_attributes_and_number() {
        let mut sets = PathSets::new(1);
        let (hop, other) = (NextHop::new([10, 0, 0, 1].into()), NextHop::new([10, 0, 0, 2].into()));
        let plain = sets.intern(Attributes::default(), hop);
        let seventh = sets.with_path_id(&plain, 7);
        assert!(!Arc::ptr_eq(&plain, &seventh) && Arc::ptr_eq(&seventh, &sets.with_path_id(&plain, 7)));
        assert_eq!((seventh.path_id(), seventh.serial()), (7, plain.serial()));
        assert!(Arc::ptr_eq(seventh.attributes(), plain.attributes()));
        let edited = sets.edited(&seventh, Attributes { med: Some(1), ..Attributes::default() }, other);
        assert!(Arc::ptr_eq(PathSet::received(&edited), &seventh));
        assert_eq!((edited.path_id(), edited.attributes().med), (7, Some(1)));
        assert_ne!(edited.serial(), plain.serial());
        assert!(Arc::ptr_eq(&sets.edited(&seventh, Attributes::default(), hop), &seventh), "nothing changed");
        let changed = sets.changed(&edited, |attributes| attributes.local_pref = Some(7));
        let received = PathSet::received(&changed);
        assert_eq!((changed.attributes().med, changed.attributes().local_pref), (Some(1), Some(7)));
        assert_eq!((received.attributes().med, received.attributes().local_pref), (None, Some(7)));
        assert_eq!((changed.path_id(), received.path_id(), *changed.next_hop()), (7, 7, other));
    }

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
