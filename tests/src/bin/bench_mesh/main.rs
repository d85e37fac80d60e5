//! `make bench-mesh`

mod etcd;
mod reader;
mod world;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use tombolo_tests::usage::{Usage, settled};
use world::Size;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_mesh: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let size = |c: &str, e: &str| -> Result<Size, Failure> { Ok(Size { clusters: c.parse()?, nodes: 100, identities: 100, endpoints: e.parse()? }) };
    match words.as_slice() {
        ["ours", folder, c, e] => reader::ours(Path::new(folder), size(c, e)?).await,
        ["bare", folder, c, e] => reader::bare(Path::new(folder), size(c, e)?, false).await,
        ["bares", folder, c, e] => reader::bare(Path::new(folder), size(c, e)?, true).await,
        ["sync", c, e, runs] => sync(size(c, e)?, runs.parse()?).await,
        _ => Err("?".into()),
    }
}

async fn sync(size: Size, runs: usize) -> Result<(), Failure> {
    let etcd = etcd::Etcd::start().await?;
    let t = Instant::now();
    let n = etcd.fill(size).await?;
    eprintln!("{n} entries in {:?}", t.elapsed());
    let folder = tempfile::tempdir()?;
    etcd::write_files(&etcd, folder.path(), size)?;
    if std::env::var("HOLD").is_ok() {
        println!("{}", folder.path().display());
        std::thread::sleep(std::time::Duration::from_secs(3600));
    }
    for _ in 0..runs {
        for mode in ["bare", "bares", "ours"] {
            let mut child = Command::new(std::env::current_exe()?)
                .args([mode, &folder.path().display().to_string(), &size.clusters.to_string(), &size.endpoints.to_string()])
                .stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            lines.next().unwrap()?;
            let before = Usage::of(child.id());
            let t = Instant::now();
            writeln!(child.stdin.as_mut().unwrap())?;
            let done = lines.next().unwrap()?;
            let wall = t.elapsed();
            let after = settled(child.id());
            println!("{mode:6} {done}: cpu {:.3} wall {:.2} rss {:.1} MB = {} B/endpoint", (after.cpu - before.cpu).as_secs_f64(), wall.as_secs_f64(), (after.rss - before.rss) as f64 / 1e6, (after.rss - before.rss) / size.all_endpoints());
            child.kill()?;
            child.wait()?;
        }
    }
    Ok(())
}
