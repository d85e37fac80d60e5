//! Changes of links, addresses and routes as they happen.

use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use socket2::{SockFilter, SockRef};
use tokio::sync::mpsc;

use crate::{Address, Error, Link, Netlink, Route};

/// How many changes may wait for the reader. Beyond that they wait in the socket's buffer, and when that is
/// full the kernel drops them and [`Change::Lost`] is reported.
const QUEUE: usize = 1024;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An interface appeared or changed.
    Link(Link),
    /// An interface is gone.
    LinkGone(Link),
    /// An address appeared or changed.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route appeared or was replaced.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// Changes were lost: list everything anew.
    Lost,
}

/// What to be told of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// Interfaces.
    pub links: bool,
    /// Addresses of both families.
    pub addresses: bool,
    /// Routes of both families.
    pub routes: bool,
    /// Of the routes those to everywhere. The kernel passes over the others: a full table that changes costs nothing. Without effect if `routes` is
    /// asked for.
    pub default_routes: bool,
}

/// The stream of changes; ends when the socket dies. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Changes {
    queue: mpsc::Receiver<Change>,
    reader: tokio::task::JoinHandle<()>,
}

impl Changes {
    /// The next change; none when the socket died. Safe to cancel.
    pub async fn next(&mut self) -> Option<Change> {
        self.queue.recv().await
    }
}

impl futures_util::Stream for Changes {
    type Item = Change;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Change>> {
        self.queue.poll_recv(context)
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Netlink {
    /// Subscribes to changes in the handle's namespace. Subscribe first, then list: a change in between is then seen
    /// twice rather than never.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the socket cannot be opened, [`Error::Namespace`] when the namespace is gone.
    pub fn changes(&self, watch: Watch) -> Result<Changes, Error> {
        let socket = self.open_here("subscribe to", format!("{watch:?}"), move || open(watch))?;
        let (changes, queue) = mpsc::channel(QUEUE);
        Ok(Changes { queue, reader: tokio::spawn(read(socket, changes)) })
    }
}

fn open(watch: Watch) -> std::io::Result<TokioSocket> {
    let mut wanted = Vec::new();
    if watch.links {
        wanted.push(MulticastGroup::Link);
    }
    if watch.addresses {
        wanted.extend([MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr]);
    }
    if watch.routes || watch.default_routes {
        wanted.extend([MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route]);
    }
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    if !watch.routes {
        SockRef::from(socket.socket_ref()).attach_filter(&only_default_routes())?;
    }
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    for group in wanted {
        socket.socket_mut().add_membership(group as u32)?;
    }
    Ok(socket)
}

/// A filter of datagrams by their first message, and each has one: of messages about routes it lets those pass whose prefix has no length
/// (`rtm_dst_len`, the second octet after `struct nlmsghdr`), and all others.
fn only_default_routes() -> [SockFilter; 7] {
    const TYPE_AT: u32 = 4;
    const PREFIX_LEN_AT: u32 = 17;
    // The filter reads numbers in network order.
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    let op = |code: u32, jump_if: u8, jump_else: u8, value: u32| {
        SockFilter::new(u16::try_from(code).unwrap_or_default(), jump_if, jump_else, value)
    };
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    [
        op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, TYPE_AT),
        op(is, 1, 0, kind(libc::RTM_NEWROUTE)),
        op(is, 0, 2, kind(libc::RTM_DELROUTE)),
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, PREFIX_LEN_AT),
        op(is, 0, 1, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

/// Reads datagrams until the socket or the receiver is gone.
async fn read(socket: TokioSocket, changes: mpsc::Sender<Change>) {
    loop {
        let datagram = match socket.recv_from_full().await {
            Ok((datagram, _)) => datagram,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                if changes.send(Change::Lost).await.is_err() {
                    return;
                }
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "the netlink subscription ended");
                return;
            }
        };
        for change in decode(&datagram) {
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// The changes in a datagram; a message that cannot be read is skipped.
fn decode(datagram: &[u8]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut rest = datagram;
    while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
        let length = usize::try_from(buffer.length()).unwrap_or(0);
        let Some((message, _)) = rest.split_at_checked(length).filter(|_| length > 0) else { break };
        if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
            NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
        {
            changes.extend(change(&message));
        }
        // Messages begin at multiples of four (NLMSG_ALIGN).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

fn change(message: &RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Link::from_message(link).map(Change::Link),
        RouteNetlinkMessage::DelLink(link) => Link::from_message(link).map(Change::LinkGone),
        RouteNetlinkMessage::NewAddress(address) => Address::from_message(address).map(Change::Address),
        RouteNetlinkMessage::DelAddress(address) => Address::from_message(address).map(Change::AddressGone),
        RouteNetlinkMessage::NewRoute(route) => Route::from_message(route).map(Change::Route),
        RouteNetlinkMessage::DelRoute(route) => Route::from_message(route).map(Change::RouteGone),
        _ => None,
    }
}
