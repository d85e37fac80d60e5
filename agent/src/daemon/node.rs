//! This node: its Node object, its devices, WireGuard, the datapath's node configuration, its hooks.

use super::acceleration::{self, Accelerated};
use super::backend::Daemon;
use super::drive::Driver;
use super::parts;
use super::path_kind;
use super::snat;
use super::sockets::{self, Sockets};
use super::tasks::Tasks;
use crate::config::{self, Config, Encryption, Etcd, Identity, Path};
use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_base::table::Table;
use tombolo_clustermesh::follower::{self, MeshConfig, MeshHandle, MeshSink, Timers};
use tombolo_clustermesh::publisher::{self, PublisherConfig, PublisherHandle};
use tombolo_ebpf::{Datapath, LbMode, LocalAddress, MapUsage, NodeConfig};
use tombolo_netlink::Netlink;
use tombolo_topology::NodeRow;
use tombolo_topology::plan::{PathMtus, PlanConfig};
use tombolo_tunnel as tunnel;

/// How often finished connections are looked for.
const GC_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);

/// A device of the node as it was set up.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: String,
    /// Its index.
    pub(crate) index: u32,
    /// Its MTU, in bytes.
    pub(crate) mtu: u32,
    /// Whether programs of the datapath run on what it (receives, sends).
    pub(crate) hooks: (bool, bool),
}

/// The node once its devices are there.
pub(crate) struct NodeSetup {
    /// The Node object that it was set up from.
    pub(crate) own: NodeRow,
    /// The underlay's device, and those of ours.
    pub(crate) devices: Vec<Device>,
    /// The kernel of this namespace.
    pub(crate) netlink: Netlink,
    /// What the plans depend on.
    pub(crate) plan: PlanConfig,
    /// MTU of the underlay's link, in bytes.
    pub(crate) device_mtu: u16,
    /// The underlay address others know the node by.
    pub(crate) host_ip: Option<IpAddr>,
    /// WireGuard, if packets are encrypted.
    pub(crate) wireguard: Option<tunnel::Wireguard>,
    /// Whether an earlier life left its forwarding plane at work.
    pub(crate) restarting: bool,
    /// Where services are translated at sockets.
    pub(crate) sockets: Sockets,
    /// What serves outside clients.
    pub(crate) accelerated: Accelerated,
}

/// Waits for this node's own Node object; none if the stop is asked for before.
pub(crate) async fn own_node(
    daemon: &Daemon,
    nodes: &Table<NodeRow>,
    identity: &Identity,
    cancel: &CancellationToken,
) -> Option<NodeRow> {
    let key = (Source::Manifests, identity.cluster, identity.node.clone());
    let mut changes = nodes.changes();
    loop {
        if let Some(row) = nodes.snapshot().get(&key)
            && !row.pod_cidrs.is_empty()
        {
            return Some(row.clone());
        }
        daemon.stage(&format!("waiting for a Node {} with spec.podCIDRs among the manifests", identity.node));
        tokio::select! {
            () = cancel.cancelled() => return None,
            _ = changes.next() => {}
        }
    }
}

/// Sets the node up; everything that is there already and right stays as it is.
pub(crate) async fn set_up(
    config: &Config,
    identity: &Identity,
    own: &NodeRow,
    datapath: &Arc<Datapath>,
) -> anyhow::Result<NodeSetup> {
    let netlink = Netlink::here()?;
    let uplink = netlink.link(&config.node.underlay_interface).await.with_context(|| {
        format!("node.underlay_interface {} is not there", config.node.underlay_interface)
    })?;
    let connected = netlink.addresses(Some(uplink.index)).await?;
    let device_mtu = u16::try_from(uplink.mtu).unwrap_or(u16::MAX);
    let plan = PlanConfig {
        cluster: identity.cluster,
        node: identity.node.clone(),
        path: path_kind(config.datapath.path),
        encrypt: config.datapath.encryption == Encryption::Wireguard,
        wireguard_port: config.datapath.wireguard_port,
        overlay_device: tunnel::VXLAN_DEVICE.into(),
        mtu: path_mtus(config, own, device_mtu)?,
        connected: connected.into_iter().map(|a| a.address.into()).collect(),
    };
    let (made, wireguard) = make_devices(config, own, &netlink, plan.mtu, device_mtu).await?;
    let uplink_index = uplink.index;
    let uplink = Device { name: uplink.name, index: uplink_index, mtu: uplink.mtu, hooks: (true, true) };
    let restarting = datapath.config()?.ready;
    let devices: Vec<Device> = std::iter::once(uplink).chain(made).collect();
    snat::tell_shared(&config.datapath.snat_ports.0);
    // Before the node's row says that it masquerades.
    datapath.set_unmasked(&unmasked(config))?;
    let row = NodeConfig {
        paced: paced(config, &netlink, uplink_index).await?,
        ..node_config(config, identity, own, &devices)
    };
    configure(datapath, &row, own)?;
    attach(datapath, &devices)?;
    let sockets = sockets::attach(&config.datapath, datapath)?;
    let accelerated = acceleration::attach(&config.datapath.load_balancer, datapath, uplink_index)?;
    Ok(NodeSetup {
        own: own.clone(),
        devices,
        netlink,
        plan,
        device_mtu,
        host_ip: own.underlay(true).or_else(|| own.underlay(false)),
        wireguard,
        restarting,
        sockets,
        accelerated,
    })
}

