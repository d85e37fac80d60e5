//! Joins the rooms: who reads which table and who writes it. No logic of its own.
//!
//! ```text
//! manifests ┐
//! mesh ─────┼─► intent ──► planners ──► desired ──► reconcilers ──► held by the datapath
//! endpoints ┤     └─► flows, publisher                                   │
//! BGP ──────┘                        endpoints wait for it before a pod starts ◄┘
//! ```

use super::backend::{Daemon, FLOWS, Rows};
use super::drive::{Applied, Driver};
use super::stages::Timed;
use super::status::Part;
use super::tables::{Desired, DesiredWriters, Held, Intent, IntentWriters, catalogue};
use super::tasks::Tasks;
use super::{
    bgp, bgp_status, datapath, dns, egress, endpoints, flows, follow_names, host_policy, host_ports,
    interfaces, mcs, names, network, node, planners, policy, probe, publish, sockets, watch,
};
use crate::config::{Config, Encryption, Identity};
use anyhow::{Context, anyhow};
use std::sync::Arc;
use tombolo_base::reconcile::Target;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Row, Table, Writer};
use tombolo_clustermesh::publisher::PublisherHandle;
use tombolo_clustermesh::rows::{RemoteSlices, TableSink};
use tombolo_kubernetes::{LabelFilter, Tables, Writers};
use tombolo_service::FailedProbe;
use tombolo_service::mcs::{ClusterSetRange, ExportStatus, ImportRow, Outputs, Planner};
use tombolo_service::names::NameRow;
use tombolo_topology::plan::{self, NodeIndexes};
use tombolo_topology::{CidrIdentity, EndpointRow, IdentityRow, LearnedRoute, PrefixRow, ReservedRow};
use tombolo_tunnel::KernelRoutes;

/// How long a CNI call waits for the datapath before it fails.
const APPLY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// What was there before the rooms: the daemon, the node, the manifests.
pub(crate) struct Ground<'a> {
    /// The daemon, to which started rooms are shown.
    pub(crate) daemon: &'a Arc<Daemon>,
    /// Clock, cancellation, progress.
    pub(crate) driver: &'a Driver,
    /// The node's devices, and what plans depend on.
    pub(crate) node: &'a node::NodeSetup,
    /// The configuration.
    pub(crate) config: &'a Config,
    /// Who this agent is.
    pub(crate) identity: &'a Identity,
    /// The tasks of the daemon.
    pub(crate) tasks: &'a mut Tasks,
}

/// Starts every room, from the sources to BGP.
///
/// # Errors
/// The room that could not be started, why, and what to try.
pub(crate) async fn start(
    ground: Ground<'_>,
    (kube, kube_writers): (Tables, &Writers),
    remembered: datapath::Remembered,
) -> anyhow::Result<()> {
    let (intent, sources) = Intent::new(kube);
    let (desired, plans) = Desired::new();
    let catalogue = catalogue(&intent, &desired);
    ground.daemon.rows.set(Rows { intent: intent.clone(), desired: desired.clone(), catalogue }).ok();
    let mut rooms = Rooms { ground, intent, desired, held: Held::default() };

    rooms.announce(&sources);
    rooms.mesh(kube_writers, &sources).await;
    let kernel = rooms.kernel_routes();
    let hops = kernel.next_hops().await.context("cannot read the kernel's routes")?;
    let keys = rooms.peers_at_work().await?;
    rooms.reserve(sources.reserved.clone());
    let network = rooms.network();
    let bgp = rooms.planners(plans, (remembered, hops, keys), kube_writers, &sources, network.clone());
    rooms.reconcilers(kernel.clone())?;
    rooms.flows()?;
    let publisher = rooms.publisher()?;
    rooms.endpoints(&publisher, sources.endpoints).await?;
    rooms.sockets();
    rooms.bgp(bgp, sources.learned, kernel, network);
    Ok(())
}

