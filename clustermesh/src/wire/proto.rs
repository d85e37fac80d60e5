//! The few pieces of Protocol Buffers' wire format that endpoint slices need, read within bounds and without panics.
//!
//! A message is a run of fields: a varint of number and wire type, then the content. Readers skip fields whose number
//! they do not know; of a field that stands twice the last one counts, and messages are merged.

use super::reject::{Reason, Reject};

/// Deepest nesting of the obsolete groups that is skipped.
const MAX_GROUPS: u32 = 64;

/// The content of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: text, bytes, messages.
    Bytes(&'a [u8]),
    /// Anything else, skipped.
    Other,
}

fn bad(what: impl std::fmt::Display) -> Reject {
    Reject::new(Reason::Malformed, format!("protobuf: {what}"))
}

impl<'a> Field<'a> {
    pub(super) fn text(self, name: &str) -> Result<&'a str, Reject> {
        std::str::from_utf8(self.message(name)?).map_err(|_| bad(format_args!("{name} is not UTF-8")))
    }

    pub(super) fn message(self, name: &str) -> Result<&'a [u8], Reject> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Varint(_) | Self::Other => Err(bad(format_args!("{name} has the wrong wire type"))),
        }
    }

    /// A whole number up to `max`; negative numbers are larger than any of them.
    pub(super) fn number(self, name: &str, max: u32) -> Result<u32, Reject> {
        match self {
            Self::Varint(number) => u32::try_from(number)
                .ok()
                .filter(|number| *number <= max)
                .ok_or_else(|| bad(format_args!("{name} {number} is larger than {max}"))),
            Self::Bytes(_) | Self::Other => Err(bad(format_args!("{name} has the wrong wire type"))),
        }
    }

    pub(super) fn flag(self, name: &str) -> Result<bool, Reject> {
        match self {
            Self::Varint(number) => Ok(number != 0),
            Self::Bytes(_) | Self::Other => Err(bad(format_args!("{name} has the wrong wire type"))),
        }
    }
}

/// Reads the fields of one message.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The next field's number and content; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, Reject> {
        if self.0.is_empty() {
            return Ok(None);
        }
        match self.tag()? {
            (number, 0) => Ok(Some((number, Field::Varint(self.varint()?)))),
            (number, 2) => Ok(Some((number, Field::Bytes(self.bytes()?)))),
            (number, 3) => {
                self.skip_group()?;
                Ok(Some((number, Field::Other)))
            }
            (number, kind) => {
                self.skip(kind)?;
                Ok(Some((number, Field::Other)))
            }
        }
    }

    fn tag(&mut self) -> Result<(u32, u8), Reject> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let kind = u8::try_from(tag & 7).unwrap_or(7);
        Ok((number.ok_or_else(|| bad("a field number out of range"))?, kind))
    }

    fn varint(&mut self) -> Result<u64, Reject> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or_else(|| bad("cut off within a number"))?;
            self.0 = rest;
            number |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(bad("a number of more than ten bytes"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Reject> {
        let length = self.varint()?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Reject> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or_else(|| bad("a field longer than its message"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Skips the content of a field of fixed length.
    fn skip(&mut self, kind: u8) -> Result<(), Reject> {
        match kind {
            1 => self.take(8).map(drop),
            5 => self.take(4).map(drop),
            _ => Err(bad(format_args!("wire type {kind}"))),
        }
    }

    /// Skips all up to the end of a group, without recursion.
    fn skip_group(&mut self) -> Result<(), Reject> {
        let mut open = 1;
        while open > 0 {
            match self.tag()?.1 {
                0 => drop(self.varint()?),
                2 => drop(self.bytes()?),
                3 if open >= MAX_GROUPS => return Err(bad("groups nested too deep")),
                3 => open += 1,
                4 => open -= 1,
                kind => self.skip(kind)?,
            }
        }
        Ok(())
    }
}

/// Writes the fields of one message.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        loop {
            let low = u8::try_from(number & 0x7f).unwrap_or_default();
            number >>= 7;
            if number == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }

    pub(super) fn number(&mut self, field: u32, number: u64) {
        self.varint(u64::from(field) << 3);
        self.varint(number);
    }

    pub(super) fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut message = Self::default();
        write(&mut message);
        self.bytes(field, &message.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Result<Vec<(u32, Field<'_>)>, Reject> {
        let mut reader = Reader::new(message);
        std::iter::from_fn(|| reader.next().transpose()).collect()
    }

    #[test]
    fn every_wire_type_is_read_or_skipped() {
        // 1: varint 150; 2: "testing"; 3: fixed64; 4: group with a nested group, text and fixed32; 5: fixed32.
        let message = [
            b"\x08\x96\x01".as_slice(),
            b"\x12\x07testing",
            b"\x19\x01\x02\x03\x04\x05\x06\x07\x08",
            b"\x23\x0b\x0a\x01x\x0c\x2d\x01\x02\x03\x04\x24",
            b"\x2d\x01\x02\x03\x04",
        ]
        .concat();
        let expected =
            [Field::Varint(150), Field::Bytes(b"testing"), Field::Other, Field::Other, Field::Other];
        assert_eq!(fields(&message).unwrap(), (1..).zip(expected).collect::<Vec<_>>());
        for cut in 1..message.len() {
            let whole = [3, 12, 21, 33].contains(&cut);
            assert_eq!(fields(&message[..cut]).is_ok(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_message() {
        let deep = [vec![0x0b; 100], vec![0x0c; 100]].concat();
        let number = [&[0x08][..], &[0xff; 10], &[0x01]].concat();
        for bad in [b"\x00\x01".as_slice(), b"\x0c", b"\x0e", b"\x0a\xff\xff\xff\xff\x0f", &deep, &number] {
            assert_eq!(fields(bad).unwrap_err().reason, Reason::Malformed, "{bad:02x?}");
        }
        assert_eq!(fields(&[0x0b, 0x0c]).unwrap(), [(1, Field::Other)]);
        // Negative numbers are ten bytes long and larger than any port.
        let negative = [&[0x08][..], &[0xff; 9], &[0x01]].concat();
        let (_, field) = fields(&negative).unwrap()[0];
        assert!(field.number("port", u32::MAX).is_err() && field.flag("ready") == Ok(true));
        assert!(field.text("name").is_err() && Field::Bytes(b"\xff").text("name").is_err());
    }

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.number(1, 150);
        writer.text(2, "testing");
        writer.message(300, |inner| inner.number(1, u64::MAX));
        let message = writer.finish();
        assert!(message.starts_with(b"\x08\x96\x01\x12\x07testing\xe2\x12\x0b"));
        let inner = fields(&message).unwrap()[2].1.message("inner").unwrap();
        assert_eq!(fields(inner).unwrap(), [(1, Field::Varint(u64::MAX))]);
    }
}
