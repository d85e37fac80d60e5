//! What is counted of the keys that a writer carries to the own etcd.

use std::sync::atomic::{AtomicU64, Ordering};

/// Kept by a writer and by whoever gives it keys.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    queued: AtomicU64,
    failed: AtomicU64,
}

/// How far a set of keys is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteCounts {
    /// Keys to be written or removed.
    pub queued: u64,
    /// Transactions that etcd refused or did not answer.
    pub failed: u64,
}

fn wide(count: usize) -> u64 {
    count.try_into().unwrap_or(u64::MAX)
}

impl Writes {
    /// That many keys more differ from what was wanted before.
    pub(crate) fn wanted(&self, count: usize) {
        self.queued.fetch_add(wide(count), Ordering::Relaxed);
    }

    /// Compared with etcd it is that many.
    pub(crate) fn planned(&self, count: usize) {
        self.queued.store(wide(count), Ordering::Relaxed);
    }

    /// That many are done.
    pub(crate) fn done(&self, count: usize) {
        let less = |queued: u64| Some(queued.saturating_sub(wide(count)));
        // It never refuses.
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).ok();
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> WriteCounts {
        WriteCounts {
            queued: self.queued.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_what_is_wanted_until_it_is_compared_and_written() {
        let writes = Writes::default();
        writes.wanted(5);
        writes.planned(3);
        writes.done(2);
        writes.failed();
        assert_eq!(writes.counts(), WriteCounts { queued: 1, failed: 1 });
        // What is written beside a plan.
        writes.done(7);
        assert_eq!(writes.counts().queued, 0);
    }
}
