//! The unit from outside: starting it or finding it again, telling it what sessions are wanted, hearing of changes.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::packet::State;
use super::protocol::{LINE_MAX, Request, Response, Status, line, parse};
use super::session::{SessionConfig, SessionStatus};
use super::unit::is_locked;

/// How long a unit may take to say that it is ready: on a busy machine it is paged in first.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a unit may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one look at the pid file's lock waits before the next while a unit ends.
const STOP_POLL: Duration = Duration::from_millis(20);
/// A subscription says something at least every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Waits between attempts to have a unit.
const RETRY: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// What can go wrong with the unit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It cannot be started or ended.
    #[error("cannot start or end the BFD unit {program}: {reason}; its log is {log}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        reason: String,
        /// Where it logs.
        log: String,
    },
    /// No unit, or no right to speak to it.
    #[error("cannot reach the BFD unit at {socket}: {error}; is `tombolo bfd` running, and are you root?")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It went away in the middle, or says what cannot be understood.
    #[error("the BFD unit at {socket} broke off: {reason}; look at its log")]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// It refused.
    #[error("the BFD unit refused: {0}")]
    Refused(String),
}

/// How the unit is started and where it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The program and the arguments before the unit's own: `/proc/self/exe bfd`.
    pub program: PathBuf,
    /// See `program`.
    pub arguments: Vec<String>,
    /// The control socket.
    pub socket: PathBuf,
    /// The pid file, locked while the unit lives.
    pub pid_file: PathBuf,
    /// Where the unit logs.
    pub log_file: PathBuf,
}

impl Unit {
    /// The unit of this very program (its command `bfd`), with its files in a directory.
    #[must_use]
    pub fn of_this_program(directory: &Path) -> Self {
        Self {
            program: "/proc/self/exe".into(),
            arguments: vec!["bfd".into()],
            socket: directory.join("bfd.sock"),
            pid_file: directory.join("bfd.pid"),
            log_file: directory.join("bfd.log"),
        }
    }

    /// Its client.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Its process id, if it lives.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.holder().map(|(_, pid)| pid)
    }

    fn holder(&self) -> Option<(File, i32)> {
        let mut file = File::open(&self.pid_file).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let pid = text.trim().parse().ok()?;
        // The file may be of a unit that was killed, its number another process's by now: the lock tells.
        is_locked(&file).then_some((file, pid))
    }

    fn fail(&self, reason: String) -> ClientError {
        ClientError::Start {
            program: self.program.display().to_string(),
            reason,
            log: self.log_file.display().to_string(),
        }
    }

    /// Starts the unit, detached, unless one answers already; returns when it is ready. True if it was started.
    ///
    /// # Errors
    /// [`ClientError::Start`].
    pub async fn ensure_running(&self) -> Result<bool, ClientError> {
        if self.client().status().await.is_ok() {
            return Ok(false);
        }
        // One that holds the lock and does not answer is beyond help.
        self.stop().await?;
        let fail = |error: io::Error| self.fail(error.to_string());
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&self.arguments);
        for (name, path) in
            [("--socket", &self.socket), ("--pid-file", &self.pid_file), ("--log-file", &self.log_file)]
        {
            command.arg(name).arg(path);
        }
        command.arg("--detach").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut starter = command.spawn().map_err(fail)?;
        let output = starter.stdout.take().ok_or_else(|| self.fail("it has no standard output".into()))?;
        let mut said = String::new();
        timeout(START_TIMEOUT, BufReader::new(output).read_line(&mut said))
            .await
            .map_err(|_| self.fail("it is not ready in time".into()))?
            .map_err(fail)?;
        // The starter ends at once by itself; waiting leaves no zombie.
        let ended = starter.wait().await.map_err(fail)?;
        if said.trim() == "ready" {
            return Ok(true);
        }
        Err(self.fail(format!("it said `{}` rather than `ready` ({ended})", said.trim())))
    }

    /// Ends the unit, if one lives, and waits until it is gone; its sessions say AdminDown.
    ///
    /// # Errors
    /// [`ClientError::Start`] when it cannot be ended.
    pub async fn stop(&self) -> Result<(), ClientError> {
        let Some((file, pid)) = self.holder() else { return Ok(()) };
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            match kill(Pid::from_raw(pid), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(self.fail(format!("process {pid} cannot be ended: {errno}"))),
            }
            // The end of a process that is no child cannot be awaited together with a deadline; its lock, which the
            // kernel takes away with it, is looked at instead.
            let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
            while tokio::time::Instant::now() < deadline {
                if !is_locked(&file) {
                    return Ok(());
                }
                sleep(STOP_POLL).await;
            }
        }
        Err(self.fail(format!("process {pid} does not end even when killed")))
    }
}

/// The sessions one owner wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The sessions.
    pub sessions: Vec<SessionConfig>,
    /// There are no others. Until an agent that has just started knows that, sessions of its earlier life are left alone.
    pub complete: bool,
}

