//! The echo server: HTTP, TCP and UDP on both families.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::response::Json;
use axum::serve::IncomingStream;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::codec::{Framed, LinesCodec};

use super::{Answer, Whoami, WorkloadError};

/// Longest line the TCP server reads, in bytes; a longer one ends the connection.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Longest HTTP body read, in bytes.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
/// Most TCP connections served at once; further ones wait in the listen queue.
const MAX_CONNECTIONS: usize = 4096;
/// Pause after `accept` failed for want of file descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Arguments of `tombolo lab-echo`.
#[derive(Debug, Args)]
pub struct EchoArgs {
    /// HTTP port (may be given more than once)
    #[arg(long, value_name = "PORT")]
    pub http: Vec<u16>,
    /// TCP port: a line in, a JSON line out, for as long as the client likes
    #[arg(long, value_name = "PORT")]
    pub tcp: Vec<u16>,
    /// UDP port: a datagram in, a JSON datagram out
    #[arg(long, value_name = "PORT")]
    pub udp: Vec<u16>,
    /// Address to listen on instead of every IPv4 and IPv6 address (may be given more than once)
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<IpAddr>,
    /// Stop when standard input is closed
    #[arg(long)]
    pub until_eof: bool,
    /// Pod name told to clients; the host name if not given
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod: String,
    /// Namespace told to clients
    #[arg(long, env = "POD_NAMESPACE", default_value = "")]
    pub namespace: String,
    /// Node told to clients
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// Cluster told to clients
    #[arg(long, env = "CLUSTER_NAME", default_value = "")]
    pub cluster: String,
}

impl EchoArgs {
    fn whoami(&self) -> Whoami {
        let pod = if self.pod.is_empty() { host_name() } else { self.pod.clone() };
        Whoami {
            pod,
            namespace: self.namespace.clone(),
            node: self.node.clone(),
            cluster: self.cluster.clone(),
        }
    }

    fn addresses(&self) -> Vec<IpAddr> {
        if self.listen.is_empty() {
            vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
        } else {
            self.listen.clone()
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When a port cannot be opened; a failing connection costs only that connection.
pub async fn run_echo(args: EchoArgs) -> Result<(), WorkloadError> {
    let mut servers = start(&args)?;
    tokio::select! {
        () = stop_or_eof(args.until_eof) => Ok(()),
        ended = servers.join_next() => Err(WorkloadError::Task {
            what: "echo server",
            why: ended.map_or_else(|| "none was started".to_owned(), |end| format!("{end:?}")),
        }),
    }
}

/// Opens every listener and starts one task for each; the tasks never end by themselves.
pub(super) fn start(args: &EchoArgs) -> Result<JoinSet<Infallible>, WorkloadError> {
    if args.http.is_empty() && args.tcp.is_empty() && args.udp.is_empty() {
        return Err(WorkloadError::NothingToServe);
    }
    let whoami = Arc::new(args.whoami());
    let mut servers = JoinSet::new();
    for address in args.addresses() {
        for port in &args.http {
            let listener = listen(SocketAddr::new(address, *port), "http")?;
            servers.spawn(serve_http(listener, Arc::clone(&whoami)));
        }
        for port in &args.tcp {
            let listener = listen(SocketAddr::new(address, *port), "tcp")?;
            servers.spawn(serve_tcp(listener, Arc::clone(&whoami)));
        }
        for port in &args.udp {
            let socket = bind_udp(SocketAddr::new(address, *port))?;
            servers.spawn(serve_udp(socket, Arc::clone(&whoami)));
        }
    }
    Ok(servers)
}

/// Resolves when the process is asked to stop.
pub(crate) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    // Without a handler the default action ends the process, which is a stop as well.
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}

/// Resolves at a stop signal or, if `until_eof`, when standard input is closed: whoever holds its other end stops the
/// program without needing to know its process.
pub(super) async fn stop_or_eof(until_eof: bool) {
    let closed = async {
        if !until_eof {
            return std::future::pending().await;
        }
        // A thread of its own: the runtime's would keep the program from ending while the input stays open.
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let copied = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            tracing::debug!(?copied, "standard input is closed");
            if ended.send(()).is_err() {
                tracing::debug!("a signal came first");
            }
        });
        drop(end.await);
    };
    tokio::select! { () = stop_signal() => {}, () = closed => {} }
}

