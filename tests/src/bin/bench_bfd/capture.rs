//! What went over the wire, read from tcpdump's file: the kernel's time of each packet, which no program's own lateness touches.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tombolo_bgp::bfd::{Diagnostic, Packet, State};

use crate::Failure;

/// Bytes before the first record, and before each packet.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const ETHERNET: usize = 14;
const UDP: usize = 8;

/// One control packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Since the epoch.
    pub(crate) at: Duration,
    pub(crate) state: State,
    pub(crate) expired: bool,
}

/// The packets of each sender, in order.
pub(crate) type Senders = BTreeMap<Ipv4Addr, Vec<Seen>>;

pub(crate) fn read(path: &Path) -> Result<Senders, Failure> {
    let bytes = std::fs::read(path)?;
    if bytes.get(..4) != Some(&[0xd4, 0xc3, 0xb2, 0xa1]) {
        return Err(format!("{} is no little-endian pcap file with microseconds", path.display()).into());
    }
    let mut senders = Senders::new();
    let mut rest = bytes.get(FILE_HEADER..).unwrap_or_default();
    while let Some((header, more)) = rest.split_at_checked(RECORD_HEADER) {
        let word = |at: usize| {
            header.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let at = Duration::from_secs(word(0).into()) + Duration::from_micros(word(4).into());
        let Some((frame, next)) = more.split_at_checked(usize::try_from(word(8))?) else { break };
        rest = next;
        if let Some((sender, seen)) = control_packet(frame, at) {
            senders.entry(sender).or_default().push(seen);
        }
    }
    Ok(senders)
}

fn control_packet(frame: &[u8], at: Duration) -> Option<(Ipv4Addr, Seen)> {
    let ip = frame.get(ETHERNET..)?;
    let header = usize::from(ip.first()? & 0xf) * 4;
    let sender: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
    let (packet, _) = Packet::decode(ip.get(header + UDP..)?).ok()?;
    let expired = packet.diagnostic == Diagnostic::DETECTION_TIME_EXPIRED && packet.state == State::Down;
    Some((sender.into(), Seen { at, state: packet.state, expired }))
}

/// When a sender told that its detection time expired: the first such packet after one in Up.
pub(crate) fn expiries(packets: &[Seen]) -> Vec<Duration> {
    packets
        .windows(2)
        .filter_map(|pair| match pair {
            [before, now] if before.state == State::Up && now.expired => Some(now.at),
            _ => None,
        })
        .collect()
}
