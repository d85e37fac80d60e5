//! `tombolo bfd`: BFD as a process of its own. It outlives the agent that started it, keeps its sessions meanwhile, and is found again.
//!
//! `tombolo bfd --socket PATH --pid-file PATH --log-file PATH [--detach]`. With `--detach` the program starts itself once more without,
//! and ends, so that the unit is a child of init with a session of its own. It holds a lock on its pid file (never two for one), binds the
//! UDP ports, listens on the control socket (mode 0600), says `ready`, and works until SIGTERM, upon which every session says AdminDown.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::setsid;

use super::control::{Steer, serve};
use super::sockets::Sockets;
use super::worker::{Command as Order, Worker};

/// The unit's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Arguments {
    socket: PathBuf,
    pid_file: PathBuf,
    log_file: PathBuf,
    detach: bool,
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let name = argument.to_string_lossy().into_owned();
        if name == "--detach" {
            parsed.detach = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--socket" => parsed.socket = value.into(),
            "--pid-file" => parsed.pid_file = value.into(),
            "--log-file" => parsed.log_file = value.into(),
            other => return Err(format!("{other} is not known")),
        }
    }
    let missing = [
        ("--socket", parsed.socket.as_os_str().is_empty()),
        ("--pid-file", parsed.pid_file.as_os_str().is_empty()),
        ("--log-file", parsed.log_file.as_os_str().is_empty()),
    ];
    match missing.into_iter().find(|(_, is_missing)| *is_missing) {
        Some((name, _)) => Err(format!("{name} is missing")),
        None => Ok(parsed),
    }
}

/// The unit: `tombolo bfd ARGUMENTS` (without the program's and the command's name). Returns when it ends.
#[must_use]
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let outcome = parse(arguments)
        .map_err(|reason| format!("tombolo bfd: {reason}"))
        .and_then(|parsed| if parsed.detach { detach(&parsed) } else { work(&parsed) });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Standard output is the pipe to whoever waits for `ready`; standard error is the log.
            drop(writeln!(io::stderr(), "{reason}"));
            drop(writeln!(io::stdout(), "{reason}"));
            ExitCode::FAILURE
        }
    }
}

/// Starts the unit proper and ends, which makes it a child of init.
fn detach(arguments: &Arguments) -> Result<(), String> {
    let fail = |error: io::Error| format!("cannot start the unit: {error}");
    make_directory(&arguments.log_file).map_err(fail)?;
    let log =
        OpenOptions::new().create(true).append(true).mode(0o600).open(&arguments.log_file).map_err(fail)?;
    // All arguments as they came, the command's name included, but `--detach`.
    let again = std::env::args_os().skip(1).filter(|argument| argument != "--detach");
    // By way of /proc it is this very program, even if its file was replaced meanwhile.
    Command::new("/proc/self/exe")
        .arg0(std::env::args_os().next().unwrap_or_else(|| "tombolo".into()))
        .args(again)
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map(drop)
        .map_err(fail)
}

fn make_directory(file: &Path) -> io::Result<()> {
    let Some(directory) = file.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn work(arguments: &Arguments) -> Result<(), String> {
    // A library's tests may have set a subscriber already.
    drop(
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(io::stderr)
            .try_init(),
    );
    if let Err(errno) = setsid() {
        // Only the leader of a process group may not, and it has no need of it: started by hand.
        tracing::debug!(%errno, "no session of its own");
    }
    // Before any thread: they all inherit it, and the signals wait for this one.
    let signals = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect::<SigSet>();
    signals.thread_block().map_err(|errno| format!("cannot await SIGTERM: {errno}"))?;
    let mut lock = lock_pid_file(&arguments.pid_file)?;
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(|error| format!("cannot write {}: {error}", arguments.pid_file.display()))?;
    let outcome = serve_until_signal(arguments, &signals);
    for path in [&arguments.socket, &arguments.pid_file] {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "A file could not be removed.");
        }
    }
    // Held to the very end: whoever waits for the lock waits for the process.
    std::mem::forget(lock);
    outcome
}

fn serve_until_signal(arguments: &Arguments, signals: &SigSet) -> Result<(), String> {
    let sockets = Sockets::bind()?;
    for problem in &sockets.problems {
        tracing::warn!(%problem, "A BFD port is not served.");
    }
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let wake = EventFd::from_flags(flags).map_err(|errno| format!("cannot make an eventfd: {errno}"))?;
    let wake = Arc::new(wake);
    let (command_sender, commands) = channel();
    let (change_sender, changes) = channel();
    let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let worker = Worker { sockets, commands, wake: Arc::clone(&wake), changes: change_sender, seed };
    let fail = |error: io::Error| format!("cannot start: {error}");
    std::thread::Builder::new()
        .name("bfd".into())
        .spawn(move || {
            if let Err(reason) = worker.run() {
                tracing::error!(%reason, "BFD has stopped; the unit ends.");
                // Everything rests on this thread: without it the process is a lie.
                std::process::exit(1);
            }
        })
        .map_err(fail)?;
    let steer = Steer { commands: command_sender, wake };
    let listener = bind(&arguments.socket)
        .map_err(|error| format!("cannot listen on {}: {error}", arguments.socket.display()))?;
    serve(listener, steer.clone(), changes).map_err(fail)?;
    tracing::info!(socket = %arguments.socket.display(), "BFD is ready.");
    // Whoever started the unit may have gone away meanwhile.
    drop(writeln!(io::stdout(), "ready"));
    let signal = signals.wait().map_err(|errno| format!("cannot await SIGTERM: {errno}"))?;
    tracing::info!(%signal, "BFD ends: every session says AdminDown.");
    steer.ask(|reply| Order::Stop { reply })
}

/// A control socket that only root reaches; one that a dead unit left is replaced (the lock is ours).
fn bind(path: &Path) -> io::Result<UnixListener> {
    make_directory(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Held until the unit ends: a second unit with the same file finds it taken.
fn lock_pid_file(path: &Path) -> Result<File, String> {
    let fail = |error: io::Error| format!("cannot open {}: {error}", path.display());
    make_directory(path).map_err(fail)?;
    let options =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = options().map_err(fail)?;
    fcntl(&file, FcntlArg::F_OFD_SETLK(&write_lock()))
        .map_err(|errno| format!("another unit holds {}: {errno}", path.display()))?;
    Ok(file)
}

/// Whether a unit holds the pid file. Only asks: it never stands in a starting unit's way.
pub(super) fn is_locked(file: &File) -> bool {
    let mut lock = write_lock();
    let asked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

/// A lock on the whole file, held by the open file (fcntl(2), "open file description locks").
fn write_lock() -> libc::flock {
    // The constants of lock types are small; the field is a short.
    let l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default();
    let l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> impl Iterator<Item = OsString> {
        text.split_whitespace().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn arguments_are_read_and_mistakes_named() {
        let good = "--socket /s --pid-file /p --log-file /l";
        assert!(!parse(arguments(good)).unwrap().detach);
        assert!(parse(arguments(&format!("{good} --detach"))).unwrap().detach);
        for (wrong, named) in [("", "--socket"), ("--socket", "--socket"), ("--mystery 1", "--mystery")] {
            assert!(parse(arguments(wrong)).unwrap_err().contains(named), "{wrong}");
        }
    }

    #[test]
    fn only_one_unit_holds_a_pid_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/bfd.pid");
        let held = lock_pid_file(&path).unwrap();
        assert!(lock_pid_file(&path).unwrap_err().contains("another unit"));
        assert!(is_locked(&File::open(&path).unwrap()));
        drop(held);
        assert!(!is_locked(&File::open(&path).unwrap()));
    }
}
