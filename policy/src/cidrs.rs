//! Numbers of address prefixes: identities that mean something on this node alone.
//!
//! Every prefix that a rule mentions has one, also what it cuts out; the datapath gives an address the number of the
//! longest. So a rule takes the numbers of all known prefixes that lie in its own, less those in what it cuts out.
//!
//! A prefix that no rule mentions any more keeps its number, and its place in policies, until the datapath's row is gone
//! ([`Cidrs::release`]): an address never has a number that policies do not know.

use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::ids::IdentityId;
use tombolo_base::prefix::Prefix;

/// The first number; the ones of clusters are below.
pub const FIRST: u32 = 1 << 24;
/// The last number: the byte above tells what a number is of.
const LAST: u32 = (2 << 24) - 1;
/// The first number of another node's address.
const FIRST_OF_NODES: u32 = 2 << 24;
/// Prefixes that have a number at the same time; those of later rules get none.
pub const MAX_PREFIXES: usize = 16_384;

/// Whether a number is of a prefix.
#[must_use]
pub const fn is_cidr(id: IdentityId) -> bool {
    FIRST <= id.0 && id.0 <= LAST
}

/// Known prefixes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cidrs {
    numbers: BTreeMap<Prefix, IdentityId>,
    used: BTreeSet<IdentityId>,
    /// By how many rules each is mentioned; those without a number, too.
    mentions: BTreeMap<Prefix, usize>,
    /// Numbered, and mentioned by none.
    leaving: BTreeSet<Prefix>,
    /// Addresses of other nodes that have numbers of their own.
    nodes: BTreeSet<Prefix>,
    next: u32,
}

/// The world of a prefix's family.
const fn world(ipv4: bool) -> IdentityId {
    if ipv4 { IdentityId::WORLD_IPV4 } else { IdentityId::WORLD_IPV6 }
}

impl Cidrs {
    /// Takes over a number of an earlier life. The prefix counts as gone from the rules until one mentions it.
    pub(crate) fn restore(&mut self, prefix: Prefix, id: IdentityId) {
        if (is_cidr(id) || id.is_node() && prefix.is_host())
            && prefix.prefix_len() > 0
            && !self.numbers.contains_key(&prefix)
            && self.used.insert(id)
        {
            self.numbers.insert(prefix, id);
            self.leaving.insert(prefix);
            if id.is_node() {
                self.nodes.insert(prefix);
            }
            self.next = self.next.max((id.0 & (FIRST - 1)).saturating_add(1));
        }
    }

    /// These addresses are other nodes' from now on, and no more. Prefixes whose numbers are not what they were.
    pub(crate) fn set_nodes(&mut self, nodes: BTreeSet<Prefix>) -> BTreeSet<Prefix> {
        let mut touched = BTreeSet::new();
        let before = std::mem::take(&mut self.nodes);
        for prefix in before.difference(&nodes) {
            self.forget(*prefix);
        }
        self.nodes = nodes;
        for prefix in before.symmetric_difference(&self.nodes.clone()) {
            // A number of the other kind; whoever it was, it is somebody else now.
            let stale =
                self.numbers.get(prefix).filter(|id| id.is_node() != self.nodes.contains(prefix)).copied();
            if let Some(id) = stale {
                self.numbers.remove(prefix);
                self.used.remove(&id);
                self.leaving.remove(prefix);
                if self.mentions.contains_key(prefix) {
                    self.number(*prefix);
                }
            }
            touched.insert(*prefix);
        }
        for prefix in self.nodes.difference(&before).copied().collect::<Vec<_>>() {
            self.mention(prefix);
        }
        // Taken over from an earlier life without a mention.
        for prefix in self.nodes.intersection(&before).copied().collect::<Vec<_>>() {
            if !self.mentions.contains_key(&prefix) {
                self.mention(prefix);
                touched.insert(prefix);
            }
        }
        touched
    }

    /// One more rule mentions it. Whether it is known now and was not.
    pub(crate) fn mention(&mut self, prefix: Prefix) -> bool {
        // What holds a whole family is its world.
        if prefix.prefix_len() == 0 {
            return false;
        }
        *self.mentions.entry(prefix).or_default() += 1;
        self.leaving.remove(&prefix);
        self.number(prefix)
    }

    fn number(&mut self, prefix: Prefix) -> bool {
        if self.numbers.contains_key(&prefix) || self.numbers.len() >= MAX_PREFIXES {
            return false;
        }
        // A number is used again as late as possible: whoever still has it in mind means another prefix.
        let room = LAST - FIRST + 1;
        let first = if self.nodes.contains(&prefix) { FIRST_OF_NODES } else { FIRST };
        let mut id = IdentityId(first + self.next % room);
        while self.used.contains(&id) {
            self.next = self.next.wrapping_add(1);
            id = IdentityId(first + self.next % room);
        }
        self.next = (id.0 - first).wrapping_add(1);
        self.used.insert(id);
        self.numbers.insert(prefix, id);
        true
    }

