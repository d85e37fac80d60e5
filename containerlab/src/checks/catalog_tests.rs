//! Every item of the list, and rows for what a lab lacks.

use super::*;
use crate::checks::inventory::{ClusterNode, Daemon, Router};
use std::collections::BTreeMap;

fn cluster(name: &str) -> Cluster {
    let mut cluster = Cluster { name: name.into(), ..Cluster::default() };
    for node in ["n1", "n2"] {
        cluster.nodes.insert(format!("{name}-{node}"), ClusterNode::default());
    }
    for (app, node, access) in [
        ("client", "n1", Some("yes")),
        ("client", "n2", Some("no")),
        ("web", "n1", None),
        ("web", "n2", None),
        ("echo", "n1", None),
        ("target", "n2", None),
    ] {
        let mut labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
        labels.extend(access.map(|value| ("access".to_owned(), value.to_owned())));
        let namespace = if app == "target" { "guarded" } else { "demo" };
        let facts = PodFacts {
            namespace: namespace.into(),
            name: format!("{app}-{node}"),
            node: format!("{name}-{node}"),
            labels,
            ..PodFacts::default()
        };
        cluster.pods.insert(facts.key(), facts);
    }
    cluster
}

fn lab() -> Inventory {
    let router =
        |cluster: Option<&str>| Router { daemon: Daemon::Frr(None), cluster: cluster.map(str::to_owned) };
    Inventory {
        clusters: ["east", "west"].map(|name| (name.to_owned(), cluster(name))).into(),
        routers: BTreeMap::from([
            ("east-tor".into(), router(Some("east"))),
            ("spine".into(), router(None)),
            ("west-tor".into(), router(Some("west"))),
        ]),
        client: Some("client".into()),
        link_mtu: Some(1500),
        ..Inventory::default()
    }
}

#[test]
fn a_lab_of_the_mesh_has_its_own_checks() {
    let mut lab = Inventory { checks: Checks::Mesh, ..lab() };
    let names = |lab: &Inventory| -> Vec<String> {
        checks(lab, Variant::Overlay).into_iter().map(|check| check.name).collect()
    };
    assert_eq!(names(&lab), ["missing/mesh: three clusters"]);
    let north = Cluster { id: 3, ..cluster("north") };
    lab.clusters.insert("north".to_owned(), north);
    assert_eq!(names(&lab), ["missing/mesh: a cluster with relays"]);
    lab.clusters.entry("east".to_owned()).or_default().relays = vec!["east-relay".to_owned()];
    let all = names(&lab);
    assert_eq!(all.first().map(String::as_str), Some("mesh/joins/north"), "the last by id, not by name");
    assert_eq!(all.last().map(String::as_str), Some("mesh/leaves/north"));
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 16);
}

#[test]
fn what_the_lab_lacks_is_a_row_and_no_silence() {
    let missing = |lab: &Inventory| -> Vec<String> {
        let all = checks(lab, Variant::Overlay).into_iter();
        all.filter(|check| matches!(check.task, Task::Missing(_))).map(|check| check.name).collect()
    };
    assert_eq!(missing(&lab()), Vec::<String>::new());
    for (key, rows) in [("demo/web-n2", 2), ("demo/client-n1", 4), ("guarded/target-n2", 2)] {
        let mut lab = lab();
        lab.clusters.get_mut("east").expect("a cluster").pods.remove(key);
        assert_eq!(missing(&lab).len(), rows, "{key}: {:?}", missing(&lab));
    }
    let mut alone = lab();
    alone.clusters.remove("west");
    let rows = missing(&alone);
    assert!(rows.iter().any(|row| row.starts_with("missing/fault: two clusters")), "{rows:?}");
    assert!(rows.iter().any(|row| row.contains("a cluster beside east")), "{rows:?}");
    assert!(!missing(&Inventory::default()).is_empty());
}

#[test]
fn every_item_of_the_list_is_there_in_both_families_and_clusters() {
    let names: Vec<String> = checks(&lab(), Variant::Overlay).into_iter().map(|check| check.name).collect();
    for what in [
        "pod-to-pod/same-node/tcp",
        "pod-to-pod/other-node/udp",
        "pod-to-pod/other-cluster/http",
        "client-to-client/other-node/ping",
        "pod-to-service/remote-backend/tcp",
        "pod-to-service/remote-backend/udp",
        "pod-to-service/by-name/http",
        "pod-to-itself-via-service/tcp",
        "global-service/affinity-none/http",
        "global-service/affinity-local/http",
        "global-service/affinity-remote/http",
        "outside/local-keeps-client-address-on-every-node/http",
        "outside/cluster-through-both-nodes-with-snat/http",
        "outside/node-port-at-the-backend/http",
        "outside/node-port-at-another-node/udp",
        "outside/node-port-local-stays-on-the-node/http",
        "outside/host-port/http",
        "pod-to-hostport/own-node/http",
        "pod-to-hostport/other-node/udp",
        "host-to-hostport/own-node/udp",
        "pod-to-node-port/own-node/http",
        "pod-to-node-port/other-node/udp",
        "pod-to-node-port/other-node-remote-backend/http",
        "pod-to-world/tcp",
        "host-to-pod/other-node/tcp",
        "host-to-service/local-backend/tcp",
        "host-to-service/remote-backend/udp",
        "host-to-node-port/own-node-local-backend/http",
        "host-to-node-port/own-node-remote-backend/udp",
        "host-to-pod/other-cluster/udp",
        "host-to-host/other-node/tcp",
        "host-to-host/other-cluster/udp",
        "outside-to-pod/first-node/http",
        "outside-to-pod/second-node/udp",
        "pod-to-host/other-node/ping",
        "pod-to-host/same-node/tcp",
        "pod-to-host/other-cluster/udp",
        "policy/allowed/http",
        "policy/denied/tcp",
        "mtu/other-node",
        "mtu/other-cluster",
        "mtu/world",
        "mtu/outside",
        "names/same-node",
        "names/other-node",
    ] {
        for cluster in ["east", "west"] {
            for family in Family::BOTH {
                let name = format!("{what}/{cluster}/{family}");
                assert!(names.contains(&name), "{name} is missing of {names:#?}");
            }
        }
    }
    for cluster in ["east", "west"] {
        assert!(names.contains(&format!("etcd/remote-reads-only/{cluster}")));
    }
    for router in ["east-tor", "west-tor", "spine"] {
        assert!(names.contains(&format!("routes/{router}/ipv6")));
    }
    for fault in [
        "backends-deleted",
        "local-endpoints-gone",
        "agent-killed",
        "names-without-agent",
        "etcd-stopped",
        "etcd-wiped",
        "node-powered-off",
    ] {
        assert!(names.iter().any(|name| name.starts_with(&format!("fault/{fault}/"))), "{fault}");
    }
}

#[test]
fn names_are_unique_and_the_wire_check_follows_the_variant() {
    for variant in Variant::ALL {
        let all = checks(&lab(), variant);
        let names: BTreeSet<&str> = all.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(names.contains("wire/no-plaintext"), variant.encrypted());
        assert_eq!(names.contains("scenario/pod-to-pod-encryption"), variant.encrypted());
        for covered in all.iter().filter_map(|check| match &check.task {
            Task::Covered(covered) => Some(covered),
            _ => None,
        }) {
            for part in covered.parts {
                assert!(
                    names.iter().any(|name| name.starts_with(part)),
                    "{part} of {} in {variant}",
                    covered.name
                );
            }
        }
    }
}
