//! Socket options that no crate offers: TCP MD5 and TCP-AO keys, minimal time-to-live, the kept SYN, the ICMPv6 filter.
//!
//! This is the only file of the crate with `unsafe` (DESIGN section 5). Each struct is what `linux/tcp.h` or `linux/icmpv6.h` says, and its
//! size is asserted; every call goes through [`set`] or [`get`].

#![allow(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use ipnet::IpNet;

const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;
const TCP_MD5SIG_EXT: libc::c_int = 32;
const TCP_AO_ADD_KEY: libc::c_int = 38;
const MD5_FLAG_PREFIX: u8 = 1;
const TCP_AO_DEL_KEY: libc::c_int = 39;
/// Two one-bit fields at the start of a word, which the C ABI puts where the byte order begins.
const AO_SET_CURRENT_AND_RNEXT: u32 = if cfg!(target_endian = "big") { 0b11 << 30 } else { 0b11 };
const ICMP6_FILTER: libc::c_int = 1;
/// Longest key of both (TCP_MD5SIG_MAXKEYLEN, TCP_AO_MAXKEYLEN).
pub(super) const KEY_MAX: usize = 80;
/// Longest IP and TCP header together: an IPv4 header with options, a TCP header with options.
const SYN_MAX: usize = 120;

/// `struct sockaddr_storage`, filled with an address and no port.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct SockaddrStorage([u8; 128]);

impl SockaddrStorage {
    fn new(address: IpAddr) -> Self {
        let mut bytes = [0u8; 128];
        let family = match address {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        let family = u16::try_from(family).unwrap_or_default().to_ne_bytes();
        // sockaddr_in: family, port, address. sockaddr_in6: family, port, flow information, address.
        let octets: (usize, Vec<u8>) = match address {
            IpAddr::V4(address) => (4, address.octets().to_vec()),
            IpAddr::V6(address) => (8, address.octets().to_vec()),
        };
        bytes.iter_mut().zip(family).for_each(|(to, from)| *to = from);
        bytes.iter_mut().skip(octets.0).zip(octets.1).for_each(|(to, from)| *to = from);
        Self(bytes)
    }
}

/// `struct tcp_md5sig`.
#[repr(C)]
struct TcpMd5Sig {
    address: SockaddrStorage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    ifindex: i32,
    key: [u8; KEY_MAX],
}

const _: () = assert!(size_of::<TcpMd5Sig>() == 216);

/// `struct tcp_ao_add` (Linux 6.7).
#[repr(C, align(8))]
struct TcpAoAdd {
    address: SockaddrStorage,
    algorithm: [u8; 64],
    ifindex: i32,
    /// Bits: set_current, set_rnext, the rest zero.
    set: u32,
    reserved: u16,
    prefix_len: u8,
    send_id: u8,
    receive_id: u8,
    mac_len: u8,
    key_flags: u8,
    key_len: u8,
    key: [u8; KEY_MAX],
}

const _: () = assert!(size_of::<TcpAoAdd>() == 288);

/// `struct tcp_ao_del`.
#[repr(C, align(8))]
struct TcpAoDel {
    address: SockaddrStorage,
    ifindex: i32,
    set: u32,
    reserved: u16,
    prefix_len: u8,
    send_id: u8,
    receive_id: u8,
    current: u8,
    rnext: u8,
    key_flags: u8,
}

const _: () = assert!(size_of::<TcpAoDel>() == 144);

/// `struct icmp6_filter`: a set bit blocks the type.
#[repr(C)]
struct Icmp6Filter([u32; 8]);

const _: () = assert!(size_of::<Icmp6Filter>() == 32);

/// What a TCP-AO key needs beside its bytes.
pub(super) struct AoParameters<'a> {
    pub(super) algorithm: &'a str,
    pub(super) send_id: u8,
    pub(super) receive_id: u8,
    /// Make it the key to send with; a listener has none.
    pub(super) current: bool,
}

fn padded<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    out.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(out)
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a key of more than 80 bytes")
}

