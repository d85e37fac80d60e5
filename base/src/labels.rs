//! Label sets that make an identity, in Cilium's text form `source:key=value;`.

use crate::text::shared;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The label that names the cluster of an identity.
pub const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";
/// The label that names the namespace of an identity.
pub const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
/// The label that names the service account of an identity.
pub const SERVICE_ACCOUNT_KEY: &str = "io.cilium.k8s.policy.serviceaccount";
/// What stands before a namespace's own labels.
pub const NAMESPACE_LABEL_PREFIX: &str = "io.cilium.k8s.namespace.labels.";
/// Longest label text that is read (bytes); far above what 63-character values can need.
pub const MAX_TEXT_BYTES: usize = 64 * 1024;

/// Why a label text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A part has no `:` or no key.
    #[error("label {0:?}: expected source:key=value")]
    Form(String),
    /// One key twice with different content.
    #[error("label key {0:?} stands twice with different values")]
    Duplicate(String),
    /// Past [`MAX_TEXT_BYTES`].
    #[error("label text of {0} bytes is longer than {MAX_TEXT_BYTES}")]
    TooLong(usize),
}

/// One label's source and value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    /// `k8s`, `reserved`, ...
    pub source: Arc<str>,
    /// The value; may be empty.
    pub value: Arc<str>,
}

/// A set of labels, unique and ordered by key; cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Label)]>);

impl Labels {
    /// Labels of source `k8s` from key and value pairs.
    pub fn k8s<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let source = shared("k8s");
        let entry = |(key, value): (K, V)| {
            (shared(key.as_ref()), Label { source: source.clone(), value: shared(value.as_ref()) })
        };
        Self::of(pairs.into_iter().map(entry).collect())
    }

    fn of(labels: BTreeMap<Arc<str>, Label>) -> Self {
        Self(labels.into_iter().collect())
    }

    /// The labels of a reserved identity, `reserved:<name>`.
    #[must_use]
    pub fn reserved(name: &str) -> Self {
        Self::reserved_all([name])
    }

    /// Several of them: who is two things at once.
    #[must_use]
    pub fn reserved_all<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let label = || Label { source: "reserved".into(), value: "".into() };
        Self::of(names.into_iter().map(|name| (name.into(), label())).collect())
    }

    /// Reads `source:key=value;source:key=value;` (the last `;` and the order are optional).
    ///
    /// # Errors
    /// [`LabelError`] naming the offending part.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(LabelError::TooLong(text.len()));
        }
        let mut labels = BTreeMap::new();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let form = || LabelError::Form(part.chars().take(100).collect());
            let (source, rest) = part.split_once(':').ok_or_else(form)?;
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            if key.is_empty() {
                return Err(form());
            }
            let label = Label { source: shared(source), value: shared(value) };
            if labels.insert(shared(key), label.clone()).is_some_and(|old| old != label) {
                return Err(LabelError::Duplicate(key.chars().take(100).collect()));
            }
        }
        Ok(Self::of(labels))
    }

    /// The value of `key`, whatever its source.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.label(key).map(|label| label.value.as_ref())
    }

    /// The whole label of `key`.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&Label> {
        let at = self.0.binary_search_by(|(other, _)| other.as_ref().cmp(key)).ok()?;
        self.0.get(at).map(|(_, label)| label)
    }

    /// The value of the cluster label.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        self.get(CLUSTER_KEY)
    }

    /// The value of the namespace label.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.get(NAMESPACE_KEY)
    }

    /// Key and label, ascending by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Label)> {
        self.0.iter().map(|(key, label)| (key.as_ref(), label))
    }

    /// Number of labels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `source:key=value` for each label, as flows and tables print them.
    #[must_use]
    pub fn to_list(&self) -> Vec<String> {
        self.iter()
            .map(|(key, label)| {
                let (source, value) = (&label.source, &label.value);
                if value.is_empty() && source.as_ref() == "reserved" {
                    format!("{source}:{key}")
                } else {
                    format!("{source}:{key}={value}")
                }
            })
            .collect()
    }
}

/// The canonical text: every label as `source:key=value;`, ascending by key.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(key, label)| write!(f, "{}:{key}={};", label.source, label.value))
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.to_list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_sorted_by_key_and_round_trips() {
        let labels = Labels::k8s([("b", "2"), ("a/x.y", "1"), ("empty", "")]);
        let text = labels.to_string();
        assert_eq!(text, "k8s:a/x.y=1;k8s:b=2;k8s:empty=;");
        assert_eq!(Labels::parse(&text).unwrap(), labels);
        assert_eq!(Labels::parse("k8s:b=2;k8s:empty=;k8s:a/x.y=1").unwrap(), labels);
    }

    #[test]
    fn bad_text_is_refused_with_the_part() {
        assert_eq!(Labels::parse("k8s:a=1;nocolon"), Err(LabelError::Form("nocolon".into())));
        assert_eq!(Labels::parse("k8s:a=1;k8s:a=2;"), Err(LabelError::Duplicate("a".into())));
        assert!(matches!(Labels::parse(&"x".repeat(70_000)), Err(LabelError::TooLong(70_000))));
    }
}
