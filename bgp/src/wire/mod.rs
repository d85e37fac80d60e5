//! The codec: bytes to messages and back. Strict in what is accepted, canonical in what is sent, and without panics on any input.
//!
//! Errors that end the session are [`Notification`]s; errors in one attribute cost no more than RFC 7606 says.

mod as_path;
mod attributes;
mod capability;
pub(crate) mod cursor;
mod encode;
mod next_hop;
mod nlri;
mod notification;
mod open;
mod refresh;
mod service;
#[cfg(test)]
mod service_tests;
mod update;
#[cfg(test)]
mod update_tests;
mod view;
#[cfg(test)]
mod view_tests;
mod walk;

pub use as_path::{AS_TRANS, AsPath, Segment, SegmentKind};
pub use attributes::{Aggregator, Attributes, Community, LargeCommunity, Origin, Partial, RawAttribute};
pub(crate) use capability::STALE_TIME_MAX;
pub use capability::{
    AddPath, Capability, ExtendedNextHop, GracefulRestartCapability, GracefulRestartFamily, LongLivedFamily,
};
pub use encode::{Announcer, EncodeContext, announce, end_of_rib, withdraw, withdraw_with};
pub use nlri::{Destination, Nlri, Route, Routes, Services};
pub use notification::{Notification, cease, code};
pub use open::Open;
pub use refresh::{RefreshKind, RouteRefresh};
pub use service::{EvpnPrefix, Service, ServiceNlri};
pub use update::{Fault, Reach, Treatment, Update, UpdateContext};
pub use view::{AttributeKey, ReachView, UpdateView, Verdict};
pub use walk::AttributeSet;

use bytes::{Buf, Bytes, BytesMut};

use crate::family::Family;
use cursor::{Cursor, len16};

/// Bytes of the header (RFC 4271 section 4.1).
pub const HEADER_LEN: usize = 19;
/// Longest message (RFC 4271 section 4.1).
pub const MESSAGE_MAX: usize = 4096;
/// Longest message where extended messages were offered (RFC 8654 section 3).
pub const EXTENDED_MESSAGE_MAX: usize = 65_535;
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

    pub(crate) const fn code(self) -> u8 {
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
            // RFC 8654 section 4: OPEN and KEEPALIVE are never extended.
            Self::Open => len >= 29 && len <= MESSAGE_MAX,
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
    /// Takes the next whole message off the front of a receive buffer, where extended messages were not offered.
    ///
    /// # Errors
    /// A header error (RFC 4271 section 6.1); the stream cannot be read further after it.
    pub fn next(buffer: &mut BytesMut) -> Result<Option<Self>, Notification> {
        Self::next_within(buffer, MESSAGE_MAX)
    }

    /// Takes the next whole message of at most `max` bytes: [`EXTENDED_MESSAGE_MAX`] if this speaker offered extended messages, whatever the
    /// peer did (RFC 8654 section 4), else [`MESSAGE_MAX`].
    ///
    /// # Errors
    /// A header error (RFC 4271 section 6.1); the stream cannot be read further after it.
    pub fn next_within(buffer: &mut BytesMut, max: usize) -> Result<Option<Self>, Notification> {
        let mut cursor = Cursor::new(buffer);
        let Some(marker) = cursor.array::<16>() else { return Ok(None) };
        if marker != MARKER {
            return Err(Notification::new(code::HEADER, 1));
        }
        let (Some(len), Some(kind)) = (cursor.u16(), cursor.u8()) else { return Ok(None) };
        let bad_length = || Notification::with_data(code::HEADER, 2, &len.to_be_bytes());
        let total = usize::from(len);
        if !(HEADER_LEN..=max).contains(&total) {
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
    debug_assert!(out.len() - start <= EXTENDED_MESSAGE_MAX, "message longer than RFC 8654 allows");
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

/// A ROUTE-REFRESH message that asks for a family (RFC 2918).
pub fn route_refresh(family: Family) -> Vec<u8> {
    refresh(&RouteRefresh::new(family, RefreshKind::Request))
}

/// A ROUTE-REFRESH message of any kind (RFC 7313).
pub fn refresh(refresh: &RouteRefresh) -> Vec<u8> {
    let mut out = Vec::new();
    frame(MessageType::RouteRefresh, &mut out, |out| refresh.encode_body(out));
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
    /// Asks for a family again, or says where the answer begins and ends.
    RouteRefresh(RouteRefresh),
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
            MessageType::RouteRefresh => Self::RouteRefresh(RouteRefresh::decode(&frame.body)?),
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
        let asked = RouteRefresh::new(Family::Ipv6Unicast, RefreshKind::Request);
        assert_eq!(message, Message::RouteRefresh(asked));
    }

    #[test]
    fn extended_messages_are_read_only_where_offered_and_never_for_open_and_keepalive() {
        let framed = |kind: u8, len: u16| {
            let mut wire = MARKER.to_vec();
            wire.extend(len.to_be_bytes());
            wire.push(kind);
            wire.resize(usize::from(len), 0);
            BytesMut::from(&wire[..])
        };
        let next =
            |kind, len, max| Frame::next_within(&mut framed(kind, len), max).map(|frame| frame.is_some());
        for kind in [2, 3, 5] {
            assert_eq!(next(kind, 4096, MESSAGE_MAX), Ok(true));
            assert_eq!(next(kind, 4097, MESSAGE_MAX).unwrap_err().data, [0x10, 1]);
            assert_eq!(next(kind, u16::MAX, EXTENDED_MESSAGE_MAX), Ok(true));
        }
        for kind in [1, 4] {
            assert_eq!(next(kind, 4097, EXTENDED_MESSAGE_MAX).unwrap_err().subcode, 2);
        }
    }
}
