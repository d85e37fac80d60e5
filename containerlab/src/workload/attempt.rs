//! One request over TCP, HTTP or UDP, from its socket to its answer.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};
use tokio_util::task::AbortOnDropHandle;

use super::report::micros;
use super::{Answer, Attempt, Outcome};

/// Longest answer read, in bytes; an echo server's are far shorter.
pub(super) const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Where a probe's packets come from.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct SourceArgs {
    /// Own address to send from
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<IpAddr>,
    /// Own port of the first request; request N takes this port + N
    #[arg(long, value_name = "PORT")]
    pub source_port: Option<u16>,
}

impl SourceArgs {
    /// The address to bind to for the request of the given number, or `None` to leave it to the kernel.
    pub(super) fn bind(self, target: SocketAddr, number: u32) -> Option<SocketAddr> {
        if self.source.is_none() && self.source_port.is_none() {
            return None;
        }
        let address = self.source.unwrap_or(match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        });
        let step = u16::try_from(number % 65_536).unwrap_or(0);
        Some(SocketAddr::new(address, self.source_port.map_or(0, |first| first.wrapping_add(step))))
    }
}

/// How a probe treats packets larger than the path carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DontFragment {
    /// Set DF (IPv6: do not fragment) and obey the MTU the host has learned: an oversized packet fails at once
    Do,
    /// Set DF but ignore the learned path MTU: the packet leaves if the interface takes it, and the path answers
    Probe,
}

/// Applies the path MTU discovery mode to a socket of the family of `target`.
pub(super) fn set_dont_fragment(
    socket: impl AsFd,
    target: IpAddr,
    mode: Option<DontFragment>,
) -> io::Result<()> {
    use sockopt::{Ipv4PathMtuDiscovery as V4, Ipv6PathMtuDiscovery as V6};
    match target {
        IpAddr::V4(_) => {
            let value = match mode {
                None => V4::DONT,
                Some(DontFragment::Do) => V4::DO,
                Some(DontFragment::Probe) => V4::PROBE,
            };
            sockopt::set_ip_mtu_discover(socket, value)?;
        }
        IpAddr::V6(_) => {
            let value = match mode {
                None => V6::DONT,
                Some(DontFragment::Do) => V6::DO,
                Some(DontFragment::Probe) => V6::PROBE,
            };
            sockopt::set_ipv6_mtu_discover(socket, value)?;
        }
    }
    Ok(())
}

/// The MTU the kernel knows towards the peer of a connected socket, in bytes.
pub(super) fn known_mtu(socket: impl AsFd, target: IpAddr) -> Option<u32> {
    match target {
        IpAddr::V4(_) => sockopt::ip_mtu(socket).ok(),
        IpAddr::V6(_) => sockopt::ipv6_mtu(socket).ok(),
    }
}

/// What an error of a socket call says about the network.
pub(super) fn outcome_of(error: &io::Error) -> Outcome {
    let unreachable = |code| Outcome::Unreachable { code, from: None };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Outcome::Refused,
        Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED) => Outcome::Reset,
        Some(Errno::ETIMEDOUT) => Outcome::Timeout,
        Some(Errno::EMSGSIZE) => Outcome::TooBig { mtu: None, from: None },
        Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EPERM) => unreachable(None),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => Outcome::Reset,
        _ if error.kind() == io::ErrorKind::TimedOut => Outcome::Timeout,
        _ => Outcome::Failed { why: error.to_string() },
    }
}

/// Everything one request needs to know.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) target: SocketAddr,
    pub(super) bind: Option<SocketAddr>,
    pub(super) payload: Vec<u8>,
    pub(super) timeout: Duration,
    pub(super) dont_fragment: Option<DontFragment>,
}

/// Runs `exchange` within the request's timeout and records how it ended.
///
/// `bound` is the source known before anything was sent, for the case that the exchange times out.
async fn attempt<F>(request: &Request, bound: Option<SocketAddr>, exchange: F) -> Attempt
where
    F: Future<Output = (Option<SocketAddr>, Outcome)>,
{
    let start = Instant::now();
    let (source, outcome) =
        tokio::time::timeout(request.timeout, exchange).await.unwrap_or((bound, Outcome::Timeout));
    Attempt {
        source: source.or(bound),
        destination: request.target,
        bytes: u64::try_from(request.payload.len()).unwrap_or(u64::MAX),
        duration_us: micros(start.elapsed()),
        outcome,
    }
}

