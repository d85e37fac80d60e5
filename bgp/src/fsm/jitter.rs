//! Jitter for timers: a tiny generator with a seed from outside, so that equal runs stay equal.

use std::time::Duration;

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// The duration times a factor from 0.75 to 1.0 (RFC 4271 section 10).
    pub(crate) fn shorten(&mut self, duration: Duration) -> Duration {
        let permille = 750 + self.next() % 251;
        duration.mul_f64(f64::from(u16::try_from(permille).unwrap_or(1000)) / 1000.0)
    }
}
