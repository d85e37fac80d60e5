//! What a session is told and what it tells: the types that cross the control socket.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::auth::Auth;
use super::machine::Settings;
use super::packet::{Diagnostic, State};

/// Shortest interval accepted: below it the scheduler of a plain kernel is measured, not the path.
const INTERVAL_MIN: Duration = Duration::from_millis(1);
/// Longest interval the packet's field holds.
const INTERVAL_MAX: Duration = Duration::from_secs(4294);

/// What makes a session one: between the same ends there is one session of a kind (RFC 5881 section 2, RFC 5883 section 2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionKey {
    /// The remote system.
    pub peer: IpAddr,
    /// Our address; none leaves it to the routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    /// The interface; needed for link-local addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Over several hops (RFC 5883) rather than one (RFC 5881).
    #[serde(default)]
    pub multihop: bool,
}

/// BFD as a peer's settings give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BfdSettings {
    /// Shortest interval to send at (Desired Min TX Interval).
    pub min_tx: Duration,
    /// Shortest interval to receive at (Required Min RX Interval).
    pub min_rx: Duration,
    /// Shortest interval of echo packets that are returned; zero returns none (RFC 5880 section 6.8.9).
    pub min_echo_rx: Duration,
    /// Packets that may be missed: the remote system's detection time is this times the agreed interval.
    pub detect_mult: u8,
    /// Wait for the remote system to speak first.
    pub passive: bool,
    /// Hold the session down by intent; the remote system does not take it for a failure of the path.
    pub admin_down: bool,
    /// Whether the session crosses several hops; none: as the BGP session does.
    pub multihop: Option<bool>,
    /// Authentication; none is the usual within one hop, where the time-to-live of 255 is the proof.
    pub auth: Option<Auth>,
}

impl Default for BfdSettings {
    fn default() -> Self {
        Self {
            min_tx: Duration::from_millis(300),
            min_rx: Duration::from_millis(300),
            min_echo_rx: Duration::ZERO,
            detect_mult: 3,
            passive: false,
            admin_down: false,
            multihop: None,
            auth: None,
        }
    }
}

/// One session as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionConfig {
    /// Between whom.
    #[serde(flatten)]
    pub key: SessionKey,
    /// How.
    #[serde(default)]
    pub settings: BfdSettings,
}

/// A session that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot keep a BFD session with {peer}: {what}; {remedy}")]
pub struct SessionError {
    peer: IpAddr,
    what: &'static str,
    remedy: &'static str,
}

impl SessionConfig {
    /// A session with the usual settings.
    pub fn new(key: SessionKey) -> Self {
        Self { key, settings: BfdSettings::default() }
    }

    /// Whether the session can be.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), SessionError> {
        let bad = |what, remedy| Err(SessionError { peer: self.key.peer, what, remedy });
        let SessionKey { peer, local, interface, multihop } = &self.key;
        if peer.is_unspecified() || peer.is_multicast() {
            return bad("the address is no host address", "give the peer's own address");
        }
        if local.is_some_and(|local| local.is_ipv4() != peer.is_ipv4()) {
            return bad("local and remote address are of different families", "use two of the same family");
        }
        let link_local = matches!(peer, IpAddr::V6(address) if address.is_unicast_link_local());
        if link_local && (interface.is_none() || *multihop) {
            return bad("a link-local address needs an interface and a single hop", "give the interface");
        }
        if interface.as_ref().is_some_and(|name| name.is_empty() || name.len() > 15) {
            return bad(
                "the interface's name is empty or over 15 bytes",
                "give its name as `ip link` shows it",
            );
        }
        self.settings.check().or_else(|(what, remedy)| bad(what, remedy))
    }
}