fn unspecified(target: SocketAddr) -> SocketAddr {
    match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// A TCP socket that already owns its port, so that even a connection that times out can be found in the flows.
fn bound_tcp(target: SocketAddr, bind: Option<SocketAddr>) -> io::Result<TcpSocket> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(bind.unwrap_or(unspecified(target)))?;
    Ok(socket)
}

/// Opens a TCP connection without delaying small writes.
pub(super) async fn connect(target: SocketAddr, bind: Option<SocketAddr>) -> io::Result<TcpStream> {
    finish_connect(bound_tcp(target, bind)?, target).await
}

async fn finish_connect(socket: TcpSocket, target: SocketAddr) -> io::Result<TcpStream> {
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects, then runs `exchange` on the connection, all within the timeout.
async fn over_tcp<F, Fut>(request: &Request, exchange: F) -> Attempt
where
    F: FnOnce(TcpStream) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let socket = match bound_tcp(request.target, request.bind) {
        Ok(socket) => socket,
        Err(error) => return attempt(request, request.bind, async { (None, outcome_of(&error)) }).await,
    };
    let bound = socket.local_addr().ok().or(request.bind);
    attempt(request, bound, async move {
        match finish_connect(socket, request.target).await {
            Err(error) => (None, outcome_of(&error)),
            Ok(stream) => {
                let silence = ResetUnlessAnswered::new(&stream);
                let source = stream.local_addr().ok();
                let outcome = exchange(stream).await;
                silence.answered();
                (source, outcome)
            }
        }
    })
    .await
}

/// Ends a connection whose exchange is given up by a reset: its data and FIN would be sent again and again for minutes after
/// this process is gone, and be counted as loss by whoever looks next.
struct ResetUnlessAnswered(Option<OwnedFd>);

impl ResetUnlessAnswered {
    fn new(stream: &TcpStream) -> Self {
        // Without the second handle the end is only slower.
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for ResetUnlessAnswered {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            sockopt::set_socket_linger(socket, Some(Duration::ZERO)).ok();
        }
    }
}

/// A fresh TCP connection, one line, one answer.
pub(super) async fn tcp(request: &Request) -> Attempt {
    over_tcp(request, |stream| async move { line_exchange(&mut framed(stream), &request.payload).await })
        .await
}

/// The line framing both ends of the TCP echo use.
pub(super) fn framed(stream: TcpStream) -> Framed<TcpStream, LinesCodec> {
    Framed::new(stream, LinesCodec::new_with_max_length(MAX_ANSWER_BYTES))
}

/// Sends one line over an open connection and reads the answer.
pub(super) async fn line_exchange(lines: &mut Framed<TcpStream, LinesCodec>, payload: &[u8]) -> Outcome {
    let line = String::from_utf8_lossy(payload).into_owned();
    if let Err(error) = lines.send(line).await {
        return codec_outcome(&error);
    }
    next_answer(lines).await
}

/// Reads the next answering line of an open connection.
pub(super) async fn next_answer(lines: &mut Framed<TcpStream, LinesCodec>) -> Outcome {
    match lines.next().await {
        Some(Ok(text)) => parse_answer(text.as_bytes()),
        Some(Err(error)) => codec_outcome(&error),
        None => Outcome::Reset,
    }
}

fn codec_outcome(error: &LinesCodecError) -> Outcome {
    match error {
        LinesCodecError::Io(error) => outcome_of(error),
        LinesCodecError::MaxLineLengthExceeded => {
            Outcome::Failed { why: format!("the answer is longer than {MAX_ANSWER_BYTES} bytes") }
        }
    }
}

pub(super) fn parse_answer(text: &[u8]) -> Outcome {
    match serde_json::from_slice::<Answer>(text) {
        Ok(answer) => Outcome::Answered { answer: Box::new(answer) },
        Err(error) => Outcome::Failed { why: format!("the peer does not answer like lab-echo: {error}") },
    }
}

