//! `lab-probe capture`: which packets on this namespace's interfaces carry a token in plaintext.
//!
//! It reads whole frames from an `AF_PACKET` socket that is bound to no interface, so it sees every link of the
//! namespace in both directions, and looks for the prefix of the checks' tokens anywhere in the frame: in a plain
//! packet, inside VXLAN, or inside anything else that does not encrypt. Run on the routers, it stands at one end of
//! every underlay link.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::{WorkloadError, echo, print_json};

/// Receive buffer: enough for a burst of large frames while the machine is busy.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Most different sightings that are reported one by one; those beyond are counted.
const MAX_SIGHTINGS: usize = 4096;
/// Longest token reported, in bytes from the start of its prefix.
const MAX_TOKEN_BYTES: usize = 64;
/// How often the reader looks up from its socket to see whether it should stop.
const WAKE_MS: i64 = 200;
/// UDP, as an IP protocol number.
const UDP: u8 = 17;

/// Arguments of `lab-probe capture`.
#[derive(Debug, Clone, Args)]
pub struct CaptureArgs {
    /// Beginning of every token looked for; at least 8 bytes, so that it does not occur by chance
    #[arg(long)]
    pub prefix: String,
    /// Report every frame whose outermost header is UDP to this port, as `udp/PORT`
    #[arg(long, value_name = "PORT")]
    pub flag_udp: Vec<u16>,
    /// Report every frame with an outermost address in this prefix, as the prefix
    #[arg(long, value_name = "PREFIX")]
    pub flag_net: Vec<IpNet>,
    /// Stop after this time, in milliseconds; without it SIGTERM ends the capture
    #[arg(long, value_name = "MS")]
    pub duration_ms: Option<u64>,
    /// Stop when standard input is closed
    #[arg(long)]
    pub until_eof: bool,
}

/// The report of `lab-probe capture`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureReport {
    /// Frames read.
    pub frames: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Frames that the kernel dropped because the reader was too slow.
    pub missed: u64,
    /// Frames that carried a token.
    pub matches: u64,
    /// Frames with a token or flag whose sighting found no room in the lists below.
    pub unlisted: u64,
    /// Where which token was seen.
    pub sightings: Vec<Sighting>,
    /// Where which flagged kind of frame was seen; `token` names the flag.
    pub flagged: Vec<Sighting>,
}

/// One token seen in plaintext between two outer addresses on one interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sighting {
    /// The token, from its prefix on, as far as it consists of letters, digits, `-` and `_`.
    pub token: String,
    /// Interface the frame was seen on.
    pub interface: String,
    /// Outermost IP source, if the frame is IP.
    pub source: Option<IpAddr>,
    /// Outermost IP destination.
    pub destination: Option<IpAddr>,
    /// Outermost IP protocol number (6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6).
    pub protocol: Option<u8>,
    /// Outermost destination port of the first such frame, for TCP and UDP.
    pub destination_port: Option<u16>,
    /// Frames like this.
    pub frames: u64,
}

/// Captures until told to stop; returns whether a token was seen.
pub(super) async fn run(args: CaptureArgs) -> Result<bool, WorkloadError> {
    let report = capture(args).await?;
    print_json(&report)?;
    Ok(report.matches > 0)
}

/// Captures until told to stop.
pub(super) async fn capture(args: CaptureArgs) -> Result<CaptureReport, WorkloadError> {
    if args.prefix.len() < 8 {
        return Err(WorkloadError::Argument {
            argument: "--prefix",
            value: args.prefix,
            why: "it must have at least 8 bytes".to_owned(),
        });
    }
    let socket = open().map_err(|errno| WorkloadError::Socket {
        what: "packet capture",
        target: "every interface".to_owned(),
        source: errno.into(),
    })?;
    // The reader of standard error learns that nothing sent from now on can be missed.
    eprintln!("capturing");
    let stop = Arc::new(AtomicBool::new(false));
    let reader_stop = Arc::clone(&stop);
    let found = Found {
        prefix: args.prefix.clone().into_bytes(),
        flag_udp: args.flag_udp.clone(),
        flag_net: args.flag_net.clone(),
        ..Found::default()
    };
    let reader = tokio::task::spawn_blocking(move || read_frames(&socket, found, &reader_stop));
    let over = async {
        match args.duration_ms {
            Some(duration) => tokio::time::sleep(Duration::from_millis(duration)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! { () = echo::stop_or_eof(args.until_eof) => {}, () = over => {} }
    stop.store(true, Ordering::Relaxed);
    reader.await.map_err(|error| WorkloadError::Task { what: "capture", why: error.to_string() })
}

fn open() -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    // Needs CAP_NET_ADMIN in the initial namespace; the usual size serves as well when that is refused.
    if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        setsockopt(&fd, sockopt::RcvBuf, &BUFFER_BYTES)?;
    }
    // Each frame then says how many were dropped before it.
    setsockopt(&fd, sockopt::RxqOvfl, &1)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(WAKE_MS))?;
    Ok(fd)
}

