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

/// Those of one kind that stand.
#[derive(Debug, Default)]
struct Kept {
    /// The table has a row of them.
    shown: BTreeSet<Claimed>,
    /// The table has no room for them, and since when they are known (seconds since 1970).
    hidden: BTreeMap<Claimed, u64>,
}

impl Kept {
    fn has(&self, key: &Claimed) -> bool {
        self.shown.contains(key) || self.hidden.contains_key(key)
    }

    fn has_room(&self) -> bool {
        self.shown.len() < MAX_CONFLICTS
    }
}

/// The conflicts that stand, and how many were found.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    known: BTreeMap<ConflictKind, Kept>,
    /// Seconds since 1970.
    pub(super) now: u64,
    pub(super) counts: Arc<ConflictCounts>,
}

impl Conflicts {
    pub(super) fn has(&self, kind: ConflictKind, key: Claimed) -> bool {
        self.known.get(&kind).is_some_and(|known| known.has(&key))
    }

    /// The conflicts inside a prefix.
    pub(super) fn within(&self, kind: ConflictKind, prefix: Prefix) -> impl Iterator<Item = Prefix> + '_ {
        let bounds = Claimed::Prefix(prefix)..=Claimed::Prefix(prefix.last());
        let inside = self.known.get(&kind).into_iter().flat_map(move |known| {
            let hidden = known.hidden.range(bounds.clone()).map(|(key, _)| key);
            known.shown.range(bounds.clone()).chain(hidden)
        });
        inside.filter_map(|key| if let Claimed::Prefix(prefix) = key { Some(*prefix) } else { None })
    }

    /// Writes who claims `key`; nobody ends the conflict.
    pub(super) fn tell(
        &mut self,
        txn: &mut Transaction<'_, ConflictRow>,
        kind: ConflictKind,
        key: Claimed,
        claimants: Vec<Claimant>,
    ) {
        let known = self.known.entry(kind).or_default();
        if claimants.is_empty() {
            known.hidden.remove(&key);
            if known.shown.remove(&key) {
                txn.remove(&(kind, key));
            }
            return;
        }
        if !known.has(&key) {
            self.counts.add(kind);
            if known.has_room() {
                known.shown.insert(key);
            } else {
                known.hidden.insert(key, self.now);
            }
        }
        if known.shown.contains(&key) {
            let since = txn.current().get(&(kind, key)).map_or(self.now, |row| row.since_unix_secs);
            txn.upsert(row(kind, key, claimants, since));
        }
    }

    /// Gives the rows that became free to conflicts that had none; `claimants` says who claims what.
    pub(super) fn refill(
        &mut self,
        txn: &mut Transaction<'_, ConflictRow>,
        claimants: impl Fn(ConflictKind, Claimed) -> Vec<Claimant>,
    ) {
        for (kind, known) in &mut self.known {
            while known.has_room()
                && let Some((key, since)) = known.hidden.pop_first()
            {
                known.shown.insert(key);
                txn.upsert(row(*kind, key, claimants(*kind, key), since));
            }
            self.counts.set_hidden(*kind, known.hidden.len());
        }
    }
}

fn row(kind: ConflictKind, key: Claimed, mut claimants: Vec<Claimant>, since_unix_secs: u64) -> ConflictRow {
    claimants.truncate(MAX_CLAIMANTS);
    let chosen = claimants.iter().find(|claimant| claimant.used).map(|claimant| claimant.cluster);
    ConflictRow { kind, key, claimants, chosen, since_unix_secs, remedy: kind.remedy() }
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
