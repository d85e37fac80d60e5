//! The programs at sockets (`bpf/sock.bpf.c`), hooked to a cgroup: loaded when they are first needed, since a kernel may
//! refuse them (before Linux 5.18) and still run all others.

use crate::attach::chain;
use crate::datapath::{Datapath, LINKS, MapSizes, load, lock};
use crate::error::DatapathError;
use crate::sys;
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// On the same header and maps as [`crate::datapath::OBJECT`], whose BTF is the one that is compared.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sock.o"));

/// Programs that answer come first: a socket that is led elsewhere is told of the service from its first answer on.
const PROGRAMS: [&str; 8] = [
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeer4",
    "sock_getpeer6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_connect4",
    "sock_connect6",
];

fn failed(operation: &'static str, place: impl Into<String>, reason: String) -> DatapathError {
    DatapathError::Sockets { operation, place: place.into(), reason }
}

/// The pin of a program's link.
fn pin(links: &Path, program: &str) -> PathBuf {
    // No interface's pin begins so: those begin with a number.
    links.join(program)
}

/// The programs, once loaded, and where their links are pinned.
pub(crate) struct SocketHooks {
    maps: PathBuf,
    links: PathBuf,
    sizes: MapSizes,
    object: Option<Ebpf>,
}

impl SocketHooks {
    /// Nothing is loaded yet.
    pub(crate) fn new(directory: &Path, sizes: &MapSizes) -> Self {
        Self { maps: directory.to_owned(), links: directory.join(LINKS), sizes: sizes.clone(), object: None }
    }

    /// The programs; loads them if that was not done yet.
    fn object(&mut self) -> Result<&mut Ebpf, DatapathError> {
        if self.object.is_none() {
            let mut object = load(OBJECT, &self.maps, &self.sizes)?;
            for name in PROGRAMS {
                let loaded = program(&mut object, name)?.load();
                let hint = "needs Linux 5.18 or later with cgroup v2";
                loaded.map_err(|e| failed("load program", name, format!("{}; {hint}", chain(&e))))?;
            }
            return Ok(self.object.insert(object));
        }
        self.object.as_mut().ok_or(DatapathError::Missing("sock.o"))
    }

    /// Runs the programs for all sockets below a cgroup; an earlier run's are replaced without a gap.
    fn attach(&mut self, cgroup: &Path) -> Result<(), DatapathError> {
        let shown = cgroup.display().to_string();
        let opened = File::open(cgroup).and_then(|file| Ok((file.metadata()?.ino(), file)));
        let (id, file) = opened.map_err(|e| failed("open cgroup", &shown, e.to_string()))?;
        let links = self.links.clone();
        let object = self.object()?;
        for name in PROGRAMS {
            let program = program(object, name)?;
            let pin = pin(&links, name);
            if replace(program, &pin, Some(id)).map_err(|e| failed("replace program at", &shown, e))? {
                continue;
            }
            let attached = attach(program, &file, &pin);
            let hint = "is it a directory of cgroup v2?";
            attached.map_err(|e| failed("attach to cgroup", &shown, format!("{e}; {hint}")))?;
        }
        Ok(())
    }

    /// Ends the translation at sockets, here and in other folders. Those that were led stay where they are, but are told
    /// of the backend from now on.
    fn detach(&mut self) -> Result<(), DatapathError> {
        self.object = None;
        PROGRAMS.into_iter().rev().try_for_each(|name| remove(&pin(&self.links, name)))
    }

