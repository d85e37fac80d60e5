//! Kubernetes objects as intent rows: typed, validated, from a folder of manifests that is watched.
//!
//! [`FolderSource::start`] reads every `*.yaml`, `*.yml` and `*.json` of a folder (several documents a file, `List`
//! kinds), writes [`Tables`] with [`Source::Manifests`](tombolo_base::source::Source::Manifests), marks them
//! initialised after the first complete read, and follows changes by inotify. A broken document costs itself only: its
//! last good version stays, one [`Problem`] tells file, line, object, key, reason and remedy.
//!
//! ```no_run
//! use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
//! use tombolo_kubernetes::{ClusterIdentity, FolderConfig, FolderSource, Tables};
//! use tokio_util::sync::CancellationToken;
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let (tables, writers) = Tables::new();
//! let cluster = ClusterIdentity { name: ClusterName::new("east")?, id: ClusterId::new(1, MaxClusters::C255)? };
//! let stop = CancellationToken::new();
//! let source = FolderSource::start(FolderConfig::new("manifests", cluster), writers, stop.clone())?;
//! let mut nodes = tables.nodes.changes();
//! println!("{} nodes", nodes.next().await.snapshot.len());
//! for problem in source.report().problems.iter() {
//!     println!("{problem}");
//! }
//! # Ok(()) }
//! ```
//!
//! [`check_file`] finds the same problems without a source, for `tombolo config check FILE`. [`identity_labels`]
//! gives a pod the labels that Cilium would.
#![forbid(unsafe_code)]

mod convert;
mod crd;
mod crd_policy;
mod document;
mod folder;
mod identity;
mod keep;
mod locate;
mod object;
mod problem;
mod quantity;
mod rows;
mod source;
mod tables;

pub use convert::ClusterIdentity;
pub use folder::Limits;
pub use identity::{LabelFilter, identity_labels};
pub use problem::{Problem, Severity};
pub use rows::{NamedPort, NamespaceRow, PodIndex, PodRow, Workload};
pub use source::{FolderConfig, FolderError, FolderReport, FolderSource, check_file, read_manifests};
pub use tables::{Tables, Writers};
