//! The two `bpf(2)` commands that aya does not offer: reading a map in batches, and counting with them.
#![allow(unsafe_code, reason = "raw bpf(2)")]

use aya::Pod;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// `union bpf_attr`, member `batch` (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a batched walk over a hash map stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor(Option<u32>);

/// One batch of entries and the cursor of the next; `None` when the walk is complete.
pub(crate) struct Batch<K, V> {
    pub(crate) entries: Vec<(K, V)>,
    pub(crate) next: Option<Cursor>,
}

fn address<T: ?Sized>(value: *const T) -> u64 {
    // A pointer is at most 64 bits wide on every platform that has bpf(2).
    u64::try_from(value.cast::<u8>().expose_provenance()).unwrap_or_default()
}

/// Reads up to `count` entries (at least one bucket) of a hash or LRU hash map from `from` on.
///
/// # Errors
/// What bpf(2) says; EINVAL on kernels before 5.6.
pub(crate) fn lookup_batch<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    from: Cursor,
    count: usize,
) -> io::Result<Batch<K, V>> {
    let mut room = count.max(16);
    loop {
        let mut keys = vec![K::default(); room];
        let mut values = vec![V::default(); room];
        let in_batch = from.0.unwrap_or_default();
        let mut out_batch = 0_u32;
        let mut attr = BatchAttr {
            in_batch: if from.0.is_some() { address(&raw const in_batch) } else { 0 },
            out_batch: address(&raw mut out_batch),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: u32::try_from(room).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
            ..BatchAttr::default()
        };
        // SAFETY: attr points to buffers of `count` keys and values whose sizes are the map's (the loader compares
        // them) and to a 4 byte cursor, which is what hash maps use; all outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>())
        };
        let error = (result < 0).then(io::Error::last_os_error);
        let done = match error.as_ref().and_then(io::Error::raw_os_error) {
            None => false,
            Some(libc::ENOENT) => true,
            Some(libc::ENOSPC) if room < 1 << 16 => {
                room *= 4;
                continue;
            }
            Some(_) => return Err(error.unwrap_or_else(io::Error::last_os_error)),
        };
        let read = usize::try_from(attr.count).unwrap_or_default().min(room);
        keys.truncate(read);
        values.truncate(read);
        let entries = keys.into_iter().zip(values).collect();
        return Ok(Batch { entries, next: (!done).then_some(Cursor(Some(out_batch))) });
    }
}

/// The monotonic clock that the programs stamp with, in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since the epoch.
pub(crate) fn realtime_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: time is a valid timespec for the length of the call; both clocks always exist.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return 0;
    }
    let secs = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    secs.saturating_mul(1_000_000_000).saturating_add(nanos)
}
