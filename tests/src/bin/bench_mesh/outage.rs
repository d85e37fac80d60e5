//! Many agents lose one etcd, and come back: what hits it then, and when all are current again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::child::Process;
use crate::etcd::{Etcd, write_files};
use crate::sync::float;
use crate::world::Size;
use tombolo_tests::report::{Figure, Goal, Report};

/// Time between two looks at etcd's counters.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks in a second.
const WINDOW: usize = 4;

/// Requests and streams that etcd has answered or begun since it started; `None` while it does not answer.
fn requests(port: u16) -> Option<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    // A watch is one message on a stream; of the others each is a call.
    let counts = text.lines().filter(|line| {
        line.starts_with("grpc_server_started_total") && line.contains("Range\"")
            || line.starts_with("grpc_server_msg_received_total") && line.contains("Watch\"")
    });
    Some(counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).map(whole).sum())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
const fn whole(value: f64) -> u64 {
    value as u64
}

/// What an outage came to.
struct Outage {
    /// Most requests a second at the etcd that comes back.
    peak: Option<f64>,
    /// From its start until all readers are current.
    secs: f64,
}

/// Takes etcd away from readers that are current, and watches what hits it when it comes back.
async fn outage(etcd: &mut Etcd, readers: &mut Process, down: Duration) -> Result<Outage, Failure> {
    readers.says("current")?;
    eprint!("  all are current; etcd is away for {} s ... ", down.as_secs());
    etcd.stop();
    readers.says("lost")?;
    tokio::time::sleep(down).await;
    let started = Instant::now();
    etcd.run().await?;
    readers.go()?;
    let port = etcd.metrics_port();
    let (watching, seen) = (AtomicBool::new(true), Mutex::new(Vec::new()));
    let secs = std::thread::scope(|scope| -> Result<f64, Failure> {
        scope.spawn(|| {
            while watching.load(Ordering::Relaxed) {
                if let (Some(count), Ok(mut seen)) = (requests(port), seen.lock()) {
                    seen.push((Instant::now(), count));
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let said = readers.says("current");
        watching.store(false, Ordering::Relaxed);
        said.map(|_| started.elapsed().as_secs_f64())
    })?;
    eprintln!("all are current again after {secs:.1} s");
    let seen = seen.into_inner().map_err(|_| "the thread that looks at etcd failed")?;
    let rates = seen.windows(WINDOW + 1).filter_map(|part| {
        let ((from, before), (to, after)) = (part.first()?, part.last()?);
        Some(float(after.saturating_sub(*before)) / to.duration_since(*from).as_secs_f64())
    });
    let peak = rates.fold(None, |most: Option<f64>, rate| Some(most.map_or(rate, |most| most.max(rate))));
    Ok(Outage { peak, secs })
}

fn readers(folder: &Path, count: u32) -> Result<Process, Failure> {
    Process::start(&["readers", &folder.display().to_string(), &count.to_string()])
}

/// The same readers behind a relay: they read its etcd, and it alone reads the one that goes away.
async fn relayed(
    etcd: &mut Etcd,
    folder: &Path,
    size: Size,
    count: u32,
    down: Duration,
) -> Result<Outage, Failure> {
    let own = Etcd::start().await?;
    let files = tempfile::tempdir()?;
    write_files(&own, files.path(), size)?;
    let beside = tempfile::tempdir()?;
    let file = beside.path().join("own.yaml");
    std::fs::write(&file, own.file())?;
    let relay = Process::start(&["relay", &folder.display().to_string(), &file.display().to_string()])?;
    let mut readers = readers(files.path(), count)?;
    let outcome = outage(etcd, &mut readers, down).await;
    drop(relay);
    outcome
}

pub(crate) async fn bench(
    report: &mut Report,
    etcd: &mut Etcd,
    folder: &Path,
    size: Size,
    (count, down): (u32, Duration),
) -> Result<(), Failure> {
    eprintln!("  {count} readers of one etcd");
    let mut all = readers(folder, count)?;
    let direct = outage(etcd, &mut all, down).await?;
    drop(all);
    eprintln!("  {count} readers behind a relay");
    let relayed = relayed(etcd, folder, size, count, down).await?;
    let what = |text: &str| format!("{count} readers, etcd away for {} s: {text}", down.as_secs());
    let (peak_text, secs_text) = (what("most requests a second there"), what("until all are current"));
    report.add(&Figure {
        id: "outage-peak",
        what: &peak_text,
        unit: "1/s",
        ours: direct.peak,
        peer: Some((relayed.peak, "with relay")),
        goal: Goal::None,
    });
    report.add(&Figure {
        id: "outage-secs",
        what: &secs_text,
        unit: "s",
        ours: Some(direct.secs),
        peer: Some((Some(relayed.secs), "with relay")),
        goal: Goal::None,
    });
    Ok(())
}
