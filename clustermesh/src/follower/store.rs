//! What is known of one kind of entries of one cluster.

use super::event::Change;
use super::status::Refused;
use crate::wire::{Kind, Reason, Record, Reject, Rejections, Remote};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far the list and watch of a scope are on the present connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for its canary.
    Waiting,
    /// Pages come in; pinned to the revision once the first one did.
    Listing(i64),
    /// Listed; follows from that revision on.
    Watching(i64),
    /// Must not be read; asked for again later.
    Denied,
}

#[derive(Clone, Debug)]
struct Entry {
    record: Record,
    /// The list in which the key was seen last.
    seen: u64,
}

/// A key whose value, as it stands, is refused.
#[derive(Clone, Debug)]
struct Bad {
    /// What stands before the name.
    prefix: Arc<str>,
    reject: Reject,
    seen: u64,
}

/// Refused keys that are remembered; more are counted when they come, no more.
const MAX_BAD: usize = 1024;

/// Key name to last good value. Survives connections; what a later list lacks is deleted then, not before.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    kind: Kind,
    entries: BTreeMap<Arc<str>, Entry>,
    bad: BTreeMap<Arc<str>, Bad>,
    generation: u64,
}

const fn most_entries(kind: Kind) -> usize {
    match kind {
        Kind::Ips => 2_000_000,
        // A service of 10,000 backends has a hundred.
        Kind::EndpointSlices => 262_144,
        Kind::ServiceExports | Kind::Nodes | Kind::Services | Kind::Identities | Kind::Assignments => 65_536,
    }
}

impl Store {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { kind, entries: BTreeMap::new(), bad: BTreeMap::new(), generation: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Key name and record of everything known.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.entries.iter().map(|(name, entry)| (name.as_ref(), &entry.record))
    }

    /// A list starts: what it does not show is stale.
    pub(crate) const fn begin_list(&mut self) {
        self.generation += 1;
    }

    /// Takes the value of `prefix` + `name` in. A refused one costs this entry only, and by the wire's rules (2.6) the
    /// value before it stays.
    pub(crate) fn put(
        &mut self,
        remote: &Remote,
        (prefix, name): (&str, &str),
        value: &[u8],
        rejections: &mut Rejections,
        changes: &mut Vec<Change>,
    ) {
        match Record::decode(remote, self.kind, name, value).and_then(|record| self.admit(name, record)) {
            Ok(record) => {
                self.bad.remove(name);
                match record {
                    Some(record) => self.insert(name, record, changes),
                    None => self.delete(name, changes),
                }
            }
            Err(reject) => {
                // But an address that was given to an identity that cannot be right (11.7) must not keep the old one.
                if self.kind == Kind::Ips && reject.reason == Reason::IdentityRange {
                    self.delete(name, changes);
                }
                // What our own elected agent wrote is not given up for a value that it will correct.
                let known = self.entries.get_mut(name).filter(|_| self.kind == Kind::Assignments);
                if let Some(entry) = known {
                    entry.seen = self.generation;
                }
                self.refuse(remote, prefix, name, reject, rejections);
            }
        }
    }

    fn refuse(
        &mut self,
        remote: &Remote,
        prefix: &str,
        name: &str,
        reject: Reject,
        rejections: &mut Rejections,
    ) {
        let (key, kept) = (format!("{prefix}{name}"), self.entries.contains_key(name));
        let remedy = reject.reason.remedy();
        tracing::warn!(cluster = %remote.name, kind = %self.kind, key = %key.escape_debug(), %reject, kept, remedy, "entry refused");
        rejections.count(&key, &reject);
        if self.bad.len() < MAX_BAD || self.bad.contains_key(name) {
            self.bad.insert(name.into(), Bad { prefix: prefix.into(), reject, seen: self.generation });
        }
    }

    /// Keys whose present value is refused.
    pub(crate) fn refused_now(&self) -> usize {
        self.bad.len()
    }

    /// The first `most` of them.
    pub(crate) fn refused(&self, most: usize) -> impl Iterator<Item = Refused> {
        self.bad.iter().take(most).map(|(name, bad)| Refused {
            key: format!("{}{}", bad.prefix, name.chars().take(300).collect::<String>()),
            reason: bad.reject.reason,
            detail: bad.reject.detail.clone(),
            remedy: bad.reject.reason.remedy(),
            kept: self.entries.contains_key(name),
        })
    }

    fn admit(&mut self, name: &str, record: Option<Record>) -> Result<Option<Record>, Reject> {
        let full = self.entries.len() >= most_entries(self.kind) && !self.entries.contains_key(name);
        if full && record.is_some() {
            let detail = format!("more than {} {}", most_entries(self.kind), self.kind);
            return Err(Reject::new(Reason::TooMany, detail));
        }
        if let Some(Record::Ip(entry)) = &record
            && let Some(twin) = entry.alias_name()
        {
            match self.entries.get(twin.as_str()) {
                Some(known) if known.seen == self.generation => {
                    return Err(Reject::new(Reason::Alias, format!("{twin} means the same address")));
                }
                // Left over from before this list: the row is the same, so it is replaced and not deleted.
                Some(_) => drop(self.entries.remove(twin.as_str())),
                None => {}
            }
        }
        Ok(record)
    }

