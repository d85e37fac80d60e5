//! `make bench-bfd`: 64 BFD sessions at 50 ms x 3 under full load, our unit and FRR's bfdd in turn, against the same neighbour.
//!
//! The neighbour is our unit in the real-time class in a namespace of its own. Each run: all sessions up, load on all processors for a
//! while (a session that goes down now does so falsely), then the neighbour is stopped (SIGSTOP) and each session must tell that its
//! detection time expired. Both are read from a capture, by the kernel's clock. What happens while a real-time witness was itself more
//! than 50 ms late does not count. `bench_bfd bfd ...` is the unit; `bench_bfd [short]` the bench.

mod capture;
mod load;
mod rows;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tombolo_bgp::bfd::client::Client;
use tombolo_bgp::bfd::{BfdSettings, SessionConfig, SessionKey, State};
use tombolo_tests::netns::{Daemon, Namespace, eventually, join, run};

use load::{Interval, Load, epoch};
use rows::Outcome;

pub(crate) type Failure = Box<dyn std::error::Error>;

const SESSIONS: u8 = 64;
const INTERVAL: Duration = Duration::from_millis(50);
const DETECT_MULT: u8 = 3;
/// How long the sessions must hold under load.
const HOLD: Duration = Duration::from_secs(20);
const HOLD_SHORT: Duration = Duration::from_secs(4);
/// How long after the neighbour stopped the capture goes on: several detection times.
const AFTER: Duration = Duration::from_secs(2);
/// Around a false down, how far back a late witness excuses it: the detection time and one interval.
const EXCUSE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "bfd").is_some() {
        return tombolo_bgp::bfd::unit::run(arguments);
    }
    let short = arguments.any(|argument| argument == "short");
    match bench(short) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench_bfd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// False if a session was lost falsely or a loss was not told.
fn bench(short: bool) -> Result<bool, Failure> {
    let (hold, order) = if short {
        (HOLD_SHORT, vec![Subject::Ours, Subject::Frr])
    } else {
        use Subject::{Frr, Ours};
        (HOLD, vec![Ours, Frr, Frr, Ours, Ours, Frr])
    };
    let (mut ours, mut frr) = (Vec::new(), Vec::new());
    for (at, subject) in order.iter().enumerate() {
        eprintln!("run {} of {}: {}", at + 1, order.len(), subject.name());
        let outcome = one(*subject, hold)?;
        eprintln!("  {outcome}");
        match subject {
            Subject::Ours => ours.push(outcome),
            Subject::Frr => frr.push(outcome),
        }
    }
    rows::report(&ours, &frr, Path::new("target/bench/bfd.json"))
}

#[derive(Clone, Copy, Debug)]
enum Subject {
    Ours,
    Frr,
}

impl Subject {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "tombolo bfd",
            Self::Frr => "FRR bfdd",
        }
    }
}

fn address(side: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, side, number)
}

fn settings() -> BfdSettings {
    BfdSettings { min_tx: INTERVAL, min_rx: INTERVAL, detect_mult: DETECT_MULT, ..BfdSettings::default() }
}

/// The sessions of one side; 0 is the subject's, 1 the neighbour's.
fn sessions(side: u8) -> Vec<SessionConfig> {
    let of = |number| SessionKey {
        peer: address(1 - side, number).into(),
        local: Some(address(side, number).into()),
        interface: Some("eth1".into()),
        multihop: false,
    };
    (1..=SESSIONS).map(|number| SessionConfig { key: of(number), settings: settings() }).collect()
}

/// A unit in a namespace, with its sessions.
fn unit(
    runtime: &tokio::runtime::Runtime,
    namespace: &Namespace,
    directory: &Path,
    side: u8,
) -> Result<(Daemon, Client), Failure> {
    let file = |end: &str| directory.join(format!("unit{side}.{end}")).display().to_string();
    let (socket, pid, log) = (file("sock"), file("pid"), file("log"));
    let program = std::env::current_exe()?.display().to_string();
    let arguments = ["bfd", "--socket", &socket, "--pid-file", &pid, "--log-file", &log];
    let mut daemon = namespace.spawn_quiet(&program, &arguments);
    daemon.wait_for("start", |line| (line == "ready").then_some(()));
    let client = Client::new(Path::new(&socket));
    runtime.block_on(client.set("bench", &sessions(side)))?;
    Ok((daemon, client))
}

fn frr(namespace: &Namespace, directory: &Path) -> Result<[Daemon; 2], Failure> {
    let mut config = String::from("bfd\n");
    for number in 1..=SESSIONS {
        let (peer, local, ms) = (address(1, number), address(0, number), INTERVAL.as_millis());
        config.push_str(&format!(
            " peer {peer} local-address {local} interface eth1\n  receive-interval {ms}\n  transmit-interval {ms}\n  detect-multiplier {DETECT_MULT}\n  no shutdown\n !\n"
        ));
    }
    config.push_str("!\n");
    let path = |name: &str| directory.join(name).display().to_string();
    std::fs::write(path("bfdd.conf"), config)?;
    std::fs::write(path("zebra.conf"), "hostname zebra\n")?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    let folder = directory.display().to_string();
    run("chown", &["-R", "frr:frr", &folder]);
    let (api, control) = (path("zserv.api"), path("bfdd.sock"));
    let start = |daemon: &str, more: &[&str]| {
        let (config, pid) = (path(&format!("{daemon}.conf")), path(&format!("{daemon}.pid")));
        let arguments = ["-f", &config, "-i", &pid, "-z", &api, "--vty_socket", &folder, "-P", "0"];
        let program = format!("/usr/lib/frr/{daemon}");
        let process = namespace.spawn_quiet(&program, &[&arguments, more].concat());
        let socket = path(&format!("{daemon}.vty"));
        eventually(&format!("{daemon} opens {socket}"), || {
            if Path::new(&socket).exists() { Ok(()) } else { Err("no socket".into()) }
        });
        process
    };
    Ok([start("bfdd", &["--bfdctl", &control]), start("zebra", &[])])
}

