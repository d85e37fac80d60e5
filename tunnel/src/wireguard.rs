//! WireGuard: one device, two backends. The kernel's where the kernel has WireGuard, else a userspace unit of its own.
//!
//! Peers are set by difference: what a peer already has is not set again, since a userspace device begins a new session
//! with a peer that is set, and packets in between would be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use tombolo_base::prefix::Prefix;
use tombolo_base::reconcile::Target;
use tombolo_base::rows::Rows;
use tombolo_base::source::Source;
use tombolo_netlink::{LinkSettings, Netlink};
use tombolo_topology::{WireguardKey, WireguardPeer};
use wireguard_control as control;

use crate::error::WireguardError;
use crate::key::{PrivateKey, load_or_create};
use crate::uapi::{Change, PeerChange, Uapi};
use crate::userspace::Unit;

/// WireGuard's UDP port on every node, as Cilium's.
pub const DEFAULT_PORT: u16 = 51871;
/// The mark on WireGuard's own packets, by which the datapath knows ciphertext and does not encrypt it again.
pub const FWMARK: u32 = 0x1E00;

/// Which backend to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// The kernel's where it has WireGuard, else userspace.
    #[default]
    Auto,
    /// The kernel's or none.
    Kernel,
    /// The userspace unit, even if the kernel has WireGuard.
    Userspace,
}

/// The backend in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's device.
    Kernel,
    /// The userspace unit.
    Userspace,
}

/// Settings of WireGuard on this node.
#[derive(Clone, Debug)]
pub struct WireguardConfig {
    /// The device; [`crate::WIREGUARD_DEVICE`].
    pub interface: String,
    /// UDP port; [`DEFAULT_PORT`].
    pub port: u16,
    /// Mark on ciphertext; [`FWMARK`].
    pub fwmark: u32,
    /// MTU of the device, in bytes: what fits into WireGuard on the narrowest path, see [`crate::mtu::inside_wireguard`].
    pub mtu: u32,
    /// The private key's file, `state_dir/wireguard.key`.
    pub key_file: PathBuf,
    /// Which backend.
    pub backend: BackendChoice,
    /// How the userspace unit is started and found; its `interface` is the one above.
    pub unit: Unit,
}

/// What the device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    pub(crate) private_key: Option<[u8; 32]>,
    /// UDP port.
    pub listen_port: Option<u16>,
    /// Mark on ciphertext; 0 is none.
    pub fwmark: u32,
    /// By public key.
    pub peers: BTreeMap<WireguardKey, PeerState>,
}

impl DeviceState {
    fn has(&self, peer: &WireguardPeer) -> bool {
        self.peers.get(&peer.key).is_some_and(|found| {
            found.endpoint == Some(peer.endpoint) && found.allowed_ips == peer.allowed_ips
        })
    }
}

/// What the device knows of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// Where it was last heard from, or was said to be.
    pub endpoint: Option<SocketAddr>,
    /// What may come from it and goes to it.
    pub allowed_ips: BTreeSet<Prefix>,
    /// Time of the last handshake since 1970, in whole seconds.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
}

/// The node's WireGuard device, set up and running. Dropping it leaves the device at work.
#[derive(Clone, Debug)]
pub struct Wireguard {
    config: WireguardConfig,
    netlink: Netlink,
    key: PrivateKey,
    backend: Backend,
    uapi: Uapi,
}

impl Wireguard {
    /// Makes the device, or finds the one at work, and gives it key, port, mark and MTU where they differ. A userspace
    /// unit is started in the handle's namespace if none answers.
    ///
    /// # Errors
    /// [`WireguardError`] naming what failed.
    pub async fn ensure(config: WireguardConfig, netlink: Netlink) -> Result<Self, WireguardError> {
        let key_file = config.key_file.clone();
        let key = load_or_create(&key_file)?;
        let backend = choose_backend(&config, &netlink).await?;
        if backend == Backend::Userspace {
            config.unit.ensure_running(&config.interface, netlink.namespace()).await?;
        }
        let uapi = Uapi::new(&config.unit.socket);
        let wireguard = Self { config, netlink, key, backend, uapi };
        wireguard.configure().await?;
        Ok(wireguard)
    }

