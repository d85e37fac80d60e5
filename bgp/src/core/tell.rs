//! Telling peers: changes go into the groups' logs, and from there, as connections have room, to each peer.

use std::sync::Arc;

use bytes::Bytes;
use ipnet::IpNet;

use super::Core;
use super::export::{Exporter, Held, News, View, pack};
use super::log::{prefixes_in, prefixes_of};
use super::peer::Peer;
use crate::family::Family;
use crate::rib::out::{Said, Walk};
use crate::rib::{Best, PeerId};
use crate::wire::{self, RefreshKind, RouteRefresh};

/// Unsent bytes on a connection above which nothing more is put on it.
const OUTSTANDING_MAX: usize = 256 * 1024;
/// Prefixes looked at one by one before bytes are handed to the connection.
const STEP: usize = 4096;

impl Core {
    /// Turns changed prefixes into events and messages, then sends what there is room for.
    pub(super) fn propagate(&mut self) {
        self.log_changes();
        let waiting: Vec<PeerId> =
            self.peers.iter().filter(|(_, peer)| !self.has_heard_all(peer)).map(|(id, _)| *id).collect();
        waiting.into_iter().for_each(|id| self.pump(id));
        self.shorten_logs();
    }

    /// Turns changed prefixes into events and entries of the logs.
    pub(super) fn log_changes(&mut self) {
        for batch in self.rib.take_batches() {
            batch.iter().filter(|change| change.used).for_each(|change| self.events.route(change.prefix));
            self.logs.append(&batch, &self.rib);
            for peer in self.peers.values_mut().filter(|peer| peer.out.paths.is_some()) {
                batch.iter().for_each(|change| peer.out.mark(change.prefix, true));
            }
        }
        for (prefix, was_local) in self.rib.take_local_changes() {
            self.events.route(prefix);
            for (id, peer) in &mut self.peers {
                let Some(view) = &peer.view else { continue };
                // Until now it may have heard of somebody else's route for the prefix.
                let learned = || view.choice(&self.rib, &prefix).is_some_and(|(path, _)| path.peer != *id);
                let told = if was_local {
                    peer.out.said(&prefix).is_some()
                } else {
                    peer.out.place.is_some() && learned()
                };
                peer.out.mark(prefix, told);
            }
        }
    }

    /// Whether a peer has been sent, or has no session to be sent, everything.
    pub(super) fn has_heard_all(&self, peer: &Peer) -> bool {
        let Some(view) = &peer.view else { return true };
        let log = self.logs.get(view);
        peer.out.is_idle() && peer.out.place.is_none_or(|place| log.is_none_or(|log| log.end() <= place))
    }

    /// Sends to a peer while its connection has room.
    pub(super) fn pump(&mut self, id: PeerId) {
        loop {
            let Some(peer) = self.peers.get(&id) else { return };
            let Some((connection, _)) = peer.session else { return };
            let room = self.links.get(&connection).is_some_and(|link| link.outstanding < OUTSTANDING_MAX);
            if !room || self.has_heard_all(peer) {
                return;
            }
            for bytes in self.next_messages(id) {
                self.send(connection, bytes);
            }
        }
    }

    /// The next messages for a peer: from the log, then of marked prefixes, then of the walk, then End-of-RIB.
    fn next_messages(&mut self, id: PeerId) -> Vec<Bytes> {
        let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
        let Some(view) = peer.view.clone() else { return Vec::new() };
        let log = self.logs.get(&view);
        if let Some(parcel) = peer.out.place.and_then(|place| log?.parcel(place)) {
            let messages = parcel.toward(id);
            peer.out.passed_log();
            if self.is_sending_watched() {
                let told = messages.iter().flat_map(|bytes| prefixes_in(&view, bytes));
                let told: Vec<IpNet> = told.collect();
                self.note_told(id, told.into_iter().map(Into::into));
            }
            return messages;
        }
        if peer.out.has_marks() {
            let marks = peer.out.take_marks(STEP);
            return self.look_at(id, &view, marks);
        }
        if let Some(walk) = peer.out.walking() {
            let told = walk.told;
            let marks = walk.next(STEP).into_iter().map(|prefix| (prefix, told));
            let marks = marks.filter(|(prefix, _)| !self.rib.is_local(prefix)).collect();
            return self.look_at(id, &view, marks);
        }
        let mut bytes = Vec::new();
        for family in peer.out.take_end_of_rib() {
            wire::end_of_rib(family, &mut bytes);
        }
        for family in peer.out.refresh.take_ends() {
            bytes.extend(wire::refresh(&RouteRefresh::new(family, RefreshKind::End)));
        }
        vec![bytes.into()]
    }

