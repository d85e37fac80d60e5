//! The sockets of BFD: four to receive, bound before any session is there, and one to send for each session.
//!
//! Received packets must show how they came: the time-to-live (RFC 5881 section 5), the address they were sent to and the interface.
//! Sent ones leave from a port of their own in 49152 to 65535 (RFC 5881 section 4) with a time-to-live of 255.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::engine::{Arrival, Engine};
use super::packet::Frame;
use super::session::SessionKey;

/// Control packets over one hop (RFC 5881 section 4).
pub const SINGLE_HOP_PORT: u16 = 3784;
/// Echo packets (RFC 5881 section 4).
pub const ECHO_PORT: u16 = 3785;
/// Control packets over several hops (RFC 5883 section 5).
pub const MULTIHOP_PORT: u16 = 4784;
/// Source ports (RFC 5881 section 4).
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// Longest datagram looked at; control packets have at most 255 bytes.
const DATAGRAM_MAX: usize = 512;
/// Datagrams taken from a socket before timers are looked at again: a flood must not stop the packets we send.
const BATCH_MAX: usize = 1024;
/// Room for what arrives while the thread is not scheduled.
const RECEIVE_BUFFER: usize = 1024 * 1024;
/// Class selector 6, network control: as routers send BFD.
const TRAFFIC_CLASS: u32 = 0xc0;
/// Wait before a socket that could not be opened is tried again: its interface or address may come back.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Control { multihop: bool },
    Echo,
}

/// A bound receiving socket.
#[derive(Debug)]
struct Receiver {
    socket: Socket,
    role: Role,
}

#[derive(Debug)]
enum Sender {
    Open { socket: Socket, target: socket2::SockAddr },
    Failed { retry_at: Instant, reason: String },
}

/// All sockets of the unit.
#[derive(Debug)]
pub(super) struct Sockets {
    receivers: Vec<Receiver>,
    senders: BTreeMap<u32, Sender>,
    control: Vec<u8>,
    /// Families that could not be bound, and why.
    pub(super) problems: Vec<String>,
    /// Frames the kernel did not take.
    pub(super) unsent: u64,
    /// Echo packets returned.
    pub(super) echoed: u64,
}