fn read_frames(socket: &OwnedFd, mut found: Found, stop: &AtomicBool) -> CaptureReport {
    let mut buffer = vec![0_u8; 128 * 1024];
    while !stop.load(Ordering::Relaxed) {
        // A timeout or an interface that went down: look whether to stop, and go on.
        let _nothing = read_frame(socket, &mut buffer, MsgFlags::empty(), &mut found);
    }
    // What is already in the socket's queue was sent before the stop.
    while read_frame(socket, &mut buffer, MsgFlags::MSG_DONTWAIT, &mut found).is_ok() {}
    // Frames dropped behind the last one of the queue are told by the next frame only.
    let _silence = read_frame(socket, &mut buffer, MsgFlags::empty(), &mut found);
    found.report()
}

/// Reads one frame into `found`.
fn read_frame(socket: &OwnedFd, buffer: &mut [u8], flags: MsgFlags, found: &mut Found) -> nix::Result<()> {
    let mut control = nix::cmsg_space!(u32);
    let (length, interface, missed) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        let missed = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::RxqOvfl(missed) => Some(missed),
            _ => None,
        });
        (message.bytes, message.address.map_or(0, |address| address.ifindex()), missed)
    };
    found.missed = found.missed.max(u64::from(missed.unwrap_or(0)));
    found.frame(buffer.get(..length).unwrap_or_default(), interface);
    Ok(())
}

/// What has been seen so far.
#[derive(Default)]
struct Found {
    prefix: Vec<u8>,
    flag_udp: Vec<u16>,
    flag_net: Vec<IpNet>,
    frames: u64,
    bytes: u64,
    missed: u64,
    matches: u64,
    unlisted: u64,
    sightings: Sightings,
    flagged: Sightings,
}

/// Sightings without port and number by interface index: the first port, and how many.
type Sightings = BTreeMap<(Sighting, usize), (Option<u16>, u64)>;

impl Found {
    fn frame(&mut self, frame: &[u8], interface: usize) {
        self.frames += 1;
        self.bytes += u64::try_from(frame.len()).unwrap_or(0);
        let tokens = tokens(frame, &self.prefix);
        let flagging = !(self.flag_udp.is_empty() && self.flag_net.is_empty());
        if tokens.is_empty() && !flagging {
            return;
        }
        self.matches += u64::from(!tokens.is_empty());
        let outer = Outer::of(frame);
        let flags = self.flags(&outer);
        let mut full = false;
        for token in tokens {
            full |= !add(&mut self.sightings, token, &outer, interface);
        }
        for flag in flags {
            full |= !add(&mut self.flagged, flag, &outer, interface);
        }
        self.unlisted += u64::from(full);
    }

    /// The flags that a frame of this outer header raises.
    fn flags(&self, outer: &Outer) -> Vec<String> {
        let port = outer.destination_port.filter(|_| outer.protocol == Some(UDP));
        let ports =
            self.flag_udp.iter().filter(|flag| port == Some(**flag)).map(|flag| format!("udp/{flag}"));
        let ends = [outer.source, outer.destination];
        let inside = |net: &&IpNet| ends.iter().flatten().any(|address| net.contains(address));
        ports.chain(self.flag_net.iter().filter(inside).map(ToString::to_string)).collect()
    }

    fn report(self) -> CaptureReport {
        CaptureReport {
            frames: self.frames,
            bytes: self.bytes,
            missed: self.missed,
            matches: self.matches,
            unlisted: self.unlisted,
            sightings: named(self.sightings),
            flagged: named(self.flagged),
        }
    }
}

/// Counts a sighting; `false` when there is no room for another kind.
fn add(all: &mut Sightings, token: String, outer: &Outer, interface: usize) -> bool {
    let sighting = Sighting {
        token,
        interface: String::new(),
        source: outer.source,
        destination: outer.destination,
        protocol: outer.protocol,
        // Every fresh connection has another port: with them the kinds would be without end.
        destination_port: None,
        frames: 0,
    };
    let key = (sighting, interface);
    if all.len() >= MAX_SIGHTINGS && !all.contains_key(&key) {
        return false;
    }
    all.entry(key).or_insert((outer.destination_port, 0)).1 += 1;
    true
}

fn named(all: Sightings) -> Vec<Sighting> {
    let named = |((sighting, index), (destination_port, frames))| Sighting {
        interface: interface_name(index),
        destination_port,
        frames,
        ..sighting
    };
    all.into_iter().map(named).collect()
}

fn interface_name(index: usize) -> String {
    let name = u32::try_from(index).ok().and_then(|index| nix::net::if_::if_indextoname(index).ok());
    name.map_or_else(|| format!("#{index}"), |name| name.to_string_lossy().into_owned())
}

