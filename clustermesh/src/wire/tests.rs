//! Golden records, must-accept and must-reject sets, and round trips.

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;
use tombolo_base::prefix::Prefix;

fn c1() -> Remote {
    let max = MaxClusters::C255;
    Remote { name: ClusterName::new("c1").unwrap(), id: ClusterId::new(1, max).unwrap(), max, own: false }
}

const NODE: &str = r#"{"Name":"n1","Cluster":"c1","IPAddresses":[{"Type":"InternalIP","IP":"192.0.2.11"},{"Type":"CiliumInternalIP","IP":"10.1.0.1"}],"IPv4AllocCIDR":{"IP":"10.1.0.0","Mask":"////AA=="},"IPv4SecondaryAllocCIDRs":null,"IPv6AllocCIDR":null,"IPv6SecondaryAllocCIDRs":null,"IPv4HealthIP":"10.1.0.2","IPv6HealthIP":"","IPv4IngressIP":"","IPv6IngressIP":"","ClusterID":1,"Source":"custom-resource","EncryptionKey":0,"Labels":{"kubernetes.io/hostname":"n1"},"Annotations":null,"WireguardPubKey":"","BootID":""}"#;
const LABELS: &str = "k8s:app=web;k8s:io.cilium.k8s.policy.cluster=c1;k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=shop;";
const IP: &str = r#"{"IP":"10.1.0.7","Mask":null,"HostIP":"192.0.2.11","ID":66001,"Key":0,"Metadata":"","K8sNamespace":"shop","K8sPodName":"web-0"}"#;
const CIDR: &str =
    r#"{"IP":"10.1.0.0","Mask":"////AA==","HostIP":"192.0.2.11","ID":2,"Key":0,"Metadata":""}"#;
const SERVICE: &str = r#"{"cluster":"c1","namespace":"shop","name":"web","frontends":{"10.96.0.20":{"http":{"Protocol":"TCP","Port":80}}},"backends":{"10.1.0.7":{"http":{"Protocol":"TCP","Port":8080}}},"zones":{"10.1.0.7":{"zone":"a","forZones":[{"name":"a"}]}},"labels":{"app":"web"},"selector":{"app":"web"},"includeExternal":true,"shared":true,"clusterID":1}"#;

fn decode(kind: Kind, name: &str, value: &str) -> Result<Option<Record>, Reject> {
    Record::decode(&c1(), kind, name, value.as_bytes())
}

fn accepted(kind: Kind, name: &str, value: &str) -> Record {
    decode(kind, name, value).unwrap().expect("an entry")
}

fn reason(kind: Kind, name: &str, value: &str) -> Reason {
    decode(kind, name, value).expect_err("must be refused").reason
}

#[test]
fn golden_records_are_read_and_written_byte_for_byte() {
    for (kind, name, value) in [
        (Kind::Nodes, "n1", NODE),
        (Kind::Identities, "66001", LABELS),
        (Kind::Ips, "10.1.0.7", IP),
        (Kind::Ips, "10.1.0.0/24", CIDR),
        (Kind::Services, "shop/web", SERVICE),
    ] {
        let record = accepted(kind, name, value);
        assert_eq!(record.kind(), kind);
        assert_eq!(String::from_utf8(record.encode().unwrap()).unwrap(), value);
    }
}

