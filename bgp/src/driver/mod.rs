//! The speaker on tokio: one task owns the core; sockets are tasks that talk to it through one bounded channel.
//!
//! ```text
//!  listener × N ──┐                         ┌──► connection × M (queue of bytes, bounded by the core's account of unsent bytes)
//!  connects ──────┤► inputs ──► driver ─────┤
//!  connection × M ┘    (Core)     ▲         └──► events (bounded; the core keeps what does not fit)
//!                              commands
//! ```

mod bfd;
mod bmp;
mod handle;
mod keys;
mod link;
pub(crate) mod monitor;
mod neighbours;
mod rpki;

pub use handle::{Events, Speaker, SpeakerHandle};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::net::if_::if_indextoname;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::config::SpeakerConfig;
use crate::core::{Core, Incoming, Output, StationId};
use crate::error::Error;
use crate::event::Event;
use crate::fsm::ConnectionId;
use crate::rib::PeerId;
use crate::rpki::{CacheReport, RpkiTable};
use crate::transport::{self, Target};
use crate::wire::{Frame, Notification};

/// Inputs that may wait; a connection that has more is not read from until there is room.
const INPUT_QUEUE: usize = 1024;
/// Longest wait for withdrawals to go out at shutdown.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// Longest wait for connections to close after that.
const CLOSE_MAX: Duration = Duration::from_secs(3);
/// Wait after a failed accept: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Something to do with the core, with the time it is.
type Call = Box<dyn FnOnce(&mut Core, Instant) + Send>;

/// What the owner asks for.
enum Command {
    Call(Call),
    Flush(oneshot::Sender<()>),
    Shutdown { text: String, done: oneshot::Sender<()> },
}

/// What the sockets report.
enum Input {
    Accepted { stream: TcpStream, remote: SocketAddr },
    Connected { peer: PeerId, attempt: u64, result: std::io::Result<TcpStream> },
    Frames { id: ConnectionId, frames: Vec<Frame> },
    Unframed { id: ConnectionId, notification: Notification },
    Drained { id: ConnectionId, bytes: usize },
    Lost { id: ConnectionId, reason: String },
    Station { id: StationId, news: bmp::StationNews },
    Payloads { cache: usize, table: Arc<RpkiTable> },
}

struct Driver {
    core: Core,
    inputs: mpsc::Sender<Input>,
    inbox: mpsc::Receiver<Input>,
    events: mpsc::Sender<Event>,
    /// Nobody reads events any more.
    unread: bool,
    queues: BTreeMap<ConnectionId, mpsc::UnboundedSender<Bytes>>,
    connects: BTreeMap<PeerId, AbortHandle>,
    listeners: JoinSet<()>,
    /// Everything here is aborted when the driver ends.
    connections: JoinSet<()>,
    flushes: Vec<oneshot::Sender<()>>,
    bfd: Option<bfd::Bfd>,
    monitor: monitor::Monitor,
    /// Next hops that are to be resolved.
    next_hops: watch::Sender<BTreeSet<IpAddr>>,
    keys: keys::Keyring,
    neighbours: neighbours::Neighbours,
}

