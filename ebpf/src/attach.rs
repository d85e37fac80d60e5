//! Hooking programs to interfaces, so that they stay when this process goes, and replacing them in place.
//!
//! With tcx the link is pinned under `links/<ifindex>-<direction>` and later updated. Without it (before
//! Linux 6.6) a clsact filter of fixed priority and handle is used, which replaces atomically as well.

use crate::error::DatapathError;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How programs are hooked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub enum Attach {
    /// tcx where the kernel has it, else clsact.
    #[default]
    Auto,
    /// tcx or an error.
    Tcx,
    /// clsact always.
    Clsact,
}

/// A place where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

impl Side {
    const fn kind(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A pinned link of an earlier run.
pub(crate) struct Hook {
    pub(crate) ifindex: u32,
    pub(crate) side: Side,
    pin: PathBuf,
}

const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Links of one node.
pub(crate) struct Links {
    directory: PathBuf,
    mode: Attach,
}

impl Links {
    pub(crate) fn new(directory: PathBuf, mode: Attach) -> Self {
        Self { directory, mode }
    }

    fn pin(&self, ifindex: u32, side: Side) -> PathBuf {
        self.directory.join(format!("{ifindex}-{}", side.name()))
    }

    /// Runs `program` at the hook from now on; what ran there before is replaced without a gap.
    pub(crate) fn attach(
        &self,
        name: &'static str,
        program: &mut SchedClassifier,
        ifindex: u32,
        side: Side,
    ) -> Result<(), DatapathError> {
        let error = |mode: &'static str, reason: String| DatapathError::Attach {
            program: name,
            ifindex,
            mode,
            reason,
        };
        let interface = nix::net::if_::if_indextoname(ifindex)
            .map_err(|e| error("lookup", e.to_string()))?
            .to_string_lossy()
            .into_owned();
        if self.mode != Attach::Clsact {
            match self.attach_tcx(program, &interface, ifindex, side) {
                Ok(()) => return Ok(()),
                Err(reason) if self.mode == Attach::Tcx => return Err(error("tcx", reason)),
                Err(reason) => tracing::debug!(ifindex, reason, "no tcx, using clsact"),
            }
        }
        attach_clsact(program, &interface, side).map_err(|reason| error("clsact", reason))?;
        // A tcx link of an earlier run would run the packet through the programs twice.
        remove(&self.pin(ifindex, side)).map_err(|e| error("clsact", e.to_string()))
    }

    fn attach_tcx(
        &self,
        program: &mut SchedClassifier,
        interface: &str,
        ifindex: u32,
        side: Side,
    ) -> Result<(), String> {
        let pin = self.pin(ifindex, side);
        if pin.exists() {
            match replace_tcx(program, &pin) {
                Ok(()) => return Ok(()),
                // The index was used by an interface that is gone.
                Err(error) if detached(error.as_ref()) => {
                    tracing::debug!(ifindex, "stale link pin, attaching anew");
                    remove(&pin).map_err(|e| e.to_string())?;
                }
                // The old program goes on; without the pin nothing would.
                Err(error) => return Err(chain(error.as_ref())),
            }
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program.attach_with_options(interface, side.kind(), options).map_err(|e| chain(&e))?;
        let link = program.take_link(id).map_err(|e| chain(&e))?;
        let link = FdLink::try_from(link).map_err(|e| chain(&e))?;
        link.pin(&pin).map_err(|e| chain(&e))?;
        Ok(())
    }

    /// Unhooks everything from an interface; fine if nothing is hooked or the interface is gone.
    pub(crate) fn detach(&self, ifindex: u32) -> io::Result<()> {
        for side in [Side::Ingress, Side::Egress] {
            remove(&self.pin(ifindex, side))?;
            if let Ok(interface) = nix::net::if_::if_indextoname(ifindex) {
                let interface = interface.to_string_lossy().into_owned();
                // Taking the link and dropping it removes the filter; there may be none.
                drop(SchedClassifierLink::attached(&interface, side.kind(), PRIORITY, HANDLE, None));
            }
        }
        Ok(())
    }

    /// Interface indexes that have a pinned link.
    pub(crate) fn attached(&self) -> io::Result<Vec<u32>> {
        let mut found: Vec<u32> = pinned(&self.directory)?.into_iter().map(|hook| hook.ifindex).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The pinned links here and in other folders, which may not be there.
    pub(crate) fn hooks(&self, others: &[PathBuf]) -> Result<Vec<Hook>, DatapathError> {
        let failed = |path: &Path, source| DatapathError::BpfFs {
            operation: "list link pins in",
            path: path.to_owned(),
            source,
        };
        let mut found = Vec::new();
        for directory in std::iter::once(&self.directory).chain(others) {
            match pinned(directory) {
                Ok(hooks) => found.extend(hooks),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(directory, error)),
            }
        }
        Ok(found)
    }

    /// Runs `program` where the link is from now on, without a gap, and makes the link one of ours.
    pub(crate) fn take_over(
        &self,
        name: &'static str,
        program: &mut SchedClassifier,
        hook: &Hook,
    ) -> Result<(), DatapathError> {
        let error = |reason: String| DatapathError::Attach {
            program: name,
            ifindex: hook.ifindex,
            mode: "tcx",
            reason,
        };
        match replace_tcx(program, &hook.pin) {
            Err(cause) if detached(cause.as_ref()) => {
                return remove(&hook.pin).map_err(|e| error(e.to_string()));
            }
            Err(cause) => return Err(error(chain(cause.as_ref()))),
            Ok(()) => {}
        }
        let own = self.pin(hook.ifindex, hook.side);
        if own == hook.pin {
            return Ok(());
        }
        // Two links on one hook would run the packet through the programs twice.
        let moved = if own.exists() { remove(&hook.pin) } else { fs::rename(&hook.pin, &own) };
        moved.map_err(|e| error(e.to_string()))
    }

    /// Whether programs are hooked by clsact here.
    pub(crate) fn without_tcx(&self) -> bool {
        let tcx = || SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
        self.mode == Attach::Clsact || (self.mode == Attach::Auto && !tcx())
    }
}

fn pinned(directory: &Path) -> io::Result<Vec<Hook>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let pin = entry?.path();
        let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some((ifindex, side)) = name.split_once('-') else { continue };
        let side = [Side::Ingress, Side::Egress].into_iter().find(|known| known.name() == side);
        if let (Ok(ifindex), Some(side)) = (ifindex.parse(), side) {
            found.push(Hook { ifindex, side, pin });
        }
    }
    Ok(found)
}

