//! What the local API shows: gathered from the rooms at the moment of asking.

use super::api::Backend;
use super::drive::Driver;
use super::endpoints::Gate;
use super::flows::Flows;
use super::show::{Catalogue, Shown};
use super::status::{Part, Status};
use super::{bgp, path_kind};
use crate::config::{Config, Encryption, Identity};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::{broadcast, watch};
use tombolo_bgp_node::{BgpNode, InstancePeer};
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::follower::{ClusterStatus, MeshHandle};
use tombolo_clustermesh::publisher::{PublisherHandle, PublisherStatus};
use tombolo_clustermesh::wire::Kind;
use tombolo_cni::protocol::{CniError, Code};
use tombolo_cni::{EndpointStore, Reply};
use tombolo_ebpf::{Datapath, Direction};
use tombolo_kubernetes::FolderReport;
use tombolo_observe::filter::Filter;
use tombolo_observe::flow::Flow;
use tombolo_observe::metrics::{
    ClusterLabels, Metrics, PeerLabels, ReasonLabels, RefusedLabels, TableLabels,
};
use tombolo_observe::names;

/// Texts that a part leaves for `tombolo status`.
pub(crate) type Texts = Arc<Mutex<Vec<String>>>;

/// The daemon as the API sees it; rooms appear as they are started.
pub(crate) struct Daemon {
    identity: Identity,
    path: String,
    encryption: Encryption,
    driver: Driver,
    stage: Mutex<String>,
    /// Largest packet between pods of different nodes.
    pub(crate) mtu: AtomicU16,
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
    /// Tables by name.
    pub(crate) catalogue: OnceLock<Catalogue>,
    /// BGP objects that cannot be served.
    pub(crate) bgp_conditions: bgp::Conditions,
    /// LoadBalancer services without address.
    pub(crate) lb_problems: Texts,
    /// Policies that cannot be enforced.
    pub(crate) policy_problems: Texts,
    /// Flows.
    pub(crate) flows: Flows,
    /// Counters.
    pub(crate) metrics: Arc<Metrics>,
}

