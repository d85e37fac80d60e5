//! The labs this project ships are what they say they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Node as KubernetesNode, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

use super::*;
use crate::settings::Settings;

const TWO: &str = "two-clusters";
const MESH: &str = "mesh";

fn lab(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("labs").join(name)
}

fn topology(name: &str, variant: Option<&str>) -> Topology {
    let env = variant.map(|v| ("TOMBOLO_VARIANT".to_owned(), v.to_owned())).into_iter().collect();
    let (topology, warnings) =
        load(&lab(name).join(format!("{name}.clab.yml")), &env).unwrap_or_else(|errors| {
            panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        });
    assert_eq!(warnings, []);
    topology
}

fn settings(name: &str) -> Settings {
    Settings::load(&lab(name).join("lab.yaml"), &BTreeMap::new()).unwrap()
}

/// Every document of a cluster's manifests.
fn manifests(name: &str, cluster: &str) -> Vec<Value> {
    let mut documents = Vec::new();
    let settings = settings(name);
    let folders = &settings.clusters.iter().find(|one| one.name == cluster).unwrap().manifests;
    for entry in folders.iter().flat_map(|folder| fs::read_dir(lab(name).join(folder)).unwrap()) {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        documents.extend(serde_saphyr::from_multiple::<Value>(&text).unwrap());
    }
    documents
}

fn of_kind<T: serde::de::DeserializeOwned>(documents: &[Value], kind: &str) -> Vec<T> {
    let chosen = documents.iter().filter(|document| document["kind"] == kind);
    chosen.map(|document| serde_json::from_value(document.clone()).unwrap()).collect()
}

#[test]
fn everything_is_deployed_and_every_image_runs_on_the_host() {
    let (topology, settings) = (topology(TWO, None), settings(TWO));
    assert_eq!(undeployable(&topology, &|image| settings.runs(image)), []);
    assert_eq!(topology.nodes.len(), 10);
    assert_eq!(topology.links.len(), 9);
    for node in topology.nodes.values() {
        let image = node.image.as_deref().unwrap();
        assert!(settings.image(image).is_some(), "{image} of {} is not in lab.yaml", node.name);
        if let Some(line) = &node.cmd {
            assert!(!split_words(line).unwrap().is_empty());
        }
    }
    for cluster in &settings.clusters {
        for node in cluster.nodes.iter().chain([&cluster.etcd]) {
            assert_eq!(topology.nodes[node].labels["tombolo.io/cluster"], cluster.name);
        }
    }
}

#[test]
fn every_variant_binds_its_own_layer() {
    for variant in ["overlay", "overlay-wireguard", "direct", "direct-wireguard"] {
        let topology = topology(TWO, Some(variant));
        let bind = |node: &str| {
            let binds = &topology.nodes[node].binds;
            binds.iter().find(|bind| bind.destination == "/etc/tombolo/variant.yaml").unwrap().source.clone()
        };
        for node in ["east-n1", "east-n2", "west-n1", "west-n2"] {
            let text = fs::read_to_string(bind(node)).unwrap();
            let layer: Value = serde_saphyr::from_str(&text).unwrap();
            let path = variant.split('-').next().unwrap();
            let encryption = if variant.ends_with("wireguard") { "wireguard" } else { "none" };
            let wanted = serde_json::json!({"path": path, "encryption": encryption});
            let said = serde_json::json!({"path": layer["datapath"]["path"], "encryption": layer["datapath"]["encryption"]});
            assert_eq!(said, wanted);
        }
    }
    assert!(
        topology(TWO, None).nodes["east-n1"].binds.iter().any(|bind| bind.source.ends_with("/overlay.yaml"))
    );
}

#[test]
fn exec_lines_say_the_same_addresses_as_the_links() {
    for lab in [TWO, MESH] {
        let topology = topology(lab, None);
        let mut expected: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for end in topology.links.iter().flat_map(Link::endpoints) {
            let lines = expected.entry(&end.node).or_default();
            lines.insert(format!("ip address replace {} dev {}", end.ipv4.unwrap(), end.interface));
            lines.insert(format!("ip -6 address replace {} dev {} nodad", end.ipv6.unwrap(), end.interface));
        }
        for node in topology.nodes.values() {
            let lines = node.exec.iter().filter(|line| line.contains("address replace")).cloned();
            assert_eq!(lines.collect::<BTreeSet<_>>(), expected[node.name.as_str()], "{}", node.name);
        }
    }
}

#[test]
fn links_join_addresses_of_one_subnet_and_default_routes_lead_to_the_other_end() {
    for lab in [TWO, MESH] {
        let topology = topology(lab, None);
        for link in &topology.links {
            let LinkType::Veth { a, b } = &link.link_type else { panic!("{link:?}") };
            assert_eq!(a.ipv4.unwrap().network(), b.ipv4.unwrap().network());
            assert_eq!(a.ipv6.unwrap().network(), b.ipv6.unwrap().network());
            assert_eq!(link.mtu, Some(1500));
            if a.interface == "eth1" && topology.nodes[&a.node].labels["tombolo.io/role"] != "tor" {
                let exec = &topology.nodes[&a.node].exec;
                assert!(exec.contains(&format!("ip route replace default via {}", b.ipv4.unwrap().addr())));
                assert!(
                    exec.contains(&format!("ip -6 route replace default via {}", b.ipv6.unwrap().addr()))
                );
            }
        }
    }
}

