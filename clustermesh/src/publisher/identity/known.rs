//! What is known of the own cluster's identities. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::Labels;

/// Numbers, label sets, and which of them this node uses.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The numbers of a set. More than one is the lost race of another implementation: the lowest is used by all.
    by_labels: BTreeMap<Labels, BTreeSet<IdentityId>>,
    by_id: BTreeMap<IdentityId, Labels>,
    /// Label sets with endpoints on this node, and how many.
    used: BTreeMap<Labels, usize>,
    /// Numbers in use here whose masters went from etcd: to be written again.
    lost: BTreeSet<IdentityId>,
    /// Numbers not in use here that were not there when etcd was read anew. They are remembered for a while, so that
    /// sets get their old numbers again after etcd was emptied or restored.
    absent: BTreeSet<IdentityId>,
    /// Numbers whose masters stand and are not used: whatever is wrong with them, nobody else may have the number.
    unsound: BTreeSet<IdentityId>,
    /// Counts the changes of `by_id`.
    generation: u64,
}

impl Known {
    /// A master stands in etcd (or was saved by the last life).
    pub(super) fn learn(&mut self, id: IdentityId, labels: &Labels) {
        self.lost.remove(&id);
        self.absent.remove(&id);
        self.unsound.remove(&id);
        if self.by_id.get(&id) == Some(labels) {
            return;
        }
        self.drop_number(id);
        self.by_id.insert(id, labels.clone());
        self.by_labels.entry(labels.clone()).or_default().insert(id);
        self.generation += 1;
    }

    /// A master stands that cannot be used.
    pub(super) fn unsound(&mut self, id: IdentityId) {
        self.unsound.insert(id);
    }

    /// All masters are read anew.
    pub(super) fn reading(&mut self) {
        self.unsound.clear();
    }

    /// A master was deleted. The number of a set in use here stays taken and is written again.
    pub(super) fn deleted(&mut self, id: IdentityId) {
        self.unsound.remove(&id);
        if self.is_used(id) {
            self.lost.insert(id);
        } else {
            self.drop_number(id);
        }
    }

    /// All masters were read: what is not `standing` went while nobody looked.
    pub(super) fn only_standing(&mut self, standing: &BTreeSet<IdentityId>) {
        let gone: Vec<IdentityId> = self.by_id.keys().filter(|id| !standing.contains(id)).copied().collect();
        for id in gone {
            let set = if self.is_used(id) { &mut self.lost } else { &mut self.absent };
            set.insert(id);
        }
    }

    /// Whoever used the absent ones has had the time to write them again.
    pub(super) fn drop_absent(&mut self) {
        for id in std::mem::take(&mut self.absent) {
            self.drop_number(id);
        }
    }

    /// The number was given to other labels: the set needs a new one.
    pub(super) fn give_up(&mut self, labels: &Labels, id: IdentityId) {
        self.lost.remove(&id);
        if let Some(numbers) = self.by_labels.get_mut(labels) {
            numbers.remove(&id);
            if numbers.is_empty() {
                self.by_labels.remove(labels);
            }
        }
        if self.by_id.get(&id) == Some(labels) {
            self.by_id.remove(&id);
            self.generation += 1;
        }
    }

    fn drop_number(&mut self, id: IdentityId) {
        if let Some(labels) = self.by_id.get(&id).cloned() {
            self.give_up(&labels, id);
        }
    }

    fn is_used(&self, id: IdentityId) -> bool {
        self.by_id.get(&id).is_some_and(|labels| self.used.contains_key(labels))
    }

    /// The number of a set.
    pub(super) fn number(&self, labels: &Labels) -> Option<IdentityId> {
        self.by_labels.get(labels).and_then(|numbers| numbers.first()).copied()
    }

    /// All numbers with their labels.
    pub(super) fn all(&self) -> impl Iterator<Item = (IdentityId, &Labels)> {
        self.by_id.iter().map(|(id, labels)| (*id, labels))
    }

    /// How many numbers are taken.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// A number that is another one whenever a number was learnt or dropped.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    /// The first free number from `from` on, going round in `first..=last`. Absent ones are taken only when no other is
    /// left.
    pub(super) fn free(&mut self, from: u32, first: u32, last: u32) -> Option<IdentityId> {
        let search = |known: &Self| {
            let taken = |id: &IdentityId| known.by_id.contains_key(id) || known.unsound.contains(id);
            (from..=last).chain(first..from).map(IdentityId).find(|id| !taken(id))
        };
        search(self).or_else(|| {
            self.drop_absent();
            search(self)
        })
    }

    /// One more endpoint of this node has the set.
    pub(super) fn count_use(&mut self, labels: &Labels) {
        *self.used.entry(labels.clone()).or_insert(0) += 1;
        // It may have been among those that nobody here needed.
        if let Some(id) = self.number(labels).filter(|id| self.absent.contains(id)) {
            self.absent.remove(&id);
            self.lost.insert(id);
        }
    }

