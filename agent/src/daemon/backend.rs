//! What the local API shows: gathered from the rooms at the moment of asking.

use super::acceleration::{self, Accelerated};
use super::api::Backend;
use super::bgp_api::{self, Operation, RouteQuery, RouteTrial};
use super::drive::Driver;
use super::endpoints::Gate;
use super::flows::Flows;
use super::kernel_tables;
use super::landmarks::landmarks;
use super::mesh_metrics;
use super::mesh_services;
use super::mesh_view::{self, Conflict, NodeTables};
use super::node::NodeSetup;
use super::parts::{self, Hooks};
use super::path_kind;
use super::policy;
use super::policy_impact::{self, ImpactQuery};
use super::policy_parties;
use super::policy_trace::{self, TraceQuery};
use super::show::{Catalogue, Shown};
use super::sockets;
use super::stages::MapTimer;
use super::status::{Part, Status};
use super::tables::{Desired, Intent};
use super::tasks::Roll;
use super::why::{self, WhyQuery};
use crate::config::{Clustermesh, Config, Encryption, Identity};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;
use tokio::sync::{broadcast, watch};
use tombolo_base::table::Row;
use tombolo_bgp_node::{BgpNode, PeerName};
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::etcd::EtcdConfig;
use tombolo_clustermesh::follower::{ClusterStatus, Dump, MeshHandle};
use tombolo_clustermesh::operations::Operations;
use tombolo_clustermesh::publisher::PublisherHandle;
use tombolo_clustermesh::troubleshoot::{Viewpoint, Walk, walk};
use tombolo_cni::protocol::{CniError, Code};
use tombolo_cni::{EndpointSpec, EndpointStore, Reply};
use tombolo_ebpf::{Datapath, Direction, FlowFilter};
use tombolo_kubernetes::{ClusterIdentity, FolderReport};
use tombolo_netlink::ClsactSide;
use tombolo_observe::filter::Filter;
use tombolo_observe::flow::{Enricher, Flow, Names};
use tombolo_observe::metrics::{Metrics, ReasonLabels, TableLabels};
use tombolo_observe::names;
use tombolo_topology::conflict::ConflictCounts;

/// Texts that a part leaves for `tombolo status`.
pub(crate) type Texts = Arc<Mutex<Vec<String>>>;

/// The name of the task that reads events.
pub(crate) const FLOWS: &str = "flows";

/// The tables, and each under its name.
pub(crate) struct Rows {
    /// What is known and wanted.
    pub(crate) intent: Intent,
    /// What the targets shall hold.
    pub(crate) desired: Desired,
    /// For `tombolo show`.
    pub(crate) catalogue: Catalogue,
}

/// The daemon as the API sees it; rooms appear as they are started.
pub(crate) struct Daemon {
    identity: Identity,
    clustermesh: Clustermesh,
    relay: Option<EtcdConfig>,
    path: String,
    encryption: Encryption,
    /// Whether rules about prefixes take nodes.
    cidrs_take_nodes: bool,
    driver: Driver,
    stage: Mutex<String>,
    roll: Roll,
    /// The node, once its devices are there.
    pub(crate) node: OnceLock<Arc<NodeSetup>>,
    /// The datapath.
    pub(crate) datapath: Arc<Datapath>,
    /// What the manifests' folder reported.
    pub(crate) manifests: OnceLock<watch::Receiver<Arc<FolderReport>>>,
    /// Remote clusters.
    pub(crate) mesh: OnceLock<MeshHandle>,
    /// Endpoints.
    pub(crate) endpoints: OnceLock<Arc<EndpointStore<Gate>>>,
    /// BGP.
    pub(crate) bgp: OnceLock<BgpNode>,
    /// Publishing in the own etcd.
    pub(crate) publisher: OnceLock<PublisherHandle>,
    /// The tables.
    pub(crate) rows: OnceLock<Rows>,
    /// How the DNS unit is, where the agent keeps one.
    pub(crate) dns: OnceLock<watch::Receiver<Part>>,
    /// What the stream of names is made of.
    pub(crate) names: OnceLock<super::follow_names::Sources>,
    /// From rows to the datapath's map.
    pub(crate) map_timer: MapTimer,
    /// How many conflicts between clusters were found.
    pub(crate) conflict_counts: OnceLock<Arc<ConflictCounts>>,
    /// LoadBalancer services without address.
    pub(crate) lb_problems: Texts,
    /// Services that are not served as they should be.
    pub(crate) service_problems: Texts,
    /// Exports of other clusters that are not imported.
    pub(crate) import_problems: Texts,
    /// Backends that are probed, and those that fail.
    pub(crate) probes: super::probe::Counts,
    /// Sockets to backends that are gone, which the kernel would not end.
    pub(crate) sockets_refused: AtomicU64,
    /// Policies that cannot be enforced.
    pub(crate) policy_problems: Texts,
    /// Flows.
    pub(crate) flows: Flows,
    /// Counters.
    pub(crate) metrics: Arc<Metrics>,
}

