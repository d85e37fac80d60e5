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

pub(crate) mod api;
mod backend;
mod bgp;
mod datapath;
mod drive;
mod endpoints;
mod flows;
mod interfaces;
mod node;
mod planners;
mod policy;
mod publish;
pub(crate) mod show;
pub(crate) mod status;

use crate::config::{Attach, Config, Encryption, Identity, Path};
use anyhow::Context;
use backend::Daemon;
use drive::{Applied, Board, Clock, Driver};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tombolo_base::source::SourceState;
use tombolo_base::table::{Table, Writer};
use tombolo_clustermesh::rows::TableSink;
use tombolo_ebpf::{Datapath, DatapathConfig, MapSizes};
use tombolo_kubernetes::{ClusterIdentity, FolderConfig, FolderSource, Tables, Writers};
use tombolo_topology::plan::{self, NodeIndexes};
use tombolo_topology::{LearnedRoute, PathKind};

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
    let mut running = tokio::spawn(async move { Start { config, identity, cancel: stop }.go().await });
    tokio::select! {
        () = signals.wait() => {}
        ended = &mut running => return ended.context("the agent's main task broke off; this is a bug, please report the log")?,
    }
    tracing::info!("stopping: routes are withdrawn first, forwarding goes on");
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    cancel.cancel();
    tokio::time::timeout(STOP, running).await.ok();
    Ok(())
}

/// The signals that stop the daemon.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A table and its writer shared by several sources.
fn shared<R: tombolo_base::table::Row>() -> (Table<R>, Arc<Writer<R>>) {
    let (table, writer) = Table::new();
    (table, Arc::new(writer))
}

struct Start {
    config: Config,
    identity: Identity,
    cancel: CancellationToken,
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
            resync: Arc::new(Notify::new()),
        };
        let mut tasks = JoinSet::new();
        let datapath = open_datapath(config).await?;
        let remembered = datapath::remember(&datapath).map_err(anyhow::Error::msg)?;
        let daemon = Arc::new(Daemon::new(config, identity, driver.clone(), datapath.clone()));
        let listener = api::listen(&config.api.socket)?;
        tasks.spawn(api::serve(listener, daemon.clone(), self.cancel.clone()));
        if let Some(address) = config.metrics.listen {
            let listener = tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot open metrics.listen {address}; is the port taken?"))?;
            tasks.spawn(api::serve_metrics(listener, daemon.clone(), self.cancel.clone()));
        }

        daemon.stage("reading manifests");
        let (kube, writers) = Tables::new();
        let cluster = ClusterIdentity { name: identity.cluster.clone(), id: identity.cluster_id };
        let keep = Some(config.state_dir.0.join("manifests"));
        let folder = FolderConfig { keep, ..FolderConfig::new(&config.manifests.folder, cluster) };
        let source = FolderSource::start(folder, writers.clone(), self.cancel.clone())?;
        daemon.manifests.set(source.reports()).ok();
        let own = node::own_node(&daemon, &kube.nodes, identity).await;

        daemon.stage("setting up devices");
        let node = node::set_up(config, identity, &own, &datapath).await?;
        daemon.mtu.store(node.plan.mtu.smallest(), std::sync::atomic::Ordering::Relaxed);

        let wired = Wired {
            daemon: &daemon,
            driver: &driver,
            kube: &kube,
            writers: &writers,
            node: &node,
            config,
            identity,
        };
        wired.go(&mut tasks, remembered, own).await?;
        daemon.stage("");
        sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
        tracing::info!(node = %identity.node, cluster = %identity.cluster, "ready");

        // A task that ends before the stop was asked for has said why; the daemon goes on with what works.
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a task broke off; restart the agent");
            }
        }
        source.stopped().await;
        Ok(())
    }
}

