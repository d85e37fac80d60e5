//! `.../serviceexports/v1/<cluster>/<namespace>/<name>`: a service exported by the Multi-Cluster Services API
//! (Cilium 1.17). What is to be merged with the exports of other clusters; the backends lie elsewhere.

use super::json::{self, JsonError, Object};
use super::reject::{Reason, Reject};
use super::{Remote, StringMap, check_names, string_map};
use crate::rfc3339;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most ports of an export.
pub const MAX_PORTS: usize = 1024;
/// Most entries of the list of families that are looked at; there are two families.
pub const MAX_FAMILIES: usize = 16;

/// A closed set of words that a field may have.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant),+
        }

        impl $name {
            /// The word in the value.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The value of a word.
            #[must_use]
            pub fn parse(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.word())
            }
        }
    };
}

words! {
    /// What the imported service is.
    ExportType {
        /// With an address of its own in every importing cluster.
        ClusterSetIp = "ClusterSetIP",
        /// Names of its endpoints only.
        Headless = "Headless",
    }
}

words! {
    /// Whether a client stays with its backend.
    SessionAffinity {
        /// It does not.
        None = "None",
        /// By the client's address.
        ClientIp = "ClientIP",
    }
}

words! {
    /// An IP family.
    IpFamily {
        /// IPv4.
        V4 = "IPv4",
        /// IPv6.
        V6 = "IPv6",
    }
}

words! {
    /// `internalTrafficPolicy`.
    InternalTrafficPolicy {
        /// Backends on any node.
        Cluster = "Cluster",
        /// Backends on the client's node only.
        Local = "Local",
    }
}

words! {
    /// `trafficDistribution`.
    TrafficDistribution {
        /// The older name of `PreferSameZone`.
        PreferClose = "PreferClose",
        /// Backends of the client's zone first.
        PreferSameZone = "PreferSameZone",
        /// Backends on the client's node first.
        PreferSameNode = "PreferSameNode",
    }
}

/// A port of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportPort {
    /// Name; `""` for a single unnamed port.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: Arc<str>,
    /// `TCP`, `UDP`, `SCTP`; `""` counts as `TCP`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub protocol: Arc<str>,
    /// The application's protocol, for proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<Arc<str>>,
    /// The port of the service's address.
    pub port: u16,
}

/// An exported service's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceExport {
    /// The cluster that exports it.
    pub cluster: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Exported annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: StringMap,
    /// Exported labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: StringMap,
    /// When the ServiceExport was created, seconds since 1970; the oldest export of a name decides conflicts.
    #[serde(rename = "exportCreationTimestamp", serialize_with = "time")]
    pub created_unix_secs: i64,
    /// Ports.
    pub ports: Vec<ExportPort>,
    /// What the imported service is.
    #[serde(rename = "type")]
    pub kind: ExportType,
    /// Whether a client stays with its backend.
    pub session_affinity: SessionAffinity,
    /// For how long it stays, in seconds.
    #[serde(
        rename = "sessionAffinityConfig",
        skip_serializing_if = "Option::is_none",
        serialize_with = "timeout"
    )]
    pub affinity_timeout_secs: Option<u32>,
    /// Families of the service; empty when not said (Cilium up to 1.18).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<IpFamily>,
    /// `internalTrafficPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<InternalTrafficPolicy>,
    /// `trafficDistribution`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
}

// serde passes references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn time<S: Serializer>(unix_secs: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339::text(*unix_secs))
}

/// `{"clientIP":{"timeoutSeconds":n}}`.
fn timeout<S: Serializer>(secs: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    let client_ip: BTreeMap<&str, u32> = secs.iter().map(|secs| ("timeoutSeconds", *secs)).collect();
    let mut config = serializer.serialize_map(Some(1))?;
    config.serialize_entry("clientIP", &client_ip)?;
    config.end()
}

