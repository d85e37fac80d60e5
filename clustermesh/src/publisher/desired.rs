//! What should stand in the own etcd, what stands there, and the writes between the two.

use crate::error::MeshError;
use crate::etcd::MAX_VALUE_BYTES;
use crate::rows::Assignment;
use crate::wire::{ClusterConfig, EndpointSlice, IpEntry, Kind, Layout, Node, Service, ServiceExport, key};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tombolo_service::rows::ServiceName;

/// A key that should stand in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The whole key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Whether it goes away with the lease of its writer.
    pub leased: bool,
}

impl Desired {
    fn new(key: String, value: Result<Vec<u8>, serde_json::Error>, leased: bool) -> Result<Self, MeshError> {
        match value {
            Err(source) => Err(MeshError::Encode { what: key, source }),
            Ok(value) if value.len() > MAX_VALUE_BYTES => {
                Err(MeshError::TooLarge { key, bytes: value.len(), limit: MAX_VALUE_BYTES })
            }
            Ok(value) => Ok(Self { key, value, leased }),
        }
    }

    /// A node of this cluster.
    ///
    /// # Errors
    /// When it cannot be encoded or is too large.
    pub fn node(node: &Node) -> Result<Self, MeshError> {
        let prefix = Kind::Nodes.prefix(Layout::State, &node.cluster);
        Self::new(format!("{prefix}{}", node.name), node.encode(), true)
    }

    /// An address of a pod of this node.
    ///
    /// # Errors
    /// When it cannot be encoded or is too large.
    pub fn ip(entry: &IpEntry) -> Result<Self, MeshError> {
        let prefix = Kind::Ips.prefix(Layout::State, "");
        Self::new(format!("{prefix}{}", entry.key_name()), entry.encode(), true)
    }

    /// A global service of this cluster.
    ///
    /// # Errors
    /// When it cannot be encoded or is too large.
    pub fn service(service: &Service) -> Result<Self, MeshError> {
        let prefix = Kind::Services.prefix(Layout::State, &service.cluster);
        Self::new(format!("{prefix}{}/{}", service.namespace, service.name), service.encode(), true)
    }

    /// Some endpoints of a global service of this cluster.
    ///
    /// # Errors
    /// When it is too large.
    pub fn slice(slice: &EndpointSlice) -> Result<Self, MeshError> {
        let name = format!("{}/{}", slice.namespace, slice.name);
        let key = Kind::EndpointSlices.key(Layout::State, &slice.cluster, &name);
        Self::new(key, Ok(slice.encode()), true)
    }

    /// A service that this cluster exports.
    ///
    /// # Errors
    /// When it cannot be encoded or is too large.
    pub fn export(export: &ServiceExport) -> Result<Self, MeshError> {
        let name = format!("{}/{}", export.namespace, export.name);
        Self::new(Kind::ServiceExports.key(Layout::State, &export.cluster, &name), export.encode(), true)
    }

    /// Addresses of a LoadBalancer service; outlives every agent.
    ///
    /// # Errors
    /// When it cannot be encoded or is too large.
    pub fn assignment(name: &ServiceName, assignment: &Assignment) -> Result<Self, MeshError> {
        Self::new(Assignment::key(name), assignment.encode(), false)
    }

    /// This cluster's configuration.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn config(cluster: &str, config: &ClusterConfig) -> Result<Self, MeshError> {
        Self::new(key::cluster_config(cluster), config.encode(), true)
    }

    pub(crate) fn text(key: String, text: &str) -> Self {
        Self { key, value: text.as_bytes().to_vec(), leased: true }
    }
}

/// A whole set of desired keys.
pub type DesiredSet = BTreeMap<String, Desired>;

/// What is known to stand in etcd under a key of the writer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Actual {
    pub(crate) digest: [u8; 32],
    pub(crate) lease: i64,
    pub(crate) revision: i64,
}

pub(crate) fn digest(value: &[u8]) -> [u8; 32] {
    Sha256::digest(value).into()
}

/// The writes that turn what is into what should be. Equal values on our own lease are left alone.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) puts: Vec<String>,
    /// Keys to delete, each only if it still has that revision.
    pub(crate) deletes: Vec<(String, i64)>,
}

pub(crate) fn plan(
    desired: &DesiredSet,
    actual: &BTreeMap<String, Actual>,
    our_lease: impl Fn(i64) -> bool,
) -> Plan {
    let right = |wanted: &Desired| {
        actual.get(&wanted.key).is_some_and(|found| {
            let lease = if wanted.leased { our_lease(found.lease) } else { found.lease == 0 };
            lease && found.digest == digest(&wanted.value)
        })
    };
    Plan {
        puts: desired.values().filter(|wanted| !right(wanted)).map(|wanted| wanted.key.clone()).collect(),
        deletes: actual
            .iter()
            .filter(|(key, _)| !desired.contains_key(*key))
            .map(|(key, found)| (key.clone(), found.revision))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(entries: &[(&str, &str, bool)]) -> DesiredSet {
        let entry = |(key, value, leased): &(&str, &str, bool)| {
            let key = (*key).to_owned();
            (key.clone(), Desired { key, value: value.as_bytes().to_vec(), leased: *leased })
        };
        entries.iter().map(entry).collect()
    }

    #[test]
    fn only_what_differs_is_written() {
        let desired = set(&[("a", "1", true), ("b", "2", true), ("c", "3", true), ("d", "4", false)]);
        let found = |value: &str, lease| Actual { digest: digest(value.as_bytes()), lease, revision: 7 };
        let actual = BTreeMap::from([
            ("a".to_owned(), found("1", 10)),
            ("b".to_owned(), found("other", 10)),
            ("c".to_owned(), found("3", 99)),
            ("d".to_owned(), found("4", 0)),
            ("e".to_owned(), found("5", 10)),
        ]);
        let plan = plan(&desired, &actual, |lease| lease == 10);
        assert_eq!(plan.puts, ["b", "c"]);
        assert_eq!(plan.deletes, [("e".to_owned(), 7)]);
    }
}
