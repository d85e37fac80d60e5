//! Distributions of times in little room.

use serde::Serialize;
use std::time::Duration;

/// Buckets of an octave: a quantile is right to a sixth.
const STEPS: usize = 4;
/// From a microsecond to some 70 minutes.
const BUCKETS: usize = 32 * STEPS;

/// Times by size, in buckets that grow.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    max_micros: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), max_micros: 0 }
    }
}

/// A distribution in short, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Quantiles {
    /// How many times were taken.
    pub count: u64,
    /// Half of them are not longer.
    pub p50_us: u64,
    /// 99 of a hundred are not longer.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

fn bucket(micros: u64) -> usize {
    let octave = micros.max(1).ilog2();
    let low = 1_u64 << octave;
    let steps = u64::try_from(STEPS).unwrap_or(1);
    let step = (micros.max(1) - low).saturating_mul(steps) / low;
    let index = u64::from(octave) * steps + step;
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The largest time of a bucket.
fn upper(index: usize) -> u64 {
    let (octave, step) = (index / STEPS, index % STEPS);
    let low = 1_u64 << octave;
    let steps = u64::try_from(STEPS).unwrap_or(1);
    low + low.saturating_mul(u64::try_from(step).unwrap_or(0) + 1) / steps
}

impl Histogram {
    /// Takes one in.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(micros)) {
            *count = count.saturating_add(1);
        }
        self.max_micros = self.max_micros.max(micros);
    }

    /// In short.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let count = self.counts.iter().sum::<u64>();
        let at = |hundredths: u64| {
            let wanted = count.saturating_mul(hundredths).div_ceil(100).max(1);
            let mut seen = 0;
            let found = self.counts.iter().position(|count| {
                seen += count;
                seen >= wanted
            });
            found.map_or(0, |index| upper(index).min(self.max_micros))
        };
        Quantiles { count, p50_us: at(50), p99_us: at(99), max_us: self.max_micros }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near_the_truth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        (1..=1000).for_each(|millis| histogram.add(Duration::from_millis(millis)));
        let found = histogram.quantiles();
        assert_eq!((found.count, found.max_us), (1000, 1_000_000));
        assert!(
            (500_000..650_000).contains(&found.p50_us) && (990_000..=1_000_000).contains(&found.p99_us),
            "{found:?}"
        );
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            histogram.add(time);
        }
        assert_eq!(histogram.quantiles().max_us, u64::MAX);
    }
}
