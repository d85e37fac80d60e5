//! Many changes in few messages to the kernel: routes and next-hop objects, written in the order given.
//!
//! ```text
//!   write ─┐                                    ┌─ no answer: done
//!   write ─┼─► one datagram, CHUNK writes ─► kernel ─ an error, by sequence number: that write's alone
//!   write ─┘    the last asks for an answer     └─ the answer to the last: all before it are done
//! ```
//! The kernel carries out the messages of a datagram one after the other and answers a refusal whether or not an answer was asked for
//! (netlink(7): NLM_F_ACK asks for an answer on success as well). So only the last one asks.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use crate::connection::Refusal;
use crate::nexthop::{self, NextHopObject};
use crate::route::{self, Route};
use crate::{Error, Netlink};

/// Writes in a datagram. Should the kernel refuse all of them, its answers still fit into a receive buffer of the default size (a refusal
/// takes up to 1,280 octets of 212,992).
const CHUNK: usize = 128;
/// Octets of an answer that are read: a header, an error number, the header of the request.
const ANSWER_MAX: usize = 4096;
/// Where the flags stand in `struct nlmsghdr`.
const FLAGS_AT: usize = 6;

/// One change of several that are carried to the kernel together; see [`Netlink::write_all`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// As [`Netlink::replace_route`].
    ReplaceRoute(Route),
    /// As [`Netlink::delete_route`].
    DeleteRoute(Route),
    /// As [`crate::NextHopObjects::replace`].
    ReplaceNextHop(NextHopObject),
    /// As [`crate::NextHopObjects::delete`].
    DeleteNextHop(u32),
}

impl Write {
    /// Appends the message; the kernel is asked to answer only if it refuses.
    fn encode(&self, sequence: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        let replace = NLM_F_CREATE | NLM_F_REPLACE;
        match self {
            Self::ReplaceRoute(route) => {
                append(RouteNetlinkMessage::NewRoute(route::request(route)?), sequence, replace, out);
            }
            Self::DeleteRoute(route) => {
                append(RouteNetlinkMessage::DelRoute(route::deletion(route)), sequence, 0, out);
            }
            Self::ReplaceNextHop(object) => append(nexthop::request(object), sequence, replace, out),
            Self::DeleteNextHop(id) => append(nexthop::deletion(*id), sequence, 0, out),
        }
        Ok(())
    }

    /// What the kernel's refusal means: false if what was to be deleted was not there.
    fn refused(&self, errno: i32) -> Result<bool, Error> {
        let refusal = Refusal::Errno(io::Error::from_raw_os_error(errno));
        let gone = matches!(refusal.errno(), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV));
        match self {
            Self::DeleteRoute(_) | Self::DeleteNextHop(_) if gone => Ok(false),
            Self::DeleteRoute(route) => Err(refusal.on("delete the route", route.to_string())),
            Self::DeleteNextHop(id) => Err(refusal.on("delete the next hop", id.to_string())),
            Self::ReplaceRoute(route) => Err(refusal.on("replace the route", route.to_string())),
            Self::ReplaceNextHop(object) => Err(refusal.on("replace the next hop", format!("{object:?}"))),
        }
    }
}

fn append<T>(message: T, sequence: u32, flags: u16, out: &mut Vec<u8>)
where
    T: NetlinkSerializable + Into<NetlinkPayload<T>>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = out.len();
    // Messages begin at multiples of four (NLMSG_ALIGN).
    out.resize(start + message.buffer_len().next_multiple_of(4), 0);
    if let Some(place) = out.get_mut(start..start + message.buffer_len()) {
        message.serialize(place);
    }
}

/// The socket of the batches: opened at the first.
pub(crate) struct Batches {
    socket: TokioSocket,
    sequence: u32,
    message: Vec<u8>,
    answer: Vec<u8>,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// Opens the socket in the namespace of the calling thread; needs an entered runtime.
fn open() -> io::Result<Batches> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    // The request need not come back with its refusal.
    socket.socket_mut().set_cap_ack(true)?;
    Ok(Batches { socket, sequence: 0, message: Vec::new(), answer: Vec::with_capacity(ANSWER_MAX) })
}

