//! Clusters without a file: their configuration goes first, so that agents let go of them, then everything else.

use super::Context;
use super::book::Slot;
use super::carry::Hand;
use super::mirror::ORDER;
use crate::error::MeshError;
use crate::etcd::request;
use crate::operations::{Operation, operate};
use crate::publisher::lease::announced;
use crate::publisher::scope::{list, lost_election};
use crate::wire::{Layout, key};
use etcd_client::{Client, Compare, CompareOp, DeleteOptions, GetOptions, Txn, TxnOp};
use std::collections::BTreeSet;
use tombolo_base::ids::ClusterName;

/// Keys that are deleted in one operation.
const PAGE: i64 = 256;

impl Hand {
    /// Removes everything a relay wrote of a cluster. Its leases' key goes last: while it stands, whoever is elected goes on.
    pub(super) async fn remove(&self, slot: &Slot) -> Result<(), MeshError> {
        let (cluster, grace) = (slot.cluster.as_str(), self.context.config.removal_grace);
        tracing::info!(%cluster, grace_secs = grace.as_secs(), "it has no file any more: its mirror is removed");
        slot.mirror().end();
        let first = [key::cluster_config(cluster), key::relay_status(cluster)];
        let deletes = first.each_ref().map(|name| TxnOp::delete(name.as_str(), None));
        self.delete(deletes.into(), &first[0]).await?;
        tokio::time::sleep(grace).await;
        let kinds = ORDER.iter().rev().map(|kind| kind.prefix(Layout::Cache, cluster));
        for prefix in std::iter::once(key::synced_prefix(cluster)).chain(kinds) {
            self.delete_below(&prefix).await?;
        }
        let leases = key::relay_leases(cluster);
        for lease in announced(&self.client, &leases).await? {
            // Expired ones are as good as revoked.
            let mut client = self.client.lease_client();
            if let Err(error) = request(|| format!("giving back lease {lease:x}"), client.revoke(lease)).await
            {
                tracing::debug!(%cluster, %error, "a lease of its mirror is not given back");
            }
        }
        self.delete(vec![TxnOp::delete(leases.as_str(), None)], &leases).await?;
        self.context.update(|own| own.removed = own.removed.saturating_add(1));
        Ok(())
    }

    /// Deletes keys, of which `first` is one, or those below it.
    async fn delete(&self, deletes: Vec<TxnOp>, first: &str) -> Result<(), MeshError> {
        let (name, lease) = &self.fence;
        let fence = Compare::lease(name.as_str(), CompareOp::Equal, *lease);
        let txn = Txn::new().when([fence]).and_then(deletes);
        let what = || format!("removing {first} of a mirror");
        let answer = operate(Operation::Delete, first, what, self.client.kv_client().txn(txn)).await?;
        if answer.succeeded() { Ok(()) } else { Err(lost_election()) }
    }

    async fn delete_below(&self, prefix: &str) -> Result<(), MeshError> {
        loop {
            let options =
                GetOptions::new().with_range(key::range_end(prefix)).with_keys_only().with_limit(PAGE);
            let mut kv = self.client.kv_client();
            let what = || format!("listing {prefix}");
            let call = kv.get(prefix, Some(options));
            let found = operate(Operation::ListPrefix, prefix, what, call).await?;
            let (Some(first), Some(last)) = (found.kvs().first(), found.kvs().last()) else { return Ok(()) };
            let mut end = last.key().to_vec();
            end.push(0);
            let range = TxnOp::delete(first.key(), Some(DeleteOptions::new().with_range(end)));
            self.delete(vec![range], prefix).await?;
        }
    }
}

/// Looks for mirrors of clusters whose files went while no relay ran; once the folder could be listed, and whenever its
/// names change.
pub(super) async fn find_leftovers(context: &Context, client: &Client) -> MeshError {
    let mut listed = context.book.listed.subscribe();
    loop {
        let names = listed.borrow_and_update().clone();
        if let Some(names) = names
            && let Err(error) = look(context, client, &names).await
        {
            return error;
        }
        if listed.changed().await.is_err() {
            return MeshError::Stopped;
        }
    }
}

async fn look(context: &Context, client: &Client, names: &BTreeSet<String>) -> Result<(), MeshError> {
    for kv in list(client, key::RELAY).await? {
        let key = String::from_utf8_lossy(kv.key()).into_owned();
        let cluster = key.strip_prefix(key::RELAY).and_then(|rest| rest.strip_suffix("/leases"));
        let Some(cluster) = cluster.and_then(|name| ClusterName::new(name).ok()) else { continue };
        let own = cluster == context.config.cluster;
        if !own && !names.contains(cluster.as_str()) && context.book.get(&cluster).is_none() {
            tracing::info!(%cluster, "a mirror was left here, and the cluster has no file");
            context.book.leftover(&cluster);
        }
    }
    Ok(())
}
