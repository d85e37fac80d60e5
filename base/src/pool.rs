//! Values that many records have in common, kept once.

use hashbrown::HashTable;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Values of a shelf that are kept before those that nobody uses any more are looked for.
const LOOK_MIN: usize = 256;
/// Shelves, each with a lock: readers of many clusters need them at the same time.
const SHELVES: usize = 16;

#[derive(Debug)]
struct Shelf<T: ?Sized> {
    known: HashTable<Arc<T>>,
    /// How many were in use when it was looked last.
    in_use: usize,
}

impl<T: ?Sized> Default for Shelf<T> {
    fn default() -> Self {
        Self { known: HashTable::new(), in_use: 0 }
    }
}

/// One copy of each value that is in use.
#[derive(Debug)]
pub struct Pool<T: ?Sized> {
    shelves: [Mutex<Shelf<T>>; SHELVES],
    hasher: RandomState,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { shelves: Default::default(), hasher: RandomState::new() }
    }
}

/// A pool for the life of the process.
pub type Global<T> = LazyLock<Pool<T>>;

impl<T: Hash + Eq + ?Sized> Pool<T> {
    /// The one copy of a value. It goes some time after nobody uses it any more.
    pub fn get<'a>(&self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        let hash = |value: &T| self.hasher.hash_one(value);
        let place = hash(value);
        let mut shelf = self.shelf(place).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shelf.known.find(place, |known| **known == *value) {
            return known.clone();
        }
        if shelf.known.len() > LOOK_MIN.max(2 * shelf.in_use) {
            shelf.known.retain(|known| Arc::strong_count(known) > 1);
            shelf.in_use = shelf.known.len();
        }
        let new: Arc<T> = value.into();
        shelf.known.insert_unique(place, new.clone(), |known| hash(known));
        new
    }

    /// The table's own buckets are chosen by the lowest bits, and told apart by the highest.
    fn shelf(&self, hash: u64) -> &Mutex<Shelf<T>> {
        let [first, others @ ..] = &self.shelves;
        let at = usize::try_from((hash >> 32) & 0xffff).unwrap_or_default() % SHELVES;
        others.get(at).unwrap_or(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_and_none_of_what_nobody_uses() {
        let pool = Pool::<str>::default();
        let first = pool.get("a text of this test");
        assert!(Arc::ptr_eq(&first, &pool.get("a text of this test")));
        for n in 0..50_000 {
            assert_eq!(&*pool.get(&format!("text {n}")), format!("text {n}"));
        }
        let kept: usize = pool.shelves.iter().map(|shelf| shelf.lock().unwrap().known.len()).sum();
        assert!(kept < 3 * LOOK_MIN * SHELVES, "{kept}");
        assert!(Arc::ptr_eq(&first, &pool.get("a text of this test")));
    }
}