/// Why nothing can be done to BGP peers.
const NO_BGP: &str = "BGP is not enabled; set bgp.enabled in the agent's configuration";

fn texts(list: &Texts) -> Vec<String> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Daemon {
    /// What policies are judged by.
    fn policy_tables(&self) -> Result<policy_parties::Tables, String> {
        let rows = self.rows.get().ok_or("the agent is starting; ask again")?;
        let own = self.node.get().map(|node| node.own.key());
        let nodes = rows.intent.kube.nodes.snapshot();
        let labels = own.as_ref().and_then(|key| nodes.get(key).map(policy::labels_of)).unwrap_or_default();
        let places = own
            .map(|own| landmarks(&rows.intent.kube.slices.snapshot(), &nodes, &own, self.cidrs_take_nodes));
        let node = (labels, places.unwrap_or_default());
        Ok(policy_parties::Tables::read(self.identity.cluster, node, &rows.intent, &rows.desired))
    }

    /// What names come from.
    fn words(&self) -> Result<why::Words, String> {
        let rows = self.rows.get().ok_or("the agent is starting; ask again")?;
        Ok(why::Words {
            enricher: Enricher {
                node: self.identity.node.clone(),
                cluster: self.identity.cluster.as_str().into(),
                sites: super::flows::site,
            },
            names: Names {
                endpoints: rows.intent.endpoints.snapshot(),
                prefixes: rows.intent.prefixes.snapshot(),
                identities: rows.intent.identities.snapshot(),
                nodes: rows.intent.kube.nodes.snapshot(),
            },
            objects: super::flows::Objects {
                frontends: rows.desired.frontends.snapshot(),
                pods: rows.intent.kube.pods.snapshot(),
            },
            rules: rows.desired.policy_rules.snapshot(),
        })
    }

    /// A daemon whose rooms are yet to come.
    pub(crate) fn new(
        config: &Config,
        identity: &Identity,
        driver: Driver,
        datapath: Arc<Datapath>,
        roll: Roll,
    ) -> Self {
        Self {
            identity: identity.clone(),
            clustermesh: config.clustermesh.clone(),
            relay: config.relay(),
            path: format!("{:?}", path_kind(config.datapath.path)).to_lowercase(),
            encryption: config.datapath.encryption,
            cidrs_take_nodes: config.policy.cidrs_take_nodes(),
            driver,
            stage: Mutex::new("starting".to_owned()),
            roll,
            node: OnceLock::new(),
            datapath,
            manifests: OnceLock::new(),
            mesh: OnceLock::new(),
            endpoints: OnceLock::new(),
            bgp: OnceLock::new(),
            publisher: OnceLock::new(),
            rows: OnceLock::new(),
            dns: OnceLock::new(),
            names: OnceLock::new(),
            map_timer: MapTimer::default(),
            conflict_counts: OnceLock::new(),
            lb_problems: Texts::default(),
            probes: super::probe::Counts::default(),
            sockets_refused: AtomicU64::new(0),
            service_problems: Texts::default(),
            import_problems: Texts::default(),
            policy_problems: Texts::default(),
            flows: Flows::new(),
            metrics: Arc::new(Metrics::default()),
        }
    }

    /// Says what start-up is doing; empty when it is over.
    pub(crate) fn stage(&self, text: &str) {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if *stage != text {
            if !text.is_empty() {
                tracing::info!("{text}");
            }
            text.clone_into(&mut stage);
        }
    }

    async fn parts(&self, clusters: &[ClusterStatus]) -> Vec<Part> {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut parts = parts::agent(&stage, &self.roll.ended());
        let report = self.manifests.get().map(|report| report.borrow().clone());
        parts.push(parts::manifests(report.as_deref()));
        if let Some(node) = self.node.get() {
            parts.extend(self.node_parts(node).await);
        }
        parts.push(self.datapath_part().await);
        if let Some(publisher) = self.publisher.get() {
            parts.push(parts::publisher(&publisher.status().borrow().clone()));
        }
        parts.extend(clusters.iter().map(parts::mesh));
        if !self.clustermesh.folder.as_os_str().is_empty() {
            parts.push(parts::conflicts(&self.conflicts(clusters)));
        }
        if let Some(bgp) = self.bgp.get() {
            parts.extend(parts::bgp(&bgp.peers().await.unwrap_or_default()));
            parts.extend(parts::rpki(&bgp.rpki_caches().await.unwrap_or_default()));
        }
        if let Some(store) = self.endpoints.get() {
            parts.push(parts::endpoints(&endpoints_seen(store)));
        }
        parts.extend(self.dns.get().map(|part| part.borrow().clone()));
        if let Some(rows) = self.rows.get() {
            parts.push(self.load_balancer_part(rows));
            parts.extend(parts::probes(*self.probes.lock().unwrap_or_else(PoisonError::into_inner)));
            let reading = self.roll.running().contains(&FLOWS);
            let lost = self.datapath.lost_events().map_err(|error| error.to_string());
            parts.push(parts::flows(self.metrics.flows.get(), lost, reading));
        }
        let reconcilers = self.driver.board.all().into_iter();
        parts.extend(reconcilers.map(|(table, progress)| parts::reconciler(table, progress)));
        parts
    }

    /// The node's object, its devices, WireGuard.
    async fn node_parts(&self, node: &NodeSetup) -> Vec<Part> {
        let mut parts = Vec::new();
        if let Some(rows) = self.rows.get() {
            let now = rows.intent.kube.nodes.snapshot().get(&node.own.key()).cloned();
            parts.push(parts::node(&node.own, now.as_ref()));
        }
        parts.push(match node.netlink.links().await {
            Ok(links) => parts::devices(&node.devices, &links, node.plan.mtu),
            Err(error) => Part::failing("devices", error.to_string(), "look at the agent's log"),
        });
        if let Some(wireguard) = &node.wireguard {
            let state = wireguard.state().await.map_err(|error| error.to_string());
            let wanted = self.rows.get().map_or(0, |rows| rows.desired.peers.snapshot().len());
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            parts.push(parts::wireguard(wireguard.backend(), state, wanted, now));
        }
        let refused = self.sockets_refused.load(Ordering::Relaxed);
        parts.push(sockets::part(&node.sockets, self.datapath.sockets_attached(), refused));
        let running = match node.accelerated {
            // The uplink may be another one by now.
            Accelerated::At(..) => {
                self.datapath.config().ok().and_then(|row| self.datapath.xdp_attached(row.uplink_ifindex))
            }
            Accelerated::Off | Accelerated::Without { .. } => None,
        };
        parts.push(acceleration::part(&node.accelerated, running));
        parts
    }

    async fn datapath_part(&self) -> Part {
        let configured = self.datapath.config().map(|row| row.ready).map_err(|error| error.to_string());
        let mut hooks = Vec::new();
        if let Some(node) = self.node.get() {
            for device in node.devices.iter().filter(|device| device.hooks != (false, false)) {
                let found = self.hooks(node, device.index).await;
                hooks.push(Hooks { name: device.name.clone(), wanted: device.hooks, found });
            }
            for endpoint in self.endpoints.get().map(|store| store.ready()).unwrap_or_default() {
                let found = self.hooks(node, endpoint.ifindex).await;
                let name = format!("{} of {}/{}", endpoint.host_interface, endpoint.namespace, endpoint.pod);
                hooks.push(Hooks { name, wanted: (true, true), found });
            }
        }
        parts::datapath(configured, &hooks, &self.datapath.usage())
    }

    /// Where the kernel runs programs at an interface, by tcx or else by clsact.
    async fn hooks(&self, node: &NodeSetup, ifindex: u32) -> (bool, bool) {
        let tcx = self.datapath.tcx_hooks(ifindex);
        let clsact = async |side| node.netlink.has_bpf_filter(ifindex, side).await.unwrap_or(false);
        (tcx.0 || clsact(ClsactSide::Ingress).await, tcx.1 || clsact(ClsactSide::Egress).await)
    }

    fn load_balancer_part(&self, rows: &Rows) -> Part {
        let kube = &rows.intent.kube;
        let services: Vec<_> = kube.services.snapshot().iter().cloned().collect();
        let pools: Vec<_> = kube.pools.snapshot().iter().cloned().collect();
        let assigned: Vec<_> = rows.intent.addresses.snapshot().iter().cloned().collect();
        // Only the elected agent plans; what it found in an earlier term is of no use.
        let elected = self.publisher.get().is_some_and(|publisher| publisher.status().borrow().leader);
        let problems = if elected { texts(&self.lb_problems) } else { Vec::new() };
        parts::load_balancers(&services, &pools, &assigned, &problems)
    }

    async fn clusters(&self) -> Vec<ClusterStatus> {
        match self.mesh.get() {
            Some(mesh) => mesh.status().await,
            None => Vec::new(),
        }
    }

    /// Whatever several clusters claim now.
    fn conflicts(&self, clusters: &[ClusterStatus]) -> Vec<Conflict> {
        let rows = self.rows.get().map(|rows| rows.desired.conflicts.snapshot()).unwrap_or_default();
        let hidden = |kind| self.conflict_counts.get().map_or(0, |counts| counts.hidden(kind));
        mesh_view::conflicts(&rows, hidden, clusters, u64::try_from(unix_now()).unwrap_or(0))
    }

    fn problems(&self, clusters: &[ClusterStatus]) -> Vec<String> {
        let mut all: Vec<String> = self
            .manifests
            .get()
            .map(|report| report.borrow().problems.iter().map(ToString::to_string).collect())
            .unwrap_or_default();
        if let Some(rows) = self.rows.get() {
            let conditions = rows.desired.bgp_conditions.snapshot();
            all.extend(conditions.iter().map(|row| row.condition.to_string()));
        }
        let lists = [&self.lb_problems, &self.service_problems, &self.import_problems, &self.policy_problems];
        all.extend(lists.into_iter().flat_map(texts));
        if let Some(publisher) = self.publisher.get() {
            let warnings = publisher.status().borrow().warnings(unix_now());
            all.extend(warnings.iter().map(|text| format!("cluster {}: {text}", self.identity.cluster)));
        }
        let conflicts = self.conflicts(clusters);
        all.extend(conflicts.iter().take(MAX_REFUSED).map(Conflict::line));
        let more: u64 = conflicts.iter().skip(MAX_REFUSED).map(|conflict| conflict.count).sum();
        if more > 0 {
            all.push(format!("{more} more conflicts between clusters; look at `tombolo mesh conflicts`"));
        }
        for text in clusters.iter().flat_map(mesh_problems) {
            // The own cluster is followed with the publisher's certificates.
            if !all.contains(&text) {
                all.push(text);
            }
        }
        all
    }

    fn gauges(&self) {
        let metrics = &self.metrics;
        let wide = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let name = |table: &str| TableLabels { table: table.to_owned() };
        for (table, rows) in self.rows.get().map(|rows| rows.catalogue.sizes()).unwrap_or_default() {
            metrics.rows.get_or_create(&name(table)).set(wide(rows));
        }
        for (table, progress) in self.driver.board.all() {
            metrics.pending.get_or_create(&name(table)).set(wide(progress.pending));
            metrics.failed.get_or_create(&name(table)).set(wide(progress.failed));
        }
        for counter in self.datapath.metrics().unwrap_or_default() {
            let reason = if counter.reason == 0 { "FORWARDED" } else { names::drop_reason(counter.reason) };
            let direction = if counter.direction == Direction::Ingress { "ingress" } else { "egress" };
            let labels = ReasonLabels { reason: reason.to_owned(), direction: direction.to_owned() };
            metrics.packets.get_or_create(&labels).set(i64::try_from(counter.packets).unwrap_or(i64::MAX));
        }
        for usage in self.datapath.usage() {
            metrics
                .map_entries
                .get_or_create(&name(usage.map))
                .set(i64::try_from(usage.entries).unwrap_or(i64::MAX));
            metrics
                .map_capacity
                .get_or_create(&name(usage.map))
                .set(i64::try_from(usage.capacity).unwrap_or(i64::MAX));
        }
    }
}

