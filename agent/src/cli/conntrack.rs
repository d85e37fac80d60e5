//! `tombolo conntrack`: flows and source translations, some or all.

use super::client::{self, ClientError};
use super::commands::{json, print_table};
use super::{Format, Reading};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::process::ExitCode;
use tombolo_ebpf::FlowFilter;

/// What is done with them.
#[derive(Debug, Subcommand)]
pub(crate) enum ConntrackCommand {
    /// The flows that match; all without a condition
    List(Wanted),
    /// The source translations of flows that match: which port of the node stands for which client
    Snat(Wanted),
    /// Forget the flows that match: their next packets are judged and translated anew, and a connection to a service may be given another backend
    Flush(FlushArgs),
}

/// Which flows.
#[derive(Debug, Args)]
pub(crate) struct Wanted {
    /// Address of either end, of the backend, or of a client behind a translation
    #[arg(long)]
    ip: Option<IpAddr>,
    /// Port of either end
    #[arg(long)]
    port: Option<u16>,
    /// IP protocol
    #[arg(long)]
    protocol: Option<Protocol>,
    #[command(flatten)]
    reading: Reading,
}

/// Which flows are forgotten.
#[derive(Debug, Args)]
pub(crate) struct FlushArgs {
    #[command(flatten)]
    wanted: Wanted,
    /// All of them: needed if there is no condition
    #[arg(long)]
    all: bool,
}

/// IP protocols that are tracked.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    Icmp,
    Tcp,
    Udp,
    Icmpv6,
    Sctp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmpv6 => 58,
            Self::Sctp => 132,
        }
    }
}

impl Wanted {
    fn filter(&self) -> FlowFilter {
        FlowFilter { ip: self.ip, port: self.port, protocol: self.protocol.map(Protocol::number) }
    }

    /// As the query of a request.
    fn query(&self) -> String {
        let filter = self.filter();
        let ip = filter.ip.map(|ip| format!("ip={}", client::encode(&ip.to_string())));
        let port = filter.port.map(|port| format!("port={port}"));
        let protocol = filter.protocol.map(|protocol| format!("protocol={protocol}"));
        ip.into_iter().chain(port).chain(protocol).collect::<Vec<_>>().join("&")
    }
}

/// Runs one.
pub(crate) async fn run(command: ConntrackCommand) -> Result<ExitCode, ClientError> {
    match command {
        ConntrackCommand::List(wanted) => show("conntrack", &wanted).await?,
        ConntrackCommand::Snat(wanted) => show("snat", &wanted).await?,
        ConntrackCommand::Flush(args) => flush(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(table: &str, wanted: &Wanted) -> Result<(), ClientError> {
    let path = format!("/v1/tables/{table}?{}", wanted.query());
    print_table(&wanted.reading, client::get(&wanted.reading.socket, &path).await?)
}

async fn flush(args: &FlushArgs) -> Result<(), ClientError> {
    let filter = args.filter()?;
    let reading = &args.wanted.reading;
    let answer: Flushed = client::post(&reading.socket, "/v1/conntrack/flush", &filter).await?;
    match reading.output {
        Format::Json => json(&answer),
        Format::Table => {
            println!("{} entries forgotten", answer.flushed);
            Ok(())
        }
    }
}

/// The agent's answer.
#[derive(Debug, Serialize, Deserialize)]
struct Flushed {
    flushed: u64,
}

impl FlushArgs {
    /// Nobody forgets everything by leaving a condition out.
    fn filter(&self) -> Result<FlowFilter, ClientError> {
        let filter = self.wanted.filter();
        if (filter == FlowFilter::default()) == self.all {
            return Ok(filter);
        }
        let text =
            "give a condition (--ip, --port, --protocol), or --all and none: what is flushed is judged anew";
        Err(ClientError::Refused(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: ConntrackCommand,
    }

    fn parse(line: &str) -> ConntrackCommand {
        Line::try_parse_from(std::iter::once("x").chain(line.split(' '))).unwrap().command
    }

    #[test]
    fn conditions_become_a_query() {
        let ConntrackCommand::List(wanted) = parse("list --ip fd00::1 --port 53 --protocol udp") else {
            panic!()
        };
        assert_eq!(wanted.query(), "ip=fd00%3A%3A1&port=53&protocol=17");
    }

    #[test]
    fn everything_is_forgotten_only_on_purpose() {
        let filter = |line: &str| match parse(line) {
            ConntrackCommand::Flush(args) => args.filter(),
            other => panic!("{other:?}"),
        };
        assert!(filter("flush").unwrap_err().to_string().contains("--all"));
        assert!(filter("flush --all --port 53").is_err());
        assert_eq!(filter("flush --all").unwrap(), FlowFilter::default());
        assert_eq!(filter("flush --port 53").unwrap().port, Some(53));
    }
}
