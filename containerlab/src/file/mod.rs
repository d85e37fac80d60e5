//! Reading containerlab topology files.
//!
//! ```no_run
//! # use std::path::Path;
//! # use tombolo_containerlab::file;
//! let env = std::env::vars().collect();
//! match file::load(Path::new("labs/two-clusters/two-clusters.clab.yml"), &env) {
//!     Ok((topology, warnings)) => {
//!         for warning in &warnings { eprintln!("warning: {warning}"); }
//!         for notice in file::undeployable(&topology, &|_image| true) { eprintln!("not deployed: {notice}"); }
//!     }
//!     Err(errors) => for error in &errors { eprintln!("error: {error}"); },
//! }
//! ```

mod definition;
mod links;
mod load;
mod notices;
mod report;
mod resolve;
mod substitute;
mod topology;
mod tree;
mod words;

pub use load::{MAX_BYTES, MAX_LINKS, MAX_NODES, lab_dir, load, parse};
pub use notices::undeployable;
pub use report::{Error, Problem, Warning};
pub(crate) use substitute::substitute;
pub use topology::*;
pub use words::split_words;

#[cfg(test)]
mod labs;
#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests;
