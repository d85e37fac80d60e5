//! NOTIFICATION: why a session ends (RFC 4271 sections 4.5 and 6, RFC 4486, RFC 9003).

use std::fmt;

use super::cursor::Cursor;

/// Longest shutdown communication in bytes (RFC 9003).
const SHUTDOWN_TEXT_MAX: usize = 255;
/// Bytes of data kept and sent with a NOTIFICATION: the message bound less header, code and subcode.
const DATA_MAX: usize = super::MESSAGE_MAX - super::HEADER_LEN - 2;

/// An error code and subcode with the data that explains them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Error code (RFC 4271 section 4.5).
    pub code: u8,
    /// Error subcode; 0 is "unspecific".
    pub subcode: u8,
    /// Data: the offending bytes, or the shutdown communication.
    pub data: Vec<u8>,
}

/// Error codes.
pub mod code {
    /// Message header error.
    pub const HEADER: u8 = 1;
    /// OPEN message error.
    pub const OPEN: u8 = 2;
    /// UPDATE message error.
    pub const UPDATE: u8 = 3;
    /// Hold timer expired.
    pub const HOLD_TIMER: u8 = 4;
    /// A message arrived in a state that does not expect it.
    pub const STATE_MACHINE: u8 = 5;
    /// Cease (RFC 4486).
    pub const CEASE: u8 = 6;
    /// ROUTE-REFRESH message error (RFC 7313).
    pub const ROUTE_REFRESH: u8 = 7;
    /// Send hold timer expired (RFC 9687).
    pub const SEND_HOLD_TIMER: u8 = 8;
}

/// Subcodes of Cease (RFC 4486).
pub mod cease {
    /// More prefixes than the peer may send.
    pub const MAX_PREFIXES: u8 = 1;
    /// Shut down by the operator.
    pub const ADMIN_SHUTDOWN: u8 = 2;
    /// The peer was removed from the configuration.
    pub const DECONFIGURED: u8 = 3;
    /// Reset by the operator.
    pub const ADMIN_RESET: u8 = 4;
    /// The connection is not wanted.
    pub const REJECTED: u8 = 5;
    /// The configuration changed.
    pub const CONFIG_CHANGE: u8 = 6;
    /// Two connections collided and this one lost.
    pub const COLLISION: u8 = 7;
    /// The speaker lacks resources.
    pub const OUT_OF_RESOURCES: u8 = 8;
    /// The session ends and its routes go with it; the data is the real NOTIFICATION (RFC 8538).
    pub const HARD_RESET: u8 = 9;
    /// BFD says that the peer is gone (RFC 9384).
    pub const BFD_DOWN: u8 = 10;
}

impl Notification {
    /// A notification without data.
    pub const fn new(code: u8, subcode: u8) -> Self {
        Self { code, subcode, data: Vec::new() }
    }

    /// A notification that carries the offending bytes, cut to what one message holds.
    pub fn with_data(code: u8, subcode: u8, data: &[u8]) -> Self {
        Self { code, subcode, data: data.iter().copied().take(DATA_MAX).collect() }
    }

    /// Cease with a shutdown communication (RFC 9003), cut at a character boundary to 255 bytes.
    pub fn cease(subcode: u8, text: &str) -> Self {
        if text.is_empty() {
            return Self::new(code::CEASE, subcode);
        }
        let mut end = text.len().min(SHUTDOWN_TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = text.get(..end).unwrap_or_default();
        let mut data = vec![super::cursor::len8(text.len())];
        data.extend_from_slice(text.as_bytes());
        Self { code: code::CEASE, subcode, data }
    }

    /// The same, as a hard reset: a peer with the N bit keeps no routes after it (RFC 8538 section 3.1).
    pub fn hard_reset(&self) -> Self {
        let mut data = vec![self.code, self.subcode];
        data.extend(self.data.iter().take(DATA_MAX - 2));
        Self { code: code::CEASE, subcode: cease::HARD_RESET, data }
    }

    /// Whether this is a hard reset.
    pub const fn is_hard_reset(&self) -> bool {
        self.code == code::CEASE && self.subcode == cease::HARD_RESET
    }

    /// Code, subcode and data of what a hard reset carries; its own otherwise.
    fn reason(&self) -> (u8, u8, &[u8]) {
        let whole = (self.code, self.subcode, self.data.as_slice());
        match self.data.as_slice() {
            [code, subcode, data @ ..] if self.is_hard_reset() => (*code, *subcode, data),
            _ => whole,
        }
    }

    /// The shutdown communication (RFC 9003 section 2), if this is a Cease that carries a valid one, also inside a hard reset.
    pub fn shutdown_text(&self) -> Option<&str> {
        let (code, subcode, data) = self.reason();
        let told = matches!(subcode, cease::ADMIN_SHUTDOWN | cease::ADMIN_RESET);
        if code != code::CEASE || !told {
            return None;
        }
        let mut cursor = Cursor::new(data);
        let len = usize::from(cursor.u8()?);
        std::str::from_utf8(cursor.take(len)?).ok().filter(|text| !text.is_empty())
    }

    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(body);
        Some(Self { code: cursor.u8()?, subcode: cursor.u8()?, data: cursor.rest().to_vec() })
    }