/// One datagram from a socket of its own, one answer.
pub(super) async fn udp(request: &Request) -> Attempt {
    match open_udp(request.target, request.bind, request.dont_fragment).await {
        Err(error) => attempt(request, request.bind, async { (None, outcome_of(&error)) }).await,
        Ok(socket) => {
            let bound = socket.local_addr().ok();
            attempt(request, bound, async { (bound, datagram_exchange(&socket, request).await) }).await
        }
    }
}

/// A UDP socket connected to `target`.
pub(super) async fn open_udp(
    target: SocketAddr,
    bind: Option<SocketAddr>,
    dont_fragment: Option<DontFragment>,
) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(bind.unwrap_or(unspecified(target))).await?;
    set_dont_fragment(&socket, target.ip(), dont_fragment)?;
    socket.connect(target).await?;
    Ok(socket)
}

async fn datagram_exchange(socket: &UdpSocket, request: &Request) -> Outcome {
    let failed = |error: &io::Error| match outcome_of(error) {
        Outcome::TooBig { from, .. } => Outcome::TooBig { mtu: known_mtu(socket, request.target.ip()), from },
        other => other,
    };
    if let Err(error) = socket.send(&request.payload).await {
        return failed(&error);
    }
    let mut buffer = vec![0_u8; MAX_ANSWER_BYTES];
    match socket.recv(&mut buffer).await {
        Ok(length) => parse_answer(buffer.get(..length).unwrap_or_default()),
        Err(error) => failed(&error),
    }
}

/// GET of `path` over a fresh connection. `authority` goes into the Host header.
pub(super) async fn http(request: &Request, authority: &str, path: &str) -> Attempt {
    over_tcp(request, |stream| http_exchange(stream, authority, path)).await
}

async fn http_exchange(stream: TcpStream, authority: &str, path: &str) -> Outcome {
    match http_answer(stream, authority, path).await {
        Ok(body) => parse_answer(&body),
        Err(HttpFailure::Status(code)) => Outcome::Failed { why: format!("HTTP status {code}") },
        Err(HttpFailure::Io(error)) => outcome_of(&error),
        Err(HttpFailure::Hyper(error)) => match io_cause(&error) {
            Some(io) => outcome_of(io),
            None if error.is_incomplete_message() || error.is_closed() => Outcome::Reset,
            None => Outcome::Failed { why: error.to_string() },
        },
        Err(HttpFailure::Other(why)) => Outcome::Failed { why },
    }
}

enum HttpFailure {
    Status(u16),
    Io(io::Error),
    Hyper(hyper::Error),
    Other(String),
}

fn io_cause(error: &hyper::Error) -> Option<&io::Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = inner.source();
    }
    None
}

async fn http_answer(stream: TcpStream, authority: &str, path: &str) -> Result<Bytes, HttpFailure> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(HttpFailure::Hyper)?;
    // Ended with an exchange that is given up: nothing may hold the socket after it.
    let driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, authority)
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| HttpFailure::Other(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(HttpFailure::Hyper)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    // The driver ends by itself once the server has closed; its own error was already reported by the request.
    drop(driver.detach());
    if !status.is_success() {
        return Err(HttpFailure::Status(status.as_u16()));
    }
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => HttpFailure::Hyper(*error),
            Err(error) => match error.downcast::<io::Error>() {
                Ok(error) => HttpFailure::Io(*error),
                Err(error) => HttpFailure::Other(error.to_string()),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Reads until the connection ends, and returns how it did.
    async fn end_of(listener: TcpListener) -> io::Result<()> {
        let (mut stream, _) = listener.accept().await?;
        let mut buffer = [0_u8; 512];
        while stream.read(&mut buffer).await? > 0 {}
        Ok(())
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_is_reset() {
        for over_http in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let request = Request {
                target: listener.local_addr().expect("address"),
                bind: None,
                payload: b"token".to_vec(),
                timeout: Duration::from_millis(50),
                dont_fragment: None,
            };
            let asked =
                async { if over_http { http(&request, "silent", "/").await } else { tcp(&request).await } };
            let (attempt, ended) = tokio::join!(asked, end_of(listener));
            assert_eq!(attempt.outcome, Outcome::Timeout);
            let error = ended.expect_err("a reset, no FIN");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "http: {over_http}");
        }
    }
}
