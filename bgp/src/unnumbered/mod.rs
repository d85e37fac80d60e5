//! Unnumbered peering: the router on the other end of a link is found by its router advertisements, and finds us by ours.
//!
//! ```text
//!  ICMPv6 socket of the interface ──► advert (bytes) ──► Discovery (when to send, who is there) ──► Neighbour ──► the peer's address
//! ```
//! The session then runs between the link-local addresses, and routes of both families have them as next hops (RFC 8950).

mod advert;
mod discovery;
mod socket;

pub(crate) use socket::{Neighbour, follow};
