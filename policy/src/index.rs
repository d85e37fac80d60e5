//! Labels to what has them, and labels to selectors that may ask for them: neither walks all of the other side.

use crate::rows::{LabelSelector, Requirement};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::IdentityId;
use tombolo_base::labels::{CLUSTER_KEY, Labels, NAMESPACE_KEY};

/// The key without its source.
fn plain(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, key)| key)
}

/// Whether nearly every identity has it: a poor handle.
fn common(key: &str) -> bool {
    [CLUSTER_KEY, NAMESPACE_KEY].contains(&plain(key))
}

/// A label that everything a selector takes must have.
enum Handle<'a> {
    /// With one of these values.
    Values(&'a str, Vec<&'a Arc<str>>),
    /// With any.
    Key(&'a str),
}

/// All of a selector's.
fn handles(selector: &LabelSelector) -> impl Iterator<Item = Handle<'_>> {
    let labels = selector.labels.iter().map(|(key, value)| Handle::Values(plain(key), vec![value]));
    let expressions = selector.expressions.iter().filter_map(|requirement| match requirement {
        Requirement::In(key, values) => Some(Handle::Values(plain(key), values.iter().collect())),
        Requirement::Exists(key) => Some(Handle::Key(plain(key))),
        Requirement::NotIn(..) | Requirement::DoesNotExist(_) => None,
    });
    labels.chain(expressions)
}

impl Handle<'_> {
    /// The best has the smallest: rare values, then rare keys.
    fn rank(&self) -> (bool, usize) {
        match self {
            Self::Values(key, values) => (common(key), values.len()),
            Self::Key(_) => (true, usize::MAX),
        }
    }
}

/// Identities by label.
#[derive(Clone, Debug, Default)]
pub(crate) struct LabelIndex(BTreeMap<Arc<str>, BTreeMap<Arc<str>, BTreeSet<IdentityId>>>);

impl LabelIndex {
    pub(crate) fn insert(&mut self, id: IdentityId, labels: &Labels) {
        for (key, label) in labels.iter() {
            if !self.0.contains_key(key) {
                self.0.insert(key.into(), BTreeMap::new());
            }
            if let Some(values) = self.0.get_mut(key) {
                values.entry(label.value.clone()).or_default().insert(id);
            }
        }
    }

    pub(crate) fn remove(&mut self, id: IdentityId, labels: &Labels) {
        for (key, label) in labels.iter() {
            let Some(values) = self.0.get_mut(key) else { continue };
            if let Some(ids) = values.get_mut(&label.value) {
                ids.remove(&id);
                if ids.is_empty() {
                    values.remove(&label.value);
                }
            }
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// Everything that has the rarest label the selector asks for; `None` if it asks for none.
    pub(crate) fn candidates<'a>(
        &'a self,
        selector: &LabelSelector,
    ) -> Option<Box<dyn Iterator<Item = IdentityId> + 'a>> {
        let sets = |handle: Handle<'_>| -> Vec<&'a BTreeSet<IdentityId>> {
            match handle {
                Handle::Values(key, values) => {
                    let known = self.0.get(key);
                    values.into_iter().filter_map(|value| known?.get(value)).collect()
                }
                Handle::Key(key) => self.0.get(key).into_iter().flat_map(BTreeMap::values).collect(),
            }
        };
        let size = |sets: &Vec<&BTreeSet<IdentityId>>| -> usize { sets.iter().map(|set| set.len()).sum() };
        let best = handles(selector).map(sets).min_by_key(size)?;
        Some(Box::new(best.into_iter().flatten().copied()))
    }
}

/// Selectors' owners by one label that each selector asks for.
#[derive(Clone, Debug)]
pub(crate) struct Handles<T> {
    values: BTreeMap<Arc<str>, BTreeMap<Arc<str>, BTreeSet<T>>>,
    keys: BTreeMap<Arc<str>, BTreeSet<T>>,
    /// Of selectors that ask for no label.
    rest: BTreeSet<T>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), keys: BTreeMap::new(), rest: BTreeSet::new() }
    }
}

