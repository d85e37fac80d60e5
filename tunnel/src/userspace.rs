//! WireGuard in user space as a process of its own: it outlives the agent that started it, and is found again.
//!
//! `tombolo wireguard --interface NAME --socket PATH --pid-file PATH --log-file PATH [--detach]`. With `--detach` the
//! program starts itself once more without, and ends, so that the unit is a child of init; the unit begins a session of
//! its own. It holds a lock on its pid file (never two for one), makes the TUN device, listens on the control socket
//! (mode 0600), says `ready`, and works until SIGTERM or until the device is deleted.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use gotatun::device::DeviceBuilder;
use gotatun::device::uapi::UapiServer;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tombolo_netlink::NetNs;

use crate::error::WireguardError;
use crate::uapi::Uapi;

/// How long a unit may take to say that it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a unit may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one look at the pid file's lock waits before the next while a unit ends.
const STOP_POLL: Duration = Duration::from_millis(20);
/// Receive and send buffer of the UDP socket: 2 MiB hold 1,400 packets while the process is not scheduled.
const UDP_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// How the unit is started and where it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The program and the arguments before the unit's own: `/proc/self/exe wireguard`.
    pub program: PathBuf,
    /// See `program`.
    pub arguments: Vec<String>,
    /// The control socket; `/var/run/wireguard/tombolo_wg.sock` unless several nodes share a file system.
    pub socket: PathBuf,
    /// The pid file, locked while the unit lives.
    pub pid_file: PathBuf,
    /// Where the unit logs.
    pub log_file: PathBuf,
}

impl Unit {
    /// Whether a unit answers on the control socket.
    pub async fn is_running(&self) -> bool {
        Uapi::new(&self.socket).get().await.is_ok()
    }

    /// Its process id, if it lives.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.holder().map(|(_, pid)| pid)
    }

    /// The pid file of a unit that lives, and its process id.
    fn holder(&self) -> Option<(File, i32)> {
        let mut file = File::open(&self.pid_file).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let pid = text.trim().parse().ok()?;
        // The file may be of a unit that was killed, its number another process's by now: the lock tells.
        is_locked(&file).then_some((file, pid))
    }

    /// Starts the unit, detached, in a network namespace (none: this process's) unless one answers already; returns when
    /// it is ready.
    ///
    /// # Errors
    /// [`WireguardError::Start`].
    pub async fn ensure_running(
        &self,
        interface: &str,
        namespace: Option<&NetNs>,
    ) -> Result<(), WireguardError> {
        if self.is_running().await {
            return Ok(());
        }
        // One that holds the lock and does not answer is beyond help.
        self.stop().await?;
        let fail = |reason: String| WireguardError::Start {
            program: self.program.clone(),
            reason,
            log: self.log_file.display().to_string(),
        };
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("--interface").arg(interface);
        for (name, path) in
            [("--socket", &self.socket), ("--pid-file", &self.pid_file), ("--log-file", &self.log_file)]
        {
            command.arg(name).arg(path);
        }
        command.arg("--detach").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut starter = match namespace {
            Some(namespace) => namespace
                .call(move || command.spawn())
                .await
                .map_err(|error| fail(error.to_string()))?
                .map_err(|error| fail(error.to_string()))?,
            None => command.spawn().map_err(|error| fail(error.to_string()))?,
        };
        let output = starter.stdout.take().ok_or_else(|| fail("it has no standard output".into()))?;
        let said = read_line(output).await.map_err(|error| fail(error.to_string()))?;
        // The starter ends at once by itself; waiting leaves no zombie.
        let ended = tokio::task::spawn_blocking(move || starter.wait()).await;
        if said.trim() == "ready" {
            return Ok(());
        }
        let ended = match ended {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(fail(format!("it said `{}` rather than `ready` ({ended})", said.trim())))
    }

    /// Ends the unit, if one lives, and waits until it is gone; its device goes with it.
    ///
    /// # Errors
    /// [`WireguardError::Start`] when it cannot be ended.
    pub async fn stop(&self) -> Result<(), WireguardError> {
        let fail = |reason: String| WireguardError::Start {
            program: self.program.clone(),
            reason,
            log: self.log_file.display().to_string(),
        };
        let Some((file, pid)) = self.holder() else { return Ok(()) };
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(fail(format!("the unit of process {pid} cannot be ended: {errno}")));
                }
            }
            // The end of a process that is no child cannot be awaited together with a deadline; its lock, which the
            // kernel takes away with it, is looked at instead.
            let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
            while tokio::time::Instant::now() < deadline {
                if !is_locked(&file) {
                    return Ok(());
                }
                tokio::time::sleep(STOP_POLL).await;
            }
        }
        Err(fail(format!("the unit of process {pid} does not end even when killed")))
    }
}

/// Whether a unit holds the pid file. Only asks: it never stands in a starting unit's way.
fn is_locked(file: &File) -> bool {
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

/// The first line, or what there is of it when the other side closes.
async fn read_line(output: std::process::ChildStdout) -> io::Result<String> {
    let output = tokio::process::ChildStdout::from_std(output)?;
    let mut line = String::new();
    tokio::time::timeout(START_TIMEOUT, BufReader::new(output).read_line(&mut line))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it is not ready in time"))??;
    Ok(line)
}

/// The unit's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Arguments {
    interface: String,
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
            "--interface" => parsed.interface = value.to_string_lossy().into_owned(),
            "--socket" => parsed.socket = value.into(),
            "--pid-file" => parsed.pid_file = value.into(),
            "--log-file" => parsed.log_file = value.into(),
            other => return Err(format!("{other} is not known")),
        }
    }
    let missing = [
        ("--interface", parsed.interface.is_empty()),
        ("--socket", parsed.socket.as_os_str().is_empty()),
        ("--pid-file", parsed.pid_file.as_os_str().is_empty()),
        ("--log-file", parsed.log_file.as_os_str().is_empty()),
    ];
    match missing.into_iter().find(|(_, is_missing)| *is_missing) {
        Some((name, _)) => Err(format!("{name} is missing")),
        None => Ok(parsed),
    }
}

