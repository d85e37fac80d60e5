//! `.../ip/v1/...`: the identity behind an address and the node it lives on.

use super::Remote;
use super::address;
use super::json::{self, Object};
use super::plain::Plain;
use super::reject::{Reason, Reject};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_base::residence::Residence;
use tombolo_base::text::shared;

/// Most named ports that an entry may have.
pub const MAX_NAMED_PORTS: usize = 1024;

/// A port with a name, for policies that name ports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NamedPort {
    /// The port's name.
    pub name: Arc<str>,
    /// The port.
    pub port: u16,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: Arc<str>,
}

/// An ip cache entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpEntry {
    /// The address or prefix.
    pub prefix: Prefix,
    /// Whether a single address was written with a mask (`/32` in the key).
    pub masked: bool,
    /// The identity; the remote's own host (1) is read as remote-node (6).
    pub identity: IdentityId,
    /// Where it lives; the encryption key is 0 for none, 1-15 for IPsec, 255 for WireGuard.
    pub residence: Arc<Residence>,
    /// Pod name, `""` if none.
    pub pod: Arc<str>,
    /// Service account, `""` if none.
    pub service_account: Arc<str>,
    /// Named ports, sorted by name.
    pub named_ports: Vec<NamedPort>,
}

impl IpEntry {
    /// An entry for one address of a pod.
    #[must_use]
    pub fn pod(address: IpAddr, identity: IdentityId, host_ip: IpAddr, namespace: &str, pod: &str) -> Self {
        Self {
            prefix: Prefix::host(address.to_canonical()),
            masked: false,
            identity,
            residence: Residence::of(Some(host_ip), 0, namespace),
            pod: pod.into(),
            service_account: "".into(),
            named_ports: Vec::new(),
        }
    }

    /// The key's name: a bare address, or `address/length` when there is a mask.
    #[must_use]
    pub fn key_name(&self) -> String {
        name_of(self.prefix, self.masked)
    }

    /// The name of the other key that would mean the same address; `None` for prefixes.
    #[must_use]
    pub fn alias_name(&self) -> Option<String> {
        let twin = || if self.masked { self.prefix.short() } else { self.prefix.to_string() };
        self.prefix.is_host().then(twin)
    }

    /// Reads and checks the entry stored under `key_name`. `None`: an entry without an address, which readers ignore.
    ///
    /// # Errors
    /// [`Reject`] with the counted reason.
    pub fn decode(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Option<Self>, Reject> {
        match Plain::read(value).and_then(|plain| plain.entry(remote, key_name)) {
            Some(entry) => Ok(Some(entry)),
            None => Self::decode_any(remote, key_name, value),
        }
    }

    /// Reads an entry in any form, and says what is wrong with it.
    pub(super) fn decode_any(remote: &Remote, key_name: &str, value: &[u8]) -> Result<Option<Self>, Reject> {
        let value = json::parse(value)?;
        let root = value.object("ip")?;
        let Some(ip) = address::ip_field(&root, "IP")? else { return Ok(None) };
        let mask = address::mask_field(&root, "Mask", ip.is_ipv4())?;
        let name = mask.map_or_else(|| ip.to_string(), |len| format!("{ip}/{len}"));
        if name != key_name {
            return Err(Reject::new(Reason::KeyMismatch, format!("the entry is for {name}")));
        }
        let prefix = match mask {
            None => Prefix::host(ip),
            Some(len) => Prefix::new(ip, len).filter(|prefix| prefix.address() == ip).ok_or_else(|| {
                Reject::new(Reason::Address, format!("{name} has bits set past its length"))
            })?,
        };
        address::check_ownable(&prefix)?;
        let host_ip = address::ip_field(&root, "HostIP")?;
        Ok(Some(Self {
            prefix,
            masked: mask.is_some(),
            identity: remote.check_ip_identity(root.number("ID", u32::MAX)?)?,
            residence: Residence::of(
                host_ip.filter(|address| !address.is_unspecified()),
                root.byte("Key")?,
                root.text("K8sNamespace")?,
            ),
            pod: root.text("K8sPodName")?.into(),
            service_account: shared(root.text("K8sServiceAccount")?),
            named_ports: named_ports(&root)?,
        }))
    }

    /// The value to publish.
    ///
    /// # Errors
    /// Those of the JSON encoder.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        json::write(self)
    }
}

/// The name of the key of an address or prefix.
pub(crate) fn name_of(prefix: Prefix, masked: bool) -> String {
    if masked || !prefix.is_host() { prefix.to_string() } else { prefix.short() }
}

/// What a key's name means; `None` unless it is written as [`name_of`] writes it.
pub(crate) fn parse_name(name: &str) -> Option<(Prefix, bool)> {
    let masked = name.contains('/');
    let prefix: Prefix = name.parse().ok()?;
    // There is one way only to write an IPv4 address.
    let same = (prefix.is_ipv4() && !masked) || name_of(prefix, masked) == name;
    same.then_some((prefix, masked))
}

fn named_ports(root: &Object<'_, '_>) -> Result<Vec<NamedPort>, Reject> {
    let list = root.list("NamedPorts")?;
    if list.len() > MAX_NAMED_PORTS {
        return Err(Reject::new(Reason::TooMany, format!("more than {MAX_NAMED_PORTS} named ports")));
    }
    let mut ports = Vec::with_capacity(list.len());
    for element in list {
        let port = element.object("NamedPorts")?;
        ports.push(NamedPort {
            name: port.text("Name")?.into(),
            port: port.port("Port")?,
            protocol: port.text("Protocol")?.into(),
        });
    }
    ports.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(ports)
}

impl Serialize for IpEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let with_mask = self.masked || !self.prefix.is_host();
        let mask = with_mask.then(|| address::mask_text(self.prefix.prefix_len(), self.prefix.is_ipv4()));
        let host = self.residence.host_ip.map_or_else(String::new, |address| address.to_string());
        let mut record = serializer.serialize_struct("IPIdentityPair", 10)?;
        record.serialize_field("IP", &self.prefix.address())?;
        record.serialize_field("Mask", &mask)?;
        record.serialize_field("HostIP", &host)?;
        record.serialize_field("ID", &self.identity)?;
        record.serialize_field("Key", &self.residence.encryption_key)?;
        record.serialize_field("Metadata", "")?;
        for (name, text) in [
            ("K8sNamespace", self.residence.namespace.as_deref().unwrap_or_default()),
            ("K8sPodName", &self.pod),
            ("K8sServiceAccount", &self.service_account),
        ] {
            if !text.is_empty() {
                record.serialize_field(name, text)?;
            }
        }
        if !self.named_ports.is_empty() {
            record.serialize_field("NamedPorts", &self.named_ports)?;
        }
        record.end()
    }
}
