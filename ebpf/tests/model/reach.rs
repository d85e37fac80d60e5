//! Where the streams led: a test that never gets to a place says nothing of it.

use crate::steps::Hook;
use std::collections::BTreeMap;
use std::fmt;
use tombolo_model::{Fragment, Outcome, Packet, Payload, To};

#[derive(Default)]
pub struct Reach {
    pub packets: u64,
    streams: u64,
    counts: BTreeMap<String, u64>,
}

/// What the default number of packets must lead to: where packets go on at each hook, why they are dropped, and which
/// are translated.
const WANTED: [&str; 41] = [
    "from_endpoint to Kernel",
    "from_endpoint to Network",
    "from_endpoint to Overlay",
    "from_endpoint to Pod",
    "from_uplink to Kernel",
    "from_uplink to Network",
    "from_uplink to Overlay",
    "from_uplink to Pod",
    "to_endpoint to Kernel",
    "to_overlay to Kernel",
    "to_uplink to Kernel",
    "to_uplink to WireGuard",
    "dropped, EncapProhibited",
    "dropped, EndpointNotReady",
    "dropped, FragmentNotFound",
    "dropped, HostNotReady",
    "dropped, Invalid",
    "dropped, InvalidSource",
    "dropped, NatNoMapping",
    "dropped, NatProtocol",
    "dropped, NoDevice",
    "dropped, NoEgressGateway",
    "dropped, NoEgressIp",
    "dropped, NoService",
    "dropped, NoTunnelEndpoint",
    "dropped, Policy",
    "dropped, PolicyDeny",
    "dropped, TtlExceeded",
    "dropped, Unencrypted",
    "dropped, UnknownCt",
    "dropped, UnknownL4",
    "dropped, UnknownTarget",
    "named a frontend",
    "took a named frontend",
    "translated SCTP",
    "translated TCP",
    "translated UDP",
    "translated echo",
    "translated error",
    "translated first fragment",
    "translated later fragment",
];

fn place(hook: Hook) -> &'static str {
    match hook {
        Hook::FromPod(_) => "from_endpoint",
        Hook::ToPod(_) => "to_endpoint",
        Hook::FromUplink => "from_uplink",
        Hook::ToUplink => "to_uplink",
        Hook::ToOverlay => "to_overlay",
    }
}

fn kind(packet: &Packet) -> &'static str {
    match packet.payload {
        _ if matches!(packet.fragment, Fragment::First(_)) => "first fragment",
        _ if matches!(packet.fragment, Fragment::Later(_)) => "later fragment",
        Payload::Tcp { .. } => "TCP",
        Payload::Udp { .. } => "UDP",
        Payload::Sctp { .. } => "SCTP",
        Payload::Echo { .. } => "echo",
        Payload::Error(_) => "error",
        Payload::Other(_) | Payload::Broken { .. } => "other",
    }
}

impl Reach {
    pub fn count(&mut self, hook: Hook, packet: &Packet, outcome: &Outcome) {
        self.packets += 1;
        match outcome {
            Outcome::Drop(reason) => self.one(format!("dropped, {reason:?}")),
            Outcome::Pass { to, packet: after } => {
                match to {
                    To::Pod(_) => self.one(format!("{} to Pod", place(hook))),
                    to => self.one(format!("{} to {to:?}", place(hook))),
                }
                if packet.frontend.is_none() && after.frontend.is_some() {
                    self.one("named a frontend".into());
                }
                if packet.frontend.is_some() && matches!(to, To::Pod(_)) {
                    self.one("took a named frontend".into());
                }
                if (after.source, after.destination) != (packet.source, packet.destination)
                    || after.payload != packet.payload
                {
                    self.one(format!("translated {}", kind(packet)));
                }
            }
        }
    }

    pub fn stream(&mut self) {
        self.streams += 1;
    }

    fn one(&mut self, what: String) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn missing(&self) -> Vec<&'static str> {
        WANTED.into_iter().filter(|what| !self.counts.contains_key(*what)).collect()
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} packets in {} streams", self.packets, self.streams)?;
        self.counts.iter().try_for_each(|(what, count)| writeln!(f, "{count:>9} {what}"))
    }
}
