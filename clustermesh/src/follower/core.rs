//! The sans-IO core that follows one cluster: connect, check its configuration, wait for canaries, list, watch.
//!
//! It never takes away what it knows because something failed. Entries go only when a complete list (after the canary
//! of that connection) or a delete event says so, when the cluster's number changes, or when the cluster is removed.

use super::event::{
    Applied, Change, Failure, FailureKind, Header, Input, KeyEvent, Output, Scope, Ticket, Timers,
};
use super::ids::IdBook;
use super::store::{Phase, Store};
use crate::wire::{ClusterConfig, KINDS, Kind, Record, Rejections, Remote, key};
use std::collections::BTreeMap;
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Not connected; tries again then.
    Idle(Moment),
    /// Connecting since then.
    Connecting(Moment),
    /// Connected; the configuration is missing since then and asked for again at the second moment.
    Configuring(Moment, Option<Moment>),
    /// Listing and watching.
    Running,
    /// Removed.
    Gone,
}

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
}

impl Follower {
    /// A follower that knows nothing yet. It wants to connect at `now`.
    #[must_use]
    pub fn new(config: FollowerConfig, now: Moment) -> Self {
        let own = config.cluster == config.own_name;
        // The own cluster's services are known from the manifests.
        let kinds = KINDS.into_iter().filter(|kind| !own || *kind != Kind::Services);
        let kinds = kinds.chain(own.then_some(Kind::Assignments));
        let remote = config.own_id.filter(|_| own);
        let remote = remote.map(|id| Remote { name: config.own_name.clone(), id, max: config.max, own });
        Self {
            link: Link::Idle(now),
            remote,
            published: None,
            stores: kinds.map(|kind| (kind, Store::new(kind))).collect(),
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
            config,
        }
    }

