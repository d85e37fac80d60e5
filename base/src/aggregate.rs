//! Sets built from several sources do not shrink before all their contributors have spoken, or a time has passed.

use crate::clock::Moment;
use crate::source::{Source, SourceState};
use std::collections::BTreeMap;
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

    /// Takes over what tables say of their sources. One that several tables name has spoken when it has in all of them.
    pub fn observe<'a>(&mut self, sources: impl Iterator<Item = (&'a Source, SourceState)>) {
        self.states = least(sources);
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
    use proptest::prelude::*;

    fn source(n: usize) -> Source {
        Source::Peer(format!("{n}").into())
    }

    proptest! {
        /// As long as one contributor has not confirmed, in whichever table, the gate is shut; but not for ever.
        #[test]
        fn opens_when_all_have_confirmed_everywhere_or_the_time_is_over(
            states in prop::collection::vec((0usize..4, 0u8..3), 0..8),
            secs in 0u64..120,
        ) {
            let state = |n: &u8| match n { 0 => SourceState::Pending, 1 => SourceState::Stale, _ => SourceState::Initialized };
            let named: Vec<_> = states.iter().map(|(n, s)| (source(*n), state(s))).collect();
            let mut gate = Gate::new(Moment::ZERO);
            gate.observe(named.iter().map(|(source, state)| (source, *state)));
            let confirmed = !states.is_empty() && states.iter().all(|(_, s)| *s == 2);
            prop_assert_eq!(gate.is_open(Moment::from_origin(Duration::from_secs(secs))), confirmed || secs >= 60);
        }
    }
}