/// The programs that the kernel runs by tcx at an interface; none where it is gone.
///
/// # Errors
/// The kernel cannot be asked, as before Linux 6.6.
pub(crate) fn tcx_programs(ifindex: u32, side: Side) -> Result<Vec<String>, DatapathError> {
    let Ok(interface) = nix::net::if_::if_indextoname(ifindex) else { return Ok(Vec::new()) };
    let found = SchedClassifier::query_tcx(&interface.to_string_lossy(), side.kind());
    let (_, programs) = found.map_err(|error| DatapathError::Attach {
        program: "whatever runs there",
        ifindex,
        mode: "query tcx",
        reason: chain(&error),
    })?;
    Ok(programs.iter().filter_map(|info| info.name_as_str().map(str::to_owned)).collect())
}

fn replace_tcx(
    program: &mut SchedClassifier,
    pin: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let old = FdLink::from(PinnedLink::from_pin(pin)?);
    let id = program.attach_to_link(SchedClassifierLink::try_from(old)?)?;
    // The pin keeps the link; our handle may go.
    drop(program.take_link(id)?);
    Ok(())
}

/// Whether a link's interface is gone: the kernel answers an update with ENOLINK then.
fn detached(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |cause| cause.source())
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|io| io.raw_os_error() == Some(libc::ENOLINK))
}

fn attach_clsact(program: &mut SchedClassifier, interface: &str, side: Side) -> Result<(), String> {
    if let Err(error) = qdisc_add_clsact(interface) {
        tracing::trace!(interface, error = chain(&error), "clsact exists already");
    }
    let old = SchedClassifierLink::attached(interface, side.kind(), PRIORITY, HANDLE, None)
        .map_err(|e| chain(&e))
        .and_then(|link| program.attach_to_link(link).map_err(|e| chain(&e)));
    let id = match old {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program
                .attach_with_options(interface, side.kind(), TcAttachOptions::Netlink(options))
                .map_err(|e| chain(&e))?
        }
    };
    // Dropping the link would remove the filter: it must outlive this process.
    std::mem::forget(program.take_link(id).map_err(|e| chain(&e))?);
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An error with all its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
