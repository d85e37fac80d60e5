//! `lab-probe ping`: ICMP and ICMPv6 echo over raw sockets, so that the errors of routers are seen as they came.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use clap::Args;
use socket2::{Domain, Protocol, Socket, Type};

use super::attempt::{DontFragment, known_mtu, outcome_of, set_dont_fragment};
use super::probe::payload;
use super::report::micros;
use super::{Attempt, FamilyArgs, Outcome, ProbeReport, WorkloadError, resolve};

/// Length of the ICMP and ICMPv6 echo header in bytes.
const ECHO_HEADER_BYTES: usize = 8;
/// Largest echo payload in an IPv4 packet, in bytes.
const MAX_SIZE_BYTES: usize = 65_507;
/// Most echoes of one call.
const MAX_COUNT: u32 = 4096;

/// Arguments of `lab-probe ping`.
#[derive(Debug, Clone, Args)]
pub struct PingArgs {
    /// Host name or address
    pub host: String,
    /// How many echoes, one after the other
    #[arg(long, default_value_t = 1)]
    pub count: u32,
    /// Echo payload in bytes (without the 8 of ICMP and 20 or 40 of IP); the token is padded or cut to it
    #[arg(long, value_name = "BYTES")]
    pub size: Option<usize>,
    /// Do not fragment: `do` obeys the path MTU the host has learned, `probe` ignores it
    #[arg(long, value_name = "MODE", num_args = 0..=1, default_missing_value = "do", require_equals = true)]
    pub df: Option<DontFragment>,
    /// Time to await each reply, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub timeout_ms: u64,
    /// Text at the beginning of the payload
    #[arg(long, default_value = "tombolo")]
    pub token: String,
    /// Own address to send from
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<IpAddr>,
    /// Address family
    #[command(flatten)]
    pub family: FamilyArgs,
}

/// Runs the echoes and reports each reply, ICMP error or silence.
pub(super) async fn ping(args: PingArgs) -> Result<ProbeReport, WorkloadError> {
    let wrong = |argument, value: String, why: String| WorkloadError::Argument { argument, value, why };
    if args.count == 0 || args.count > MAX_COUNT {
        return Err(wrong("--count", args.count.to_string(), format!("it must be 1 to {MAX_COUNT}")));
    }
    if let Some(size) = args.size.filter(|size| *size > MAX_SIZE_BYTES) {
        return Err(wrong("--size", size.to_string(), format!("at most {MAX_SIZE_BYTES} bytes fit")));
    }
    let target = resolve(&args.host, args.family).await?;
    let blocking = tokio::task::spawn_blocking(move || ping_all(&args, target));
    blocking.await.map_err(|error| WorkloadError::Task { what: "ping", why: error.to_string() })?
}

fn ping_all(args: &PingArgs, target: IpAddr) -> Result<ProbeReport, WorkloadError> {
    let open = |source| WorkloadError::Socket { what: "raw ICMP", target: target.to_string(), source };
    let socket = open_raw(args, target).map_err(open)?;
    let identifier = u16::try_from(std::process::id() % 65_536).unwrap_or(1);
    let mut report = ProbeReport::new(&args.host, "icmp");
    let own = args.source.or_else(|| own_address(target)).map(|own| SocketAddr::new(own, identifier));
    for number in 0..args.count {
        let sequence = u16::try_from(number % 65_536).unwrap_or(0);
        let echo = Echo { target, identifier, sequence, payload: payload(&args.token, args.size) };
        let start = Instant::now();
        let outcome = one_echo(&socket, &echo, start + Duration::from_millis(args.timeout_ms));
        report.push(Attempt {
            source: own,
            destination: SocketAddr::new(target, 0),
            bytes: u64::try_from(echo.payload.len()).unwrap_or(u64::MAX),
            duration_us: micros(start.elapsed()),
            outcome,
        });
    }
    Ok(report)
}

/// The raw socket, as `UdpSocket` because the standard library's type sends and receives with addresses safely.
fn open_raw(args: &PingArgs, target: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    set_dont_fragment(&socket, target, args.df)?;
    if let Some(source) = args.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(UdpSocket::from(socket))
}

