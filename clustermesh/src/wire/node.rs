//! `.../nodes/v1/<cluster>/<node>`: a node's addresses, pod CIDRs and keys.

use super::address::{self, GoCidr};
use super::json::{self, JsonError, Object, Value};
use super::plain_node;
use super::reject::{Reason, Reject};
use super::{Remote, filled, string_map};
use serde::Serialize;
use serde::ser::{SerializeSeq, SerializeStruct, Serializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::text::shared;
use tombolo_base::texts::Texts;

/// Most addresses that a node may have.
pub const MAX_ADDRESSES: usize = 256;
/// Most pod CIDRs that a node may have, over both families.
pub const MAX_POD_CIDRS: usize = 1024;

/// One address of a node with its type's name (`InternalIP`, `CiliumInternalIP`, ...).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    /// The type's name.
    #[serde(rename = "Type")]
    pub kind: Arc<str>,
    /// The address.
    #[serde(rename = "IP")]
    pub ip: IpAddr,
}

/// A node's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name, unique in its cluster.
    pub name: Arc<str>,
    /// Its cluster's name.
    pub cluster: Arc<str>,
    /// Its cluster's number.
    pub cluster_id: u32,
    /// Addresses in the order published; the first of a type is the one in use.
    pub addresses: Vec<Address>,
    /// IPv4 pod CIDRs, the first is the primary one.
    pub ipv4_pod_cidrs: Vec<Prefix>,
    /// IPv6 pod CIDRs, the first is the primary one.
    pub ipv6_pod_cidrs: Vec<Prefix>,
    /// Addresses of the health endpoint, IPv4 and IPv6.
    pub health: [Option<IpAddr>; 2],
    /// Addresses of the ingress proxy, IPv4 and IPv6.
    pub ingress: [Option<IpAddr>; 2],
    /// Who wrote it: `local` for an agent, `custom-resource` for Cilium's apiserver.
    pub source: Arc<str>,
    /// 0 none, 1-15 IPsec, 255 WireGuard.
    pub encryption_key: u8,
    /// Kubernetes labels.
    pub labels: Texts,
    /// Kubernetes annotations.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// Base64 of the public key, `""` if none.
    pub wireguard_key: Arc<str>,
    /// The kernel's boot id.
    pub boot_id: Arc<str>,
}

impl Node {
    /// A node without anything but its names.
    #[must_use]
    pub fn new(cluster: &str, cluster_id: u32, name: &str) -> Self {
        Self {
            name: name.into(),
            cluster: shared(cluster),
            cluster_id,
            addresses: Vec::new(),
            ipv4_pod_cidrs: Vec::new(),
            ipv6_pod_cidrs: Vec::new(),
            health: [None, None],
            ingress: [None, None],
            source: shared("local"),
            encryption_key: 0,
            labels: Texts::default(),
            annotations: BTreeMap::new(),
            wireguard_key: shared(""),
            boot_id: shared(""),
        }
    }

    /// Reads and checks the entry stored under `key_name` (the node's name).
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Self, Reject> {
        match plain_node::read(remote, key_name, value) {
            Some(node) => Ok(node),
            None => Self::decode_any(remote, key_name, value),
        }
    }

    /// Reads a node in any form, and says what is wrong with it.
    pub(super) fn decode_any(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Self, Reject> {
        let value = json::parse(value)?;
        let root = value.object("node")?;
        let (name, cluster) = (root.text("Name")?, root.text("Cluster")?);
        remote.check_cluster(cluster, root.number("ClusterID", u32::MAX)?)?;
        if name != key_name {
            return Err(Reject::new(Reason::KeyMismatch, format!("the entry's name is {name:?}")));
        }
        let mut node = Self::new(cluster, u32::from(remote.id.get()), name);
        node.addresses = addresses(&root)?;
        node.ipv4_pod_cidrs = pod_cidrs(&root, "IPv4AllocCIDR", "IPv4SecondaryAllocCIDRs", true)?;
        node.ipv6_pod_cidrs = pod_cidrs(&root, "IPv6AllocCIDR", "IPv6SecondaryAllocCIDRs", false)?;
        node.health = [address::ip_field(&root, "IPv4HealthIP")?, address::ip_field(&root, "IPv6HealthIP")?];
        node.ingress =
            [address::ip_field(&root, "IPv4IngressIP")?, address::ip_field(&root, "IPv6IngressIP")?];
        node.source = shared(root.text("Source")?);
        node.encryption_key = root.byte("EncryptionKey")?;
        node.labels = string_map(&root, "Labels")?.into();
        node.annotations = string_map(&root, "Annotations")?;
        node.wireguard_key = shared(root.text("WireguardPubKey")?);
        node.boot_id = root.text("BootID")?.into();
        Ok(node)
    }

    /// The value to publish.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        json::write(self)
    }
}

