//! The figures, as a table and as JSON.

use std::path::Path;

use serde_json::{Value, json};

use crate::Failure;

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most that multiple of the peer's.
    Ratio(f64),
    /// At most that much.
    Most(f64),
    /// There is none.
    None,
}

/// A figure.
pub(crate) struct Figure<'a> {
    pub(crate) id: &'a str,
    pub(crate) what: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) ours: Option<f64>,
    /// What it is compared with, and its name.
    pub(crate) peer: Option<(Option<f64>, &'a str)>,
    pub(crate) goal: Goal,
}

/// What the bench showed.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
    /// Whether the figures decide something: not those of a short run.
    decisive: bool,
}

/// The middle one of several.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The value that so many percent of all do not exceed.
pub(crate) fn percentile(values: &mut [f64], percent: usize) -> Option<f64> {
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
    pub(crate) fn new(decisive: bool) -> Self {
        println!(
            "{:<62} {:>10} {:>10} {:<26} {:>6} {:>7} {:>8}  met",
            "", "tombolo", "peer", "", "", "ratio", "goal"
        );
        Self { rows: Vec::new(), decisive }
    }

    pub(crate) fn add(&mut self, figure: &Figure<'_>) {
        let Figure { id, what, unit, ours, peer, goal } = figure;
        let theirs = peer.and_then(|(value, _)| value);
        let ratio = ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs);
        let (goal_text, held) = match goal {
            Goal::Ratio(most) => (Some(format!("<= {most} x")), ratio.map(|ratio| ratio <= *most)),
            Goal::Most(most) => (Some(format!("<= {most}")), ours.map(|ours| ours <= *most)),
            Goal::None => (None, None),
        };
        let met = held.filter(|_| self.decisive);
        let answer = match (&goal_text, met) {
            (_, Some(true)) => "yes",
            (_, Some(false)) => "NO",
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
        self.rows.push(json!({
            "id": id, "what": what, "ours": ours, "peer": theirs, "peer_name": peer.map(|(_, name)| name),
            "unit": unit, "ratio": ratio, "goal": goal_text, "met": met,
        }));
    }

    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(path, format!("{:#}\n", json!({ "rows": self.rows })))?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}