/// Processor time of a process so far.
fn cpu(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // The clock tick of /proc is 10 ms on Linux, whatever the kernel's own.
    Some(Duration::from_millis((user + system) * 10))
}

fn one(subject: Subject, hold: Duration) -> Result<Outcome, Failure> {
    let (own, other) = (Namespace::new("bfdd"), Namespace::new("bfdn"));
    let addresses = |side: u8| {
        (1..=SESSIONS).map(|number| format!("{}/16", address(side, number))).collect::<Vec<String>>()
    };
    let (left, right) = (addresses(0), addresses(1));
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    let right: Vec<&str> = right.iter().map(String::as_str).collect();
    join(&own, &left, &other, &right);
    let directory = tempfile::Builder::new().prefix("tbt-bench-bfd-").tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (neighbor, watch) = unit(&runtime, &other, directory.path(), 1)?;
    let subjects = match subject {
        Subject::Ours => vec![unit(&runtime, &own, directory.path(), 0)?.0],
        Subject::Frr => frr(&own, directory.path())?.into(),
    };
    let subject_pid = subjects.first().map(Daemon::id).unwrap_or_default();
    eventually("all sessions are up at the fast rate", || {
        let status = runtime.block_on(watch.status()).map_err(|error| error.to_string())?;
        let fast = |us: u64| u128::from(us) == INTERVAL.as_micros();
        let good = status.sessions.iter().filter(|session| {
            session.state == State::Up
                && fast(session.tx_interval_us)
                && fast(session.detection_time_us / u64::from(DETECT_MULT))
        });
        let count = good.count();
        if count == usize::from(SESSIONS) { Ok(()) } else { Err(format!("{count} of {SESSIONS}")) }
    });
    let file = directory.path().join("wire.pcap");
    let name = file.display().to_string();
    let filter = ["-i", "eth1", "-s", "128", "-B", "16384", "-U", "-Z", "root", "-w", &name, "udp port 3784"];
    let mut tcpdump = own.spawn_quiet("tcpdump", &filter);
    eventually("tcpdump captures", || match std::fs::metadata(&file) {
        Ok(found) if found.len() > 24 => Ok(()),
        other => Err(format!("{other:?}")),
    });

    let load = Load::start(std::thread::available_parallelism()?.get())?;
    let (start, cpu_before) = (epoch(), cpu(subject_pid));
    // The measurement is the time itself.
    std::thread::sleep(hold);
    let cpu_after = cpu(subject_pid);
    let cut = epoch();
    run("kill", &["-STOP", &neighbor.id().to_string()]);
    std::thread::sleep(AFTER);
    let late = load.end()?;
    run("kill", &["-INT", &tcpdump.id().to_string()]);
    tcpdump.wait();
    let used = cpu_after.zip(cpu_before).map(|(after, before)| after.saturating_sub(before));
    let senders = capture::read(&file)?;
    Ok(judge(&senders, (start, cut), &late, used, hold))
}

fn judge(
    senders: &capture::Senders,
    (start, cut): Interval,
    late: &[Interval],
    cpu: Option<Duration>,
    hold: Duration,
) -> Outcome {
    let excused = |at: Duration| late.iter().any(|(from, to)| *from <= at && at <= *to + EXCUSE);
    let falsely = |side: u8| {
        let downs = (1..=SESSIONS).filter_map(|number| senders.get(&address(side, number)));
        let downs = downs.flat_map(|packets| capture::expiries(packets));
        downs.filter(|at| (start..cut).contains(at) && !excused(*at)).count()
    };
    let mut outcome = Outcome {
        false_downs: falsely(0),
        neighbor_downs: falsely(1),
        detections: Vec::new(),
        missed: 0,
        late: late.iter().map(|(from, to)| *to - *from).sum(),
        late_count: late.len(),
        cpu_permille: cpu.map(|cpu| cpu.as_secs_f64() * 1000.0 / hold.as_secs_f64()),
        hold,
    };
    for number in 1..=SESSIONS {
        let none = Vec::new();
        let heard = senders.get(&address(1, number)).unwrap_or(&none);
        let told = senders.get(&address(0, number)).unwrap_or(&none);
        let was_up = told.iter().rfind(|seen| seen.at < cut).is_some_and(|seen| seen.state == State::Up);
        let Some(last) = heard.last().filter(|last| was_up && last.state == State::Up) else { continue };
        match capture::expiries(told).into_iter().find(|at| *at >= last.at) {
            Some(at) if excused(at) => {}
            Some(at) => outcome.detections.push(at - last.at),
            None => outcome.missed += 1,
        }
    }
    outcome.detections.sort();
    outcome
}
