//! A quick reader for nodes in the form that every producer writes, like that for addresses: whatever is different is left to the
//! reader that knows all of Go's JSON, and nothing is refused.

use super::node::{Address, MAX_ADDRESSES, Node};
use super::plain::{Reader, once};
use super::{MAX_MAP_ENTRIES, Remote, address};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::text::shared;

type Pairs<'a> = Vec<(&'a str, &'a str)>;

/// The fields of a node. What `null` and a missing field mean is the same.
#[derive(Debug, Default)]
struct Fields<'a> {
    texts: [Option<&'a str>; TEXTS.len()],
    addresses: Option<Vec<Address>>,
    cidrs: [Option<Option<Prefix>>; 2],
    more_cidrs: [Option<()>; 2],
    cluster_id: Option<u32>,
    encryption_key: Option<u32>,
    labels: Option<Pairs<'a>>,
    annotations: Option<Pairs<'a>>,
}

/// Fields that are texts.
const TEXTS: [&str; 9] = [
    "Name",
    "Cluster",
    "Source",
    "WireguardPubKey",
    "BootID",
    "IPv4HealthIP",
    "IPv6HealthIP",
    "IPv4IngressIP",
    "IPv6IngressIP",
];

/// The node, if it is written plainly and nothing is wrong with it.
pub(super) fn read(remote: &Remote, key_name: &str, value: &[u8]) -> Option<Node> {
    let mut reader = Reader::new(value);
    let mut fields = Fields::default();
    reader.items(b"{", b"}", |reader| fields.take(reader))?;
    reader.is_at_end().then_some(())?;
    fields.node(remote, key_name)
}

impl<'a> Fields<'a> {
    fn take(&mut self, reader: &mut Reader<'a>) -> Option<()> {
        let name = reader.text()?;
        reader.take(b":")?;
        let [ipv4, ipv6] = &mut self.cidrs;
        let [more_ipv4, more_ipv6] = &mut self.more_cidrs;
        match name {
            "IPAddresses" => once(&mut self.addresses, addresses(reader)),
            "IPv4AllocCIDR" => once(ipv4, cidr(reader)),
            "IPv6AllocCIDR" => once(ipv6, cidr(reader)),
            "IPv4SecondaryAllocCIDRs" => once(more_ipv4, reader.take(b"null")),
            "IPv6SecondaryAllocCIDRs" => once(more_ipv6, reader.take(b"null")),
            "ClusterID" => once(&mut self.cluster_id, reader.number()),
            "EncryptionKey" => once(&mut self.encryption_key, reader.number()),
            "Labels" => once(&mut self.labels, pairs(reader)),
            "Annotations" => once(&mut self.annotations, pairs(reader)),
            _ => {
                let at = TEXTS.iter().position(|text| *text == name)?;
                once(self.texts.get_mut(at)?, reader.text())
            }
        }
    }

    fn node(self, remote: &Remote, key_name: &str) -> Option<Node> {
        let [name, cluster, source, wireguard_key, boot_id, health4, health6, ingress4, ingress6] =
            self.texts.map(Option::unwrap_or_default);
        remote.check_cluster(cluster, self.cluster_id.unwrap_or_default()).ok()?;
        if name != key_name {
            return None;
        }
        let [ipv4, ipv6] = self.cidrs.map(Option::flatten);
        let mut node = Node::new(cluster, u32::from(remote.id.get()), name);
        node.addresses = self.addresses.unwrap_or_default();
        node.ipv4_pod_cidrs = family(ipv4, true)?;
        node.ipv6_pod_cidrs = family(ipv6, false)?;
        node.health = [ip(health4)?, ip(health6)?];
        node.ingress = [ip(ingress4)?, ip(ingress6)?];
        node.source = shared(source);
        node.encryption_key = u8::try_from(self.encryption_key.unwrap_or_default()).ok()?;
        node.labels = self.labels.into_iter().flat_map(one_copy).collect();
        node.annotations = self.annotations.into_iter().flat_map(one_copy).collect();
        node.wireguard_key = shared(wireguard_key);
        node.boot_id = boot_id.into();
        Some(node)
    }
}

fn one_copy(pairs: Pairs<'_>) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
    pairs.into_iter().map(|(key, value)| (shared(key), shared(value)))
}

fn family(cidr: Option<Prefix>, ipv4: bool) -> Option<Vec<Prefix>> {
    cidr.is_none_or(|cidr| cidr.is_ipv4() == ipv4).then(|| cidr.into_iter().collect())
}

