//! The local API: HTTP/1 on a unix socket that only root may open. The command line and the CNI plugin speak it.

use super::bgp_api::{Operation, RouteQuery, RouteTrial};
use super::policy_impact::ImpactQuery;
use super::policy_trace::TraceQuery;
use super::show::Shown;
use super::status::Status;
use super::why::WhyQuery;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tombolo_clustermesh::follower::Dump;
use tombolo_clustermesh::troubleshoot::Walk;
use tombolo_cni::Reply;
use tombolo_ebpf::FlowFilter;
use tombolo_observe::filter::Filter;
use tombolo_observe::flow::Flow;

/// Largest request body: a CNI call.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// Largest file of policies that is asked about.
const MAX_POLICY_BYTES: usize = 4 * 1024 * 1024;
/// Why there is nothing to say of policies.
const NO_PODS: &str = "this program has no pods, and so no policies; ask an agent";

/// What the API shows and does; implemented by the daemon.
pub(crate) trait Backend: Send + Sync + 'static {
    /// The state of every part.
    fn status(&self) -> impl Future<Output = Status> + Send;
    /// The names of all tables.
    fn table_names(&self) -> Vec<&'static str>;
    /// One table; `None` if there is none of that name.
    fn table(
        &self,
        name: &str,
        filter: FlowFilter,
    ) -> impl Future<Output = Option<Result<Shown, String>>> + Send;
    /// Makes the datapath forget flows.
    fn flush(&self, filter: FlowFilter) -> impl Future<Output = Result<serde_json::Value, String>> + Send;
    /// What becomes of packets, and why.
    fn why(&self, _query: WhyQuery) -> impl Future<Output = Result<serde_json::Value, String>> + Send {
        std::future::ready(Err(NO_PODS.to_owned()))
    }
    /// What policies do to a flow.
    fn policy_trace(
        &self,
        _query: TraceQuery,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send {
        std::future::ready(Err(NO_PODS.to_owned()))
    }
    /// What policies that are not in force would do to the flows seen lately.
    fn policy_impact(
        &self,
        _query: ImpactQuery,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send {
        std::future::ready(Err(NO_PODS.to_owned()))
    }
    /// The remote clusters.
    fn mesh(&self) -> impl Future<Output = serde_json::Value> + Send;
    /// What several clusters claim.
    fn mesh_conflicts(&self) -> impl Future<Output = serde_json::Value> + Send;
    /// The nodes of every cluster.
    fn mesh_nodes(&self) -> impl Future<Output = serde_json::Value> + Send;
    /// How long changes take from the clusters to here.
    fn mesh_lag(&self) -> impl Future<Output = serde_json::Value> + Send;
    /// What was accepted from them.
    fn mesh_dump(&self) -> impl Future<Output = Dump> + Send;
    /// The way to them, step by step, or to one of them.
    fn mesh_walks(&self, only: Option<String>) -> impl Future<Output = Result<Vec<Walk>, String>> + Send;
    /// The global services, or those of a name.
    fn mesh_services(&self, only: Option<String>) -> impl Future<Output = serde_json::Value> + Send;
    /// BGP sessions.
    fn bgp_peers(&self) -> impl Future<Output = serde_json::Value> + Send;
    /// All about the BGP peers of a name, or about all.
    fn bgp_states(
        &self,
        peer: Option<String>,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send;
    /// The RPKI caches of each BGP instance.
    fn bgp_rpki(&self) -> impl Future<Output = serde_json::Value> + Send;
    /// BGP routes: `received`, `advertised` or `best`.
    fn bgp_routes(
        &self,
        kind: &str,
        query: &RouteQuery,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send;
    /// What a route would meet at the policy of BGP peers.
    fn bgp_try_policy(
        &self,
        trial: RouteTrial,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send;
    /// The BGP routes received as an MRT file.
    fn bgp_dump(&self, peer: Option<String>) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
    /// Does something to BGP peers, and says what came of it for each.
    fn bgp_operate(
        &self,
        operation: Operation,
    ) -> impl Future<Output = Result<serde_json::Value, String>> + Send;
    /// The latest flows that match, oldest first, and the stream of those that follow.
    fn flows(
        &self,
        filter: &Filter,
        last: usize,
    ) -> (Vec<Arc<Flow>>, tokio::sync::broadcast::Receiver<Arc<Flow>>);
    /// The names of services as lines, everything first; `None` where there are none (yet).
    fn names(&self) -> Option<tokio::sync::mpsc::Receiver<Vec<u8>>> {
        None
    }
    /// A call of the CNI plugin.
    fn cni(&self, command: &str, body: &[u8]) -> impl Future<Output = Reply> + Send;
    /// Metrics in Prometheus' text form.
    fn metrics(&self) -> impl Future<Output = String> + Send;
}

/// Which flows are asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FlowQuery {
    /// JSON of a [`Filter`].
    #[serde(default)]
    pub(crate) filter: String,
    /// How many of the latest.
    #[serde(default)]
    pub(crate) last: usize,
    /// Whether to go on with what follows.
    #[serde(default)]
    pub(crate) follow: bool,
}

/// Which peer is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PeerQuery {
    /// Name, instance/name or address; none is all.
    pub(crate) peer: Option<String>,
}

/// `?cluster=`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ClusterQuery {
    /// A remote cluster's name; none is all.
    pub(crate) cluster: Option<String>,
}

/// `?service=`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ServiceQuery {
    /// A service's name, or namespace/name; none is all.
    pub(crate) service: Option<String>,
}