/// Problems of one cluster that are told one by one in the status; `tombolo mesh status` has more.
const MAX_REFUSED: usize = 5;

/// What is wrong with a cluster although it is followed.
fn mesh_problems(cluster: &ClusterStatus) -> Vec<String> {
    let name = &cluster.name;
    let warnings = cluster.warnings.iter().map(|text| format!("cluster {name}: {text}"));
    let refused = cluster.refused.iter().take(MAX_REFUSED);
    let mut all: Vec<_> = warnings.chain(refused.map(|entry| format!("cluster {name}: {entry}"))).collect();
    let more = cluster.refused_now.saturating_sub(MAX_REFUSED.min(cluster.refused.len()));
    if more > 0 {
        all.push(format!(
            "cluster {name}: {more} more entries are refused; look at `tombolo mesh status -o json`"
        ));
    }
    all
}

fn endpoints_seen(store: &EndpointStore<Gate>) -> parts::Endpoints {
    let names = |specs: Vec<EndpointSpec>| {
        specs.iter().map(|spec| format!("{}/{}", spec.namespace, spec.pod)).collect()
    };
    parts::Endpoints {
        ready: store.ready().len(),
        unready: names(store.unready()),
        strays: names(store.strays()),
        addresses: store.address_usage(),
    }
}

