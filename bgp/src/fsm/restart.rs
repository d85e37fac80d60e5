//! What the OPENs say about graceful restart (RFC 4724, RFC 8538, RFC 9494), and what a session's end means under it.

use super::DownCause;
use super::connection::{Connection, Session, Stage};
use crate::config::PeerConfig;
use crate::family::Family;
use crate::wire::{
    Capability, GracefulRestartCapability, GracefulRestartFamily, LongLivedFamily, Notification, Open, cease,
    code,
};

/// What the peer's long-lived graceful restart capability says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LongLived {
    /// The peer sent it, and graceful restart with it.
    pub(crate) peer: bool,
    /// We sent it.
    pub(crate) own: bool,
    /// Families of the session in it; empty unless both sides sent it.
    pub(crate) families: Vec<LongLivedFamily>,
}

impl LongLived {
    pub(super) fn new(config: &PeerConfig, open: &Open, families: &[Family]) -> Self {
        let sent = |capability: &Capability| matches!(capability, Capability::LongLivedGracefulRestart(_));
        let own = config.long_lived.enabled && config.graceful_restart.enabled;
        let peer = open.graceful_restart().is_some() && open.capabilities.iter().any(sent);
        let agreed = families.iter().filter_map(|family| open.long_lived(*family));
        Self { peer, own, families: if own { agreed.collect() } else { Vec::new() } }
    }

    /// What it says of a family.
    pub(crate) fn family(&self, family: Family) -> Option<&LongLivedFamily> {
        self.families.iter().find(|entry| entry.family == family)
    }
}

/// The capabilities we offer. R bit: this process took over from one that died. F bit: forwarding outlived the last session.
pub(super) fn offered(config: &PeerConfig, restarted: bool, forwarding_preserved: bool) -> Vec<Capability> {
    if !config.graceful_restart.enabled {
        return Vec::new();
    }
    let graceful = Capability::GracefulRestart(GracefulRestartCapability {
        restarted,
        notification: config.graceful_restart.notification,
        restart_time_secs: config.graceful_restart.restart_time_secs,
        families: config
            .families
            .iter()
            .map(|family| GracefulRestartFamily { family: *family, forwarding_preserved })
            .collect(),
    });
    let long_lived = config.long_lived.enabled.then(|| {
        let wanted = config.long_lived.stale_time_secs.iter();
        let wanted = wanted.filter(|(family, _)| config.families.contains(family));
        Capability::LongLivedGracefulRestart(
            wanted
                .map(|(family, secs)| LongLivedFamily {
                    family: *family,
                    forwarding_preserved,
                    stale_time_secs: *secs,
                })
                .collect(),
        )
    });
    [graceful].into_iter().chain(long_lived).collect()
}

/// Whether both sides set the N bit (RFC 8538 section 4).
pub(super) fn through_notifications(config: &PeerConfig, open: &Open) -> bool {
    config.graceful_restart.enabled
        && config.graceful_restart.notification
        && open.graceful_restart().is_some_and(|restart| restart.notification)
}

impl Session {
    /// Whether the end of this session leaves the peer's routes in place: after a break of TCP (RFC 4724 section 4.2), and with the N bit
    /// also after any NOTIFICATION but a hard reset, whoever sent it (RFC 8538 section 4).
    pub(crate) fn keeps_routes(&self, cause: &DownCause) -> bool {
        match cause {
            DownCause::Lost(_) | DownCause::Replaced => true,
            DownCause::Received(notification) | DownCause::Sent(notification) => {
                self.notification_restart && !notification.is_hard_reset()
            }
        }
    }
}

impl Connection {
    /// A NOTIFICATION as this connection is to carry it. What is meant to last is a hard reset if the peer would otherwise keep our routes
    /// (RFC 8538 sections 3.1 and 5.1); the rest, errors and changes of configuration, is over with the next session.
    pub(super) fn last_words(&self, notification: &Notification) -> Notification {
        let agreed = self.session.as_ref().is_some_and(|session| session.notification_restart);
        let lasting = notification.code == code::CEASE
            && matches!(
                notification.subcode,
                cease::MAX_PREFIXES
                    | cease::ADMIN_SHUTDOWN
                    | cease::DECONFIGURED
                    | cease::ADMIN_RESET
                    | cease::BFD_DOWN
            );
        if self.stage == Stage::Established && agreed && lasting {
            notification.hard_reset()
        } else {
            notification.clone()
        }
    }
}
