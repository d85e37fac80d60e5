//! The labels that make a pod's identity, chosen as Cilium chooses them.

use crate::rows::{NamespaceRow, PodRow};
use regex::{Regex, RegexBuilder};
use tombolo_base::ids::ClusterName;
use tombolo_base::labels::{CLUSTER_KEY, Labels, NAMESPACE_KEY, NAMESPACE_LABEL_PREFIX, SERVICE_ACCOUNT_KEY};

/// Cilium's defaults. What is refused differs from pod to pod of one workload, and would give each pod an identity of its
/// own, or belongs to the system.
const DEFAULTS: [&str; 16] = [
    r"io\.cilium\.k8s\.namespace\.labels",
    r"app\.kubernetes\.io",
    "!annotation",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!batch\.kubernetes\.io/job-completion-index",
    "!controller-revision-hash",
    "!controller-uid",
    "!etcd_node",
    r"!io\.kubernetes",
    r"!k8s\.io",
    r"!kubernetes\.io",
    r"!.*beta\.kubernetes\.io",
    "!pod-template-generation",
    "!pod-template-hash",
    r"!statefulset\.kubernetes\.io/pod-name",
];
/// Most patterns a user may add.
const MAX_PATTERNS: usize = 256;
/// Bound of a compiled pattern, in bytes.
const PATTERN_BYTES: usize = 1 << 18;

/// Which labels make identities: patterns as in Cilium's `labels` option, after its defaults.
///
/// A pattern is a regular expression matched from the start of a label's key, `!` before it refuses, `k8s:` may stand in
/// front. A label counts if the longest match that takes it is longer than the shortest one that refuses it, or nothing
/// refuses it; once a user's pattern takes labels, those that no pattern takes do not count.
#[derive(Clone, Debug)]
pub struct LabelFilter {
    patterns: Vec<Pattern>,
    /// Whether only what is taken counts.
    only_taken: bool,
}

#[derive(Clone, Debug)]
struct Pattern {
    refuses: bool,
    key: Regex,
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, String> {
        let (refuses, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        // What stands before a colon is a source only if it could be one: `(?:a|b)` has a colon, too.
        let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let key = match rest.split_once(':').filter(|(source, _)| word(source)) {
            None => rest,
            Some(("k8s" | "any" | "", key)) => key,
            Some((source, _)) => return Err(format!("pods have no labels of source {source:?}")),
        };
        if key.is_empty() {
            return Err("the pattern is empty".to_owned());
        }
        // Anchored as a whole: an alternative inside must not match further behind.
        let anchored = RegexBuilder::new(&format!("^(?:{key})")).size_limit(PATTERN_BYTES).build();
        // The error is several lines, the last of which says what is wrong.
        let last =
            |error: regex::Error| error.to_string().lines().last().unwrap_or_default().trim().to_owned();
        Ok(Self { refuses, key: anchored.map_err(last)? })
    }
}

impl Default for LabelFilter {
    fn default() -> Self {
        let patterns = DEFAULTS.iter().filter_map(|text| Pattern::parse(text).ok()).collect();
        Self { patterns, only_taken: false }
    }
}

impl LabelFilter {
    /// The defaults, then these patterns.
    ///
    /// # Errors
    /// Each pattern that is none: its place and what is wrong with it.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, Vec<(usize, String)>> {
        let mut filter = Self::default();
        let mut wrong = Vec::new();
        for (place, text) in patterns.iter().enumerate() {
            match Pattern::parse(text.as_ref()) {
                _ if place >= MAX_PATTERNS => {
                    wrong.push((place, format!("more than {MAX_PATTERNS} patterns")));
                    break;
                }
                Ok(pattern) => {
                    filter.only_taken |= !pattern.refuses;
                    filter.patterns.push(pattern);
                }
                Err(reason) => wrong.push((place, reason)),
            }
        }
        if wrong.is_empty() { Ok(filter) } else { Err(wrong) }
    }

