//! `make bench-bgp`: the speaker (the crate's router example) and other daemons in turn, between injectors and receivers of this program.
//!
//! ```text
//!  injectors ──eth1── daemon ──eth1── receivers        each in a network namespace of its own, eBGP; no routes in the kernel but in one scenario
//! ```
//! Processor time and memory are the daemon's with its threads and children, out of /proc, once it rests. A receiver counts distinct prefixes.
//! `bench_bgp [short] [runs=N] [with=DAEMON,...] [SCENARIO ...]`; short is for CI, whose figures decide nothing but whether everything arrives.

mod daemon;
mod fib;
mod peer;
mod rows;
mod scenario;
mod table;

use std::path::Path;
use std::process::ExitCode;

use daemon::Kind;
use rows::{Figure, Report, Runs, flapping, installing, moving};
use scenario::{Measure, Work, float, once};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs of each daemon, of which the median counts.
const RUNS: usize = 3;
/// Prefixes of the internet's table, but for a fifth.
const FULL: usize = 800_000;
/// GoBGP puts one prefix into each UPDATE and takes minutes for a full table.
const GOBGP_COUNT: usize = 40_000;

struct Scenario {
    id: &'static str,
    /// With each part of the run.
    parts: Vec<(&'static str, &'static str)>,
    work: Work,
    daemons: Vec<Kind>,
    figures: Vec<Figure>,
}

/// What the command line asks for.
#[derive(Default)]
struct Choice {
    short: bool,
    runs: Option<usize>,
    /// Daemons to run beside ours; all that a scenario names if empty.
    with: Vec<String>,
    /// Scenarios to run; all if empty.
    only: Vec<String>,
}

impl Choice {
    fn read(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut choice = Self::default();
        for argument in arguments {
            match argument.split_once('=') {
                None if argument == "short" => choice.short = true,
                None => choice.only.push(argument),
                Some(("runs", count)) => choice.runs = Some(count.parse()?),
                Some(("with", names)) => choice.with = names.split(',').map(str::to_lowercase).collect(),
                Some(_) => {
                    return Err(format!("{argument:?} is none of short, runs=N, with=DAEMON,...").into());
                }
            }
        }
        Ok(choice)
    }

    fn runs(&self) -> usize {
        self.runs.unwrap_or(if self.short { 1 } else { RUNS })
    }

    fn takes(&self, kind: Kind) -> bool {
        kind == Kind::Ours || self.with.is_empty() || self.with.contains(&kind.name().to_lowercase())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == "fib" => fib::run(rest).map(|()| true),
        _ => Choice::read(arguments.into_iter()).and_then(|choice| bench(&choice)),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench_bgp: {error}");
            ExitCode::FAILURE
        }
    }
}

/// False if not everything arrived.
fn bench(choice: &Choice) -> Result<bool, Failure> {
    let mut report = Report::default();
    println!("{}", daemon::versions()?);
    for mut scenario in scenarios(choice.short) {
        if !choice.only.is_empty() && !choice.only.iter().any(|id| id == scenario.id) {
            continue;
        }
        scenario.daemons.retain(|kind| choice.takes(*kind));
        let runs = all_runs(&scenario, choice.runs());
        for (at, (id, what)) in scenario.parts.iter().enumerate() {
            let part: Vec<Runs> = runs
                .iter()
                .map(|(runs, measures)| Runs {
                    kind: runs.kind,
                    scale: runs.scale,
                    measures: measures.iter().filter_map(|parts| parts.get(at).cloned()).collect(),
                    failure: runs.failure.clone(),
                })
                .collect();
            report.add(id, what, &part, &scenario.figures, choice.runs() >= RUNS && !choice.short);
        }
    }
    report.write(Path::new("target/bench/bgp.json"))?;
    Ok(!report.failed)
}

