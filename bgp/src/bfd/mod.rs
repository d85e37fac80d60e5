//! Bidirectional Forwarding Detection: whether a path still forwards, found out in a fraction of a second.
//!
//! ```text
//!  speaker ─► client ══ control socket ══► control ─► worker (one real-time thread) ─► engine ─► machine × N
//!              (tokio)                    (threads)          sockets                   (sans-IO)
//! ```
//! The unit is a process of its own, so that a session does not die with an agent that restarts (RFC 5882 section 4.3).
//! RFC 5880 (asynchronous mode; demand mode and echo packets of the remote system), 5881 (one hop), 5883 (several hops); simple
//! password and keyed SHA1 authentication.

mod auth;
pub mod client;
mod control;
mod engine;
mod machine;
mod packet;
mod protocol;
mod session;
#[cfg(test)]
mod simulation;
mod sockets;
#[cfg(test)]
mod tests;
pub mod unit;
mod worker;

pub use auth::Auth;
pub use engine::Discards;
pub use packet::{Diagnostic, Frame, Packet, PacketError, Received, State};
pub use protocol::{Status, UnitStatus};
pub use session::{BfdSettings, SessionConfig, SessionError, SessionKey, SessionStatus};
pub use sockets::{ECHO_PORT, MULTIHOP_PORT, SINGLE_HOP_PORT};
