//! The userspace WireGuard configuration protocol ("UAPI"): lines of `key=value`, an empty line closes a request.
//! https://www.wireguard.com/xplatform/#configuration-protocol

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tombolo_base::prefix::Prefix;
use tombolo_topology::WireguardKey;

use crate::error::WireguardError;
use crate::wireguard::{DeviceState, PeerState};

/// The largest answer that is read: some 10,000 peers.
const MAX_ANSWER_BYTES: u64 = 8 * 1024 * 1024;
/// How long the unit may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What to change; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    pub(crate) private_key: Option<[u8; 32]>,
    pub(crate) listen_port: Option<u16>,
    pub(crate) fwmark: Option<u32>,
    pub(crate) peers: Vec<PeerChange>,
}

#[derive(Clone, Debug)]
pub(crate) enum PeerChange {
    /// The peer with exactly these settings.
    Set {
        key: WireguardKey,
        endpoint: SocketAddr,
        allowed_ips: BTreeSet<Prefix>,
    },
    Remove(WireguardKey),
}

/// The control socket of a userspace device.
#[derive(Clone, Debug)]
pub(crate) struct Uapi {
    socket: PathBuf,
}

impl Uapi {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// The device's settings and peers.
    pub(crate) async fn get(&self) -> Result<DeviceState, WireguardError> {
        let answer =
            self.exchange("get=1\n\n").await.map_err(|source| self.failed("read the state", source))?;
        parse_state(&answer).map_err(WireguardError::Protocol)
    }

    /// Changes the device.
    pub(crate) async fn set(&self, change: &Change) -> Result<(), WireguardError> {
        let failed = |source| self.failed("change the device", source);
        let answer = self.exchange(&format_change(change)).await.map_err(failed)?;
        match errno(&answer) {
            Some(0) => Ok(()),
            Some(errno) => Err(failed(io::Error::from_raw_os_error(errno.saturating_abs()))),
            None => Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "it gave no errno"))),
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> WireguardError {
        WireguardError::Control { what, socket: self.socket.clone(), source }
    }

    async fn exchange(&self, request: &str) -> io::Result<String> {
        let work = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut reader = BufReader::new(stream).take(MAX_ANSWER_BYTES);
            let mut answer = String::new();
            // The answer ends with an empty line, or with the connection.
            while reader.read_line(&mut answer).await? > 1 {}
            Ok(answer)
        };
        tokio::time::timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn format_change(change: &Change) -> String {
    let mut text = String::from("set=1\n");
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        text.push_str(&format!("{key}={value}\n"));
    };
    if let Some(key) = &change.private_key {
        line("private_key", &WireguardKey(*key));
    }
    if let Some(port) = &change.listen_port {
        line("listen_port", port);
    }
    if let Some(mark) = &change.fwmark {
        line("fwmark", mark);
    }
    for peer in &change.peers {
        match peer {
            PeerChange::Set { key, endpoint, allowed_ips } => {
                line("public_key", key);
                line("endpoint", endpoint);
                line("replace_allowed_ips", &true);
                for prefix in allowed_ips {
                    line("allowed_ip", prefix);
                }
            }
            PeerChange::Remove(key) => {
                line("public_key", key);
                line("remove", &true);
            }
        }
    }
    text.push('\n');
    text
}

fn errno(answer: &str) -> Option<i32> {
    answer.lines().rev().find_map(|line| line.strip_prefix("errno=")).and_then(|text| text.parse().ok())
}