/// Every daemon in turn, the order turned round after each round.
fn all_runs(scenario: &Scenario, rounds: usize) -> Vec<(Runs, Vec<Vec<Measure>>)> {
    let none = |kind: &Kind| {
        let runs =
            Runs { kind: *kind, scale: scaled(*kind, scenario.work).1, measures: Vec::new(), failure: None };
        (runs, Vec::new())
    };
    let mut all: Vec<(Runs, Vec<Vec<Measure>>)> = scenario.daemons.iter().map(none).collect();
    for round in 0..rounds {
        all.reverse();
        for (runs, measures) in &mut all {
            if runs.failure.is_some() {
                continue;
            }
            eprint!("{} {} of {rounds}: {} ... ", scenario.id, round + 1, runs.kind.name());
            match once(runs.kind, scaled(runs.kind, scenario.work).0) {
                Ok(parts) => {
                    for part in &parts {
                        let Measure { cpu_secs, wall_secs, rss_per_prefix, .. } = part;
                        eprint!("{cpu_secs:.3} s processor, {wall_secs:.3} s wall, {rss_per_prefix:.0} B; ");
                    }
                    eprintln!();
                    measures.push(parts);
                }
                Err(error) => {
                    eprintln!("{error}");
                    runs.failure = Some(error.to_string());
                }
            }
        }
    }
    all.sort_by_key(|(runs, _)| runs.kind);
    all
}

/// The work as a daemon gets it, and how many times as much the whole is.
fn scaled(kind: Kind, work: Work) -> (Work, f64) {
    match work {
        Work::Runs { count, per } if kind == Kind::Gobgp && count > GOBGP_COUNT => {
            (Work::Runs { count: GOBGP_COUNT, per }, float(count) / float(GOBGP_COUNT))
        }
        _ => (work, 1.0),
    }
}

fn scenarios(short: bool) -> Vec<Scenario> {
    use Kind::{Bird, Frr, Gobgp, Openbgpd, Ours};
    let of = |count: usize| if short { count / 20 } else { count };
    let peers = |count: u8| if short { count / 5 } else { count };
    let with_bird = || vec![Ours, Bird];
    let everybody = || vec![Ours, Bird, Frr, Openbgpd, Gobgp];
    let scenario =
        |id, what, work, daemons, figures| Scenario { id, parts: vec![(id, what)], work, daemons, figures };
    let table = |per| Work::Runs { count: of(FULL), per };
    let few = if short { with_bird() } else { everybody() };
    vec![
        scenario("per-10", "a full table, 10 prefixes an UPDATE", table(10), everybody(), moving(0.5)),
        scenario("per-1", "a full table, 1 prefix an UPDATE", table(1), few.clone(), moving(0.5)),
        scenario("per-100", "a full table, 100 prefixes an UPDATE", table(100), few, moving(0.5)),
        scenario(
            "internet",
            "a full table of the internet's shape, in no order",
            Work::Internet { count: of(FULL) },
            with_bird(),
            moving(0.5),
        ),
        Scenario {
            id: "same",
            parts: vec![
                ("same", "ten peers with the same full table"),
                ("same-withdrawn", "all but the least preferred of them withdraw it"),
            ],
            work: Work::Same { peers: 10, count: of(FULL) },
            daemons: with_bird(),
            figures: moving(1.0),
        },
        scenario(
            "distinct",
            "fifty peers with 20,000 prefixes of their own",
            Work::Distinct { peers: peers(50), count: of(20_000) },
            with_bird(),
            moving(1.0),
        ),
        scenario(
            "fan-out",
            "one table of 100,000 to a hundred receivers",
            Work::FanOut { receivers: peers(100), count: of(100_000) },
            with_bird(),
            moving(1.0),
        ),
        scenario(
            "fib",
            "100,000 prefixes into the kernel's table",
            Work::Kernel { count: of(100_000) },
            with_bird(),
            installing(),
        ),
        scenario(
            "flap",
            "one prefix that flaps in a full table",
            Work::Flap { count: of(FULL), flaps: if short { 50 } else { 1000 } },
            with_bird(),
            flapping(),
        ),
    ]
}
