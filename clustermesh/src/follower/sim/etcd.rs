//! A model of one etcd: revisions, every version of every key until it is compacted, backups.

use crate::follower::{Header, KeyEvent};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Changes that are kept without a compaction; the model compacts by itself beyond.
const MAX_LOG: usize = 4_000;

/// Values are kept as text, one character for each byte: most are text, and slices are none.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes of a value.
pub(crate) fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(letter).unwrap()).collect()
}

/// What the versions of a key are: the revision, and the value or its absence.
type Versions = Vec<(i64, Option<String>)>;

/// A page: keys with values, and whether more follow.
pub(crate) type Page = (Vec<(Vec<u8>, Vec<u8>)>, bool);

#[derive(Clone, Debug)]
pub(crate) struct Etcd {
    pub(crate) id: u64,
    pub(crate) term: u64,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    keys: BTreeMap<String, Versions>,
    log: VecDeque<(i64, KeyEvent)>,
    /// Keys that were deleted since that was asked last.
    deleted: BTreeSet<String>,
}

impl Etcd {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            term: 2,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            deleted: BTreeSet::new(),
        }
    }

    pub(crate) fn header(&self) -> Header {
        Header { etcd: self.id, revision: self.revision, term: self.term }
    }

    /// Writes one key in a revision of its own.
    pub(crate) fn put(&mut self, key: &str, value: &str) {
        self.revision += 1;
        self.write(key, Some(value));
        self.bound();
    }

    /// Deletes keys in one revision, as a lease that ends does.
    pub(crate) fn delete(&mut self, keys: &[String]) {
        let there: Vec<&String> = keys.iter().filter(|key| self.get(key).is_some()).collect();
        if there.is_empty() {
            return;
        }
        let there: Vec<String> = there.into_iter().cloned().collect();
        self.revision += 1;
        for key in there {
            self.write(&key, None);
            self.deleted.insert(key);
        }
        self.bound();
    }

    fn write(&mut self, key: &str, value: Option<&str>) {
        let (name, revision) = (key.as_bytes().to_vec(), self.revision);
        self.keys.entry(key.to_owned()).or_default().push((revision, value.map(str::to_owned)));
        self.log.push_back((
            revision,
            match value {
                Some(value) => KeyEvent::Put(name, bytes_of(value)),
                None => KeyEvent::Delete(name),
            },
        ));
    }

    fn bound(&mut self) {
        if self.log.len() > MAX_LOG {
            self.compact();
        }
    }

    /// Forgets what was before now.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
        self.keys.retain(|_, versions| {
            let last = versions.len().saturating_sub(1);
            versions.drain(..last);
            versions.first().is_some_and(|(_, value)| value.is_some())
        });
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key)?.last()?.1.as_deref()
    }

    /// The revision and value of a key as it was then; `Err` when that revision is compacted or still to come.
    pub(crate) fn get_at(&self, key: &str, revision: i64) -> Result<Option<(i64, String)>, bool> {
        self.reachable(revision)?;
        Ok(self.keys.get(key).and_then(|versions| at(versions, revision)))
    }

    /// Whether a revision can be read: `Err(true)` if it is compacted, `Err(false)` if it is still to come.
    fn reachable(&self, revision: i64) -> Result<(), bool> {
        match revision {
            revision if revision < self.compacted => Err(true),
            revision if revision > self.revision => Err(false),
            _ => Ok(()),
        }
    }

    pub(crate) fn page(&self, from: &[u8], prefix: &str, revision: i64, limit: usize) -> Result<Page, bool> {
        let revision = if revision == 0 { self.revision } else { revision };
        self.reachable(revision)?;
        let from = String::from_utf8(from.to_vec()).unwrap();
        let inside = self.keys.range(from..).take_while(|(key, _)| key.starts_with(prefix));
        let mut found = inside.filter_map(|(key, versions)| {
            at(versions, revision).map(|(_, value)| (key.clone().into_bytes(), bytes_of(&value)))
        });
        let entries = found.by_ref().take(limit).collect();
        Ok((entries, found.next().is_some()))
    }

    /// Changes below a prefix from a revision on, at most those of `most` revisions; with the last one's revision.
    pub(crate) fn changes(&self, prefix: &str, from: i64, most: i64) -> (i64, Vec<KeyEvent>) {
        let start = self.log.partition_point(|(revision, _)| *revision < from);
        let inside = |(_, event): &&(i64, KeyEvent)| {
            let (KeyEvent::Put(key, _) | KeyEvent::Delete(key)) = event;
            key.starts_with(prefix.as_bytes())
        };
        let mut seen = 0;
        let (mut events, mut revisions) = (Vec::new(), 0);
        for (revision, event) in self.log.range(start..).filter(inside) {
            if *revision != seen {
                revisions += 1;
                if revisions > most {
                    break;
                }
            }
            seen = *revision;
            events.push(event.clone());
        }
        (seen, events)
    }

    /// Everything that is there now.
    pub(crate) fn content(&self) -> impl Iterator<Item = (&str, &str)> {
        self.keys.iter().filter_map(|(key, versions)| {
            let value = versions.last()?.1.as_deref()?;
            Some((key.as_str(), value))
        })
    }

    pub(crate) fn take_deleted(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.deleted)
    }
}

/// The version that counts at a revision.
fn at(versions: &Versions, revision: i64) -> Option<(i64, String)> {
    let (written, value) = versions.iter().rev().find(|(written, _)| *written <= revision)?;
    Some((*written, value.clone()?))
}
