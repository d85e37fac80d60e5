//! What every floor of the house stands on: tables, reconcilers, labels, numbers, prefixes, time.
//!
//! No tokio, no I/O, no clock. Data flows one way through [`table::Table`]s: sources write intent rows, pure
//! planners turn them into desired rows, [`reconcile::Reconciler`]s carry desired rows to a target.
//!
//! ```
//! use tombolo_base::source::Source;
//! use tombolo_base::table::{Table, Row};
//! # #[derive(Clone, PartialEq, Debug, serde::Serialize)]
//! # struct Link { name: String, up: bool }
//! # impl Row for Link {
//! #     type Key = String; type Index = bool;
//! #     const TABLE: &'static str = "links";
//! #     fn key(&self) -> String { self.name.clone() }
//! #     fn source(&self) -> &Source { &Source::Kernel }
//! #     fn indexes(&self) -> Vec<bool> { vec![self.up] }
//! #     fn columns() -> &'static [&'static str] { &["NAME", "UP"] }
//! #     fn cells(&self) -> Vec<String> { vec![self.name.clone(), self.up.to_string()] }
//! # }
//! let (links, writer) = Table::<Link>::new();
//! let mut changes = links.changes();
//! writer.upsert(Link { name: "eth0".into(), up: true });
//! assert_eq!(changes.drain().map(|batch| batch.keys.len()), Some(1));
//! assert_eq!(links.snapshot().by_index(&true).count(), 1);
//! ```
#![forbid(unsafe_code)]

pub mod aggregate;
pub mod cells;
pub mod clock;
pub mod flow;
pub mod ids;
pub mod labels;
pub mod name;
pub mod pool;
pub mod prefix;
pub mod reconcile;
pub mod residence;
pub mod rows;
pub mod source;
pub mod table;
pub mod text;
pub mod texts;
pub mod tree;
