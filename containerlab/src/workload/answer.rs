//! What an echo server tells its client.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// At most so many bytes of a request are repeated in its answer.
pub const PAYLOAD_ECHO_BYTES: usize = 256;

/// Who answers: the place of an echo server in the lab.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// Pod name, or the host name outside of pods.
    pub pod: String,
    /// Kubernetes namespace; empty outside of pods.
    pub namespace: String,
    /// Node the server runs on.
    pub node: String,
    /// Cluster of that node; empty for the outside client.
    pub cluster: String,
}

/// The answer to one request: who answered, and whom the server saw as its client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answered.
    #[serde(flatten)]
    pub whoami: Whoami,
    /// `http`, `tcp` or `udp`.
    pub protocol: String,
    /// Source address as the server sees it.
    pub peer_address: IpAddr,
    /// Source port as the server sees it.
    pub peer_port: u16,
    /// The server's own address of this connection (for UDP: the source of its answer).
    pub local_address: IpAddr,
    /// The server's own port.
    pub local_port: u16,
    /// Length of the request: HTTP body, TCP line or UDP payload, in bytes.
    pub request_bytes: u64,
    /// The first [`PAYLOAD_ECHO_BYTES`] of the request (HTTP: of the path and query).
    pub payload: String,
}

impl Answer {
    /// Builds the answer of `whoami` to a request of `request_bytes` that began with `payload`.
    #[must_use]
    pub fn new(
        whoami: &Whoami,
        protocol: &str,
        peer: SocketAddr,
        local: SocketAddr,
        request_bytes: usize,
        payload: &[u8],
    ) -> Self {
        let shown = payload.get(..PAYLOAD_ECHO_BYTES).unwrap_or(payload);
        Self {
            whoami: whoami.clone(),
            protocol: protocol.to_owned(),
            peer_address: peer.ip().to_canonical(),
            peer_port: peer.port(),
            local_address: local.ip().to_canonical(),
            local_port: local.port(),
            request_bytes: u64::try_from(request_bytes).unwrap_or(u64::MAX),
            payload: String::from_utf8_lossy(shown).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_bounded_and_addresses_are_canonical() {
        let who = Whoami { pod: "web-1".into(), ..Whoami::default() };
        let peer: SocketAddr = "[::ffff:10.1.1.7]:4000".parse().expect("literal");
        let local: SocketAddr = "10.1.1.2:9000".parse().expect("literal");
        let answer = Answer::new(&who, "tcp", peer, local, 1000, &[b'x'; 1000]);
        assert_eq!(answer.payload.len(), PAYLOAD_ECHO_BYTES);
        assert_eq!(answer.peer_address, "10.1.1.7".parse::<IpAddr>().expect("literal"));
        assert_eq!(answer.request_bytes, 1000);
    }

    #[test]
    fn json_has_flat_names() {
        let who = Whoami { pod: "p".into(), namespace: "n".into(), node: "k".into(), cluster: "c".into() };
        let at: SocketAddr = "[fd00::1]:1".parse().expect("literal");
        let text = serde_json::to_value(Answer::new(&who, "udp", at, at, 3, b"abc")).expect("encodes");
        assert_eq!(text["node"], "k");
        assert_eq!(text["peer_address"], "fd00::1");
        assert_eq!(text["payload"], "abc");
    }
}
