//! `lab-probe names`: questions to the pod's name servers, one by one, and what each of them said.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use clap::Args;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{WorkloadError, print_json};

/// What the pod's kubelet has written.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Time for one question.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(20);

/// Arguments of `lab-probe names`.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Questions, as `web.demo.svc.cluster.local./A`
    #[arg(required = true)]
    pub questions: Vec<String>,
    /// Ask over TCP
    #[arg(long)]
    pub tcp: bool,
    /// Go on asking for so long
    #[arg(long, default_value_t = 0)]
    pub seconds: u64,
}

/// What the servers said: question and server to what came back, and how often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesReport {
    /// By `QUESTION @SERVER`: code and sorted data of the answers, or what went wrong.
    pub answers: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Asks every question of every server.
pub(super) async fn run(args: &NamesArgs) -> Result<bool, WorkloadError> {
    let servers = servers(&std::fs::read_to_string(RESOLV_CONF)?);
    let mut questions = Vec::new();
    for text in &args.questions {
        questions.push((text.as_str(), packet(text)?));
    }
    if servers.is_empty() {
        let why = "no nameserver stands there".to_owned();
        return Err(WorkloadError::Resolve { host: RESOLV_CONF.to_owned(), family: "IP", why });
    }
    let mut report = NamesReport::default();
    let end = Instant::now() + Duration::from_secs(args.seconds);
    loop {
        for server in &servers {
            for (text, packet) in &questions {
                let asked = timeout(PATIENCE, ask(*server, packet, args.tcp)).await;
                let said = match asked {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(error)) => format!("error {error}"),
                    Err(_) => "timeout".to_owned(),
                };
                let said_before = report.answers.entry(format!("{text} @{}", server.ip())).or_default();
                *said_before.entry(said).or_default() += 1;
            }
        }
        if Instant::now() >= end {
            print_json(&report)?;
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.trim().parse::<IpAddr>().ok()).map(|ip| SocketAddr::new(ip, 53)).collect()
}

fn packet(text: &str) -> Result<Vec<u8>, WorkloadError> {
    let wrong = |why: String| WorkloadError::Argument { argument: "QUESTION", value: text.to_owned(), why };
    let (name, kind) = text.rsplit_once('/').ok_or_else(|| wrong("write NAME/TYPE".to_owned()))?;
    let name = Name::from_ascii(name).map_err(|error| wrong(error.to_string()))?;
    let kind: RecordType = kind.parse().map_err(|_| wrong("the type is not known".to_owned()))?;
    let mut message = Message::new(rand_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.to_vec().map_err(|error| wrong(error.to_string()))
}

/// Differs between runs; nobody here guesses.
fn rand_id() -> u16 {
    u16::try_from(std::process::id() & 0xffff).unwrap_or(1)
}

async fn ask(server: SocketAddr, packet: &[u8], tcp: bool) -> std::io::Result<String> {
    let answer = if tcp {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(packet.len()).map_err(std::io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        answer
    } else {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(packet).await?;
        let mut answer = vec![0; 65_535];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        answer
    };
    let message = Message::from_vec(&answer).map_err(std::io::Error::other)?;
    let mut data: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    let cut = if message.metadata.truncation { " cut" } else { "" };
    let code = format!("{:?}", message.metadata.response_code).to_ascii_uppercase();
    Ok([vec![format!("{code}{cut}")], data].concat().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_questions_are_read() {
        let text = "# kubelet\nnameserver 10.101.0.10\nnameserver fd00:101::a\nsearch a b\noptions ndots:5\n";
        let found: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.101.0.10:53", "[fd00:101::a]:53"]);
        assert!(packet("web.demo.svc.cluster.local./AAAA").is_ok());
        assert!(packet("web.demo").is_err() && packet("web/NONSENSE").is_err());
    }
}
