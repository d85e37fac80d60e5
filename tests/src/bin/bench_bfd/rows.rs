//! The figures, as a table and as JSON.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Failure, INTERVAL};

/// Beyond the detection time of 150 ms: waking, and one packet on its way.
const SLACK: Duration = Duration::from_millis(10);

/// What one run showed.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Sessions the subject took down although packets came.
    pub(crate) false_downs: usize,
    /// Sessions the neighbour took down because the subject's packets did not come.
    pub(crate) neighbor_downs: usize,
    /// From the neighbour's last packet to the packet that tells of its loss, sorted.
    pub(crate) detections: Vec<Duration>,
    /// Sessions whose loss was not told at all.
    pub(crate) missed: usize,
    /// How long, and how often, a real-time thread was not run.
    pub(crate) late: Duration,
    pub(crate) late_count: usize,
    /// Processor time, of 1000 of one processor.
    pub(crate) cpu_permille: Option<f64>,
    pub(crate) hold: Duration,
}

impl Outcome {
    /// The detection time that `percent` of the sessions kept to, in milliseconds.
    fn detection(&self, percent: usize) -> Option<f64> {
        let last = self.detections.len().checked_sub(1)?;
        self.detections.get(last * percent / 100).map(|time| time.as_secs_f64() * 1000.0)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        write!(
            f,
            "detection p50 {} p99 {} max {} ms of {} sessions, {} not told; false downs {} here, {} at the neighbour; witness late {} times, {} ms in all; {} ‰ of a processor",
            ms(self.detection(50)),
            ms(self.detection(99)),
            ms(self.detection(100)),
            self.detections.len(),
            self.missed,
            self.false_downs,
            self.neighbor_downs,
            self.late_count,
            self.late.as_millis(),
            ms(self.cpu_permille),
        )
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

struct Row {
    id: &'static str,
    what: &'static str,
    unit: &'static str,
    /// Ours at most; none: shown only.
    goal: Option<f64>,
    value: fn(&Outcome) -> Option<f64>,
    /// The worst run counts rather than the median.
    worst: bool,
}

fn table() -> Vec<Row> {
    let limit = (INTERVAL * 3 + SLACK).as_secs_f64() * 1000.0;
    let row = |id, what, unit, goal, value, worst| Row { id, what, unit, goal, value, worst };
    vec![
        row(
            "bfd-detection-p50",
            "detection time, median session",
            "ms",
            Some(limit),
            |o| o.detection(50),
            false,
        ),
        row(
            "bfd-detection-p99",
            "detection time, 99 % of sessions",
            "ms",
            Some(limit),
            |o| o.detection(99),
            false,
        ),
        row("bfd-detection-max", "detection time, slowest session", "ms", None, |o| o.detection(100), true),
        row(
            "bfd-false-downs",
            "false downs, all runs' worst",
            "sessions",
            Some(0.0),
            |o| Some(count(o.false_downs)),
            true,
        ),
        row(
            "bfd-neighbor-downs",
            "false downs at the neighbour (sent too late)",
            "sessions",
            Some(0.0),
            |o| Some(count(o.neighbor_downs)),
            true,
        ),
        row(
            "bfd-not-told",
            "losses not told within 2 s",
            "sessions",
            Some(0.0),
            |o| Some(count(o.missed)),
            true,
        ),
        row("bfd-cpu", "processor time of 64 sessions", "permille", None, |o| o.cpu_permille, false),
    ]
}

/// Prints and writes the rows; false if a session was lost falsely or a loss was not told.
pub(crate) fn report(ours: &[Outcome], frr: &[Outcome], path: &Path) -> Result<bool, Failure> {
    // A machine that ran not even real-time threads for a fifth of the time shows nothing.
    let conclusive =
        ours.iter().all(|outcome| outcome.late * 5 < outcome.hold && !outcome.detections.is_empty());
    let mut rows: Vec<Value> = Vec::new();
    let mut good = true;
    println!(
        "{:<46} {:>12} {:>12} {:>9} {:>7} {:>8}  met",
        "64 sessions at 50 ms x 3, full load", "tombolo", "FRR bfdd", "unit", "ratio", "goal"
    );
    for row in table() {
        let sum = |outcomes: &[Outcome]| {
            let values: Vec<f64> = outcomes.iter().filter_map(row.value).collect();
            if row.worst { values.into_iter().max_by(f64::total_cmp) } else { median(values) }
        };
        let (ours, peer) = (sum(ours), sum(frr));
        let ratio = ours.zip(peer).filter(|(_, peer)| *peer > 0.0).map(|(ours, peer)| ours / peer);
        let met = match (row.goal, ours) {
            (Some(goal), Some(ours)) if conclusive => Some(ours <= goal),
            _ => None,
        };
        // Milliseconds are for the reader; a session lost or kept wrongly is a failure on any machine.
        good &= !row.worst || met != Some(false);
        let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        let answer = match (row.goal, met) {
            (_, Some(true)) => "yes",
            (_, Some(false)) => "NO",
            (Some(_), None) => "inconclusive",
            (None, None) => "",
        };
        let ratio_text = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!(
            "{:<46} {:>12} {:>12} {:>9} {:>7} {:>8}  {answer}",
            row.what,
            text(ours),
            text(peer),
            row.unit,
            ratio_text,
            text(row.goal)
        );
        let goal = row.goal.map(|goal| format!("<= {goal}"));
        rows.push(json!({
            "id": row.id, "what": row.what, "ours": ours, "peer": peer, "peer_name": "FRR bfdd",
            "unit": row.unit, "ratio": ratio, "goal": goal, "met": met,
        }));
    }
    let late = |outcomes: &[Outcome]| outcomes.iter().map(|outcome| outcome.late_count).sum::<usize>();
    println!("witness over 50 ms late: {} times in our runs, {} in FRR's", late(ours), late(frr));
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, format!("{:#}\n", json!({ "rows": rows })))?;
    println!("written to {}", path.display());
    Ok(good)
}
