//! The codec: bytes to messages and back. Strict in what is accepted, canonical in what is sent, and without panics on any input.
//!
//! Errors that end the session are [`Notification`]s; errors in one attribute cost no more than RFC 7606 says.

mod as_path;
mod attributes;
mod capability;
mod cursor;
mod encode;
mod nlri;
mod notification;
mod open;
mod update;
#[cfg(test)]
mod update_tests;
mod walk;

pub use as_path::{AS_TRANS, AsPath, Segment, SegmentKind};
pub use attributes::{Aggregator, Attributes, Community, LargeCommunity, Origin, RawAttribute};
pub use capability::{Capability, GracefulRestartCapability, GracefulRestartFamily};
pub use encode::{EncodeContext, announce, end_of_rib, withdraw};
pub use notification::{Notification, cease, code};
pub use open::Open;
pub use update::{Fault, Reach, Treatment, Update, UpdateContext};

use bytes::{Buf, Bytes, BytesMut};

use crate::family::Family;
use cursor::{Cursor, len16};

/// Bytes of the header (RFC 4271 section 4.1).
pub const HEADER_LEN: usize = 19;
/// Longest message (RFC 4271 section 4.1).
pub const MESSAGE_MAX: usize = 4096;
/// Marker, all ones.
const MARKER: [u8; 16] = [0xff; 16];

/// Message types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// Opens a session.
    Open,
    /// Carries routes.
    Update,
    /// Ends a session.
    Notification,
    /// Keeps a session.
    Keepalive,
    /// Asks for routes again (RFC 2918).
    RouteRefresh,
}

impl MessageType {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Open,
            2 => Self::Update,
            3 => Self::Notification,
            4 => Self::Keepalive,
            5 => Self::RouteRefresh,
            _ => return None,
        })
    }

    const fn code(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Update => 2,
            Self::Notification => 3,
            Self::Keepalive => 4,
            Self::RouteRefresh => 5,
        }
    }

    /// Whether a whole message of this type may have this length.
    const fn length_fits(self, len: usize) -> bool {
        match self {
            Self::Open => len >= 29,
            Self::Update => len >= 23,
            Self::Notification => len >= 21,
            Self::Keepalive => len == HEADER_LEN,
            // RFC 2918 says 23; a longer one carries outbound route filters, which this speaker never asked for.
            Self::RouteRefresh => len >= 23,
        }
    }
}

/// One framed message, body not yet decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: MessageType,
    /// What follows the header.
    pub body: Bytes,
}

impl Frame {
    /// Takes the next whole message off the front of a receive buffer.
    ///
    /// # Errors
    /// A header error (RFC 4271 section 6.1); the stream cannot be read further after it.
    pub fn next(buffer: &mut BytesMut) -> Result<Option<Self>, Notification> {
        let mut cursor = Cursor::new(buffer);
        let Some(marker) = cursor.array::<16>() else { return Ok(None) };
        if marker != MARKER {
            return Err(Notification::new(code::HEADER, 1));
        }
        let (Some(len), Some(kind)) = (cursor.u16(), cursor.u8()) else { return Ok(None) };
        let bad_length = || Notification::with_data(code::HEADER, 2, &len.to_be_bytes());
        let total = usize::from(len);
        if !(HEADER_LEN..=MESSAGE_MAX).contains(&total) {
            return Err(bad_length());
        }
        let kind =
            MessageType::from_code(kind).ok_or_else(|| Notification::with_data(code::HEADER, 3, &[kind]))?;
        if !kind.length_fits(total) {
            return Err(bad_length());
        }
        if buffer.len() < total {
            return Ok(None);
        }
        let mut message = buffer.split_to(total);
        message.advance(HEADER_LEN);
        Ok(Some(Self { kind, body: message.freeze() }))
    }
}

/// Appends a header for a body that `write` appends; the length is filled in afterwards.
fn frame(kind: MessageType, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(MARKER);
    out.extend([0, 0, kind.code()]);
    write(out);
    let len = len16(out.len() - start).to_be_bytes();
    debug_assert!(out.len() - start <= MESSAGE_MAX, "message longer than RFC 4271 allows");
    if let Some(field) = out.get_mut(start + 16..start + 18) {
        field.copy_from_slice(&len);
    }
}