impl Batches {
    /// Carries one datagram of writes; an outcome for each.
    async fn carry(&mut self, writes: &[Write]) -> Vec<Result<bool, Error>> {
        self.message.clear();
        let mut asked: Vec<u32> = Vec::with_capacity(writes.len());
        let mut last = None;
        let mut outcomes: Vec<Result<bool, Error>> = Vec::with_capacity(writes.len());
        for write in writes {
            self.sequence = self.sequence.wrapping_add(1);
            let start = self.message.len();
            let encoded = write.encode(self.sequence, &mut self.message);
            if encoded.is_ok() {
                last = Some((start, self.sequence));
            }
            asked.push(self.sequence);
            outcomes.push(encoded.map(|()| true));
        }
        let Some((start, last)) = last else { return outcomes };
        ask_for_answer(&mut self.message, start);
        let mut refusals = BTreeMap::new();
        let done = self.exchange(last, &mut refusals).await;
        // Of those without a refusal nobody knows, unless the last answer came.
        let unknown = done.err().map(|error| error.raw_os_error().unwrap_or(libc::EIO));
        for ((write, sequence), outcome) in writes.iter().zip(&asked).zip(&mut outcomes) {
            if outcome.is_ok()
                && let Some(errno) = refusals.get(sequence).copied().or(unknown)
            {
                *outcome = write.refused(errno);
            }
        }
        outcomes
    }

    /// Sends the datagram and collects refusals by sequence number, up to the answer to the last write. Answers of an earlier datagram, whose
    /// sender went away, are passed over.
    async fn exchange(&mut self, last: u32, refusals: &mut BTreeMap<u32, i32>) -> io::Result<()> {
        self.socket.send_to(&self.message, &SocketAddr::new(0, 0)).await?;
        loop {
            self.answer.clear();
            self.socket.recv(&mut self.answer).await?;
            let Some((sequence, errno)) = read_answer(&self.answer) else { continue };
            if errno != 0 {
                refusals.insert(sequence, errno);
            }
            if sequence == last {
                return Ok(());
            }
        }
    }
}

/// Sets NLM_F_ACK in the flags of the message that starts there.
fn ask_for_answer(message: &mut [u8], start: usize) {
    if let Some(place) = message.get_mut(start + FLAGS_AT..start + FLAGS_AT + 2)
        && let Ok(flags) = <[u8; 2]>::try_from(&*place)
    {
        place.copy_from_slice(&(u16::from_ne_bytes(flags) | NLM_F_ACK).to_ne_bytes());
    }
}

/// Sequence number and errno (0: done) of an answer; none for any other message.
fn read_answer(datagram: &[u8]) -> Option<(u32, i32)> {
    let answer = NetlinkBuffer::new_checked(datagram).ok()?;
    let code = answer.payload().first_chunk().filter(|_| answer.message_type() == NLMSG_ERROR)?;
    Some((answer.sequence_number(), i32::from_ne_bytes(*code).saturating_neg()))
}

impl Netlink {
    /// Carries changes to the kernel, in their order, many in a message. Each has its own outcome, at its place: true, or false if what was to
    /// be deleted was not there. One that is refused does not keep those behind it from being tried.
    ///
    /// # Errors
    /// Of each write those of its verb; [`Error::Kernel`] with ENOBUFS for one whose answer the kernel had no room for: it may have been
    /// carried out, and all writes may be repeated.
    pub async fn write_all(&self, writes: &[Write]) -> Vec<Result<bool, Error>> {
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut batches = self.batches.lock().await;
        for chunk in writes.chunks(CHUNK) {
            if batches.is_none() {
                *batches = self
                    .open_here("open", "a netlink socket for routes", open)
                    .inspect_err(|error| tracing::warn!(%error, "nothing can be written"))
                    .ok();
            }
            match batches.as_mut() {
                Some(open) => outcomes.extend(open.carry(chunk).await),
                None => outcomes.extend(chunk.iter().map(|write| write.refused(libc::ENOTCONN))),
            }
        }
        outcomes
    }

    /// As [`Self::write_all`] for one.
    pub(crate) async fn write(&self, write: Write) -> Result<bool, Error> {
        let outcome = self.write_all(std::slice::from_ref(&write)).await.pop();
        outcome.unwrap_or_else(|| write.refused(libc::EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_damage_is_none() {
        let mut datagram = Vec::new();
        append(nexthop::deletion(7), 9, 0, &mut datagram);
        assert_eq!(datagram.len() % 4, 0);
        assert_eq!(read_answer(&datagram), None, "not an answer");
        let mut refusal = vec![36, 0, 0, 0, 2, 0, 0, 0];
        refusal.extend(9u32.to_ne_bytes());
        refusal.extend([0; 4]);
        refusal.extend((-libc::ENETUNREACH).to_ne_bytes());
        refusal.extend(datagram.get(..16).unwrap());
        assert_eq!(read_answer(&refusal), Some((9, libc::ENETUNREACH)));
        for end in 0..refusal.len() {
            assert_eq!(read_answer(&refusal[..end]), None, "cut at {end}");
        }
        ask_for_answer(&mut datagram, 0);
        assert_eq!(NetlinkBuffer::new(&datagram).flags(), NLM_F_REQUEST | NLM_F_ACK);
    }
}
