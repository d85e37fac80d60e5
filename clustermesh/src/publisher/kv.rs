//! Small values of our own below `tombolo/` in the own etcd; and what stands in its state layout, to read.

use super::scope::{get, list};
use crate::error::MeshError;
use crate::follower::FailureKind;
use crate::operations::{Operation, operate};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use std::collections::BTreeMap;
use tokio::sync::watch;

/// Reads and writes below `tombolo/`, and reads the state layout; fails at once while there is no connection.
#[derive(Clone, Debug)]
pub struct KeyValues {
    pub(super) client: watch::Receiver<Option<ClientSlot>>,
}

/// A client that can be put into a watch channel.
#[derive(Clone)]
pub(super) struct ClientSlot(pub(super) Client);

impl std::fmt::Debug for ClientSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("etcd client")
    }
}

impl KeyValues {
    fn writer(&self, name: &str) -> Result<Client, MeshError> {
        self.client(name, &["tombolo/"])
    }

    fn reader(&self, name: &str) -> Result<Client, MeshError> {
        self.client(name, &["tombolo/", "cilium/state/"])
    }

    fn client(&self, name: &str, ranges: &[&str]) -> Result<Client, MeshError> {
        if !ranges.iter().any(|range| name.starts_with(range)) {
            return Err(MeshError::Request {
                what: format!("using key {name}"),
                why: format!("only keys below {} are ours to use so", ranges.join(" ")),
                kind: FailureKind::Denied,
            });
        }
        let client = self.client.borrow().as_ref().map(|slot| slot.0.clone());
        client.ok_or_else(|| MeshError::Request {
            what: format!("using key {name}"),
            why: "there is no connection to the own etcd; see the publisher's status".to_owned(),
            kind: FailureKind::Transport,
        })
    }

    /// The value of a key and its revision.
    ///
    /// # Errors
    /// [`MeshError::Request`].
    pub async fn get(&self, name: &str) -> Result<Option<(Vec<u8>, i64)>, MeshError> {
        let found = get(&self.reader(name)?, name).await?;
        Ok(found.map(|kv| (kv.value().to_vec(), kv.mod_revision())))
    }

    /// All keys of a prefix with their values.
    ///
    /// # Errors
    /// [`MeshError::Request`].
    pub async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Vec<u8>>, MeshError> {
        let text = |kv: &etcd_client::KeyValue| {
            (String::from_utf8_lossy(kv.key()).into_owned(), kv.value().to_vec())
        };
        Ok(list(&self.reader(prefix)?, prefix).await?.iter().map(text).collect())
    }

    /// Writes a value if the key still has `revision` (0: if it is absent). False if it does not.
    ///
    /// # Errors
    /// [`MeshError::Request`].
    pub async fn put_if(&self, name: &str, value: &[u8], revision: i64) -> Result<bool, MeshError> {
        let client = self.writer(name)?;
        let txn = Txn::new()
            .when([Compare::mod_revision(name, CompareOp::Equal, revision)])
            .and_then([TxnOp::put(name, value, None)]);
        let what = || format!("writing {name}");
        Ok(operate(Operation::Update, name, what, client.kv_client().txn(txn)).await?.succeeded())
    }

    /// Writes a value.
    ///
    /// # Errors
    /// [`MeshError::Request`].
    pub async fn put(&self, name: &str, value: &[u8]) -> Result<(), MeshError> {
        let client = self.writer(name)?;
        let what = || format!("writing {name}");
        operate(Operation::Update, name, what, client.kv_client().put(name, value, None)).await.map(drop)
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// [`MeshError::Request`].
    pub async fn delete(&self, name: &str) -> Result<(), MeshError> {
        let client = self.writer(name)?;
        let what = || format!("deleting {name}");
        operate(Operation::Delete, name, what, client.kv_client().delete(name, None)).await.map(drop)
    }
}
