//! Cluster mesh: follows other clusters through their etcds and publishes this one, in the format of Cilium's Cluster
//! Mesh, so that a Cilium cluster can be the other side.
//!
//! * [`wire`]: keys and values, read strictly and bounded, one entry at a time; written byte for byte like Cilium.
//! * [`follower`]: one sans-IO core and one task per cluster. [`follower::start`] watches the folder of `<remote>.yaml`
//!   files, and follows the own cluster's other nodes as well when it is given the own etcd. Accepted changes go to a
//!   [`follower::MeshSink`]; [`rows::TableSink`] is the one that writes table rows.
//! * [`publisher`]: [`publisher::start`] writes to the own etcd what [`publisher::PublisherHandle::set_node`] (this node
//!   and its pods) and [`publisher::PublisherHandle::set_cluster`] (services and assignments; only while elected) say;
//!   [`publisher::IdentityAllocator`] gives label sets their numbers.
//! * [`relay`]: mirrors other clusters into the own etcd.
//! * [`own`]: how the connection of publisher and relay to the own etcd is kept.
//! * [`troubleshoot`]: walks the way to another cluster step by step and says which one fails.
//! * [`partner`]: lets another cluster read this one, and takes that back.
//! * [`operations`]: how long etcd takes.
//! * [`rows`]: wire records from and to rows.
//!
//! ```no_run
//! # async fn example(config: tombolo_clustermesh::follower::MeshConfig, sink: std::sync::Arc<tombolo_clustermesh::rows::TableSink>) -> Result<(), tombolo_clustermesh::MeshError> {
//! let cancel = tokio_util::sync::CancellationToken::new();
//! let (mesh, task) = tombolo_clustermesh::follower::start(config, sink, cancel.clone()).await;
//! for cluster in mesh.status().await {
//!     println!("{}: {}", cluster.name, cluster.status);
//! }
//! # use tombolo_clustermesh::{publisher::{self, Desired, PublisherConfig}, rows};
//! # let (own, node, pods, pod_labels): (PublisherConfig, tombolo_topology::NodeRow, Vec<tombolo_topology::PrefixRow>, tombolo_base::labels::Labels) = unimplemented!();
//! let (publisher, publishing) = publisher::start(own, cancel.clone());
//! let identity = publisher.identities().allocate(&pod_labels).await?;
//! let mut keys = vec![Desired::node(&rows::node_entry(&node))?];
//! for pod in &pods {
//!     keys.push(Desired::ip(&rows::ip_entry(pod))?);
//! }
//! publisher.set_node(keys); // the whole set; what it lacks is deleted
//! publisher.set_nodes([node.name.clone()]); // who must publish before canaries are written
//! cancel.cancel();
//! task.await.ok();
//! # Ok(())
//! # }
//! ```
//!
//! Nothing known is taken away because a connection failed; a restart takes the entries of its last life from disk as
//! stale, and the first complete list after the canaries confirms or removes them.
#![forbid(unsafe_code)]

pub mod certificate;
pub mod error;
pub mod etcd;
pub mod follower;
pub mod operations;
pub mod own;
pub mod partner;
pub mod publisher;
pub mod relay;
mod rfc3339;
pub mod rows;
pub mod troubleshoot;
pub mod wire;

pub use error::MeshError;