    pub(crate) fn encode_body(&self, out: &mut Vec<u8>) {
        out.extend([self.code, self.subcode]);
        out.extend(self.data.iter().take(DATA_MAX));
    }

    /// What an operator can do about it; empty when nothing sensible is known.
    pub fn remedy(&self) -> &'static str {
        let (code, subcode, _) = self.reason();
        match (code, subcode) {
            (code::OPEN, 2) => "compare the local and remote AS numbers configured on both sides",
            (code::OPEN, 3) => "give both speakers different, non-zero router ids",
            (code::OPEN, 6) => "configure a hold time of 0 or of at least 3 seconds on both sides",
            (code::OPEN, 7) => "configure at least one address family in common",
            (code::OPEN, _) => "compare the capabilities and versions of both sides",
            (code::HEADER, _) => "look for a middlebox or something that is not BGP on this port",
            (code::UPDATE, _) => "capture the session; the named attribute was malformed",
            (code::HOLD_TIMER, _) => "check the path for loss and the peer for load; no message came in time",
            (code::CEASE, cease::MAX_PREFIXES) => {
                "raise the prefix limit or let the other side announce less"
            }
            (code::CEASE, cease::ADMIN_SHUTDOWN) => "the other operator must enable the session again",
            (code::CEASE, cease::DECONFIGURED) => "the other side no longer has this peer configured",
            (code::CEASE, cease::REJECTED) => "the other side does not expect a session from this address",
            (code::CEASE, cease::BFD_DOWN) => "check the path for loss; `tombolo bgp bfd` tells more",
            _ => "",
        }
    }

    const fn name(&self) -> &'static str {
        match (self.code, self.subcode) {
            (code::HEADER, 1) => "header error: connection not synchronized",
            (code::HEADER, 2) => "header error: bad message length",
            (code::HEADER, 3) => "header error: bad message type",
            (code::HEADER, _) => "header error",
            (code::OPEN, 1) => "OPEN error: unsupported version number",
            (code::OPEN, 2) => "OPEN error: bad peer AS",
            (code::OPEN, 3) => "OPEN error: bad BGP identifier",
            (code::OPEN, 4) => "OPEN error: unsupported optional parameter",
            (code::OPEN, 6) => "OPEN error: unacceptable hold time",
            (code::OPEN, 7) => "OPEN error: unsupported capability",
            (code::OPEN, 11) => "OPEN error: role mismatch",
            (code::OPEN, _) => "OPEN error",
            (code::UPDATE, 1) => "UPDATE error: malformed attribute list",
            (code::UPDATE, 2) => "UPDATE error: unrecognized well-known attribute",
            (code::UPDATE, 3) => "UPDATE error: missing well-known attribute",
            (code::UPDATE, 4) => "UPDATE error: attribute flags error",
            (code::UPDATE, 5) => "UPDATE error: attribute length error",
            (code::UPDATE, 6) => "UPDATE error: invalid ORIGIN attribute",
            (code::UPDATE, 8) => "UPDATE error: invalid NEXT_HOP attribute",
            (code::UPDATE, 9) => "UPDATE error: optional attribute error",
            (code::UPDATE, 10) => "UPDATE error: invalid network field",
            (code::UPDATE, 11) => "UPDATE error: malformed AS_PATH",
            (code::UPDATE, _) => "UPDATE error",
            (code::SEND_HOLD_TIMER, _) => "send hold timer expired",
            (code::HOLD_TIMER, _) => "hold timer expired",
            (code::STATE_MACHINE, 1) => "finite state machine error: unexpected message in OpenSent",
            (code::STATE_MACHINE, 2) => "finite state machine error: unexpected message in OpenConfirm",
            (code::STATE_MACHINE, 3) => "finite state machine error: unexpected message in Established",
            (code::STATE_MACHINE, _) => "finite state machine error",
            (code::CEASE, cease::MAX_PREFIXES) => "cease: maximum number of prefixes reached",
            (code::CEASE, cease::ADMIN_SHUTDOWN) => "cease: administrative shutdown",
            (code::CEASE, cease::DECONFIGURED) => "cease: peer de-configured",
            (code::CEASE, cease::ADMIN_RESET) => "cease: administrative reset",
            (code::CEASE, cease::REJECTED) => "cease: connection rejected",
            (code::CEASE, cease::CONFIG_CHANGE) => "cease: other configuration change",
            (code::CEASE, cease::COLLISION) => "cease: connection collision resolution",
            (code::CEASE, cease::OUT_OF_RESOURCES) => "cease: out of resources",
            (code::CEASE, cease::HARD_RESET) => "cease: hard reset",
            (code::CEASE, cease::BFD_DOWN) => "cease: BFD down",
            (code::CEASE, _) => "cease",
            (code::ROUTE_REFRESH, 1) => "ROUTE-REFRESH error: invalid message length",
            (code::ROUTE_REFRESH, _) => "ROUTE-REFRESH error",
            _ => "unknown error",
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_hard_reset(), self.reason()) {
            (true, (code, subcode, _)) if (code, subcode) != (self.code, self.subcode) => {
                write!(f, "{} ({code}/{subcode}) as a hard reset", Self::new(code, subcode).name())?;
            }
            _ => write!(f, "{} ({}/{})", self.name(), self.code, self.subcode)?,
        }
        if let Some(text) = self.shutdown_text() {
            write!(f, ", with the text {text:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shutdown_text_survives_the_wire() {
        let sent = Notification::cease(cease::ADMIN_SHUTDOWN, "node drains: kernel upgrade");
        let mut body = Vec::new();
        sent.encode_body(&mut body);
        let got = Notification::decode(&body).unwrap();
        assert_eq!(got.shutdown_text(), Some("node drains: kernel upgrade"));
        assert!(got.to_string().contains("administrative shutdown (6/2)"));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let got = Notification::cease(cease::ADMIN_SHUTDOWN, &"ü".repeat(200));
        assert_eq!(got.shutdown_text(), Some("ü".repeat(127).as_str()));
    }

    #[test]
    fn a_lying_length_yields_no_text() {
        let got = Notification::decode(&[6, 2, 200, b'x']).unwrap();
        assert_eq!(got.shutdown_text(), None);
    }

    #[test]
    fn a_hard_reset_carries_the_real_reason() {
        let hard = Notification::cease(cease::ADMIN_SHUTDOWN, "moving").hard_reset();
        let mut body = Vec::new();
        hard.encode_body(&mut body);
        assert_eq!(body, b"\x06\x09\x06\x02\x06moving");
        assert_eq!(hard.shutdown_text(), Some("moving"));
        let told = "cease: administrative shutdown (6/2) as a hard reset, with the text \"moving\"";
        assert_eq!(hard.to_string(), told);
        assert!(hard.is_hard_reset() && !Notification::new(6, 2).is_hard_reset());
        assert_eq!(Notification::new(6, 9).shutdown_text(), None);
    }

    #[test]
    fn data_is_kept_whole_and_cut_to_one_message() {
        let data = vec![7; 5000];
        let mut body = Vec::new();
        Notification::with_data(code::UPDATE, 2, &data).encode_body(&mut body);
        assert_eq!(body.len(), super::super::MESSAGE_MAX - super::super::HEADER_LEN);
        assert_eq!(Notification::decode(&body).unwrap().data.len(), DATA_MAX);
    }
}
