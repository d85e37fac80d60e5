//! `lab-probe http|tcp|udp`: one answer per request, each from a socket (and port) of its own.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tokio::task::JoinSet;

use super::attempt::{self, DontFragment, Request, SourceArgs};
use super::{Attempt, FamilyArgs, ProbeReport, WorkloadError, resolve};

/// Most requests of one probe: what keeps its report readable in one piece.
const MAX_COUNT: u32 = 4096;
/// Most requests of one probe in flight at once.
const MAX_PARALLEL: u32 = 256;
/// Largest UDP payload over IPv4 or IPv6 without jumbograms, in bytes.
const MAX_SIZE_BYTES: usize = 65_507;

/// Options of every probe.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// How many requests, each from a new socket
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// How many of them at once
    #[arg(long, default_value_t = 1)]
    pub parallel: u32,
    /// Time for each request in milliseconds, connecting included
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    pub timeout_ms: u64,
    /// Text sent as (the beginning of) the payload, and repeated in the answer
    #[arg(long, default_value = "tombolo")]
    pub token: String,
    /// Source address and port
    #[command(flatten)]
    pub source: SourceArgs,
    /// Address family
    #[command(flatten)]
    pub family: FamilyArgs,
}

/// Arguments of `lab-probe http`.
#[derive(Debug, Args)]
pub struct HttpArgs {
    /// Where to ask, for example http://web.demo:80/
    pub url: String,
    /// Options of every probe
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Arguments of `lab-probe tcp` and `lab-probe udp`.
#[derive(Debug, Args)]
pub struct SocketArgs {
    /// Host name or address
    pub host: String,
    /// Port
    pub port: u16,
    /// Payload length in bytes without headers; the token is padded or cut to it
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// Do not fragment (UDP only): `do` obeys the path MTU the host has learned, `probe` ignores it
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "do", require_equals = true)]
    pub df: Option<DontFragment>,
    /// Options of every probe
    #[command(flatten)]
    pub common: CommonArgs,
}

impl CommonArgs {
    fn check(&self) -> Result<(), WorkloadError> {
        let bounds = [("--count", self.count, MAX_COUNT), ("--parallel", self.parallel, MAX_PARALLEL)];
        for (argument, value, most) in bounds {
            if value == 0 || value > most {
                return Err(WorkloadError::Argument {
                    argument,
                    value: value.to_string(),
                    why: format!("it must be 1 to {most}"),
                });
            }
        }
        Ok(())
    }

    fn request(
        &self,
        target: SocketAddr,
        number: u32,
        payload: Vec<u8>,
        df: Option<DontFragment>,
    ) -> Request {
        Request {
            target,
            bind: self.source.bind(target, number),
            payload,
            timeout: Duration::from_millis(self.timeout_ms),
            dont_fragment: df,
        }
    }
}

/// Pads or cuts `token` to `size` bytes; without a size it is sent as it is.
pub(super) fn payload(token: &str, size: Option<usize>) -> Vec<u8> {
    let mut bytes = token.as_bytes().to_vec();
    if let Some(size) = size {
        bytes.resize(size, b'.');
    }
    bytes
}

fn check_size(size: Option<usize>) -> Result<(), WorkloadError> {
    match size {
        Some(bytes) if bytes > MAX_SIZE_BYTES => Err(WorkloadError::Argument {
            argument: "--size",
            value: bytes.to_string(),
            why: format!("a datagram carries at most {MAX_SIZE_BYTES} bytes"),
        }),
        _ => Ok(()),
    }
}

