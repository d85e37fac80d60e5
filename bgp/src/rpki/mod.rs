//! Route origin validation: who may originate a prefix, as signed by its holder (RFC 6480), and the caches that say it (RFC 8210).

mod client;
#[cfg(test)]
mod client_tests;
mod pdu;
mod report;
mod validate;

pub use client::RpkiCache;
pub(crate) use client::{CacheClient, CacheOutput};
pub(crate) use report::CacheReport;
pub use report::{CachePhase, CacheState};
pub use validate::{RpkiTable, Validity, Vrp};
