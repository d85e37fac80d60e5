//! The control socket's language: one JSON object a line, each with the protocol's version.
//!
//! ```text
//! ► {"version":1,"request":"set","owner":"agent","sessions":[{"peer":"10.0.0.1","settings":{"detect_mult":3}}]}
//! ◄ {"version":1,"response":"done"}
//! ► {"version":1,"request":"subscribe"}
//! ◄ {"version":1,"response":"status","unit":{...},"sessions":[...]}      once
//! ◄ {"version":1,"response":"changed","previous":"up","session":{...}}   for each change
//! ◄ {"version":1,"response":"alive"}                                     when nothing else was said for a while
//! ```

use serde::{Deserialize, Serialize};

use super::engine::Discards;
use super::packet::State;
use super::session::{SessionConfig, SessionStatus};

/// Version of the language; a unit refuses another one.
pub(super) const VERSION: u32 = 1;
/// Longest line either side reads: 4096 sessions with every setting fit.
pub(super) const LINE_MAX: usize = 4 * 1024 * 1024;

/// A message with the version in front.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versioned<T> {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) message: T,
}

/// What is asked of the unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(super) enum Request {
    /// The list of one owner; asked twice it changes nothing. Sessions it does not name end, unless there are others still to be named.
    Set {
        owner: String,
        sessions: Vec<SessionConfig>,
        #[serde(default)]
        partial: bool,
    },
    /// Owners that exist; the sessions of all others end.
    Owners { keep: Vec<String> },
    /// Everything there is to tell.
    Status,
    /// The same, and from then on every change.
    Subscribe,
}

/// What the unit says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub(super) enum Response {
    Done,
    Refused { reason: String },
    Status(Box<Status>),
    Changed { previous: State, session: Box<SessionStatus> },
    Alive,
}

/// Unit and sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub unit: UnitStatus,
    /// Its sessions, by peer.
    pub sessions: Vec<SessionStatus>,
}

/// How the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    /// Its process id.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// `fifo 50`, or `normal` and why it is no better.
    pub scheduling: String,
    /// It runs in the real-time class.
    pub real_time: bool,
    /// Its memory cannot be paged out; else why not.
    pub memory: String,
    /// The longest its thread slept past a deadline, in microseconds.
    pub late_max_us: u64,
    /// How often it was more than 10 ms late.
    pub late_count: u64,
    /// Datagrams that were no session's.
    pub discards: Discards,
    /// Packets the kernel did not take.
    pub unsent: u64,
    /// Echo packets returned to neighbours.
    pub echoed: u64,
    /// Ports that could not be bound.
    pub problems: Vec<String>,
}

pub(super) fn line<T: Serialize>(message: &T) -> String {
    let message = Versioned { version: VERSION, message };
    let mut text = serde_json::to_string(&message).unwrap_or_else(|error| {
        // Nothing here has a key that is no string, which is all that can fail.
        format!(r#"{{"version":{VERSION},"response":"refused","reason":"{error}"}}"#)
    });
    text.push('\n');
    text
}

/// Reads a line of the other side.
pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let head: Head = serde_json::from_str(text).map_err(|error| format!("cannot be read: {error}"))?;
    if head.version != VERSION {
        return Err(format!("is of version {}, this side speaks {VERSION}; use one release", head.version));
    }
    let message: Versioned<T> =
        serde_json::from_str(text).map_err(|error| format!("cannot be read: {error}"))?;
    Ok(message.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_survive_the_line() {
        let text = r#"{"version":1,"request":"set","owner":"agent","sessions":[{"peer":"10.0.0.1","multihop":true}]}"#;
        let request: Request = parse(text).unwrap();
        let Request::Set { owner, sessions, partial: false } = &request else { panic!("{request:?}") };
        assert_eq!((owner.as_str(), sessions.len()), ("agent", 1));
        assert_eq!(parse::<Request>(line(&request).trim()).unwrap(), request);
        let refused = Response::Refused { reason: "why".into() };
        assert_eq!(parse::<Response>(line(&refused).trim()).unwrap(), refused);
        assert!(parse::<Request>(r#"{"version":2,"request":"status"}"#).unwrap_err().contains("version 2"));
        assert!(parse::<Request>("nonsense").unwrap_err().contains("cannot be read"));
    }
}
