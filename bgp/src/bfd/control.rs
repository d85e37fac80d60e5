//! The control side of the unit, on ordinary threads: connections, requests, and subscribers to changes.
//!
//! A subscriber that does not read is let go (it subscribes again and finds the whole state); the thread that detects never waits for one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::protocol::{LINE_MAX, Request, Response, Status, line, parse};
use super::worker::{Change, Command};

/// Changes a subscriber may be behind.
const BEHIND_MAX: usize = 4096;
/// So often a silent subscription shows that it lives; a client that went away is found by it.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A client that takes nothing for this long is let go.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// Stack of a connection's thread: the memory is locked, so it is not given away.
const STACK: usize = 256 * 1024;

/// Hands commands to the worker.
#[derive(Clone, Debug)]
pub(super) struct Steer {
    pub(super) commands: Sender<Command>,
    pub(super) wake: Arc<EventFd>,
}

impl Steer {
    /// Asks and waits for the answer; the worker answers between two packets.
    pub(super) fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, String> {
        let (reply, answer) = channel();
        let gone = || "the unit is ending".to_owned();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        self.wake.write(1).map_err(|errno| format!("cannot wake the unit: {errno}"))?;
        answer.recv().map_err(|_| gone())
    }
}

type Subscribers = Arc<Mutex<Vec<SyncSender<Change>>>>;

/// Serves the socket until the process ends.
pub(super) fn serve(listener: UnixListener, steer: Steer, changes: Receiver<Change>) -> io::Result<()> {
    let subscribers = Subscribers::default();
    let hub = Arc::clone(&subscribers);
    std::thread::Builder::new()
        .name("bfd-hub".into())
        .stack_size(STACK)
        .spawn(move || fan_out(&changes, &hub))?;
    std::thread::Builder::new()
        .name("bfd-control".into())
        .stack_size(STACK)
        .spawn(move || accept(&listener, &steer, &subscribers))?;
    Ok(())
}

fn fan_out(changes: &Receiver<Change>, subscribers: &Subscribers) {
    while let Ok(change) = changes.recv() {
        let status = &change.status;
        tracing::info!(
            peer = %status.key.peer, state = %status.state, previous = %change.previous, reason = %status.reason,
            "BFD session changed."
        );
        let mut subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.try_send(change.clone()).is_ok());
    }
}

fn accept(listener: &UnixListener, steer: &Steer, subscribers: &Subscribers) {
    let connected = Arc::new(());
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "A control connection failed.");
                // Out of descriptors: a pause lets others end. Nothing else can be awaited.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if Arc::strong_count(&connected) > CONNECTIONS_MAX {
            tracing::warn!("Too many control connections; the new one is closed.");
            continue;
        }
        let (steer, subscribers, held) = (steer.clone(), Arc::clone(subscribers), Arc::clone(&connected));
        let spawned =
            std::thread::Builder::new().name("bfd-client".into()).stack_size(STACK).spawn(move || {
                if let Err(error) = converse(&stream, &steer, &subscribers) {
                    tracing::debug!(%error, "A control connection ended.");
                }
                drop(held);
            });
        if let Err(error) = spawned {
            tracing::warn!(%error, "No thread for a control connection.");
        }
    }
}

fn converse(stream: &UnixStream, steer: &Steer, subscribers: &Subscribers) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_MAX))?;
    let mut reader = BufReader::new(stream);
    let mut text = String::new();
    loop {
        text.clear();
        let most = u64::try_from(LINE_MAX).unwrap_or(u64::MAX);
        if reader.by_ref().take(most).read_line(&mut text)? == 0 {
            return Ok(());
        }
        if !text.ends_with('\n') {
            let reason = format!("the request has no end within {LINE_MAX} bytes");
            return say(stream, &Response::Refused { reason });
        }
        match parse::<Request>(text.trim()) {
            Err(reason) => say(stream, &Response::Refused { reason: format!("the request {reason}") })?,
            Ok(Request::Subscribe) => return subscribe(stream, steer, subscribers),
            Ok(request) => say(stream, &answer(request, steer))?,
        }
    }
}

fn answer(request: Request, steer: &Steer) -> Response {
    let answer = match request {
        Request::Set { owner, sessions, partial } => steer
            .ask(|reply| Command::Set { owner, sessions, partial, reply })
            .and_then(|done| done.map(|()| Response::Done)),
        Request::Owners { keep } => {
            let keep = keep.into_iter().collect();
            steer.ask(|reply| Command::Owners { keep, reply }).map(|()| Response::Done)
        }
        Request::Status | Request::Subscribe => {
            status(steer).map(|status| Response::Status(Box::new(status)))
        }
    };
    answer.unwrap_or_else(|reason| Response::Refused { reason })
}

fn status(steer: &Steer) -> Result<Status, String> {
    steer.ask(|reply| Command::Status { reply })
}

/// Entered before the state is read: a change in between is told twice rather than never.
fn subscribe(stream: &UnixStream, steer: &Steer, subscribers: &Subscribers) -> io::Result<()> {
    let (sender, changes) = sync_channel(BEHIND_MAX);
    subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    match status(steer) {
        Ok(status) => say(stream, &Response::Status(Box::new(status)))?,
        Err(reason) => return say(stream, &Response::Refused { reason }),
    }
    loop {
        match changes.recv_timeout(ALIVE_EVERY) {
            Ok(Change { previous, status }) => {
                say(stream, &Response::Changed { previous, session: status })?;
            }
            Err(RecvTimeoutError::Timeout) => say(stream, &Response::Alive)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn say(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    stream.write_all(line(response).as_bytes())
}
