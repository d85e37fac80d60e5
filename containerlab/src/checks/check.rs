//! What a check is, and how one ends.

use std::fmt;
use std::net::IpAddr;

use clap::ValueEnum;
use serde::Serialize;

use super::ask::Ask;
use super::etcd::EtcdRoles;
use super::faults::Fault;
use super::mtu::{MtuCheck, OutsideMtu};
use super::names::NamesCheck;
use super::routers::RouterCheck;
use super::scenarios::{Covered, Final, Scenario};

/// An address family; every check runs in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// Whether an address is of this family.
    #[must_use]
    pub fn holds(self, address: IpAddr) -> bool {
        match self {
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }

    /// Length of the IP header without options, in bytes.
    #[must_use]
    pub fn header_bytes(self) -> u32 {
        match self {
            Self::Ipv4 => 20,
            Self::Ipv6 => 40,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        })
    }
}

/// The path variants of the lab: how packets go between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// VXLAN.
    Overlay,
    /// VXLAN inside WireGuard.
    OverlayWireguard,
    /// Pod addresses routed by the ToRs.
    Direct,
    /// Pod addresses inside WireGuard.
    DirectWireguard,
}

impl Variant {
    /// All four, in the order they are run.
    pub const ALL: [Self; 4] = [Self::Overlay, Self::OverlayWireguard, Self::Direct, Self::DirectWireguard];

    /// The name, as in `variants/NAME.yaml`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::OverlayWireguard => "overlay-wireguard",
            Self::Direct => "direct",
            Self::DirectWireguard => "direct-wireguard",
        }
    }

    /// The variant of an agent configured with this path and encryption.
    #[must_use]
    pub fn from_config(path: &str, encryption: &str) -> Option<Self> {
        match (path, encryption) {
            ("overlay", "none" | "") => Some(Self::Overlay),
            ("overlay", "wireguard") => Some(Self::OverlayWireguard),
            ("direct", "none" | "") => Some(Self::Direct),
            ("direct", "wireguard") => Some(Self::DirectWireguard),
            _ => None,
        }
    }

    /// Whether packets between nodes are encrypted.
    #[must_use]
    pub fn encrypted(self) -> bool {
        matches!(self, Self::OverlayWireguard | Self::DirectWireguard)
    }

    /// Whether the scenarios belong to this variant when all variants run: they are about policy, not about paths.
    #[must_use]
    pub fn runs_scenarios(self) -> bool {
        self == Self::Overlay
    }

    /// Whether those about encryption do.
    #[must_use]
    pub fn runs_encryption_scenarios(self) -> bool {
        self == Self::OverlayWireguard
    }

    /// Whether the fault checks belong to this variant when all variants run.
    #[must_use]
    pub fn runs_faults(self) -> bool {
        matches!(self, Self::Overlay | Self::DirectWireguard)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// In which phase a check runs. Phases run one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Requests and their flows: harmless, several at once.
    Traffic,
    /// The routers' RIB and FIB: read only, several at once.
    Routers,
    /// What the captures of the traffic phase saw.
    Wire,
    /// Policies are added and taken away: one scenario a cluster.
    Scenarios,
    /// What must hold of all that ran so far.
    Finals,
    /// Breaks something and mends it: alone.
    Faults,
    /// What the checks of other phases come to.
    Covered,
}

impl Phase {
    /// All, in the order they are run.
    pub const ALL: [Self; 7] = [
        Self::Traffic,
        Self::Routers,
        Self::Wire,
        Self::Scenarios,
        Self::Finals,
        Self::Faults,
        Self::Covered,
    ];

    /// How many checks of this phase run at once.
    #[must_use]
    pub fn concurrency(self) -> usize {
        match self {
            Self::Traffic | Self::Routers => 4,
            Self::Scenarios => 2,
            Self::Wire | Self::Finals | Self::Faults | Self::Covered => 1,
        }
    }
}

/// One line of the check table.
#[derive(Debug, Clone)]
pub struct Check {
    /// Unique within a variant: `what/where/family`.
    pub name: String,
    /// When it runs.
    pub phase: Phase,
    /// What it does.
    pub task: Task,
}

/// What a check does. A new check of an existing kind is one row of [`super::catalog`].
#[derive(Debug, Clone)]
pub enum Task {
    /// Requests from a place to a target: answers and flow events.
    Ask(Ask),
    /// The largest packet of a path, and one byte more.
    Mtu(MtuCheck),
    /// The same from the outside client.
    OutsideMtu(OutsideMtu),
    /// What pods are told by the cluster's DNS.
    Names(NamesCheck),
    /// What a remote cluster's certificate may do in etcd.
    EtcdRoles(EtcdRoles),
    /// Something the checks need and the lab lacks: always fails.
    Missing(String),
    /// RIB and FIB of a router.
    Router(RouterCheck),
    /// The BGP sessions of a node.
    Sessions {
        /// The node.
        node: String,
    },
    /// No plaintext on any underlay link, or (encryption off) proof that the detector finds it.
    Wire,
    /// Policies, and what they let through.
    Scenario(Scenario),
    /// A scenario whose requests other checks send.
    Covered(Covered),
    /// A scenario about the whole run.
    Final(Final),
    /// A fault and what it does to traffic.
    Fault(Fault),
}

/// Why a check failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What should have been.
    pub expected: String,
    /// What was.
    pub got: String,
    /// Where to look next: a command, a file, a node.
    pub look: String,
}

impl Failure {
    /// A failure in three parts.
    pub fn new(expected: impl Into<String>, got: impl Into<String>, look: impl Into<String>) -> Self {
        Self { expected: expected.into(), got: got.into(), look: look.into() }
    }

    /// The check's own tools failed: no statement about the network.
    pub fn tool(what: &str, why: impl fmt::Display, look: impl Into<String>) -> Self {
        Self::new(format!("{what} works"), why.to_string(), look)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "expected {}; got {}; look at {}", self.expected, self.got, self.look)
    }
}

/// A check passes with notes (measurements worth printing) or fails.
pub(super) type CheckResult = Result<Vec<String>, Failure>;

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Status {
    /// Everything was as expected.
    Passed {
        /// Measurements.
        notes: Vec<String>,
    },
    /// Something was not.
    Failed(Failure),
    /// Not run.
    Skipped {
        /// Why.
        why: String,
    },
}

/// A row of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Path variant it ran in.
    pub variant: Variant,
    /// The check's name.
    pub check: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// How it ended.
    #[serde(flatten)]
    pub status: Status,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_follow_the_configuration() {
        for variant in Variant::ALL {
            let path = if variant.name().starts_with("overlay") { "overlay" } else { "direct" };
            let encryption = if variant.encrypted() { "wireguard" } else { "none" };
            assert_eq!(Variant::from_config(path, encryption), Some(variant));
        }
        assert_eq!(Variant::from_config("tunnel", "none"), None);
    }

    #[test]
    fn rows_are_flat_json() {
        let failure = Failure::new("a", "b", "c");
        let row = Row {
            variant: Variant::Direct,
            check: "x".into(),
            duration_ms: 1,
            status: Status::Failed(failure),
        };
        let json = serde_json::to_value(row).expect("encodes");
        assert_eq!(json["status"], "failed");
        assert_eq!(json["expected"], "a");
        assert_eq!(json["variant"], "direct");
    }
}
