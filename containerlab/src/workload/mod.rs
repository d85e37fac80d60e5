//! The programs that run inside the lab's pods and on its outside client.
//!
//! * [`EchoArgs`] (`tombolo lab-echo`): HTTP, TCP and UDP servers that answer every request with an [`Answer`] in
//!   JSON: who connected, from where, and which pod on which node of which cluster answered.
//! * [`ProbeArgs`] (`tombolo lab-probe`): clients for the same protocols, ICMP echo with exact sizes, load over
//!   long-lived or fresh connections, and a packet capture that looks for plaintext tokens. All print JSON.
//!
//! The identity of an echo server comes from `POD_NAME`, `POD_NAMESPACE`, `NODE_NAME` and `CLUSTER_NAME`, set by
//! the lab's kubelet.
//!
//! ```no_run
//! # async fn sketch() -> Result<(), tombolo_containerlab::workload::WorkloadError> {
//! use clap::Parser;
//! use tombolo_containerlab::workload::{ProbeArgs, run_probe};
//! #[derive(Parser)]
//! struct Cli { #[command(flatten)] probe: ProbeArgs }
//! let cli = Cli::parse_from(["lab-probe", "tcp", "10.1.1.2", "9000", "--count", "16"]);
//! let all_answered = run_probe(cli.probe).await?;
//! # let _ = all_answered; Ok(()) }
//! ```

mod answer;
mod attempt;
mod capture;
mod echo;
mod load;
mod names;
#[cfg(test)]
mod netns_tests;
mod ping;
mod probe;
mod report;
mod tally;

use std::io;
use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};

pub use answer::{Answer, PAYLOAD_ECHO_BYTES, Whoami};
pub use capture::{CaptureArgs, CaptureReport, Sighting};
pub(crate) use echo::stop_signal;
pub use echo::{EchoArgs, run_echo};
pub use load::{LoadArgs, LoadProtocol};
pub use names::{NamesArgs, NamesReport};
pub use ping::PingArgs;
pub use probe::{HttpArgs, SocketArgs};
pub use report::{Attempt, Outcome, ProbeReport};
pub use tally::LoadReport;

/// What the lab's servers and clients could not do.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A listening socket could not be opened.
    #[error(
        "cannot listen for {protocol} on {address}: {source}; is the port taken, or the family switched off?"
    )]
    Listen {
        /// `http`, `tcp` or `udp`.
        protocol: &'static str,
        /// Address and port asked for.
        address: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No port was given at all.
    #[error("lab-echo has nothing to serve: give at least one of --http, --tcp, --udp")]
    NothingToServe,
    /// A host name has no address of the family asked for.
    #[error("cannot resolve {host:?} to an {family} address: {why}; inside a pod look at /etc/hosts")]
    Resolve {
        /// The name.
        host: String,
        /// `IPv4`, `IPv6` or `IP`.
        family: &'static str,
        /// What the resolver said.
        why: String,
    },
    /// The URL given cannot be used.
    #[error("cannot use the URL {url:?}: {why}; write http://HOST[:PORT]/PATH, an IPv6 address in brackets")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A socket for the probe itself could not be made (this is no answer of the network).
    #[error("cannot prepare a {what} socket to {target}: {source}; ICMP and capture need CAP_NET_RAW")]
    Socket {
        /// Kind of socket.
        what: &'static str,
        /// The peer, or what is listened to.
        target: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// An argument is out of range.
    #[error("{argument} = {value} is not possible: {why}")]
    Argument {
        /// The option.
        argument: &'static str,
        /// What was given.
        value: String,
        /// The bound that was broken.
        why: String,
    },
    /// The answer could not be written.
    #[error("cannot write the report to standard output: {0}")]
    Output(#[from] io::Error),
    /// The report could not be turned into JSON (a programming error).
    #[error("cannot encode the report as JSON: {0}")]
    Encode(#[from] serde_json::Error),
    /// A background task ended in a panic or was cancelled.
    #[error("a task of the {what} ended early: {why}")]
    Task {
        /// Which part.
        what: &'static str,
        /// Reason given by the runtime.
        why: String,
    },
}

/// The two hidden commands that the binary `tombolo` offers to the lab's pods.
#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Echo server of the lab: answers with who connected, from where, and on which node
    #[command(name = "lab-echo", hide = true)]
    LabEcho(EchoArgs),
    /// Client of the lab: asks an echo server, pings, loads or captures, and prints JSON
    #[command(name = "lab-probe", hide = true)]
    LabProbe(ProbeArgs),
}

impl WorkloadCommand {
    /// Runs the command to its end; errors are printed to standard error.
    pub async fn run(self) -> ExitCode {
        let outcome = match self {
            Self::LabEcho(args) => run_echo(args).await.map(|()| true),
            Self::LabProbe(args) => run_probe(args).await,
        };
        match outcome {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("Error: {error}");
                ExitCode::from(2)
            }
        }
    }
}

/// Arguments of `tombolo lab-probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ProbeCommand,
}

