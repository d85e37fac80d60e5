//! What is wrong with a manifest, told so that an operator can mend it.

use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Whether an object was refused or only looks wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is not used; its last good version is.
    Error,
    /// The document is used, without the part named.
    Warning,
}

/// One finding about a manifest file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1; 0 when the whole file is meant.
    pub line: u64,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: String,
    /// The key, such as `spec.ports[0].port`.
    pub path: String,
    /// What is wrong.
    pub reason: String,
    /// What to try.
    pub remedy: String,
    /// Whether the document is used.
    pub severity: Severity,
}

impl Problem {
    /// A problem of the file as a whole.
    #[must_use]
    pub fn of_file(file: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            object: String::new(),
            path: String::new(),
            reason: reason.into(),
            remedy: remedy.into(),
            severity: Severity::Error,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        for part in [&self.object, &self.path].into_iter().filter(|part| !part.is_empty()) {
            write!(f, ": {part}")?;
        }
        write!(f, ": {}", self.reason)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// A value that a conversion refuses, before file and line are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issue {
    pub(crate) path: String,
    pub(crate) reason: String,
    pub(crate) remedy: String,
}

impl Issue {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

/// Cuts a text that came from outside to a length fit for a message.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 160;
    let mut out: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push('…');
    }
    out
}
