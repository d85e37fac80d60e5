//! Pods' host ports and bandwidth annotations: what is read, and what is told and left out.

use super::tests::read;
use crate::object::Object;
use crate::rows::PodRow;
use tombolo_topology::{HostPort, Shaping};

fn pod(text: &str) -> (PodRow, Vec<String>) {
    let parsed = read(text);
    let told = parsed.problems.iter().map(|problem| format!("{} {}", problem.line, problem.reason)).collect();
    match parsed.objects.into_iter().next() {
        Some((_, Object::Pod(row))) => (*row, told),
        other => panic!("{other:?}"),
    }
}

#[test]
fn host_ports_are_those_of_containers_and_sidecars() {
    let (row, told) = pod(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: a\n    ports:\n    \
         - {containerPort: 80, hostPort: 8080}\n    - {containerPort: 81}\n    \
         - {containerPort: 53, hostPort: 53, protocol: UDP, hostIP: 127.0.0.1}\n    \
         - {containerPort: 90, hostPort: 9090, hostIP: nowhere}\n  initContainers:\n  - name: b\n    restartPolicy: Always\n    \
         ports: [{containerPort: 82, hostPort: 8082}]\n  - name: c\n    ports: [{containerPort: 83, hostPort: 8083}]\n",
    );
    let port = |host: Option<&str>, host_port, protocol, port| HostPort {
        host: host.map(|text| text.parse().unwrap()),
        host_port,
        protocol,
        port,
    };
    let wanted = [port(None, 8080, 6, 80), port(None, 8082, 6, 82), port(Some("127.0.0.1"), 53, 17, 53)];
    assert_eq!(row.host_ports, wanted.into());
    assert!(told.len() == 1 && told[0].contains("nowhere"), "{told:?}");
    // With the node's own network the API server writes each port as a host port.
    let (row, _) = pod(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  hostNetwork: true\n  containers:\n  \
         - {name: a, ports: [{containerPort: 80, hostPort: 80}]}\n",
    );
    assert!(row.host_ports.is_empty());
}

#[test]
fn bandwidth_is_read_as_bits_and_kept_as_bytes() {
    let annotated = |lines: &str| {
        pod(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n{lines}spec: {{containers: []}}\n"
        ))
    };
    let (row, told) = annotated(
        "    kubernetes.io/egress-bandwidth: 10M\n    kubernetes.io/ingress-bandwidth: 1Gi\n    bandwidth.cilium.io/priority: Best-Effort\n",
    );
    let wanted = Shaping { egress: Some(1_250_000), ingress: Some(134_217_728), priority: Some(5) };
    assert_eq!((row.shaping, told), (wanted, vec![]));
    for (text, priority) in [("guaranteed", Some(6)), ("burstable", Some(8)), ("3", Some(3)), ("high", None)]
    {
        let (row, told) = annotated(&format!("    bandwidth.cilium.io/priority: \"{text}\"\n"));
        assert_eq!((row.shaping.priority, told.len()), (priority, usize::from(priority.is_none())), "{text}");
    }
    let (row, told) =
        annotated("    kubernetes.io/egress-bandwidth: 10MB\n    kubernetes.io/ingress-bandwidth: \"1\"\n");
    assert_eq!((row.shaping, told.len()), (Shaping::default(), 2), "{told:?}");
}
