//! Who said a row: the unit of initialisation, staleness and pruning.

use crate::ids::ClusterName;
use crate::name::Name;
use serde::{Serialize, Serializer};
use std::fmt;

/// The origin of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Kubernetes objects: an API server, or a folder of the same manifests.
    Manifests,
    /// This node: its pods, its own addresses.
    Local,
    /// What the kernel reported over netlink.
    Kernel,
    /// A remote cluster, read from its etcd.
    Cluster(ClusterName),
    /// A BGP peer, by its configured name.
    Peer(Name),
    /// Computed from several sources by a planner.
    Planner,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests => f.write_str("manifests"),
            Self::Local => f.write_str("local"),
            Self::Kernel => f.write_str("kernel"),
            Self::Cluster(name) => write!(f, "cluster:{name}"),
            Self::Peer(name) => write!(f, "peer:{name}"),
            Self::Planner => f.write_str("planner"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How far a source's first list has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Announced, its first list is not complete: nothing that may be its own is pruned.
    Pending,
    /// Rows restored from an earlier life's snapshot: usable, not confirmed. Nothing that may be its own is pruned, since
    /// the snapshot may lag behind what the earlier life had carried out.
    Stale,
    /// The first list is complete; changes follow.
    Initialized,
}
