//! Where the exchange with a cache stands, for whoever looks.

use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What a router does about a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CachePhase {
    /// Not connected; it is tried again after a wait.
    Waiting,
    /// A connection is being made.
    Connecting,
    /// A query is out, and nothing of its answer is there.
    Asking,
    /// The answer comes in.
    Receiving,
    /// All the cache has is known; it tells of news.
    Synchronised,
}

impl CachePhase {
    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Asking => "asking",
            Self::Receiving => "receiving",
            Self::Synchronised => "synchronised",
        }
    }
}

/// An RPKI cache as a speaker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheState {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is done about it.
    pub state: CachePhase,
    /// Version of the protocol (RFC 8210: 1, RFC 6810: 0).
    pub version: u8,
    /// The cache's session, and the serial number of what it said last; none: everything is asked for anew.
    pub session: Option<u16>,
    /// See `session`.
    pub serial: Option<u32>,
    /// Payloads for IPv4 that routes are judged by.
    pub ipv4: usize,
    /// Payloads for IPv6 that routes are judged by.
    pub ipv6: usize,
    /// Seconds since an answer was last complete; none: there was none, or it expired, and the cache counts for nothing.
    pub age_secs: Option<u64>,
    /// Seconds until the payloads expire unless the cache is heard again.
    pub expires_secs: Option<u64>,
    /// What went wrong since an answer was last complete.
    pub last_error: Option<String>,
}

impl CacheState {
    /// Whether routes are judged by what it said.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.age_secs.is_some()
    }
}

/// The same with points in time, so that it need not be told anew as time passes.
#[derive(Clone, Debug)]
pub(crate) struct CacheReport {
    pub(crate) address: SocketAddr,
    pub(crate) phase: CachePhase,
    pub(crate) version: u8,
    pub(crate) state: Option<(u16, u32)>,
    /// Of IPv4 and of IPv6.
    pub(crate) payloads: (usize, usize),
    /// When an answer was complete last, and when that expires.
    pub(crate) complete: Option<(Instant, Instant)>,
    pub(crate) last_error: Option<String>,
}

impl CacheReport {
    /// A cache that was not tried yet.
    pub(crate) const fn new(address: SocketAddr) -> Self {
        Self {
            address,
            phase: CachePhase::Waiting,
            version: 1,
            state: None,
            payloads: (0, 0),
            complete: None,
            last_error: None,
        }
    }

    /// As it is at a time.
    pub(crate) fn at(&self, now: Instant) -> CacheState {
        CacheState {
            address: self.address,
            state: self.phase,
            version: self.version,
            session: self.state.map(|(session, _)| session),
            serial: self.state.map(|(_, serial)| serial),
            ipv4: self.payloads.0,
            ipv6: self.payloads.1,
            age_secs: self.complete.map(|(at, _)| now.saturating_duration_since(at).as_secs()),
            expires_secs: self.complete.map(|(_, end)| end.saturating_duration_since(now).as_secs()),
            last_error: self.last_error.clone(),
        }
    }
}
