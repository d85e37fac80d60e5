//! Lists and watches: what they tell is taken in, entry by entry.

use super::core::{Follower, Link};
use super::event::{Failure, FailureKind, Header, KeyEvent, News, Output, Scope, Ticket};
use super::resume::Position;
use super::store::{Intake, Phase, Store};
use super::upstream::Upstream;
use crate::etcd::PAGE;
use crate::wire::{Kind, Layout, key};
use std::borrow::Cow;
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

/// Why a connection is given up whose etcd is not the one it was.
const WENT_BACK: &str = "etcd went back in time (restored or emptied); reading everything anew";

impl Follower {
    /// Foreign clusters are listed when their canaries show; the own one at once, but nothing of it is deleted before.
    pub(super) fn start_reading(&mut self, out: &mut Vec<Output>) {
        let gated = self.is_own() || self.published.as_ref().is_some_and(|c| c.capabilities.synced_canaries);
        for kind in self.read_kinds() {
            let resumed = self.is_bookmarked(kind);
            self.canaries.insert(kind, !gated || resumed);
            self.synced.insert(kind, false);
            if resumed {
                continue;
            }
            if gated && !self.is_own() {
                self.phases.insert(Scope::Entries(kind), Phase::Waiting);
            } else {
                self.start_list(Scope::Entries(kind), out);
            }
        }
        let mirrored = self.layout() == Layout::Cache && !self.is_own();
        if mirrored {
            self.ask_upstream(gated, out);
        } else {
            self.upstream = Upstream::default();
        }
        if gated {
            "waiting for canaries: the cluster is still publishing".clone_into(&mut self.text);
            if !mirrored {
                self.start_list(Scope::Canaries, out);
            }
        } else {
            "listing".clone_into(&mut self.text);
        }
    }

    pub(super) fn prefix(&self, scope: Scope) -> String {
        let cluster = self.config.cluster.as_str();
        match scope {
            Scope::Heartbeat => key::HEARTBEAT.to_owned(),
            Scope::Canaries => key::synced_prefix(cluster),
            Scope::Relay => key::relay_prefix(cluster),
            Scope::Entries(kind) => kind.prefix(self.layout(), cluster),
        }
    }

    pub(super) fn new_ticket(&mut self, scope: Scope) -> Ticket {
        self.last_ticket += 1;
        self.tickets.insert(scope, self.last_ticket);
        self.last_ticket
    }

    pub(super) fn start_list(&mut self, scope: Scope, out: &mut Vec<Output>) {
        if let Scope::Entries(kind) = scope
            && let Some(store) = self.stores.get_mut(&kind)
        {
            store.begin_list();
            self.bookmarks.forget_kind(kind);
            self.repetitions.remove(&scope);
        } else if scope == Scope::Relay {
            self.upstream.listing();
        }
        self.retries.remove(&scope);
        let least = match self.phases.get(&scope) {
            Some(Phase::Watching(position)) => position.seen,
            Some(Phase::Asked(least) | Phase::Listing(least, _)) => *least,
            Some(Phase::Waiting | Phase::Denied) | None => 0,
        };
        self.phases.insert(scope, Phase::Asked(least));
        let ticket = self.new_ticket(scope);
        self.ask_page(ticket, scope, self.prefix(scope).into_bytes(), 0, out);
    }

    fn ask_page(&self, ticket: Ticket, scope: Scope, from: Vec<u8>, revision: i64, out: &mut Vec<Output>) {
        let limit = self.pages.get(&scope).copied().unwrap_or(PAGE);
        out.push(Output::List { ticket, scope, from, prefix: self.prefix(scope), revision, limit });
    }

    pub(super) fn page(
        &mut self,
        now: Moment,
        scope: Scope,
        header: Header,
        entries: Vec<(Vec<u8>, Vec<u8>)>,
        more: bool,
        out: &mut Vec<Output>,
    ) {
        let (least, revision, term) = match self.phases.get(&scope).copied() {
            Some(Phase::Asked(least)) => (least, header.revision, header.term),
            Some(Phase::Listing(pinned, term)) => (pinned, pinned, term),
            _ => return,
        };
        if !self.guard(now, header, out) {
            return;
        }
        // Requests are connected anew in silence; what then answers may be another life of the same etcd.
        if header.revision < least || header.term < term {
            return self.disconnect(now, WENT_BACK, out);
        }
        let next = entries.last().map(|(last, _)| {
            let mut from = last.clone();
            from.push(0);
            from
        });
        let prefix = self.prefix(scope);
        let ticket = self.tickets.get(&scope).copied().unwrap_or_default();
        let entries = entries.iter().map(|(key, value)| (key.as_slice(), Some(value.as_slice())));
        self.take_in(now, scope, &prefix, entries, out);
        // Taking an entry in may have ended or restarted this very list.
        if !self.is_current(scope, ticket) {
            return;
        }
        if let Some(from) = next.filter(|_| more) {
            self.phases.insert(scope, Phase::Listing(revision, term.max(header.term)));
            return self.ask_page(ticket, scope, from, revision, out);
        }
        self.phases.insert(scope, Phase::Watching(Position::listed(revision)));
        out.push(Output::Watch { ticket, scope, prefix, revision: revision.saturating_add(1) });
        self.listed(now, scope, out);
    }

