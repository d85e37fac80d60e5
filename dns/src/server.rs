//! Questions in, answers out: what is known is answered at once, in the task that reads; the rest by upstreams.

use crate::answer::{Domains, Outcome};
use crate::forward::Forwarder;
use crate::message::{Parsed, Reply, Request, Transport, parse};
use crate::metrics::Metrics;
use crate::zones::Zones;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Largest question that is read.
const MAX_QUESTION_BYTES: usize = 4096;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// How long a connection may be silent, and how long it may take to take an answer.
const IDLE: Duration = Duration::from_secs(10);
/// Questions of one connection; then it is closed, so that nobody keeps one for ever.
const MAX_QUESTIONS: usize = 1000;
/// Names that lead to others, one after the other.
const MAX_ALIASES: usize = 8;

/// What answers.
pub struct Server {
    zones: RwLock<Zones>,
    domains: Domains,
    forwarder: Forwarder,
    pub(crate) metrics: Metrics,
    turn: AtomicUsize,
}

/// What a question leads to.
enum Step {
    Silence,
    Done(Vec<u8>),
    /// Somebody else has to be asked.
    Ask(Box<Open>),
}

/// A question that is not answered yet.
struct Open {
    request: Box<Request>,
    /// As far as it is known.
    reply: Reply,
    /// The name that an alias has led to; `None` for the question's own.
    alias: Option<Name>,
}

impl Server {
    /// A server that knows `zones`.
    #[must_use]
    pub fn new(zones: Zones, domains: Domains, forwarder: Forwarder) -> Self {
        let turn = AtomicUsize::new(0);
        Self { zones: RwLock::new(zones), domains, forwarder, metrics: Metrics::new(), turn }
    }

    /// What is known.
    pub fn zones(&self) -> RwLockReadGuard<'_, Zones> {
        self.zones.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change what is known.
    pub fn zones_mut(&self) -> RwLockWriteGuard<'_, Zones> {
        self.zones.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a packet; `None` if nothing is to be sent.
    pub async fn handle(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match self.step(packet, transport) {
            Step::Silence => None,
            Step::Done(answer) => Some(answer),
            Step::Ask(open) => Some(self.ask(packet, transport, *open).await),
        }
    }

    /// As far as it goes without waiting.
    fn step(&self, packet: &[u8], transport: Transport) -> Step {
        let start = Instant::now();
        let request = match parse(packet, transport) {
            Parsed::Ignore => return Step::Silence,
            Parsed::Reject(answer, code) => {
                self.metrics.asked("none", transport);
                self.metrics.answered(code, start.elapsed());
                return Step::Done(answer);
            }
            Parsed::Request(request) => request,
        };
        self.metrics.asked(self.domains.zone_of(request.query.name()), transport);
        let mut reply = Reply { recursion: !self.forwarder.is_empty(), ..Reply::default() };
        let ask = self.local(request.query.name().clone(), &request, &mut reply);
        match ask {
            Some(alias) if !self.forwarder.is_empty() => Step::Ask(Box::new(Open { request, reply, alias })),
            Some(alias) => {
                // An alias whose target nobody can be asked about is an answer all the same.
                if alias.is_none() {
                    reply.code = ResponseCode::Refused;
                }
                self.finish(&request, reply, start)
            }
            None => self.finish(&request, reply, start),
        }
    }

    fn finish(&self, request: &Request, reply: Reply, start: Instant) -> Step {
        self.metrics.answered(reply.code, start.elapsed());
        Step::Done(request.respond(reply))
    }

    /// Answers from what is known, following aliases. `Some` if somebody else has to be asked: about an alias' target, or
    /// (`None` within) about the question itself.
    fn local(&self, mut name: Name, request: &Request, reply: &mut Reply) -> Option<Option<Name>> {
        let zones = self.zones();
        let mut alias = None;
        for _ in 0..=MAX_ALIASES {
            match self.domains.answer(&zones, &name, request.query.query_type()) {
                Outcome::Records(mut records, more) => {
                    self.rotate(&mut records);
                    reply.answers.extend(records);
                    reply.additionals = more;
                    reply.authoritative = true;
                    return None;
                }
                Outcome::Alias(record, target) => {
                    reply.answers.push(record);
                    reply.authoritative = true;
                    alias = Some(target.clone());
                    name = target;
                }
                Outcome::NoData(soa) => {
                    (reply.authority, reply.authoritative) = (Some(soa), true);
                    return None;
                }
                Outcome::NxDomain(soa) => {
                    (reply.authority, reply.authoritative) = (Some(soa), true);
                    reply.code = ResponseCode::NXDomain;
                    return None;
                }
                Outcome::Unknown => {
                    reply.code = ResponseCode::ServFail;
                    return None;
                }
                Outcome::NotOurs => return Some(alias),
            }
        }
        // A circle.
        reply.code = ResponseCode::ServFail;
        None
    }

