//! DNS for services: the zones `cluster.local` and `clusterset.local`, and the addresses' reverse names.
//!
//! ```text
//!  agent ──stream of lines──► zones ──► answers ──► UDP, TCP
//!              disk ────────►   │                     │
//!                               └─ other names ───────┴──► upstreams
//! ```
//! A unit of its own that survives the agent: what it knows stays, in memory and on disk, until an agent says otherwise.
//! Names that nobody has told it of yet are `SERVFAIL`, not `NXDOMAIN`.
#![forbid(unsafe_code)]

pub mod answer;
pub mod client;
mod control;
pub mod follow;
pub mod forward;
mod keep;
pub mod line;
pub mod message;
mod metrics;
mod privileges;
pub mod server;
pub mod settings;
pub mod unit;
pub mod zones;

pub use control::Status;
pub use line::Line;
pub use settings::Settings;
