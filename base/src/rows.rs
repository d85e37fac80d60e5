//! The rows of a table by key, as a value: cheap to clone, and clones share what is equal.

use crate::table::Row;
use crate::tree::Tree;

/// Rows in key order. A clone shares all of them; a change copies a few.
#[derive(Debug)]
pub struct Rows<R: Row>(Tree<R>);

impl<R: Row> Clone for Rows<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Row> Default for Rows<R> {
    fn default() -> Self {
        Self(Tree::default())
    }
}

impl<R: Row> Rows<R> {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The row of `key`.
    #[must_use]
    pub fn get(&self, key: &R::Key) -> Option<&R> {
        self.0.get(|row| row.cmp_key(key))
    }

    /// Whether there is a row of `key`.
    #[must_use]
    pub fn contains_key(&self, key: &R::Key) -> bool {
        self.get(key).is_some()
    }

    /// All rows in key order.
    pub fn values(&self) -> impl Iterator<Item = &R> {
        self.0.iter()
    }

    /// All keys in order.
    pub fn keys(&self) -> impl Iterator<Item = R::Key> {
        self.0.iter().map(Row::key)
    }

    /// All rows from `key` on.
    pub fn values_from<'a>(&'a self, key: &R::Key) -> impl Iterator<Item = &'a R> + use<'a, R> {
        self.0.iter_from(|row| row.cmp_key(key))
    }

    /// Number of rows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts a row in; gives back the one that had its key.
    pub fn insert(&mut self, row: R) -> Option<R> {
        let key = row.key();
        self.0.insert(row, |other| other.cmp_key(&key))
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: &R::Key) -> Option<R> {
        self.0.remove(|row| row.cmp_key(key))
    }
}

impl<R: Row> FromIterator<R> for Rows<R> {
    fn from_iter<I: IntoIterator<Item = R>>(rows: I) -> Self {
        let mut all = Self::default();
        rows.into_iter().for_each(|row| drop(all.insert(row)));
        all
    }
}

impl<R: Row> PartialEq for Rows<R> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.values().eq(other.values())
    }
}
