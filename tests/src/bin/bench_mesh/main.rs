//! `make bench-mesh`: the cluster mesh at the size of Cilium's own scale tests, with one real etcd, and a bare client beside ours in the same run.
//!
//! Readers are processes of this program; processor time and memory are theirs, out of /proc, once they rest.
//! `bench_mesh [short] [runs=N] [sync|large|churn|path|service|outage ...]`; short is for CI, whose figures decide nothing but whether everything
//! arrives. `bench_mesh [short] hold` only fills an etcd and says how a reader is started on it, under a profiler: docs/clustermesh.md, "Figures".

mod child;
mod churn;
mod etcd;
mod outage;
mod path;
mod reader;
mod service;
mod sync;
mod world;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use etcd::{Etcd, write_files};
use tombolo_tests::report::Report;
use world::Size;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs of each reader, of which the median counts.
const RUNS: usize = 3;
/// Cilium's daily scale test.
const DAILY: Size = Size { clusters: 250, nodes: 100, identities: 100, endpoints: 1000 };
/// The largest mesh there is (the 511th cluster is the one that reads), with a million endpoints.
const LARGE: Size = Size { clusters: 510, nodes: 100, identities: 100, endpoints: 1961 };
/// In CI.
const SHORT: Size = Size { clusters: 24, nodes: 20, identities: 20, endpoints: 200 };
/// What the many readers read.
const ONE: Size = Size { clusters: 1, nodes: 100, identities: 100, endpoints: 1000 };
/// Most bytes that an endpoint may cost, and all of the largest mesh.
const RSS_EACH: f64 = 300.0;
const RSS_LARGE: f64 = 400.0 * 1_048_576.0;

/// What the command line asks for.
struct Choice {
    short: bool,
    runs: usize,
    /// All if empty.
    only: Vec<String>,
}

impl Choice {
    fn read(arguments: &[String]) -> Result<Self, Failure> {
        let mut choice = Self { short: false, runs: RUNS, only: Vec::new() };
        for argument in arguments {
            match argument.split_once('=') {
                None if argument == "short" => (choice.short, choice.runs) = (true, 1),
                None => choice.only.push(argument.clone()),
                Some(("runs", count)) => choice.runs = count.parse()?,
                Some(_) => return Err(format!("{argument:?} is neither short nor runs=N").into()),
            }
        }
        Ok(choice)
    }

    fn takes(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == scenario)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // As the agent's.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(&arguments));
            // A reader's thread may still wait for the parent's word.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_mesh: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [mode, folder, sizes @ ..] if sizes.len() == 4 => {
            let number =
                |at: usize| -> Result<u32, Failure> { Ok(sizes.get(at).ok_or("a number")?.parse()?) };
            let size = Size {
                clusters: number(0)?,
                nodes: number(1)?,
                identities: number(2)?,
                endpoints: number(3)?,
            };
            let folder = Path::new(folder);
            match *mode {
                "bare" => reader::bare(folder, size).await,
                "tables" => reader::ours(folder, size, false).await,
                "planned" => reader::ours(folder, size, true).await,
                "watch" => reader::watch(folder).await,
                "node" => path::node(folder, size, if size.clusters > 100 { 2000 } else { 200 }).await,
                other => Err(format!("there is no reader {other:?}").into()),
            }
        }
        ["relay", folder, own] => reader::relay(Path::new(folder), Path::new(own)).await,
        ["readers", folder, count] => reader::readers(Path::new(folder), count.parse()?).await,
        _ => bench(&Choice::read(arguments)?).await,
    }
}

/// An etcd with so many clusters, and the folder with their files.
async fn filled(size: Size) -> Result<(Etcd, tempfile::TempDir), Failure> {
    let etcd = Etcd::start().await?;
    eprint!("filling etcd with {} clusters and {} endpoints ", size.clusters, size.all_endpoints());
    let entries = etcd.fill(size).await?;
    eprintln!(" {entries} entries");
    let folder = tempfile::tempdir()?;
    write_files(&etcd, folder.path(), size)?;
    Ok((etcd, folder))
}

async fn bench(choice: &Choice) -> Result<(), Failure> {
    let daily = if choice.short { SHORT } else { DAILY };
    if choice.only.iter().any(|only| only == "hold") {
        let (_etcd, folder) = filled(daily).await?;
        let [mode, rest @ ..] = sync::arguments("tables", folder.path(), daily);
        eprintln!("bench_mesh {mode} {}; each line that it reads lets it go on", rest.join(" "));
        tokio::task::spawn_blocking(reader::told).await?;
        return Ok(());
    }
    let mut report = Report::new(!choice.short && choice.runs >= RUNS);
    if ["sync", "churn", "path"].iter().any(|scenario| choice.takes(scenario)) {
        let (etcd, folder) = filled(daily).await?;
        if choice.takes("sync") {
            sync::bench(&mut report, folder.path(), daily, choice.runs, RSS_EACH)?;
        }
        if choice.takes("path") {
            path::bench(&mut report, folder.path(), daily, if choice.short { 200 } else { 2000 })?;
        }
        if choice.takes("churn") {
            let span = Duration::from_secs(if choice.short { 10 } else { 300 });
            churn::bench(&mut report, &etcd, folder.path(), daily, span).await?;
        }
    }
    if choice.takes("large") && !choice.short {
        let (_etcd, folder) = filled(LARGE).await?;
        sync::bench(&mut report, folder.path(), LARGE, choice.runs, RSS_LARGE)?;
    }
    if choice.takes("service") {
        service::bench(&mut report, choice.short)?;
    }
    if choice.takes("outage") {
        let (mut etcd, folder) = filled(ONE).await?;
        let (readers, down) = if choice.short { (20, 5) } else { (200, 30) };
        let outage = (readers, Duration::from_secs(down));
        outage::bench(&mut report, &mut etcd, folder.path(), ONE, outage).await?;
    }
    Ok(report.write(Path::new("target/bench/mesh.json"))?)
}
