//! The plan of how to reach what: one pure function per kind of row, and the keys a change touches.
//!
//! ```text
//! NodeRow ─┬─► node view ──► NodePath · WireguardPeer
//!          ├───────────────► PrefixEntry (addresses, pod prefixes)
//! PrefixRow┴───────────────► PrefixEntry
//! NodeRow, LearnedRoute ───► RouteEntry
//! ```
//! Before that, [`claims`] refuses pod prefixes, node addresses and WireGuard keys that another cluster has; what is refused, and addresses that two clusters
//! say, become [`ConflictRow`](crate::conflict::ConflictRow)s. Pods of other clusters in what this one has besides ([`ReservedRow`](crate::ReservedRow)) likewise.
//!
//! [`Planner::step`] is the incremental pass; a full pass calls the same functions for every key.

mod claims;
mod conflicts;
mod hops;
mod hosts;
mod keys;
mod nodes;
mod planner;
mod prefixes;
mod reserved;
mod routes;

pub use nodes::{Known, NodeIndexes, NodeView};
pub use planner::{Inputs, Outputs, Planner};
pub use prefixes::{Decided, Views, prefix_entry};
pub use routes::route_entry;

use crate::rows::PathKind;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::ClusterName;
use tombolo_base::prefix::Prefix;

/// What a node's plan depends on besides the tables.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanConfig {
    /// This cluster.
    pub cluster: ClusterName,
    /// This node.
    pub node: Arc<str>,
    /// [`PathKind::Overlay`] or [`PathKind::Direct`], for all remote nodes.
    pub path: PathKind,
    /// Whether packets between nodes must be encrypted.
    pub encrypt: bool,
    /// WireGuard's UDP port.
    pub wireguard_port: u16,
    /// The overlay device.
    pub overlay_device: Arc<str>,
    /// Largest packets by path and underlay family.
    pub mtu: PathMtus,
    /// Prefixes of this node's own links: BGP's routes to them are not taken. Other clusters' pods are kept out by reserving them.
    pub connected: Vec<Prefix>,
}

/// What every path carries at least (RFC 8200 §5), in bytes.
const LEAST: u16 = 1280;

/// Largest packets (bytes) to a remote pod, after tunnel and encryption, by underlay family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtus {
    /// Over an IPv4 underlay; none if this node has no such address.
    pub ipv4: Option<u16>,
    /// Over an IPv6 underlay; none if this node has no such address.
    pub ipv6: Option<u16>,
}

impl PathMtus {
    /// The MTU towards an underlay address.
    #[must_use]
    pub fn towards(self, underlay: IpAddr) -> u16 {
        let of_family = match underlay {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        };
        of_family.unwrap_or_else(|| self.smallest())
    }

    /// What fits every path: the MTU of the pods' default routes.
    #[must_use]
    pub fn smallest(self) -> u16 {
        self.ipv4.into_iter().chain(self.ipv6).min().unwrap_or(LEAST)
    }

    /// What fits the widest path: the MTU of the overlay device, whose routes say less where less fits.
    #[must_use]
    pub fn largest(self) -> u16 {
        self.ipv4.into_iter().chain(self.ipv6).max().unwrap_or(LEAST)
    }
}
