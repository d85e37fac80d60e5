//! Sets that maps hold beside the services' rows, element by element: what differs is written, and nothing is read back.

use crate::error::DatapathError;
use std::collections::{BTreeMap, BTreeSet};

/// The elements of each owner, as a map holds them.
pub(crate) struct Sets<O, E>(BTreeMap<O, BTreeSet<E>>);

impl<O: Ord, E: Ord + Copy> Sets<O, E> {
    /// What an earlier life left.
    pub(crate) fn recover(present: impl IntoIterator<Item = (O, E)>) -> Self {
        let mut all = BTreeMap::new();
        for (owner, element) in present {
            all.entry(owner).or_insert_with(BTreeSet::new).insert(element);
        }
        Self(all)
    }

    /// The elements of an owner.
    pub(crate) fn of(&self, owner: &O) -> impl Iterator<Item = E> {
        self.0.get(owner).into_iter().flatten().copied()
    }

    /// Writes what an owner lacks of `wanted`.
    pub(crate) fn widen(
        &mut self,
        owner: O,
        wanted: &BTreeSet<E>,
        write: impl Fn(E) -> Result<(), DatapathError>,
    ) -> Result<(), DatapathError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let present = self.0.entry(owner).or_default();
        for element in wanted {
            if !present.contains(element) {
                write(*element)?;
                present.insert(*element);
            }
        }
        Ok(())
    }

    /// Deletes what an owner has beside `wanted`.
    pub(crate) fn narrow(
        &mut self,
        owner: &O,
        wanted: &BTreeSet<E>,
        delete: impl Fn(E) -> Result<(), DatapathError>,
    ) -> Result<(), DatapathError> {
        let Some(present) = self.0.get_mut(owner) else { return Ok(()) };
        for element in present.difference(wanted).copied().collect::<Vec<_>>() {
            delete(element)?;
            present.remove(&element);
        }
        if present.is_empty() {
            self.0.remove(owner);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn only_differences_are_written_and_what_fails_is_tried_again() {
        let done = RefCell::new(Vec::new());
        let note = |sign: char| {
            let done = &done;
            move |element: u32| {
                done.borrow_mut().push((sign, element));
                if element == 9 { Err(DatapathError::Missing("nine")) } else { Ok(()) }
            }
        };
        let mut sets = Sets::recover([(1, 5), (2, 5)]);
        sets.widen(1, &[5, 6].into(), note('+')).unwrap();
        sets.narrow(&1, &[6].into(), note('-')).unwrap();
        assert_eq!(done.take(), [('+', 6), ('-', 5)]);
        for _ in 0..2 {
            assert!(sets.widen(1, &[6, 9].into(), note('+')).is_err());
        }
        assert_eq!(done.take(), [('+', 9), ('+', 9)]);
        sets.narrow(&1, &BTreeSet::new(), note('-')).unwrap();
        sets.narrow(&3, &BTreeSet::new(), note('-')).unwrap();
        sets.widen(3, &BTreeSet::new(), note('+')).unwrap();
        assert_eq!(done.take(), [('-', 6)]);
        assert_eq!((sets.of(&1).count(), sets.of(&2).collect::<Vec<_>>(), sets.0.len()), (0, vec![5], 1));
    }
}
