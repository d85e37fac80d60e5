//! Connections to RPKI caches: each a task around [`CacheClient`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::Input;
use crate::rpki::{CacheClient, CacheOutput, CacheReport, RpkiCache, RpkiTable};

/// Longest an attempt to connect, or to send a query, may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes read at once.
const READ_SIZE: usize = 64 * 1024;

/// Follows a cache until the speaker ends; what it says goes there as `number`'s, how that goes to `report`.
pub(super) async fn run(
    number: usize,
    settings: RpkiCache,
    inputs: mpsc::Sender<Input>,
    report: watch::Sender<CacheReport>,
) {
    let mut client = CacheClient::new(Instant::now());
    let mut stream: Option<TcpStream> = None;
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let deadline = client.next_deadline();
        let wait = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => client.tick(Instant::now()),
            read = read(&mut stream, &mut buffer) => match read {
                Ok(0) => {
                    stream = None;
                    client.lost(Instant::now(), "closed by the cache");
                }
                Ok(len) => client.received(Instant::now(), buffer.get(..len).unwrap_or_default()),
                Err(error) => {
                    stream = None;
                    client.lost(Instant::now(), &error.to_string());
                }
            },
        }
        report.send_replace(client.report(settings.address));
        while let Some(output) = client.next_output() {
            match output {
                CacheOutput::Connect => connect(&settings, &mut client, &mut stream).await,
                CacheOutput::Send(bytes) => send(&bytes, &mut client, &mut stream).await,
                CacheOutput::Close => {
                    stream = None;
                    let reason = client.last_error().unwrap_or_default();
                    tracing::warn!(cache = %settings.address, reason, "The RPKI cache is left for now.");
                }
                CacheOutput::Table(table) => {
                    tracing::info!(cache = %settings.address, payloads = table.len(), "The RPKI cache has spoken.");
                    if inputs.send(Input::Payloads { cache: number, table }).await.is_err() {
                        return;
                    }
                }
            }
            report.send_replace(client.report(settings.address));
        }
    }
}

async fn read(stream: &mut Option<TcpStream>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream {
        Some(stream) => stream.read(buffer).await,
        None => std::future::pending().await,
    }
}

async fn connect(settings: &RpkiCache, client: &mut CacheClient, stream: &mut Option<TcpStream>) {
    let attempt = tokio::time::timeout(PATIENCE, TcpStream::connect(settings.address)).await;
    match attempt.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        Ok(connected) => {
            *stream = Some(connected);
            client.connected(Instant::now());
        }
        Err(error) => {
            tracing::info!(cache = %settings.address, %error, "Cannot connect to the RPKI cache.");
            client.lost(Instant::now(), &error.to_string());
        }
    }
}

async fn send(bytes: &[u8], client: &mut CacheClient, stream: &mut Option<TcpStream>) {
    let Some(open) = stream else { return };
    let sent = tokio::time::timeout(PATIENCE, open.write_all(bytes)).await;
    if let Err(error) = sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
        *stream = None;
        client.lost(Instant::now(), &error.to_string());
    }
}

/// What all caches say together: a route is valid if any of them says so (RFC 8210 section 10 leaves the choice).
pub(super) fn together(tables: &[Arc<RpkiTable>]) -> Arc<RpkiTable> {
    let Some(largest) = tables.iter().max_by_key(|table| table.len()) else { return Arc::default() };
    let others: Vec<_> =
        tables.iter().filter(|table| !Arc::ptr_eq(table, largest) && !table.is_empty()).collect();
    if others.is_empty() {
        return Arc::clone(largest);
    }
    let mut all = RpkiTable::clone(largest);
    others.into_iter().for_each(|table| all.extend(table.iter()));
    Arc::new(all)
}
