//! Texts that many records have in common (label keys, namespaces, zones), kept once.

use crate::pool::Global;
use std::sync::{Arc, LazyLock};

/// Longer ones are seldom shared.
const LONGEST: usize = 128;

static TEXTS: Global<str> = Global::new(Default::default);
/// Most records have fields without anything in them.
static EMPTY: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

/// The one copy of a text. It goes when nobody uses it any more.
#[must_use]
pub fn shared(text: &str) -> Arc<str> {
    match text.len() {
        0 => EMPTY.clone(),
        1..=LONGEST => TEXTS.get(text),
        _ => text.into(),
    }
}
