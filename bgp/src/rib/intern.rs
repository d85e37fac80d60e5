//! Equal attribute sets are kept once.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::wire::Attributes;

/// Sets before the first sweep for unused ones.
const SWEEP_MIN: usize = 1024;

/// The store of attribute sets.
#[derive(Debug)]
pub(crate) struct Interner {
    sets: BTreeSet<Arc<Attributes>>,
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self { sets: BTreeSet::new(), sweep_at: SWEEP_MIN }
    }
}

impl Interner {
    /// The one shared copy of a set.
    pub(crate) fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.sets.get(&attributes) {
            return Arc::clone(known);
        }
        if self.sets.len() >= self.sweep_at {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.sweep_at = SWEEP_MIN.max(self.sets.len() * 2);
        }
        let shared = Arc::new(attributes);
        self.sets.insert(Arc::clone(&shared));
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
        let mut interner = Interner::default();
        let med = |med| Attributes { med: Some(med), ..Attributes::default() };
        let kept = interner.intern(med(0));
        assert!(Arc::ptr_eq(&kept, &interner.intern(med(0))));
        for value in 0..10_000 {
            interner.intern(med(value));
        }
        assert!(interner.len() <= SWEEP_MIN + 1, "{}", interner.len());
        assert!(Arc::ptr_eq(&kept, &interner.intern(med(0))));
    }
}
