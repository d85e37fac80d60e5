//! `.../endpointslices/v1/<cluster>/<namespace>/<slice>`: an EndpointSlice of a global service (Cilium 1.20,
//! CFP-41953), a zstd frame with a protobuf message.
//!
//! Unlike [`super::Service`] it carries the conditions of each endpoint, and one slice is written when one of its
//! endpoints changes, not the whole service.

use super::proto::{Reader, Writer};
use super::reject::{Reason, Reject};
use super::{MAX_MAP_ENTRIES, Remote, StringMap, address, check_names, zstd};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_service::rows::RemoteBackend;

/// Most bytes of a slice's message once decompressed. Kubernetes stores a slice in 1.5 MiB at most.
pub const MAX_MESSAGE_BYTES: usize = super::MAX_VALUE_BYTES;
/// Most endpoints of a slice, as in Kubernetes.
pub const MAX_ENDPOINTS: usize = 1000;
/// Most ports of a slice, as in Kubernetes.
pub const MAX_PORTS: usize = 100;
/// Most addresses of an endpoint, as in Kubernetes.
pub const MAX_ADDRESSES: usize = 100;
/// The label with the name of the service that a slice belongs to.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Addresses of the slice's family.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes new connections; unknown counts as ready.
    pub ready: Option<bool>,
    /// As `ready`, but also of terminating endpoints; unknown counts as `ready` says.
    pub serving: Option<bool>,
    /// Whether it is about to go; unknown counts as no.
    pub terminating: Option<bool>,
    /// Topology labels of the v1beta1 API.
    pub topology: StringMap,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// Zones that should use it; `None` without hints.
    pub for_zones: Option<Vec<Arc<str>>>,
}

/// One port of a slice's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its name; absent counts as `""`.
    pub name: Option<Arc<str>>,
    /// `TCP`, `UDP`, `SCTP`; absent counts as `TCP`.
    pub protocol: Option<Arc<str>>,
    /// The port; absent means all ports.
    pub port: Option<u16>,
}

/// An EndpointSlice's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The cluster that publishes it.
    pub cluster: Arc<str>,
    /// The cluster's number.
    pub cluster_id: u32,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name of the slice, not of its service.
    pub name: Arc<str>,
    /// Labels; [`SERVICE_LABEL`] names the service.
    pub labels: StringMap,
    /// Annotations.
    pub annotations: StringMap,
    /// The family of all addresses.
    pub ipv4: bool,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Ports of each endpoint.
    pub ports: Vec<Port>,
}

impl EndpointSlice {
    /// A slice without endpoints.
    #[must_use]
    pub fn new(cluster: &str, cluster_id: u32, namespace: &str, name: &str, ipv4: bool) -> Self {
        Self {
            cluster: cluster.into(),
            cluster_id,
            namespace: namespace.into(),
            name: name.into(),
            labels: StringMap::new(),
            annotations: StringMap::new(),
            ipv4,
            endpoints: Vec::new(),
            ports: Vec::new(),
        }
    }

