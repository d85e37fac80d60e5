//! `NETLINK_SOCK_DIAG`: which sockets of a network namespace are connected to an address, and ending them. What comes back
//! is the kernel's, and read with bounds all the same.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

/// A connected socket: where the kernel finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Socket {
    /// As the programs know it.
    pub(crate) cookie: u64,
    family: u8,
    /// `struct inet_diag_sockid`, whole.
    id: [u8; ID],
}

impl Socket {
    /// The other end: address in the maps' shape, port.
    pub(crate) fn peer(&self) -> Option<([u8; 16], u16)> {
        let port = u16::from_be_bytes(self.id.get(2..4)?.try_into().ok()?);
        let raw: [u8; 16] = self.id.get(20..36)?.try_into().ok()?;
        if i32::from(self.family) == libc::AF_INET6 {
            return Some((raw, port));
        }
        let v4 = IpAddr::from(<[u8; 4]>::try_from(raw.get(..4)?).ok()?);
        let IpAddr::V4(v4) = v4 else { return None };
        Some((v4.to_ipv6_mapped().octets(), port))
    }
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// Where it begins in `struct inet_diag_req_v2`, after the header: family, protocol, extensions, padding, states.
const ID_AT: usize = 8;
/// And in `struct inet_diag_msg`: family, state, timer, retransmissions.
const FOUND_ID_AT: usize = 4;
/// Established, and for TCP what is on the way there or waits for its end: whatever still sends to its peer.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8;

/// A conversation with the kernel about the network namespace in which it was opened.
pub(crate) struct SockDiag {
    fd: OwnedFd,
    sequence: u32,
}

impl SockDiag {
    /// Opens it for the namespace that the thread is in.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = SockProtocol::NetlinkSockDiag;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // The kernel answers at once, or never.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: libc::c_int,
        family: u8,
        protocol: u8,
        id: &[u8; ID],
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).map_err(io::Error::other)?;
        let length = u32::try_from(HEADER + ID_AT + ID).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + ID_AT + ID);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend([family, protocol, 0, 0]);
        message.extend(STATES.to_ne_bytes());
        message.extend(id);
        sendto(self.fd.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Hands every connected socket of a protocol, in both families, to `each`.
    pub(crate) fn connected(&mut self, protocol: u8, mut each: impl FnMut(Socket)) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).map_err(io::Error::other)?;
            self.ask(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, protocol, &[0; ID])?;
            self.answers(|body| {
                each(found(body)?);
                Some(())
            })?;
        }
        Ok(())
    }

    /// Ends a socket: whoever uses it is told `ECONNABORTED`, and a TCP peer by a reset.
    pub(crate) fn destroy(&mut self, protocol: u8, socket: &Socket) -> io::Result<()> {
        self.ask(SOCK_DESTROY, libc::NLM_F_ACK, socket.family, protocol, &socket.id)?;
        self.answers(|_| Some(()))
    }

    /// Reads what comes back for the last question, until the kernel says that it is all.
    fn answers(&mut self, mut each: impl FnMut(&[u8]) -> Option<()>) -> io::Result<()> {
        let mut buffer = vec![0_u8; 1 << 16];
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, sequence, body, after)) = next(rest) {
                rest = after;
                if sequence != self.sequence {
                    continue;
                }
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return acknowledged(body),
                    _ => drop(each(body)),
                }
            }
        }
    }
}

/// The first message: kind, sequence, body, and what comes after it.
fn next(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let length = usize::try_from(word(0)?).ok()?;
    let body = bytes.get(HEADER..length)?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let after = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, word(8)?, body, after))
}

/// An error of 0 is the acknowledgement.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::other("a netlink error that is cut short")),
    }
}

fn found(body: &[u8]) -> Option<Socket> {
    let id: [u8; ID] = body.get(FOUND_ID_AT..FOUND_ID_AT + ID)?.try_into().ok()?;
    let half = |at: usize| Some(u32::from_ne_bytes(id.get(at..at + 4)?.try_into().ok()?));
    let cookie = u64::from(half(40)?) | u64::from(half(44)?) << 32;
    Some(Socket { cookie, family: *body.first()?, id })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_answers_are_no_sockets() {
        assert!(next(&[]).is_none() && next(&[0; 16]).is_none());
        let mut message = vec![0; 20];
        message[0] = 20;
        message[4] = 2;
        let (kind, sequence, body, after) = next(&message).unwrap();
        assert_eq!((kind, sequence, body.len(), after.len()), (2, 0, 4, 0));
        message[0] = 21;
        assert!(next(&message).is_none(), "longer than what was received");
        assert!(found(&[2; FOUND_ID_AT + ID - 1]).is_none());
        assert!(acknowledged(&[1]).is_err() && acknowledged(&[0; 4]).is_ok());
        let refused = acknowledged(&(-libc::EPERM).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn this_tests_own_sockets_are_found_with_their_peers() {
        let listener = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (port, socket) =
            (listener.local_addr().unwrap().port(), std::net::UdpSocket::bind("[::]:0").unwrap());
        socket.connect(("::ffff:127.0.0.1", port)).unwrap();
        let mut peers = Vec::new();
        SockDiag::open().unwrap().connected(17, |socket| peers.extend(socket.peer())).unwrap();
        let mapped = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        assert!(peers.contains(&(mapped, port)), "{peers:?}");
    }
}
