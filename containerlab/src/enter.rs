//! The system calls that enter and make namespaces and that no safe crate offers.
//!
//! This is the only file of the crate with `unsafe`: a `clone3` that starts a program in fresh namespaces and in
//! its cgroup in one step, `pidfd_open`, and the pair `open_tree`/`move_mount` that carries a mount from one mount
//! namespace into another. Everything else (setns, unshare, mount) goes through safe wrappers.
#![allow(unsafe_code)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

/// `CLONE_PIDFD` of clone3(2).
const CLONE_PIDFD: u64 = 0x1000;
/// `CLONE_INTO_CGROUP` of clone3(2).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `OPEN_TREE_CLONE` of open_tree(2).
const OPEN_TREE_CLONE: libc::c_uint = 1;
/// `AT_RECURSIVE` of open_tree(2).
const AT_RECURSIVE: libc::c_uint = 0x8000;
/// `MOVE_MOUNT_F_EMPTY_PATH` of move_mount(2).
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Arguments of clone3(2), version 2 (kernel 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What a new process gets: its arguments, environment, the three standard descriptors and its cgroup.
pub struct NewProcess<'a> {
    /// The program, as an open file; it is executed without looking a path up.
    pub program: BorrowedFd<'a>,
    /// `argv`, the name first.
    pub args: Vec<CString>,
    /// `NAME=value` pairs; nothing else is inherited.
    pub env: Vec<CString>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// The directory of the cgroup the process starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The namespaces that are new for it.
    pub namespaces: CloneFlags,
}

/// Turns strings into what exec wants.
///
/// # Errors
/// A string holds a NUL byte.
pub fn c_strings<I, S>(items: I) -> io::Result<Vec<CString>>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    items.into_iter().map(|item| CString::new(item.as_ref().as_bytes()).map_err(io::Error::other)).collect()
}

/// Starts `process` in its new namespaces and in its cgroup, as leader of a new session.
///
/// Answers its pid as seen by the caller and a descriptor for it.
///
/// # Errors
/// The kernel's reason why clone3 failed. A failing exec is not seen here: the child ends with status 127.
pub fn spawn(process: &NewProcess<'_>) -> io::Result<(Pid, OwnedFd)> {
    let mut argv: Vec<*const libc::c_char> = process.args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut envp: Vec<*const libc::c_char> = process.env.iter().map(|pair| pair.as_ptr()).collect();
    envp.push(std::ptr::null());
    let stdio = process.stdio.map(|fd| fd.as_raw_fd());
    let program = process.program.as_raw_fd();

    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flag_bits(process.namespaces) | CLONE_PIDFD,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = process.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: `args` is a valid clone_args of the size given, `pidfd` outlives the call. Without CLONE_VM the child
    // runs on a copy of this memory, so nothing it does can be seen here. It may run only async-signal-safe code,
    // since other threads' locks are copied in the state they were in: `child` makes system calls only.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => child(program, stdio, &argv, &envp),
        pid => {
            // SAFETY: the kernel stored a fresh descriptor in `pidfd` (CLONE_PIDFD) that nobody else owns.
            let fd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = i32::try_from(pid).map_err(io::Error::other)?;
            Ok((Pid::from_raw(pid), fd))
        }
    }
}

/// The child's side between clone3 and exec: no allocation, no lock, only system calls.
fn child(program: RawFd, stdio: [RawFd; 3], argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> ! {
    // SAFETY: plain system calls on descriptors copied from the parent, and on NUL-terminated arrays of
    // NUL-terminated strings that live in this process' own copy of the parent's memory. The descriptors are first
    // raised above 2 so that dup2 cannot overwrite one that is still needed.
    unsafe {
        libc::setsid();
        let [input, output, error] = stdio.map(|fd| libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3));
        libc::dup2(input, 0);
        libc::dup2(output, 1);
        libc::dup2(error, 2);
        libc::syscall(
            libc::SYS_execveat,
            program,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(127)
    }
}

/// The bits of namespace flags as clone3 takes them.
fn flag_bits(flags: CloneFlags) -> u64 {
    u64::from(u32::from_ne_bytes(flags.bits().to_ne_bytes()))
}

/// A descriptor that becomes readable when the process has ended.
///
/// # Errors
/// No such process.
pub fn pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: a system call with two integers; on success it answers a descriptor nobody else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: as above, the descriptor is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the process of a [`pidfd`] has ended, and with a PID 1 its whole PID namespace; false if the time was
/// over before.
///
/// # Errors
/// The descriptor cannot be waited for.
pub fn wait_end(process: &OwnedFd, patience: std::time::Duration) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    Ok(poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout)? > 0)
}

/// Copies the mount tree at `path` of this thread's mount namespace; the copy is attached nowhere yet.
///
/// # Errors
/// The path does not exist, or the kernel refuses.
pub fn copy_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // The kernel takes OPEN_TREE_CLOEXEC in the bits of O_CLOEXEC.
    let flags = OPEN_TREE_CLONE | AT_RECURSIVE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: `path` is NUL-terminated and outlives the call; on success the descriptor is ours alone.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a copied tree at `path` of this thread's mount namespace.
