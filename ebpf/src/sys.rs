//! The `bpf(2)` commands that aya does not offer: reading a map in batches, whatever its layout, and what it is like.
#![allow(unsafe_code, reason = "raw bpf(2)")]

use aya::Pod;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_UPDATE: libc::c_int = 29;

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

/// What one call of `BPF_MAP_LOOKUP_BATCH` gave.
enum Step {
    /// So many entries, and there are more.
    More(usize),
    /// So many entries, and that is all.
    Last(usize),
    /// The next bucket does not fit.
    NoRoom,
}

/// One call of `BPF_MAP_LOOKUP_BATCH`.
///
/// # Safety
/// `keys` and `values` point to room for `count` keys and values of the map's sizes; `next`, and `from` if it is
/// not 0, to a cursor of the map's kind: 4 bytes for hash maps, a key for others.
unsafe fn batch_call(
    map: BorrowedFd<'_>,
    (from, next): (u64, u64),
    (keys, values): (u64, u64),
    count: usize,
) -> io::Result<Step> {
    let mut attr = BatchAttr {
        in_batch: from,
        out_batch: next,
        keys,
        values,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
        ..BatchAttr::default()
    };
    // SAFETY: attr is a valid batch attribute whose buffers the caller vouches for.
    let result = unsafe { call(BPF_MAP_LOOKUP_BATCH, &raw mut attr) };
    let read = || usize::try_from(attr.count).unwrap_or_default().min(count);
    match result {
        Ok(_) => Ok(Step::More(read())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Step::Last(read())),
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(Step::NoRoom),
        Err(error) => Err(error),
    }
}

/// `bpf(2)`.
///
/// # Safety
/// `attr` is the attribute of this command, and all that it points to is valid for the length of the call.
unsafe fn call<A>(command: libc::c_int, attr: *mut A) -> io::Result<libc::c_long> {
    // SAFETY: the caller vouches for the attribute, and its size is that of its type.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The most entries for which room is made: a hash map's bucket is read as a whole.
const MOST_ROOM: usize = 1 << 16;

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
        let start = if from.0.is_some() { address(&raw const in_batch) } else { 0 };
        let buffers = (address(keys.as_mut_ptr()), address(values.as_mut_ptr()));
        // SAFETY: `room` keys and values whose sizes are the map's (the loader compares them), and 4 byte cursors, which
        // is what hash maps use; all outlive the call.
        let step = unsafe { batch_call(map, (start, address(&raw mut out_batch)), buffers, room)? };
        let (read, done) = match step {
            Step::More(read) => (read, false),
            Step::Last(read) => (read, true),
            Step::NoRoom if room < MOST_ROOM => {
                room *= 4;
                continue;
            }
            Step::NoRoom => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        };
        keys.truncate(read);
        values.truncate(read);
        let entries = keys.into_iter().zip(values).collect();
        return Ok(Batch { entries, next: (!done).then_some(Cursor(Some(out_batch))) });
    }
}

/// What the kernel says of a map (`struct bpf_map_info`, linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MapShape {
    /// `enum bpf_map_type`.
    pub(crate) kind: u32,
    id: u32,
    /// Bytes of a key.
    pub(crate) key_size: u32,
    /// Bytes of a value; of one CPU's where each has its own.
    pub(crate) value_size: u32,
    /// Entries.
    pub(crate) max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_vmlinux_value_type_id: u32,
    netns_dev: u64,
    netns_ino: u64,
    /// The map's BTF; 0: it has none.
    pub(crate) btf_id: u32,
    btf_key_type_id: u32,
    btf_value_type_id: u32,
    btf_vmlinux_id: u32,
    map_extra: u64,
}

/// `struct bpf_btf_info`.
#[repr(C)]
#[derive(Default)]
struct BtfInfo {
    btf: u64,
    btf_size: u32,
    id: u32,
    name: u64,
    name_len: u32,
    kernel_btf: u32,
}

/// `union bpf_attr`, member `info`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

fn object_info<I>(fd: BorrowedFd<'_>, info: &mut I) -> io::Result<()> {
    let mut attr = InfoAttr {
        fd: u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX),
        length: u32::try_from(size_of::<I>()).unwrap_or_default(),
        info: address(std::ptr::from_mut(info)),
    };
    // SAFETY: `info` has as many bytes as the attribute says, any of which the kernel may write.
    unsafe { call(BPF_OBJ_GET_INFO_BY_FD, &raw mut attr) }.map(drop)
}