/// Reads the answer to `get=1`; keys that are not known are skipped.
fn parse_state(answer: &str) -> Result<DeviceState, String> {
    if errno(answer) != Some(0) {
        return Err(format!("errno {:?}", errno(answer)));
    }
    let mut state = DeviceState { private_key: None, listen_port: None, fwmark: 0, peers: BTreeMap::new() };
    let mut current: Option<WireguardKey> = None;
    for line in answer.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        let wrong = || format!("`{}` is not a {key}", value.chars().take(80).collect::<String>());
        if key == "public_key" {
            let peer = WireguardKey(parse_key(value).ok_or_else(wrong)?);
            state.peers.insert(peer, PeerState::default());
            current = Some(peer);
            continue;
        }
        let Some(peer) = current.and_then(|key| state.peers.get_mut(&key)) else {
            match key {
                "private_key" => state.private_key = Some(parse_key(value).ok_or_else(wrong)?),
                "listen_port" => state.listen_port = Some(value.parse().map_err(|_| wrong())?),
                "fwmark" => state.fwmark = value.parse().map_err(|_| wrong())?,
                _ => {}
            }
            continue;
        };
        match key {
            "endpoint" => peer.endpoint = Some(value.parse().map_err(|_| wrong())?),
            "allowed_ip" => {
                peer.allowed_ips.insert(value.parse().map_err(|_| wrong())?);
            }
            "last_handshake_time_sec" => {
                let seconds: u64 = value.parse().map_err(|_| wrong())?;
                peer.last_handshake = (seconds > 0).then(|| Duration::from_secs(seconds));
            }
            "rx_bytes" => peer.rx_bytes = value.parse().map_err(|_| wrong())?,
            "tx_bytes" => peer.tx_bytes = value.parse().map_err(|_| wrong())?,
            _ => {}
        }
    }
    Ok(state)
}

fn parse_key(text: &str) -> Option<[u8; 32]> {
    wireguard_control::Key::from_hex(text).ok().map(|key| key.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_written_as_the_protocol_says() {
        let (a, b) = (WireguardKey([0xaa; 32]), WireguardKey([0xbb; 32]));
        let allowed = ["10.1.0.0/24", "fd00::/64"].map(|text| text.parse().unwrap());
        let change = Change {
            private_key: Some([1; 32]),
            listen_port: Some(51871),
            fwmark: Some(0x1e00),
            peers: vec![
                PeerChange::Set {
                    key: a,
                    endpoint: "[fd00:20::2]:51871".parse().unwrap(),
                    allowed_ips: allowed.into(),
                },
                PeerChange::Remove(b),
            ],
        };
        let expected = format!(
            "set=1\nprivate_key={}\nlisten_port=51871\nfwmark=7680\npublic_key={}\nendpoint=[fd00:20::2]:51871\n\
             replace_allowed_ips=true\nallowed_ip=10.1.0.0/24\nallowed_ip=fd00::/64\npublic_key={}\nremove=true\n\n",
            "01".repeat(32),
            "aa".repeat(32),
            "bb".repeat(32)
        );
        assert_eq!(format_change(&change), expected);
    }

    #[test]
    fn the_state_is_read_and_what_is_not_known_is_skipped() {
        let answer = format!(
            "private_key={}\nlisten_port=51871\nfwmark=7680\nmystery=1\npublic_key={}\nendpoint=192.0.2.1:51871\n\
             allowed_ip=10.1.0.0/24\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nrx_bytes=7\n\
             tx_bytes=9\nprotocol_version=1\npublic_key={}\nlast_handshake_time_sec=0\nerrno=0\n",
            "01".repeat(32),
            "aa".repeat(32),
            "bb".repeat(32)
        );
        let state = parse_state(&answer).unwrap();
        assert_eq!((state.listen_port, state.fwmark, state.peers.len()), (Some(51871), 7680, 2));
        let peer = &state.peers[&WireguardKey([0xaa; 32])];
        assert_eq!((peer.rx_bytes, peer.tx_bytes), (7, 9));
        assert_eq!(peer.last_handshake, Some(Duration::from_secs(1_700_000_000)));
        assert_eq!(peer.allowed_ips, ["10.1.0.0/24".parse().unwrap()].into());
        assert_eq!(state.peers[&WireguardKey([0xbb; 32])], PeerState::default());
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic() {
        for wrong in
            ["", "errno=1\n", "public_key=zz\nerrno=0\n", "listen_port=70000\nerrno=0\n", "errno=x\n"]
        {
            assert!(parse_state(wrong).is_err(), "{wrong}");
        }
    }
}