    fn listed(&mut self, now: Moment, scope: Scope, out: &mut Vec<Output>) {
        if scope == Scope::Relay {
            return self.judge_upstream(now, out);
        }
        let Scope::Entries(kind) = scope else { return };
        if self.canaries.get(&kind) != Some(&true) {
            return;
        }
        let mut changes = Vec::new();
        if self.upstream.may_sweep(kind)
            && let Some(store) = self.stores.get_mut(&kind)
        {
            store.sweep(&mut self.usage, &mut changes);
        }
        let room = !changes.is_empty();
        self.emit(changes, out);
        if room {
            self.ask_again(now);
        }
        self.is_synced(now, kind, out);
    }

    /// The entries of a kind are confirmed.
    pub(super) fn is_synced(&mut self, now: Moment, kind: Kind, out: &mut Vec<Output>) {
        if self.upstream.is_lost() {
            // The mirror is read whole, but nobody vouches for what is in it.
            return;
        }
        self.synced.insert(kind, true);
        self.restored_ages.remove(&kind);
        if self.config.mirror {
            out.push(Output::News(News::Complete(kind)));
        }
        self.release(kind, out);
        self.end_form_change(now, kind, out);
        if self.synced.values().all(|synced| *synced) {
            self.confirmed = Some(now);
            "ready".clone_into(&mut self.text);
            self.set_state(SourceState::Initialized, out);
        }
    }

    pub(super) fn events(
        &mut self,
        now: Moment,
        scope: Scope,
        header: Header,
        seen: i64,
        events: Vec<KeyEvent>,
        out: &mut Vec<Output>,
    ) {
        let Some(Phase::Watching(before)) = self.phases.get(&scope).copied() else { return };
        if !self.guard(now, header, out) {
            return;
        }
        if header.revision < before.seen {
            return self.disconnect(now, WENT_BACK, out);
        }
        // A watch tells each revision once; what comes again is older than what is known.
        if seen != 0 && seen <= before.seen && !events.is_empty() {
            return;
        }
        let after = Position {
            seen: before.seen.max(seen),
            known: before.known.max(seen),
            doubtful: before.doubtful,
        };
        self.phases.insert(scope, Phase::Watching(after));
        if scope == Scope::Heartbeat
            && self.link == Link::Running
            && let Some(KeyEvent::Put(key, value)) = events.last()
            && key == key::HEARTBEAT.as_bytes()
        {
            self.bookmarks.saw_heartbeat(self.etcd, seen, value);
        }
        let ticket = self.tickets.get(&scope).copied().unwrap_or_default();
        let prefix = self.prefix(scope);
        let Some(events) = self.repeated(scope, before, after.seen, events) else {
            return self.start_list(scope, out);
        };
        for event in &events {
            // Only as an event: what a list shows was written at any time before.
            // In a mirror it is another cluster's: that of the etcd it lies in.
            if let KeyEvent::Put(key, value) = event
                && key == key::BEAT.as_bytes()
                && self.layout() == Layout::State
            {
                self.lag.beat(now, value);
            }
        }
        let entries = events.iter().map(|event| match event {
            KeyEvent::Put(key, value) => (key.as_slice(), Some(value.as_slice())),
            KeyEvent::Delete(key) => (key.as_slice(), None),
        });
        self.take_in(now, scope, &prefix, entries, out);
        if scope == Scope::Relay {
            self.judge_upstream(now, out);
        }
        if let Scope::Entries(kind) = scope
            && self.is_current(scope, ticket)
            && self.canaries.get(&kind) == Some(&true)
            && self.synced.get(&kind) == Some(&false)
        {
            self.is_synced(now, kind, out);
        }
    }