    /// The service that it belongs to, in its own namespace.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.labels.get(SERVICE_LABEL).map(AsRef::as_ref).filter(|name: &&str| !name.is_empty())
    }

    /// Reads and checks the entry stored under `key_name` (`<namespace>/<slice>`).
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Self, Reject> {
        Self::from_message(remote, key_name, &zstd::decompress(value, MAX_MESSAGE_BYTES)?)
    }

    /// Reads and checks the message within a value.
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn from_message(remote: &Remote, key_name: &str, message: &[u8]) -> Result<Self, Reject> {
        let raw = Raw::read(message)?;
        remote.check_cluster(raw.cluster, raw.cluster_id)?;
        check_names(key_name, raw.namespace, raw.name)?;
        let ipv4 = match raw.address_type {
            "IPv4" => true,
            "IPv6" => false,
            other => {
                let detail = format!("address type {:?}", other.get(..40).unwrap_or(other));
                return Err(Reject::new(Reason::Malformed, detail));
            }
        };
        let mut slice = Self::new(raw.cluster, raw.cluster_id, raw.namespace, raw.name, ipv4);
        (slice.labels, slice.annotations, slice.ports) = (raw.labels, raw.annotations, raw.ports);
        slice.endpoints =
            raw.endpoints.into_iter().map(|message| endpoint(message, ipv4)).collect::<Result<_, _>>()?;
        Ok(slice)
    }

    /// Without what only its own cluster reads: labels but the service's, annotations, topology labels.
    #[must_use]
    pub(super) fn trimmed(mut self) -> Self {
        self.labels.retain(|name, _| name.as_ref() == SERVICE_LABEL);
        self.annotations.clear();
        self.endpoints.iter_mut().for_each(|endpoint| endpoint.topology.clear());
        self
    }

    /// About what it takes in memory, with its part of the service's row: a value of some hundred bytes may unpack to a
    /// thousand endpoints.
    #[must_use]
    pub(super) fn memory_bytes(&self) -> usize {
        let endpoints: usize = self.endpoints.iter().map(Endpoint::memory_bytes).sum();
        let named = |port: &Port| [&port.name, &port.protocol].map(|text| text_bytes(text.as_ref()));
        let names: usize = self.ports.iter().flat_map(named).sum();
        // Twice: here, and with each backend's row.
        endpoints + 2 * (self.ports.len() * size_of::<Port>() + names)
    }

    /// The value to publish.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        zstd::compress(&self.to_message())
    }

    /// The message within the value, as Cilium's encoder writes it: fields by number, plain ones also when empty, maps
    /// by name.
    #[must_use]
    pub fn to_message(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.text(1, &self.cluster);
        writer.number(2, self.cluster_id.into());
        writer.text(3, &self.namespace);
        writer.text(4, &self.name);
        write_map(&mut writer, 5, &self.labels);
        write_map(&mut writer, 6, &self.annotations);
        writer.text(7, if self.ipv4 { "IPv4" } else { "IPv6" });
        for endpoint in &self.endpoints {
            writer.message(8, |message| endpoint.write(message));
        }
        for port in &self.ports {
            writer.message(9, |message| port.write(message));
        }
        writer.finish()
    }
}

/// The fields before they are checked; endpoints are read once the family is known.
#[derive(Default)]
struct Raw<'a> {
    cluster: &'a str,
    cluster_id: u32,
    namespace: &'a str,
    name: &'a str,
    labels: StringMap,
    annotations: StringMap,
    address_type: &'a str,
    endpoints: Vec<&'a [u8]>,
    ports: Vec<Port>,
}

impl<'a> Raw<'a> {
    fn read(message: &'a [u8]) -> Result<Self, Reject> {
        let mut raw = Self::default();
        let mut reader = Reader::new(message);
        while let Some((number, field)) = reader.next()? {
            match number {
                1 => raw.cluster = field.text("cluster")?,
                2 => raw.cluster_id = field.number("clusterID", u32::MAX)?,
                3 => raw.namespace = field.text("namespace")?,
                4 => raw.name = field.text("name")?,
                5 => read_pair(field.message("labels")?, "labels", &mut raw.labels)?,
                6 => read_pair(field.message("annotations")?, "annotations", &mut raw.annotations)?,
                7 => raw.address_type = field.text("addressType")?,
                8 => push(&mut raw.endpoints, field.message("endpoints")?, MAX_ENDPOINTS, "endpoints")?,
                9 => push(&mut raw.ports, port(field.message("ports")?)?, MAX_PORTS, "ports")?,
                _ => {}
            }
        }
        Ok(raw)
    }
}

/// Appends within a bound.
fn push<T>(list: &mut Vec<T>, item: T, most: usize, what: &str) -> Result<(), Reject> {
    if list.len() >= most {
        return Err(Reject::new(Reason::TooMany, format!("more than {most} {what}")));
    }
    list.push(item);
    Ok(())
}

/// One pair of a map; of two with the same name the last one counts.
fn read_pair(message: &[u8], what: &str, map: &mut StringMap) -> Result<(), Reject> {
    let (mut key, mut value) = ("", "");
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => key = field.text(what)?,
            2 => value = field.text(what)?,
            _ => {}
        }
    }
    map.insert(key.into(), value.into());
    if map.len() > MAX_MAP_ENTRIES {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_MAP_ENTRIES} {what}")));
    }
    Ok(())
}

fn write_map(writer: &mut Writer, field: u32, map: &StringMap) {
    for (key, value) in map {
        writer.message(field, |pair| {
            pair.text(1, key);
            pair.text(2, value);
        });
    }
}