///
/// # Errors
/// The path does not exist, or is a file where the tree is a directory (or the other way round).
pub fn attach_tree(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: both paths are NUL-terminated and outlive the call, which keeps nothing of them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The namespaces of a running process, held open, and its cgroup.
#[derive(Debug)]
pub struct Namespaces {
    held: Vec<(CloneFlags, File)>,
    /// `cgroup.procs` of the node's root cgroup, opened from outside so that a delegated tree accepts the move.
    cgroup: Option<File>,
}

impl Namespaces {
    /// Opens the namespaces of `pid`; with `all` also the mount, PID, UTS, IPC and cgroup ones and the cgroup.
    ///
    /// # Errors
    /// The process is gone, or /proc cannot be read.
    pub fn of(pid: Pid, all: bool) -> io::Result<Self> {
        let wanted: &[(&str, CloneFlags)] = &[
            ("net", CloneFlags::CLONE_NEWNET),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
            ("pid", CloneFlags::CLONE_NEWPID),
            ("mnt", CloneFlags::CLONE_NEWNS),
        ];
        let mut held = Vec::new();
        for (name, flag) in wanted {
            if all || *flag == CloneFlags::CLONE_NEWNET {
                held.push((*flag, File::open(format!("/proc/{pid}/ns/{name}"))?));
            }
        }
        let cgroup = if all {
            let path = format!("/proc/{pid}/root/sys/fs/cgroup/cgroup.procs");
            Some(File::options().write(true).open(path)?)
        } else {
            None
        };
        Ok(Self { held, cgroup })
    }

    /// Only the mount namespace of `pid`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn mount_of(pid: Pid) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/mnt"))?;
        Ok(Self { held: vec![(CloneFlags::CLONE_NEWNS, file)], cgroup: None })
    }

    /// Runs `work` on a thread of its own inside these namespaces; the caller's threads stay where they are.
    ///
    /// Processes started by `work` are in the PID namespace and the cgroup; `work` itself is not in the PID one.
    ///
    /// # Errors
    /// The namespaces cannot be entered, or the thread died.
    pub fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        on_own_thread(move || {
            if let Some(mut cgroup) = self.cgroup.as_ref() {
                // Thread by thread is not possible in cgroup v2, so the whole calling process moves: callers that
                // must stay outside fork first.
                io::Write::write_all(&mut cgroup, b"0")?;
            }
            // A mount namespace can only be entered by a thread that shares its root and cwd with no other.
            unshare(CloneFlags::CLONE_FS)?;
            for (flag, file) in &self.held {
                setns(file, *flag)?;
            }
            work()
        })
    }
}

/// Runs `work` on a fresh thread and waits for it.
///
/// # Errors
/// What `work` answers; or the thread could not be started or died.
pub fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    std::thread::Builder::new()
        .name("namespace".to_owned())
        .spawn(work)?
        .join()
        .map_err(|_| io::Error::other("the thread that entered the namespace died"))?
}

/// Runs `work` on a thread with a private copy of the mount namespace, which ends with the thread.
///
/// # Errors
/// As [`on_own_thread`], and no permission.
pub fn with_private_mounts<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    on_own_thread(move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        work()
    })
}

/// One host path that is to appear inside a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Bind {
    /// The path on the host.
    pub host: PathBuf,
    /// The path in the node.
    pub node: PathBuf,
    /// Whether the node may only read it.
    pub read_only: bool,
    /// For a file: which one it is and when it was written, so that a replaced file counts as a changed bind.
    pub revision: String,
}

/// The revision of what `path` names, for [`Bind::revision`]; empty for directories, whose content is live.
#[must_use]
pub fn revision(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => {
            format!("{}:{}:{}:{}.{}", meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())
        }
        _ => String::new(),
    }
}

/// Makes `bind` appear in the mount namespace of `pid`, creating the place in the node where it is missing.
///
/// # Errors
/// The host path is missing, the place cannot be created, or the process is gone.
pub fn bind_across(pid: Pid, bind: &Bind) -> io::Result<()> {
    let tree = copy_tree(&bind.host)
        .map_err(|error| io::Error::new(error.kind(), format!("open {}: {error}", bind.host.display())))?;
    let directory = std::fs::metadata(&bind.host)?.is_dir();
    let bind = bind.clone();
    Namespaces::mount_of(pid)?.run(move || {
        let place = &bind.node;
        make_place(place, directory)
            .map_err(|error| io::Error::new(error.kind(), format!("create {}: {error}", place.display())))?;
        attach_tree(&tree, place)?;
        if bind.read_only {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, place, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    })
}

/// Takes a bind away from the mount namespace of `pid`.
///
/// # Errors
/// The process is gone, or nothing is mounted there.
pub fn unbind_across(pid: Pid, place: &Path) -> io::Result<()> {
    let place = place.to_owned();
    Namespaces::mount_of(pid)?.run(move || {
        nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH)?;
        Ok(())
    })
}

/// Creates the file or directory a mount goes onto, with its parents.
///
/// # Errors
/// The file system refuses.
pub fn make_place(place: &Path, directory: bool) -> io::Result<()> {
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    if directory {
        return std::fs::create_dir_all(place);
    }
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    open(place, OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_WRONLY, Mode::from_bits_truncate(0o644))?;
    Ok(())
}

/// Opens a directory as a descriptor that only names it.
///
/// # Errors
/// It does not exist or is no directory.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
    Ok(nix::fcntl::openat(nix::fcntl::AT_FDCWD, path, flags, Mode::empty())?)
}

/// The program this process runs, as an open file: also when it was replaced on disk meanwhile.
///
/// # Errors
/// /proc is not mounted.
pub fn own_program() -> io::Result<File> {
    File::open("/proc/self/exe")
}

/// Lets the child of `command` die with the thread that starts it.
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        });
    }
}
