//! Kubernetes label selectors over plain keys, shared by policy, pools and BGP.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::texts::Texts;

/// One line of `matchExpressions`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Requirement {
    /// The label has one of these values.
    In(Arc<str>, BTreeSet<Arc<str>>),
    /// The label is missing or has none of these values.
    NotIn(Arc<str>, BTreeSet<Arc<str>>),
    /// The label exists.
    Exists(Arc<str>),
    /// The label does not exist.
    DoesNotExist(Arc<str>),
}

impl Requirement {
    /// The label key it asks for.
    #[must_use]
    pub const fn key(&self) -> &Arc<str> {
        match self {
            Self::In(key, _) | Self::NotIn(key, _) | Self::Exists(key) | Self::DoesNotExist(key) => key,
        }
    }

    /// The same of another label.
    #[must_use]
    pub fn with_key(&self, key: Arc<str>) -> Self {
        match self {
            Self::In(_, values) => Self::In(key, values.clone()),
            Self::NotIn(_, values) => Self::NotIn(key, values.clone()),
            Self::Exists(_) => Self::Exists(key),
            Self::DoesNotExist(_) => Self::DoesNotExist(key),
        }
    }

    /// Whether a label with this value (`None` = missing) satisfies it.
    #[must_use]
    pub fn accepts(&self, value: Option<&str>) -> bool {
        match self {
            Self::In(_, values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(_, values) => value.is_none_or(|value| !values.contains(value)),
            Self::Exists(_) => value.is_some(),
            Self::DoesNotExist(_) => value.is_none(),
        }
    }
}

/// A Kubernetes label selector over plain keys; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LabelSelector {
    /// `matchLabels`.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `matchExpressions`.
    pub expressions: BTreeSet<Requirement>,
}

impl LabelSelector {
    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// Whether the labels that `value_of` knows satisfy every line.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.labels.iter().all(|(key, value)| value_of(key) == Some(value.as_ref()))
            && self.expressions.iter().all(|requirement| requirement.accepts(value_of(requirement.key())))
    }

    /// Whether these labels satisfy every line.
    #[must_use]
    pub fn matches_map(&self, labels: &BTreeMap<Arc<str>, Arc<str>>) -> bool {
        self.matches(|key| labels.get(key).map(AsRef::as_ref))
    }

    /// Likewise.
    #[must_use]
    pub fn matches_texts(&self, labels: &Texts) -> bool {
        self.matches(|key| labels.get(key).map(AsRef::as_ref))
    }

    /// Whether any line asks for `key`.
    #[must_use]
    pub fn names(&self, key: &str) -> bool {
        self.labels.contains_key(key) || self.expressions.iter().any(|r| r.key().as_ref() == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> BTreeSet<Arc<str>> {
        values.iter().map(|value| Arc::from(*value)).collect()
    }

    #[test]
    fn requirements_follow_kubernetes() {
        let (a, b) = (Some("a"), Some("b"));
        let cases: [(Requirement, [bool; 3]); 4] = [
            (Requirement::In("k".into(), set(&["a"])), [true, false, false]),
            (Requirement::NotIn("k".into(), set(&["a"])), [false, true, true]),
            (Requirement::Exists("k".into()), [true, true, false]),
            (Requirement::DoesNotExist("k".into()), [false, false, true]),
        ];
        for (requirement, expected) in cases {
            assert_eq!([a, b, None].map(|value| requirement.accepts(value)), expected, "{requirement:?}");
        }
    }

    #[test]
    fn all_lines_must_hold_and_empty_selects_all() {
        let labels = BTreeMap::from([(Arc::from("app"), Arc::from("web"))]);
        assert!(LabelSelector::default().matches_map(&labels));
        let mut selector = LabelSelector { labels: labels.clone(), ..LabelSelector::default() };
        assert!(selector.matches_map(&labels) && selector.names("app"));
        selector.expressions.insert(Requirement::Exists("tier".into()));
        assert!(!selector.matches_map(&labels) && selector.names("tier"));
    }
}
