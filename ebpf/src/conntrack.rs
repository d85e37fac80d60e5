//! Conntrack from user space: collecting what has expired, and reading what is there.

use crate::abi;
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::rows::{ConntrackEntry, ConntrackKind, FlowFilter, Translation};
use crate::sys;
use crate::tables::Hash;
use std::collections::BTreeSet;

/// What a collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcStats {
    /// Entries looked at.
    pub seen: u64,
    /// Entries deleted.
    pub deleted: u64,
    /// Entries that stay.
    pub alive: u64,
}

impl Datapath {
    /// A whole collection of flows, address translations and reverse translations of services that are gone. Maps are locked
    /// for 4096 entries at a time. Call it from a blocking thread every 10 to 30 seconds.
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
        // Reverse translations that live flows name, if somebody wants to know.
        let mut named = self.has_released().then(BTreeSet::new);
        let mut stats = GcStats::default();
        // Flows move from the half-open tables to the others, so these are read first: none is missed on its way. They replace
        // their least recently used, so nothing is deleted here.
        self.see_half_open(&mut named, now)?;
        self.gc_flows(&mut stats, &mut named, now)?;
        self.gc_nat(&mut stats, &mut named, now)?;
        self.tables.affinity.counted(self.tables.affinity.each(|_, _| Ok(()))?);
        if let Some(named) = named {
            self.sweep_rev_nats(&named)?;
        }
        stats.alive = stats.seen.saturating_sub(stats.deleted);
        Ok(stats)
    }

    fn see_half_open(&self, named: &mut Option<BTreeSet<u32>>, now: u64) -> Result<(), DatapathError> {
        let (flows, nat) = (&self.tables.ct_half, &self.tables.nat_half);
        let mut see = |rev_nat: u32, expires_ns: u64| {
            if let Some(named) = named.as_mut().filter(|_| expires_ns >= now) {
                named.insert(rev_nat);
            }
            Ok(())
        };
        flows.counted(flows.each(|_, flow| see(flow.rev_nat, flow.expires_ns))?);
        nat.counted(nat.each(|_, mapping| see(mapping.rev_nat, mapping.expires_ns))?);
        Ok(())
    }

    fn gc_flows(
        &self,
        stats: &mut GcStats,
        named: &mut Option<BTreeSet<u32>>,
        now: u64,
    ) -> Result<(), DatapathError> {
        let flows = &self.tables.ct;
        let mut deleted = 0;
        let seen = flows.each(|key, flow| {
            if flow.expires_ns >= now {
                if let Some(named) = named {
                    named.insert(flow.rev_nat);
                }
            // Read again: the flow may have come back to life since the batch was read.
            } else if flows.get(key)?.is_some_and(|entry| entry.expires_ns < now) {
                flows.delete(key)?;
                deleted += 1;
            }
            Ok(())
        })?;
        flows.counted(seen.saturating_sub(deleted));
        stats.seen += seen;
        stats.deleted += deleted;
        Ok(())
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
        let mut deleted = 0;
        let seen = nat.each(|key, value| {
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
                deleted += 1;
            } else if let Some(named) = named {
                named.insert(value.rev_nat);
            }
            Ok(())
        })?;
        nat.counted(seen.saturating_sub(deleted));
        stats.seen += seen;
        stats.deleted += deleted;
        Ok(())
    }

    /// All tracked flows that have not expired.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn conntrack(&self) -> Result<Vec<ConntrackEntry>, DatapathError> {
        self.flows(&FlowFilter::default())
    }

    /// The tracked flows that match and have not expired. Walks both tables: call it from a blocking thread.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn flows(&self, filter: &FlowFilter) -> Result<Vec<ConntrackEntry>, DatapathError> {
        let now = sys::monotonic_ns();
        let mut found = Vec::new();
        for (table, established) in [(&self.tables.ct_half, false), (&self.tables.ct, true)] {
            table.each(|key, value| {
                if value.expires_ns >= now && matches(filter, &key, &value.backend_addr) {
                    found.push(plain(&key, &value, established));
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// The source translations that match and have not expired. Walks both tables: call it from a blocking thread.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn translations(&self, filter: &FlowFilter) -> Result<Vec<Translation>, DatapathError> {
        let now = sys::monotonic_ns();
        let mut found = Vec::new();
        for (table, answered) in [(&self.tables.nat_half, false), (&self.tables.nat, true)] {
            table.each(|key, value| {
                let wanted = key.kind == abi::NAT_IN && value.expires_ns >= now;
                if wanted && matches(filter, &key, &value.addr) {
                    found.push(Translation {
                        protocol: key.proto,
                        client: (value.addr.ip(), u16::from_be(value.port)),
                        backend: (key.src.ip(), u16::from_be(key.sport)),
                        node: (key.dst.ip(), u16::from_be(key.dport)),
                        answered,
                        closing: value.flags & abi::CTF_CLOSING != 0,
                        expires_ns: value.expires_ns,
                    });
                }
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// The frontend behind a reverse translation's number.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn frontend_of(&self, rev_nat: u32) -> Result<Option<(std::net::IpAddr, u16)>, DatapathError> {
        let row = self.tables.rev_nat.get(rev_nat)?;
        Ok(row.map(|row| (row.addr.ip(), u16::from_be(row.port))))
    }

    /// Forgets the flows that match, and their translations: their next packets are judged and translated anew. Returns
    /// how many entries went.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn flush(&self, filter: &FlowFilter) -> Result<u64, DatapathError> {
        self.forget(&|key, other| matches(filter, key, other))
    }

    /// Forgets all flows of pods' addresses, so that pods that get the addresses next start clean. Walks all tables of
    /// flows once, whatever the number of addresses.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn forget_flows(&self, addresses: &[std::net::IpAddr]) -> Result<u64, DatapathError> {
        let gone: BTreeSet<abi::Addr> = addresses.iter().map(|ip| abi::Addr::from(*ip)).collect();
        self.forget(&|key, other| [&key.src, &key.dst, other].iter().any(|end| gone.contains(end)))
    }

    fn forget(&self, wanted: &dyn Fn(&abi::Tuple, &abi::Addr) -> bool) -> Result<u64, DatapathError> {
        let tables = &self.tables;
        let mut deleted = 0;
        for table in [&tables.ct, &tables.ct_half] {
            deleted += forget_in(table, |key, flow| wanted(key, &flow.backend_addr))?;
        }
        for table in [&tables.nat, &tables.nat_half] {
            deleted += forget_in(table, |key, nat| wanted(key, &nat.addr))?;
        }
        self.search_again()?;
        Ok(deleted)
    }

    /// Destinations for which there was no SNAT port left may have one now.
    pub(crate) fn search_again(&self) -> Result<(), DatapathError> {
        forget_in(&self.tables.snat_full, |_, _| true).map(drop)
    }
}

fn forget_in<V>(
    table: &Hash<abi::Tuple, V>,
    wanted: impl Fn(&abi::Tuple, &V) -> bool,
) -> Result<u64, DatapathError>
where
    V: aya::Pod + std::fmt::Debug + Default + PartialEq,
{
    let mut deleted = 0;
    table.each(|key, value| {
        if wanted(&key, &value) {
            table.delete(key)?;
            deleted += 1;
        }
        Ok(())
    })?;
    Ok(deleted)
}

/// `other` is an address that stands in the entry's value: the backend, or the client behind a translation.
fn matches(filter: &FlowFilter, key: &abi::Tuple, other: &abi::Addr) -> bool {
    let ip = |wanted: std::net::IpAddr| {
        let wanted = abi::Addr::from(wanted);
        [&key.src, &key.dst, other].contains(&&wanted)
    };
    let port = |wanted: u16| [key.sport, key.dport].contains(&wanted.to_be());
    filter.ip.is_none_or(ip)
        && filter.port.is_none_or(port)
        && filter.protocol.is_none_or(|wanted| wanted == key.proto)
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
    // Where the socket was translated, this is the number of the service that it asked for.
    let (rev_nat, backend) = match key.kind {
        abi::CT_EGRESS if value.rev_nat == 0 => (value.backend, 0),
        abi::CT_EGRESS => (value.rev_nat, 0),
        _ => (value.rev_nat, value.backend),
    };
    ConntrackEntry {
        kind: match key.kind {
            abi::CT_EGRESS => ConntrackKind::Egress,
            abi::CT_INGRESS => ConntrackKind::Ingress,
            abi::CT_HOST_IN => ConntrackKind::HostIn,
            abi::CT_HOST_OUT => ConntrackKind::HostOut,
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
        rev_nat,
        backend,
    }
}
