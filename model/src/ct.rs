//! Connection tracking (`ebpf/bpf/ct.h`): half-open flows, established ones, and how long each lives.

use crate::packet::{Protocol, Socket, TCP, TcpFlags, Tuple};
use std::collections::BTreeMap;

const SECOND_NS: u64 = 1_000_000_000;

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The source is a pod of this node.
    Egress,
    /// The destination is a pod of this node.
    Ingress,
    /// Client to frontend; remembers the backend.
    Service,
    /// The destination is the node itself.
    HostIn,
    /// The source is the node itself.
    HostOut,
}

/// What an entry is found by: the flow as its opener sends it, behind the translation, or before it for
/// [`Kind::Service`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What it is about.
    pub kind: Kind,
    /// The flow.
    pub tuple: Tuple,
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As the flow's first packet.
    Opening,
    /// Against it.
    Answering,
}

/// Signs of life and death that a flow has shown. They never go; a new connection of the same tuple has a new entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signs {
    /// It was answered.
    pub replied: bool,
    /// The opener has sent something after the answer, so it is where it says.
    pub confirmed: bool,
    /// The opener closes.
    pub closing_opener: bool,
    /// The answering end closes.
    pub closing_answerer: bool,
}

impl Signs {
    /// What a packet says of a connection of which `self` is known.
    pub(crate) fn shown_by(self, sight: &Sight, way: Way) -> Self {
        let replied = way == Way::Answering;
        let opens = sight.protocol == TCP && sight.flags.any(TcpFlags::SYN | TcpFlags::RST);
        let confirmed = !replied && self.replied && !opens;
        if sight.protocol != TCP {
            return Self { replied, confirmed, ..Self::default() };
        }
        let reset = sight.flags.any(TcpFlags::RST);
        let finished = sight.flags.any(TcpFlags::FIN);
        Self {
            replied,
            confirmed,
            closing_opener: reset || (finished && !replied),
            closing_answerer: reset || (finished && replied),
        }
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self {
            replied: self.replied || other.replied,
            confirmed: self.confirmed || other.confirmed,
            closing_opener: self.closing_opener || other.closing_opener,
            closing_answerer: self.closing_answerer || other.closing_answerer,
        }
    }

    pub(crate) const fn closing(self) -> bool {
        self.closing_opener || self.closing_answerer
    }

    /// Whether such a flow belongs to the established ones: anybody can make a server answer by a SYN or a question under
    /// a false address, so the opener must have spoken again.
    #[must_use]
    pub const fn last(self) -> bool {
        self.replied && self.confirmed
    }

    /// How long such a flow lives after its last packet, in nanoseconds.
    #[must_use]
    pub const fn life_ns(self, protocol: Protocol) -> u64 {
        let seconds = match (self.closing_opener, self.closing_answerer) {
            _ if protocol != TCP => 60,
            (true, true) => 10,
            (false, false) if self.last() => 8000,
            (false, false) => 60,
            _ => 120,
        };
        seconds * SECOND_NS
    }
}

/// What conntrack learns from a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) now_ns: u64,
    pub(crate) protocol: Protocol,
    pub(crate) flags: TcpFlags,
    /// An error speaks of a flow without being part of it.
    pub(crate) is_error: bool,
    pub(crate) bytes: u64,
}

impl Sight {
    /// Whether it asks for a new connection.
    pub(crate) fn opens(&self) -> bool {
        self.protocol == TCP && !self.is_error && self.flags.opens()
    }

    /// Whether only a connection that began before sends it.
    pub(crate) fn under_way(&self) -> bool {
        self.protocol == TCP && !self.is_error && !self.flags.any(TcpFlags::SYN)
    }
}

/// A tracked flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// When it ends, in nanoseconds of the caller's clock.
    pub expires_ns: u64,
    /// Packets in the opening and the answering direction.
    pub packets: [u64; 2],
    /// Bytes of IP in the opening and the answering direction.
    pub bytes: [u64; 2],
    /// The peer's identity: of the source for [`Kind::Ingress`], of the destination for [`Kind::Egress`].
    pub identity: u32,
    /// The number of the reverse translation; 0: none.
    pub rev_nat: u32,
    /// What it has shown.
    pub signs: Signs,
    /// A pod that reaches itself through a service.
    pub loopback: bool,
    /// [`Kind::Service`]: the backend's number, and whom it meant when it was chosen.
    pub backend: Option<(u32, Socket)>,
}

