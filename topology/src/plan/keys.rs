//! Whose a WireGuard key is: a device has one peer for a key, so of several nodes that publish it one is used.
//!
//! Between clusters as for other claims: the own cluster, then who had it first. Within a cluster the first node by name.

use super::claims::{OWN, Party, Standing, beats};
use crate::rows::WireguardKey;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::ClusterName;

/// A node.
pub(super) type Node = (ClusterName, Arc<str>);

/// All nodes' keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    /// No claim is without a node: `None` is what comes before all nodes of a party.
    claims: BTreeMap<(WireguardKey, Party, Option<Node>), Standing>,
    /// Who has a key that several parties publish.
    contested: BTreeMap<WireguardKey, Party>,
}

impl Keys {
    /// The nodes that publish a key, from a party on.
    fn from(&self, key: WireguardKey, party: Party) -> impl Iterator<Item = (Standing, Party, &Node)> {
        let found = self.claims.range((key, party, None)..).take_while(move |((other, ..), _)| *other == key);
        found.filter_map(|((_, party, node), standing)| Some((*standing, *party, node.as_ref()?)))
    }

    /// The nodes that publish a key, by party and name.
    pub(super) fn nodes(&self, key: WireguardKey) -> impl Iterator<Item = &Node> {
        self.from(key, OWN).map(|(_, _, node)| node)
    }

    /// Each party that publishes a key, with its first node. There may be more nodes than one wants to look at.
    fn parties(&self, key: WireguardKey) -> impl Iterator<Item = (Standing, Party, &Node)> {
        let first = self.from(key, OWN).next();
        std::iter::successors(first, move |(_, party, _)| self.from(key, party.checked_add(1)?).next())
    }

    fn held(&self, key: WireguardKey) -> Option<(Standing, Party, &Node)> {
        self.from(key, self.contested.get(&key).copied().unwrap_or(OWN)).next()
    }

    /// The node whose key it is here.
    pub(super) fn holder(&self, key: WireguardKey) -> Option<&Node> {
        self.held(key).map(|(_, _, node)| node)
    }

    /// A node publishes a key.
    pub(super) fn add(&mut self, key: WireguardKey, party: Party, node: Node, standing: Standing) {
        let held = self.held(key).map(|(standing, party, _)| (standing, party));
        self.claims.insert((key, party, Some(node)), standing);
        if let Some(held) = held.filter(|(_, holder)| *holder != party) {
            let taken = beats((standing, party), held);
            self.contested.insert(key, if taken { party } else { held.1 });
        }
    }

    /// A node publishes a key no more.
    pub(super) fn remove(&mut self, key: WireguardKey, party: Party, node: Node) {
        self.claims.remove(&(key, party, Some(node)));
        let Some(holder) = self.contested.get(&key).copied() else { return };
        let left: BTreeSet<_> = self.parties(key).map(|(standing, party, _)| (standing, party)).collect();
        let next = left.first().filter(|_| left.iter().all(|(_, party)| *party != holder));
        if left.len() < 2 {
            self.contested.remove(&key);
        } else if let Some((_, next)) = next {
            self.contested.insert(key, *next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: WireguardKey = WireguardKey([7; 32]);

    fn node(text: &str) -> Node {
        let (cluster, name) = text.split_once('/').unwrap();
        (ClusterName::new(cluster).unwrap(), name.into())
    }

    impl Keys {
        fn put(&mut self, text: &str, party: Party, standing: Standing) {
            self.add(KEY, party, node(text), standing);
        }

        fn take(&mut self, text: &str, party: Party) {
            self.remove(KEY, party, node(text));
        }

        fn has(&self) -> String {
            self.holder(KEY).map_or_else(|| "-".to_owned(), |(cluster, name)| format!("{cluster}/{name}"))
        }
    }

    #[test]
    fn a_key_is_whose_it_was_first_until_that_one_goes() {
        let mut keys = Keys::default();
        keys.add(WireguardKey([6; 32]), 9, node("c9/n1"), Standing::Later);
        keys.put("c3/n2", 3, Standing::Later);
        keys.put("c2/n1", 2, Standing::Later);
        keys.put("c2/n0", 2, Standing::Founder);
        assert_eq!(keys.has(), "c2/n0", "a founder comes before who came later");
        keys.take("c2/n0", 2);
        assert_eq!(keys.has(), "c2/n1");
        keys.put("c3/n1", 3, Standing::Restored);
        assert_eq!(keys.has(), "c3/n1", "the first by name of the cluster that has it");
        keys.put("c1/n1", OWN, Standing::Own);
        assert_eq!(keys.has(), "c1/n1");
        keys.take("c1/n1", OWN);
        assert_eq!(keys.has(), "c3/n1", "the best founded of those that wait");
        keys.take("c3/n1", 3);
        keys.take("c3/n2", 3);
        assert_eq!((keys.has().as_str(), keys.contested.len()), ("c2/n1", 0));
        keys.take("c2/n1", 2);
        assert_eq!((keys.has().as_str(), keys.claims.len()), ("-", 1));
    }

    #[test]
    fn of_founders_the_lower_id_has_it_in_either_order() {
        for first in [2, 3] {
            let mut keys = Keys::default();
            for party in [first, 5 - first] {
                keys.put(&format!("c{party}/n1"), party, Standing::Founder);
            }
            assert_eq!(keys.has(), "c2/n1", "{first}");
        }
    }
}
