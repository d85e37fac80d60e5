//! Between the nodes: the VXLAN device, the kernel's routes, WireGuard.
//!
//! ```no_run
//! # use tombolo_tunnel as tunnel;
//! # async fn sketch() -> Result<(), Box<dyn std::error::Error>> {
//! let netlink = tombolo_netlink::Netlink::here()?;
//! let underlay = tunnel::mtu::Underlay::V6;
//! let path = tunnel::mtu::Path { overlay: true, wireguard: true, underlay };
//! let pod_mtu = tunnel::mtu::path_mtu(1500, path)?;
//! let devices = tunnel::devices::ensure(&netlink, &tunnel::DeviceConfig {
//!     vxlan: Some(tunnel::VxlanConfig { port: 8472, mtu: pod_mtu.into() }),   // None: direct mode, removes it
//!     internal: vec!["10.1.1.1".parse()?, "fd00:10:1:1::1".parse()?],
//!     host_mtu: pod_mtu.into(),
//! }).await?;
//! let wireguard = tunnel::Wireguard::ensure(tunnel::WireguardConfig {
//!     interface: tunnel::WIREGUARD_DEVICE.into(),
//!     port: tunnel::DEFAULT_PORT,
//!     fwmark: tunnel::FWMARK,
//!     mtu: tunnel::mtu::inside_wireguard(1500, underlay).into(),
//!     key_file: "/var/lib/tombolo/wireguard.key".into(),
//!     backend: tunnel::BackendChoice::Auto,
//!     unit: tunnel::Unit {
//!         program: std::env::current_exe()?,
//!         arguments: vec!["wireguard".into()],                                // -> userspace::run(rest of the arguments)
//!         socket: "/run/tombolo/wireguard.sock".into(),
//!         pid_file: "/run/tombolo/wireguard.pid".into(),
//!         log_file: "/run/tombolo/wireguard.log".into(),
//!     },
//! }, netlink.clone()).await?;
//! println!("publish {}, datapath: vxlan {:?}", wireguard.public_key(), devices.vxlan.map(|link| link.index));
//! // Targets for tombolo_base::reconcile::Reconciler: `wireguard` of WireguardPeer rows, and of RouteEntry rows:
//! let routes = tunnel::KernelRoutes::new(netlink, tunnel::RouteSettings::default());
//! # drop(routes); Ok(()) }
//! ```
//!
//! The userspace unit (`tombolo wireguard`, [`userspace::run`]) is a child of init and goes on without the agent; the next
//! agent finds it by its control socket, and sets only what differs.

#![forbid(unsafe_code)]

pub mod devices;
mod error;
mod groups;
mod key;
pub mod mtu;
mod routes;
mod uapi;
pub mod userspace;
mod watch;
mod wireguard;

pub use devices::{
    DeviceConfig, Devices, HOST_DEVICE, NET_DEVICE, VXLAN_DEVICE, VXLAN_MAC, VxlanConfig, WIREGUARD_DEVICE,
};
pub use error::WireguardError;
pub use key::{PrivateKey, load_or_create};
pub use routes::{DEFAULT_METRIC, DEFAULT_PROTOCOL, KernelRoutes, RouteSettings};
pub use userspace::Unit;
pub use watch::{Disturbance, Disturbances};
pub use wireguard::{
    Backend, BackendChoice, DEFAULT_PORT, DeviceState, FWMARK, PeerState, Wireguard, WireguardConfig, remove,
};