impl BfdSettings {
    /// Whether the settings make sense: what is wrong, and what to do.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let sane = |interval| (INTERVAL_MIN..=INTERVAL_MAX).contains(interval);
        if !sane(&self.min_tx) || !sane(&self.min_rx) {
            return Err(("an interval is under 1 ms or over 4294 s", "50 ms to 1 s is usual"));
        }
        if !self.min_echo_rx.is_zero() && !sane(&self.min_echo_rx) {
            return Err((
                "the echo interval is under 1 ms or over 4294 s",
                "use 0 to return no echo packets",
            ));
        }
        if self.detect_mult == 0 {
            return Err(("the detection multiplier is 0", "3 is usual"));
        }
        match self.auth.as_ref().map(Auth::check) {
            Some(Err(what)) => Err((what, "shorten or set the secret")),
            _ => Ok(()),
        }
    }

    pub(super) fn for_machine(&self) -> Settings {
        let us = |interval: Duration| u32::try_from(interval.as_micros()).unwrap_or(u32::MAX);
        Settings {
            min_tx_us: us(self.min_tx),
            min_rx_us: us(self.min_rx),
            min_echo_rx_us: us(self.min_echo_rx),
            detect_mult: self.detect_mult,
            passive: self.passive,
            admin_down: self.admin_down,
            auth: self.auth.clone(),
        }
    }
}

/// The state of one session, with what an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Between whom.
    #[serde(flatten)]
    pub key: SessionKey,
    /// Our state.
    pub state: State,
    /// Why it last changed.
    pub diagnostic: Diagnostic,
    /// The same in words.
    pub reason: String,
    /// The remote system's state as it last said.
    pub remote_state: State,
    /// Its diagnostic.
    pub remote_diagnostic: Diagnostic,
    /// Our discriminator.
    pub discriminator: u32,
    /// Its discriminator; 0 while it is not heard.
    pub remote_discriminator: u32,
    /// The remote BFD does not share fate with its control plane (the C bit).
    pub remote_control_plane_independent: bool,
    /// Agreed interval of our packets before jitter, in microseconds; 0 for no periodic packets.
    pub tx_interval_us: u64,
    /// Without a packet for this long the session is down, in microseconds.
    pub detection_time_us: u64,
    /// Milliseconds since the state last changed.
    pub changed_ms: u64,
    /// How often the session came up.
    pub ups: u64,
    /// How often it left Up.
    pub downs: u64,
    /// Packets received and accepted.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets dropped because they were not authentic.
    pub unauthenticated: u64,
}

impl SessionStatus {
    /// The path failed: the session was up, is down, and nobody meant it so (RFC 5882 section 3.2: AdminDown is no failure).
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.state == State::Down && self.ups > 0 && self.remote_state != State::AdminDown
    }
}

/// An address in the form sockets know: IPv4 within IPv6 is IPv4.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => Ipv6Addr::to_ipv4_mapped(&v6).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_json_with_defaults_and_mistakes_are_named() {
        let read = |text: &str| serde_json::from_str::<SessionConfig>(text).unwrap();
        let short = read(r#"{"peer":"10.0.0.1"}"#);
        assert_eq!((short.settings.detect_mult, short.key.multihop), (3, false));
        short.check().unwrap();
        let again: SessionConfig = serde_json::from_str(&serde_json::to_string(&short).unwrap()).unwrap();
        assert_eq!(again, short);
        for (text, named) in [
            (r#"{"peer":"fe80::1"}"#, "interface"),
            (r#"{"peer":"0.0.0.0"}"#, "host address"),
            (r#"{"peer":"10.0.0.1","local":"::1"}"#, "families"),
            (r#"{"peer":"10.0.0.1","settings":{"detect_mult":0}}"#, "multiplier"),
            (r#"{"peer":"10.0.0.1","settings":{"min_tx":{"secs":0,"nanos":1}}}"#, "under 1 ms"),
            (
                r#"{"peer":"10.0.0.1","settings":{"auth":{"type":"password","key_id":1,"secret":""}}}"#,
                "password",
            ),
        ] {
            let error = read(text).check().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
