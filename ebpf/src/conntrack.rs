//! Conntrack from user space: collecting what has expired, and reading what is there.

use crate::abi;
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::rows::{ConntrackEntry, ConntrackKind};
use crate::sys::{self, Cursor};

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcStats {
    /// Entries looked at.
    pub seen: u64,
    /// Entries deleted.
    pub deleted: u64,
    /// Entries that stay.
    pub alive: u64,
    /// Whether the walk reached the end; else call again.
    pub complete: bool,
}

/// A collection in progress; walks the table in bounded steps.
#[derive(Debug, Default)]
pub struct ConntrackGc {
    cursor: Option<Cursor>,
    total: GcStats,
}

impl ConntrackGc {
    /// A walk from the start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at about `entries` entries of the established table and deletes the expired ones (the half-open table and
    /// the NAT table replace their least recently used). When the walk is complete, the next step starts over.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn step(&mut self, datapath: &Datapath, entries: usize) -> Result<GcStats, DatapathError> {
        let now = sys::monotonic_ns();
        let from = self.cursor.take().unwrap_or_default();
        let batch = datapath.tables.ct.batch(from, entries)?;
        for (key, _) in
            batch.entries.iter().inspect(|_| self.total.seen += 1).filter(|(_, v)| v.expires_ns < now)
        {
            // Read again: the flow may have come back to life since the batch was read.
            if datapath.tables.ct.get(*key)?.is_some_and(|entry| entry.expires_ns < now) {
                datapath.tables.ct.delete(*key)?;
                self.total.deleted += 1;
            }
        }
        self.total.alive = self.total.seen.saturating_sub(self.total.deleted);
        self.total.complete = batch.next.is_none();
        let stats = self.total;
        self.cursor = batch.next;
        if stats.complete {
            self.total = GcStats::default();
        }
        Ok(stats)
    }
}

impl Datapath {
    /// A whole collection, in steps of 4096 entries. Call it from a blocking thread every 10 to 30 seconds.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn gc(&self) -> Result<GcStats, DatapathError> {
        let mut walk = ConntrackGc::new();
        loop {
            let stats = walk.step(self, 4096)?;
            if stats.complete {
                return Ok(stats);
            }
        }
    }

    /// All tracked flows that have not expired.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn conntrack(&self) -> Result<Vec<ConntrackEntry>, DatapathError> {
        let now = sys::monotonic_ns();
        let half = self.tables.ct_half.dump()?.into_iter().map(|(key, value)| (key, value, false));
        let full = self.tables.ct.dump()?.into_iter().map(|(key, value)| (key, value, true));
        let live = half.chain(full).filter(|(_, value, _)| value.expires_ns >= now);
        Ok(live.map(|(key, value, established)| plain(&key, &value, established)).collect())
    }

    /// Forgets all flows of a pod's address, so that a pod that gets the address next starts clean.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn forget_flows(&self, ip: std::net::IpAddr) -> Result<u64, DatapathError> {
        let addr = abi::Addr::from(ip);
        let mut deleted = 0;
        for table in [&self.tables.ct, &self.tables.ct_half] {
            for (key, _) in table.dump()?.into_iter().filter(|(key, _)| key.src == addr || key.dst == addr) {
                table.delete(key)?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

fn plain(key: &abi::Tuple, value: &abi::Ct, established: bool) -> ConntrackEntry {
    ConntrackEntry {
        kind: match key.kind {
            abi::CT_EGRESS => ConntrackKind::Egress,
            abi::CT_INGRESS => ConntrackKind::Ingress,
            _ => ConntrackKind::Service,
        },
        protocol: key.proto,
        source: (key.src.ip(), u16::from_be(key.sport)),
        destination: (key.dst.ip(), u16::from_be(key.dport)),
        established,
        closing: value.flags & abi::CTF_CLOSING != 0,
        expires_ns: value.expires_ns,
        packets: value.packets,
        bytes: value.bytes,
        identity: value.identity,
        rev_nat: value.rev_nat,
        backend: value.backend,
    }
}
