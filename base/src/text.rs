//! Texts that many records have in common (label keys, namespaces, zones), kept once.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Texts that are kept before those that nobody uses any more are looked for.
const LOOK_MIN: usize = 4096;
/// Longer ones are seldom shared.
const LONGEST: usize = 128;

#[derive(Default)]
struct Texts {
    known: HashSet<Arc<str>>,
    /// How many were in use when it was looked last.
    in_use: usize,
}

static TEXTS: LazyLock<Mutex<Texts>> = LazyLock::new(Mutex::default);

/// The one copy of a text. It goes when nobody uses it any more.
#[must_use]
pub fn shared(text: &str) -> Arc<str> {
    if text.len() > LONGEST {
        return text.into();
    }
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
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
        assert!(TEXTS.lock().unwrap().known.len() < 3 * LOOK_MIN);
        assert!(Arc::ptr_eq(&first, &shared("a text of this test")));
    }
}
