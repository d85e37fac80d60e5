//! The keys of TCP segments, kept on the listeners and on the sockets of sessions as the peers' settings ask (RFC 2385, RFC 5925).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};

use crate::fsm::ConnectionId;
use crate::transport::{self, Credential, Keys};

/// Where keys are and should be.
#[derive(Default)]
pub(super) struct Keyring {
    listeners: Vec<Arc<TcpListener>>,
    installed: Keys,
    /// Sockets of connections, of the same open file as the connection's own, with the peer's address.
    sockets: BTreeMap<ConnectionId, (IpAddr, Socket)>,
}

impl Keyring {
    pub(super) fn listener(&mut self, listener: Arc<TcpListener>) {
        self.listeners.push(listener);
    }

    /// A connection is there: a key that changes later is put on it.
    pub(super) fn opened(&mut self, id: ConnectionId, stream: &TcpStream) {
        let socket = SockRef::from(stream).try_clone();
        match (stream.peer_addr(), socket) {
            (Ok(remote), Ok(socket)) => {
                self.sockets.insert(id, (remote.ip(), socket));
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::debug!(%error, "A connection ended before its key could be kept.");
            }
        }
    }

    pub(super) fn closed(&mut self, id: ConnectionId) {
        self.sockets.remove(&id);
    }

    /// Brings listeners and running sessions to these keys.
    pub(super) fn want(&mut self, wanted: Keys) {
        let old = std::mem::replace(&mut self.installed, wanted);
        for (prefix, credential) in &old {
            // The kernel changes an MD5 key in place; another kind, or another TCP-AO key, must make room first.
            let stays = match (credential, self.installed.get(prefix)) {
                (Credential::Md5(_), Some(Credential::Md5(_))) => true,
                (old, new) => new == Some(old),
            };
            if !stays {
                self.on_listeners(*prefix, |listener| transport::remove_key(listener, *prefix, credential));
            }
        }
        let changed: Vec<(IpNet, &Credential)> = self
            .installed
            .iter()
            .filter(|(prefix, credential)| old.get(prefix) != Some(credential))
            .map(|(prefix, credential)| (*prefix, credential))
            .collect();
        for (prefix, credential) in &changed {
            self.on_listeners(*prefix, |listener| transport::set_key(listener, *prefix, credential, false));
        }
        for (remote, socket) in self.sockets.values() {
            if !changed.iter().any(|(prefix, _)| prefix.contains(remote)) {
                continue;
            }
            let now = longest(&self.installed, *remote);
            if let Some(credential) = now.filter(|now| longest(&old, *remote) != Some(now))
                && let Err(error) = transport::set_key(socket, IpNet::from(*remote), credential, true)
            {
                tracing::error!(peer = %remote, %error, "Cannot change the TCP key of a BGP session.");
            }
        }
    }

    fn on_listeners(&self, prefix: IpNet, set: impl Fn(&TcpListener) -> std::io::Result<()>) {
        let same_family = |listener: &&Arc<TcpListener>| {
            let address = listener.local_addr().map(|address| address.is_ipv4());
            address.is_ok_and(|ipv4| ipv4 == matches!(prefix, IpNet::V4(_)))
        };
        for listener in self.listeners.iter().filter(same_family) {
            if let Err(error) = set(listener) {
                tracing::error!(
                    %prefix,
                    %error,
                    "Cannot put a TCP key on a BGP listener; connections from there fail. If memory is short, raise net.core.optmem_max."
                );
            }
        }
    }
}

fn longest(keys: &Keys, address: IpAddr) -> Option<&Credential> {
    let holds = keys.iter().filter(|(prefix, _)| prefix.contains(&address));
    holds.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, credential)| credential)
}
