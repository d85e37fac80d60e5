//! The core of one cluster's mirror: what of it has to be written next. No I/O, no clock.
//!
//! The follower says what the cluster holds; the writer says what stands in the own etcd. Keys that may differ are
//! *dirty*. They are carried in rounds: a round takes everything that is dirty at its start, in an order that readers
//! like (identities before addresses), so that no kind waits for ever behind another. A kind's canary is written when a
//! round has carried everything that was dirty after the kind was complete, leftovers among it. Until a kind is complete
//! nothing of it is deleted but what the cluster itself deleted.
//!
//! Readers learn from the configuration which kinds there are, and look at it now and then. So a kind that the cluster does
//! not publish any more *outlasts* its successor: it stays as it stands until the writer says that all readers have looked.

use crate::follower::{Change, News};
use crate::publisher::Desired;
use crate::publisher::desired::{Actual, digest};
use crate::wire::relay::{self, Mirrored};
use crate::wire::{Kind, Layout, Record, key};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tombolo_base::ids::{ClusterId, ClusterName};

/// The kinds of a mirror, in the order of writing; deleted is in the opposite one.
pub(super) const ORDER: [Kind; 6] =
    [Kind::Identities, Kind::Nodes, Kind::Ips, Kind::Services, Kind::EndpointSlices, Kind::ServiceExports];
/// Most keys of one step.
const STEP_KEYS: usize = 512;
/// Most bytes of one step, the last value aside.
const STEP_BYTES: usize = 4 << 20;
/// Keys of a round that are looked at in one step: most differ only rarely.
const STEP_LOOKS: usize = 16_384;

/// What stands in etcd, as its writer knows it.
pub(super) struct Standing<'a> {
    /// Every key of the cluster.
    pub(super) actual: &'a BTreeMap<String, Actual>,
    /// Whether a lease is kept alive by this writer.
    pub(super) owns: &'a dyn Fn(i64) -> bool,
    /// The time, for canaries.
    pub(super) now: &'a str,
}

impl Standing<'_> {
    fn is(&self, key: &str, value: &[u8]) -> bool {
        self.actual.get(key).is_some_and(|found| (self.owns)(found.lease) && found.digest == digest(value))
    }
}

/// What is to be written next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) puts: Vec<Desired>,
    /// With the revision at which each was seen.
    pub(super) deletes: Vec<(String, i64)>,
}

impl Step {
    pub(super) const fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }

    fn delete(&mut self, standing: &Standing<'_>, key: &str) {
        if let Some(found) = standing.actual.get(key) {
            self.deletes.push((key.to_owned(), found.revision));
        }
    }
}

/// One kind of entries.
#[derive(Debug, Default)]
struct Part {
    wanted: BTreeMap<Arc<str>, Arc<[u8]>>,
    dirty: BTreeSet<Arc<str>>,
    /// Whether the cluster publishes it.
    published: bool,
    /// It is not published any more, and readers may not know yet: what stands of it stays.
    outlasts: bool,
    /// All entries are known: what stands besides them is a leftover.
    complete: bool,
    /// Leftovers are to be looked for.
    sweep: bool,
    /// The present round carries all that has to stand before the canary.
    covered: bool,
    /// The canary may stand.
    announced: bool,
}

/// How far a mirror is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Entries of the cluster.
    pub(super) entries: usize,
    /// Keys that are still to be compared or written.
    pub(super) queued: usize,
    /// Whether all of it stands, and its canaries.
    pub(super) announced: bool,
    /// Whether that was so once under the cluster's present number.
    pub(super) established: bool,
}

/// One cluster's mirror.
#[derive(Debug)]
pub(super) struct Mirror {
    cluster: ClusterName,
    id: Option<ClusterId>,
    config: Option<Mirrored>,
    parts: BTreeMap<Kind, Part>,
    round: VecDeque<(Kind, Arc<str>)>,
    /// Canaries and configuration are to be compared.
    unsettled: bool,
    /// Canaries that are not true any more: they go before anything else.
    withdraw: BTreeSet<Kind>,
    /// Somebody writes: what changes is noted.
    carried: bool,
    /// What the last step gave is still being written.
    writing: bool,
    /// It was exact once: since then it only follows.
    established: bool,
    /// Keys whose values etcd does not take, until they are looked at again.
    unwritable: BTreeSet<String>,
}