    fn makes_identity(&self, key: &str) -> bool {
        let (mut taken, mut refused) = (None, None);
        for pattern in &self.patterns {
            let Some(length) = pattern.key.find(key).map(|found| found.len()) else { continue };
            if pattern.refuses {
                refused = Some(refused.map_or(length, |shortest: usize| shortest.min(length)));
            } else {
                taken = taken.max(Some(length));
            }
        }
        (!self.only_taken || taken.is_some()) && (refused.is_none() || taken > refused)
    }
}

/// The identity labels of a pod: those of its own and of its namespace that the filter lets through, its namespace, its
/// service account, its cluster. `namespace` is `None` while its manifest is missing.
#[must_use]
pub fn identity_labels(
    pod: &PodRow,
    namespace: Option<&NamespaceRow>,
    cluster: &ClusterName,
    filter: &LabelFilter,
) -> Labels {
    let of_namespace = namespace.iter().flat_map(|namespace| &namespace.labels);
    let of_namespace = of_namespace.map(|(key, value)| (format!("{NAMESPACE_LABEL_PREFIX}{key}"), value));
    // What a pod says of itself in the system's words is not believed.
    let own = pod.labels.iter().filter(|(key, _)| !key.starts_with("io.cilium.k8s."));
    let own = own.map(|(key, value)| (key.to_string(), value));
    let mut pairs: Vec<(String, &str)> = own
        .chain(of_namespace)
        .filter(|(key, _)| filter.makes_identity(key))
        .map(|(key, value)| (key, value.as_ref()))
        .collect();
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
            host_ports: BTreeSet::new(),
            shaping: Default::default(),
            host_network: false,
            workload: None,
            mac: None,
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
        let east = ClusterName::new("east").unwrap();
        let labels = identity_labels(&pod, Some(&namespace), &east, &LabelFilter::default());
        assert_eq!(
            labels.to_string(),
            "k8s:app=web;k8s:app.kubernetes.io/name=web;\
             k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
             k8s:io.cilium.k8s.namespace.labels.tier=front;k8s:io.cilium.k8s.policy.cluster=east;\
             k8s:io.cilium.k8s.policy.serviceaccount=runner;k8s:io.kubernetes.pod.namespace=shop;"
        );
    }

    #[test]
    fn patterns_are_weighed_by_the_length_of_their_matches() {
        let counts = |patterns: &[&str], key: &str| LabelFilter::new(patterns).unwrap().makes_identity(key);
        for (patterns, key, expected) in [
            (&[][..], "app", true),
            (&[], "pod-template-hash", false),
            (&[], "failure-domain.beta.kubernetes.io/zone", false),
            (&["!app"], "app", false),
            (&["!app"], "app.kubernetes.io/name", true),
            (&["!team|squad"], "squad", false),
            (&["!team|squad"], "a-squad", true),
            (&["!(?:team|squad)$"], "team", false),
            (&["app$"], "app", true),
            (&["k8s:app$"], "tier", false),
            (&["app$"], "app.kubernetes.io/name", true),
            (&[r"kubernetes\.io/arch"], "kubernetes.io/arch", true),
            (&[r"!io\.cilium\.k8s\.namespace\.labels\.team"], "io.cilium.k8s.namespace.labels.team", false),
            (&[r"!io\.cilium\.k8s\.namespace\.labels\.team"], "io.cilium.k8s.namespace.labels.tier", true),
        ] {
            assert_eq!(counts(patterns, key), expected, "{patterns:?} {key}");
        }
        assert_eq!(LabelFilter::default().patterns.len(), DEFAULTS.len(), "each default is a pattern");
        let wrong = LabelFilter::new(&["fine", "!(", "container:x", ""]).unwrap_err();
        assert_eq!(wrong.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(wrong[0].1.contains("unclosed group"), "{wrong:?}");
    }
}
