//! The eBPF datapath: programs in C (`bpf/`), their loader, typed maps and the event ring.
//!
//! ```no_run
//! use tombolo_ebpf::{Datapath, DatapathConfig, Interface, LocalAddress, NodeConfig};
//! # async fn sketch(row: Interface) -> Result<(), Box<dyn std::error::Error>> {
//! let datapath = Datapath::open(&DatapathConfig::default())?; // maps of the run before are kept
//! datapath.set_config(&NodeConfig { ready: true, uplink_ifindex: 2, ..NodeConfig::default() })?;
//! datapath.upsert_local_address("10.1.1.1".parse()?, LocalAddress::Host)?; // every address of the node itself
//! datapath.upsert_local_address("10.1.1.2".parse()?, LocalAddress::Pod(7))?;
//! datapath.upsert_interface(7, &row)?; // `ready: true` opens the hook
//! datapath.attach_endpoint(7)?; // rows first, hooks afterwards
//! datapath.attach_uplink(2)?;
//! let mut events = datapath.events()?;
//! let event = events.next().await?; // a tombolo_base::flow::FlowEvent and more
//! println!("{:?}", tombolo_ebpf::site(event.flow.site));
//! # Ok(()) }
//! ```
//! All methods of [`Datapath`] take `&self`, are synchronous and short (one or a few syscalls); `gc`, `usage`, and the
//! dumps walk whole maps: call them with `spawn_blocking`. Upserts and deletes are idempotent, so a reconciler may
//! repeat them; each kind of row has a dump for pruning. Dropping a [`Datapath`] leaves everything running.
//!
//! Rows and what they mean: [`NodeConfig`] (the node), [`Interface`] (a pod, by ifindex of the veth's host end; its
//! hook drops with 203 until `ready`), [`LocalAddress`] (pod and node addresses), [`PrefixEntry`] (identity and node
//! behind a prefix; no match: identity world), [`NodeEntry`] (how to reach a node), [`Frontend`], [`ServiceEntry`],
//! [`Backend`] (services; one row per [`Scope`]), [`PolicySet`] (entries by policy id).
#![deny(unsafe_code)]

mod abi;
mod affinity;
mod attach;
mod carry;
mod conntrack;
mod datapath;
mod egress;
mod error;
mod events;
mod fronts;
mod layout;
mod maglev;
mod places;
mod policies;
mod ranges;
mod replay;
mod rev_nats;
mod rows;
mod scene;
mod services;
mod sets;
mod sites;
mod sock_diag;
mod sockets;
mod stale_sockets;
mod sys;
mod tables;
mod xdp;

pub use attach::Attach;
pub use conntrack::GcStats;
pub use datapath::{Datapath, DatapathConfig, MapSizes};
pub use error::DatapathError;
pub use events::{DatapathEvent, EventKind, EventReader};
pub use replay::{Explained, Replayer};
pub use rows::{
    Aggregation, Backend, CaptureOf, ConntrackEntry, ConntrackKind, Direction, EgressWay, FlowFilter,
    Frontend, Interface, LbMode, Limits, LocalAddress, LostEvents, MapUsage, Metric, NodeConfig, NodeEntry,
    NodePath, PolicySet, PolicySide, PortPrefix, PrefixEntry, RuleAction, RuleEntry, RuleTier, SNAT_PORTS,
    Scope, ServiceEntry, SiteMetric, SocketLb, Translation,
};
pub use sites::{SITES, Site, reason_name, site};
pub use stale_sockets::SocketStats;
pub use sys::{monotonic_ns, raw_rows};
pub use xdp::Acceleration;
