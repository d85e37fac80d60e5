//! Names that stand in very many rows: four bytes each, compared as text.
//!
//! A name that was seen once stays for the life of the process, so this is for what the configuration names (clusters,
//! peers), not for what others send.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Names of the first shelf; each further one has twice as many.
const FIRST: usize = 64;
const SHELVES: usize = 26;

type Shelf = Box<[OnceLock<Box<str>>]>;

/// By number. What is there never moves, so that reading needs no lock.
static TEXTS: [OnceLock<Shelf>; SHELVES] = [const { OnceLock::new() }; SHELVES];
/// By text.
static NUMBERS: OnceLock<RwLock<HashMap<Box<str>, u32>>> = OnceLock::new();

/// An interned name. Ordered and printed as its text; copied and compared for equality at no cost.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name(u32);

/// The shelf and the place on it.
fn place(number: u32) -> (usize, usize) {
    let at = usize::try_from(number).unwrap_or(usize::MAX).saturating_add(FIRST);
    let shelf = usize::try_from(at.ilog2() - FIRST.ilog2()).unwrap_or(0);
    (shelf, at - (FIRST << shelf))
}

impl Name {
    /// The name of that text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let numbers = NUMBERS.get_or_init(RwLock::default);
        if let Some(number) = numbers.read().unwrap_or_else(PoisonError::into_inner).get(text) {
            return Self(*number);
        }
        let mut numbers = numbers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = numbers.get(text) {
            return Self(*number);
        }
        let number = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        let (shelf, at) = place(number);
        if let Some(shelf_) = TEXTS.get(shelf) {
            let texts = shelf_.get_or_init(|| (0..FIRST << shelf).map(|_| OnceLock::new()).collect());
            if let Some(text_) = texts.get(at) {
                text_.get_or_init(|| text.into());
            }
        }
        numbers.insert(text.into(), number);
        Self(number)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        let (shelf, at) = place(self.0);
        TEXTS
            .get(shelf)
            .and_then(OnceLock::get)
            .and_then(|texts| texts.get(at)?.get())
            .map_or("", AsRef::as_ref)
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        if self == other { Ordering::Equal } else { self.as_str().cmp(other.as_str()) }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl From<&Arc<str>> for Name {
    fn from(text: &Arc<str>) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_one_name() {
        let words: Vec<String> = (0..2000).map(|n| format!("name-{n}")).collect();
        let read = |_| words.iter().map(|word| Name::new(word)).collect::<Vec<_>>();
        let all: Vec<Vec<Name>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || read(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(all[0].iter().zip(&words).all(|(name, word)| name.as_str() == word));
        let mut sorted = all[0].clone();
        sorted.sort();
        let mut texts = words.clone();
        texts.sort();
        assert!(sorted.iter().map(Name::as_str).eq(texts.iter().map(String::as_str)));
    }

    #[test]
    fn places_are_unique_and_within_their_shelf() {
        let mut last = None;
        for number in 0..10_000 {
            let (shelf, at) = place(number);
            assert!(at < FIRST << shelf && Some((shelf, at)) > last);
            last = Some((shelf, at));
        }
        assert!(place(u32::MAX).0 <= SHELVES);
    }
}
