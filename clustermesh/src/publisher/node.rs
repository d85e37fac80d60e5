//! This node's own keys: written, audited, and at last the marker that says so.

use super::Context;
use super::desired::{Desired, DesiredSet};
use super::lease::{LeasePool, is_lease_lost};
use super::scope::{Area, ScopeWriter};
use crate::error::MeshError;
use crate::etcd::broken;
use crate::wire::{Kind, Layout, key};
use etcd_client::Client;
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
        Area::Leased(Kind::Ips.prefix(Layout::State, cluster)),
        Area::Key(marker.key.clone()),
    ];
    let writer = ScopeWriter::new(client.clone(), pool, areas, None);
    let mut writer = writer.counted(context.node_writes.clone());
    writer.resync().await?;
    let mut watch = writer.watch().await?;
    let mut keep_alive = interval(context.config.keep_alive());
    let mut audit = interval(context.config.audit);
    keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    audit.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut wanted = context.node_keys.subscribe();
    // Etcd may have lost them: no address names an identity that is not there, and no marker, and after it no canary, says that all is.
    if context.identities_stand.subscribe().wait_for(|stand| *stand).await.is_err() {
        return Err(MeshError::Stopped);
    }
    loop {
        context.contested(&writer.take_contested());
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
            foreign = watch.foreign(&writer) => {
                foreign?;
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
    let why = "their leases end again and again while they are written; look at etcd's load, and whether somebody revokes leases";
    Err(broken("writing this node's keys".to_owned(), why.to_owned()))
}
