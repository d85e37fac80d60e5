//! A node's file system: an overlay over the host's root, with its own /proc, /sys, /dev, /run, /tmp, cgroup tree
//! and bpffs.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, Group, Uid, User, chdir, chown, pivot_root};

use crate::runner::plan::{NodeSpec, OwnedDirectory};

/// File systems of the host that hold programs and their files; mounts of these types below / are shown to nodes.
const DISK_TYPES: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "squashfs", "erofs", "nfs", "nfs4",
    "9p", "virtiofs",
];

/// Builds the root at `disk` and makes it this process' root. The mount namespace must be the caller's own.
///
/// # Errors
/// The step that failed, and why.
pub fn enter(disk: &Path, spec: &NodeSpec) -> io::Result<()> {
    let [upper, work, root, private] = ["upper", "work", "root", "private"].map(|name| disk.join(name));
    for directory in [&upper, &work, &root, &private] {
        std::fs::create_dir_all(directory)?;
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    step(
        "mount the node's overlay root",
        mount(Some("node"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str())),
    )?;
    show_host_disks(&root)?;
    own_directories(&root, &private, &spec.private)?;
    kernel_file_systems(&root)?;

    step("change the root", chdir(&root))?;
    step("change the root", pivot_root(".", "."))?;
    step("leave the host's root", umount2(".", MntFlags::MNT_DETACH))?;
    step("change to /", chdir("/"))?;
    names(spec)
}

/// Makes the directories the image wants, with their owners.
///
/// # Errors
/// The directory that could not be made, or an unknown user or group.
pub fn directories(wanted: &[OwnedDirectory]) -> io::Result<()> {
    for directory in wanted {
        make_owned(directory).map_err(|error| {
            io::Error::new(error.kind(), format!("make {}: {error}", directory.path.display()))
        })?;
    }
    Ok(())
}

fn make_owned(directory: &OwnedDirectory) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(&directory.path)?;
    let user = User::from_name(&directory.owner)?.map(|user| user.uid);
    let group = Group::from_name(&directory.group)?.map(|group| group.gid);
    let unknown = |what: &str, name: &str| io::Error::other(format!("this host has no {what} {name}"));
    let user: Uid = user.ok_or_else(|| unknown("user", &directory.owner))?;
    let group: Gid = group.ok_or_else(|| unknown("group", &directory.group))?;
    chown(&directory.path, Some(user), Some(group))?;
    std::fs::set_permissions(&directory.path, std::fs::Permissions::from_mode(directory.mode))
}

fn step<T>(what: &str, result: nix::Result<T>) -> io::Result<T> {
    result.map_err(|errno| {
        let error = io::Error::from(errno);
        io::Error::new(error.kind(), format!("{what}: {error}"))
    })
}

/// An overlay does not cross mounts: what the host has mounted below / is bound in, read-only.
fn show_host_disks(root: &Path) -> io::Result<()> {
    for place in host_disks(&std::fs::read_to_string("/proc/self/mountinfo")?) {
        let target = root.join(place.strip_prefix("/").unwrap_or(&place));
        if !target.exists() {
            continue;
        }
        let none = None::<&str>;
        let bound = mount(Some(&place), &target, none, MsFlags::MS_BIND, none).and_then(|()| {
            mount(none, &target, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)
        });
        if let Err(error) = bound {
            // A disk that cannot be shown costs only what is on it.
            tracing::warn!(place = %place.display(), %error, "a disk of the host is not shown in the node");
        }
    }
    Ok(())
}

/// The mount points, of a mountinfo text, that hold the host's own files; see proc_pid_mountinfo(5).
fn host_disks(mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(place), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else { continue };
        let hidden = ["/proc", "/sys", "/dev", "/run", "/tmp", "/boot"]
            .iter()
            .any(|top| Path::new(place).starts_with(top));
        if place != "/" && !hidden && DISK_TYPES.contains(&kind) {
            found.push(PathBuf::from(place.replace("\\040", " ")));
        }
    }
    found
}