/// What a map is like.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let mut shape = MapShape::default();
    object_info(map, &mut shape)?;
    Ok(shape)
}

/// More BTF than any object of ours has.
const MOST_BTF: usize = 16 << 20;

/// The BTF of that number, as the kernel keeps it.
///
/// # Errors
/// What bpf(2) says: it is gone, or no CAP_SYS_ADMIN.
pub(crate) fn btf(id: u32) -> io::Result<Vec<u8>> {
    /// `union bpf_attr`, the member of the commands that look up by number.
    #[repr(C)]
    struct IdAttr {
        id: u32,
        next: u32,
        flags: u32,
    }
    let mut attr = IdAttr { id, next: 0, flags: 0 };
    // SAFETY: the attribute has no pointers.
    let fd = unsafe { call(BPF_BTF_GET_FD_BY_ID, &raw mut attr)? };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = BtfInfo::default();
    object_info(fd.as_fd(), &mut info)?;
    let size = usize::try_from(info.btf_size).unwrap_or(usize::MAX);
    if size > MOST_BTF {
        return Err(io::Error::other(format!("BTF of {size} bytes")));
    }
    let mut blob = vec![0_u8; size];
    let mut info = BtfInfo { btf: address(blob.as_mut_ptr()), btf_size: info.btf_size, ..BtfInfo::default() };
    object_info(fd.as_fd(), &mut info)?;
    Ok(blob)
}

/// `BPF_MAP_TYPE_ARRAY`.
pub(crate) const ARRAY: u32 = 2;
/// Kinds of maps with one value a key: hash, array, LRU hash, prefix trie.
const ONE_VALUE: [u32; 4] = [1, ARRAY, 9, 11];

/// Hands every entry of a map of any kind with one value a key to `each` as bytes. Entries that change meanwhile may be
/// missed or seen twice.
///
/// # Errors
/// What bpf(2) says, or what `each` says; EINVAL for other kinds of maps.
pub(crate) fn each_entry(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let shape = map_shape(map)?;
    if !ONE_VALUE.contains(&shape.kind) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let bytes = |size: u32| usize::try_from(size).unwrap_or_default().max(1);
    let (key, value) = (bytes(shape.key_size), bytes(shape.value_size));
    // A cursor is a key, and of hash maps 4 bytes.
    let mut from = vec![0_u8; key.max(4)];
    let mut next = from.clone();
    let (mut room, mut started) = (512, false);
    loop {
        let mut keys = vec![0_u8; room * key];
        let mut values = vec![0_u8; room * value];
        let start = if started { address(from.as_ptr()) } else { 0 };
        let buffers = (address(keys.as_mut_ptr()), address(values.as_mut_ptr()));
        // SAFETY: `room` keys and values of the sizes that the kernel named, and cursors as long as a key; all outlive the
        // call.
        let step = unsafe { batch_call(map, (start, address(next.as_mut_ptr())), buffers, room)? };
        let (read, done) = match step {
            Step::More(read) => (read, false),
            Step::Last(read) => (read, true),
            Step::NoRoom if room < MOST_ROOM => {
                room *= 4;
                continue;
            }
            Step::NoRoom => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        };
        for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)).take(read) {
            each(key, value)?;
        }
        if done {
            return Ok(());
        }
        from.copy_from_slice(&next);
        started = true;
    }
}

/// All rows of a pinned map as bytes, in order; none of a ring. For tests: nothing may change behind a replay.
///
/// # Errors
/// There is no such map, or what bpf(2) says.
pub fn raw_rows(pin: &std::path::Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let map = open_pin(pin)?;
    let shape = map_shape(map.as_fd())?;
    if !ONE_VALUE.contains(&shape.kind) {
        return Ok(Vec::new());
    }
    let mut rows = Vec::new();
    each_entry(map.as_fd(), |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        Ok(())
    })?;
    rows.sort();
    Ok(rows)
}