impl Backend for Daemon {
    async fn status(&self) -> Status {
        let clusters = self.clusters().await;
        let parts = self.parts(&clusters).await;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.identity.cluster.to_string(),
            node: self.identity.node.to_string(),
            path: self.path.clone(),
            encryption: format!("{:?}", self.encryption).to_lowercase(),
            mtu: self.node.get().map_or(0, |node| node.plan.mtu.smallest()),
            uptime_secs: self.driver.clock.now().since_origin().as_secs(),
            ready: parts.iter().all(|part| part.ready),
            parts,
            problems: self.problems(&clusters),
        }
    }

    fn table_names(&self) -> Vec<&'static str> {
        let mut names = self.rows.get().map(|rows| rows.catalogue.names()).unwrap_or_default();
        names.extend(kernel_tables::NAMES);
        names.sort_unstable();
        names
    }

    async fn table(&self, name: &str, filter: FlowFilter) -> Option<Result<Shown, String>> {
        if let Some(shown) = kernel_tables::show(&self.datapath, name, filter).await {
            return Some(shown);
        }
        self.rows.get()?.catalogue.show(name).map(Ok)
    }

    async fn flush(&self, filter: FlowFilter) -> Result<Value, String> {
        kernel_tables::flush(&self.datapath, filter).await
    }

    async fn why(&self, query: WhyQuery) -> Result<Value, String> {
        let words = self.words()?;
        let (datapath, flows) = (self.datapath.clone(), self.flows.clone());
        let work = move || why::why(&datapath, &flows, &words, &query);
        let found = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
        found.map(|all| json!(all))
    }

    async fn policy_trace(&self, query: TraceQuery) -> Result<Value, String> {
        policy_trace::trace(&self.policy_tables()?, &query).map(|trace| json!(trace))
    }

    async fn policy_impact(&self, query: ImpactQuery) -> Result<Value, String> {
        let tables = self.policy_tables()?;
        let cluster = ClusterIdentity { name: self.identity.cluster, id: self.identity.cluster_id };
        let (flows, _) = self.flows.read(&Filter::default(), usize::MAX);
        let work = move || policy_impact::impact(&tables, &cluster, &query, &flows);
        let found = tokio::task::spawn_blocking(work).await;
        found.map(|impact| json!(impact)).map_err(|error| error.to_string())
    }

    async fn mesh(&self) -> Value {
        let own = self.identity.cluster.as_str();
        self.clusters().await.iter().filter(|cluster| cluster.name != own).map(mesh_view::cluster).collect()
    }

    async fn mesh_conflicts(&self) -> Value {
        json!(self.conflicts(&self.clusters().await))
    }

    async fn mesh_nodes(&self) -> Value {
        let clusters = self.clusters().await;
        let Some(rows) = self.rows.get() else { return json!([]) };
        let tables = NodeTables {
            nodes: rows.intent.kube.nodes.snapshot(),
            paths: rows.desired.paths.snapshot(),
            peers: rows.desired.peers.snapshot(),
            conflicts: rows.desired.conflicts.snapshot(),
            encrypt: self.encryption == Encryption::Wireguard,
        };
        json!(mesh_view::nodes(&tables, &clusters))
    }

    async fn mesh_lag(&self) -> Value {
        let own = self.identity.cluster.as_str();
        let clusters = self.clusters().await;
        let remote = clusters.iter().filter(|cluster| cluster.name != own);
        json!({
            "clusters": remote.map(mesh_view::lag).collect::<Value>(),
            "map": self.map_timer.quantiles(),
        })
    }

    async fn mesh_dump(&self) -> Dump {
        match self.mesh.get() {
            Some(mesh) => mesh.dump().await,
            None => Dump::default(),
        }
    }

    async fn mesh_walks(&self, only: Option<String>) -> Result<Vec<Walk>, String> {
        if self.clustermesh.folder.as_os_str().is_empty() {
            return Err("there is no mesh; set clustermesh.folder in the agent's configuration".to_owned());
        }
        let from = Viewpoint {
            folder: self.clustermesh.folder.clone(),
            own: self.identity.cluster,
            own_id: Some(self.identity.cluster_id),
            max: self.identity.max_clusters,
            allow_plaintext: self.clustermesh.allow_plaintext,
            preference: self.clustermesh.service_preference.into(),
            relay: self.relay.clone(),
        };
        walk(&from, only.as_deref()).await.map_err(|error| error.to_string())
    }

    async fn mesh_services(&self, only: Option<String>) -> Value {
        let (Some(rows), Some(node)) = (self.rows.get(), self.node.get()) else {
            return json!({"services": [], "withheld": {}});
        };
        let clusters = self.clusters().await;
        json!(mesh_services::services(&rows.intent, &node.own.key(), &clusters, only.as_deref()))
    }

    async fn bgp_peers(&self) -> Value {
        match self.bgp.get() {
            Some(bgp) => bgp.peers().await.unwrap_or_default().iter().flat_map(bgp_api::peer_json).collect(),
            None => json!([]),
        }
    }

    async fn bgp_states(&self, peer: Option<String>) -> Result<Value, String> {
        match self.bgp.get() {
            Some(bgp) => bgp_api::states(bgp, peer.map(PeerName)).await,
            None => Ok(json!([])),
        }
    }

    async fn bgp_rpki(&self) -> Value {
        match self.bgp.get() {
            Some(bgp) => json!(bgp.rpki_caches().await.unwrap_or_default()),
            None => json!([]),
        }
    }

    async fn bgp_routes(&self, kind: &str, query: &RouteQuery) -> Result<Value, String> {
        match self.bgp.get() {
            Some(bgp) => bgp_api::routes(bgp, kind, query).await,
            None => bgp_api::view(kind).map(|_| json!([])),
        }
    }

    async fn bgp_try_policy(&self, trial: RouteTrial) -> Result<Value, String> {
        match self.bgp.get() {
            Some(bgp) => bgp_api::try_policy(bgp, trial).await,
            None => Err(NO_BGP.to_owned()),
        }
    }

    async fn bgp_dump(&self, peer: Option<String>) -> Result<Vec<u8>, String> {
        match self.bgp.get() {
            Some(bgp) => bgp_api::dump(bgp, peer.map(PeerName)).await,
            None => Err(NO_BGP.to_owned()),
        }
    }

    async fn bgp_operate(&self, operation: Operation) -> Result<Value, String> {
        match self.bgp.get() {
            Some(bgp) => bgp_api::operate(bgp, operation).await,
            None => Err(NO_BGP.to_owned()),
        }
    }

    fn flows(&self, filter: &Filter, last: usize) -> (Vec<Arc<Flow>>, broadcast::Receiver<Arc<Flow>>) {
        self.flows.read(filter, last)
    }

    async fn cni(&self, command: &str, body: &[u8]) -> Reply {
        match self.endpoints.get() {
            Some(store) => store.serve(command, body).await,
            None => {
                let error =
                    CniError::new(Code::TryAgainLater, "the agent is still starting", "see `tombolo status`");
                Reply { status: 503, body: serde_json::to_vec(&error).unwrap_or_default() }
            }
        }
    }

    fn names(&self) -> Option<tokio::sync::mpsc::Receiver<Vec<u8>>> {
        self.names.get().map(super::follow_names::Sources::stream)
    }

    async fn metrics(&self) -> String {
        self.gauges();
        let clusters = self.clusters().await;
        let services = self.rows.get().map(|rows| rows.intent.remote_services.snapshot());
        let seen = mesh_metrics::Seen {
            own: self.identity.cluster.as_str(),
            clusters: &clusters,
            conflicts: &self.conflicts(&clusters),
            found: self.conflict_counts.get().map(Arc::as_ref),
            services: services.unwrap_or_default(),
            map: self.map_timer.quantiles(),
            written: self.publisher.get().map(|publisher| mesh_metrics::Written {
                writes: publisher.writes(),
                no_leader: publisher.status().borrow().no_leader,
            }),
        };
        mesh_metrics::fill(&self.metrics.mesh, &seen);
        if let Some(bgp) = self.bgp.get() {
            bgp_api::gauges(&bgp.peers().await.unwrap_or_default(), &self.metrics);
        }
        let etcd = Operations::of_process();
        self.metrics.render(|registry| etcd.register(registry, "cilium_kvstore")).unwrap_or_default()
    }
}