impl ServiceExport {
    /// An export without ports.
    #[must_use]
    pub fn new(cluster: &str, namespace: &str, name: &str, created_unix_secs: i64) -> Self {
        Self {
            cluster: cluster.into(),
            name: name.into(),
            namespace: namespace.into(),
            annotations: StringMap::new(),
            labels: StringMap::new(),
            created_unix_secs,
            ports: Vec::new(),
            kind: ExportType::ClusterSetIp,
            session_affinity: SessionAffinity::None,
            affinity_timeout_secs: None,
            ip_families: Vec::new(),
            internal_traffic_policy: None,
            traffic_distribution: None,
        }
    }

    /// Reads and checks the entry stored under `key_name` (`<namespace>/<name>`).
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Self, Reject> {
        let value = json::parse(value)?;
        let root = value.object("service export")?;
        remote.check_name(root.text("cluster")?)?;
        let (namespace, name) = (root.text("namespace")?, root.text("name")?);
        check_names(key_name, namespace, name)?;
        let bad_time =
            || JsonError::field("exportCreationTimestamp", "expected an RFC 3339 time that is not zero");
        let created = rfc3339::parse(root.text("exportCreationTimestamp")?);
        let created = created.filter(|secs| *secs != rfc3339::ZERO_UNIX_SECS).ok_or_else(bad_time)?;
        let mut export = Self::new(remote.name.as_str(), namespace, name, created);
        export.annotations = string_map(&root, "annotations")?;
        export.labels = string_map(&root, "labels")?;
        export.ports = ports(&root)?;
        export.kind = required(&root, "type", ExportType::parse)?;
        export.session_affinity = required(&root, "sessionAffinity", SessionAffinity::parse)?;
        export.affinity_timeout_secs = affinity_timeout(&root)?;
        export.ip_families = families(&root)?;
        export.internal_traffic_policy = word(&root, "internalTrafficPolicy", InternalTrafficPolicy::parse)?;
        export.traffic_distribution = word(&root, "trafficDistribution", TrafficDistribution::parse)?;
        Ok(export)
    }

    /// The value to publish.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        json::write(self)
    }
}

fn unknown(field: &str) -> Reject {
    JsonError::field(field, "expected one of the words that Kubernetes knows").into()
}

/// A word that must be there.
fn required<T>(
    root: &Object<'_, '_>,
    field: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Reject> {
    parse(root.text(field)?).ok_or_else(|| unknown(field))
}

/// A word that may be absent; `""` is not absent.
fn word<T>(
    root: &Object<'_, '_>,
    field: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Reject> {
    if root.last(field).is_some() { required(root, field, parse).map(Some) } else { Ok(None) }
}

fn ports(root: &Object<'_, '_>) -> Result<Vec<ExportPort>, Reject> {
    let list = root.list("ports")?;
    if list.len() > MAX_PORTS {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_PORTS} ports")));
    }
    let mut ports = Vec::with_capacity(list.len());
    for element in list {
        let port = element.object("ports")?;
        let app_protocol = port.last("appProtocol").map(|value| value.string("appProtocol")).transpose()?;
        ports.push(ExportPort {
            name: port.text("name")?.into(),
            protocol: port.text("protocol")?.into(),
            app_protocol: app_protocol.map(Arc::from),
            port: port.port("port")?,
        });
    }
    Ok(ports)
}

fn affinity_timeout(root: &Object<'_, '_>) -> Result<Option<u32>, Reject> {
    let config = root.map("sessionAffinityConfig")?;
    let client = config.map("clientIP")?;
    let most = i32::MAX.unsigned_abs();
    Ok(client.last("timeoutSeconds").map(|value| value.whole("timeoutSeconds", most)).transpose()?)
}

fn families(root: &Object<'_, '_>) -> Result<Vec<IpFamily>, Reject> {
    let list = root.list("ipFamilies")?;
    if list.len() > MAX_FAMILIES {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_FAMILIES} families")));
    }
    let mut families = Vec::with_capacity(list.len());
    for family in list {
        families.push(IpFamily::parse(family.string("ipFamilies")?).ok_or_else(|| unknown("ipFamilies"))?);
    }
    Ok(families)
}
