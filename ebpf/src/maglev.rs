//! Room in the one flat Maglev array: which stretch belongs to which frontend.

use crate::error::DatapathError;
use crate::tables::Tables;
use std::collections::BTreeMap;

/// Used stretches of the array, by offset.
pub(crate) struct Slots {
    capacity: u32,
    used: BTreeMap<u32, u32>,
}

impl Slots {
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, used: BTreeMap::new() }
    }

    /// Learns from the pinned service rows what is in use.
    pub(crate) fn recover(tables: &Tables) -> Result<Self, DatapathError> {
        let mut slots = Self::new(tables.maglev.len());
        for (_, row) in tables.services.dump()? {
            if row.maglev_size > 0 {
                slots.used.insert(row.maglev_offset, row.maglev_size);
            }
        }
        Ok(slots)
    }

    /// First stretch of `size` slots that nobody uses.
    pub(crate) fn take(&mut self, size: u32) -> Option<u32> {
        let mut start = 0_u32;
        for (offset, length) in &self.used {
            if offset.saturating_sub(start) >= size {
                break;
            }
            start = offset.saturating_add(*length);
        }
        let fits = self.capacity.checked_sub(start).is_some_and(|room| room >= size);
        if !fits {
            return None;
        }
        self.used.insert(start, size);
        Some(start)
    }

    pub(crate) fn free(&mut self, offset: u32) {
        self.used.remove(&offset);
    }

    /// Slots in use and slots there are.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.used.values().map(|length| u64::from(*length)).sum(), u64::from(self.capacity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_reused_and_never_overlap() {
        let mut slots = Slots::new(100);
        let a = slots.take(30).unwrap();
        let b = slots.take(30).unwrap();
        let c = slots.take(40).unwrap();
        assert_eq!((a, b, c), (0, 30, 60));
        assert_eq!(slots.take(1), None);
        slots.free(b);
        assert_eq!(slots.take(31), None);
        assert_eq!(slots.take(10), Some(30));
        assert_eq!(slots.take(20), Some(40));
        assert_eq!(slots.usage(), (100, 100));
    }
}
