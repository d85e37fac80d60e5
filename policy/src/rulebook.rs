//! The rules, and what leads from a change to those that it concerns.

use crate::index::Handles;
use crate::rows::{PeerSelector, PortMatch, RuleBlock, RuleKey, RuleRow, Subject};
use crate::universe::Universe;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::ids::{ClusterName, IdentityId};
use tombolo_base::labels::Labels;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::Row;

/// A rule and what it was when it was taken in.
#[derive(Clone, Debug)]
struct Known {
    row: Arc<RuleRow>,
    /// Prefixes that must have numbers for its sake.
    mentions: BTreeSet<Prefix>,
    /// Prefixes it takes addresses of.
    wide: BTreeSet<Prefix>,
}

/// What became of prefixes while rules were taken in.
#[derive(Debug, Default)]
pub(crate) struct Noticed {
    /// Known now, and was not.
    pub(crate) fresh: BTreeSet<Prefix>,
    /// Mentioned, or not any more.
    pub(crate) touched: BTreeSet<Prefix>,
}

/// All rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rulebook {
    rules: BTreeMap<RuleKey, Known>,
    /// Rules about pods, by the labels of these.
    about: Handles<RuleKey>,
    /// Rules about nodes.
    of_nodes: BTreeSet<RuleKey>,
    /// Rules that take addresses.
    wide: BTreeSet<RuleKey>,
    /// Rules that name groups of prefixes.
    grouped: BTreeSet<RuleKey>,
    /// Rules that name ports.
    named: BTreeSet<RuleKey>,
}

/// The blocks of both directions.
pub(crate) fn blocks(rule: &RuleRow) -> impl Iterator<Item = &RuleBlock> {
    rule.ingress.iter().chain(&rule.egress).flat_map(|rules| &rules.blocks)
}

fn peers(rule: &RuleRow) -> impl Iterator<Item = &PeerSelector> {
    blocks(rule).flat_map(|block| block.peers.iter().flatten())
}

/// Whether the rule is about the pods of an identity with these labels, or about this node, if it is the host's.
pub(crate) fn selects(rule: &RuleRow, id: IdentityId, labels: &Labels, cluster: &ClusterName) -> bool {
    match &rule.subject {
        Subject::Pods(selector) => {
            id != IdentityId::HOST
                && labels.cluster().is_none_or(|name| name == cluster.as_str())
                && selector.takes(labels, cluster)
        }
        Subject::Nodes(selector) => id == IdentityId::HOST && selector.matches(|key| labels.get(key)),
    }
}

impl Rulebook {
    pub(crate) fn get(&self, key: &RuleKey) -> Option<&Arc<RuleRow>> {
        self.rules.get(key).map(|known| &known.row)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &RuleKey> {
        self.rules.keys()
    }

    pub(crate) const fn grouped(&self) -> &BTreeSet<RuleKey> {
        &self.grouped
    }

    pub(crate) const fn named(&self) -> &BTreeSet<RuleKey> {
        &self.named
    }

    /// The rules about an identity with these labels, in the order of their keys.
    pub(crate) fn about(&self, id: IdentityId, labels: &Labels, cluster: &ClusterName) -> Vec<Arc<RuleRow>> {
        let keys: BTreeSet<&RuleKey> = if id == IdentityId::HOST {
            self.of_nodes.iter().collect()
        } else {
            self.about.candidates(labels).collect()
        };
        let rules = keys.into_iter().filter_map(|key| self.get(key));
        rules.filter(|rule| selects(rule, id, labels, cluster)).cloned().collect()
    }

    /// Takes in what a rule is now.
    pub(crate) fn set(
        &mut self,
        key: &RuleKey,
        row: Option<&RuleRow>,
        universe: &mut Universe,
        noticed: &mut Noticed,
    ) {
        let old = self.rules.remove(key);
        // What both have must not be looked for again, nor lose its number: the new comes before the old goes.
        let new = row.map(|row| self.take_in(key, row, universe, noticed));
        if let Some(old) = old {
            let kept: BTreeSet<&PeerSelector> = row.into_iter().flat_map(peers).collect();
            for peer in peers(&old.row).filter(|peer| !kept.contains(peer)) {
                universe.remove_user(peer, key);
            }
            old.mentions.iter().for_each(|prefix| universe.cidrs.forget(*prefix));
            noticed.touched.extend(old.mentions);
            let about = |rule: &RuleRow| match &rule.subject {
                Subject::Pods(selector) => Some(selector.0.clone()),
                Subject::Nodes(_) => None,
            };
            let was = about(&old.row);
            let is = row.and_then(about);
            if was != is
                && let Some(selector) = was
            {
                self.about.remove(&selector, key);
                // Both may stand under the same label.
                is.into_iter().for_each(|selector| self.about.insert(&selector, key));
            }
        }
        match new {
            Some(new) => drop(self.rules.insert(key.clone(), new)),
            None => [&mut self.of_nodes, &mut self.wide, &mut self.grouped, &mut self.named]
                .into_iter()
                .for_each(|of| {
                    of.remove(key);
                }),
        }
    }

    fn take_in(
        &mut self,
        key: &RuleKey,
        row: &RuleRow,
        universe: &mut Universe,
        noticed: &mut Noticed,
    ) -> Known {
        if let Subject::Pods(selector) = &row.subject {
            self.about.insert(&selector.0, key);
        }
        let (mut mentions, mut wide) = (BTreeSet::new(), BTreeSet::new());
        for peer in peers(row) {
            universe.add_user(peer, key);
            let taken = universe.prefixes(peer);
            if let PeerSelector::Cidr { except, .. } | PeerSelector::CidrGroup { except, .. } = peer {
                mentions.extend(taken.iter().chain(except));
            }
            wide.extend(taken);
        }
        noticed.fresh.extend(mentions.iter().filter(|prefix| universe.cidrs.mention(**prefix)));
        noticed.touched.extend(&mentions);
        let mut note = |of: fn(&mut Self) -> &mut BTreeSet<RuleKey>, is: bool| {
            if is {
                of(self).insert(key.clone())
            } else {
                of(self).remove(key)
            };
        };
        note(|book| &mut book.of_nodes, matches!(row.subject, Subject::Nodes(_)));
        note(|book| &mut book.wide, !wide.is_empty());
        note(|book| &mut book.grouped, peers(row).any(|peer| matches!(peer, PeerSelector::CidrGroup { .. })));
        let mut ports = blocks(row).flat_map(|block| block.ports.iter().flatten());
        note(|book| &mut book.named, ports.any(|rule| matches!(rule.port, PortMatch::Named(_))));
        Known { row: Arc::new(row.clone()), mentions, wide }
    }

    /// The rules that take addresses of a prefix that became known, or unknown.
    pub(crate) fn around<'a>(&'a self, prefix: &'a Prefix) -> impl Iterator<Item = &'a RuleKey> {
        let covers = |known: &Known| known.wide.iter().any(|wide| wide.covers(prefix));
        self.wide.iter().filter(move |key| self.rules.get(*key).is_some_and(covers))
    }

    /// Looks again at the prefixes of a rule whose groups are not what they were.
    pub(crate) fn look_again(&mut self, key: &RuleKey, universe: &mut Universe, noticed: &mut Noticed) {
        if let Some(row) = self.get(key).cloned() {
            debug_assert_eq!(row.key(), *key);
            self.set(key, Some(&row), universe, noticed);
        }
    }
}
