//! Where the containers of pods write.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

/// The folder of the pods' logs, held open: the lab directory cannot be seen from within a node.
#[derive(Clone, Debug)]
pub struct LogFolder {
    folder: Arc<OwnedFd>,
}

impl LogFolder {
    /// Opens the folder.
    ///
    /// # Errors
    /// It does not exist.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { folder: Arc::new(crate::enter::open_directory(path)?) })
    }

    /// Opens a pod's log to append to; the name is the pod's namespace and name.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn append(&self, namespace: &str, name: &str) -> io::Result<File> {
        let file = format!("{namespace}-{name}.log");
        let flags = OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let fd = openat(&*self.folder, file.as_str(), flags, Mode::from_bits_truncate(0o644))?;
        Ok(File::from(fd))
    }
}
