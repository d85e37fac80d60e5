//! Being built.

pub mod file;
pub mod pki;
pub mod settings;
pub mod workload;