/// An address, or none.
fn ip(text: &str) -> Option<Option<IpAddr>> {
    if text.is_empty() { Some(None) } else { address::parse_ip(text).map(Some) }
}

fn addresses(reader: &mut Reader<'_>) -> Option<Vec<Address>> {
    let mut all = Vec::new();
    if reader.take(b"null").is_some() {
        return Some(all);
    }
    reader.items(b"[", b"]", |reader| {
        let [kind, text] = two(reader, ["Type", "IP"])?;
        if let Some(ip) = ip(text)? {
            address::check_ownable(&Prefix::host(ip)).ok()?;
            all.push(Address { kind: shared(kind), ip });
        }
        (all.len() <= MAX_ADDRESSES).then_some(())
    })?;
    all.shrink_to_fit();
    Some(all)
}

fn cidr(reader: &mut Reader<'_>) -> Option<Option<Prefix>> {
    if reader.take(b"null").is_some() {
        return Some(None);
    }
    let [ip, mask] = two(reader, ["IP", "Mask"])?;
    address::plain_cidr(ip, mask).map(Some)
}

/// An object of two texts.
fn two<'a>(reader: &mut Reader<'a>, names: [&str; 2]) -> Option<[&'a str; 2]> {
    let mut texts = [None; 2];
    reader.items(b"{", b"}", |reader| {
        let name = reader.text()?;
        reader.take(b":")?;
        let at = names.iter().position(|other| *other == name)?;
        once(texts.get_mut(at)?, reader.text())
    })?;
    Some(texts.map(Option::unwrap_or_default))
}

fn pairs<'a>(reader: &mut Reader<'a>) -> Option<Pairs<'a>> {
    let mut all = Vec::new();
    if reader.take(b"null").is_some() {
        return Some(all);
    }
    reader.items(b"{", b"}", |reader| {
        let key = reader.text()?;
        reader.take(b":")?;
        all.push((key, reader.text()?));
        (all.len() <= MAX_MAP_ENTRIES).then_some(())
    })?;
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::super::plain::tests::{damage, remote};
    use super::*;

    const TEXTS: [&str; 4] = [
        r#"{"Name":"n1","Cluster":"c1","IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.11"},{"Type":"CiliumInternalIP","IP":"10.1.0.1"}],"IPv4AllocCIDR":{"IP":"10.1.0.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"10.1.0.2","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":1,"Source":"custom-resource","EncryptionKey":0,"Labels":{"kubernetes.io/hostname":"n1"},"Annotations":null,"WireguardPubKey":"","BootID":""}"#,
        r#"{"Name":"n1","Cluster":"c1","IPAddresses":[{"IP":"2001:DB8::12","Type":"InternalIP"},{"Type":"Hostname","IP":""}],"IPv6AllocCIDR":{"IP":"fd00:10:1::","Mask":"//////////8AAAAAAAAAAA=="},"IPv6HealthIP":"fd00:10:1::2","ClusterID":1,"EncryptionKey":255,"Labels":{},"Annotations":{"a":"b","a":"c"},"WireguardPubKey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#,
        r#"{"ClusterID":1,"Cluster":"c1","Name":"n1","IPAddresses":null,"Labels":null}"#,
        r#"{"Name":"n1","Cluster":"c1","ClusterID":1,"IPAddresses":[],"IPv4AllocCIDR":{"IP":"::ffff:10.1.0.0","Mask":"////AA=="}}"#,
    ];

    #[test]
    fn what_producers_write_is_read_quickly() {
        for text in TEXTS {
            let quick = read(&remote(), "n1", text.as_bytes());
            assert_eq!(quick, Node::decode_any(&remote(), "n1", text.as_bytes()).ok(), "{text}");
            assert!(quick.is_some(), "{text}");
        }
    }

    /// It may say less than the other reader, and never something else.
    #[test]
    fn damaged_values_are_read_alike_or_left_alone() {
        let mut both = 0;
        damage(&TEXTS, 60_000, |value, _| {
            if let Some(node) = read(&remote(), "n1", value) {
                both += 1;
                let slow = Node::decode_any(&remote(), "n1", value);
                assert_eq!(slow, Ok(node), "{}", String::from_utf8_lossy(value));
            }
        });
        assert!(both > 1000, "{both}");
    }
}
