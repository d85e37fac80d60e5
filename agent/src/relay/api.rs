//! What a relay shows in its local API: itself, the clusters, the way to them, metrics. A part of the agent's API, so that
//! `tombolo status` and `tombolo mesh` can ask it too.

use crate::daemon::api::ClusterQuery;
use crate::daemon::mesh_view::Conflict;
use crate::daemon::status::{Part, Status};
use crate::daemon::{mesh_view, parts};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tombolo_base::table::Snapshot;
use tombolo_clustermesh::certificate::unix_now;
use tombolo_clustermesh::operations::Operations;
use tombolo_clustermesh::relay::{RelayConfig, RelayHandle, RelayStatus, RelayedCluster};
use tombolo_clustermesh::troubleshoot::{Viewpoint, walk};
use tombolo_clustermesh::wire::ServicePreference;
use tombolo_observe::metrics::ClusterLabels;
use tombolo_observe::relay::{RelayMetrics, SourceLabels};

/// A relay as the API sees it.
pub(super) struct Shown {
    config: RelayConfig,
    handle: RelayHandle,
    started: Instant,
}

impl Shown {
    pub(super) fn new(config: RelayConfig, handle: RelayHandle) -> Self {
        Self { config, handle, started: Instant::now() }
    }

    async fn status(&self) -> Status {
        let relay = self.handle.status().await;
        let mut parts = vec![own(&relay)];
        for cluster in &relay.clusters {
            parts.push(parts::mesh(&cluster.remote));
            parts.extend(mirror(cluster, relay.leader));
        }
        let of = |cluster: &RelayedCluster| {
            let name = cluster.remote.name.clone();
            let all = cluster.remote.warnings.iter().chain(&cluster.mirror.warnings);
            all.map(|text| format!("cluster {name}: {text}")).collect::<Vec<_>>()
        };
        let problems = relay.warnings.iter().cloned().chain(relay.clusters.iter().flat_map(of));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.config.cluster.to_string(),
            node: format!("relay {}", self.config.name),
            path: "-".to_owned(),
            encryption: "none".to_owned(),
            mtu: 0,
            uptime_secs: self.started.elapsed().as_secs(),
            ready: parts.iter().all(|part| part.ready),
            problems: problems.collect(),
            parts,
        }
    }

    async fn walks(&self, only: Option<String>) -> Response {
        let from = Viewpoint {
            folder: self.config.folder.clone(),
            own: self.config.cluster,
            own_id: self.config.cluster_id,
            max: self.config.max,
            allow_plaintext: self.config.allow_plaintext,
            preference: ServicePreference::default(),
            relay: None,
        };
        match walk(&from, only.as_deref()).await {
            Ok(walks) => Json(walks).into_response(),
            Err(error) => (StatusCode::NOT_FOUND, error.to_string()).into_response(),
        }
    }

    /// As far as the clusters' own etcds show them: what several claim is for the agents to judge, who know the rows.
    async fn conflicts(&self) -> Vec<Conflict> {
        let now = u64::try_from(unix_now()).unwrap_or(0);
        mesh_view::conflicts(&Snapshot::default(), |_| 0, &self.handle.mesh().status().await, now)
    }

    async fn metrics(&self) -> String {
        let relay = self.handle.status().await;
        let metrics = RelayMetrics::default();
        let wide = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let long = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.elected.set(i64::from(relay.leader));
        let with_file = relay.clusters.iter().filter(|cluster| !cluster.mirror.removing).count();
        metrics.remote_clusters.set(wide(with_file));
        for RelayedCluster { remote, mirror } in &relay.clusters {
            let target = ClusterLabels { target_cluster: remote.name.clone() };
            let source = SourceLabels { source_cluster: remote.name.clone() };
            metrics.ready.get_or_create(&target).set(i64::from(remote.ready));
            metrics.failures.get_or_create(&target).set(long(remote.reconnections));
            let last =
                remote.last_failure.as_ref().map_or(0, |last| unix_now().saturating_sub(long(last.age_secs)));
            metrics.last_failure.get_or_create(&target).set(last);
            if let Some(end) = remote.certificate_expires_unix_secs {
                metrics.certificate_expiry.get_or_create(&target).set(end);
            }
            metrics.queue.get_or_create(&source).set(wide(mirror.queued));
            metrics.synced.get_or_create(&source).set(i64::from(mirror.complete));
            metrics.entries.get_or_create(&source).set(wide(mirror.entries));
            metrics.refused.get_or_create(&source).set(wide(remote.refused_now));
            metrics.stale.get_or_create(&source).set(long(remote.stale_secs.unwrap_or(0)));
        }
        let etcd = Operations::of_process();
        metrics.render(|registry| etcd.register(registry, "cilium_kvstoremesh_kvstore")).unwrap_or_default()
    }
}

/// The relay's own etcd.
fn own(relay: &RelayStatus) -> Part {
    if relay.connected {
        return Part::ready("etcd", relay.status.clone());
    }
    Part::failing("etcd", relay.status.clone(), "check the cluster's etcd, its address and the certificates")
}

/// A mirror, as far as this relay writes it.
fn mirror(cluster: &RelayedCluster, leader: bool) -> Option<Part> {
    let (name, mirror) = (format!("mirror/{}", cluster.remote.name), &cluster.mirror);
    let detail = format!("{} entries, {} keys to be written", mirror.entries, mirror.queued);
    match &mirror.problem {
        Some(problem) => Some(Part::failing(name, problem.clone(), "check the own etcd's quota and limits")),
        None if !leader || mirror.removing => None,
        None if mirror.complete => Some(Part::ready(name, detail)),
        None => Some(Part::failing(name, detail, "wait; it is whole once the cluster was read and written")),
    }
}

/// Serves until cancelled.
pub(super) async fn serve(listener: UnixListener, shown: Arc<Shown>, cancel: CancellationToken) {
    let router = Router::new()
        .route("/v1/status", get(|State(s): State<Arc<Shown>>| async move { Json(s.status().await) }))
        .route("/v1/relay", get(|State(s): State<Arc<Shown>>| async move { Json(s.handle.status().await) }))
        .route("/v1/mesh", get(|State(s): State<Arc<Shown>>| async move { Json(mesh(&s).await) }))
        .route(
            "/v1/mesh/conflicts",
            get(|State(s): State<Arc<Shown>>| async move { Json(s.conflicts().await) }),
        )
        .route(
            "/v1/mesh/troubleshoot",
            get(|State(s): State<Arc<Shown>>, Query(query): Query<ClusterQuery>| async move {
                s.walks(query.cluster).await
            }),
        )
        .route("/v1/metrics", get(|State(s): State<Arc<Shown>>| async move { s.metrics().await }))
        .with_state(shown);
    let ended = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await;
    if let Err(error) = ended {
        tracing::error!(%error, "the local API ended; restart the relay");
    }
}

async fn mesh(shown: &Shown) -> serde_json::Value {
    shown.handle.mesh().status().await.iter().map(mesh_view::cluster).collect()
}

/// Serves metrics over TCP until cancelled.
pub(super) async fn serve_metrics(listener: TcpListener, shown: Arc<Shown>, cancel: CancellationToken) {
    let text = |State(s): State<Arc<Shown>>| async move {
        ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0")], s.metrics().await)
    };
    let router = Router::new().route("/metrics", get(text)).with_state(shown);
    let ended = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await;
    if let Err(error) = ended {
        tracing::error!(%error, "the metrics listener ended; restart the relay");
    }
}
