//! Whether somebody vouches for what is read: the cluster by its configuration, and for a mirror the relay that writes it.
//!
//! The connection to a mirror stands also while the cluster behind it is dead. So the elected relay says beside the mirror
//! how far it reads each cluster (`tombolo/relay/<cluster>/`). What it cannot confirm is not confirmed here, and nothing
//! that is known is taken away because such a mirror lacks it. A mirror beside which nothing stands is another program's
//! (Cilium's KVStoreMesh); it is taken as it is.

use super::core::Follower;
use super::event::{Output, Scope};
use super::status::UpstreamStatus;
use super::store::Phase;
use crate::wire::relay::RelayReport;
use crate::wire::{Kind, key};
use std::collections::BTreeSet;
use std::time::Duration;
use tombolo_base::clock::Moment;

/// What is known of the relay behind a mirror.
#[derive(Clone, Debug, Default)]
pub(super) struct Upstream {
    /// A relay of ours writes or wrote the mirror.
    ours: bool,
    report: Option<RelayReport>,
    denied: bool,
    /// The cluster's configuration went while it was read.
    unconfigured: bool,
    /// Why what is read is not to be relied on.
    lost: Option<String>,
    /// The canaries are looked at once the relay's word is known.
    waiting: bool,
    /// Kinds that were listed while the mirror was not to be relied on: what the lists lacked was not taken away.
    unswept: BTreeSet<Kind>,
}

impl Upstream {
    /// The relay's word is asked for anew.
    pub(super) fn listing(&mut self) {
        (self.ours, self.report, self.denied) = (false, None, false);
    }

    /// The connection is lost.
    pub(super) fn lose(&mut self) {
        self.listing();
        (self.waiting, self.unconfigured) = (false, false);
        self.unswept.clear();
    }

    pub(super) const fn is_unconfigured(&self) -> bool {
        self.unconfigured
    }

    pub(super) const fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether what a list lacked was kept, so that only another list tells what is gone.
    pub(super) fn is_unswept(&self, kind: Kind) -> bool {
        self.unswept.contains(&kind)
    }

    /// A list of that kind ended. Whether what it lacked may go.
    pub(super) fn may_sweep(&mut self, kind: Kind) -> bool {
        if self.is_lost() {
            self.unswept.insert(kind);
        } else {
            self.unswept.remove(&kind);
        }
        !self.is_lost()
    }

    pub(super) fn put(&mut self, cluster: &str, key: &[u8], value: &[u8]) {
        if key == key::relay_leases(cluster).as_bytes() {
            self.ours = true;
        } else if key == key::relay_status(cluster).as_bytes() {
            let unreadable = || RelayReport {
                status: "its report cannot be read; run relays and agents of one version".to_owned(),
                ..RelayReport::default()
            };
            self.report = Some(RelayReport::decode(value).unwrap_or_else(unreadable));
        }
    }

    pub(super) fn delete(&mut self, cluster: &str, key: &[u8]) {
        if key == key::relay_leases(cluster).as_bytes() {
            self.ours = false;
        } else if key == key::relay_status(cluster).as_bytes() {
            self.report = None;
        }
    }

    /// What the entries are worth now.
    fn verdict(&self) -> Option<String> {
        match &self.report {
            // Whoever removes a cluster takes its configuration away first, and then the rest.
            _ if self.unconfigured => Some(
                "its configuration is gone; the relay or the cluster removed it: remove its file here, too, or look why nobody publishes it"
                    .to_owned(),
            ),
            Some(report) if report.ready => None,
            Some(report) => Some(format!("the relay {} does not confirm it: {}", report.relay, report.status)),
            None if self.ours => Some(
                "no relay is elected, so the mirror is not kept up; start `tombolo relay`, what is known stays in use"
                    .to_owned(),
            ),
            None => None,
        }
    }