/// Runs `one(number)` for each request, at most `parallel` at a time, and reports in order.
async fn run_all<F, Fut>(
    mut report: ProbeReport,
    common: &CommonArgs,
    one: F,
) -> Result<ProbeReport, WorkloadError>
where
    F: Fn(u32) -> Fut,
    Fut: Future<Output = Attempt> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut done: Vec<(u32, Attempt)> = Vec::new();
    let mut next = 0;
    while next < common.count || !running.is_empty() {
        while next < common.count && running.len() < usize::try_from(common.parallel).unwrap_or(1) {
            let (number, request) = (next, one(next));
            running.spawn(async move { (number, request.await) });
            next += 1;
        }
        match running.join_next().await {
            Some(Ok(finished)) => done.push(finished),
            Some(Err(error)) => {
                return Err(WorkloadError::Task { what: "probe", why: error.to_string() });
            }
            None => {}
        }
    }
    done.sort_by_key(|(number, _)| *number);
    for (_, attempt) in done {
        report.push(attempt);
    }
    Ok(report)
}

/// `lab-probe tcp`.
pub(super) async fn tcp(args: &SocketArgs) -> Result<ProbeReport, WorkloadError> {
    args.common.check()?;
    check_size(args.size)?;
    let target = SocketAddr::new(resolve(&args.host, args.common.family).await?, args.port);
    let report = ProbeReport::new(format!("{}:{}", args.host, args.port), "tcp");
    run_all(report, &args.common, |number| {
        let request = args.common.request(target, number, payload(&args.common.token, args.size), None);
        async move { attempt::tcp(&request).await }
    })
    .await
}

/// `lab-probe udp`.
pub(super) async fn udp(args: &SocketArgs) -> Result<ProbeReport, WorkloadError> {
    args.common.check()?;
    check_size(args.size)?;
    let target = SocketAddr::new(resolve(&args.host, args.common.family).await?, args.port);
    let report = ProbeReport::new(format!("{}:{}", args.host, args.port), "udp");
    run_all(report, &args.common, |number| {
        let request = args.common.request(target, number, payload(&args.common.token, args.size), args.df);
        async move { attempt::udp(&request).await }
    })
    .await
}

/// A URL taken apart for one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UrlParts {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authority: String,
    pub(super) path: String,
}

