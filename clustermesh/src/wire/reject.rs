//! Why an entry was refused, and how often.

use super::json::JsonError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The reason why one entry of a remote cluster is not used; it costs that entry only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The key's name is empty, too long, or has `.`/`..`/empty elements.
    KeyName,
    /// The value is no JSON (no zstd, no protobuf), or a field has the wrong type.
    Malformed,
    /// The value is past the bound, as it stands or decompressed.
    TooBig,
    /// The entry names another cluster than the one it was read from.
    ClusterName,
    /// The entry carries another cluster id than the cluster's configuration.
    ClusterId,
    /// Key and value name different objects.
    KeyMismatch,
    /// The identity lies outside the cluster's range.
    IdentityRange,
    /// The label text cannot be read.
    Labels,
    /// The identity does not carry the cluster's own label.
    ClusterLabel,
    /// An address or prefix that no remote cluster may own (default route, loopback, multicast, mask with holes).
    Address,
    /// Two keys mean the same object.
    Alias,
    /// More entries than a cluster may have.
    TooMany,
}

impl Reason {
    /// The name in counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeyName => "key-name",
            Self::Malformed => "malformed",
            Self::TooBig => "too-big",
            Self::ClusterName => "cluster-name",
            Self::ClusterId => "cluster-id",
            Self::KeyMismatch => "key-mismatch",
            Self::IdentityRange => "identity-range",
            Self::Labels => "labels",
            Self::ClusterLabel => "cluster-label",
            Self::Address => "address",
            Self::Alias => "alias",
            Self::TooMany => "too-many",
        }
    }
}

impl Reason {
    /// What to do about it, at the cluster that published the entry.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::KeyName => "delete the key; something other than an agent wrote it",
            Self::Malformed => "have its agent write it again (restart it), or delete the key",
            Self::TooBig => "split the object there",
            Self::ClusterName => {
                "give each cluster a name of its own; delete keys that another cluster left behind"
            }
            Self::ClusterId => {
                "give each cluster an id of its own; restart the agents that published under the old one"
            }
            Self::KeyMismatch => "delete the key; its agent writes it again under the right name",
            Self::IdentityRange => {
                "compare cluster.id and max_connected_clusters of both clusters, then renumber its identities"
            }
            Self::Labels => "correct the labels there; the identity is written anew",
            Self::ClusterLabel => "delete the identity; one without its own cluster's label is not trusted",
            Self::Address => {
                "correct the address there; no cluster may own a default route, loopback or multicast"
            }
            Self::Alias => "delete one of the two keys",
            Self::TooMany => "remove entries there",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A refused entry: the reason and what exactly was wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Reject {
    /// The counted reason.
    pub reason: Reason,
    /// For people, bounded in length.
    pub detail: String,
}

impl Reject {
    pub(crate) fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        Self { reason, detail: detail.as_ref().chars().take(200).collect() }
    }
}

impl From<JsonError> for Reject {
    fn from(error: JsonError) -> Self {
        Self::new(Reason::Malformed, error.to_string())
    }
}

/// How often each reason occurred; the last detail of each is kept for `tombolo mesh status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rejections(BTreeMap<Reason, Counted>);

/// One reason's count and its latest case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Number of refused updates.
    pub count: u64,
    /// The whole key of the latest one.
    pub last_key: String,
    /// What was wrong with it.
    pub last_detail: String,
}

impl Rejections {
    /// Counts one.
    pub fn count(&mut self, key: &str, reject: &Reject) {
        let counted = self.0.entry(reject.reason).or_default();
        counted.count = counted.count.saturating_add(1);
        counted.last_key = key.chars().take(400).collect();
        counted.last_detail.clone_from(&reject.detail);
    }

    /// The count of one reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(&reason).map_or(0, |counted| counted.count)
    }

    /// All refused updates.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.values().map(|counted| counted.count).sum()
    }

    /// Reason and count, in the order of the reasons.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, &Counted)> {
        self.0.iter().map(|(reason, counted)| (*reason, counted))
    }
}
