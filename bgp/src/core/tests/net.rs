//! Any number of cores and the wires between them: speaker `n` is `n<n>`, 10.0.0.n, AS 65000 + n unless told otherwise.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;

use super::super::*;
use crate::config::AllowedPrefix;
use crate::event::{RouteRow, RouteView};
use crate::fsm::State;

pub(super) type Id = u8;

/// Speakers by number.
pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) cores: BTreeMap<Id, Core>,
    /// Ends of open connections: (speaker, its id) twice.
    wires: Vec<[(Id, ConnectionId); 2]>,
    /// Pairs that cannot connect, lower number first.
    cut: BTreeSet<(Id, Id)>,
    /// What was sent since it was last cleared: from, to, message type and whatever tells messages of a type apart.
    pub(super) sent: Vec<(Id, Id, String)>,
}

pub(super) fn prefix(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(id: Id) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, id).into()
}

/// A speaker's settings.
pub(super) fn speaker(id: Id, asn: u32) -> SpeakerConfig {
    let mut config = SpeakerConfig::new(asn, Ipv4Addr::new(1, 1, 1, id));
    config.jitter_seed = id.into();
    config
}

/// Settings of a peer: both families, graceful restart, everything accepted.
pub(super) fn peer(own: Id, other: Id) -> PeerConfig {
    let mut config = PeerConfig::new(&format!("n{other}"), address(other), 0);
    config.families = Family::ALL.to_vec();
    config.next_hop_ipv6 = Some(format!("2001:db8::{own}").parse().unwrap());
    config.graceful_restart.enabled = true;
    config.import = ["0.0.0.0/0", "::/0"].map(|all| AllowedPrefix::or_longer(prefix(all))).to_vec();
    config
}

fn pair(a: Id, b: Id) -> (Id, Id) {
    (a.min(b), a.max(b))
}