    /// Takes keys with their values in, in order; without a value the key was deleted.
    fn take_in<'e>(
        &mut self,
        now: Moment,
        scope: Scope,
        prefix: &str,
        entries: impl Iterator<Item = (&'e [u8], Option<&'e [u8]>)>,
        out: &mut Vec<Output>,
    ) {
        match scope {
            Scope::Entries(kind) => self.take_in_entries(now, kind, prefix, entries, out),
            Scope::Heartbeat => {
                if entries.filter(|(_, value)| value.is_some()).count() > 0 {
                    self.heartbeat = now;
                }
            }
            Scope::Canaries => {
                for (key, _) in entries.filter(|(_, value)| value.is_some()) {
                    self.canary(key, out);
                }
            }
            Scope::Relay => {
                let cluster = self.config.cluster.as_str();
                for (key, value) in entries {
                    match value {
                        Some(value) => self.upstream.put(cluster, key, value),
                        None => {
                            self.upstream.delete(cluster, key);
                            // The relay is gone, or the cluster from it: its configuration tells which.
                            out.push(Output::GetConfig(key::cluster_config(cluster)));
                        }
                    }
                }
            }
        }
    }

    fn take_in_entries<'e>(
        &mut self,
        now: Moment,
        kind: Kind,
        prefix: &str,
        entries: impl Iterator<Item = (&'e [u8], Option<&'e [u8]>)>,
        out: &mut Vec<Output>,
    ) {
        let (Some(remote), Some(store)) = (&self.remote, self.stores.get_mut(&kind)) else { return };
        let mut intake = Intake {
            remote,
            limits: &self.config.limits,
            usage: &mut self.usage,
            rejections: &mut self.rejections,
            changes: Vec::with_capacity(entries.size_hint().0),
        };
        let mut went = false;
        for (key, value) in entries {
            let Some(name) = key_name(key, prefix) else { continue };
            match value {
                Some(value) => store.put((prefix, &name), value, &mut intake),
                None => {
                    store.delete(&name, intake.usage, &mut intake.changes);
                    went = true;
                }
            }
        }
        let changes = intake.changes;
        if went || !changes.is_empty() {
            self.last_event = Some(now);
        }
        self.emit(changes, out);
        if went {
            self.ask_again(now);
        }
    }

    /// Something went: kinds of which entries were refused for want of room are listed again, some time later, so that one
    /// cluster at its limit does not list all the time.
    pub(super) fn ask_again(&mut self, now: Moment) {
        let wanting = |(kind, store): (&Kind, &Store)| store.is_wanting().then_some(Scope::Entries(*kind));
        let scopes: Vec<Scope> = self.stores.iter().filter_map(wanting).collect();
        for scope in scopes {
            if matches!(self.phases.get(&scope), Some(Phase::Watching(_)))
                && !self.retries.contains_key(&scope)
            {
                let at = now.after(self.audit_wait());
                self.retries.insert(scope, at);
            }
        }
    }

    /// A canary counts once per connection; later changes of it mean nothing.
    fn canary(&mut self, key: &[u8], out: &mut Vec<Output>) {
        let layout = self.layout();
        let cluster = self.config.cluster.as_str();
        // In the own cluster exports stand before the services' canary, and an elected agent of before exports knows no other.
        let own = self.is_own();
        let awaited = |kind: Kind| if own && kind == Kind::ServiceExports { Kind::Services } else { kind };
        let named = |kind: &Kind| awaited(*kind).canary(layout, cluster).as_bytes() == key;
        for kind in self.read_kinds().into_iter().filter(named).collect::<Vec<Kind>>() {
            if self.canaries.insert(kind, true) != Some(true) {
                self.start_list(Scope::Entries(kind), out);
            }
        }
    }

    pub(super) fn scope_failed(
        &mut self,
        now: Moment,
        scope: Scope,
        failure: &Failure,
        out: &mut Vec<Output>,
    ) {
        if !self.phases.contains_key(&scope) {
            return;
        }
        match failure.kind {
            // The connection is sound, only the revision is gone: the list starts over and ends as a diff.
            FailureKind::Compacted => self.start_list(scope, out),
            // Smaller pages; a watch that brought too much at once is caught up with by a list.
            FailureKind::TooLarge => {
                let limit = self.pages.get(&scope).copied().unwrap_or(PAGE);
                let listing = !matches!(self.phases.get(&scope), Some(Phase::Watching(_)));
                if listing && limit == 1 {
                    return self.disconnect(now, &failure.text, out);
                }
                if listing {
                    self.pages.insert(scope, (limit / 16).max(1));
                }
                self.start_list(scope, out);
            }
            FailureKind::Denied => self.denied(now, scope, failure, out),
            FailureKind::Transport | FailureKind::NoLeader | FailureKind::Other => {
                self.disconnect(now, &failure.text, out);
            }
        }
    }

    /// Only that range is given up for now; what is known of it stays and is stale.
    fn denied(&mut self, now: Moment, scope: Scope, failure: &Failure, out: &mut Vec<Output>) {
        if scope == Scope::Relay {
            // Entries can be read all the same; only who mirrors them is not known.
            self.phases.insert(scope, Phase::Denied);
            self.retries.insert(scope, now.after(self.config.timers.denied_retry));
            return self.upstream_denied(now, out);
        }
        self.text.clone_from(&failure.text);
        self.last_failure = Some((now, failure.text.clone()));
        self.phases.insert(scope, Phase::Denied);
        self.repetitions.remove(&scope);
        self.retries.insert(scope, now.after(self.config.timers.denied_retry));
        if let Scope::Entries(kind) = scope {
            self.unconfirmed(now, kind);
            self.degrade(out);
        }
    }
}

/// What follows the prefix, as text; broken UTF-8 becomes U+FFFD and fails the checks on names.
fn key_name<'a>(key: &'a [u8], prefix: &str) -> Option<Cow<'a, str>> {
    key.strip_prefix(prefix.as_bytes()).map(String::from_utf8_lossy)
}
