//! Small numbers for things, kept as long as the thing lives, and taken over from an earlier life.

use std::collections::{BTreeMap, BTreeSet};

/// Hands out numbers `1..=max`, each to one key. A number given back is reused as late as possible, so that a packet
/// on its way with the old meaning does not meet the new one.
#[derive(Debug, Clone)]
pub struct Numbers<K: Ord + Clone> {
    by_key: BTreeMap<K, u32>,
    used: BTreeSet<u32>,
    next: u32,
    max: u32,
}

impl<K: Ord + Clone> Numbers<K> {
    /// Numbers up to `max`.
    #[must_use]
    pub const fn new(max: u32) -> Self {
        Self { by_key: BTreeMap::new(), used: BTreeSet::new(), next: 1, max }
    }

    /// Takes over a pair found in the datapath. False if number or key is taken already.
    pub fn restore(&mut self, key: K, number: u32) -> bool {
        if number == 0 || number > self.max || self.by_key.contains_key(&key) || !self.used.insert(number) {
            return false;
        }
        self.by_key.insert(key, number);
        true
    }

    /// The number of `key`, allocated at first sight; `None` when all are in use.
    pub fn of(&mut self, key: &K) -> Option<u32> {
        if let Some(number) = self.by_key.get(key) {
            return Some(*number);
        }
        if u32::try_from(self.used.len()).is_ok_and(|used| used >= self.max) {
            return None;
        }
        let free = |number: &u32| !self.used.contains(number);
        let number = (self.next..=self.max).find(free).or_else(|| (1..self.next).find(free))?;
        self.next = if number == self.max { 1 } else { number + 1 };
        self.used.insert(number);
        self.by_key.insert(key.clone(), number);
        Some(number)
    }

    /// The number of `key` if it has one.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Gives the number of `key` back.
    pub fn release(&mut self, key: &K) -> Option<u32> {
        let number = self.by_key.remove(key)?;
        self.used.remove(&number);
        Some(number)
    }

    /// Gives back every number whose key is not wanted.
    pub fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        let gone: Vec<K> = self.by_key.keys().filter(|key| !wanted(key)).cloned().collect();
        for key in gone {
            self.release(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_are_restored_and_run_out() {
        let mut numbers = Numbers::new(3);
        assert!(numbers.restore("b", 2));
        assert!(!numbers.restore("c", 2) && !numbers.restore("d", 4));
        assert_eq!((numbers.of(&"a"), numbers.of(&"b"), numbers.of(&"c")), (Some(1), Some(2), Some(3)));
        assert_eq!(numbers.of(&"d"), None);
        assert_eq!(numbers.release(&"b"), Some(2));
        assert_eq!((numbers.of(&"d"), numbers.of(&"a")), (Some(2), Some(1)));
    }
}
