//! The unit from its caller's side, and the agent from the unit's: HTTP over a unix socket.

use crate::control::Status;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a unit may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach {socket}: {error}; does it run, and are you root?")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It went away in the middle.
    #[error("{0} broke off: {1}")]
    Broken(PathBuf, hyper::Error),
    /// It refused.
    #[error("{0}: {1}")]
    Refused(PathBuf, hyper::StatusCode),
    /// It does not answer.
    #[error("{0} does not answer; restart it")]
    Silent(PathBuf),
    /// Its answer is of another version.
    #[error("the answer cannot be read: {0}; unit and command line should be of one version")]
    Answer(#[from] serde_json::Error),
}

/// Asks for `path`; the body streams in.
pub(crate) async fn open(socket: &Path, path: &str) -> Result<Incoming, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| ClientError::Connect { socket: socket.to_owned(), error })?;
    let broken = |error| ClientError::Broken(socket.to_owned(), error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(hyper::header::HOST, "tombolo")
        .body(Empty::<Bytes>::new())
        .map_err(|_| ClientError::Silent(socket.to_owned()))?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if !response.status().is_success() {
        return Err(ClientError::Refused(socket.to_owned(), response.status()));
    }
    Ok(response.into_body())
}

/// Ends the unit; returns when its socket is gone.
///
/// # Errors
/// Why it cannot be told to, or that it goes on.
pub async fn stop(socket: &Path) -> Result<(), ClientError> {
    let asked = async {
        // The answer is its last word: the body ends when the unit does.
        let body = open(socket, "/v1/stop").await?;
        body.collect().await.ok();
        while UnixStream::connect(socket).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(ClientError::Silent(socket.to_owned())))
}

/// How the unit is.
///
/// # Errors
/// Why it did not say.
pub async fn status(socket: &Path) -> Result<Status, ClientError> {
    let asked = async {
        let body = open(socket, "/v1/status").await?.collect().await;
        let bytes = body.map_err(|error| ClientError::Broken(socket.to_owned(), error))?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(ClientError::Silent(socket.to_owned())))
}
