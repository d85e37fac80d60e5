//! Carries one cluster's mirror to the own etcd.

use super::Context;
use super::book::Slot;
use super::mirror::{ORDER, Standing};
use crate::error::MeshError;
use crate::publisher::lease::LeasePool;
use crate::publisher::scope::{Area, ScopeWriter};
use crate::publisher::{Desired, at};
use crate::rfc3339;
use crate::wire::{Layout, key};
use etcd_client::Client;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// What the elected relay writes with.
pub(super) struct Hand {
    pub(super) context: Arc<Context>,
    pub(super) client: Client,
    /// What must hold for every write.
    pub(super) fence: (String, i64),
    pub(super) turns: Arc<Semaphore>,
}

impl Hand {
    /// Writes what differs, until something fails.
    pub(super) async fn carry(&self, slot: &Slot) -> MeshError {
        match self.try_carry(slot).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_carry(&self, slot: &Slot) -> Result<Infallible, MeshError> {
        // All clusters begin at once when a relay is elected.
        let turn = self.turns.acquire().await.ok();
        let mut writer = self.writer(slot).await?;
        writer.resync().await?;
        drop(turn);
        let mut watch = writer.watch().await?;
        slot.mirror().begin();
        let mut keep_alive = interval(self.context.config.keep_alive());
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut singly, mut outlasting) = (false, None);
        loop {
            let busy = slot.mirror().has_work();
            outlasting = self.outlasting(slot, outlasting);
            if !busy && slot.notes().problem.take().is_some() {
                self.context.book.states.notify_one();
            }
            tokio::select! {
                biased;
                _ = keep_alive.tick() => {
                    if writer.pool.keep_alive().await? {
                        writer.resync().await?;
                        slot.mirror().begin();
                    }
                }
                foreign = watch.foreign(&writer) => {
                    foreign?;
                    writer.pool.keep_alive().await?;
                    writer.resync().await?;
                    slot.mirror().begin();
                }
                () = at(outlasting) => slot.mirror().drop_outlasting(),
                () = std::future::ready(()), if busy => {
                    let before = slot.progress().established;
                    singly = write(slot, &mut writer, singly).await?;
                    if slot.progress().established != before {
                        self.context.book.states.notify_one();
                    }
                }
                () = slot.work.notified(), if !busy => {}
            }
        }
    }

    /// When kinds go that the cluster does not publish any more: as much later as a configuration that is gone gives readers to
    /// look, once all that takes their place stands.
    fn outlasting(&self, slot: &Slot, known: Option<Instant>) -> Option<Instant> {
        let grace = self.context.config.removal_grace;
        slot.mirror().holds_outlasting().then(|| known.unwrap_or_else(|| Instant::now() + grace))
    }

    async fn writer(&self, slot: &Slot) -> Result<ScopeWriter, MeshError> {
        let name = slot.cluster.as_str();
        let (ttl, leases) = (self.context.config.lease_ttl, key::relay_leases(name));
        let pool = LeasePool::take_over(&self.client, ttl, leases, self.fence.clone()).await?;
        let kinds = ORDER.iter().map(|kind| Area::Whole(kind.prefix(Layout::Cache, name)));
        let areas = [Area::Key(key::cluster_config(name)), Area::Whole(key::synced_prefix(name))];
        let areas = areas.into_iter().chain(kinds).collect();
        let writer = ScopeWriter::new(self.client.clone(), pool, areas, Some(self.fence.clone()));
        Ok(writer.taking_turns(self.turns.clone()))
    }
}

/// One step. True if the next ones should write key by key: etcd takes one of them not, which must not hold the others back.
async fn write(slot: &Slot, writer: &mut ScopeWriter, singly: bool) -> Result<bool, MeshError> {
    let step = {
        let owns = |lease| writer.pool.contains(lease);
        let now = rfc3339::now();
        slot.mirror().step(&Standing { actual: writer.actual(), owns: &owns, now: &now })
    };
    if singly {
        for one in step.puts {
            put_one(slot, writer, one).await?;
        }
    } else {
        match writer.put_all(step.puts).await {
            Err(error) if is_too_large(&error) => {
                slot.mirror().begin();
                return Ok(true);
            }
            other => other?,
        }
    }
    writer.delete_all(step.deletes).await?;
    let mut mirror = slot.mirror();
    mirror.written();
    Ok(singly && mirror.has_work())
}

async fn put_one(slot: &Slot, writer: &mut ScopeWriter, one: Desired) -> Result<(), MeshError> {
    let key = one.key.clone();
    match writer.put_all(vec![one]).await {
        Err(error) if is_too_large(&error) => {
            tracing::warn!(cluster = %slot.cluster, key = %key.escape_debug(), %error, "not mirrored; raise the own etcd's --max-request-bytes");
            slot.mirror().refused(key);
            Ok(())
        }
        other => other,
    }
}

/// Whether etcd refuses a request for its size.
fn is_too_large(error: &MeshError) -> bool {
    let text = error.to_string();
    text.contains("request is too large") || text.contains("larger than max")
}
