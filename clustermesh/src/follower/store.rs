//! What is known of one kind of entries of one cluster.

use super::entries::{Entries, Sought};
use super::event::Change;
use super::limits::{Limits, Usage};
use super::resume::Position;
use super::status::{KindUsage, Refused};
use crate::etcd::MAX_VALUE_BYTES;
use crate::wire::{Kind, Raw, Reason, Record, Reject, Rejections, Remote};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far the list and watch of a scope are on the present connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for its canary.
    Waiting,
    /// The first page is asked for; nothing before that revision can be its answer.
    Asked(i64),
    /// Pages come in, pinned to the first one's revision, in a term that cannot fall.
    Listing(i64, u64),
    /// Listed; follows from that position on.
    Watching(Position),
    /// Must not be read; asked for again later.
    Denied,
}

/// A key whose value, as it stands, is refused.
#[derive(Clone, Debug)]
struct Bad {
    /// What stands before the name.
    prefix: Arc<str>,
    reject: Reject,
    seen: u32,
}

/// Refused keys that are remembered; more are counted when they come, no more.
const MAX_BAD: usize = 1024;

/// What taking an entry in needs of its cluster, and what comes of it.
pub(crate) struct Intake<'a> {
    pub(crate) remote: &'a Remote,
    pub(crate) limits: &'a Limits,
    pub(crate) usage: &'a mut Usage,
    pub(crate) rejections: &'a mut Rejections,
    pub(crate) changes: Vec<Change>,
}

/// Key name to last good value. Survives connections; what a later list lacks is deleted then, not before.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    kind: Kind,
    /// Entries are checked and kept byte for byte.
    raw: bool,
    entries: Entries,
    /// What they cost: bytes of their names and values, slices as they are unpacked.
    bytes: usize,
    bad: BTreeMap<Arc<str>, Bad>,
    generation: u32,
    /// Something was refused since the last list began that a later list may have room for.
    wanting: bool,
}

impl Store {
    pub(crate) fn new(kind: Kind, raw: bool) -> Self {
        let entries = Entries::new((!raw).then_some(kind));
        Self { kind, raw, entries, bytes: 0, bad: BTreeMap::new(), generation: 0, wanting: false }
    }

    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// What the entries cost.
    pub(crate) const fn usage(&self) -> KindUsage {
        KindUsage { keys: self.entries.len(), bytes: self.bytes }
    }

