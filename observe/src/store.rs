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
    use crate::flow::{L4, Peer};

    fn flow(time: u64, port: u16) -> Arc<Flow> {
        Arc::new(Flow {
            time,
            node: "n".to_owned(),
            event: "trace".into(),
            policies: Vec::new(),
            verdict: "FORWARDED".to_owned(),
            drop_reason: 0,
            drop_reason_desc: String::new(),
            site: 0,
            why: String::new(),
            trace_point: "to-endpoint".to_owned(),
            source: Peer::default(),
            destination: Peer { port, ..Peer::default() },
            l4: L4::default(),
            service: None,
            original_destination: None,
            reply: false,
            new: true,
            encrypted: false,
            length: 1,
        })
    }

    #[test]
    fn the_oldest_go_first_and_filters_pick() {
        let mut store = Store::new(3);
        (0..5).for_each(|n| store.push(flow(n, 80 + u16::try_from(n % 2).unwrap())));
        assert_eq!(store.counts(), (5, 3));
        let times =
            |filter: &Filter, last| store.latest(filter, last).iter().map(|f| f.time).collect::<Vec<_>>();
        assert_eq!(times(&Filter::default(), 2), [3, 4]);
        assert_eq!(times(&Filter { port: Some(80), ..Filter::default() }, 9), [2, 4]);
        assert_eq!(times(&Filter { since: Some(4), ..Filter::default() }, 9), [4]);
        assert_eq!(times(&Filter { pod: Some("x".to_owned()), ..Filter::default() }, 9), [0u64; 0]);
    }
}
