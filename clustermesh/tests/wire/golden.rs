//! Golden records, and what other producers write.

use super::*;
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;
use tombolo_clustermesh::wire::slice::{Endpoint, EndpointSlice};
use tombolo_clustermesh::wire::{ClusterConfig, Layout};

fn accepted(kind: Kind, name: &str, value: &str) -> Record {
    decode(kind, name, value.as_bytes()).unwrap().unwrap()
}

#[test]
fn golden_records_are_read_and_written_byte_for_byte() {
    for Kept { file, kind, name, value, message } in kept("golden") {
        let Some(kind) = kind else {
            let config = ClusterConfig::decode(&value).unwrap();
            assert_eq!(config.encode().unwrap(), value, "{file}");
            continue;
        };
        let record = decode(kind, &name, &value).unwrap().unwrap();
        assert_eq!((record.kind(), record.key_name()), (kind, name), "{file}");
        if let Record::EndpointSlice(slice) = &record {
            // What a compressor makes of a message is its own affair; the message is not.
            assert_eq!(slice.to_message(), message, "{file}");
            let again = decode(kind, &record.key_name(), &record.encode().unwrap()).unwrap();
            assert_eq!(again.as_ref(), Some(&record), "{file}");
        } else {
            let written = String::from_utf8(record.encode().unwrap()).unwrap();
            assert_eq!(written, String::from_utf8(value).unwrap(), "{file}");
        }
    }
}

#[test]
fn golden_keys_in_both_layouts() {
    let key = |file: &str, layout| {
        let kept = kept("golden").into_iter().find(|kept| kept.file == file).unwrap();
        let record = decode(kept.kind.unwrap(), &kept.name, &kept.value).unwrap().unwrap();
        record.kind().key(layout, "c1", &record.key_name())
    };
    for (file, state, cache) in [
        ("node.txt", "cilium/state/nodes/v1/c1/n1", "cilium/cache/nodes/v1/c1/n1"),
        ("identity.txt", "cilium/state/identities/v1/id/66001", "cilium/cache/identities/v1/c1/id/66001"),
        ("ip.txt", "cilium/state/ip/v1/default/10.1.0.7", "cilium/cache/ip/v1/c1/10.1.0.7"),
        ("ip-cidr.txt", "cilium/state/ip/v1/default/10.1.0.0/24", "cilium/cache/ip/v1/c1/10.1.0.0/24"),
        ("ip-v6.txt", "cilium/state/ip/v1/default/fd00:10:1::7", "cilium/cache/ip/v1/c1/fd00:10:1::7"),
        ("service.txt", "cilium/state/services/v1/c1/shop/web", "cilium/cache/services/v1/c1/shop/web"),
        (
            "export.txt",
            "cilium/state/serviceexports/v1/c1/shop/web",
            "cilium/cache/serviceexports/v1/c1/shop/web",
        ),
        (
            "slice-v4.hex",
            "cilium/state/endpointslices/v1/c1/shop/web-4",
            "cilium/cache/endpointslices/v1/c1/shop/web-4",
        ),
    ] {
        assert_eq!(key(file, Layout::State), state);
        assert_eq!(key(file, Layout::Cache), cache);
    }
}

#[test]
fn the_golden_slice_value_for_value() {
    let kept = kept("golden").into_iter().find(|kept| kept.file == "slice-v4.hex").unwrap();
    let Some(Record::EndpointSlice(slice)) = decode(Kind::EndpointSlices, &kept.name, &kept.value).unwrap()
    else {
        panic!("a slice")
    };
    assert_eq!((slice.service(), slice.ipv4, slice.cluster_id), (Some("web"), true, 1));
    let [first, second, third] = slice.endpoints.as_slice() else { panic!("three endpoints") };
    let text = |text: &str| Some(Arc::from(text));
    assert_eq!(
        *first,
        Endpoint {
            addresses: vec!["10.1.0.7".parse().unwrap()],
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
            node: text("n1"),
            zone: text("a"),
            for_zones: Some(vec!["a".into(), "b".into()]),
            ..Endpoint::default()
        }
    );
    assert_eq!((second.addresses.len(), second.ready, second.terminating), (2, Some(false), Some(true)));
    assert_eq!((&second.zone, second.topology.len(), &second.for_zones), (&None, 1, &None));
    assert_eq!((third.ready, third.serving, &third.node), (None, None, &None));
    let ports: Vec<_> = slice.ports.iter().map(|port| (port.name.as_deref(), port.port)).collect();
    assert_eq!(ports, [(Some("http"), Some(8080)), (Some(""), Some(65_535)), (None, None)]);
}

