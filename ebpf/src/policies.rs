//! Policies: entries keyed by policy id, shared by equal pods.
//!
//! Order of writes: new denies, new allows, then the policy's row (shapes, revision), then what is gone goes. The revision
//! grows only when an allow may have disappeared: flows are asked again then, and only then. A full map holds up nothing
//! but new allows: what is gone makes room first, and a deny that finds none takes that of an allow of its policy.

use crate::abi;
use crate::datapath::{Datapath, lock};
use crate::error::DatapathError;
use crate::rows::{PolicySet, PolicySide, PortPrefix, RuleAction, RuleEntry, RuleTier};
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
        // Denies of a form that the policy had none of are looked for before allows of a known form count.
        if old.is_some() {
            self.tables.policies.upsert(id, looking_for_both(&old_row, &row))?;
        }
        // Who keeps an allow by another entry is never without, as long as there is room for both.
        let allowing = map.write(allowing)?;
        if row != old_row {
            self.tables.policies.upsert(id, row)?;
        }
        for key in gone.iter().filter(|(_, rule)| !denies(rule)).map(|(key, _)| *key) {
            map.delete(key)?;
        }
        map.deny(denying)?;
        // Where a deny found no room at all, nothing passes that no allow names.
        let unsaid = wanted.iter().filter(|(key, rule)| denies(rule) && !map.present.contains_key(key));
        let closing = unsaid.fold(0, |flags, (key, _)| flags | enforcing(key.dir));
        if row.flags & closing != closing {
            row.flags |= closing;
            self.tables.policies.upsert(id, row)?;
        }
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
            let side = |bit: u32| PolicySide { enforced: row.flags & bit != 0, entries: Vec::new() };
            let (ingress, egress) = (side(abi::POL_INGRESS), side(abi::POL_EGRESS));
            all.insert(id, PolicySet { ingress, egress, audit: row.flags & abi::POL_AUDIT != 0 });
        }
        let rules: BTreeSet<_> = self.tables.rules.dump()?.into_iter().collect();
        for (key, rule) in rules {
            let Some(set) = all.get_mut(&key.policy_id) else { continue };
            let side = if key.dir == 0 { &mut set.ingress } else { &mut set.egress };
            side.entries.push(entry(&key, &rule));
        }
        Ok(all)
    }
}

