//! Child processes of a PID 1: started, awaited, and everything else that lands there reaped.
//!
//! Both the supervisor and the nodes' init are PID 1 of a namespace, so orphans become their children. A single
//! reaper therefore collects every exit, and hands those of known children to whoever waits. tokio's own process
//! type must not be used beside it: its exits would be collected here.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// Whether it exited with status 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
        }
    }
}

/// Collects the exits of all children of this process.
#[derive(Clone, Debug)]
pub struct Reaper {
    waiting: Arc<Mutex<BTreeMap<i32, oneshot::Sender<Exit>>>>,
}

/// A child that was started through the [`Reaper`].
#[derive(Debug)]
pub struct Running {
    /// Its pid in this process' PID namespace.
    pub pid: Pid,
    exit: oneshot::Receiver<Exit>,
    /// The write end of its standard input, if piped.
    pub stdin: Option<ChildStdin>,
    /// The read end of its standard output, if piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of its standard error, if piped.
    pub stderr: Option<ChildStderr>,
}

/// What a short command wrote and how it ended.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output, bounded.
    pub stdout: Vec<u8>,
    /// Its standard error, bounded.
    pub stderr: Vec<u8>,
}

/// The most that is kept of one stream of a short command, in bytes.
const OUTPUT_LIMIT: u64 = 1 << 20;

impl Reaper {
    /// Starts collecting. Must be called once, within a tokio runtime.
    ///
    /// # Errors
    /// SIGCHLD cannot be listened to.
    pub fn start() -> io::Result<Self> {
        let reaper = Self { waiting: Arc::default() };
        let mut children = signal(SignalKind::child())?;
        let collector = reaper.clone();
        tokio::spawn(async move {
            loop {
                collector.collect();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a child.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub fn spawn(&self, command: &mut Command) -> io::Result<Running> {
        let mut child = None;
        let (pid, exit) = self.register(|| {
            let started = command.spawn()?;
            let pid = i32::try_from(started.id()).map_err(io::Error::other)?;
            child = Some(started);
            Ok(Pid::from_raw(pid))
        })?;
        let (stdin, stdout, stderr) =
            child.map_or((None, None, None), |child| (child.stdin, child.stdout, child.stderr));
        Ok(Running { pid, exit, stdin, stdout, stderr })
    }

    /// Registers a child that `start` makes by other means; its exit cannot be missed.
    ///
    /// # Errors
    /// What `start` answers.
    pub fn register(
        &self,
        start: impl FnOnce() -> io::Result<Pid>,
    ) -> io::Result<(Pid, oneshot::Receiver<Exit>)> {
        // The lock is held across the start: a child that ends at once is collected only after it is known.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = start()?;
        let (sender, receiver) = oneshot::channel();
        waiting.insert(pid.as_raw(), sender);
        Ok((pid, receiver))
    }

    /// Runs a short command to its end and keeps what it wrote.
    ///
    /// # Errors
    /// It cannot be started, or its pipes cannot be read.
    pub async fn output(&self, command: &mut Command, stdin: &[u8]) -> io::Result<Output> {
        use std::process::Stdio;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = self.spawn(command)?;
        let input = running.stdin.take();
        let feed = async move {
            if let Some(input) = input {
                let mut pipe = pipe::Sender::from_owned_fd(OwnedFd::from(input))?;
                // A program that does not read its input is no failure.
                if let Err(error) = tokio::io::AsyncWriteExt::write_all(&mut pipe, stdin).await {
                    tracing::debug!(%error, "input of a command not taken");
                }
            }
            Ok(())
        };
        let stdout = read_pipe(running.stdout.take().map(OwnedFd::from));
        let stderr = read_pipe(running.stderr.take().map(OwnedFd::from));
        let ((), stdout, stderr) = tokio::try_join!(feed, stdout, stderr)?;
        let exit = running.wait().await;
        Ok(Output { exit, stdout, stderr })
    }

    fn collect(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(number_of(signal))),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "waiting for children failed");
                    return;
                }
            };
            if let Some(sender) = waiting.remove(&pid.as_raw()) {
                // Nobody waits any more: the exit is of no interest.
                sender.send(exit).ok();
            }
        }
    }
}

async fn read_pipe(fd: Option<OwnedFd>) -> io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut bytes = Vec::new();
    if let Some(fd) = fd {
        pipe::Receiver::from_owned_fd(fd)?.take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The number of a signal.
const fn number_of(signal: Signal) -> i32 {
    // Signal is a C-like enum over the numbers of signal(7).
    signal as i32
}

impl Running {
    /// Waits until the child has ended.
    pub async fn wait(&mut self) -> Exit {
        // The sender is dropped only with the whole reaper.
        (&mut self.exit).await.unwrap_or(Exit::Signal(number_of(Signal::SIGKILL)))
    }

    /// Sends a signal to the child alone. A child that has ended already is no failure.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = kill(self.pid, signal) {
            tracing::debug!(pid = %self.pid, %error, "signal not delivered");
        }
    }

    /// Sends a signal to the child's process group.
    pub fn signal_group(&self, signal: Signal) {
        if let Err(error) = killpg(self.pid, signal) {
            tracing::debug!(pid = %self.pid, %error, "signal to the group not delivered");
        }
    }
}