#[test]
fn must_reject() {
    let node = |from: &str, to: &str| reason(Kind::Nodes, "n1", &NODE.replace(from, to));
    assert_eq!(node(r#""Cluster":"c1""#, r#""Cluster":"c2""#), Reason::ClusterName);
    assert_eq!(node(r#""Cluster":"c1","#, ""), Reason::ClusterName);
    assert_eq!(node(r#""ClusterID":1"#, r#""ClusterID":2"#), Reason::ClusterId);
    assert_eq!(node(r#""ClusterID":1"#, r#""ClusterID":1.0"#), Reason::Malformed);
    assert_eq!(node("10.1.0.1", "300.1.0.1"), Reason::Malformed);
    assert_eq!(node("////AA==", "/wD/AA=="), Reason::Address);
    assert_eq!(node(r#""IP":"192.0.2.11""#, r#""IP":"127.0.0.1""#), Reason::Address);
    assert_eq!(reason(Kind::Nodes, "n2", NODE), Reason::KeyMismatch);
    assert_eq!(reason(Kind::Nodes, "../../cluster-config/intruder", NODE), Reason::KeyName);
    assert_eq!(reason(Kind::Identities, "70000000", LABELS), Reason::IdentityRange);
    assert_eq!(reason(Kind::Identities, "1000", LABELS), Reason::IdentityRange);
    assert_eq!(reason(Kind::Identities, "066001", LABELS), Reason::KeyName);
    assert_eq!(reason(Kind::Identities, "", LABELS), Reason::KeyName);
    assert_eq!(reason(Kind::Identities, "66002", "k8s:app=web;"), Reason::ClusterLabel);
    assert_eq!(reason(Kind::Identities, "66002", &LABELS.replace("=c1", "=c2")), Reason::ClusterLabel);
    let both = format!("{LABELS}k8s:io.cilium.k8s.policy.cluster=c2;");
    assert_eq!(reason(Kind::Identities, "66002", &both), Reason::Labels);
    let source = LABELS.replace("k8s:io.cilium.k8s.policy.cluster", "any:io.cilium.k8s.policy.cluster");
    assert_eq!(reason(Kind::Identities, "66002", &source), Reason::ClusterLabel);
    assert_eq!(reason(Kind::Ips, "10.1.0.9", &IP.replace("10.1.0.7", "10.1.0.8")), Reason::KeyMismatch);
    assert_eq!(reason(Kind::Ips, "10.1.0.7/32", IP), Reason::KeyMismatch);
    assert_eq!(reason(Kind::Ips, "10.1.0.7", &IP.replace("66001", "131072")), Reason::IdentityRange);
    assert_eq!(reason(Kind::Ips, "10.1.0.7", &IP.replace("66001", "16777217")), Reason::IdentityRange);
    let world = CIDR.replace("10.1.0.0", "0.0.0.0").replace("////AA==", "AAAAAA==");
    assert_eq!(reason(Kind::Ips, "0.0.0.0/0", &world), Reason::Address);
    let bits = CIDR.replace("10.1.0.0", "10.1.0.3");
    assert_eq!(reason(Kind::Ips, "10.1.0.3/24", &bits), Reason::Address);
    let service = |from: &str, to: &str| reason(Kind::Services, "shop/web", &SERVICE.replace(from, to));
    assert_eq!(service(r#""clusterID":1"#, r#""clusterID":2"#), Reason::ClusterId);
    assert_eq!(service(r#""10.1.0.7":{"http""#, r#""not-an-ip":{"http""#), Reason::Malformed);
    assert_eq!(service(r#""name":"web""#, r#""name":"web2""#), Reason::KeyMismatch);
    assert_eq!(reason(Kind::Services, "shop", SERVICE), Reason::KeyMismatch);
    assert_eq!(reason(Kind::Ips, "10.1.0.7", "[]"), Reason::Malformed);
    assert_eq!(reason(Kind::Ips, "10.1.0.7", "{"), Reason::Malformed);
    assert_eq!(reason(Kind::Ips, "10.1.0.7", &" ".repeat(MAX_VALUE_BYTES + 1)), Reason::TooBig);
}

#[test]
fn must_accept() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let node = NODE.replace(r#""BootID":"""#, &format!(r#""BootID":"","NodeIdentity":6,"X":{deep}"#));
    assert_eq!(accepted(Kind::Nodes, "n1", &node), accepted(Kind::Nodes, "n1", NODE));
    let small = r#"{"name":"n1","CLUSTER":"c1","clusterId":1}"#;
    let Record::Node(node) = accepted(Kind::Nodes, "n1", small) else { panic!("a node") };
    assert!(node.addresses.is_empty() && node.ipv4_pod_cidrs.is_empty());
    let text = r#"{"Name":"n1","Cluster":"c1","ClusterID":1,"IPv4AllocCIDR":"10.1.0.0/24","IPv6AllocCIDR":"fd00::/64","IPv6SecondaryAllocCIDRs":["fd01::/64"],"Labels":null}"#;
    let Record::Node(node) = accepted(Kind::Nodes, "n1", text) else { panic!("a node") };
    assert_eq!(node.ipv4_pod_cidrs, ["10.1.0.0/24".parse::<Prefix>().unwrap()]);
    assert_eq!(node.ipv6_pod_cidrs.len(), 2);
    let identity = |id: &str| match accepted(Kind::Ips, "10.1.0.7", &IP.replace("66001", id)) {
        Record::Ip(entry) => entry.identity.0,
        other => panic!("{other:?}"),
    };
    assert_eq!(["0", "1", "2", "6", "8"].map(identity), [0, 6, 2, 6, 8]);
    let six = r#"{"IP":"fd00::","Mask":"//////////8AAAAAAAAAAA==","HostIP":"fd00:1::1","ID":2,"Key":255}"#;
    let Record::Ip(entry) = accepted(Kind::Ips, "fd00::/64", six) else { panic!("an ip") };
    assert_eq!((entry.prefix.to_string().as_str(), entry.encryption_key), ("fd00::/64", 255));
    let mapped = IP.replace("\"10.1.0.7\"", "\"::ffff:10.1.0.7\"");
    assert_eq!(accepted(Kind::Ips, "10.1.0.7", &mapped), accepted(Kind::Ips, "10.1.0.7", IP));
    let unordered = "k8s:io.cilium.k8s.policy.cluster=c1;k8s:app=web";
    assert!(matches!(accepted(Kind::Identities, "66002", unordered), Record::Identity(IdentityId(66002), _)));
    let nulls = r#"{"cluster":"c1","namespace":"shop","name":"web","frontends":null,"backends":{"10.1.0.7":null},"hostnames":{},"labels":null,"selector":null,"shared":true,"clusterID":1}"#;
    assert!(matches!(accepted(Kind::Services, "shop/web", nulls), Record::Service(_)));
}

#[test]
fn entries_that_say_nothing_are_neither_accepted_nor_refused() {
    assert_eq!(
        decode(Kind::Services, "shop/web", &SERVICE.replace("\"shared\":true", "\"shared\":false")),
        Ok(None)
    );
    assert_eq!(decode(Kind::Ips, "10.1.0.7", &IP.replace("\"IP\":\"10.1.0.7\"", "\"IP\":\"\"")), Ok(None));
}

#[test]
fn escapes_are_written_as_go_does() {
    let Record::Node(mut node) = accepted(Kind::Nodes, "n1", NODE) else { panic!("a node") };
    node.annotations.insert("a".into(), "<b>&c".into());
    let text = String::from_utf8(node.encode().unwrap()).unwrap();
    assert!(text.contains(r#""Annotations":{"a":"\u003cb\u003e\u0026c"}"#), "{text}");
    assert_eq!(Node::decode(&c1(), "n1", text.as_bytes()).unwrap(), *node);
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1_u8..=9, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d])),
        any::<[u8; 15]>().prop_map(|rest| {
            let mut bytes = [0xfd; 16];
            bytes[1..].copy_from_slice(&rest);
            IpAddr::from(bytes)
        }),
    ]
}

fn any_entry() -> impl Strategy<Value = IpEntry> {
    (any_ip(), 1_u8..=128, proptest::option::of(any_ip()), 65536_u32..131072, any::<u8>(), ".{0,12}")
        .prop_map(|(ip, len, host_ip, id, encryption_key, pod)| {
            let len = len.min(if ip.is_ipv4() { 32 } else { 128 });
            let prefix = Prefix::new(ip, len).unwrap();
            let usable = if address::check_ownable(&prefix).is_ok() { prefix } else { Prefix::host(ip) };
            IpEntry {
                prefix: usable,
                masked: true,
                host_ip,
                identity: IdentityId(id),
                encryption_key,
                namespace: "ns".into(),
                pod: pod.as_str().into(),
                service_account: "".into(),
                named_ports: Vec::new(),
            }
        })
}

proptest! {
    #[test]
    fn ip_entries_round_trip(entry in any_entry()) {
        let value = entry.encode().unwrap();
        prop_assert_eq!(IpEntry::decode(&c1(), &entry.key_name(), &value).unwrap(), Some(entry));
    }

    #[test]
    fn services_round_trip(ips in proptest::collection::vec((any_ip(), ".{0,8}", any::<u16>()), 0..8), label in ".{0,16}") {
        let mut service = Service::new("c1", 1, "shop", "web");
        for (ip, name, port) in ips {
            let l4 = service::L4 { protocol: "UDP".into(), port };
            service.backends.entry(ip).or_default().insert(name.as_str().into(), l4);
        }
        service.labels.insert(label.as_str().into(), label.as_str().into());
        let value = service.encode().unwrap();
        prop_assert_eq!(Service::decode(&c1(), "shop/web", &value).unwrap(), service);
    }

    #[test]
    fn nodes_round_trip(ips in proptest::collection::vec(any_ip(), 0..5), label in ".{0,16}") {
        let mut node = Node::new("c1", 1, "n1");
        for ip in ips {
            node.addresses.push(node::Address { kind: "InternalIP".into(), ip });
            let net = Prefix::new(ip, 24).unwrap();
            if ip.is_ipv4() { node.ipv4_pod_cidrs.push(net) } else { node.ipv6_pod_cidrs.push(net) }
        }
        node.labels.insert("a".into(), label.as_str().into());
        let value = node.encode().unwrap();
        prop_assert_eq!(Node::decode(&c1(), "n1", &value).unwrap(), node);
    }

    /// Seeded mutations of golden records: never a panic, and what is accepted is written so that it reads the same.
    #[test]
    fn mutated_records_never_panic(which in 0_usize..5, edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let (kind, name, value) = [
            (Kind::Nodes, "n1", NODE), (Kind::Identities, "66001", LABELS), (Kind::Ips, "10.1.0.7", IP),
            (Kind::Ips, "10.1.0.0/24", CIDR), (Kind::Services, "shop/web", SERVICE),
        ][which];
        let mut bytes = value.as_bytes().to_vec();
        for (at, byte) in edits {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(Some(record)) = Record::decode(&c1(), kind, name, &bytes) {
            let again = record.encode().unwrap();
            prop_assert_eq!(Record::decode(&c1(), kind, name, &again).unwrap(), Some(record));
        }
    }
}
