//! The agent's answers to the plugin, free of any HTTP library: a command and a body in, a status and a body out.

use std::sync::Arc;

use serde::Serialize;

use crate::gate::DatapathGate;
use crate::protocol::{CniError, Code, MAX_MESSAGE_BYTES, Request};
use crate::store::EndpointStore;

/// An answer to be sent as `application/json` with a Content-Length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status: 200, or another with a [`CniError`] as the body.
    pub status: u16,
    /// JSON.
    pub body: Vec<u8>,
}

impl<G: DatapathGate> EndpointStore<G> {
    /// Serves `POST /v1/cni/{command}`: `add`, `del`, `check`, `gc`, `status`. The work goes on to its end even if the
    /// caller goes away, so that a plugin that is killed leaves no half of an endpoint.
    pub async fn serve(self: &Arc<Self>, command: &str, body: &[u8]) -> Reply {
        let request = match read(body) {
            Ok(request) => request,
            Err(error) => return Reply::error(&error),
        };
        let (store, command) = (self.clone(), command.to_owned());
        let work = tokio::spawn(async move {
            match command.as_str() {
                "add" => Reply::of(store.add(&request).await),
                "del" => Reply::of(store.del(&request).await),
                "check" => Reply::of(store.check(&request).await),
                "gc" => Reply::of(store.gc(&request).await),
                // The store is open, so ADD can be served.
                "status" => Reply::of(Ok(())),
                other => {
                    let details = "it must be add, del, check, gc or status";
                    Reply::error(&CniError::new(
                        Code::UnsupportedField,
                        format!("command `{other}`"),
                        details,
                    ))
                }
            }
        });
        work.await.unwrap_or_else(|error| {
            let details = format!("{error}; see the agent's log");
            Reply::error(&CniError::new(Code::TryAgainLater, "the agent gave up on the request", details))
        })
    }
}

impl Reply {
    fn of<T: Serialize>(outcome: Result<T, CniError>) -> Self {
        match outcome {
            Ok(value) => match serde_json::to_vec(&value) {
                Ok(body) => Self { status: 200, body },
                Err(error) => {
                    Self::error(&CniError::new(Code::Io, "cannot write the answer", error.to_string()))
                }
            },
            Err(error) => Self::error(&error),
        }
    }

    fn error(error: &CniError) -> Self {
        tracing::warn!(code = error.code, msg = %error.msg, details = %error.details, "a CNI request failed");
        let status = match error.code {
            code if code == Code::TryAgainLater as u32 => 503,
            1..=7 => 400,
            _ => 500,
        };
        let body =
            serde_json::to_vec(error).unwrap_or_else(|_| b"{\"code\":5,\"msg\":\"unprintable\"}".to_vec());
        Self { status, body }
    }
}

fn read(body: &[u8]) -> Result<Request, CniError> {
    if body.len() > MAX_MESSAGE_BYTES {
        let details = format!("it is longer than {MAX_MESSAGE_BYTES} bytes");
        return Err(CniError::new(Code::Decode, "cannot read the request", details));
    }
    serde_json::from_slice(body)
        .map_err(|error| CniError::new(Code::Decode, "cannot read the request", error.to_string()))
}
