//! Which cluster has which pod prefixes and node addresses: what overlaps another cluster's is refused before anything is made of it.
//!
//! A claim is a pod prefix or an address of a node, for its cluster (a *party*). The accepted claims of different parties never overlap, and a
//! refused one overlaps an accepted one: it is accepted as soon as that is gone. Who was there first keeps it; the own cluster always has
//! what it claims. Prefixes nest or are disjoint, so what overlaps is found by the lengths in use and one range of an ordered map.

use super::keys::Keys;
use super::reserved::Reserved;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::prefix::Prefix;

/// Whose claim it is: a cluster's id, or [`OWN`].
pub(super) type Party = u16;
/// The own cluster; no cluster of a mesh has this id.
pub(super) const OWN: Party = 0;

/// How well a claim is founded, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// The own cluster's.
    Own,
    /// The earlier life of this agent had it in use.
    Restored,
    /// In the first list of a cluster that was known when this agent started: the order in which etcds answer must not decide,
    /// so among these the lower cluster id does, on every node alike.
    Founder,
    /// Came later.
    Later,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    /// How many nodes of the party make it.
    nodes: u32,
    standing: Standing,
    accepted: bool,
}

/// Claims that were made, given up, accepted or refused; true if they are or were accepted, so that others are concerned.
pub(super) type Changed = BTreeMap<(Prefix, Party), bool>;

/// All claims.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    all: BTreeMap<(Prefix, Party), Claim>,
    refused: BTreeSet<(Prefix, Party)>,
    /// How many claims there are of each family (IPv4 is true) and length.
    lengths: Lengths,
    /// Claims of WireGuard keys.
    pub(super) keys: Keys,
    /// What the own cluster has besides.
    pub(super) reserved: Reserved,
}

/// Which lengths of prefixes are in use, by family: there are few.
#[derive(Clone, Debug, Default)]
pub(super) struct Lengths(BTreeMap<(bool, u8), usize>);

impl Lengths {
    pub(super) fn add(&mut self, prefix: Prefix) {
        *self.0.entry((prefix.is_ipv4(), prefix.prefix_len())).or_default() += 1;
    }

    pub(super) fn remove(&mut self, prefix: Prefix) {
        let key = (prefix.is_ipv4(), prefix.prefix_len());
        if let Some(count) = self.0.get_mut(&key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }

    /// The prefixes of these lengths that hold `prefix` and are shorter.
    pub(super) fn above(&self, prefix: Prefix) -> impl Iterator<Item = Prefix> + '_ {
        let family = prefix.is_ipv4();
        let shorter = self.0.range((family, 0)..(family, prefix.prefix_len()));
        shorter.filter_map(move |((_, len), _)| Prefix::new(prefix.address(), *len))
    }
}

/// Whether a claim takes what another one has.
pub(super) fn beats(challenger: (Standing, Party), holder: (Standing, Party)) -> bool {
    let founders = challenger.0 == Standing::Founder && holder.0 == Standing::Founder;
    challenger.0 < holder.0 || (founders && challenger.1 < holder.1)
}

