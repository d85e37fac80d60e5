//! What a router shows in the local API: sessions, routes, tables, status.

use super::config::RouterConfig;
use super::reload::Problems;
use crate::daemon::api::Backend;
use crate::daemon::bgp_api::{Operation, RouteQuery, RouteTrial};
use crate::daemon::drive::Driver;
use crate::daemon::show::{Catalogue, Shown};
use crate::daemon::status::Status;
use crate::daemon::tasks::Roll;
use crate::daemon::{bgp_api, parts};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::broadcast;
use tombolo_bgp_node::{BgpNode, PeerName};
use tombolo_clustermesh::follower::Dump;
use tombolo_clustermesh::troubleshoot::Walk;
use tombolo_cni::Reply;
use tombolo_cni::protocol::{CniError, Code};
use tombolo_ebpf::FlowFilter;
use tombolo_observe::filter::Filter;
use tombolo_observe::flow::Flow;
use tombolo_observe::metrics::{Metrics, TableLabels};

/// A router as the API sees it.
pub(crate) struct Router {
    name: String,
    driver: Driver,
    bgp: BgpNode,
    catalogue: Catalogue,
    roll: Roll,
    metrics: Metrics,
    /// What is wrong with the configuration file now.
    problems: Problems,
    /// Nothing is ever sent: a router sees no flows.
    flows: broadcast::Sender<Arc<Flow>>,
}

impl Router {
    /// A router that runs.
    pub(crate) fn new(
        config: &RouterConfig,
        driver: Driver,
        bgp: BgpNode,
        catalogue: Catalogue,
        roll: Roll,
        problems: Problems,
    ) -> Self {
        let name = format!("router {} AS {}", config.router_id, config.asn);
        Self {
            name,
            driver,
            bgp,
            catalogue,
            roll,
            metrics: Metrics::default(),
            problems,
            flows: broadcast::Sender::new(1),
        }
    }
}

impl Backend for Router {
    async fn status(&self) -> Status {
        let mut parts = parts::agent("", &self.roll.ended());
        parts.extend(parts::bgp(&self.bgp.peers().await.unwrap_or_default()));
        parts.extend(parts::rpki(&self.bgp.rpki_caches().await.unwrap_or_default()));
        let reconcilers = self.driver.board.all().into_iter();
        parts.extend(reconcilers.map(|(table, progress)| parts::reconciler(table, progress)));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: "-".to_owned(),
            node: self.name.clone(),
            path: "-".to_owned(),
            encryption: "none".to_owned(),
            mtu: 0,
            uptime_secs: self.driver.clock.now().since_origin().as_secs(),
            ready: parts.iter().all(|part| part.ready),
            parts,
            problems: self.problems.borrow().clone(),
        }
    }

    fn table_names(&self) -> Vec<&'static str> {
        self.catalogue.names()
    }

    async fn table(&self, name: &str, _: FlowFilter) -> Option<Result<Shown, String>> {
        self.catalogue.show(name).map(Ok)
    }

    async fn flush(&self, _: FlowFilter) -> Result<Value, String> {
        Err("a router tracks no flows; ask an agent".to_owned())
    }

    async fn mesh(&self) -> Value {
        json!([])
    }

    async fn mesh_conflicts(&self) -> Value {
        json!([])
    }

    async fn mesh_nodes(&self) -> Value {
        json!([])
    }

    async fn mesh_lag(&self) -> Value {
        json!({ "clusters": [], "map": null })
    }

    async fn mesh_dump(&self) -> Dump {
        Dump::default()
    }

    async fn mesh_services(&self, _: Option<String>) -> Value {
        json!({"services": [], "withheld": {}})
    }

    async fn mesh_walks(&self, _: Option<String>) -> Result<Vec<Walk>, String> {
        Err("a router is in no mesh; ask an agent".to_owned())
    }

    async fn bgp_peers(&self) -> Value {
        self.bgp.peers().await.unwrap_or_default().iter().flat_map(bgp_api::peer_json).collect()
    }

    async fn bgp_states(&self, peer: Option<String>) -> Result<Value, String> {
        bgp_api::states(&self.bgp, peer.map(PeerName)).await
    }

    async fn bgp_rpki(&self) -> Value {
        json!(self.bgp.rpki_caches().await.unwrap_or_default())
    }

    async fn bgp_routes(&self, kind: &str, query: &RouteQuery) -> Result<Value, String> {
        bgp_api::routes(&self.bgp, kind, query).await
    }

    async fn bgp_try_policy(&self, trial: RouteTrial) -> Result<Value, String> {
        bgp_api::try_policy(&self.bgp, trial).await
    }

    async fn bgp_dump(&self, peer: Option<String>) -> Result<Vec<u8>, String> {
        bgp_api::dump(&self.bgp, peer.map(PeerName)).await
    }

    async fn bgp_operate(&self, operation: Operation) -> Result<Value, String> {
        bgp_api::operate(&self.bgp, operation).await
    }

    fn flows(&self, _: &Filter, _: usize) -> (Vec<Arc<Flow>>, broadcast::Receiver<Arc<Flow>>) {
        (Vec::new(), self.flows.subscribe())
    }

    async fn cni(&self, _: &str, _: &[u8]) -> Reply {
        let error = CniError::new(Code::TryAgainLater, "this is a router", "call the agent of a node");
        Reply { status: 404, body: serde_json::to_vec(&error).unwrap_or_default() }
    }

    async fn metrics(&self) -> String {
        let wide = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let name = |table: &str| TableLabels { table: table.to_owned() };
        for (table, rows) in self.catalogue.sizes() {
            self.metrics.rows.get_or_create(&name(table)).set(wide(rows));
        }
        for (table, progress) in self.driver.board.all() {
            self.metrics.pending.get_or_create(&name(table)).set(wide(progress.pending));
            self.metrics.failed.get_or_create(&name(table)).set(wide(progress.failed));
        }
        bgp_api::gauges(&self.bgp.peers().await.unwrap_or_default(), &self.metrics);
        self.metrics.render(|_| {}).unwrap_or_default()
    }
}