/// Sets the MD5 key for what comes from, and goes to, a prefix (RFC 2385). An empty key removes it. Allowed in every state of the socket.
pub(super) fn set_md5_key(socket: &impl AsFd, prefix: IpNet, key: &[u8]) -> io::Result<()> {
    let value = TcpMd5Sig {
        address: SockaddrStorage::new(prefix.network()),
        flags: MD5_FLAG_PREFIX,
        prefix_len: prefix.prefix_len(),
        key_len: u16::try_from(key.len()).map_err(|_| too_long())?,
        ifindex: 0,
        key: padded(key).ok_or_else(too_long)?,
    };
    set(socket, libc::IPPROTO_TCP, TCP_MD5SIG_EXT, &value)
}

/// Adds a TCP-AO key for a prefix (RFC 5925).
pub(super) fn add_ao_key(
    socket: &impl AsFd,
    prefix: IpNet,
    key: &[u8],
    parameters: &AoParameters<'_>,
) -> io::Result<()> {
    let value = TcpAoAdd {
        address: SockaddrStorage::new(prefix.network()),
        algorithm: padded(parameters.algorithm.as_bytes()).ok_or_else(too_long)?,
        ifindex: 0,
        set: if parameters.current { AO_SET_CURRENT_AND_RNEXT } else { 0 },
        reserved: 0,
        prefix_len: prefix.prefix_len(),
        send_id: parameters.send_id,
        receive_id: parameters.receive_id,
        // 0: the length that RFC 5926 gives the algorithm.
        mac_len: 0,
        key_flags: 0,
        key_len: u8::try_from(key.len()).map_err(|_| too_long())?,
        key: padded(key).ok_or_else(too_long)?,
    };
    set(socket, libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &value)
}

/// Removes a TCP-AO key from a listener.
pub(super) fn remove_ao_key(
    socket: &impl AsFd,
    prefix: IpNet,
    send_id: u8,
    receive_id: u8,
) -> io::Result<()> {
    let value = TcpAoDel {
        address: SockaddrStorage::new(prefix.network()),
        ifindex: 0,
        set: 0,
        reserved: 0,
        prefix_len: prefix.prefix_len(),
        send_id,
        receive_id,
        current: 0,
        rnext: 0,
        key_flags: 0,
    };
    set(socket, libc::IPPROTO_TCP, TCP_AO_DEL_KEY, &value)
}

/// Drops segments that have a smaller time-to-live (RFC 5082).
pub(super) fn set_min_ttl(socket: &impl AsFd, ipv6: bool, ttl: u8) -> io::Result<()> {
    let (level, option) =
        if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT) } else { (libc::IPPROTO_IP, libc::IP_MINTTL) };
    set(socket, level, option, &libc::c_int::from(ttl))
}

/// Makes a listener keep the SYN of each connection.
pub(super) fn keep_syn(listener: &impl AsFd) -> io::Result<()> {
    set(listener, libc::IPPROTO_TCP, TCP_SAVE_SYN, &libc::c_int::from(1u8))
}

/// The IP and TCP header of the SYN that began an accepted connection; can be read once.
pub(super) fn kept_syn(socket: &impl AsFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0u8; SYN_MAX];
    let len = get(socket, libc::IPPROTO_TCP, TCP_SAVED_SYN, &mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Lets only these ICMPv6 types into a raw socket (RFC 3542 section 3.2).
pub(crate) fn pass_only_icmp6(socket: &impl AsFd, types: &[u8]) -> io::Result<()> {
    let mut filter = Icmp6Filter([u32::MAX; 8]);
    for kind in types {
        if let Some(word) = filter.0.get_mut(usize::from(kind >> 5)) {
            *word &= !(1 << (kind & 31));
        }
    }
    set(socket, libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter)
}

fn set<T>(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: `value` is a live value of `len` bytes without padding (all types used here are asserted above or are c_int); the kernel
    // only reads it. The descriptor is borrowed from an open socket.
    let done = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(buffer.len()).unwrap_or_default();
    // SAFETY: the kernel writes at most `len` bytes into the buffer, which has that many, and then the length it wrote. The
    // descriptor is borrowed from an open socket.
    let done = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(len).unwrap_or_default().min(buffer.len()))
}