/// Whether it may take away what others allow: a deny does, and a pass what is less urgent in its tier.
const fn denies(rule: &abi::Rule) -> bool {
    rule.flags & (abi::RULE_DENY | abi::RULE_PASS) != 0
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

/// The flag that makes a direction default deny.
const fn enforcing(dir: u8) -> u32 {
    if dir == 0 { abi::POL_INGRESS } else { abi::POL_EGRESS }
}

/// The row as it is, but for what entries are looked for.
fn looking_for_both(old: &abi::Policy, new: &abi::Policy) -> abi::Policy {
    let both =
        |a: [u32; 4], b: [u32; 4]| std::array::from_fn(|n| a.get(n).unwrap_or(&0) | b.get(n).unwrap_or(&0));
    abi::Policy {
        shapes_ingress: old.shapes_ingress | new.shapes_ingress,
        shapes_egress: old.shapes_egress | new.shapes_egress,
        widths: std::array::from_fn(|n| old.widths.get(n).unwrap_or(&0) | new.widths.get(n).unwrap_or(&0)),
        admin: both(old.admin, new.admin),
        baseline: both(old.baseline, new.baseline),
        ..*old
    }
}

const fn tier_number(tier: RuleTier) -> u8 {
    match tier {
        RuleTier::Admin => abi::TIER_ADMIN,
        RuleTier::Normal => abi::TIER_NORMAL,
        RuleTier::Baseline => abi::TIER_BASELINE,
    }
}

fn entry(key: &abi::RuleKey, rule: &abi::Rule) -> RuleEntry {
    let by_port = key.port != 0 || key.open_bits != 0;
    let bits = 16_u8.saturating_sub(key.open_bits);
    RuleEntry {
        tier: match key.tier {
            abi::TIER_ADMIN => RuleTier::Admin,
            abi::TIER_BASELINE => RuleTier::Baseline,
            _ => RuleTier::Normal,
        },
        identity: (key.identity != 0).then_some(key.identity),
        protocol: (key.proto != 0).then_some(key.proto),
        port: by_port.then(|| PortPrefix { first: u16::from_be(key.port), bits }),
        action: if rule.flags & abi::RULE_DENY != 0 {
            RuleAction::Deny
        } else if rule.flags & abi::RULE_PASS != 0 {
            RuleAction::Pass
        } else {
            RuleAction::Allow
        },
        priority: rule.priority,
        cookie: rule.cookie,
    }
}

/// The largest number a priority can have: what is less urgent counts as this.
const LAST_PRIORITY: u32 = 0x00FF_FFFE;

fn rules(id: u32, set: &PolicySet) -> Result<Rules, DatapathError> {
    let mut all = Rules::new();
    for (dir, side) in [(0, &set.ingress), (1, &set.egress)] {
        for entry in &side.entries {
            let (key, rule) = rule(id, dir, entry)?;
            let present = all.entry(key).or_insert(rule);
            // Of two entries for the same the weightier one decides anyway.
            if weight(&rule) > weight(present) {
                *present = rule;
            }
        }
    }
    Ok(all)
}

fn rule(id: u32, dir: u8, entry: &RuleEntry) -> Result<(abi::RuleKey, abi::Rule), DatapathError> {
    let invalid = |why| DatapathError::Invalid { what: format!("policy {id}, entry {entry:?}"), why };
    let (mut port, mut open_bits) = (0, 0);
    if let Some(prefix) = entry.port {
        if entry.protocol.is_none() {
            return Err(invalid("a port needs a protocol; name it"));
        }
        open_bits = 16_u8.checked_sub(prefix.bits).filter(|open| *open < 16).unwrap_or(16);
        let mask = u16::MAX.checked_shl(open_bits.into()).unwrap_or(0);
        if open_bits == 16 || prefix.first & !mask != 0 {
            return Err(invalid("of a port 1 to 16 leading bits count, the others are 0"));
        }
        if (prefix.first, open_bits) == (0, 0) {
            return Err(invalid("there is no port 0; leave the port out for all"));
        }
        port = prefix.first;
    }
    let key = abi::RuleKey {
        policy_id: id,
        identity: entry.identity.unwrap_or_default(),
        port: port.to_be(),
        proto: entry.protocol.unwrap_or_default(),
        dir,
        tier: tier_number(entry.tier),
        open_bits,
        pad0: 0,
    };
    let flags = match entry.action {
        RuleAction::Pass => abi::RULE_PASS,
        RuleAction::Allow => 0,
        RuleAction::Deny => abi::RULE_DENY,
    };
    let priority = entry.priority.min(LAST_PRIORITY);
    Ok((key, abi::Rule { flags, cookie: entry.cookie, priority, spare: 0 }))
}

/// As the programs weigh it, see `bpf/policy.h`.
const fn weight(rule: &abi::Rule) -> (u32, u8) {
    let action = if rule.flags & abi::RULE_DENY != 0 {
        2
    } else if rule.flags & abi::RULE_PASS != 0 {
        0
    } else {
        1
    };
    (LAST_PRIORITY - rule.priority, action)
}

/// The bits of shapes and widths by which the programs find an entry.
fn shape(key: &abi::RuleKey) -> (u32, u32) {
    if key.open_bits != 0 {
        let half = if key.identity == 0 { 0 } else { 16 };
        return (0, 1 << (u32::from(key.open_bits) - 1 + half));
    }
    let bit = |on: bool, bit: u32| if on { bit } else { 0 };
    let shape = bit(key.identity != 0, abi::SHAPE_ID)
        | bit(key.proto != 0, abi::SHAPE_PROTO)
        | bit(key.port != 0, abi::SHAPE_PORT);
    (1 << shape, 0)
}

fn header(set: &PolicySet, rules: &Rules) -> abi::Policy {
    let of = |tier: u8, dir: u8| {
        let keys = rules.keys().filter(|key| key.tier == tier && key.dir == dir);
        keys.map(shape).fold((0, 0), |(shapes, widths), (shape, width)| (shapes | shape, widths | width))
    };
    let side = |tier: u8| (of(tier, 0), of(tier, 1));
    let four =
        |((shapes_in, widths_in), (shapes_out, widths_out))| [shapes_in, shapes_out, widths_in, widths_out];
    let (ingress, egress) = side(abi::TIER_NORMAL);
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    abi::Policy {
        flags: flag(set.ingress.enforced, abi::POL_INGRESS)
            | flag(set.egress.enforced, abi::POL_EGRESS)
            | flag(set.audit, abi::POL_AUDIT),
        shapes_ingress: ingress.0,
        shapes_egress: egress.0,
        revision: 0,
        widths: [ingress.1, egress.1],
        admin: four(side(abi::TIER_ADMIN)),
        baseline: four(side(abi::TIER_BASELINE)),
        spare: [0; 2],
    }
}

/// Whether something that was allowed may no longer be.
fn shrinks(old: &abi::Policy, new: &abi::Policy, present: &Rules, wanted: &Rules) -> bool {
    let enforcing = abi::POL_INGRESS | abi::POL_EGRESS;
    let newly_enforced =
        new.flags & !old.flags & enforcing != 0 || old.flags & !new.flags & abi::POL_AUDIT != 0;
    // Where the normal tier no longer has the last word, the baseline has it.
    let baseline_asked = old.flags & !new.flags & enforcing != 0 && new.baseline != [0; 4];
    let less = |old: &abi::Rule, new: Option<&abi::Rule>| {
        new.is_none_or(|new| new.flags != old.flags || new.priority > old.priority)
    };
    let allow_gone = present.iter().any(|(key, rule)| {
        // Without a pass the rest of its tier is asked.
        rule.flags & abi::RULE_DENY == 0 && less(rule, wanted.get(key))
    });
    let deny_new = wanted.iter().any(|(key, rule)| {
        denies(rule)
            && present.get(key).is_none_or(|old| old.flags != rule.flags || old.priority > rule.priority)
    });
    newly_enforced || baseline_asked || allow_gone || deny_new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(identity: u32, port: u16) -> RuleEntry {
        let port = Some(port.into());
        RuleEntry { identity: Some(identity), protocol: Some(6), port, ..RuleEntry::default() }
    }

    fn both(entries: &[RuleEntry]) -> (abi::Policy, Rules) {
        let set = PolicySet { ingress: PolicySide::only(entries.to_vec()), ..PolicySet::default() };
        let rules = rules(7, &set).unwrap();
        (header(&set, &rules), rules)
    }

    #[test]
    fn revision_grows_only_when_an_allow_may_disappear() {
        let (row, one) = both(&[allow(1, 80)]);
        let (_, two) = both(&[allow(1, 80), allow(2, 80)]);
        assert!(!shrinks(&row, &row, &one, &two), "an allow more");
        assert!(shrinks(&row, &row, &two, &one), "an allow less");
        let deny = RuleEntry { identity: Some(9), action: RuleAction::Deny, ..RuleEntry::default() };
        let (_, denied) = both(&[allow(1, 80), deny]);
        assert!(shrinks(&row, &row, &one, &denied), "a deny more");
        assert!(!shrinks(&row, &row, &denied, &one), "a deny less");
        assert!(shrinks(&abi::Policy::default(), &row, &Rules::new(), &one), "enforcement starts");
    }

    #[test]
    fn shapes_name_the_fields_in_use() {
        let any = RuleEntry::default();
        let (row, _) = both(&[allow(1, 80), any]);
        assert_eq!(row.shapes_ingress, 1 << 7 | 1);
        assert_eq!(row.shapes_egress, 0);
        assert_eq!(row.flags, abi::POL_INGRESS);
    }

    #[test]
    fn port_without_protocol_is_refused() {
        let bad = RuleEntry { port: Some(80.into()), ..RuleEntry::default() };
        let set = PolicySet { ingress: PolicySide::only(vec![bad]), ..PolicySet::default() };
        assert!(rules(1, &set).unwrap_err().to_string().contains("port needs a protocol"));
    }
}
