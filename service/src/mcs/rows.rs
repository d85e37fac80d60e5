//! The rows of exports and imports.

use crate::rows::{Protocol, ServiceName, TrafficPolicy};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::cells::list;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row};

type Texts = BTreeMap<Arc<str>, Arc<str>>;

/// What an import is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ImportType {
    /// With an address of its own in every importing cluster.
    #[default]
    ClusterSetIP,
    /// Names of its endpoints only.
    Headless,
}

/// A port of an export.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedPort {
    /// Name; empty for a single unnamed port.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// The application's protocol, for proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<Arc<str>>,
    /// The port of the service's address.
    pub port: u16,
}

/// What one cluster says of a service that it exports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportSpec {
    /// Ports.
    pub ports: Vec<ExportedPort>,
    /// With an address or headless.
    pub kind: ImportType,
    /// Whether a client stays with its backend.
    pub client_ip_affinity: bool,
    /// For how long, in seconds.
    pub affinity_timeout_secs: Option<u32>,
    /// Families as "is IPv4"; empty when not said.
    pub families_ipv4: Vec<bool>,
    /// `internalTrafficPolicy`, when said.
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// `trafficDistribution`, when said.
    pub traffic_distribution: Option<Arc<str>>,
    /// Exported labels.
    pub labels: Texts,
    /// Exported annotations.
    pub annotations: Texts,
}

/// Intent: a `ServiceExport` object of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportRow {
    /// Who said it.
    pub source: Source,
    /// Namespace and name, those of the service.
    pub name: ServiceName,
    /// `metadata.creationTimestamp`, seconds since 1970; manifests rarely have it.
    pub created_unix_secs: Option<i64>,
    /// `spec.exportedLabels`.
    pub labels: Texts,
    /// `spec.exportedAnnotations`.
    pub annotations: Texts,
}

impl Row for ExportRow {
    type Key = ServiceName;
    type Index = NoIndex;
    const TABLE: &'static str = "export-objects";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "LABELS", "ANNOTATIONS"]
    }
    fn cells(&self) -> Vec<String> {
        let pairs = |texts: &Texts| list(texts.iter().map(|(key, value)| format!("{key}={value}")));
        let (namespace, name) = (self.name.namespace.to_string(), self.name.name.to_string());
        vec![namespace, name, pairs(&self.labels), pairs(&self.annotations)]
    }
}

/// Intent: a `ServiceImport` object of this cluster: the addresses that its import is to have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImportRequest {
    /// Who said it.
    pub source: Source,
    /// Namespace and name, those of the exports.
    pub name: ServiceName,
    /// `spec.ips`.
    pub ips: Vec<IpAddr>,
}

impl Row for ImportRequest {
    type Key = ServiceName;
    type Index = IpAddr;
    const TABLE: &'static str = "import-objects";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<IpAddr> {
        self.ips.clone()
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "IPS"]
    }
    fn cells(&self) -> Vec<String> {
        vec![self.name.namespace.to_string(), self.name.name.to_string(), list(&self.ips)]
    }
}

/// Intent: a service that a cluster exports, as it stands in that cluster's etcd; the own cluster's too, for its time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemoteExport {
    /// The cluster, [`Source::Cluster`].
    pub source: Source,
    /// Namespace and name.
    pub name: ServiceName,
    /// When it was exported, seconds since 1970: the oldest export decides.
    pub created_unix_secs: i64,
    /// What it says.
    pub spec: ExportSpec,
}

impl Row for RemoteExport {
    type Key = (ServiceName, Source);
    type Index = ServiceName;
    const TABLE: &'static str = "remote-exports";
    fn key(&self) -> Self::Key {
        (self.name.clone(), self.source)
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<ServiceName> {
        vec![self.name.clone()]
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "TYPE", "PORTS", "CREATED", "SOURCE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            format!("{:?}", self.spec.kind),
            list(self.spec.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol))),
            self.created_unix_secs.to_string(),
            self.source.to_string(),
        ]
    }
}

/// A condition, in the shape of Kubernetes' without the time of its last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `Valid`, `Ready`, `Conflict`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// One word, or several with commas between.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

impl Condition {
    /// A condition that holds or not.
    #[must_use]
    pub fn new(kind: &'static str, holds: bool, reason: &str, message: impl Into<String>) -> Self {
        let status = if holds { "True" } else { "False" };
        Self { kind, status, reason: reason.to_owned(), message: message.into() }
    }
}

fn conditions_text(conditions: &[Condition]) -> String {
    let one = |condition: &Condition| format!("{}={} {}", condition.kind, condition.status, condition.reason);
    conditions.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What is told first: what is wrong.
fn message(conditions: &[Condition]) -> String {
    let wrong = |condition: &&Condition| (condition.status == "True") == (condition.kind == "Conflict");
    let texts: Vec<&str> = conditions.iter().filter(wrong).map(|c| c.message.as_str()).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join("; ") }
}

/// The status of a `ServiceExport` of this cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportStatus {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Namespace and name.
    pub name: ServiceName,
    /// `Valid`, `Ready`, `Conflict`.
    pub conditions: Vec<Condition>,
}

impl Row for ExportStatus {
    type Key = ServiceName;
    type Index = NoIndex;
    const TABLE: &'static str = "service-exports";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "CONDITIONS", "MESSAGE"]
    }
    fn cells(&self) -> Vec<String> {
        let (namespace, name) = (self.name.namespace.to_string(), self.name.name.to_string());
        vec![namespace, name, conditions_text(&self.conditions), message(&self.conditions)]
    }
}

/// A service imported from the clusters that export it: what a control plane would write as `ServiceImport`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImportRow {
    /// Always [`Source::Planner`].
    pub source: Source,
    /// Namespace and name.
    pub name: ServiceName,
    /// The service that carries it.
    pub derived: ServiceName,
    /// `spec.ips`: the clusterset IPs; empty while there are none, and of headless ones.
    pub ips: BTreeSet<IpAddr>,
    /// What the exports agree on.
    pub spec: ExportSpec,
    /// `status.clusters`.
    pub clusters: BTreeSet<Arc<str>>,
    /// `Ready`.
    pub conditions: Vec<Condition>,
}

impl Row for ImportRow {
    type Key = ServiceName;
    type Index = ServiceName;
    const TABLE: &'static str = "service-imports";
    fn key(&self) -> ServiceName {
        self.name.clone()
    }
    fn source(&self) -> &Source {
        &self.source
    }
    fn indexes(&self) -> Vec<ServiceName> {
        vec![self.derived.clone()]
    }
    fn columns() -> &'static [&'static str] {
        &["NAMESPACE", "NAME", "TYPE", "IPS", "PORTS", "CLUSTERS", "SERVICE", "CONDITIONS", "MESSAGE"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.namespace.to_string(),
            self.name.name.to_string(),
            format!("{:?}", self.spec.kind),
            list(&self.ips),
            list(self.spec.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol))),
            list(&self.clusters),
            self.derived.name.to_string(),
            conditions_text(&self.conditions),
            message(&self.conditions),
        ]
    }
}
