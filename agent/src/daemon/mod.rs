//! The node daemon: starts every room in a clear order and joins them. Wiring only.
//!
//! ```text
//! datapath opened (an earlier life's maps and programs keep forwarding)
//!   └ local API up: `tombolo status` answers from here on
//!       └ manifests read, own Node found
//!           └ devices, WireGuard, node configuration of the datapath
//!               └ mesh followers, planners, reconcilers
//!                   └ endpoints restored, CNI served ── hooks of the node attached
//!                       └ publisher, BGP ── ready
//! ```
//! Stopping by SIGTERM withdraws BGP routes first; SIGKILL leaves everything as it is for the next life.

mod acceleration;
pub(crate) mod api;
mod backend;
pub(crate) mod bgp;
pub(crate) mod bgp_api;
mod bgp_status;
mod datapath;
pub(crate) mod dns;
pub(crate) mod drive;
mod egress;
mod endpoints;
mod flows;
mod follow_names;
mod host_policy;
mod host_ports;
mod interfaces;
mod kernel_tables;
mod landmarks;
mod mcs;
mod mesh_metrics;
mod mesh_services;
pub(crate) mod mesh_view;
mod names;
pub(crate) mod network;
mod node;
pub(crate) mod parts;
mod planners;
mod policy;
pub(crate) mod policy_impact;
mod policy_parties;
pub(crate) mod policy_trace;
mod probe;
mod publish;
pub(crate) mod show;
mod snat;
mod sockets;
mod stages;
pub(crate) mod status;
mod tables;
pub(crate) mod tasks;
mod watch;
pub(crate) mod why;
mod wiring;

use crate::config::{Attach, Config, Identity, Path};
use anyhow::Context;
use backend::Daemon;
use drive::{Board, Clock, Driver, Resync};
use std::sync::Arc;
use tasks::{Roll, Tasks};
use tokio_util::sync::CancellationToken;
use tombolo_ebpf::{Datapath, DatapathConfig, MapSizes};
use tombolo_kubernetes::{ClusterIdentity, FolderConfig, FolderSource, Tables};
use tombolo_topology::PathKind;

/// How long the tasks may take to end after a stop was asked for.
const STOP: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be started, why, and what to try.
pub(crate) async fn run(config: Config, identity: Identity) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let mut signals = Signals::new()?;
    let roll = Roll::default();
    let start = Start { config, identity, cancel: stop, roll: roll.clone() };
    let mut running = tokio::spawn(async move { start.go().await });
    let broken = "the agent's main task broke off; this is a bug, please report the log";
    tokio::select! {
        () = signals.wait() => {}
        ended = &mut running => return ended.context(broken)?,
    }
    tracing::info!("stopping: routes are withdrawn first, forwarding goes on");
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    cancel.cancel();
    match tokio::time::timeout(STOP, running).await {
        Ok(ended) => ended.context(broken)?,
        Err(_) => anyhow::bail!(
            "not stopped within {} s, so it is broken off; still running: {}. Routers keep this node's routes until \
             their restart timer ends",
            STOP.as_secs(),
            roll.running().join(", ")
        ),
    }
}

/// The signals that stop the program.
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// The signal that cannot be listened for.
    pub(crate) fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for one of them.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Start {
    config: Config,
    identity: Identity,
    cancel: CancellationToken,
    roll: Roll,
}