/// The rooms being joined, and the tables between them.
struct Rooms<'a> {
    ground: Ground<'a>,
    intent: Intent,
    desired: Desired,
    held: Held,
}

impl Rooms<'_> {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.ground.tasks.spawn(name, task);
    }

    /// Carries desired rows to their target.
    fn reconcile<R: Row>(&mut self, rows: Table<R>, target: impl Target<R> + 'static, held: Applied<R>) {
        let run = self.driver().run(rows, target, held);
        self.spawn(R::TABLE, run);
    }

    fn driver(&self) -> Driver {
        self.ground.driver.clone()
    }

    fn encrypted(&self) -> bool {
        self.ground.config.datapath.encryption == Encryption::Wireguard
    }

    /// Whoever will speak is announced before anybody prunes: this node's pods and BGP here, the clusters by the mesh.
    fn announce(&self, sources: &IntentWriters) {
        sources.endpoints.set_source(&Source::Local, SourceState::Pending);
        sources.prefixes.set_source(&Source::Local, SourceState::Pending);
        sources.identities.set_source(&Source::Local, SourceState::Pending);
        sources.host_ports.set_source(&Source::Local, SourceState::Pending);
        if self.ground.config.bgp.enabled {
            // What BGP taught an earlier life stays until it has been taught again.
            sources.learned.set_source(&bgp::starting(), SourceState::Pending);
        }
    }

    /// Where the peers of the WireGuard device are, to whom an earlier life gave them.
    async fn peers_at_work(&self) -> anyhow::Result<RememberedKeys> {
        let Some(wireguard) = &self.ground.node.wireguard else { return Ok(Vec::new()) };
        let state = wireguard.state().await.context("cannot read the WireGuard device's peers")?;
        Ok(state.peers.into_iter().filter_map(|(key, peer)| Some((key, peer.endpoint?.ip()))).collect())
    }

    fn kernel_routes(&self) -> KernelRoutes {
        KernelRoutes::new(self.ground.node.netlink.clone(), tombolo_tunnel::RouteSettings::default())
    }

    /// Remote clusters and the own cluster's other nodes, into the intent tables.
    async fn mesh(&mut self, kube: &Writers, sources: &IntentWriters) {
        let rows = TableSink {
            nodes: kube.nodes.clone(),
            identities: sources.identities.clone(),
            prefixes: sources.prefixes.clone(),
            services: sources.remote_services.clone(),
            slices: RemoteSlices::default(),
            exports: sources.exports.clone(),
            assignments: sources.addresses.clone(),
            own: self.ground.identity.cluster,
            max: self.ground.identity.max_clusters,
        };
        let sink = Arc::new(Timed { rows, timer: self.ground.daemon.map_timer.clone() });
        let Ground { config, identity, driver, tasks, .. } = &mut self.ground;
        let mesh = node::start_mesh(config, identity, sink, driver.cancel.clone(), tasks).await;
        self.ground.daemon.mesh.set(mesh).ok();
    }

    /// All planners but that of BGP, whose pens are given back: it starts when everything it announces works.
    fn planners(
        &mut self,
        plans: DesiredWriters,
        (remembered, hops, keys): (datapath::Remembered, RememberedHops, RememberedKeys),
        kube: &Writers,
        sources: &IntentWriters,
        network: SeenNetwork,
    ) -> BgpPens {
        let datapath::Remembered { nodes, claims, backends, frontends, interfaces } = remembered;
        // Whatever an earlier life left of prefixes stays until the rules are read. IPv4 is the world from the start.
        plans.policies.cidrs.set_source(&Source::Planner, SourceState::Pending);
        plans.policies.cidrs.upsert(CidrIdentity::IPV4);
        self.topology_planner((nodes, claims), (hops, keys), plans.topology);
        let node = self.ground.identity.node.clone();
        let mut services = tombolo_service::plan::Planner::new(node, self.ground.driver.clock.now())
            .in_cluster(self.ground.identity.cluster.as_str())
            .at(self.ground.node.own.addresses.iter().map(|address| address.ip));
        services.restore(backends, frontends);
        self.mcs_planner(plans.mcs, kube);
        self.names_planner(plans.names);
        self.service_planner(services, plans.services);
        self.prober(sources.probes.clone());
        self.policy_planner(plans.policies);
        self.egress_planner(plans.egress, network);
        self.spawn(
            "planner/interfaces",
            interfaces::plan(
                self.driver(),
                interfaces::Inputs {
                    endpoints: self.intent.endpoints.clone(),
                    policies: self.desired.endpoint_policies.clone(),
                    pods: self.ground.config.datapath.bandwidth.then(|| self.intent.kube.pods.clone()),
                },
                self.held.policies.clone(),
                (self.desired.egress.clone(), self.held.egress.clone()),
                interfaces,
                plans.interfaces,
            ),
        );
        self.local_rows(sources.prefixes.clone(), sources.identities.clone());
        let (endpoints, pods) = (self.intent.endpoints.clone(), self.intent.kube.pods.clone());
        let out = sources.host_ports.clone();
        self.spawn("planner/host-ports", host_ports::plan(self.driver(), endpoints, pods, out));
        (plans.bgp, plans.bgp_status)
    }

    /// What other clusters' pods may not have: of the configuration at once, of the manifests as they come.
    fn reserve(&mut self, out: Arc<Writer<ReservedRow>>) {
        let rows = planners::reserved(self.ground.config, &self.ground.node.plan.connected);
        out.replace_source(&Source::Local, rows);
        let run = planners::reserved_pools(self.driver(), self.intent.kube.pools.clone(), out);
        self.spawn("planner/reserved", run);
    }

    fn topology_planner(
        &mut self,
        (nodes, claims): (RememberedNodes, RememberedClaims),
        (hops, keys): (RememberedHops, RememberedKeys),
        out: plan::Outputs,
    ) {
        let mut indexes = NodeIndexes::default();
        indexes.restore(nodes);
        let mut planner = plan::Planner::new(self.ground.node.plan.clone(), indexes);
        planner.restore_hops(hops);
        planner.restore_claims(claims);
        planner.restore_keys(keys);
        self.ground.daemon.conflict_counts.set(planner.conflict_counts()).ok();
        self.spawn(
            "planner/topology",
            planners::topology(
                self.driver(),
                planner,
                planners::TopologyInputs {
                    nodes: self.intent.kube.nodes.clone(),
                    prefixes: self.intent.prefixes.clone(),
                    learned: self.intent.learned.clone(),
                    reserved: self.intent.reserved.clone(),
                    cidrs: self.desired.cidrs.clone(),
                    slices: self.intent.kube.slices.clone(),
                },
                out,
            ),
        );
    }

    fn service_planner(
        &mut self,
        planner: tombolo_service::plan::Planner,
        out: tombolo_service::plan::Outputs,
    ) {
        let inputs = planners::ServiceInputs {
            services: self.intent.kube.services.clone(),
            slices: self.intent.kube.slices.clone(),
            remote: self.intent.remote_services.clone(),
            addresses: self.intent.addresses.clone(),
            probes: self.intent.probes.clone(),
            host_ports: self.intent.host_ports.clone(),
            nodes: self.intent.kube.nodes.clone(),
            own: self.ground.node.own.key(),
        };
        let problems = self.ground.daemon.service_problems.clone();
        self.spawn("planner/services", planners::services(self.driver(), planner, inputs, out, problems));
    }

    /// Exports and imports, unless they are switched off.
    fn mcs_planner(&mut self, (exports, imports): (Writer<ExportStatus>, Writer<ImportRow>), kube: &Writers) {
        if !self.ground.config.clustermesh.service_exports {
            return;
        }
        let driver = self.driver();
        let planner =
            Planner::new(&self.ground.identity.cluster, self.clusterset_range(), driver.clock.now());
        // Announced before anybody prunes: what imports come to is not known yet.
        kube.services.set_source(&Source::Planner, SourceState::Pending);
        let (services, slices) = (kube.services.clone(), kube.slices.clone());
        let out = Outputs { exports, imports, services, slices };
        let problems = self.ground.daemon.import_problems.clone();
        self.spawn("planner/mcs", mcs::planner(driver, planner, self.intent.clone(), out, problems));
    }

    /// Interfaces, addresses and default routes, followed.
    fn network(&mut self) -> SeenNetwork {
        let (seen, network) = tokio::sync::watch::channel(None);
        self.spawn("network", network::follow(self.driver(), self.ground.node.netlink.clone(), seen));
        network
    }

    fn egress_planner(&mut self, out: egress::Pens, network: SeenNetwork) {
        let inputs = egress::Inputs {
            policies: self.intent.kube.egress_policies.clone(),
            nodes: self.intent.kube.nodes.clone(),
            paths: self.desired.paths.clone(),
            endpoints: self.intent.endpoints.clone(),
            prefixes: self.intent.prefixes.clone(),
            identities: self.intent.identities.clone(),
            network,
        };
        let who = (self.ground.identity.cluster, self.ground.identity.node.clone());
        self.spawn("planner/egress", egress::planner(self.driver(), who, inputs, out));
    }

    /// Names of services, the stream of them, and the unit that reads it if the agent keeps one.
    fn names_planner(&mut self, out: Writer<NameRow>) {
        let told = follow_names::Told::default();
        let sources = follow_names::Sources {
            names: self.desired.names.clone(),
            namespaces: self.intent.kube.namespaces.clone(),
            told: told.clone(),
        };
        self.ground.daemon.names.set(sources).ok();
        let now = self.driver().clock.now();
        let planner = tombolo_service::names::Planner::new(&self.ground.identity.cluster, now);
        let exports = self.ground.config.clustermesh.service_exports;
        let imports = exports.then(|| self.desired.service_imports.clone());
        let run = names::planner(self.driver(), planner, self.intent.clone(), imports, out, told);
        self.spawn("planner/names", run);
        let config = self.ground.config;
        if config.dns.enabled {
            let (part, seen) = tokio::sync::watch::channel(Part::failing("dns", "starting", "wait"));
            self.ground.daemon.dns.set(seen).ok();
            let settings = dns::settings(config, Some(&self.ground.node.own));
            self.spawn("dns", dns::keep(self.driver(), settings, dns::run_folder(config).to_owned(), part));
        } else {
            let end = dns::end(dns::control_socket(config), dns::run_folder(config).to_owned());
            self.ground.tasks.spawn_work("dns/end", end);
        }
    }

    fn clusterset_range(&self) -> ClusterSetRange {
        ClusterSetRange(self.ground.config.clustermesh.clusterset_cidrs.clone())
    }

    /// Backends of other clusters, for services that have them probed.
    fn prober(&mut self, out: Arc<Writer<FailedProbe>>) {
        let inputs = probe::Inputs {
            services: self.intent.kube.services.clone(),
            remote: self.intent.remote_services.clone(),
            nodes: self.intent.kube.nodes.clone(),
            cluster: self.ground.identity.cluster,
        };
        let counts = self.ground.daemon.probes.clone();
        self.spawn("probes", probe::run(self.driver(), inputs, out, counts));
    }

    fn policy_planner(&mut self, out: policy::Pens) {
        let inputs = policy::Inputs {
            rules: self.intent.kube.rules.clone(),
            groups: self.intent.kube.cidr_groups.clone(),
            identities: self.intent.identities.clone(),
            endpoints: self.intent.endpoints.clone(),
            pods: self.intent.kube.pods.clone(),
            nodes: (self.intent.kube.nodes.clone(), self.ground.node.own.key()),
            slices: self.intent.kube.slices.clone(),
            cidrs_take_nodes: self.ground.config.policy.cidrs_take_nodes(),
        };
        let datapath = self.ground.daemon.datapath.clone();
        let audit = self.ground.config.policy.audit;
        let compiler = policy::compiler(&self.ground.identity.cluster, &datapath, audit);
        let (policies, entries) = (self.held.policies.clone(), self.held.entries.clone());
        let wanted = self.desired.entries.clone();
        let in_place = policy::InPlace { policies, entries, wanted, datapath };
        let problems = self.ground.daemon.policy_problems.clone();
        let run = policy::planner(self.driver(), compiler, inputs, (out, in_place), problems);
        self.spawn("planner/policy", run);
        let (planned, held) = (self.desired.endpoint_policies.clone(), self.held.policies.clone());
        let datapath = self.ground.daemon.datapath.clone();
        self.spawn("planner/host-policy", host_policy::follow(self.driver(), planned, held, datapath));
    }

    /// This node's pods as prefixes and identities.
    fn local_rows(&mut self, prefixes: Arc<Writer<PrefixRow>>, identities: Arc<Writer<IdentityRow>>) {
        let key = if self.encrypted() { 255 } else { 0 };
        self.spawn(
            "planner/local",
            planners::local_rows(
                self.driver(),
                self.intent.endpoints.clone(),
                self.ground.node.host_ip,
                key,
                prefixes,
                identities,
            ),
        );
    }

    /// Desired rows to their targets.
    fn reconcilers(&mut self, kernel: KernelRoutes) -> anyhow::Result<()> {
        let (desired, held) = (self.desired.clone(), self.held.clone());
        let datapath = self.ground.daemon.datapath.clone();
        let prefixes = self.prefix_target();
        if let Err(error) = prefixes.close() {
            tracing::error!(%error, "strict encryption is not in force; see `tombolo show maps` and restart the agent");
        }
        let backends = datapath::Backends { datapath: datapath.clone(), frontends: held.frontends.clone() };
        let frontends = datapath::Frontends::new(datapath.clone(), held.backends.clone());
        let (policies, interfaces) =
            (datapath::Policies(datapath.clone()), datapath::Interfaces::new(datapath.clone()));
        let watcher = watch::Watcher {
            config: self.ground.config.clone(),
            identity: self.ground.identity.clone(),
            own: self.ground.node.own.clone(),
            datapath: datapath.clone(),
            netlink: self.ground.node.netlink.clone(),
            wireguard: self.ground.node.wireguard.clone(),
            routes: desired.routes.clone(),
        };

        let ways = egress::Ways::new(datapath.clone(), held.paths.clone()).map_err(|error| anyhow!(error))?;

        self.reconcile(desired.paths, datapath::Paths(datapath.clone()), held.paths);
        self.reconcile(desired.entries, prefixes, held.entries);
        self.reconcile(desired.backends, backends, held.backends);
        self.reconcile(desired.frontends, frontends, held.frontends);
        self.reconcile(desired.policies, policies, held.policies);
        self.reconcile(desired.egress, ways, held.egress);
        self.reconcile(desired.interfaces, interfaces, held.interfaces);
        self.reconcile(desired.routes, kernel, Applied::default());
        if let Some(wireguard) = self.ground.node.wireguard.clone() {
            self.reconcile(desired.peers, wireguard, Applied::default());
        }
        self.spawn("watch", watcher.run(self.driver()));
        self.spawn("conntrack", node::collect_garbage(self.driver(), datapath));
        Ok(())
    }

    /// Ends sockets in the namespaces of endpoints, which are known now.
    fn sockets(&mut self) {
        let daemon = self.ground.daemon.clone();
        self.spawn("sockets", sockets::end_stale(self.driver(), daemon));
    }

    fn prefix_target(&self) -> datapath::Prefixes {
        let owners = datapath::Owners {
            nodes: self.intent.kube.nodes.clone(),
            own: self.ground.identity.cluster,
            own_id: self.ground.identity.cluster_id,
        };
        let strict = self.ground.config.datapath.strict_encryption.clone();
        datapath::Prefixes {
            datapath: self.ground.daemon.datapath.clone(),
            encrypt: self.encrypted(),
            strict: if self.encrypted() { strict } else { Vec::new() },
            max_clusters: self.ground.identity.max_clusters,
            owners,
            paths: self.held.paths.clone(),
            timer: self.ground.daemon.map_timer.clone(),
        }
    }

    /// The datapath's events, named.
    fn flows(&mut self) -> anyhow::Result<()> {
        let names = flows::NameTables {
            endpoints: self.intent.endpoints.clone(),
            prefixes: self.intent.prefixes.clone(),
            identities: self.intent.identities.clone(),
            nodes: self.intent.kube.nodes.clone(),
            frontends: self.desired.frontends.clone(),
            pods: self.intent.kube.pods.clone(),
            policy_rules: self.desired.policy_rules.clone(),
        };
        let enricher = tombolo_observe::flow::Enricher {
            node: self.ground.identity.node.clone(),
            cluster: self.ground.identity.cluster.as_str().into(),
            sites: flows::site,
        };
        let daemon = self.ground.daemon.clone();
        let events = daemon.datapath.events().context("cannot read the datapath's events")?;
        self.spawn(
            FLOWS,
            flows::run(
                self.driver(),
                daemon.datapath.clone(),
                events,
                enricher,
                names,
                daemon.flows.clone(),
                daemon.metrics.clone(),
            ),
        );
        Ok(())
    }

    /// The own cluster's etcd: what this node says, and what the elected one says for all.
    fn publisher(&mut self) -> anyhow::Result<PublisherHandle> {
        let speaker = mcs::Speaker {
            cluster: self.ground.identity.cluster,
            range: self.clusterset_range(),
            exports: self.intent.exports.clone(),
            imports: self.desired.service_imports.clone(),
            created: std::collections::BTreeMap::new(),
        };
        let Ground { config, identity, driver, tasks, daemon, .. } = &mut self.ground;
        let publisher = node::start_publisher(config, identity, driver.cancel.clone(), tasks)?;
        daemon.publisher.set(publisher.clone()).ok();
        let problems = daemon.lb_problems.clone();
        let inputs = publish::ClusterInputs {
            name: identity.cluster,
            id: identity.cluster_id,
            backends: config.clustermesh.backends.into(),
            tables: self.intent.kube.clone(),
            addresses: self.intent.addresses.clone(),
            mcs: config.clustermesh.service_exports.then_some((speaker, identity.max_clusters)),
        };
        let wireguard_key = self.ground.node.wireguard.as_ref().map(tombolo_tunnel::Wireguard::public_key);
        self.spawn(
            "publish/node",
            publish::node(
                self.driver(),
                self.ground.node.own.key(),
                self.intent.kube.nodes.clone(),
                self.intent.prefixes.clone(),
                wireguard_key,
                publisher.clone(),
            ),
        );
        self.spawn("publish/cluster", publish::cluster(self.driver(), inputs, publisher.clone(), problems));
        Ok(publisher)
    }

    /// Endpoints: restored first, then the CNI plugin is served.
    async fn endpoints(
        &mut self,
        publisher: &PublisherHandle,
        writer: Writer<EndpointRow>,
    ) -> anyhow::Result<()> {
        self.ground.daemon.stage("restoring endpoints");
        let uses = endpoints::Uses::new(publisher.identities().clone());
        let patterns = &self.ground.config.identities.labels;
        // Checked with the whole configuration already.
        let filter =
            Arc::new(LabelFilter::new(patterns).map_err(|wrong| anyhow!("identities.labels: {wrong:?}"))?);
        let gate = endpoints::Gate {
            cluster: self.ground.identity.cluster,
            filter: filter.clone(),
            pods: self.intent.kube.pods.clone(),
            namespaces: self.intent.kube.namespaces.clone(),
            uses: uses.clone(),
            endpoints: self.intent.endpoints.clone(),
            interfaces: self.held.interfaces.clone(),
            prefixes: self.held.entries.clone(),
        };
        let pod_cidrs = self.ground.node.own.pod_cidrs.iter().map(tombolo_base::prefix::Prefix::net);
        let settings = tombolo_cni::StoreConfig {
            state_dir: self.ground.config.state_dir.0.clone(),
            pod_cidrs: pod_cidrs.map(Into::into).collect(),
            pod_mtu: u32::from(self.ground.node.device_mtu),
            path_mtu: u32::from(self.ground.node.plan.mtu.smallest()),
            apply_timeout: APPLY_TIMEOUT,
        };
        let netlink = self.ground.node.netlink.clone();
        let store = tombolo_cni::EndpointStore::open(settings, netlink, gate, writer)
            .await
            .context("cannot open the endpoint store")?;
        self.ground.daemon.endpoints.set(store.clone()).ok();
        let follower = endpoints::LabelFollower {
            filter,
            store,
            tables: self.intent.kube.clone(),
            endpoints: self.intent.endpoints.clone(),
            uses,
        };
        self.spawn("labels", endpoints::follow_labels(self.driver(), follower, publisher.status()));
        Ok(())
    }

    /// BGP: its planner, and the speaker if it is enabled.
    fn bgp(
        &mut self,
        (out, status): BgpPens,
        learned: Arc<Writer<LearnedRoute>>,
        kernel: KernelRoutes,
        network: SeenNetwork,
    ) {
        let identity = self.ground.identity;
        let who = bgp::Who {
            cluster: identity.cluster,
            node: identity.node.clone(),
            health: bgp::Health {
                policy: self.ground.config.bgp.health.clone(),
                restarting: self.ground.node.restarting,
            },
            secrets_namespace: self.ground.config.bgp.secrets_namespace.as_str().into(),
        };
        let (kube, addresses) = (self.intent.kube.clone(), self.intent.addresses.clone());
        self.spawn("planner/bgp", bgp::planner(self.driver(), who, kube, addresses, network, out));
        let Ground { config, driver, node, tasks, daemon, .. } = &mut self.ground;
        if config.bgp.enabled {
            let rows = (&self.desired.bgp_peers, &self.desired.bgp_adverts);
            let run = config.api.socket.parent().unwrap_or_else(|| std::path::Path::new("/run/tombolo"));
            let bfd = tombolo_bgp::bfd::client::Unit::of_this_program(run);
            let mut settings = bgp::settings(&config.bgp, &identity.node, driver.seed, bfd);
            settings.shutdowns = Some(config.state_dir.0.join(bgp::SHUTDOWNS));
            let session = bgp::Session::of_node(settings, node.restarting).over(node.netlink.clone(), kernel);
            let bgp = bgp::start(driver, session, rows, learned, tasks);
            daemon.bgp.set(bgp.clone()).ok();
            let (node, wanted) = (identity.node.clone(), self.desired.bgp_peers.clone());
            let follow = bgp_status::follow(self.driver(), node, bgp, wanted, status);
            self.spawn("bgp/status", follow);
        }
    }
}

type SeenNetwork = tokio::sync::watch::Receiver<Option<Arc<network::Seen>>>;
type BgpPens = (bgp::Pens, Writer<tombolo_topology::bgp::NodeConfigRow>);
type RememberedNodes = Vec<(std::net::IpAddr, tombolo_topology::NodeIndex)>;
type RememberedClaims = Vec<(tombolo_base::prefix::Prefix, std::net::IpAddr)>;
type RememberedKeys = Vec<(tombolo_topology::WireguardKey, std::net::IpAddr)>;
type RememberedHops = std::collections::BTreeMap<
    tombolo_base::prefix::Prefix,
    std::collections::BTreeSet<tombolo_topology::LearnedNextHop>,
>;