    /// Takes over entries of an earlier life as *stale*: usable, to be confirmed or deleted by the first complete list.
    /// Each is checked like one read from etcd. Nothing is taken if the number now belongs to another cluster.
    pub fn restore<'a>(
        &mut self,
        id: ClusterId,
        entries: impl IntoIterator<Item = (Kind, &'a str, &'a [u8])>,
        out: &mut Vec<Output>,
    ) {
        let own = self.is_own();
        if !own && self.config.ids.reserve(&self.config.cluster, id).is_err() {
            return;
        }
        let remote = Remote { name: self.config.cluster.clone(), id, max: self.config.max, own };
        let mut changes = Vec::new();
        for (kind, name, value) in entries {
            if let Some(store) = self.stores.get_mut(&kind) {
                store.put(&remote, ("snapshot of ", name), value, &mut self.rejections, &mut changes);
            }
        }
        self.remote = Some(remote);
        self.emit(changes, out);
        // What was known before the restart is no change.
        self.applied.clear();
        self.set_state(SourceState::Stale, out);
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Moment {
        let timers = &self.config.timers;
        match self.link {
            Link::Idle(at) => at,
            Link::Connecting(since) => since.after(timers.connect),
            Link::Configuring(since, retry) => {
                let give_up = since.after(timers.config_wait);
                give_up.min(retry.unwrap_or(give_up)).min(self.next_check)
            }
            Link::Running => {
                let retry = self.retries.values().min().copied().unwrap_or(self.next_check);
                retry.min(self.next_check).min(self.next_config)
            }
            Link::Gone => Moment::from_origin(Duration::MAX),
        }
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
    pub fn known(&self) -> Option<(ClusterId, impl Iterator<Item = (Kind, &str, &Record)>)> {
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
            Input::Tick => self.tick(now, out),
            Input::Connected => self.connected(now, out),
            Input::Disconnected(failure) => self.disconnect(now, &failure.text, out),
            Input::Reconfigured => {
                self.attempts = 0;
                out.push(Output::Disconnect);
                self.lose(out);
                self.connect(now, out);
            }
            Input::Config(header, value) => self.take_config(now, header, value, out),
            Input::ConfigFailed(failure) => self.disconnect(now, &failure.text, out),
            Input::Page { ticket, scope, header, entries, more } if self.is_current(scope, ticket) => {
                self.page(now, scope, header, entries, more, out);
            }
            Input::Events(ticket, scope, header, events) if self.is_current(scope, ticket) => {
                self.events(now, scope, header, events, out);
            }
            Input::ListFailed(ticket, scope, failure) | Input::WatchEnded(ticket, scope, failure)
                if self.is_current(scope, ticket) =>
            {
                self.scope_failed(now, scope, &failure, out);
            }
            Input::Page { .. } | Input::Events(..) | Input::ListFailed(..) | Input::WatchEnded(..) => {}
        }
    }

    /// The cluster was removed from the configuration: everything known is taken away, nodes and services first.
    pub fn drain(&mut self, out: &mut Vec<Output>) {
        out.push(Output::Disconnect);
        self.drain_entries(out);
        self.config.ids.release(&self.config.cluster);
        self.link = Link::Gone;
        "removed from the configuration".clone_into(&mut self.text);
        out.push(Output::Gone);
    }

    fn is_current(&self, scope: Scope, ticket: Ticket) -> bool {
        self.tickets.get(&scope) == Some(&ticket)
    }

    fn is_own(&self) -> bool {
        self.config.cluster == self.config.own_name
    }

    pub(super) fn drain_entries(&mut self, out: &mut Vec<Output>) {
        use Kind::{Assignments, EndpointSlices, Identities, Ips, Nodes, Services};
        for kind in [Nodes, Services, EndpointSlices, Assignments, Ips, Identities] {
            self.drain_kind(kind, out);
        }
    }

    pub(super) fn drain_kind(&mut self, kind: Kind, out: &mut Vec<Output>) {
        let mut changes = Vec::new();
        if let Some(store) = self.stores.get_mut(&kind) {
            store.drain(&mut changes);
        }
        self.emit(changes, out);
    }

    fn emit(&mut self, changes: Vec<Change>, out: &mut Vec<Output>) {
        self.revision += u64::try_from(changes.len()).unwrap_or(1);
        for change in &changes {
            self.applied.entry(change.kind()).or_default().count(change);
        }
        out.extend(changes.into_iter().map(Output::Change));
    }

    pub(super) fn set_state(&mut self, state: SourceState, out: &mut Vec<Output>) {
        if self.state != state {
            self.state = state;
            out.push(Output::State(state));
        }
    }

    /// Uniform in `0..range` milliseconds; deterministic for a seed (splitmix64).
    fn jitter(&mut self, range: Duration) -> Duration {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let millis = u64::try_from(range.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(mixed % millis)
    }

    fn connect(&mut self, now: Moment, out: &mut Vec<Output>) {
        self.link = Link::Connecting(now);
        "connecting".clone_into(&mut self.text);
        out.push(Output::Connect);
    }

    fn tick(&mut self, now: Moment, out: &mut Vec<Output>) {
        let timers = self.config.timers;
        match self.link {
            Link::Idle(at) if now >= at => self.connect(now, out),
            Link::Connecting(since) if now >= since.after(timers.connect) => {
                let text =
                    "no answer from any endpoint; check that etcd runs and that the network path is open";
                self.disconnect(now, text, out);
            }
            Link::Configuring(since, retry) => {
                if now >= since.after(timers.config_wait) {
                    let text = "the cluster has not published its configuration; check its elected agent or clustermesh-apiserver";
                    self.disconnect(now, text, out);
                } else if retry.is_some_and(|at| now >= at) {
                    self.link = Link::Configuring(since, None);
                    out.push(Output::GetConfig(key::cluster_config(self.config.cluster.as_str())));
                }
            }
            _ => {}
        }
        if matches!(self.link, Link::Running | Link::Configuring(..)) && now >= self.next_check {
            self.check_heartbeat(now, out);
        }
        if self.link == Link::Running {
            self.retry_scopes(now, out);
            if now >= self.next_config && !self.is_own() {
                self.next_config = now.after(timers.config_retry.saturating_mul(30));
                out.push(Output::GetConfig(key::cluster_config(self.config.cluster.as_str())));
            } else if now >= self.next_config {
                self.next_config = now.after(timers.config_retry.saturating_mul(30));
            }
        }
    }

    fn check_heartbeat(&mut self, now: Moment, out: &mut Vec<Output>) {
        let timers = self.config.timers;
        let age = now.since(self.heartbeat);
        if age <= timers.heartbeat_max_age {
            self.failed_checks = 0;
            self.next_check = now.after(timers.check);
            return;
        }
        self.failed_checks += 1;
        self.next_check = now.after(timers.check_failing);
        if self.failed_checks >= 3 {
            let text = format!(
                "no heartbeat for {} s although the connection stands; check the remote's elected agent or apiserver",
                age.as_secs()
            );
            self.disconnect(now, &text, out);
        }
    }

    fn retry_scopes(&mut self, now: Moment, out: &mut Vec<Output>) {
        let due: Vec<Scope> = self.retries.iter().filter(|(_, at)| now >= **at).map(|(s, _)| *s).collect();
        for scope in due {
            self.retries.remove(&scope);
            self.start_list(scope, out);
        }
    }

    fn connected(&mut self, now: Moment, out: &mut Vec<Output>) {
        if !matches!(self.link, Link::Connecting(_)) {
            return;
        }
        self.heartbeat = now;
        self.failed_checks = 0;
        self.next_check = now.after(self.config.timers.check);
        self.next_config = now.after(self.config.timers.config_retry.saturating_mul(30));
        self.start_list(Scope::Heartbeat, out);
        if self.is_own() {
            "reading the own cluster".clone_into(&mut self.text);
            self.link = Link::Running;
            self.start_reading(out);
        } else {
            "waiting for the cluster's configuration".clone_into(&mut self.text);
            self.link = Link::Configuring(now, None);
            out.push(Output::GetConfig(key::cluster_config(self.config.cluster.as_str())));
        }
    }

    /// Foreign clusters are listed when their canaries show; the own one at once, but nothing of it is deleted before.
    pub(super) fn start_reading(&mut self, out: &mut Vec<Output>) {
        let gated = self.is_own() || self.published.as_ref().is_some_and(|c| c.capabilities.synced_canaries);
        let kinds: Vec<Kind> = self.stores.keys().copied().collect();
        for kind in kinds {
            self.canaries.insert(kind, !gated);
            self.synced.insert(kind, false);
            if gated && !self.is_own() {
                self.phases.insert(Scope::Entries(kind), Phase::Waiting);
            } else {
                self.start_list(Scope::Entries(kind), out);
            }
        }
        if gated {
            "waiting for canaries: the cluster is still publishing".clone_into(&mut self.text);
            self.start_list(Scope::Canaries, out);
        } else {
            "listing".clone_into(&mut self.text);
        }
    }

    fn prefix(&self, scope: Scope) -> String {
        let cluster = self.config.cluster.as_str();
        match scope {
            Scope::Heartbeat => key::HEARTBEAT.to_owned(),
            Scope::Canaries => key::synced_prefix(cluster),
            Scope::Entries(kind) => kind.prefix(self.layout(), cluster),
        }
    }

    fn start_list(&mut self, scope: Scope, out: &mut Vec<Output>) {
        if let Scope::Entries(kind) = scope
            && let Some(store) = self.stores.get_mut(&kind)
        {
            store.begin_list();
        }
        let prefix = self.prefix(scope);
        self.phases.insert(scope, Phase::Listing(0));
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.tickets.insert(scope, ticket);
        out.push(Output::List { ticket, scope, from: prefix.clone().into_bytes(), prefix, revision: 0 });
    }

    /// Whether the answer comes from the etcd this connection started with; if not, the connection is made anew,
    /// because revisions of two etcds cannot be compared.
    pub(super) fn guard(&mut self, now: Moment, header: Header, out: &mut Vec<Output>) -> bool {
        let first = *self.etcd.get_or_insert(header.etcd);
        if first != header.etcd {
            self.disconnect(
                now,
                "another etcd answers behind the same endpoint; reading everything anew",
                out,
            );
        }
        first == header.etcd
    }

    fn page(
        &mut self,
        now: Moment,
        scope: Scope,
        header: Header,
        entries: Vec<(Vec<u8>, Vec<u8>)>,
        more: bool,
        out: &mut Vec<Output>,
    ) {
        let Some(Phase::Listing(pinned)) = self.phases.get(&scope).copied() else { return };
        if !self.guard(now, header, out) {
            return;
        }
        let revision = if pinned == 0 { header.revision } else { pinned };
        let next = entries.last().map(|(last, _)| {
            let mut from = last.clone();
            from.push(0);
            from
        });
        let prefix = self.prefix(scope);
        let ticket = self.tickets.get(&scope).copied().unwrap_or_default();
        for (key, value) in entries {
            self.put(now, scope, &prefix, &key, &value, out);
        }
        // Taking an entry in may have ended or restarted this very list.
        if !self.is_current(scope, ticket) {
            return;
        }
        if let Some(from) = next.filter(|_| more) {
            self.phases.insert(scope, Phase::Listing(revision));
            out.push(Output::List { ticket, scope, from, prefix, revision });
            return;
        }
        self.phases.insert(scope, Phase::Watching(revision));
        out.push(Output::Watch { ticket, scope, prefix, revision: revision.saturating_add(1) });
        self.listed(now, scope, out);
    }

    fn listed(&mut self, now: Moment, scope: Scope, out: &mut Vec<Output>) {
        let Scope::Entries(kind) = scope else { return };
        if self.canaries.get(&kind) != Some(&true) {
            return;
        }
        let mut changes = Vec::new();
        if let Some(store) = self.stores.get_mut(&kind) {
            store.sweep(&mut changes);
        }
        self.emit(changes, out);
        self.synced.insert(kind, true);
        if self.synced.values().all(|synced| *synced) {
            self.attempts = 0;
            self.confirmed = Some(now);
            "ready".clone_into(&mut self.text);
            self.set_state(SourceState::Initialized, out);
        }
    }

    fn events(
        &mut self,
        now: Moment,
        scope: Scope,
        header: Header,
        events: Vec<KeyEvent>,
        out: &mut Vec<Output>,
    ) {
        let Some(Phase::Watching(from)) = self.phases.get(&scope).copied() else { return };
        if !self.guard(now, header, out) {
            return;
        }
        if header.revision < from {
            self.disconnect(
                now,
                "etcd went back in time (restored or emptied); reading everything anew",
                out,
            );
            return;
        }
        self.phases.insert(scope, Phase::Watching(header.revision));
        let prefix = self.prefix(scope);
        for event in events {
            match event {
                KeyEvent::Put(key, value) => self.put(now, scope, &prefix, &key, &value, out),
                KeyEvent::Delete(key) => self.delete(now, scope, &prefix, &key, out),
            }
        }
    }

    fn put(
        &mut self,
        now: Moment,
        scope: Scope,
        prefix: &str,
        key: &[u8],
        value: &[u8],
        out: &mut Vec<Output>,
    ) {
        match scope {
            Scope::Heartbeat => self.heartbeat = now,
            Scope::Canaries => self.canary(key, out),
            Scope::Entries(kind) => {
                let (Some(remote), Some(store)) = (&self.remote, self.stores.get_mut(&kind)) else { return };
                let Some(name) = key_name(key, prefix) else { return };
                let mut changes = Vec::new();
                store.put(remote, (prefix, &name), value, &mut self.rejections, &mut changes);
                if !changes.is_empty() {
                    self.last_event = Some(now);
                }
                self.emit(changes, out);
            }
        }
    }

    fn delete(&mut self, now: Moment, scope: Scope, prefix: &str, key: &[u8], out: &mut Vec<Output>) {
        let Scope::Entries(kind) = scope else { return };
        let (Some(store), Some(name)) = (self.stores.get_mut(&kind), key_name(key, prefix)) else { return };
        let mut changes = Vec::new();
        store.delete(&name, &mut changes);
        self.last_event = Some(now);
        self.emit(changes, out);
    }

    /// A canary counts once per connection; later changes of it mean nothing.
    fn canary(&mut self, key: &[u8], out: &mut Vec<Output>) {
        let layout = self.layout();
        let cluster = self.config.cluster.as_str();
        let named = |kind: &Kind| kind.canary(layout, cluster).as_bytes() == key;
        let kinds: Vec<Kind> = self.stores.keys().copied().filter(named).collect();
        for kind in kinds {
            if self.canaries.insert(kind, true) != Some(true) {
                self.start_list(Scope::Entries(kind), out);
            }
        }
    }

    fn scope_failed(&mut self, now: Moment, scope: Scope, failure: &Failure, out: &mut Vec<Output>) {
        if !self.phases.contains_key(&scope) {
            return;
        }
        match failure.kind {
            // The connection is sound, only the revision is gone: the list starts over and ends as a diff.
            FailureKind::Compacted => self.start_list(scope, out),
            FailureKind::Denied => {
                self.text.clone_from(&failure.text);
                self.last_failure = Some((now, failure.text.clone()));
                self.phases.insert(scope, Phase::Denied);
                self.retries.insert(scope, now.after(self.config.timers.denied_retry));
            }
            FailureKind::Transport | FailureKind::Other => self.disconnect(now, &failure.text, out),
        }
    }

    /// Gives the connection up, keeps everything known, and tries again later.
    pub(super) fn disconnect(&mut self, now: Moment, why: &str, out: &mut Vec<Output>) {
        if matches!(self.link, Link::Idle(_) | Link::Gone) {
            return;
        }
        out.push(Output::Disconnect);
        self.reconnections = self.reconnections.saturating_add(1);
        self.last_failure = Some((now, why.to_owned()));
        tracing::info!(cluster = %self.config.cluster, why, "connection given up; what is known stays");
        self.lose(out);
        let timers = &self.config.timers;
        let doubled = timers.backoff_min.saturating_mul(1 << self.attempts.min(16)).min(timers.backoff_max);
        self.attempts = self.attempts.saturating_add(1);
        let wait = doubled / 2 + self.jitter(doubled / 2);
        self.link = Link::Idle(now.after(wait));
        self.text = format!("{why}; connecting again in {} ms", wait.as_millis());
    }

    fn lose(&mut self, out: &mut Vec<Output>) {
        if self.state == SourceState::Initialized {
            // After the lists, every heartbeat and event showed that the watches miss nothing.
            self.confirmed = self.confirmed.max(Some(self.heartbeat)).max(self.last_event);
        }
        self.phases.clear();
        self.retries.clear();
        self.canaries.clear();
        self.synced.clear();
        self.tickets.clear();
        self.etcd = None;
        if self.state == SourceState::Initialized {
            self.set_state(SourceState::Stale, out);
        }
    }
}

/// What follows the prefix, as text; broken UTF-8 becomes U+FFFD and fails the checks on names.
fn key_name(key: &[u8], prefix: &str) -> Option<String> {
    key.strip_prefix(prefix.as_bytes()).map(|name| String::from_utf8_lossy(name).into_owned())
}
