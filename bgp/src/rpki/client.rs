//! A router's side of one cache (RFC 8210 section 8), without I/O: bytes, news of the connection and the time go in, [`CacheOutput`]s come out.
//!
//! ```text
//!  connect ──► Serial Query (or Reset Query) ──► Cache Response, prefixes, End of Data ──► table ──refresh or notify──► Serial Query ...
//!     ▲                                              │ Cache Reset: Reset Query              │
//!     └── backoff, at most the retry time ◄──────────┴── error, silence                      └─ expire: the table goes
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pdu::{self, Bad, Pdu, code};
use super::{CachePhase, CacheReport, RpkiTable, Vrp};

/// Intervals until a cache names its own, and for version 0 (RFC 8210 section 6): refresh, retry, expire.
const INTERVALS: [u32; 3] = [3600, 600, 7200];
/// Bounds of what a cache may name (RFC 8210 section 6).
const BOUNDS: [(u32, u32); 3] = [(1, 86_400), (1, 7200), (600, 172_800)];
/// Payloads accepted: several times what all registries publish.
const PAYLOADS_MAX: usize = 8_000_000;
/// An answer that pauses for this long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A cache of validated ROA payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpkiCache {
    /// Where it listens, plain TCP (RFC 8210 section 9.1 leaves protecting that to the network).
    pub address: SocketAddr,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum CacheOutput {
    Connect,
    Send(Vec<u8>),
    Close,
    /// The payloads are these now.
    Table(Arc<RpkiTable>),
}

/// Where the exchange stands.
#[derive(Debug)]
enum Exchange {
    /// Not connected; [`CacheClient::connect_at`] says when to try.
    Away,
    Connecting,
    /// A query is out, nothing of its answer is there.
    Asked {
        everything: bool,
    },
    /// The answer comes in.
    Answer {
        everything: bool,
        changes: Vec<(bool, Vrp)>,
    },
    /// All is known; the cache may tell of news.
    Idle,
}

/// One cache.
#[derive(Debug)]
pub(crate) struct CacheClient {
    version: u8,
    /// A unit of the cache has settled the version for this connection.
    agreed: bool,
    exchange: Exchange,
    /// The session and serial number of the table; none: everything must be asked for.
    state: Option<(u16, u32)>,
    table: Arc<RpkiTable>,
    buffer: Vec<u8>,
    intervals: [Duration; 3],
    failures: u32,
    connect_at: Option<Instant>,
    refresh_at: Option<Instant>,
    /// When the last complete answer was here.
    complete_at: Option<Instant>,
    expire_at: Option<Instant>,
    silent_at: Option<Instant>,
    outputs: VecDeque<CacheOutput>,
    last_error: Option<String>,
}

fn secs(all: [u32; 3]) -> [Duration; 3] {
    all.map(|secs| Duration::from_secs(secs.into()))
}

