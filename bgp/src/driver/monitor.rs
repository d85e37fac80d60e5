//! Those who watch the sessions: the message log.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, SystemTime};

use crate::config::SpeakerConfig;
use crate::core::Core;
use crate::core::tap::{Passed, TapPeer, messages};
use crate::error::Error;
use crate::mrt::{Happened, SessionEntry, Writer};

pub(super) struct Monitor {
    log: Option<Writer>,
}

impl Monitor {
    /// Starts what the settings ask for.
    pub(super) fn start(config: &SpeakerConfig, core: &mut Core) -> Result<Self, Error> {
        let start = |settings: &crate::mrt::MessageLog| {
            Writer::start(settings.clone())
                .map_err(|source| Error::MessageLog { folder: settings.folder.clone(), source })
        };
        let log = config.message_log.as_ref().map(start).transpose()?;
        if log.is_some() {
            core.open_tap();
        }
        Ok(Self { log })
    }

    /// Hands on what has passed since the last call.
    pub(super) fn take(&mut self, core: &mut Core) {
        let Some(log) = &mut self.log else { return };
        let (passed, lost) = core.take_tapped();
        log.lost(lost);
        if passed.is_empty() {
            return;
        }
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for (peer, passed) in passed {
            entries(at, &peer, passed, |entry| log.log(&peer.config.name, entry));
        }
    }
}

/// Turns what passed into entries of the log.
pub(crate) fn entries(at: Duration, peer: &TapPeer, passed: Passed, mut each: impl FnMut(SessionEntry)) {
    let entry = |what| SessionEntry {
        at,
        peer_asn: peer.peer_asn,
        local_asn: peer.local_asn,
        peer_address: peer.config.address,
        local_address: peer.local_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        what,
    };
    match passed {
        Passed::State { from, to } => each(entry(Happened::State { from, to })),
        Passed::Messages { sent, bytes } => {
            for message in messages(&bytes) {
                each(entry(Happened::Message {
                    sent,
                    four_octet_as: !peer.two_octet,
                    add_path: peer.add_path,
                    bytes: bytes.slice_ref(message),
                }));
            }
        }
    }
}