    fn insert(&mut self, name: &str, record: Record, changes: &mut Vec<Change>) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.seen = self.generation;
            if entry.record != record {
                entry.record = record.clone();
                changes.push(Change::Upsert(record));
            }
            return;
        }
        changes.push(Change::Upsert(record.clone()));
        self.entries.insert(name.into(), Entry { record, seen: self.generation });
    }

    /// Forgets a key; an unknown one is no news.
    pub(crate) fn delete(&mut self, name: &str, changes: &mut Vec<Change>) {
        self.bad.remove(name);
        if let Some(entry) = self.entries.remove(name) {
            changes.push(Change::Delete(entry.record));
        }
    }

    /// A list is complete: what it did not show is gone.
    pub(crate) fn sweep(&mut self, changes: &mut Vec<Change>) {
        let generation = self.generation;
        self.bad.retain(|_, bad| bad.seen == generation);
        let gone = self.entries.extract_if(.., |_, entry| entry.seen != generation);
        changes.extend(gone.map(|(_, entry)| Change::Delete(entry.record)));
    }

    /// Forgets everything.
    pub(crate) fn drain(&mut self, changes: &mut Vec<Change>) {
        self.bad.clear();
        changes.extend(std::mem::take(&mut self.entries).into_values().map(|e| Change::Delete(e.record)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

    struct Rig {
        store: Store,
        remote: Remote,
        rejections: Rejections,
    }

    impl Rig {
        fn new(kind: Kind) -> Self {
            let id = ClusterId::new(1, MaxClusters::C255).unwrap();
            let name = ClusterName::new("c1").unwrap();
            let remote = Remote { name, id, max: MaxClusters::C255, own: true };
            Self { store: Store::new(kind), remote, rejections: Rejections::default() }
        }

        /// How many upserts and deletes a value causes.
        fn put(&mut self, name: &str, value: &str) -> (usize, usize) {
            let mut changes = Vec::new();
            self.store.put(
                &self.remote,
                ("some/", name),
                value.as_bytes(),
                &mut self.rejections,
                &mut changes,
            );
            count(&changes)
        }

        fn refused(&self) -> Vec<String> {
            self.store.refused(10).map(|refused| refused.to_string()).collect()
        }
    }

    fn count(changes: &[Change]) -> (usize, usize) {
        let upserts = changes.iter().filter(|change| matches!(change, Change::Upsert(_))).count();
        (upserts, changes.len() - upserts)
    }

    #[test]
    fn a_corrupt_assignment_keeps_the_good_one_also_over_a_new_list() {
        let mut rig = Rig::new(Kind::Assignments);
        assert_eq!(rig.put("shop/web", r#"{"addresses":["203.0.113.1"]}"#), (1, 0));
        rig.store.begin_list();
        for bad in ["{", "7", r#"{"addresses":["127.0.0.1"]}"#] {
            assert_eq!(rig.put("shop/web", bad), (0, 0), "{bad}");
        }
        let told = rig.refused();
        assert!(
            told.len() == 1 && told[0].contains("some/shop/web") && told[0].contains("stays in use"),
            "{told:?}"
        );
        let mut changes = Vec::new();
        rig.store.sweep(&mut changes);
        assert_eq!((count(&changes), rig.store.len(), rig.rejections.total()), ((0, 0), 1, 3));
        assert_eq!(rig.put("shop/web", r#"{"addresses":["203.0.113.2"]}"#), (1, 0));
        assert!(rig.refused().is_empty(), "what was mended is told no more");
        assert_eq!(rig.put("a/b/c", "{}"), (0, 0));
        assert!(rig.refused()[0].contains("key-name"));
    }

    #[test]
    fn a_refused_address_keeps_its_value_but_not_an_identity_that_cannot_be_right() {
        let mut rig = Rig::new(Kind::Ips);
        let value = |ip: &str, id: u32| format!(r#"{{"IP":"{ip}","HostIP":"192.0.2.1","ID":{id}}}"#);
        assert_eq!(rig.put("10.1.0.7", &value("10.1.0.7", 66_001)), (1, 0));
        // Wire 2.6: what cannot be read, or speaks of something else, says nothing about this address.
        for bad in ["{".to_owned(), value("10.1.0.8", 66_001)] {
            assert_eq!(rig.put("10.1.0.7", &bad), (0, 0), "{bad}");
            assert!(rig.refused()[0].contains("some/10.1.0.7") && rig.refused()[0].contains("stays"));
        }
        // Wire 11.7: it was given away, to whom cannot be told.
        assert_eq!(rig.put("10.1.0.7", &value("10.1.0.7", 200_000)), (0, 1));
        assert!(rig.refused()[0].contains("identity-range") && rig.refused()[0].contains("not used"));
        // It goes from the list of faults with its key, or when a later list lacks it.
        rig.store.begin_list();
        rig.store.sweep(&mut Vec::new());
        assert_eq!((rig.store.refused_now(), rig.rejections.total()), (0, 3));
    }
}