impl Mirror {
    pub(super) fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            id: None,
            config: None,
            parts: ORDER.into_iter().map(|kind| (kind, Part::default())).collect(),
            round: VecDeque::new(),
            unsettled: false,
            withdraw: BTreeSet::new(),
            carried: false,
            writing: false,
            established: false,
            unwritable: BTreeSet::new(),
        }
    }

    /// The cluster's entries changed.
    pub(super) fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            let (record, keep) = match change {
                Change::Upsert(record) => (record, true),
                Change::Delete(record) => (record, false),
            };
            let Record::Raw(raw) = record else { continue };
            let Some(part) = self.parts.get_mut(&raw.kind) else { continue };
            if self.carried {
                part.dirty.insert(raw.name.clone());
            }
            if keep {
                part.wanted.insert(raw.name, raw.value);
            } else {
                part.wanted.remove(&raw.name);
            }
        }
    }

    /// The follower said something else. What cannot be passed on of a configuration is returned.
    pub(super) fn news(&mut self, news: News) -> Vec<String> {
        self.unsettled = true;
        match news {
            News::Complete(kind) => {
                self.complete(kind);
                Vec::new()
            }
            News::Config(id, value) => match relay::mirrored(&value) {
                Ok(mirrored) => {
                    let renumbered = self.id.replace(id).is_some_and(|before| before != id);
                    self.established &= !renumbered;
                    for kind in ORDER {
                        self.published(kind, mirrored.config.capabilities.publishes(kind), renumbered);
                    }
                    self.config.insert(mirrored).left_out.clone()
                }
                // The follower accepted it.
                Err(_) => Vec::new(),
            },
        }
    }

    /// What the cluster does not publish has no entries, and no canary to wait for.
    fn published(&mut self, kind: Kind, published: bool, renumbered: bool) {
        // An earlier relay may have mirrored a kind that went before this one ever saw it.
        let first = self.config.is_none();
        let Some(part) = self.parts.get_mut(&kind) else { return };
        let begins = published && !part.published && part.complete;
        part.outlasts = !published && !renumbered && (part.published || part.outlasts || first);
        part.published = published;
        if begins || renumbered {
            (part.complete, part.covered, part.announced) = (false, false, false);
            self.withdraw.insert(kind);
        }
        if !published {
            self.complete(kind);
        }
    }

    fn complete(&mut self, kind: Kind) {
        if let Some(part) = self.parts.get_mut(&kind) {
            part.sweep |= !part.complete;
            part.complete = true;
        }
    }

    /// A writer begins, or what it knew of etcd was not right any more: everything is compared.
    pub(super) fn begin(&mut self) {
        self.round.clear();
        self.unwritable.clear();
        (self.carried, self.unsettled, self.writing) = (true, true, false);
        for part in self.parts.values_mut() {
            part.dirty = part.wanted.keys().cloned().collect();
            part.sweep = part.complete;
            (part.covered, part.announced) = (false, false);
        }
    }

    /// Nobody writes any more.
    pub(super) fn end(&mut self) {
        self.round.clear();
        self.unwritable.clear();
        self.carried = false;
        self.parts.values_mut().for_each(|part| part.dirty.clear());
    }

    /// Whether all that takes the place of kinds that are not published any more stands, and these do, too.
    pub(super) fn holds_outlasting(&self) -> bool {
        self.carried && self.announced() && self.parts.values().any(|part| part.outlasts)
    }

    /// All readers know by now which kinds are published: the others go.
    pub(super) fn drop_outlasting(&mut self) {
        if !self.holds_outlasting() {
            return;
        }
        for part in self.parts.values_mut().filter(|part| part.outlasts) {
            (part.outlasts, part.sweep) = (false, true);
        }
        self.unsettled = true;
    }

    /// Whether [`Self::step`] has something to look at.
    pub(super) fn has_work(&self) -> bool {
        let part_has = |part: &Part| {
            !part.dirty.is_empty() || (part.sweep && !part.outlasts) || part.complete != part.announced
        };
        self.carried
            && (self.unsettled
                || !self.withdraw.is_empty()
                || !self.round.is_empty()
                || self.parts.values().any(part_has))
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            entries: self.parts.values().map(|part| part.wanted.len()).sum(),
            queued: self.round.len() + self.parts.values().map(|part| part.dirty.len()).sum::<usize>(),
            announced: self.announced() && !self.writing,
            established: self.established,
        }
    }

    fn announced(&self) -> bool {
        self.config.is_some() && self.parts.values().all(|part| part.announced)
    }

    /// The next writes; [`Self::written`] follows. When it is empty and [`Self::has_work`] says so, call it again.
    pub(super) fn step(&mut self, standing: &Standing<'_>) -> Step {
        let mut step = Step::default();
        for kind in std::mem::take(&mut self.withdraw) {
            step.delete(standing, &kind.canary(Layout::Cache, self.cluster.as_str()));
        }
        if !step.is_empty() {
            self.writing = true;
            return step;
        }
        if self.round.is_empty() {
            self.next_round(standing);
            if std::mem::take(&mut self.unsettled) {
                self.settle(standing, &mut step);
            }
        }
        self.carry(standing, &mut step);
        self.writing = true;
        step
    }

    /// Etcd does not take what the last step would write there.
    pub(super) fn refused(&mut self, key: String) {
        self.unwritable.insert(key);
    }

    /// The keys that etcd does not take.
    pub(super) const fn unwritable(&self) -> &BTreeSet<String> {
        &self.unwritable
    }

    /// The last step was carried out.
    pub(super) fn written(&mut self) {
        self.writing = false;
        self.established |= self.announced();
    }

    /// The round before is over; the next one takes what is dirty now.
    fn next_round(&mut self, standing: &Standing<'_>) {
        let cluster = self.cluster.as_str();
        for (kind, part) in &mut self.parts {
            if std::mem::take(&mut part.covered) {
                part.announced = true;
                self.unsettled = true;
            }
            if !part.outlasts && std::mem::take(&mut part.sweep) {
                let prefix = kind.prefix(Layout::Cache, cluster);
                let names = below(standing.actual, &prefix).filter_map(|(key, _)| key.strip_prefix(&prefix));
                let leftover = names.filter(|name| !part.wanted.contains_key(*name)).map(Arc::from);
                part.dirty.extend(leftover);
            }
            part.covered = part.complete && !part.announced;
        }
        let mut gone = Vec::new();
        for kind in ORDER {
            let Some(part) = self.parts.get_mut(&kind) else { continue };
            for name in std::mem::take(&mut part.dirty) {
                if part.wanted.contains_key(&name) {
                    self.round.push_back((kind, name));
                } else {
                    gone.push((kind, name));
                }
            }
        }
        self.round.extend(gone.into_iter().rev());
    }

    fn carry(&mut self, standing: &Standing<'_>, step: &mut Step) {
        let (mut bytes, mut looks) = (0, 0);
        while step.puts.len() + step.deletes.len() < STEP_KEYS && bytes < STEP_BYTES && looks < STEP_LOOKS {
            looks += 1;
            let Some((kind, name)) = self.round.pop_front() else { return };
            let key = kind.key(Layout::Cache, self.cluster.as_str(), &name);
            // Mended, deleted, or refused once more.
            self.unwritable.remove(&key);
            let Some(part) = self.parts.get(&kind) else { continue };
            match part.wanted.get(&name) {
                Some(value) if standing.is(&key, value) => {}
                Some(value) => {
                    bytes += value.len();
                    step.puts.push(Desired { key, value: value.to_vec(), leased: true });
                }
                None if part.outlasts => {}
                None => step.delete(standing, &key),
            }
        }
    }

    /// Configuration and canaries, between two rounds.
    fn settle(&self, standing: &Standing<'_>, step: &mut Step) {
        // Until the cluster has been read nothing is known that would be better than what an earlier relay wrote.
        let Some(config) = &self.config else { return };
        let cluster = self.cluster.as_str();
        let key = key::cluster_config(cluster);
        if !standing.is(&key, &config.text) {
            step.puts.push(Desired { key, value: config.text.clone(), leased: true });
        }
        let mut canaries = BTreeSet::new();
        // Of services there is a canary also when there are only slices: some readers ask for nothing else.
        let told = |(kind, part): &(&Kind, &Part)| part.published || **kind == Kind::Services;
        for (kind, part) in self.parts.iter().filter(told) {
            let key = kind.canary(Layout::Cache, cluster);
            if part.announced && !standing.actual.get(&key).is_some_and(|found| (standing.owns)(found.lease))
            {
                step.puts.push(Desired::text(key.clone(), standing.now));
            }
            canaries.insert(key);
        }
        if self.parts.values().all(|part| part.announced) {
            let outlasting = self.parts.iter().filter(|(_, part)| part.outlasts);
            canaries.extend(outlasting.map(|(kind, _)| kind.canary(Layout::Cache, cluster)));
            let prefix = key::synced_prefix(cluster);
            let leftover = below(standing.actual, &prefix).filter(|(key, _)| !canaries.contains(*key));
            step.deletes.extend(leftover.map(|(key, found)| (key.clone(), found.revision)));
        }
    }
}

fn below<'a>(
    actual: &'a BTreeMap<String, Actual>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a String, &'a Actual)> {
    actual.range(prefix.to_owned()..).take_while(move |(key, _)| key.starts_with(prefix))
}
