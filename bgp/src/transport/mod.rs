//! TCP as BGP wants it: keys on every segment (RFC 2385, RFC 5925), the time-to-live as proof of nearness (RFC 5082), the source of connections.
//!
//! ```text
//!  PeerConfig ──► SocketOptions ──► apply() on each socket of the peer, before it connects or once it is accepted
//!  all peers and ranges ──► Keys (prefix to key) ──► every listener, and the sockets of sessions whose key changed
//! ```

mod settings;
pub(crate) mod sockopt;

pub use settings::{AoAlgorithm, AoKey, Secret, Transport};

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use sockopt::AoParameters;

/// Time-to-live of what GTSM protects (RFC 5082 section 3).
const GTSM_TTL: u8 = 255;

/// What authenticates the segments of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    Md5(Secret),
    Ao(AoKey),
}

/// Who is authenticated by what; the longest prefix counts.
pub(crate) type Keys = BTreeMap<IpNet, Credential>;

/// The options of one peer's sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketOptions {
    /// IP time-to-live to send with; none leaves the system's default.
    pub(crate) ttl: Option<u8>,
    /// Smallest time-to-live accepted.
    pub(crate) min_ttl: Option<u8>,
    /// Interface, or VRF, the socket is bound to.
    pub(crate) device: Option<String>,
    pub(crate) credential: Option<Credential>,
}

impl SocketOptions {
    /// `ttl`: what is sent without GTSM.
    pub(crate) fn new(transport: &Transport, ttl: Option<u8>, device: Option<String>) -> Self {
        Self {
            ttl: if transport.gtsm_hops.is_some() { Some(GTSM_TTL) } else { ttl },
            min_ttl: transport.gtsm_hops.map(|hops| GTSM_TTL - hops.saturating_sub(1)),
            device,
            credential: credential(transport),
        }
    }

    /// Whether a connection whose SYN had this time-to-live has come from near enough.
    pub(crate) fn near_enough(&self, ttl: Option<u8>) -> bool {
        self.min_ttl.is_none_or(|min| ttl.is_some_and(|ttl| ttl >= min))
    }

    fn apply(&self, socket: &Socket, remote: IpAddr) -> io::Result<()> {
        if let Some(device) = &self.device {
            // Also gives a link-local address its scope.
            socket.bind_device(Some(device.as_bytes()))?;
        }
        match (self.ttl, remote) {
            (None, _) => {}
            (Some(ttl), IpAddr::V4(_)) => socket.set_ttl_v4(u32::from(ttl))?,
            (Some(ttl), IpAddr::V6(_)) => socket.set_unicast_hops_v6(u32::from(ttl))?,
        }
        if let Some(ttl) = self.min_ttl {
            sockopt::set_min_ttl(socket, remote.is_ipv6(), ttl)?;
        }
        Ok(())
    }
}

/// The credential of a peer's or range's settings.
pub(crate) fn credential(transport: &Transport) -> Option<Credential> {
    let md5 = transport.md5.clone().map(Credential::Md5);
    md5.or_else(|| transport.ao.clone().map(Credential::Ao))
}

/// How to reach a peer.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) remote: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    /// Whose address serves if `local` is not given.
    pub(crate) source_interface: Option<String>,
    pub(crate) options: SocketOptions,
}

/// A socket that is ready to connect to a peer, and the peer's address with its scope.
pub(crate) fn outgoing(target: &Target) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(target.remote), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let remote = scoped(target.remote, target.options.device.as_deref());
    target.options.apply(&socket, remote.ip())?;
    if let Some(credential) = &target.options.credential {
        set_key(&socket, IpNet::from(remote.ip()), credential, true)?;
    }
    let local = match (&target.source_interface, target.local) {
        (Some(interface), None) => Some(address_of(interface, remote.ip())?),
        (_, local) => local,
    };
    if let Some(local) = local {
        let local = scoped(SocketAddr::new(local, 0), target.options.device.as_deref());
        socket.bind(&local.into())?;
    }
    Ok((socket, remote))
}

/// Prepares an accepted connection like one of our own. Its key came with it from the listener.
pub(crate) fn accepted(socket: &impl AsFd, remote: IpAddr, options: &SocketOptions) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    options.apply(&socket, remote)
}