/// The kinds of probe.
#[derive(Debug, Subcommand)]
pub enum ProbeCommand {
    /// GET a URL; one connection per request
    Http(HttpArgs),
    /// Send a line over TCP and read the answering line; one connection per request
    Tcp(SocketArgs),
    /// Send a datagram and await the answer; one socket per request
    Udp(SocketArgs),
    /// ICMP or ICMPv6 echo
    Ping(PingArgs),
    /// Ask the pod's name servers
    Names(NamesArgs),
    /// Requests at a rate for a while; one JSON report at the end
    Load(LoadArgs),
    /// Like load, with a JSON line of progress every second
    Hold(LoadArgs),
    /// Listen on every interface of this namespace for plaintext tokens until SIGTERM or the time is over
    Capture(CaptureArgs),
}

/// Runs one probe and prints its JSON report.
///
/// Returns whether everything sent was answered (for `capture`: whether a token was seen).
///
/// # Errors
/// Only what keeps the probe from being made; silence, refusals and ICMP errors are part of the report.
pub async fn run_probe(args: ProbeArgs) -> Result<bool, WorkloadError> {
    match args.command {
        ProbeCommand::Http(args) => print_probe(probe::http(&args).await?),
        ProbeCommand::Tcp(args) => print_probe(probe::tcp(&args).await?),
        ProbeCommand::Udp(args) => print_probe(probe::udp(&args).await?),
        ProbeCommand::Ping(args) => print_probe(ping::ping(args).await?),
        ProbeCommand::Names(args) => names::run(&args).await,
        ProbeCommand::Load(args) => load::run(args, None).await,
        ProbeCommand::Hold(args) => load::run(args, Some(load::PROGRESS_INTERVAL)).await,
        ProbeCommand::Capture(args) => capture::run(args).await,
    }
}

fn print_probe(report: ProbeReport) -> Result<bool, WorkloadError> {
    print_json(&report)?;
    Ok(report.sent > 0 && report.answered == report.sent)
}

/// Writes one JSON document and a newline to standard output, and flushes it.
fn print_json<T: serde::Serialize>(value: &T) -> Result<(), WorkloadError> {
    use std::io::Write;
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}

/// Which address family a probe must use.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct FamilyArgs {
    /// Use IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Use IPv6 only
    #[arg(short = '6', long)]
    pub ipv6: bool,
}

impl FamilyArgs {
    fn accepts(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => !self.ipv6,
            IpAddr::V6(_) => !self.ipv4,
        }
    }

    fn name(self) -> &'static str {
        match (self.ipv4, self.ipv6) {
            (true, _) => "IPv4",
            (_, true) => "IPv6",
            _ => "IP",
        }
    }
}

/// Resolves a host (name or literal address) to its first address of the wanted family.
async fn resolve(host: &str, family: FamilyArgs) -> Result<IpAddr, WorkloadError> {
    let failed = |why: String| WorkloadError::Resolve { host: host.to_owned(), family: family.name(), why };
    let addresses = tokio::net::lookup_host((host, 0)).await.map_err(|error| failed(error.to_string()))?;
    addresses
        .map(|address| address.ip())
        .find(|address| family.accepts(*address))
        .ok_or_else(|| failed("it has addresses of the other family only".to_owned()))
}
