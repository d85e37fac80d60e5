//! The agent's local API from the caller's side.

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No agent, or no right to speak to it.
    #[error(
        "cannot reach the agent at {socket}: {error}; is `tombolo agent` running, are you root, and is --socket right?"
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It went away in the middle.
    #[error("the agent at {0} broke off: {1}; look at its log")]
    Broken(PathBuf, hyper::Error),
    /// It does not know what was asked.
    #[error(
        "{socket} answers {status} to {path}; is it the socket of a program that has this, and is that of the command line's version?"
    )]
    Unanswered {
        /// The socket.
        socket: PathBuf,
        /// What was asked for.
        path: String,
        /// The answer.
        status: StatusCode,
    },
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// Its answer is of another version.
    #[error("the agent's answer cannot be read: {0}; agent and command line should be of one version")]
    Answer(#[from] serde_json::Error),
}

/// Asks for `path`; the body streams in.
pub(crate) async fn open(socket: &Path, path: &str) -> Result<Incoming, ClientError> {
    call(socket, Method::GET, path, Bytes::new()).await
}

async fn call(socket: &Path, method: Method, path: &str, body: Bytes) -> Result<Incoming, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| ClientError::Connect { socket: socket.to_owned(), error })?;
    let broken = |error| ClientError::Broken(socket.to_owned(), error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "tombolo")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| ClientError::Refused(format!("{path}: {error}")))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = response.into_body();
    if status.is_success() {
        return Ok(body);
    }
    let text = body.collect().await.map_err(broken)?.to_bytes();
    if text.is_empty() {
        return Err(ClientError::Unanswered { socket: socket.to_owned(), path: path.to_owned(), status });
    }
    Err(ClientError::Refused(String::from_utf8_lossy(&text).into_owned()))
}

/// Asks for `path` and reads the JSON that comes.
pub(crate) async fn get<T: serde::de::DeserializeOwned>(socket: &Path, path: &str) -> Result<T, ClientError> {
    read(socket, open(socket, path).await?).await
}

/// Hands `value` to `path` and reads the JSON that comes.
pub(crate) async fn post<T: serde::de::DeserializeOwned>(
    socket: &Path,
    path: &str,
    value: &impl serde::Serialize,
) -> Result<T, ClientError> {
    let body = serde_json::to_vec(value)?;
    read(socket, call(socket, Method::POST, path, body.into()).await?).await
}

async fn read<T: serde::de::DeserializeOwned>(socket: &Path, body: Incoming) -> Result<T, ClientError> {
    let bytes =
        body.collect().await.map_err(|error| ClientError::Broken(socket.to_owned(), error))?.to_bytes();
    Ok(serde_json::from_slice(&bytes)?)
}

/// Percent-encodes what must not stand in a query.
pub(crate) fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
