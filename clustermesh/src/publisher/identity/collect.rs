//! What the elected agent does with identities that nobody uses any more.

use super::masters::{master_key, number_of};
use crate::error::MeshError;
use crate::operations::{Operation, operate};
use crate::publisher::scope::pages;
use crate::wire::{Kind, Layout, key};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::IdentityId;

/// Removes masters without references, each at the second pass in a row that finds it so.
///
/// One pass is not enough: an agent that takes a number it remembers writes its reference a moment later, and one that was
/// away writes its references again when it is back.
#[derive(Debug, Default)]
pub(in crate::publisher) struct Collector {
    /// Masters that had no reference at the last pass, and the revisions they had.
    unused: BTreeMap<IdentityId, i64>,
}

impl Collector {
    /// One pass; returns how many were removed. `election` is the lease that this agent was elected on.
    pub(in crate::publisher) async fn pass(
        &mut self,
        client: &Client,
        election: i64,
    ) -> Result<usize, MeshError> {
        let mut masters: BTreeMap<IdentityId, (i64, String)> = BTreeMap::new();
        pages(client, &Kind::Identities.prefix(Layout::State, ""), |kv| {
            if let (Some(id), Ok(labels)) = (number_of(kv.key()), kv.value_str()) {
                masters.insert(id, (kv.mod_revision(), labels.to_owned()));
            }
        })
        .await?;
        // Read after the masters: whoever made a master meanwhile is not among them, and has a reference.
        let mut referenced = BTreeSet::new();
        pages(client, key::IDENTITY_VALUES, |kv| {
            referenced.extend(kv.value_str().ok().and_then(|number| number.parse().ok()).map(IdentityId));
        })
        .await?;
        masters.retain(|id, _| !referenced.contains(id));
        let mut removed = 0;
        for (id, (revision, labels)) in &masters {
            if self.unused.get(id) == Some(revision) {
                removed += usize::from(remove(client, election, *id, *revision, labels).await?);
            }
        }
        self.unused = masters.into_iter().map(|(id, (revision, _))| (id, revision)).collect();
        if removed > 0 {
            tracing::info!(removed, "identities that nobody uses were removed");
        }
        Ok(removed)
    }
}

/// Deletes a master if it is still the one that was read, no reference to its labels was written since, and this agent is
/// still the elected one.
async fn remove(
    client: &Client,
    election: i64,
    id: IdentityId,
    revision: i64,
    labels: &str,
) -> Result<bool, MeshError> {
    let master = master_key(id);
    let references = format!("{}{labels}/", key::IDENTITY_VALUES);
    let end = key::range_end(&references);
    let txn = Txn::new()
        .when([
            Compare::lease(key::ELECTION, CompareOp::Equal, election),
            Compare::mod_revision(master.as_str(), CompareOp::Equal, revision),
            // Over a range: holds for every key in it, hence only if there is none.
            Compare::create_revision(references, CompareOp::Equal, 0).with_range(end),
        ])
        .and_then([TxnOp::delete(master.as_str(), None)]);
    let what = || format!("removing {master}");
    let answer = operate(Operation::Delete, &master, what, client.kv_client().txn(txn)).await?;
    Ok(answer.succeeded())
}