    /// Key, port and mark where they differ; then MTU, no addresses of the kernel's own making, up.
    async fn configure(&self) -> Result<(), WireguardError> {
        let state = self.state().await?;
        let (key, port, mark) = (self.key.octets(), self.config.port, self.config.fwmark);
        let change = Change {
            private_key: (state.private_key != Some(key)).then_some(key),
            listen_port: (state.listen_port != Some(port)).then_some(port),
            fwmark: (state.fwmark != mark).then_some(mark),
            peers: Vec::new(),
        };
        if change.private_key.is_some() || change.listen_port.is_some() || change.fwmark.is_some() {
            self.apply(change).await?;
        }
        let link = self.netlink.link(&self.config.interface).await?;
        self.netlink.set_sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name), "0").await?;
        let settings = LinkSettings {
            mtu: Some(self.config.mtu).filter(|mtu| *mtu != link.mtu),
            ipv6_link_local: Some(false),
            up: Some(true),
            ..LinkSettings::default()
        };
        Ok(self.netlink.set_link(link.index, &settings).await?)
    }

    /// The public key to be published.
    #[must_use]
    pub fn public_key(&self) -> WireguardKey {
        self.key.public()
    }

    /// The backend in use.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The device as it is now: port, mark, peers with their handshakes and counters.
    ///
    /// # Errors
    /// [`WireguardError`] when the device does not answer.
    pub async fn state(&self) -> Result<DeviceState, WireguardError> {
        match self.backend {
            Backend::Userspace => self.uapi.get().await,
            Backend::Kernel => {
                let device = self.config.interface.clone();
                blocking("read", device, |name| control::Device::get(name, control::Backend::Kernel))
                    .await
                    .map(|device| kernel_state(&device))
            }
        }
    }

    async fn apply(&self, change: Change) -> Result<(), WireguardError> {
        match self.backend {
            Backend::Userspace => self.uapi.set(&change).await,
            Backend::Kernel => {
                let update = kernel_update(&change);
                let device = self.config.interface.clone();
                blocking("change", device, move |name| update.apply(name, control::Backend::Kernel)).await
            }
        }
    }

    /// Makes a peer what the row says; nothing is done if it is already.
    ///
    /// # Errors
    /// [`WireguardError`].
    pub async fn set_peer(&self, peer: &WireguardPeer) -> Result<(), WireguardError> {
        if self.state().await?.has(peer) {
            return Ok(());
        }
        let peer =
            PeerChange::Set { key: peer.key, endpoint: peer.endpoint, allowed_ips: peer.allowed_ips.clone() };
        self.apply(Change { peers: vec![peer], ..Change::default() }).await
    }

    /// Takes a peer away; one that is not there is fine.
    ///
    /// # Errors
    /// [`WireguardError`].
    pub async fn remove_peer(&self, key: WireguardKey) -> Result<(), WireguardError> {
        self.apply(Change { peers: vec![PeerChange::Remove(key)], ..Change::default() }).await
    }

    /// Ends the unit and deletes the device: WireGuard is switched off on this node.
    ///
    /// # Errors
    /// [`WireguardError`].
    pub async fn remove(self) -> Result<(), WireguardError> {
        remove(&self.config, &self.netlink).await
    }

    async fn prune_peers(
        &self,
        keep: &Rows<WireguardPeer>,
        held: &BTreeSet<Source>,
    ) -> Result<(), WireguardError> {
        // The device does not tell whose a peer is: while any source's first list is missing, all strangers stay.
        if !held.is_empty() {
            return Ok(());
        }
        for key in self.state().await?.peers.into_keys().filter(|key| !keep.contains_key(key)) {
            tracing::info!(%key, "a WireGuard peer that nothing asks for is removed");
            self.remove_peer(key).await?;
        }
        Ok(())
    }
}

/// Ends a unit and deletes a device that an earlier configuration left; what is not there is fine.
///
/// # Errors
/// [`WireguardError`].
pub async fn remove(config: &WireguardConfig, netlink: &Netlink) -> Result<(), WireguardError> {
    config.unit.stop().await?;
    netlink.delete_link(&config.interface).await?;
    Ok(())
}

impl Target<WireguardPeer> for Wireguard {
    async fn update(&mut self, row: &WireguardPeer) -> Result<(), String> {
        self.set_peer(row).await.map_err(|error| error.to_string())
    }

