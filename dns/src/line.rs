//! What the agent tells the unit, one JSON object a line.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tombolo_service::names::{NameEntry, NameZone};

/// Where the agent tells it, in its local API.
pub const PATH: &str = "/v1/names/follow";

/// Longest line that is read: the planner bounds a service's records, which come to a third of it at most.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// A name, new or changed.
    Entry(NameEntry),
    /// A name that is no more.
    Gone {
        /// Zone.
        zone: NameZone,
        /// Namespace.
        namespace: Arc<str>,
        /// Name.
        name: Arc<str>,
    },
    /// A namespace.
    Namespace {
        /// Its name.
        name: Arc<str>,
        /// Whether there is one.
        exists: bool,
    },
    /// How much all lines so far are; ends each batch, and comes when there is nothing else to say.
    State {
        /// Every name of this cluster was told.
        cluster: bool,
        /// Every import was told.
        clusterset: bool,
    },
}