/// Every distinct token of the frame that begins with `prefix`.
fn tokens(frame: &[u8], prefix: &[u8]) -> Vec<String> {
    let Some(first) = prefix.first() else { return Vec::new() };
    let mut found: Vec<String> = Vec::new();
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        let candidate = rest.get(at..).unwrap_or_default();
        if candidate.starts_with(prefix) {
            let token: String = candidate
                .iter()
                .take(MAX_TOKEN_BYTES)
                .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
                .map(|byte| char::from(*byte))
                .collect();
            if !found.contains(&token) {
                found.push(token);
            }
        }
        rest = candidate.get(1..).unwrap_or_default();
    }
    found
}

/// The outermost IP header of an Ethernet frame.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outer {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    destination_port: Option<u16>,
}

impl Outer {
    fn of(frame: &[u8]) -> Self {
        Self::parse(frame).unwrap_or_default()
    }

    fn parse(frame: &[u8]) -> Option<Self> {
        let kind: [u8; 2] = frame.get(12..14)?.try_into().ok()?;
        let packet = frame.get(14..)?;
        let (source, destination, protocol, payload) = match u16::from_be_bytes(kind) {
            0x0800 => {
                let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                let header = usize::from(packet.first()? & 0x0f) * 4;
                (
                    IpAddr::from(Ipv4Addr::from(source)),
                    IpAddr::from(Ipv4Addr::from(destination)),
                    *packet.get(9)?,
                    packet.get(header..)?,
                )
            }
            0x86dd => {
                let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                (
                    IpAddr::from(Ipv6Addr::from(source)),
                    IpAddr::from(Ipv6Addr::from(destination)),
                    *packet.get(6)?,
                    packet.get(40..)?,
                )
            }
            _ => return None,
        };
        let ports = matches!(protocol, 6 | 17)
            .then(|| payload.get(2..4).and_then(|pair| <[u8; 2]>::try_from(pair).ok()))
            .flatten();
        Some(Self {
            source: Some(source),
            destination: Some(destination),
            protocol: Some(protocol),
            destination_port: ports.map(u16::from_be_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x10, 0x00, 0x21, 0x18, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn tokens_are_found_wherever_they_are() {
        let inner = udp_frame(b"xx tombolo-7f-a1 yy tombolo-7f-b2/1 tombolo-7f-a1");
        let mut frame = udp_frame(&[0x08, 0, 0, 0, 0, 1, 0, 0]);
        frame.extend(inner);
        assert_eq!(tokens(&frame, b"tombolo-7f-"), ["tombolo-7f-a1", "tombolo-7f-b2"]);
        assert!(tokens(&frame, b"tombolo-80-").is_empty());
        assert_eq!(
            Outer::of(&frame),
            Outer {
                source: Some("10.0.0.1".parse().expect("literal")),
                destination: Some("10.0.0.2".parse().expect("literal")),
                protocol: Some(17),
                destination_port: Some(8472),
            }
        );
    }

    #[test]
    fn cut_frames_do_no_harm() {
        let frame = udp_frame(b"tombolo-7f-a1");
        for cut in 0..frame.len() {
            let _outer = Outer::of(&frame[..cut]);
            assert!(tokens(&frame[..cut], b"tombolo-7f-a1").is_empty());
        }
    }

    fn looking_for(prefix: &str) -> Found {
        Found { prefix: prefix.as_bytes().to_vec(), ..Found::default() }
    }

    #[test]
    fn sightings_are_counted_by_place() {
        let mut found = looking_for("tombolo-7f-");
        for port in 0..3 {
            let mut frame = udp_frame(b"tombolo-7f-a1");
            frame[37] = port;
            found.frame(&frame, 1);
        }
        found.frame(&udp_frame(b"nothing"), 1);
        let report = found.report();
        assert_eq!((report.frames, report.matches, report.unlisted), (4, 3, 0));
        assert_eq!(report.sightings.len(), 1, "ports make no other kind");
        assert_eq!(report.sightings[0].frames, 3);
        assert_eq!(report.sightings[0].interface, "lo");
        assert_eq!(report.sightings[0].destination_port, Some(0x2100));
    }

    #[test]
    fn kinds_beyond_the_most_are_counted() {
        let mut found = looking_for("tombolo-7f-");
        for number in 0..MAX_SIGHTINGS + 5 {
            found.frame(&udp_frame(format!("tombolo-7f-{number}").as_bytes()), 1);
        }
        let report = found.report();
        assert_eq!((report.sightings.len(), report.unlisted), (MAX_SIGHTINGS, 5));
    }

    #[test]
    fn flags_are_raised_by_the_outer_header() {
        let mut found = Found {
            flag_udp: vec![8472],
            flag_net: vec!["10.0.0.0/30".parse().expect("literal"), "10.9.0.0/16".parse().expect("literal")],
            ..looking_for("tombolo-7f-")
        };
        found.frame(&udp_frame(b"nothing"), 1);
        let flags: Vec<String> = found.report().flagged.into_iter().map(|seen| seen.token).collect();
        assert_eq!(flags, ["10.0.0.0/30", "udp/8472"]);
    }
}
