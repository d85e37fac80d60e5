//! Keys and values of Cilium's Cluster Mesh, read strictly and written as Cilium writes them.
//!
//! Every decoder is bounded and judges one entry: what it refuses costs that entry only and is counted by [`Reason`].

mod address;
mod assignment;
mod capability;
pub mod config;
pub mod export;
pub mod ip;
pub mod json;
pub mod key;
pub mod node;
mod plain;
mod plain_node;
mod proto;
mod reject;
pub mod relay;
pub mod service;
pub mod slice;
mod zstd;

pub use assignment::Assignment;
pub use capability::{Capabilities, ExportMode, ProducerForms, ReaderForms, Release, ServicePreference};
pub use config::{ClusterConfig, ConfigError};
pub use export::ServiceExport;
pub use ip::IpEntry;
pub use key::{KINDS, Kind, Layout};
pub use node::Node;
pub use reject::{Counted, Reason, Reject, Rejections};
pub use service::Service;
pub use slice::EndpointSlice;

use json::{Member, Object};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::labels::{CLUSTER_KEY, Labels};
use tombolo_base::text::shared;
use tombolo_service::rows::ServiceName;

/// Largest value that is read (bytes); etcd itself stops at 1.5 MiB.
pub const MAX_VALUE_BYTES: usize = 1_600_000;
/// Most labels or annotations of an object.
pub const MAX_MAP_ENTRIES: usize = 8192;

/// The cluster whose entries are read: what they are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its name, as the configuration file says.
    pub name: ClusterName,
    /// Its number, as its cluster configuration says.
    pub id: ClusterId,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// Whether it is this agent's own cluster, whose etcd also carries assignments.
    pub own: bool,
}

/// An accepted entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A node.
    Node(Arc<Node>),
    /// A number's labels.
    Identity(IdentityId, Labels),
    /// An address.
    Ip(IpEntry),
    /// A shared service.
    Service(Arc<Service>),
    /// Some endpoints of a global service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A service exported by the Multi-Cluster Services API.
    ServiceExport(Arc<ServiceExport>),
    /// Addresses of a service of the own cluster.
    Assignment(ServiceName, Assignment),
    /// An entry that was checked and is passed on byte for byte.
    Raw(Raw),
}

/// An entry as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Its kind.
    pub kind: Kind,
    /// Its name below the prefix of its kind.
    pub name: Arc<str>,
    /// Its value.
    pub value: Arc<[u8]>,
}

impl Record {
    /// Reads and checks one entry. `Ok(None)` when it is sound but says that there is nothing (an IP entry without an
    /// address, a service that is not shared).
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(remote: &Remote, kind: Kind, name: &str, value: &[u8]) -> Result<Option<Self>, Reject> {
        if !key::name_is_sound(name) {
            return Err(Reject::new(
                Reason::KeyName,
                format!("key name {:?}", name.get(..80).unwrap_or(name)),
            ));
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(Reject::new(Reason::TooBig, format!("value of {} bytes", value.len())));
        }
        match kind {
            Kind::Nodes => Node::decode(remote, name, value).map(|node| Some(Self::Node(Arc::new(node)))),
            Kind::Ips => Ok(IpEntry::decode(remote, name, value)?.map(Self::Ip)),
            Kind::Services => {
                let service = Service::decode(remote, name, value)?;
                Ok(service.shared.then(|| Self::Service(Arc::new(service))))
            }
            Kind::EndpointSlices => {
                let slice = EndpointSlice::decode(remote, name, value)?;
                Ok(Some(Self::EndpointSlice(Arc::new(slice))))
            }
            Kind::ServiceExports => {
                let export = ServiceExport::decode(remote, name, value)?;
                Ok(Some(Self::ServiceExport(Arc::new(export))))
            }
            Kind::Identities => {
                let (id, labels) = decode_identity(remote, name, value)?;
                Ok(Some(Self::Identity(id, labels)))
            }
            Kind::Assignments => {
                let (service, assignment) = Assignment::decode(name, value)?;
                Ok(Some(Self::Assignment(service, assignment)))
            }
        }
    }

    /// The value as published.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Node(node) => node.encode(),
            Self::Identity(_, labels) => Ok(labels.to_string().into_bytes()),
            Self::Ip(entry) => entry.encode(),
            Self::Service(service) => service.encode(),
            Self::EndpointSlice(slice) => Ok(slice.encode()),
            Self::ServiceExport(export) => export.encode(),
            Self::Assignment(_, assignment) => assignment.encode(),
            Self::Raw(raw) => Ok(raw.value.to_vec()),
        }
    }

    /// As a reader keeps it: without what only the cluster that publishes it reads.
    #[must_use]
    pub(crate) fn kept(self) -> Self {
        match self {
            Self::EndpointSlice(slice) => {
                Self::EndpointSlice(Arc::new(Arc::unwrap_or_clone(slice).trimmed()))
            }
            other => other,
        }
    }

    /// What it costs, given its value's length: that of most kinds is near what they take in memory; a slice is unpacked.
    #[must_use]
    pub(crate) fn cost_bytes(&self, value: usize) -> usize {
        match self {
            Self::EndpointSlice(slice) => value.max(slice.memory_bytes()),
            _ => value,
        }
    }

    /// The name of its key below the prefix of its kind.
    #[must_use]
    pub fn key_name(&self) -> String {
        match self {
            Self::Node(node) => node.name.to_string(),
            Self::Identity(id, _) => id.0.to_string(),
            Self::Ip(entry) => entry.key_name(),
            Self::Service(service) => format!("{}/{}", service.namespace, service.name),
            Self::EndpointSlice(slice) => format!("{}/{}", slice.namespace, slice.name),
            Self::ServiceExport(export) => format!("{}/{}", export.namespace, export.name),
            Self::Assignment(service, _) => service.to_string(),
            Self::Raw(raw) => raw.name.to_string(),
        }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Nodes,
            Self::Identity(..) => Kind::Identities,
            Self::Ip(_) => Kind::Ips,
            Self::Service(_) => Kind::Services,
            Self::EndpointSlice(_) => Kind::EndpointSlices,
            Self::ServiceExport(_) => Kind::ServiceExports,
            Self::Assignment(..) => Kind::Assignments,
            Self::Raw(raw) => raw.kind,
        }
    }
}