fn texts(list: &Texts) -> Vec<String> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Daemon {
    /// A daemon whose rooms are yet to come.
    pub(crate) fn new(config: &Config, identity: &Identity, driver: Driver, datapath: Arc<Datapath>) -> Self {
        Self {
            identity: identity.clone(),
            path: format!("{:?}", path_kind(config.datapath.path)).to_lowercase(),
            encryption: config.datapath.encryption,
            driver,
            stage: Mutex::new("starting".to_owned()),
            mtu: AtomicU16::new(0),
            datapath,
            manifests: OnceLock::new(),
            mesh: OnceLock::new(),
            endpoints: OnceLock::new(),
            bgp: OnceLock::new(),
            publisher: OnceLock::new(),
            catalogue: OnceLock::new(),
            bgp_conditions: bgp::Conditions::default(),
            lb_problems: Texts::default(),
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
        let mut parts = Vec::new();
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        parts.push(match stage.as_str() {
            "" => Part::ready("agent", "running"),
            text => Part::failing("agent", text, "wait, or look at the agent's log"),
        });
        parts.push(self.manifests_part());
        parts.push(self.datapath_part());
        if let Some(publisher) = self.publisher.get() {
            parts.push(publisher_part(&publisher.status().borrow().clone()));
        }
        parts.extend(clusters.iter().map(mesh_part));
        if let Some(bgp) = self.bgp.get() {
            parts.extend(bgp_parts(&bgp.peers().await.unwrap_or_default()));
        }
        if let Some(store) = self.endpoints.get() {
            let usage: Vec<_> = store
                .address_usage()
                .iter()
                .map(|(prefix, used, all)| format!("{used}/{all} of {prefix}"))
                .collect();
            parts.push(Part::ready(
                "endpoints",
                format!("{} ready, addresses {}", store.ready().len(), usage.join(", ")),
            ));
        }
        parts.extend(self.reconciler_parts());
        parts
    }

    fn manifests_part(&self) -> Part {
        let Some(report) = self.manifests.get().map(|report| report.borrow().clone()) else {
            return Part::failing("manifests", "not read yet", "wait");
        };
        let detail = format!(
            "{} objects in {} files, {} problems",
            report.objects,
            report.files,
            report.problems.len()
        );
        if report.complete {
            Part::ready("manifests", detail)
        } else {
            Part::failing(
                "manifests",
                detail,
                "wait for the first complete read; check the folder's permissions",
            )
        }
    }

    fn datapath_part(&self) -> Part {
        match self.datapath.config() {
            Ok(config) if config.ready => Part::ready("datapath", "programs attached"),
            Ok(_) => Part::failing(
                "datapath",
                "waiting for the node's configuration: pods' packets are dropped (202)",
                "wait",
            ),
            Err(error) => {
                Part::failing("datapath", error.to_string(), "is bpffs mounted, and is the agent root?")
            }
        }
    }

    fn reconciler_parts(&self) -> Vec<Part> {
        let part = |(table, progress): (&str, tombolo_base::reconcile::Progress)| {
            let name = format!("reconcile/{table}");
            let detail = format!("{} pending, {} failed", progress.pending, progress.failed);
            match progress.example {
                None if progress.pending == 0 => Part::ready(name, "in step"),
                None => Part::ready(name, detail),
                Some(example) => Part::failing(
                    name,
                    format!("{detail}: {example}"),
                    "it is tried again; the text says what is missing",
                ),
            }
        };
        self.driver.board.all().into_iter().map(part).collect()
    }

    async fn clusters(&self) -> Vec<ClusterStatus> {
        match self.mesh.get() {
            Some(mesh) => mesh.status().await,
            None => Vec::new(),
        }
    }

    fn problems(&self, clusters: &[ClusterStatus]) -> Vec<String> {
        let mut all: Vec<String> = self
            .manifests
            .get()
            .map(|report| report.borrow().problems.iter().map(ToString::to_string).collect())
            .unwrap_or_default();
        let conditions = self.bgp_conditions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(
            conditions.into_iter().map(|condition| format!("{}: {}", condition.object, condition.text)),
        );
        all.extend(texts(&self.lb_problems));
        all.extend(texts(&self.policy_problems));
        if let Some(publisher) = self.publisher.get() {
            let warnings = publisher.status().borrow().warnings(unix_now());
            all.extend(warnings.iter().map(|text| format!("cluster {}: {text}", self.identity.cluster)));
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
        for (table, rows) in self.catalogue.get().map(Catalogue::sizes).unwrap_or_default() {
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
        for usage in self.datapath.usage().unwrap_or_default() {
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

fn mesh_part(cluster: &ClusterStatus) -> Part {
    let name = format!("mesh/{}", cluster.name);
    let stale = cluster.stale_secs.map(|secs| format!(" (stale for {secs}s)")).unwrap_or_default();
    let plain = if cluster.plaintext { ", PLAINTEXT" } else { "" };
    let refused = match cluster.refused_now {
        0 => String::new(),
        count => format!(", {count} entries refused"),
    };
    let detail = format!("{}{stale}{plain}{refused}", cluster.status);
    if cluster.ready {
        Part::ready(name, detail)
    } else {
        Part::failing(name, detail, "tombolo mesh troubleshoot")
    }
}

fn publisher_part(status: &PublisherStatus) -> Part {
    let role = if status.leader { "elected" } else { "follower" };
    let plain = if status.plaintext { ", PLAINTEXT" } else { "" };
    let detail = format!("{}{plain}, {role}, {} keys of this node", status.status, status.node_keys);
    if status.connected && status.published {
        Part::ready("etcd", detail)
    } else {
        Part::failing("etcd", detail, "check the cluster's etcd, its address and the certificates")
    }
}

fn bgp_parts(peers: &[InstancePeer]) -> Vec<Part> {
    let part = |peer: &InstancePeer| {
        let state = &peer.state;
        let name = format!("bgp/{}/{}", peer.instance, state.name);
        let text = format!("{:?} with {} AS {}", state.state, state.address, state.peer_asn);
        if state.state == tombolo_bgp::State::Established {
            Part::ready(name, text)
        } else {
            let error = state.last_error.clone().unwrap_or_default();
            let remedy = "can the router be reached, and do its AS numbers and addresses match?";
            Part::failing(name, format!("{text} {error}"), remedy)
        }
    };
    peers.iter().map(part).collect()
}

fn mesh_json(cluster: &ClusterStatus) -> Value {
    let mut value = serde_json::to_value(cluster).unwrap_or(Value::Null);
    if let Some(map) = value.as_object_mut() {
        // The names that Cilium's own status uses.
        for (key, kind) in [
            ("num-nodes", Kind::Nodes),
            ("num-endpoints", Kind::Ips),
            ("num-identities", Kind::Identities),
            ("num-shared-services", Kind::Services),
        ] {
            map.insert(key.to_owned(), json!(cluster.counts.get(&kind).copied().unwrap_or(0)));
        }
        map.insert("num-failures".to_owned(), json!(cluster.reconnections));
    }
    value
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
            mtu: self.mtu.load(Ordering::Relaxed),
            uptime_secs: self.driver.clock.now().since_origin().as_secs(),
            ready: parts.iter().all(|part| part.ready),
            parts,
            problems: self.problems(&clusters),
        }
    }

    fn table_names(&self) -> Vec<&'static str> {
        self.catalogue.get().map(Catalogue::names).unwrap_or_default()
    }

    fn table(&self, name: &str) -> Option<Shown> {
        self.catalogue.get()?.show(name)
    }

    async fn mesh(&self) -> Value {
        let own = self.identity.cluster.as_str();
        self.clusters().await.iter().filter(|cluster| cluster.name != own).map(mesh_json).collect()
    }

    async fn bgp_peers(&self) -> Value {
        match self.bgp.get() {
            Some(bgp) => bgp.peers().await.unwrap_or_default().iter().flat_map(bgp::peer_json).collect(),
            None => json!([]),
        }
    }

    async fn bgp_routes(&self, kind: &str) -> Option<Value> {
        let view = match kind {
            "received" => tombolo_bgp::RouteView::Received,
            "advertised" => tombolo_bgp::RouteView::Advertised,
            "best" => tombolo_bgp::RouteView::Best,
            _ => return None,
        };
        Some(match self.bgp.get() {
            Some(bgp) => bgp.routes(view).await.unwrap_or_default().iter().map(bgp::route_json).collect(),
            None => json!([]),
        })
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

    async fn metrics(&self) -> String {
        self.gauges();
        for cluster in self.clusters().await {
            let labels = ClusterLabels { target_cluster: cluster.name.clone() };
            let wide = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            let metrics = &self.metrics;
            metrics.remote_cluster_ready.get_or_create(&labels).set(i64::from(cluster.ready));
            metrics.remote_cluster_failures.get_or_create(&labels).set(wide(cluster.reconnections));
            let now = u64::try_from(cluster.refused_now).unwrap_or(u64::MAX);
            metrics.refused_entries.get_or_create(&labels).set(wide(now));
            for (reason, counted) in cluster.rejected.iter() {
                let labels =
                    RefusedLabels { reason: reason.to_string(), target_cluster: cluster.name.clone() };
                metrics.refused_updates.get_or_create(&labels).set(wide(counted.count));
            }
            if let Some(end) = cluster.certificate_expires_unix_secs {
                metrics.certificate_expiry.get_or_create(&labels).set(end);
            }
        }
        if let Some(bgp) = self.bgp.get() {
            for peer in bgp.peers().await.unwrap_or_default() {
                let state = &peer.state;
                let labels =
                    PeerLabels { vrouter: state.local_asn.to_string(), neighbor: state.address.to_string() };
                let up = state.state == tombolo_bgp::State::Established;
                self.metrics.bgp_session_state.get_or_create(&labels).set(i64::from(up));
            }
        }
        self.metrics.render().unwrap_or_default()
    }
}
