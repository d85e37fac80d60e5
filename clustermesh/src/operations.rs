//! How long etcd takes for what is asked of it: Cilium's `kvstore_operations_duration_seconds`, with its labels and buckets.
//!
//! One set for the process: a request does not know for whom it is made, as a line of the log does not.

use crate::error::MeshError;
use crate::etcd::request;
use etcd_client::Error;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Upper ends of the buckets in seconds: those of Prometheus' Go client, which Cilium leaves as they are.
const BUCKETS_SECS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Characters of a key without a version that name its scope, in Cilium.
const SCOPE_CHARS: usize = 12;

static OF_PROCESS: LazyLock<Operations> = LazyLock::new(Operations::default);

/// What is done to keys, in the words of Cilium's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One key, read.
    Get,
    /// One page of a prefix, read.
    ListPrefix,
    /// Keys, written.
    Update,
    /// Keys, written if the first one is absent.
    CreateOnly,
    /// Keys, deleted.
    Delete,
}

impl Operation {
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Get => ("read", "Get"),
            Self::ListPrefix => ("read", "ListPrefix"),
            Self::Update => ("set", "Update"),
            Self::CreateOnly => ("set", "CreateOnly"),
            Self::Delete => ("delete", "Delete"),
        }
    }
}

/// Cilium's labels. Their values are bounded: no cluster's, node's or service's name is in them.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    scope: String,
    kind: &'static str,
    action: &'static str,
    outcome: &'static str,
}

/// What a key is of: kind of entry and version where it has them. Cilium names so whatever has four elements; a canary's scope would be the
/// name of its cluster then, and that of a key of our own a namespace.
fn scope(key: &str) -> String {
    let mut elements = key.split('/');
    match (elements.next(), elements.next(), elements.next(), elements.next()) {
        (Some("cilium"), Some("state" | "cache"), Some(kind), Some(version)) => format!("{kind}/{version}"),
        (Some("tombolo"), Some(area), Some(_), _) => format!("tombolo/{area}"),
        _ => key.chars().take(SCOPE_CHARS).collect(),
    }
}

/// Times of requests; clones share them.
#[derive(Clone, Debug)]
pub struct Operations(Family<Labels, Histogram>);

impl Default for Operations {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BUCKETS_SECS)))
    }
}

impl Operations {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        OF_PROCESS.clone()
    }

    /// Adds them to what is scraped, as `<prefix>_operations_duration_seconds`.
    pub fn register(&self, registry: &mut Registry, prefix: &str) {
        let name = format!("{prefix}_operations_duration_seconds");
        registry.register(name, "Duration of a request to etcd", self.0.clone());
    }

    /// Counts one about `key`, or a prefix, that etcd answered, or not.
    pub fn note(&self, operation: Operation, key: &str, took: Duration, answered: bool) {
        let (kind, action) = operation.words();
        let outcome = if answered { "success" } else { "fail" };
        let labels = Labels { scope: scope(key), kind, action, outcome };
        self.0.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// A request about `key`, or about a prefix, or about several keys of which that is the first; its time is noted. A transaction whose
/// conditions did not hold was answered all the same.
pub(crate) async fn operate<T>(
    operation: Operation,
    key: &str,
    what: impl Fn() -> String,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, MeshError> {
    let asked = Instant::now();
    let answer = request(what, call).await;
    OF_PROCESS.note(operation, key, asked.elapsed(), answer.is_ok());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Kind, Layout, key};
    use prometheus_client::encoding::text::encode;

    fn text(operations: &Operations) -> String {
        let mut registry = Registry::default();
        operations.register(&mut registry, "cilium_kvstore");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn what_is_scraped_has_the_name_the_labels_and_the_buckets_of_cilium() {
        let operations = Operations::default();
        let node = Kind::Nodes.key(Layout::State, "east", "n1");
        for millis in [1, 5, 30, 20_000] {
            operations.note(Operation::Update, &node, Duration::from_millis(millis), true);
        }
        operations.note(Operation::Get, key::HEARTBEAT, Duration::from_secs(1), false);
        let text = text(&operations);
        let name = "cilium_kvstore_operations_duration_seconds";
        assert!(text.contains(&format!("# TYPE {name} histogram\n")), "{text}");
        let updates = "scope=\"nodes/v1\",kind=\"set\",action=\"Update\",outcome=\"success\"";
        for (end, count) in [("0.005", 2), ("0.025", 2), ("0.05", 3), ("10.0", 3), ("+Inf", 4)] {
            let line = format!("{name}_bucket{{le=\"{end}\",{updates}}} {count}");
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains(&format!("{name}_sum{{{updates}}} 20.036")), "{text}");
        let failed = "scope=\"cilium/.hear\",kind=\"read\",action=\"Get\",outcome=\"fail\"";
        assert!(text.contains(&format!("{name}_count{{{failed}}} 1")), "{text}");
        let buckets = text.lines().filter(|line| line.contains("_bucket") && line.contains(updates));
        assert_eq!(buckets.count(), BUCKETS_SECS.len() + 1);
    }

    #[test]
    fn a_scope_names_no_cluster_no_node_and_no_service() {
        for (key, wanted) in [
            (Kind::Ips.key(Layout::State, "east", "10.0.0.1"), "ip/v1"),
            (Kind::Identities.key(Layout::Cache, "east", "7"), "identities/v1"),
            (Kind::Services.prefix(Layout::Cache, "east"), "services/v1"),
            (format!("{}a=b;/n1", key::IDENTITY_VALUES), "identities/v1"),
            (key::cluster_config("east"), "cilium/clust"),
            (Kind::Nodes.canary(Layout::State, "east"), "cilium/synce"),
            (Kind::Assignments.key(Layout::State, "east", "shop/web"), "tombolo/lb"),
            (key::ELECTION.to_owned(), "tombolo/election"),
            ("é".repeat(40), "éééééééééééé"),
        ] {
            assert_eq!(scope(&key), wanted, "{key}");
        }
    }
}
