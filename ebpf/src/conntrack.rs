//! Conntrack from user space: collecting what has expired, and reading what is there.

use crate::abi;
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::rows::{ConntrackEntry, ConntrackKind};
use crate::sys::{self, Cursor};
use std::collections::BTreeSet;

/// Entries a step of a collection looks at.
pub(crate) const STEP: usize = 4096;

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
    /// Reverse translations that live flows name, if somebody wants to know.
    named: Option<BTreeSet<u32>>,
}

impl ConntrackGc {
    /// A walk from the start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at about `entries` entries of the established table and deletes the expired ones (the half-open table
    /// replaces its least recently used). When the walk is complete, the next step starts over. `now` is the time of
    /// `CLOCK_MONOTONIC` in nanoseconds.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn step(&mut self, datapath: &Datapath, entries: usize, now: u64) -> Result<GcStats, DatapathError> {
        let from = self.cursor.take().unwrap_or_default();
        let batch = datapath.tables.ct.batch(from, entries)?;
        if let Some(named) = &mut self.named {
            let live = batch.entries.iter().filter(|(_, flow)| flow.expires_ns >= now);
            named.extend(live.map(|(_, flow)| flow.rev_nat));
        }
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
    /// A whole collection of flows, address translations and reverse translations of services that are gone, in steps of 4096 entries. Call it from a blocking thread
    /// every 10 to 30 seconds.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn gc(&self) -> Result<GcStats, DatapathError> {
        self.gc_at(sys::monotonic_ns())
    }

    /// [`Self::gc`] as of another time: what will have expired by `now` (nanoseconds of `CLOCK_MONOTONIC`).
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn gc_at(&self, now: u64) -> Result<GcStats, DatapathError> {
        let named = self.has_released().then(BTreeSet::new);
        let mut walk = ConntrackGc { named, ..ConntrackGc::default() };
        let mut stats = loop {
            let stats = walk.step(self, STEP, now)?;
            if stats.complete {
                break stats;
            }
        };
        self.gc_nat(&mut stats, &mut walk.named, now)?;
        if let Some(named) = walk.named {
            self.sweep_rev_nats(named, now)?;
        }
        stats.alive = stats.seen.saturating_sub(stats.deleted);
        Ok(stats)
    }

    /// Deletes mappings whose flow is over: the answers' entry by its time, the way out when its twin is gone or
    /// has become another flow's.
    fn gc_nat(
        &self,
        stats: &mut GcStats,
        named: &mut Option<BTreeSet<u32>>,
        now: u64,
    ) -> Result<(), DatapathError> {
        let nat = &self.tables.nat;
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            let batch = nat.batch(from, STEP)?;
            for (key, value) in batch.entries {
                stats.seen += 1;
                let over = if key.kind == abi::NAT_IN {
                    // Read again: the flow may have come back to life since the batch was read.
                    nat.get(key)?.is_some_and(|entry| entry.expires_ns < now)
                } else {
                    let twin = nat.get(answers_of(&key, &value))?;
                    twin.is_none_or(|twin| (twin.addr, twin.port) != (key.src, key.sport))
                        && nat.get(key)? == Some(value)
                };
                if over {
                    nat.delete(key)?;
                    stats.deleted += 1;
                } else if let Some(named) = named {
                    named.insert(value.rev_nat);
                }
            }
            cursor = batch.next;
        }
        Ok(())
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

    /// Forgets all flows of pods' addresses, so that pods that get the addresses next start clean. Walks both
    /// tables once, whatever the number of addresses.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn forget_flows(&self, addresses: &[std::net::IpAddr]) -> Result<u64, DatapathError> {
        let gone: BTreeSet<[u8; 16]> = addresses.iter().map(|ip| abi::Addr::from(*ip).0).collect();
        let mut deleted = 0;
        for table in [&self.tables.ct, &self.tables.ct_half] {
            let mut cursor = Some(Cursor::default());
            while let Some(from) = cursor {
                let batch = table.batch(from, STEP)?;
                for (key, _) in batch.entries {
                    if gone.contains(&key.src.0) || gone.contains(&key.dst.0) {
                        table.delete(key)?;
                        deleted += 1;
                    }
                }
                cursor = batch.next;
            }
        }
        Ok(deleted)
    }
}

/// The key under which the answers to a translated flow are known, from that of its way out.
fn answers_of(key: &abi::Tuple, out: &abi::Nat) -> abi::Tuple {
    // The identifier of an echo stands in the source port alone.
    let echo = matches!(key.proto, 1 | 58);
    abi::Tuple {
        src: key.dst,
        dst: out.addr,
        sport: if echo { 0 } else { key.dport },
        dport: out.port,
        kind: abi::NAT_IN,
        ..*key
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
