//! `.../services/v1/<cluster>/<namespace>/<name>`: a global service and its backends.

use super::address;
use super::json::{self, JsonError, Member, Object, Value};
use super::reject::{Reason, Reject};
use super::{Remote, check_names, or_null, string_map};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Most addresses in one map of a service; etcd's value limit allows about 10,000.
pub const MAX_BACKENDS: usize = 20_000;
/// Most ports of one address.
pub const MAX_PORTS: usize = 1024;

/// Most zones that one backend may be meant for; Kubernetes allows 8.
pub const MAX_ZONES: usize = 64;

/// Protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct L4 {
    /// `TCP`, `UDP`, `SCTP`, ...
    #[serde(rename = "Protocol")]
    pub protocol: Arc<str>,
    /// The port.
    #[serde(rename = "Port")]
    pub port: u16,
}

/// Ports by name, by address.
pub type PortMap = BTreeMap<IpAddr, BTreeMap<Arc<str>, L4>>;

/// Where a backend lives and which zones it should serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendZone {
    /// The backend's zone.
    pub zone: Arc<str>,
    /// Zones that should use it.
    #[serde(rename = "forZones", serialize_with = "zones_or_null")]
    pub for_zones: Vec<ForZone>,
}

/// One zone of a hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ForZone {
    /// The zone's name.
    pub name: Arc<str>,
}

/// A global service's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// The cluster that publishes it.
    pub cluster: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Cluster addresses there; for information.
    #[serde(serialize_with = "by_text")]
    pub frontends: PortMap,
    /// Endpoint addresses and target ports by port name.
    #[serde(serialize_with = "by_text")]
    pub backends: PortMap,
    /// Host names of headless backends.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "by_text")]
    pub hostnames: BTreeMap<IpAddr, Arc<str>>,
    /// Zones of backends.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "by_text")]
    pub zones: BTreeMap<IpAddr, BackendZone>,
    /// Labels.
    #[serde(serialize_with = "or_null")]
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Selector.
    #[serde(serialize_with = "or_null")]
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Producers set it.
    #[serde(rename = "includeExternal")]
    pub include_external: bool,
    /// Whether other clusters may use the backends; `false` means as good as absent.
    pub shared: bool,
    /// The cluster's number.
    #[serde(rename = "clusterID")]
    pub cluster_id: u32,
}

impl Service {
    /// A shared service without backends.
    #[must_use]
    pub fn new(cluster: &str, cluster_id: u32, namespace: &str, name: &str) -> Self {
        Self {
            cluster: cluster.into(),
            namespace: namespace.into(),
            name: name.into(),
            frontends: PortMap::new(),
            backends: PortMap::new(),
            hostnames: BTreeMap::new(),
            zones: BTreeMap::new(),
            labels: BTreeMap::new(),
            selector: BTreeMap::new(),
            include_external: true,
            shared: true,
            cluster_id,
        }
    }

    /// Reads and checks the entry stored under `key_name` (`<namespace>/<name>`).
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Self, Reject> {
        let value = json::parse(value)?;
        let root = value.object("service")?;
        remote.check_cluster(root.text("cluster")?, root.number("clusterID", u32::MAX)?)?;
        let (namespace, name) = (root.text("namespace")?, root.text("name")?);
        check_names(key_name, namespace, name)?;
        let mut service = Self::new(remote.name.as_str(), u32::from(remote.id.get()), namespace, name);
        service.frontends = port_map(&root, "frontends")?;
        service.backends = port_map(&root, "backends")?;
        service.hostnames =
            by_address(&root, "hostnames", |_, name| Ok(Arc::from(name.string("hostnames")?)))?;
        service.zones = by_address(&root, "zones", |_, value| zone(value))?;
        service.labels = string_map(&root, "labels")?;
        service.selector = string_map(&root, "selector")?;
        service.include_external = root.flag("includeExternal")?;
        service.shared = root.flag("shared")?;
        Ok(service)
    }

    /// The value to publish.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        json::write(self)
    }
}

fn ip_key(text: &str, field: &str) -> Result<IpAddr, Reject> {
    address::parse_ip(text).ok_or_else(|| JsonError::field(field, "expected IP addresses as names").into())
}

/// Go orders the members of a map by their text.
fn by_text<S: Serializer, T: Serialize>(map: &BTreeMap<IpAddr, T>, serializer: S) -> Result<S::Ok, S::Error> {
    let ordered: BTreeMap<String, &T> = map.iter().map(|(ip, value)| (ip.to_string(), value)).collect();
    ordered.serialize(serializer)
}

/// Go writes `null` for no zones.
fn zones_or_null<S: Serializer>(zones: &[ForZone], serializer: S) -> Result<S::Ok, S::Error> {
    if zones.is_empty() { serializer.serialize_none() } else { serializer.collect_seq(zones) }
}

/// The members of a map by address, bounded.
fn by_address<T>(
    root: &Object<'_, '_>,
    field: &str,
    read: impl Fn(IpAddr, &Value<'_>) -> Result<T, Reject>,
) -> Result<BTreeMap<IpAddr, T>, Reject> {
    let map = root.map(field)?;
    if map.members().len() > MAX_BACKENDS {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_BACKENDS} {field}")));
    }
    let entry = |(text, value): &Member<'_>| {
        let ip = ip_key(text, field)?;
        Ok((ip, read(ip, value)?))
    };
    map.members().iter().map(entry).collect()
}

fn port_map(root: &Object<'_, '_>, field: &str) -> Result<PortMap, Reject> {
    by_address(root, field, |ip, ports| {
        address::check_ownable(&tombolo_base::prefix::Prefix::host(ip))?;
        let ports = ports.object(field)?;
        if ports.members().len() > MAX_PORTS {
            return Err(Reject::new(Reason::TooMany, format!("more than {MAX_PORTS} ports of {ip}")));
        }
        let mut named = BTreeMap::new();
        for (name, l4) in ports.members() {
            if *l4 == Value::Null {
                named.remove(name.as_ref());
                continue;
            }
            let l4 = l4.object(field)?;
            named.insert(
                Arc::from(name.as_ref()),
                L4 { protocol: l4.text("Protocol")?.into(), port: l4.port("Port")? },
            );
        }
        Ok(named)
    })
}

fn zone(zone: &Value<'_>) -> Result<BackendZone, Reject> {
    let zone = zone.object("zones")?;
    let list = zone.list("forZones")?;
    if list.len() > MAX_ZONES {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_ZONES} zones of one backend")));
    }
    let mut for_zones = Vec::with_capacity(list.len());
    for element in list {
        for_zones.push(ForZone { name: element.object("forZones")?.text("name")?.into() });
    }
    Ok(BackendZone { zone: zone.text("zone")?.into(), for_zones })
}
