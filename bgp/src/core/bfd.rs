//! BFD for the peers that ask for it: which sessions, and what their failure means (RFC 5882, RFC 9384).

use std::time::Instant;

use super::Core;
use super::admit::ttl;
use crate::bfd::client::Wanted;
use crate::bfd::{SessionConfig, SessionKey, SessionStatus, State};
use crate::config::PeerConfig;
use crate::fsm::Identity;
use crate::wire::{Notification, cease, code};

impl Core {
    /// The sessions the peers' settings ask for, if that may have changed since it was last asked.
    ///
    /// They are all of them once everything is exported: before, peers of an earlier life may not have been added again.
    pub(crate) fn take_bfd_sessions(&mut self) -> Option<Wanted> {
        if !std::mem::take(&mut self.bfd_changed) {
            return None;
        }
        let identity = self.identity;
        let sessions = self.peers.values().filter_map(|peer| session(&peer.config, identity)).collect();
        Some(Wanted { sessions, complete: self.export_complete })
    }

    /// The state of a BFD session. If it failed, the BGP session ends now rather than when its hold time is over.
    ///
    /// A session that was never up, or is down by somebody's intent, ends nothing (RFC 5882 sections 3.2 and 4.1).
    pub(crate) fn bfd_heard(&mut self, now: Instant, status: SessionStatus) {
        let identity = self.identity;
        let of =
            |config: &PeerConfig| session(config, identity).is_some_and(|wanted| wanted.key == status.key);
        let Some((id, peer)) = self.peers.iter_mut().find(|(_, peer)| of(&peer.config)) else { return };
        let id = *id;
        let was_up = peer.bfd.as_ref().is_some_and(|before| before.state == State::Up);
        let failed = was_up && status.is_failure();
        let independent = peer.bfd.as_ref().is_some_and(|before| before.remote_control_plane_independent);
        peer.bfd = Some(status);
        if !failed {
            return;
        }
        tracing::warn!(peer = %peer.config.name, "BFD says that the path to the peer fails; its BGP session ends.");
        peer.fsm.fail_session(now, &Notification::new(code::CEASE, cease::BFD_DOWN));
        if independent {
            // The peer restarts, but its BFD does not depend on that: its forwarding has failed (RFC 5882 section 4.3.1).
            self.forget_kept(id);
        }
        self.settle(now, id);
    }
}

/// The session a peer's settings ask for: as many hops as its BGP session, from the same address and interface.
fn session(config: &PeerConfig, identity: Identity) -> Option<SessionConfig> {
    let settings = config.bfd.clone()?;
    let direct = config.interface.is_some() || ttl(config, identity) == Some(1);
    let key = SessionKey {
        peer: config.address,
        local: config.local_address,
        interface: config.interface.clone(),
        multihop: settings.multihop.unwrap_or(!direct),
    };
    Some(SessionConfig { key, settings })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::bfd::BfdSettings;
    use crate::config::SpeakerConfig;

    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn peer() -> PeerConfig {
        let mut config = PeerConfig::new("tor", PEER.into(), 65002);
        config.local_address = Some(Ipv4Addr::new(10, 0, 0, 1).into());
        config.bfd = Some(BfdSettings::default());
        config
    }

    #[test]
    fn sessions_follow_the_peers_settings() {
        let mut core = Core::new(&SpeakerConfig::new(65001, Ipv4Addr::new(1, 1, 1, 1)));
        assert_eq!(core.take_bfd_sessions(), None);
        core.add_peer(Instant::now(), peer()).unwrap();
        let Wanted { sessions, complete } = core.take_bfd_sessions().unwrap();
        assert!(!complete, "more peers may come");
        core.export_complete();
        assert!(core.take_bfd_sessions().unwrap().complete);
        assert_eq!(
            (sessions.len(), sessions[0].key.peer, sessions[0].key.multihop),
            (1, IpAddr::V4(PEER), false)
        );
        assert_eq!(core.take_bfd_sessions(), None, "nothing has changed");
        core.update_peer(Instant::now(), PeerConfig { ebgp_multihop: 3, ..peer() }).unwrap();
        assert!(core.take_bfd_sessions().unwrap().sessions[0].key.multihop, "as many hops as BGP");
        core.update_peer(Instant::now(), PeerConfig { bfd: None, ..peer() }).unwrap();
        assert!(core.take_bfd_sessions().unwrap().sessions.is_empty());
        core.remove_peer(Instant::now(), "tor").unwrap();
        assert!(core.take_bfd_sessions().unwrap().sessions.is_empty());
    }
}