/// The address this host sends from to `target`.
fn own_address(target: IpAddr) -> Option<IpAddr> {
    Some(towards(target)?.local_addr().ok()?.ip())
}

struct Echo {
    target: IpAddr,
    identifier: u16,
    sequence: u16,
    payload: Vec<u8>,
}

impl Echo {
    fn packet(&self) -> Vec<u8> {
        let kind = match self.target {
            IpAddr::V4(_) => 8,
            IpAddr::V6(_) => 128,
        };
        let mut packet = vec![kind, 0, 0, 0];
        packet.extend_from_slice(&self.identifier.to_be_bytes());
        packet.extend_from_slice(&self.sequence.to_be_bytes());
        packet.extend_from_slice(&self.payload);
        if self.target.is_ipv4() {
            // The kernel fills in ICMPv6's checksum (it covers the addresses), but not ICMP's.
            let sum = checksum(&packet).to_be_bytes();
            if let Some(field) = packet.get_mut(2..4) {
                field.copy_from_slice(&sum);
            }
        }
        packet
    }
}

/// Internet checksum, RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(u16::from_be_bytes([*high, 0])),
            _ => 0,
        })
        .fold(0, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn one_echo(socket: &UdpSocket, echo: &Echo, deadline: Instant) -> Outcome {
    if let Err(error) = socket.send_to(&echo.packet(), SocketAddr::new(echo.target, 0)) {
        return match outcome_of(&error) {
            Outcome::TooBig { from, .. } => Outcome::TooBig { mtu: local_mtu(echo.target), from },
            other => other,
        };
    }
    let mut buffer = vec![0_u8; 70_000];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Outcome::Timeout;
        }
        if let Err(error) = socket.set_read_timeout(Some(left)) {
            return outcome_of(&error);
        }
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let packet = buffer.get(..length).unwrap_or_default();
                let heard = match echo.target {
                    IpAddr::V4(_) => hear_v4(packet, from.ip(), echo),
                    IpAddr::V6(_) => hear_v6(packet, from.ip(), echo),
                };
                if let Some(outcome) = heard {
                    return outcome;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Timeout,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return outcome_of(&error),
        }
    }
}

/// The MTU this host's own stack holds for the target.
fn local_mtu(target: IpAddr) -> Option<u32> {
    known_mtu(&towards(target)?, target)
}

/// A UDP socket that is bound to a route, and sends nothing.
fn towards(target: IpAddr) -> Option<UdpSocket> {
    let any = match target {
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(SocketAddr::new(target, 9)).ok()?;
    Some(socket)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
    Some(u16::from_be_bytes(pair))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let quad: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_be_bytes(quad))
}

/// Whether an echo header (type checked by the caller) carries our identifier and sequence.
fn ours(header: &[u8], echo: &Echo) -> bool {
    be16(header, 4) == Some(echo.identifier) && be16(header, 6) == Some(echo.sequence)
}

/// What an IPv4 packet of a raw ICMP socket says about our echo; `None` when it is not about it (RFC 792).
fn hear_v4(packet: &[u8], from: IpAddr, echo: &Echo) -> Option<Outcome> {
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    let icmp = packet.get(header_bytes..)?;
    match *icmp.first()? {
        0 if ours(icmp, echo) => Some(reply(icmp, from, echo)),
        3 => {
            let original = icmp.get(ECHO_HEADER_BYTES..)?;
            let inner = original.get(usize::from(original.first()? & 0x0f) * 4..)?;
            let target: [u8; 4] = original.get(16..20)?.try_into().ok()?;
            if inner.first() != Some(&8) || !ours(inner, echo) || IpAddr::from(target) != echo.target {
                return None;
            }
            let code = *icmp.get(1)?;
            Some(match code {
                // Fragmentation needed, RFC 1191: the next hop's MTU in the last two bytes of the header.
                4 => Outcome::TooBig { mtu: be16(icmp, 6).map(u32::from), from: Some(from) },
                _ => Outcome::Unreachable { code: Some(code), from: Some(from) },
            })
        }
        _ => None,
    }
}

