//! Watches of single keys, and the end of any watch told in words.

use crate::error::MeshError;
use crate::etcd::{broken, request, request_error};
use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};

/// The next answer of a watch. That etcd ended it is an error, which says why.
pub(crate) async fn next_answer(
    stream: &mut WatchStream,
    what: impl Fn() -> String,
) -> Result<WatchResponse, MeshError> {
    let answer = stream.message().await.map_err(|error| request_error(what(), &error))?;
    match answer {
        Some(answer) if !answer.canceled() => Ok(answer),
        Some(answer) => {
            let reason = match answer.cancel_reason() {
                "" => "without a reason",
                reason => reason,
            };
            Err(broken(
                what(),
                format!(
                    "etcd cancelled the watch: {reason}; if that goes on, compare the user's role with docs/clustermesh.md"
                ),
            ))
        }
        None => Err(broken(
            what(),
            "etcd closed the watch, it is probably stopping; if that goes on, look at its log".to_owned(),
        )),
    }
}

/// Waits for such an event of a key after `revision`.
pub(crate) async fn until_event(
    client: &Client,
    name: &str,
    revision: i64,
    is: impl Fn(EventType) -> bool,
) -> Result<(), MeshError> {
    let what = || format!("watching {name}");
    let options = WatchOptions::new().with_start_revision(revision.saturating_add(1));
    let mut stream = request(what, client.watch_client().watch(name, Some(options))).await?;
    while !next_answer(&mut stream, what).await?.events().iter().any(|event| is(event.event_type())) {}
    Ok(())
}
