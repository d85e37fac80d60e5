//! The state of one remote cluster for `tombolo mesh status`.

use super::conflict::{ClusterConflict, ClusterConflictKind};
use super::core::{Follower, Link};
use super::event::Applied;
use super::lag::LagStatus;
use super::store::Store;
use super::times::Quantiles;
use crate::wire::{Kind, Reason, Rejections};
use serde::Serialize;
use std::collections::BTreeMap;
use tombolo_base::clock::Moment;
use tombolo_base::source::SourceState;

/// One remote cluster, as people and programs read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterStatus {
    /// The cluster's name.
    pub name: String,
    /// Connected, configuration read, every kind listed.
    pub ready: bool,
    /// Whether a connection stands.
    pub connected: bool,
    /// One sentence: what it is doing or what is wrong, and what to try.
    pub status: String,
    /// The endpoints it is reached at.
    pub endpoints: Vec<String>,
    /// The etcd cluster's id, hexadecimal; changes when the etcd was replaced.
    pub etcd_id: Option<String>,
    /// Known entries by kind.
    pub counts: BTreeMap<Kind, usize>,
    /// Changes of entries by kind since the agent started: a resync that is a diff adds what changed meanwhile and no more.
    pub applied: BTreeMap<Kind, Applied>,
    /// Whether each kind's list is complete on this connection.
    pub synced: BTreeMap<Kind, bool>,
    /// What the cluster says about itself.
    pub config: ConfigStatus,
    /// Connections lost or given up.
    pub reconnections: u64,
    /// The last failure, if there was one.
    pub last_failure: Option<FailureStatus>,
    /// Seconds since the entries were last confirmed; absent while they are current.
    pub stale_secs: Option<u64>,
    /// Seconds since the last heartbeat on this connection.
    pub heartbeat_age_secs: Option<u64>,
    /// Seconds since the last change of an entry.
    pub last_event_age_secs: Option<u64>,
    /// Refused entries by reason.
    pub rejected: Rejections,
    /// Entries that are refused as they stand now, the first [`MAX_REFUSED`] of each kind.
    pub refused: Vec<Refused>,
    /// Number of entries that are refused as they stand now.
    pub refused_now: usize,
    /// When the first of our certificates for it ends, seconds since 1970.
    pub certificate_expires_unix_secs: Option<i64>,
    /// The time until then, in short.
    pub certificate_left: Option<String>,
    /// Whether it is reached without TLS.
    pub plaintext: bool,
    /// What works now and will not for long, and what is not used: certificates that end, files that a restart could not
    /// use, entries that were not confirmed for too long.
    pub warnings: Vec<String>,
    /// Entries by kind that are known and not used, because they were not confirmed for too long.
    pub withheld: BTreeMap<Kind, usize>,
    /// Bytes of the known entries' names and values, slices as they are unpacked.
    pub bytes: usize,
    /// The same and the number of keys, by kind, as it is known now.
    pub usage: BTreeMap<Kind, KindUsage>,
    /// How long a change takes from the cluster's etcd to its follower here; absent where nothing tells.
    pub lag: Option<LagStatus>,
    /// How long what arrived takes until its rows are written.
    pub commit: Quantiles,
    /// What is wrong between this cluster and others.
    pub conflicts: Vec<ClusterConflict>,
    /// How many of each kind were found so far.
    pub conflicts_found: BTreeMap<ClusterConflictKind, u64>,
    /// The relay that the cluster is read through; absent if it is read directly, or through another program's mirror.
    pub relay: Option<UpstreamStatus>,
}

/// What the entries of one kind cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KindUsage {
    /// Keys.
    pub keys: usize,
    /// Bytes of names and values, slices as they are unpacked.
    pub bytes: usize,
}

/// What the relay says of a cluster that it mirrors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UpstreamStatus {
    /// The elected relay's name; absent if there is none.
    pub relay: Option<String>,
    /// Whether its connection to the cluster stands.
    pub connected: bool,
    /// Whether it confirms the mirror.
    pub ready: bool,
    /// One sentence.
    pub status: String,
}

/// Refused entries of one kind that are told one by one; the rest is counted.
pub const MAX_REFUSED: usize = 20;

/// An entry that is refused as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refused {
    /// The whole key.
    pub key: String,
    /// Why.
    pub reason: Reason,
    /// What exactly was wrong.
    pub detail: String,
    /// What to do.
    pub remedy: &'static str,
    /// Whether the key's last good value stays in use.
    pub kept: bool,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = if self.kept { "its last good value stays in use" } else { "it is not used" };
        write!(f, "{}: {}: {}, {used}; {}", self.key.escape_debug(), self.reason, self.detail, self.remedy)
    }
}

