//! Authentication of control packets: simple password and (meticulous) keyed SHA1 (RFC 5880 sections 6.7.2 and 6.7.4).
//!
//! MD5 is not offered: section 6.7 asks for SHA1 of those who authenticate at all, and MD5 is no longer worth a dependency.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::packet::{Frame, MANDATORY_LEN, Packet, Received};

const SIMPLE_PASSWORD: u8 = 1;
const KEYED_SHA1: u8 = 4;
const METICULOUS_KEYED_SHA1: u8 = 5;
/// Bytes of a SHA1 section: type, length, key id, reserved, sequence number, digest.
const SHA1_LEN: u8 = 28;
/// Where the digest begins in the packet.
const DIGEST_AT: usize = MANDATORY_LEN + 8;
/// Longest password (section 4.2) and longest SHA1 key (section 4.4).
pub(super) const PASSWORD_MAX: usize = 16;
pub(super) const KEY_MAX: usize = 20;

/// How packets of a session are authenticated; both sides must be told the same.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// A password in clear: against mistakes, not against attackers.
    Password {
        /// Key id.
        key_id: u8,
        /// 1 to 16 bytes.
        secret: String,
    },
    /// SHA1 over packet and key; the sequence number need not grow with every packet.
    KeyedSha1 {
        /// Key id.
        key_id: u8,
        /// 1 to 20 bytes.
        secret: String,
    },
    /// SHA1 over packet and key; a packet is never accepted twice.
    MeticulousKeyedSha1 {
        /// Key id.
        key_id: u8,
        /// 1 to 20 bytes.
        secret: String,
    },
}

/// The secret stays out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, key_id) = match self {
            Self::Password { key_id, .. } => ("Password", key_id),
            Self::KeyedSha1 { key_id, .. } => ("KeyedSha1", key_id),
            Self::MeticulousKeyedSha1 { key_id, .. } => ("MeticulousKeyedSha1", key_id),
        };
        f.debug_struct(name).field("key_id", key_id).finish_non_exhaustive()
    }
}

impl Auth {
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Password { secret, .. } if !(1..=PASSWORD_MAX).contains(&secret.len()) => {
                Err("a simple password has 1 to 16 bytes")
            }
            Self::KeyedSha1 { secret, .. } | Self::MeticulousKeyedSha1 { secret, .. }
                if !(1..=KEY_MAX).contains(&secret.len()) =>
            {
                Err("a SHA1 key has 1 to 20 bytes")
            }
            _ => Ok(()),
        }
    }

    const fn is_meticulous(&self) -> bool {
        matches!(self, Self::MeticulousKeyedSha1 { .. })
    }
}

/// The sequence numbers of one session (bfd.XmitAuthSeq, bfd.RcvAuthSeq, bfd.AuthSeqKnown).
#[derive(Clone, Debug)]
pub(super) struct Sequence {
    sent: u32,
    received: Option<u32>,
}

impl Sequence {
    /// `start` is random (section 6.8.1).
    pub(super) const fn new(start: u32) -> Self {
        Self { sent: start, received: None }
    }

    /// Nothing was heard for twice the detection time: any number is good again.
    pub(super) const fn forget(&mut self) {
        self.received = None;
    }
}

/// Writes a packet with its authentication section.
pub(super) fn seal(packet: &Packet, auth: Option<&Auth>, sequence: &mut Sequence) -> Frame {
    match auth {
        None => packet.encode(0),
        Some(Auth::Password { key_id, secret }) => {
            let len = u8::try_from(secret.len().min(PASSWORD_MAX)).unwrap_or_default() + 3;
            let mut frame = packet.encode(len);
            frame.push(&[SIMPLE_PASSWORD, len, *key_id]);
            frame.push(secret.as_bytes().get(..PASSWORD_MAX).unwrap_or(secret.as_bytes()));
            frame
        }
        Some(auth @ (Auth::KeyedSha1 { key_id, secret } | Auth::MeticulousKeyedSha1 { key_id, secret })) => {
            // Section 6.7.4: meticulous numbers grow with every packet; the others may, and it harms nobody.
            sequence.sent = sequence.sent.wrapping_add(1);
            let kind = if auth.is_meticulous() { METICULOUS_KEYED_SHA1 } else { KEYED_SHA1 };
            let mut frame = packet.encode(SHA1_LEN);
            frame.push(&[kind, SHA1_LEN, *key_id, 0]);
            frame.push(&sequence.sent.to_be_bytes());
            frame.push(&padded(secret));
            let digest = Sha1::digest(frame.as_bytes());
            frame.put(DIGEST_AT, &digest);
            frame
        }
    }
}

/// The key, padded with zeros to the digest's length.
fn padded(secret: &str) -> [u8; KEY_MAX] {
    let mut key = [0; KEY_MAX];
    key.iter_mut().zip(secret.bytes()).for_each(|(to, from)| *to = from);
    key
}

