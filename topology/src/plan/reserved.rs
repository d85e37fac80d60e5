//! What this cluster has besides its pods and nodes, as the plan looks it up.

use super::claims::Lengths;
use std::collections::BTreeSet;
use tombolo_base::prefix::Prefix;

/// Prefixes in which other clusters may have nodes (they may share a link with ours), and no pods.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserved {
    all: BTreeSet<Prefix>,
    lengths: Lengths,
}

impl Reserved {
    pub(super) fn of(prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let all: BTreeSet<_> = prefixes.into_iter().collect();
        let mut lengths = Lengths::default();
        all.iter().for_each(|prefix| lengths.add(*prefix));
        Self { all, lengths }
    }

    /// One that overlaps `prefix`.
    pub(super) fn at(&self, prefix: Prefix) -> Option<Prefix> {
        let above = self.lengths.above(prefix).find(|above| self.all.contains(above));
        above.or_else(|| self.all.range(prefix..=prefix.last()).next().copied())
    }

    /// What one of both has and the other has not.
    pub(super) fn difference(&self, other: &Self) -> Vec<Prefix> {
        self.all.symmetric_difference(&other.all).copied().collect()
    }
}
