//! What a probe reports: one entry per request, with the network's answer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Answer;

/// The report of `lab-probe http|tcp|udp|ping`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProbeReport {
    /// What was asked for: URL or host.
    pub target: String,
    /// `http`, `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// Requests made.
    pub sent: u64,
    /// Requests answered by the peer itself.
    pub answered: u64,
    /// Each request in order.
    pub attempts: Vec<Attempt>,
}

impl ProbeReport {
    pub(super) fn new(target: impl Into<String>, protocol: &str) -> Self {
        Self { target: target.into(), protocol: protocol.to_owned(), ..Self::default() }
    }

    pub(super) fn push(&mut self, attempt: Attempt) {
        self.sent += 1;
        if attempt.outcome.is_answer() {
            self.answered += 1;
        }
        self.attempts.push(attempt);
    }

    /// The answers of echo servers, in order of the requests.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.attempts.iter().filter_map(|attempt| match &attempt.outcome {
            Outcome::Answered { answer } => Some(answer.as_ref()),
            _ => None,
        })
    }
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Own address and port, as far as known; of an ICMP echo its identifier.
    pub source: Option<SocketAddr>,
    /// Where it was sent (port 0 for ICMP).
    pub destination: SocketAddr,
    /// Payload sent, in bytes, without any header.
    pub bytes: u64,
    /// From sending (TCP: connecting) to the end, in microseconds.
    pub duration_us: u64,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// An echo server answered.
    Answered {
        /// What it said.
        answer: Box<Answer>,
    },
    /// An ICMP echo reply of the right identifier, sequence and payload came back.
    Reply {
        /// Who replied.
        from: IpAddr,
        /// Payload of the reply in bytes.
        reply_bytes: u64,
    },
    /// Nothing came back in time.
    Timeout,
    /// The peer, or someone on the way, refused the connection or the port.
    Refused,
    /// The connection was reset or closed before the answer.
    Reset,
    /// ICMP destination unreachable, or no route.
    Unreachable {
        /// ICMP code, where the packet was seen.
        code: Option<u8>,
        /// Who said so; `None` when it was this host's own stack.
        from: Option<IpAddr>,
    },
    /// The packet does not fit and must not be fragmented.
    TooBig {
        /// The MTU named in the answer, in bytes.
        mtu: Option<u32>,
        /// The router that said so; `None` when it was this host's own stack.
        from: Option<IpAddr>,
    },
    /// Anything else.
    Failed {
        /// The reason in words.
        why: String,
    },
}

impl Outcome {
    /// Whether the peer itself answered.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Answered { .. } | Self::Reply { .. })
    }

    /// A short name for counting, the same word as in the JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Answered { .. } => "answered",
            Self::Reply { .. } => "reply",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Unreachable { .. } => "unreachable",
            Self::TooBig { .. } => "too-big",
            Self::Failed { .. } => "failed",
        }
    }
}

/// A duration as whole microseconds, saturating.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A duration as whole milliseconds, saturating.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_survives_json() {
        let mut report = ProbeReport::new("h", "icmp");
        let destination: SocketAddr = "10.0.0.1:0".parse().expect("literal");
        let outcomes = [
            Outcome::Timeout,
            Outcome::TooBig { mtu: Some(1430), from: None },
            Outcome::Reply { from: destination.ip(), reply_bytes: 8 },
        ];
        for outcome in outcomes {
            report.push(Attempt { source: None, destination, bytes: 8, duration_us: 5, outcome });
        }
        let text = serde_json::to_string(&report).expect("encodes");
        assert!(text.contains(r#""result":"too-big","mtu":1430"#), "{text}");
        let back: ProbeReport = serde_json::from_str(&text).expect("decodes");
        assert_eq!(back.attempts, report.attempts);
        assert_eq!((back.sent, back.answered), (3, 1));
    }
}
