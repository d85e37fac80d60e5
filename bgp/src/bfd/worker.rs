//! The one thread that sends, receives and detects: no lock, no runtime, no wait but for sockets, commands and the next deadline.
//!
//! ```text
//!  sockets ──────────────► ┌────────────────┐ ──► sockets
//!  commands (+ eventfd) ─► │ thread "bfd"   │ ──► changes (channel) ──► hub ──► subscribers
//!                          └────────────────┘
//! ```

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::time::TimeSpec;
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use super::engine::{Engine, Output};
use super::packet::State;
use super::protocol::{Status, UnitStatus};
use super::session::{SessionConfig, SessionStatus};
use super::sockets::Sockets;

/// Priority in the real-time class: above ordinary real-time work, below the kernel's own threads (50) and watchdogs (99).
const PRIORITY: u8 = 40;
/// From here on a late wake-up is counted.
const LATE: Duration = Duration::from_millis(10);

/// What the control side asks for.
#[derive(Debug)]
pub(super) enum Command {
    Set { owner: String, sessions: Vec<SessionConfig>, partial: bool, reply: Sender<Result<(), String>> },
    Owners { keep: BTreeSet<String>, reply: Sender<()> },
    Status { reply: Sender<Status> },
    Stop { reply: Sender<()> },
}

/// A change, for the subscribers.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) previous: State,
    pub(super) status: Box<SessionStatus>,
}

/// What the thread owns.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) sockets: Sockets,
    pub(super) commands: Receiver<Command>,
    pub(super) wake: std::sync::Arc<EventFd>,
    pub(super) changes: Sender<Change>,
    pub(super) seed: u64,
}

#[derive(Debug)]
struct Running {
    engine: Engine,
    sockets: Sockets,
    changes: Sender<Change>,
    started: Instant,
    scheduling: Result<String, String>,
    memory: String,
    late_max: Duration,
    late_count: u64,
}

/// What there is to do after a wait.
struct Ready {
    /// For each receiving socket whether it has input.
    sockets: Vec<bool>,
    commands: bool,
}

impl Worker {
    /// Works until [`Command::Stop`], or until the control side is gone.
    pub(super) fn run(self) -> Result<(), String> {
        let Self { sockets, commands, wake, changes, seed } = self;
        let mut running = Running {
            engine: Engine::new(seed),
            sockets,
            changes,
            started: Instant::now(),
            scheduling: real_time(),
            memory: lock_memory(),
            late_max: Duration::ZERO,
            late_count: 0,
        };
        match &running.scheduling {
            Ok(class) => tracing::info!(%class, memory = %running.memory, "BFD runs in the real-time class."),
            Err(reason) => {
                tracing::warn!(%reason, "BFD runs like any process: detection may be late under load.")
            }
        }
        loop {
            let ready = running.wait(&wake)?;
            running.sockets.drain(&mut running.engine, &ready.sockets);
            if ready.commands && running.obey(&commands) {
                return Ok(());
            }
            running.engine.tick(Instant::now());
            running.carry_out();
        }
    }
}

impl Running {
    /// Waits for input or for the next deadline, and notes how late it woke. The kernel looks at the sockets once more after the deadline,
    /// so what arrived while this thread was not run is in the answer.
    fn wait(&mut self, wake: &EventFd) -> Result<Ready, String> {
        let deadline = self.engine.next_deadline();
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let mut fds: Vec<PollFd<'_>> = self
            .sockets
            .fds()
            .chain(std::iter::once(wake.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("cannot wait for packets: {errno}")),
        }
        let mut sockets: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let commands = sockets.pop().unwrap_or(true);
        if commands {
            // Non-blocking; what it counted does not matter, and that it is empty is no error.
            nix::unistd::read(wake, &mut [0; 8]).unwrap_or_default();
        }
        if let Some(late) = deadline.and_then(|at| Instant::now().checked_duration_since(at)) {
            self.late_max = self.late_max.max(late);
            self.late_count += u64::from(late > LATE);
        }
        Ok(Ready { sockets, commands })
    }

    /// Carries out what the control side asked for. True: end.
    fn obey(&mut self, commands: &Receiver<Command>) -> bool {
        // Whoever asked may have gone away; then nobody wants the answer.
        while let Ok(command) = commands.try_recv() {
            let now = Instant::now();
            match command {
                Command::Set { owner, sessions, partial, reply } => {
                    let done =
                        self.engine.set(now, &owner, sessions, partial).map_err(|error| error.to_string());
                    self.carry_out();
                    drop(reply.send(done));
                }
                Command::Owners { keep, reply } => {
                    self.engine.keep_owners(now, &keep);
                    self.carry_out();
                    reply.send(()).unwrap_or_default();
                }
                Command::Status { reply } => drop(reply.send(self.status(now))),
                Command::Stop { reply } => {
                    self.engine.farewell(now);
                    self.carry_out();
                    reply.send(()).unwrap_or_default();
                    return true;
                }
            }
        }
        false
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.engine.next_output() {
            match output {
                Output::Send { discriminator, frame } => {
                    self.sockets.send(Instant::now(), &mut self.engine, discriminator, &frame);
                }
                Output::Gone { discriminator } => self.sockets.close(discriminator),
                // The hub ends only with the process.
                Output::Changed { previous, status } => {
                    drop(self.changes.send(Change { previous, status }));
                }
            }
        }
    }

    fn status(&self, now: Instant) -> Status {
        let elapsed = now.saturating_duration_since(self.started);
        let unit = UnitStatus {
            pid: std::process::id(),
            uptime_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            scheduling: match &self.scheduling {
                Ok(class) => class.clone(),
                Err(reason) => format!("normal: {reason}"),
            },
            real_time: self.scheduling.is_ok(),
            memory: self.memory.clone(),
            late_max_us: u64::try_from(self.late_max.as_micros()).unwrap_or(u64::MAX),
            late_count: self.late_count,
            discards: self.engine.discards,
            unsent: self.sockets.unsent,
            echoed: self.sockets.echoed,
            problems: self.sockets.problems.clone(),
        };
        Status { unit, sessions: self.engine.statuses(now) }
    }
}

/// Puts this thread into the real-time class; why not, if it may not.
fn real_time() -> Result<String, String> {
    let priority = ThreadPriorityValue::try_from(PRIORITY)?;
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(priority), policy)
        .map(|()| format!("fifo {PRIORITY}"))
        .map_err(|error| {
            format!("SCHED_FIFO refused ({error:?}); run as root, with CAP_SYS_NICE or a LimitRTPRIO=")
        })
}

/// Keeps the process in memory: a page read from disk takes longer than a detection time.
fn lock_memory() -> String {
    match mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        Ok(()) => "locked".to_owned(),
        Err(errno) => format!("not locked: {errno}; raise LimitMEMLOCK= or give CAP_IPC_LOCK"),
    }
}
