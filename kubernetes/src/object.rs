//! An object after conversion: one row of one table, or of a policy one for each of its specs.

use crate::rows::{NamespaceRow, PodRow};
use crate::tables::Writers;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use tombolo_base::table::Row;
use tombolo_policy::{CidrGroupRow, RuleRow};
use tombolo_service::mcs::{ExportRow, ImportRequest};
use tombolo_service::pools::LbPool;
use tombolo_service::{ServiceRow, SliceRow};
use tombolo_topology::bgp::PeerPolicyRow;
use tombolo_topology::bgp::intent::{
    AdvertisementRow, ClusterConfigRow, OverrideRow, PeerConfigRow, PodPoolRow, SecretRow,
};
use tombolo_topology::{EgressPolicyRow, NodeRow};

/// What names an object in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectId {
    pub(crate) kind: &'static str,
    /// Empty for kinds of the whole cluster.
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// A converted object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Node(Box<NodeRow>),
    Namespace(NamespaceRow),
    Pod(Box<PodRow>),
    Service(Box<ServiceRow>),
    Slice(Box<SliceRow>),
    Export(Box<ExportRow>),
    Import(Box<ImportRequest>),
    /// All of one policy, with keys of their own.
    Rules(Vec<RuleRow>),
    CidrGroup(Box<CidrGroupRow>),
    Pool(Box<LbPool>),
    ClusterConfig(Box<ClusterConfigRow>),
    PeerConfig(Box<PeerConfigRow>),
    Advertisement(Box<AdvertisementRow>),
    Override(Box<OverrideRow>),
    PeerPolicy(Box<PeerPolicyRow>),
    EgressPolicy(Box<EgressPolicyRow>),
    PodPool(Box<PodPoolRow>),
    Secret(SecretRow),
}

impl Object {
    /// Writes its rows, and removes those of its earlier version that it has no more.
    pub(crate) fn write(&self, earlier: Option<&Self>, writers: &Writers) {
        match self {
            Self::Node(row) => writers.nodes.upsert((**row).clone()),
            Self::Namespace(row) => writers.namespaces.upsert(row.clone()),
            Self::Pod(row) => writers.pods.upsert((**row).clone()),
            Self::Service(row) => writers.services.upsert((**row).clone()),
            Self::Slice(row) => writers.slices.upsert((**row).clone()),
            Self::Export(row) => writers.exports.upsert((**row).clone()),
            Self::Import(row) => writers.imports.upsert((**row).clone()),
            Self::Rules(rows) => replace(earlier, rows, writers),
            Self::CidrGroup(row) => writers.cidr_groups.upsert((**row).clone()),
            Self::Pool(row) => writers.pools.upsert((**row).clone()),
            Self::ClusterConfig(row) => writers.bgp_cluster_configs.upsert((**row).clone()),
            Self::PeerConfig(row) => writers.bgp_peer_configs.upsert((**row).clone()),
            Self::Advertisement(row) => writers.bgp_advertisements.upsert((**row).clone()),
            Self::Override(row) => writers.bgp_overrides.upsert((**row).clone()),
            Self::PeerPolicy(row) => writers.bgp_peer_policies.upsert((**row).clone()),
            Self::EgressPolicy(row) => writers.egress_policies.upsert((**row).clone()),
            Self::PodPool(row) => writers.pod_pools.upsert((**row).clone()),
            Self::Secret(row) => writers.bgp_secrets.upsert(row.clone()),
        };
    }

    /// Removes its rows.
    pub(crate) fn remove(&self, writers: &Writers) {
        match self {
            Self::Node(row) => writers.nodes.remove(&row.key()).is_some(),
            Self::Namespace(row) => writers.namespaces.remove(&row.key()).is_some(),
            Self::Pod(row) => writers.pods.remove(&row.key()).is_some(),
            Self::Service(row) => writers.services.remove(&row.key()).is_some(),
            Self::Slice(row) => writers.slices.remove(&row.key()).is_some(),
            Self::Export(row) => writers.exports.remove(&row.key()).is_some(),
            Self::Import(row) => writers.imports.remove(&row.key()).is_some(),
            Self::Rules(_) => replace(Some(self), &[], writers),
            Self::CidrGroup(row) => writers.cidr_groups.remove(&row.key()).is_some(),
            Self::Pool(row) => writers.pools.remove(&row.key()).is_some(),
            Self::ClusterConfig(row) => writers.bgp_cluster_configs.remove(&row.key()).is_some(),
            Self::PeerConfig(row) => writers.bgp_peer_configs.remove(&row.key()).is_some(),
            Self::Advertisement(row) => writers.bgp_advertisements.remove(&row.key()).is_some(),
            Self::Override(row) => writers.bgp_overrides.remove(&row.key()).is_some(),
            Self::PeerPolicy(row) => writers.bgp_peer_policies.remove(&row.key()).is_some(),
            Self::EgressPolicy(row) => writers.egress_policies.remove(&row.key()).is_some(),
            Self::PodPool(row) => writers.pod_pools.remove(&row.key()).is_some(),
            Self::Secret(row) => writers.bgp_secrets.remove(&row.key()).is_some(),
        };
    }
}

/// A policy's rows instead of those of its earlier version, in one step.
fn replace(earlier: Option<&Object>, rows: &[RuleRow], writers: &Writers) -> bool {
    let earlier = match earlier {
        Some(Object::Rules(rows)) => rows.as_slice(),
        _ => &[],
    };
    let kept: BTreeSet<_> = rows.iter().map(Row::key).collect();
    writers.rules.commit(|txn| {
        for key in earlier.iter().map(Row::key).filter(|key| !kept.contains(key)) {
            txn.remove(&key);
        }
        rows.iter().filter(|row| txn.upsert((*row).clone())).count() > 0
    })
}
