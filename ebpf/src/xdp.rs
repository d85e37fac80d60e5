//! The program before socket buffers (`bpf/xdp.bpf.c`), on an uplink: loaded when it is first needed, since a driver may take
//! none. What it leaves alone meets the programs of [`crate::datapath`], which need not know of it.

use crate::attach::chain;
use crate::datapath::{Datapath, LINKS, MapSizes, load, lock};
use crate::error::DatapathError;
use crate::sys;
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{TestRun, TestRunOptions, Xdp, XdpMode};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// On the same header and maps as [`crate::datapath::OBJECT`], whose BTF is the one that is compared.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xdp.o"));

const PROGRAM: &str = "xdp_uplink";

/// Where a frame meets the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Acceleration {
    /// In the driver.
    Native,
    /// In the kernel, with any driver: no faster, for tests.
    Generic,
}

impl Acceleration {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn mode(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// The program, once loaded, and where its links are pinned.
pub(crate) struct XdpHooks {
    maps: PathBuf,
    links: PathBuf,
    sizes: MapSizes,
    object: Option<Ebpf>,
}

impl XdpHooks {
    /// Nothing is loaded yet.
    pub(crate) fn new(directory: &Path, sizes: &MapSizes) -> Self {
        Self { maps: directory.to_owned(), links: directory.join(LINKS), sizes: sizes.clone(), object: None }
    }

    fn program(&mut self) -> Result<&mut Xdp, DatapathError> {
        if self.object.is_none() {
            let mut object = load(OBJECT, &self.maps, &self.sizes)?;
            let refused = |source| DatapathError::Program { program: PROGRAM, source: Box::new(source) };
            program(&mut object)?.load().map_err(refused)?;
            self.object = Some(object);
        }
        program(self.object.as_mut().ok_or(DatapathError::Missing("xdp.o"))?)
    }

    fn pin(&self, ifindex: u32, how: Acceleration) -> PathBuf {
        // The hooks of tc at an interface are told by other words behind its number.
        self.links.join(format!("{ifindex}-xdp-{}", how.name()))
    }

    /// Runs the program at the interface; an earlier run's is replaced without a gap, unless it is hooked otherwise.
    fn attach(&mut self, ifindex: u32, how: Acceleration) -> Result<(), DatapathError> {
        let error = |mode: &'static str, reason: String| DatapathError::Attach {
            program: PROGRAM,
            ifindex,
            mode,
            reason,
        };
        // The kernel takes one at a time.
        for other in Acceleration::ALL.into_iter().filter(|other| *other != how) {
            unhook(&self.pin(ifindex, other)).map_err(|e| error(how.name(), e.to_string()))?;
        }
        let pin = self.pin(ifindex, how);
        let program = self.program()?;
        if replace(program, &pin).map_err(|e| error(how.name(), e))? {
            return Ok(());
        }
        hook(program, ifindex, how, &pin).map_err(|e| error(how.name(), e))
    }

    fn detach(&self, ifindex: u32) -> io::Result<()> {
        Acceleration::ALL.into_iter().try_for_each(|how| unhook(&self.pin(ifindex, how)))
    }

    /// Interfaces with pinned links, and how they are hooked.
    fn pinned(links: &Path) -> Vec<(u32, Acceleration, PathBuf)> {
        let entries = fs::read_dir(links).into_iter().flatten().flatten();
        let read = |pin: PathBuf| {
            let name = pin.file_name()?.to_str()?.to_owned();
            let (ifindex, how) = name.split_once("-xdp-")?;
            let how = Acceleration::ALL.into_iter().find(|known| known.name() == how)?;
            Some((ifindex.parse().ok()?, how, pin))
        };
        entries.filter_map(|entry| read(entry.path())).collect()
    }

    /// Puts this program where an earlier run's is, also another schema's: that one knows other maps. Where that fails it is
    /// taken away; the programs behind do the same work.
    pub(crate) fn take_over(&mut self, other_links: &[PathBuf]) {
        let own = self.links.clone();
        for links in std::iter::once(&own).chain(other_links) {
            for (ifindex, how, there) in Self::pinned(links) {
                let here = self.pin(ifindex, how);
                let taken =
                    self.program().map_err(|e| e.to_string()).and_then(|program| replace(program, &there));
                let stays = taken.unwrap_or_else(|error| {
                    tracing::warn!(error, ifindex, "the XDP program is taken away");
                    false
                });
                let moved = match (stays, there == here) {
                    (true, true) => Ok(()),
                    (true, false) if !here.exists() => fs::rename(&there, &here),
                    _ => unhook(&there),
                };
                if let Err(error) = moved {
                    tracing::warn!(%error, pin = %there.display(), "cannot move the link");
                }
            }
        }
    }

    /// How the kernel runs the program at an interface now.
    fn attached(&self, ifindex: u32) -> Option<Acceleration> {
        let running = |how: &Acceleration| {
            let link = sys::open_pin(&self.pin(ifindex, *how)).ok()?;
            sys::interface_of_link(link.as_fd()).ok().filter(|at| *at == ifindex)
        };
        Acceleration::ALL.into_iter().find(|how| running(how).is_some())
    }
}

fn program(object: &mut Ebpf) -> Result<&mut Xdp, DatapathError> {
    let program = object.program_mut(PROGRAM).ok_or(DatapathError::Missing(PROGRAM))?;
    program.try_into().map_err(|source| DatapathError::Program { program: PROGRAM, source: Box::new(source) })
}

fn hook(program: &mut Xdp, ifindex: u32, how: Acceleration, pin: &Path) -> Result<(), String> {
    let id = program.attach_to_if_index(ifindex, how.mode()).map_err(|e| chain(&e))?;
    let link = program.take_link(id).map_err(|e| chain(&e))?;
    let link = FdLink::try_from(link).map_err(|e| chain(&e))?;
    link.pin(pin).map(drop).map_err(|e| chain(&e))
}

/// Runs the program at a pinned link from now on. False: there is none, or its interface is gone.
fn replace(program: &Xdp, pin: &Path) -> Result<bool, String> {
    let link = match sys::open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
        Err(error) => return Err(error.to_string()),
    };
    let running = program.fd().map_err(|e| chain(&e))?;
    match sys::update_link(link.as_fd(), running.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            unhook(pin).map_err(|e| e.to_string())?;
            Ok(false)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Takes the program of a pinned link away; fine if there is none.
fn unhook(pin: &Path) -> io::Result<()> {
    match sys::open_pin(pin) {
        Ok(link) => sys::detach_link(link.as_fd())?,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_file(pin)
}

impl Datapath {
    /// Hooks the program that serves outside clients before socket buffers are made to an uplink, whose other programs must be
    /// hooked, too: it leaves to them what it does not do.
    ///
    /// # Errors
    /// The driver takes no such program, or there is one of somebody else. Nothing is lost but speed.
    pub fn attach_xdp(&self, ifindex: u32, how: Acceleration) -> Result<(), DatapathError> {
        lock(&self.xdp).attach(ifindex, how)
    }

    /// Unhooks it; fine if it is not there.
    ///
    /// # Errors
    /// A pin could not be removed.
    pub fn detach_xdp(&self, ifindex: u32) -> Result<(), DatapathError> {
        let xdp = lock(&self.xdp);
        let path = xdp.links.clone();
        let failed = |source| DatapathError::BpfFs { operation: "remove link pin below", path, source };
        xdp.detach(ifindex).map_err(failed)
    }

    /// How the kernel runs it at an interface now; `None`: not at all.
    #[must_use]
    pub fn xdp_attached(&self, ifindex: u32) -> Option<Acceleration> {
        lock(&self.xdp).attached(ifindex)
    }

    /// Runs it once on a frame as if that had come in at an interface, to which it must be hooked natively. For tests and
    /// benches. Returns the verdict and the frame after it.
    ///
    /// # Errors
    /// The kernel refuses the frame or the program.
    pub fn xdp_test_run(&self, ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>), DatapathError> {
        let mut xdp = lock(&self.xdp);
        let refused = |source| DatapathError::Program { program: PROGRAM, source: Box::new(source) };
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let words = [0, length, 0, ifindex, 0, 0];
        let context: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut out = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = xdp.program()?.test_run(options).map_err(refused)?;
        out.truncate(usize::try_from(result.data_size_out).unwrap_or_default());
        Ok((result.return_value, out))
    }

    /// A handle of the program, for a bench that calls it many times from a program of its own.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn xdp_handle(&self) -> Result<aya::programs::ProgramFd, DatapathError> {
        let refused = |source| DatapathError::Program { program: PROGRAM, source: Box::new(source) };
        let mut xdp = lock(&self.xdp);
        let handle = xdp.program()?.fd().map_err(refused)?.try_clone();
        handle.map_err(|io_error| refused(aya::sys::SyscallError { call: "dup", io_error }.into()))
    }

    /// As for the other programs.
    pub(crate) fn xdp_instructions(&self) -> Result<(&'static str, u32), DatapathError> {
        let info = lock(&self.xdp).program()?.info().ok();
        Ok((PROGRAM, info.and_then(|info| info.verified_instruction_count()).unwrap_or_default()))
    }
}
