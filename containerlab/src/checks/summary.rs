//! The result of a test run, for people and for programs.

use std::collections::BTreeMap;

use comfy_table::{Cell, Table, presets};
use serde::Serialize;

use super::check::{Row, Status, Variant};

/// All rows of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Rows in the order of the table.
    pub rows: Vec<Row>,
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were not run.
    pub skipped: usize,
}

impl Summary {
    /// Counts the rows.
    #[must_use]
    pub fn new(rows: Vec<Row>) -> Self {
        let count = |wanted: fn(&Status) -> bool| rows.iter().filter(|row| wanted(&row.status)).count();
        Self {
            passed: count(|status| matches!(status, Status::Passed { .. })),
            failed: count(|status| matches!(status, Status::Failed(_))),
            skipped: count(|status| matches!(status, Status::Skipped { .. })),
            rows,
        }
    }

    /// The closing line.
    #[must_use]
    pub fn closing(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }

    /// The check table, the measurements, the failures in full, and the closing line.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["CHECK", "VARIANT", "RESULT", "SECONDS"]);
        for row in &self.rows {
            let result = match &row.status {
                Status::Passed { .. } => "passed",
                Status::Failed(_) => "FAILED",
                Status::Skipped { .. } => "skipped",
            };
            let seconds = format!("{}.{:01}", row.duration_ms / 1000, row.duration_ms % 1000 / 100);
            table.add_row([
                Cell::new(&row.check),
                Cell::new(row.variant),
                Cell::new(result),
                Cell::new(seconds),
            ]);
        }
        let mut text = format!("{table}\n");
        for row in &self.rows {
            let (check, variant) = (&row.check, row.variant);
            match &row.status {
                Status::Passed { notes } if !notes.is_empty() && is_fault(check) => {
                    text.push_str(&format!("\n{check} ({variant})\n  {}\n", notes.join("\n  ")));
                }
                Status::Failed(failure) => text.push_str(&format!(
                    "\nFAILED {check} ({variant})\n  expected: {}\n  got:      {}\n  look at:  {}\n",
                    failure.expected, failure.got, failure.look
                )),
                _ => {}
            }
        }
        for ((variant, why), count) in self.skipped_reasons() {
            text.push_str(&format!("\nskipped {count} in {variant}: {why}\n"));
        }
        text.push('\n');
        text.push_str(&self.closing());
        text
    }

    fn skipped_reasons(&self) -> BTreeMap<(Variant, &str), usize> {
        let mut reasons = BTreeMap::new();
        for row in &self.rows {
            if let Status::Skipped { why } = &row.status {
                *reasons.entry((row.variant, why.as_str())).or_insert(0) += 1;
            }
        }
        reasons
    }
}

/// Whether what a check measured is printed for people, too.
fn is_fault(check: &str) -> bool {
    ["fault/", "mesh/"].iter().any(|group| check.starts_with(group))
}

#[cfg(test)]
mod tests {
    use super::super::check::Failure;
    use super::*;

    #[test]
    fn the_table_ends_with_the_closing_line() {
        let row = |check: &str, status| Row {
            variant: Variant::Overlay,
            check: check.into(),
            duration_ms: 1234,
            status,
        };
        let summary = Summary::new(vec![
            row("a", Status::Passed { notes: Vec::new() }),
            row("fault/x", Status::Passed { notes: vec!["right again after 4.0 s".into()] }),
            row("mesh/y", Status::Passed { notes: vec!["24 loads: 1 requests".into()] }),
            row("b", Status::Failed(Failure::new("an answer", "silence", "the log"))),
            row("c", Status::Skipped { why: "not asked for".into() }),
        ]);
        let text = summary.table();
        assert!(text.ends_with("3 passed, 1 failed, 1 skipped"), "{text}");
        assert!(text.contains("expected: an answer") && text.contains("got:      silence"));
        assert!(text.contains("look at:  the log") && text.contains("1.2"));
        assert!(text.contains("right again after 4.0 s") && text.contains("24 loads: 1 requests"));
        assert!(text.contains("skipped 1 in overlay: not asked for"));
    }
}
