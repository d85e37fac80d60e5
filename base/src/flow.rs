//! Flow events in plain form: what a datapath saw, before names are put to it.
//!
//! The datapath emits them, proxies will too; `observe` enriches them. No ABI struct leaves `ebpf`.

use serde::Serialize;
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
}