    /// One rule less mentions it.
    pub(crate) fn forget(&mut self, prefix: Prefix) {
        if let Some(count) = self.mentions.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.mentions.remove(&prefix);
                if self.numbers.contains_key(&prefix) {
                    self.leaving.insert(prefix);
                }
            }
        }
    }

    /// The datapath has no row of it any more. Whether it is unknown from now on.
    pub(crate) fn release(&mut self, prefix: Prefix) -> bool {
        if self.mentions.contains_key(&prefix) {
            return false;
        }
        self.leaving.remove(&prefix);
        let Some(id) = self.numbers.remove(&prefix) else { return false };
        self.used.remove(&id)
    }

    /// Gives numbers to prefixes that found no room before; those that are known now.
    pub(crate) fn retry(&mut self) -> Vec<Prefix> {
        if self.mentions.len() <= self.numbers.len()
            && self.mentions.keys().all(|p| self.numbers.contains_key(p))
        {
            return Vec::new();
        }
        let waiting: Vec<Prefix> =
            self.mentions.keys().filter(|prefix| !self.numbers.contains_key(*prefix)).copied().collect();
        waiting.into_iter().filter(|prefix| self.number(*prefix)).collect()
    }

    /// What rules mention and has a number: what the datapath is to know.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = (Prefix, IdentityId)> + '_ {
        self.numbers.iter().filter(|(prefix, _)| self.mentions.contains_key(*prefix)).map(|(p, id)| (*p, *id))
    }

    /// Its number, if rules mention it and it has one.
    pub(crate) fn wants(&self, prefix: Prefix) -> Option<IdentityId> {
        self.numbers.get(&prefix).filter(|_| self.mentions.contains_key(&prefix)).copied()
    }

    /// What no rule mentions any more and still has a number.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = (Prefix, IdentityId)> + '_ {
        self.leaving.iter().filter_map(|prefix| Some((*prefix, *self.numbers.get(prefix)?)))
    }

    /// Whether a prefix can be told from what is around it.
    pub(crate) fn knows(&self, prefix: Prefix) -> bool {
        prefix.prefix_len() == 0 || self.numbers.contains_key(&prefix)
    }

    /// The numbers of other nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Prefix, IdentityId)> + '_ {
        let numbered = self.nodes.iter().filter_map(|prefix| Some((*prefix, *self.numbers.get(prefix)?)));
        numbered.filter(|(_, id)| id.is_node())
    }

    /// The number of just that prefix.
    pub(crate) fn exactly(&self, prefix: Prefix) -> Option<IdentityId> {
        self.numbers.get(&prefix).copied()
    }

    /// The numbers of all known prefixes within one and outside the others; those of nodes only if they are asked for.
    pub(crate) fn within(
        &self,
        prefix: Prefix,
        except: &BTreeSet<Prefix>,
        nodes: bool,
        out: &mut BTreeSet<IdentityId>,
    ) {
        let cut = |inner: &Prefix| except.iter().any(|except| except.covers(inner));
        if prefix.prefix_len() == 0 && !cut(&prefix) {
            out.insert(world(prefix.is_ipv4()));
        }
        let inside = self.numbers.range(prefix..=prefix.last()).filter(|(inner, _)| prefix.covers(inner));
        let taken = inside.filter(|(inner, id)| !cut(inner) && (nodes || !id.is_node()));
        out.extend(taken.map(|(_, id)| *id));
    }

    /// The number of an address: that of the longest known prefix around it.
    pub(crate) fn of(&self, address: Prefix) -> IdentityId {
        let lengths = (1..=address.prefix_len()).rev();
        let mut around = lengths.filter_map(|len| Prefix::new(address.address(), len));
        around.find_map(|prefix| self.numbers.get(&prefix).copied()).unwrap_or(world(address.is_ipv4()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn taken(cidrs: &Cidrs, within: &str, except: &[&str]) -> Vec<u32> {
        let mut out = BTreeSet::new();
        cidrs.within(prefix(within), &except.iter().map(|text| prefix(text)).collect(), false, &mut out);
        out.into_iter().map(|id| if is_cidr(id) { id.0 - FIRST } else { id.0 + 1000 }).collect()
    }

    #[test]
    fn a_rule_takes_what_lies_within_and_not_in_what_it_cuts_out() {
        let mut cidrs = Cidrs::default();
        for text in ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3", "192.0.2.0/24", "fd00::/64"] {
            assert!(cidrs.mention(prefix(text)) && !cidrs.mention(prefix(text)), "{text}");
        }
        assert!(!cidrs.mention(prefix("0.0.0.0/0")), "is the world");
        assert_eq!(taken(&cidrs, "10.0.0.0/8", &["10.1.2.0/24"]), [0, 1]);
        assert_eq!(taken(&cidrs, "10.1.2.0/24", &[]), [2, 3]);
        assert_eq!(taken(&cidrs, "0.0.0.0/0", &["10.1.0.0/16"]), [1009, 0, 4]);
        assert_eq!(taken(&cidrs, "::/0", &[]), [1010, 5]);
        assert_eq!(taken(&cidrs, "0.0.0.0/0", &["0.0.0.0/0"]), [0u32; 0]);
        for (address, number) in [
            ("10.1.2.3", FIRST + 3),
            ("10.1.2.4", FIRST + 2),
            ("10.9.9.9", FIRST),
            ("11.0.0.1", 9),
            ("fd01::1", 10),
        ] {
            assert_eq!(cidrs.of(prefix(address)), IdentityId(number), "{address}");
        }
    }

    #[test]
    fn numbers_stay_until_the_datapath_let_go_and_come_again_late() {
        let mut cidrs = Cidrs::default();
        cidrs.restore(prefix("10.0.0.0/8"), IdentityId(FIRST + 7));
        cidrs.restore(prefix("192.0.2.0/24"), IdentityId(FIRST + 7));
        cidrs.restore(prefix("198.51.100.0/24"), IdentityId(70_000));
        assert_eq!(cidrs.leaving().count(), 1, "one number, one prefix, of this kind");
        assert!(!cidrs.mention(prefix("10.0.0.0/8")) && cidrs.mention(prefix("11.0.0.0/8")));
        let wanted: Vec<u32> = cidrs.wanted().map(|(_, id)| id.0 - FIRST).collect();
        assert_eq!(wanted, [7, 8]);
        cidrs.forget(prefix("10.0.0.0/8"));
        assert!(cidrs.knows(prefix("10.0.0.0/8")) && cidrs.wanted().count() == 1);
        assert!(!cidrs.release(prefix("11.0.0.0/8")), "is wanted");
        assert!(cidrs.release(prefix("10.0.0.0/8")) && !cidrs.knows(prefix("10.0.0.0/8")));
        cidrs.mention(prefix("12.0.0.0/8"));
        assert_eq!(cidrs.of(prefix("12.0.0.1")), IdentityId(FIRST + 9));
    }

    #[test]
    fn nodes_have_numbers_of_their_own_kind() {
        let mut cidrs = Cidrs::default();
        cidrs.mention(prefix("10.0.0.0/8"));
        cidrs.mention(prefix("10.0.0.1"));
        let nodes = |all: &[&str]| all.iter().map(|text| prefix(text)).collect::<BTreeSet<_>>();
        assert_eq!(cidrs.set_nodes(nodes(&["10.0.0.1", "10.0.0.2"])).len(), 2);
        assert!(cidrs.nodes().map(|(_, id)| id).all(IdentityId::is_node) && cidrs.nodes().count() == 2);
        assert_eq!(taken(&cidrs, "10.0.0.0/8", &[]), [0], "nodes are not outside");
        let mut out = BTreeSet::new();
        cidrs.within(prefix("0.0.0.0/0"), &nodes(&["10.0.0.2"]), true, &mut out);
        assert_eq!(out.iter().filter(|id| id.is_node()).count(), 1);
        assert_eq!(cidrs.set_nodes(nodes(&["10.0.0.2"])), nodes(&["10.0.0.1"]));
        assert!(cidrs.exactly(prefix("10.0.0.1")).is_some_and(is_cidr), "a rule still mentions it");
        cidrs.set_nodes(BTreeSet::new());
        assert_eq!(cidrs.nodes().count(), 0);
        assert!(cidrs.exactly(prefix("10.0.0.2")).is_none());
        // What an earlier life left is known as a node until it is said who the nodes are.
        cidrs.restore(prefix("10.0.0.3"), IdentityId(FIRST_OF_NODES + 9));
        assert_eq!(cidrs.leaving().count(), 1);
        cidrs.set_nodes(nodes(&["10.0.0.3"]));
        assert!(cidrs.leaving().next().is_none());
        assert_eq!(cidrs.wants(prefix("10.0.0.3")), Some(IdentityId(FIRST_OF_NODES + 9)));
    }

    #[test]
    fn what_finds_no_room_has_no_number_until_there_is() {
        let mut cidrs = Cidrs::default();
        let nth = |n: u32| Prefix::host(std::net::Ipv4Addr::from(0x0a00_0000 + n).into());
        let most = u32::try_from(MAX_PREFIXES).unwrap();
        assert!((0..most).all(|n| cidrs.mention(nth(n))));
        assert!(!cidrs.mention(nth(most)) && !cidrs.knows(nth(most)) && cidrs.retry().is_empty());
        cidrs.forget(nth(0));
        cidrs.release(nth(0));
        assert_eq!(cidrs.retry(), [nth(most)]);
    }
}