    /// One endpoint less has it.
    pub(super) fn release(&mut self, labels: &Labels) {
        if let Some(count) = self.used.get_mut(labels) {
            *count -= 1;
            if *count == 0 {
                self.used.remove(labels);
                // Nobody here writes its master again.
                if let Some(id) = self.number(labels).filter(|id| self.lost.contains(id)) {
                    self.lost.remove(&id);
                    self.absent.insert(id);
                }
            }
        }
    }

    /// The sets in use here that have a number.
    pub(super) fn used(&self) -> impl Iterator<Item = (&Labels, IdentityId)> {
        self.used.keys().filter_map(|labels| Some((labels, self.number(labels)?)))
    }

    /// The sets in use here whose number was given to others.
    pub(super) fn numberless(&self) -> Vec<Labels> {
        self.used.keys().filter(|labels| self.number(labels).is_none()).cloned().collect()
    }

    /// Whether the master of a number in use here must be written again.
    pub(super) fn is_lost(&self, id: IdentityId) -> bool {
        self.lost.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        Labels::k8s([("app", app), ("io.cilium.k8s.policy.cluster", "a")])
    }

    #[test]
    fn the_lowest_number_of_a_set_counts_and_the_next_one_when_it_goes() {
        let mut known = Known::default();
        known.learn(IdentityId(70_001), &labels("web"));
        known.learn(IdentityId(70_000), &labels("web"));
        assert_eq!(known.number(&labels("web")), Some(IdentityId(70_000)));
        known.deleted(IdentityId(70_000));
        assert_eq!(known.number(&labels("web")), Some(IdentityId(70_001)));
        known.learn(IdentityId(70_001), &labels("db"));
        assert_eq!(
            (known.number(&labels("web")), known.number(&labels("db"))),
            (None, Some(IdentityId(70_001)))
        );
        known.deleted(IdentityId(70_001));
        assert_eq!((known.len(), known.number(&labels("db"))), (0, None));
    }

    #[test]
    fn a_number_in_use_stays_and_is_written_again() {
        let mut known = Known::default();
        known.learn(IdentityId(70_000), &labels("web"));
        known.count_use(&labels("web"));
        known.deleted(IdentityId(70_000));
        assert!(known.is_lost(IdentityId(70_000)));
        assert_eq!(known.number(&labels("web")), Some(IdentityId(70_000)));
        known.learn(IdentityId(70_000), &labels("web"));
        assert!(!known.is_lost(IdentityId(70_000)));
        known.release(&labels("web"));
        known.deleted(IdentityId(70_000));
        assert_eq!(known.number(&labels("web")), None);
    }

    #[test]
    fn what_etcd_lost_is_remembered_for_a_while() {
        let mut known = Known::default();
        for (number, app) in [(70_000, "web"), (70_001, "db"), (70_002, "cache")] {
            known.learn(IdentityId(number), &labels(app));
        }
        known.count_use(&labels("web"));
        known.only_standing(&BTreeSet::new());
        assert!(known.is_lost(IdentityId(70_000)) && !known.is_lost(IdentityId(70_001)));
        // Somebody starts here with a set that only others had.
        known.count_use(&labels("db"));
        assert_eq!(known.number(&labels("db")), Some(IdentityId(70_001)));
        assert!(known.is_lost(IdentityId(70_001)), "its master must be written");
        // The last number is taken from the absent ones only when no other is free.
        assert_eq!(known.free(70_002, 70_000, 70_003), Some(IdentityId(70_003)));
        assert_eq!(known.free(70_001, 70_000, 70_002), Some(IdentityId(70_002)));
        assert_eq!((known.number(&labels("cache")), known.len()), (None, 2));
        assert_eq!(known.free(70_000, 70_000, 70_001), None);
    }

    #[test]
    fn a_number_whose_master_cannot_be_used_is_not_free() {
        let mut known = Known::default();
        known.learn(IdentityId(70_000), &labels("web"));
        known.unsound(IdentityId(70_001));
        assert_eq!(known.free(70_001, 70_000, 70_002), Some(IdentityId(70_002)));
        assert_eq!(known.free(70_001, 70_000, 70_001), None, "the search ends");
        // It goes, or is mended, or all are read anew and it is not among them.
        known.deleted(IdentityId(70_001));
        assert_eq!(known.free(70_001, 70_000, 70_001), Some(IdentityId(70_001)));
        known.unsound(IdentityId(70_001));
        known.learn(IdentityId(70_001), &labels("db"));
        known.deleted(IdentityId(70_001));
        assert_eq!(known.free(70_001, 70_000, 70_001), Some(IdentityId(70_001)));
        known.unsound(IdentityId(70_001));
        known.reading();
        assert_eq!(known.free(70_001, 70_000, 70_001), Some(IdentityId(70_001)));
    }
}
