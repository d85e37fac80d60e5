//! CNI: the plugin that a runtime calls, and the agent's side that owns an endpoint's life.
//!
//! The plugin ([`plugin::run`]) is a short-lived process; it posts the call to the agent's unix socket. In the agent, the
//! [`EndpointStore`] numbers endpoints, hands out addresses from the node's pod CIDRs, makes the interfaces, and asks
//! the [`DatapathGate`] for identity and datapath. It writes the endpoint table ([`tombolo_topology::EndpointRow`]) and keeps
//! everything in `state_dir/endpoints`, so that a restarted agent takes nothing away.
//!
//! ```no_run
//! # use tombolo_cni::{DatapathGate, EndpointStore, StoreConfig};
//! # async fn sketch(gate: impl DatapathGate) -> Result<(), Box<dyn std::error::Error>> {
//! let (endpoints, rows) = tombolo_base::table::Table::new();
//! let config = StoreConfig {
//!     state_dir: "/var/lib/tombolo".into(),
//!     pod_cidrs: vec!["10.1.1.0/24".parse()?, "fd00:10:1:1::/64".parse()?],
//!     pod_mtu: 1450,
//!     path_mtu: 1450,
//!     apply_timeout: std::time::Duration::from_secs(30),
//! };
//! let store = EndpointStore::open(config, tombolo_netlink::Netlink::here()?, gate, rows).await?;
//! // POST /v1/cni/{command} on the agent's socket; send reply.body as JSON with reply.status:
//! let reply = store.serve("add", b"{}").await;
//! # let _ = (endpoints, reply.status, reply.body); Ok(()) }
//! // In main(): if CNI_COMMAND is set, or for `tombolo cni`: return tombolo_cni::plugin::run();
//! ```
//!
//! An endpoint's row goes: creating without identity → (`gate.identify`) creating with identity → (`gate.apply`, then the
//! pod's end comes up) ready → deleting (`gate.remove`) → gone.

#![forbid(unsafe_code)]

pub mod gate;
pub mod interface;
pub mod ipam;
pub mod plugin;
pub mod protocol;
mod record;
mod result;
mod server;
mod store;
mod turns;

pub use gate::{DatapathGate, EndpointSpec, GateError, Identity};
pub use server::Reply;
pub use store::{EndpointStore, StoreConfig, StoreError};
