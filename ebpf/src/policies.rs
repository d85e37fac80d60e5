//! Policies: entries keyed by policy id, shared by equal pods.
//!
//! Order of writes: new denies, new allows, then the policy's row (shapes, revision), then what is gone goes. The revision
//! grows only when an allow may have disappeared: flows are asked again then, and only then. A full map holds up nothing
//! but new allows: what is gone makes room first, and a deny that finds none takes that of an allow of its policy.

use crate::abi;
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::rows::{PolicySet, RuleAction, RuleEntry, RuleMatch};
use crate::sys;
use crate::tables::Hash;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};

type Rules = BTreeMap<abi::RuleKey, abi::Rule>;

/// Entries of all policies as the map holds them, read once: a policy's change needs no walk through everybody's entries.
pub(crate) type Known = Option<BTreeMap<u32, Rules>>;

/// Gives out revisions that no policy had before, of whatever number: conntrack holds allows under number and revision,
/// and a number may be given to another policy. Across restarts the clock keeps them apart: hundredths of a second since
/// boot, which conntrack does not outlive.
#[derive(Debug, Default)]
pub(crate) struct Revisions(AtomicU32);

impl Revisions {
    fn next(&self) -> u32 {
        let clock = u32::try_from(sys::monotonic_ns() / 10_000_000 % u64::from(u32::MAX)).unwrap_or(0);
        let after = |last: u32| last.wrapping_add(1).max(clock);
        // The closure never refuses, so the last value comes back either way.
        let (Ok(last) | Err(last)) =
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last)));
        after(last)
    }
}

impl Datapath {
    /// Makes a policy what `set` says, writing only differences. The same again is compared with the map itself.
    ///
    /// # Errors
    /// The map is full or cannot be written, or an entry names a port without a protocol. With a full map all that is gone
    /// has gone and all that is denied is denied; allows may be missing.
    pub fn set_policy(&self, id: u32, set: &PolicySet) -> Result<(), DatapathError> {
        if id == 0 {
            let why = "number 0 means no policy; give the policy another number";
            return Err(DatapathError::Invalid { what: "policy 0".into(), why });
        }
        let wanted = rules(id, set)?;
        let old = self.tables.policies.get(id)?;
        self.with_rules(id, |present| {
            let nothing_yet = old.is_none() && present.is_empty();
            if *present == wanted && !nothing_yet {
                let mut all = self.all_rules()?;
                *present = all.remove(&id).unwrap_or_default();
            }
            self.change_policy(id, (old, header(set, &wanted)), &wanted, present)
        })
    }

    fn change_policy(
        &self,
        id: u32,
        (old, mut row): (Option<abi::Policy>, abi::Policy),
        wanted: &Rules,
        present: &mut Rules,
    ) -> Result<(), DatapathError> {
        let old_row = old.unwrap_or_default();
        let shrinks = shrinks(&old_row, &row, present, wanted);
        row.revision = if shrinks || old.is_none() { self.revisions.next() } else { old_row.revision };
        let differs = wanted.iter().filter(|(key, rule)| present.get(key) != Some(rule));
        let (denying, allowing): (Rules, Rules) = differs.partition(|(_, rule)| denies(rule));
        let gone: Rules = present
            .iter()
            .filter(|(key, _)| !wanted.contains_key(key))
            .map(|(key, rule)| (*key, *rule))
            .collect();
        let mut map = Writer { table: &self.tables.rules, present, full: None };
        let denying = map.write(denying)?;
        // Who keeps an allow by another entry is never without, as long as there is room for both.
        let allowing = map.write(allowing)?;
        if row != old_row {
            self.tables.policies.upsert(id, row)?;
        }
        for key in gone.iter().filter(|(_, rule)| !denies(rule)).map(|(key, _)| *key) {
            map.delete(key)?;
        }
        map.deny(denying)?;
        for key in gone.iter().filter(|(_, rule)| denies(rule)).map(|(key, _)| *key) {
            map.delete(key)?;
        }
        let missing = map.write(allowing)?;
        let full = map
            .full
            .filter(|_| !missing.is_empty() || wanted.iter().any(|(key, _)| !present.contains_key(key)));
        if shrinks {
            // A flow that was judged between the steps above carries the new revision with an old entry.
            row.revision = self.revisions.next();
            self.tables.policies.upsert(id, row)?;
        }
        full.map_or(Ok(()), Err)
    }

    /// Deletes a policy and its entries. Pods whose row still names it drop everything (133).
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn delete_policy(&self, id: u32) -> Result<(), DatapathError> {
        self.tables.policies.delete(id)?;
        self.with_rules(id, |present| {
            let keys: Vec<_> = present.keys().copied().collect();
            let mut map = Writer { table: &self.tables.rules, present, full: None };
            keys.into_iter().try_for_each(|key| map.delete(key))
        })
    }

