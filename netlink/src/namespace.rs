//! Network namespaces: opened, made, entered by a thread of their own.
//!
//! A thread that has called setns(2) is never given back to a pool: work that must happen inside a namespace
//! gets a thread that ends with it. So no tokio worker can be left in a wrong namespace, and there is no
//! guard that could be held across an await.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// An open handle on a network namespace; the namespace lives at least as long. Cheap to clone.
#[derive(Clone)]
pub struct NetNs {
    file: Arc<File>,
    description: Arc<str>,
}

impl NetNs {
    /// Opens a namespace by its file: `/run/netns/NAME`, `/proc/PID/ns/net`, or a runtime's bind mount.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the path does not exist or is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let description = path.display().to_string();
        let fail = |source| Error::Namespace { what: "open", namespace: description.clone(), source };
        let file = File::open(path).map_err(fail)?;
        // nsfs files are told apart from others by their file system; fstatfs keeps this free of ioctls.
        let kind = nix::sys::statfs::fstatfs(&file).map_err(|errno| fail(errno.into()))?.filesystem_type();
        if kind != nix::sys::statfs::FsType(nix::libc::NSFS_MAGIC) {
            return Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "the file is not a namespace")));
        }
        Ok(Self { file: Arc::new(file), description: description.into() })
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// [`Error::Namespace`] when there is no such process.
    pub fn of_pid(pid: u32) -> Result<Self, Error> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Namespace`] when /proc is not mounted.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Makes a namespace without a name; it goes when the last handle, process and device reference do.
    ///
    /// # Errors
    /// [`Error::Namespace`] without CAP_SYS_ADMIN.
    pub fn anonymous() -> Result<Self, Error> {
        let ns = on_thread("netns-new", || {
            let fail = |source| Error::Namespace { what: "create", namespace: "(anonymous)".into(), source };
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| fail(errno.into()))?;
            Self::current()
        })??;
        let description =
            ns.file.metadata().map_or_else(|_| "(anonymous)".into(), |m| format!("net:[{}]", m.ino()));
        Ok(Self { description: description.into(), ..ns })
    }

    /// Makes a namespace and binds it to the file `path` (made if it is missing), as `ip netns add` does
    /// below /run/netns. The namespace then outlives this process; [`NetNs::remove`] ends it.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the file cannot be made or the mount is refused.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let description = path.display().to_string();
        let fail = |source| Error::Namespace { what: "create", namespace: description.clone(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(fail)?;
        }
        File::options().write(true).create_new(true).open(&path).map_err(fail)?;
        let bound = on_thread("netns-new", || -> Result<(), Error> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| fail(errno.into()))?;
            let own = Path::new("/proc/thread-self/ns/net");
            mount(Some(own), &path, None::<&Path>, MsFlags::MS_BIND, None::<&Path>)
                .map_err(|errno| fail(errno.into()))
        })
        .flatten();
        if let Err(error) = bound {
            if let Err(left) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), error = %left, "an unbound namespace file is left behind");
            }
            return Err(error);
        }
        Self::open(&path)
    }

    /// Unbinds a namespace made by [`NetNs::create`] and removes its file. A missing file is fine.
    ///
    /// # Errors
    /// [`Error::Namespace`] when it cannot be unmounted or removed.
    pub fn remove(path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let fail =
            |source| Error::Namespace { what: "remove", namespace: path.display().to_string(), source };
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(nix::errno::Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(fail(errno.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
            _ => Ok(()),
        }
    }

    /// Where the handle came from: the path, or `net:[inode]`.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The inode of the namespace: equal for two handles on one namespace.
    ///
    /// # Errors
    /// [`Error::Namespace`] when fstat fails.
    pub fn inode(&self) -> Result<u64, Error> {
        let fail =
            |source| Error::Namespace { what: "stat", namespace: self.description.to_string(), source };
        self.file.metadata().map(|m| m.ino()).map_err(fail)
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. What `work` opens (sockets)
    /// stays in the namespace. Blocks the caller: from async code use [`NetNs::call`] unless `work` is short.
    ///
    /// # Errors
    /// [`Error::Namespace`] when the namespace cannot be entered, the thread not be started, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        on_thread("netns-run", || {
            self.enter()?;
            Ok(work())
        })
        .flatten()
    }

    /// [`NetNs::run`] for async code: does not block the runtime's worker.
    ///
    /// # Errors
    /// As [`NetNs::run`].
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (result, done) = tokio::sync::oneshot::channel();
        let ns = self.clone();
        let fail =
            |source| Error::Namespace { what: "enter", namespace: self.description.to_string(), source };
        std::thread::Builder::new()
            .name("netns-call".into())
            .spawn(move || {
                // A caller that has gone away needs no answer.
                drop(result.send(ns.enter().map(|()| work())));
            })
            .map_err(fail)?;
        done.await.map_err(|_| fail(io::Error::other("the work inside the namespace panicked")))?
    }

    /// Moves the calling thread, which must be about to end, into the namespace.
    fn enter(&self) -> Result<(), Error> {
        setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace {
            what: "enter",
            namespace: self.description.to_string(),
            source: errno.into(),
        })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::fmt::Debug for NetNs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NetNs").field(&self.description).finish()
    }
}

/// Runs `work` on a new thread and waits; a panic there becomes an error here.
fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let fail = |source| Error::Namespace { what: "run a thread for", namespace: name.to_owned(), source };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.into()).spawn_scoped(scope, work).map_err(fail)?;
        thread.join().map_err(|_| fail(io::Error::other("the work inside the namespace panicked")))
    })
}
