//! Origin validation (RFC 6811): what the RPKI says of who may originate a prefix.

mod validate;

pub use validate::{Validity, Vrp, VrpTable, origin_of};