/// Destinations that see pods' addresses though the node masquerades. What means something on one link alone does not leave
/// it, as with ip-masq-agent.
fn unmasked(config: &Config) -> BTreeSet<IpNet> {
    let masquerade = &config.datapath.masquerade;
    if !masquerade.ipv4 && !masquerade.ipv6 {
        return BTreeSet::new();
    }
    let written = masquerade.native_cidrs.iter().chain(&masquerade.non_masquerade_cidrs).map(Prefix::net);
    let links = [
        IpNet::new_assert(Ipv4Addr::new(169, 254, 0, 0).into(), 16),
        IpNet::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
    ];
    written.chain(links).map(|net| net.trunc()).collect()
}

/// Whether the uplink sends each packet at its time: then pods are paced to their bandwidth, else what is more is dropped.
/// What leaves encrypted has no time any more when it comes to the uplink.
async fn paced(config: &Config, netlink: &Netlink, uplink: u32) -> anyhow::Result<bool> {
    let queues = netlink.queues(uplink).await?;
    let by_time = !queues.is_empty() && queues.iter().all(|kind| kind == "fq");
    Ok(config.datapath.bandwidth && config.datapath.encryption == Encryption::None && by_time)
}

/// The node's internal addresses: the pods' gateways.
fn internal(own: &NodeRow) -> impl Iterator<Item = IpAddr> {
    [own.internal(true), own.internal(false)].into_iter().flatten()
}

async fn make_devices(
    config: &Config,
    own: &NodeRow,
    netlink: &Netlink,
    mtu: PathMtus,
    device_mtu: u16,
) -> anyhow::Result<(Vec<Device>, Option<tunnel::Wireguard>)> {
    let internal: Vec<IpAddr> = internal(own).collect();
    if internal.is_empty() {
        bail!("Node {} has no usable pod prefix; give it spec.podCIDRs", own.name);
    }
    let vxlan = config
        .datapath
        .has_tunnel()
        .then_some(tunnel::VxlanConfig { port: config.datapath.vxlan_port, mtu: mtu.largest().into() });
    let wanted = tunnel::DeviceConfig { vxlan, internal, host_mtu: mtu.smallest().into() };
    let made = tunnel::devices::ensure(netlink, &wanted).await.context("cannot set up the node's devices")?;
    let wireguard = wireguard(config, own, device_mtu, netlink).await?;
    let device = |link: tombolo_netlink::Link, hooks| Device {
        name: link.name,
        index: link.index,
        mtu: link.mtu,
        hooks,
    };
    let mut devices = vec![device(made.host, (false, false)), device(made.net, (false, false))];
    devices.extend(made.vxlan.map(|link| device(link, (true, true))));
    if wireguard.is_some() {
        devices.push(device(netlink.link(tunnel::WIREGUARD_DEVICE).await?, (true, false)));
    }
    Ok((devices, wireguard))
}

/// The index of one of our devices; 0 = not there.
fn index_of(devices: &[Device], name: &str) -> u32 {
    devices.iter().find(|device| device.name == name).map_or(0, |device| device.index)
}

