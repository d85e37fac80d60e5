//! Cluster mesh: follows other clusters through their etcds and publishes this one, in the format of Cilium's Cluster
//! Mesh, so that a Cilium cluster can be the other side.
//!
//! * [`wire`]: keys and values, read strictly and bounded, one entry at a time; written byte for byte like Cilium.
//! * [`follower`]: one sans-IO core and one task per cluster. [`follower::start`] watches the folder of `<remote>.yaml`
//!   files, and follows the own cluster's other nodes as well when it is given the own etcd. Accepted changes go to a
//!   [`follower::MeshSink`]; [`rows::TableSink`] is the one that writes table rows.
//! * [`rows`]: wire records from and to rows.
//!
//! ```no_run
//! # async fn example(config: tombolo_clustermesh::follower::MeshConfig, sink: std::sync::Arc<tombolo_clustermesh::rows::TableSink>) {
//! let cancel = tokio_util::sync::CancellationToken::new();
//! let (mesh, task) = tombolo_clustermesh::follower::start(config, sink, cancel.clone());
//! for cluster in mesh.status().await {
//!     println!("{}: {}", cluster.name, cluster.status);
//! }
//! cancel.cancel();
//! task.await.ok();
//! # }
//! ```
//!
//! Nothing known is taken away because a connection failed; a restart takes the entries of its last life from disk as
//! stale, and the first complete list after the canaries confirms or removes them.
#![forbid(unsafe_code)]

pub mod error;
pub mod etcd;
pub mod follower;
pub mod rows;
pub mod wire;

pub use error::MeshError;
