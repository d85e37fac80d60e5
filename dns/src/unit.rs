//! The unit's life: sockets, privileges, what was known, then questions until SIGTERM.

use crate::answer::Domains;
use crate::control::{self, Control};
use crate::follow::{Talking, follow};
use crate::forward::Forwarder;
use crate::server::{self, Server};
use crate::settings::Settings;
use crate::{keep, privileges};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Changes are kept at most so often.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How long the tasks may take to end.
const STOP: Duration = Duration::from_secs(2);

/// Why the unit could not start.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// A socket.
    #[error("cannot listen on {place}: {error}; is the address this node's, and is the port free?")]
    Listen {
        /// Transport and address.
        place: String,
        /// Why.
        error: io::Error,
    },
    /// Nothing to listen on.
    #[error("there is no address to listen on; give dns.listen, or bring the underlay interface up first")]
    Nowhere,
    /// Privileges.
    #[error("cannot give up privileges: {0}")]
    Privileges(rustix::io::Errno),
    /// The control socket.
    #[error(
        "cannot open the control socket {path}: {error}; is another unit running, and is the folder writable?"
    )]
    Control {
        /// The socket.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The runtime.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
}

/// Sockets that were opened with the rights to do so.
struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
    metrics: Option<std::net::TcpListener>,
    control: std::os::unix::net::UnixListener,
}

/// Runs the unit until SIGTERM or SIGINT. To be called before any thread is started.
///
/// # Errors
/// What could not be done, why, and what to try.
pub fn run(settings: &Settings) -> Result<(), UnitError> {
    let sockets = open(settings)?;
    privileges::drop_all().map_err(UnitError::Privileges)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(UnitError::Runtime)?;
    runtime.block_on(serve(settings.clone(), sockets)).map_err(UnitError::Runtime)
}

fn open(settings: &Settings) -> Result<Sockets, UnitError> {
    if settings.listen.is_empty() {
        return Err(UnitError::Nowhere);
    }
    // First, so that a second unit does not get as far as the ports.
    let control = listen_unix(&settings.control_socket)
        .map_err(|error| UnitError::Control { path: settings.control_socket.display().to_string(), error })?;
    let failed = |place: String| move |error| UnitError::Listen { place, error };
    let (mut udp, mut tcp) = (Vec::new(), Vec::new());
    for address in &settings.listen {
        udp.push(bind_udp(*address).map_err(failed(control::place(address, "UDP")))?);
        tcp.push(bind_tcp(*address).map_err(failed(control::place(address, "TCP")))?);
    }
    let metrics =
        settings.metrics.map(|address| bind_tcp(address).map_err(failed(control::place(&address, "TCP"))));
    Ok(Sockets { udp, tcp, metrics: metrics.transpose()?, control })
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// A socket that only its owner may open, in the place of one that nobody answers any more.
fn listen_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let closed = path.with_extension("new");
    match std::fs::remove_dir_all(&closed) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&closed)?;
    let fresh = closed.join("s");
    let listener = std::os::unix::net::UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    std::fs::remove_dir(&closed)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(settings: Settings, sockets: Sockets) -> io::Result<()> {
    let (cancel, stop) = (CancellationToken::new(), CancellationToken::new());
    let zones = keep::load(&settings.state_file);
    let servers = settings.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    let domains =
        Domains::new(&settings.cluster_domain, &settings.clusterset_domain, servers, settings.ttl_secs);
    let server = Arc::new(Server::new(zones, domains, Forwarder::new(settings.upstreams.clone())));
    let mut tasks = JoinSet::new();
    for socket in sockets.udp {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        tasks.spawn(server::udp(server.clone(), socket, cancel.clone()));
    }
    let room = server::connections();
    for listener in sockets.tcp {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn(server::tcp(server.clone(), listener, room.clone(), cancel.clone()));
    }
    let (talking, (changed, changes)) = (Talking::default(), watch::channel(0));
    let control = Arc::new(Control {
        server: server.clone(),
        settings: settings.clone(),
        talking: talking.clone(),
        started: Instant::now(),
        stop: stop.clone(),
    });
    let listener = tokio::net::UnixListener::from_std(sockets.control)?;
    tasks.spawn(answer(listener, control::router(control.clone()), cancel.clone()));
    if let Some(listener) = sockets.metrics {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn(answer(listener, control::metrics_router(control), cancel.clone()));
    }
    tasks.spawn(follow(server.clone(), settings.agent_socket.clone(), talking, changed, cancel.clone()));
    tasks.spawn(save(server.clone(), settings.clone(), changes, cancel.clone()));
    tracing::info!(listen = ?settings.listen, "ready");
    stopped(&mut tasks, &stop).await?;
    cancel.cancel();
    let all = async { while tasks.join_next().await.is_some() {} };
    tokio::time::timeout(STOP, all).await.ok();
    keep_now(&server, &settings).await;
    // The next unit need not wonder whether this one still answers.
    std::fs::remove_file(&settings.control_socket).ok();
    Ok(())
}

/// Waits for a signal or the order to end, or for a task that should not have ended.
async fn stopped(tasks: &mut JoinSet<()>, stop: &CancellationToken) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = stop.cancelled() => Ok(()),
        _ = tasks.join_next() => Err(io::Error::other("a task ended; this is a bug, please report the log")),
    }
}

async fn answer<L: axum::serve::Listener>(listener: L, router: axum::Router, cancel: CancellationToken)
where
    L::Addr: std::fmt::Debug,
{
    let ended = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await;
    if let Err(error) = ended {
        tracing::error!(%error, "the control socket ended");
    }
}

/// Keeps what is known, some time after it changed.
async fn save(
    server: Arc<Server>,
    settings: Settings,
    mut changes: watch::Receiver<u64>,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return cancel.cancelled().await },
        }
        keep_now(&server, &settings).await;
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(KEEP_EVERY) => {}
        }
    }
}

async fn keep_now(server: &Arc<Server>, settings: &Settings) {
    let (server, file) = (server.clone(), settings.state_file.clone());
    let kept = tokio::task::spawn_blocking(move || {
        let lines = server.zones().lines();
        keep::save(&file, &lines)
    });
    if let Ok(Err(error)) = kept.await {
        let path = settings.state_file.display();
        tracing::warn!(%path, %error, "what is known cannot be kept; a unit that starts without an agent will not have it");
    }
}
