//! The figures, as a table and as JSON.

use std::path::Path;

use serde_json::{Value, json};

use crate::Failure;
use crate::daemon::Kind;
use crate::scenario::Measure;

/// A figure of a run, and at most what multiple of BIRD's ours is to be.
#[derive(Clone, Copy)]
pub(crate) struct Figure {
    id: &'static str,
    what: &'static str,
    unit: &'static str,
    value: fn(&Measure) -> Option<f64>,
    goal: Option<f64>,
}

fn percentile(measure: &Measure, percent: usize) -> Option<f64> {
    let last = measure.latencies.len().checked_sub(1)?;
    measure.latencies.get(last * percent / 100).copied()
}

/// The figures of moving a table; `cpu` is the goal of the processor time.
pub(crate) fn moving(cpu: f64) -> Vec<Figure> {
    let figure = |id, what, unit, value, goal| Figure { id, what, unit, value, goal };
    vec![
        figure("cpu", "processor time", "s", |m| Some(m.cpu_secs), Some(cpu)),
        figure("wall", "first byte to last route", "s", |m| Some(m.wall_secs), Some(1.0)),
        figure("rss", "memory a prefix", "B", |m| Some(m.rss_per_prefix), Some(1.2)),
        figure("updates", "UPDATEs out", "", |m| Some(m.updates), Some(1.1)),
    ]
}

/// The figures of routes in the kernel.
pub(crate) fn installing() -> Vec<Figure> {
    moving(1.0).into_iter().filter(|figure| matches!(figure.id, "cpu" | "wall" | "rss")).collect()
}

/// The figures of one flapping prefix.
pub(crate) fn flapping() -> Vec<Figure> {
    let figure = |id, what, value, goal| Figure { id, what, unit: "us", value, goal };
    vec![
        figure("p50", "UPDATE in to out, p50", |m| percentile(m, 50), Some(1.0)),
        figure("p99", "UPDATE in to out, p99", |m| percentile(m, 99), Some(1.5)),
    ]
}

/// The runs of one daemon at one scenario.
pub(crate) struct Runs {
    pub(crate) kind: Kind,
    /// How many times more its figures stand for, if it ran a smaller table.
    pub(crate) scale: f64,
    pub(crate) measures: Vec<Measure>,
    /// Why it gave up, if it did.
    pub(crate) failure: Option<String>,
}

impl Runs {
    fn median(&self, figure: &Figure) -> Option<f64> {
        let mut values: Vec<f64> = self.measures.iter().filter_map(figure.value).collect();
        values.sort_by(f64::total_cmp);
        let value = values.get(values.len() / 2).copied()?;
        let grows = matches!(figure.id, "cpu" | "wall" | "updates");
        Some(if grows { value * self.scale } else { value })
    }

    fn name(&self) -> String {
        match &self.failure {
            Some(_) if self.measures.is_empty() => format!("{} (failed)", self.kind.name()),
            _ if self.scale > 1.0 => format!("{} (x {})", self.kind.name(), self.scale),
            _ => self.kind.name().to_owned(),
        }
    }
}

/// What the whole bench showed.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Value>,
    /// A goal was missed or we failed.
    pub(crate) failed: bool,
}

impl Report {
    /// Prints and keeps the figures of one scenario. Figures of a short run decide nothing.
    pub(crate) fn add(&mut self, id: &str, what: &str, runs: &[Runs], figures: &[Figure], decisive: bool) {
        println!("\n{what}");
        println!(
            "  {:<26} {:>11} {:<16} {:>11} {:>4} {:>7} {:>7}  met",
            "", "tombolo", "peer", "", "", "ratio", "goal"
        );
        let Some(ours) = runs.iter().find(|runs| runs.kind == Kind::Ours) else { return };
        self.failed |= ours.failure.is_some();
        for figure in figures {
            let value = ours.median(figure);
            for peer in runs.iter().filter(|runs| runs.kind != Kind::Ours) {
                let theirs = peer.median(figure);
                let ratio =
                    value.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs);
                let goal = figure.goal.filter(|_| peer.kind == Kind::Bird);
                let met = goal.zip(ratio).filter(|_| decisive).map(|(goal, ratio)| ratio <= goal);
                line(figure, value, peer, theirs, ratio, goal, met);
                self.rows.push(json!({
                    "id": format!("{id}-{}-{}", figure.id, peer.kind.name().to_lowercase()),
                    "what": format!("{what}: {}", figure.what), "ours": value, "peer": theirs,
                    "peer_name": peer.name(), "unit": figure.unit, "ratio": ratio,
                    "goal": goal.map(|goal| format!("<= {goal} x")), "met": met,
                }));
            }
        }
        for runs in runs {
            if let Some(failure) = &runs.failure {
                println!("  {}: {failure}", runs.kind.name());
            }
        }
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

fn line(
    figure: &Figure,
    ours: Option<f64>,
    peer: &Runs,
    theirs: Option<f64>,
    ratio: Option<f64>,
    goal: Option<f64>,
    met: Option<bool>,
) {
    let text = |value: Option<f64>| match value {
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.2}"),
        None => "-".to_owned(),
    };
    let answer = match (goal, met) {
        (_, Some(true)) => "yes",
        (_, Some(false)) => "NO",
        (Some(_), None) => "inconclusive",
        (None, None) => "",
    };
    println!(
        "  {:<26} {:>11} {:<16} {:>11} {:>4} {:>7} {:>7}  {answer}",
        figure.what,
        text(ours),
        peer.name(),
        text(theirs),
        figure.unit,
        text(ratio),
        text(goal)
    );
}