fn addresses(root: &Object<'_, '_>) -> Result<Vec<Address>, Reject> {
    let mut addresses = Vec::new();
    for element in root.list("IPAddresses")? {
        let element = element.object("IPAddresses")?;
        let Some(ip) = address::ip_field(&element, "IP")? else { continue };
        address::check_ownable(&Prefix::host(ip))?;
        addresses.push(Address { kind: shared(element.text("Type")?), ip });
        if addresses.len() > MAX_ADDRESSES {
            return Err(Reject::new(Reason::TooMany, format!("more than {MAX_ADDRESSES} addresses")));
        }
    }
    addresses.shrink_to_fit();
    Ok(addresses)
}

fn pod_cidrs(root: &Object<'_, '_>, first: &str, rest: &str, ipv4: bool) -> Result<Vec<Prefix>, Reject> {
    let mut cidrs = Vec::new();
    let empty = |value: &Value<'_>| matches!(value, Value::String(text) if text.is_empty());
    if let Some(value) = root.last(first).filter(|value| !empty(value)) {
        cidrs.push(address::cidr(value, first)?);
    }
    for value in root.list(rest)?.iter().filter(|value| **value != Value::Null) {
        cidrs.push(address::cidr(value, rest)?);
        if cidrs.len() > MAX_POD_CIDRS {
            return Err(Reject::new(Reason::TooMany, format!("more than {MAX_POD_CIDRS} pod CIDRs")));
        }
    }
    cidrs.shrink_to_fit();
    match cidrs.iter().find(|cidr| cidr.is_ipv4() != ipv4) {
        Some(_) => Err(JsonError::field(first, "pod CIDR of the other family").into()),
        None => Ok(cidrs),
    }
}

struct Cidrs<'a>(&'a [Prefix]);

impl Serialize for Cidrs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_empty() {
            return serializer.serialize_none();
        }
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for cidr in self.0 {
            list.serialize_element(&GoCidr(cidr))?;
        }
        list.end()
    }
}

fn text(address: Option<IpAddr>) -> String {
    address.map_or_else(String::new, |address| address.to_string())
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [health4, health6] = self.health;
        let [ingress4, ingress6] = self.ingress;
        let addresses = if self.addresses.is_empty() { None } else { Some(&self.addresses) };
        let mut record = serializer.serialize_struct("Node", 19)?;
        record.serialize_field("Name", &self.name)?;
        record.serialize_field("Cluster", &self.cluster)?;
        record.serialize_field("IPAddresses", &addresses)?;
        record.serialize_field("IPv4AllocCIDR", &self.ipv4_pod_cidrs.first().map(GoCidr))?;
        record.serialize_field(
            "IPv4SecondaryAllocCIDRs",
            &Cidrs(self.ipv4_pod_cidrs.get(1..).unwrap_or_default()),
        )?;
        record.serialize_field("IPv6AllocCIDR", &self.ipv6_pod_cidrs.first().map(GoCidr))?;
        record.serialize_field(
            "IPv6SecondaryAllocCIDRs",
            &Cidrs(self.ipv6_pod_cidrs.get(1..).unwrap_or_default()),
        )?;
        record.serialize_field("IPv4HealthIP", &text(health4))?;
        record.serialize_field("IPv6HealthIP", &text(health6))?;
        record.serialize_field("IPv4IngressIP", &text(ingress4))?;
        record.serialize_field("IPv6IngressIP", &text(ingress6))?;
        record.serialize_field("ClusterID", &self.cluster_id)?;
        record.serialize_field("Source", &self.source)?;
        record.serialize_field("EncryptionKey", &self.encryption_key)?;
        let labels = if self.labels.is_empty() { None } else { Some(&self.labels) };
        record.serialize_field("Labels", &labels)?;
        record.serialize_field("Annotations", &filled(&self.annotations))?;
        record.serialize_field("WireguardPubKey", &self.wireguard_key)?;
        record.serialize_field("BootID", &self.boot_id)?;
        record.end()
    }
}
