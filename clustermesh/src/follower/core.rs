//! The sans-IO core that follows one cluster: connect, check its configuration, wait for canaries, list, watch.
//!
//! It never takes away what it knows because something failed. Entries go only when a complete list (after the canary
//! of that connection) or a delete event says so, when the cluster's number changes, or when the cluster is removed.

use super::conflict::Conflicts;
use super::event::{Applied, Change, Input, Output, Scope, Ticket, Timers};
use super::forms::FormChange;
use super::ids::IdBook;
use super::lag::LagMeter;
use super::limits::{Limits, Usage};
use super::resume::{Bookmarks, Repetition};
use super::store::{Intake, Phase, Store};
use super::upstream::Upstream;
use crate::wire::{ClusterConfig, KINDS, Kind, Record, Rejections, Remote, ServicePreference};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};
use tombolo_base::source::SourceState;

/// Who follows whom.
#[derive(Clone, Debug)]
pub struct FollowerConfig {
    /// The cluster to follow; equal to `own_name` to follow the other nodes of the own cluster.
    pub cluster: ClusterName,
    /// This agent's cluster.
    pub own_name: ClusterName,
    /// Its number; `None` for a reader that is of no cluster.
    pub own_id: Option<ClusterId>,
    /// The size of the mesh.
    pub max: MaxClusters,
    /// Numbers in use, shared by all followers of the process.
    pub ids: IdBook,
    /// Seed of the jitter.
    pub seed: u64,
    /// Durations.
    pub timers: Timers,
    /// Bounds.
    pub limits: Limits,
    /// Whether exports of the Multi-Cluster Services API are read, where there are some.
    pub exports: bool,
    /// Which form of backends is read where the cluster publishes both.
    pub preference: ServicePreference,
    /// Read everything the cluster publishes, as it stands, to write it elsewhere: records are [`Record::Raw`], and what is
    /// known is not taken away when the cluster is removed.
    pub mirror: bool,
}

