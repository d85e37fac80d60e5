//! Sets built from several sources do not shrink before all their contributors have spoken, or a time has passed.

use crate::clock::Moment;
use crate::source::{Source, SourceState};
use crate::table::{Batch, Row};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a restart may keep members that no source has confirmed yet.
pub const HOLD: Duration = Duration::from_secs(60);

/// Tells whether an aggregate may shrink: all its contributors are initialised, or [`HOLD`] has passed since start.
///
/// It looks at the sources of a table when they change, not with every batch: there are hundreds of clusters, and most
/// batches bring rows alone.
#[derive(Debug, Clone)]
pub struct Gate {
    opens_at: Moment,
    unheard: Option<Source>,
    /// What each table says; none before its first batch that says anything.
    said: BTreeMap<&'static str, Said>,
}

/// What a table says of its sources.
#[derive(Debug, Clone, Copy)]
struct Said {
    any: bool,
    confirmed: bool,
}

impl Gate {
    /// A gate for a life that began at `start`.
    #[must_use]
    pub const fn new(start: Moment) -> Self {
        Self { opens_at: start.after(HOLD), unheard: None, said: BTreeMap::new() }
    }

    /// One that does not wait for `source`: whoever asks it is that source.
    #[must_use]
    pub const fn not_waiting_for(mut self, source: Source) -> Self {
        self.unheard = Some(source);
        self
    }

    /// Takes over what a table says of its sources, if it says anything new. One that several tables name has spoken when it has
    /// in all of them.
    pub fn observe<R: Row>(&mut self, batch: Option<&Batch<R>>) {
        let Some(batch) = batch.filter(|batch| batch.sources_changed) else { return };
        let mut said = Said { any: false, confirmed: true };
        for (_, state) in
            batch.snapshot.sources().filter(|(source, _)| self.unheard.as_ref() != Some(*source))
        {
            said.any = true;
            said.confirmed &= state == SourceState::Initialized;
        }
        self.said.insert(R::TABLE, said);
    }

    /// Whether members that no source names may be dropped.
    #[must_use]
    pub fn is_open(&self, now: Moment) -> bool {
        let confirmed = || self.said.values().all(|said| said.confirmed);
        now >= self.opens_at || (self.said.values().any(|said| said.any) && confirmed())
    }

    /// When the gate opens by itself.
    #[must_use]
    pub const fn opens_at(&self) -> Moment {
        self.opens_at
    }
}

/// Each source with the least that one of several tables says of it: its tables are filled one after the other.
pub fn least<'a>(sources: impl Iterator<Item = (&'a Source, SourceState)>) -> BTreeMap<Source, SourceState> {
    let mut states = BTreeMap::new();
    for (source, state) in sources {
        states
            .entry(*source)
            .and_modify(|known: &mut SourceState| *known = state.min(*known))
            .or_insert(state);
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{NoIndex, Table, Transaction};
    use proptest::prelude::*;
    use serde::Serialize;

    /// Rows of tables of which only the sources matter.
    macro_rules! rows {
        ($row:ident, $name:literal) => {
            #[derive(Clone, PartialEq, Debug, Serialize)]
            struct $row;
            impl Row for $row {
                type Key = ();
                type Index = NoIndex;
                const TABLE: &'static str = $name;
                fn key(&self) {}
                fn source(&self) -> &Source {
                    &Source::Planner
                }
                fn columns() -> &'static [&'static str] {
                    &[]
                }
                fn cells(&self) -> Vec<String> {
                    Vec::new()
                }
            }
        };
    }
    rows!(Left, "left");
    rows!(Right, "right");

    fn source(n: usize) -> Source {
        Source::Peer(format!("{n}").into())
    }

    const STATES: [SourceState; 3] = [SourceState::Pending, SourceState::Stale, SourceState::Initialized];

    fn say<R: Row>(txn: &mut Transaction<'_, R>, n: usize, state: Option<&SourceState>) {
        match state {
            Some(state) => txn.set_source(&source(n), *state),
            None => txn.forget_source(&source(n)),
        }
    }

    proptest! {
        /// As long as one contributor has not confirmed, in whichever table, the gate is shut; but not for ever. Whatever was said, and
        /// taken back, before.
        #[test]
        fn opens_when_all_have_confirmed_everywhere_or_the_time_is_over(
            said in prop::collection::vec((any::<bool>(), 0usize..4, 0usize..4), 0..16),
            secs in 0u64..120,
        ) {
            let ((left, left_pen), (right, right_pen)) = (Table::<Left>::new(), Table::<Right>::new());
            let mut changes = (left.changes(), right.changes());
            let mut gate = Gate::new(Moment::ZERO).not_waiting_for(Source::Planner);
            let mut wanted = BTreeMap::new();
            left_pen.set_source(&Source::Planner, SourceState::Pending);
            for (in_left, n, state) in said {
                match STATES.get(state) {
                    Some(state) => drop(wanted.insert((in_left, n), *state)),
                    None => drop(wanted.remove(&(in_left, n))),
                }
                if in_left {
                    left_pen.commit(|txn| say(txn, n, STATES.get(state)));
                } else {
                    right_pen.commit(|txn| say(txn, n, STATES.get(state)));
                }
                gate.observe(changes.0.drain().as_ref());
                gate.observe(changes.1.drain().as_ref());
            }
            let confirmed = !wanted.is_empty() && wanted.values().all(|state| *state == SourceState::Initialized);
            prop_assert_eq!(gate.is_open(Moment::from_origin(Duration::from_secs(secs))), confirmed || secs >= 60);
        }
    }

    /// Rows alone cost the same whatever the number of sources: those of such a batch are not looked at.
    #[test]
    fn sources_are_looked_at_when_they_change() {
        let (table, pen) = Table::<Left>::new();
        pen.set_source(&source(1), SourceState::Initialized);
        let mut gate = Gate::new(Moment::ZERO);
        gate.observe(table.changes().drain().as_ref());
        assert!(gate.is_open(Moment::ZERO));
        pen.set_source(&source(2), SourceState::Pending);
        let batch = |sources_changed| Batch { keys: Vec::new(), sources_changed, snapshot: table.snapshot() };
        gate.observe(Some(&batch(false)));
        assert!(gate.is_open(Moment::ZERO));
        gate.observe(Some(&batch(true)));
        assert!(!gate.is_open(Moment::ZERO));
    }
}