async fn open_datapath(config: &Config) -> anyhow::Result<Arc<Datapath>> {
    let maps = &config.datapath.maps;
    let sizes = MapSizes {
        hosts: maps.prefixes,
        prefixes: maps.prefixes.min(65_536),
        services: maps.services,
        backends: maps.backends,
        conntrack_half: maps.conntrack / 2,
        conntrack: maps.conntrack / 2,
        nat: maps.nat,
        rules: maps.policy,
        ..MapSizes::default()
    };
    let attach = match config.datapath.attach {
        Attach::Auto => tombolo_ebpf::Attach::Auto,
        Attach::Tcx => tombolo_ebpf::Attach::Tcx,
        Attach::Clsact => tombolo_ebpf::Attach::Clsact,
    };
    let open = DatapathConfig { bpffs: config.datapath.bpffs.clone(), sizes, attach };
    let opened = tokio::task::spawn_blocking(move || Datapath::open(&open)).await?;
    Ok(Arc::new(opened.context("cannot open the eBPF datapath")?))
}

/// Everything the rooms are joined from.
struct Wired<'a> {
    daemon: &'a Arc<Daemon>,
    driver: &'a Driver,
    kube: &'a Tables,
    writers: &'a Writers,
    node: &'a node::NodeSetup,
    config: &'a Config,
    identity: &'a Identity,
}

