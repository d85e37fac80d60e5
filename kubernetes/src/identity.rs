//! The labels that make a pod's identity, as Cilium chooses them.

use crate::rows::{NamespaceRow, PodRow};
use tombolo_base::ids::ClusterName;
use tombolo_base::labels::{CLUSTER_KEY, Labels, NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SERVICE_ACCOUNT_KEY};

/// Beginnings of label keys that differ from pod to pod of one workload, and would give each pod an identity of its
/// own, or that belong to the system. Cilium's defaults, which match from the start of the key.
const EXCLUDED: [&str; 14] = [
    "annotation",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "controller-revision-hash",
    "controller-uid",
    "etcd_node",
    "io.cilium.k8s.",
    "io.kubernetes",
    "k8s.io",
    "kubernetes.io",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

fn makes_identity(key: &str) -> bool {
    key.starts_with("app.kubernetes.io")
        || !(key.contains("beta.kubernetes.io") || EXCLUDED.iter().any(|start| key.starts_with(start)))
}

/// The identity labels of a pod: its own labels without those that vary by replica, its namespace and that
/// namespace's labels, its service account, its cluster. `namespace` is `None` while its manifest is missing.
#[must_use]
pub fn identity_labels(pod: &PodRow, namespace: Option<&NamespaceRow>, cluster: &ClusterName) -> Labels {
    let mut pairs: Vec<(String, &str)> = Vec::new();
    pairs.extend(
        pod.labels
            .iter()
            .filter(|(key, _)| makes_identity(key))
            .map(|(key, value)| (key.to_string(), value.as_ref())),
    );
    for (key, value) in namespace.iter().flat_map(|namespace| &namespace.labels) {
        pairs.push((format!("{NAMESPACE_LABEL_PREFIX}{key}"), value));
    }
    pairs.push((CLUSTER_KEY.to_owned(), cluster.as_str()));
    pairs.push((SERVICE_ACCOUNT_KEY.to_owned(), &pod.service_account));
    pairs.push((NAMESPACE_KEY.to_owned(), &pod.namespace));
    Labels::k8s(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use tombolo_base::source::Source;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<std::sync::Arc<str>, std::sync::Arc<str>> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn identity_is_made_of_what_replicas_share() {
        let pod = PodRow {
            source: Source::Manifests,
            namespace: "shop".into(),
            name: "web-0".into(),
            uid: "".into(),
            labels: map(&[
                ("app", "web"),
                ("app.kubernetes.io/name", "web"),
                ("pod-template-hash", "5d4f"),
                ("controller-revision-hash", "x"),
                ("statefulset.kubernetes.io/pod-name", "web-0"),
                ("apps.kubernetes.io/pod-index", "0"),
                ("batch.kubernetes.io/job-completion-index", "3"),
                ("kubernetes.io/arch", "amd64"),
                ("io.cilium.k8s.policy.cluster", "forged"),
                ("io.kubernetes.pod.namespace", "forged"),
            ]),
            node: None,
            service_account: "runner".into(),
            named_ports: BTreeSet::new(),
            host_network: false,
            addresses: vec![],
            phase: None,
            ready: false,
        };
        let namespace = NamespaceRow {
            source: Source::Manifests,
            name: "shop".into(),
            labels: map(&[("kubernetes.io/metadata.name", "shop"), ("tier", "front")]),
            global: true,
        };
        let labels = identity_labels(&pod, Some(&namespace), &ClusterName::new("east").unwrap());
        assert_eq!(
            labels.to_string(),
            "k8s:app=web;k8s:app.kubernetes.io/name=web;\
             k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
             k8s:io.cilium.k8s.namespace.labels.tier=front;k8s:io.cilium.k8s.policy.cluster=east;\
             k8s:io.cilium.k8s.policy.serviceaccount=runner;k8s:io.kubernetes.pod.namespace=shop;"
        );
    }
}
