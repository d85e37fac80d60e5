//! Clusters, nodes, identities, endpoints and prefixes, and the plan of how to reach what.
//!
//! Pure: rows in, rows out. [`rows`] holds the intent rows that sources write and the desired rows that reconcilers
//! carry to the kernel, the eBPF maps, WireGuard and BGP; [`plan`] computes the second from the first.
#![forbid(unsafe_code)]

pub mod bgp;
mod cidr;
pub mod conflict;
pub mod egress;
pub mod plan;
pub mod reserved;
pub mod rows;
pub mod selector;
mod wants;

pub use cidr::CidrIdentity;
pub use conflict::{Claimant, Claimed, ConflictKind, ConflictRow};
pub use egress::{EgressGatewayRow, EgressPolicyRow, EgressRow, EgressSelector, EgressWay, GatewayIntent};
pub use reserved::{Purpose, ReservedRow};
pub use rows::{
    AddressKind, EndpointRow, EndpointState, IdentityRow, LearnedNextHop, LearnedRoute, NodeAddress,
    NodeHealth, NodeIndex, NodeLookup, NodePath, NodeRow, PathKind, PrefixEntry, PrefixRow, RouteEntry,
    RouteOrigin, WireguardKey, WireguardPeer,
};
pub use wants::{HostPort, Shaping};