/// Speaks to a unit; every call is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Of the unit with this control socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The whole list of sessions that `owner` wants. Repeating it changes nothing.
    ///
    /// # Errors
    /// No unit, or a session that cannot be; then nothing is changed.
    pub async fn set(&self, owner: &str, sessions: &[SessionConfig]) -> Result<(), ClientError> {
        self.list(owner, Wanted { sessions: sessions.to_vec(), complete: true }).await
    }

    async fn list(&self, owner: &str, wanted: Wanted) -> Result<(), ClientError> {
        let Wanted { sessions, complete } = wanted;
        self.done(&Request::Set { owner: owner.to_owned(), sessions, partial: !complete }).await
    }

    /// The owners there are; sessions of others, left by an earlier life, end.
    ///
    /// # Errors
    /// No unit.
    pub async fn keep_owners(&self, keep: &[String]) -> Result<(), ClientError> {
        self.done(&Request::Owners { keep: keep.to_vec() }).await
    }

    /// Unit and sessions.
    ///
    /// # Errors
    /// No unit.
    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.open(&Request::Status).await?.read(ANSWER_TIMEOUT).await? {
            Response::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Unit and sessions, and from then on every change.
    ///
    /// # Errors
    /// No unit.
    pub async fn subscribe(&self) -> Result<(Status, Subscription), ClientError> {
        let mut connection = self.open(&Request::Subscribe).await?;
        match connection.read(ANSWER_TIMEOUT).await? {
            Response::Status(status) => Ok((*status, Subscription { connection })),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn done(&self, request: &Request) -> Result<(), ClientError> {
        match self.open(request).await?.read(ANSWER_TIMEOUT).await? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, response: &Response) -> ClientError {
        let reason = format!("it answered {response:?}");
        ClientError::Broken { socket: self.socket.clone(), reason }
    }

    async fn open(&self, request: &Request) -> Result<Connection, ClientError> {
        let fail = |error| ClientError::Connect { socket: self.socket.clone(), error };
        let mut stream = UnixStream::connect(&self.socket).await.map_err(fail)?;
        stream.write_all(line(request).as_bytes()).await.map_err(fail)?;
        Ok(Connection { reader: BufReader::new(stream), socket: self.socket.clone(), text: Vec::new() })
    }
}

#[derive(Debug)]
struct Connection {
    reader: BufReader<UnixStream>,
    socket: PathBuf,
    /// What has come of a line so far: kept here so that a read may be given up and taken up again.
    text: Vec<u8>,
}

impl Connection {
    async fn read(&mut self, patience: Duration) -> Result<Response, ClientError> {
        let broken = |reason: String| ClientError::Broken { socket: self.socket.clone(), reason };
        let most = u64::try_from(LINE_MAX.saturating_sub(self.text.len())).unwrap_or_default();
        let mut limited = (&mut self.reader).take(most);
        let read = timeout(patience, limited.read_until(b'\n', &mut self.text)).await;
        let count =
            read.map_err(|_| broken("it says nothing".into()))?.map_err(|error| broken(error.to_string()))?;
        let text = std::mem::take(&mut self.text);
        if count == 0 || !text.ends_with(b"\n") {
            return Err(broken("it closed the connection".into()));
        }
        let text = String::from_utf8(text).map_err(|error| broken(error.to_string()))?;
        match parse(text.trim()).map_err(|reason| broken(format!("its answer {reason}")))? {
            Response::Refused { reason } => Err(ClientError::Refused(reason)),
            response => Ok(response),
        }
    }
}

/// Changes of a unit's sessions, in order.
#[derive(Debug)]
pub struct Subscription {
    connection: Connection,
}

impl Subscription {
    /// The next change: the state before, and the session now.
    ///
    /// # Errors
    /// The unit has gone away.
    pub async fn next(&mut self) -> Result<(State, SessionStatus), ClientError> {
        loop {
            if let Response::Changed { previous, session } = self.connection.read(SILENCE_MAX).await? {
                return Ok((previous, *session));
            }
        }
    }
}

/// Keeps a unit's list as `wanted` says, starting the unit when there is something to keep and none runs, and tells `heard` the state of
/// each session of it: all when the unit is found, then each change. Ends when either side is dropped; the unit and its sessions stay.
pub async fn follow(
    unit: Unit,
    owner: String,
    mut wanted: watch::Receiver<Wanted>,
    heard: mpsc::Sender<SessionStatus>,
) {
    let mut failures = 0;
    let mut ever = false;
    loop {
        let none = wanted.borrow_and_update().sessions.is_empty();
        // An earlier life may have left sessions in a unit that still runs; without one there is nothing to do.
        if none && !ever && unit.pid().is_none() {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }
        ever = true;
        match attend(&unit, &owner, &mut wanted, &heard).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "BFD is not steered for now; trying again."),
        }
        let wait = RETRY.get(failures).or(RETRY.last()).copied().unwrap_or_default();
        failures = (failures + 1) % (RETRY.len() + 60);
        tokio::select! {
            () = sleep(wait) => {}
            () = heard.closed() => return,
        }
    }
}

/// One life of the unit, as far as it is followed. `Ok`: nobody listens any more.
async fn attend(
    unit: &Unit,
    owner: &str,
    wanted: &mut watch::Receiver<Wanted>,
    heard: &mpsc::Sender<SessionStatus>,
) -> Result<(), ClientError> {
    if unit.ensure_running().await? {
        tracing::info!(socket = %unit.socket.display(), "The BFD unit was started.");
    }
    let client = unit.client();
    let list = wanted.borrow_and_update().clone();
    client.list(owner, list).await?;
    let (status, mut changes) = client.subscribe().await?;
    for session in status.sessions {
        if heard.send(session).await.is_err() {
            return Ok(());
        }
    }
    loop {
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let list = wanted.borrow_and_update().clone();
                client.list(owner, list).await?;
            }
            change = changes.next() => {
                let (_, session) = change?;
                if heard.send(session).await.is_err() {
                    return Ok(());
                }
            }
            () = heard.closed() => return Ok(()),
        }
    }
}
