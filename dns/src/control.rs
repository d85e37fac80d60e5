//! What the unit says of itself, over a unix socket: `tombolo dns status`, metrics.

use crate::follow::Talking;
use crate::server::Server;
use crate::settings::Settings;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use tombolo_service::names::NameZone;

/// How the unit is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Whether every name of this cluster was told, now or in an earlier life.
    pub ready: bool,
    /// What it works with.
    pub settings: Settings,
    /// Its process.
    pub pid: u32,
    /// How long it runs.
    pub uptime_secs: u64,
    /// Names of this cluster's Services.
    pub names: usize,
    /// Names of imports.
    pub imports: usize,
    /// Whether every import was told.
    pub imports_known: bool,
    /// Since when an agent speaks.
    pub agent_secs: Option<u64>,
    /// When an agent was heard last; `None`: not in this life.
    pub heard_secs: Option<u64>,
    /// Why no agent speaks.
    pub trouble: Option<String>,
    /// Answers by code.
    pub answers: BTreeMap<String, u64>,
}

/// What the status is made of.
pub(crate) struct Control {
    pub(crate) server: Arc<Server>,
    pub(crate) settings: Settings,
    pub(crate) talking: Talking,
    pub(crate) started: Instant,
    /// Ends the unit.
    pub(crate) stop: CancellationToken,
}

impl Control {
    fn status(&self) -> Status {
        let talk = self.talking.now();
        let zones = self.server.zones();
        let secs = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs());
        let answers = self.server.metrics.by_code().into_iter();
        Status {
            ready: zones.is_known(NameZone::Cluster),
            settings: self.settings.clone(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs(),
            names: zones.len(NameZone::Cluster),
            imports: zones.len(NameZone::ClusterSet),
            imports_known: zones.is_known(NameZone::ClusterSet),
            agent_secs: secs(talk.connected),
            heard_secs: secs(talk.heard),
            trouble: talk.trouble,
            answers: answers.map(|(code, count)| (code.to_owned(), count)).collect(),
        }
    }
}

async fn metrics(State(control): State<Arc<Control>>) -> impl IntoResponse {
    let text = control.server.metrics.text(&control.server.zones());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0")], text)
}

/// Status and metrics.
pub(crate) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/status", get(|State(control): State<Arc<Control>>| async move { Json(control.status()) }))
        .route("/v1/metrics", get(metrics))
        .route("/v1/stop", get(|State(control): State<Arc<Control>>| async move { control.stop.cancel() }))
        .with_state(control)
}

/// Metrics alone, for the network.
pub(crate) fn metrics_router(control: Arc<Control>) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(control)
}

/// A name for an address in an error.
pub(crate) fn place(address: &SocketAddr, what: &str) -> String {
    format!("{what} {address}")
}
