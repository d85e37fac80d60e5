//! How long a change takes from a cluster's etcd to its follower here, without comparing clocks.
//!
//! The elected agent of a cluster of ours writes the time into a key beside the heartbeat every five seconds. Arrival here less that time is the
//! lag plus the difference of the two clocks, which nobody knows; but the difference stays the same (but for a drift of a ten-thousandth
//! at most) while the lag changes. So the smallest such figure stands for the fastest way, which takes half a round trip, and what is above it
//! is lag. A clock that is set shows as a jump that stays: after twelve equal figures it is taken as the new difference. A hostile cluster can
//! falsify the figures about itself and nothing else.

use super::times::Quantiles;
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use tombolo_base::clock::Moment;

/// Samples that the quantiles are made of: an hour.
const MAX_SAMPLES: usize = 720;
/// Clocks that nobody corrects drift apart by no more than this part of the time.
const DRIFT: i128 = 10_000;
/// So many equal figures in a row are a clock that was set.
const PLATEAU: u32 = 12;
/// Figures that differ by less are equal, in nanoseconds.
const EQUAL: i128 = 5_000_000;
/// Longest text of a beat, in bytes.
const MAX_BEAT: usize = 64;

/// What is known of one cluster's lag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LagStatus {
    /// From a write there to the follower here, in the last hour.
    pub lag: Quantiles,
    /// The last one, in microseconds.
    pub last_us: u64,
    /// The part of it that is not measured but taken for the fastest way: half of the shortest round trip, in microseconds.
    pub base_us: u64,
}

/// Measures.
#[derive(Clone, Debug, Default)]
pub(super) struct LagMeter {
    /// The smallest figure, as it would be now, and when it was found.
    floor: Option<(i128, Moment)>,
    plateau: Option<(i128, u32)>,
    round_trip: Option<Duration>,
    samples: VecDeque<Duration>,
}

/// What a beat says: nanoseconds since 1970 at its writer.
pub(crate) fn written(value: &[u8]) -> Option<i128> {
    let text = std::str::from_utf8(value.get(..value.len().min(MAX_BEAT))?).ok()?;
    text.trim().parse::<u64>().ok().map(i128::from)
}

impl LagMeter {
    /// A round trip on the connection took that long.
    pub(super) fn round_trip(&mut self, time: Duration) {
        self.round_trip = Some(self.round_trip.map_or(time, |shortest| shortest.min(time)));
    }

    /// A new connection may take another way.
    pub(super) fn reconnected(&mut self) {
        self.round_trip = None;
    }

    fn base(&self) -> Duration {
        self.round_trip.unwrap_or_default() / 2
    }

    /// A beat arrived.
    pub(super) fn beat(&mut self, now: Moment, value: &[u8]) {
        let Some(written) = written(value) else { return };
        let arrived = i128::try_from(now.since_origin().as_nanos()).unwrap_or(i128::MAX);
        let figure = arrived.saturating_sub(written);
        let floor = self.floor.map(|(floor, at)| {
            floor.saturating_add(i128::try_from(now.since(at).as_nanos()).unwrap_or(0) / DRIFT)
        });
        let floor = floor.map_or(figure, |floor| floor.min(figure));
        self.floor = Some((floor, now));
        let above = figure.saturating_sub(floor);
        let equal = |level: i128| level.saturating_sub(figure).saturating_abs() < EQUAL;
        let same = self.plateau.filter(|(level, _)| above > EQUAL && equal(*level));
        let count = same.map_or(1, |(_, count)| count.saturating_add(1));
        self.plateau = Some((same.map_or(figure, |(level, _)| level), count));
        if count >= PLATEAU && above > EQUAL {
            // What these said was the clock and no lag.
            let kept = self.samples.len().saturating_sub(usize::try_from(PLATEAU).unwrap_or(0));
            self.samples.truncate(kept);
            (self.floor, self.plateau) = (Some((figure, now)), None);
            return self.sample(Duration::ZERO);
        }
        self.sample(Duration::from_nanos(u64::try_from(above).unwrap_or(u64::MAX)));
    }

    fn sample(&mut self, above: Duration) {
        if self.samples.len() >= MAX_SAMPLES {
            self.samples.pop_front();
        }
        let lag = above.saturating_add(self.base());
        self.samples.push_back(lag);
    }

