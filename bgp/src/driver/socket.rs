//! Sockets: listeners and outgoing connections, bound as the peer's settings ask.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::core::Target;

/// Connections waiting to be accepted: a rack of nodes may come back at once.
const BACKLOG: i32 = 1024;

/// A listener; an IPv6 one takes IPv6 only, so that both families can share a port.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to a peer.
pub(super) async fn connect(target: &Target) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target.remote), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(interface) = &target.interface {
        // Also gives a link-local address its scope.
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    set_ttl(&socket, target.remote.ip(), target.ttl)?;
    if let Some(local) = target.local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(target.remote).await
}

/// Prepares an accepted connection like one of our own.
pub(super) fn prepare(stream: &TcpStream, remote: IpAddr, ttl: Option<u8>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_ttl(&SockRef::from(stream), remote, ttl)
}

fn set_ttl(socket: &Socket, remote: IpAddr, ttl: Option<u8>) -> io::Result<()> {
    match (ttl, remote) {
        (None, _) => Ok(()),
        (Some(ttl), IpAddr::V4(_)) => socket.set_ttl_v4(u32::from(ttl)),
        (Some(ttl), IpAddr::V6(_)) => socket.set_unicast_hops_v6(u32::from(ttl)),
    }
}
