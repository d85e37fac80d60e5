//! `.../services/v1/<cluster>/<namespace>/<name>`: a global service and its backends.

use super::address;
use super::json::{self, JsonError, Value};
use super::reject::{Reason, Reject};
use super::{Remote, string_map};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Most addresses in one map of a service; etcd's value limit allows about 10,000.
pub const MAX_BACKENDS: usize = 20_000;
/// Most ports of one address.
pub const MAX_PORTS: usize = 1024;

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
    #[serde(rename = "forZones")]
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
    pub frontends: PortMap,
    /// Endpoint addresses and target ports by port name.
    pub backends: PortMap,
    /// Host names of headless backends.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hostnames: BTreeMap<IpAddr, Arc<str>>,
    /// Zones of backends.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<IpAddr, BackendZone>,
    /// Labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Selector.
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
        let root = json::parse(value)?;
        root.members("service")?;
        remote.check_cluster(root.text("cluster")?, root.number("clusterID", u32::MAX)?)?;
        let (namespace, name) = (root.text("namespace")?, root.text("name")?);
        let named = !namespace.is_empty() && !name.is_empty() && !namespace.contains('/');
        if !named || format!("{namespace}/{name}") != key_name {
            let detail = format!("the entry is for {namespace:?}/{name:?}");
            return Err(Reject::new(Reason::KeyMismatch, detail));
        }
        let mut service = Self::new(remote.name.as_str(), u32::from(remote.id.get()), namespace, name);
        service.frontends = port_map(&root, "frontends")?;
        service.backends = port_map(&root, "backends")?;
        service.hostnames = hostnames(&root)?;
        service.zones = zones(&root)?;
        service.labels = string_map(&root, "labels")?;
        service.selector = string_map(&root, "selector")?;
        service.include_external = root.flag("includeExternal")?.unwrap_or(false);
        service.shared = root.flag("shared")?.unwrap_or(false);
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

fn map<'a>(root: &'a Value, field: &str) -> Result<&'a [(String, Value)], Reject> {
    let members = root.get(field).map_or(Ok(&[][..]), |value| value.members(field))?;
    if members.len() > MAX_BACKENDS {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_BACKENDS} {field}")));
    }
    Ok(members)
}

fn port_map(root: &Value, field: &str) -> Result<PortMap, Reject> {
    let mut result = PortMap::new();
    for (text, ports) in map(root, field)? {
        let ip = ip_key(text, field)?;
        address::check_ownable(&tombolo_base::prefix::Prefix::host(ip))?;
        let members = ports.members(field)?;
        if members.len() > MAX_PORTS {
            return Err(Reject::new(Reason::TooMany, format!("more than {MAX_PORTS} ports of {ip}")));
        }
        let mut named = BTreeMap::new();
        for (name, l4) in members.iter().filter(|(_, l4)| *l4 != Value::Null) {
            l4.members(field)?;
            let port = u16::try_from(l4.number("Port", 65_535)?).unwrap_or(0);
            named.insert(Arc::from(name.as_str()), L4 { protocol: l4.text("Protocol")?.into(), port });
        }
        result.insert(ip, named);
    }
    Ok(result)
}

fn hostnames(root: &Value) -> Result<BTreeMap<IpAddr, Arc<str>>, Reject> {
    let mut result = BTreeMap::new();
    for (text, name) in map(root, "hostnames")? {
        let Value::String(name) = name else {
            return Err(JsonError::field("hostnames", "expected strings").into());
        };
        result.insert(ip_key(text, "hostnames")?, Arc::from(name.as_str()));
    }
    Ok(result)
}

fn zones(root: &Value) -> Result<BTreeMap<IpAddr, BackendZone>, Reject> {
    let mut result = BTreeMap::new();
    for (text, zone) in map(root, "zones")? {
        zone.members("zones")?;
        let mut for_zones = Vec::new();
        if let Some(list) = zone.get("forZones") {
            for element in list.elements("forZones")?.iter().take(MAX_PORTS) {
                element.members("forZones")?;
                for_zones.push(ForZone { name: element.text("name")?.into() });
            }
        }
        result.insert(ip_key(text, "zones")?, BackendZone { zone: zone.text("zone")?.into(), for_zones });
    }
    Ok(result)
}
