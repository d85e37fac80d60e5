//! Follows the agent: takes in what it tells, and asks again when it is gone.

use crate::client::{self, ClientError};
use crate::line::{Line, MAX_LINE_BYTES, PATH};
use crate::server::Server;
use http_body_util::BodyExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The agent says something at least every [`HEARTBEAT`]; one that is silent for longer is asked anew.
const SILENCE: Duration = Duration::from_secs(30);
/// How often an agent that has nothing to tell says so.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Waits between attempts.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the conversation with the agent is like.
#[derive(Clone, Debug, Default)]
pub struct Talk {
    /// Since when one speaks.
    pub connected: Option<Instant>,
    /// When something was heard last.
    pub heard: Option<Instant>,
    /// Why nobody speaks.
    pub trouble: Option<String>,
}

/// The conversation, seen by others.
#[derive(Clone, Debug, Default)]
pub struct Talking(Arc<Mutex<Talk>>);

impl Talking {
    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Talk {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, change: impl FnOnce(&mut Talk)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Follows until cancelled; `changed` grows with everything taken in.
pub async fn follow(
    server: Arc<Server>,
    socket: PathBuf,
    talking: Talking,
    changed: watch::Sender<u64>,
    cancel: CancellationToken,
) {
    let mut wait = WAITS.0;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = listen(&server, &socket, &talking, &changed) => ended,
        };
        server.metrics.agent_connected.set(0);
        let why = match ended {
            Ok(()) => "the agent ended the conversation".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(why, "no agent; what is known stays");
        talking.set(|talk| (talk.connected, talk.trouble) = (None, Some(why)));
        if started.elapsed() > WAITS.1 {
            wait = WAITS.0;
        }
        let spread = wait.mul_f64(rand::random::<f64>() / 2.0);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait.saturating_add(spread)) => {}
        }
        wait = wait.saturating_mul(2).min(WAITS.1);
    }
}

async fn listen(
    server: &Server,
    socket: &std::path::Path,
    talking: &Talking,
    changed: &watch::Sender<u64>,
) -> Result<(), ClientError> {
    let silent = || ClientError::Silent(socket.to_owned());
    let mut body = timeout(SILENCE, client::open(socket, PATH)).await.map_err(|_| silent())??;
    server.zones_mut().begin();
    server.metrics.agent_connections.inc();
    server.metrics.agent_connected.set(1);
    talking.set(|talk| (talk.connected, talk.trouble) = (Some(Instant::now()), None));
    let mut reader = Reader::default();
    loop {
        let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(|_| silent())? else { return Ok(()) };
        let frame = frame.map_err(|error| ClientError::Broken(socket.to_owned(), error))?;
        let Some(bytes) = frame.data_ref() else { continue };
        talking.set(|talk| talk.heard = Some(Instant::now()));
        let batch = reader.take(bytes);
        server.metrics.lines_refused.inc_by(std::mem::take(&mut reader.refused));
        if !batch.is_empty() && server.zones_mut().take(batch) {
            changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Bytes to whole batches: lines up to one that says how much they are. A line that cannot be used is told and left out: it
/// would come again in every conversation, and costs its own name only.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    lines: Vec<Line>,
    /// Bytes that were passed over of a line that is too long.
    passed: usize,
    /// Lines that were left out.
    refused: u64,
}

/// Lines that are held until their batch is whole; a first list that is longer is taken in pieces.
const MAX_HELD: usize = 10_000;
/// How much of a line is shown: it begins with the name it is about.
const SHOWN_BYTES: usize = 200;

impl Reader {
    /// Takes bytes in; what is whole.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut whole = 0;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.bytes.len() + part.len() > MAX_LINE_BYTES {
                // The beginning is kept, for it has the name.
                self.passed += part.len();
            } else {
                self.bytes.extend_from_slice(part);
            }
            if !part.ends_with(b"\n") {
                continue;
            }
            if let Some(line) = self.line() {
                let ends = matches!(line, Line::State { .. });
                self.lines.push(line);
                if ends || self.lines.len() - whole > MAX_HELD {
                    whole = self.lines.len();
                }
            }
        }
        self.lines.drain(..whole).collect()
    }

    /// The line that has just ended.
    fn line(&mut self) -> Option<Line> {
        let (bytes, passed) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.passed));
        let line = match passed {
            0 => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
            _ => Err(format!("{} bytes, more than {MAX_LINE_BYTES}", bytes.len() + passed)),
        };
        line.inspect_err(|why| {
            self.refused += 1;
            let start = String::from_utf8_lossy(bytes.get(..SHOWN_BYTES).unwrap_or(&bytes));
            tracing::warn!(why, %start, "a line of the agent's is left out, and with it its name; is the unit of another version than the agent?");
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_whole_however_the_bytes_come() {
        let space = |name: &str| Line::Namespace { name: name.into(), exists: true };
        let state = Line::State { cluster: true, clusterset: false };
        let lines = [space("a"), space("b"), state.clone(), space("c"), state.clone()];
        let mut text = Vec::new();
        for line in &lines {
            text.extend(serde_json::to_vec(line).unwrap());
            text.push(b'\n');
        }
        for step in [1, 7, text.len()] {
            let mut reader = Reader::default();
            let batches: Vec<Vec<Line>> = text.chunks(step).map(|part| reader.take(part)).collect();
            assert!(
                batches.iter().all(|batch| batch.is_empty() || batch.last() == Some(&state)),
                "{batches:?}"
            );
            assert_eq!(batches.concat(), lines);
        }
    }

    /// What one line is costs the others nothing.
    #[test]
    fn a_line_that_is_too_long_or_none_is_left_out() {
        let state = Line::State { cluster: true, clusterset: true };
        let mut text = b"{}\n".to_vec();
        let long = Line::Namespace { name: "x".repeat(MAX_LINE_BYTES).into(), exists: true };
        for line in [&long, &state, &long, &state] {
            text.extend(serde_json::to_vec(line).unwrap());
            text.push(b'\n');
        }
        for step in [65_536, text.len()] {
            let mut reader = Reader::default();
            let lines: Vec<Line> = text.chunks(step).flat_map(|part| reader.take(part)).collect();
            assert_eq!((lines, reader.refused), (vec![state.clone(), state.clone()], 3));
            assert!(reader.bytes.capacity() <= MAX_LINE_BYTES);
        }
    }
}