/// A KEEPALIVE message.
pub fn keepalive() -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN);
    frame(MessageType::Keepalive, &mut out, |_| {});
    out
}

/// An OPEN message.
pub fn open(open: &Open) -> Vec<u8> {
    let mut out = Vec::new();
    frame(MessageType::Open, &mut out, |out| open.encode_body(out));
    out
}

/// A NOTIFICATION message.
pub fn notification(notification: &Notification) -> Vec<u8> {
    let mut out = Vec::new();
    frame(MessageType::Notification, &mut out, |out| notification.encode_body(out));
    out
}

/// A ROUTE-REFRESH message (RFC 2918).
pub fn route_refresh(family: Family) -> Vec<u8> {
    let mut out = Vec::new();
    frame(MessageType::RouteRefresh, &mut out, |out| {
        out.extend(family.afi().to_be_bytes());
        out.extend([0, family.safi()]);
    });
    out
}

/// A decoded message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Opens a session.
    Open(Open),
    /// Carries routes.
    Update(Box<Update>),
    /// Ends a session.
    Notification(Notification),
    /// Keeps a session.
    Keepalive,
    /// Asks for a family again; `None` for a family or subtype this speaker does not carry (ignored, RFC 2918 section 4).
    RouteRefresh(Option<Family>),
}

impl Message {
    /// Decodes a frame's body.
    ///
    /// # Errors
    /// The NOTIFICATION to send before the session is closed.
    pub fn decode(frame: &Frame, context: &UpdateContext) -> Result<Self, Notification> {
        Ok(match frame.kind {
            MessageType::Open => Self::Open(Open::decode(&frame.body)?),
            MessageType::Update => Self::Update(Box::new(Update::decode(&frame.body, context)?)),
            MessageType::Notification => Self::Notification(
                Notification::decode(&frame.body).ok_or_else(|| Notification::new(code::HEADER, 2))?,
            ),
            MessageType::Keepalive => Self::Keepalive,
            MessageType::RouteRefresh => {
                let mut cursor = Cursor::new(&frame.body);
                let (Some(afi), Some(subtype), Some(safi)) = (cursor.u16(), cursor.u8(), cursor.u8()) else {
                    return Err(Notification::new(code::ROUTE_REFRESH, 1));
                };
                Self::RouteRefresh((subtype == 0).then(|| Family::from_codes(afi, safi)).flatten())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_wait_for_all_their_bytes() {
        let wire = keepalive();
        for cut in 0..wire.len() {
            assert_eq!(Frame::next(&mut BytesMut::from(&wire[..cut])), Ok(None), "cut at {cut}");
        }
        let mut buffer = BytesMut::from(&[wire.clone(), wire].concat()[..]);
        for _ in 0..2 {
            assert_eq!(Frame::next(&mut buffer).unwrap().unwrap().kind, MessageType::Keepalive);
        }
        assert!(buffer.is_empty());
    }

    #[test]
    fn header_errors_name_what_was_wrong() {
        let mut marker = keepalive();
        marker[3] = 0;
        let mut short = keepalive();
        short[17] = 18;
        let mut long = keepalive();
        long[16] = 0x10;
        long[17] = 1;
        let mut kind = keepalive();
        kind[18] = 9;
        let mut padded = keepalive();
        padded[17] = 20;
        for (wire, subcode, data) in [
            (marker, 1, vec![]),
            (short, 2, vec![0, 18]),
            (long, 2, vec![0x10, 1]),
            (kind, 3, vec![9]),
            (padded, 2, vec![0, 20]),
        ] {
            let error = Frame::next(&mut BytesMut::from(&wire[..])).unwrap_err();
            assert_eq!((error.code, error.subcode, error.data), (1, subcode, data));
        }
    }

    #[test]
    fn route_refresh_round_trips() {
        let mut buffer = BytesMut::from(&route_refresh(Family::Ipv6Unicast)[..]);
        let frame = Frame::next(&mut buffer).unwrap().unwrap();
        let message = Message::decode(&frame, &UpdateContext::default()).unwrap();
        assert_eq!(message, Message::RouteRefresh(Some(Family::Ipv6Unicast)));
    }
}
