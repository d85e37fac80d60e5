//! The few netlink verbs that the tunnel, the CNI plugin, the BGP adapter and the lab share.
//!
//! A [`Netlink`] is a handle on one network namespace. Every verb is idempotent: what exists and is equal is fine,
//! what is gone already counts as deleted (`Ok(false)`).
//!
//! ```no_run
//! # async fn sketch() -> Result<(), Box<dyn std::error::Error>> {
//! use tombolo_netlink::{AddressOptions, LinkSettings, NetNs, Netlink, NextHop, Route, RouteFilter, VethEnd, Watch};
//!
//! let here = Netlink::here()?;                                  // this process's namespace
//! let pod_ns = NetNs::create("/run/netns/example")?;            // or open(path), of_pid(pid), anonymous()
//! let pod = Netlink::in_namespace(&pod_ns)?;                    // socket opened by a thread inside it
//! let host_end = VethEnd { mtu: Some(1450), ..VethEnd::new("tb0123456789a") };
//! let pod_end = VethEnd { namespace: Some(pod_ns.clone()), ..VethEnd::new("eth0") };
//! let (host_link, pod_link) = here.create_veth(&host_end, &pod_end).await?;
//! here.set_link(host_link.index, &LinkSettings { up: Some(true), ..Default::default() }).await?;
//! pod.set_up(pod_link.index).await?;
//! pod.add_address(pod_link.index, "10.1.1.7/32".parse()?, AddressOptions::default()).await?;
//! let gateway = "10.1.1.1".parse()?;
//! pod.set_neighbour(pod_link.index, gateway, host_link.mac.ok_or("no MAC")?).await?;
//! pod.replace_route(&Route::unicast("0.0.0.0/0".parse()?, vec![NextHop::on_link(gateway, pod_link.index)])).await?;
//! pod.set_sysctl("net/ipv4/conf/eth0/rp_filter", "0").await?;
//! let ours = here.routes(RouteFilter { protocol: Some(0x54), ..Default::default() }).await?;
//! let mut changes = here.changes(Watch { links: true, ..Default::default() })?;
//! while let Some(change) = changes.next().await { println!("{change:?}, {} routes", ours.len()); }
//! pod_ns.run(|| std::net::TcpListener::bind("[::]:80"))??;      // any work inside, on a thread of its own
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

mod address;
mod batch;
mod connection;
mod defaults;
mod error;
mod filter;
mod link;
mod mac;
mod monitor;
mod namespace;
mod neighbour;
mod nexthop;
mod qdisc;
mod route;
mod rule;
mod sysctl;

pub use address::{Address, AddressOptions};
pub use batch::Write;
pub use connection::Netlink;
pub use defaults::DefaultRoutes;
pub use error::Error;
pub use filter::ClsactSide;
pub use link::{Link, LinkSettings, LinkStats, NAME_MAX_BYTES, VethEnd, VxlanSettings, VxlanSpec};
pub use mac::{MacAddr, MacAddrError};
pub use monitor::{Change, Changes, Watch};
pub use namespace::NetNs;
pub use neighbour::Neighbour;
pub use nexthop::{NextHopKind, NextHopObject, NextHopObjects};
pub use route::{Found, NextHop, PROTOCOL_STATIC, Route, RouteFilter, RouteKind, TABLE_LOCAL, TABLE_MAIN};
pub use rule::{Family, Rule};
pub use sysctl::set_sysctl;
