//! The stream of names: everything first, then what changes, as lines; each batch says how much of the whole it is.

use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tombolo_base::source::{Source, SourceState};
use tombolo_base::table::{Batch, Changes, Table};
use tombolo_dns::Line;
use tombolo_dns::follow::HEARTBEAT;
use tombolo_kubernetes::NamespaceRow;
use tombolo_service::names::NameRow;

/// Batches of lines that wait for a reader; a slow one makes batches larger, not more.
const WAITING: usize = 4;
/// Bytes of a batch from which on they are handed over.
const AT_ONCE_BYTES: usize = 256 * 1024;

/// Whether every import is among the names.
#[derive(Clone, Debug)]
pub(crate) struct Told(Arc<watch::Sender<bool>>);

impl Default for Told {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Told {
    /// From now on.
    pub(crate) fn set_imports_known(&self, known: bool) {
        self.0.send_if_modified(|before| std::mem::replace(before, known) != known);
    }
}

/// What the stream is made of.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    /// Names.
    pub(crate) names: Table<NameRow>,
    /// Namespaces.
    pub(crate) namespaces: Table<NamespaceRow>,
    /// Whether every import is among the names.
    pub(crate) told: Told,
}

impl Sources {
    /// A stream of lines that ends when its reader goes.
    pub(crate) fn stream(&self) -> mpsc::Receiver<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let teller = Teller {
            names: self.names.changes(),
            namespaces: self.namespaces.changes(),
            known: self.told.0.subscribe(),
            sources: self.clone(),
        };
        tokio::spawn(teller.run(sender));
        receiver
    }
}

struct Teller {
    names: Changes<NameRow>,
    namespaces: Changes<NamespaceRow>,
    known: watch::Receiver<bool>,
    sources: Sources,
}

impl Teller {
    async fn run(mut self, sender: mpsc::Sender<Vec<u8>>) {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (mut names, mut namespaces) = (None, None);
            tokio::select! {
                () = sender.closed() => return,
                batch = self.names.next() => names = Some(batch),
                batch = self.namespaces.next() => namespaces = Some(batch),
                changed = self.known.changed() => if changed.is_err() { return },
                _ = heartbeat.tick() => {}
            }
            let mut text = Vec::new();
            let mut lines = self.batch(&mut names, &mut namespaces).into_iter().peekable();
            while let Some(line) = lines.next() {
                text.extend(serde_json::to_vec(&line).unwrap_or_default());
                text.push(b'\n');
                let whole = text.len() >= AT_ONCE_BYTES || lines.peek().is_none();
                if whole && sender.send(std::mem::take(&mut text)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What changed, and how much it is then.
    fn batch(
        &mut self,
        names: &mut Option<Batch<NameRow>>,
        namespaces: &mut Option<Batch<NamespaceRow>>,
    ) -> Vec<Line> {
        // Asked before the rows are taken: what is said to be complete is complete in these rows.
        let clusterset = *self.known.borrow_and_update();
        let initialized = Some(SourceState::Initialized);
        let cluster = self.sources.names.snapshot().source_state(&Source::Planner) == initialized
            && self.sources.namespaces.snapshot().source_state(&Source::Manifests) == initialized;
        let mut lines = Vec::new();
        for batch in [names.take(), self.names.drain()].into_iter().flatten() {
            lines.extend(batch.keys.into_iter().map(|key| match batch.snapshot.get(&key) {
                Some(row) => Line::Entry(row.entry.clone()),
                None => Line::Gone { zone: key.0, namespace: key.1.namespace, name: key.1.name },
            }));
        }
        for batch in [namespaces.take(), self.namespaces.drain()].into_iter().flatten() {
            lines.extend(batch.keys.into_iter().map(|name| {
                let exists = batch.snapshot.get(&name).is_some();
                Line::Namespace { name, exists }
            }));
        }
        lines.push(Line::State { cluster, clusterset: cluster && clusterset });
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_dns::follow::Reader;
    use tombolo_service::names::{NameAnswer, NameEntry, NameZone};

    fn row(name: &str) -> NameRow {
        let answer = NameAnswer::Alias { target: "a.example.".into() };
        let entry =
            NameEntry { zone: NameZone::Cluster, namespace: "demo".into(), name: name.into(), answer };
        NameRow { source: Source::Planner, entry }
    }

    #[tokio::test]
    async fn everything_is_told_then_what_changes() {
        let (names, name_writer) = Table::new();
        let (namespaces, namespace_writer) = Table::new();
        let sources = Sources { names, namespaces, told: Told::default() };
        name_writer.upsert(row("a"));
        let (mut stream, mut reader) = (sources.stream(), Reader::default());
        let mut next = async || reader.take(&stream.recv().await.unwrap());
        let open = Line::State { cluster: false, clusterset: false };
        assert_eq!(next().await, [Line::Entry(row("a").entry), open.clone()]);
        name_writer.remove(&(
            NameZone::Cluster,
            tombolo_service::ServiceName { namespace: "demo".into(), name: "a".into() },
        ));
        let gone = Line::Gone { zone: NameZone::Cluster, namespace: "demo".into(), name: "a".into() };
        let mut seen = Vec::new();
        while !seen.contains(&gone) {
            seen.extend(next().await);
        }
        // Complete when both tables are, imports when they are said to be.
        name_writer.set_source(&Source::Planner, SourceState::Initialized);
        namespace_writer.set_source(&Source::Manifests, SourceState::Initialized);
        let whole = Line::State { cluster: true, clusterset: false };
        while !seen.contains(&whole) {
            seen.extend(next().await);
        }
        sources.told.set_imports_known(true);
        let all = Line::State { cluster: true, clusterset: true };
        while !seen.contains(&all) {
            seen.extend(next().await);
        }
        drop(stream);
    }
}