    /// Key name and record of everything known.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, Record>)> {
        self.entries.iter()
    }

    /// Whether a list would take in what was refused for reasons that other entries cause.
    pub(crate) const fn is_wanting(&self) -> bool {
        self.wanting
    }

    /// A list starts: what it does not show is stale.
    pub(crate) const fn begin_list(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.wanting = false;
    }

    /// Takes the value of `prefix` + `name` in. A refused one costs this entry only, and by the wire's rules (2.6) the
    /// value before it stays.
    pub(crate) fn put(&mut self, (prefix, name): (&str, &str), value: &[u8], intake: &mut Intake<'_>) {
        let read = Record::decode(intake.remote, self.kind, name, value).and_then(|record| match record {
            // What a relay's readers make of it is theirs to say.
            _ if self.raw => self.as_read(name, value).map(Some),
            record => Ok(record.map(Record::kept)),
        });
        let taken = read.and_then(|record| match record {
            Some(record) => {
                let bytes = name.len().saturating_add(record.cost_bytes(value.len()));
                self.take_in((name, Sought::record(name, &record)), bytes, record, intake)
            }
            None => {
                self.delete(name, intake.usage, &mut intake.changes);
                Ok(())
            }
        });
        match taken {
            Ok(()) => drop(self.bad.remove(name)),
            Err(reject) => {
                // But an address that was given to an identity that cannot be right (11.7) must not keep the old one.
                if self.kind == Kind::Ips && reject.reason == Reason::IdentityRange {
                    self.delete(name, intake.usage, &mut intake.changes);
                }
                self.refuse(prefix, name, reject, intake);
            }
        }
    }

    /// The entry for a mirror, if it can be written again.
    fn as_read(&self, name: &str, value: &[u8]) -> Result<Record, Reject> {
        if value.len() > MAX_VALUE_BYTES {
            let detail = format!("value of {} bytes, of which an etcd takes {MAX_VALUE_BYTES}", value.len());
            return Err(Reject::new(Reason::TooBig, detail));
        }
        Ok(Record::Raw(Raw { kind: self.kind, name: name.into(), value: value.into() }))
    }

    fn refuse(&mut self, prefix: &str, name: &str, reject: Reject, intake: &mut Intake<'_>) {
        self.wanting |= matches!(reject.reason, Reason::TooMany | Reason::Alias);
        // What our own elected agent wrote is not given up for a value that it will correct. What there is no room
        // for is there, and the value before it is the best that is known.
        if (self.kind == Kind::Assignments || reject.reason == Reason::TooMany)
            && let Some(entry) = self.entries.get_mut(self.entries.sought(name))
        {
            entry.seen = self.generation;
        }
        let (key, kept) = (format!("{prefix}{name}"), self.entries.get(self.entries.sought(name)).is_some());
        let remedy = reject.reason.remedy();
        // Millions of refused keys must not fill the log: each reason is told once in a power of two.
        if intake.rejections.of(reject.reason).saturating_add(1).is_power_of_two() {
            tracing::warn!(cluster = %intake.remote.name, kind = %self.kind, key = %key.escape_debug(), %reject, kept, remedy, "entry refused");
        }
        intake.rejections.count(&key, &reject);
        if self.bad.len() < MAX_BAD || self.bad.contains_key(name) {
            self.bad.insert(name.into(), Bad { prefix: prefix.into(), reject, seen: self.generation });
        }
    }

    /// Keys whose present value is refused.
    pub(crate) fn refused_now(&self) -> usize {
        self.bad.len()
    }

    /// Keys that are refused for that reason now.
    pub(crate) fn refused_for(&self, reason: Reason) -> usize {
        self.bad.values().filter(|bad| bad.reject.reason == reason).count()
    }

    /// The first `most` of them.
    pub(crate) fn refused(&self, most: usize) -> impl Iterator<Item = Refused> {
        self.bad.iter().take(most).map(|(name, bad)| Refused {
            key: format!("{}{}", bad.prefix, name.chars().take(300).collect::<String>()),
            reason: bad.reject.reason,
            detail: bad.reject.detail.clone(),
            remedy: bad.reject.reason.remedy(),
            kept: self.entries.get(self.entries.sought(name)).is_some(),
        })
    }

    /// Takes a record in, if there is room for it and no other key means the same.
    fn take_in(
        &mut self,
        (name, sought): (&str, Sought<'_>),
        bytes: usize,
        record: Record,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        let before = self.entries.get(sought).map(|entry| size(entry.bytes));
        self.make_room(before, bytes, intake)?;
        self.replace_alias(sought, &record, intake)?;
        intake.usage.add(bytes, before);
        self.bytes = self.bytes.saturating_add(bytes).saturating_sub(before.unwrap_or(0));
        let (seen, cost) = (self.generation, u32::try_from(bytes).unwrap_or(u32::MAX));
        match before.and_then(|_| self.entries.get_mut(sought)) {
            Some(entry) => {
                (entry.seen, entry.bytes) = (seen, cost);
                if !entry.change(name, &record) {
                    return Ok(());
                }
            }
            None => self.entries.insert((name, sought), &record, seen, cost),
        }
        intake.changes.push(Change::Upsert(record));
        Ok(())
    }

    /// One address under two names: the first that a list shows counts.
    fn replace_alias(
        &mut self,
        sought: Sought<'_>,
        record: &Record,
        intake: &mut Intake<'_>,
    ) -> Result<(), Reject> {
        let Some(twin) = self.entries.alias(sought) else { return Ok(()) };
        let Some(known) = self.entries.get(twin) else { return Ok(()) };
        if known.seen == self.generation {
            let Record::Ip(entry) = record else { return Ok(()) };
            let twin = entry.alias_name().unwrap_or_default();
            return Err(Reject::new(Reason::Alias, format!("{twin} means the same address")));
        }
        // Left over from before this list: the row is the same, so it is replaced and not deleted.
        let bytes = size(known.bytes);
        intake.usage.remove(bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.entries.remove(twin);
        Ok(())
    }

    /// Whether the cluster may have one more entry of that size, or instead of one of `before` bytes.
    fn make_room(&self, before: Option<usize>, bytes: usize, intake: &Intake<'_>) -> Result<(), Reject> {
        let limits = intake.limits;
        let of_kind = Limits::max_of(self.kind);
        if before.is_none() && self.entries.len() >= of_kind {
            return Err(Reject::new(Reason::TooMany, format!("more than {of_kind} {}", self.kind)));
        }
        let mut usage = *intake.usage;
        usage.add(bytes, before);
        if usage.entries > limits.max_entries {
            return Err(Reject::new(Reason::TooMany, format!("more than {} entries", limits.max_entries)));
        }
        // What shrinks is taken in any case.
        if usage.bytes > limits.max_bytes && usage.bytes > intake.usage.bytes {
            return Err(Reject::new(Reason::TooMany, format!("more than {} bytes", limits.max_bytes)));
        }
        Ok(())
    }

    /// Forgets a key; an unknown one is no news.
    pub(crate) fn delete(&mut self, name: &str, usage: &mut Usage, changes: &mut Vec<Change>) {
        self.bad.remove(name);
        if let Some(entry) = self.entries.remove(self.entries.sought(name)) {
            usage.remove(size(entry.bytes));
            self.bytes = self.bytes.saturating_sub(size(entry.bytes));
            changes.push(Change::Delete(entry.record().into_owned()));
        }
    }

    /// A list is complete: what it did not show is gone.
    pub(crate) fn sweep(&mut self, usage: &mut Usage, changes: &mut Vec<Change>) {
        let generation = self.generation;
        self.bad.retain(|_, bad| bad.seen == generation);
        for entry in self.entries.take_unseen(generation) {
            usage.remove(size(entry.bytes));
            self.bytes = self.bytes.saturating_sub(size(entry.bytes));
            changes.push(Change::Delete(entry.record().into_owned()));
        }
        self.entries.pack();
    }

    /// Forgets everything.
    pub(crate) fn drain(&mut self, usage: &mut Usage, changes: &mut Vec<Change>) {
        self.bad.clear();
        for entry in self.entries.take_all() {
            usage.remove(size(entry.bytes));
            self.bytes = self.bytes.saturating_sub(size(entry.bytes));
            changes.push(Change::Delete(entry.record().into_owned()));
        }
    }
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

    struct Rig {
        store: Store,
        remote: Remote,
        limits: Limits,
        usage: Usage,
        rejections: Rejections,
    }

    impl Rig {
        fn new(kind: Kind) -> Self {
            let id = ClusterId::new(1, MaxClusters::C255).unwrap();
            let name = ClusterName::new("c1").unwrap();
            let remote = Remote { name, id, max: MaxClusters::C255, own: true };
            let (store, limits) = (Store::new(kind, false), Limits::default());
            Self { store, remote, limits, usage: Usage::default(), rejections: Rejections::default() }
        }

        /// How many upserts and deletes a value causes.
        fn put(&mut self, name: &str, value: &str) -> (usize, usize) {
            self.put_bytes(name, value.as_bytes())
        }

        fn put_bytes(&mut self, name: &str, value: &[u8]) -> (usize, usize) {
            let mut intake = Intake {
                remote: &self.remote,
                limits: &self.limits,
                usage: &mut self.usage,
                rejections: &mut self.rejections,
                changes: Vec::new(),
            };
            self.store.put(("some/", name), value, &mut intake);
            count(&intake.changes)
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
        rig.store.sweep(&mut rig.usage, &mut changes);
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
        rig.store.sweep(&mut rig.usage, &mut Vec::new());
        assert_eq!((rig.store.refused_now(), rig.rejections.total()), (0, 3));
    }

    #[test]
    fn what_is_past_the_budget_is_refused_and_what_is_known_stays() {
        let mut rig = Rig::new(Kind::Ips);
        let value = |octet: u32, pod: &str| {
            format!(r#"{{"IP":"10.1.0.{octet}","HostIP":"192.0.2.1","ID":66001,"K8sPodName":"{pod}"}}"#)
        };
        rig.limits.max_entries = 2;
        for octet in 1..=3 {
            let taken = rig.put(&format!("10.1.0.{octet}"), &value(octet, "a"));
            assert_eq!(taken, (usize::from(octet < 3), 0));
        }
        assert!(rig.refused()[0].contains("too-many: more than 2 entries"), "{:?}", rig.refused());
        assert!(rig.store.is_wanting());
        rig.limits.max_bytes = rig.usage.bytes;
        // One that grows past the bound keeps its value, also over a list; one that shrinks is taken.
        rig.store.begin_list();
        assert_eq!(rig.put("10.1.0.1", &value(1, "longer")), (0, 0));
        assert_eq!(rig.put("10.1.0.2", &value(2, "")), (1, 0));
        let mut changes = Vec::new();
        rig.store.sweep(&mut rig.usage, &mut changes);
        assert_eq!((count(&changes), rig.store.len(), rig.usage.entries), ((0, 0), 2, 2));
        rig.store.drain(&mut rig.usage, &mut changes);
        assert_eq!((rig.usage, changes.len()), (Usage::default(), 2));
    }

    #[test]
    fn slices_cost_what_they_are_unpacked_to() {
        use crate::wire::EndpointSlice;
        use crate::wire::slice::Endpoint;
        let mut rig = Rig::new(Kind::EndpointSlices);
        rig.limits.max_bytes = 64 << 20;
        let endpoint = Endpoint {
            addresses: vec!["10.1.200.7".parse().unwrap(); 100],
            for_zones: Some(vec!["z".into(); 64]),
            topology: [("rack".into(), "r1".into())].into(),
            ..Endpoint::default()
        };
        let mut taken = 0;
        for number in 0..4 {
            let name = format!("web-{number}");
            let mut slice = EndpointSlice::new("c1", 1, "shop", &name, true);
            slice.endpoints = vec![endpoint.clone(); 1000];
            slice.annotations.insert("a".into(), "b".into());
            slice.labels.insert("app".into(), "web".into());
            let (message, value) = (slice.to_message().len(), slice.encode());
            assert!(message > 1_500_000 && value.len() < 100_000, "{message} bytes in {}", value.len());
            taken += rig.put_bytes(&format!("shop/{name}"), &value).0;
        }
        assert!((1..4).contains(&taken), "{taken} of 25 MB and more each fit into 64");
        assert!(rig.refused()[0].contains("too-many: more than 67108864 bytes"), "{:?}", rig.refused());
        // What nobody reads is not kept.
        let (_, record) = rig.store.iter().next().unwrap();
        let Record::EndpointSlice(slice) = record.into_owned() else { panic!("a slice") };
        assert!(slice.annotations.is_empty() && slice.labels.is_empty(), "{:?}", slice.labels);
        assert!(slice.endpoints.iter().all(|endpoint| endpoint.topology.is_empty()));
        assert_eq!(rig.store.usage().bytes, rig.usage.bytes);
    }
}