/// The unit: `tombolo wireguard ARGUMENTS` (without the program's and the command's name). Returns when it ends.
#[must_use]
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let parsed = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(reason) => return refuse(&format!("tombolo wireguard: {reason}")),
    };
    let outcome = if parsed.detach { detach(&parsed) } else { work(&parsed) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => refuse(&reason),
    }
}

/// Standard output is the pipe to whoever waits for `ready`; standard error is the log.
fn refuse(reason: &str) -> ExitCode {
    drop(writeln!(io::stderr(), "{reason}"));
    drop(writeln!(io::stdout(), "{reason}"));
    ExitCode::FAILURE
}

/// Starts the unit proper and ends, which makes it a child of init.
fn detach(arguments: &Arguments) -> Result<(), String> {
    let fail = |error: io::Error| format!("cannot start the unit: {error}");
    let log = open_log(&arguments.log_file).map_err(fail)?;
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

fn open_log(path: &Path) -> io::Result<File> {
    make_directory(path)?;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn make_directory(file: &Path) -> io::Result<()> {
    let Some(directory) = file.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn work(arguments: &Arguments) -> Result<(), String> {
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
    let mut lock = lock_pid_file(&arguments.pid_file)?;
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(|error| format!("cannot write {}: {error}", arguments.pid_file.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let outcome = runtime.block_on(serve(arguments));
    if let Err(error) = fs::remove_file(&arguments.socket) {
        tracing::warn!(%error, "the control socket could not be removed");
    }
    if let Err(error) = fs::remove_file(&arguments.pid_file) {
        tracing::warn!(%error, "the pid file could not be removed");
    }
    // Held to the very end: whoever waits for the lock waits for the process.
    std::mem::forget(lock);
    outcome
}

/// Held until the unit ends: a second unit for the same device finds it taken.
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

async fn serve(arguments: &Arguments) -> Result<(), String> {
    let mut terminated =
        signal(SignalKind::terminate()).map_err(|error| format!("cannot await SIGTERM: {error}"))?;
    let mut interrupted =
        signal(SignalKind::interrupt()).map_err(|error| format!("cannot await SIGINT: {error}"))?;
    let listener = bind(&arguments.socket)
        .map_err(|error| format!("cannot listen on {}: {error}", arguments.socket.display()))?;
    let (client, server) = UapiServer::new();
    let mut device = DeviceBuilder::new()
        .with_default_udp()
        .udp_recv_buffer_size(UDP_BUFFER_BYTES)
        .udp_send_buffer_size(UDP_BUFFER_BYTES)
        .create_tun(&arguments.interface)
        .map_err(|error| format!("cannot make the TUN device {}: {error}", arguments.interface))?
        .with_uapi(server)
        .build()
        .await
        .map_err(|error| format!("cannot start WireGuard on {}: {error}", arguments.interface))?;
    tracing::info!(interface = %arguments.interface, "WireGuard in user space is ready");
    // Whoever started the unit may have gone away meanwhile.
    drop(writeln!(io::stdout(), "ready"));
    let outcome = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted.and_then(|(stream, _)| blocking(stream)) {
                Ok(stream) => client.clone().wrap_read_write(stream),
                Err(error) => tracing::warn!(%error, "a control connection failed"),
            },
            _ = terminated.recv() => break Ok(()),
            _ = interrupted.recv() => break Ok(()),
            () = device.wait() => break Err(format!("the device {} failed or was deleted", arguments.interface)),
        }
    };
    device.stop().await;
    outcome
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

/// The device's protocol code reads from a thread.
fn blocking(stream: tokio::net::UnixStream) -> io::Result<std::os::unix::net::UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    // A client that says nothing shall not keep its thread for ever.
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> impl Iterator<Item = OsString> {
        text.split_whitespace().map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn arguments_are_read_and_mistakes_named() {
        let good = "--interface tombolo_wg --socket /s --pid-file /p --log-file /l";
        let parsed = parse(arguments(good)).unwrap();
        assert_eq!((parsed.interface.as_str(), parsed.detach), ("tombolo_wg", false));
        assert!(parse(arguments(&format!("{good} --detach"))).unwrap().detach);
        for (wrong, named) in [("", "--interface"), ("--socket", "--socket"), ("--mystery 1", "--mystery")] {
            assert!(parse(arguments(wrong)).unwrap_err().contains(named), "{wrong}");
        }
    }

    #[test]
    fn only_one_unit_holds_a_pid_file_and_a_stale_one_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/wireguard.pid");
        let unit = Unit {
            program: "/nonexistent".into(),
            arguments: Vec::new(),
            socket: directory.path().join("socket"),
            pid_file: path.clone(),
            log_file: directory.path().join("log"),
        };
        assert_eq!(unit.pid(), None);
        let mut held = lock_pid_file(&path).unwrap();
        writeln!(held, "4242").unwrap();
        assert_eq!(unit.pid(), Some(4242));
        assert!(lock_pid_file(&path).unwrap_err().contains("another unit"));
        drop(held);
        assert_eq!(unit.pid(), None, "nobody holds it: that process is not the unit");
    }
}
