//! The ICMPv6 socket of an interface, and the task that follows it.

use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::advert::{self, ADVERTISEMENT, HOP_LIMIT, SOLICITATION};
use super::discovery::{Discovery, Message};
use crate::transport::sockopt::pass_only_icmp6;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// Longest message looked at; longer ones are dropped.
const MESSAGE_MAX: usize = 1500;
/// Wait before an interface that is not there, or down, is tried again.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Messages taken before timers are looked at again.
const BATCH_MAX: usize = 64;

/// A router that was heard on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) interface: String,
    pub(crate) address: Ipv6Addr,
}

/// Advertises on an interface and tells of the router there, until nobody listens or the task is aborted.
pub(crate) async fn follow(interface: String, seed: u64, outlet: mpsc::Sender<Neighbour>) {
    let mut told = None;
    while !outlet.is_closed() {
        let result = match open(&interface) {
            Ok((socket, index)) => serve(&socket, index, &interface, seed, &outlet).await,
            Err(error) => Err(error),
        };
        let Err(error) = result else { return };
        let reason = error.to_string();
        if told.as_ref() != Some(&reason) {
            tracing::warn!(interface, %error, "Cannot send or hear router advertisements; trying again.");
            told = Some(reason);
        }
        tokio::time::sleep(REOPEN_AFTER).await;
    }
}

/// The raw socket, in the clothes of a datagram socket: tokio waits for those without unsafe code, and nothing else is asked of it.
fn open(interface: &str) -> io::Result<(UdpSocket, u32)> {
    let index = if_nametoindex(interface)?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    pass_only_icmp6(&socket, &[SOLICITATION, ADVERTISEMENT])?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_hops_v6(u32::from(HOP_LIMIT))?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
    Ok((UdpSocket::from_std(OwnedFd::from(socket).into())?, index))
}

/// Ends well when nobody listens, and with an error when the interface is gone.
async fn serve(
    socket: &UdpSocket,
    index: u32,
    interface: &str,
    seed: u64,
    outlet: &mpsc::Sender<Neighbour>,
) -> io::Result<()> {
    let mut discovery = Discovery::new(Instant::now(), seed);
    loop {
        let deadline = tokio::time::Instant::from_std(discovery.next_deadline());
        tokio::select! {
            ready = socket.readable() => {
                ready?;
                for message in read_all(socket)? {
                    let (source, hop_limit) = (message.source, message.hop_limit);
                    let Some(address) = discovery.heard(Instant::now(), source, hop_limit, message.bytes()) else {
                        continue;
                    };
                    let neighbour = Neighbour { interface: interface.to_owned(), address };
                    if outlet.send(neighbour).await.is_err() {
                        return Ok(());
                    }
                }
            }
            () = tokio::time::sleep_until(deadline) => {
                while let Some(message) = discovery.due(Instant::now()) {
                    send(socket, index, message)?;
                }
            }
        }
    }
}

/// What has come, at most a batch.
fn read_all(socket: &UdpSocket) -> io::Result<Vec<Received>> {
    let mut messages = Vec::new();
    for _ in 0..BATCH_MAX {
        match socket.try_io(Interest::READABLE, || receive(socket)) {
            Ok(message) => messages.extend(message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(messages)
}

fn send(socket: &UdpSocket, index: u32, message: Message) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let to = |address| SocketAddrV6::new(address, 0, 0, index).into();
    let sent = match message {
        Message::Advertisement => socket.send_to(&advert::advertisement(), &to(ALL_NODES)),
        Message::Solicitation => socket.send_to(&advert::solicitation(), &to(ALL_ROUTERS)),
    };
    match sent {
        Ok(_) => Ok(()),
        // A full queue passes.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

/// A message and how it came.
struct Received {
    buffer: [u8; MESSAGE_MAX],
    len: usize,
    source: Ipv6Addr,
    hop_limit: u8,
}

impl Received {
    fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

/// Takes one message; `None` if it was cut, or the kernel did not tell how it came.
fn receive(socket: &UdpSocket) -> io::Result<Option<Received>> {
    let mut buffer = [0; MESSAGE_MAX];
    let mut control = nix::cmsg_space!(nix::libc::c_int);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
    let cut = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let hop_limit = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6HopLimit(hops) => u8::try_from(hops).ok(),
        _ => None,
    });
    let (len, source) = (message.bytes, message.address.map(|address| address.ip()));
    Ok(match (source, hop_limit) {
        (Some(source), Some(hop_limit)) if !cut => Some(Received { buffer, len, source, hop_limit }),
        _ => None,
    })
}
