//! A load that goes as fast as it is answered, and what answers it: requests over one connection (rr), a connection for every
//! request (crr), a stream, and datagrams, in turn or at a rate.
//!
//! Threads that block, one for each end: what is measured is the way between them. Unlike `lab-probe load`, which asks at a rate
//! and keeps account of who answered and when nobody did, this says how many and how fast.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde::Serialize;
use socket2::SockRef;

/// Longest wait for an answer, and for a connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// Answers that took longer are counted as if they had taken this long, but for the longest.
const SLOWEST_US: usize = 50_000;
/// How long datagrams may be on their way after the last was sent.
const STRAGGLERS: Duration = Duration::from_millis(500);
/// Bytes of datagrams that may wait for their reader, whatever the machine's bound is: a reader that is not run loses none.
const ROOM: usize = 32 << 20;
/// A stream's writes.
const CHUNK: usize = 128 * 1024;
/// Enough for an echo.
const STACK: usize = 256 * 1024;

/// What a connection's first byte asks for.
const ECHO: u8 = b'r';
const ONCE: u8 = b'c';
const SINK: u8 = b's';

/// Kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A byte there and back over one connection.
    Rr,
    /// The same over a connection of its own, ended by a reset: no TIME_WAIT holds its port.
    Crr,
    /// As many bytes as there is room for, one way.
    Stream,
    /// Datagrams there and back: in turn, or at a rate without waiting.
    Udp,
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rr" => Ok(Self::Rr),
            "crr" => Ok(Self::Crr),
            "stream" => Ok(Self::Stream),
            "udp" => Ok(Self::Udp),
            other => Err(format!("{other:?} is none of rr, crr, stream, udp")),
        }
    }
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Which.
    pub kind: Kind,
    /// Where to.
    pub target: SocketAddr,
    /// How long.
    pub duration: Duration,
    /// Datagrams per second; `None`: each after the answer to the one before.
    pub rate: Option<u32>,
}

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Done {
    /// Requests answered.
    pub answered: u64,
    /// Requests, connections or datagrams that were not.
    pub failed: u64,
    /// Bytes that a stream's receiver has seen.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Answers per second.
    pub per_second: f64,
    /// Bits per second of a stream, in millions.
    pub mbit_per_second: f64,
    /// From request to answer, in microseconds: half of them, 99 of 100, all.
    pub p50_us: u64,
    /// See `p50_us`.
    pub p99_us: u64,
    /// See `p50_us`.
    pub max_us: u64,
    /// The last failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Counts answers by how long they took.
struct Tally {
    start: Instant,
    by_us: Vec<u64>,
    max_us: u64,
    done: Done,
}

impl Tally {
    fn new() -> Self {
        Self { start: Instant::now(), by_us: vec![0; SLOWEST_US + 1], max_us: 0, done: Done::default() }
    }

    fn answered(&mut self, took: Duration) {
        self.done.answered += 1;
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.max_us = self.max_us.max(us);
        let at = usize::try_from(us).unwrap_or(SLOWEST_US).min(SLOWEST_US);
        if let Some(count) = self.by_us.get_mut(at) {
            *count += 1;
        }
    }

    /// One request at least, however short the time.
    fn goes_on(&self, duration: Duration) -> bool {
        self.done.answered + self.done.failed == 0 || self.start.elapsed() < duration
    }

    fn failed(&mut self, error: &io::Error) {
        self.done.failed += 1;
        self.done.failure = Some(error.to_string());
    }

    /// The time that so many percent of all kept to.
    fn percentile(&self, percent: u64) -> u64 {
        let mut left = (self.done.answered * percent).div_ceil(100);
        for (us, count) in (0..).zip(&self.by_us) {
            left = left.saturating_sub(*count);
            if left == 0 {
                return us;
            }
        }
        self.max_us
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn finish(mut self, end: Instant) -> Done {
        let seconds = end.duration_since(self.start).as_secs_f64().max(1e-9);
        (self.done.p50_us, self.done.p99_us) = (self.percentile(50), self.percentile(99));
        self.done.max_us = self.max_us;
        self.done.seconds = seconds;
        self.done.per_second = self.done.answered as f64 / seconds;
        self.done.mbit_per_second = self.done.bytes as f64 * 8.0 / seconds / 1e6;
        self.done
    }
}

/// Moves the calling thread into a namespace below /run/netns.
///
/// # Errors
/// There is none of that name, or no rights.
pub fn enter(namespace: &str) -> io::Result<()> {
    let path = Path::new("/run/netns").join(namespace);
    let file = std::fs::File::open(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Keeps the calling thread, and those that it starts, on one processor.
///
/// # Errors
/// There is no such processor.
pub fn stay_on(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor).map_err(io::Error::from)?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(io::Error::from)
}

/// Ready to answer, in the namespace of the thread that made it.
#[derive(Debug)]
pub struct Server {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Server {
    /// Listens with both protocols.
    ///
    /// # Errors
    /// The port is taken, or the address is not here.
    pub fn bind(at: SocketAddr) -> io::Result<Self> {
        let told =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what} {at}: {error}"));
        let tcp = TcpListener::bind(at).map_err(|error| told("TCP", error))?;
        let udp = UdpSocket::bind(at).map_err(|error| told("UDP", error))?;
        setsockopt(&udp, sockopt::RcvBufForce, &ROOM)?;
        Ok(Self { tcp, udp })
    }

    /// Answers in threads of its own, for as long as the process lives.
    ///
    /// # Errors
    /// No more threads.
    pub fn start(self) -> io::Result<()> {
        let Self { tcp, udp } = self;
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        spawn("load-udp").spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                // An ICMP error of an earlier answer is no reason to end.
                let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
                udp.send_to(buffer.get(..length).unwrap_or_default(), from).ok();
            }
        })?;
        spawn("load-tcp").spawn(move || {
            for stream in tcp.incoming().flatten() {
                // One that does not speak, or goes, costs itself only.
                accept(stream).ok();
            }
        })?;
        Ok(())
    }
}

