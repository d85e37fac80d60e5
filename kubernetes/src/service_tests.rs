//! Services' annotations and slices' hints: what is read, and what is told and left out.

use super::tests::{only, read};
use super::*;
use crate::object::Object;
use tombolo_service::{Affinity, Distribution, ServiceRow};

/// A service with annotations, a line each from line 6 on.
fn annotated(annotations: &str) -> (ServiceRow, Vec<String>) {
    let lines: String = annotations.lines().map(|line| format!("    {line}\n")).collect();
    let parsed = read(&format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n{lines}spec:\n  ports: [{{port: 80}}]\n"
    ));
    let told = parsed.problems.iter().map(|problem| {
        assert_eq!(problem.severity, Severity::Warning, "the service goes on: {problem:?}");
        assert!(!problem.remedy.is_empty() && problem.object == "Service default/web");
        format!("{} {}", problem.line, problem.reason)
    });
    let told = told.collect();
    match parsed.objects.into_iter().next() {
        Some((_, Object::Service(row))) => (*row, told),
        other => panic!("{other:?}"),
    }
}

#[test]
fn annotations_under_both_names_with_ciliums_defaults() {
    for (text, global, shared, affinity) in [
        ("a: b", false, false, Affinity::None),
        ("service.cilium.io/global: 'true'", true, true, Affinity::None),
        ("io.cilium/global-service: 'True'", true, true, Affinity::None),
        ("service.cilium.io/global: 'TRUE'\nservice.cilium.io/shared: 'false'", true, false, Affinity::None),
        ("service.cilium.io/global: 'true'\nio.cilium/shared-service: 'FALSE'", true, false, Affinity::None),
        ("service.cilium.io/shared: 'true'", false, false, Affinity::None),
        ("io.cilium/global-service: 'true'\nio.cilium/service-affinity: local", true, true, Affinity::Local),
        (
            "service.cilium.io/global: 'true'\nservice.cilium.io/affinity: Remote",
            true,
            true,
            Affinity::Remote,
        ),
        ("service.cilium.io/global: 'true'\nservice.cilium.io/affinity: none", true, true, Affinity::None),
        // The name of today wins.
        ("service.cilium.io/global: 'false'\nio.cilium/global-service: 'true'", false, false, Affinity::None),
    ] {
        let (row, told) = annotated(text);
        assert_eq!((row.global, row.shared, row.affinity), (global, shared, affinity), "{text}");
        assert!(told.is_empty(), "{text}: {told:?}");
    }
}

#[test]
fn ours_spread_traffic_over_clusters() {
    let (row, told) = annotated(
        "service.cilium.io/global: 'true'\nservice.tombolo.io/tiers: east,west;*\nservice.tombolo.io/weights: east=80,west=20\n\
         service.tombolo.io/overflow: 50%\nservice.tombolo.io/probe: http:/healthz period=20s timeout=3s",
    );
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(
        (row.spread.tiers_text().as_str(), row.spread.weights_text().as_str()),
        ("east,west;*", "east=80,west=20")
    );
    assert_eq!((row.spread.overflow, row.spread.probe.unwrap().period.as_secs()), (Some(50), 20));
}

#[test]
fn a_bad_annotation_is_told_with_its_line_and_costs_itself_only() {
    for (text, line, reason) in [
        ("service.cilium.io/global: 'yes'", 6, "none of the words"),
        ("service.cilium.io/global: 'true'\nservice.cilium.io/affinity: nearby", 7, "none of the words"),
        (
            "service.cilium.io/global: 'true'\nservice.tombolo.io/tiers: east;;west",
            7,
            "\"east;;west\" is not used",
        ),
        ("service.cilium.io/global: 'true'\nservice.tombolo.io/weights: east", 7, "is no name=weight"),
        ("service.cilium.io/global: 'true'\nservice.tombolo.io/overflow: '50'", 7, "no percentage"),
        ("service.cilium.io/global: 'true'\nservice.tombolo.io/probe: ftp", 7, "begins neither"),
        ("service.cilium.io/global: 'true'\nservice.tombolo.io/tier: east", 7, "no such annotation"),
        ("service.tombolo.io/tiers: east", 6, "not global"),
        (
            "service.cilium.io/global: 'true'\nservice.cilium.io/affinity: local\nservice.tombolo.io/tiers: east",
            7,
            "has tiers",
        ),
    ] {
        let (row, told) = annotated(text);
        assert_eq!(told.len(), 1, "{text}: {told:?}");
        assert!(told[0].starts_with(&format!("{line} ")) && told[0].contains(reason), "{text}: {told:?}");
        assert!(row.spread.weights.is_empty() && row.spread.overflow.is_none() && row.spread.probe.is_none());
    }
    let long = format!("service.cilium.io/global: 'true'\nservice.tombolo.io/tiers: {}", "x,".repeat(40_000));
    let (row, told) = annotated(&long);
    assert!(row.spread.tiers.is_empty() && told.len() == 1 && told[0].len() < 400, "{told:?}");
}