impl CacheClient {
    /// A cache that is connected to at once.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            version: 1,
            agreed: false,
            exchange: Exchange::Away,
            state: None,
            table: Arc::default(),
            buffer: Vec::new(),
            intervals: secs(INTERVALS),
            failures: 0,
            connect_at: Some(now),
            refresh_at: None,
            complete_at: None,
            expire_at: None,
            silent_at: None,
            outputs: VecDeque::new(),
            last_error: None,
        }
    }

    pub(crate) fn next_output(&mut self) -> Option<CacheOutput> {
        self.outputs.pop_front()
    }

    /// What went wrong last.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Where it stands with the cache at an address.
    pub(crate) fn report(&self, address: SocketAddr) -> CacheReport {
        CacheReport {
            address,
            phase: match self.exchange {
                Exchange::Away => CachePhase::Waiting,
                Exchange::Connecting => CachePhase::Connecting,
                Exchange::Asked { .. } => CachePhase::Asking,
                Exchange::Answer { .. } => CachePhase::Receiving,
                Exchange::Idle => CachePhase::Synchronised,
            },
            version: self.version,
            state: self.state,
            payloads: self.table.lens(),
            complete: self.complete_at.zip(self.expire_at),
            last_error: self.last_error.clone(),
        }
    }

    /// When [`CacheClient::tick`] must be called again.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        [self.connect_at, self.refresh_at, self.expire_at, self.silent_at].into_iter().flatten().min()
    }

    /// The connection is there.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.buffer.clear();
        self.agreed = false;
        self.ask(now);
    }

    /// The connection is gone, or could not be made.
    pub(crate) fn lost(&mut self, now: Instant, reason: &str) {
        if !matches!(self.exchange, Exchange::Away) {
            self.last_error = Some(reason.to_owned());
            self.away(now);
        }
    }

    fn away(&mut self, now: Instant) {
        self.exchange = Exchange::Away;
        (self.silent_at, self.refresh_at) = (None, None);
        let [_, retry, _] = self.intervals;
        let wait = Duration::from_secs(1 << self.failures.min(20)).min(retry);
        self.failures = self.failures.saturating_add(1);
        self.connect_at = Some(now + wait);
    }

    fn close(&mut self, now: Instant, reason: &str) {
        self.last_error = Some(reason.to_owned());
        self.outputs.push_back(CacheOutput::Close);
        self.away(now);
    }

    /// Reports what the cache did wrong, and begins anew.
    fn refuse(&mut self, now: Instant, bad: &Bad, reason: &str) {
        self.outputs.push_back(CacheOutput::Send(pdu::error_report(self.version, bad)));
        self.state = None;
        self.close(now, reason);
    }

    /// Asks for what is new, or for everything.
    fn ask(&mut self, now: Instant) {
        let query = match self.state {
            Some((session, serial)) => pdu::serial_query(self.version, session, serial),
            None => pdu::reset_query(self.version),
        };
        self.exchange = Exchange::Asked { everything: self.state.is_none() };
        self.silent_at = Some(now + SILENCE_MAX);
        self.refresh_at = None;
        self.outputs.push_back(CacheOutput::Send(query));
    }

    /// Runs every timer that is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        if due(&mut self.expire_at) {
            (self.state, self.complete_at) = (None, None);
            self.table = Arc::default();
            self.last_error = Some("the payloads expired: the cache was not heard of in time".to_owned());
            self.outputs.push_back(CacheOutput::Table(Arc::clone(&self.table)));
        }
        if due(&mut self.silent_at) {
            self.close(now, "the cache does not answer");
        }
        if due(&mut self.refresh_at) && matches!(self.exchange, Exchange::Idle) {
            self.ask(now);
        }
        if due(&mut self.connect_at) && matches!(self.exchange, Exchange::Away) {
            self.exchange = Exchange::Connecting;
            self.outputs.push_back(CacheOutput::Connect);
        }
    }

    /// Bytes came.
    pub(crate) fn received(&mut self, now: Instant, bytes: &[u8]) {
        self.buffer.extend(bytes);
        if self.silent_at.is_some() {
            self.silent_at = Some(now + SILENCE_MAX);
        }
        while !matches!(self.exchange, Exchange::Away | Exchange::Connecting) {
            let mut buffer = std::mem::take(&mut self.buffer);
            let next = pdu::next(&mut buffer);
            self.buffer = buffer;
            match next {
                Ok(Some((version, pdu))) => self.unit(now, version, pdu),
                Ok(None) => return,
                Err(bad) => return self.refuse(now, &bad, "the cache sent what cannot be read"),
            }
        }
    }

    fn unit(&mut self, now: Instant, version: u8, pdu: Pdu) {
        if let Pdu::ErrorReport { code, text } = pdu {
            return self.reported(now, version, code, &text);
        }
        if version != self.version {
            // RFC 8210 section 7: an older cache answers in its own version.
            if self.agreed || version > self.version || matches!(pdu, Pdu::SerialNotify { .. }) {
                let bad = Bad { code: code::UNEXPECTED_VERSION, pdu: Vec::new() };
                return self.refuse(now, &bad, "the cache changed its protocol version");
            }
            self.version = version;
        }
        self.agreed = true;
        match (std::mem::replace(&mut self.exchange, Exchange::Idle), pdu) {
            (Exchange::Asked { everything }, Pdu::CacheResponse { session }) => {
                self.answered(now, everything, session);
            }
            (Exchange::Asked { .. }, Pdu::CacheReset) => {
                self.state = None;
                self.ask(now);
            }
            (Exchange::Answer { everything, mut changes }, Pdu::Prefix { announced, vrp }) => {
                if changes.len() >= PAYLOADS_MAX {
                    let bad = Bad { code: code::INTERNAL, pdu: Vec::new() };
                    return self.refuse(now, &bad, "the cache has more payloads than are accepted");
                }
                changes.push((announced, vrp));
                self.exchange = Exchange::Answer { everything, changes };
            }
            (Exchange::Answer { everything, changes }, Pdu::EndOfData { session, serial, intervals }) => {
                self.complete(now, everything, &changes, (session, serial), intervals);
            }
            (before, Pdu::RouterKey) => self.exchange = before,
            (Exchange::Idle, Pdu::SerialNotify { session, serial }) => {
                // Another session means that the cache began anew: it will say so when asked.
                if self.state != Some((session, serial)) {
                    self.ask(now);
                }
            }
            // An answer is under way and brings it.
            (before, Pdu::SerialNotify { .. }) => self.exchange = before,
            (_, _) => {
                let bad = Bad { code: code::CORRUPT_DATA, pdu: Vec::new() };
                self.refuse(now, &bad, "the cache sent what was not asked for");
            }
        }
    }

    fn answered(&mut self, now: Instant, everything: bool, session: u16) {
        if !everything && self.state.is_some_and(|(known, _)| known != session) {
            // RFC 8210 section 5.1: numbers of another session mean nothing.
            self.state = None;
            return self.close(now, "the cache began a new session");
        }
        self.exchange = Exchange::Answer { everything, changes: Vec::new() };
    }

    fn complete(
        &mut self,
        now: Instant,
        everything: bool,
        changes: &[(bool, Vrp)],
        state: (u16, u32),
        intervals: Option<[u32; 3]>,
    ) {
        let mut table = if everything { RpkiTable::default() } else { RpkiTable::clone(&self.table) };
        for (announced, vrp) in changes {
            let fits = if *announced { table.insert(vrp) } else { table.remove(vrp) };
            if !fits || table.len() > PAYLOADS_MAX {
                let code = if *announced { code::DUPLICATE } else { code::UNKNOWN_WITHDRAWAL };
                let bad = Bad { code, pdu: Vec::new() };
                let what = "the cache announced a payload twice, or withdrew one it had not announced";
                return self.refuse(now, &bad, what);
            }
        }
        let named = intervals.unwrap_or(INTERVALS);
        let bounded = |at: usize| {
            let (value, (least, most)) =
                (named.get(at).copied(), BOUNDS.get(at).copied().unwrap_or_default());
            value.unwrap_or(least).clamp(least, most)
        };
        let (refresh, retry) = (bounded(0), bounded(1));
        // It must be longer than both others, or the payloads would go while all is well.
        self.intervals =
            secs([refresh, retry, bounded(2).max(refresh.saturating_add(1)).max(retry.saturating_add(1))]);
        let [refresh, _, expire] = self.intervals;
        (self.refresh_at, self.expire_at, self.silent_at) = (Some(now + refresh), Some(now + expire), None);
        (self.state, self.complete_at) = (Some(state), Some(now));
        self.failures = 0;
        self.last_error = None;
        self.exchange = Exchange::Idle;
        if everything || !changes.is_empty() {
            self.table = Arc::new(table);
            self.outputs.push_back(CacheOutput::Table(Arc::clone(&self.table)));
        }
    }

    /// The cache reports an error. It is never answered with one (RFC 8210 section 5.10).
    fn reported(&mut self, now: Instant, version: u8, code: u16, text: &str) {
        let older = version < self.version && !self.agreed;
        match code {
            code::UNSUPPORTED_VERSION if older => {
                self.version = version;
                self.close(now, "the cache speaks an older version; asking again in that");
                self.failures = 0;
                self.connect_at = Some(now);
            }
            code::NO_DATA => self.close(now, "the cache has no data yet"),
            _ => {
                self.state = None;
                self.close(now, &format!("the cache reports error {code}: {text}"));
            }
        }
    }
}