fn node_config(config: &Config, identity: &Identity, own: &NodeRow, devices: &[Device]) -> NodeConfig {
    let v4 = |ip: Option<IpAddr>| {
        ip.and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None::<Ipv4Addr> })
    };
    let v6 = |ip: Option<IpAddr>| {
        ip.and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None::<Ipv6Addr> })
    };
    NodeConfig {
        ready: true,
        encrypt: config.datapath.encryption == Encryption::Wireguard,
        cluster_id: u32::from(identity.cluster_id.get()),
        uplink_ifindex: index_of(devices, &config.node.underlay_interface),
        overlay_ifindex: index_of(devices, tunnel::VXLAN_DEVICE),
        wireguard_ifindex: index_of(devices, tunnel::WIREGUARD_DEVICE),
        vxlan_port: config.datapath.vxlan_port,
        wireguard_port: (config.datapath.encryption == Encryption::Wireguard)
            .then_some(config.datapath.wireguard_port),
        events_per_sec: config.datapath.events_per_second,
        aggregation: match config.datapath.aggregation {
            config::Aggregation::None => tombolo_ebpf::Aggregation::None,
            config::Aggregation::Low => tombolo_ebpf::Aggregation::Sent,
            config::Aggregation::Medium | config::Aggregation::Maximum => tombolo_ebpf::Aggregation::Flows,
        },
        report_interval: Duration::from_secs(config.datapath.report_interval_secs.into()),
        report_flags: config.datapath.report_flags.iter().fold(0, |all, flag| all | flag.bit()),
        capture: match config.datapath.capture {
            config::Capture::Off => tombolo_ebpf::CaptureOf::Nothing,
            config::Capture::Drops => tombolo_ebpf::CaptureOf::Drops,
            config::Capture::All => tombolo_ebpf::CaptureOf::All,
        },
        internal4: v4(own.internal(true)),
        internal6: v6(own.internal(false)),
        underlay4: v4(own.underlay(true)),
        underlay6: v6(own.underlay(false)),
        snat_ports: config.datapath.snat_ports.0.clone(),
        masquerade4: config.datapath.masquerade.ipv4,
        masquerade6: config.datapath.masquerade.ipv6,
        socket_lb: sockets::rows_word(config.datapath.socket_lb),
        lb_mode: match config.datapath.load_balancer.mode {
            config::LbMode::Snat => LbMode::Snat,
            config::LbMode::Dsr => LbMode::Dsr,
            config::LbMode::Hybrid => LbMode::Hybrid,
        },
        ..NodeConfig::default()
    }
}

fn configure(datapath: &Datapath, row: &NodeConfig, own: &NodeRow) -> anyhow::Result<()> {
    // The policy of an earlier life holds until this one has planned its own.
    let NodeConfig { host_policy_id, host_serves, .. } = datapath.config()?;
    datapath.set_config(&NodeConfig { host_policy_id, host_serves, ..row.clone() })?;
    for address in internal(own).chain([own.underlay(true), own.underlay(false)].into_iter().flatten()) {
        datapath.upsert_local_address(address, LocalAddress::Host)?;
    }
    Ok(())
}

fn attach(datapath: &Datapath, devices: &[Device]) -> anyhow::Result<()> {
    for device in devices.iter().filter(|device| device.hooks != (false, false)) {
        match device.name.as_str() {
            tunnel::VXLAN_DEVICE => datapath.attach_overlay(device.index)?,
            tunnel::WIREGUARD_DEVICE => datapath.attach_wireguard(device.index)?,
            _ => datapath.attach_uplink(device.index)?,
        }
    }
    Ok(())
}

/// Only families in which the node has an underlay address: peers agree on one that both have.
fn path_mtus(config: &Config, own: &NodeRow, device_mtu: u16) -> anyhow::Result<PathMtus> {
    let of = |underlay| {
        let overlay = config.datapath.path == Path::Overlay;
        let wireguard = config.datapath.encryption == Encryption::Wireguard;
        own.underlay(underlay == tunnel::mtu::Underlay::V4)
            .map(|_| tunnel::mtu::path_mtu(device_mtu, tunnel::mtu::Path { overlay, wireguard, underlay }))
            .transpose()
    };
    Ok(PathMtus { ipv4: of(tunnel::mtu::Underlay::V4)?, ipv6: of(tunnel::mtu::Underlay::V6)? })
}