/// Takes `http://HOST[:PORT][/PATH]` apart.
pub(super) fn parse_url(url: &str) -> Result<UrlParts, WorkloadError> {
    let wrong = |why: &str| WorkloadError::Url { url: url.to_owned(), why: why.to_owned() };
    let uri: hyper::Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(wrong("only the scheme http is spoken"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    if host.is_empty() {
        return Err(wrong("it names no host"));
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Ok(UrlParts { host, port: authority.port_u16().unwrap_or(80), authority: authority.to_string(), path })
}

/// `lab-probe http`. The token becomes the query `token=` unless the URL has a query of its own.
pub(super) async fn http(args: &HttpArgs) -> Result<ProbeReport, WorkloadError> {
    args.common.check()?;
    let url = parse_url(&args.url)?;
    let target = SocketAddr::new(resolve(&url.host, args.common.family).await?, url.port);
    let path = if url.path.contains('?') {
        url.path.clone()
    } else {
        format!("{}?token={}", url.path, args.common.token)
    };
    run_all(ProbeReport::new(&args.url, "http"), &args.common, |number| {
        let request = args.common.request(target, number, Vec::new(), None);
        let (authority, path) = (url.authority.clone(), path.clone());
        async move { attempt::http(&request, &authority, &path).await }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::super::echo::{self, EchoArgs};
    use super::super::{Outcome, Whoami};
    use super::*;

    fn common(count: u32) -> CommonArgs {
        CommonArgs {
            count,
            parallel: 4,
            timeout_ms: 3000,
            token: "secret-token".into(),
            source: SourceArgs::default(),
            family: FamilyArgs::default(),
        }
    }

    /// Ports nobody else listens on: taken from the kernel, then released.
    fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.local_addr().expect("bound").port()
    }

    fn echo_args(listen: &str) -> (EchoArgs, u16, u16) {
        let (http, socket) = (free_port(), free_port());
        let args = EchoArgs {
            http: vec![http],
            tcp: vec![socket],
            udp: vec![socket],
            listen: vec![listen.parse().expect("literal")],
            until_eof: false,
            pod: "web-1".into(),
            namespace: "demo".into(),
            node: "east-n1".into(),
            cluster: "east".into(),
        };
        (args, http, socket)
    }

    async fn all_protocols(address: &str, in_url: &str) {
        let (args, http_port, port) = echo_args(address);
        let servers = echo::start(&args).expect("ports were free");
        let whoami = Whoami {
            pod: "web-1".into(),
            namespace: "demo".into(),
            node: "east-n1".into(),
            cluster: "east".into(),
        };
        let socket = SocketArgs { host: address.into(), port, size: Some(100), df: None, common: common(8) };
        let url = HttpArgs { url: format!("http://{in_url}:{http_port}/who"), common: common(8) };
        let reports = [
            tcp(&socket).await.expect("tcp"),
            udp(&socket).await.expect("udp"),
            http(&url).await.expect("http"),
        ];
        for report in reports {
            assert_eq!((report.sent, report.answered), (8, 8), "{report:?}");
            for (attempt, answer) in report.attempts.iter().zip(report.answers()) {
                assert_eq!(answer.whoami, whoami);
                assert!(answer.payload.contains("secret-token"), "{answer:?}");
                assert_eq!(answer.local_address, args.listen[0]);
                let source = attempt.source.expect("a bound socket");
                assert_eq!((answer.peer_address, answer.peer_port), (source.ip(), source.port()));
                assert_eq!(answer.request_bytes, if report.protocol == "http" { 0 } else { 100 });
            }
        }
        drop(servers);
    }

    #[tokio::test]
    async fn every_protocol_answers_over_ipv4() {
        all_protocols("127.0.0.1", "127.0.0.1").await;
    }

    #[tokio::test]
    async fn every_protocol_answers_over_ipv6() {
        all_protocols("::1", "[::1]").await;
    }

    #[tokio::test]
    async fn source_ports_count_up() {
        let (args, _, port) = echo_args("127.0.0.1");
        let _servers = echo::start(&args).expect("ports were free");
        let mut options = common(3);
        options.source.source_port = Some(free_port().min(65_000));
        let first = options.source.source_port.expect("just set");
        let socket = SocketArgs { host: "127.0.0.1".into(), port, size: None, df: None, common: options };
        let report = udp(&socket).await.expect("udp");
        let ports: Vec<u16> = report.attempts.iter().filter_map(|a| a.source.map(|s| s.port())).collect();
        assert_eq!(ports, [first, first + 1, first + 2]);
    }

    #[tokio::test]
    async fn refused_and_silent_are_told_apart() {
        let port = free_port();
        let socket = SocketArgs { host: "127.0.0.1".into(), port, size: None, df: None, common: common(1) };
        assert_eq!(tcp(&socket).await.expect("tcp").attempts[0].outcome, Outcome::Refused);
        assert_eq!(udp(&socket).await.expect("udp").attempts[0].outcome, Outcome::Refused);
        // A bound socket that never answers.
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let mut options = common(1);
        options.timeout_ms = 50;
        let port = silent.local_addr().expect("bound").port();
        let socket = SocketArgs { host: "127.0.0.1".into(), port, size: None, df: None, common: options };
        assert_eq!(udp(&socket).await.expect("udp").attempts[0].outcome, Outcome::Timeout);
    }

    #[test]
    fn urls() {
        let parts = parse_url("http://[fd00::1]:8080/x?y=1").expect("good");
        assert_eq!((parts.host.as_str(), parts.port, parts.path.as_str()), ("fd00::1", 8080, "/x?y=1"));
        assert_eq!(parse_url("http://web.demo").expect("good").port, 80);
        for bad in ["https://a/", "a", "http://", ""] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn payloads_have_the_size_asked_for() {
        assert_eq!(payload("ab", Some(4)), b"ab..");
        assert_eq!(payload("abcdef", Some(4)), b"abcd");
        assert_eq!(payload("ab", None), b"ab");
    }
}
