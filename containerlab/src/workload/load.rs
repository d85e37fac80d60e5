//! `lab-probe load|hold`: requests at a rate over long-lived or fresh connections, with an account at the end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use rustix::net::sockopt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::codec::{Framed, LinesCodec};
use tokio_util::sync::CancellationToken;

use super::attempt::{self, MAX_ANSWER_BYTES, Request, outcome_of, parse_answer};
use super::tally::Tally;
use super::{FamilyArgs, LoadReport, Outcome, WorkloadError, echo, print_json, resolve};

/// Time between the progress lines of `hold`.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before a broken or refused connection is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Most connections of one load.
const MAX_CONNECTIONS: u32 = 2048;
/// Highest rate of one load, in requests per second.
const MAX_RATE: u32 = 20_000;

/// What a load is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LoadProtocol {
    /// Long-lived TCP connections, a line each request
    Tcp,
    /// UDP sockets that stay open, a datagram each request
    Udp,
    /// A fresh TCP connection for every request
    Connect,
    /// A fresh HTTP connection for every request
    Http,
}

impl LoadProtocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Connect => "connect",
            Self::Http => "http",
        }
    }
}

/// Arguments of `lab-probe load` and `lab-probe hold`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Kind of load
    pub protocol: LoadProtocol,
    /// Host name or address
    pub host: String,
    /// Port
    pub port: u16,
    /// Connections (for `connect` and `http`: requests at once)
    #[arg(long, default_value_t = 8)]
    pub connections: u32,
    /// Requests per second over all connections
    #[arg(long, default_value_t = 50)]
    pub rate: u32,
    /// How long, in milliseconds; SIGTERM ends it earlier. Without it only SIGTERM ends it
    #[arg(long, value_name = "MS")]
    pub duration_ms: Option<u64>,
    /// Stop when standard input is closed
    #[arg(long)]
    pub until_eof: bool,
    /// Time for each request in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub timeout_ms: u64,
    /// Text at the beginning of every payload
    #[arg(long, default_value = "tombolo")]
    pub token: String,
    /// Address family
    #[command(flatten)]
    pub family: FamilyArgs,
}

impl LoadArgs {
    fn check(&self) -> Result<(), WorkloadError> {
        let bounds = [("--connections", self.connections, MAX_CONNECTIONS), ("--rate", self.rate, MAX_RATE)];
        for (argument, value, most) in bounds {
            if value == 0 || value > most {
                let (value, why) = (value.to_string(), format!("it must be 1 to {most}"));
                return Err(WorkloadError::Argument { argument, value, why });
            }
        }
        Ok(())
    }
}

/// State that the connections of one load share.
struct Load {
    args: LoadArgs,
    target: SocketAddr,
    tally: Mutex<Tally>,
    stop: CancellationToken,
}

impl Load {
    /// The tally; a panic of another task leaves only counters, which stay usable.
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.args.timeout_ms)
    }

    fn payload(&self, connection: u32, sequence: u64) -> String {
        format!("{} {connection}/{sequence}", self.args.token)
    }
}

/// Runs the load; returns whether everything was answered and nothing broke.
pub(super) async fn run(args: LoadArgs, progress: Option<Duration>) -> Result<bool, WorkloadError> {
    let report = drive(args, progress).await?;
    print_json(&report)?;
    Ok(report.sent > 0 && report.failed == 0 && report.broken_connections == 0)
}

pub(super) async fn drive(args: LoadArgs, progress: Option<Duration>) -> Result<LoadReport, WorkloadError> {
    args.check()?;
    let target = SocketAddr::new(resolve(&args.host, args.family).await?, args.port);
    let name = format!("{}:{}", args.host, args.port);
    let tally = Tally::new(args.protocol.name(), name, Instant::now(), SystemTime::now());
    let load = Arc::new(Load { target, tally: Mutex::new(tally), stop: CancellationToken::new(), args });
    let mut connections = JoinSet::new();
    for number in 0..load.args.connections {
        connections.spawn(one_connection(Arc::clone(&load), number));
    }
    watch(&load, progress).await?;
    load.stop.cancel();
    // Each ends within its request's timeout.
    while let Some(ended) = connections.join_next().await {
        ended.map_err(|error| WorkloadError::Task { what: "load", why: error.to_string() })?;
    }
    let report = load.tally().finish(Instant::now());
    Ok(report)
}

