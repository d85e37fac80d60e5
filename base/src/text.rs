//! Texts that many records have in common (label keys, namespaces, zones), kept once.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Texts of a shelf that are kept before those that nobody uses any more are looked for.
const LOOK_MIN: usize = 256;
/// Shelves, each with a lock: readers of many clusters need them at the same time.
const SHELVES: usize = 16;
/// Longer ones are seldom shared.
const LONGEST: usize = 128;

#[derive(Default)]
struct Texts {
    known: HashSet<Arc<str>>,
    /// How many were in use when it was looked last.
    in_use: usize,
}

static TEXTS: LazyLock<[Mutex<Texts>; SHELVES]> = LazyLock::new(Default::default);
/// Most records have fields without anything in them.
static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// Where a text lies. Texts that crowd one shelf make it slower, not wrong.
fn shelf(text: &str) -> &'static Mutex<Texts> {
    let sum = text.bytes().fold(0, |sum: usize, byte| sum.wrapping_add(usize::from(byte)));
    let [first, others @ ..] = &*TEXTS;
    others.get(sum % SHELVES).unwrap_or(first)
}

/// The one copy of a text. It goes when nobody uses it any more.
#[must_use]
pub fn shared(text: &str) -> Arc<str> {
    if text.is_empty() {
        return EMPTY.clone();
    }
    if text.len() > LONGEST {
        return text.into();
    }
    let mut texts = shelf(text).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = texts.known.get(text) {
        return known.clone();
    }
    if texts.known.len() > LOOK_MIN.max(2 * texts.in_use) {
        texts.known.retain(|text| Arc::strong_count(text) > 1);
        texts.in_use = texts.known.len();
    }
    let new: Arc<str> = text.into();
    texts.known.insert(new.clone());
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_and_none_of_what_nobody_uses() {
        let first = shared("a text of this test");
        assert!(Arc::ptr_eq(&first, &shared("a text of this test")));
        for n in 0..50_000 {
            assert_eq!(&*shared(&format!("text {n}")), format!("text {n}"));
        }
        let kept: usize = TEXTS.iter().map(|shelf| shelf.lock().unwrap().known.len()).sum();
        assert!(kept < 3 * LOOK_MIN * SHELVES, "{kept}");
        assert!(Arc::ptr_eq(&first, &shared("a text of this test")));
    }
}