/// The socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the local API at {path}: {source}; is another agent running, and is the folder writable?"
)]
pub(crate) struct ListenError {
    path: String,
    source: std::io::Error,
}

/// Opens the socket, mode 0600. A socket that nobody answers any more is replaced.
///
/// It is made in a folder that only its owner may enter and moved to its place with its final mode: at no time may anybody
/// else connect, and no process-wide umask is touched.
pub(crate) fn listen(path: &PathBuf) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError { path: path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(failed(std::io::ErrorKind::AddrInUse.into()));
    }
    let closed = path.with_extension("new");
    match std::fs::remove_dir_all(&closed) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(&closed).map_err(failed)?;
    let fresh = closed.join("s");
    let listener = UnixListener::bind(&fresh).map_err(failed)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)?;
    std::fs::remove_dir(&closed).map_err(failed)?;
    Ok(listener)
}

/// Serves until cancelled.
pub(crate) async fn serve<B: Backend>(listener: UnixListener, backend: Arc<B>, cancel: CancellationToken) {
    let router = Router::new()
        .route("/v1/status", get(|State(b): State<Arc<B>>| async move { Json(b.status().await) }))
        .route("/v1/tables", get(|State(b): State<Arc<B>>| async move { Json(b.table_names()) }))
        .route("/v1/tables/{name}", get(table::<B>))
        .route("/v1/conntrack/flush", post(flush::<B>))
        .route("/v1/why", post(why::<B>))
        .route("/v1/policy/trace", post(policy_trace::<B>))
        .route("/v1/policy/impact", post(policy_impact::<B>).layer(DefaultBodyLimit::max(MAX_POLICY_BYTES)))
        .route("/v1/mesh/dump", get(|State(b): State<Arc<B>>| async move { Json(b.mesh_dump().await) }))
        .route("/v1/mesh/troubleshoot", get(mesh_walks::<B>))
        .route(
            "/v1/mesh/conflicts",
            get(|State(b): State<Arc<B>>| async move { Json(b.mesh_conflicts().await) }),
        )
        .route("/v1/mesh/lag", get(|State(b): State<Arc<B>>| async move { Json(b.mesh_lag().await) }))
        .route("/v1/mesh/nodes", get(|State(b): State<Arc<B>>| async move { Json(b.mesh_nodes().await) }))
        .route("/v1/mesh/services", get(mesh_services::<B>))
        .route("/v1/mesh", get(|State(b): State<Arc<B>>| async move { Json(b.mesh().await) }))
        .route("/v1/bgp/peers", get(|State(b): State<Arc<B>>| async move { Json(b.bgp_peers().await) }))
        .route("/v1/bgp/states", get(bgp_states::<B>))
        .route("/v1/bgp/rpki", get(|State(b): State<Arc<B>>| async move { Json(b.bgp_rpki().await) }))
        .route("/v1/bgp/routes/{kind}", get(bgp_routes::<B>))
        .route("/v1/bgp/dump", get(bgp_dump::<B>))
        .route("/v1/bgp/policy/test", post(bgp_try_policy::<B>))
        .route("/v1/bgp/operate", post(bgp_operate::<B>))
        .route("/v1/flows", get(flows::<B>))
        .route("/v1/metrics", get(|State(b): State<Arc<B>>| async move { b.metrics().await }))
        .route(tombolo_dns::line::PATH, get(names::<B>))
        .route("/v1/cni/{command}", post(cni::<B>))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(backend);
    let ended = axum::serve(listener, router).with_graceful_shutdown(cancel.clone().cancelled_owned()).await;
    if let Err(error) = ended {
        tracing::error!(%error, "the local API ended; restart the agent");
    }
}

/// Serves metrics over TCP until cancelled.
pub(crate) async fn serve_metrics<B: Backend>(
    listener: tokio::net::TcpListener,
    backend: Arc<B>,
    cancel: CancellationToken,
) {
    let text = |State(b): State<Arc<B>>| async move {
        ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0")], b.metrics().await)
    };
    let router = Router::new().route("/metrics", get(text)).with_state(backend);
    let ended = axum::serve(listener, router).with_graceful_shutdown(cancel.clone().cancelled_owned()).await;
    if let Err(error) = ended {
        tracing::error!(%error, "the metrics listener ended; restart the agent");
    }
}

fn not_found(text: String) -> Response {
    (StatusCode::NOT_FOUND, text).into_response()
}

async fn table<B: Backend>(
    State(backend): State<Arc<B>>,
    Path(name): Path<String>,
    Query(filter): Query<FlowFilter>,
) -> Response {
    match backend.table(&name, filter).await {
        Some(Ok(shown)) => Json(shown).into_response(),
        Some(Err(text)) => (StatusCode::INTERNAL_SERVER_ERROR, text).into_response(),
        None => not_found(format!("no table {name:?}; there are: {}", backend.table_names().join(", "))),
    }
}

