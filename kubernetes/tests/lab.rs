//! The manifests that the lab ships, through the source and the pure planners that read its tables.
#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tombolo_base::ids::{ClusterId, ClusterName, IdentityId, MaxClusters};
use tombolo_base::source::Source;
use tombolo_base::table::{Row, Snapshot, Table};
use tombolo_kubernetes::{
    ClusterIdentity, FolderConfig, FolderSource, LabelFilter, NamespaceRow, PodRow, Tables, check_file,
    identity_labels,
};
use tombolo_policy::compile::{Change, Compiler, Inputs as PolicyInputs};
use tombolo_service::pools;
use tombolo_topology::bgp::network::Network;
use tombolo_topology::bgp::plan::{AdvertisedService, Inputs as BgpInputs, plan};
use tombolo_topology::{EndpointRow, EndpointState, IdentityRow};

fn cluster(name: &str, id: u32) -> ClusterIdentity {
    ClusterIdentity {
        name: ClusterName::new(name).unwrap(),
        id: ClusterId::new(id, MaxClusters::C255).unwrap(),
    }
}

fn folder(cluster: &str) -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.join("../containerlab/labs/two-clusters").join(cluster).join("manifests")
}

/// How the sessions of the lab may be made: `TOMBOLO_PEERING`.
const PEERINGS: [&str; 4] = ["numbered", "bfd", "ipv6", "unnumbered"];

/// The folders that the lab puts together for a cluster.
fn folders(cluster: &str, peering: &str) -> [PathBuf; 2] {
    let manifests = folder(cluster);
    let peers = manifests.with_file_name("peering").join(peering);
    [manifests, peers]
}

fn files(folder: &PathBuf) -> Vec<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

async fn read(identity: &ClusterIdentity, peering: &str) -> Tables {
    let (tables, writers) = Tables::new();
    let stop = CancellationToken::new();
    let live = tempfile::tempdir().unwrap();
    for file in folders(identity.name.as_str(), peering).iter().flat_map(files) {
        std::fs::copy(&file, live.path().join(file.file_name().unwrap())).unwrap();
    }
    let config = FolderConfig::new(live.path(), identity.clone());
    let source = FolderSource::start(config, writers, stop.clone()).unwrap();
    let mut reports = source.reports();
    let complete = reports.wait_for(|report| report.complete);
    tokio::time::timeout(Duration::from_secs(20), complete).await.expect("the first read ends").unwrap();
    let report = source.report();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
    assert!(report.unknown_kinds.is_empty(), "{:?}", report.unknown_kinds);
    stop.cancel();
    source.stopped().await;
    tables
}

fn rows<R: Row>(table: &Table<R>) -> Vec<R> {
    table.snapshot().iter().cloned().collect()
}

#[test]
fn every_shipped_manifest_passes_the_check() {
    for (name, id) in [("east", 1), ("west", 2)] {
        for peering in PEERINGS {
            let all: Vec<PathBuf> = folders(name, peering).iter().flat_map(files).collect();
            assert!(all.len() > 5, "{name} ships {} manifests", all.len());
            all.iter().for_each(|path| assert_eq!(check_file(path, &cluster(name, id)), []));
        }
    }
}