/// Whether a packet is what the session's settings ask for (section 6.7; the digest is compared in constant time).
pub(super) fn verify(
    received: Received<'_>,
    auth: Option<&Auth>,
    sequence: &mut Sequence,
    detect_mult: u8,
) -> bool {
    match (auth, received.section) {
        (None, None) => true,
        (Some(Auth::Password { key_id, secret }), Some(section)) => {
            let [kind, _, id, password @ ..] = section else { return false };
            *kind == SIMPLE_PASSWORD && id == key_id && same(password, secret.as_bytes())
        }
        (
            Some(auth @ (Auth::KeyedSha1 { key_id, secret } | Auth::MeticulousKeyedSha1 { key_id, secret })),
            Some(section),
        ) => {
            let [kind, SHA1_LEN, id, _, s0, s1, s2, s3, digest @ ..] = section else { return false };
            let wanted = if auth.is_meticulous() { METICULOUS_KEYED_SHA1 } else { KEYED_SHA1 };
            if *kind != wanted || id != key_id {
                return false;
            }
            let number = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
            if let Some(last) = sequence.received {
                let ahead = number.wrapping_sub(last);
                let least = u32::from(auth.is_meticulous());
                if !(least..=3 * u32::from(detect_mult)).contains(&ahead) {
                    return false;
                }
            }
            let mut hash = Sha1::new();
            hash.update(received.bytes.get(..DIGEST_AT).unwrap_or_default());
            hash.update(padded(secret));
            hash.update(received.bytes.get(DIGEST_AT + KEY_MAX..).unwrap_or_default());
            let good = same(digest, &hash.finalize());
            if good {
                sequence.received = Some(number);
            }
            good
        }
        _ => false,
    }
}

/// Equal, without telling by the time where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// Whether the last packet is so long ago that sequence numbers are forgotten (bfd.AuthSeqKnown).
pub(super) fn is_stale(last: Option<Instant>, now: Instant, detection: Duration) -> bool {
    last.is_some_and(|last| now.saturating_duration_since(last) > detection * 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bfd::packet::State;

    fn packet() -> Packet {
        Packet { state: State::Down, detect_mult: 3, my_discriminator: 7, ..Packet::default() }
    }

    fn accepted(frame: &Frame, auth: Option<&Auth>, sequence: &mut Sequence) -> bool {
        let (_, received) = Packet::decode(frame.as_bytes()).unwrap();
        verify(received, auth, sequence, 3)
    }

    #[test]
    fn each_kind_accepts_its_own_packets_and_no_others() {
        let (key_id, secret) = (5, String::from("dune grass"));
        let kinds = [
            Auth::Password { key_id, secret: secret.clone() },
            Auth::KeyedSha1 { key_id, secret: secret.clone() },
            Auth::MeticulousKeyedSha1 { key_id, secret },
        ];
        for kind in &kinds {
            let frame = seal(&packet(), Some(kind), &mut Sequence::new(u32::MAX));
            for other in &kinds {
                let good = accepted(&frame, Some(other), &mut Sequence::new(0));
                assert_eq!(good, kind == other, "{kind:?} judged by {other:?}");
            }
            assert!(!accepted(&frame, None, &mut Sequence::new(0)), "nobody asked for {kind:?}");
            let bare = seal(&packet(), None, &mut Sequence::new(0));
            assert!(!accepted(&bare, Some(kind), &mut Sequence::new(0)), "{kind:?} is required");
            assert!(!format!("{kind:?}").contains("dune"), "the secret is printed");
        }
    }

    #[test]
    fn a_changed_packet_or_key_is_refused() {
        let auth = Auth::KeyedSha1 { key_id: 1, secret: "a".into() };
        let frame = seal(&packet(), Some(&auth), &mut Sequence::new(1));
        for at in 4..frame.as_bytes().len() {
            let mut bytes = frame.as_bytes().to_vec();
            bytes[at] ^= 1;
            let Ok((_, received)) = Packet::decode(&bytes) else { continue };
            // The reserved byte and everything else is covered by the digest.
            assert!(!verify(received, Some(&auth), &mut Sequence::new(0), 3), "byte {at}");
        }
        let other = Auth::KeyedSha1 { key_id: 1, secret: "b".into() };
        assert!(!accepted(&frame, Some(&other), &mut Sequence::new(0)));
    }

    #[test]
    fn sequence_numbers_follow_section_6_7_4() {
        let secret = String::from("k");
        let loose = Auth::KeyedSha1 { key_id: 1, secret: secret.clone() };
        let strict = Auth::MeticulousKeyedSha1 { key_id: 1, secret };
        for (auth, replay) in [(loose, true), (strict, false)] {
            let mut receiver = Sequence::new(0);
            let mut sender = Sequence::new(u32::MAX - 1);
            let first = seal(&packet(), Some(&auth), &mut sender);
            assert!(accepted(&first, Some(&auth), &mut receiver));
            assert_eq!(accepted(&first, Some(&auth), &mut receiver), replay, "{auth:?}");
            // Over the wrap.
            assert!(accepted(&seal(&packet(), Some(&auth), &mut sender), Some(&auth), &mut receiver));
            sender.sent = sender.sent.wrapping_add(9);
            let far = seal(&packet(), Some(&auth), &mut sender);
            assert!(!accepted(&far, Some(&auth), &mut receiver), "more than 3 x Detect Mult ahead");
            receiver.forget();
            assert!(accepted(&far, Some(&auth), &mut receiver));
        }
    }
}
