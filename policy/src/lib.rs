//! Network policy, pure: rules and identities in, verdict entries out.
//!
//! [`compile::Compiler`] holds what was compiled last; [`Compiler::update`](compile::Compiler::update) recompiles the
//! local identities that a [`compile::Change`] concerns and says which rows to write and which to remove.
//!
//! ```
//! use tombolo_base::ids::ClusterName;
//! use tombolo_base::table::Table;
//! use tombolo_policy::compile::{Change, Compiler, Inputs};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (rules, _a) = Table::<tombolo_policy::RuleRow>::new();
//! # let (groups, _g) = Table::new();
//! # let (identities, _b) = Table::new();
//! # let (endpoints, _c) = Table::new();
//! # let named_ports = Default::default();
//! let mut compiler = Compiler::new(ClusterName::new("east")?);
//! let (rules, groups) = (rules.snapshot(), groups.snapshot());
//! let (identities, endpoints) = (identities.snapshot(), endpoints.snapshot());
//! let inputs = Inputs {
//!     rules: &rules,
//!     groups: &groups,
//!     identities: &identities,
//!     endpoints: &endpoints,
//!     named_ports: &named_ports,
//!     may_shrink: true,
//! };
//! let delta = compiler.update(&inputs, &Change::Everything);
//! assert!(delta.policies.is_empty());
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod change;
pub mod cidrs;
pub mod compile;
mod cookies;
mod desired;
mod entries;
mod index;
mod landmarks;
pub mod rows;
mod rulebook;
mod universe;

pub use cookies::block_title;
pub use desired::*;
pub use landmarks::{Landmarks, labelled, reserved};
pub use rows::*;
