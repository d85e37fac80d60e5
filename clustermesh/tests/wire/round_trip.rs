//! Whatever we write is read back as the same record, in both families and for every kind.

use super::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::{CLUSTER_KEY, Labels};
use tombolo_base::prefix::Prefix;
use tombolo_base::residence::Residence;
use tombolo_clustermesh::wire::export::{
    ExportPort, ExportType, InternalTrafficPolicy, IpFamily, ServiceExport, SessionAffinity,
    TrafficDistribution,
};
use tombolo_clustermesh::wire::ip::{IpEntry, NamedPort};
use tombolo_clustermesh::wire::node::{Address, Node};
use tombolo_clustermesh::wire::service::{BackendZone, ForZone, L4, PortMap, Service};
use tombolo_clustermesh::wire::slice::{Endpoint, EndpointSlice, Port};
use tombolo_clustermesh::wire::{Assignment, Capabilities, ClusterConfig, ExportMode, Layout, ProducerForms};
use tombolo_service::rows::ServiceName;

fn ipv4() -> impl Strategy<Value = IpAddr> {
    (1_u8..=9, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d]))
}

fn ipv6() -> impl Strategy<Value = IpAddr> {
    any::<[u8; 15]>().prop_map(|rest| {
        let mut bytes = [0xfd; 16];
        bytes[1..].copy_from_slice(&rest);
        IpAddr::from(bytes)
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![ipv4(), ipv6()]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    prop_oneof![
        (ipv4(), 8_u8..=32).prop_map(|(ip, len)| Prefix::new(ip, len).unwrap()),
        (ipv6(), 8_u8..=128).prop_map(|(ip, len)| Prefix::new(ip, len).unwrap()),
    ]
}

/// Any text: quotes, control characters, `<&>`, several planes.
fn text() -> impl Strategy<Value = Arc<str>> {
    vec(any::<char>(), 0..8).prop_map(|characters| characters.into_iter().collect::<String>().into())
}

/// A name as Kubernetes allows it.
fn name() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9.-]{0,12}[a-z0-9]".prop_map(Arc::from)
}

fn strings() -> impl Strategy<Value = BTreeMap<Arc<str>, Arc<str>>> {
    btree_map(text(), text(), 0..4)
}

fn entry() -> impl Strategy<Value = Record> {
    let ports = btree_map(text(), (any::<u16>(), text()), 0..4);
    let identity = prop_oneof![65_536_u32..131_072, 2_u32..256];
    (prefix(), any::<bool>(), option::of(ip()), identity, any::<u8>(), [text(), text(), text()], ports)
        .prop_map(
            |(
                prefix,
                masked,
                host_ip,
                identity,
                encryption_key,
                [namespace, pod, service_account],
                ports,
            )| {
                let named = ports.into_iter();
                Record::Ip(IpEntry {
                    prefix,
                    masked: masked || !prefix.is_host(),
                    identity: IdentityId(identity),
                    residence: Residence::of(host_ip, encryption_key, &namespace),
                    pod,
                    service_account,
                    named_ports: named
                        .map(|(name, (port, protocol))| NamedPort { name, port, protocol })
                        .collect(),
                })
            },
        )
}

fn node() -> impl Strategy<Value = Record> {
    let addresses = vec((text(), ip()), 0..5);
    let optional = || (option::of(ipv4()), option::of(ipv6())).prop_map(|(four, six)| [four, six]);
    let texts = [text(), text(), text()];
    (
        name(),
        addresses,
        vec(prefix(), 0..6),
        [optional(), optional()],
        any::<u8>(),
        texts,
        [strings(), strings()],
    )
        .prop_map(
            |(name, addresses, cidrs, [health, ingress], key, [source, wireguard, boot], [labels, notes])| {
                let mut node = Node::new("c1", 1, &name);
                node.addresses = addresses.into_iter().map(|(kind, ip)| Address { kind, ip }).collect();
                (node.ipv4_pod_cidrs, node.ipv6_pod_cidrs) = cidrs.into_iter().partition(Prefix::is_ipv4);
                (node.health, node.ingress, node.encryption_key) = (health, ingress, key);
                (node.source, node.wireguard_key, node.boot_id) = (source, wireguard, boot);
                (node.labels, node.annotations) = (labels.into(), notes);
                Record::Node(std::sync::Arc::new(node))
            },
        )
}

fn ports() -> impl Strategy<Value = PortMap> {
    let l4 = (text(), any::<u16>()).prop_map(|(protocol, port)| L4 { protocol, port });
    btree_map(ip(), btree_map(text(), l4, 0..3), 0..4)
}

fn service() -> impl Strategy<Value = Record> {
    let zone = (text(), vec(text(), 0..3)).prop_map(|(zone, names)| BackendZone {
        zone,
        for_zones: names.into_iter().map(|name| ForZone { name }).collect(),
    });
    let maps = (btree_map(ip(), text(), 0..3), btree_map(ip(), zone, 0..3), strings(), strings());
    (name(), name(), ports(), ports(), maps, any::<bool>()).prop_map(
        |(namespace, name, frontends, backends, (hostnames, zones, labels, selector), include_external)| {
            let mut service = Service::new("c1", 1, &namespace, &name);
            (service.frontends, service.backends) = (frontends, backends);
            (service.hostnames, service.zones) = (hostnames, zones);
            (service.labels, service.selector) = (labels, selector);
            service.include_external = include_external;
            Record::Service(std::sync::Arc::new(service))
        },
    )
}

