//! A speaker, and the peer it talks to: a TCP connection and a buffer, nothing of the crate's machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tombolo_bgp::policy::Policy;
use tombolo_bgp::{
    Damping, Family, PeerConfig, PeerState, RouteRow, RouteView, Speaker, SpeakerConfig, SpeakerHandle, State,
};

use crate::messages::{OWN_ASN, Opening, PEER_ASN, message, refresh};

/// Longest wait for an answer: far beyond what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A speaker that listens on loopback.
pub struct Rig {
    pub speaker: SpeakerHandle,
    port: u16,
}

impl Rig {
    pub async fn start() -> Self {
        let ends: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        // Another process may take the port between the two steps; then it is another one.
        for _ in 0..20 {
            let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = probe.local_addr().unwrap().port();
            drop(probe);
            let mut config = SpeakerConfig::new(OWN_ASN.into(), [10, 0, 0, 1].into());
            config.listen = ends.map(|end| SocketAddr::new(end, port)).to_vec();
            config.event_queue = 0;
            if let Ok((speaker, _)) = Speaker::start(config).await {
                speaker.export_complete().await.unwrap();
                return Self { speaker, port };
            }
        }
        panic!("no free port on loopback");
    }

    /// A rig with one peer, and where that peer connects from.
    pub async fn with_peer(from: &str) -> (Self, IpAddr) {
        let rig = Self::start().await;
        let from: IpAddr = from.parse().unwrap();
        rig.speaker.add_peer(peer("client", from)).await.unwrap();
        (rig, from)
    }

    pub async fn state(&self, name: &str) -> PeerState {
        let peers = self.speaker.peers().await.unwrap();
        peers.into_iter().find(|peer| peer.name == name).unwrap()
    }

    /// What is held from a peer.
    pub async fn received(&self, name: &str) -> Vec<RouteRow> {
        let rows = self.speaker.routes(RouteView::Received).await.unwrap();
        rows.into_iter().filter(|row| row.peer == name).collect()
    }

    /// A connection on which the speaker has said its OPEN. One that rests after an error refuses the first attempts.
    pub async fn connect(&self, from: IpAddr) -> Client {
        let to = if from.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let attempts = async {
            loop {
                let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
                socket.bind(SocketAddr::new(from, 0)).unwrap();
                let stream = socket.connect(SocketAddr::new(to, self.port)).await.unwrap();
                stream.set_nodelay(true).unwrap();
                // No connection is left in TIME_WAIT, of which a long run would have more than there are ports.
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                let mut client = Client { stream, buffer: BytesMut::new() };
                if client.hear().await.is_some_and(|open| open[18] == 1) {
                    return client;
                }
            }
        };
        tokio::time::timeout(PATIENCE, attempts).await.expect("the speaker takes the connection")
    }

    /// A connection in OpenConfirm.
    pub async fn confirm(&self, from: IpAddr, open: &Opening) -> Client {
        let mut client = self.connect(from).await;
        client.say(&open.wire()).await;
        assert_eq!(client.hear().await, Some(message(4, &[])), "the OPEN is good");
        client
    }

    /// An established session whose first table has been sent, both ends of it.
    pub async fn establish(&self, from: IpAddr, open: &Opening) -> Client {
        let mut client = self.confirm(from, open).await;
        client.say(&message(4, &[])).await;
        client.fence().await;
        client
    }

    pub async fn is_up(&self, name: &str) -> bool {
        self.state(name).await.state == State::Established
    }
}

/// A peer that is welcome again at once after an error.
pub fn peer(name: &str, from: IpAddr) -> PeerConfig {
    let mut config = PeerConfig::new(name, from, PEER_ASN.into());
    config.families = vec![Family::Ipv4Unicast, Family::Ipv6Unicast];
    config.passive = true;
    config.extended_next_hop = true;
    config.import_policy = Some(Arc::new(Policy::accept_all("import")));
    let rest = Duration::from_nanos(1);
    config.damping = Damping { enabled: false, first: rest, longest: rest, ..Damping::default() };
    config
}

/// One end of a connection.
pub struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    pub async fn say(&mut self, wire: &[u8]) {
        // The speaker may have ended the connection for what was said before; what it said last is still to be read.
        drop(self.stream.write_all(wire).await);
    }

    /// The next message whole, or nothing if the speaker has closed the connection.
    pub async fn hear(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.buffer.len() >= 19 {
                let len = usize::from(u16::from_be_bytes([self.buffer[16], self.buffer[17]]));
                if self.buffer.len() >= len {
                    return Some(self.buffer.split_to(len).to_vec());
                }
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
            match read.expect("the speaker says something or closes") {
                Ok(1..) => {}
                // A connection that is closed with unread bytes ends with a reset.
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// The NOTIFICATION before the end, if there is one, once the connection is closed.
    pub async fn last_words(mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut last = None;
        while let Some(wire) = self.hear().await {
            assert!(last.is_none(), "nothing comes after a NOTIFICATION");
            if wire[18] == 3 {
                last = Some((wire[19], wire[20], wire[21..].to_vec()));
            }
        }
        last
    }

    /// Waits until the speaker has handled everything said so far: it answers a request for IPv6 with BoRR, routes and EoRR.
    pub async fn fence(&mut self) {
        self.say(&refresh(0)).await;
        loop {
            let wire = self.hear().await.expect("the session is up");
            assert_ne!(wire[18], 3, "the session is up, but the speaker says {:?}", &wire[19..]);
            if wire == refresh(2) {
                return;
            }
        }
    }
}
