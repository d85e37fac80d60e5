//! Connections that several followers share: a relay's etcd holds hundreds of clusters, and one connection for each would
//! cost every agent a hundred kilobytes and a handshake, and that etcd as much for every agent.
//!
//! Only followers with the same endpoints and the same certificates share. One that gives its connection up retires it:
//! the others keep it as long as it serves them, and whoever connects from then on gets a new one.

use super::requests::{open, prove_answers};
use crate::certificate::Expiry;
use crate::error::MeshError;
use crate::etcd::EtcdConfig;
use etcd_client::Client;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Followers on one connection at most: what breaks it costs no more than these a reconnection.
const SHARERS_MAX: usize = 64;

/// What must be the same to share: endpoints, files, and the files' content.
type Way = (Vec<String>, [Option<PathBuf>; 3], [u8; 32]);
type Room = Arc<tokio::sync::Mutex<Weak<Connection>>>;

/// One connection, alive as long as a follower uses it.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) expiry: Option<Expiry>,
    retired: AtomicBool,
}

impl Connection {
    /// Nobody else gets it from now on.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }
}

/// The connections of a process; clones share them.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<BTreeMap<Way, Room>>>);

impl Connections {
    /// A connection that has just answered; one that others use already, if there is room on it.
    pub(super) async fn open(
        &self,
        etcd: &EtcdConfig,
        files: [u8; 32],
    ) -> Result<Arc<Connection>, MeshError> {
        let paths = [&etcd.trusted_ca_file, &etcd.cert_file, &etcd.key_file].map(Clone::clone);
        let room = self.room((etcd.endpoints.clone(), paths, files));
        let mut there = room.lock().await;
        let usable = |one: &Arc<Connection>| {
            !one.retired.load(Ordering::Relaxed) && Arc::strong_count(one) <= SHARERS_MAX
        };
        if let Some(connection) = there.upgrade().filter(usable) {
            drop(there);
            return match prove_answers(etcd, &connection.client).await {
                Ok(()) => Ok(connection),
                Err(error) => {
                    connection.retire();
                    Err(error)
                }
            };
        }
        // Those who come meanwhile wait for this one.
        let (client, certificates) = open(etcd).await?;
        let expiry = certificates.map(|files| files.expiry);
        let connection = Arc::new(Connection { client, expiry, retired: AtomicBool::new(false) });
        *there = Arc::downgrade(&connection);
        Ok(connection)
    }

    fn room(&self, way: Way) -> Room {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Ways that nobody goes any more: nobody waits in them, and their connection is gone.
        rooms.retain(|_, room| {
            Arc::strong_count(room) > 1 || room.try_lock().is_ok_and(|there| there.strong_count() > 0)
        });
        rooms.entry(way).or_default().clone()
    }
}
