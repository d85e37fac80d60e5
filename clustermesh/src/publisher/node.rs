//! This node's own keys: written, audited, and at last the marker that says so.

use super::Context;
use super::desired::{Desired, DesiredSet};
use super::election::ended;
use super::lease::{LeasePool, is_lease_lost};
use super::scope::{Area, ScopeWriter};
use crate::error::MeshError;
use crate::etcd::{request, request_error};
use crate::wire::{Kind, Layout, key};
use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use std::convert::Infallible;
use tokio::time::{MissedTickBehavior, interval};

/// Runs until the connection is lost.
pub(super) async fn publish(context: &Context, client: &Client) -> MeshError {
    match try_publish(context, client).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_publish(context: &Context, client: &Client) -> Result<Infallible, MeshError> {
    let (cluster, node) = (context.config.cluster.as_str(), context.config.node.as_ref());
    let marker = Desired::text(format!("{}{node}", key::PUBLISHED), node);
    let pool = LeasePool::open(context, client, "node").await?;
    let areas = vec![
        Area::Key(format!("{}{node}", Kind::Nodes.prefix(Layout::State, cluster))),
        Area::Shared(Kind::Ips.prefix(Layout::State, cluster)),
        Area::Key(marker.key.clone()),
    ];
    let mut writer = ScopeWriter::new(client.clone(), pool, areas, None);
    writer.resync().await?;
    let mut stream = watch_marker(client, &marker.key).await?;
    let mut keep_alive = interval(context.config.keep_alive());
    let mut audit = interval(context.config.audit);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wanted = context.node_keys.subscribe();
    loop {
        let given = wanted.borrow_and_update().clone();
        if let Some(given) = given {
            publish_all(&mut writer, &given, &marker).await?;
            context.update(|status| {
                status.published = true;
                status.node_keys = given.len();
                status.leases = writer.pool.len();
            });
        }
        tokio::select! {
            changed = wanted.changed() => changed.map_err(|_| MeshError::Stopped)?,
            _ = keep_alive.tick() => {
                if writer.pool.keep_alive().await? {
                    writer.resync().await?;
                }
            }
            _ = audit.tick() => writer.resync().await?,
            gone = marker_gone(&mut stream, &marker.key) => {
                gone?;
                tracing::warn!("own keys were removed from etcd by somebody else; writing them again");
                writer.pool.keep_alive().await?;
                writer.resync().await?;
            }
        }
    }
}

/// The marker is the last word: it stands only while everything before it was written.
async fn publish_all(
    writer: &mut ScopeWriter,
    given: &DesiredSet,
    marker: &Desired,
) -> Result<(), MeshError> {
    let mut all = given.clone();
    for _ in 0..3 {
        // First without pruning, so that the marker is not taken for a leftover.
        let outcome = match writer.reconcile(given, false).await {
            Ok(_) => {
                all.insert(marker.key.clone(), marker.clone());
                writer.reconcile(&all, true).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(_) => return Ok(()),
            Err(error) if is_lease_lost(&error) => {
                writer.pool.keep_alive().await?;
                writer.resync().await?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(ended("writing this node's keys: leases are lost again and again".to_owned()))
}

async fn watch_marker(client: &Client, name: &str) -> Result<WatchStream, MeshError> {
    let mut watch = client.watch_client();
    let options = WatchOptions::new();
    request(|| format!("watching {name}"), watch.watch(name, Some(options))).await
}

async fn marker_gone(stream: &mut WatchStream, name: &str) -> Result<(), MeshError> {
    loop {
        let what = || format!("watching {name}");
        let answer = stream.message().await.map_err(|error| request_error(what(), &error))?;
        let Some(answer) = answer.filter(|answer| !answer.canceled()) else { return Err(ended(what())) };
        if answer.events().iter().any(|event| event.event_type() == EventType::Delete) {
            return Ok(());
        }
    }
}
