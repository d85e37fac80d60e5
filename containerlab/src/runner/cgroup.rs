//! The lab's own part of the cgroup v2 tree: one directory a lab, below it one a node.
//!
//! The host's mount may be read-only or sit elsewhere (hybrid hosts), so every user mounts the tree afresh in a
//! private mount namespace; the tree itself is the same everywhere.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::layout::Layout;
use crate::enter;

/// The name of a lab's directory in the cgroup tree.
#[must_use]
pub fn name(layout: &Layout) -> String {
    format!("tombolo-lab-{}", layout.id())
}

/// Mounts the cgroup2 tree over /sys/fs/cgroup of this mount namespace, which must be a private one.
///
/// # Errors
/// No cgroup v2 in this kernel, or no permission.
pub fn mount_tree(layout: &Layout) -> io::Result<PathBuf> {
    let place = Path::new("/sys/fs/cgroup");
    mount(Some("tombolo-lab"), place, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
    Ok(place.join(name(layout)))
}

/// Runs `work` with the path of the lab's cgroup, in a mount namespace of its own.
///
/// # Errors
/// As [`mount_tree`], and what `work` answers.
pub fn with_tree<T: Send + 'static>(
    layout: &Layout,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let layout = layout.clone();
    enter::with_private_mounts(move || {
        let cgroup = mount_tree(&layout)?;
        work(&cgroup)
    })
}

/// Creates the lab's cgroup and opens it, so that a process can be started in it.
///
/// # Errors
/// As [`mount_tree`].
pub fn create(layout: &Layout) -> io::Result<OwnedFd> {
    with_tree(layout, |cgroup| {
        std::fs::create_dir_all(cgroup)?;
        enter::open_directory(cgroup)
    })
}

/// Kills every process in a cgroup and below it. A cgroup that is gone is no failure.
///
/// # Errors
/// The kernel refuses.
pub fn kill(cgroup: &Path) -> io::Result<()> {
    match std::fs::write(cgroup.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The number of processes in a cgroup and below it.
///
/// # Errors
/// It cannot be read.
pub fn processes(cgroup: &Path) -> io::Result<usize> {
    if !cgroup.exists() {
        return Ok(0);
    }
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs"))?.lines().count();
    let mut all = own;
    for child in children(cgroup)? {
        all += processes(&child)?;
    }
    Ok(all)
}

/// The number of cgroups at and below a path.
///
/// # Errors
/// It cannot be read.
pub fn count(cgroup: &Path) -> io::Result<usize> {
    if !cgroup.exists() {
        return Ok(0);
    }
    let mut all = 1;
    for child in children(cgroup)? {
        all += count(&child)?;
    }
    Ok(all)
}

/// Removes a cgroup and everything below it; all must be without processes.
///
/// # Errors
/// One still holds a process.
pub fn remove(cgroup: &Path) -> io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    for child in children(cgroup)? {
        remove(&child)?;
    }
    match std::fs::remove_dir(cgroup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits until no process is left in a cgroup or below it (`populated 0` in `cgroup.events`).
///
/// # Errors
/// The file cannot be read, or processes are left when the time is over.
pub fn wait_empty(cgroup: &Path, patience: std::time::Duration) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::io::{Read, Seek, SeekFrom};
    use std::os::fd::AsFd;
    let deadline = std::time::Instant::now() + patience;
    let mut events = match std::fs::File::open(cgroup.join("cgroup.events")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    loop {
        let mut text = String::new();
        events.seek(SeekFrom::Start(0))?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "processes are left in the cgroup"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout)?;
    }
}

fn children(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