impl Start {
    async fn go(self) -> anyhow::Result<()> {
        let (config, identity) = (&self.config, &self.identity);
        let driver = Driver {
            clock: Clock::start(),
            board: Board::default(),
            cancel: self.cancel.clone(),
            seed: identity
                .node
                .bytes()
                .fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte))),
            resync: Resync::default(),
        };
        let mut tasks = Tasks::new(self.roll.clone());
        let datapath = open_datapath(config).await?;
        let remembered = datapath::remember(&datapath).map_err(anyhow::Error::msg)?;
        let daemon =
            Arc::new(Daemon::new(config, identity, driver.clone(), datapath.clone(), self.roll.clone()));
        let listener = api::listen(&config.api.socket)?;
        tasks.spawn("api", api::serve(listener, daemon.clone(), self.cancel.clone()));
        if let Some(address) = config.metrics.listen {
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot open metrics.listen {address}; is the port taken?"))?;
            tasks.spawn("metrics", api::serve_metrics(listener, daemon.clone(), self.cancel.clone()));
        }

        daemon.stage("reading manifests");
        let (kube, writers) = Tables::new();
        let cluster = ClusterIdentity { name: identity.cluster, id: identity.cluster_id };
        let keep = Some(config.state_dir.0.join("manifests"));
        let folder = FolderConfig { keep, ..FolderConfig::new(&config.manifests.folder, cluster) };
        let source = FolderSource::start(folder, writers.clone(), self.cancel.clone())?;
        daemon.manifests.set(source.reports()).ok();
        let Some(own) = node::own_node(&daemon, &kube.nodes, identity, &self.cancel).await else {
            // Stopped before it was anything: there is nothing to withdraw.
            source.stopped().await;
            return Ok(());
        };

        daemon.stage("setting up devices");
        let node = Arc::new(node::set_up(config, identity, &own, &datapath).await?);
        daemon.node.set(node.clone()).ok();

        let ground = wiring::Ground {
            daemon: &daemon,
            driver: &driver,
            node: &node,
            config,
            identity,
            tasks: &mut tasks,
        };
        wiring::start(ground, (kube, &writers), remembered).await?;
        daemon.stage("");
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
        tracing::info!(node = %identity.node, cluster = %identity.cluster, "ready");

        tasks.ended(&self.cancel).await;
        source.stopped().await;
        Ok(())
    }
}

fn map_sizes(maps: &crate::config::Maps) -> MapSizes {
    MapSizes {
        hosts: maps.prefixes,
        prefixes: maps.prefixes.min(65_536),
        services: maps.services,
        backends: maps.backends,
        maglev_slots: maps.maglev_slots,
        source_ranges: maps.source_ranges,
        affinity: maps.affinity,
        sockets: maps.sockets,
        conntrack_half: maps.conntrack / 2,
        conntrack: maps.conntrack / 2,
        nat_half: maps.nat / 2,
        nat: maps.nat,
        egress: maps.egress,
        rules: maps.policy,
        policies: maps.policies,
        endpoints: maps.endpoints,
        nodes: maps.nodes,
        ..MapSizes::default()
    }
}

async fn open_datapath(config: &Config) -> anyhow::Result<Arc<Datapath>> {
    let sizes = map_sizes(&config.datapath.maps);
    let attach = match config.datapath.attach {
        Attach::Auto => tombolo_ebpf::Attach::Auto,
        Attach::Tcx => tombolo_ebpf::Attach::Tcx,
        Attach::Clsact => tombolo_ebpf::Attach::Clsact,
    };
    let open =
        DatapathConfig { bpffs: config.datapath.bpffs.clone(), sizes, attach, ..DatapathConfig::default() };
    let opened = tokio::task::spawn_blocking(move || Datapath::open(&open)).await?;
    Ok(Arc::new(opened.context("cannot open the eBPF datapath")?))
}

/// The path kind that the configuration asks for.
const fn path_kind(path: Path) -> PathKind {
    match path {
        Path::Overlay => PathKind::Overlay,
        Path::Direct => PathKind::Direct,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_map_has_the_size_that_is_configured() {
        let sizes = super::map_sizes(&crate::config::Maps::default());
        assert_eq!((sizes.nodes, sizes.endpoints, sizes.policies), (65_536, 4096, 16_384));
        let text = r#"{"nodes": 100000, "endpoints": 512, "policies": 600, "policy": 700}"#;
        let sizes = super::map_sizes(&serde_json::from_str(text).unwrap());
        assert_eq!((sizes.nodes, sizes.endpoints, sizes.policies, sizes.rules), (100_000, 512, 600, 700));
    }
}