impl Sockets {
    /// Binds all receiving sockets.
    ///
    /// # Errors
    /// Neither family can be bound: another BFD daemon has the ports.
    pub(super) fn bind() -> Result<Self, String> {
        let mut receivers = Vec::new();
        let mut problems = Vec::new();
        for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            for (port, role) in [
                (SINGLE_HOP_PORT, Role::Control { multihop: false }),
                (MULTIHOP_PORT, Role::Control { multihop: true }),
                (ECHO_PORT, Role::Echo),
            ] {
                match receiver(SocketAddr::new(address, port)) {
                    Ok(socket) => receivers.push(Receiver { socket, role }),
                    Err(error) => problems.push(format!("{address} port {port}: {error}")),
                }
            }
        }
        if !receivers.iter().any(|receiver| receiver.role == Role::Control { multihop: false }) {
            return Err(format!(
                "cannot listen for BFD: {}; is another BFD daemon (bfdd, bird) running here?",
                problems.join("; ")
            ));
        }
        let control = nix::cmsg_space!(nix::libc::in6_pktinfo, nix::libc::in_pktinfo, nix::libc::c_int);
        Ok(Self { receivers, senders: BTreeMap::new(), control, problems, unsent: 0, echoed: 0 })
    }

    /// What to poll for input.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.receivers.iter().map(|receiver| receiver.socket.as_fd())
    }

    /// Hands everything that has arrived to the engine: before its timers run, so that a late thread takes no session down.
    pub(super) fn drain(&mut self, engine: &mut Engine, ready: &[bool]) {
        let Self { receivers, control, echoed, .. } = self;
        for (receiver, _) in receivers.iter().zip(ready).filter(|(_, ready)| **ready) {
            for _ in 0..BATCH_MAX {
                let mut buffer = [0; DATAGRAM_MAX];
                match receive(&receiver.socket, &mut buffer, control) {
                    Ok(Some(datagram)) => {
                        let bytes = buffer.get(..datagram.len).unwrap_or_default();
                        match receiver.role {
                            Role::Control { multihop } => {
                                engine.receive(Instant::now(), &datagram.arrival(multihop, bytes));
                            }
                            Role::Echo => *echoed += u64::from(echo(receiver, engine, &datagram, bytes)),
                        }
                    }
                    // A datagram without the ancillary data asked for proves nothing.
                    Ok(None) | Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
    }

    /// Sends a frame of a session, opening its socket first if need be.
    pub(super) fn send(&mut self, now: Instant, engine: &mut Engine, discriminator: u32, frame: &Frame) {
        let wait = match self.senders.get(&discriminator) {
            Some(Sender::Open { .. }) => false,
            Some(Sender::Failed { retry_at, .. }) if *retry_at > now => true,
            _ => {
                self.open(now, engine, discriminator);
                false
            }
        };
        let sent = match self.senders.get(&discriminator) {
            Some(Sender::Open { socket, target }) if !wait => socket.send_to(frame.as_bytes(), target),
            _ => {
                self.unsent += 1;
                return;
            }
        };
        if let Err(error) = sent {
            self.unsent += 1;
            // A full queue or an unreachable next hop passes; what else it may be, a new socket answers.
            if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) {
                let failed = Sender::Failed { retry_at: now + REOPEN_AFTER, reason: error.to_string() };
                self.senders.insert(discriminator, failed);
            }
        }
    }

    fn open(&mut self, now: Instant, engine: &mut Engine, discriminator: u32) {
        let Some(key) = engine.key(discriminator).cloned() else { return };
        let index = key.interface.as_deref().and_then(|name| if_nametoindex(name).ok());
        engine.set_interface(discriminator, index);
        let sender = match sender(&key, index, discriminator) {
            Ok(socket) => Sender::Open { socket, target: target(&key, index).into() },
            Err(error) => {
                let reason = error.to_string();
                let told = match self.senders.get(&discriminator) {
                    Some(Sender::Failed { reason: before, .. }) => *before == reason,
                    _ => false,
                };
                if !told {
                    tracing::warn!(peer = %key.peer, %error, "Cannot send BFD packets; trying again.");
                }
                Sender::Failed { retry_at: now + REOPEN_AFTER, reason }
            }
        };
        self.senders.insert(discriminator, sender);
    }

    /// The session is gone.
    pub(super) fn close(&mut self, discriminator: u32) {
        self.senders.remove(&discriminator);
    }
}

fn target(key: &SessionKey, interface: Option<u32>) -> SocketAddr {
    let port = if key.multihop { MULTIHOP_PORT } else { SINGLE_HOP_PORT };
    match key.peer {
        IpAddr::V6(peer) if peer.is_unicast_link_local() => {
            SocketAddrV6::new(peer, port, 0, interface.unwrap_or_default()).into()
        }
        peer => SocketAddr::new(peer, port),
    }
}

fn receiver(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // Capped by net.core.rmem_max; less than asked for still holds hundreds of packets.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        socket.set_unicast_hops_v6(254)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        socket.set_ttl_v4(254)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn sender(key: &SessionKey, interface: Option<u32>, discriminator: u32) -> io::Result<Socket> {
    let domain = if key.peer.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if let Some(name) = &key.interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    if key.peer.is_ipv4() {
        socket.set_ttl_v4(255)?;
        socket.set_tos_v4(TRAFFIC_CLASS)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(255)?;
        socket.set_tclass_v6(TRAFFIC_CLASS)?;
    }
    let local = key.local.unwrap_or(match key.peer {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    });
    // Sessions begin at different ports, so that one try is usually enough.
    let first = SOURCE_PORTS.start() + u16::try_from(discriminator % 16_384).unwrap_or_default();
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for port in (first..=*SOURCE_PORTS.end()).chain(*SOURCE_PORTS.start()..first) {
        let address = match local {
            IpAddr::V6(local) if local.is_unicast_link_local() => {
                SocketAddrV6::new(local, port, 0, interface.unwrap_or_default()).into()
            }
            local => SocketAddr::new(local, port),
        };
        match socket.bind(&address.into()) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// A datagram and how it came.
struct Datagram {
    remote: SocketAddr,
    local: IpAddr,
    interface: u32,
    ttl: u8,
    len: usize,
}

impl Datagram {
    const fn arrival<'a>(&self, multihop: bool, bytes: &'a [u8]) -> Arrival<'a> {
        Arrival {
            remote: self.remote.ip(),
            local: self.local,
            interface: self.interface,
            ttl: self.ttl,
            multihop,
            bytes,
        }
    }
}

/// Takes one datagram; `None` if the kernel did not tell how it came.
fn receive(socket: &Socket, buffer: &mut [u8], control: &mut [u8]) -> Result<Option<Datagram>, Errno> {
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(control), flags)?;
    let remote = message.address.as_ref().and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    });
    let (mut ttl, mut arrived) = (None, None);
    let Ok(controls) = message.cmsgs() else { return Ok(None) };
    for control in controls {
        match control {
            ControlMessageOwned::Ipv4Ttl(hops) | ControlMessageOwned::Ipv6HopLimit(hops) => {
                ttl = u8::try_from(hops).ok();
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let local = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                arrived = Some((IpAddr::from(local), u32::try_from(info.ipi_ifindex).unwrap_or_default()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                arrived = Some((Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), info.ipi6_ifindex));
            }
            _ => {}
        }
    }
    let len = message.bytes;
    Ok(match (remote, ttl, arrived) {
        (Some(remote), Some(ttl), Some((local, interface))) => {
            Some(Datagram { remote, local, interface, ttl, len })
        }
        _ => None,
    })
}

/// Returns an echo packet to a neighbour that was offered it, one hop older so that it can go round but once. Neighbours that address
/// their echo packets to themselves (RFC 5881 section 4) are served by the kernel, which forwards them; FRR addresses them to us.
fn echo(receiver: &Receiver, engine: &Engine, datagram: &Datagram, bytes: &[u8]) -> bool {
    let welcome = datagram.ttl == 255 && engine.returns_echo(datagram.remote.ip());
    welcome && receiver.socket.send_to(bytes, &datagram.remote.into()).is_ok()
}
