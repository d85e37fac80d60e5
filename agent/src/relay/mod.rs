//! `tombolo relay`: mirrors the other clusters into this cluster's etcd, so that its nodes read one etcd. Wiring only.
//!
//! SIGTERM gives the election up, and another relay goes on; the mirrors stay, also after SIGKILL.

mod api;
mod config;

pub(crate) use config::{DEFAULT_SOCKET, RelayFile, is_relay, load};

use crate::daemon::{Signals, api as local_api};
use anyhow::Context;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tombolo_clustermesh::relay::{self, RelayConfig};

/// How long the relay may take to end after a stop was asked for.
const STOP: std::time::Duration = std::time::Duration::from_secs(10);

/// Runs the relay until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be started, why, and what to try.
pub(crate) async fn run(file: RelayFile, config: RelayConfig) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let mut signals = Signals::new()?;
    let listener = local_api::listen(&file.api.socket)?;
    let metrics = match file.metrics.listen {
        None => None,
        Some(address) => {
            let opened = tokio::net::TcpListener::bind(address).await;
            Some(
                opened
                    .with_context(|| format!("cannot open metrics.listen {address}; is the port taken?"))?,
            )
        }
    };
    let (handle, task) = relay::start(config.clone(), cancel.clone()).await;
    let shown = Arc::new(api::Shown::new(config, handle));
    let mut servers = vec![tokio::spawn(api::serve(listener, shown.clone(), cancel.clone()))];
    servers.extend(metrics.map(|listener| tokio::spawn(api::serve_metrics(listener, shown, cancel.clone()))));
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    tracing::info!("ready");
    let mut running = task;
    tokio::select! {
        () = signals.wait() => {}
        ended = &mut running => {
            ended.context("the relay broke off; this is a bug, please report the log")?;
            anyhow::bail!("the relay ended by itself; this is a bug, please report the log");
        }
    }
    tracing::info!("stopping: the election is given up, the mirrors stay");
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).ok();
    cancel.cancel();
    let all = async {
        let ended = running.await;
        for server in servers {
            // A panic was reported by the runtime already.
            drop(server.await);
        }
        ended
    };
    match tokio::time::timeout(STOP, all).await {
        Ok(ended) => ended.context("the relay broke off; this is a bug, please report the log"),
        Err(_) => anyhow::bail!("not stopped within {} s, so it is broken off", STOP.as_secs()),
    }
}