    /// Puts these programs where an earlier run's are, also another schema's: those know other maps. Where that fails
    /// they are taken away, since they would lead sockets by rows that nobody keeps.
    pub(crate) fn take_over(&mut self, other_links: &[PathBuf]) {
        let own = self.links.clone();
        for links in std::iter::once(&own).chain(other_links) {
            let found = PROGRAMS.into_iter().filter(|name| pin(links, name).exists());
            for name in found.collect::<Vec<_>>() {
                let (there, here) = (pin(links, name), pin(&own, name));
                let taken = self.object().and_then(|object| {
                    let program = program(object, name)?;
                    replace(program, &there, None).map_err(|e| failed("replace program", name, e))
                });
                let stays = match taken {
                    Ok(running) => running,
                    Err(error) => {
                        tracing::warn!(%error, program = name, "taken away from its cgroup");
                        false
                    }
                };
                let moved = match (stays, there == here) {
                    (true, true) => Ok(()),
                    (true, false) if !here.exists() => fs::rename(&there, &here),
                    // One that is gone, or a second one, which would only do the same again.
                    _ => fs::remove_file(&there),
                };
                if let Err(error) = moved {
                    tracing::warn!(%error, pin = %there.display(), "cannot move the link");
                }
            }
        }
    }

    /// Which programs the kernel runs, at which cgroup.
    fn attached(&self) -> Vec<(&'static str, u64)> {
        let running = |name: &'static str| {
            let link = sys::open_pin(&pin(&self.links, name)).ok()?;
            let cgroup = sys::cgroup_of_link(link.as_fd()).ok()?;
            (cgroup != 0).then_some((name, cgroup))
        };
        PROGRAMS.into_iter().filter_map(running).collect()
    }

    /// As for the programs on packets.
    pub(crate) fn verified_instructions(&mut self) -> Result<Vec<(&'static str, u32)>, DatapathError> {
        let object = self.object()?;
        let count = |name| {
            let info = program(object, name)?.info().ok();
            Ok((name, info.and_then(|info| info.verified_instruction_count()).unwrap_or_default()))
        };
        PROGRAMS.into_iter().map(count).collect()
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, DatapathError> {
    let program = object.program_mut(name).ok_or(DatapathError::Missing(name))?;
    program.try_into().map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })
}

/// Runs the program at a pinned link from now on. False: there is none, or not at this cgroup; then it is gone now.
fn replace(program: &CgroupSockAddr, pin: &Path, cgroup: Option<u64>) -> Result<bool, String> {
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    let at = sys::cgroup_of_link(link.as_fd()).map_err(|e| e.to_string())?;
    if at == 0 || cgroup.is_some_and(|wanted| wanted != at) {
        // Two cgroups, one below the other, would run both links' programs; the second finds nothing left to do.
        if cgroup.is_some() {
            fs::remove_file(pin).map_err(|e| e.to_string())?;
        }
        return Ok(false);
    }
    let running = program.fd().map_err(|e| chain(&e))?;
    sys::update_link(link.as_fd(), running.as_fd()).map_err(|e| e.to_string())?;
    Ok(true)
}

fn attach(program: &mut CgroupSockAddr, cgroup: &File, pin: &Path) -> Result<(), String> {
    // A link is one of many on its cgroup whatever the mode says, and the kernel takes no other.
    let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(|e| chain(&e))?;
    let link = program.take_link(id).map_err(|e| chain(&e))?;
    let link = FdLink::try_from(link).map_err(|e| chain(&e))?;
    link.pin(pin).map(drop).map_err(|e| chain(&e))
}

fn remove(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::BpfFs { operation: "remove link pin", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

impl Datapath {
    /// Hooks the programs that translate services at sockets to a directory of cgroup v2: to all sockets of processes in
    /// or below it, whatever network namespace they are in. [`crate::NodeConfig::socket_lb`] says which of them count.
    ///
    /// # Errors
    /// No such cgroup, or a kernel that refuses the programs. Packets are translated all the same.
    pub fn attach_sockets(&self, cgroup: &Path) -> Result<(), DatapathError> {
        lock(&self.sockets).attach(cgroup)
    }

    /// Unhooks them; fine if they are not there.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_sockets(&self) -> Result<(), DatapathError> {
        lock(&self.sockets).detach()
    }

    /// Whether the kernel runs all of them, at one cgroup that is still there.
    #[must_use]
    pub fn sockets_attached(&self) -> bool {
        let running = lock(&self.sockets).attached();
        let one = running.first().map(|(_, cgroup)| *cgroup);
        running.len() == PROGRAMS.len() && running.iter().all(|(_, cgroup)| Some(*cgroup) == one)
    }
}
