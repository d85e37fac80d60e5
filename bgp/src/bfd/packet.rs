//! The BFD control packet (RFC 5880 section 4.1): bytes to values and back, bounded, one pass.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of the mandatory section.
pub(super) const MANDATORY_LEN: usize = 24;
/// Longest control packet written here: the mandatory section and keyed SHA1 (RFC 5880 section 4.4).
pub(super) const FRAME_MAX: usize = MANDATORY_LEN + 28;
/// The protocol's version.
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const INDEPENDENT: u8 = 0x08;
const AUTHENTICATED: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// State of a session (RFC 5880 section 4.1, "Sta").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Held down by the operator; says nothing about the path.
    AdminDown,
    /// The session is down, or was just made.
    #[default]
    Down,
    /// The remote system is heard, and does not yet say that it hears this one.
    Init,
    /// Both sides hear each other.
    Up,
}

impl State {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    const fn bits(self) -> u8 {
        match self {
            Self::AdminDown => 0,
            Self::Down => 1,
            Self::Init => 2,
            Self::Up => 3,
        }
    }

    /// The name as it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AdminDown => "admin_down",
            Self::Down => "down",
            Self::Init => "init",
            Self::Up => "up",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the session last changed its state (RFC 5880 section 4.1, "Diag"); reserved codes are kept as they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// No diagnostic.
    pub const NONE: Self = Self(0);
    /// No packet came for the detection time.
    pub const DETECTION_TIME_EXPIRED: Self = Self(1);
    /// The neighbour said that its side is down.
    pub const NEIGHBOR_SIGNALED_DOWN: Self = Self(3);
    /// Held down by the operator.
    pub const ADMINISTRATIVELY_DOWN: Self = Self(7);

    /// The code in words.
    pub const fn text(self) -> &'static str {
        match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            _ => "reserved code",
        }
    }
}

/// Why bytes are no control packet (RFC 5880 section 6.8.6, the checks before a session is looked up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Fewer bytes than the length field says, or than any packet has.
    #[error("the packet is cut short")]
    Short,
    /// Not version 1.
    #[error("the version is {0}, not 1")]
    Version(u8),
    /// The length field is less than the sections need.
    #[error("the length field says {0}")]
    Length(u8),
    /// Detect Mult is zero.
    #[error("the detection multiplier is 0")]
    DetectMult,
    /// The multipoint bit is set.
    #[error("the multipoint bit is set")]
    Multipoint,
    /// My Discriminator is zero.
    #[error("my discriminator is 0")]
    MyDiscriminator,
    /// Your Discriminator is zero although the state is neither Down nor AdminDown.
    #[error("your discriminator is 0 in state {0}")]
    YourDiscriminator(State),
    /// Poll and Final are both set (section 4.1 says they must not be).
    #[error("poll and final are both set")]
    PollAndFinal,
    /// The authentication section does not fit its own length.
    #[error("the authentication section is malformed")]
    Authentication,
}

/// The mandatory section of a control packet. Intervals are in microseconds, as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Reason of the sender's last change of state.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender asks for a packet with `is_final`.
    pub poll: bool,
    /// An answer to a poll.
    pub is_final: bool,
    /// The sender's BFD does not share fate with its control plane.
    pub control_plane_independent: bool,
    /// The sender is in demand mode.
    pub demand: bool,
    /// Detection time multiplier; not 0.
    pub detect_mult: u8,
    /// The sender's discriminator; not 0.
    pub my_discriminator: u32,
    /// The receiver's discriminator as the sender knows it; 0 if it does not.
    pub your_discriminator: u32,
    /// Shortest interval at which the sender would like to send.
    pub desired_min_tx_us: u32,
    /// Shortest interval at which the sender can receive; 0: do not send periodically.
    pub required_min_rx_us: u32,
    /// Shortest interval of echo packets the sender returns; 0: none.
    pub required_min_echo_rx_us: u32,
}

/// A control packet as bytes, without an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    bytes: [u8; FRAME_MAX],
    len: usize,
}

