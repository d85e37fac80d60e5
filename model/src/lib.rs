//! The datapath in plain Rust: what the programs of `ebpf/bpf/` are meant to do with a packet, without a kernel.
//!
//! [`Node`] holds a node's rows, its flows and its address translations; each program is a method that takes the time and
//! a [`Packet`] and says where the packet goes and what it looks like then, or why it is dropped. `ebpf/tests/model` sends
//! the same streams of random packets through both and compares (docs/datapath.md, "The model").
//!
//! Nothing here is fast, bounded or concurrent, and the cache of allows is left out on purpose: a policy is asked for every
//! packet, so that agreement means that the programs' cache cannot be seen from outside.
//!
//! [`Node::meet`] takes bytes as they came in instead, with all that may be wrong with them, and [`Node::listen`] writes down
//! each decision: that is what `tombolo why` tells.
//!
//! Left out: whatever a routing table would say (here everything has a route).
//!
//! ```
//! use tombolo_model::{Config, Fragment, Local, Node, Outcome, Packet, Payload, Pod, TcpFlags, To};
//! let (a, b) = ("10.1.1.2".parse()?, "10.1.1.3".parse()?);
//! let pod = |address| Pod { ready: true, identity: 1000, addresses: vec![address], policy: 0 };
//! let mut node = Node { config: Config { ready: true, ..Config::default() }, ..Node::default() };
//! node.pods.extend([(7, pod(a)), (8, pod(b))]);
//! node.local.extend([(a, Local::Pod(7)), (b, Local::Pod(8))]);
//! let payload = Payload::Tcp { ports: (4000, 80), flags: TcpFlags::SYN };
//! let packet = Packet { source: a, destination: b, hops: 64, length: 40, fragment: Fragment::Whole, payload };
//! assert!(matches!(node.from_endpoint(0, 7, &packet), Outcome::Pass { to: To::Pod(8), .. }));
//! # Ok::<(), std::net::AddrParseError>(())
//! ```
#![forbid(unsafe_code)]

pub mod ct;
mod flight;
mod frame;
mod hash;
mod host;
mod judge;
mod lb;
pub mod nat;
mod node;
mod outcome;
mod packet;
pub mod policy;
mod programs;
#[cfg(test)]
mod programs_tests;
mod story;
mod verdict;

pub use frame::{Frame, Ip, LinkMessage};
pub use hash::flow_hash;
pub use lb::{Affinity, Backend, Frontend, Scope, Service};
pub use node::{Config, HOST, Local, Node, Path, Pod, Prefix, REMOTE_NODE, RemoteNode, WORLD};
pub use outcome::{Outcome, Reason, To};
pub use packet::{Datagram, Fragment, Fragments, Packet, Payload, Protocol, Socket, TcpFlags, Tuple};
pub use programs::Hook;
pub use story::{Place, Step};
pub use verdict::{Action, Direction, Policy, Question, Rule, Side, Tier, WORLD_IPV4, WORLD_IPV6};
