//! Sets built from several sources do not shrink before all their contributors have spoken, or a time has passed.

use crate::clock::Moment;
use crate::source::{Source, SourceState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a restart may keep members that no source has confirmed yet.
pub const HOLD: Duration = Duration::from_secs(60);

/// Tells whether an aggregate may shrink: all its contributors are initialised, or [`HOLD`] has passed since start.
#[derive(Debug, Clone)]
pub struct Gate {
    opens_at: Moment,
    states: BTreeMap<Source, SourceState>,
}

impl Gate {
    /// A gate for a life that began at `start`.
    #[must_use]
    pub const fn new(start: Moment) -> Self {
        Self { opens_at: start.after(HOLD), states: BTreeMap::new() }
    }

    /// Takes over what a table says of its sources.
    pub fn observe<'a>(&mut self, sources: impl Iterator<Item = (&'a Source, SourceState)>) {
        self.states = sources.map(|(source, state)| (source.clone(), state)).collect();
    }

    /// Whether members that no source names may be dropped.
    #[must_use]
    pub fn is_open(&self, now: Moment) -> bool {
        let confirmed = self.states.values().all(|state| *state == SourceState::Initialized);
        now >= self.opens_at || (!self.states.is_empty() && confirmed)
    }

    /// When the gate opens by itself.
    #[must_use]
    pub const fn opens_at(&self) -> Moment {
        self.opens_at
    }

    /// The members to use: `wanted`, and while the gate is shut also what was there before.
    #[must_use]
    pub fn settle<T: Ord + Clone>(
        &self,
        before: &BTreeSet<T>,
        wanted: &BTreeSet<T>,
        now: Moment,
    ) -> BTreeSet<T> {
        if self.is_open(now) { wanted.clone() } else { before.union(wanted).cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As long as one contributor has not confirmed and the time is not over, nothing is lost.
        #[test]
        fn no_aggregate_shrinks_early(
            before in prop::collection::btree_set(0u8..20, 0..10),
            wanted in prop::collection::btree_set(0u8..20, 0..10),
            states in prop::collection::vec(0u8..3, 1..4),
            secs in 0u64..120,
        ) {
            let state = |n: &u8| match n { 0 => SourceState::Pending, 1 => SourceState::Stale, _ => SourceState::Initialized };
            let named: Vec<_> = states.iter().enumerate().map(|(i, n)| (Source::Peer(format!("{i}").into()), state(n))).collect();
            let mut gate = Gate::new(Moment::ZERO);
            gate.observe(named.iter().map(|(source, state)| (source, *state)));
            let out = gate.settle(&before, &wanted, Moment::from_origin(Duration::from_secs(secs)));
            prop_assert!(wanted.is_subset(&out));
            let unconfirmed = states.iter().any(|n| *n < 2);
            if unconfirmed && secs < 60 { prop_assert!(before.is_subset(&out)); } else { prop_assert_eq!(out, wanted); }
        }
    }
}
