//! The account of a load: what was sent and answered, by whom, and where the gaps are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Outcome;
use super::report::millis;

/// Most different answering pods, nodes or clusters, and reasons, that are counted by name.
const MAX_KEYS: usize = 128;
/// Most seconds of the timeline; a longer load keeps counting without it.
const MAX_SECONDS: usize = 7200;

/// The report of `lab-probe load` and `hold`; times in milliseconds since the start of the load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// `tcp`, `udp`, `connect` or `http`.
    pub protocol: String,
    /// Where to.
    pub target: String,
    /// Whether this is the last report (progress lines say false).
    #[serde(rename = "final")]
    pub is_final: bool,
    /// When the load began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it has run.
    pub elapsed_ms: u64,
    /// Requests sent.
    pub sent: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests that ended otherwise (see `errors`).
    pub failed: u64,
    /// Long-lived connections that were open at some time.
    pub connections: u64,
    /// Long-lived connections that broke: reset, closed, or refused later on.
    pub broken_connections: u64,
    /// Longest time between two consecutive answers, over all connections.
    pub longest_gap_ms: u64,
    /// When the first request that failed was sent.
    pub first_failure_ms: Option<u64>,
    /// When the last request that failed was sent.
    pub last_failure_ms: Option<u64>,
    /// When the last answer came.
    pub last_answer_ms: Option<u64>,
    /// Answers by cluster.
    pub by_cluster: BTreeMap<String, u64>,
    /// Answers by node.
    pub by_node: BTreeMap<String, u64>,
    /// Answers by pod.
    pub by_pod: BTreeMap<String, u64>,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// For each second: answered and failed requests, by the time they were sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<[u64; 2]>,
}

/// Collects a [`LoadReport`].
#[derive(Debug)]
pub(super) struct Tally {
    start: Instant,
    report: LoadReport,
}

impl Tally {
    pub(super) fn new(protocol: &str, target: String, now: Instant, wall: SystemTime) -> Self {
        let report = LoadReport {
            protocol: protocol.to_owned(),
            target,
            started_unix_ms: millis(wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)),
            ..LoadReport::default()
        };
        Self { start: now, report }
    }

    fn at(&self, time: Instant) -> u64 {
        millis(time.saturating_duration_since(self.start))
    }

    pub(super) fn connected(&mut self) {
        self.report.connections += 1;
    }

    pub(super) fn broke(&mut self) {
        self.report.broken_connections += 1;
    }

    /// Records a request sent at `sent` that ended at `ended`.
    pub(super) fn record(&mut self, sent: Instant, ended: Instant, outcome: &Outcome) {
        let (sent_ms, ended_ms) = (self.at(sent), self.at(ended));
        self.report.sent += 1;
        let answered = match outcome {
            Outcome::Answered { answer } => {
                count(&mut self.report.by_cluster, &answer.whoami.cluster);
                count(&mut self.report.by_node, &answer.whoami.node);
                count(&mut self.report.by_pod, &answer.whoami.pod);
                true
            }
            other => other.is_answer(),
        };
        if answered {
            self.report.answered += 1;
            self.gap_until(ended_ms);
            self.report.last_answer_ms = Some(self.report.last_answer_ms.unwrap_or(0).max(ended_ms));
        } else {
            self.report.failed += 1;
            count(&mut self.report.errors, outcome.kind());
            let first = self.report.first_failure_ms.unwrap_or(sent_ms);
            self.report.first_failure_ms = Some(first.min(sent_ms));
            self.report.last_failure_ms = Some(self.report.last_failure_ms.unwrap_or(0).max(sent_ms));
        }
        self.timeline(sent_ms, answered);
    }

    fn gap_until(&mut self, now_ms: u64) {
        let gap = now_ms.saturating_sub(self.report.last_answer_ms.unwrap_or(0));
        self.report.longest_gap_ms = self.report.longest_gap_ms.max(gap);
    }

    fn timeline(&mut self, sent_ms: u64, answered: bool) {
        let Ok(second) = usize::try_from(sent_ms / 1000) else { return };
        if second >= MAX_SECONDS {
            return;
        }
        if self.report.seconds.len() <= second {
            self.report.seconds.resize(second + 1, [0, 0]);
        }
        if let Some([good, bad]) = self.report.seconds.get_mut(second) {
            *(if answered { good } else { bad }) += 1;
        }
    }

    /// A progress report: the totals without the timeline.
    pub(super) fn progress(&self, now: Instant) -> LoadReport {
        let mut report = self.report.clone();
        report.seconds.clear();
        report.elapsed_ms = self.at(now);
        report
    }

    /// The last report: a gap that lasts until the end counts.
    pub(super) fn finish(&mut self, now: Instant) -> LoadReport {
        let end = self.at(now);
        if self.report.sent > 0 {
            self.gap_until(end);
        }
        self.report.elapsed_ms = end;
        self.report.is_final = true;
        self.report.clone()
    }
}

fn count(map: &mut BTreeMap<String, u64>, key: &str) {
    if let Some(value) = map.get_mut(key) {
        *value += 1;
    } else if map.len() < MAX_KEYS {
        map.insert(key.to_owned(), 1);
    } else {
        *map.entry("(others)".to_owned()).or_insert(0) += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Answer, Whoami};
    use super::*;

    fn answer(node: &str) -> Outcome {
        let at = "10.0.0.1:1".parse().expect("literal");
        let who = Whoami { node: node.into(), ..Whoami::default() };
        Outcome::Answered { answer: Box::new(Answer::new(&who, "tcp", at, at, 0, b"")) }
    }

    #[test]
    fn gaps_failures_and_names_are_counted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::new("tcp", "x:1".into(), start, UNIX_EPOCH + Duration::from_secs(5));
        tally.record(at(0), at(10), &answer("n1"));
        tally.record(at(100), at(300), &Outcome::Timeout);
        tally.record(at(1500), at(1700), &Outcome::Timeout);
        tally.record(at(1800), at(1810), &answer("n2"));
        let report = tally.finish(at(2000));
        assert_eq!((report.sent, report.answered, report.failed), (4, 2, 2));
        assert_eq!(report.longest_gap_ms, 1800);
        assert_eq!((report.first_failure_ms, report.last_failure_ms), (Some(100), Some(1500)));
        assert_eq!(report.by_node, BTreeMap::from([("n1".into(), 1), ("n2".into(), 1)]));
        assert_eq!(report.errors, BTreeMap::from([("timeout".into(), 2)]));
        assert_eq!(report.seconds, [[1, 1], [1, 1]]);
        assert_eq!(report.started_unix_ms, 5000);
    }

    #[test]
    fn silence_at_the_end_is_a_gap() {
        let start = Instant::now();
        let mut tally = Tally::new("udp", "x:1".into(), start, UNIX_EPOCH);
        tally.record(start, start, &answer("n1"));
        assert_eq!(tally.finish(start + Duration::from_secs(3)).longest_gap_ms, 3000);
    }

    #[test]
    fn names_are_bounded() {
        let start = Instant::now();
        let mut tally = Tally::new("udp", "x:1".into(), start, UNIX_EPOCH);
        for number in 0..1000 {
            tally.record(start, start, &answer(&format!("n{number}")));
        }
        let report = tally.finish(start);
        assert_eq!(report.by_node.len(), MAX_KEYS + 1);
        assert_eq!(report.by_node.values().sum::<u64>(), 1000);
    }
}
