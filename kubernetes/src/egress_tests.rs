use super::tests::{complaint, only};
use crate::object::Object;
use tombolo_topology::EgressPolicyRow;

fn written(spec: &str) -> String {
    format!("apiVersion: cilium.io/v2\nkind: CiliumEgressGatewayPolicy\nmetadata: {{name: p}}\nspec:\n{spec}")
}

fn policy(spec: &str) -> EgressPolicyRow {
    match only(&written(spec)) {
        Object::EgressPolicy(row) => *row,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_egress_policy_as_cilium_documents_it() {
    let row = policy(
        "  selectors:\n  - podSelector:\n      matchLabels: {org: empire, io.kubernetes.pod.namespace: default}\n\
         \x20   namespaceSelector: {matchLabels: {team: a}}\n    nodeSelector: {matchLabels: {rack: r1}}\n\
         \x20 destinationCIDRs: [0.0.0.0/0, '::/0']\n  excludedCIDRs: [192.168.0.0/16]\n\
         \x20 egressGateway:\n    nodeSelector: {matchLabels: {node.kubernetes.io/name: a}}\n    egressIP: 10.168.60.100\n",
    );
    let selector = &row.selectors[0];
    let labels: Vec<_> = selector.pods.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(
        labels,
        [
            "k8s:io.cilium.k8s.namespace.labels.team=a",
            "k8s:io.kubernetes.pod.namespace=default",
            "k8s:org=empire"
        ]
    );
    assert!(selector.nodes.is_some());
    assert_eq!((row.destinations.len(), row.excluded.len(), row.gateways.len()), (2, 1, 1));
    assert_eq!(row.gateways[0].address, "10.168.60.100".parse().ok());
    let several = policy(
        "  selectors: [{podSelector: {}}]\n  destinationCIDRs: [0.0.0.0/0]\n\
         \x20 egressGateway: {nodeSelector: {matchLabels: {a: b}}, interface: '', egressIP: ''}\n\
         \x20 egressGateways:\n  - {nodeSelector: {matchLabels: {a: b}}, interface: eth1}\n  - nodeSelector: {}\n",
    );
    assert_eq!(several.gateways.len(), 2, "the list counts, not the single one");
    assert_eq!(several.gateways[0].interface.as_deref(), Some("eth1"));
}

#[test]
fn an_egress_policy_that_would_do_something_else_is_refused_and_told() {
    let of = |spec: &str| complaint(&written(spec));
    let rest = "  destinationCIDRs: [0.0.0.0/0]\n  egressGateway: {nodeSelector: {}}\n";
    assert_eq!(of(&format!("  selectors: [{{}}]\n{rest}")), "5 spec.selectors[0]: the entry selects no pods");
    let pods = "  selectors: [{podSelector: {}}]\n";
    assert!(of(&format!("{pods}  excludedCIDR: [10.0.0.0/8]\n{rest}")).contains("spec.excludedCIDR"));
    assert!(of(&format!("{pods}  destinationCIDRs: [0.0.0.0/0]\n")).contains("there is no gateway"));
    let both = "  destinationCIDRs: [0.0.0.0/0]\n  egressGateway: {nodeSelector: {}, interface: e, egressIP: 10.0.0.1}\n";
    assert!(of(&format!("{pods}{both}")).contains("interface stands beside egressIP"));
    assert!(
        of(&format!("{pods}  destinationCIDRs: []\n  egressGateway: {{nodeSelector: {{}}}}\n"))
            .contains("no destinations")
    );
    let anywhere = "  destinationCIDRs: [0.0.0.0/0]\n  egressGateway: {egressIP: 10.0.0.1}\n";
    assert!(of(&format!("{pods}{anywhere}")).contains("the gateway is no node"));
}