    /// Lends a policy's entries as the map holds them; `work` keeps them in step with it.
    fn with_rules(
        &self,
        id: u32,
        work: impl FnOnce(&mut Rules) -> Result<(), DatapathError>,
    ) -> Result<(), DatapathError> {
        let mut known = lock(&self.rules);
        let all = match &mut *known {
            Some(all) => all,
            None => known.insert(self.all_rules()?),
        };
        let present = all.entry(id).or_default();
        let result = work(present);
        if present.is_empty() {
            all.remove(&id);
        }
        result
    }

    fn all_rules(&self) -> Result<BTreeMap<u32, Rules>, DatapathError> {
        let mut all: BTreeMap<u32, Rules> = BTreeMap::new();
        for (key, rule) in self.tables.rules.dump()? {
            all.entry(key.policy_id).or_default().insert(key, rule);
        }
        Ok(all)
    }

    /// All policies.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn policies(&self) -> Result<BTreeMap<u32, PolicySet>, DatapathError> {
        let mut all = BTreeMap::new();
        for (id, row) in self.tables.policies.dump()? {
            let open = |bit: u32| (row.flags & bit != 0).then(Vec::new);
            let set = PolicySet { ingress: open(abi::POL_INGRESS), egress: open(abi::POL_EGRESS) };
            all.insert(id, set);
        }
        let rules: BTreeSet<_> = self.tables.rules.dump()?.into_iter().collect();
        for (key, rule) in rules {
            let Some(set) = all.get_mut(&key.policy_id) else { continue };
            let list = if key.dir == 0 { &mut set.ingress } else { &mut set.egress };
            if let Some(list) = list {
                list.push(entry(&key, &rule));
            }
        }
        Ok(all)
    }
}

const fn denies(rule: &abi::Rule) -> bool {
    rule.flags & abi::RULE_DENY != 0
}

/// Whether the entry is about what a node cannot do without: everybody at once, the host, other nodes, the API server.
const fn vital(key: &abi::RuleKey) -> bool {
    matches!(key.identity, 0 | 1 | 6 | 7)
}

/// Writes entries of one policy and what is known of them.
struct Writer<'a> {
    table: &'a Hash<abi::RuleKey, abi::Rule>,
    present: &'a mut Rules,
    /// The first write that found the map full.
    full: Option<DatapathError>,
}