impl Entry {
    /// An entry that has ended counts as none, as does a closed one that a SYN opens again. A service's entry sees only
    /// the client's packets, so the client's FIN closes it.
    fn serves(&self, kind: Kind, sight: &Sight) -> bool {
        let closed = self.signs.closing_opener && (self.signs.closing_answerer || kind == Kind::Service);
        self.expires_ns >= sight.now_ns && !(closed && sight.opens())
    }

    fn count(&mut self, sight: &Sight, way: Way) {
        let [opening, answering] = &mut self.packets;
        *(if way == Way::Opening { opening } else { answering }) += 1;
        let [opening, answering] = &mut self.bytes;
        *(if way == Way::Opening { opening } else { answering }) += sight.bytes;
    }
}

/// Both tables. A flow stands in one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Flows that may be a flood. The programs' table forgets the least recently used; this one nothing.
    pub half: BTreeMap<Key, Entry>,
    /// Flows whose ends both exist.
    pub established: BTreeMap<Key, Entry>,
}

impl Conntrack {
    /// The entry, if it counts for this packet, and whether it is half-open.
    pub(crate) fn find(&mut self, key: &Key, sight: &Sight) -> Option<(&mut Entry, bool)> {
        let serves = |entry: &&mut Entry| entry.serves(key.kind, sight);
        let established = self.established.get_mut(key).filter(serves).map(|entry| (entry, false));
        established.or_else(|| self.half.get_mut(key).filter(serves).map(|entry| (entry, true)))
    }

    /// Whether the flow is one that its sender opened, established, untranslated and with no end in sight: then it is asked
    /// for nothing else. Asked of the end that more likely opened it: clients have the higher ports, and the asked end of
    /// an echo has port 0.
    pub(crate) fn runs(&self, key: &Key, sight: &Sight) -> bool {
        let opener = key.tuple.source.1 > key.tuple.destination.1 && !sight.is_error;
        opener
            && self.established.get(key).is_some_and(|entry| {
                let translated = key.kind == Kind::Egress && entry.rev_nat != 0;
                entry.expires_ns >= sight.now_ns && !entry.signs.closing() && !translated
            })
    }

    /// Counts a packet of a known flow and keeps it alive. Returns what the flow has shown by then; nothing for an error.
    pub(crate) fn touch(&mut self, key: &Key, sight: &Sight, way: Way) -> Signs {
        if sight.is_error {
            return Signs::default();
        }
        let Some((entry, half)) = self.find(key, sight) else { return Signs::default() };
        entry.signs = entry.signs.and(entry.signs.shown_by(sight, way));
        // Programs before this one asked for no confirmation.
        entry.signs.confirmed |= !half;
        entry.count(sight, way);
        entry.expires_ns = sight.now_ns + entry.signs.life_ns(sight.protocol);
        let signs = entry.signs;
        self.promote(key, signs);
        signs
    }

    fn promote(&mut self, key: &Key, signs: Signs) {
        if signs.last()
            && let Some(entry) = self.half.remove(key)
        {
            self.established.insert(*key, entry);
        }
    }

    /// User space deletes established flows that have ended; half-open ones make room for others.
    pub(crate) fn collect(&mut self, now_ns: u64) {
        self.established.retain(|_, entry| entry.expires_ns >= now_ns);
    }

    /// A new flow, in place of what was known under its key. Its first packet's flags say nothing.
    pub(crate) fn create(&mut self, key: Key, sight: &Sight, entry: Entry) {
        self.established.remove(&key);
        let mut entry =
            Entry { expires_ns: sight.now_ns + Signs::default().life_ns(sight.protocol), ..entry };
        entry.count(sight, Way::Opening);
        self.half.insert(key, entry);
    }

    /// The flow behind the translation shows `signs`: the memory of its backend, which sees the client's packets alone,
    /// must live and die with it.
    pub(crate) fn answered(&mut self, key: &Key, sight: &Sight, signs: Signs) {
        let entry = match self.half.get_mut(key) {
            None if signs.closing() => self.established.get_mut(key),
            entry => entry,
        };
        let Some(entry) = entry else { return };
        let all = entry.signs.and(signs);
        if all != entry.signs {
            entry.signs = all;
            entry.expires_ns = sight.now_ns + all.life_ns(sight.protocol);
            self.promote(key, all);
        }
    }
}
