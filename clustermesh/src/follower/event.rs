//! What goes into the follower's core and what comes out of it.

use crate::wire::{Kind, Record};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tombolo_base::ids::ClusterId;
use tombolo_base::source::SourceState;

/// What is read from a remote etcd, each with a list and a watch of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// `cilium/.heartbeat`.
    Heartbeat,
    /// The canaries of the cluster.
    Canaries,
    /// What the relay says that mirrors the cluster; read where entries lie in the cache layout.
    Relay,
    /// The entries of one kind.
    Entries(Kind),
}

/// Tells the answers to one list and its watch from those to an earlier one, whose late pages must not count.
pub type Ticket = u64;

/// The header of every etcd response: who answered, and at which revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The etcd cluster's own id (not the mesh's).
    pub etcd: u64,
    /// Its revision.
    pub revision: i64,
    /// Its raft term. A new data directory starts again from the first one, with the same id if its flags are the same.
    pub term: u64,
}

/// How a request or stream failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// No connection, broken connection, timeout.
    Transport,
    /// The members of that etcd have no leader: it can neither confirm nor change anything.
    NoLeader,
    /// The user may not read that range: asking again at once is useless.
    Denied,
    /// The revision is gone: list again.
    Compacted,
    /// The answer is larger than what is taken at once: ask for less.
    TooLarge,
    /// Anything else.
    Other,
}

/// A failure with the text for people (what was tried, why it failed, what to try).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub kind: FailureKind,
    /// For people.
    pub text: String,
}

/// One event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyEvent {
    /// Created or modified: whole key and value.
    Put(Vec<u8>, Vec<u8>),
    /// Deleted: whole key.
    Delete(Vec<u8>),
}

/// What the driver tells the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// A client is ready to be used (the first answer proves the connection).
    Connected,
    /// The connection could not be made, or broke.
    Disconnected(Failure),
    /// Endpoints or certificates changed: connect anew, keep what is known.
    Reconfigured,
    /// A new connection was made beside the one that stands and takes its place: requests and watches of the old one end unanswered.
    Replaced,
    /// The answer to [`Output::GetConfig`].
    Config(Header, Option<Vec<u8>>),
    /// [`Output::GetConfig`] failed.
    ConfigFailed(Failure),
    /// A page of [`Output::List`], keys ascending.
    Page {
        /// The ticket of the request.
        ticket: Ticket,
        /// What was listed.
        scope: Scope,
        /// The response's header; the first page's revision pins the others.
        header: Header,
        /// Whole keys with values.
        entries: Vec<(Vec<u8>, Vec<u8>)>,
        /// Whether keys follow.
        more: bool,
    },
    /// The answer to [`Output::Prove`]: the revision at which the key was written last, and its value.
    Proof(Header, Option<(i64, Vec<u8>)>),
    /// [`Output::Prove`] failed.
    ProofFailed(Failure),
    /// [`Output::List`] failed.
    ListFailed(Ticket, Scope, Failure),
    /// A watch response; no events when the watch was created or made progress.
    Events {
        /// The ticket of the list before the watch.
        ticket: Ticket,
        /// What is watched.
        scope: Scope,
        /// The response's header.
        header: Header,
        /// The revision up to which the watch has told everything: that of the last event, or that of a progress
        /// notification. 0 when the response says nothing about it; the header's revision does not, since a watch that
        /// catches up tells the past in parts.
        seen: i64,
        /// In order.
        events: Vec<KeyEvent>,
    },
    /// A watch ended.
    WatchEnded(Ticket, Scope, Failure),
}

/// What the core wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Connect with freshly read certificates; answer with [`Input::Connected`] or [`Input::Disconnected`].
    Connect,
    /// Drop the connection and every request and watch on it; nothing of it may be answered afterwards.
    Disconnect,
    /// Get the single key of the cluster's configuration.
    GetConfig(String),
    /// Get the single key of the heartbeat as it was at that revision.
    Prove(i64),
    /// Read one page of a prefix.
    List {
        /// To be given back with the answer; a list with a new ticket replaces the scope's earlier list and watch.
        ticket: Ticket,
        /// What it is.
        scope: Scope,
        /// First key of the page.
        from: Vec<u8>,
        /// The prefix; the range ends where it ends.
        prefix: String,
        /// 0 for the newest revision (first page).
        revision: i64,
        /// Most keys of the page.
        limit: i64,
    },
    /// Watch a prefix from a revision on.
    Watch {
        /// The ticket of the list before it.
        ticket: Ticket,
        /// What it is.
        scope: Scope,
        /// The prefix.
        prefix: String,
        /// First revision to see.
        revision: i64,
    },
    /// An accepted change, in order.
    Change(Change),
    /// How complete the cluster's rows are now.
    State(SourceState),
    /// For a mirror: what its readers have to know besides the entries.
    News(News),
    /// The cluster was removed; all its rows are gone.
    Gone,
}

/// What a mirror is told besides the entries, in order with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The cluster's configuration was accepted: its number, and the value as it stands.
    Config(ClusterId, Arc<[u8]>),
    /// All entries of that kind are known; what was not told is not there.
    Complete(Kind),
}

/// A change of what is known about a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New or different.
    Upsert(Record),
    /// Gone; carries what was known last.
    Delete(Record),
}

impl Change {
    /// What kind of entry changed.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Upsert(record) | Self::Delete(record) => record.kind(),
        }
    }
}

/// Changes of one kind of entries since the agent started; what a list only confirms is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Applied {
    /// Entries that were new or different.
    pub upserts: u64,
    /// Entries that went.
    pub deletes: u64,
}

impl Applied {
    pub(super) const fn count(&mut self, change: &Change) {
        match change {
            Change::Upsert(_) => self.upserts = self.upserts.saturating_add(1),
            Change::Delete(_) => self.deletes = self.deletes.saturating_add(1),
        }
    }
}

/// Durations of the follower; the defaults are Cilium's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Longest wait for a connection's first answer.
    pub connect: Duration,
    /// First wait before reconnecting; doubled each time, with jitter, until a connection has passed a check.
    pub backoff_min: Duration,
    /// Longest wait before reconnecting, without the spread.
    pub backoff_max: Duration,
    /// Added to every wait, uniform in `0..spread`: readers that lost the same etcd at one moment come back one by one.
    pub spread: Duration,
    /// Longest time, uniform from a quarter of it on, after which what a resumed watch cannot vouch for is listed again.
    pub audit: Duration,
    /// How long the cluster configuration may be missing before the connection is made anew.
    pub config_wait: Duration,
    /// How often the configuration is asked for while it is missing, and looked at again (times 30) later.
    pub config_retry: Duration,
    /// Age of the heartbeat that counts as a failed check.
    pub heartbeat_max_age: Duration,
    /// Interval of checks while the heartbeat is fresh.
    pub check: Duration,
    /// Interval of checks while it is not; three failed ones in a row mean reconnecting.
    pub check_failing: Duration,
    /// Wait before a denied range is asked for again.
    pub denied_retry: Duration,
    /// How often certificate files are looked at for a renewal.
    pub certificates: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            spread: Duration::from_secs(3),
            audit: Duration::from_secs(240),
            config_wait: Duration::from_secs(180),
            config_retry: Duration::from_secs(2),
            heartbeat_max_age: Duration::from_secs(120),
            check: Duration::from_secs(20),
            check_failing: Duration::from_secs(5),
            denied_retry: Duration::from_secs(60),
            certificates: Duration::from_secs(60),
        }
    }
}