fn endpoint(ipv4_only: bool) -> impl Strategy<Value = Endpoint> {
    let address = if ipv4_only { ipv4().boxed() } else { ipv6().boxed() };
    let conditions = [option::of(any::<bool>()), option::of(any::<bool>()), option::of(any::<bool>())];
    let zones = option::of(vec(text(), 0..3));
    (vec(address, 0..3), conditions, strings(), option::of(text()), option::of(text()), zones).prop_map(
        |(addresses, [ready, serving, terminating], topology, node, zone, for_zones)| Endpoint {
            addresses,
            ready,
            serving,
            terminating,
            topology,
            node,
            zone,
            for_zones,
        },
    )
}

fn slice() -> impl Strategy<Value = Record> {
    let port = (option::of(text()), option::of(text()), option::of(any::<u16>()))
        .prop_map(|(name, protocol, port)| Port { name, protocol, port });
    let endpoints =
        prop_oneof![(Just(true), vec(endpoint(true), 0..20)), (Just(false), vec(endpoint(false), 0..20)),];
    (name(), name(), endpoints, vec(port, 0..4), strings(), strings()).prop_map(
        |(namespace, name, (ipv4, endpoints), ports, labels, annotations)| {
            let mut slice = EndpointSlice::new("c1", 1, &namespace, &name, ipv4);
            (slice.endpoints, slice.ports) = (endpoints, ports);
            (slice.labels, slice.annotations) = (labels, annotations);
            Record::EndpointSlice(std::sync::Arc::new(slice))
        },
    )
}

fn export() -> impl Strategy<Value = Record> {
    let port = (text(), text(), option::of(text()), any::<u16>())
        .prop_map(|(name, protocol, app_protocol, port)| ExportPort { name, protocol, app_protocol, port });
    let words = (
        select(vec![ExportType::ClusterSetIp, ExportType::Headless]),
        select(vec![SessionAffinity::None, SessionAffinity::ClientIp]),
        option::of(0_u32..=0x7fff_ffff),
        vec(select(vec![IpFamily::V4, IpFamily::V6]), 0..3),
        option::of(select(vec![InternalTrafficPolicy::Cluster, InternalTrafficPolicy::Local])),
        option::of(select(vec![
            TrafficDistribution::PreferClose,
            TrafficDistribution::PreferSameZone,
            TrafficDistribution::PreferSameNode,
        ])),
    );
    (name(), name(), 0_i64..4_000_000_000, vec(port, 0..4), [strings(), strings()], words).prop_map(
        |(namespace, name, created, ports, [annotations, labels], words)| {
            let mut export = ServiceExport::new("c1", &namespace, &name, created);
            (export.ports, export.annotations, export.labels) = (ports, annotations, labels);
            (export.kind, export.session_affinity, export.affinity_timeout_secs) =
                (words.0, words.1, words.2);
            (export.ip_families, export.internal_traffic_policy) = (words.3, words.4);
            export.traffic_distribution = words.5;
            Record::ServiceExport(std::sync::Arc::new(export))
        },
    )
}

fn identity() -> impl Strategy<Value = Record> {
    let labels = btree_map("[a-z]{1,6}", "[a-z0-9=:./-]{0,8}", 0..5);
    (65_536_u32..131_072, labels).prop_map(|(id, mut labels)| {
        labels.insert(CLUSTER_KEY.to_owned(), "c1".to_owned());
        Record::Identity(IdentityId(id), Labels::k8s(labels))
    })
}

fn assignment() -> impl Strategy<Value = Record> {
    (name(), name(), vec(ip(), 0..4), vec(text(), 0..3)).prop_map(|(namespace, name, addresses, pools)| {
        let value =
            Assignment { addresses: addresses.into_iter().collect(), pools: pools.into_iter().collect() };
        Record::Assignment(ServiceName { namespace, name }, value)
    })
}

proptest! {
    #[test]
    fn every_record_is_read_as_written(
        record in prop_oneof![
            entry(), node(), service(), slice(), export(), identity(), assignment(),
        ]
    ) {
        let value = record.encode().unwrap();
        let read = decode(record.kind(), &record.key_name(), &value).unwrap();
        prop_assert_eq!(read.as_ref(), Some(&record));
        prop_assert_eq!(read.unwrap().encode().unwrap(), value, "the same record is always the same value");
    }

    #[test]
    fn every_configuration_is_read_as_written(
        id in any::<u32>(),
        flags in any::<[bool; 2]>(),
        max_connected_clusters in any::<u32>(),
        service_exports_enabled in option::of(any::<bool>()),
        export_mode in select(vec![
            ExportMode::Services, ExportMode::ServicesAndSlices, ExportMode::SlicesOnly,
        ]),
    ) {
        let [synced_canaries, cached] = flags;
        let capabilities = Capabilities {
            synced_canaries, cached, max_connected_clusters, service_exports_enabled, export_mode,
        };
        let config = ClusterConfig { id, capabilities };
        prop_assert_eq!(&ClusterConfig::decode(&config.encode().unwrap()).unwrap(), &config);
        let layout = if cached { Layout::Cache } else { Layout::State };
        let forms = ProducerForms {
            layout, canaries: synced_canaries, service_exports: service_exports_enabled, backends: export_mode,
        };
        let announced = forms.capabilities(MaxClusters::C255);
        prop_assert_eq!(announced, Capabilities { max_connected_clusters: 255, ..config.capabilities });
    }
}