/// A listener. An IPv6 one takes IPv6 only, so that both families can share a port. It answers with a time-to-live of 255, as peers
/// with GTSM ask of a SYN-ACK; after that the peer's own setting counts.
pub(crate) fn listener(address: SocketAddr, backlog: u32, device: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_unicast_hops_v6(u32::from(GTSM_TTL))?;
    } else {
        socket.set_ttl_v4(u32::from(GTSM_TTL))?;
    }
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    sockopt::keep_syn(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

/// The time-to-live, or hop limit, that the SYN of an accepted connection came with.
pub(crate) fn syn_ttl(socket: &impl AsFd) -> Option<u8> {
    ttl_of(&sockopt::kept_syn(socket).ok()?)
}

fn ttl_of(header: &[u8]) -> Option<u8> {
    match header.first()? >> 4 {
        4 => header.get(8).copied(),
        6 => header.get(7).copied(),
        _ => None,
    }
}

/// Puts a key on a socket. `connected`: it is not a listener, so TCP-AO needs a key to send with.
pub(crate) fn set_key(
    socket: &impl AsFd,
    prefix: IpNet,
    credential: &Credential,
    connected: bool,
) -> io::Result<()> {
    match credential {
        Credential::Md5(secret) => sockopt::set_md5_key(socket, prefix, secret.bytes()),
        Credential::Ao(key) => {
            let parameters = AoParameters {
                algorithm: key.algorithm.name(),
                send_id: key.send_id,
                receive_id: key.receive_id,
                current: connected,
            };
            sockopt::add_ao_key(socket, prefix, key.key.bytes(), &parameters)
        }
    }
}

/// Takes a key off a listener.
pub(crate) fn remove_key(socket: &impl AsFd, prefix: IpNet, credential: &Credential) -> io::Result<()> {
    let removed = match credential {
        Credential::Md5(_) => sockopt::set_md5_key(socket, prefix, &[]),
        Credential::Ao(key) => sockopt::remove_ao_key(socket, prefix, key.send_id, key.receive_id),
    };
    match removed {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// Whether the kernel has TCP-AO with a key's algorithm (Linux 6.7 with CONFIG_TCP_AO).
pub(crate) fn has_ao(key: &AoKey) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
    let somebody = IpNet::from(IpAddr::from([192, 0, 2, 1]));
    socket.is_ok_and(|socket| set_key(&socket, somebody, &Credential::Ao(key.clone()), true).is_ok())
}

/// The first address of an interface that a peer of this family can be reached from.
fn address_of(interface: &str, remote: IpAddr) -> io::Result<IpAddr> {
    let link_local = matches!(remote, IpAddr::V6(remote) if remote.is_unicast_link_local());
    let fits = |address: &IpAddr| match address {
        IpAddr::V4(_) => remote.is_ipv4(),
        IpAddr::V6(address) => remote.is_ipv6() && address.is_unicast_link_local() == link_local,
    };
    let found = getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .find(fits);
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("interface {interface} has no address of the peer's family to connect from"),
        )
    })
}

/// A link-local address with the index of its interface.
fn scoped(address: SocketAddr, interface: Option<&str>) -> SocketAddr {
    match (address.ip(), interface.and_then(|name| if_nametoindex(name).ok())) {
        (IpAddr::V6(ip), Some(index)) if ip.is_unicast_link_local() => {
            SocketAddrV6::new(ip, address.port(), 0, index).into()
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gtsm_allows_as_many_hops_as_it_says() {
        let options = |gtsm_hops| {
            let transport = Transport { gtsm_hops, ..Transport::default() };
            SocketOptions::new(&transport, Some(3), None)
        };
        assert_eq!((options(None).ttl, options(None).min_ttl), (Some(3), None));
        for (hops, min) in [(1, 255), (2, 254), (254, 2)] {
            assert_eq!((options(Some(hops)).ttl, options(Some(hops)).min_ttl), (Some(255), Some(min)));
        }
        assert!(options(Some(2)).near_enough(Some(254)) && !options(Some(2)).near_enough(Some(253)));
        assert!(options(None).near_enough(None) && !options(Some(2)).near_enough(None));
    }

    #[test]
    fn the_kept_syn_tells_how_far_it_came() {
        for (listen, ttl) in [("127.0.0.1:0", 77), ("[::1]:0", 78)] {
            let listener = listener(listen.parse().unwrap(), 8, None).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let options = SocketOptions { ttl: Some(ttl), ..SocketOptions::default() };
            let target =
                Target { remote: address, local: None, source_interface: Some("lo".into()), options };
            let (socket, remote) = outgoing(&target).unwrap();
            socket.set_nonblocking(false).unwrap();
            socket.connect(&remote.into()).unwrap();
            listener.set_nonblocking(false).unwrap();
            let (peer, _) = listener.accept().unwrap();
            assert_eq!(syn_ttl(&peer), Some(ttl));
            assert_eq!(syn_ttl(&peer), None, "it is given once");
        }
        assert_eq!(ttl_of(&[]), None);
        assert_eq!(ttl_of(&[0x45, 0]), None);
    }

    #[test]
    fn keys_are_put_on_addresses_and_prefixes_changed_and_removed() {
        let md5 = |key: &str| Credential::Md5(Secret::new(key.to_owned()));
        for (listen, prefixes) in [
            ("127.0.0.1:0", ["192.0.2.1/32", "198.51.100.0/24"]),
            ("[::1]:0", ["2001:db8::1/128", "fe80::/10"]),
        ] {
            let listener = listener(listen.parse().unwrap(), 8, None).unwrap();
            for prefix in prefixes.map(|prefix| prefix.parse().unwrap()) {
                set_key(&listener, prefix, &md5("one"), false).unwrap();
                set_key(&listener, prefix, &md5("two"), false).unwrap();
                remove_key(&listener, prefix, &md5("two")).unwrap();
                remove_key(&listener, prefix, &md5("two")).unwrap();
            }
        }
    }

    #[test]
    fn an_interface_without_an_address_is_named() {
        let error = address_of("no-such-link", "192.0.2.1".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no-such-link"), "{error}");
        assert_eq!(address_of("lo", "192.0.2.1".parse().unwrap()).unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
