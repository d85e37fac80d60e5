//! The protocol data units of the RPKI-to-router protocol, version 1 (RFC 8210 section 5) and 0 (RFC 6810).

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Vrp;
use crate::wire::cursor::Cursor;

/// Bytes of the header.
const HEADER: usize = 8;
/// Longest unit accepted. A router key or an error report with the unit it is about is well below it.
const LEN_MAX: usize = 64 * 1024;

/// Error codes (RFC 8210 section 12).
pub(super) mod code {
    pub(crate) const CORRUPT_DATA: u16 = 0;
    pub(crate) const INTERNAL: u16 = 1;
    pub(crate) const NO_DATA: u16 = 2;
    pub(crate) const UNSUPPORTED_VERSION: u16 = 4;
    pub(crate) const UNSUPPORTED_PDU: u16 = 5;
    pub(crate) const UNKNOWN_WITHDRAWAL: u16 = 6;
    pub(crate) const DUPLICATE: u16 = 7;
    pub(crate) const UNEXPECTED_VERSION: u16 = 8;
}

/// What a cache says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pdu {
    /// There is something new.
    SerialNotify { session: u16, serial: u32 },
    /// The answer to a query begins.
    CacheResponse { session: u16 },
    /// A payload comes or goes.
    Prefix { announced: bool, vrp: Vrp },
    /// The answer is complete. Seconds of refresh, retry and expire; none in version 0.
    EndOfData { session: u16, serial: u32, intervals: Option<[u32; 3]> },
    /// The cache cannot tell what changed; everything must be asked for.
    CacheReset,
    /// A key of BGPsec, which is not used here.
    RouterKey,
    /// Something went wrong at the cache.
    ErrorReport { code: u16, text: String },
}

/// What a unit cannot be, as an error code with the unit itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) code: u16,
    pub(super) pdu: Vec<u8>,
}

/// A query for what changed since a serial number.
pub(super) fn serial_query(version: u8, session: u16, serial: u32) -> Vec<u8> {
    let mut out = header(version, 1, session, 12);
    out.extend(serial.to_be_bytes());
    out
}

/// A query for everything.
pub(super) fn reset_query(version: u8) -> Vec<u8> {
    header(version, 2, 0, 8)
}

/// A report of what a cache did wrong.
pub(super) fn error_report(version: u8, bad: &Bad) -> Vec<u8> {
    let pdu = bad.pdu.get(..1024).unwrap_or(&bad.pdu);
    let len = HEADER + 4 + pdu.len() + 4;
    let mut out = header(version, 10, bad.code, u32::try_from(len).unwrap_or(u32::MAX));
    out.extend(u32::try_from(pdu.len()).unwrap_or_default().to_be_bytes());
    out.extend(pdu);
    out.extend([0; 4]);
    out
}

fn header(version: u8, kind: u8, session: u16, len: u32) -> Vec<u8> {
    let mut out = vec![version, kind];
    out.extend(session.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

/// Takes the next unit off the front of what was received: its version and what it says.
///
/// `Ok(None)`: there is no whole unit yet.
pub(super) fn next(buffer: &mut Vec<u8>) -> Result<Option<(u8, Pdu)>, Bad> {
    let mut cursor = Cursor::new(buffer);
    let mut head = || Some((cursor.u8()?, cursor.u8()?, cursor.u16()?, cursor.u32()?));
    let Some((version, kind, session, len)) = head() else { return Ok(None) };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if !(HEADER..=LEN_MAX).contains(&len) {
        let pdu = buffer.get(..HEADER).unwrap_or_default().to_vec();
        return Err(Bad { code: code::CORRUPT_DATA, pdu });
    }
    if buffer.len() < len {
        return Ok(None);
    }
    let whole: Vec<u8> = buffer.drain(..len).collect();
    let body = whole.get(HEADER..).unwrap_or_default();
    match decode(version, kind, session, body) {
        Ok(pdu) => Ok(Some((version, pdu))),
        Err(code) => Err(Bad { code, pdu: whole }),
    }
}

fn decode(version: u8, kind: u8, session: u16, body: &[u8]) -> Result<Pdu, u16> {
    let mut cursor = Cursor::new(body);
    let pdu = match kind {
        0 => cursor.u32().map(|serial| Pdu::SerialNotify { session, serial }),
        3 => Some(Pdu::CacheResponse { session }),
        4 => prefix(&mut cursor, |cursor, len| {
            Ipv4Net::new(cursor.array::<4>()?.into(), len).ok().map(IpNet::V4)
        }),
        6 => prefix(&mut cursor, |cursor, len| {
            Ipv6Net::new(cursor.array::<16>()?.into(), len).ok().map(IpNet::V6)
        }),
        7 => end_of_data(version, session, &mut cursor),
        8 => Some(Pdu::CacheReset),
        // Subject key identifier, AS, and a key of any length.
        9 if body.len() >= 24 => return Ok(Pdu::RouterKey),
        10 => return error(session, &mut cursor).ok_or(code::CORRUPT_DATA),
        9 => None,
        _ => return Err(code::UNSUPPORTED_PDU),
    };
    pdu.filter(|_| cursor.is_empty()).ok_or(code::CORRUPT_DATA)
}

fn prefix(cursor: &mut Cursor<'_>, net: impl Fn(&mut Cursor<'_>, u8) -> Option<IpNet>) -> Option<Pdu> {
    let (flags, len, max_len, _) = (cursor.u8()?, cursor.u8()?, cursor.u8()?, cursor.u8()?);
    let prefix = net(cursor, len)?;
    let asn = cursor.u32()?;
    let sensible = (len..=prefix.max_prefix_len()).contains(&max_len);
    sensible
        .then(|| Pdu::Prefix { announced: flags & 1 == 1, vrp: Vrp { prefix: prefix.trunc(), max_len, asn } })
}

fn end_of_data(version: u8, session: u16, cursor: &mut Cursor<'_>) -> Option<Pdu> {
    let serial = cursor.u32()?;
    let intervals = match version {
        0 => None,
        _ => Some([cursor.u32()?, cursor.u32()?, cursor.u32()?]),
    };
    Some(Pdu::EndOfData { session, serial, intervals })
}

fn error(code: u16, cursor: &mut Cursor<'_>) -> Option<Pdu> {
    let len = usize::try_from(cursor.u32()?).ok()?;
    cursor.take(len)?;
    let len = usize::try_from(cursor.u32()?).ok()?;
    let text = String::from_utf8_lossy(cursor.take(len)?);
    // For a log, not for a novel.
    Some(Pdu::ErrorReport {
        code,
        text: text.chars().filter(|letter| !letter.is_control()).take(200).collect(),
    })
}