/// Reads and checks an identity: a decimal number without leading zeros in the cluster's range, and labels of which
/// every cluster label names the cluster.
///
/// # Errors
/// [`Reject`] with the counted reason.
pub fn decode_identity(remote: &Remote, name: &str, value: &[u8]) -> Result<(IdentityId, Labels), Reject> {
    let decimal = name.bytes().all(|byte| byte.is_ascii_digit()) && !name.starts_with('0');
    let shown = name.get(..40).unwrap_or(name);
    let id = name
        .parse::<u64>()
        .ok()
        .filter(|_| decimal)
        .ok_or_else(|| Reject::new(Reason::KeyName, format!("{shown:?} is no plain decimal number")))?;
    let id = u32::try_from(id)
        .map_err(|_| Reject::new(Reason::IdentityRange, format!("{shown} has more than 32 bits")))?;
    remote.check_identity(id)?;
    let text =
        std::str::from_utf8(value).map_err(|_| Reject::new(Reason::Labels, "the label text is not UTF-8"))?;
    let labels = Labels::parse(text).map_err(|error| Reject::new(Reason::Labels, error.to_string()))?;
    match labels.label(CLUSTER_KEY) {
        Some(label) if label.source.as_ref() == "k8s" && label.value.as_ref() == remote.name.as_str() => {
            Ok((IdentityId(id), labels))
        }
        Some(label) => {
            let detail = format!("it belongs to cluster {:?} of source {:?}", label.value, label.source);
            Err(Reject::new(Reason::ClusterLabel, detail))
        }
        None => Err(Reject::new(Reason::ClusterLabel, format!("the label {CLUSTER_KEY} is missing"))),
    }
}

impl Remote {
    fn check_name(&self, name: &str) -> Result<(), Reject> {
        if name == self.name.as_str() {
            return Ok(());
        }
        Err(Reject::new(Reason::ClusterName, format!("the entry names cluster {name:?}")))
    }

    fn check_cluster(&self, name: &str, id: u32) -> Result<(), Reject> {
        self.check_name(name)?;
        if id != u32::from(self.id.get()) {
            let detail = format!("the entry has cluster id {id}, the cluster's configuration {}", self.id);
            return Err(Reject::new(Reason::ClusterId, detail));
        }
        Ok(())
    }

    fn check_identity(&self, id: u32) -> Result<(), Reject> {
        let (first, last) = self.id.identity_range(self.max);
        if (first.0..=last.0).contains(&id) {
            return Ok(());
        }
        Err(Reject::new(Reason::IdentityRange, format!("{id} is not in {}..{}", first.0, last.0)))
    }

    /// IP entries may also carry reserved numbers; the remote's own host is a remote node to us.
    fn check_ip_identity(&self, id: u32) -> Result<IdentityId, Reject> {
        match IdentityId(id) {
            IdentityId::HOST if !self.own => Ok(IdentityId::REMOTE_NODE),
            reserved if reserved.is_reserved() => Ok(reserved),
            other => self.check_identity(id).map(|()| other),
        }
    }
}

/// The names within an object must be those of its key, `<namespace>/<name>`.
fn check_names(key_name: &str, namespace: &str, name: &str) -> Result<(), Reject> {
    let sound = !namespace.is_empty() && !name.is_empty() && !namespace.contains('/') && !name.contains('/');
    if sound && key_name.split_once('/') == Some((namespace, name)) {
        return Ok(());
    }
    Err(Reject::new(Reason::KeyMismatch, format!("the entry is for {namespace:?}/{name:?}")))
}

/// Strings by name, as Kubernetes' labels and annotations.
pub type StringMap = BTreeMap<Arc<str>, Arc<str>>;

/// An object of strings; `null` members read as `""`, as in Go.
fn string_map(root: &Object<'_, '_>, field: &str) -> Result<StringMap, Reject> {
    let map = root.map(field)?;
    if map.members().len() > MAX_MAP_ENTRIES {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_MAP_ENTRIES} {field}")));
    }
    let text = |(key, value): &Member<'_>| Ok((shared(key.as_ref()), shared(value.string(field)?)));
    map.members().iter().map(text).collect()
}

/// Go writes `null` for a map that was never filled.
fn filled(map: &StringMap) -> Option<&StringMap> {
    if map.is_empty() { None } else { Some(map) }
}

fn or_null<S: Serializer>(map: &StringMap, serializer: S) -> Result<S::Ok, S::Error> {
    filled(map).serialize(serializer)
}