impl FollowerConfig {
    /// Of `cluster`, for a reader of `own_name`'s mesh that follows nobody else, as far as nothing else is said.
    #[must_use]
    pub fn new(cluster: ClusterName, own_name: ClusterName) -> Self {
        Self {
            cluster,
            own_name,
            own_id: None,
            max: MaxClusters::C255,
            ids: IdBook::default(),
            seed: 1,
            timers: Timers::default(),
            limits: Limits::default(),
            exports: true,
            preference: ServicePreference::default(),
            mirror: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Not connected; tries again then.
    Idle(Moment),
    /// Connecting since then.
    Connecting(Moment),
    /// Connected; the configuration is missing since then and asked for again at the second moment.
    Configuring(Moment, Option<Moment>),
    /// Asking whether the etcd has the history that was followed before.
    Proving,
    /// Listing and watching.
    Running,
    /// Removed.
    Gone,
}

/// Kind, key name and record of an entry that is known.
pub(super) type KnownEntry<'a> = (Kind, Cow<'a, str>, Cow<'a, Record>);

/// The core of one follower.
#[derive(Debug)]
pub struct Follower {
    pub(super) config: FollowerConfig,
    pub(super) link: Link,
    pub(super) remote: Option<Remote>,
    pub(super) published: Option<ClusterConfig>,
    pub(super) stores: BTreeMap<Kind, Store>,
    pub(super) phases: BTreeMap<Scope, Phase>,
    pub(super) retries: BTreeMap<Scope, Moment>,
    /// Kinds whose canary was seen on this connection: their lists are complete.
    pub(super) canaries: BTreeMap<Kind, bool>,
    pub(super) synced: BTreeMap<Kind, bool>,
    pub(super) etcd: Option<u64>,
    pub(super) attempts: u32,
    pub(super) failed_checks: u32,
    pub(super) heartbeat: Moment,
    pub(super) next_check: Moment,
    pub(super) next_config: Moment,
    pub(super) random: u64,
    pub(super) text: String,
    pub(super) rejections: Rejections,
    pub(super) reconnections: u64,
    pub(super) last_failure: Option<(Moment, String)>,
    pub(super) confirmed: Option<Moment>,
    pub(super) last_event: Option<Moment>,
    pub(super) state: SourceState,
    pub(super) revision: u64,
    pub(super) applied: BTreeMap<Kind, Applied>,
    pub(super) tickets: BTreeMap<Scope, Ticket>,
    pub(super) last_ticket: Ticket,
    pub(super) bookmarks: Bookmarks,
    pub(super) repetitions: BTreeMap<Scope, Repetition>,
    pub(super) usage: Usage,
    /// Most keys of a page, where answers were too large.
    pub(super) pages: BTreeMap<Scope, i64>,
    /// When each kind was known to be current last.
    pub(super) confirmed_kinds: BTreeMap<Kind, Moment>,
    /// How long before that, for kinds that were not confirmed in this life.
    pub(super) restored_ages: BTreeMap<Kind, Duration>,
    /// Kinds whose entries are known and not used.
    pub(super) withheld: BTreeSet<Kind>,
    pub(super) conflicts: Conflicts,
    pub(super) lag: LagMeter,
    pub(super) upstream: Upstream,
    pub(super) form_change: Option<FormChange>,
}

impl Follower {
    /// A follower that knows nothing yet. It wants to connect at `now`.
    #[must_use]
    pub fn new(config: FollowerConfig, now: Moment) -> Self {
        let own = config.cluster == config.own_name;
        // The own cluster's services are known from the manifests.
        let kinds = KINDS.into_iter().filter(|kind| !own || *kind != Kind::Services);
        let kinds = kinds.chain(own.then_some(Kind::Assignments));
        // Of a remote cluster only if it announces them; until then what an earlier life knew has its place.
        let kinds = kinds.chain(config.exports.then_some(Kind::ServiceExports));
        let remote = config.own_id.filter(|_| own);
        let remote = remote.map(|id| Remote { name: config.own_name, id, max: config.max, own });
        Self {
            link: Link::Idle(now),
            remote,
            published: None,
            stores: kinds.map(|kind| (kind, Store::new(kind, config.mirror))).collect(),
            phases: BTreeMap::new(),
            retries: BTreeMap::new(),
            canaries: BTreeMap::new(),
            synced: BTreeMap::new(),
            etcd: None,
            attempts: 0,
            failed_checks: 0,
            heartbeat: now,
            next_check: now,
            next_config: now,
            random: config.seed,
            text: "starting".to_owned(),
            rejections: Rejections::default(),
            reconnections: 0,
            last_failure: None,
            confirmed: None,
            last_event: None,
            state: SourceState::Pending,
            revision: 0,
            applied: BTreeMap::new(),
            tickets: BTreeMap::new(),
            last_ticket: 0,
            bookmarks: Bookmarks::default(),
            repetitions: BTreeMap::new(),
            usage: Usage::default(),
            pages: BTreeMap::new(),
            confirmed_kinds: BTreeMap::new(),
            restored_ages: BTreeMap::new(),
            withheld: BTreeSet::new(),
            conflicts: Conflicts::default(),
            lag: LagMeter::default(),
            upstream: Upstream::default(),
            form_change: None,
            config,
        }
    }

    /// Takes over entries of an earlier life as *stale*: usable, to be confirmed or deleted by the first complete list.
    /// Each is checked like one read from etcd. Nothing is taken if the number now belongs to another cluster, or is not
    /// the own cluster's any more.
    ///
    /// `age` says how long ago each kind was confirmed: services are used for what is left of their time, and a minute at least, so that
    /// a cluster that lives can confirm them.
    pub fn restore<'a>(
        &mut self,
        now: Moment,
        id: ClusterId,
        entries: impl IntoIterator<Item = (Kind, &'a str, Cow<'a, [u8]>)>,
        age: impl Fn(Kind) -> Duration,
        out: &mut Vec<Output>,
    ) {
        let own = self.is_own();
        // Our own number is what the configuration says; nothing that is read later would correct an old one.
        if own != (Some(id) == self.config.own_id) {
            tracing::info!(cluster = %self.config.cluster, %id, own_id = ?self.config.own_id, "the snapshot is of before a cluster got another id and is not used; entries come from etcd alone");
            return;
        }
        if !own && self.config.ids.reserve(&self.config.cluster, id).is_err() {
            return;
        }
        let remote = Remote { name: self.config.cluster, id, max: self.config.max, own };
        let mut intake = Intake {
            remote: &remote,
            limits: &self.config.limits,
            usage: &mut self.usage,
            rejections: &mut self.rejections,
            changes: Vec::new(),
        };
        let mirror = self.config.mirror;
        for (kind, name, value) in entries {
            // Whether a cluster publishes slices is known when its configuration is read: until then those of the earlier life count.
            if !own && kind == Kind::EndpointSlices {
                self.stores.entry(kind).or_insert_with(|| Store::new(kind, mirror));
            }
            if let Some(store) = self.stores.get_mut(&kind) {
                store.put(("snapshot of ", name), &value, &mut intake);
            }
        }
        let changes = intake.changes;
        self.remote = Some(remote);
        self.emit(changes, out);
        // What was known before the restart is no change.
        self.applied.clear();
        self.confirmed_kinds = self.stores.keys().map(|kind| (*kind, now)).collect();
        self.restored_ages = self.stores.keys().map(|kind| (*kind, age(*kind))).collect();
        self.set_state(SourceState::Stale, out);
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Moment {
        let timers = &self.config.timers;
        let link = match self.link {
            Link::Idle(at) => at,
            Link::Connecting(since) => since.after(timers.connect),
            Link::Configuring(since, retry) => {
                let give_up = since.after(timers.config_wait);
                give_up.min(retry.unwrap_or(give_up)).min(self.next_check)
            }
            Link::Proving => self.next_check,
            Link::Running => {
                let retry = self.retries.values().min().copied().unwrap_or(self.next_check);
                retry.min(self.next_check).min(self.next_config)
            }
            Link::Gone => return Moment::from_origin(Duration::MAX),
        };
        self.next_withholding().map_or(link, |at| link.min(at))
    }

    /// Grows with every change of an entry: tells whether a snapshot on disk is out of date.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether everything known was confirmed by complete lists on this connection.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state == SourceState::Initialized
    }

    /// What a snapshot needs: the cluster's number and every entry; `None` before the number is known.
    #[must_use]
    pub fn known(&self) -> Option<(ClusterId, impl Iterator<Item = KnownEntry<'_>>)> {
        let remote = self.remote.as_ref()?;
        let entries = self.stores.iter().flat_map(|(kind, store)| store.iter().map(|(n, r)| (*kind, n, r)));
        Some((remote.id, entries))
    }

    /// Handles one input; what is to be done is appended to `out`, in order.
    pub fn handle(&mut self, now: Moment, input: Input, out: &mut Vec<Output>) {
        if self.link == Link::Gone {
            return;
        }
        match input {
            Input::Tick => {
                self.tick(now, out);
                self.withhold(now, out);
                self.note_foreign(now);
            }
            Input::Connected => self.connected(now, out),
            Input::Disconnected(failure) => self.disconnect(now, &failure.text, out),
            Input::Reconfigured => {
                self.attempts = 0;
                out.push(Output::Disconnect);
                self.lose(now, out);
                self.connect(now, out);
            }
            Input::Replaced => self.replaced(now, out),
            Input::Config(header, value) => self.take_config(now, header, value, out),
            Input::ConfigFailed(failure) => self.disconnect(now, &failure.text, out),
            Input::Proof(header, found) => self.take_proof(now, header, found, out),
            Input::ProofFailed(failure) => self.proof_failed(now, &failure, out),
            Input::Page { ticket, scope, header, entries, more } if self.is_current(scope, ticket) => {
                self.page(now, scope, header, entries, more, out);
            }
            Input::Events { ticket, scope, header, seen, events } if self.is_current(scope, ticket) => {
                self.events(now, scope, header, seen, events, out);
            }
            Input::ListFailed(ticket, scope, failure) | Input::WatchEnded(ticket, scope, failure)
                if self.is_current(scope, ticket) =>
            {
                self.scope_failed(now, scope, &failure, out);
            }
            Input::Page { .. } | Input::Events { .. } | Input::ListFailed(..) | Input::WatchEnded(..) => {}
        }
    }

    /// The cluster was removed from the configuration: everything known is taken away, nodes and services first.
    pub fn drain(&mut self, out: &mut Vec<Output>) {
        out.push(Output::Disconnect);
        if !self.config.mirror {
            self.drain_entries(out);
        }
        self.config.ids.release(&self.config.cluster);
        self.link = Link::Gone;
        "removed from the configuration".clone_into(&mut self.text);
        out.push(Output::Gone);
    }

    pub(super) fn is_current(&self, scope: Scope, ticket: Ticket) -> bool {
        self.tickets.get(&scope) == Some(&ticket)
    }

    pub(super) fn is_own(&self) -> bool {
        self.config.cluster == self.config.own_name
    }

    pub(super) fn drain_entries(&mut self, out: &mut Vec<Output>) {
        use Kind::{Assignments, EndpointSlices, Identities, Ips, Nodes, ServiceExports, Services};
        for kind in [Nodes, ServiceExports, Services, EndpointSlices, Assignments, Ips, Identities] {
            self.drain_kind(kind, out);
        }
        self.withheld.clear();
        self.form_change = None;
    }

    pub(super) fn drain_kind(&mut self, kind: Kind, out: &mut Vec<Output>) {
        let mut changes = Vec::new();
        if let Some(store) = self.stores.get_mut(&kind) {
            store.drain(&mut self.usage, &mut changes);
        }
        self.emit(changes, out);
    }

    /// Tells the changes of one kind; those of a kind that is not used are told when it is used again.
    pub(super) fn emit(&mut self, changes: Vec<Change>, out: &mut Vec<Output>) {
        self.revision += u64::try_from(changes.len()).unwrap_or(1);
        out.reserve(changes.len());
        for change in changes {
            let kind = change.kind();
            if self.withheld.contains(&kind) || self.is_held_back(kind) {
                continue;
            }
            self.applied.entry(kind).or_default().count(&change);
            out.push(Output::Change(change));
        }
    }

    pub(super) fn set_state(&mut self, state: SourceState, out: &mut Vec<Output>) {
        if self.state != state {
            self.state = state;
            out.push(Output::State(state));
        }
    }
}