    /// Each question sees another address first.
    fn rotate(&self, records: &mut [Record]) {
        if records.len() > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % records.len();
            records.rotate_left(turn);
        }
    }

    async fn ask(&self, packet: &[u8], transport: Transport, open: Open) -> Vec<u8> {
        let Open { request, mut reply, alias } = open;
        let start = Instant::now();
        let answer = match (self.forwarder.enter(), &alias) {
            (None, _) => None,
            (Some(_room), None) => self.forwarder.ask(packet, transport).await,
            (Some(_room), Some(target)) => self.target(target, &request).await,
        };
        match (answer, alias) {
            (None, _) => {
                self.metrics.forward_failures.inc();
                reply.code = ResponseCode::ServFail;
            }
            (Some(answer), None) => {
                let code = answer.get(3).map_or(0, |flags| flags & 15);
                self.metrics.answered(ResponseCode::from_low(code), start.elapsed());
                return request.pass(answer);
            }
            (Some(answer), Some(_)) => match Message::from_vec(&answer) {
                Ok(message) => {
                    reply.code = message.metadata.response_code;
                    reply.answers.extend(message.answers);
                }
                Err(_) => reply.code = ResponseCode::ServFail,
            },
        }
        self.metrics.answered(reply.code, start.elapsed());
        request.respond(reply)
    }

    /// Asks about an alias' target, over TCP: whatever the client takes, the answer is whole.
    async fn target(&self, target: &Name, request: &Request) -> Option<Vec<u8>> {
        let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(target.clone(), request.query.query_type()));
        let packet = message.to_vec().ok()?;
        let answer = self.forwarder.ask(&packet, Transport::Udp).await?;
        let cut = answer.get(2).is_some_and(|flags| flags & 2 != 0);
        if cut { self.forwarder.ask(&packet, Transport::Tcp).await } else { Some(answer) }
    }
}

/// Answers datagrams until cancelled.
pub async fn udp(server: Arc<Server>, socket: UdpSocket, cancel: CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MAX_QUESTION_BYTES];
    loop {
        let (length, peer) = tokio::select! {
            () = cancel.cancelled() => return,
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // Of a client that has gone; the next one may be there.
                Err(error) => {
                    tracing::debug!(%error, "a datagram could not be received");
                    tokio::task::yield_now().await;
                    continue;
                }
            },
        };
        let packet = buffer.get(..length).unwrap_or_default();
        let answer = match server.step(packet, Transport::Udp) {
            Step::Silence => continue,
            Step::Done(answer) => answer,
            Step::Ask(open) => {
                // Without room the answer comes at once, so tasks are bounded as questions are.
                let (server, socket, packet) = (server.clone(), socket.clone(), packet.to_vec());
                tokio::spawn(async move {
                    let answer = server.ask(&packet, Transport::Udp, *open).await;
                    socket.send_to(&answer, peer).await.ok();
                });
                continue;
            }
        };
        // A full send buffer drops this answer, and the client asks again.
        socket.try_send_to(&answer, peer).ok();
    }
}

/// Answers connections until cancelled.
pub async fn tcp(
    server: Arc<Server>,
    listener: TcpListener,
    room: Arc<Semaphore>,
    cancel: CancellationToken,
) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    // Out of descriptors: one that ends makes room.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (server, cancel) = (server.clone(), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                ended = connection(&server, stream) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended");
                    }
                }
            }
            drop(permit);
        });
    }
}

/// Room for connections, shared by all listeners.
#[must_use]
pub fn connections() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CONNECTIONS))
}

async fn connection(server: &Server, mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; MAX_QUESTION_BYTES];
    for _ in 0..MAX_QUESTIONS {
        let read = async {
            let length = usize::from(stream.read_u16().await?);
            let part =
                buffer.get_mut(..length).ok_or_else(|| std::io::Error::other("the question is too long"))?;
            stream.read_exact(part).await?;
            Ok::<_, std::io::Error>(length)
        };
        let Ok(read) = timeout(IDLE, read).await else { return Ok(()) };
        let length = match read {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let packet = buffer.get(..length).unwrap_or_default();
        let Some(answer) = server.handle(packet, Transport::Tcp).await else { return Ok(()) };
        let mut sent = u16::try_from(answer.len()).map_err(std::io::Error::other)?.to_be_bytes().to_vec();
        sent.extend(answer);
        timeout(IDLE, stream.write_all(&sent)).await.map_err(std::io::Error::other)??;
    }
    Ok(())
}
