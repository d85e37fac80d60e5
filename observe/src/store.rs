//! The latest flows, bounded.

use crate::filter::Filter;
use crate::flow::Flow;
use std::collections::VecDeque;
use std::sync::Arc;

/// Keeps the latest flows; the oldest go first when it is full.
#[derive(Debug)]
pub struct Store {
    flows: VecDeque<Arc<Flow>>,
    capacity: usize,
    seen: u64,
}

impl Store {
    /// A store for at most `capacity` flows.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { flows: VecDeque::with_capacity(capacity.min(4096)), capacity, seen: 0 }
    }

    /// The number that the next flow gets: they count from 1 in this life.
    #[must_use]
    pub const fn next_id(&self) -> u64 {
        self.seen.saturating_add(1)
    }

    /// Takes a flow in.
    pub fn push(&mut self, flow: Arc<Flow>) {
        if self.flows.len() >= self.capacity {
            self.flows.pop_front();
        }
        self.flows.push_back(flow);
        self.seen = self.seen.saturating_add(1);
    }

    /// The latest `last` flows that match, oldest first.
    #[must_use]
    pub fn latest(&self, filter: &Filter, last: usize) -> Vec<Arc<Flow>> {
        let mut found: Vec<_> =
            self.flows.iter().rev().filter(|flow| filter.matches(flow)).take(last).cloned().collect();
        found.reverse();
        found
    }

    /// Flows taken in since the start, and how many are still here.
    #[must_use]
    pub fn counts(&self) -> (u64, usize) {
        (self.seen, self.flows.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::End;
    use crate::flow::Peer;

    fn flow(time: u64, port: u16) -> Arc<Flow> {
        Arc::new(Flow {
            time,
            node: "n".to_owned(),
            event: "trace".into(),
            verdict: "FORWARDED".to_owned(),
            trace_point: "to-endpoint".to_owned(),
            destination: Peer { port, ..Peer::default() },
            new: true,
            length: 1,
            ..Flow::default()
        })
    }

    #[test]
    fn the_oldest_go_first_and_filters_pick() {
        let mut store = Store::new(3);
        (0..5).for_each(|n| store.push(flow(n, 80 + u16::try_from(n % 2).unwrap())));
        assert_eq!(store.counts(), (5, 3));
        let of = |either| Filter { either, ..Filter::default() };
        let times =
            |filter: &Filter, last| store.latest(filter, last).iter().map(|f| f.time).collect::<Vec<_>>();
        assert_eq!(times(&Filter::default(), 2), [3, 4]);
        assert_eq!(times(&of(End { port: vec![80], ..End::default() }), 9), [2, 4]);
        assert_eq!(times(&Filter { since: Some(4), ..Filter::default() }, 9), [4]);
        assert_eq!(times(&of(End { pod: vec!["x".to_owned()], ..End::default() }), 9), [0u64; 0]);
    }
}
