//! The BGP Monitoring Protocol (RFC 7854): what peers told, as it is before and after import policy, and the paths chosen (RFC 9069), for collectors.
//!
//! ```text
//!  Rib ──journal of changed paths──► marks of each station ──room on its connection──► Route Monitoring, with the state as it is then
//!  sessions up and down ───────────► its control queue ──────────────────────────────► Peer Up, Peer Down
//! ```
//! A path that changes twice before a slow collector takes it is told once (RFC 7854 section 5 allows that): nothing waits for a collector. One that is
//! too far behind for its bounds is cut off and gets everything anew when it is back.

mod message;
mod settings;
mod station;

pub(crate) use message::{INITIATION, PEER_DOWN, PEER_UP, STATISTICS, Statistic, TERMINATION, statistics};
pub(crate) use message::{PeerHead, down_reason, initiation, peer_up, route_monitoring, termination};
pub use settings::BmpStation;
pub(crate) use station::StationLink;