    /// For the status; `None` when there is no relay.
    pub(super) fn status(&self) -> Option<UpstreamStatus> {
        let report = self.report.as_ref();
        (self.ours || report.is_some() || self.denied).then(|| UpstreamStatus {
            relay: report.map(|report| report.relay.clone()),
            connected: report.is_some_and(|report| report.connected),
            ready: report.is_some_and(|report| report.ready),
            status: match report {
                _ if self.denied => format!("not known: this user may not read {}", key::RELAY),
                None if self.unconfigured => "does not mirror it any more".to_owned(),
                None => "no relay is elected".to_owned(),
                Some(report) => report.status.clone(),
            },
        })
    }

    pub(super) fn text(&self) -> Option<&str> {
        self.lost.as_deref()
    }
}

impl Follower {
    /// Entries are read from a mirror: first what its relay says, then the canaries.
    pub(super) fn ask_upstream(&mut self, gated: bool, out: &mut Vec<Output>) {
        self.upstream.waiting = gated;
        self.start_list(Scope::Relay, out);
    }

    /// The relay's word must not be read.
    pub(super) fn upstream_denied(&mut self, now: Moment, out: &mut Vec<Output>) {
        self.upstream.listing();
        self.upstream.denied = true;
        self.judge_upstream(now, out);
    }

    /// The cluster's configuration went, or came back as it was. The watches go on: what they tell is the cluster's word.
    pub(super) fn judge_configured(&mut self, now: Moment, there: bool, out: &mut Vec<Output>) {
        if self.upstream.unconfigured == there {
            self.upstream.unconfigured = !there;
            self.judge_upstream(now, out);
        }
    }

    /// The relay said something, or nothing although it was asked.
    pub(super) fn judge_upstream(&mut self, now: Moment, out: &mut Vec<Output>) {
        let verdict = self.upstream.verdict();
        let before = std::mem::replace(&mut self.upstream.lost, verdict);
        if self.upstream.is_lost() {
            self.upstream_lost(now, out);
        } else if before.is_some() {
            self.upstream_found(now, out);
        }
        if std::mem::take(&mut self.upstream.waiting) {
            self.start_list(Scope::Canaries, out);
        }
    }

    /// Nothing is confirmed any more, since when the relay says.
    fn upstream_lost(&mut self, now: Moment, out: &mut Vec<Output>) {
        let age = self.upstream.report.as_ref().and_then(|report| report.stale_secs).map(Duration::from_secs);
        let last = age.map(|age| Moment::from_origin(now.since_origin().saturating_sub(age)));
        let kinds: Vec<Kind> = self.stores.keys().copied().collect();
        for kind in kinds {
            self.unconfirmed(now, kind);
            let confirmed = self.confirmed_kinds.entry(kind).or_insert(now);
            *confirmed = last.map_or(*confirmed, |last| last.min(*confirmed));
            // What lies before this life; the relay knows it better than what an earlier one left here.
            match age.map(|age| age.saturating_sub(now.since_origin())) {
                Some(Duration::ZERO) => {
                    self.restored_ages.remove(&kind);
                }
                Some(before) => {
                    self.restored_ages.insert(kind, before);
                }
                None => {}
            }
        }
        if last.is_some() || self.is_complete() {
            self.confirmed = last.or(Some(self.heartbeat)).max(last);
        }
        self.degrade(out);
    }

    /// The relay confirms the mirror again. What was only watched meanwhile is complete; what was listed is listed again,
    /// for what those lists lacked was kept.
    fn upstream_found(&mut self, now: Moment, out: &mut Vec<Output>) {
        for kind in std::mem::take(&mut self.upstream.unswept) {
            self.start_list(Scope::Entries(kind), out);
        }
        let kinds: Vec<Kind> = self.stores.keys().copied().collect();
        for kind in kinds {
            let watched = matches!(self.phases.get(&Scope::Entries(kind)), Some(Phase::Watching(_)));
            if watched && self.canaries.get(&kind) == Some(&true) && self.synced.get(&kind) != Some(&true) {
                self.is_synced(now, kind, out);
            }
        }
    }
}