impl Frame {
    /// The bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Appends bytes; what exceeds the longest packet is left out, which no caller in this crate does.
    pub(super) fn push(&mut self, more: &[u8]) {
        let end = (self.len + more.len()).min(FRAME_MAX);
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.iter_mut().zip(more).for_each(|(to, from)| *to = *from);
            self.len = end;
        }
    }

    /// Overwrites bytes from `at`.
    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(at..at + bytes.len()) {
            room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_be_bytes(word))
}

impl Packet {
    /// Reads a packet; also gives the authentication section, if there is one, and the packet's own bytes without what
    /// may follow them in the datagram.
    ///
    /// # Errors
    /// What RFC 5880 section 6.8.6 discards before it looks for a session.
    pub fn decode(datagram: &[u8]) -> Result<(Self, Received<'_>), PacketError> {
        let head: [u8; 4] =
            datagram.get(..4).and_then(|head| head.try_into().ok()).ok_or(PacketError::Short)?;
        let [first, flags, detect_mult, length] = head;
        if first >> 5 != VERSION {
            return Err(PacketError::Version(first >> 5));
        }
        let authenticated = flags & AUTHENTICATED != 0;
        let least = if authenticated { MANDATORY_LEN + 2 } else { MANDATORY_LEN };
        if usize::from(length) < least {
            return Err(PacketError::Length(length));
        }
        let bytes = datagram.get(..usize::from(length)).ok_or(PacketError::Short)?;
        let word = |at| u32_at(bytes, at).ok_or(PacketError::Short);
        let packet = Self {
            diagnostic: Diagnostic(first & 0x1f),
            state: State::from_bits(flags >> 6),
            poll: flags & POLL != 0,
            is_final: flags & FINAL != 0,
            control_plane_independent: flags & INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            detect_mult,
            my_discriminator: word(4)?,
            your_discriminator: word(8)?,
            desired_min_tx_us: word(12)?,
            required_min_rx_us: word(16)?,
            required_min_echo_rx_us: word(20)?,
        };
        packet.check(flags)?;
        let section = if authenticated {
            let section = bytes.get(MANDATORY_LEN..).ok_or(PacketError::Short)?;
            // Auth Len covers the section, type and itself included (section 4.2 to 4.4).
            let len = section.get(1).copied().map(usize::from).ok_or(PacketError::Short)?;
            Some(section.get(..len).filter(|_| len >= 3).ok_or(PacketError::Authentication)?)
        } else {
            None
        };
        Ok((packet, Received { bytes, section }))
    }

    fn check(&self, flags: u8) -> Result<(), PacketError> {
        if self.detect_mult == 0 {
            return Err(PacketError::DetectMult);
        }
        if flags & MULTIPOINT != 0 {
            return Err(PacketError::Multipoint);
        }
        if self.poll && self.is_final {
            return Err(PacketError::PollAndFinal);
        }
        if self.my_discriminator == 0 {
            return Err(PacketError::MyDiscriminator);
        }
        if self.your_discriminator == 0 && !matches!(self.state, State::Down | State::AdminDown) {
            return Err(PacketError::YourDiscriminator(self.state));
        }
        Ok(())
    }

    /// Writes the mandatory section, its length field as if an authentication section of `auth_len` bytes followed.
    pub fn encode(&self, auth_len: u8) -> Frame {
        let mut flags = self.state.bits() << 6;
        for (set, bit) in [
            (self.poll, POLL),
            (self.is_final, FINAL),
            (self.control_plane_independent, INDEPENDENT),
            (auth_len > 0, AUTHENTICATED),
            (self.demand, DEMAND),
        ] {
            if set {
                flags |= bit;
            }
        }
        let mandatory = u8::try_from(MANDATORY_LEN).unwrap_or(u8::MAX);
        let mut frame = Frame { bytes: [0; FRAME_MAX], len: 0 };
        let first = (VERSION << 5) | (self.diagnostic.0 & 0x1f);
        frame.push(&[first, flags, self.detect_mult, mandatory.saturating_add(auth_len)]);
        for word in [
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx_us,
            self.required_min_rx_us,
            self.required_min_echo_rx_us,
        ] {
            frame.push(&word.to_be_bytes());
        }
        frame
    }
}

