//! What an operator does to a session, and what is told about where it stands.

use serde::{Deserialize, Serialize};

/// Something to do to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum PeerAction {
    /// End the session with Cease, administrative reset, and start it again at once.
    Clear {
        /// For the other operator (RFC 9003), at most 255 bytes are sent; may be empty.
        #[serde(default)]
        text: String,
    },
    /// Ask for the routes again (RFC 2918); the session stays.
    SoftIn,
    /// Say all routes again; the session stays.
    SoftOut,
    /// Both.
    SoftBoth,
    /// End the session with Cease, administrative shutdown, and keep it down until [`PeerAction::Start`], also if the peer is removed and added again. It does not outlive the speaker: see
    /// [`SpeakerConfig::shut_down`](crate::SpeakerConfig::shut_down).
    Shutdown {
        /// For the other operator (RFC 9003), at most 255 bytes are sent; may be empty.
        #[serde(default)]
        text: String,
    },
    /// Take a shutdown back.
    Start,
}

/// A timer of the state machine that is running (RFC 4271 section 10, RFC 4271 section 8.1.1 for the rest).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunningTimer {
    /// The RFC's name, as `HoldTimer`.
    pub name: &'static str,
    /// Milliseconds until it expires.
    pub left_ms: u64,
}

/// Where a state machine stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// What it waits for, and what it will do.
    pub next: String,
    /// Its timers, the next to expire first.
    pub timers: Vec<RunningTimer>,
}
