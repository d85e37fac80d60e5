//! Readiness probes, asked from the node as a kubelet does.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::manifests::{ProbeKind, ProbeSpec};
use crate::init::command::basic_env;
use crate::process::Reaper;
use crate::runner::exec::pod_command;
use crate::runner::protocol::PodState;

/// Asks once; whether the answer is yes.
pub(super) async fn ask(reaper: &Reaper, probe: &ProbeSpec, pod: &PodState, address: Option<IpAddr>) -> bool {
    let asked = async {
        match (&probe.what, address) {
            (ProbeKind::Tcp { port }, Some(address)) => {
                TcpStream::connect(SocketAddr::new(address, *port)).await.map(|_| true)
            }
            (ProbeKind::Http { port, path }, Some(address)) => {
                http(SocketAddr::new(address, *port), path).await
            }
            (ProbeKind::Exec { argv }, _) => exec(reaper, pod, argv).await,
            (_, None) => Ok(false),
        }
    };
    matches!(tokio::time::timeout(probe.timeout, asked).await, Ok(Ok(true)))
}

/// Any status from 200 to 399 is a yes.
async fn http(address: SocketAddr, path: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // "HTTP/1.1 200" is all that matters.
    let mut head = [0_u8; 12];
    stream.read_exact(&mut head).await?;
    let text = String::from_utf8_lossy(&head);
    let status: u16 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((200..400).contains(&status))
}

async fn exec(reaper: &Reaper, pod: &PodState, argv: &[String]) -> io::Result<bool> {
    let argv = pod_command(pod, argv);
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("an empty command"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    basic_env(&mut command, &std::collections::BTreeMap::new());
    Ok(reaper.output(&mut command, b"").await?.exit.success())
}