impl<T: Ord + Clone> Handles<T> {
    pub(crate) fn insert(&mut self, selector: &LabelSelector, owner: &T) {
        match handles(selector).min_by_key(Handle::rank) {
            Some(Handle::Values(key, values)) => {
                let known = self.values.entry(key.into()).or_default();
                for value in values {
                    known.entry(value.clone()).or_default().insert(owner.clone());
                }
            }
            Some(Handle::Key(key)) => {
                self.keys.entry(key.into()).or_default().insert(owner.clone());
            }
            None => {
                self.rest.insert(owner.clone());
            }
        }
    }

    pub(crate) fn remove(&mut self, selector: &LabelSelector, owner: &T) {
        match handles(selector).min_by_key(Handle::rank) {
            Some(Handle::Values(key, values)) => {
                let Some(known) = self.values.get_mut(key) else { return };
                for value in values {
                    if let Some(owners) = known.get_mut(value) {
                        owners.remove(owner);
                        if owners.is_empty() {
                            known.remove(value);
                        }
                    }
                }
                if known.is_empty() {
                    self.values.remove(key);
                }
            }
            Some(Handle::Key(key)) => {
                let Some(owners) = self.keys.get_mut(key) else { return };
                owners.remove(owner);
                if owners.is_empty() {
                    self.keys.remove(key);
                }
            }
            None => {
                self.rest.remove(owner);
            }
        }
    }

    /// Those whose selector may take something with these labels: ask it.
    pub(crate) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a T> {
        let labelled = labels.iter().flat_map(|(key, label)| {
            let of_value = self.values.get(key).and_then(|values| values.get(&label.value));
            of_value.into_iter().chain(self.keys.get(key)).flatten()
        });
        labelled.chain(&self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(labels: &[(&str, &str)], expressions: Vec<Requirement>) -> LabelSelector {
        LabelSelector {
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            expressions: expressions.into_iter().collect(),
        }
    }

    #[test]
    fn both_sides_find_each_other_and_nothing_is_left_behind() {
        let web = Labels::k8s([("app", "web"), (NAMESPACE_KEY, "shop")]);
        let db = Labels::k8s([("app", "db"), (NAMESPACE_KEY, "shop")]);
        let mut index = LabelIndex::default();
        index.insert(IdentityId(1), &web);
        index.insert(IdentityId(2), &db);
        let two = Requirement::In("any:app".into(), ["web".into(), "db".into()].into());
        let cases = [
            (selector(&[("k8s:app", "web"), ("k8s:io.kubernetes.pod.namespace", "shop")], vec![]), vec![1]),
            (selector(&[], vec![two]), vec![2, 1]),
            (selector(&[], vec![Requirement::Exists("any:app".into())]), vec![2, 1]),
            (selector(&[("k8s:app", "gone")], vec![]), vec![]),
        ];
        let mut handles = Handles::default();
        for (number, (selector, expected)) in cases.iter().enumerate() {
            let found: Vec<u32> = index.candidates(selector).unwrap().map(|id| id.0).collect();
            assert_eq!(found, *expected, "{selector:?}");
            handles.insert(selector, &number);
        }
        let never = selector(&[], vec![Requirement::DoesNotExist("any:app".into())]);
        assert!(index.candidates(&never).is_none(), "ask all");
        handles.insert(&never, &9);
        assert_eq!(handles.candidates(&web).collect::<BTreeSet<_>>(), [&0, &1, &2, &9].into());
        for (number, (selector, _)) in cases.iter().enumerate() {
            handles.remove(selector, &number);
        }
        handles.remove(&never, &9);
        index.remove(IdentityId(1), &web);
        index.remove(IdentityId(2), &db);
        assert!(index.0.is_empty() && handles.values.is_empty());
        assert!(handles.keys.is_empty() && handles.rest.is_empty());
    }
}