    /// What a peer is to hear about prefixes as they are now; with each, whether it may hold a route from us.
    fn look_at(&mut self, id: PeerId, view: &View, marks: Vec<(IpNet, bool)>) -> Vec<Bytes> {
        let Some(peer) = self.peers.get_mut(&id) else { return Vec::new() };
        if peer.out.paths.is_some() {
            return self.look_at_paths(id, view, marks);
        }
        let mut originated: Vec<(IpNet, Said)> = Vec::new();
        let mut learned: Vec<(IpNet, bool, Option<Best>)> = Vec::new();
        for (prefix, told) in marks {
            let announcement = self.rib.announcement(&prefix, &peer.config.name);
            if let Some(said) = announcement.and_then(|announcement| view.originated(&prefix, announcement)) {
                if peer.out.said(&prefix) != Some(&said) {
                    peer.out.remember(prefix, said.clone());
                    originated.push((prefix, said));
                }
                continue;
            }
            let told = peer.out.forget(&prefix) || told;
            let passed_on = peer.out.place.is_some() && !self.rib.is_local(&prefix);
            let best = passed_on.then(|| view.choice(&self.rib, &prefix)).flatten().map(|(path, _)| path);
            learned.push((prefix, told, best));
        }
        let news = learned.iter().map(|(prefix, told, best)| News {
            prefix: *prefix,
            old: Held::Anything(*told),
            new: best.as_ref(),
        });
        let mut messages = pack(view, &self.rib, news, &[id]).toward(id);
        if self.is_sending_watched() {
            let told: Vec<IpNet> = messages.iter().flat_map(|bytes| prefixes_in(view, bytes)).collect();
            let own: Vec<IpNet> = originated.iter().map(|(prefix, _)| *prefix).collect();
            self.note_told(id, told.into_iter().chain(own).map(Into::into));
        }
        let mut bytes = Vec::new();
        view.announcements(originated, &mut bytes);
        if !bytes.is_empty() {
            messages.push(bytes.into());
        }
        messages
    }

    /// Starts telling a peer: what this speaker originates, and what it learned if the peer is to hear that.
    pub(super) fn start_telling(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some((_, session)) = &peer.session else { return };
        let policy = peer.config.export_policy.as_ref();
        let exporter = Exporter {
            identity: self.identity,
            cluster_id: self.cluster_id,
            policy: policy.map(|policy| self.policies.export(policy, &self.rpki)),
            draining: self.draining,
        };
        let view = View::new(exporter, &peer.config, session);
        let families = session.families.clone();
        for prefix in self.rib.originated() {
            let told = peer.out.said(&prefix).is_some();
            peer.out.mark(prefix, told);
        }
        if session.add_path_send.is_empty() {
            let before = peer.out.place.is_some();
            peer.out.place = peer.config.passes_on().then(|| self.logs.join(&view, id));
            if before || peer.out.place.is_some() {
                peer.out.walk(Walk::new(self.rib.by_set(), families, before));
            }
        } else {
            peer.out.paths.get_or_insert_default();
            peer.out.doubt_paths(&families);
            if peer.config.passes_on() {
                peer.out.walk(Walk::new(self.rib.by_set(), families, false));
            }
        }
        peer.view = Some(Arc::new(view));
        self.note_path_hearers();
    }

    /// Ends telling a peer. If the session goes on, what it was not told of the log yet must not be lost.
    pub(super) fn stop_telling(&mut self, id: PeerId, session_goes_on: bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(view) = peer.view.take() else { return };
        if let (Some(place), Some(log), true) = (peer.out.place, self.logs.get(&view), session_goes_on) {
            let untold = log.since(place).flat_map(|parcel| prefixes_of(&view, parcel));
            untold.for_each(|prefix| peer.out.mark(prefix, true));
        }
        self.logs.leave(&view, id);
    }

    /// The settings of a peer changed without a new session: it is told what it should hear now.
    pub(super) fn view_changed(&mut self, id: PeerId) {
        if self.peers.get(&id).is_some_and(|peer| peer.session.is_some()) {
            self.stop_telling(id, true);
            self.start_telling(id);
        }
    }

    /// A peer asked for a family again (RFC 2918); where it starts and ends is said if the peer understands that (RFC 7313).
    pub(super) fn say_again(&mut self, id: PeerId, family: Family) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let session = peer.session.as_ref().map(|(connection, session)| (*connection, Arc::clone(session)));
        let marked = session.filter(|(_, session)| {
            // Not within the initial update, whose own end is still to come (RFC 7313 section 4).
            session.enhanced_refresh && peer.out.may_begin_refresh(family, session.peer_restart.is_some())
        });
        if let Some((connection, _)) = marked {
            peer.out.refresh.begin(family);
            let begin = wire::refresh(&RouteRefresh::new(family, RefreshKind::Begin));
            self.send(connection, begin.into());
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.out.say_again(family);
        peer.out.doubt_paths(&[family]);
        if peer.out.place.is_some() {
            peer.out.walk(Walk::new(self.rib.by_set(), vec![family], false));
        }
        self.pump(id);
    }

    /// Forgets what every peer of a group has; peers that are too far behind go on with the newest state of each prefix.
    fn shorten_logs(&mut self) {
        let views: Vec<(View, bool)> =
            self.logs.iter().map(|(view, log)| (view.clone(), log.is_too_long())).collect();
        for (view, too_long) in views {
            let members = self.logs.members(&view);
            if too_long {
                members.iter().for_each(|id| self.catch_up(*id, &view));
            }
            let place = |id: &PeerId| self.peers.get(id).and_then(|peer| peer.out.place);
            let least = members.iter().filter_map(place).min();
            if let (Some(log), Some(least)) = (self.logs.get_mut(&view), least) {
                log.forget_until(least);
            }
        }
    }

    /// Puts what a peer still has to hear from the log into its own list.
    fn catch_up(&mut self, id: PeerId, view: &View) {
        let (Some(peer), Some(log)) = (self.peers.get_mut(&id), self.logs.get(view)) else { return };
        let Some(place) = peer.out.place.filter(|place| *place < log.end()) else { return };
        tracing::info!(peer = peer.config.name, "The peer is slow; it gets the newest routes only.");
        for parcel in log.since(place) {
            prefixes_of(view, parcel).into_iter().for_each(|prefix| peer.out.mark(prefix, true));
        }
        peer.out.place = Some(log.end());
    }
}
