//! A bounded reader: every step either yields bytes that are there or says that they are not.

/// Reads forward through one message; never past its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(count)?;
        self.bytes = tail;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }
}

/// A length as a one-octet field. Callers bound it; a longer one is a programmer's error that would desynchronise the session.
pub(crate) fn len8(len: usize) -> u8 {
    debug_assert!(len <= usize::from(u8::MAX), "field of {len} bytes in a one-octet length");
    u8::try_from(len).unwrap_or(u8::MAX)
}

/// A length as a two-octet field, bounded by the caller in the same way.
pub(crate) fn len16(len: usize) -> u16 {
    debug_assert!(len <= usize::from(u16::MAX), "field of {len} bytes in a two-octet length");
    u16::try_from(len).unwrap_or(u16::MAX)
}