#[tokio::test]
async fn every_node_speaks_both_families_and_advertises_pods_and_services() {
    let clusters = [("east", 1), ("west", 2)];
    for ((name, id), peering) in clusters.into_iter().flat_map(|one| PEERINGS.map(|peering| (one, peering))) {
        let tables = read(&cluster(name, id), peering).await;
        let services = rows(&tables.services);
        let assigned = pools::assign(&rows(&tables.pools), &services, &BTreeMap::new());
        assert!(assigned.problems.is_empty(), "{:?}", assigned.problems);
        assert!(assigned.rows.len() >= 2 && assigned.rows.iter().all(|row| row.addresses.len() == 2));
        let advertised: Vec<_> = services
            .iter()
            .map(|service| AdvertisedService {
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                labels: service.labels.clone(),
                load_balancer_ips: assigned
                    .rows
                    .iter()
                    .find(|row| row.name == service.name)
                    .map(|row| row.addresses.clone())
                    .unwrap_or_default(),
                local_ready: true,
                ..AdvertisedService::default()
            })
            .collect();
        let nodes = rows(&tables.nodes);
        assert_eq!(nodes.len(), 2);
        for node in &nodes {
            let out = plan(&BgpInputs {
                node,
                nodes: &nodes.iter().map(|node| node.labels.clone()).collect::<Vec<_>>(),
                configs: &rows(&tables.bgp_cluster_configs),
                peer_configs: &rows(&tables.bgp_peer_configs),
                advertisements: &rows(&tables.bgp_advertisements),
                overrides: &rows(&tables.bgp_overrides),
                policies: &rows(&tables.bgp_peer_policies),
                pools: &rows(&tables.pod_pools),
                secrets: &rows(&tables.bgp_secrets),
                secrets_namespace: "kube-system",
                services: &advertised,
                network: &Network::default(),
            });
            assert!(out.conditions.is_empty(), "{:?}", out.conditions);
            let families: BTreeSet<_> = out.peers.iter().flat_map(|peer| peer.families.clone()).collect();
            assert_eq!(families.len(), 2, "{peering} {}", node.name);
            let sessions: Vec<_> =
                out.peers.iter().map(|peer| (peer.address.is_ipv4(), peer.unnumbered)).collect();
            let expected = match peering {
                "ipv6" if name == "east" => vec![(false, false)],
                // West's FRR needs router advertisements to forward IPv4 over IPv6 next hops.
                "ipv6" | "unnumbered" => vec![(false, true)],
                _ => vec![(true, false), (false, false)],
            };
            assert_eq!(sessions, expected, "{peering} {}", node.name);
            assert!(
                out.peers.iter().all(|peer| peer.tuning.bfd.is_some() == (peering == "bfd")),
                "{peering}"
            );
            let expected: BTreeSet<_> = assigned
                .rows
                .iter()
                .flat_map(|row| row.addresses.iter().map(ToString::to_string))
                .chain(node.pod_cidrs.iter().map(ToString::to_string))
                .collect();
            let prefixes: BTreeSet<_> = out.adverts.iter().map(|row| row.prefix.short()).collect();
            assert_eq!(prefixes, expected, "{}", node.name);
        }
    }
}

fn labels_of(
    pod: &PodRow,
    namespaces: &Snapshot<NamespaceRow>,
    identity: &ClusterIdentity,
) -> tombolo_base::labels::Labels {
    identity_labels(pod, namespaces.get(&pod.namespace), &identity.name, &LabelFilter::default())
}

#[tokio::test]
async fn the_guarded_pod_lets_in_exactly_whom_its_policy_names() {
    let east = cluster("east", 1);
    let tables = read(&east, "numbered").await;
    let (namespaces, pods) = (tables.namespaces.snapshot(), rows(&tables.pods));
    let (identities, identity_writer) = Table::<IdentityRow>::new();
    let (endpoints, endpoint_writer) = Table::<EndpointRow>::new();
    let mut by_labels = BTreeMap::new();
    for pod in &pods {
        let labels = labels_of(pod, &namespaces, &east);
        let next = IdentityId(65_792 + u32::try_from(by_labels.len()).unwrap());
        let id = *by_labels.entry(labels.clone()).or_insert(next);
        identity_writer.upsert(IdentityRow { source: Source::Local, id, labels: labels.clone() });
        if (pod.namespace.as_ref(), pod.name.as_ref()) == ("guarded", "target") {
            endpoint_writer.upsert(EndpointRow {
                id: 1,
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                container_id: "c".into(),
                addresses: vec![],
                host_interface: "lxc1".into(),
                ifindex: 1,
                mac: [0; 6],
                host_mac: [0; 6],
                identity: Some(id),
                labels,
                port_mappings: Default::default(),
                queued: false,
                state: EndpointState::Ready,
            });
        }
    }
    let mut compiler = Compiler::new(east.name);
    let delta = compiler.update(
        &PolicyInputs {
            rules: &tables.rules.snapshot(),
            groups: &tables.cidr_groups.snapshot(),
            identities: &identities.snapshot(),
            endpoints: &endpoints.snapshot(),
            named_ports: &BTreeMap::new(),
            may_shrink: true,
        },
        &Change::Everything,
    );
    assert!(compiler.problems().is_empty(), "{:?}", compiler.problems());
    let row = &delta.policies[0];
    assert!(row.ingress_enforced && !row.egress_enforced);
    let allowed: BTreeSet<_> = row.entries.keys().map(|entry| entry.identity).collect();
    let expected: BTreeSet<_> = pods
        .iter()
        .filter(|pod| {
            pod.namespace.as_ref() == "demo" && pod.labels.get("access").is_some_and(|v| v.as_ref() == "yes")
        })
        .map(|pod| by_labels[&labels_of(pod, &namespaces, &east)])
        .collect();
    assert!(!expected.is_empty() && expected.len() < by_labels.len());
    assert_eq!(allowed, expected);
    assert!(row.entries.keys().all(|entry| (entry.protocol, entry.port, entry.port_bits) == (6, 8080, 16)));
}
