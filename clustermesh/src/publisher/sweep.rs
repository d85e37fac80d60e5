//! Mark and sweep: keys of agents that are no more, whose leases nobody announces, go before the canaries are written.

use super::Context;
use super::scope::list;
use crate::error::MeshError;
use crate::operations::{Operation, operate};
use crate::wire::{Kind, Layout, key};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use std::collections::BTreeSet;

/// Deletes every node, address and identity reference that hangs on no announced lease.
///
/// Keys are listed first and leases afterwards, and leases are announced before keys hang on them: so no key of a living
/// agent can look like a leftover.
pub(super) async fn sweep(context: &Context, client: &Client, election: i64) -> Result<(), MeshError> {
    let cluster = context.config.cluster.as_str();
    let mut found = Vec::new();
    for prefix in [
        Kind::Nodes.prefix(Layout::State, cluster),
        Kind::Ips.prefix(Layout::State, cluster),
        key::IDENTITY_VALUES.to_owned(),
    ] {
        found.extend(list(client, &prefix).await?);
    }
    let mut living: BTreeSet<i64> = BTreeSet::new();
    for announced in list(client, key::LEASES).await? {
        match serde_json::from_slice::<Vec<i64>>(announced.value()) {
            Ok(leases) => living.extend(leases),
            Err(error) => {
                // Whose keys are alive cannot be told: leftovers stay until their leases end.
                let key = String::from_utf8_lossy(announced.key()).into_owned();
                tracing::warn!(key = %key.escape_debug(), %error, "no list of leases, so leftovers are not swept; restart that node's agent, or delete the key");
                return Ok(());
            }
        }
    }
    let mut swept = 0_usize;
    for kv in found.iter().filter(|kv| !living.contains(&kv.lease())) {
        let name = String::from_utf8_lossy(kv.key()).into_owned();
        let txn = Txn::new()
            .when([
                Compare::lease(key::ELECTION, CompareOp::Equal, election),
                Compare::mod_revision(kv.key(), CompareOp::Equal, kv.mod_revision()),
            ])
            .and_then([TxnOp::delete(kv.key(), None)]);
        let what = || format!("sweeping {name}");
        let done = operate(Operation::Delete, &name, what, client.kv_client().txn(txn)).await?;
        swept += usize::from(done.succeeded());
    }
    if swept > 0 {
        tracing::info!(swept, "leftovers of agents that are gone were removed");
    }
    context.update(|status| status.swept += swept);
    Ok(())
}