/// The remote's configuration in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigStatus {
    /// Whether it was read on this connection.
    pub retrieved: bool,
    /// The cluster's number.
    pub cluster_id: Option<u32>,
    /// Whether entries lie in the cache layout.
    pub kvstoremesh: bool,
    /// Whether lists wait for canaries.
    pub sync_canaries: bool,
    /// `enabled`, `disabled` or `unsupported`.
    pub service_exports: &'static str,
    /// The endpoint slices' export mode, `""` when they are not exported.
    pub endpoint_slice_export_mode: String,
}

/// A failure and its age.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FailureStatus {
    /// What failed, why, and what to try.
    pub text: String,
    /// Seconds ago.
    pub age_secs: u64,
}

impl Follower {
    /// The state for people; endpoints and certificates are the driver's to fill in.
    #[must_use]
    pub fn status(&self, now: Moment) -> ClusterStatus {
        let connected =
            self.etcd.is_some() && matches!(self.link, Link::Running | Link::Proving | Link::Configuring(..));
        let ready = self.link == Link::Running && self.state == SourceState::Initialized;
        let published = self.published.as_ref();
        let exports = published.and_then(|config| config.capabilities.service_exports_enabled);
        let mode = published.map(|config| config.capabilities.export_mode.word().to_owned());
        let stale = (!ready).then(|| self.confirmed.map(|at| now.since(at).as_secs())).flatten();
        ClusterStatus {
            name: self.config.cluster.to_string(),
            ready,
            connected,
            status: self.told(ready),
            endpoints: Vec::new(),
            etcd_id: self.etcd.map(|id| format!("{id:x}")),
            counts: self.stores.iter().map(|(kind, store)| (*kind, store.len())).collect(),
            applied: self
                .stores
                .keys()
                .map(|kind| (*kind, self.applied.get(kind).copied().unwrap_or_default()))
                .collect(),
            synced: self.stores.keys().map(|k| (*k, self.synced.get(k) == Some(&true))).collect(),
            config: ConfigStatus {
                retrieved: matches!(self.link, Link::Running | Link::Proving)
                    && !self.upstream.is_unconfigured(),
                cluster_id: self.remote.as_ref().map(|remote| u32::from(remote.id.get())),
                kvstoremesh: published.is_some_and(|config| config.capabilities.cached),
                sync_canaries: published.is_some_and(|config| config.capabilities.synced_canaries),
                service_exports: match exports {
                    Some(true) => "enabled",
                    Some(false) => "disabled",
                    None => "unsupported",
                },
                endpoint_slice_export_mode: mode.unwrap_or_default(),
            },
            reconnections: self.reconnections,
            last_failure: self
                .last_failure
                .as_ref()
                .map(|(at, text)| FailureStatus { text: text.clone(), age_secs: now.since(*at).as_secs() }),
            stale_secs: stale,
            heartbeat_age_secs: connected.then(|| now.since(self.heartbeat).as_secs()),
            last_event_age_secs: self.last_event.map(|at| now.since(at).as_secs()),
            rejected: self.rejections.clone(),
            refused: self.stores.values().flat_map(|store| store.refused(MAX_REFUSED)).collect(),
            refused_now: self.stores.values().map(Store::refused_now).sum(),
            certificate_expires_unix_secs: None,
            certificate_left: None,
            plaintext: false,
            warnings: self.withheld_text().into_iter().collect(),
            withheld: self
                .withheld
                .iter()
                .map(|kind| (*kind, self.stores.get(kind).map_or(0, Store::len)))
                .collect(),
            bytes: self.usage.bytes,
            usage: self.stores.iter().map(|(kind, store)| (*kind, store.usage())).collect(),
            lag: self.lag.status(),
            commit: Quantiles::default(),
            conflicts: self.conflicts_now(now),
            conflicts_found: self.conflicts.found.clone(),
            relay: self.upstream.status(),
        }
    }

    /// What it does or what is wrong.
    fn told(&self, ready: bool) -> String {
        match self.upstream.text().filter(|_| self.link == Link::Running) {
            Some(lost) => lost.to_owned(),
            None if ready && self.upstream.status().is_some_and(|relay| relay.ready) => {
                format!("{}, through a relay", self.text)
            }
            None => self.text.clone(),
        }
    }
}
