//! Names of others: asked from upstreams, a bounded number at a time.

use crate::message::{HEADER_BYTES, Transport, question};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Questions under way at a time; more are refused at once, so that a dead upstream costs no more than these.
const AT_ONCE: usize = 512;
/// How long one upstream has.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the list of upstreams is gone through.
const ROUNDS: usize = 2;
/// Largest answer.
const MAX_ANSWER_BYTES: usize = 65_535;

/// Who is asked.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    room: Semaphore,
}

impl Forwarder {
    /// Asks these, in turn.
    #[must_use]
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, room: Semaphore::new(AT_ONCE) }
    }

    /// Whether there is anybody to ask.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.upstreams.is_empty()
    }

    /// Room for one more question; `None` if too many are under way.
    pub fn enter(&self) -> Option<SemaphorePermit<'_>> {
        self.room.try_acquire().ok()
    }

    /// The first upstream's answer to a whole packet, under the packet's own id; `None` if none answers in time.
    pub async fn ask(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for upstream in (0..ROUNDS).flat_map(|_| &self.upstreams) {
            let asked = match transport {
                Transport::Udp => timeout(PATIENCE, udp(*upstream, packet)).await,
                Transport::Tcp => timeout(PATIENCE, tcp(*upstream, packet)).await,
            };
            match asked {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%upstream, %error, "the upstream did not answer"),
                Err(_) => tracing::debug!(%upstream, "the upstream did not answer in time"),
            }
        }
        None
    }
}

/// The packet under another id.
fn with_id(packet: &[u8], id: u16) -> Vec<u8> {
    let mut sent = id.to_be_bytes().to_vec();
    sent.extend(packet.iter().skip(2));
    sent
}

/// The answer under the id of the question, if it is one to it. Letters of the name may come back in another case.
fn accept(packet: &[u8], id: u16, mut answer: Vec<u8>) -> Option<Vec<u8>> {
    let same = |asked: &[u8], said: &[u8]| asked.eq_ignore_ascii_case(said);
    let matches = answer.len() >= HEADER_BYTES
        && answer.starts_with(&id.to_be_bytes())
        && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && question(packet).zip(question(&answer)).is_some_and(|(asked, said)| same(asked, said));
    if !matches {
        return None;
    }
    for (to, from) in answer.iter_mut().zip(packet).take(2) {
        *to = *from;
    }
    Some(answer)
}

/// Over a socket of its own: its port is as hard to guess as the id.
async fn udp(upstream: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let id = rand::random();
    socket.send(&with_id(packet, id)).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default().to_vec();
        // Somebody's guess is passed over; the true answer may still come.
        if let Some(answer) = accept(packet, id, answer) {
            return Ok(answer);
        }
    }
}

async fn tcp(upstream: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id = rand::random();
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    let mut sent = length.to_be_bytes().to_vec();
    sent.extend(with_id(packet, id));
    stream.write_all(&sent).await?;
    let length = usize::from(stream.read_u16().await?);
    let mut answer = vec![0; length.min(MAX_ANSWER_BYTES)];
    stream.read_exact(&mut answer).await?;
    accept(packet, id, answer).ok_or_else(|| io::Error::other("it answered something else"))
}