impl Driver {
    fn new(
        config: &SpeakerConfig,
        events: mpsc::Sender<Event>,
        next_hops: watch::Sender<BTreeSet<IpAddr>>,
        reports: Vec<watch::Sender<CacheReport>>,
    ) -> Result<Self, Error> {
        let (inputs, inbox) = mpsc::channel(INPUT_QUEUE);
        let (mut listeners, mut keys) = (JoinSet::new(), keys::Keyring::default());
        for address in &config.listen {
            let listener = transport::listener(*address, config.listen_backlog, config.device.as_deref())
                .and_then(|socket| TcpListener::from_std(socket.into()))
                .map_err(|source| Error::Listen { address: *address, source })?;
            let listener = Arc::new(listener);
            keys.listener(Arc::clone(&listener));
            listeners.spawn(accept(listener, inputs.clone()));
        }
        let mut core = Core::new(config);
        let monitor = monitor::Monitor::start(config, &mut core, &inputs, reports)?;
        Ok(Self {
            core,
            monitor,
            inputs,
            inbox,
            events,
            unread: false,
            queues: BTreeMap::new(),
            connects: BTreeMap::new(),
            listeners,
            connections: JoinSet::new(),
            flushes: Vec::new(),
            bfd: config.bfd.clone().map(bfd::Bfd::start),
            next_hops,
            keys,
            neighbours: neighbours::Neighbours::new(config.jitter_seed),
        })
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    // All handles are gone: break off without a word, so that helpers keep the routes.
                    None => return,
                    Some(Command::Call(call)) => call(&mut self.core, Instant::now()),
                    Some(Command::Flush(done)) => self.flushes.push(done),
                    Some(Command::Shutdown { text, done }) => {
                        self.shutdown(&text).await;
                        answer(done);
                        return;
                    }
                },
                () = self.step() => {}
            }
            self.carry_out();
        }
    }

    /// Waits for a socket, a timer, or room for an event, and handles it.
    async fn step(&mut self) {
        let deadline = self.core.next_deadline();
        let wait = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(input) = self.inbox.recv() => self.input(input),
            () = wait => {
                // What has arrived counts before the timers: a busy speaker must not take a peer for silent.
                for _ in 0..INPUT_QUEUE {
                    let Ok(input) = self.inbox.try_recv() else { break };
                    self.input(input);
                }
                self.core.tick(Instant::now());
            }
            permit = self.events.clone().reserve_owned(), if self.core.has_events() && !self.unread => match permit {
                Ok(permit) => {
                    if let Some(event) = self.core.next_event() {
                        drop(permit.send(event));
                    }
                }
                Err(_) => self.unread = true,
            },
            Some(status) = bfd::heard(&mut self.bfd) => self.core.bfd_heard(Instant::now(), status),
            Some(neighbour) = self.neighbours.heard() => {
                self.core.neighbour(Instant::now(), &neighbour.interface, neighbour.address);
            }
            Some(_) = self.connections.join_next() => {}
        }
    }

    fn input(&mut self, input: Input) {
        let now = Instant::now();
        match input {
            Input::Accepted { stream, remote } => self.accepted(now, stream, remote),
            Input::Connected { peer, attempt, result } => self.connected(now, peer, attempt, result),
            Input::Frames { id, frames } => self.core.frames(now, id, &frames),
            Input::Unframed { id, notification } => self.core.unframed(now, id, notification),
            Input::Drained { id, bytes } => self.core.drained(now, id, bytes),
            Input::Payloads { cache, table } => self.monitor.payloads(&mut self.core, cache, table),
            Input::Station { id, news } => self.monitor.station(&mut self.core, id, news),
            Input::Lost { id, reason } => {
                self.queues.remove(&id);
                self.keys.closed(id);
                self.core.lost(now, id, &reason);
            }
        }
    }

    fn accepted(&mut self, now: Instant, stream: TcpStream, remote: SocketAddr) {
        let Ok(local) = stream.local_addr() else { return };
        let incoming = Incoming {
            remote: remote.ip(),
            local,
            interface: scope(remote),
            ttl: transport::syn_ttl(&stream),
        };
        let Some((id, options)) = self.core.accepted(now, &incoming) else {
            tracing::debug!(%remote, "Refused a BGP connection: no such peer, too far away, or the peer is stopped.");
            return;
        };
        if let Err(error) = transport::accepted(&stream, remote.ip(), &options) {
            // What GTSM or a bound interface should keep out would come in.
            tracing::warn!(%remote, %error, "Cannot set the socket options of a BGP connection; it is closed.");
            return self.core.lost(now, id, &error.to_string());
        }
        self.spawn(id, stream);
    }

    fn connected(&mut self, now: Instant, peer: PeerId, attempt: u64, result: std::io::Result<TcpStream>) {
        let ready = result.and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.local_addr().map(|local| (stream, local))
        });
        match ready {
            Ok((stream, local)) => {
                if let Some(id) = self.core.connected(now, peer, attempt, local) {
                    self.spawn(id, stream);
                }
            }
            Err(error) => self.core.connect_failed(now, peer, attempt, &error.to_string()),
        }
    }

    fn spawn(&mut self, id: ConnectionId, stream: TcpStream) {
        // Unbounded as a channel, bounded by what is put into it: the core encodes no route for a connection with more than
        // `core::OUTSTANDING_MAX` unsent bytes, and keepalives end with the send hold timer. A bounded channel would make
        // one slow peer stop the speaker, or would lose bytes in the midst of a stream.
        let (queue, outbox) = mpsc::unbounded_channel();
        self.queues.insert(id, queue);
        self.keys.opened(id, &stream);
        let message_max = self.core.message_max(id);
        self.connections.spawn(link::run(id, stream, message_max, outbox, self.inputs.clone()));
    }

    /// Does what the core wants done, and answers those who wait for it to be quiet.
    fn carry_out(&mut self) {
        self.monitor.take(&mut self.core);
        while let Some(output) = self.core.next_output() {
            match output {
                Output::Connect { peer, attempt, target } => self.connect(peer, attempt, target),
                Output::Abandon { peer } => {
                    if let Some(connect) = self.connects.remove(&peer) {
                        connect.abort();
                    }
                }
                Output::Send { connection, bytes } => {
                    if let Some(queue) = self.queues.get(&connection)
                        && queue.send(bytes).is_err()
                    {
                        // The connection has ended; its report is on the way.
                        self.queues.remove(&connection);
                    }
                }
                Output::Close { connection } => {
                    self.queues.remove(&connection);
                    self.keys.closed(connection);
                }
            }
        }
        if let Some(keys) = self.core.take_keys() {
            self.keys.want(keys);
        }
        if let Some(interfaces) = self.core.take_interfaces() {
            self.neighbours.want(&interfaces);
        }
        if let Some(sessions) = self.core.take_bfd_sessions()
            && let Some(bfd) = &self.bfd
        {
            bfd.want(sessions);
        }
        if let Some(next_hops) = self.core.take_next_hops() {
            self.next_hops.send_replace(next_hops);
        }
        if !self.flushes.is_empty() && self.core.is_flushed() {
            for done in self.flushes.drain(..) {
                answer(done);
            }
        }
    }

    fn connect(&mut self, peer: PeerId, attempt: u64, target: Target) {
        let inputs = self.inputs.clone();
        let handle = self.connections.spawn(async move {
            let result = reach(&target).await;
            if inputs.send(Input::Connected { peer, attempt, result }).await.is_err() {
                tracing::debug!("The speaker has ended.");
            }
        });
        if let Some(older) = self.connects.insert(peer, handle) {
            older.abort();
        }
    }

    async fn shutdown(&mut self, text: &str) {
        self.listeners.abort_all();
        self.core.withdraw_all();
        self.carry_out();
        let flush = async {
            while !self.core.is_flushed() {
                self.step().await;
                self.carry_out();
            }
        };
        if tokio::time::timeout(FLUSH_MAX, flush).await.is_err() {
            tracing::warn!("Some peers did not take the withdrawals in time; closing anyway.");
        }
        self.core.stop_all(Instant::now(), text);
        self.carry_out();
        self.monitor.close(&mut self.core, &mut self.inbox).await;
        if let Some(bfd) = self.bfd.take() {
            bfd.release().await;
        }
        self.connects.values().for_each(AbortHandle::abort);
        // Reports of the closing connections are of no more interest, but must not block them.
        let Self { inbox, connections, .. } = self;
        let close = async {
            loop {
                tokio::select! {
                    ended = connections.join_next() => if ended.is_none() { break },
                    Some(_) = inbox.recv() => {}
                }
            }
        };
        if tokio::time::timeout(CLOSE_MAX, close).await.is_err() {
            tracing::warn!("Some peers did not close their connections in time.");
        }
    }
}

/// Answers a caller; one that went away does not want to know.
fn answer(done: oneshot::Sender<()>) {
    if done.send(()).is_err() {
        tracing::debug!("Nobody waits for this answer any more.");
    }
}

/// The interface of a link-local address.
fn scope(remote: SocketAddr) -> Option<String> {
    let SocketAddr::V6(remote) = remote else { return None };
    let index = Some(remote.scope_id()).filter(|index| *index != 0)?;
    if_indextoname(index).ok()?.into_string().ok()
}

/// Connects to a peer.
async fn reach(target: &Target) -> std::io::Result<TcpStream> {
    let (socket, remote) = transport::outgoing(target)?;
    TcpSocket::from_std_stream(socket.into()).connect(remote).await
}

async fn accept(listener: Arc<TcpListener>, inputs: mpsc::Sender<Input>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if inputs.send(Input::Accepted { stream, remote }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "Cannot accept a BGP connection; trying again.");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
