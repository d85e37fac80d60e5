//! What is remembered of a path besides what it says, in one byte: a table of millions of paths pays for every one.

/// Marks of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks(u8);

impl Marks {
    /// None of them.
    pub(crate) const NONE: Self = Self(0);
    /// Kept since the session it came in ended (RFC 4724).
    pub(crate) const STALE: Self = Self(1);
    /// Kept beyond the restart time: carries LLGR_STALE because of us (RFC 9494 section 4.2).
    pub(crate) const LONG_LIVED: Self = Self(1 << 1);
    /// The peer is sending the family again and has not come to this path yet (RFC 7313).
    pub(crate) const REFRESHING: Self = Self(1 << 2);
    /// Less preferred than any path without this mark (RFC 9494 section 4.3).
    pub(crate) const LEAST: Self = Self(1 << 3);

    pub(crate) const fn has(self, mark: Self) -> bool {
        self.0 & mark.0 != 0
    }

    pub(crate) const fn with(self, mark: Self) -> Self {
        Self(self.0 | mark.0)
    }

    pub(crate) const fn without(self, mark: Self) -> Self {
        Self(self.0 & !mark.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_independent() {
        let all = [Marks::STALE, Marks::LONG_LIVED, Marks::REFRESHING, Marks::LEAST];
        for mark in all {
            let others = all.into_iter().filter(|other| *other != mark);
            let without = others.clone().fold(Marks::default(), Marks::with);
            assert!(!without.has(mark) && without.with(mark).has(mark));
            assert_eq!(without.with(mark).without(mark), without);
        }
    }
}
