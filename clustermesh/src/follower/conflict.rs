//! What is wrong between clusters, as far as one cluster's own etcd shows it: numbers and names used twice, a number that changes.

use super::core::Follower;
use crate::wire::{ConfigError, Reason};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_base::clock::Moment;

/// What two clusters have that one may have, or what a cluster says that is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterConflictKind {
    /// Its id is ours, or another cluster's.
    ClusterId,
    /// Two clusters seem to answer under one name.
    ClusterName,
    /// Its id changed, and not everything has followed.
    IdChange,
    /// It publishes identities that are not in its range, or of other clusters.
    Identity,
}

impl ClusterConflictKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ClusterId, Self::ClusterName, Self::IdChange, Self::Identity];

    /// Its name in JSON, metrics and tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ClusterId => "cluster-id",
            Self::ClusterName => "cluster-name",
            Self::IdChange => "id-change",
            Self::Identity => "identity",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::ClusterId => {
                "renumber one of them: set its cluster id, then restart its agents and its pods, whose identities carry the number"
            }
            Self::ClusterName => {
                "look at the endpoints in its file: all must be of one cluster; or undo the restore that brought an old configuration back"
            }
            Self::IdChange => {
                "in that cluster, restart the agents, then the pods, so that their identities are made anew under the new id; until then they are refused here, and policies do not know them"
            }
            Self::Identity => {
                "in that cluster, restart what publishes there; if its id or name was changed, its pods need new identities"
            }
        }
    }
}

/// One of them, as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterConflict {
    /// What kind it is.
    pub kind: ClusterConflictKind,
    /// The number or name it is about.
    pub key: String,
    /// The other side, where it is known.
    pub with: Option<String>,
    /// Who has it here.
    pub chosen: Option<String>,
    /// What was found.
    pub detail: String,
    /// Seconds since it was noticed.
    pub since_secs: u64,
    /// What to do.
    pub remedy: &'static str,
}

/// What a follower remembers of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Conflicts {
    /// The configuration is refused since then.
    config: Option<(ConfigError, Moment)>,
    /// From, to, when.
    change: Option<(u32, u32, Moment)>,
    /// An id came back that the cluster had before another one.
    back: Option<(u32, u32, Moment)>,
    had: BTreeSet<u32>,
    /// Entries of others are refused since then.
    foreign: Option<Moment>,
    /// How many began so far.
    pub(super) found: BTreeMap<ClusterConflictKind, u64>,
}

/// Ids of one cluster that are remembered.
const MAX_IDS: usize = 16;

impl Conflicts {
    fn count(&mut self, kind: ClusterConflictKind) {
        *self.found.entry(kind).or_default() += 1;
    }

    pub(super) fn config_refused(&mut self, now: Moment, error: &ConfigError) {
        let same = self.config.as_ref().is_some_and(|(known, _)| known == error);
        if !same {
            if matches!(error, ConfigError::OwnId(_) | ConfigError::Taken { .. }) {
                self.count(ClusterConflictKind::ClusterId);
            }
            self.config = Some((error.clone(), now));
        }
    }

    pub(super) fn config_accepted(&mut self) {
        self.config = None;
    }

    pub(super) fn id_changed(&mut self, now: Moment, from: u32, to: u32) {
        if self.had.contains(&to) {
            self.back = Some((from, to, now));
            self.count(ClusterConflictKind::ClusterName);
        }
        if self.had.len() < MAX_IDS {
            self.had.insert(from);
        }
        self.change = Some((from, to, now));
        self.count(ClusterConflictKind::IdChange);
    }
}

/// Reasons that speak of another cluster's numbers or names.
const FOREIGN: [Reason; 4] =
    [Reason::IdentityRange, Reason::ClusterLabel, Reason::ClusterName, Reason::ClusterId];
/// How long an id that came back is told.
const BACK_SECS: u64 = 3600;

impl Follower {
    /// Notes when entries that speak of other clusters began to be refused.
    pub(super) fn note_foreign(&mut self, now: Moment) {
        let refused = self.foreign_refused() > 0;
        // After a change of the id they are a part of that.
        if refused && self.conflicts.foreign.is_none() && self.conflicts.change.is_none() {
            self.conflicts.count(ClusterConflictKind::Identity);
        }
        self.conflicts.foreign = refused.then(|| self.conflicts.foreign.unwrap_or(now));
    }

    fn foreign_refused(&self) -> usize {
        let of =
            |reason: &Reason| self.stores.values().map(|store| store.refused_for(*reason)).sum::<usize>();
        FOREIGN.iter().map(of).sum()
    }

    /// What stands now.
    pub(super) fn conflicts_now(&self, now: Moment) -> Vec<ClusterConflict> {
        let name = self.config.cluster.as_str();
        let mut all = Vec::new();
        let mut tell = |kind: ClusterConflictKind, key: String, with, chosen, detail, since: Moment| {
            let since_secs = now.since(since).as_secs();
            let remedy = kind.remedy();
            all.push(ClusterConflict { kind, key, with, chosen, detail, since_secs, remedy });
        };
        if let Some((error, since)) = &self.conflicts.config {
            let own = self.config.own_name.to_string();
            let found = match error {
                ConfigError::OwnId(id) => Some((*id, own)),
                ConfigError::Taken { id, other } => Some((*id, other.clone())),
                _ => None,
            };
            if let Some((id, other)) = found {
                let (with, chosen) = (Some(other.clone()), Some(other));
                tell(ClusterConflictKind::ClusterId, id.to_string(), with, chosen, error.to_string(), *since);
            }
        }
        let back = self.conflicts.back.filter(|(_, _, at)| now.since(*at).as_secs() < BACK_SECS);
        if let Some((from, to, at)) = back {
            let detail = format!("answers with id {to} again after it had id {from}");
            tell(ClusterConflictKind::ClusterName, name.to_owned(), None, None, detail, at);
        }
        let foreign = self.foreign_refused();
        if let Some((from, to, at)) = self.conflicts.change.filter(|_| foreign > 0 || !self.is_complete()) {
            let detail = format!(
                "its id changed from {from} to {to}: what was known under the old one was removed; {foreign} entries of the old one are refused"
            );
            tell(ClusterConflictKind::IdChange, to.to_string(), None, None, detail, at);
        } else if foreign > 0 {
            let detail =
                format!("{foreign} entries carry numbers or names of other clusters and are refused");
            let since = self.conflicts.foreign.unwrap_or(now);
            tell(ClusterConflictKind::Identity, name.to_owned(), None, None, detail, since);
        }
        all
    }
}
