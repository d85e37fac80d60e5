//! The connection of a follower: when it is made, how it is judged, when it is given up.

use super::core::{Follower, Link};
use super::event::{Header, Output, Scope};
use super::store::Phase;
use crate::wire::{Kind, key};
use std::time::Duration;
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

impl Follower {
    /// Uniform in `0..range` milliseconds; deterministic for a seed (splitmix64).
    pub(super) fn jitter(&mut self, range: Duration) -> Duration {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let millis = u64::try_from(range.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(mixed % millis)
    }

    pub(super) fn connect(&mut self, now: Moment, out: &mut Vec<Output>) {
        self.link = Link::Connecting(now);
        "connecting".clone_into(&mut self.text);
        out.push(Output::Connect);
    }

    pub(super) fn tick(&mut self, now: Moment, out: &mut Vec<Output>) {
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
        if matches!(self.link, Link::Running | Link::Proving | Link::Configuring(..))
            && now >= self.next_check
        {
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
            // Only a connection that lasts ends the backoff: one that breaks right after its lists does not.
            if self.state == SourceState::Initialized {
                self.attempts = 0;
            }
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

    pub(super) fn connected(&mut self, now: Moment, out: &mut Vec<Output>) {
        if !matches!(self.link, Link::Connecting(_)) {
            return;
        }
        self.heartbeat = now;
        self.lag.reconnected();
        self.failed_checks = 0;
        self.next_check = now.after(self.config.timers.check);
        self.next_config = now.after(self.config.timers.config_retry.saturating_mul(30));
        self.start_list(Scope::Heartbeat, out);
        if self.is_own() {
            "reading the own cluster".clone_into(&mut self.text);
            self.read_on(out);
        } else {
            "waiting for the cluster's configuration".clone_into(&mut self.text);
            self.link = Link::Configuring(now, None);
            out.push(Output::GetConfig(key::cluster_config(self.config.cluster.as_str())));
        }
    }

    /// A round trip to the etcd took that long.
    pub(crate) fn round_trip(&mut self, time: Duration) {
        self.lag.round_trip(time);
    }

    /// Goes on with a connection that was made beside the old one. Nothing was lost and nothing failed.
    pub(super) fn replaced(&mut self, now: Moment, out: &mut Vec<Output>) {
        if matches!(self.link, Link::Running | Link::Proving | Link::Configuring(..)) {
            self.lose(now, out);
            self.link = Link::Connecting(now);
            self.connected(now, out);
        }
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

    /// Gives the connection up, keeps everything known, and tries again later.
    pub(super) fn disconnect(&mut self, now: Moment, why: &str, out: &mut Vec<Output>) {
        if matches!(self.link, Link::Idle(_) | Link::Gone) {
            return;
        }
        out.push(Output::Disconnect);
        self.reconnections = self.reconnections.saturating_add(1);
        self.last_failure = Some((now, why.to_owned()));
        tracing::info!(cluster = %self.config.cluster, why, "connection given up; what is known stays");
        self.lose(now, out);
        let timers = &self.config.timers;
        let doubled = timers.backoff_min.saturating_mul(1 << self.attempts.min(16)).min(timers.backoff_max);
        self.attempts = self.attempts.saturating_add(1);
        let range = (doubled / 2).saturating_add(timers.spread);
        let wait = doubled / 2 + self.jitter(range);
        self.link = Link::Idle(now.after(wait));
        self.text = format!("{why}; connecting again in {} ms", wait.as_millis());
    }

    pub(super) fn lose(&mut self, now: Moment, out: &mut Vec<Output>) {
        if self.state == SourceState::Initialized {
            // After the lists, every heartbeat and event showed that the watches miss nothing.
            self.confirmed = self.confirmed.max(Some(self.heartbeat)).max(self.last_event);
        }
        let kinds: Vec<Kind> = self.stores.keys().copied().collect();
        for kind in kinds {
            let whole = self.canaries.get(&kind) == Some(&true) && !self.upstream.is_unswept(kind);
            if let Some(Phase::Watching(position)) = self.phases.get(&Scope::Entries(kind)).copied()
                && whole
            {
                self.bookmark(kind, position);
            }
            self.unconfirmed(now, kind);
            // What was listed in part and never whole has its limit, too.
            self.confirmed_kinds.entry(kind).or_insert(now);
        }
        self.upstream.lose();
        self.phases.clear();
        self.repetitions.clear();
        self.retries.clear();
        self.canaries.clear();
        self.synced.clear();
        self.tickets.clear();
        self.etcd = None;
        self.degrade(out);
    }

    /// From now on the kind's entries are not known to be current.
    pub(super) fn unconfirmed(&mut self, now: Moment, kind: Kind) {
        if self.synced.get_mut(&kind).is_some_and(std::mem::take) {
            let last = self.last_event.map_or(self.heartbeat, |event| self.heartbeat.max(event));
            self.confirmed_kinds.insert(kind, last.min(now));
        }
    }

    /// Something is not confirmed any more: the rows are stale.
    pub(super) fn degrade(&mut self, out: &mut Vec<Output>) {
        if self.state == SourceState::Initialized {
            self.set_state(SourceState::Stale, out);
        }
    }
}