    /// `None` while nothing was measured: the cluster's elected agent is none of ours, or it is read through a mirror.
    pub(super) fn status(&self) -> Option<LagStatus> {
        let micros = |time: &Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut all: Vec<u64> = self.samples.iter().map(micros).collect();
        let last_us = all.last().copied()?;
        all.sort_unstable();
        let at = |hundredths: usize| {
            let rank = all.len().saturating_mul(hundredths).div_ceil(100).max(1);
            all.get(rank - 1).copied().unwrap_or(0)
        };
        let count = u64::try_from(all.len()).unwrap_or(u64::MAX);
        let lag = Quantiles { count, p50_us: at(50), p99_us: at(99), max_us: at(100) };
        Some(LagStatus { lag, last_us, base_us: micros(&self.base()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats every five seconds of a writer whose clock is `ahead` milliseconds of ours.
    struct Rig {
        meter: LagMeter,
        time_ms: i64,
    }

    impl Rig {
        fn new() -> Self {
            let mut meter = LagMeter::default();
            meter.round_trip(Duration::from_millis(4));
            Self { meter, time_ms: 1_000_000 }
        }

        /// The lag that is shown for one that is true.
        fn beat(&mut self, ahead_ms: i64, lag_ms: i64) -> u64 {
            self.time_ms += 5_000;
            let written = (1_700_000_000_000 + self.time_ms + ahead_ms) * 1_000_000;
            let arrived = u64::try_from(self.time_ms + lag_ms).unwrap();
            self.meter
                .beat(Moment::from_origin(Duration::from_millis(arrived)), written.to_string().as_bytes());
            self.meter.status().unwrap().last_us / 1_000
        }
    }

    #[test]
    fn the_lag_is_found_whatever_the_clocks_say() {
        for ahead in [0, 3_600_000, -86_400_000] {
            let mut rig = Rig::new();
            for round in 0..200 {
                let lag = 2 + i64::from(round % 10 == 9) * 50;
                let shown = rig.beat(ahead, lag);
                assert!(shown.abs_diff(u64::try_from(lag).unwrap()) <= 1, "{ahead} {round}: {shown}");
            }
            let status = rig.meter.status().unwrap();
            assert_eq!(status.base_us, 2_000);
            assert!(
                status.lag.count == 200 && status.lag.p50_us < 4_000 && status.lag.max_us > 50_000,
                "{status:?}"
            );
        }
    }

    #[test]
    fn a_clock_that_drifts_is_no_lag_and_one_that_is_set_is_none_for_long() {
        let mut rig = Rig::new();
        // 50 ppm: a quarter of a millisecond in five seconds.
        for round in 0..700 {
            assert!(rig.beat(-round / 4, 2) <= 3, "{round}");
        }
        let mut rig = Rig::new();
        for _ in 0..50 {
            rig.beat(0, 2);
        }
        // Set back by ten seconds: looks like lag, for a minute.
        let shown: Vec<u64> = (0..20).map(|_| rig.beat(-10_000, 2)).collect();
        assert!(shown[0] > 9_000 && shown[19] <= 3, "{shown:?}");
        assert!(rig.meter.status().unwrap().lag.max_us < 10_000, "and is not kept");
        // Set forward.
        assert!(rig.beat(60_000, 2) <= 3 && rig.beat(60_000, 30) >= 28);
    }

    #[test]
    fn a_backlog_is_seen_as_long_as_it_lasts() {
        let mut rig = Rig::new();
        for _ in 0..20 {
            rig.beat(0, 2);
        }
        for round in 0..100 {
            let lag = 8_000 + (round % 7) * 90;
            assert!(rig.beat(0, lag) >= 7_800, "{round}");
        }
    }

    #[test]
    fn beats_of_a_hostile_cluster_are_bounded() {
        let mut meter = LagMeter::default();
        for bad in ["", "x", "-1", "1e9", "99999999999999999999999999", &"1".repeat(1_000_000)] {
            meter.beat(Moment::ZERO, bad.as_bytes());
        }
        assert_eq!(meter.status(), None);
        for round in 0..10_000_u64 {
            let value = if round % 2 == 0 { u64::MAX } else { 0 };
            meter.beat(Moment::from_origin(Duration::from_secs(round)), value.to_string().as_bytes());
        }
        assert_eq!(meter.status().unwrap().lag.count, 720);
    }
}
