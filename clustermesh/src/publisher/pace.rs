//! How fast keys are written: as fast as etcd takes them without being slowed down by it.

use std::time::Duration;
use tokio::time::Instant;

/// Most operations of a transaction; etcd's default limit.
const MOST: usize = 128;
/// Fewest, when etcd is slow.
const FEWEST: usize = 8;
/// An answer within this time says that etcd has room for more.
const QUICK: Duration = Duration::from_millis(100);
/// One that takes longer says that it has too much to do.
const SLOW: Duration = Duration::from_millis(500);

/// The size of the next transaction and the time it may be sent: more after quick answers, half after a slow one, and then
/// a pause as long as the answer took, so that a thousand writers that come back at once leave etcd room for its readers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    ops: usize,
    pub(crate) not_before: Instant,
}

impl Default for Pace {
    fn default() -> Self {
        Self { ops: MOST / 2, not_before: Instant::now() }
    }
}

impl Pace {
    /// Most operations of the next transaction.
    pub(crate) const fn ops(&self) -> usize {
        self.ops
    }

    /// A transaction sent at one time was answered at another.
    pub(crate) fn answered(&mut self, sent: Instant, now: Instant) {
        let took = now.saturating_duration_since(sent);
        if took > SLOW {
            self.ops = (self.ops / 2).max(FEWEST);
            self.not_before = now + took;
        } else if took < QUICK {
            self.ops = (self.ops * 2).min(MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_answers_make_smaller_transactions_with_pauses_between() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        pace.answered(start, after(20));
        assert_eq!((pace.ops(), pace.not_before <= start), (128, true));
        pace.answered(start, after(300));
        assert_eq!(pace.ops(), 128);
        for expected in [64, 32, 16, 8, 8] {
            pace.answered(start, after(2000));
            assert_eq!((pace.ops(), pace.not_before), (expected, after(4000)));
        }
        pace.answered(start, after(20));
        assert_eq!(pace.ops(), 16);
    }
}
