//! What a pod wants of its node besides an address: ports of the node that lead to it, limits of its traffic.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// A port of the node that leads to a pod (`hostPort`, CNI's `portMappings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// The node's address that has it (`hostIP`); `None`: all; unspecified: all of the family.
    pub host: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// The pod's port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            Some(IpAddr::V6(host)) => write!(f, "[{host}]:")?,
            Some(host) => write!(f, "{host}:")?,
            None => {}
        }
        let Self { host_port, port, protocol, .. } = self;
        match protocol {
            6 => write!(f, "{host_port}->{port}/TCP"),
            17 => write!(f, "{host_port}->{port}/UDP"),
            132 => write!(f, "{host_port}->{port}/SCTP"),
            other => write!(f, "{host_port}->{port}/{other}"),
        }
    }
}

/// What a pod's traffic is limited to, and how it stands to that of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shaping {
    /// What it sends, in bytes per second; `None`: no limit.
    pub egress: Option<u64>,
    /// What it receives, likewise.
    pub ingress: Option<u64>,
    /// Priority of what it sends (`SO_PRIORITY`); `None`: as the pod's sockets say.
    pub priority: Option<u32>,
}
