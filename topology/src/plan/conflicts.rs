//! What is told of claims that cannot all be used.

use super::Known;
use super::claims::{OWN, Party};
use super::keys::Node;
use super::nodes::party;
use crate::conflict::{
    Claimant, Claimed, ConflictCounts, ConflictKind, ConflictRow, MAX_CLAIMANTS, MAX_CONFLICTS,
};
use crate::rows::{NodeRow, WireguardKey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::prefix::Prefix;
use tombolo_base::table::Transaction;

/// The conflicts that stand, as the table has them, and how many were found.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    known: BTreeMap<ConflictKind, BTreeSet<Claimed>>,
    /// Seconds since 1970.
    pub(super) now: u64,
    pub(super) counts: Arc<ConflictCounts>,
}

impl Conflicts {
    pub(super) fn has(&self, kind: ConflictKind, key: Claimed) -> bool {
        self.known.get(&kind).is_some_and(|known| known.contains(&key))
    }

    /// The conflicts inside a prefix that the table has.
    pub(super) fn within(&self, kind: ConflictKind, prefix: Prefix) -> impl Iterator<Item = Prefix> + '_ {
        let known = self.known.get(&kind).into_iter();
        let bounds = Claimed::Prefix(prefix)..=Claimed::Prefix(prefix.last());
        let inside = known.flat_map(move |known| known.range(bounds.clone()));
        inside.filter_map(|key| if let Claimed::Prefix(prefix) = key { Some(*prefix) } else { None })
    }

    /// Writes who claims `key`; nobody ends the conflict.
    pub(super) fn tell(
        &mut self,
        txn: &mut Transaction<'_, ConflictRow>,
        kind: ConflictKind,
        key: Claimed,
        mut claimants: Vec<Claimant>,
    ) {
        let known = self.known.entry(kind).or_default();
        if claimants.is_empty() {
            if known.remove(&key) {
                txn.remove(&(kind, key));
            }
            return;
        }
        let fresh = !known.contains(&key);
        if fresh {
            self.counts.add(kind);
            if known.len() >= MAX_CONFLICTS {
                return;
            }
            known.insert(key);
        }
        claimants.truncate(MAX_CLAIMANTS);
        let since = txn.current().get(&(kind, key)).map_or(self.now, |row| row.since_unix_secs);
        let chosen = claimants.iter().find(|claimant| claimant.used).map(|claimant| claimant.cluster);
        let remedy = kind.remedy();
        txn.upsert(ConflictRow { kind, key, claimants, chosen, since_unix_secs: since, remedy });
    }
}

impl Known<'_> {
    /// The own cluster as a side of a conflict, with what it reserves at `prefix`.
    pub(super) fn reserved(&self, prefix: Prefix) -> Option<Claimant> {
        let claimed = Claimed::Prefix(self.claims.reserved.at(prefix)?);
        Some(Claimant { cluster: self.config.cluster, node: None, claimed, used: true })
    }
}

/// What is wrong with the claims of exactly `prefix`: refused ones and those in their way, or nodes of one cluster that share it.
pub(super) fn claim_conflict(prefix: Prefix, known: Known<'_>) -> Option<(ConflictKind, Vec<Claimant>)> {
    let refused: BTreeSet<Party> = known.claims.refused_exactly(prefix).collect();
    let reserved = known.reserved(prefix);
    let kept_out = |row: &NodeRow| {
        reserved.is_some() && party(row, known.config) != OWN && row.pod_cidrs.contains(&prefix)
    };
    let any_kept_out = known.claimants(prefix).any(kept_out);
    if refused.is_empty() && !any_kept_out && !known.claims.is_shared(prefix) {
        return None;
    }
    // A node may be said by several sources.
    let mut nodes: BTreeMap<(&str, &str), &NodeRow> = BTreeMap::new();
    for row in known.claimants(prefix) {
        if nodes.len() >= 2 * MAX_CLAIMANTS {
            break;
        }
        nodes.entry((row.cluster.as_str(), row.name.as_ref())).or_insert(row);
    }
    let side = |row: &NodeRow, prefix, used| Claimant {
        cluster: row.cluster,
        node: Some(row.name.clone()),
        claimed: Claimed::Prefix(prefix),
        used,
    };
    let cidr = nodes.values().any(|row| row.pod_cidrs.contains(&prefix));
    let kind = if cidr { ConflictKind::PodCidr } else { ConflictKind::NodeAddress };
    // Of the nodes of one cluster that share it the first one has it.
    let may = |row: &&NodeRow| !refused.contains(&party(row, known.config)) && !kept_out(row);
    let mut used = known.claimants(prefix).find(may);
    let first = used.take().map(|row| (row.cluster.as_str(), row.name.as_ref()));
    let mut all: Vec<Claimant> =
        nodes.iter().map(|(name, row)| side(row, prefix, Some(*name) == first)).collect();
    for (around, owner) in
        refused.iter().flat_map(|party| known.claims.rivals(prefix, *party).take(MAX_CLAIMANTS))
    {
        if let Some(row) = known.claimants(around).find(|row| party(row, known.config) == owner) {
            let rival = side(row, around, true);
            if !all.contains(&rival) {
                all.push(rival);
            }
        }
    }
    all.extend(reserved.filter(|_| any_kept_out));
    all.sort_by(|left, right| right.used.cmp(&left.used).then_with(|| left.cmp(right)));
    // A shared address of one node that several sources name is none.
    (all.len() > 1).then_some((kind, all))
}

/// The nodes that publish one WireGuard key, if there are several.
pub(super) fn key_conflict(key: WireguardKey, known: Known<'_>) -> Vec<Claimant> {
    let holder = known.claims.keys.holder(key);
    let others = known.claims.keys.nodes(key).filter(|node| Some(*node) != holder);
    let all = holder.into_iter().chain(others).take(MAX_CLAIMANTS);
    let side = |node: &Node| Claimant {
        cluster: node.0,
        node: Some(node.1.clone()),
        claimed: Claimed::Key(key),
        used: Some(node) == holder,
    };
    let all: Vec<_> = all.map(side).collect();
    if all.len() > 1 { all } else { Vec::new() }
}
