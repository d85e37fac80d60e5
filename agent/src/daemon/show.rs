//! Every table under its name, for `tombolo show`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tombolo_base::table::{Row, Table};

/// A table as the local API sends it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// Column headings.
    pub(crate) columns: Vec<String>,
    /// Cells for people.
    pub(crate) cells: Vec<Vec<String>>,
    /// The rows for programs.
    pub(crate) rows: Vec<serde_json::Value>,
    /// Sources and how far each is.
    pub(crate) sources: BTreeMap<String, String>,
    /// What else a reader should know.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

/// A table whose row type is forgotten.
trait AnyTable: Send + Sync {
    fn show(&self) -> Shown;
    fn len(&self) -> usize;
}

impl<R: Row> AnyTable for Table<R> {
    fn show(&self) -> Shown {
        let snapshot = self.snapshot();
        let value = |row: &R| {
            let cannot =
                |error: serde_json::Error| serde_json::json!({ "error": format!("cannot be told: {error}") });
            serde_json::to_value(row).unwrap_or_else(cannot)
        };
        let state = |state| format!("{state:?}").to_lowercase();
        Shown {
            columns: R::columns().iter().map(ToString::to_string).collect(),
            cells: snapshot.iter().map(Row::cells).collect(),
            rows: snapshot.iter().map(value).collect(),
            sources: snapshot.sources().map(|(source, s)| (source.to_string(), state(s))).collect(),
            notes: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.snapshot().len()
    }
}

/// All tables by name.
#[derive(Default)]
pub(crate) struct Catalogue(BTreeMap<&'static str, Box<dyn AnyTable>>);

impl Catalogue {
    /// Adds a table.
    pub(crate) fn add<R: Row>(&mut self, table: &Table<R>) {
        self.0.insert(R::TABLE, Box::new(table.clone()));
    }

    /// The names.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }

    /// Rows by table.
    pub(crate) fn sizes(&self) -> Vec<(&'static str, usize)> {
        self.0.iter().map(|(name, table)| (*name, table.len())).collect()
    }

    /// One table's content.
    pub(crate) fn show(&self, name: &str) -> Option<Shown> {
        self.0.get(name).map(|table| table.show())
    }
}
