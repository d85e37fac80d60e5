//! Many agents lose one etcd, and come back: what hits it then, and when all are current again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::child::Process;
use crate::etcd::Etcd;
use crate::report::{Figure, Goal, Report};
use crate::sync::float;

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

pub(crate) async fn bench(
    report: &mut Report,
    etcd: &mut Etcd,
    folder: &Path,
    readers: u32,
    down: Duration,
) -> Result<(), Failure> {
    let mut process = Process::start(&["readers", &folder.display().to_string(), &readers.to_string()])?;
    process.says("current")?;
    eprint!("  {readers} readers are current; etcd is away for {} s ... ", down.as_secs());
    etcd.stop();
    process.says("lost")?;
    tokio::time::sleep(down).await;
    let started = Instant::now();
    etcd.run().await?;
    process.go()?;
    let port = etcd.metrics_port();
    let (watching, seen) = (std::sync::atomic::AtomicBool::new(true), std::sync::Mutex::new(Vec::new()));
    let secs = std::thread::scope(|scope| -> Result<f64, Failure> {
        scope.spawn(|| {
            while watching.load(std::sync::atomic::Ordering::Relaxed) {
                if let (Some(count), Ok(mut seen)) = (requests(port), seen.lock()) {
                    seen.push((Instant::now(), count));
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        let said = process.says("current");
        watching.store(false, std::sync::atomic::Ordering::Relaxed);
        said.map(|_| started.elapsed().as_secs_f64())
    })?;
    let seen = seen.into_inner()?;
    let rates = seen.windows(WINDOW + 1).filter_map(|part| {
        let ((from, before), (to, after)) = (part.first()?, part.last()?);
        Some(float(after.saturating_sub(*before)) / to.duration_since(*from).as_secs_f64())
    });
    let peak = rates.fold(None, |most: Option<f64>, rate| Some(most.map_or(rate, |most| most.max(rate))));
    eprintln!("all are current again after {secs:.1} s");
    let what = |text: &str| format!("{readers} readers, etcd away for {} s: {text}", down.as_secs());
    // The readers of the relay's row read the relay's etcd, which this outage does not touch.
    let peer = Some((None, "with relay"));
    let (peak_text, secs_text) = (what("most requests a second"), what("until all are current"));
    report.add(&Figure {
        id: "outage-peak",
        what: &peak_text,
        unit: "1/s",
        ours: peak,
        peer,
        goal: Goal::None,
    });
    report.add(&Figure {
        id: "outage-secs",
        what: &secs_text,
        unit: "s",
        ours: Some(secs),
        peer,
        goal: Goal::None,
    });
    Ok(())
}
