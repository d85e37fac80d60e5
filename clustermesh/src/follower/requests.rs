//! The requests that followers make, each ending in an input for the core.

use super::event::{Failure, FailureKind, Header, Input, KeyEvent, Scope, Ticket};
use crate::certificate::Certificates;
use crate::error::MeshError;
use crate::etcd::{EtcdConfig, NO_LEADER, kind_of, request, request_error};
use crate::wire::key;
use etcd_client::{Client, EventType, GetOptions, ResponseHeader, WatchOptions, WatchResponse};
use tokio::sync::mpsc;

/// Largest page or watch response that is taken, in bytes. Pages that are larger are asked for in smaller parts, a watch
/// that brings more ends in a list: a cluster with huge values costs time, and this much memory for each kind at most.
const MAX_ANSWER_BYTES: usize = 64 << 20;

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
    let answer = request(what, client.kv_client().get(key::HEARTBEAT, Some(options))).await;
    answer.map(|_| ()).map_err(|error| etcd.blame(error))
}

/// Unary responses always have a header; without one the guard cannot work, so it counts as a failure.
fn header(header: Option<&ResponseHeader>, what: &str) -> Result<Header, MeshError> {
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
        let mut response = request(|| what.clone(), client.kv_client().get(name.as_str(), None)).await?;
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
        let mut response =
            request(|| what.clone(), client.kv_client().get(key::HEARTBEAT, Some(options))).await?;
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
        let mut response = request(|| what.clone(), kv.get(from, Some(options))).await?;
        let header = header(response.header(), &what)?;
        let more = response.more();
        let entries = response.take_kvs().into_iter().map(etcd_client::KeyValue::into_key_value).collect();
        Ok::<_, MeshError>(Input::Page { ticket, scope, header, entries, more })
    };
    answer.await.unwrap_or_else(|error| Input::ListFailed(ticket, scope, Failure::from(&error)))
}

/// Watches a prefix until the stream ends, and says why it did.
pub(super) async fn watch(
    client: Client,
    ticket: Ticket,
    scope: Scope,
    prefix: String,
    revision: i64,
    events: mpsc::Sender<Input>,
) -> Failure {
    let what = format!("watching {prefix}");
    // Progress notifications move the position of a quiet prefix on, so that it is not compacted away.
    let options = WatchOptions::new()
        .with_range(key::range_end(&prefix))
        .with_start_revision(revision)
        .with_progress_notify();
    let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut stream = match request(|| what.clone(), watch.watch(prefix, Some(options))).await {
        Ok(stream) => stream,
        Err(error) => return Failure::from(&error),
    };
    loop {
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => {
                let text = format!("{what}: etcd closed the stream; it is probably stopping");
                return Failure { kind: FailureKind::Transport, text };
            }
            Err(error) => return Failure::from(&request_error(what, &error)),
        };
        if response.canceled() {
            return cancelled(&what, &response);
        }
        let input = match header(response.header(), &what) {
            Ok(header) => {
                let seen = seen(&response, header);
                let events = response.events().iter().map(event).collect();
                Input::Events { ticket, scope, header, seen, events }
            }
            Err(error) => return Failure::from(&error),
        };
        if events.send(input).await.is_err() {
            return Failure { kind: FailureKind::Other, text: "the follower has ended".to_owned() };
        }
    }
}

/// Up to which revision the watch has told everything with this response; 0 when it does not say.
fn seen(response: &WatchResponse, header: Header) -> i64 {
    let last = response.events().last().and_then(|event| event.kv());
    match last {
        Some(kv) => kv.mod_revision(),
        None if response.created() => 0,
        None => header.revision,
    }
}

fn event(event: &etcd_client::Event) -> KeyEvent {
    let (key, value) = event.kv().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).unwrap_or_default();
    match event.event_type() {
        EventType::Put => KeyEvent::Put(key, value),
        EventType::Delete => KeyEvent::Delete(key),
    }
}

/// A cancelled watch is an answer, not a broken connection: it says whether to list again or to give up.
fn cancelled(what: &str, response: &WatchResponse) -> Failure {
    let reason = response.cancel_reason();
    let kind = if response.compact_revision() != 0 { FailureKind::Compacted } else { kind_of(reason) };
    let remedy = match kind {
        FailureKind::Denied => "; give the certificate's user a role that covers this range",
        FailureKind::Compacted => "; the list starts over",
        FailureKind::NoLeader => NO_LEADER,
        FailureKind::Transport | FailureKind::TooLarge | FailureKind::Other => "",
    };
    let reason = if reason.is_empty() { "no reason given" } else { reason };
    Failure { kind, text: format!("{what}: cancelled by etcd: {reason}{remedy}") }
}