/// A lone request is answered here, since a thread would cost more than the way there; all else has its own.
fn accept(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    if first == [ONCE] {
        return stream.write_all(&first);
    }
    stream.set_read_timeout(None)?;
    let thread = std::thread::Builder::new().stack_size(STACK);
    thread.spawn(move || if first == [SINK] { sink(stream) } else { echo(stream, first) }).map(drop)
}

fn echo(mut stream: TcpStream, first: [u8; 1]) -> io::Result<()> {
    stream.write_all(&first)?;
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default())?;
    }
}

/// Says at the end how much there was.
fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&bytes.to_be_bytes()),
            length => bytes += u64::try_from(length).unwrap_or_default(),
        }
    }
}

/// A connection whose end is a reset, and which says what it wants.
fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, byte: u8) -> io::Result<()> {
    let mut answer = [byte];
    stream.write_all(&answer)?;
    stream.read_exact(&mut answer)
}

/// Opens a connection that is answered for as long as it lives.
///
/// # Errors
/// What connecting or the first answer ended in.
pub fn converse(target: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(target)?;
    ask(&mut stream, ECHO)?;
    Ok(stream)
}

/// One more request over a connection of [`converse`].
///
/// # Errors
/// The connection broke, or no answer came.
pub fn ask_again(stream: &mut TcpStream) -> io::Result<()> {
    ask(stream, ECHO)
}

/// Carries out a load in the namespace that this thread is in.
///
/// # Errors
/// No socket could be made, or nothing was answered at all.
pub fn run(load: &Load) -> io::Result<Done> {
    let done = match load.kind {
        Kind::Rr => requests(load),
        Kind::Crr => connections(load),
        Kind::Stream => stream(load)?,
        Kind::Udp => datagrams(load)?,
    };
    if done.answered == 0 && done.bytes == 0 {
        let why = done.failure.unwrap_or_else(|| "nothing was lost, either".to_owned());
        return Err(io::Error::other(format!("{:?} to {}: no answer: {why}", load.kind, load.target)));
    }
    Ok(done)
}