/// Prints progress until the load's time is over or the process is asked to stop.
async fn watch(load: &Load, progress: Option<Duration>) -> Result<(), WorkloadError> {
    let stop = echo::stop_or_eof(load.args.until_eof);
    tokio::pin!(stop);
    let over = async {
        match load.args.duration_ms {
            Some(duration) => tokio::time::sleep(Duration::from_millis(duration)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(over);
    let mut ticks = tokio::time::interval(progress.unwrap_or(PROGRESS_INTERVAL));
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = &mut over => return Ok(()),
            _ = ticks.tick(), if progress.is_some() => {
                let report = load.tally().progress(Instant::now());
                print_json(&report)?;
            }
        }
    }
}

/// One connection's requests at its share of the rate, staggered so that the whole is even.
async fn one_connection(load: Arc<Load>, number: u32) {
    let period = Duration::from_secs(1) * load.args.connections / load.args.rate;
    let offset = period * number / load.args.connections;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + offset, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lane = Lane { number, sequence: 0, line: None, socket: None, silent: false };
    loop {
        tokio::select! {
            () = load.stop.cancelled() => return lane.end(),
            _ = ticks.tick() => {}
        }
        lane.sequence += 1;
        let sent = Instant::now();
        let outcome = match load.args.protocol {
            LoadProtocol::Tcp => lane.tcp(&load).await,
            LoadProtocol::Udp => lane.udp(&load).await,
            LoadProtocol::Connect | LoadProtocol::Http => lane.fresh(&load).await,
        };
        lane.silent = outcome == Outcome::Timeout;
        load.tally().record(sent, Instant::now(), &outcome);
    }
}

/// What one connection keeps between its requests.
struct Lane {
    number: u32,
    sequence: u64,
    line: Option<Framed<TcpStream, LinesCodec>>,
    socket: Option<UdpSocket>,
    /// The last request was not answered.
    silent: bool,
}

impl Lane {
    /// Ends the connection: one whose peer is silent by a reset, since its FIN would be sent again and again for minutes after
    /// this process is gone, and be counted as loss by whoever looks next.
    fn end(self) {
        if let Some(line) = self.line.filter(|_| self.silent) {
            // Without it the end is only slower.
            sockopt::set_socket_linger(line.get_ref(), Some(Duration::ZERO)).ok();
        }
    }

    async fn fresh(&self, load: &Load) -> Outcome {
        let request = Request {
            target: load.target,
            bind: None,
            payload: load.payload(self.number, self.sequence).into_bytes(),
            timeout: load.timeout(),
            dont_fragment: None,
        };
        let attempt = match load.args.protocol {
            LoadProtocol::Http => {
                let path = format!("/?token={}/{}/{}", load.args.token, self.number, self.sequence);
                attempt::http(&request, &load.target.to_string(), &path).await
            }
            _ => attempt::tcp(&request).await,
        };
        attempt.outcome
    }

    /// A line over the long-lived connection. A timeout leaves the connection open: TCP repeats what was lost, and
    /// only an error of the connection itself counts as broken.
    async fn tcp(&mut self, load: &Load) -> Outcome {
        if self.line.is_none() {
            match tokio::time::timeout(load.timeout(), attempt::connect(load.target, None)).await {
                Ok(Ok(stream)) => {
                    load.tally().connected();
                    self.line = Some(attempt::framed(stream));
                }
                Ok(Err(error)) => {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                    return outcome_of(&error);
                }
                Err(_) => return Outcome::Timeout,
            }
        }
        let Some(line) = self.line.as_mut() else { return Outcome::Reset };
        let payload = load.payload(self.number, self.sequence);
        let exchange = async {
            let mut outcome = attempt::line_exchange(line, payload.as_bytes()).await;
            // Answers to earlier requests that timed out may come first.
            while late(&outcome, &payload) {
                outcome = attempt::next_answer(line).await;
            }
            outcome
        };
        let outcome = tokio::time::timeout(load.timeout(), exchange).await.unwrap_or(Outcome::Timeout);
        // The kernel's own ETIMEDOUT ends in the same word as our patience: ask the stream which one it was.
        let timed_out_by_kernel = outcome == Outcome::Timeout && line.get_ref().peer_addr().is_err();
        if timed_out_by_kernel || (!outcome.is_answer() && outcome != Outcome::Timeout) {
            load.tally().broke();
            self.line = None;
        }
        outcome
    }

    async fn udp(&mut self, load: &Load) -> Outcome {
        if self.socket.is_none() {
            match attempt::open_udp(load.target, None, None).await {
                Ok(socket) => {
                    load.tally().connected();
                    self.socket = Some(socket);
                }
                Err(error) => return outcome_of(&error),
            }
        }
        let Some(socket) = self.socket.as_ref() else { return Outcome::Reset };
        let payload = load.payload(self.number, self.sequence);
        let exchange = async {
            if let Err(error) = socket.send(payload.as_bytes()).await {
                return outcome_of(&error);
            }
            let mut buffer = vec![0_u8; MAX_ANSWER_BYTES];
            loop {
                let outcome = match socket.recv(&mut buffer).await {
                    Ok(length) => parse_answer(buffer.get(..length).unwrap_or_default()),
                    Err(error) => outcome_of(&error),
                };
                if !late(&outcome, &payload) {
                    return outcome;
                }
            }
        };
        tokio::time::timeout(load.timeout(), exchange).await.unwrap_or(Outcome::Timeout)
    }
}

/// Whether this is an answer to another request than the one with `payload`.
fn late(outcome: &Outcome, payload: &str) -> bool {
    matches!(outcome, Outcome::Answered { answer } if answer.payload != payload)
}
