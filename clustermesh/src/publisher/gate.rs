//! When canaries may be written: all known nodes have published, or a minute has passed, or they stand already.

use super::Context;
use super::scope::list_at;
use super::watching::next_answer;
use crate::error::MeshError;
use crate::etcd::request;
use crate::wire::{Kind, Layout, key};
use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The nodes whose markers are there, followed by a watch.
pub(super) struct Gate {
    nodes: watch::Receiver<Option<Arc<BTreeSet<Arc<str>>>>>,
    published: BTreeSet<String>,
    stream: WatchStream,
    opens: Instant,
    complete: bool,
}

impl Gate {
    pub(super) async fn open(context: &Context, client: &Client) -> Result<Self, MeshError> {
        let cluster = context.config.cluster.as_str();
        let (canaries, _) = list_at(client, &key::synced_prefix(cluster)).await?;
        let stands = |kind: Kind| {
            let canary = kind.canary(Layout::State, cluster);
            canaries.iter().any(|kv| kv.key() == canary.as_bytes())
        };
        let (markers, revision) = list_at(client, key::PUBLISHED).await?;
        let options = WatchOptions::new().with_prefix().with_start_revision(revision.saturating_add(1));
        let mut watch = client.watch_client();
        let call = watch.watch(key::PUBLISHED, Some(options));
        Ok(Self {
            nodes: context.nodes.subscribe(),
            published: markers.iter().filter_map(|kv| node(kv.key())).collect(),
            stream: request(|| format!("watching {}", key::PUBLISHED), call).await?,
            opens: Instant::now() + context.config.canary_wait,
            complete: context.config.forms().canaries().all(stands),
        })
    }

    /// Whether all canaries stood when this agent was elected: the cluster is complete already.
    pub(super) const fn was_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn passed(&self) -> bool {
        let known = self.nodes.borrow();
        let all = known
            .as_ref()
            .is_some_and(|nodes| nodes.iter().all(|node| self.published.contains(node.as_ref())));
        self.complete || all || Instant::now() >= self.opens
    }

    /// Waits for something that may open the gate.
    pub(super) async fn news(&mut self) -> Result<(), MeshError> {
        let opens = self.opens;
        if Instant::now() >= opens {
            // Open by time: only the services' first set is missing, and that is waited for elsewhere.
            return std::future::pending().await;
        }
        tokio::select! {
            () = sleep_until(opens) => Ok(()),
            changed = self.nodes.changed() => changed.map_err(|_| MeshError::Stopped),
            answer = next_answer(&mut self.stream, || format!("watching {}", key::PUBLISHED)) => {
                for event in answer?.events() {
                    let Some(name) = event.kv().and_then(|kv| node(kv.key())) else { continue };
                    // Whether it was news does not matter here.
                    match event.event_type() {
                        EventType::Put => self.published.insert(name),
                        EventType::Delete => self.published.remove(&name),
                    };
                }
                Ok(())
            }
        }
    }
}

fn node(key: &[u8]) -> Option<String> {
    let name = key.strip_prefix(key::PUBLISHED.as_bytes())?;
    Some(String::from_utf8_lossy(name).into_owned())
}
