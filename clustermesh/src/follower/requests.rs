//! The requests that followers make, each ending in an input for the core.

use super::event::{Failure, FailureKind, Header, Input, Scope, Ticket};
use crate::certificate::Certificates;
use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use crate::operations::{Operation, operate};
use crate::wire::key;
use etcd_client::{Client, GetOptions, ResponseHeader};

/// Largest page or watch response that is taken, in bytes. Pages that are larger are asked for in smaller parts, a watch
/// that brings more ends in a list: a cluster with huge values costs time, and this much memory for each kind at most.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client whose connection was proved by one answer, and the certificates it uses.
pub(crate) async fn open(etcd: &EtcdConfig) -> Result<(Client, Option<Certificates>), MeshError> {
    let (client, certificates) = etcd.client().await?;
    prove_answers(etcd, &client).await?;
    Ok((client, certificates))
}

/// Asks for something small.
pub(super) async fn prove_answers(etcd: &EtcdConfig, client: &Client) -> Result<(), MeshError> {
    let what = || format!("reading {} at {}", key::HEARTBEAT, etcd.endpoints.join(" "));
    let options = GetOptions::new().with_range(key::range_end(key::HEARTBEAT)).with_count_only();
    let mut kv = client.kv_client();
    let call = kv.get(key::HEARTBEAT, Some(options));
    let answer = operate(Operation::Get, key::HEARTBEAT, what, call).await;
    answer.map(|_| ()).map_err(|error| etcd.blame(error))
}

/// Unary responses always have a header; without one the guard cannot work, so it counts as a failure.
pub(super) fn header(header: Option<&ResponseHeader>, what: &str) -> Result<Header, MeshError> {
    let of = |header: &ResponseHeader| Header {
        etcd: header.cluster_id(),
        revision: header.revision(),
        term: header.raft_term(),
    };
    header.map(of).ok_or_else(|| MeshError::Request {
        what: what.to_owned(),
        why: "the response has no header; check what runs behind the endpoint".to_owned(),
        kind: FailureKind::Other,
    })
}

/// Gets one key; only that key, since a role may grant no more.
pub(super) async fn get(client: Client, name: String) -> Input {
    let what = format!("reading {name}");
    let answer = async {
        let mut kv = client.kv_client();
        let call = kv.get(name.as_str(), None);
        let mut response = operate(Operation::Get, &name, || what.clone(), call).await?;
        let header = header(response.header(), &what)?;
        let value = response.take_kvs().into_iter().next().map(|kv| kv.into_key_value().1);
        Ok::<_, MeshError>(Input::Config(header, value))
    };
    answer.await.unwrap_or_else(|error| Input::ConfigFailed(Failure::from(&error)))
}

/// Gets the heartbeat as it was at a revision.
pub(super) async fn prove(client: Client, revision: i64) -> Input {
    let what = format!("reading {} at revision {revision}", key::HEARTBEAT);
    let answer = async {
        let options = GetOptions::new().with_revision(revision);
        let mut kv = client.kv_client();
        let call = kv.get(key::HEARTBEAT, Some(options));
        let mut response = operate(Operation::Get, key::HEARTBEAT, || what.clone(), call).await?;
        let header = header(response.header(), &what)?;
        let found = response.take_kvs().into_iter().next();
        Ok::<_, MeshError>(Input::Proof(header, found.map(|kv| (kv.mod_revision(), kv.into_key_value().1))))
    };
    answer.await.unwrap_or_else(|error| Input::ProofFailed(Failure::from(&error)))
}

/// A page to be read.
pub(super) struct Page {
    pub(super) ticket: Ticket,
    pub(super) scope: Scope,
    pub(super) from: Vec<u8>,
    pub(super) prefix: String,
    pub(super) revision: i64,
    pub(super) limit: i64,
}

/// Reads one page of a prefix.
pub(super) async fn list(client: Client, page: Page) -> Input {
    let Page { ticket, scope, from, prefix, revision, limit } = page;
    let what = format!("listing {prefix}");
    let answer = async {
        let options =
            GetOptions::new().with_range(key::range_end(&prefix)).with_limit(limit).with_revision(revision);
        let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES);
        let call = kv.get(from, Some(options));
        let mut response = operate(Operation::ListPrefix, &prefix, || what.clone(), call).await?;
        let header = header(response.header(), &what)?;
        let more = response.more();
        let entries = response.take_kvs().into_iter().map(etcd_client::KeyValue::into_key_value).collect();
        Ok::<_, MeshError>(Input::Page { ticket, scope, header, entries, more })
    };
    answer.await.unwrap_or_else(|error| Input::ListFailed(ticket, scope, Failure::from(&error)))
}