impl Net {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { now, cores: BTreeMap::new(), wires: Vec::new(), cut: BTreeSet::new(), sent: Vec::new() }
    }

    /// Adds a speaker of AS 65000 + id.
    pub(super) fn add(&mut self, id: Id) {
        self.start(speaker(id, 65000 + u32::from(id)), id);
    }

    pub(super) fn start(&mut self, config: SpeakerConfig, id: Id) {
        self.cores.insert(id, Core::new(&config));
    }

    /// Two speakers become peers with the same changes to their settings.
    pub(super) fn join(&mut self, a: Id, b: Id, change: impl Fn(&mut PeerConfig)) {
        self.join_apart(a, b, &change, &change);
    }

    pub(super) fn join_apart(
        &mut self,
        a: Id,
        b: Id,
        of_a: impl Fn(&mut PeerConfig),
        of_b: impl Fn(&mut PeerConfig),
    ) {
        self.add_peer(a, b, of_a);
        self.add_peer(b, a, of_b);
    }

    pub(super) fn add_peer(&mut self, own: Id, other: Id, change: impl Fn(&mut PeerConfig)) {
        let mut config = peer(own, other);
        change(&mut config);
        let now = self.now;
        self.core(own).add_peer(now, config).unwrap();
    }

    pub(super) fn core(&mut self, id: Id) -> &mut Core {
        self.cores.get_mut(&id).unwrap()
    }

    fn other_end(&self, id: Id, connection: ConnectionId) -> Option<(Id, ConnectionId)> {
        self.wires.iter().find_map(|[a, b]| match (id, connection) {
            end if end == *a => Some(*b),
            end if end == *b => Some(*a),
            _ => None,
        })
    }

    pub(super) fn run(&mut self) {
        let ids: Vec<Id> = self.cores.keys().copied().collect();
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for id in &ids {
                while let Some(output) = self.core(*id).next_output() {
                    quiet = false;
                    self.carry_out(*id, output);
                }
            }
        }
    }

    fn carry_out(&mut self, id: Id, output: Output) {
        let now = self.now;
        match output {
            Output::Connect { peer, attempt, target } => self.connect(id, peer, attempt, &target),
            Output::Send { connection, bytes } => {
                if let Some((far, there)) = self.other_end(id, connection) {
                    self.deliver(id, far, there, &bytes);
                }
                self.core(id).drained(now, connection, bytes.len());
            }
            Output::Close { connection } => {
                if let Some((far, there)) = self.other_end(id, connection) {
                    self.wires.retain(|ends| !ends.contains(&(id, connection)));
                    self.core(far).lost(now, there, "closed by the peer");
                }
            }
            // Outputs that need no wire.
            _ => {}
        }
    }

    fn connect(&mut self, id: Id, peer: PeerId, attempt: u64, target: &Target) {
        let now = self.now;
        let IpAddr::V4(far) = target.remote.ip() else { panic!("no such speaker") };
        let far = far.octets()[3];
        if self.cut.contains(&pair(id, far)) || !self.cores.contains_key(&far) {
            return self.core(id).connect_failed(now, peer, attempt, "unreachable");
        }
        let local = SocketAddr::new(address(far), 179);
        let incoming = Incoming { remote: address(id), local, interface: None, ttl: Some(255) };
        let taken = self.core(far).accepted(now, &incoming);
        let Some((there, _)) = taken else {
            return self.core(id).connect_failed(now, peer, attempt, "refused");
        };
        match self.core(id).connected(now, peer, attempt, SocketAddr::new(address(id), 40000)) {
            Some(here) => self.wires.push([(id, here), (far, there)]),
            None => self.core(far).lost(now, there, "closed"),
        }
    }

    fn deliver(&mut self, from: Id, to: Id, there: ConnectionId, bytes: &[u8]) {
        let mut buffer = BytesMut::from(bytes);
        let max = self.core(to).message_max(there);
        let frames: Vec<Frame> =
            std::iter::from_fn(|| Frame::next_within(&mut buffer, max).unwrap()).collect();
        self.sent.extend(words(bytes).into_iter().map(|word| (from, to, word)));
        let now = self.now;
        self.core(to).frames(now, there, &frames);
    }

    /// Bytes that a speaker never said arrive as if it had.
    pub(super) fn inject(&mut self, from: Id, to: Id, bytes: &[u8]) {
        let end = self.wires.iter().find_map(|[a, b]| match (a.0, b.0) {
            ends if ends == (from, to) => Some(b.1),
            ends if ends == (to, from) => Some(a.1),
            _ => None,
        });
        self.deliver(from, to, end.unwrap(), bytes);
        self.run();
    }

    pub(super) fn wait(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        self.run();
        loop {
            let next = self.cores.values().filter_map(Core::next_deadline).min().filter(|at| *at <= end);
            let Some(at) = next else { break };
            self.now = self.now.max(at);
            let now = self.now;
            self.cores.values_mut().for_each(|core| core.tick(now));
            self.run();
        }
        self.now = end;
    }

    /// The connections between two speakers break without a word, and no new one comes about.
    pub(super) fn sever(&mut self, a: Id, b: Id) {
        self.cut.insert(pair(a, b));
        let now = self.now;
        let (broken, rest) =
            std::mem::take(&mut self.wires).into_iter().partition(|[x, y]| pair(x.0, y.0) == pair(a, b));
        self.wires = rest;
        let broken: Vec<[(Id, ConnectionId); 2]> = broken;
        for (id, connection) in broken.into_iter().flatten() {
            self.core(id).lost(now, connection, "reset");
        }
        self.run();
    }

    /// Nothing passes between two speakers any more, and neither notices.
    pub(super) fn silence(&mut self, a: Id, b: Id) {
        self.cut.insert(pair(a, b));
        self.wires.retain(|[x, y]| pair(x.0, y.0) != pair(a, b));
    }

    pub(super) fn heal(&mut self, a: Id, b: Id) {
        self.cut.remove(&pair(a, b));
    }

    pub(super) fn announce(&mut self, id: Id, text: &str) {
        self.announce_with(id, text, &[]);
    }

    pub(super) fn announce_with(&mut self, id: Id, text: &str, communities: &[&str]) {
        let communities = communities.iter().map(|community| community.parse().unwrap()).collect();
        let announcement = Announcement { communities, ..Announcement::default() };
        self.core(id).announce(Scope::All, prefix(text), announcement).unwrap();
        self.run();
    }

    pub(super) fn complete(&mut self, id: Id) {
        self.core(id).export_complete();
        self.run();
    }

    pub(super) fn up(&mut self, id: Id, other: Id) -> bool {
        let (now, name) = (self.now, format!("n{other}"));
        self.core(id).peers(now).iter().any(|peer| peer.name == name && peer.state == State::Established)
    }

    pub(super) fn last_error(&mut self, id: Id) -> String {
        let now = self.now;
        self.core(id).peers(now).remove(0).last_error.unwrap_or_default()
    }

    pub(super) fn rows(&mut self, id: Id, view: RouteView) -> Vec<RouteRow> {
        self.core(id).routes(view)
    }

    /// Routes in use: prefix, the peer's name, and what is special about them.
    pub(super) fn used(&mut self, id: Id) -> Vec<String> {
        let rows = self.rows(id, RouteView::Best);
        let special = |row: &RouteRow| {
            let communities = row.attributes.communities.iter().map(|community| format!(" {community}"));
            let stale = if row.stale { " stale" } else { "" };
            format!("{} {}{stale}{}", row.prefix, row.peer, communities.collect::<String>())
        };
        rows.iter().map(special).collect()
    }

    /// Messages from one speaker to another, by their words.
    pub(super) fn said(&self, from: Id, to: Id) -> Vec<&str> {
        let of_pair = self.sent.iter().filter(|(a, b, _)| (*a, *b) == (from, to));
        of_pair.map(|(.., word)| word.as_str()).collect()
    }
}

/// What bytes say, a word for each message.
fn words(bytes: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = bytes;
    while let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, high, low, kind, ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let body = &rest[19..len];
        let end_of_rib = len == 23 || len == 30 && body[..8] == [0, 0, 0, 7, 0x90, 15, 0, 3];
        words.push(match kind {
            1 => "open".to_owned(),
            2 if end_of_rib || len == 29 => "end-of-rib".to_owned(),
            2 => "update".to_owned(),
            3 => format!("notification {}/{}", body[0], body[1]),
            4 => "keepalive".to_owned(),
            _ => format!("refresh {}", body[2]),
        });
        rest = &rest[len..];
    }
    words
}