/// The bytes a packet was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The packet, as long as its length field says.
    pub bytes: &'a [u8],
    /// The authentication section: type, length and the rest.
    pub section: Option<&'a [u8]>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsm::Jitter;

    fn sample() -> Packet {
        Packet {
            diagnostic: Diagnostic::DETECTION_TIME_EXPIRED,
            state: State::Up,
            poll: true,
            control_plane_independent: true,
            detect_mult: 3,
            my_discriminator: 0x0102_0304,
            your_discriminator: 0x0a0b_0c0d,
            desired_min_tx_us: 50_000,
            required_min_rx_us: 60_000,
            ..Packet::default()
        }
    }

    #[test]
    fn the_bytes_are_those_of_rfc_5880_section_4_1() {
        let frame = sample().encode(0);
        let expected =
            [0x21, 0xe8, 3, 24, 1, 2, 3, 4, 10, 11, 12, 13, 0, 0, 0xc3, 0x50, 0, 0, 0xea, 0x60, 0, 0, 0, 0];
        assert_eq!(frame.as_bytes(), expected);
        let (packet, received) = Packet::decode(&expected).unwrap();
        assert_eq!((packet, received.section), (sample(), None));
    }

    #[test]
    fn what_section_6_8_6_discards_is_refused_by_name() {
        let good = sample().encode(0).as_bytes().to_vec();
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            Packet::decode(&bytes).map(|_| ())
        };
        assert_eq!(with(0, 0x41), Err(PacketError::Version(2)));
        assert_eq!(with(3, 23), Err(PacketError::Length(23)));
        assert_eq!(with(3, 25), Err(PacketError::Short));
        assert_eq!(with(2, 0), Err(PacketError::DetectMult));
        assert_eq!(with(1, 0xc1), Err(PacketError::Multipoint));
        assert_eq!(with(1, 0xf0), Err(PacketError::PollAndFinal));
        assert_eq!(with(1, 0xc4), Err(PacketError::Length(24)), "A bit without a section");
        let mut none = sample();
        none.your_discriminator = 0;
        let refused = Packet::decode(none.encode(0).as_bytes()).map(|_| ());
        assert_eq!(refused, Err(PacketError::YourDiscriminator(State::Up)));
        none.state = State::Down;
        assert!(Packet::decode(none.encode(0).as_bytes()).is_ok());
        none.my_discriminator = 0;
        assert!(Packet::decode(none.encode(0).as_bytes()).is_err());
        // What follows the packet in the datagram is no part of it.
        let mut longer = good.clone();
        longer.extend([0xff; 40]);
        assert_eq!(Packet::decode(&longer).unwrap().1.bytes, good);
    }

    #[test]
    fn mutated_packets_never_panic_and_what_is_read_is_written_back() {
        let seed = 0x0bfd;
        let mut random = Jitter::new(seed);
        let mut read = 0;
        for round in 0..200_000 {
            let mut bytes = sample().encode(if round % 2 == 0 { 28 } else { 0 }).as_bytes().to_vec();
            bytes.resize(usize::try_from(random.next() % 70).unwrap().max(20), 28);
            for _ in 0..random.next() % 4 {
                let at = usize::try_from(random.next()).unwrap() % bytes.len();
                bytes[at] = u8::try_from(random.next() & 0xff).unwrap();
            }
            let Ok((packet, received)) = Packet::decode(&bytes) else { continue };
            read += 1;
            let auth = u8::try_from(received.bytes.len() - MANDATORY_LEN).unwrap();
            let again = packet.encode(if received.section.is_some() { auth } else { 0 });
            if received.section.is_some() || auth == 0 {
                assert_eq!(again.as_bytes(), &bytes[..MANDATORY_LEN], "seed {seed}, round {round}");
            }
        }
        assert!(read > 20_000, "the mutations shall not spoil everything: {read}");
    }
}