/// Writes an entry given as bytes.
///
/// # Errors
/// What bpf(2) says; EEXIST with `only_new` if the key is there, EINVAL if key or value are not as long as the map's.
pub(crate) fn write_bytes(
    map: BorrowedFd<'_>,
    (key, value): (&[u8], &[u8]),
    only_new: bool,
) -> io::Result<()> {
    /// `union bpf_attr`, the member of the commands on one element.
    #[repr(C)]
    struct ElementAttr {
        map_fd: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    const BPF_ANY: u64 = 0;
    const BPF_NOEXIST: u64 = 1;
    let shape = map_shape(map)?;
    let fits = |bytes: &[u8], size: u32| u32::try_from(bytes.len()) == Ok(size);
    if !ONE_VALUE.contains(&shape.kind) || !fits(key, shape.key_size) || !fits(value, shape.value_size) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut attr = ElementAttr {
        map_fd: u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX),
        pad: 0,
        key: address(key.as_ptr()),
        value: address(value.as_ptr()),
        flags: if only_new { BPF_NOEXIST } else { BPF_ANY },
    };
    // SAFETY: key and value are as long as the map's, and outlive the call.
    unsafe { call(BPF_MAP_UPDATE_ELEM, &raw mut attr) }.map(drop)
}

/// Opens what is pinned at a path.
///
/// # Errors
/// What bpf(2) says; ENOENT if there is nothing.
pub(crate) fn open_pin(path: &std::path::Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    /// `union bpf_attr`, the member of the commands on pins.
    #[repr(C)]
    struct PinAttr {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { path: address(path.as_ptr()), fd: 0, flags: 0 };
    // SAFETY: the path ends with a zero and outlives the call.
    let fd = unsafe { call(BPF_OBJ_GET, &raw mut attr)? };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where a cgroup link runs its program: the cgroup's id, which is its directory's inode number; 0 if that is gone.
///
/// # Errors
/// What bpf(2) says; EINVAL if it is another kind of link.
pub(crate) fn cgroup_of_link(link: BorrowedFd<'_>) -> io::Result<u64> {
    /// `struct bpf_link_info` of a cgroup's link.
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        cgroup_id: u64,
        attach_type: u32,
        more: [u32; 9],
    }
    const BPF_LINK_TYPE_CGROUP: u32 = 3;
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    if info.kind == BPF_LINK_TYPE_CGROUP {
        return Ok(info.cgroup_id);
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// The interface that an XDP program's link is on; 0: it is gone.
///
/// # Errors
/// What bpf(2) says; EINVAL if it is another kind of link.
pub(crate) fn interface_of_link(link: BorrowedFd<'_>) -> io::Result<u32> {
    /// `struct bpf_link_info` of an XDP program's link.
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        program: u32,
        pad: u32,
        ifindex: u32,
        more: [u32; 11],
    }
    const BPF_LINK_TYPE_XDP: u32 = 6;
    let mut info = LinkInfo::default();
    object_info(link, &mut info)?;
    if info.kind == BPF_LINK_TYPE_XDP {
        Ok(info.ifindex)
    } else {
        Err(io::Error::from_raw_os_error(libc::EINVAL))
    }
}

/// Runs another program at a link from now on, without a gap.
///
/// # Errors
/// What bpf(2) says; ENOLINK if what it is on is gone.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// `union bpf_attr`, member `link_update`.
    #[repr(C)]
    struct UpdateAttr {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
    let mut attr = UpdateAttr { link: number(link), program: number(program), flags: 0, old_program: 0 };
    // SAFETY: the attribute has no pointers.
    unsafe { call(BPF_LINK_UPDATE, &raw mut attr) }.map(drop)
}

/// Takes a link's program away at once; without it that comes some time after the last descriptor and pin have gone.
///
/// # Errors
/// What bpf(2) says.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_DETACH: libc::c_int = 34;
    let mut number = u32::try_from(link.as_raw_fd()).unwrap_or(u32::MAX);
    // SAFETY: the attribute is the link's number alone.
    unsafe { call(BPF_LINK_DETACH, &raw mut number) }.map(drop)
}

/// The cookie of the network namespace that this thread is in, as the programs know it (Linux 5.14).
///
/// # Errors
/// What getsockopt(2) says.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // A netlink socket is there in every namespace, whatever families it has.
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Netlink,
        nix::sys::socket::SockType::Raw,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    let place = (&raw mut cookie).cast::<libc::c_void>();
    // SAFETY: the option's value is a u64, and length says that there is room for one.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, place, &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// `CLOCK_MONOTONIC` in nanoseconds: what the programs stamp with, and what `expires_ns` of an entry counts in.
pub fn monotonic_ns() -> u64 {
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