#[test]
fn certificates_cover_what_nodes_bind() {
    for lab in [TWO, MESH] {
        let (topology, settings) = (topology(lab, None), settings(lab));
        let dir = tempfile::tempdir().unwrap();
        crate::pki::issue_all(&settings.certificates, dir.path()).unwrap();
        let pki = topology.lab_dir.join("pki");
        for node in topology.nodes.values() {
            for bind in &node.binds {
                if let Ok(file) = Path::new(&bind.source).strip_prefix(&pki) {
                    assert!(
                        dir.path().join(file).exists(),
                        "{} of {} is not issued",
                        file.display(),
                        node.name
                    );
                }
            }
        }
        for cluster in &settings.clusters {
            let server = &settings.certificates.issue[&format!("etcd-{}", cluster.name)];
            let etcd =
                topology.links.iter().flat_map(Link::endpoints).find(|end| end.node == cluster.etcd).unwrap();
            assert!(server.addresses.contains(&IpAddr::V4(etcd.ipv4.unwrap().addr())));
            assert!(server.addresses.contains(&IpAddr::V6(etcd.ipv6.unwrap().addr())));
        }
    }
}

#[test]
fn pods_stand_on_nodes_of_their_cluster_and_services_find_them() {
    for cluster in &settings(TWO).clusters {
        let documents = manifests(TWO, &cluster.name);
        let pods: Vec<Pod> = of_kind(&documents, "Pod");
        for pod in &pods {
            let node = pod.spec.as_ref().unwrap().node_name.clone().unwrap();
            assert!(cluster.nodes.contains(&node), "{node}");
        }
        let services: Vec<Service> = of_kind(&documents, "Service");
        assert_eq!(services.len(), 12);
        let mut addresses = BTreeSet::new();
        for service in &services {
            let spec = service.spec.as_ref().unwrap();
            for address in spec.cluster_ips.iter().flatten().filter(|address| *address != "None") {
                assert!(addresses.insert(address.parse::<IpAddr>().unwrap()), "{address} twice");
            }
            let name = service.metadata.name.as_deref().unwrap();
            let Some(selector) = &spec.selector else {
                assert!(["kube-dns", "kubernetes"].contains(&name), "{name}: its endpoints are nodes");
                continue;
            };
            let selected = pods.iter().filter(|pod| {
                let labels = pod.metadata.labels.as_ref().unwrap();
                selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            let nodes: BTreeSet<_> =
                selected.map(|pod| pod.spec.as_ref().unwrap().node_name.clone()).collect();
            assert_eq!(
                nodes.len(),
                if matches!(name, "echo" | "lb-cluster" | "node-port") { 1 } else { 2 },
                "{name}"
            );
        }
        assert_eq!(addresses.len(), 22, "both families everywhere, but where there is none");
    }
}

/// Pods ask at the address of a Service whose endpoints are the cluster's nodes.
#[test]
fn every_clusters_dns_is_answered_by_its_nodes() {
    for lab in [TWO, MESH] {
        for cluster in &settings(lab).clusters {
            let documents = manifests(lab, &cluster.name);
            let services: Vec<Service> = of_kind(&documents, "Service");
            let dns = services.iter().find(|one| one.metadata.name.as_deref() == Some("kube-dns")).unwrap();
            let asked = cluster.dns.as_ref().unwrap().servers.iter().map(ToString::to_string);
            let addresses = dns.spec.as_ref().unwrap().cluster_ips.as_ref().unwrap();
            assert_eq!(
                asked.collect::<BTreeSet<_>>(),
                addresses.iter().cloned().collect(),
                "{}",
                cluster.name
            );
            let nodes: Vec<KubernetesNode> = of_kind(&documents, "Node");
            let of_nodes = nodes.iter().flat_map(|node| {
                let name = node.metadata.name.clone();
                let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
                let own = addresses.filter(|address| address.type_ == "InternalIP");
                own.map(move |address| (name.clone(), address.address.clone())).collect::<Vec<_>>()
            });
            let slices: Vec<EndpointSlice> = of_kind(&documents, "EndpointSlice");
            let of_dns = |slice: &&EndpointSlice| {
                let labels = slice.metadata.labels.as_ref();
                labels
                    .and_then(|labels| labels.get("kubernetes.io/service-name"))
                    .is_some_and(|name| name == "kube-dns")
            };
            let endpoints =
                slices.iter().filter(of_dns).flat_map(|slice| &slice.endpoints).flat_map(|endpoint| {
                    endpoint.addresses.iter().map(|address| (endpoint.node_name.clone(), address.clone()))
                });
            assert_eq!(endpoints.collect::<BTreeSet<_>>(), of_nodes.collect(), "{}", cluster.name);
        }
    }
}

#[test]
fn manifests_of_nodes_agree_with_the_topology() {
    for lab in [TWO, MESH] {
        let topology = topology(lab, None);
        for cluster in &settings(lab).clusters {
            let nodes: Vec<KubernetesNode> = of_kind(&manifests(lab, &cluster.name), "Node");
            let names: Vec<_> = nodes.iter().map(|node| node.metadata.name.clone().unwrap()).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>(), cluster.nodes.iter().collect::<BTreeSet<_>>());
            for node in &nodes {
                let name = node.metadata.name.as_deref().unwrap();
                let end =
                    topology.links.iter().flat_map(Link::endpoints).find(|end| end.node == name).unwrap();
                let addresses = node.status.as_ref().unwrap().addresses.clone().unwrap();
                let internal: Vec<_> = addresses
                    .iter()
                    .filter(|a| a.type_ == "InternalIP")
                    .map(|a| a.address.parse::<IpAddr>().unwrap())
                    .collect();
                let expected = [IpAddr::V4(end.ipv4.unwrap().addr()), IpAddr::V6(end.ipv6.unwrap().addr())];
                assert_eq!(internal, expected);
                assert_eq!(node.spec.as_ref().unwrap().pod_cidrs.as_ref().unwrap().len(), 2);
            }
        }
    }
}

#[test]
fn bgp_manifests_name_the_addresses_and_autonomous_systems_of_the_routers() {
    let topology = topology(TWO, None);
    let bird = fs::read_to_string(lab(TWO).join("routers/east-tor/peering/numbered.conf")).unwrap();
    let frr = fs::read_to_string(lab(TWO).join("routers/west-tor/peering/numbered.conf")).unwrap();
    for (cluster, tor) in [("east", "east-tor"), ("west", "west-tor")] {
        for config in manifests(TWO, cluster).iter().filter(|d| d["kind"] == "CiliumBGPClusterConfig") {
            let node = config["metadata"]["name"].as_str().unwrap();
            let instance = &config["spec"]["bgpInstances"][0];
            let asn = instance["localASN"].as_u64().unwrap();
            let link = topology.links.iter().find(|link| link.endpoints()[0].node == node).unwrap();
            let (own, other) = (link.endpoints()[0], link.endpoints()[1]);
            assert_eq!(other.node, tor);
            let peers: Vec<_> =
                instance["peers"].as_array().unwrap().iter().map(|p| p["peerAddress"].clone()).collect();
            assert_eq!(
                peers,
                [other.ipv4.unwrap().addr().to_string(), other.ipv6.unwrap().addr().to_string()]
            );
            for address in [own.ipv4.unwrap().addr().to_string(), own.ipv6.unwrap().addr().to_string()] {
                let (text, line) = match tor {
                    "east-tor" => (&bird, format!("neighbor {address} as {asn};")),
                    _ => (&frr, format!("neighbor {address} remote-as {asn}\n")),
                };
                assert!(text.contains(&line), "{tor} lacks {line}");
            }
        }
    }
}

#[test]
fn every_peering_has_its_own_files_on_both_sides() {
    for peering in ["numbered", "bfd", "ipv6", "unnumbered"] {
        let env = BTreeMap::from([("TOMBOLO_PEERING".to_owned(), peering.to_owned())]);
        let (topology, warnings) = load(&lab(TWO).join("two-clusters.clab.yml"), &env).unwrap();
        assert_eq!(warnings, []);
        for (tor, bound) in [("east-tor", "/etc/bird/peering.conf"), ("west-tor", "/etc/frr/frr.conf")] {
            let bind = topology.nodes[tor].binds.iter().find(|bind| bind.destination == bound).unwrap();
            let file = lab(TWO).join("routers").join(tor).join(format!("peering/{peering}.conf"));
            assert_eq!(Path::new(&bind.source), file);
            assert!(file.exists());
        }
        for cluster in Settings::load(&lab(TWO).join("lab.yaml"), &env).unwrap().clusters {
            let folder = Path::new(&cluster.name).join("peering").join(peering);
            assert_eq!(cluster.manifests, [Path::new(&cluster.name).join("manifests"), folder.clone()]);
            assert!(lab(TWO).join(folder).join("bgp-peers.yaml").exists());
        }
    }
}

#[test]
fn the_mesh_lab_is_deployed_as_a_whole() {
    let (topology, settings) = (topology(MESH, None), settings(MESH));
    assert_eq!(undeployable(&topology, &|image| settings.runs(image)), []);
    assert_eq!(settings.checks, crate::settings::Checks::Mesh);
    for cluster in &settings.clusters {
        for member in cluster.members.iter().chain([&cluster.etcd]) {
            assert_eq!(topology.nodes[member].labels["tombolo.io/cluster"], cluster.name);
            assert_eq!(topology.nodes[member].labels["tombolo.io/role"], "etcd");
        }
    }
    assert_eq!(settings.clusters.iter().map(|one| one.clustermesh.len()).collect::<Vec<_>>(), [1, 1, 0]);
}
