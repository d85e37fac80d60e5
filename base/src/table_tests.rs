//! What readers of a table see.

use super::*;
use crate::ids::ClusterName;
use proptest::prelude::*;

#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Cell {
    pub(crate) source: Source,
    pub(crate) name: u8,
    pub(crate) value: u8,
}

impl Row for Cell {
    type Key = (Source, u8);
    type Index = u8;
    const TABLE: &'static str = "cells";
    fn key(&self) -> Self::Key {
        (self.source, self.name)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<u8> {
        vec![self.value]
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "VALUE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), self.value.to_string()]
    }
}

pub(crate) fn cluster(n: u8) -> Source {
    Source::Cluster(ClusterName::new(&format!("c{n}")).unwrap())
}

#[test]
fn equal_rows_change_nothing_and_batches_coalesce() {
    let (table, writer) = Table::new();
    let mut changes = table.changes();
    let row = Cell { source: Source::Local, name: 1, value: 2 };
    assert!(writer.upsert(row.clone()));
    assert!(!writer.upsert(row.clone()));
    assert_eq!(table.snapshot().revision(), 1);
    assert!(writer.upsert(Cell { value: 3, ..row.clone() }));
    let batch = changes.drain().unwrap();
    assert_eq!(batch.keys.len(), 1);
    assert_eq!(batch.snapshot.get(&row.key()).unwrap().value, 3);
    assert_eq!(batch.snapshot.by_index(&2).count(), 0);
    assert!(changes.drain().is_none());
}

#[test]
fn replacing_a_source_leaves_the_others_alone() {
    let (table, writer) = Table::new();
    let cell = |n: u8, name| Cell { source: cluster(n), name, value: 0 };
    writer.replace_source(&cluster(1), [cell(1, 1), cell(1, 2)]);
    writer.replace_source(&cluster(2), [cell(2, 1)]);
    writer.replace_source(&cluster(1), [cell(1, 2)]);
    assert_eq!(table.snapshot().len(), 2);
    writer.drain_source(&cluster(2));
    assert_eq!(table.snapshot().sources().count(), 1);
    assert!(table.snapshot().is_complete());
}

#[test]
fn later_changes_begin_with_what_comes_later() {
    let (table, writer) = Table::new();
    writer.replace_source(&Source::Local, [Cell { source: Source::Local, name: 1, value: 2 }]);
    let mut changes = table.later_changes();
    assert!(changes.drain().is_none());
    writer.upsert(Cell { source: Source::Local, name: 2, value: 3 });
    let batch = changes.drain().unwrap();
    assert_eq!((batch.keys, batch.sources_changed), (vec![(Source::Local, 2)], false));
    assert_eq!(batch.snapshot.len(), 2);
}

proptest! {
    /// A reader that applies batches always ends with the table, and indexes always agree with rows.
    #[test]
    fn readers_converge(ops in prop::collection::vec((0u8..3, 0u8..6, 0u8..4, any::<bool>(), any::<bool>()), 1..80)) {
        let (table, writer) = Table::new();
        let mut changes = table.changes();
        let mut mirror = std::collections::BTreeMap::new();
        for (source, name, value, remove, look) in ops {
            let row = Cell { source: cluster(source), name, value };
            if remove { writer.remove(&row.key()); } else { writer.upsert(row); }
            if look && let Some(batch) = changes.drain() {
                for key in batch.keys {
                    match batch.snapshot.get(&key) { Some(row) => mirror.insert(key, row.clone()), None => mirror.remove(&key) };
                }
            }
        }
        if let Some(batch) = changes.drain() {
            for key in batch.keys {
                match batch.snapshot.get(&key) { Some(row) => mirror.insert(key, row.clone()), None => mirror.remove(&key) };
            }
        }
        let snapshot = table.snapshot();
        prop_assert!(snapshot.iter().eq(mirror.values()));
        for value in 0..4 {
            prop_assert_eq!(snapshot.by_index(&value).count(), snapshot.iter().filter(|row| row.value == value).count());
        }
        for source in 0..3 {
            let source = cluster(source);
            prop_assert_eq!(snapshot.by_source(&source).count(), snapshot.iter().filter(|row| row.source == source).count());
        }
    }
}
