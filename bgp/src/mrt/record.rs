//! The common header of every record (RFC 6396 section 2, and section 3 for microseconds).

use std::time::Duration;

use crate::wire::cursor::Cursor;

/// Table snapshots.
pub(super) const TABLE_DUMP_V2: u16 = 13;
/// Messages, time in seconds.
pub(super) const BGP4MP: u16 = 16;
/// Messages, time in microseconds.
pub(super) const BGP4MP_ET: u16 = 17;
/// Bytes of the header.
const HEADER: usize = 12;
/// Longest body accepted: no record of ours or of a route collector comes near it, and a broken length must not eat a file.
const BODY_MAX: usize = 4 * 1024 * 1024;

/// Why a file cannot be read further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MrtError {
    /// The file ends in a record.
    #[error("the MRT file ends within a record; it was cut, or is still being written")]
    Truncated,
    /// A length makes no sense.
    #[error("an MRT record of {0} bytes; this is no MRT file, or it is damaged")]
    Length(usize),
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Since 1970, to the microsecond in the types that can say it.
    pub at: Duration,
    /// Type, as 16 for BGP4MP.
    pub kind: u16,
    /// Subtype, of the type.
    pub subtype: u16,
    /// What follows the header, the microseconds apart.
    pub body: Vec<u8>,
}

impl Record {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let extended = self.kind == BGP4MP_ET;
        let len = self.body.len() + if extended { 4 } else { 0 };
        out.extend(u32::try_from(self.at.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(self.subtype.to_be_bytes());
        out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        if extended {
            out.extend(self.at.subsec_micros().to_be_bytes());
        }
        out.extend(&self.body);
    }

    /// Takes the next record off the front; none at the end.
    ///
    /// # Errors
    /// The bytes end within a record, or its length makes no sense: nothing after it can be read.
    pub fn next(bytes: &mut &[u8]) -> Result<Option<Self>, MrtError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut cursor = Cursor::new(bytes);
        let mut header = || Some((cursor.u32()?, cursor.u16()?, cursor.u16()?, cursor.u32()?));
        let (secs, kind, subtype, len) = header().ok_or(MrtError::Truncated)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > BODY_MAX {
            return Err(MrtError::Length(len));
        }
        let whole = bytes.get(HEADER..HEADER + len).ok_or(MrtError::Truncated)?;
        let (micros, body) = match (kind, whole.split_first_chunk::<4>()) {
            (BGP4MP_ET, Some((micros, body))) => (u32::from_be_bytes(*micros), body),
            (BGP4MP_ET, None) => return Err(MrtError::Length(len)),
            _ => (0, whole),
        };
        *bytes = bytes.get(HEADER + len..).unwrap_or_default();
        // A sender's fraction of over a second counts for the second it would be.
        let at = Duration::from_secs(secs.into()) + Duration::from_micros(micros.into());
        Ok(Some(Self { at, kind, subtype, body: body.to_vec() }))
    }
}
