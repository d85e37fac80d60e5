//! One TCP connection as two loops: bytes in become frames, queued bytes go out.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::Input;
use crate::fsm::ConnectionId;
use crate::wire::Frame;

/// How long we wait for the peer's FIN after ours, so that our last NOTIFICATION is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes read at once.
const READ_SIZE: usize = 64 * 1024;

/// Runs a connection until either side ends it. The speaker ends it by dropping the sender of `queue`.
pub(super) async fn run(
    id: ConnectionId,
    stream: TcpStream,
    message_max: usize,
    queue: mpsc::UnboundedReceiver<Bytes>,
    inputs: mpsc::Sender<Input>,
) {
    let (mut reading, mut writing) = stream.into_split();
    let reason = {
        let reader = read(id, &mut reading, message_max, &inputs);
        tokio::pin!(reader);
        tokio::select! {
            reason = &mut reader => Some(reason),
            done = write(id, &mut writing, queue, &inputs) => match done {
                Ok(()) => None,
                Err(error) => Some(error.to_string()),
            },
        }
    };
    match reason {
        Some(reason) => send(&inputs, Input::Lost { id, reason }).await,
        None => drain(&mut reading).await,
    }
}

/// Delivers to the speaker; if it is gone, so is the reason to report.
async fn send(inputs: &mpsc::Sender<Input>, input: Input) {
    if inputs.send(input).await.is_err() {
        tracing::debug!("The speaker has ended.");
    }
}

/// Reads frames of at most `message_max` bytes until the stream ends; says why it did.
async fn read(
    id: ConnectionId,
    stream: &mut OwnedReadHalf,
    message_max: usize,
    inputs: &mpsc::Sender<Input>,
) -> String {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_SIZE);
        match stream.read_buf(&mut buffer).await {
            Ok(0) => return "closed by the peer".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        let mut frames = Vec::new();
        let broken = loop {
            match Frame::next_within(&mut buffer, message_max) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break None,
                Err(notification) => break Some(notification),
            }
        };
        if !frames.is_empty() {
            send(inputs, Input::Frames { id, frames }).await;
        }
        if let Some(notification) = broken {
            send(inputs, Input::Unframed { id, notification }).await;
            // The stream has lost its place: nothing after this can be read. The speaker now ends the connection.
            return std::future::pending().await;
        }
    }
}

/// Writes what is queued until the queue ends, then says that nothing more will come.
async fn write(
    id: ConnectionId,
    stream: &mut OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Bytes>,
    inputs: &mpsc::Sender<Input>,
) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        let mut left = &bytes[..];
        while !left.is_empty() {
            let written = stream.write(left).await?;
            left = left.get(written..).unwrap_or_default();
            send(inputs, Input::Drained { id, bytes: written }).await;
        }
    }
    stream.shutdown().await
}

async fn drain(stream: &mut OwnedReadHalf) {
    let mut sink = vec![0u8; 4096];
    let until_end = async { while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {} };
    if tokio::time::timeout(LINGER, until_end).await.is_err() {
        tracing::debug!("The peer did not close its side in time.");
    }
}