/// Binds an own directory of the node's disk over each of `places`.
fn own_directories(root: &Path, private: &Path, places: &[PathBuf]) -> io::Result<()> {
    for place in places {
        let own = private.join(private_name(place));
        std::fs::create_dir_all(&own)?;
        let target = root.join(place.strip_prefix("/").unwrap_or(place));
        std::fs::create_dir_all(&target)?;
        // The host's owner and mode stay, so that a daemon finds its directory as its package made it.
        if let Ok(like) = target.metadata() {
            use std::os::unix::fs::MetadataExt;
            std::fs::set_permissions(&own, like.permissions())?;
            chown(&own, Some(Uid::from_raw(like.uid())), Some(Gid::from_raw(like.gid())))?;
        }
        step(
            "bind a private directory",
            mount(Some(&own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>),
        )?;
    }
    Ok(())
}

/// The name, on the node's disk, of the directory that stands for `place`.
fn private_name(place: &Path) -> String {
    place.to_string_lossy().trim_matches('/').replace('/', "-")
}

fn kernel_file_systems(root: &Path) -> io::Result<()> {
    let fresh = |kind: &str, place: &str, flags: MsFlags, options: Option<&str>| {
        let target = root.join(place);
        std::fs::create_dir_all(&target)?;
        step(&format!("mount {kind} on /{place}"), mount(Some(kind), &target, Some(kind), flags, options))
    };
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let none = None::<&str>;
    fresh("proc", "proc", quiet, None)?;
    fresh("sysfs", "sys", quiet, None)?;
    fresh("cgroup2", "sys/fs/cgroup", quiet, None)?;
    fresh("bpf", "sys/fs/bpf", quiet, Some("mode=0700"))?;
    if root.join("sys/kernel/tracing").exists() {
        // Tracing is of use to look around, never needed.
        if let Err(error) = fresh("tracefs", "sys/kernel/tracing", quiet, None) {
            tracing::debug!(%error, "no tracefs");
        }
    }
    let dev = root.join("dev");
    step("bind /dev", mount(Some("/dev"), &dev, none, MsFlags::MS_BIND, none))?;
    fresh(
        "devpts",
        "dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )?;
    let small = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    fresh("tmpfs", "dev/shm", small, Some("mode=1777"))?;
    fresh("tmpfs", "run", small, Some("mode=0755"))?;
    fresh("tmpfs", "tmp", small, Some("mode=1777"))
}

/// Where CNI plugins are looked for, in this order.
pub const CNI_PATH: &str = "/opt/cni/bin:/usr/lib/cni";

fn names(spec: &NodeSpec) -> io::Result<()> {
    if spec.kubelet {
        // The same program, called by the name that the network configuration uses.
        let plugin = Path::new("/opt/cni/bin/tombolo-cni");
        std::fs::create_dir_all("/opt/cni/bin")?;
        if plugin.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(crate::runner::plan::PROGRAM_IN_NODE, plugin)?;
        }
    }
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {}\n",
        spec.hostname
    );
    replace("/etc/hosts", &hosts)?;
    if spec.kubelet {
        // The host's resolver is out of reach; each pod binds its own file here.
        replace("/etc/resolv.conf", "")?;
    }
    replace("/etc/hostname", &format!("{}\n", spec.hostname))?;
    std::fs::create_dir_all("/run/netns")?;
    std::fs::create_dir_all("/run/lock")
}

/// Writes a file of the node anew, also where the host's is a link to somewhere else.
fn replace(path: &str, text: &str) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::write(path, text)
}

/// Empties the directories that hold the node's state: the private ones, and those below /var/lib that the image
/// asks for.
///
/// # Errors
/// A file cannot be removed.
pub fn wipe(spec: &NodeSpec) -> io::Result<()> {
    let asked = spec.directories.iter().map(|directory| &directory.path);
    for place in spec.private.iter().chain(asked.filter(|path| path.starts_with("/var/lib"))) {
        for entry in std::fs::read_dir(place)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_the_host_are_found() {
        let text = "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                    22 27 0:21 / /proc rw - proc proc rw\n\
                    40 27 254:3 / /home rw - ext4 /dev/vdb rw\n\
                    41 27 254:4 / /run/media rw - ext4 /dev/vdc rw\n\
                    42 27 254:5 / /mnt/two\\040words rw shared:1 - xfs /dev/vdd rw\n";
        assert_eq!(host_disks(text), [PathBuf::from("/home"), PathBuf::from("/mnt/two words")]);
    }

    #[test]
    fn private_directories_have_flat_names() {
        assert_eq!(private_name(Path::new("/var/lib/etcd/")), "var-lib-etcd");
    }
}
