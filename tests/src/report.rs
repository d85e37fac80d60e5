//! The figures of a bench, as a table and as JSON.

use std::path::Path;

use serde_json::{Value, json};

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most that multiple of the peer's.
    Ratio(f64),
    /// At least that multiple of the peer's.
    RatioLeast(f64),
    /// At most that much.
    Most(f64),
    /// At least that much.
    Least(f64),
    /// There is none.
    None,
}

impl Goal {
    /// In words, and whether it is met.
    fn judge(self, ours: Option<f64>, ratio: Option<f64>) -> (Option<String>, Option<bool>) {
        match self {
            Self::Ratio(most) => (Some(format!("<= {most} x")), ratio.map(|ratio| ratio <= most)),
            Self::RatioLeast(least) => (Some(format!(">= {least} x")), ratio.map(|ratio| ratio >= least)),
            Self::Most(most) => (Some(format!("<= {most}")), ours.map(|ours| ours <= most)),
            Self::Least(least) => (Some(format!(">= {least}")), ours.map(|ours| ours >= least)),
            Self::None => (None, None),
        }
    }
}

/// A figure.
#[derive(Clone, Copy, Debug)]
pub struct Figure<'a> {
    /// Its name in the JSON.
    pub id: &'a str,
    /// What was measured, of how much.
    pub what: &'a str,
    /// Of both values.
    pub unit: &'a str,
    /// Our value; none: not measured.
    pub ours: Option<f64>,
    /// What it is compared with, and its name.
    pub peer: Option<(Option<f64>, &'a str)>,
    /// What it is to be.
    pub goal: Goal,
}

/// What the bench showed.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Value>,
    /// Whether the figures decide something: not those of a short run.
    decisive: bool,
}

/// The middle one of several.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The value that so many percent of all do not exceed.
#[must_use]
pub fn percentile(values: &mut [f64], percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? * percent / 100).copied()
}

fn text(value: Option<f64>) -> String {
    match value {
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.3}"),
        None => "-".to_owned(),
    }
}

impl Report {
    /// Prints the table's head. Goals are judged only if the figures decide something.
    #[must_use]
    pub fn new(decisive: bool) -> Self {
        println!(
            "{:<62} {:>10} {:>10} {:<26} {:>6} {:>7} {:>8}  met",
            "", "tombolo", "peer", "", "", "ratio", "goal"
        );
        Self { rows: Vec::new(), decisive }
    }

    /// Whether goals are judged.
    #[must_use]
    pub fn decisive(&self) -> bool {
        self.decisive
    }

    /// Prints and keeps a figure.
    pub fn add(&mut self, figure: &Figure<'_>) {
        self.add_noted(figure, "");
    }

    /// The same with a remark.
    pub fn add_noted(&mut self, figure: &Figure<'_>, note: &str) {
        self.add_judged(figure, None, true, note);
    }

    /// The same with a ratio that is not just that of both values, and whether it is steady enough to judge by.
    pub fn add_judged(&mut self, figure: &Figure<'_>, ratio: Option<f64>, steady: bool, note: &str) {
        let Figure { id, what, unit, ours, peer, goal } = figure;
        let theirs = peer.and_then(|(value, _)| value);
        let plain = ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs);
        let ratio = ratio.or(plain);
        let (goal_text, held) = goal.judge(*ours, ratio);
        let met = held.filter(|_| self.decisive && steady);
        let answer = match (&goal_text, met) {
            (_, Some(true)) => "yes",
            (_, Some(false)) => "NO",
            (Some(_), None) if ours.is_none() => "not measured",
            (Some(_), None) => "inconclusive",
            (None, None) => "",
        };
        let name = peer.map_or("", |(_, name)| name);
        println!(
            "{what:<62} {:>10} {:>10} {name:<26} {unit:>6} {:>7} {:>8}  {answer}",
            text(*ours),
            text(theirs),
            text(ratio),
            goal_text.as_deref().unwrap_or_default()
        );
        if !note.is_empty() {
            println!("    {note}");
        }
        let mut row = json!({
            "id": id, "what": what, "ours": ours, "peer": theirs, "peer_name": peer.map(|(_, name)| name),
            "unit": unit, "ratio": ratio, "goal": goal_text, "met": met,
        });
        if let Some(row) = row.as_object_mut().filter(|_| !note.is_empty()) {
            row.insert("note".to_owned(), note.into());
        }
        self.rows.push(row);
    }

    /// Writes all rows as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(path, format!("{:#}\n", json!({ "rows": self.rows })))?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a figure's row says of its goal, by ours, the peer's, and whether it was steady.
    fn met(goal: Goal, ours: Option<f64>, theirs: f64, steady: bool, decisive: bool) -> Value {
        let mut report = Report::new(decisive);
        let peer = Some((Some(theirs), "peer"));
        report.add_judged(&Figure { id: "x", what: "x", unit: "", ours, peer, goal }, None, steady, "");
        report.rows[0]["met"].clone()
    }

    #[test]
    fn goals_are_judged_only_by_what_decides_something() {
        for (goal, ours, wanted) in [
            (Goal::Ratio(1.5), 3.0, true),
            (Goal::Ratio(1.4), 3.0, false),
            (Goal::RatioLeast(1.5), 3.0, true),
            (Goal::RatioLeast(1.6), 3.0, false),
            (Goal::Most(3.0), 3.0, true),
            (Goal::Most(2.0), 3.0, false),
            (Goal::Least(3.0), 3.0, true),
            (Goal::Least(4.0), 3.0, false),
        ] {
            assert_eq!(met(goal, Some(ours), 2.0, true, true), json!(wanted), "{goal:?}");
            assert_eq!(met(goal, Some(ours), 2.0, false, true), Value::Null, "not steady");
            assert_eq!(met(goal, Some(ours), 2.0, true, false), Value::Null, "a short run");
            assert_eq!(met(goal, None, 2.0, true, true), Value::Null, "not measured");
        }
        assert_eq!(met(Goal::None, Some(1.0), 2.0, true, true), Value::Null);
    }

    #[test]
    fn a_ratio_that_is_given_counts_rather_than_that_of_the_values() {
        let mut report = Report::new(true);
        let peer = Some((Some(2.0), "peer"));
        let goal = Goal::RatioLeast(1.0);
        let figure = Figure { id: "x", what: "x", unit: "", ours: Some(3.0), peer, goal };
        report.add_judged(&figure, Some(0.9), true, "why");
        assert_eq!(report.rows[0]["met"], json!(false));
        assert_eq!((&report.rows[0]["ratio"], &report.rows[0]["note"]), (&json!(0.9), &json!("why")));
    }
}