impl Wired<'_> {
    async fn go(
        &self,
        tasks: &mut JoinSet<()>,
        remembered: datapath::Remembered,
        own: tombolo_topology::NodeRow,
    ) -> anyhow::Result<()> {
        let (driver, daemon, datapath) = (self.driver, self.daemon, &self.daemon.datapath);
        let (identities, identity_writer) = shared();
        let (prefixes, prefix_writer) = shared();
        let (remote_services, remote_writer) = shared();
        let (addresses, address_writer) = shared();
        let (learned, learned_writer) = Table::<LearnedRoute>::new();
        let (endpoints, endpoint_writer) = Table::new();

        // The mesh: remote clusters and the own cluster's other nodes.
        let sink = Arc::new(TableSink {
            nodes: self.writers.nodes.clone(),
            identities: identity_writer.clone(),
            prefixes: prefix_writer.clone(),
            services: remote_writer,
            assignments: address_writer,
            own: self.identity.cluster.clone(),
            max: self.identity.max_clusters,
        });
        let mesh = node::start_mesh(self.config, self.identity, sink, driver.cancel.clone(), tasks);
        daemon.mesh.set(mesh).ok();

        // Planners.
        let mut indexes = NodeIndexes::default();
        indexes.restore(remembered.nodes);
        let (paths, entries, routes, peers) = (Table::new(), Table::new(), shared(), Table::new());
        if self.config.bgp.enabled {
            // What BGP taught an earlier life stays until it has been taught again.
            routes.1.set_source(&bgp::starting(), SourceState::Pending);
        }
        let out =
            plan::Outputs { paths: paths.1, entries: entries.1, routes: routes.1.clone(), peers: peers.1 };
        let planner = plan::Planner::new(self.node.plan.clone(), indexes);
        let nodes = self.kube.nodes.clone();
        tasks.spawn(planners::topology(
            driver.clone(),
            planner,
            nodes.clone(),
            prefixes.clone(),
            learned.clone(),
            out,
        ));
        let (frontends, backends) = (Table::new(), Table::new());
        let mut planner = tombolo_service::plan::Planner::new(self.identity.node.clone(), driver.clock.now());
        planner.restore(remembered.backends, remembered.frontends);
        let inputs = planners::ServiceInputs {
            services: self.kube.services.clone(),
            slices: self.kube.slices.clone(),
            remote: remote_services.clone(),
            addresses: addresses.clone(),
        };
        let out = tombolo_service::plan::Outputs { frontends: frontends.1, backends: backends.1 };
        tasks.spawn(planners::services(driver.clone(), planner, inputs, out));
        let (policies, endpoint_policies) = (Table::new(), Table::new());
        let inputs = policy::Inputs {
            rules: self.kube.rules.clone(),
            identities: identities.clone(),
            endpoints: endpoints.clone(),
            pods: self.kube.pods.clone(),
        };
        tasks.spawn(policy::planner(
            driver.clone(),
            self.identity.cluster.clone(),
            inputs,
            (policies.1, endpoint_policies.1),
            policy::earlier_ids(datapath),
            daemon.policy_problems.clone(),
        ));
        let applied_policies = Applied::default();
        let interfaces = Table::new();
        tasks.spawn(interfaces::plan(
            driver.clone(),
            endpoints.clone(),
            endpoint_policies.0.clone(),
            applied_policies.clone(),
            interfaces.1,
        ));
        let key = if self.config.datapath.encryption == Encryption::Wireguard { 255 } else { 0 };
        tasks.spawn(planners::local_rows(
            driver.clone(),
            endpoints.clone(),
            self.node.host_ip,
            key,
            prefix_writer,
            identity_writer,
        ));

        // Reconcilers.
        let (applied_paths, applied_entries, applied_interfaces) =
            (Applied::default(), Applied::default(), Applied::default());
        let (applied_frontends, applied_backends) = (Applied::default(), Applied::default());
        let max_clusters = self.identity.max_clusters;
        let cluster_nodes = nodes.clone();
        let clusters = move |id: u32| {
            let snapshot = cluster_nodes.snapshot();
            snapshot.iter().find(|row| u32::from(row.cluster_id.get()) == id).map(|row| row.source.clone())
        };
        let prefix_target = datapath::Prefixes {
            datapath: datapath.clone(),
            encrypt: self.config.datapath.encryption == Encryption::Wireguard,
            max_clusters,
            clusters: Arc::new(clusters),
            paths: applied_paths.clone(),
        };
        tasks.spawn(driver.clone().run(paths.0.clone(), datapath::Paths(datapath.clone()), applied_paths));
        tasks.spawn(driver.clone().run(entries.0.clone(), prefix_target, applied_entries.clone()));
        let backend_target =
            datapath::Backends { datapath: datapath.clone(), frontends: applied_frontends.clone() };
        tasks.spawn(driver.clone().run(backends.0.clone(), backend_target, applied_backends.clone()));
        let frontend_target = datapath::Frontends::new(datapath.clone(), applied_backends);
        tasks.spawn(driver.clone().run(frontends.0.clone(), frontend_target, applied_frontends));
        tasks.spawn(driver.clone().run(
            policies.0.clone(),
            datapath::Policies(datapath.clone()),
            applied_policies,
        ));
        tasks.spawn(driver.clone().run(
            interfaces.0.clone(),
            datapath::Interfaces(datapath.clone()),
            applied_interfaces.clone(),
        ));
        let kernel = tombolo_tunnel::KernelRoutes::new(
            self.node.netlink.clone(),
            tombolo_tunnel::RouteSettings::default(),
        );
        tasks.spawn(driver.clone().run(routes.0.clone(), kernel, Applied::default()));
        if let Some(wireguard) = self.node.wireguard.clone() {
            tasks.spawn(driver.clone().run(peers.0.clone(), wireguard, Applied::default()));
        }
        tasks.spawn(node::collect_garbage(driver.clone(), datapath.clone()));

        // Flows.
        let names = flows::NameTables {
            endpoints: endpoints.clone(),
            prefixes: prefixes.clone(),
            identities: identities.clone(),
            nodes: nodes.clone(),
            frontends: frontends.0.clone(),
        };
        let enricher = tombolo_observe::flow::Enricher {
            node: self.identity.node.clone(),
            cluster: self.identity.cluster.as_str().into(),
            sites: flows::site,
        };
        let events = datapath.events().context("cannot read the datapath's events")?;
        tasks.spawn(flows::run(
            driver.clone(),
            datapath.clone(),
            events,
            enricher,
            names,
            daemon.flows.clone(),
            daemon.metrics.clone(),
        ));

        // Own cluster's etcd: what this node says, and what the elected one says for all.
        let publisher = node::start_publisher(self.config, self.identity, driver.cancel.clone(), tasks)?;
        daemon.publisher.set(publisher.clone()).ok();
        let own_key = tombolo_base::table::Row::key(&own);
        let wireguard_key = self.node.wireguard.as_ref().map(tombolo_tunnel::Wireguard::public_key);
        tasks.spawn(publish::node(
            driver.clone(),
            own_key,
            nodes.clone(),
            prefixes.clone(),
            wireguard_key,
            publisher.clone(),
        ));
        let inputs = publish::ClusterInputs {
            name: self.identity.cluster.clone(),
            id: self.identity.cluster_id,
            tables: self.kube.clone(),
            addresses: addresses.clone(),
        };
        tasks.spawn(publish::cluster(driver.clone(), inputs, publisher.clone(), daemon.lb_problems.clone()));

        // Endpoints: restored first, then the CNI plugin is served.
        daemon.stage("restoring endpoints");
        let gate = endpoints::Gate {
            cluster: self.identity.cluster.clone(),
            pods: self.kube.pods.clone(),
            namespaces: self.kube.namespaces.clone(),
            identities: publisher.identities().clone(),
            endpoints: endpoints.clone(),
            interfaces: applied_interfaces,
            prefixes: applied_entries,
        };
        let store = tombolo_cni::EndpointStore::open(
            tombolo_cni::StoreConfig {
                state_dir: self.config.state_dir.0.clone(),
                pod_cidrs: own
                    .pod_cidrs
                    .iter()
                    .map(tombolo_base::prefix::Prefix::net)
                    .map(Into::into)
                    .collect(),
                pod_mtu: u32::from(self.node.plan.mtu.smallest()),
                route_mtu: None,
                apply_timeout: std::time::Duration::from_secs(30),
            },
            self.node.netlink.clone(),
            gate,
            endpoint_writer,
        )
        .await
        .context("cannot open the endpoint store")?;
        daemon.endpoints.set(store.clone()).ok();
        tasks.spawn(endpoints::follow_labels(
            driver.clone(),
            store,
            self.kube.clone(),
            endpoints.clone(),
            publisher.identities().clone(),
        ));

        // BGP.
        let (bgp_peers, bgp_adverts) = (Table::new(), Table::new());
        tasks.spawn(bgp::planner(
            driver.clone(),
            self.identity.cluster.clone(),
            self.identity.node.clone(),
            self.kube.clone(),
            addresses.clone(),
            (bgp_peers.1, bgp_adverts.1),
            daemon.bgp_conditions.clone(),
        ));
        if self.config.bgp.enabled {
            let import = &self.config.bgp.import.allow;
            let rows = (&bgp_peers.0, &bgp_adverts.0);
            let learned = bgp::Learned { routes: learned_writer, planned: routes.1.clone() };
            let bgp = bgp::start(driver, import, self.node.restarting, rows, learned, tasks);
            daemon.bgp.set(bgp).ok();
        }

        let mut catalogue = show::Catalogue::default();
        catalogue.add(&nodes);
        catalogue.add(&identities);
        catalogue.add(&prefixes);
        catalogue.add(&endpoints);
        catalogue.add(&remote_services);
        catalogue.add(&addresses);
        catalogue.add(&learned);
        catalogue.add(&self.kube.services);
        catalogue.add(&self.kube.slices);
        catalogue.add(&self.kube.pods);
        catalogue.add(&self.kube.namespaces);
        catalogue.add(&self.kube.rules);
        catalogue.add(&self.kube.pools);
        catalogue.add(&paths.0);
        catalogue.add(&entries.0);
        catalogue.add(&routes.0);
        catalogue.add(&peers.0);
        catalogue.add(&frontends.0);
        catalogue.add(&backends.0);
        catalogue.add(&policies.0);
        catalogue.add(&endpoint_policies.0);
        catalogue.add(&interfaces.0);
        catalogue.add(&bgp_peers.0);
        catalogue.add(&bgp_adverts.0);
        daemon.catalogue.set(catalogue).ok();
        Ok(())
    }
}

/// The path kind that the configuration asks for.
const fn path_kind(path: Path) -> PathKind {
    match path {
        Path::Overlay => PathKind::Overlay,
        Path::Direct => PathKind::Direct,
    }
}
