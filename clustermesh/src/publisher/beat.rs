//! The time, every few seconds, for readers that measure how long a change takes to them ([`key::BEAT`]).

use crate::wire::key;
use etcd_client::{Client, PutOptions};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

/// Beats until it is dropped.
#[derive(Debug)]
pub(super) struct Beat(AbortHandle);

impl Beat {
    /// Writes under the heartbeat's lease. It is of no weight: what fails is told by others, and the next one comes soon.
    pub(super) fn start(client: &Client, lease: i64, every: Duration) -> Self {
        let mut kv = client.kv_client();
        let task = tokio::spawn(async move {
            let mut timer = interval(every);
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                timer.tick().await;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let options = PutOptions::new().with_lease(lease);
                let put = kv.put(key::BEAT, now.as_nanos().to_string(), Some(options));
                if let Err(error) =
                    tokio::time::timeout(every, put).await.map_err(|_| ()).and_then(|put| put.map_err(drop))
                {
                    tracing::debug!(?error, "the beat was not written");
                }
            }
        });
        Self(task.abort_handle())
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.0.abort();
    }
}