fn endpoint(message: &[u8], ipv4: bool) -> Result<Endpoint, Reject> {
    let mut endpoint = Endpoint::default();
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => {
                let ip = endpoint_address(field.text("addresses")?, ipv4)?;
                push(&mut endpoint.addresses, ip, MAX_ADDRESSES, "addresses of an endpoint")?;
            }
            2 => conditions(field.message("conditions")?, &mut endpoint)?,
            5 => {
                let pair = field.message("deprecatedTopology")?;
                read_pair(pair, "topology labels", &mut endpoint.topology)?;
            }
            6 => endpoint.node = Some(field.text("nodeName")?.into()),
            7 => endpoint.zone = Some(field.text("zone")?.into()),
            8 => hints(field.message("hints")?, endpoint.for_zones.get_or_insert_default())?,
            _ => {}
        }
    }
    Ok(endpoint)
}

fn endpoint_address(text: &str, ipv4: bool) -> Result<IpAddr, Reject> {
    let wrong = || {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        Reject::new(Reason::Address, format!("{:?} is no {family} address", text.get(..60).unwrap_or(text)))
    };
    let ip = address::parse_ip(text).filter(|ip| ip.is_ipv4() == ipv4).ok_or_else(wrong)?;
    address::check_ownable(&Prefix::host(ip))?;
    Ok(ip)
}

fn conditions(message: &[u8], endpoint: &mut Endpoint) -> Result<(), Reject> {
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => endpoint.ready = Some(field.flag("ready")?),
            2 => endpoint.serving = Some(field.flag("serving")?),
            3 => endpoint.terminating = Some(field.flag("terminating")?),
            _ => {}
        }
    }
    Ok(())
}

fn hints(message: &[u8], zones: &mut Vec<Arc<str>>) -> Result<(), Reject> {
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        if number == 1 {
            let mut zone = "";
            let mut reader = Reader::new(field.message("forZones")?);
            while let Some((number, field)) = reader.next()? {
                if number == 1 {
                    zone = field.text("zone name")?;
                }
            }
            push(zones, zone.into(), super::service::MAX_ZONES, "zones of one endpoint")?;
        }
    }
    Ok(())
}

fn port(message: &[u8]) -> Result<Port, Reject> {
    let mut port = Port::default();
    let mut reader = Reader::new(message);
    while let Some((number, field)) = reader.next()? {
        match number {
            1 => port.name = Some(field.text("port name")?.into()),
            2 => port.protocol = Some(field.text("protocol")?.into()),
            3 => port.port = u16::try_from(field.number("port", u16::MAX.into())?).ok(),
            _ => {}
        }
    }
    Ok(port)
}

/// What a text takes beside the pointer to it: its length and two counters.
fn text_bytes(text: Option<&Arc<str>>) -> usize {
    text.map_or(0, |text| text.len() + 2 * size_of::<usize>())
}

impl Endpoint {
    fn memory_bytes(&self) -> usize {
        // An address stands here, with its slice, and in the service's row.
        let address = size_of::<IpAddr>() + 2 * size_of::<(IpAddr, RemoteBackend)>();
        let zones =
            self.for_zones.iter().flatten().map(|zone| size_of::<Arc<str>>() + text_bytes(Some(zone)));
        let texts = text_bytes(self.node.as_ref()) + text_bytes(self.zone.as_ref());
        // The zones stand here and, for all addresses together, in the row.
        size_of::<Self>() + self.addresses.len() * address + 2 * zones.sum::<usize>() + texts
    }

    fn write(&self, message: &mut Writer) {
        for ip in &self.addresses {
            message.text(1, &ip.to_string());
        }
        message.message(2, |conditions| {
            for (field, flag) in [(1, self.ready), (2, self.serving), (3, self.terminating)] {
                if let Some(flag) = flag {
                    conditions.number(field, flag.into());
                }
            }
        });
        write_map(message, 5, &self.topology);
        for (field, text) in [(6, &self.node), (7, &self.zone)] {
            if let Some(text) = text {
                message.text(field, text);
            }
        }
        if let Some(zones) = &self.for_zones {
            message.message(8, |hints| {
                for zone in zones {
                    hints.message(1, |for_zone| for_zone.text(1, zone));
                }
            });
        }
    }
}

impl Port {
    fn write(&self, message: &mut Writer) {
        for (field, text) in [(1, &self.name), (2, &self.protocol)] {
            if let Some(text) = text {
                message.text(field, text);
            }
        }
        if let Some(port) = self.port {
            message.number(3, port.into());
        }
    }
}
