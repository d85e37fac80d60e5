//! Route origin validation: who may originate a prefix, as signed by its holder (RFC 6480).

mod validate;

pub use validate::{RpkiTable, Validity, Vrp};
