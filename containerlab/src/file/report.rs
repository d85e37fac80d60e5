//! Collecting everything wrong with a file instead of stopping at the first.

use std::fmt;
use std::path::{Path, PathBuf};

use super::tree::{Item, Value};

/// Something wrong (an error) or odd (a warning) in a topology file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The topology file.
    pub file: PathBuf,
    /// Line, from 1; 0 concerns the file as a whole.
    pub line: u64,
    /// Path of the key, e.g. `topology.nodes.n1.cpu`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Problem {}

/// A problem that makes the file unusable.
pub type Error = Problem;
/// A problem that does not.
pub type Warning = Problem;

/// Errors and warnings found so far.
pub(super) struct Report {
    file: PathBuf,
    pub(super) errors: Vec<Error>,
    pub(super) warnings: Vec<Warning>,
}

impl Report {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), errors: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn error(&mut self, line: u64, key: &str, message: impl Into<String>) {
        let problem = Problem { file: self.file.clone(), line, key: key.to_owned(), message: message.into() };
        if !self.errors.contains(&problem) {
            self.errors.push(problem);
        }
    }

    pub(super) fn warning(&mut self, line: u64, key: &str, message: impl Into<String>) {
        let problem = Problem { file: self.file.clone(), line, key: key.to_owned(), message: message.into() };
        if !self.warnings.contains(&problem) {
            self.warnings.push(problem);
        }
    }

    pub(super) fn unknown(&mut self, line: u64, key: &str, allowed: &[&str]) {
        let name = key.rsplit('.').next().unwrap_or(key);
        let hint = match nearest(name, allowed) {
            Some(near) => format!("unknown key, ignored; did you mean {near:?}?"),
            None => format!("unknown key, ignored; known here: {}", allowed.join(", ")),
        };
        self.warning(line, key, hint);
    }

    /// Entries of a map; nothing for null; an error for the rest.
    pub(super) fn map<'a>(&mut self, item: &'a Item, key: &str) -> &'a [(String, u64, Item)] {
        match &item.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => {
                self.error(
                    item.line,
                    key,
                    format!("needs a map of keys to values, has {}", item.type_name()),
                );
                &[]
            }
        }
    }

    /// Entries of a list; nothing for null; an error for the rest.
    pub(super) fn list<'a>(&mut self, item: &'a Item, key: &str) -> &'a [Item] {
        match &item.value {
            Value::List(items) => items,
            Value::Null => &[],
            _ => {
                self.error(
                    item.line,
                    key,
                    format!("needs a list (lines starting with \"- \"), has {}", item.type_name()),
                );
                &[]
            }
        }
    }

    /// The text of a scalar as it was written; `None` for null; an error for lists and maps.
    pub(super) fn text(&mut self, item: &Item, key: &str) -> Option<String> {
        match &item.value {
            Value::Scalar(scalar) => Some(scalar.text.clone()),
            Value::Null => None,
            _ => {
                self.error(item.line, key, format!("needs a text, has {}", item.type_name()));
                None
            }
        }
    }

    /// A list of texts with their lines.
    pub(super) fn texts(&mut self, item: &Item, key: &str) -> Vec<(String, u64)> {
        let mut texts = Vec::new();
        for (index, entry) in self.list(item, key).iter().enumerate() {
            match self.text(entry, &format!("{key}[{index}]")) {
                Some(text) => texts.push((text, entry.line)),
                None => self.error(entry.line, &format!("{key}[{index}]"), "needs a text"),
            }
        }
        texts
    }

    /// A map of texts.
    pub(super) fn text_map(&mut self, item: &Item, key: &str) -> Vec<(String, String)> {
        let entries = self.map(item, key);
        entries
            .iter()
            .filter_map(|(name, _, value)| match &value.value {
                Value::Null => Some((name.clone(), String::new())),
                _ => Some((name.clone(), self.text(value, &format!("{key}.{name}"))?)),
            })
            .collect()
    }

    /// `true` or `false`, also spelled as YAML 1.1 allowed.
    pub(super) fn boolean(&mut self, item: &Item, key: &str) -> Option<bool> {
        let text = self.text(item, key)?;
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => {
                self.error(item.line, key, format!("needs true or false, has {text:?}"));
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, item: &Item, key: &str, min: u64, max: u64) -> Option<u64> {
        let text = self.text(item, key)?;
        match text.parse::<u64>() {
            Ok(value) if (min..=max).contains(&value) => Some(value),
            _ => {
                self.error(item.line, key, format!("needs a whole number from {min} to {max}, has {text:?}"));
                None
            }
        }
    }
}

/// The known name that differs by a slip of the finger, if there is one.
fn nearest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('_', "-");
    let name = plain(name);
    allowed
        .iter()
        .map(|candidate| (distance(&name, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance; names are short.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut previous = i;
        let mut left = i.saturating_add(1);
        let mut next = vec![left];
        for (above, cb) in row.iter().skip(1).zip(b.chars()) {
            let substitute = previous.saturating_add(usize::from(ca != cb));
            left = substitute.min(above.saturating_add(1)).min(left.saturating_add(1));
            next.push(left);
            previous = *above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
