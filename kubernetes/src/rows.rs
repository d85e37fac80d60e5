//! The rows that only Kubernetes knows: pods and namespaces.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};
use tombolo_topology::{HostPort, Shaping};

pub use tombolo_policy::NamedPort;

/// Intent: a Pod of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodRow {
    /// Who said it.
    pub source: Source,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.uid`; empty in manifests that have none.
    pub uid: Arc<str>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.serviceAccountName`, `default` if unset.
    pub service_account: Arc<str>,
    /// Ports that containers name.
    pub named_ports: BTreeSet<NamedPort>,
    /// Ports of the node that lead to it: `ports[].hostPort`.
    pub host_ports: BTreeSet<HostPort>,
    /// What its annotations limit its traffic to.
    pub shaping: Shaping,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: Option<Arc<str>>,
    /// The `Ready` condition.
    pub ready: bool,
    /// What it is one of.
    pub workload: Option<Workload>,
    /// The annotation `cni.cilium.io/mac-address`: the Ethernet address of its interface.
    pub mac: Option<[u8; 6]>,
}

/// What keeps a pod: its owner, or the owner's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, ...
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// How pods are looked up besides by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodIndex {
    /// By address.
    Address(IpAddr),
    /// By node.
    Node(Arc<str>),
}

fn opt(value: Option<&Arc<str>>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

impl Row for PodRow {
    type Key = (Arc<str>, Arc<str>);
    type Index = PodIndex;
    const TABLE: &'static str = "pods";
    fn key(&self) -> Self::Key {
        (self.namespace.clone(), self.name.clone())
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<PodIndex> {
        let node = self.node.iter().cloned().map(PodIndex::Node);
        // Pods of the host's network have the node's address; it says nothing about which pod.
        let own = self.addresses.iter().filter(|_| !self.host_network);
        own.map(|ip| PodIndex::Address(*ip)).chain(node).collect()
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "NODE", "ADDRESSES", "PHASE", "READY"]
    }
    fn cells(&self) -> Vec<String> {
        let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        vec![
            self.namespace.to_string(),
            self.name.to_string(),
            opt(self.node.as_ref()),
            if addresses.is_empty() { "-".to_owned() } else { addresses.join(" ") },
            opt(self.phase.as_ref()),
            self.ready.to_string(),
        ]
    }
}

/// Intent: a Namespace of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamespaceRow {
    /// Who said it.
    pub source: Source,
    /// Name.
    pub name: Arc<str>,
    /// Labels, `kubernetes.io/metadata.name` included as the API server adds it.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `clustermesh.cilium.io/global` (true when not said otherwise): whether its services may be shared.
    pub global: bool,
}

impl Row for NamespaceRow {
    type Key = Arc<str>;
    type Index = NoIndex;
    const TABLE: &'static str = "namespaces";
    fn key(&self) -> Self::Key {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAME", "LABELS"]
    }
    fn cells(&self) -> Vec<String> {
        let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![self.name.to_string(), labels.join(" ")]
    }
}
