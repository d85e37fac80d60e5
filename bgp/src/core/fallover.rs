//! Fast fall-over: a directly connected peer is gone when the link or our address on it is, not when its hold time is over.

use std::net::IpAddr;
use std::time::Instant;

use super::admit::ttl;
use super::{Core, Output};
use crate::fsm::ConnectionId;
use crate::rib::PeerId;

impl Core {
    /// An interface went down (with the addresses it has), or lost addresses. Ends the sessions of directly connected external peers that ran
    /// over it, as if TCP had told; their routes go even where graceful restart would keep them, since the way they point is gone (RFC 4724 section 4.2
    /// leaves that to the receiver). How many sessions ended.
    pub(crate) fn path_lost(&mut self, now: Instant, interface: Option<&str>, own: &[IpAddr]) -> usize {
        let identity = self.identity;
        let mut hit: Vec<(PeerId, ConnectionId)> = Vec::new();
        for (id, peer) in &self.peers {
            let Some((connection, session)) = &peer.session else { continue };
            let direct = session.ebgp && ttl(&peer.config, identity) == Some(1);
            let on_interface = interface.is_some() && peer.config.interface.as_deref() == interface;
            let over_it = on_interface || own.contains(&session.local_address);
            if peer.config.fast_fallover && direct && over_it {
                hit.push((*id, *connection));
            }
        }
        for (id, connection) in &hit {
            let reason = match interface {
                Some(name) => format!("interface {name} is down"),
                None => "our address on the session is gone".to_owned(),
            };
            self.outputs.push_back(Output::Close { connection: *connection });
            self.lost(now, *connection, &reason);
            self.forget_kept(*id);
        }
        self.propagate();
        hit.len()
    }
}