async fn flush<B: Backend>(State(backend): State<Arc<B>>, Json(filter): Json<FlowFilter>) -> Response {
    answer(backend.flush(filter).await)
}

async fn why<B: Backend>(State(backend): State<Arc<B>>, Json(query): Json<WhyQuery>) -> Response {
    answer(backend.why(query).await)
}

async fn policy_trace<B: Backend>(State(backend): State<Arc<B>>, Json(query): Json<TraceQuery>) -> Response {
    answer(backend.policy_trace(query).await)
}

async fn policy_impact<B: Backend>(
    State(backend): State<Arc<B>>,
    Json(query): Json<ImpactQuery>,
) -> Response {
    answer(backend.policy_impact(query).await)
}

/// JSON, or why there is none.
fn answer(result: Result<serde_json::Value, String>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(text) => not_found(text),
    }
}

async fn mesh_walks<B: Backend>(
    State(backend): State<Arc<B>>,
    Query(query): Query<ClusterQuery>,
) -> Response {
    match backend.mesh_walks(query.cluster).await {
        Ok(walks) => Json(walks).into_response(),
        Err(text) => not_found(text),
    }
}

async fn mesh_services<B: Backend>(
    State(backend): State<Arc<B>>,
    Query(query): Query<ServiceQuery>,
) -> Response {
    Json(backend.mesh_services(query.service).await).into_response()
}

async fn bgp_states<B: Backend>(State(backend): State<Arc<B>>, Query(query): Query<PeerQuery>) -> Response {
    answer(backend.bgp_states(query.peer).await)
}

async fn bgp_routes<B: Backend>(
    State(backend): State<Arc<B>>,
    Path(kind): Path<String>,
    Query(query): Query<RouteQuery>,
) -> Response {
    answer(backend.bgp_routes(&kind, &query).await)
}

async fn bgp_dump<B: Backend>(State(backend): State<Arc<B>>, Query(query): Query<PeerQuery>) -> Response {
    match backend.bgp_dump(query.peer).await {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response(),
        Err(text) => not_found(text),
    }
}

async fn bgp_try_policy<B: Backend>(
    State(backend): State<Arc<B>>,
    Json(trial): Json<RouteTrial>,
) -> Response {
    answer(backend.bgp_try_policy(trial).await)
}

async fn bgp_operate<B: Backend>(
    State(backend): State<Arc<B>>,
    Json(operation): Json<Operation>,
) -> Response {
    answer(backend.bgp_operate(operation).await)
}

async fn cni<B: Backend>(
    State(backend): State<Arc<B>>,
    Path(command): Path<String>,
    body: Bytes,
) -> Response {
    let reply = backend.cni(&command, &body).await;
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], reply.body).into_response()
}

/// JSON lines until the caller goes away.
async fn names<B: Backend>(State(backend): State<Arc<B>>) -> Response {
    let Some(lines) = backend.names() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "names are not known yet; ask again").into_response();
    };
    let lines = tokio_stream::wrappers::ReceiverStream::new(lines);
    let bytes =
        tokio_stream::StreamExt::map(lines, |text| Ok::<_, std::convert::Infallible>(Bytes::from(text)));
    Body::from_stream(bytes).into_response()
}

fn line(flow: &Flow) -> Bytes {
    let mut text = serde_json::to_vec(flow).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// JSON lines; with `follow` until the caller goes away. A reader that is too slow misses flows and is told how many.
async fn flows<B: Backend>(State(backend): State<Arc<B>>, Query(query): Query<FlowQuery>) -> Response {
    let filter: Filter = match query.filter.as_str() {
        "" => Filter::default(),
        text => match serde_json::from_str(text) {
            Ok(filter) => filter,
            Err(error) => return (StatusCode::BAD_REQUEST, format!("filter: {error}")).into_response(),
        },
    };
    let (latest, mut following) = backend.flows(&filter, query.last);
    if !query.follow {
        let text: Vec<u8> = latest.iter().flat_map(|flow| line(flow)).collect();
        return text.into_response();
    }
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::convert::Infallible>>(256);
    tokio::spawn(async move {
        for flow in latest {
            if sender.send(Ok(line(&flow))).await.is_err() {
                return;
            }
        }
        loop {
            let next = tokio::select! {
                () = sender.closed() => return,
                next = following.recv() => next,
            };
            let text = match next {
                Ok(flow) if filter.matches(&flow) => line(&flow),
                Ok(_) => continue,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                    format!("{{\"missed\":{missed}}}\n").into()
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            };
            if sender.send(Ok(text)).await.is_err() {
                return;
            }
        }
    });
    Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_replaces_a_dead_one_and_spares_a_living_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        drop(listen(&path).unwrap());
        assert!(path.exists(), "as after SIGKILL");
        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (client, accepted) = tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        assert!(client.is_ok() && accepted.is_ok());
        assert!(listen(&path).unwrap_err().to_string().contains("is another agent running"));
        let left: Vec<_> = std::fs::read_dir(folder.path().join("run")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
