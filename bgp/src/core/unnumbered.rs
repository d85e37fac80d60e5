//! Unnumbered peers: their address is that of the router heard on their interface.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Instant;

use super::Core;
use crate::config::PeerConfig;
use crate::fsm::State;
use crate::rib::PeerId;
use crate::wire::{Notification, cease};

impl Core {
    /// The interfaces to advertise and listen on, if they may be others than last taken.
    pub(crate) fn take_interfaces(&mut self) -> Option<BTreeSet<String>> {
        if !std::mem::take(&mut self.admission.interfaces_changed) {
            return None;
        }
        let unnumbered = self.peers.values().filter(|peer| peer.config.unnumbered);
        Some(unnumbered.filter_map(|peer| peer.config.interface.clone()).collect())
    }

    /// The unnumbered peer of an interface.
    pub(super) fn unnumbered(&self, interface: &str) -> Option<PeerId> {
        let on_it = |config: &PeerConfig| config.unnumbered && config.interface.as_deref() == Some(interface);
        self.peers.iter().find(|(_, peer)| on_it(&peer.config)).map(|(id, _)| *id)
    }

    /// A router was heard on an interface. It is the peer there, unless another one is talking with us.
    pub(crate) fn neighbour(&mut self, now: Instant, interface: &str, address: Ipv6Addr) {
        let Some(id) = self.unnumbered(interface) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let talking = matches!(peer.fsm.state(), State::OpenSent | State::OpenConfirm | State::Established);
        if peer.config.address == address || talking {
            return;
        }
        tracing::info!(peer = peer.config.name, interface, %address, "Found the router on the other end.");
        let mut config = PeerConfig::clone(&peer.config);
        config.address = address.into();
        peer.config = Arc::new(config);
        peer.fsm.set_config(Arc::clone(&peer.config));
        peer.fsm.reset(now, &Notification::cease(cease::CONFIG_CHANGE, ""));
        self.bfd_changed = true;
        self.admission.keys_changed = true;
        self.settle(now, id);
    }
}

/// New settings of an unnumbered peer keep the address that was found.
pub(super) fn keep_address(old: &PeerConfig, new: &mut PeerConfig) {
    if old.unnumbered && new.unnumbered && old.interface == new.interface {
        new.address = old.address;
    }
}
