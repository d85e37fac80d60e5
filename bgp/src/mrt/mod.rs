//! MRT (RFC 6396, RFC 8050): sessions as they were spoken, and tables as they stood, in the format that tools of the field read.
//!
//! ```text
//!  core ──tap──► driver ──► MessageLog (bounded queue) ──► thread ──► NAME.mrt, rotated by size     BGP4MP_ET
//!  peers() and routes() ──► table_dump ──► bytes                                                    TABLE_DUMP_V2
//!  bytes ──► Record::next ──► SessionEntry::of ──► a core: the same session again, without a network
//! ```

mod log;
mod record;
mod session;
mod table;
#[cfg(test)]
mod tests;

pub use log::MessageLog;
pub(crate) use log::Writer;
pub use record::{MrtError, Record};
pub use session::{Happened, SessionEntry};
pub use table::table_dump;