fn listen(address: SocketAddr, protocol: &'static str) -> Result<TcpListener, WorkloadError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // Each family has its own socket, so that peers never appear as ::ffff:a.b.c.d.
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|source| WorkloadError::Listen { protocol, address: address.to_string(), source })
}

fn bind_udp(address: SocketAddr) -> Result<UdpSocket, WorkloadError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    open().map_err(|source| WorkloadError::Listen { protocol: "udp", address: address.to_string(), source })
}

/// Both ends of an HTTP connection; `None` when the client is gone before they could be asked for.
#[derive(Debug, Clone, Copy)]
struct Ends {
    peer: SocketAddr,
    local: Option<SocketAddr>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Ends {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self { peer: *stream.remote_addr(), local: stream.io().local_addr().ok() }
    }
}

async fn serve_http(listener: TcpListener, whoami: Arc<Whoami>) -> Infallible {
    let router = Router::new()
        .fallback(answer_http)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(whoami)
        .into_make_service_with_connect_info::<Ends>();
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the HTTP echo server stopped");
    }
    std::future::pending().await
}

async fn answer_http(
    State(whoami): State<Arc<Whoami>>,
    ConnectInfo(ends): ConnectInfo<Ends>,
    request: Request,
) -> Json<Answer> {
    let path = request.uri().path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await.unwrap_or_default();
    let local = ends.local.unwrap_or(SocketAddr::new(unspecified_like(ends.peer), 0));
    Json(Answer::new(&whoami, "http", ends.peer, local, body.len(), path.as_bytes()))
}

fn unspecified_like(peer: SocketAddr) -> IpAddr {
    match peer {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

async fn serve_tcp(listener: TcpListener, whoami: Arc<Whoami>) -> Infallible {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed, so a permit always comes.
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { continue };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let whoami = Arc::clone(&whoami);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, peer, &whoami).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, whoami: &Whoami) -> Result<(), WorkloadError> {
    let failed =
        |error: &dyn std::fmt::Display| WorkloadError::Task { what: "TCP echo", why: error.to_string() };
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    let local = stream.local_addr().map_err(|error| failed(&error))?;
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE_BYTES));
    while let Some(line) = lines.next().await {
        let line = line.map_err(|error| failed(&error))?;
        let answer = Answer::new(whoami, "tcp", peer, local, line.len(), line.as_bytes());
        lines.send(serde_json::to_string(&answer)?).await.map_err(|error| failed(&error))?;
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, whoami: Arc<Whoami>) -> Infallible {
    let mut buffer = vec![0_u8; 65_536];
    loop {
        // Errors here are ICMP errors to earlier answers: they cost that answer only.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let request = buffer.get(..length).unwrap_or_default();
        let local = reply_source(&socket, peer).await;
        let answer = Answer::new(&whoami, "udp", peer, local, length, request);
        match serde_json::to_vec(&answer) {
            Ok(text) => {
                if let Err(error) = socket.send_to(&text, peer).await {
                    tracing::debug!(%peer, %error, "cannot answer a datagram");
                }
            }
            Err(error) => tracing::error!(%error, "cannot encode an answer"),
        }
    }
}

/// The address the kernel takes as source towards `peer`: what the client will see as answering address.
async fn reply_source(socket: &UdpSocket, peer: SocketAddr) -> SocketAddr {
    let bound = socket.local_addr().unwrap_or(SocketAddr::new(unspecified_like(peer), 0));
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let asked = async {
        let probe = UdpSocket::bind(SocketAddr::new(unspecified_like(peer), 0)).await?;
        probe.connect(peer).await?;
        probe.local_addr()
    };
    asked.await.map_or(bound, |source| SocketAddr::new(source.ip(), bound.port()))
}