impl Claims {
    /// Every claim that overlaps `prefix`.
    fn overlapping(&self, prefix: Prefix) -> impl Iterator<Item = (Prefix, Party, Claim)> + '_ {
        let above = self.lengths.above(prefix);
        let above = above.flat_map(|upper| self.all.range((upper, 0)..=(upper, Party::MAX)));
        let inside = self.all.range((prefix, 0)..=(prefix.last(), Party::MAX));
        above.chain(inside).map(|((prefix, party), claim)| (*prefix, *party, *claim))
    }

    /// Whether `prefix` lies in what nodes have for their pods or as their addresses.
    pub(super) fn within(&self, prefix: Prefix) -> bool {
        let around = self.lengths.above(prefix).chain([prefix]);
        around
            .flat_map(|upper| self.all.range((upper, 0)..=(upper, Party::MAX)))
            .any(|(_, claim)| claim.accepted)
    }

    /// An accepted claim of another party that overlaps `prefix`.
    pub(super) fn rival(&self, prefix: Prefix, party: Party) -> Option<(Prefix, Party)> {
        let mut all = self.overlapping(prefix);
        all.find_map(|(found, other, claim)| (claim.accepted && other != party).then_some((found, other)))
    }

    /// Accepted claims of other parties that overlap `prefix`.
    pub(super) fn rivals(&self, prefix: Prefix, party: Party) -> impl Iterator<Item = (Prefix, Party)> + '_ {
        let all = self.overlapping(prefix);
        all.filter_map(move |(found, other, claim)| {
            (claim.accepted && other != party).then_some((found, other))
        })
    }

    /// Whether any claim is refused.
    pub(super) fn any_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Whether that claim is refused.
    pub(super) fn is_refused(&self, prefix: Prefix, party: Party) -> bool {
        self.any_refused() && self.refused.contains(&(prefix, party))
    }

    /// Refused claims that overlap `prefix`.
    pub(super) fn refused_at(&self, prefix: Prefix) -> Vec<(Prefix, Party)> {
        if !self.any_refused() {
            return Vec::new();
        }
        let above = self.lengths.above(prefix);
        let above = above.flat_map(|upper| self.refused.range((upper, 0)..=(upper, Party::MAX)));
        above.chain(self.refused.range((prefix, 0)..=(prefix.last(), Party::MAX))).copied().collect()
    }

    /// The parties whose claims of exactly `prefix` are refused.
    pub(super) fn refused_exactly(&self, prefix: Prefix) -> impl Iterator<Item = Party> + '_ {
        self.refused.range((prefix, 0)..=(prefix, Party::MAX)).map(|(_, party)| *party)
    }

    /// Whether several nodes of one party claim exactly `prefix`.
    pub(super) fn is_shared(&self, prefix: Prefix) -> bool {
        self.all.range((prefix, 0)..=(prefix, Party::MAX)).any(|(_, claim)| claim.nodes > 1)
    }

    /// A node claims `prefix` for its party.
    pub(super) fn add(&mut self, prefix: Prefix, party: Party, standing: Standing, changed: &mut Changed) {
        let fresh = Claim { nodes: 0, standing, accepted: false };
        let claim = self.all.entry((prefix, party)).or_insert(fresh);
        claim.nodes = claim.nodes.saturating_add(1);
        let known = claim.nodes > 1;
        if known && (claim.accepted || standing >= claim.standing) {
            return;
        }
        claim.standing = claim.standing.min(standing);
        if !known {
            self.lengths.add(prefix);
        }
        self.judge(prefix, party, standing, changed);
    }

    fn judge(&mut self, prefix: Prefix, party: Party, standing: Standing, changed: &mut Changed) {
        changed.entry((prefix, party)).or_default();
        let holders = self.overlapping(prefix).filter(|(_, other, claim)| claim.accepted && *other != party);
        let weaker: Option<Vec<_>> = holders
            .map(|(found, other, claim)| {
                beats((standing, party), (claim.standing, other)).then_some((found, other))
            })
            .collect();
        let Some(weaker) = weaker else {
            self.refused.insert((prefix, party));
            return;
        };
        for loser in &weaker {
            self.settle(*loser, false, changed);
        }
        self.settle((prefix, party), true, changed);
        // What only those refused may be free now.
        for (freed, _) in weaker {
            self.reconsider(freed, changed);
        }
    }

    fn settle(&mut self, key: (Prefix, Party), accepted: bool, changed: &mut Changed) {
        if let Some(claim) = self.all.get_mut(&key) {
            claim.accepted = accepted;
            changed.insert(key, true);
            if accepted {
                self.refused.remove(&key);
            } else {
                self.refused.insert(key);
            }
        }
    }

    /// A node claims `prefix` no more.
    pub(super) fn remove(&mut self, prefix: Prefix, party: Party, changed: &mut Changed) {
        let Some(claim) = self.all.get_mut(&(prefix, party)) else { return };
        claim.nodes = claim.nodes.saturating_sub(1);
        if claim.nodes > 0 {
            return;
        }
        let accepted = claim.accepted;
        self.all.remove(&(prefix, party));
        self.lengths.remove(prefix);
        self.refused.remove(&(prefix, party));
        *changed.entry((prefix, party)).or_default() |= accepted;
        if accepted {
            self.reconsider(prefix, changed);
        }
    }

    /// Something at `prefix` is not accepted any more: what it stood in the way of is, in order of standing and cluster id.
    fn reconsider(&mut self, prefix: Prefix, changed: &mut Changed) {
        let mut waiting: Vec<_> = self.refused_at(prefix).into_iter().collect();
        waiting.sort_by_key(|key| (self.all.get(key).map(|claim| claim.standing), key.1, key.0));
        for (found, party) in waiting {
            if self.rival(found, party).is_none() {
                self.settle((found, party), true, changed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    impl Claims {
        fn put(&mut self, text: &str, party: Party, standing: Standing) {
            self.add(prefix(text), party, standing, &mut Changed::new());
        }

        fn take(&mut self, text: &str, party: Party) {
            self.remove(prefix(text), party, &mut Changed::new());
        }

        fn has(&self, text: &str, party: Party) -> bool {
            self.all.get(&(prefix(text), party)).is_some_and(|claim| claim.accepted)
        }

        /// Accepted claims of different parties are disjoint; a refused one has a rival.
        fn check(&self) {
            for (key, claim) in &self.all {
                let rival = self
                    .all
                    .iter()
                    .find(|(other, theirs)| theirs.accepted && other.1 != key.1 && other.0.overlaps(&key.0));
                assert_eq!(claim.accepted, rival.is_none(), "{key:?} {rival:?}");
                assert_eq!(self.refused.contains(key), !claim.accepted);
                assert_eq!(self.rival(key.0, key.1).is_some(), rival.is_some());
            }
            assert!(self.refused.iter().all(|key| self.all.contains_key(key)));
        }
    }

    #[test]
    fn who_was_there_first_keeps_it_until_it_goes() {
        let mut claims = Claims::default();
        claims.put("10.2.0.0/24", 2, Standing::Later);
        claims.put("10.2.0.0/16", 1, Standing::Later);
        claims.put("10.2.0.128/25", 3, Standing::Later);
        claims.put("fd00::/64", 1, Standing::Later);
        assert!(claims.has("10.2.0.0/24", 2) && claims.has("fd00::/64", 1));
        assert!(!claims.has("10.2.0.0/16", 1) && !claims.has("10.2.0.128/25", 3));
        claims.take("10.2.0.0/24", 2);
        assert!(claims.has("10.2.0.0/16", 1) && !claims.has("10.2.0.128/25", 3), "by id, when both waited");
        claims.take("10.2.0.0/16", 1);
        assert!(claims.has("10.2.0.128/25", 3));
        claims.check();
    }

    #[test]
    fn the_own_cluster_takes_what_is_its_own_and_frees_what_the_loser_held() {
        let mut claims = Claims::default();
        claims.put("10.0.0.0/8", 1, Standing::Later);
        claims.put("10.9.0.0/24", 2, Standing::Later);
        assert!(!claims.has("10.9.0.0/24", 2));
        claims.put("10.5.0.0/24", OWN, Standing::Own);
        assert!(
            claims.has("10.5.0.0/24", OWN) && !claims.has("10.0.0.0/8", 1) && claims.has("10.9.0.0/24", 2)
        );
        claims.check();
    }

    #[test]
    fn the_order_of_first_lists_does_not_decide_and_an_earlier_life_does() {
        for first in [1, 2] {
            let mut claims = Claims::default();
            for party in [first, 3 - first] {
                claims.put("10.2.0.0/24", party, Standing::Founder);
            }
            assert!(claims.has("10.2.0.0/24", 1), "{first}");
            claims.put("10.2.0.0/25", 2, Standing::Restored);
            assert!(claims.has("10.2.0.0/25", 2) && !claims.has("10.2.0.0/24", 1));
            claims.put("10.2.0.0/26", 1, Standing::Later);
            assert!(!claims.has("10.2.0.0/26", 1));
            claims.check();
        }
    }

    /// A cluster that makes 50,000 claims inside others', and others that make as many: the time grows with the claims.
    #[test]
    fn fifty_thousand_overlapping_claims_are_not_compared_with_each_other() {
        let mut claims = Claims::default();
        let start = std::time::Instant::now();
        for number in 0..50_000_u32 {
            let (a, b) = (number / 250, number % 250);
            claims.put(&format!("10.{a}.{b}.0/24"), 1, Standing::Later);
            claims.put(&format!("10.{a}.{b}.128/25"), 2, Standing::Later);
            claims.put("10.0.0.0/8", 3, Standing::Later);
        }
        assert!(claims.refused.len() == 50_001 && claims.is_shared(prefix("10.0.0.0/8")));
        // Quadratic would be 2.5 thousand million comparisons: minutes.
        assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
    }

    proptest! {
        #[test]
        fn accepted_claims_are_disjoint_and_refused_ones_have_a_reason(
            steps in prop::collection::vec((0u8..8, 0u8..4, 22u8..33, any::<bool>(), 0u8..4), 1..80),
        ) {
            let mut claims = Claims::default();
            let mut made: Vec<(Prefix, Party)> = Vec::new();
            for (third, party, len, gone, standing) in steps {
                let party = Party::from(party);
                let at = Prefix::new([10, 0, third, third * 32].into(), len).unwrap();
                if gone {
                    if let Some(found) = made.iter().position(|made| made.1 == party) {
                        let (prefix, party) = made.remove(found);
                        claims.remove(prefix, party, &mut Changed::new());
                    }
                } else {
                    let standing = match (party, standing) {
                        (OWN, _) => Standing::Own,
                        (_, 0) => Standing::Restored,
                        (_, 1) => Standing::Founder,
                        _ => Standing::Later,
                    };
                    claims.add(at, party, standing, &mut Changed::new());
                    made.push((at, party));
                }
                claims.check();
            }
        }
    }
}