impl Writer<'_> {
    /// Whether it was written; false if the map is full.
    fn put(&mut self, key: abi::RuleKey, rule: abi::Rule) -> Result<bool, DatapathError> {
        let written = if self.reserved(&key, &rule) {
            Err(self.table.full(&key))
        } else {
            self.table.upsert(key, rule)
        };
        match written {
            Ok(()) => {
                self.present.insert(key, rule);
                Ok(true)
            }
            Err(error) if error.is_full() => {
                self.full.get_or_insert(error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the room that is left is kept for others: a tenth of the map, so that a node that has more peers than
    /// entries still reaches its pods, and they the API server. A deny is never put off.
    fn reserved(&self, key: &abi::RuleKey, rule: &abi::Rule) -> bool {
        let usage = self.table.usage();
        !denies(rule)
            && !vital(key)
            && usage.entries >= usage.capacity - usage.capacity / 10
            && !self.present.contains_key(key)
    }

    /// Writes what there is room for, and returns the rest.
    fn write(&mut self, rules: Rules) -> Result<Rules, DatapathError> {
        let mut rest = Rules::new();
        for (key, rule) in rules {
            // Of a full map no more is asked than what changes in place.
            let hopeless = !rest.is_empty() && !self.present.contains_key(&key) && !vital(&key);
            if hopeless || !self.put(key, rule)? {
                rest.insert(key, rule);
            }
        }
        Ok(rest)
    }

    /// Writes denies, whatever it takes: closed rather than open.
    fn deny(&mut self, rules: Rules) -> Result<(), DatapathError> {
        for (key, rule) in rules {
            while !self.put(key, rule)? {
                let allow = self.present.iter().rfind(|(_, rule)| !denies(rule)).map(|(key, _)| *key);
                // Without any allow nothing passes, denied or not.
                let Some(allow) = allow else { break };
                self.delete(allow)?;
            }
        }
        Ok(())
    }

    fn delete(&mut self, key: abi::RuleKey) -> Result<(), DatapathError> {
        self.table.delete(key)?;
        self.present.remove(&key);
        Ok(())
    }
}

fn entry(key: &abi::RuleKey, rule: &abi::Rule) -> RuleEntry {
    let some = |on: bool| on.then_some(());
    let matching = RuleMatch {
        identity: some(key.identity != 0).map(|()| key.identity),
        protocol: some(key.proto != 0).map(|()| key.proto),
        port: some(key.port != 0).map(|()| u16::from_be(key.port)),
    };
    let action = if rule.flags & abi::RULE_DENY != 0 { RuleAction::Deny } else { RuleAction::Allow };
    (matching, action, rule.cookie)
}

fn rules(id: u32, set: &PolicySet) -> Result<Rules, DatapathError> {
    let mut all = Rules::new();
    for (dir, list) in [(0, &set.ingress), (1, &set.egress)] {
        for (matching, action, cookie) in list.iter().flatten() {
            if matching.port.is_some() && matching.protocol.is_none() {
                let what = format!("policy {id}, entry {matching:?}");
                return Err(DatapathError::Invalid { what, why: "a port needs a protocol; name it" });
            }
            let key = abi::RuleKey {
                policy_id: id,
                identity: matching.identity.unwrap_or_default(),
                port: matching.port.unwrap_or_default().to_be(),
                proto: matching.protocol.unwrap_or_default(),
                dir,
            };
            let flags = match action {
                RuleAction::Allow => 0,
                RuleAction::Deny => abi::RULE_DENY,
            };
            let rule = all.entry(key).or_insert(abi::Rule { flags, cookie: *cookie });
            // Deny wins when two entries share a key.
            rule.flags |= flags;
        }
    }
    Ok(all)
}

fn shape(key: &abi::RuleKey) -> u32 {
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    bit(key.identity != 0, abi::SHAPE_ID)
        | bit(key.proto != 0, abi::SHAPE_PROTO)
        | bit(key.port != 0, abi::SHAPE_PORT)
}

fn header(set: &PolicySet, rules: &Rules) -> abi::Policy {
    let shapes =
        |dir: u8| rules.keys().filter(|key| key.dir == dir).fold(0, |shapes, key| shapes | 1 << shape(key));
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    abi::Policy {
        flags: flag(set.ingress.is_some(), abi::POL_INGRESS) | flag(set.egress.is_some(), abi::POL_EGRESS),
        shapes_ingress: shapes(0),
        shapes_egress: shapes(1),
        revision: 0,
    }
}

/// Whether something that was allowed may no longer be.
fn shrinks(old: &abi::Policy, new: &abi::Policy, present: &Rules, wanted: &Rules) -> bool {
    let newly_enforced = new.flags & !old.flags != 0;
    let allow_gone = present.iter().any(|(key, rule)| !denies(rule) && wanted.get(key).is_none_or(denies));
    let deny_new =
        wanted.iter().any(|(key, rule)| denies(rule) && present.get(key).is_none_or(|old| !denies(old)));
    newly_enforced || allow_gone || deny_new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(identity: u32, port: u16) -> RuleEntry {
        (RuleMatch { identity: Some(identity), protocol: Some(6), port: Some(port) }, RuleAction::Allow, 0)
    }

    fn both(entries: &[RuleEntry]) -> (abi::Policy, Rules) {
        let set = PolicySet { ingress: Some(entries.to_vec()), egress: None };
        let rules = rules(7, &set).unwrap();
        (header(&set, &rules), rules)
    }

    #[test]
    fn revision_grows_only_when_an_allow_may_disappear() {
        let (row, one) = both(&[allow(1, 80)]);
        let (_, two) = both(&[allow(1, 80), allow(2, 80)]);
        assert!(!shrinks(&row, &row, &one, &two), "an allow more");
        assert!(shrinks(&row, &row, &two, &one), "an allow less");
        let deny = (RuleMatch { identity: Some(9), protocol: None, port: None }, RuleAction::Deny, 0);
        let (_, denied) = both(&[allow(1, 80), deny]);
        assert!(shrinks(&row, &row, &one, &denied), "a deny more");
        assert!(!shrinks(&row, &row, &denied, &one), "a deny less");
        assert!(shrinks(&abi::Policy::default(), &row, &Rules::new(), &one), "enforcement starts");
    }

    #[test]
    fn shapes_name_the_fields_in_use() {
        let any = (RuleMatch { identity: None, protocol: None, port: None }, RuleAction::Allow, 0);
        let (row, _) = both(&[allow(1, 80), any]);
        assert_eq!(row.shapes_ingress, 1 << 7 | 1);
        assert_eq!(row.shapes_egress, 0);
        assert_eq!(row.flags, abi::POL_INGRESS);
    }

    #[test]
    fn port_without_protocol_is_refused() {
        let bad = (RuleMatch { identity: None, protocol: None, port: Some(80) }, RuleAction::Allow, 0);
        let set = PolicySet { ingress: Some(vec![bad]), egress: None };
        assert!(rules(1, &set).unwrap_err().to_string().contains("port needs a protocol"));
    }
}
