//! A sink that remembers what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tombolo_base::ids::ClusterName;
use tombolo_base::source::SourceState;
use tombolo_clustermesh::follower::{Change, MeshSink};
use tombolo_clustermesh::wire::{Kind, Record};

/// What one cluster is known to hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    pub(crate) records: BTreeMap<(Kind, String), Record>,
    pub(crate) deletes: usize,
    pub(crate) upserts: usize,
    pub(crate) state: Option<SourceState>,
    pub(crate) gone: bool,
}

impl View {
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.records.keys().filter(|(found, _)| *found == kind).count()
    }

    pub(crate) fn names(&self, kind: Kind) -> Vec<&str> {
        self.records.keys().filter(|(found, _)| *found == kind).map(|(_, name)| name.as_str()).collect()
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Recorder(Arc<Mutex<BTreeMap<ClusterName, View>>>);

impl Recorder {
    pub(crate) fn view(&self, cluster: &str) -> View {
        let cluster = ClusterName::new(cluster).unwrap();
        self.0.lock().unwrap().get(&cluster).cloned().unwrap_or_default()
    }

    pub(crate) fn is_initialized(&self, cluster: &str) -> bool {
        self.view(cluster).state == Some(SourceState::Initialized)
    }
}

fn name(record: &Record) -> (Kind, String) {
    let name = match record {
        Record::Ip(entry) => entry.prefix.to_string(),
        other => other.key_name(),
    };
    (record.kind(), name)
}

impl MeshSink for Recorder {
    fn apply(&self, cluster: &ClusterName, changes: Vec<Change>) {
        let mut views = self.0.lock().unwrap();
        let view = views.entry(*cluster).or_default();
        for change in changes {
            match change {
                Change::Upsert(record) => {
                    view.upserts += 1;
                    view.records.insert(name(&record), record);
                }
                Change::Delete(record) => {
                    view.deletes += 1;
                    assert!(view.records.remove(&name(&record)).is_some(), "deleted twice: {record:?}");
                }
            }
        }
    }

    fn state(&self, cluster: &ClusterName, state: SourceState) {
        self.0.lock().unwrap().entry(*cluster).or_default().state = Some(state);
    }

    fn gone(&self, cluster: &ClusterName) {
        self.0.lock().unwrap().entry(*cluster).or_default().gone = true;
    }
}
