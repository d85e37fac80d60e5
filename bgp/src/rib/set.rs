//! Attribute sets with their next hop, each kept once however many prefixes share it.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

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

/// A set and the hash of what it says: a table that grows must not fetch every set to know its place.
#[derive(Debug)]
struct Slot {
    hash: u64,
    set: Arc<PathSet>,
}

/// The store of sets.
#[derive(Debug)]
pub(crate) struct PathSets {
    sets: HashTable<Slot>,
    state: FixedState,
    sweep_at: usize,
    /// Prefixes withdrawn since the last sweep.
    withdrawn: usize,
    next_serial: u64,
}

impl PathSets {
    /// An empty store. The seed keeps peers from choosing attributes that collide.
    pub(crate) fn new(seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        Self { sets: HashTable::new(), state, sweep_at: SWEEP_MIN, withdrawn: 0, next_serial: 0 }
    }

    /// The one shared copy of a set.
    pub(crate) fn intern(&mut self, attributes: Attributes, next_hop: NextHop) -> Arc<PathSet> {
        let hash = self.state.hash_one((&next_hop, &attributes));
        let plain = |said: &Said| {
            said.path_id == 0
                && said.received.is_none()
                && said.next_hop == next_hop
                && *said.attributes == attributes
        };
        if let Some(known) = self.find(hash, plain) {
            return known;
        }
        let said = Said { next_hop, attributes: Arc::new(attributes), path_id: 0, received: None };
        self.next_serial += 1;
        self.keep(hash, PathSet { said, serial: self.next_serial })
    }

    fn find(&self, hash: u64, is: impl Fn(&Said) -> bool) -> Option<Arc<PathSet>> {
        let found = self.sets.find(hash, |slot| slot.hash == hash && is(&slot.set.said));
        found.map(|slot| Arc::clone(&slot.set))
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
        let hash = self.state.hash_one(&said);
        match self.find(hash, |known| *known == said) {
            Some(known) => known,
            None => self.keep(hash, PathSet { said, serial }),
        }
    }

    fn keep(&mut self, hash: u64, set: PathSet) -> Arc<PathSet> {
        if self.sets.len() >= self.sweep_at {
            self.sweep();
        }
        let set = Arc::new(set);
        self.sets.insert_unique(hash, Slot { hash, set: Arc::clone(&set) }, |slot| slot.hash);
        set
    }

    /// So many prefixes were withdrawn: once these are as many as there are sets, it is worth to look which are not used any more.
    pub(crate) fn note_withdrawn(&mut self, prefixes: usize) {
        self.withdrawn += prefixes;
        if self.withdrawn >= self.sets.len().max(SWEEP_MIN) {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        self.sets.retain(|slot| Arc::strong_count(&slot.set) > 1);
        self.sweep_at = SWEEP_MIN.max(self.sets.len() * 2);
        self.withdrawn = 0;
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

    #[test]
    fn withdrawals_free_what_nobody_uses() {
        let mut sets = PathSets::new(1);
        let hop = NextHop::new([10, 0, 0, 1].into());
        let med = |med| Attributes { med: Some(med), ..Attributes::default() };
        let held: Vec<_> = (0..5000).map(|value| sets.intern(med(value), hop)).collect();
        sets.note_withdrawn(4999);
        assert_eq!(sets.len(), 5000);
        drop(held);
        sets.note_withdrawn(1);
        assert_eq!(sets.len(), 0);
    }
}
