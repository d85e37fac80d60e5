//! The pinned maps as typed handles. All methods take `&self`: a map is locked for one syscall.

use crate::abi;
use crate::error::DatapathError;
use crate::rows::LostEvents;
use crate::sys::{self, Cursor};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{
    Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, RingBuf,
};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Turns aya's map error into the errno that it wraps.
fn errno(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(syscall) => syscall.io_error,
        MapError::KeyNotFound | MapError::ElementNotFound => io::Error::from_raw_os_error(libc::ENOENT),
        MapError::IoError(io) => io,
        other => io::Error::other(other.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave a map handle half changed: each use is one syscall.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(map: &'static str, verb: &str, key: &impl Debug, error: MapError) -> DatapathError {
    DatapathError::Map { operation: format!("{verb} {key:?}"), map, source: errno(error) }
}

/// Entries read under one lock.
const STEP: usize = 4096;

/// A hash map (plain or LRU).
pub(crate) struct Hash<K: Pod, V: Pod> {
    name: &'static str,
    capacity: u64,
    map: Mutex<HashMap<MapData, K, V>>,
    /// Entries, as far as this process knows: of maps that the programs write, as of the last whole walk.
    entries: AtomicU64,
}

impl<K, V> Hash<K, V>
where
    K: Pod + Debug + Default,
    V: Pod + Debug + Default + PartialEq,
{
    pub(crate) fn new(name: &'static str, map: Map) -> Result<Self, DatapathError> {
        let map: HashMap<MapData, K, V> =
            HashMap::try_from(map).map_err(|e| failed(name, "open", &"map", e))?;
        let capacity = capacity_of(map.map());
        let opened = Self { name, capacity, map: Mutex::new(map), entries: AtomicU64::new(0) };
        opened.counted(opened.each(|_, _| Ok(()))?);
        Ok(opened)
    }

    /// Writes the entry unless it is there already: a write puts a new element in the old one's place, whose memory
    /// may be used again while a program on another CPU still reads it.
    pub(crate) fn upsert(&self, key: K, value: V) -> Result<(), DatapathError> {
        let mut map = lock(&self.map);
        let old = map.get(&key, 0);
        if old.as_ref().is_ok_and(|old| *old == value) {
            return Ok(());
        }
        map.insert(key, value, 0).map_err(|e| failed(self.name, "write", &key, e))?;
        if old.is_err() {
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What the kernel would say if there were no room for this entry.
    pub(crate) fn full(&self, key: &K) -> DatapathError {
        let source = io::Error::from_raw_os_error(libc::E2BIG);
        DatapathError::Map { operation: format!("write {key:?}"), map: self.name, source }
    }

    /// Deletes the entry; an entry that is not there is fine.
    pub(crate) fn delete(&self, key: K) -> Result<(), DatapathError> {
        match lock(&self.map).remove(&key).map_err(errno) {
            Ok(()) => {
                self.entries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
                Ok(())
            }
            Err(source) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(source) => {
                Err(DatapathError::Map { operation: format!("delete {key:?}"), map: self.name, source })
            }
        }
    }

    pub(crate) fn get(&self, key: K) -> Result<Option<V>, DatapathError> {
        match lock(&self.map).get(&key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(self.name, "read", &key, error)),
        }
    }

    fn batch(&self, from: Cursor) -> Result<sys::Batch<K, V>, DatapathError> {
        let map = lock(&self.map);
        sys::lookup_batch(map.map().fd().as_fd(), from, STEP).map_err(|source| DatapathError::Map {
            operation: "walk".into(),
            map: self.name,
            source,
        })
    }

    /// Hands every entry to `visit`, and says how many there were. The map is locked for a batch at a time; entries that
    /// change meanwhile may be missed or seen twice.
    pub(crate) fn each(
        &self,
        mut visit: impl FnMut(K, V) -> Result<(), DatapathError>,
    ) -> Result<u64, DatapathError> {
        let mut cursor = Some(Cursor::default());
        let mut seen = 0;
        while let Some(from) = cursor {
            let batch = self.batch(from)?;
            for (key, value) in batch.entries {
                seen += 1;
                visit(key, value)?;
            }
            cursor = batch.next;
        }
        Ok(seen)
    }

    /// The number of entries, from whoever has just counted them.
    pub(crate) fn counted(&self, entries: u64) {
        self.entries.store(entries, Ordering::Relaxed);
    }

    pub(crate) fn dump(&self) -> Result<Vec<(K, V)>, DatapathError> {
        let mut all = Vec::new();
        self.each(|key, value| {
            all.push((key, value));
            Ok(())
        })?;
        Ok(all)
    }

    pub(crate) fn usage(&self) -> crate::rows::MapUsage {
        let entries = self.entries.load(Ordering::Relaxed);
        crate::rows::MapUsage { map: self.name, entries, capacity: self.capacity }
    }
}

fn capacity_of(map: &MapData) -> u64 {
    map.info().map_or(0, |info| u64::from(info.max_entries()))
}

/// A prefix trie; a key is its length in bits and its bytes.
pub(crate) struct Trie<K: Pod, V: Pod> {
    name: &'static str,
    capacity: u64,
    map: Mutex<LpmTrie<MapData, K, V>>,
    /// What is in it: a look-up cannot tell, since it finds shorter prefixes, too.
    known: Mutex<BTreeSet<(u32, K)>>,
}

impl<K: Pod + Debug + Ord, V: Pod> Trie<K, V> {
    fn new(name: &'static str, map: Map) -> Result<Self, DatapathError> {
        let map: LpmTrie<MapData, K, V> =
            LpmTrie::try_from(map).map_err(|e| failed(name, "open", &"map", e))?;
        let capacity = capacity_of(map.map());
        let opened = Self { name, capacity, map: Mutex::new(map), known: Mutex::default() };
        let known = opened.dump()?.into_iter().map(|(length, bytes, _)| (length, bytes));
        *lock(&opened.known) = known.collect();
        Ok(opened)
    }

    pub(crate) fn upsert(&self, length: u32, bytes: K, value: V) -> Result<(), DatapathError> {
        let key = Key::new(length, bytes);
        let inserted = lock(&self.map).insert(&key, value, 0);
        inserted.map_err(|e| failed(self.name, "write", &(length, bytes), e))?;
        lock(&self.known).insert((length, bytes));
        Ok(())
    }

    /// The value of the longest prefix around these bytes.
    pub(crate) fn around(&self, length: u32, bytes: K) -> Result<Option<V>, DatapathError> {
        match lock(&self.map).get(&Key::new(length, bytes), 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(self.name, "read", &bytes, error)),
        }
    }

    pub(crate) fn delete(&self, length: u32, bytes: K) -> Result<(), DatapathError> {
        match lock(&self.map).remove(&Key::new(length, bytes)).map_err(errno) {
            Ok(()) => {
                lock(&self.known).remove(&(length, bytes));
                Ok(())
            }
            Err(source) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(source) => {
                let operation = format!("delete /{length} of {bytes:?}");
                Err(DatapathError::Map { operation, map: self.name, source })
            }
        }
    }

    pub(crate) fn dump(&self) -> Result<Vec<(u32, K, V)>, DatapathError> {
        let map = lock(&self.map);
        map.iter()
            .map(|entry| {
                let (key, value) = entry.map_err(|e| failed(self.name, "walk", &"all", e))?;
                Ok((key.prefix_len(), key.data(), value))
            })
            .collect()
    }

    pub(crate) fn usage(&self) -> crate::rows::MapUsage {
        let entries = u64::try_from(lock(&self.known).len()).unwrap_or(u64::MAX);
        crate::rows::MapUsage { map: self.name, entries, capacity: self.capacity }
    }
}

/// An array.
pub(crate) struct Slots<V: Pod> {
    name: &'static str,
    map: Mutex<Array<MapData, V>>,
}

impl<V: Pod + Debug> Slots<V> {
    pub(crate) fn new(name: &'static str, map: Map) -> Result<Self, DatapathError> {
        let map = Array::try_from(map).map_err(|e| failed(name, "open", &"map", e))?;
        Ok(Self { name, map: Mutex::new(map) })
    }

    pub(crate) fn len(&self) -> u32 {
        lock(&self.map).len()
    }

    pub(crate) fn set(&self, index: u32, value: V) -> Result<(), DatapathError> {
        lock(&self.map).set(index, value, 0).map_err(|e| failed(self.name, "write", &index, e))
    }

    pub(crate) fn get(&self, index: u32) -> Result<V, DatapathError> {
        lock(&self.map).get(&index, 0).map_err(|e| failed(self.name, "read", &index, e))
    }
}

/// Sum of a per-CPU counter's parts for every key.
fn sums<K: Pod>(
    name: &'static str,
    map: &Mutex<PerCpuHashMap<MapData, K, abi::Metric>>,
) -> Result<Vec<(K, abi::Metric)>, DatapathError> {
    let map = lock(map);
    map.iter()
        .map(|entry| {
            let (key, parts) = entry.map_err(|e| failed(name, "walk", &"all", e))?;
            let mut sum = abi::Metric::default();
            for part in parts.iter() {
                sum.packets = sum.packets.wrapping_add(part.packets);
                sum.bytes = sum.bytes.wrapping_add(part.bytes);
            }
            Ok((key, sum))
        })
        .collect()
}

/// Every map of the datapath.
pub(crate) struct Tables {
    pub(crate) config: Slots<abi::Config>,
    pub(crate) ifaces: Hash<u32, abi::Iface>,
    pub(crate) rates: Hash<abi::RateKey, abi::Rate>,
    pub(crate) endpoints: Hash<abi::Addr, abi::Endpoint>,
    pub(crate) hosts: Hash<abi::Addr, abi::Prefix>,
    pub(crate) prefixes: Trie<[u8; 16], abi::Prefix>,
    pub(crate) nodes: Hash<u32, abi::Node>,
    pub(crate) services: Hash<abi::ServiceKey, abi::Service>,
    pub(crate) backends: Hash<u32, abi::Backend>,
    pub(crate) maglev: Slots<u32>,
    pub(crate) ranges: Trie<[u8; 20], u32>,
    pub(crate) fronts: Hash<abi::FrontKey, u32>,
    pub(crate) egress: Trie<[u8; 32], abi::Egw>,
    pub(crate) unmasked: Trie<[u8; 16], u32>,
    pub(crate) affinity: Hash<abi::AffinityKey, abi::Affinity>,
    pub(crate) members: Hash<abi::MemberKey, u32>,
    pub(crate) socks: Hash<abi::SockKey, abi::Sock>,
    pub(crate) rev_nat: Hash<u32, abi::RevNat>,
    pub(crate) ct_half: Hash<abi::Tuple, abi::Ct>,
    pub(crate) ct: Hash<abi::Tuple, abi::Ct>,
    pub(crate) nat_half: Hash<abi::Tuple, abi::Nat>,
    pub(crate) nat: Hash<abi::Tuple, abi::Nat>,
    pub(crate) snat_full: Hash<abi::Tuple, u64>,
    pub(crate) policies: Hash<u32, abi::Policy>,
    pub(crate) rules: Hash<abi::RuleKey, abi::Rule>,
    pub(crate) metrics: Mutex<PerCpuHashMap<MapData, abi::MetricKey, abi::Metric>>,
    pub(crate) sites: Mutex<PerCpuHashMap<MapData, abi::SiteKey, abi::Metric>>,
    pub(crate) lost: Mutex<PerCpuArray<MapData, u64>>,
    pub(crate) events: Mutex<Option<RingBuf<MapData>>>,
}

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(object: &mut aya::Ebpf) -> Result<Self, DatapathError> {
        let mut map = |name: &'static str| object.take_map(name).ok_or(DatapathError::Missing(name));
        let open = |name: &'static str| move |e| failed(name, "open", &"map", e);
        Ok(Self {
            config: Slots::new("tb_config", map("tb_config")?)?,
            ifaces: Hash::new("tb_ifaces", map("tb_ifaces")?)?,
            rates: Hash::new("tb_rates", map("tb_rates")?)?,
            endpoints: Hash::new("tb_endpoints", map("tb_endpoints")?)?,
            hosts: Hash::new("tb_hosts", map("tb_hosts")?)?,
            prefixes: Trie::new("tb_prefixes", map("tb_prefixes")?)?,
            nodes: Hash::new("tb_nodes", map("tb_nodes")?)?,
            services: Hash::new("tb_services", map("tb_services")?)?,
            backends: Hash::new("tb_backends", map("tb_backends")?)?,
            maglev: Slots::new("tb_maglev", map("tb_maglev")?)?,
            ranges: Trie::new("tb_ranges", map("tb_ranges")?)?,
            fronts: Hash::new("tb_fronts", map("tb_fronts")?)?,
            egress: Trie::new("tb_egw", map("tb_egw")?)?,
            unmasked: Trie::new("tb_unmasked", map("tb_unmasked")?)?,
            affinity: Hash::new("tb_affinity", map("tb_affinity")?)?,
            members: Hash::new("tb_members", map("tb_members")?)?,
            socks: Hash::new("tb_sock_rev", map("tb_sock_rev")?)?,
            rev_nat: Hash::new("tb_rev_nat", map("tb_rev_nat")?)?,
            ct_half: Hash::new("tb_ct_half", map("tb_ct_half")?)?,
            ct: Hash::new("tb_ct", map("tb_ct")?)?,
            nat_half: Hash::new("tb_nat_half", map("tb_nat_half")?)?,
            nat: Hash::new("tb_nat", map("tb_nat")?)?,
            snat_full: Hash::new("tb_snat_full", map("tb_snat_full")?)?,
            policies: Hash::new("tb_policies", map("tb_policies")?)?,
            rules: Hash::new("tb_rules", map("tb_rules")?)?,
            metrics: Mutex::new(PerCpuHashMap::try_from(map("tb_metrics")?).map_err(open("tb_metrics"))?),
            sites: Mutex::new(PerCpuHashMap::try_from(map("tb_sites")?).map_err(open("tb_sites"))?),
            lost: Mutex::new(PerCpuArray::try_from(map("tb_lost")?).map_err(open("tb_lost"))?),
            events: Mutex::new(Some(RingBuf::try_from(map("tb_events")?).map_err(open("tb_events"))?)),
        })
    }

    pub(crate) fn metric_sums(&self) -> Result<Vec<(abi::MetricKey, abi::Metric)>, DatapathError> {
        sums("tb_metrics", &self.metrics)
    }

    pub(crate) fn site_sums(&self) -> Result<Vec<(abi::SiteKey, abi::Metric)>, DatapathError> {
        sums("tb_sites", &self.sites)
    }

    /// Events that nobody got.
    pub(crate) fn lost_events(&self) -> Result<LostEvents, DatapathError> {
        let lost = lock(&self.lost);
        let sum = |why: u32| -> Result<u64, DatapathError> {
            let parts = lost.get(&why, 0).map_err(|e| failed("tb_lost", "read", &why, e))?;
            Ok(parts.iter().fold(0, |sum, part| sum.wrapping_add(*part)))
        };
        Ok(LostEvents { full: sum(abi::LOST_FULL)?, limited: sum(abi::LOST_LIMITED)? })
    }

    /// The ring's only reader; `None` if it was taken before.
    pub(crate) fn take_events(&self) -> Option<RingBuf<MapData>> {
        lock(&self.events).take()
    }
}
