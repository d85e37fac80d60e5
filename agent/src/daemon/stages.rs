//! How long what a cluster said takes through this agent: from the commit of its rows to the entry in the datapath's map.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tombolo_base::ids::ClusterName;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::SourceState;
use tombolo_clustermesh::follower::{Change, Histogram, MeshSink, Quantiles};
use tombolo_clustermesh::rows::TableSink;
use tombolo_clustermesh::wire::Record;

/// An address whose entry does not come within this time changed nothing in the map.
const GIVEN_UP: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    waiting: Option<(Prefix, Instant)>,
    times: Histogram,
}

/// Follows one address at a time, so that it costs nothing for each of them. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct MapTimer(Arc<Mutex<State>>);

impl MapTimer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows are about to be written; one of them is followed if none is yet.
    fn committing(&self, now: Instant, changes: &[Change]) {
        let mut state = self.lock();
        if state.waiting.is_some_and(|(_, since)| now.duration_since(since) < GIVEN_UP) {
            return;
        }
        let prefix = changes.iter().find_map(|change| match change {
            Change::Upsert(Record::Ip(entry)) => Some(entry.prefix),
            _ => None,
        });
        state.waiting = prefix.map(|prefix| (prefix, now));
    }

    /// The map holds that prefix. What was given up is written for another reason, as by the pass that writes everything.
    pub(crate) fn written(&self, now: Instant, prefix: Prefix) {
        let mut state = self.lock();
        if let Some((_, since)) = state.waiting.take_if(|(waiting, _)| *waiting == prefix) {
            let took = now.duration_since(since);
            if took < GIVEN_UP {
                state.times.add(took);
            }
        }
    }

    /// What was measured so far.
    pub(crate) fn quantiles(&self) -> Quantiles {
        self.lock().times.quantiles()
    }
}

/// The sink of the followers, with the timer beside it.
pub(crate) struct Timed {
    /// Writes the rows.
    pub(crate) rows: TableSink,
    /// Follows some.
    pub(crate) timer: MapTimer,
}

impl MeshSink for Timed {
    fn apply(&self, cluster: &ClusterName, changes: Vec<Change>) {
        self.timer.committing(Instant::now(), &changes);
        self.rows.apply(cluster, changes);
    }

    fn state(&self, cluster: &ClusterName, state: SourceState) {
        self.rows.state(cluster, state);
    }

    fn gone(&self, cluster: &ClusterName) {
        self.rows.gone(cluster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::ids::IdentityId;
    use tombolo_clustermesh::wire::IpEntry;

    fn address(last: u8) -> Change {
        let ip = [10, 2, 0, last].into();
        Change::Upsert(Record::Ip(IpEntry::pod(ip, IdentityId(70_000), [192, 0, 2, 1].into(), "shop", "web")))
    }

    fn prefix(last: u8) -> Prefix {
        Prefix::host([10, 2, 0, last].into())
    }

    #[test]
    fn one_address_at_a_time_is_followed_to_the_map() {
        let timer = MapTimer::default();
        let now = Instant::now();
        timer.written(now, prefix(1));
        assert_eq!(timer.quantiles().count, 0);
        timer.committing(now, &[address(1), address(2)]);
        timer.committing(now, &[address(3)]);
        timer.written(now, prefix(3));
        assert_eq!(timer.quantiles().count, 0, "another one is followed");
        timer.written(now, prefix(1));
        timer.written(now, prefix(1));
        assert_eq!(timer.quantiles().count, 1);
        timer.committing(now, &[address(3)]);
        timer.written(now, prefix(3));
        assert_eq!(timer.quantiles().count, 2);
    }

    #[test]
    fn what_was_given_up_is_no_sample() {
        let timer = MapTimer::default();
        let start = Instant::now();
        timer.committing(start, &[address(1)]);
        timer.written(start + GIVEN_UP, prefix(1));
        assert_eq!(timer.quantiles().count, 0);
        timer.committing(start, &[address(1)]);
        timer.written(start + GIVEN_UP / 2, prefix(1));
        assert_eq!(timer.quantiles().count, 1);
    }
}