fn requests(load: &Load) -> Done {
    let mut open = converse(load.target);
    let mut tally = Tally::new();
    while tally.goes_on(load.duration) {
        let begun = Instant::now();
        let asked = match &mut open {
            Ok(stream) => ask(stream, ECHO),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        match asked {
            Ok(()) => tally.answered(begun.elapsed()),
            Err(error) => {
                tally.failed(&error);
                open = converse(load.target);
            }
        }
    }
    tally.finish(Instant::now())
}

fn connections(load: &Load) -> Done {
    let mut tally = Tally::new();
    while tally.goes_on(load.duration) {
        let begun = Instant::now();
        match connect(load.target).and_then(|mut stream| ask(&mut stream, ONCE)) {
            Ok(()) => tally.answered(begun.elapsed()),
            Err(error) => tally.failed(&error),
        }
    }
    tally.finish(Instant::now())
}

fn stream(load: &Load) -> io::Result<Done> {
    let chunk = vec![SINK; CHUNK];
    let mut stream = connect(load.target)?;
    let mut tally = Tally::new();
    while tally.start.elapsed() < load.duration {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    // The first byte said what is wanted.
    tally.done.bytes = u64::from_be_bytes(bytes) + 1;
    Ok(tally.finish(Instant::now()))
}

fn datagrams(load: &Load) -> io::Result<Done> {
    let any: IpAddr = match load.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(load.target)?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
    match load.rate {
        Some(rate) => at_rate(load, &socket, rate),
        None => in_turn(load, &socket),
    }
}

fn in_turn(load: &Load, socket: &UdpSocket) -> io::Result<Done> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut tally = Tally::new();
    let mut answer = [0; 8];
    let mut number = 0_u64;
    while tally.goes_on(load.duration) {
        let begun = Instant::now();
        number += 1;
        let asked = socket.send(&number.to_be_bytes()).and_then(|_| {
            // One that came too late for its turn is nobody's answer.
            while socket.recv(&mut answer)? != 8 || answer != number.to_be_bytes() {}
            Ok(())
        });
        match asked {
            Ok(()) => tally.answered(begun.elapsed()),
            Err(error) => tally.failed(&error),
        }
    }
    Ok(tally.finish(Instant::now()))
}

/// Sends by the clock; a thread takes the answers, each with the time at which it was sent.
fn at_rate(load: &Load, socket: &UdpSocket, rate: u32) -> io::Result<Done> {
    let receiver = socket.try_clone()?;
    receiver.set_read_timeout(Some(STRAGGLERS))?;
    let mut tally = Tally::new();
    let start = tally.start;
    let taking = std::thread::spawn(move || {
        let mut answer = [0; 8];
        let mut failure = None;
        loop {
            match receiver.recv(&mut answer) {
                Ok(8) => {
                    let sent = Duration::from_nanos(u64::from_be_bytes(answer));
                    tally.answered(start.elapsed().saturating_sub(sent));
                }
                Ok(_) => {}
                // Refused or unreachable: the datagram is lost, others may not be.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            tally.done.failure = Some(error.to_string());
        }
        tally
    });
    let mut sent = 0_u64;
    let mut refused = 0_u64;
    while start.elapsed() < load.duration {
        let now = start.elapsed();
        let due = u64::try_from(now.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        while sent < due {
            sent += 1;
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            refused += u64::from(socket.send(&nanos.to_be_bytes()).is_err());
        }
        std::thread::sleep(Duration::from_millis(1).min(load.duration.saturating_sub(now)));
    }
    let end = Instant::now();
    let mut tally = taking.join().map_err(|_| io::Error::other("the receiver's thread panicked"))?;
    tally.done.failed = sent.saturating_sub(tally.done.answered).max(refused);
    Ok(tally.finish(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(kind: Kind, target: SocketAddr, rate: Option<u32>) -> Load {
        Load { kind, target, duration: Duration::from_millis(200), rate }
    }

    /// The server's address, by loopback.
    fn server(address: &str) -> SocketAddr {
        // One port for both protocols: one that was free with TCP may not be with UDP.
        let bound = (0..20).find_map(|_| {
            let at = TcpListener::bind((address, 0)).and_then(|free| free.local_addr()).expect("loopback");
            Server::bind(at).ok().map(|server| (server, at))
        });
        let (server, at) = bound.expect("a free port");
        server.start().expect("threads");
        at
    }

    #[test]
    fn every_kind_is_answered_in_both_families() {
        for address in ["127.0.0.1", "::1"] {
            let at = server(address);
            for kind in [Kind::Rr, Kind::Crr, Kind::Udp] {
                let done = run(&load(kind, at, None)).expect("answers");
                assert!(done.answered > 10 && done.failed == 0, "{kind:?}: {done:?}");
                assert!(done.p50_us <= done.p99_us && done.p99_us <= done.max_us, "{done:?}");
            }
            let done = run(&load(Kind::Stream, at, None)).expect("a stream");
            assert!(done.bytes > 1 << 20 && done.mbit_per_second > 1.0, "{done:?}");
            let done = run(&load(Kind::Udp, at, Some(2_000))).expect("answers");
            assert!(done.answered > 100 && done.failed == 0, "{done:?}");
        }
    }

    #[test]
    fn silence_is_counted_and_told() {
        let silent = UdpSocket::bind(("127.0.0.1", 0)).expect("loopback");
        let at = silent.local_addr().expect("bound");
        let error = run(&load(Kind::Udp, at, Some(1_000))).expect_err("nobody answers");
        assert!(error.to_string().contains("no answer"), "{error}");
        let free = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).expect("loopback");
        let error = run(&load(Kind::Crr, free, None)).expect_err("nobody listens");
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[test]
    fn percentiles_of_what_was_recorded() {
        let mut tally = Tally::new();
        (1..=100).for_each(|us| tally.answered(Duration::from_micros(us)));
        tally.answered(Duration::from_secs(1));
        assert_eq!((tally.percentile(50), tally.percentile(99), tally.percentile(100)), (51, 100, 50_000));
        let done = tally.finish(Instant::now());
        assert_eq!((done.answered, done.max_us), (101, 1_000_000));
    }
}
