//! Sockets that were led to a backend which is gone: no packet of theirs asks for the service again, so nothing would ever
//! lead them elsewhere. Those that are connected are ended, and their owners connect anew.

use crate::abi;
use crate::datapath::Datapath;
use crate::error::DatapathError;
use crate::sock_diag::SockDiag;
use crate::sys;
use nix::sched::{CloneFlags, setns};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// What [`Datapath::end_stale_sockets`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketStats {
    /// Rows that were looked at.
    pub seen: u64,
    /// Rows whose backend or service is gone; they go, too, once their namespaces were looked at.
    pub stale: u64,
    /// Connected sockets that were ended.
    pub ended: u64,
    /// Connected sockets that the kernel would not end: their owners wait for a backend that is gone.
    pub refused: u64,
}

/// The stale rows of one network namespace: who was led to whom, by which protocol.
type Stale = BTreeMap<u64, BTreeSet<abi::SockKey>>;

impl Datapath {
    /// Ends the connected sockets, TCP and UDP, whose backend or service is gone. A backend that only takes no new flows
    /// keeps its sockets. Sockets that are not connected choose anew by themselves.
    ///
    /// `others` are paths of the pods' network namespaces; this thread's own is looked at as well. They are entered until
    /// all stale sockets are found, each by a thread of its own, and only if there are any. Walks the map of sockets once,
    /// and all sockets of a namespace that has stale ones: call it from a blocking thread, and once for many changes.
    ///
    /// # Errors
    /// A map cannot be read or written. A namespace that cannot be entered, and sockets that cannot be ended, are told in the
    /// log.
    pub fn end_stale_sockets(&self, others: &[PathBuf]) -> Result<SocketStats, DatapathError> {
        let (mut stats, stale) = self.stale_sockets()?;
        if stale.is_empty() {
            return Ok(stats);
        }
        let here = PathBuf::from("/proc/thread-self/ns/net");
        let (mut left, mut all_entered) = (stale.clone(), true);
        for path in std::iter::once(&here).chain(others) {
            if left.is_empty() {
                break;
            }
            match within(path, &left) {
                Ok((cookie, end)) => {
                    stats.ended += end.ended;
                    stats.refused += end.refused;
                    if let Some(error) = end.first_error {
                        tracing::warn!(
                            %error, namespace = %path.display(), sockets = end.refused,
                            "sockets whose backend is gone cannot be ended (the kernel needs INET_DIAG_DESTROY); their \
                             owners must connect anew by themselves"
                        );
                    }
                    left.remove(&cookie);
                }
                // The pod is gone, and its sockets with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, namespace = %path.display(), "sockets not looked at; they are with the next backend that goes");
                    all_entered = false;
                }
            }
        }
        // What is left is in a namespace inside a pod, or in one that is gone; or in the one that could not be entered: then
        // the rows stay for the next time.
        let looked_at = stale.into_iter().filter(|(cookie, _)| all_entered || !left.contains_key(cookie));
        for key in looked_at.flat_map(|(_, keys)| keys) {
            self.tables.socks.delete(key)?;
        }
        Ok(stats)
    }

    /// Waits until a backend or a service has gone since the last time, so that sockets may be stale.
    pub async fn backend_left(&self) {
        self.left.notified().await;
    }

    fn stale_sockets(&self) -> Result<(SocketStats, Stale), DatapathError> {
        let mut stats = SocketStats::default();
        let (node, mut stale) = (self.tables.config.get(0)?, Stale::new());
        let backends: BTreeMap<u32, abi::Backend> = self.tables.backends.dump()?.into_iter().collect();
        let services: BTreeSet<abi::ServiceKey> =
            self.tables.services.dump()?.into_iter().map(|(key, _)| key).collect();
        stats.seen = self.tables.socks.each(|key, row| {
            let to_frontend = key.kind == abi::SOCK_FRONTEND;
            let ((backend, backend_port), (frontend, port)) = if to_frontend {
                ((key.addr, key.port), (row.addr, row.port))
            } else {
                ((row.addr, row.port), (key.addr, key.port))
            };
            let meant = |found: &abi::Backend| found.addr == backend && found.port == backend_port;
            let service = abi::ServiceKey { addr: frontend, port, proto: key.proto, scope: 1, pad0: 0 };
            // What is not in the lists may have come after they were read.
            let there = backends.get(&row.backend).is_some_and(meant)
                || self.tables.backends.get(row.backend)?.as_ref().is_some_and(meant);
            let mut names = names(&service, &node).into_iter().flatten();
            let served = names.clone().any(|name| services.contains(&name))
                || names.try_fold(false, |any, name| Ok(any || self.tables.services.get(name)?.is_some()))?;
            if !there || !served {
                stale.entry(row.netns).or_default().insert(key);
            }
            Ok(())
        })?;
        self.tables.socks.counted(stats.seen);
        stats.stale = stale.values().map(|keys| u64::try_from(keys.len()).unwrap_or(u64::MAX)).sum();
        Ok((stats, stale))
    }
}

/// Under which names the service is to be found that a socket asked for: at a loopback address it was a node port.
fn names(key: &abi::ServiceKey, node: &abi::Config) -> [Option<abi::ServiceKey>; 2] {
    let internal = match key.addr.ip() {
        ip if !ip.is_loopback() => return [Some(*key), None],
        ip if ip.is_ipv4() => node.internal4,
        _ => node.internal6,
    };
    [Some(*key), Some(abi::ServiceKey { addr: internal, ..*key })]
}

/// What became of the stale sockets of a namespace.
#[derive(Default)]
struct End {
    ended: u64,
    refused: u64,
    first_error: Option<io::Error>,
}

/// Enters a namespace and ends its stale sockets, if it has any. Says which it is, and what became of them.
fn within(path: &std::path::Path, stale: &Stale) -> io::Result<(u64, End)> {
    let namespace = File::open(path)?;
    let work = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let cookie = sys::netns_cookie()?;
        let end = stale.get(&cookie).map_or_else(|| Ok(End::default()), end)?;
        Ok((cookie, end))
    };
    // The thread ends in the namespace; nothing else ever runs on it.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("sockets".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread broke off")))
    })
}

/// Ends the sockets of this thread's namespace that are connected to whom they were led.
fn end(stale: &BTreeSet<abi::SockKey>) -> io::Result<End> {
    let mut done = End::default();
    let mut diag = SockDiag::open()?;
    let protocols: BTreeSet<u8> = stale.iter().map(|key| key.proto).collect();
    for proto in protocols {
        let mut wanted = Vec::new();
        diag.connected(proto, |socket| {
            let Some((addr, port)) = socket.peer() else { return };
            let (addr, port) = (abi::Addr(addr), port.to_be());
            let kind = abi::SOCK_FRONTEND;
            let key = abi::SockKey { cookie: socket.cookie, addr, port, proto, kind, pad0: 0 };
            if stale.contains(&key) {
                wanted.push(socket);
            }
        })?;
        for socket in wanted {
            match diag.destroy(proto, &socket) {
                Ok(()) => done.ended += 1,
                // It ended by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => {
                    done.refused += 1;
                    done.first_error.get_or_insert(error);
                }
            }
        }
    }
    Ok(done)
}