async fn wireguard(
    config: &Config,
    own: &NodeRow,
    device_mtu: u16,
    netlink: &Netlink,
) -> anyhow::Result<Option<tunnel::Wireguard>> {
    // Peers speak IPv4 where both have it; a node without it uses what IPv6 leaves.
    let underlay =
        if own.underlay(true).is_some() { tunnel::mtu::Underlay::V4 } else { tunnel::mtu::Underlay::V6 };
    let run = config.api.socket.parent().unwrap_or_else(|| std::path::Path::new("/run/tombolo")).to_owned();
    let settings = tunnel::WireguardConfig {
        interface: tunnel::WIREGUARD_DEVICE.into(),
        port: config.datapath.wireguard_port,
        fwmark: tunnel::FWMARK,
        mtu: tunnel::mtu::inside_wireguard(device_mtu, underlay).into(),
        key_file: config.state_dir.0.join("wireguard.key"),
        backend: tunnel::BackendChoice::Auto,
        unit: tunnel::Unit {
            program: std::env::current_exe().context("cannot tell the path of this program")?,
            arguments: vec!["wireguard".into()],
            socket: run.join("wireguard.sock"),
            pid_file: run.join("wireguard.pid"),
            log_file: run.join("wireguard.log"),
        },
    };
    if config.datapath.encryption == Encryption::None {
        tunnel::remove(&settings, netlink).await.context("cannot take an earlier WireGuard device away")?;
        return Ok(None);
    }
    std::fs::create_dir_all(&config.state_dir.0)
        .with_context(|| format!("cannot create {}", config.state_dir.0.display()))?;
    Ok(Some(tunnel::Wireguard::ensure(settings, netlink.clone()).await.context("cannot set up WireGuard")?))
}

/// Follows the remote clusters, and the own cluster's other nodes.
pub(crate) async fn start_mesh(
    config: &Config,
    identity: &Identity,
    sink: Arc<dyn MeshSink>,
    cancel: CancellationToken,
    tasks: &mut Tasks,
) -> MeshHandle {
    let mesh = MeshConfig {
        cluster: identity.cluster,
        cluster_id: Some(identity.cluster_id),
        max: identity.max_clusters,
        folder: config.clustermesh.folder.clone(),
        snapshots: Some(config.state_dir.0.join("clustermesh")),
        allow_plaintext: config.clustermesh.allow_plaintext,
        own: config.etcd.as_ref().map(Etcd::client),
        timers: Timers::default(),
        limits: config.clustermesh.limits(),
        exports: config.clustermesh.service_exports,
        preference: config.clustermesh.service_preference.into(),
        mirror: false,
        relay: config.relay(),
    };
    let (handle, task) = follower::start(mesh, sink, cancel).await;
    tasks.spawn("mesh", async move {
        if let Err(error) = task.await {
            tracing::error!(%error, "the mesh followers broke off; restart the agent");
        }
    });
    handle
}

/// Starts publishing in the own cluster's etcd.
pub(crate) fn start_publisher(
    config: &Config,
    identity: &Identity,
    cancel: CancellationToken,
    tasks: &mut Tasks,
) -> anyhow::Result<PublisherHandle> {
    let etcd = config.etcd.as_ref().ok_or_else(|| anyhow!("etcd is missing in the configuration"))?;
    let settings = PublisherConfig {
        max: identity.max_clusters,
        backends: config.clustermesh.backends.into(),
        exports: config.clustermesh.service_exports,
        ..PublisherConfig::new(
            identity.cluster,
            identity.cluster_id,
            identity.node.clone(),
            etcd.client(),
            config.state_dir.0.clone(),
        )
    };
    let (handle, task) = publisher::start(settings, cancel);
    tasks.spawn("publisher", async move {
        if let Err(error) = task.await {
            tracing::error!(%error, "publishing broke off; restart the agent");
        }
    });
    Ok(handle)
}

/// Says once of each map that it will soon refuse entries, and again after it had room.
fn tell_pressure(told: &mut BTreeSet<&'static str>, usage: &[MapUsage]) {
    for map in usage {
        if !parts::is_nearly_full(map) {
            told.remove(map.map);
        } else if told.insert(map.map) {
            let option = map.option().unwrap_or("(fixed)");
            tracing::warn!(
                map = map.map,
                entries = map.entries,
                capacity = map.capacity,
                "the map is nearly full and refuses entries when it is; raise datapath.maps.{option} and restart the agent"
            );
        }
    }
}

/// Removes finished connections until cancelled.
pub(crate) async fn collect_garbage(driver: Driver, datapath: Arc<Datapath>) {
    let mut told = BTreeSet::new();
    let mut interval = tokio::time::interval(GC_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = interval.tick() => {}
        }
        let collecting = datapath.clone();
        match tokio::task::spawn_blocking(move || collecting.gc()).await {
            Ok(Ok(stats)) => {
                tracing::debug!(seen = stats.seen, deleted = stats.deleted, "conntrack looked through");
            }
            Ok(Err(error)) => tracing::warn!(%error, "conntrack cannot be looked through"),
            Err(error) => tracing::warn!(%error, "conntrack clean-up broke off"),
        }
        tell_pressure(&mut told, &datapath.usage());
    }
}