    async fn delete(&mut self, row: &WireguardPeer) -> Result<(), String> {
        self.remove_peer(row.key).await.map_err(|error| error.to_string())
    }

    async fn prune(&mut self, keep: &Rows<WireguardPeer>, held: &BTreeSet<Source>) -> Result<(), String> {
        self.prune_peers(keep, held).await.map_err(|error| error.to_string())
    }

    async fn audit(
        &mut self,
        wanted: &Rows<WireguardPeer>,
    ) -> Result<Option<BTreeSet<WireguardKey>>, String> {
        let state = self.state().await.map_err(|error| error.to_string())?;
        Ok(Some(wanted.values().filter(|peer| !state.has(peer)).map(|peer| peer.key).collect()))
    }
}

/// Decides the backend; for the kernel's, the device is made on the way, which is the only sure test.
async fn choose_backend(config: &WireguardConfig, netlink: &Netlink) -> Result<Backend, WireguardError> {
    let found = netlink.find_link(&config.interface).await?;
    let is_tun = found.as_ref().is_some_and(|link| link.kind.as_deref() == Some("tun"));
    match config.backend {
        BackendChoice::Userspace => Ok(Backend::Userspace),
        // A unit is at work: changing over would break what it carries.
        BackendChoice::Auto if is_tun => Ok(Backend::Userspace),
        BackendChoice::Auto | BackendChoice::Kernel => {
            match netlink.create_wireguard(&config.interface).await {
                Ok(_) => Ok(Backend::Kernel),
                Err(error)
                    if config.backend == BackendChoice::Auto
                        && error.errno() == Some(nix::libc::EOPNOTSUPP) =>
                {
                    Ok(Backend::Userspace)
                }
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// Runs a call of wireguard-control, which blocks, off the runtime's workers. It opens its socket in the namespace of this
/// process.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    device: String,
    call: impl FnOnce(&control::InterfaceName) -> std::io::Result<T> + Send + 'static,
) -> Result<T, WireguardError> {
    let name = device.clone();
    let work = tokio::task::spawn_blocking(move || {
        let name: control::InterfaceName = name.parse().map_err(std::io::Error::other)?;
        call(&name)
    });
    let outcome = work.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    outcome.map_err(|source| WireguardError::Kernel { what, device, source })
}

fn kernel_state(device: &control::Device) -> DeviceState {
    let peers = device.peers.iter().map(|peer| {
        let prefix = |ip: &control::AllowedIp| Prefix::new(ip.address, ip.cidr);
        let since_1970 = |time: std::time::SystemTime| time.duration_since(UNIX_EPOCH).ok();
        let state = PeerState {
            endpoint: peer.config.endpoint,
            allowed_ips: peer.config.allowed_ips.iter().filter_map(prefix).collect(),
            last_handshake: peer.stats.last_handshake_time.and_then(since_1970).filter(|t| !t.is_zero()),
            rx_bytes: peer.stats.rx_bytes,
            tx_bytes: peer.stats.tx_bytes,
        };
        (WireguardKey(peer.config.public_key.0), state)
    });
    DeviceState {
        private_key: device.private_key.as_ref().map(|key| key.0),
        listen_port: device.listen_port,
        fwmark: device.fwmark.unwrap_or(0),
        peers: peers.collect(),
    }
}

fn kernel_update(change: &Change) -> control::DeviceUpdate {
    let mut update = control::DeviceUpdate::new();
    if let Some(key) = change.private_key {
        update = update.set_private_key(control::Key(key));
    }
    if let Some(port) = change.listen_port {
        update = update.set_listen_port(port);
    }
    if let Some(mark) = change.fwmark {
        update = update.set_fwmark(mark);
    }
    for peer in &change.peers {
        update = match peer {
            PeerChange::Set { key, endpoint, allowed_ips } => {
                let fresh = control::PeerConfigBuilder::new(&control::Key(key.0))
                    .set_endpoint(*endpoint)
                    .replace_allowed_ips();
                let peer = allowed_ips
                    .iter()
                    .fold(fresh, |peer, prefix| peer.add_allowed_ip(prefix.address(), prefix.prefix_len()));
                update.add_peer(peer)
            }
            PeerChange::Remove(key) => update.remove_peer_by_key(&control::Key(key.0)),
        };
    }
    update
}
