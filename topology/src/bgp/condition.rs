//! What is said about the BGP objects: conditions under the names that the `cilium.io` kinds have for them.

use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

/// What a condition is about; as an object's status condition it has the prefix `cilium.io/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ConditionType {
    /// No node fits the `nodeSelector`.
    NoMatchingNode,
    /// A `peerConfigRef` names an object that is not there.
    MissingPeerConfigs,
    /// Another configuration selects the same node.
    ConflictingClusterConfig,
    /// `authSecretRef` names a Secret that is not there or has no `password`.
    MissingAuthSecret,
    /// Something else cannot be served.
    #[serde(rename = "BGPReconcileError")]
    ReconcileError,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMatchingNode => "NoMatchingNode",
            Self::MissingPeerConfigs => "MissingPeerConfigs",
            Self::ConflictingClusterConfig => "ConflictingClusterConfig",
            Self::MissingAuthSecret => "MissingAuthSecret",
            Self::ReconcileError => "BGPReconcileError",
        })
    }
}

/// A condition of an object that holds now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its name.
    pub name: Arc<str>,
    /// What it is about.
    #[serde(rename = "type")]
    pub about: ConditionType,
    /// What is wrong and what to try.
    pub text: String,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: cilium.io/{}: {}", self.kind, self.name, self.about, self.text)
    }
}

/// Status: a condition that holds, in the shape of `status.conditions`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConditionRow {
    /// Who said it.
    #[serde(skip)]
    pub source: Source,
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
}

impl Row for ConditionRow {
    type Key = Condition;
    type Index = NoIndex;
    const TABLE: &'static str = "bgp-conditions";
    fn key(&self) -> Condition {
        self.condition.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["KIND", "NAME", "CONDITION", "STATUS", "MESSAGE"]
    }
    fn cells(&self) -> Vec<String> {
        let Condition { kind, name, about, text } = &self.condition;
        vec![
            (*kind).to_owned(),
            name.to_string(),
            format!("cilium.io/{about}"),
            "True".to_owned(),
            text.clone(),
        ]
    }
}
