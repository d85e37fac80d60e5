//! Adj-RIB-Out of one peer: what it was told, and which prefixes must be looked at again.
//!
//! Changes only mark prefixes; what to say is worked out when the connection has room (so a slow peer costs one entry a prefix, however often
//! it flaps), and prefixes with equal attributes share messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::family::{Family, NextHop};
use crate::wire::{self, Attributes, EncodeContext};

/// Prefixes looked at before bytes are handed to the connection.
const BATCH: usize = 4096;

/// What a peer should hear about a prefix.
pub(crate) type Said = (NextHop, Arc<Attributes>);

#[derive(Debug)]
struct Sent {
    said: Said,
    /// Say it again even if it did not change (ROUTE-REFRESH).
    again: bool,
}

/// Adj-RIB-Out of one established session.
#[derive(Debug, Default)]
pub(crate) struct AdjRibOut {
    sent: BTreeMap<IpNet, Sent>,
    pending: BTreeSet<IpNet>,
    /// End-of-RIB is owed for these, once nothing is pending.
    end_of_rib: BTreeSet<Family>,
    counts: BTreeMap<Family, usize>,
}

impl AdjRibOut {
    pub(crate) fn sent(&self) -> impl Iterator<Item = (&IpNet, &Said)> {
        self.sent.iter().map(|(prefix, sent)| (prefix, &sent.said))
    }

    /// Routes the peer holds from us.
    pub(crate) fn count(&self, family: Family) -> usize {
        self.counts.get(&family).copied().unwrap_or_default()
    }

    pub(crate) fn mark(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        self.pending.extend(prefixes);
    }

    /// The peer asked for a family again (RFC 2918).
    pub(crate) fn refresh(&mut self, family: Family) {
        for (prefix, sent) in &mut self.sent {
            if Family::of(prefix) == family {
                sent.again = true;
                self.pending.insert(*prefix);
            }
        }
    }

    /// End-of-RIB is to follow what is pending now.
    pub(crate) fn owe_end_of_rib(&mut self, families: &[Family]) {
        self.end_of_rib.extend(families);
    }

    /// Whether there is nothing more to say.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.end_of_rib.is_empty()
    }

    /// The next bytes to send, at most one batch. `desired` says what the peer should hear.
    pub(crate) fn next_batch(
        &mut self,
        context: EncodeContext,
        mut desired: impl FnMut(&IpNet) -> Option<Said>,
        out: &mut Vec<u8>,
    ) {
        let mut withdrawn: BTreeMap<Family, Vec<IpNet>> = BTreeMap::new();
        let mut announced: BTreeMap<(Family, Said), Vec<IpNet>> = BTreeMap::new();
        for _ in 0..BATCH {
            let Some(prefix) = self.pending.pop_first() else { break };
            let family = Family::of(&prefix);
            match (desired(&prefix), self.sent.get(&prefix)) {
                (Some(said), Some(sent)) if sent.said == said && !sent.again => {}
                (Some(said), _) => announced.entry((family, said)).or_default().push(prefix),
                (None, Some(_)) => withdrawn.entry(family).or_default().push(prefix),
                (None, None) => {}
            }
        }
        for (family, prefixes) in withdrawn {
            wire::withdraw(family, &prefixes, out);
            prefixes.iter().for_each(|prefix| self.forget(prefix));
        }
        for ((family, said), prefixes) in announced {
            match wire::announce(&said.1, &said.0, family, &prefixes, context, out) {
                Ok(()) => prefixes.into_iter().for_each(|prefix| self.remember(prefix, said.clone())),
                Err(bytes) => {
                    tracing::warn!(
                        bytes,
                        count = prefixes.len(),
                        "Attributes too long for one message; routes not sent."
                    );
                    let told: Vec<IpNet> =
                        prefixes.into_iter().filter(|prefix| self.sent.contains_key(prefix)).collect();
                    wire::withdraw(family, &told, out);
                    told.iter().for_each(|prefix| self.forget(prefix));
                }
            }
        }
        if self.pending.is_empty() {
            for family in std::mem::take(&mut self.end_of_rib) {
                wire::end_of_rib(family, out);
            }
        }
    }

    fn remember(&mut self, prefix: IpNet, said: Said) {
        if self.sent.insert(prefix, Sent { said, again: false }).is_none() {
            *self.counts.entry(Family::of(&prefix)).or_default() += 1;
        }
    }

    fn forget(&mut self, prefix: &IpNet) {
        if self.sent.remove(prefix).is_some()
            && let Some(count) = self.counts.get_mut(&Family::of(prefix))
        {
            *count = count.saturating_sub(1);
        }
    }
}
