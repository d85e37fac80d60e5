//! Numbers that entries carry to say which rules they come from.

use crate::desired::CookieRow;
use crate::rows::{Direction, RuleKey, RuleRow};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_base::source::Source;

/// One block of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Origin {
    pub(crate) rule: RuleKey,
    pub(crate) direction: Direction,
    pub(crate) block: usize,
}

/// `Kind namespace/name ingress rule 0`, or with the name that the rule has.
#[must_use]
pub fn block_title(rule: &RuleRow, direction: Direction, block: usize) -> String {
    let (rules, way) = match direction {
        Direction::Ingress => (&rule.ingress, "ingress"),
        Direction::Egress => (&rule.egress, "egress"),
    };
    let spec = if rule.spec == 0 { String::new() } else { format!(" spec {}", rule.spec) };
    let name = rules.as_ref().and_then(|rules| rules.blocks.get(block)?.name.as_ref());
    let which = name.map_or_else(|| block.to_string(), |name| format!("{name:?}"));
    format!("{}{spec} {way} rule {which}", rule.title())
}

/// The numbers in use. A number is made of what it names, so that it is the same in the agent's next life.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cookies {
    /// Names, and how many policies use them.
    known: BTreeMap<u32, (BTreeSet<Arc<str>>, usize)>,
}

/// FNV-1a: the same on every machine and in every life.
fn hash(names: &BTreeSet<Arc<str>>) -> u32 {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl Cookies {
    /// The number of a set of names; one policy more uses it. Whether nobody did before.
    pub(crate) fn take(&mut self, names: BTreeSet<Arc<str>>) -> (u32, bool) {
        let mut cookie = hash(&names).max(1);
        while self.known.get(&cookie).is_some_and(|(known, _)| *known != names) {
            cookie = cookie.wrapping_add(1).max(1);
        }
        let users = &mut self.known.entry(cookie).or_insert((names, 0)).1;
        *users += 1;
        (cookie, *users == 1)
    }

    /// One policy more uses a number, if it means something.
    pub(crate) fn hold(&mut self, cookie: u32) -> bool {
        let known = self.known.get_mut(&cookie);
        known.map(|(_, users)| *users += 1).is_some()
    }

    /// A policy that used these is gone, or another.
    pub(crate) fn put_back(&mut self, cookies: &BTreeSet<u32>) {
        for cookie in cookies {
            if let Some((_, users)) = self.known.get_mut(cookie) {
                *users -= 1;
                if *users == 0 {
                    self.known.remove(cookie);
                }
            }
        }
    }

    /// Its row.
    pub(crate) fn row(&self, cookie: u32) -> Option<CookieRow> {
        let (rules, _) = self.known.get(&cookie)?;
        Some(CookieRow { source: Source::Planner, cookie, rules: rules.clone() })
    }

    /// All of them.
    pub(crate) fn rows(&self) -> impl Iterator<Item = CookieRow> + '_ {
        self.known.keys().filter_map(|cookie| self.row(*cookie))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_of_what_it_names_and_ends_with_its_last_user() {
        let names =
            |all: &[&str]| -> BTreeSet<Arc<str>> { all.iter().map(|name| Arc::from(*name)).collect() };
        let mut cookies = Cookies::default();
        let (one, new) = cookies.take(names(&["a"]));
        assert_eq!((cookies.take(names(&["a"])), new), ((one, false), true));
        let (other, _) = cookies.take(names(&["a", "b"]));
        assert!(one != other && one != 0);
        assert_eq!(Cookies::default().take(names(&["a"])).0, one, "in every life");
        // Another set of the same hash.
        cookies.known.insert(hash(&names(&["c"])), (names(&["d"]), 1));
        assert_eq!(cookies.take(names(&["c"])).0, hash(&names(&["c"])).wrapping_add(1).max(1));
        cookies.put_back(&[one].into());
        assert!(cookies.hold(one) && !cookies.hold(one.wrapping_add(1)));
        cookies.put_back(&[one].into());
        assert!(cookies.row(one).is_some());
        cookies.put_back(&[one].into());
        assert!(cookies.row(one).is_none() && cookies.row(other).is_some());
    }
}