/// Forms of other producers and releases: another value than ours, the same record.
#[test]
fn foreign_records_are_read() {
    for Kept { file, kind, name, value, .. } in kept("foreign") {
        let record = decode(kind.unwrap(), &name, &value).unwrap().unwrap();
        let again = decode(record.kind(), &name, &record.encode().unwrap()).unwrap();
        assert_eq!(again, Some(record), "{file}");
    }
}

#[test]
fn nodes_that_must_be_accepted() {
    let golden = golden("node.txt");
    let plain = accepted(Kind::Nodes, "n1", &golden);
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    // Up to 1.19 a node says its identity; what is unknown is kept out of the way however deep it is.
    let more = golden.replace(r#""BootID":"""#, &format!(r#""BootID":"","NodeIdentity":6,"X":{deep}"#));
    assert_eq!(accepted(Kind::Nodes, "n1", &more), plain);
    // Field order and case are free.
    let cased = golden.replace("\"Name\"", "\"nAME\"").replace("\"ClusterID\"", "\"clusterId\"");
    assert_eq!(accepted(Kind::Nodes, "n1", &cased), plain);
    let small = r#"{"ClusterID":1,"Cluster":"c1","Name":"n1"}"#;
    let Record::Node(node) = accepted(Kind::Nodes, "n1", small) else { panic!("a node") };
    assert!(node.addresses.is_empty() && node.ipv4_pod_cidrs.is_empty() && node.labels.is_empty());
    // CIDRs as text, as 1.22 is to write them.
    let text = r#"{"Name":"n1","Cluster":"c1","ClusterID":1,"IPv4AllocCIDR":"10.1.0.0/24","IPv6AllocCIDR":"fd00::/64","IPv6SecondaryAllocCIDRs":["fd01::/64",null],"Labels":null}"#;
    let Record::Node(node) = accepted(Kind::Nodes, "n1", text) else { panic!("a node") };
    assert_eq!(node.ipv4_pod_cidrs, ["10.1.0.0/24".parse::<Prefix>().unwrap()]);
    assert_eq!(node.ipv6_pod_cidrs.len(), 2);
    let hostname = r#"{"Name":"n1","Cluster":"c1","ClusterID":1,"IPAddresses":[{"Type":"Hostname","IP":""},{"Type":"InternalIP","IP":"192.0.2.1"}]}"#;
    let Record::Node(node) = accepted(Kind::Nodes, "n1", hostname) else { panic!("a node") };
    assert_eq!(node.addresses.len(), 1);
}

#[test]
fn addresses_that_must_be_accepted() {
    let golden = golden("ip.txt");
    let plain = accepted(Kind::Ips, "10.1.0.7", &golden);
    let identity = |id: &str| match accepted(Kind::Ips, "10.1.0.7", &golden.replace("66001", id)) {
        Record::Ip(entry) => entry.identity.0,
        other => panic!("{other:?}"),
    };
    // Reserved numbers, none at all, and the remote's own host, which is a remote node to us.
    assert_eq!(["0", "1", "2", "6", "8", "255", "null"].map(identity), [0, 6, 2, 6, 8, 255, 0]);
    assert_eq!(["65536", "131071"].map(identity), [65_536, 131_071]);
    let mapped = golden.replace("\"10.1.0.7\"", "\"::ffff:10.1.0.7\"");
    assert_eq!(accepted(Kind::Ips, "10.1.0.7", &mapped), plain);
    let long = r#"{"IP":"FD00:0010:0001:0:0:0:0:7","HostIP":"2001:DB8::12","ID":66001,"Extra":{}}"#;
    let Record::Ip(entry) = accepted(Kind::Ips, "fd00:10:1::7", long) else { panic!("an address") };
    assert_eq!((entry.key_name().as_str(), entry.residence.encryption_key), ("fd00:10:1::7", 0));
    // A mask of a single address is written in the key as well.
    let masked = golden.replace("\"Mask\":null", "\"Mask\":\"/////w==\"");
    let Record::Ip(entry) = accepted(Kind::Ips, "10.1.0.7/32", &masked) else { panic!("an address") };
    assert!(entry.masked && entry.alias_name().as_deref() == Some("10.1.0.7"));
    let own = Remote { own: true, ..c1() };
    let host = golden.replace("66001", "1");
    let Some(Record::Ip(entry)) = Record::decode(&own, Kind::Ips, "10.1.0.7", host.as_bytes()).unwrap()
    else {
        panic!("an address")
    };
    assert_eq!(entry.identity, IdentityId::HOST, "the own cluster's host stays what it is");
}

#[test]
fn identities_that_must_be_accepted() {
    for (id, labels) in [
        ("66002", "k8s:io.cilium.k8s.policy.cluster=c1;k8s:app=web"),
        ("65536", "k8s:io.cilium.k8s.policy.cluster=c1;"),
        ("131071", "k8s:a=x:y=z;k8s:io.cilium.k8s.policy.cluster=c1;cni:b=;"),
        ("70000", "k8s:io.cilium.k8s.policy.cluster=c1;k8s:io.cilium.k8s.policy.cluster=c1;"),
    ] {
        assert!(matches!(accepted(Kind::Identities, id, labels), Record::Identity(..)), "{labels}");
    }
}

/// Name, size of the mesh, number, first and last identity.
#[test]
fn identity_ranges_of_255_and_511_clusters() {
    for (id, max, first, last) in [
        (1, MaxClusters::C255, 65_536_u32, 131_071_u32),
        (255, MaxClusters::C255, 16_711_680, 16_777_215),
        (1, MaxClusters::C511, 32_768, 65_535),
        (255, MaxClusters::C511, 8_355_840, 8_388_607),
        (511, MaxClusters::C511, 16_744_448, 16_777_215),
    ] {
        let remote = remote("c1", id, max);
        let labels = b"k8s:io.cilium.k8s.policy.cluster=c1;";
        let sound = |number: u32| {
            let identity = Record::decode(&remote, Kind::Identities, &number.to_string(), labels).is_ok();
            let ip = format!(r#"{{"IP":"10.1.0.7","ID":{number}}}"#);
            assert_eq!(Record::decode(&remote, Kind::Ips, "10.1.0.7", ip.as_bytes()).is_ok(), identity);
            identity
        };
        assert_eq!(
            [first - 1, first, last, last + 1].map(sound),
            [false, true, true, false],
            "cluster {id} of {max:?}"
        );
    }
}

#[test]
fn services_and_exports_that_must_be_accepted() {
    let nulls = r#"{"cluster":"c1","namespace":"shop","name":"web","frontends":null,"backends":{"10.1.0.7":null,"fd00::7":{"a":null}},"hostnames":{"10.1.0.7":null},"zones":{"10.1.0.7":null},"labels":null,"selector":null,"shared":true,"clusterID":1}"#;
    let Record::Service(service) = accepted(Kind::Services, "shop/web", nulls) else { panic!("a service") };
    assert!(
        service.backends.len() == 2 && service.backends.values().all(std::collections::BTreeMap::is_empty)
    );
    let export = r#"{"TYPE":"Headless","cluster":"c1","name":"web","namespace":"shop","exportCreationTimestamp":"2026-01-02T05:04:05.5+02:00","ports":null,"sessionAffinity":"None","sessionAffinityConfig":{"clientIP":null},"internalTrafficPolicy":null,"ipFamilies":null,"later":7}"#;
    let Record::ServiceExport(export) = accepted(Kind::ServiceExports, "shop/web", export) else {
        panic!("an export")
    };
    assert_eq!((export.created_unix_secs, export.affinity_timeout_secs), (1_767_323_045, None));
    assert!(export.ports.is_empty() && export.ip_families.is_empty());
}

#[test]
fn entries_that_say_nothing_are_neither_accepted_nor_refused() {
    let service = golden("service.txt").replace("\"shared\":true", "\"shared\":false");
    assert_eq!(decode(Kind::Services, "shop/web", service.as_bytes()), Ok(None));
    let ip = golden("ip.txt").replace("\"IP\":\"10.1.0.7\"", "\"IP\":\"\"");
    assert_eq!(decode(Kind::Ips, "10.1.0.7", ip.as_bytes()), Ok(None));
}

#[test]
fn labels_that_stand_twice_are_merged_and_the_last_one_counts() {
    let node = r#"{"Name":"x","Name":"n1","Cluster":"c1","ClusterID":1,"Labels":{"a":"1","b":"1"},"labels":{"b":"2"}}"#;
    let Record::Node(node) = accepted(Kind::Nodes, "n1", node) else { panic!("a node") };
    assert_eq!((node.labels.get("a").unwrap().as_ref(), node.labels.get("b").unwrap().as_ref()), ("1", "2"));
}

#[test]
fn a_slice_without_the_label_belongs_to_no_service() {
    let slice = EndpointSlice::new("c1", 1, "shop", "web-0", false);
    assert_eq!(slice.service(), None);
    assert_eq!(EndpointSlice::decode(&c1(), "shop/web-0", &slice.encode()), Ok(slice));
}
