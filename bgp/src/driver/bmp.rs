//! Connections to BMP collectors: each a task that connects, sends what it is given, and connects again.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Input;
use crate::bmp::BmpStation;
use crate::core::StationId;

/// Longest an attempt to connect may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// A collector that takes no byte for this long is as good as gone.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// News of a collector's connection.
#[derive(Debug)]
pub(super) enum StationNews {
    /// It is connected; what it is to be told goes into the queue, whose end closes it.
    Up(mpsc::UnboundedSender<Bytes>),
    /// It has taken bytes.
    Drained(usize),
    /// Statistics are due.
    Statistics,
    /// The connection is gone.
    Down,
}

/// Keeps a connection to a collector until cancelled.
pub(super) async fn run(
    id: StationId,
    settings: BmpStation,
    inputs: mpsc::Sender<Input>,
    cancel: CancellationToken,
) {
    let mut wait = settings.retry_first;
    while !cancel.is_cancelled() {
        let attempt = tokio::time::timeout(ATTEMPT_MAX, TcpStream::connect(settings.address));
        let connected = tokio::select! {
            () = cancel.cancelled() => return,
            result = attempt => result.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())),
        };
        match connected {
            Ok(stream) => {
                tracing::info!(station = %settings.address, "Connected to the BMP collector.");
                wait = settings.retry_first;
                let reason = talk(id, stream, &settings, &inputs).await;
                tracing::warn!(station = %settings.address, reason, "The connection to the BMP collector ended.");
                if inputs.send(Input::Station { id, news: StationNews::Down }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let again_secs = wait.as_secs();
                tracing::info!(station = %settings.address, %error, again_secs, "Cannot connect to the BMP collector.");
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = wait.saturating_mul(2).min(settings.retry_longest);
    }
}

/// Sends until either side ends it; says why it did.
async fn talk(
    id: StationId,
    mut stream: TcpStream,
    settings: &BmpStation,
    inputs: &mpsc::Sender<Input>,
) -> String {
    // Unbounded as a channel, bounded by the core's account of unsent bytes, as with sessions.
    let (queue, mut outbox) = mpsc::unbounded_channel();
    let tell = |news| inputs.send(Input::Station { id, news });
    if tell(StationNews::Up(queue)).await.is_err() {
        return "the speaker has ended".to_owned();
    }
    let every = settings.statistics_every;
    let mut ticks = tokio::time::interval(if every.is_zero() { Duration::from_secs(3600) } else { every });
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut reading, mut writing) = stream.split();
    // A collector has nothing to say (RFC 7854 section 3.2); reading tells when it goes.
    let mut sink = [0u8; 256];
    loop {
        tokio::select! {
            bytes = outbox.recv() => {
                let Some(bytes) = bytes else {
                    drop(writing.shutdown().await);
                    return "closed by this speaker".to_owned();
                };
                match tokio::time::timeout(STUCK_AFTER, writing.write_all(&bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return "it takes no data".to_owned(),
                }
                if tell(StationNews::Drained(bytes.len())).await.is_err() {
                    return "the speaker has ended".to_owned();
                }
            }
            read = reading.read(&mut sink) => match read {
                Ok(0) => return "closed by the collector".to_owned(),
                Ok(_) => {}
                Err(error) => return error.to_string(),
            },
            _ = ticks.tick(), if !every.is_zero() => {
                if tell(StationNews::Statistics).await.is_err() {
                    return "the speaker has ended".to_owned();
                }
            }
        }
    }
}