/// The same for ICMPv6 (RFC 4443), whose raw sockets deliver no IP header.
fn hear_v6(icmp: &[u8], from: IpAddr, echo: &Echo) -> Option<Outcome> {
    let kind = *icmp.first()?;
    match kind {
        129 if ours(icmp, echo) => Some(reply(icmp, from, echo)),
        1 | 2 => {
            let original = icmp.get(ECHO_HEADER_BYTES..)?;
            let target: [u8; 16] = original.get(24..40)?.try_into().ok()?;
            let inner = original.get(40..)?;
            if inner.first() != Some(&128) || !ours(inner, echo) || IpAddr::from(target) != echo.target {
                return None;
            }
            Some(if kind == 2 {
                Outcome::TooBig { mtu: be32(icmp, 4), from: Some(from) }
            } else {
                Outcome::Unreachable { code: icmp.get(1).copied(), from: Some(from) }
            })
        }
        _ => None,
    }
}

fn reply(icmp: &[u8], from: IpAddr, echo: &Echo) -> Outcome {
    let body = icmp.get(ECHO_HEADER_BYTES..).unwrap_or_default();
    if body != echo.payload {
        return Outcome::Failed {
            why: format!("the reply of {from} carries {} other bytes than the request", body.len()),
        };
    }
    Outcome::Reply { from, reply_bytes: u64::try_from(body.len()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(target: &str) -> Echo {
        let target = target.parse().expect("literal");
        Echo { target, identifier: 0x1234, sequence: 7, payload: b"abc".to_vec() }
    }

    fn ipv4_header(source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0];
        header.extend(source);
        header.extend(target);
        header
    }

    #[test]
    fn checksum_of_rfc_1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let packet = echo("10.0.0.1").packet();
        assert_eq!(checksum(&packet), 0, "a packet with its own checksum sums to zero");
    }

    #[test]
    fn a_v4_reply_and_a_too_big_are_recognised() {
        let echo = echo("10.2.1.9");
        let router = "10.1.1.1".parse().expect("literal");
        let mut packet = ipv4_header([10, 2, 1, 9], [10, 1, 1, 7]);
        let mut body = echo.packet();
        body[0] = 0;
        packet.extend(&body);
        assert_eq!(
            hear_v4(&packet, echo.target, &echo),
            Some(Outcome::Reply { from: echo.target, reply_bytes: 3 })
        );
        let mut error = ipv4_header([10, 1, 1, 1], [10, 1, 1, 7]);
        error.extend([3, 4, 0, 0, 0, 0, 0x05, 0x96]);
        error.extend(ipv4_header([10, 1, 1, 7], [10, 2, 1, 9]));
        error.extend(&echo.packet()[..8]);
        assert_eq!(
            hear_v4(&error, router, &echo),
            Some(Outcome::TooBig { mtu: Some(1430), from: Some(router) })
        );
        for cut in 0..error.len() {
            assert_ne!(
                hear_v4(&error[..cut], router, &echo),
                Some(Outcome::Timeout),
                "no cut packet may panic or invent an answer"
            );
        }
    }

    #[test]
    fn a_v6_too_big_for_another_target_is_ignored() {
        let echo = echo("fd00::9");
        let router = "fd00::1".parse().expect("literal");
        let mut error = vec![2, 0, 0, 0];
        error.extend(1410_u32.to_be_bytes());
        let mut original = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
        original.extend("fd00::7".parse::<Ipv6Addr>().expect("literal").octets());
        original.extend("fd00::9".parse::<Ipv6Addr>().expect("literal").octets());
        error.extend(&original);
        error.extend(&echo.packet()[..8]);
        let expected = Outcome::TooBig { mtu: Some(1410), from: Some(router) };
        assert_eq!(hear_v6(&error, router, &echo), Some(expected));
        let other = Echo { target: "fd00::8".parse().expect("literal"), ..self::echo("fd00::9") };
        assert_eq!(hear_v6(&error, router, &other), None);
    }
}
