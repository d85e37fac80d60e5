//! `make bench-datapath`: the datapath beside what the kernel offers for the same, in one run on one kernel.
//!
//! `bench_datapath [short] [patience=SECONDS] [programs|node|services|nodes|change|cni|life ...]`; short is for CI, whose figures decide nothing but whether everything can be
//! measured. `bench_datapath hold=established|new|new-cold` does that for 10 s, for a profiler. How to read the table: docs/datapath.md, "Figures".

mod abba;
mod balance;
mod change;
mod cni;
mod life;
mod node;
mod programs;
mod rules;
mod spaces;
mod units;
mod ways;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tombolo_tests::netns::run;
use tombolo_tests::report::Report;

use abba::{Comparison, Method};
use programs::{Amount, Programs};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

const PARTS: [&str; 7] = ["programs", "node", "services", "nodes", "change", "cni", "life"];

/// What the command line asks for.
struct Choice {
    short: bool,
    /// Seconds to wait for quiet processors, all in all.
    patience: u64,
    /// What a profiler is to see.
    hold: Option<String>,
    /// All if empty.
    only: Vec<String>,
}

impl Choice {
    fn read(arguments: &[String]) -> Result<Self, Failure> {
        let mut choice = Self { short: false, patience: 600, hold: None, only: Vec::new() };
        for argument in arguments {
            match argument.split_once('=') {
                None if argument == "short" => choice.short = true,
                None if PARTS.contains(&argument.as_str()) => choice.only.push(argument.clone()),
                Some(("hold", what)) => {
                    (choice.hold, choice.only) = (Some(what.to_owned()), vec!["programs".to_owned()]);
                }
                Some(("patience", seconds)) => choice.patience = seconds.parse()?,
                _ => {
                    return Err(format!(
                        "{argument:?} is none of short, patience=SECONDS, hold=WHAT, {PARTS:?}"
                    )
                    .into());
                }
            }
        }
        Ok(choice)
    }

    fn takes(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == part)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match Choice::read(&arguments).and_then(|choice| bench(&choice)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_datapath: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Moves into namespaces of our own, so that all goes with the process; no thread may have been started before.
fn isolate() -> Result<tempfile::TempDir, Failure> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(|error| format!("no namespaces: {error}; run it as root"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    let bpffs = tempfile::tempdir()?;
    mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), none)?;
    run("ip", &["link", "set", "lo", "up"]);
    Ok(bpffs)
}

fn bench(choice: &Choice) -> Result<(), Failure> {
    let bpffs = isolate()?;
    let mut report = Report::new(!choice.short);
    let outcome = parts(choice, bpffs.path(), &mut report);
    umount2(bpffs.path(), MntFlags::MNT_DETACH)?;
    outcome?;
    Ok(report.write(Path::new("target/bench/datapath.json"))?)
}

fn parts(choice: &Choice, bpffs: &Path, report: &mut Report) -> Result<(), Failure> {
    if choice.takes("programs") {
        let amount = if choice.short {
            Amount { batches: 5, cold: 2_000, services: 500, hosts: 2_000, rules: 1_000 }
        } else {
            Amount { batches: 50, cold: 60_000, services: 20_000, hosts: 50_000, rules: 16_000 }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let programs = Programs::new(bpffs, &runtime, report, amount)?;
        match &choice.hold {
            Some(what) => programs.hold(what)?,
            None => programs.all()?,
        }
    }
    let method = if choice.short {
        Method { rounds: 1, each: Duration::from_millis(100), patience: None }
    } else {
        Method {
            rounds: 15,
            each: Duration::from_secs(2),
            patience: Some(Duration::from_secs(choice.patience)),
        }
    };
    let mut comparison = Comparison::new(report, method);
    if choice.takes("node") {
        ways::one_node(&mut comparison)?;
    }
    if choice.takes("services") {
        let counts: &[u32] = if choice.short { &[10, 100] } else { &[10, 1_000, 5_000, 10_000] };
        balance::bench(&mut comparison, counts)?;
    }
    if choice.takes("nodes") {
        ways::two_nodes(&mut comparison)?;
    }
    if choice.takes("services") {
        balance::absent(report);
    }
    if choice.takes("change") {
        change::bench(report, choice.short)?;
    }
    if choice.takes("cni") {
        cni::bench(report, choice.short)?;
    }
    if choice.takes("life") {
        life::restarts(report, choice.short)?;
        life::full_table(report, choice.short)?;
        life::memory(report, choice.short)?;
        life::absent(report);
    }
    Ok(())
}