#[test]
fn traffic_distribution_and_hints() {
    let service = |word: &str| {
        only(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{ports: [{{port: 80}}], trafficDistribution: {word}}}\n"
        ))
    };
    for (word, wanted) in [
        ("PreferClose", Distribution::SameZone),
        ("PreferSameZone", Distribution::SameZone),
        ("PreferSameNode", Distribution::SameNode),
    ] {
        let Object::Service(row) = service(word) else { panic!() };
        assert_eq!(row.distribution, wanted);
    }
    let parsed =
        read("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  trafficDistribution: Far\n");
    assert_eq!((parsed.objects.len(), parsed.problems[0].line), (1, 5));
    let slice = only(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}\nports: [{port: 80}]\n\
         endpoints:\n- {addresses: [10.1.1.5], zone: a, hostname: web-0, hints: {forZones: [{name: a}, {name: b}], forNodes: [{name: n1}]}}\n",
    );
    let Object::Slice(row) = slice else { panic!() };
    let endpoint = &row.endpoints[0];
    assert_eq!((endpoint.zone.as_deref(), endpoint.hostname.as_deref()), (Some("a"), Some("web-0")));
    assert_eq!((endpoint.for_zones.len(), &*endpoint.for_nodes[0]), (2, "n1"));
}

#[test]
fn node_ports_are_read_where_a_service_may_have_them() {
    let service = |spec: &str| {
        let parsed = read(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n"));
        let row = parsed.objects.into_values().next().map(|object| match object {
            Object::Service(row) => row.ports.iter().map(|port| port.node_port).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        });
        (row, parsed.problems.iter().map(|problem| problem.reason.clone()).collect::<Vec<_>>())
    };
    for (spec, ports) in [
        ("{type: NodePort, ports: [{port: 80, nodePort: 30080}, {port: 81}]}", vec![Some(30080), None]),
        ("{type: LoadBalancer, ports: [{port: 80, nodePort: 65535}]}", vec![Some(65535)]),
        // As Kubernetes: what is written is respected whatever the field says, which is about giving some out.
        (
            "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80, nodePort: 1}]}",
            vec![Some(1)],
        ),
        ("{type: LoadBalancer, ports: [{port: 80, nodePort: 0}]}", vec![None]),
    ] {
        assert_eq!(service(spec), (Some(ports), vec![]), "{spec}");
    }
    for spec in [
        "{ports: [{port: 80, nodePort: 30080}]}",
        "{type: ExternalName, externalName: a.example, ports: [{port: 80, nodePort: 30080}]}",
        "{type: NodePort, clusterIP: None, ports: [{port: 80, nodePort: 30080}]}",
    ] {
        let (ports, told) = service(spec);
        assert_eq!(ports, Some(vec![None]), "{spec}");
        assert!(told.len() == 1 && told[0].contains("not on nodes"), "{told:?}");
    }
    for number in ["-1", "65536", "2147483647"] {
        let (ports, told) =
            service(&format!("{{type: NodePort, ports: [{{port: 80, nodePort: {number}}}]}}"));
        assert!(ports.is_none() && told.len() == 1 && told[0].contains("out of range"), "{told:?}");
    }
}

#[test]
fn source_ranges_that_cannot_be_read_admit_nobody() {
    let service = |spec: &str| {
        let parsed =
            read(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}}}\n"));
        let told: Vec<_> = parsed.problems.iter().map(|problem| problem.reason.clone()).collect();
        match parsed.objects.into_values().next() {
            Some(Object::Service(row)) => {
                let ranges = row.source_ranges;
                (ranges.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>()), told)
            }
            other => panic!("{other:?} {told:?}"),
        }
    };
    let with = |ranges: &str| service(&format!("type: LoadBalancer, loadBalancerSourceRanges: {ranges}"));
    let some = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
    assert_eq!(with("[]"), (None, vec![]), "as Kubernetes: no list is no limit");
    let good = with("[10.1.2.3/8, ' 192.0.2.0/24 ', 'fd00::/8', 10.0.0.0/8]");
    assert_eq!(good, (some(&["10.0.0.0/8", "192.0.2.0/24", "fd00::/8"]), vec![]));
    for bad in ["10.0.0.0/33", "'fd00::/129'", "everybody", "''", "10.0.0.0/-1"] {
        let (ranges, told) = with(&format!("[{bad}, 192.0.2.0/24]"));
        assert_eq!((ranges, told.len()), (some(&["192.0.2.0/24"]), 1), "{bad}");
        let (ranges, told) = with(&format!("[{bad}]"));
        assert_eq!((ranges, told.len()), (some(&[]), 1), "{bad}");
    }
    let (ranges, told) = service("loadBalancerSourceRanges: [10.0.0.0/8]");
    assert!(ranges.is_none() && told.len() == 1 && told[0].contains("only LoadBalancer"), "{told:?}");
}
