//! Flow events in plain form: what a datapath saw, before names are put to it.
//!
//! The datapath emits them, proxies will too; `observe` enriches them. No ABI struct leaves `ebpf`.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Passed on.
    Forwarded,
    /// Dropped; see the reason.
    Dropped,
    /// Passed on, though policy would have dropped it: it is in audit mode.
    Audit,
}

/// One end of a flow as the datapath knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FlowEnd {
    /// The address in the packet.
    pub ip: IpAddr,
    /// Port; for ICMP echo the identifier at the asking end, else 0.
    pub port: u16,
    /// Numeric identity, 0 if unknown.
    pub identity: u32,
    /// Local endpoint id, 0 if the end is not a pod of this node.
    pub endpoint_id: u16,
}

/// An event of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowEvent {
    /// When, in nanoseconds since the epoch (wall clock).
    pub time_ns: u64,
    /// What became of the packet.
    pub verdict: Verdict,
    /// Cilium's drop reason number (132 invalid source, 133 policy denied, ...), also that of [`Verdict::Audit`]; 0 if forwarded.
    pub drop_reason: u8,
    /// Which place in the programs spoke; names file, line and remedy.
    pub site: u16,
    /// Cilium's observation point number (0 to-endpoint, 4 to-overlay, ...).
    pub trace_point: u8,
    /// The sender as the packet has it.
    pub source: FlowEnd,
    /// The receiver as the packet has it (after translation).
    pub destination: FlowEnd,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags seen, 0 for others.
    pub tcp_flags: u8,
    /// ICMP type and code, 0 for others.
    pub icmp: (u8, u8),
    /// Whether the packet belongs to the answering direction.
    pub reply: bool,
    /// Whether it is a new flow's first packet here.
    pub new: bool,
    /// Whether it leaves or came encrypted.
    pub encrypted: bool,
    /// Interface index.
    pub ifindex: u32,
    /// Packet length in bytes.
    pub length: u32,
    /// The service address and port before translation, when the flow was translated.
    pub original_destination: Option<(IpAddr, u16)>,
    /// Whether the program stands on the way out of a pod or of the node; else on the way in.
    pub egress: bool,
    /// What the policy entry that decided has, Cilium's match type (1 identity, 2 identity and port, ... 4 nothing); 0: none
    /// decided.
    pub matched: u8,
    /// Why a map could not be written, an errno; 0 if that is not the reason.
    pub error: u16,
    /// The packet, where it was captured.
    pub capture: Option<Box<Capture>>,
}

/// A packet as it came in, and what else its program knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// The observation point at which its program begins, Cilium's number: it tells which program that is.
    pub point: u8,
    /// The interface.
    pub ifindex: u32,
    /// The packet's mark.
    pub mark: u32,
    /// Bytes of each segment into which it is still to be cut; 0: none.
    pub segment: u32,
    /// Bytes of the whole frame.
    pub length: u32,
    /// Of a packet out of the tunnel, the outer source and the key.
    pub tunnel: Option<(IpAddr, u32)>,
    /// The first bytes of the frame, from its Ethernet header on; in JSON as hexadecimal digits.
    #[serde(with = "digits")]
    pub frame: Vec<u8>,
}

/// Bytes as hexadecimal digits.
pub mod digits {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Two digits a byte.
    #[must_use]
    pub fn of(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The bytes of digits, between which there may be spaces and colons.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(text: &str) -> Result<Vec<u8>, String> {
        let plain: Vec<char> = text.chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
        let digit = |c: &char| c.to_digit(16).ok_or(format!("{c:?} is no hexadecimal digit"));
        let byte = |pair: &[char]| match pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).map_err(|error| error.to_string()),
            _ => Err("an odd number of hexadecimal digits".to_owned()),
        };
        plain.chunks(2).map(byte).collect()
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&of(bytes))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        read(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}
