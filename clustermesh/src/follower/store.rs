//! What is known of one kind of entries of one cluster.

use super::event::Change;
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

/// Key name to last good value. Survives connections; what a later list lacks is deleted then, not before.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    kind: Kind,
    entries: BTreeMap<Arc<str>, Entry>,
    generation: u64,
}

const fn most_entries(kind: Kind) -> usize {
    match kind {
        Kind::Ips => 2_000_000,
        Kind::Nodes | Kind::Services | Kind::Identities | Kind::Assignments => 65_536,
    }
}

impl Store {
    pub(crate) const fn new(kind: Kind) -> Self {
        Self { kind, entries: BTreeMap::new(), generation: 0 }
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

    /// Takes a value in; a refused one costs this entry only.
    pub(crate) fn put(
        &mut self,
        remote: &Remote,
        name: &str,
        value: &[u8],
        rejections: &mut Rejections,
        changes: &mut Vec<Change>,
    ) {
        match Record::decode(remote, self.kind, name, value).and_then(|record| self.admit(name, record)) {
            Ok(Some(record)) => self.insert(name, record, changes),
            Ok(None) => self.delete(name, changes),
            Err(reject) => {
                tracing::warn!(cluster = %remote.name, kind = %self.kind, key = %name.escape_debug(), %reject, "entry refused");
                rejections.count(name, &reject);
                // A new identity that cannot be right must not leave the address with the old one.
                if self.kind == Kind::Ips && !matches!(reject.reason, Reason::Malformed | Reason::TooBig) {
                    self.delete(name, changes);
                }
            }
        }
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
        if let Some(entry) = self.entries.remove(name) {
            changes.push(Change::Delete(entry.record));
        }
    }

    /// A list is complete: what it did not show is gone.
    pub(crate) fn sweep(&mut self, changes: &mut Vec<Change>) {
        let generation = self.generation;
        let gone = self.entries.extract_if(.., |_, entry| entry.seen != generation);
        changes.extend(gone.map(|(_, entry)| Change::Delete(entry.record)));
    }

    /// Forgets everything.
    pub(crate) fn drain(&mut self, changes: &mut Vec<Change>) {
        changes.extend(std::mem::take(&mut self.entries).into_values().map(|e| Change::Delete(e.record)));
    }
}
